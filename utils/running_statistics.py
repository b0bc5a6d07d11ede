"""Taking back what a step that went wrong did to the batch norms' running statistics."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The buffers of a model. A batch with a NaN in it makes them NaN for good, and with them every test.

    Nothing here waits for the device: what to keep is chosen there, in a handful of operations over all buffers.
    """

    def __init__(self, model: nn.Module):
        by_dtype: dict[torch.dtype, list[Tensor]] = {}  # means and variances, and the counters of batches
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._groups = list(by_dtype.values())
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Call it before the forward pass of a step."""
        self._before = [_flatten(group) for group in self._groups]

    @torch.no_grad()
    def restore_where(self, wrong: Tensor) -> None:
        """Put back what was remembered if `wrong` (0-d bool on the device) is True."""
        for group, before in zip(self._groups, self._before, strict=True):
            values = torch.where(wrong, before, _flatten(group)).split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [value.view_as(buffer) for value, buffer in zip(values, group, strict=True)])


def _flatten(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
