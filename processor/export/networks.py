"""The forms in which a network is exported: all views in one pass, and a backbone in float16."""
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, Features
from model.embedding import EmbeddingNet
from model.make_model import ReIDModel


class OnePassNet(EmbeddingNet):
    """The same rows by one pass: pictures and their mirror images together, so that a file has the backbone once."""

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        x = self.normalize(images)
        outputs = self.model(torch.cat([x, x.flip(3)]) if self.flip else x)
        views = 2 if self.flip else 1
        return {branch: feat.float().reshape(views, -1, feat.shape[1]).mean(0) for branch, feat in outputs.items()}


class HalfBackbone(nn.Module):
    """A backbone in float16 that takes and gives float32: pooling and heads need float32's range."""

    def __init__(self, base: Backbone):
        super().__init__()
        self.base, self.feat_dim, self.uses_sides = base.half(), base.feat_dim, base.uses_sides

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        outputs = self.base.features(x.half(), camids, viewids)
        return Features(*(output if output is None else output.float() for output in outputs))


def with_half_backbone(model: ReIDModel) -> ReIDModel:
    """A copy of a model whose backbone is in float16."""
    model = copy.deepcopy(model)
    model.base = HalfBackbone(model.base)
    return model
