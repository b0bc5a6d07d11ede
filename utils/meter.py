"""Running means that stay on the device until someone asks."""
from __future__ import annotations

import torch


class MeanMeter:
    """Means of named scalars since the last reset, without a device synchronisation per update."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def update(self, values: dict[str, torch.Tensor]) -> None:
        """Add one step's 0-d tensors; their graph must already be detached."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def means(self) -> dict[str, float]:
        """The mean of each name; this waits for the device."""
        return {name: float(total) / self._count for name, total in self._sums.items()}
