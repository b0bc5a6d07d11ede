"""From pictures to what a model is used for: the average of a picture's views, and one row of length 1 for it."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.make_model import ReIDModel


def embed_views(model: ReIDModel, images: Tensor, flip: bool, **sides: Tensor) -> dict[str, Tensor]:
    """{branch: [B, D] float32} of normalised images [B, 3, H, W]; with `flip` the mean with their mirror images.

    Features are averaged as they are, before any normalisation. `sides` are what `ReIDModel.sides` gave.
    """
    outputs = [model(view, **sides) for view in ([images, images.flip(3)] if flip else [images])]
    return {branch: torch.stack([output[branch].float() for output in outputs]).mean(0) for branch in outputs[0]}


class EmbeddingNet(nn.Module):
    """A model with all that stands before and behind it: decoded pictures in, rows of length 1 out.

    A row has each branch normalised and times sqrt(its weight / the sum of weights), side by side. So the squared
    Euclidean distance of two rows is the weighted mean of the branches' squared distances, and a row's product with
    another the weighted mean of their cosines. (A ranking by tools/test.py adds the branches' distances, not their
    squares; with one branch the orders are the same.) A model that looks at cameras takes all as unknown unless it is
    given them, in an exported file always: it adds the mean of its own cameras, or nothing (MODEL.SIE_OTHER).

    Args:
        model: put into eval mode.
        normalize: uint8 [B, H, W, 3] RGB -> float32 [B, 3, H, W].
        flip: average a picture with its mirror image.
        weights: {branch: weight >= 0} of the model's branches, in their order.
    """

    def __init__(self, model: ReIDModel, normalize: Callable[[Tensor], Tensor], flip: bool,
                 weights: Mapping[str, float]):
        super().__init__()
        self.model, self.normalize, self.flip = model, normalize, flip
        total = sum(weights.values())
        self.factors = {branch: math.sqrt(weight / total) for branch, weight in weights.items()}
        self.eval()  # itself, too: an exporter restores the mode that it sees here, in all that is inside

    def branches(self, images: Tensor, **sides: Tensor) -> dict[str, Tensor]:
        """uint8 [B, H, W, 3] RGB -> {branch: float32 [B, D_b]} before any normalisation."""
        return embed_views(self.model, self.normalize(images), self.flip, **sides)

    def forward(self, images: Tensor, **sides: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] RGB -> float32 [B, D], rows of length 1."""
        feats = self.branches(images, **sides)
        return torch.cat([F.normalize(feats[branch]) * factor for branch, factor in self.factors.items()], dim=1)
