"""Classifiers of the ID loss: features [B, D] and identities [B] to logits [B, K].

Each gives the logits with its margin and, detached, those without: accuracy is counted on the latter. A weight is
[K, D] and named `weight`. All compute in float32, also under autocast: a scale of 30 on a cosine of float16's 3
digits would cost the margin.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.precision import in_float32


class Linear(nn.Module):
    """A linear layer: the softmax loss.

    Args:
        feat_dim, num_class: D and K.
        scale, margin: not used; here so that all classifiers are built alike.
        bias: have one, as the part classifiers; behind a BNNeck there is none.
    """

    def __init__(
        self, feat_dim: int, num_class: int, scale: float = 1.0, margin: float = 0.0, bias: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_class, feat_dim))
        nn.init.normal_(self.weight, std=0.001)
        self.bias = nn.Parameter(torch.zeros(num_class)) if bias else None

    def forward(self, feat: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
        with in_float32(feat.device):
            bias = None if self.bias is None else self.bias.float()
            logits = F.linear(feat.float(), self.weight.float(), bias)
        return logits, logits.detach()


class CosineClassifier(nn.Module):
    """Scaled cosines between a feature and the class weights, changed by a margin; the subclasses say how.

    Args:
        feat_dim, num_class: D and K.
        scale: s, the factor on the cosines.
        margin: m; the subclass says in what unit.
    """

    def __init__(self, feat_dim: int, num_class: int, scale: float = 30.0, margin: float = 0.5):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(num_class, feat_dim))
        # Rows of norm 0.58 for any D and K: the norm divides the gradient of a cosine.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def with_margin(self, cosine: Tensor, pids: Tensor) -> Tensor:
        """[B, K] cosines to [B, K] values that `scale` multiplies."""
        raise NotImplementedError

    def forward(self, feat: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], [B] -> logits [B, K] with the margin, and plain ones, s * cos, detached."""
        with in_float32(feat.device):
            cosine = F.linear(F.normalize(feat.float()), F.normalize(self.weight.float()))
            return self.scale * self.with_margin(cosine, pids), self.scale * cosine.detach()


class Arcface(CosineClassifier):
    """The angle to the own class grows by m radians: cos(angle + m).

    Past pi - m, where cos(angle + m) would rise again, it goes on as cos(angle) - m sin(m); with `easy_margin` the
    margin acts only where cos(angle) > 0.
    Source: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, eq. 3.
    """

    def __init__(
        self, feat_dim: int, num_class: int, scale: float = 30.0, margin: float = 0.5, easy_margin: bool = False
    ):
        super().__init__(feat_dim, num_class, scale, margin)
        self.easy_margin = easy_margin

    def with_margin(self, cosine: Tensor, pids: Tensor) -> Tensor:
        m = self.margin
        own = cosine.gather(1, pids[:, None])  # [B, 1]
        # Clamp before sqrt: at cos = 1 the gradient of sqrt(1 - cos^2) is infinite. The bound is below the least
        # positive value that float32 has here (6e-8), so that no other angle changes.
        sine = (1.0 - own * own).clamp(min=1e-9).sqrt()
        shifted = own * math.cos(m) - sine * math.sin(m)
        if self.easy_margin:
            shifted = torch.where(own > 0, shifted, own)
        else:
            shifted = torch.where(own > math.cos(math.pi - m), shifted, own - m * math.sin(math.pi - m))
        return cosine.scatter(1, pids[:, None], shifted)


class Cosface(CosineClassifier):
    """The cosine to the own class falls by m.

    Source: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018, eq. 4; the same as
    AM-Softmax, Wang et al., Additive Margin Softmax for Face Verification, SPL 2018, eq. 6.
    """

    def with_margin(self, cosine: Tensor, pids: Tensor) -> Tensor:
        own = cosine.gather(1, pids[:, None])
        return cosine.scatter(1, pids[:, None], own - self.margin)


class CircleLoss(CosineClassifier):
    """Each cosine is weighted by its distance from its optimum, 1 + m for the own class and -m for the others.

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020, eq. 5 and 6, on
    the similarities to class weights; the factors carry no gradient.
    """

    def with_margin(self, cosine: Tensor, pids: Tensor) -> Tensor:
        m = self.margin
        own = cosine.gather(1, pids[:, None])
        positive = (1 + m - own.detach()).clamp(min=0) * (own - (1 - m))
        negative = (cosine.detach() + m).clamp(min=0) * (cosine - m)
        return negative.scatter(1, pids[:, None], positive)


# MODEL.ID_LOSS_TYPE -> class(feat_dim, num_class, scale, margin).
CLASSIFIERS: dict[str, type[nn.Module]] = {
    "softmax": Linear,
    "arcface": Arcface,
    "cosface": Cosface,
    "amsoftmax": Cosface,
    "circle": CircleLoss,
}
