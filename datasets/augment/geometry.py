"""Where the pixels of a batch come from: mirror and crop, and affine maps with a matrix for each image."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from datasets.augment.tensors import on_device, per_image

GRAY = 128 / 255  # what comes into view
_SCALE = (0.9, 1.1)


class Crops(NamedTuple):
    """A row an image: whether mirrored, and where in the padded image the crop begins."""

    flips: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray


def draw_crops(draws: np.ndarray, flip_prob: float, padding: int) -> Crops:
    """[B, 3] in [0, 1): flip, vertical and horizontal shift."""
    tops, lefts = np.floor(draws[:, 1:] * (2 * padding + 1)).astype(np.int64).T
    return Crops(draws[:, 0] < flip_prob, tops, lefts)


def flip_and_crop(images: torch.Tensor, crops: Crops, padding: int) -> torch.Tensor:
    """Mirror some images, then shift each by -padding..padding pixels both ways; what comes into view is black.

    Args:
        images: [B, H, W, 3] uint8.
    Returns:
        [B, H, W, 3] uint8, a new tensor.
    """
    batch, height, width = images.shape[:3]
    flips = crops.flips
    plain, mirrored = (on_device(np.flatnonzero(chosen), images.device) for chosen in (~flips, flips))
    padded = images.new_zeros(batch, height + 2 * padding, width + 2 * padding, 3)  # those to mirror come last
    inside = padded[:, padding:padding + height, padding:padding + width]
    inside[:len(plain)] = images.index_select(0, plain)
    inside[len(plain):] = images.index_select(0, mirrored).flip(2)
    rows, columns = padded.shape[1:3]
    # A crop is a window into the padded pixels; `windows` has a window for every pixel that it can begin at, all in
    # the same memory, so that picking a window an image copies rows of bytes.
    windows = padded.view(-1).as_strided(
        (padded.numel() // 3 - (height - 1) * columns - width + 1, height, width * 3), (3, columns * 3, 1))
    place = np.argsort(np.argsort(flips, kind="stable"))
    starts = (place * rows + crops.tops) * columns + crops.lefts
    return windows.index_select(0, on_device(starts, images.device)).view(images.shape)


def warp(x: torch.Tensor, matrices: np.ndarray, fill: float) -> torch.Tensor:
    """Each pixel p of the result is x at matrix · (p, 1), bilinear.

    Args:
        x: [B, 3, H, W] float.
        matrices: [B, 2, 3]: from (x, y, 1) in the result to (x, y) in the input, pixels, counted from the centre.
        fill: what comes into view.
    """
    batch, _, height, width = x.shape
    # grid_sample counts from -1 to 1 over the image.
    matrix = per_image(matrices * (2 / np.array([[width], [height]])), x)
    right = torch.arange(width, device=x.device, dtype=x.dtype).sub_((width - 1) / 2)
    down = torch.arange(height, device=x.device, dtype=x.dtype).sub_((height - 1) / 2)[:, None]
    grid = x.new_empty(batch, height, width, 2)
    for axis in range(2):
        by_column, by_row, offset = matrix[:, axis].unbind(1)
        torch.add(by_column * right + offset, by_row * down, out=grid[..., axis])
    # grid_sample fills with zero, so the fill value is made zero for its sake.
    return F.grid_sample(x - fill, grid, mode="bilinear", align_corners=False).add_(fill)


def draw_scale(draws: np.ndarray) -> np.ndarray:
    """[B] in [0, 1) -> [B] factors of 0.9-1.1."""
    low, high = _SCALE
    return low + (high - low) * draws


def scale(x: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    """Enlarge or shrink each image [3, H, W], float in 0..1, about its centre; what comes into view is grey (128)."""
    return warp(x, np.eye(2, 3) / factors[:, None, None], GRAY)
