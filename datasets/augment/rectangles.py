"""Rectangles drawn for each image: erased, turned to grey, or filled with a piece of another image.

Area and aspect are drawn until a rectangle fits, the law of all three papers. Rectangles are [B, 4] int64 arrays of
top, left, bottom and right, the last two exclusive; without a rectangle they are equal to the first two.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from datasets.augment.color import luma
from datasets.augment.geometry import warp
from datasets.augment.tensors import on_device, to_planes

_TRIES = 100


class Shape(NamedTuple):
    """Least and greatest share of the image's area, and least aspect (height / width; the greatest is its inverse)."""

    area: tuple[float, float]
    aspect: float


_ERASED = Shape((0.02, 0.4), 0.3)
_GRAYED = Shape((0.02, 0.4), 0.3)
_PATCH = Shape((0.01, 0.5), 0.1)
_PATCH_FLIP, _PATCH_TURN, _PATCH_DEGREES = 0.5, 0.5, 10.0

RECTANGLE_DRAWS = 4 * _TRIES  # area, aspect, top and left of each try
ERASE_DRAWS = 1 + RECTANGLE_DRAWS
GRAY_DRAWS = 2 + RECTANGLE_DRAWS
PATCH_DRAWS = 7 + RECTANGLE_DRAWS


def draw_rectangles(draws: np.ndarray, shape: Shape, chosen: np.ndarray, height: int, width: int) -> np.ndarray:
    """The first of each image's tries that is smaller than the image both ways.

    Args:
        draws: [B, 4 n] in [0, 1).
        chosen: [B] bool; the others get none.
        height, width: of the images.
    Returns:
        [B, 4] int64; no rectangle if no try fits.
    """
    area, aspect, top, left = np.moveaxis(draws.reshape(len(draws), -1, 4), 2, 0)
    area = (shape.area[0] + (shape.area[1] - shape.area[0]) * area) * height * width
    aspect = shape.aspect + (1 / shape.aspect - shape.aspect) * aspect
    h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = np.arange(len(draws)), fits.argmax(1)
    chosen = chosen & fits[first]
    h, w = h[first] * chosen, w[first] * chosen
    top, left = np.floor(top[first] * (height - h + 1)), np.floor(left[first] * (width - w + 1))
    return np.stack([top, left, top + h, left + w], axis=1).astype(np.int64)


def inside(rectangles: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] of x's type, for planes x [B, 3, H, W]: 1 in each image's rectangle, 0 outside."""
    top, left, bottom, right = on_device(rectangles, x.device)[:, :, None].unbind(1)
    row, column = (torch.arange(size, device=x.device) for size in x.shape[2:])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    # Numbers, because a CPU multiplies them many times faster than it picks by booleans.
    return (rows.to(x.dtype)[:, :, None] * columns.to(x.dtype)[:, None, :])[:, None]


# ------------------------------------------------------------------------------------------ erased
def draw_erased(draws: np.ndarray, prob: float, height: int, width: int) -> np.ndarray:
    """[B, 4] what is erased; draws: [B, ERASE_DRAWS], whether, and the tries."""
    return draw_rectangles(draws[:, 1:], _ERASED, draws[:, 0] < prob, height, width)


def erase_(x: torch.Tensor, rectangles: np.ndarray) -> torch.Tensor:
    """Set the rectangles to zero, in place: the mean of a normalised image [B, 3, H, W].

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
    """
    return x.addcmul_(x, inside(rectangles, x), value=-1)


# ------------------------------------------------------------------------------------------ turned to grey
def draw_grayed(draws: np.ndarray, patch_prob: float, whole_prob: float, height: int, width: int) -> np.ndarray:
    """[B, 4] what turns grey; draws: [B, GRAY_DRAWS], whether a rectangle, whether all of the image, and the tries."""
    patches = draw_rectangles(draws[:, 2:], _GRAYED, draws[:, 0] < patch_prob, height, width)
    return np.where(draws[:, 1:2] < whole_prob, [0, 0, height, width], patches)


def grayscale_(x: torch.Tensor, rectangles: np.ndarray) -> torch.Tensor:
    """Turn the rectangles of x [B, 3, H, W], float in 0..1, to grey, in place.

    Source: Gong et al., A Person Re-Identification Data Augmentation Method with Adversarial Defense Effect, 2021.
    """
    return x.lerp_(luma(x), inside(rectangles, x))  # exact at both ends


# ------------------------------------------------------------------------------------------ patched
class Patches(NamedTuple):
    """A row an image: the donor's row in the batch, its rectangle, where that goes, and the map between for `warp`."""

    donors: np.ndarray
    taken: np.ndarray
    pasted: np.ndarray
    matrices: np.ndarray


def draw_patches(draws: np.ndarray, prob: float, height: int, width: int) -> Patches:
    """Which patch of which image goes where.

    OSNet takes patches from a pool of earlier images. Which those are would depend on the order of events, so here
    the pool is the batch: the donor is another image of it, drawn as all else is.

    Args:
        draws: [B, PATCH_DRAWS] in [0, 1): whether, donor, two for the patch's place, whether mirrored, whether turned
            and how far; then the tries, which also say where in its donor the patch lies.
    """
    batch = len(draws)
    taken = draw_rectangles(draws[:, 7:], _PATCH, draws[:, 0] < prob, height, width)
    size = taken[:, 2:] - taken[:, :2]
    corner = np.floor(draws[:, 2:4] * ([height, width] - size + 1)).astype(np.int64)
    pasted = np.concatenate([corner, corner + size], axis=1)
    donors = (np.arange(batch) + 1 + np.floor(draws[:, 1] * (batch - 1)).astype(np.int64)) % batch
    mirror = np.where(draws[:, 4] < _PATCH_FLIP, -1.0, 1.0)
    angle = np.radians(_PATCH_DEGREES) * (2 * draws[:, 6] - 1) * (draws[:, 5] < _PATCH_TURN)
    turn = np.stack([mirror * np.cos(angle), -mirror * np.sin(angle), np.sin(angle), np.cos(angle)], 1)
    turn = turn.reshape(batch, 2, 2)
    centre_taken, centre_pasted = ((box[:, [1, 0]] + box[:, [3, 2]] - [width, height]) / 2 for box in (taken, pasted))
    offset = centre_taken[:, :, None] - turn @ centre_pasted[:, :, None]
    return Patches(donors, taken, pasted, np.concatenate([turn, offset], axis=2))


def paste_patches_(pool: torch.Tensor, x: torch.Tensor, donors: np.ndarray, taken: np.ndarray, pasted: np.ndarray,
                   matrices: np.ndarray) -> torch.Tensor:
    """Paste patches onto images, in place; a patch that is turned has black corners.

    Args:
        pool: [B, H, W, 3] uint8, where the donors are.
        x: [n, 3, H, W] float in 0..1.
        donors, taken, pasted, matrices: of x's images, see `Patches`.
    Source: Zhou et al., Learning Generalisable Omni-Scale Representations for Person Re-Identification, TPAMI 2021.
    """
    chosen = np.flatnonzero(taken[:, 2] > taken[:, 0])
    if not len(chosen):
        return x
    index = on_device(chosen, x.device)
    patches = to_planes(pool.index_select(0, on_device(donors[chosen], x.device)))
    patches.mul_(inside(taken[chosen], patches))
    patches = warp(patches, matrices[chosen], fill=0.0)
    patched = x.index_select(0, index)
    return x.index_copy_(0, index, patched.lerp_(patches, inside(pasted[chosen], patched)))
