"""Classifiers of the ID loss: features [B, D] and identities [B] to logits [B, K].

Each gives the logits with its margin and, detached, those without: accuracy is counted on the latter. (With
`plain_gradient` set they are not detached: a distillation compares them.) The weight is [K, D] and named `weight`.
All compute in float32, also under autocast: a scale of 30 on a cosine of float16's 3 digits would cost the margin.
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
        bias: True adds one, as the part classifiers have; a classifier behind a BNNeck has none.
    """

    plain_gradient = False

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
        return logits, logits if self.plain_gradient else logits.detach()


class CosineClassifier(nn.Module):
    """Scaled cosines between a feature and the class weights, with a margin that a subclass defines.

    Args:
        feat_dim, num_class: D and K.
        scale: s, the factor on the cosines.
        margin: m; its unit is the subclass's: radians or a cosine.
    """

    plain_gradient = False

    def __init__(self, feat_dim: int, num_class: int, scale: float = 30.0, margin: float = 0.5):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(num_class, feat_dim))
        # Rows of norm 0.58 for any D and K: the norm divides the gradient of a cosine.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def true_class(self, cosine: Tensor) -> Tensor:
        """[B, 1] cosines to the true classes, with their margin."""
        raise NotImplementedError

    def other_classes(self, cosine: Tensor) -> Tensor:
        """[B, K] cosines with the margin of classes that are not the true one."""
        return cosine

    def forward(self, feat: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], [B] -> logits [B, K] with the margin, and plain ones, s * cos, detached."""
        with in_float32(feat.device):
            cosine = F.linear(F.normalize(feat.float()), F.normalize(self.weight.float()))
            true = self.true_class(cosine.gather(1, pids[:, None]))
            plain = cosine if self.plain_gradient else cosine.detach()
            return self.scale * self.other_classes(cosine).scatter(1, pids[:, None], true), self.scale * plain


class Arcface(CosineClassifier):
    """The angle to the true class grows by m radians: cos(angle + m).

    Beyond pi - m cos(angle + m) would rise again, so that there it is cos(angle) - m sin(m) instead.
    Source: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, eq. 3.
    """

    def true_class(self, cosine: Tensor) -> Tensor:
        m = self.margin
        # Clamp before sqrt: at cos = 1 the gradient of sqrt(1 - cos^2) is infinite. The bound is below the least
        # positive value that float32 has here (6e-8), so that no other angle changes.
        sine = (1.0 - cosine * cosine).clamp(min=1e-9).sqrt()
        shifted = cosine * math.cos(m) - sine * math.sin(m)
        return torch.where(cosine > math.cos(math.pi - m), shifted, cosine - m * math.sin(math.pi - m))


class Cosface(CosineClassifier):
    """The cosine to the true class falls by m.

    Source: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018, eq. 4; the same as
    AM-Softmax, Wang et al., Additive Margin Softmax for Face Verification, SPL 2018, eq. 6.
    """

    def true_class(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class CircleLoss(CosineClassifier):
    """Each cosine is weighted by its distance from its optimum, 1 + m for the true class and -m for the others.

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020, eq. 5 and 6, on
    the similarities to class weights; the factors carry no gradient.
    """

    def true_class(self, cosine: Tensor) -> Tensor:
        return (1 + self.margin - cosine.detach()).clamp(min=0) * (cosine - (1 - self.margin))

    def other_classes(self, cosine: Tensor) -> Tensor:
        return (cosine.detach() + self.margin).clamp(min=0) * (cosine - self.margin)


# MODEL.ID_LOSS_TYPE -> class(feat_dim, num_class, scale, margin).
CLASSIFIERS: dict[str, type[nn.Module]] = {
    "softmax": Linear,
    "arcface": Arcface,
    "cosface": Cosface,
    "amsoftmax": Cosface,
    "circle": CircleLoss,
}
