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
