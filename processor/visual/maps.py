"""Which locations of two pictures made them similar: exact, because a pooled feature is a sum over locations."""
from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.transforms import Normalize
from model.make_model import GLOBAL, ReIDModel

DRAWN_HEIGHT = 256


class PairMap(NamedTuple):
    """Two pictures' share in their cosine: `first` and `second` [h, w], each of which sums to `cosine`."""

    first: np.ndarray
    second: np.ndarray
    cosine: float


@torch.inference_mode()
def location_features(model: ReIDModel, normalize: Normalize, image: Tensor, flip: bool) -> Tensor:
    """[D, h, w] what each location of a picture adds to its embedding's global branch; the sum is that embedding.

    With x the backbone's map of L locations, pooling adds up to f = Σ_l g_l: g_l = x_l / L for the average, and
    g_l = x_l^p / L · (mean x^p)^(1/p - 1) for GeM. The BNNeck in eval mode is y = a·f + b for each channel, with
    a = weight / sqrt(var + eps) and b = bias - a·mean, so that y = Σ_l (a·g_l + b / L). With `flip` the embedding is
    the mean over the picture and its mirror image, whose map is mirrored back. A reduction (MODEL.EMBED_DIM) is linear:
    it reduces each g_l.

    Args:
        model: in eval mode.
        image: [H, W, 3] uint8 RGB of the model's size, on its device.
    Raises:
        ValueError: the pooling is no sum over locations.
    """
    if getattr(model.gap, "by_position", None) is None:
        raise ValueError("there are no maps of a model whose pooling is no sum over locations, such as a transformer's "
                         "class token; leave them out")
    views = [image[None], image[None].flip(2)] if flip else [image[None]]
    added = []
    for view in views:
        features = model.gap.by_position(model.base.features(normalize(view)).map)[0]  # [C, h, w]
        if model.reduction is not None:
            features = torch.einsum("ec,chw->ehw", model.reduction.linear.weight, features)
            features = _share_of_norm(model.reduction.norm, features)
        features = _share_of_norm(model.bottleneck if model.neck_feat == "after" else None, features)
        added.append(features)
    return torch.stack([added[0], added[1].flip(2)]).mean(0) if flip else added[0]


def _share_of_norm(norm: nn.BatchNorm1d | None, features: Tensor) -> Tensor:
    """What each location adds behind a batch norm, [D, h, w]; see `location_features`."""
    if norm is None:
        return features
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * norm.running_mean
    return scale[:, None, None] * features + shift[:, None, None] / features[0].numel()


def pair_map(first: Tensor, second: Tensor) -> PairMap:
    """How the locations of two pictures add up to the cosine of their embeddings.

    With y = Σ_l y_l and z the other's embedding, cos = Σ_l y_l·z / (|y| |z|): location l's share is y_l·z / (|y| |z|).

    Args:
        first, second: as `location_features` gives them.
    """
    y, z = (features.double().sum((1, 2)) for features in (first, second))
    lengths = y.norm() * z.norm()
    maps = [(torch.einsum("dhw,d->hw", features.double(), other) / lengths).cpu().numpy()
            for features, other in ((first, z), (second, y))]
    return PairMap(*maps, float(y @ z / lengths))


def draw_map(image: np.ndarray, shares: np.ndarray, most: float) -> np.ndarray:
    """A picture, DRAWN_HEIGHT pixels high, under its map: what adds to the cosine in red, what takes away in blue.

    Args:
        image: [H, W, 3] uint8 RGB.
        shares: [h, w] of a PairMap.
        most: the share that is drawn in full colour.
    """
    height, width = image.shape[:2]
    size = max(1, round(width * DRAWN_HEIGHT / height)), DRAWN_HEIGHT
    picture = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    depth = cv2.resize(shares.astype(np.float32) / max(most, 1e-12), size, interpolation=cv2.INTER_LINEAR).clip(-1, 1)
    grey = picture.mean(2, keepdims=True)  # so that the colours are the map's
    colour = np.where(depth[..., None] > 0, np.float32([255, 40, 20]), np.float32([30, 90, 255]))
    cover = 0.75 * np.abs(depth)[..., None]
    return (grey * (1 - cover) + colour * cover).clip(0, 255).astype(np.uint8)


def describe_branches(model: ReIDModel) -> str:
    """What a page says of the maps: they explain the global branch alone."""
    others = [branch for branch in model.embedding_dims if branch != GLOBAL]
    return f"; of the branch {GLOBAL}, without {', '.join(others)}" if others else ""
