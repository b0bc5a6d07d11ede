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
        self._before = [_joined(group) for group in self._groups]

    @torch.no_grad()
    def restore_where(self, wrong: Tensor) -> None:
        """Put back what was remembered where `wrong` (0-d bool on the device) is True."""
        for group, before in zip(self._groups, self._before, strict=True):
            chosen = torch.where(wrong, before, _joined(group)).split([buffer.numel() for buffer in group])
            copy_all(group, [values.view_as(buffer) for values, buffer in zip(chosen, group, strict=True)])


def _joined(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])


@torch.no_grad()
def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """target.copy_(source) for all pairs, in few launches."""
    if hasattr(torch, "_foreach_copy_"):  # torch 2.1 or newer
        torch._foreach_copy_(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


@torch.no_grad()
def scale_all(targets: list[Tensor], factor: Tensor) -> None:
    """target.mul_(factor) for all, in few launches; factor is 0-d, on the targets' device and not waited for."""
    try:
        torch._foreach_mul_(targets, factor)
    except TypeError:  # torch 2.0 takes numbers and lists only
        torch._foreach_mul_(targets, [factor] * len(targets))
