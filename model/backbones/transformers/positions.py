"""Tables of positions for another grid, each by the rule of its origin, because the rules give other numbers."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_BICUBIC = {"mode": "bicubic", "align_corners": False}
# Origin -> arguments of F.interpolate.
RULES = {
    "bilinear": {"mode": "bilinear", "align_corners": False},  # TransReID and its descendants, CLIP-ReID
    "timm": {**_BICUBIC, "antialias": True},  # timm, DINOv2 with registers
    "dinov2": _BICUBIC,  # and scale factors for a grid that is 0.1 larger
}


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], rule: str = "bilinear",
                     num_prefix: int = 1) -> Tensor:
    """A table of positions for another grid.

    Args:
        table: [1, num_prefix + h * w, D] or without the first axis; rows of class token and the like come first and
            stay.
        old, new: grids (h, w).
        rule: of RULES.
    """
    flat = table.reshape(-1, table.shape[-1])
    grid = flat[num_prefix:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    size: dict = {"size": new}
    if rule == "dinov2":
        size = {"scale_factor": tuple((to + 0.1) / of for to, of in zip(new, old, strict=True))}
    grid = F.interpolate(grid, **size, **RULES[rule]).permute(0, 2, 3, 1).reshape(-1, flat.shape[1])
    return torch.cat([flat[:num_prefix], grid.to(flat)]).reshape(*table.shape[:-2], -1, flat.shape[1])


def grid_of(positions: int, ratio: float = 1.0) -> tuple[int, int]:
    """(h, w) with h * w positions whose h / w is nearest to a ratio; at 1 a square if there is one."""
    pairs = [(positions // w, w) for w in range(1, positions + 1) if positions % w == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] / ratio)))
