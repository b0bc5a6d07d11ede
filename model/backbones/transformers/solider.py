"""SOLIDER's Swin transformers, with its parameter names; the map is that of norm3.

They differ from timm's and torchvision's: a map is padded to whole windows before it is rolled, padded positions take
part as keys, and every second block rolls even where one window covers the map.
Source: Liu et al., Swin Transformer, ICCV 2021; Chen et al., Beyond Appearance: a Semantic Controllable Self-Supervised
Learning Framework for Human-Centric Visual Tasks, CVPR 2023 (the semantic weight).
"""
from __future__ import annotations

import math
import re
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.base import Backbone, refuse_last_stride

WINDOW, SHIFT = 7, 3


class WindowAttention(nn.Module):
    """Attention inside windows of 7 x 7 positions, with a learned bias for each offset."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        place = torch.arange(WINDOW**2)
        rows, columns = (x[:, None] - x + WINDOW - 1 for x in (place // WINDOW, place % WINDOW))
        self.register_buffer("relative_position_index", rows * (2 * WINDOW - 1) + columns)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, windows, 49, C], mask [windows, 49, 49] or None -> [B, windows, 49, C]."""
        windows, places = (int(n) for n in x.shape[1:3])
        qkv = self.qkv(x).unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [heads, 49, 49]
        bias = bias.expand(windows, -1, -1, -1) if mask is None else bias + mask[:, None]
        bias = bias.reshape(1, windows * self.heads, places, places).to(qkv.dtype)
        x = F.scaled_dot_product_attention(*qkv, attn_mask=bias)  # [B, windows * heads, 49, d]
        return self.proj(x.unflatten(1, (windows, self.heads)).transpose(2, 3).flatten(3))


class ShiftedWindows(nn.Module):
    """Attention inside windows of the map, which is rolled by 3 positions up and left if `shifted`."""

    def __init__(self, dim: int, heads: int, shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.w_msa = WindowAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> the same shape."""
        height, width = (int(n) for n in x.shape[1:3])
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        rows, columns = (int(n) // WINDOW for n in x.shape[1:3])
        mask = None
        if self.shifted:
            x = torch.roll(x, (-SHIFT, -SHIFT), (1, 2))
            mask = _shift_mask(rows, columns, x.device)
        x = x.unflatten(2, (columns, WINDOW)).unflatten(1, (rows, WINDOW)).transpose(2, 3)
        x = self.w_msa(x.flatten(3, 4).flatten(1, 2), mask)
        x = x.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = torch.roll(x, (SHIFT, SHIFT), (1, 2)) if self.shifted else x
        return x[:, :height, :width]


def _shift_mask(rows: int, columns: int, device: torch.device) -> Tensor:
    """[windows, 49, 49]: -100 for pairs that rolling brought together from opposite sides, else 0."""
    def regions(windows: int) -> Tensor:
        place = torch.arange(windows * WINDOW, device=device)
        return (place >= (windows - 1) * WINDOW).long() + (place >= windows * WINDOW - SHIFT).long()

    x = regions(rows)[:, None] * 3 + regions(columns)
    x = x.unflatten(1, (columns, WINDOW)).unflatten(0, (rows, WINDOW)).transpose(1, 2).flatten(2).flatten(0, 1)
    return (x[:, :, None] != x[:, None]) * -100.0


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut; `drop`: drop path."""

    def __init__(self, dim: int, heads: int, shifted: bool, drop: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.ffn, self.drop = ShiftedWindows(dim, heads, shifted), FeedForward(dim), drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.ffn(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


class PatchEmbed(nn.Module):
    """4 x 4 pixels to a position; the image is padded to whole patches, below and at the right."""

    def __init__(self, dim: int):
        super().__init__()
        self.projection = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, C]."""
        x = F.pad(x, (0, -int(x.shape[3]) % 4, 0, -int(x.shape[2]) % 4))
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2 x 2 positions to one of twice the width; the four lie channel by channel, as nn.Unfold gives them."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, h / 2, w / 2, 2 C], rounded up."""
        x = F.pad(x, (0, 0, 0, int(x.shape[2]) % 2, 0, int(x.shape[1]) % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4)  # [B, h/2, w/2, C, 2, 2]
        return self.reduction(self.norm(x.flatten(3)))


class Stage(nn.Module):
    """Blocks, every second shifted, and the merging behind them, which the last stage does not have."""

    def __init__(self, dim: int, heads: int, drops: list[float], merges: bool):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, heads, i % 2 == 1, drop) for i, drop in enumerate(drops)))
        self.downsample = PatchMerging(dim) if merges else None


class Swin(Backbone):
    """One Swin of SOLIDER.

    Args:
        dim: channels of the first stage; they double from stage to stage.
        depths, heads: blocks of each stage, and heads of their attention.
        semantic_weight: between 0 (appearance) and 1 (semantics, the pretraining's default); the published re-ID
            results have 0.2. A negative number: no such layers, as weights without them need it.
        drop_path: the largest probability, of the last block, that a block is left out in training.
        last_stride: 1; the map is at 1/32 all the same.
    """

    stem_names = ("patch_embed",)

    def __init__(self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], semantic_weight: float = 1.0,
                 drop_path: float = 0.1, last_stride: int = 1):
        super().__init__()
        refuse_last_stride("Swin", last_stride)
        dims = [dim * 2**i for i in range(4)]
        self.feat_dim, self.semantic_weight = dims[-1], semantic_weight
        self.patch_embed = PatchEmbed(dim)
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            Stage(dims[i], heads[i], [next(drops) for _ in range(depths[i])], merges=i < 3) for i in range(4))
        for i in range(4):
            setattr(self, f"norm{i}", nn.LayerNorm(dims[i]))
        later = [*dims[1:], dims[-1]] if semantic_weight >= 0 else []
        self.semantic_embed_w, self.semantic_embed_b = (nn.ModuleList(nn.Linear(2, n) for n in later) for _ in range(2))
        # In the files, but nothing reads them: the norms of side maps, and what follows the last stage.
        for unused in (self.norm0, self.norm1, self.norm2, self.semantic_embed_w[3:], self.semantic_embed_b[3:]):
            unused.requires_grad_(False)
        names = [(f"stages.{i}", f"norm{i}") for i in range(4)]
        self.stage_names = tuple((*names[i], *(f"semantic_embed_{kind}.{i}" for kind in "wb" if later))
                                 for i in range(4))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, feat_dim, H / 32, W / 32]; sides are rounded up."""
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages):
            x = stage.blocks(x)
            if stage.downsample is not None:
                x = self._weighted(stage.downsample(x), i)
        return self.norm3(x).permute(0, 3, 1, 2)

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A file's weights; of one of Swin's authors or of timm, whose pretraining knew no semantics and no norms of
        maps, these start anew.
        """
        if prefix or "layers.0.blocks.0.norm1.weight" not in source:
            return source
        anew = {key: value for key, value in self.state_dict().items()
                if key.startswith(("norm", "semantic_embed")) or key.endswith("relative_position_index")}
        return {**anew, **_of_swin(source)}

    def _weighted(self, x: Tensor, stage: int) -> Tensor:
        """The map behind a stage, scaled and moved by what two linear layers make of the semantic weight."""
        if self.semantic_weight < 0:
            return x
        pair = torch.tensor([self.semantic_weight, 1 - self.semantic_weight], device=x.device)
        return x * F.softplus(self.semantic_embed_w[stage](pair)) + self.semantic_embed_b[stage](pair)


_SWIN_NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.projection."), (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."), (r"\.mlp\.fc2\.", ".ffn.layers.1."), (r"^layers\.", "stages."),
)
_LEFT_OUT = re.compile(r"head\.|norm\.|.*\.(?:attn_mask|relative_position_index)$")


def _of_swin(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of Swin's authors or of timm by SOLIDER's names, the inputs of a merging channel by channel."""
    before = not any(key.startswith("layers.0.downsample.") for key in source)  # timm merges before a stage
    weights = {}
    for key, value in source.items():
        if _LEFT_OUT.match(key):
            continue
        if ".downsample." in key:
            # [2 C, 4 C] or [4 C]: the four positions lie one behind the other there, columns first.
            value = value.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3)
            stage = int(key.split(".")[1]) - before
            key = re.sub(r"^layers\.\d", f"layers.{stage}", key)
        if key.endswith("relative_position_bias_table") and len(value) != (2 * WINDOW - 1) ** 2:
            value = _resize_biases(value)
        for pattern, ours in _SWIN_NAMES:
            key = re.sub(pattern, ours, key)
        weights[key] = value
    return weights


def _resize_biases(table: Tensor) -> Tensor:
    """[(2 w - 1) ** 2, heads] of windows of another size, by cubic interpolation as SOLIDER does it."""
    side = math.isqrt(len(table))
    size = (2 * WINDOW - 1, 2 * WINDOW - 1)
    grid = F.interpolate(table.T.unflatten(1, (side, side))[None], size=size, mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T


_SIZES = {
    "solider_swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "solider_swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "solider_swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
BACKBONES = {name: partial(Swin, *size) for name, size in _SIZES.items()}
WEIGHTS_URLS: dict[str, str] = {}
