"""Running means that stay on the device until they are asked for, and where the time of a loop goes."""
from __future__ import annotations

import time
from collections.abc import Callable

import torch


class MeanMeter:
    """Means of named scalars since the last reset, without a device synchronisation per update."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None  # [n], float64
        self._count: torch.Tensor | int = 0

    def update(self, values: dict[str, torch.Tensor], valid: torch.Tensor | None = None) -> None:
        """Add the 0-d tensors of a step; their graph must already be detached.

        Args:
            valid: 0-d bool tensor; False leaves the step out, whatever its values are.
        """
        if self._sums is None:
            self._names = list(values)
        assert self._names == list(values), "every step of a loop has the same names"
        row = torch.stack([value.detach().float() for value in values.values()]).double()
        if valid is not None:
            row = torch.where(valid, row, 0.0)
        self._sums = row if self._sums is None else self._sums + row
        self._count = self._count + (1 if valid is None else valid.long())

    def means(self) -> dict[str, float]:
        """The mean of each name, NaN if no step counted; this waits for the device, once."""
        if self._sums is None:
            return {}
        means = self._sums / torch.as_tensor(self._count, device=self._sums.device)
        return dict(zip(self._names, means.tolist(), strict=True))

    def state_dict(self) -> dict:
        return {"names": list(self._names), "sums": self._sums, "count": int(self._count)}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self._names, self._count = list(state["names"]), state["count"]
        self._sums = None if state["sums"] is None else state["sums"].to(device)


class PhaseTimer:
    """Seconds that each phase of a loop has taken.

    Args:
        wait: called before a clock is read, such as torch.cuda.synchronize; without it a device's work counts where the
            host waits for it.
    """

    def __init__(self, wait: Callable[[], None] | None = None):
        self._wait = wait
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """The time since the last call belonged to `phase`."""
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def share(self, phase: str) -> float:
        """The phase's part of all time so far, 0..1."""
        return self.seconds.get(phase, 0.0) / self.total if self.total else 0.0
