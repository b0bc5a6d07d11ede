"""Parts that a transformer gives beside its global feature: TransReID's jigsaw parts and PASS's part tokens."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.heads import BNNeck, HeadOutput

Joined = tuple[Tensor, Tensor, dict[str, HeadOutput]]


class JigsawHeads(nn.Module):
    """A neck and a classifier for each jigsaw part; an embedding is [global, parts / their number] side by side.

    Args:
        feat_dim, parts: D and P.
        make_classifier: width -> (feat, pids) -> (logits, plain logits).
        necked: whether there are batch norms before the classifiers.
        tested: False leaves the parts out of embeddings.
    Source: He et al., TransReID, ICCV 2021, sec. 3.2.
    """

    def __init__(self, feat_dim: int, parts: int, make_classifier: Callable[[int], nn.Module], necked: bool,
                 tested: bool):
        super().__init__()
        self.tested = tested
        self.necks = nn.ModuleList(BNNeck(feat_dim) if necked else nn.Identity() for _ in range(parts))
        self.classifiers = nn.ModuleList(make_classifier(feat_dim) for _ in range(parts))
        self.dim, self.metric_dim = feat_dim * (1 + parts * tested), feat_dim
        self.part_dims = {f"part{i}": feat_dim for i in range(parts)}

    def forward(self, feat: Tensor, after: Tensor, parts: Tensor, pids: Tensor | None) -> Joined:
        """The global feature before and after its neck, and the parts' outputs in training.

        Args:
            feat, after: [B, D].
            parts: [B, P, D].
            pids: [B] in training; None joins the parts to the features.
        """
        features = parts.float().unbind(1)
        if pids is not None:
            heads = zip(self.part_dims, features, self.necks, self.classifiers, strict=True)
            return feat, after, {name: HeadOutput(*classify(neck(part), pids), part)
                                 for name, part, neck, classify in heads}
        if not self.tested:
            return feat, after, {}
        necked = [neck(part) for part, neck in zip(features, self.necks, strict=True)]
        return _beside(feat, features), _beside(after, necked), {}


def _beside(feat: Tensor, parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([feat, *(part / len(parts) for part in parts)], dim=1)


class PartTokens(nn.Module):
    """The mean of the part tokens beside the class token, or the mean of both; a neck of its own for each part.

    Args:
        feat_dim, parts: D and P.
        fusion: "cat" [B, 2 D] or "mean" [B, D].
        necked: whether there are batch norms.
    Source: Zhu et al., PASS, ECCV 2022.
    """

    def __init__(self, feat_dim: int, parts: int, fusion: str, necked: bool):
        super().__init__()
        self.fusion = fusion
        self.necks = nn.ModuleList(BNNeck(feat_dim) if necked else nn.Identity() for _ in range(parts))
        self.dim = self.metric_dim = feat_dim * (2 if fusion == "cat" else 1)
        self.part_dims: dict[str, int] = {}

    def forward(self, feat: Tensor, after: Tensor, parts: Tensor, pids: Tensor | None) -> Joined:
        """As JigsawHeads.forward; the parts are in the features, in training, too."""
        parts = parts.float()
        necked = torch.stack([neck(part) for part, neck in zip(parts.unbind(1), self.necks, strict=True)], dim=1)
        return self._fuse(feat, parts), self._fuse(after, necked), {}

    def _fuse(self, feat: Tensor, parts: Tensor) -> Tensor:
        mean = parts.mean(1)
        return torch.cat([feat, mean], dim=1) if self.fusion == "cat" else (feat + mean) / 2
