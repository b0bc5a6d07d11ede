"""What torch does to many tensors at once, for versions of torch that do not have it yet."""
from __future__ import annotations

import torch
from torch import Tensor


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
