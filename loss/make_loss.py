"""The criterion: the weighted sum of the losses that the config asks for, and each of its terms by name."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from loss.center_loss import CenterLoss
from loss.distillation import Targets, logit_loss, relation_losses
from loss.pair_loss import PairCircle, PairCosface
from loss.prompt_loss import TextLoss
from loss.softmax_loss import IDLoss
from loss.triplet_loss import TripletLoss, WeightedTripletLoss

# METRIC_LOSS_TYPE -> the metric losses that it stands for.
METRIC_LOSSES: dict[str, tuple[str, ...]] = {
    "triplet": ("triplet",),
    "center": ("center",),
    "triplet_center": ("triplet", "center"),
    "pair_cosface": ("pair",),
    "pair_circle": ("pair",),
    "triplet_pair_cosface": ("triplet", "pair"),
    "triplet_pair_circle": ("triplet", "pair"),
}
PAIR_LOSSES = {"pair_cosface": PairCosface, "pair_circle": PairCircle}
# SAMPLER -> (is there an ID loss, are there metric losses).
SAMPLERS: dict[str, tuple[bool, bool]] = {
    "softmax": (True, False),
    "triplet": (False, True),
    "softmax_triplet": (True, True),
}
LABEL_SMOOTHING = 0.1
# Factors of the distance-wise and the angle-wise term, those of Park et al., CVPR 2019, beside logits.
RKD_DISTANCE, RKD_ANGLE = 25.0, 50.0


class Criterion(nn.Module):
    """Weighted sum of the losses of all branches.

    Its only parameters are the class centres, if there is a center loss.

    Args:
        id_loss, triplet, pair: the losses; None leaves the term out.
        centers: a CenterLoss for each branch that has a metric feature, or None.
        texts: of the branch "global", or None.
        weights: factor of each term: "id", "triplet", "pair", "center", "i2t" (texts); "id_part" for the mean over the
            branches part0, part1 ... and "id_merged" and the like for branches that have a factor of their own.
            "rkd_distance", "rkd_angle" and "kd" are of a teacher.
        temperature: of a teacher's logits.
    """

    def __init__(
        self,
        id_loss: nn.Module | None,
        triplet: nn.Module | None,
        centers: nn.ModuleDict | None,
        weights: dict[str, float],
        pair: nn.Module | None = None,
        texts: nn.Module | None = None,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.texts, self.temperature = texts, temperature
        self.id_loss, self.triplet, self.pair, self.centers = id_loss, triplet, pair, centers
        self.weights = dict(weights)

    def forward(self, outputs: dict, pids: Tensor, metric_pids: Tensor | None = None,
                targets: Targets | None = None) -> tuple[Tensor, dict]:
        """The loss of one batch.

        Args:
            outputs: {branch: an object with logits [B, K] and metric_feat [M, D], or None for no metric loss}.
            pids: [B] int64 class indices of the logits.
            metric_pids: [M] those of metric_feat, if it was gathered from several processes; None: pids.
            targets: what a teacher says of the M pictures, its logits of the B alone; None: there is none. Its terms
                are of the branch "global".
        Returns:
            the scalar to minimise, and {term: detached scalar, unweighted}: the name of a loss, such as "id", for the
            branch "global", and with the branch's name behind it, such as "id_part0", for the others.
        """
        metric_pids = pids if metric_pids is None else metric_pids
        total, terms = 0.0, {}
        for branch, out in outputs.items():
            for name, value in (*self._branch_terms(branch, out, pids, metric_pids),
                                *self._teacher_terms(out, targets if branch == "global" else None)):
                term = name if branch == "global" else f"{name}_{branch}"
                total = total + self._weight(name, branch, outputs) * value
                terms[term] = value.detach()
        return total, terms

    def _weight(self, name: str, branch: str, outputs: dict) -> float:
        kinds = [other.rstrip("0123456789") for other in outputs]  # part3 -> part
        kind = branch.rstrip("0123456789")
        weight = self.weights.get(f"{name}_{kind}")
        return self.weights[name] if weight is None else weight / kinds.count(kind)

    def _branch_terms(self, branch, out, pids, metric_pids):
        if self.id_loss is not None:
            yield "id", self.id_loss(out.logits, pids)
        if out.metric_feat is None:
            return
        if self.triplet is not None:
            yield "triplet", self.triplet(out.metric_feat, metric_pids)
        if self.pair is not None:
            yield "pair", self.pair(out.metric_feat, metric_pids)
        if self.centers is not None:
            yield "center", self.centers[branch](out.metric_feat, metric_pids)
        if self.texts is not None and branch == "global":
            yield "i2t", self.texts(out.metric_feat, metric_pids)

    def _teacher_terms(self, out, targets: Targets | None):
        if targets is None:
            return
        yield from zip(("rkd_distance", "rkd_angle"), relation_losses(out.metric_feat, targets.feat), strict=True)
        if targets.logits is not None:
            yield "kd", logit_loss(out.plain_logits, targets.logits, self.temperature)

    @torch.no_grad()
    def unweight_center_gradient(self) -> None:
        """Divide the centres' gradients by the center loss's weight: the weight is meant for the features alone.

        Call it after backward (and after a gradient scaler's unscale) and before the centres' optimiser steps.
        With a weight of 0 the centres have a gradient of 0, which stays: the term is then only reported.
        """
        weight = self.weights["center"]
        for parameter in self.parameters():
            if parameter.grad is not None and weight != 0:
                parameter.grad.div_(weight)


def make_loss(cfg, num_classes: int, feat_dims: dict[str, int], text_feats: Tensor | None = None) -> Criterion:
    """The criterion of the config.

    DATALOADER.SAMPLER decides between an ID loss, metric losses and both; MODEL.METRIC_LOSS_TYPE between the metric
    losses. Branches of part heads have the ID loss alone: their factors are MODEL.PCB_*_LOSS_WEIGHT, that of the
    parts multiplies their mean.

    Args:
        num_classes: K, identities in training.
        feat_dims: {branch: D}, the model's `feat_dims`: the branches with a metric feature.
        text_feats: [K, D] of the identities' texts (MODEL.PROMPTS), or None.
    """
    metric = cfg.MODEL.METRIC_LOSS_TYPE
    with_id, with_metric = SAMPLERS[cfg.DATALOADER.SAMPLER]
    metrics = METRIC_LOSSES[metric] if with_metric else ()
    smoothing = LABEL_SMOOTHING if cfg.MODEL.IF_LABELSMOOTH else 0.0
    id_loss = IDLoss(smoothing) if with_id else None
    triplet = None
    if "triplet" in metrics:
        kind = WeightedTripletLoss if cfg.MODEL.WEIGHTED_TRIPLET else TripletLoss
        triplet = kind(None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN, cfg.SOLVER.TRP_L2)
    centers = None
    if "center" in metrics:
        centers = nn.ModuleDict({branch: CenterLoss(num_classes, dim) for branch, dim in feat_dims.items()})
    pair = None
    if "pair" in metrics:
        pair = PAIR_LOSSES[metric.removeprefix("triplet_")](cfg.SOLVER.PAIR_SCALE, cfg.SOLVER.PAIR_MARGIN)
    weights = {
        "id": cfg.MODEL.ID_LOSS_WEIGHT,
        "triplet": cfg.MODEL.TRIPLET_LOSS_WEIGHT,
        "pair": cfg.MODEL.PAIR_LOSS_WEIGHT,
        "center": cfg.SOLVER.CENTER_LOSS_WEIGHT,
        "i2t": cfg.MODEL.I2T_LOSS_WEIGHT,
        "rkd_distance": RKD_DISTANCE * cfg.SOLVER.DISTILL_WEIGHT,
        "rkd_angle": RKD_ANGLE * cfg.SOLVER.DISTILL_WEIGHT,
        "kd": cfg.SOLVER.DISTILL_WEIGHT,
    }
    if cfg.MODEL.JPM:  # half for the global branch, half for the mean over the parts, of every loss
        weights |= {f"{name}_{kind}": weights[name] / 2 for name in ("id", "triplet", "pair")
                    for kind in ("global", "part")}
    if cfg.MODEL.IF_USE_PCB:
        weights |= {"id_part": cfg.MODEL.PCB_PART_LOSS_WEIGHT, "id_merged": cfg.MODEL.PCB_MERGED_LOSS_WEIGHT,
                    "id_local": cfg.MODEL.PCB_LOCAL_LOSS_WEIGHT}
    texts = None if text_feats is None else TextLoss(text_feats, smoothing)
    return Criterion(id_loss, triplet, centers, weights, pair, texts, cfg.SOLVER.DISTILL_TEMPERATURE)
