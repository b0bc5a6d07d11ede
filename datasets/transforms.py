"""Augmentation of a uint8 batch on the device it trains on, each image with its own draw.

The order is the lineage's: flip, pad and crop, colour jitter, scale, normalise, erase. Every draw is a function of
(seed, epoch, position, purpose), made on the CPU as a few numbers an image.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from utils.seed import uniform

_ERASE_AREA = (0.02, 0.4)
_ERASE_ASPECT = 0.3
_ERASE_TRIES = 100
_JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
_SCALE = (0.9, 1.1)
_SCALE_FILL = 128 / 255


class Normalize:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], (x / 255 - mean) / std, in channels_last memory."""

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = mean, std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalize(to_float(images))

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] in 0..1 -> normalised."""
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1)
        return (x - mean) / std


class TrainAugment(Normalize):
    """The training transform of a whole batch.

    Args:
        mean, std: of the channels, images in 0..1.
        flip_prob: probability of the mirror image.
        padding: black pixels added on every side before the random crop back to the image's size.
        erase_prob: probability of erasing one rectangle (area 2-40 %, aspect 0.3-3.3); it is filled with the mean.
        hard: colour jitter (.5, .5, .5, .2) in random order and scaling by 0.9-1.1 as well.
        seed: of every draw.
    Source: Luo et al., Bag of Tricks, CVPRW 2019; Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
    """

    def __init__(self, mean: list[float], std: list[float], flip_prob: float, padding: int, erase_prob: float,
                 hard: bool, seed: int):
        super().__init__(mean, std)
        self.flip_prob, self.padding, self.erase_prob = flip_prob, padding, erase_prob
        self.hard, self.seed = hard, seed

    def __call__(self, images: torch.Tensor, epoch: int, positions: np.ndarray) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: [B, H, W, 3] uint8, on any device; left as it is.
            epoch: counted from 1.
            positions: [B] each image's place in the epoch's sequence.
        Returns:
            [B, 3, H, W] float32, normalised.
        """
        def draw(purpose: str, n: int) -> np.ndarray:
            return uniform(self.seed, epoch, positions, purpose, n)

        x = to_float(flip_and_crop(images, draw("flip and crop", 3), self.flip_prob, self.padding))
        if self.hard:
            x = color_jitter(x, draw("color jitter", 8))
            x = scale(x, draw("scale", 1)[:, 0])
        return erase(self.normalize(x), draw("erase", 1 + 4 * _ERASE_TRIES), self.erase_prob)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1; the permuted view makes it channels_last."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def flip_and_crop(images: torch.Tensor, draws: np.ndarray, flip_prob: float, padding: int) -> torch.Tensor:
    """Mirror some images, then shift each by -padding..padding pixels both ways; what comes into view is black.

    Args:
        images: [B, H, W, 3] uint8.
        draws: [B, 3] in [0, 1): flip, vertical and horizontal shift.
    Returns:
        [B, H, W, 3] uint8, a new tensor: a flip and a crop of the padded image are one lookup of rows and columns.
    """
    batch, height, width = images.shape[:3]
    device = images.device
    shifts = np.floor(draws[:, 1:] * (2 * padding + 1)).astype(np.int64) - padding
    dy, dx = torch.from_numpy(shifts).to(device).unbind(1)
    flips = torch.from_numpy(draws[:, 0] < flip_prob).to(device)
    rows = torch.arange(height, device=device) + dy[:, None]
    columns = torch.arange(width, device=device) + dx[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    picked = images[torch.arange(batch, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked * inside[..., None].to(images.dtype)


def color_jitter(x: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, each image with its own factors and its own order.

    Args:
        x: [B, 3, H, W] float in 0..1.
        draws: [B, 8] in [0, 1): four factors, four keys whose order is the operations' order.
    """
    operations = list(_COLOR_OPERATIONS.items())
    order = np.argsort(draws[:, 4:], axis=1, kind="stable")
    for turn in range(len(operations)):
        result = x.clone()
        for number, (name, operation) in enumerate(operations):
            rows = np.flatnonzero(order[:, turn] == number)
            if len(rows):
                factors = torch.from_numpy((2 * draws[rows, number] - 1) * _JITTER[name]).to(x)
                index = torch.from_numpy(rows).to(x.device)
                result[index] = operation(x[index], factors.view(-1, 1, 1, 1))
        x = result
    return x


def _gray(x: torch.Tensor) -> torch.Tensor:
    """Luma, ITU-R BT.601: [B, 3, H, W] -> [B, 1, H, W]."""
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _blend(x: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    return ((1 + factor) * x - factor * other).clamp(0, 1)


def _shift_hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `shift` (1 = a full circle), saturation and value kept.

    Source: Smith, Color Gamut Transform Pairs, SIGGRAPH 1978.
    """
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    red, green, blue = x.unbind(1)
    safe = chroma.clamp(min=1e-12)
    sector = torch.where(
        value == red, (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + 6 * shift.squeeze(1)
    channels = []
    for n in (5, 3, 1):
        k = (n + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


_COLOR_OPERATIONS = {
    "brightness": lambda x, f: ((1 + f) * x).clamp(0, 1),
    "contrast": lambda x, f: _blend(x, _gray(x).mean((2, 3), keepdim=True), f),
    "saturation": lambda x, f: _blend(x, _gray(x), f),
    "hue": _shift_hue,
}


def scale(x: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Enlarge or shrink each image about its centre by 0.9-1.1; what comes into view is grey (128).

    Args:
        x: [B, 3, H, W] float in 0..1.
        draws: [B] in [0, 1).
    """
    low, high = _SCALE
    inverse = torch.from_numpy(1 / (low + (high - low) * draws)).to(x)
    theta = torch.zeros(len(x), 2, 3, device=x.device, dtype=x.dtype)
    theta[:, 0, 0] = theta[:, 1, 1] = inverse
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # grid_sample fills with zero, so the fill value is made zero for its sake.
    return F.grid_sample(x - _SCALE_FILL, grid, mode="bilinear", align_corners=False) + _SCALE_FILL


def erase(x: torch.Tensor, draws: np.ndarray, prob: float) -> torch.Tensor:
    """Set one rectangle of some images to zero, which is the mean of a normalised image.

    Args:
        x: [B, 3, H, W] normalised float.
        draws: [B, 1 + 4 n] in [0, 1): whether, then area, aspect, top and left of n tries; the first that fits counts.
    """
    batch, _, height, width = x.shape
    area, aspect, top, left = np.moveaxis(draws[:, 1:].reshape(batch, -1, 4), 2, 0)
    area = (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * area) * height * width
    aspect = _ERASE_ASPECT + (1 / _ERASE_ASPECT - _ERASE_ASPECT) * aspect
    h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = fits.argmax(1)
    rows = np.arange(batch)
    chosen = fits[rows, first] & (draws[:, 0] < prob)
    h, w = np.where(chosen, h[rows, first], 0), np.where(chosen, w[rows, first], 0)
    y = np.floor(top[rows, first] * (height - h + 1))
    x0 = np.floor(left[rows, first] * (width - w + 1))
    y, h, x0, w = (torch.from_numpy(v.astype(np.int64)).to(x.device)[:, None] for v in (y, h, x0, w))
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows, in_columns = (row >= y) & (row < y + h), (column >= x0) & (column < x0 + w)
    return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
