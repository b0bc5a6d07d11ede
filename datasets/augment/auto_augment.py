"""AutoAugment and AugMix of a batch: each image its own operations, each operation once on all images that drew it."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from datasets.augment.color import blend_
from datasets.augment.geometry import GRAY, warp
from datasets.augment.tensors import on_device, per_image, to_pixels, to_planes

# ------------------------------------------------------------------------------------------ operations
# TONAL: (x, strength [n]) -> x, where x is float [n, 3, H, W] in 0..1 and may be overwritten.


def _levels(x: torch.Tensor) -> torch.Tensor:
    """0..1 -> 0..255, whole numbers."""
    return x.mul(255).round_()


def _posterize(x: torch.Tensor, bits: np.ndarray) -> torch.Tensor:
    step = per_image(2.0 ** (8 - bits)[:, None], x)
    return _levels(x).div_(step).floor_().mul_(step).div_(255)


def _solarize(x: torch.Tensor, threshold: np.ndarray) -> torch.Tensor:
    bright = (_levels(x) >= per_image(threshold[:, None], x)).to(x.dtype)
    return x.lerp_(1 - x, bright)


def _auto_contrast(x: torch.Tensor, strength: np.ndarray) -> torch.Tensor:
    """Each channel stretched to 0..1; a channel of one value stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = (low == high).to(x.dtype)
    return x.sub_(low * (1 - flat)).div_(high - low + flat)


def _equalize(x: torch.Tensor, strength: np.ndarray) -> torch.Tensor:
    """Each channel's histogram made flat, as PIL does it: the last level that occurs is left out of the step."""
    levels = _levels(x).long().flatten(2)  # [n, 3, H * W]
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels[:1, :1, :1]).expand_as(levels))
    sums = counts.cumsum(2)
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = torch.div(levels.shape[2] - last, 255, rounding_mode="floor")
    table = torch.div(sums - counts + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1),
                      rounding_mode="floor").clamp_(max=255)
    unchanged = torch.arange(256, device=x.device).expand_as(table)
    table = torch.where(step > 0, table, unchanged).to(x.dtype).div_(255)
    return table.gather(2, levels).view_as(x)


def _blend(image: int, grey: int, mean: int) -> Callable:
    """Towards or away from something grey: what a change of 1 adds to the image's weight, its grey's and its mean's."""
    return lambda x, change: blend_(x, np.array([1, 0, 0]) + change[:, None] * np.array([image, grey, mean]))


def _sharpness(x: torch.Tensor, change: np.ndarray) -> torch.Tensor:
    """Away from the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, or towards it; the border stays."""
    inner = x[:, :, 1:-1, 1:-1]
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    inner.add_((inner - smooth) * per_image(change[:, None], x)).clamp_(0, 1)
    return x


def _rotation(angles: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    cos, sin = np.cos(angles), np.sin(angles)
    return {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos}


# (strength [n], height, width) -> {(row, column): the entries [n] of `warp`'s matrices that are not the identity's}
AFFINE: dict[str, Callable] = {
    "rotate": lambda degrees, height, width: _rotation(np.radians(degrees)),
    "shear_x": lambda slope, height, width: {(0, 1): slope, (0, 2): slope * height / 2},  # the upper edge stays
    "shear_y": lambda slope, height, width: {(1, 0): slope, (1, 2): slope * width / 2},   # the left edge stays
    "translate_x": lambda share, height, width: {(0, 2): share * width},
    "translate_y": lambda share, height, width: {(1, 2): share * height},
}
TONAL: dict[str, Callable] = {
    "posterize": _posterize, "solarize": _solarize, "invert": lambda x, _: 1 - x, "auto_contrast": _auto_contrast,
    "equalize": _equalize, "brightness": _blend(1, 0, 0), "color": _blend(1, -1, 0), "contrast": _blend(1, 0, -1),
    "sharpness": _sharpness,
}


def apply_(x: torch.Tensor, names: np.ndarray, strengths: np.ndarray) -> torch.Tensor:
    """Image n goes through operation names[n] with strengths[n], in place; "" leaves it as it is.

    Args:
        x: [B, 3, H, W] float in 0..1.
        names: [B] keys of AFFINE or TONAL, or "".
        strengths: [B]: degrees, slope, share of the size, bits, threshold (0..255) or change of the factor 1.
    """
    height, width = x.shape[2:]
    moved = np.flatnonzero(np.isin(names, list(AFFINE)))
    if len(moved):
        matrices = np.tile(np.eye(2, 3), (len(moved), 1, 1))
        for name in np.unique(names[moved]):
            of_name = names[moved] == name
            for (row, column), values in AFFINE[name](strengths[moved][of_name], height, width).items():
                matrices[of_name, row, column] = values
        _replace(x, moved, lambda part: warp(part, matrices, GRAY))
    for name, operation in TONAL.items():
        rows = np.flatnonzero(names == name)
        if len(rows):
            _replace(x, rows, lambda part, f=operation, rows=rows: f(part, strengths[rows]))
    return x


def _replace(x: torch.Tensor, rows: np.ndarray, function: Callable) -> None:
    index = on_device(rows, x.device)
    x.index_copy_(0, index, function(x.index_select(0, index)))


# ------------------------------------------------------------------------------------------ AutoAugment
# The policy found on ImageNet: 25 pairs of (operation, probability, magnitude 0..9).
_POLICY = (
    ("posterize", 0.4, 8, "rotate", 0.6, 9), ("solarize", 0.6, 5, "auto_contrast", 0.6, 0),
    ("equalize", 0.8, 0, "equalize", 0.6, 0), ("posterize", 0.6, 7, "posterize", 0.6, 6),
    ("equalize", 0.4, 0, "solarize", 0.2, 4), ("equalize", 0.4, 0, "rotate", 0.8, 8),
    ("solarize", 0.6, 3, "equalize", 0.6, 0), ("posterize", 0.8, 5, "equalize", 1.0, 0),
    ("rotate", 0.2, 3, "solarize", 0.6, 8), ("equalize", 0.6, 0, "posterize", 0.4, 6),
    ("rotate", 0.8, 8, "color", 0.4, 0), ("rotate", 0.4, 9, "equalize", 0.6, 0),
    ("equalize", 0.0, 0, "equalize", 0.8, 0), ("invert", 0.6, 0, "equalize", 1.0, 0),
    ("color", 0.6, 4, "contrast", 1.0, 8), ("rotate", 0.8, 8, "color", 1.0, 2),
    ("color", 0.8, 8, "solarize", 0.8, 7), ("sharpness", 0.4, 7, "invert", 0.6, 0),
    ("shear_x", 0.6, 5, "equalize", 1.0, 0), ("color", 0.4, 0, "equalize", 0.6, 0),
    ("equalize", 0.4, 0, "solarize", 0.2, 4), ("solarize", 0.6, 5, "auto_contrast", 0.6, 0),
    ("invert", 0.6, 0, "equalize", 1.0, 0), ("color", 0.6, 4, "contrast", 1.0, 8),
    ("equalize", 0.8, 0, "equalize", 0.6, 0),
)
_NAMES = np.array([[first, second] for first, _, _, second, _, _ in _POLICY])
_PROBS = np.array([[first, second] for _, first, _, _, second, _ in _POLICY])
_MAGNITUDES = np.array([[first, second] for _, _, first, _, _, second in _POLICY]) / 9
# Strength at magnitudes 0 and 9; those in _SIGNED have either sign.
_RANGES = {"rotate": (0, 30), "shear_x": (0, 0.3), "posterize": (8, 4), "solarize": (255, 0), "color": (0, 0.9),
           "contrast": (0, 0.9), "sharpness": (0, 0.9)}
_SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast", "sharpness")

AUTO_AUGMENT_DRAWS = 6


def auto_augment(images: torch.Tensor, draws: np.ndarray, prob: float) -> torch.Tensor:
    """Put some images through one of the 25 pairs of operations each.

    Args:
        images: [B, H, W, 3] uint8, left as it is.
        draws: [B, AUTO_AUGMENT_DRAWS] in [0, 1): whether, which pair, then whether and which sign for both operations.
    Returns:
        [B, H, W, 3] uint8.
    Source: Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019.
    """
    chosen = np.flatnonzero(draws[:, 0] < prob)
    if not len(chosen):
        return images
    index, draws = on_device(chosen, images.device), draws[chosen]
    pair = np.floor(draws[:, 1] * len(_POLICY)).astype(np.int64)
    x = to_planes(images.index_select(0, index))
    for turn in range(2):
        names = np.where(draws[:, 2 + turn] < _PROBS[pair, turn], _NAMES[pair, turn], "")
        x = apply_(x, names, _strengths(names, _MAGNITUDES[pair, turn], draws[:, 4 + turn], _RANGES))
    return images.index_copy(0, index, to_pixels(x))


def _strengths(names: np.ndarray, magnitudes: np.ndarray, signs: np.ndarray, ranges: dict) -> np.ndarray:
    """From magnitudes in 0..1 to what `apply_` takes."""
    low, high = np.array([ranges.get(name, (0, 0)) for name in names]).T
    strengths = low + (high - low) * magnitudes
    strengths = np.where(names == "posterize", np.rint(strengths), strengths)
    return np.where(np.isin(names, _SIGNED) & (signs < 0.5), -strengths, strengths)


# ------------------------------------------------------------------------------------------ AugMix
_WIDTH, _DEPTH = 3, 3  # chains, and the most operations in one
# At severity 1, the paper's for ImageNet: the strength is drawn between a tenth of the second value and all of it.
_MIX_RANGES = {"auto_contrast": (0, 0), "equalize": (0, 0), "posterize": (4, 4), "rotate": (0, 3),
               "solarize": (256, 230.4), "shear_x": (0, 0.03), "shear_y": (0, 0.03), "translate_x": (0, 1 / 30),
               "translate_y": (0, 1 / 30)}
_MIX_NAMES = np.array(list(_MIX_RANGES))

AUGMIX_DRAWS = 2 + _WIDTH * (2 + 3 * _DEPTH)


def augmix_(prob: float, x: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Mix some images with three copies of themselves, each through a chain of one to three operations, in place.

    Weights are Dirichlet(1, 1, 1) between the chains and uniform between them and the image. The paper's second part,
    a consistency loss between two copies, is not here.

    Args:
        x: [B, 3, H, W] float in 0..1.
        draws: [B, AUGMIX_DRAWS] in [0, 1): whether, the image's share, for each chain its weight and length and for
            each of its operations which, how strong and which sign.
    Source: Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020.
    """
    chosen = np.flatnonzero(draws[:, 0] < prob)
    if not len(chosen):
        return x
    index, n = on_device(chosen, x.device), len(chosen)
    share, chains = draws[chosen, 1], draws[chosen, 2:].reshape(n, _WIDTH, -1)
    weights = -np.log1p(-chains[:, :, 0])  # exponential draws, divided by their sum, are Dirichlet(1, 1, 1)
    weights *= (1 - share[:, None]) / weights.sum(1, keepdims=True)
    lengths = 1 + np.floor(chains[:, :, 1] * _DEPTH).reshape(-1)
    which, strong, signs = np.moveaxis(chains[:, :, 2:].reshape(n * _WIDTH, _DEPTH, 3), 2, 0)
    plain = x.index_select(0, index)
    copies = plain.repeat_interleave(_WIDTH, 0)
    for turn in range(_DEPTH):
        names = _MIX_NAMES[np.floor(which[:, turn] * len(_MIX_NAMES)).astype(np.int64)]
        names = np.where(turn < lengths, names, "")
        magnitudes = 0.1 + 0.9 * strong[:, turn]
        copies = apply_(copies, names, _strengths(names, magnitudes, signs[:, turn], _MIX_RANGES))
    copies = copies.view(n, _WIDTH, *x.shape[1:])
    mixed = plain.mul_(per_image(share[:, None], x))
    for chain in range(_WIDTH):
        mixed.addcmul_(copies[:, chain], per_image(weights[:, chain, None], x))
    return x.index_copy_(0, index, mixed)
