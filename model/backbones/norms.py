"""Instance norm in training that leaves maps channels last in memory, if they came so.

torch's knows NCHW alone. What follows it, up to the next convolution and in the backward pass, would be slower, because
formats are mixed there. Without training nothing is done, so that embeddings and exported files stay what they were.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn


class InstanceNorm2d(nn.InstanceNorm2d):
    """As torch's."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return keep_format(out, x) if self.training else out


def keep_format(out: Tensor, like: Tensor) -> Tensor:
    """`out` channels last in memory if `like` is, both [B, C, H, W]; the values are the same."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out
