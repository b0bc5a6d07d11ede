"""Center loss: features are drawn to a learned centre of their class."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.precision import in_float32


class CenterLoss(nn.Module):
    """Mean over the batch of the squared distance to the centre of a feature's class; no factor 1/2, as in the lineage.

    Args:
        num_classes, feat_dim: K and D; `centers` is a parameter [K, D], normally distributed at first.
    Source: Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, eq. 2.
    """

    def __init__(self, num_classes: int, feat_dim: int):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, feat_dim))

    def forward(self, feat: Tensor, pids: Tensor) -> Tensor:
        """[B, D], [B] int64 -> float32 scalar."""
        with in_float32(feat.device):
            # The clamp is the lineage's: it bounds one image's part.
            squared = (feat.float() - self.centers[pids]).pow(2).sum(1)
            return squared.clamp(1e-12, 1e12).mean()
