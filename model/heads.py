"""What follows the map: reduction and BNNeck of the global branch, the part heads (PCB, RPP), what a branch gives."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.classifiers import Linear
from model.pooling import GeM
from utils.precision import in_float32


class HeadOutput(NamedTuple):
    """One branch's training outputs; a NamedTuple, so that DataParallel can gather it."""

    logits: Tensor  # [B, K], with the classifier's margin: for the ID loss
    plain_logits: Tensor  # [B, K], without margin, detached: for the accuracy
    metric_feat: Tensor | None  # [B, D], before the neck: for the metric losses; None: they leave the branch alone


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


class Reduction(nn.Module):
    """A linear layer without bias to fewer numbers, in float32; the batch norm behind it is the neck or its own.

    Args:
        feat_dim, dim: D and E.
        normed: has the batch norm, because no neck follows.
    Source: fast-reid's embedding head (MODEL.HEADS.EMBEDDING_DIM): a 1x1 convolution between pooling and batch norm.
    """

    def __init__(self, feat_dim: int, dim: int, normed: bool):
        super().__init__()
        self.linear = nn.Linear(feat_dim, dim, bias=False)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.BatchNorm1d(dim) if normed else None

    def forward(self, feat: Tensor) -> Tensor:
        """[B, D] -> [B, E]; with a batch norm training needs B > 1."""
        with in_float32(feat.device):
            feat = F.linear(feat.float(), self.linear.weight.float())
        return feat if self.norm is None else self.norm(feat)


PARTS, PART_DIM = 6, 256
# MODEL.PCB_GATE -> what bounds a gate.
GATES = {"sigmoid": torch.sigmoid, "affine": lambda x: x}


class PCB(nn.Module):
    """Part-based convolutional baseline: six horizontal stripes of the map, an embedding and a classifier for each.

    The branches are part0 .. part5 (from the top, 256 channels each); `merged`, the six side by side, each times a
    scalar gate that is computed from the whole map; and `local`, the whole map through a 1x1 convolution, normalised
    over the channels at every position and pooled by GeM. All are trained by an ID loss alone.

    Args:
        feat_dim, num_class: channels C of the map, and K.
        gate: "sigmoid" keeps the factors in (0, 1); "affine" is the lineage's, of any size and sign.
        merged, local: have that branch. Without `merged` there are no gates, because nothing would train them.
        rpp: refined part pooling: a learned part classifier gives each position to its part, instead of stripes.
        test: what `forward` returns at inference: "merged" [B, 1536 or E], "parts" (six of [B, 256]) or "local"
            [B, 256].
        weighted: at inference, give the parts times their gates, as the lineage did; they are trained without.
        embed_dim: E, to which the merged parts are reduced; 0 leaves them as they are. The others have 256 anyway.
    Source: Sun et al., Beyond Part Models: Person Retrieval with Refined Part Pooling (and a Strong Convolutional
    Baseline), ECCV 2018, sec. 3; the gates and the merged and local branches are NAIC-ReID's.
    """

    def __init__(
        self, feat_dim: int, num_class: int, gate: str = "sigmoid", merged: bool = True, local: bool = False,
        rpp: bool = False, test: str = "merged", weighted: bool = False, embed_dim: int = 0,
    ):
        super().__init__()
        self.gate, self.test, self.weighted = GATES[gate], test, weighted
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(feat_dim, PART_DIM, 1, bias=False), nn.BatchNorm2d(PART_DIM)) for _ in range(PARTS)
        )
        self.gates = nn.ModuleList(_gate(feat_dim) for _ in range(PARTS if merged else 0))
        self.local = self.pool = None
        if local:
            self.local = nn.Sequential(nn.Conv2d(feat_dim, PART_DIM, 1, bias=False), nn.BatchNorm2d(PART_DIM),
                                       nn.ReLU(inplace=True))
            self.pool = GeM()
        self.rpp = nn.Conv2d(feat_dim, PARTS, 1) if rpp else None
        self.reduction = Reduction(PARTS * PART_DIM, embed_dim, normed=True) if embed_dim and merged else None
        self.merged_dim = embed_dim or PARTS * PART_DIM
        dims = {f"part{i}": PART_DIM for i in range(PARTS)}
        dims |= {"merged": self.merged_dim} if merged else {}
        dims |= {"local": PART_DIM} if local else {}
        self.classifiers = nn.ModuleDict({name: Linear(dim, num_class, bias=True) for name, dim in dims.items()})
        for module in (*self.embeddings.modules(), *(self.local.modules() if local else ())):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @property
    def test_dims(self) -> dict[str, int]:
        """Width D of each branch at inference."""
        if self.test == "parts":
            return {f"part{i}": PART_DIM for i in range(PARTS)}
        return {"merged": self.merged_dim} if self.test == "merged" else {"local": PART_DIM}

    def forward(self, x: Tensor, pids: Tensor | None = None) -> dict[str, HeadOutput] | dict[str, Tensor]:
        """[B, C, h, w] and, in training, [B] -> {branch: HeadOutput} of all branches, or {branch: [B, D]}."""
        if pids is None and self.test == "local":
            return {"local": self._local(x)}
        feats = self._parts(x)
        if pids is None:
            if self.test == "merged":
                return {"merged": self._merged(feats, x)}
            gates = self._gates(x) if self.weighted else [1.0] * PARTS
            return {name: feat.float() * gate for (name, feat), gate in zip(feats.items(), gates, strict=True)}
        if self.gates:
            feats["merged"] = self._merged(feats, x)
        if self.local is not None:
            feats["local"] = self._local(x)
        return {name: HeadOutput(*self.classifiers[name](feat, pids), None) for name, feat in feats.items()}

    def _parts(self, x: Tensor) -> dict[str, Tensor]:
        """[B, C, h, w] -> {part: [B, 256]}."""
        pooled = pool_by(x, stripes(x) if self.rpp is None else self._refined(x))
        return {f"part{i}": embed(pooled[:, :, i, None, None]).flatten(1) for i, embed in enumerate(self.embeddings)}

    def _refined(self, x: Tensor) -> Tensor:
        """[B, P, h, w]: the probability that a position belongs to a part; eq. 1 of the paper."""
        return self.rpp(x).float().softmax(1)

    def _gates(self, x: Tensor) -> list[Tensor]:
        return [self.gate(gate(x).float()) for gate in self.gates]

    def _merged(self, parts: dict[str, Tensor], x: Tensor) -> Tensor:
        pairs = zip(parts.values(), self._gates(x), strict=True)
        merged = torch.cat([part.float() * gate for part, gate in pairs], dim=1)
        return merged if self.reduction is None else self.reduction(merged)

    def _local(self, x: Tensor) -> Tensor:
        return self.pool(F.normalize(self.local(x).float(), dim=1))


def _gate(feat_dim: int) -> nn.Sequential:
    """The lineage's layers, [B, C, h, w] -> [B, 1]. With nothing between them they make one affine map."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(feat_dim, PART_DIM, 1), nn.Conv2d(PART_DIM, PART_DIM // 16, 1),
        nn.Conv2d(PART_DIM // 16, PART_DIM, 1), nn.Flatten(), nn.Linear(PART_DIM, 1),
    )


def stripes(x: Tensor) -> Tensor:
    """[1, P, h, 1] weights of the rows of `x` [B, C, h, w] in each stripe: those of adaptive pooling to P x 1.

    If h is not a multiple of P, stripes overlap by a row; if it is smaller than P, a row is in several.
    """
    height = int(x.shape[2])  # a number in a trace, too
    weights = torch.zeros(1, PARTS, height, 1, device=x.device)
    for i in range(PARTS):
        weights[0, i, i * height // PARTS : -(-(i + 1) * height // PARTS)] = 1
    return weights


def pool_by(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the positions of a map, in float32: [B, C, h, w], [B or 1, P, h, w or 1] -> [B, C, P].

    A product of matrices, because the gradient of adaptive pooling is not deterministic on CUDA. The mean (not the sum)
    keeps a refined part on the scale of a stripe, so that what the stripes' embedding learned stays valid.
    """
    with in_float32(x.device):
        weights = weights.float().expand(-1, -1, -1, x.shape[3]).flatten(2)  # the batch stays free: the product repeats
        weights = weights / weights.sum(2, keepdim=True)
        return x.float().flatten(2) @ weights.transpose(1, 2)
