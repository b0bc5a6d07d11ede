"""Losses between a network that learns and a teacher: relations of a batch's features, and soft classes.

Source: Park et al., Relational Knowledge Distillation, CVPR 2019 (RKD); Hinton et al., Distilling the Knowledge in a
Neural Network, 2015.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.precision import in_float32

# A pair that is nearer than this share of the mean squared distance is one picture twice: it gives no gradient.
_SAME = 1e-9


class Targets(NamedTuple):
    """What a teacher says of a batch: features [M, D], and logits [B, K] if its classes are those of the student."""

    feat: Tensor
    logits: Tensor | None = None


def relation_losses(feat: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """How much the relations of a batch differ: distance-wise and angle-wise, the means of the Huber loss (eq. 5).

    The distance-wise potential of a pair (eq. 4) is |a - b| over the mean of all pairs; the angle-wise one of three
    (eq. 6) the cosine of the angle a-b-c at b. Pairs and triples are of distinct pictures, in every order. Computed in
    float64 from products of features, because differences of near features cancel; it takes some B^3 numbers.

    Args:
        feat, teacher: [B, D] and [B, D'] of the same pictures, of any length and scale.
    Returns:
        two scalars, float32; the second is 0 for less than three pictures.
    Source: Park et al., 2019, sec. 3.2; eq. 7 and 8 are their sums.
    """
    with in_float32(feat.device):
        (pairs, angles), (teacher_pairs, teacher_angles) = _relations(feat), _relations(teacher)
        count = len(feat)
        distance = F.smooth_l1_loss(pairs, teacher_pairs, reduction="sum") / (count * (count - 1))
        angle = F.smooth_l1_loss(angles, teacher_angles, reduction="sum") / max(count * (count - 1) * (count - 2), 1)
        return distance.float(), angle.float()


def _relations(feat: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean [B, B] and cosines [B, B, B], the vertex in the middle; 0 where two are the same."""
    x = feat.double()
    products, same = x @ x.T, torch.eye(len(x), dtype=torch.bool, device=x.device)
    lengths = products.diagonal()
    squared = (lengths[:, None] + lengths[None, :] - 2 * products).masked_fill(same, 0)
    pairs = len(x) * (len(x) - 1)
    least = (_SAME * squared.detach().sum() / pairs).clamp(min=1e-30)
    # Clamp before sqrt: its gradient at 0 is infinite.
    distances = squared.maximum(least).sqrt().masked_fill(same, 0)
    # (a - b)·(c - b) = a·c - a·b - b·c + b·b, in the order [a, b, c]
    dots = products[:, None, :] - products[:, :, None] - products[None, :, :] + lengths[None, :, None]
    factors = distances.masked_fill(same, 1).reciprocal().masked_fill(same, 0)
    cosines = (dots * (factors[:, :, None] * factors[None, :, :])).float().masked_fill(same[:, None, :], 0)
    return distances / (distances.sum() / pairs), cosines


def logit_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the classes' probabilities at temperature T, the mean over the batch.

    T^2 keeps the gradients' size whatever T is. float32.

    Args:
        logits, teacher: [B, K] without margins.
    Source: Hinton et al., 2015, sec. 2.
    """
    with in_float32(logits.device):
        student, teacher = ((values.float() / temperature).log_softmax(1) for values in (logits, teacher))
        return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
