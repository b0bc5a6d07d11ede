"""Losses over all pairs of a batch by their cosine, in the form of Circle Loss, CVPR 2020, eq. 1 and 6.

The loss of an anchor is softplus(logsumexp over negatives + logsumexp over positives): the worst pairs count most.
An image is not its own positive. An anchor without positives or without negatives adds nothing and gets no gradient.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.precision import in_float32

NO_PAIR = -1e9  # exp of it is 0, and unlike -inf it leaves an empty row's gradient 0 instead of NaN


class PairLoss(nn.Module):
    """The mean of the anchors' losses; a subclass defines how a cosine becomes a logit.

    Args:
        scale: gamma, the factor on the cosines.
        margin: m, in units of the cosine.
    """

    def __init__(self, scale: float, margin: float):
        super().__init__()
        self.scale, self.margin = scale, margin

    def logits(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """[B, B] cosines -> what each would add as a positive and as a negative pair, before the scale."""
        raise NotImplementedError

    def forward(self, feat: Tensor, pids: Tensor) -> Tensor:
        """[B, D], [B] -> the mean over all B anchors, a float32 scalar."""
        with in_float32(feat.device):
            feat = F.normalize(feat.float())
            same = pids[:, None] == pids[None, :]
            itself = torch.eye(len(feat), dtype=torch.bool, device=feat.device)
            positive, negative = (self.scale * logits for logits in self.logits(feat @ feat.t()))
            positive = positive.masked_fill(~same | itself, NO_PAIR).logsumexp(1)
            negative = negative.masked_fill(same, NO_PAIR).logsumexp(1)
            return F.softplus(positive + negative).mean()


class PairCosface(PairLoss):
    """Positives -s, negatives s + m: their difference is to exceed a margin.

    Source: Sun et al., Circle Loss, CVPR 2020, eq. 1; CosFace's margin between pairs, as the winners of NAIC 2020 used.
    """

    def logits(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        return -cosine, cosine + self.margin


class PairCircle(PairLoss):
    """Each pair is weighted by its distance from its optimum, 1 + m or -m; the weights carry no gradient.

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020, eq. 4 to 8.
    """

    def logits(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        m, fixed = self.margin, cosine.detach()
        return ((1 + m - fixed).clamp(min=0) * (1 - m - cosine),
                (fixed + m).clamp(min=0) * (cosine - m))
