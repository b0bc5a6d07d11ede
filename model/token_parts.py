"""Parts that a transformer gives beside its global feature: TransReID's jigsaw parts and PASS's part tokens."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.heads import BNNeck, HeadOutput, Reduction

Joined = tuple[Tensor, Tensor, dict[str, HeadOutput]]


class JigsawHeads(nn.Module):
    """A neck and a classifier for each jigsaw part; an embedding is [global, parts / their number] side by side.

    Args:
        feat_dim, parts: D and P.
        make_classifier: width -> (feat, pids) -> (logits, plain logits).
        necked: whether there are batch norms before the classifiers.
        tested: False leaves the parts out of embeddings.
        embed_dim: E, to which each part is reduced; 0 leaves them at D.
    Source: He et al., TransReID, ICCV 2021, sec. 3.2.
    """

    def __init__(self, feat_dim: int, parts: int, make_classifier: Callable[[int], nn.Module], necked: bool,
                 tested: bool, embed_dim: int = 0):
        super().__init__()
        self.tested = tested
        self.reductions = _reductions(feat_dim, parts, embed_dim, necked)
        feat_dim = embed_dim or feat_dim
        self.necks = nn.ModuleList(BNNeck(feat_dim) if necked else nn.Identity() for _ in range(parts))
        self.classifiers = nn.ModuleList(make_classifier(feat_dim) for _ in range(parts))
        self.dim, self.metric_dim = feat_dim * (1 + parts * tested), feat_dim
        self.part_dims = {f"part{i}": feat_dim for i in range(parts)}

    def forward(self, feat: Tensor, after: Tensor, parts: Tensor, pids: Tensor | None) -> Joined:
        """The global feature before and after its neck, and the parts' outputs in training.

        Args:
            feat, after: [B, D], or reduced [B, E].
            parts: [B, P, D].
            pids: [B] in training; None joins the parts to the features.
        """
        features = _reduce(parts, self.reductions)
        if pids is not None:
            heads = zip(self.part_dims, features, self.necks, self.classifiers, strict=True)
            return feat, after, {name: HeadOutput(*classify(neck(part), pids), part)
                                 for name, part, neck, classify in heads}
        if not self.tested:
            return feat, after, {}
        necked = [neck(part) for part, neck in zip(features, self.necks, strict=True)]
        return _beside(feat, features), _beside(after, necked), {}


def _reductions(feat_dim: int, parts: int, embed_dim: int, necked: bool) -> nn.ModuleList:
    """One for each part; none without EMBED_DIM."""
    return nn.ModuleList(Reduction(feat_dim, embed_dim, normed=not necked) for _ in range(parts if embed_dim else 0))


def _reduce(parts: Tensor, reductions: nn.ModuleList) -> tuple[Tensor, ...]:
    """[B, P, D] -> P of [B, D], or of [B, E]."""
    features = parts.float().unbind(1)
    return tuple(reduce(part) for reduce, part in zip(reductions, features, strict=True)) if reductions else features


def _beside(feat: Tensor, parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([feat, *(part / len(parts) for part in parts)], dim=1)


class PartTokens(nn.Module):
    """The mean of the part tokens beside the class token, or the mean of both; a neck of its own for each part.

    Args:
        feat_dim, parts: D and P.
        fusion: "cat" [B, 2 D] or "mean" [B, D].
        necked: whether there are batch norms.
        embed_dim: E, to which each token is reduced; 0 leaves them at D.
    Source: Zhu et al., PASS, ECCV 2022.
    """

    def __init__(self, feat_dim: int, parts: int, fusion: str, necked: bool, embed_dim: int = 0):
        super().__init__()
        self.fusion = fusion
        self.reductions = _reductions(feat_dim, parts, embed_dim, necked)
        feat_dim = embed_dim or feat_dim
        self.necks = nn.ModuleList(BNNeck(feat_dim) if necked else nn.Identity() for _ in range(parts))
        self.dim = self.metric_dim = feat_dim * (2 if fusion == "cat" else 1)
        self.part_dims: dict[str, int] = {}

    def forward(self, feat: Tensor, after: Tensor, parts: Tensor, pids: Tensor | None) -> Joined:
        """As JigsawHeads.forward; the parts are in the features, in training, too."""
        features = _reduce(parts, self.reductions)
        necked = torch.stack([neck(part) for part, neck in zip(features, self.necks, strict=True)], dim=1)
        return self._fuse(feat, torch.stack(features, dim=1)), self._fuse(after, necked), {}

    def _fuse(self, feat: Tensor, parts: Tensor) -> Tensor:
        mean = parts.mean(1)
        return torch.cat([feat, mean], dim=1) if self.fusion == "cat" else (feat + mean) / 2
