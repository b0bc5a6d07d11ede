"""Colours of float planes [B, 3, H, W] in 0..1, each image by its own numbers; functions named with _ work in place."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from datasets.augment.tensors import per_image

LUMA = (0.2989, 0.587, 0.114)  # of grey in red, green and blue: ITU-R BT.601

_STRENGTHS = np.array([0.5, 0.5, 0.5, 0.2])  # of brightness, contrast, saturation and hue (1 = a full circle)
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
_KEEP = np.array([1.0, 0.0, 0.0])  # the blend that changes nothing


class Jitter(NamedTuple):
    """A row an image: how many blends come before the hue, 0..3; the three blends' weights [3, 3]; the hue's shift."""

    turns: np.ndarray
    weights: np.ndarray
    shifts: np.ndarray


def draw_jitter(draws: np.ndarray) -> Jitter:
    """Brightness, contrast, saturation and hue by factors and in an order that are the image's.

    Brightness, contrast and saturation are all one blend, so every order is: blends, hue, blends, three blends in all.

    Args:
        draws: [B, 8] in [0, 1): four factors, four keys whose order is the operations' order.
    """
    factors = (2 * draws[:, :4] - 1) * _STRENGTHS
    order = np.argsort(draws[:, 4:], axis=1, kind="stable")  # [B, 4] the operation at each turn
    blends = order[order != _HUE].reshape(-1, 3)
    factor = np.take_along_axis(factors, blends, axis=1)
    weights = np.stack([1 + factor, -factor * (blends == _SATURATION), -factor * (blends == _CONTRAST)], axis=2)
    return Jitter((order == _HUE).argmax(1), weights, factors[:, _HUE])


def color_jitter_(x: torch.Tensor, turns: np.ndarray, weights: np.ndarray, shifts: np.ndarray) -> torch.Tensor:
    """Blends, hue, blends of x [B, 3, H, W], float in 0..1, in place; the other arguments: see `Jitter`.

    The images go through it side by side, those that have fewer blends before the hue waiting for the others: images
    of the same turn are fastest together.
    """
    _blend_rows(x, weights, [turns > turn for turn in range(3)])
    shift_hue_(x, shifts)
    _blend_rows(x, weights, [turns <= turn for turn in range(3)])
    return x


def _blend_rows(x: torch.Tensor, weights: np.ndarray, chosen: list[np.ndarray]) -> None:
    """Blend number n, with weights[:, n], for the images of chosen[n] alone."""
    for number, rows in enumerate(chosen):
        if rows.any():
            blend_(x, np.where(rows[:, None], weights[:, number], _KEEP))


def luma(x: torch.Tensor) -> torch.Tensor:
    """Grey: [B, 3, H, W] -> [B, 1, H, W]."""
    red, green, blue = x.split(1, dim=1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend_(x: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """clamp(a · x + b · grey(x) + c · mean(grey(x)), 0, 1) in place; weights: [B, 3], an image's a, b and c.

    Brightness f is (f, 0, 0), saturation (f, 1 - f, 0) and contrast (f, 0, 1 - f).
    """
    kept, grey, mean = per_image(weights[:, :, None], x).unbind(1)
    other = luma(x)
    # In two steps, because the sum of an image must not depend on how many there are.
    offset = other.mean(3, keepdim=True).mean(2, keepdim=True).mul_(mean)
    other.mul_(grey).add_(offset)
    return torch.addcmul(other, x, kept, out=x).clamp_(0, 1)


def shift_hue_(x: torch.Tensor, shifts: np.ndarray) -> torch.Tensor:
    """Turn the hue in place, saturation and value kept.

    With the hue h in sectors of 60 degrees, -3..3 with red at 0, and d its distance from a channel's own hue (red 0,
    green 2, blue -2), the channel is value - chroma · clamp(d - 1, 0, 1). On the circle d = ||h - a| - 3|, where a lies
    opposite to the channel's own hue, as long as |h - a| <= 6. All is computed times the chroma, which is 0 for grey.

    Args:
        x: [B, 3, H, W] in 0..1.
        shifts: [B] in -1/3..1/3; 1 = a full circle.
    Source: Smith, Color Gamut Transform Pairs, SIGGRAPH 1978, without its cases.
    """
    opposite = np.stack([np.where(shifts < 0, -3, 3), np.full(len(shifts), -1), np.full(len(shifts), 1)], axis=1)
    ahead = per_image(6 * shifts[:, None] - opposite, x)  # [B, 3, 1, 1]: h + shift - a, less h
    red, green, blue = x.split(1, dim=1)
    # Four planes an image are all that is added: `spare` is used again and again, to stay in the cache.
    value, chroma = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.sub(value, torch.minimum(chroma, blue, out=chroma), out=chroma)
    # |h| is 1.5 - s + clamp(s, -1, 1) / 2 with s = (2 red - green - blue) / chroma; its sign is that of green - blue.
    hue, spare = torch.add(green, blue).sub_(red, alpha=2), chroma.neg()
    hue.sub_(torch.clamp(hue, spare, chroma, out=spare), alpha=0.5).add_(chroma, alpha=1.5)
    hue.copysign_(torch.sub(green, blue, out=spare))
    torch.addcmul(hue, chroma, ahead, out=x).abs_().sub_(chroma, alpha=3).abs_()
    torch.clamp(x, chroma, torch.mul(chroma, 2, out=spare), out=x)
    return torch.sub(value.add_(chroma), x, out=x)
