"""What follows the pooled feature of one branch: the BNNeck, and what a branch gives to the criterion."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class HeadOutput(NamedTuple):
    """One branch's training outputs; a NamedTuple, so that DataParallel can gather it."""

    logits: Tensor  # [B, K], with the classifier's margin: for the ID loss
    plain_logits: Tensor  # [B, K], without margin, detached: for the accuracy
    metric_feat: Tensor  # [B, D], before the neck: for the metric losses


class BNNeck(nn.BatchNorm1d):
    """Batch norm between the metric feature and the classifier, its bias fixed at zero, in float32.

    Source: Luo et al., Bag of Tricks and A Strong Baseline for Deep Person Re-identification, CVPRW 2019, sec. 3.5.
    """

    def __init__(self, feat_dim: int):
        super().__init__(feat_dim)
        self.bias.requires_grad_(False)

    def forward(self, feat: Tensor) -> Tensor:
        """[B, D] -> [B, D]; training needs B > 1."""
        return super().forward(feat.float())
