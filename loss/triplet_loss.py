"""Triplet losses over all pairs of a batch: batch-hard and softmax-weighted.

Positives of an anchor are all images of its identity, itself included, as in the lineage. An anchor without
negatives (a batch of one identity) adds nothing to the loss and gets no gradient from it. Identities may have unequal
numbers of images.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.precision import in_float32


def euclidean_dist(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, float32: [N, D], [M, D] -> [N, M]; at least 1e-6."""
    squared = x.pow(2).sum(1)[:, None] + y.pow(2).sum(1)[None, :] - 2 * x @ y.t()
    # Clamp before sqrt: its gradient at 0 is infinite, and rounding can make the difference negative.
    return squared.clamp(min=1e-12).sqrt()


def self_distances(feat: Tensor) -> Tensor:
    """Euclidean distances of a batch to itself, float32: [B, D] -> [B, B]."""
    # An image's distance to itself is rounding error, and sqrt makes 1e-4 of 1e-8: enough to shift the softmax.
    itself = torch.eye(len(feat), dtype=torch.bool, device=feat.device)
    return euclidean_dist(feat, feat).masked_fill(itself, 1e-6)


def hard_distances(dist: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
    """Farthest positive and nearest negative of each anchor.

    Args:
        dist: [B, B] distances of a batch to itself.
        pids: [B] identities.
    Returns:
        two [B]; the second is inf for an anchor without negatives.
    """
    positive = pids[:, None] == pids[None, :]
    farthest = dist.masked_fill(~positive, -torch.inf).max(1).values
    nearest = dist.masked_fill(positive, torch.inf).min(1).values
    return farthest, nearest


def weighted_distances(dist: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all positives and over all negatives, weighted by softmax(dist) and softmax(-dist).

    The weights carry gradients, too. Arguments as for hard_distances; an anchor without negatives has inf.
    """
    positive = pids[:, None] == pids[None, :]
    far = (_masked_softmax(dist, positive) * dist).sum(1)
    near = (_masked_softmax(-dist, ~positive) * dist).sum(1)
    return far, near.masked_fill(positive.all(1), torch.inf)


def _masked_softmax(x: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the row's entries under the mask, 0 elsewhere. An empty row gives finite nonsense, not NaN."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(1)


class TripletLoss(nn.Module):
    """Batch-hard triplet loss.

    Args:
        margin: relu(d_ap - d_an + margin); None is the soft margin, log(1 + exp(d_ap - d_an)).
        normalized: distances are of features of length 1.
    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017, eq. 5.
    """

    distances = staticmethod(hard_distances)

    def __init__(self, margin: float | None = None, normalized: bool = False):
        super().__init__()
        self.margin, self.normalized = margin, normalized

    def forward(self, feat: Tensor, pids: Tensor) -> Tensor:
        """[B, D], [B] -> the mean over all B anchors, a float32 scalar."""
        with in_float32(feat.device):
            feat = F.normalize(feat.float()) if self.normalized else feat.float()
            dist_ap, dist_an = self.distances(self_distances(feat), pids)
            # -inf for an anchor without negatives: both forms below give it 0 and no gradient.
            gap = dist_ap - dist_an
            return (F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)).mean()


class WeightedTripletLoss(TripletLoss):
    """Softmax-weighted triplet loss: all pairs count, the hard ones most.

    Arguments as for TripletLoss.
    Source: Ristani and Tomasi, Features for Multi-Target Multi-Camera Tracking and Re-Identification, CVPR 2018,
    eq. 1 and 3.
    """

    distances = staticmethod(weighted_distances)
