"""Vision transformers of TransReID and its descendants TransReID-SSL, PASS and PersonViT, with their names of weights.

Sources: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; He et al., TransReID, ICCV 2021; Luo et al.,
Self-Supervised Pre-Training for Transformer-Based Person Re-Identification, 2021; Zhu et al., PASS: Part-Aware
Self-Supervised Pre-Training for Person Re-Identification, ECCV 2022; Hu et al., PersonViT, 2024.
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbones.base import Backbone, Features, Sides, refuse_last_stride
from model.backbones.resnet_ibn_a import IBN
from model.backbones.transformers.positions import grid_of, resize_positions
from model.backbones.transformers.side_table import SideTable

PATCH = 16
# What an ImageNet file has beside: classifiers, and the layer before one.
_IMAGENET_HEADS = ("head.", "head_dist.", "pre_logits.")


class Jigsaw(NamedTuple):
    """The settings of a jigsaw patch module, see ViT."""

    parts: int
    shift: int
    groups: int
    rearrange: bool


class ViT(Backbone):
    """A vision transformer with a class token.

    Args:
        width, depth, heads, mlp_ratio: of its blocks.
        qkv_bias: whether the projections have one.
        scale: factor of the attention's products; None: (width / heads) ** -0.5.
        ics: a stem of three convolutions before the patches, which are 16 x 16 pixels then whatever the stride.
        part_tokens: tokens beside the class token, as PASS has them.
        last_stride: 1; there is no other.
        size: height and width of the pictures that the table of positions is for; it is resampled for others.
        stride: of the patches, rows and columns.
        hw_ratio: height / width of the grid of a pretraining file's positions.
        drop_path, drop_out, att_drop: of the last block (the first has none, the others between), of tokens, and of
            attention; in training.
        checkpointing: compute blocks a second time in the backward pass instead of keeping their activations.
        jpm: with the jigsaw patch module: `parts` of the shuffled patches, each with the class token through a block of
            its own. The first shift - 1 patches go to the end, and the sequence is cut into `groups` pieces that are
            interleaved; without `rearrange` the patches stay in their order.
        sides, sie_camera, sie_view, sie_coe, sie_other: see SideTable.
    """

    has_token = True
    stem_names = ("patch_embed",)
    may_miss = ("sie.*",)

    def __init__(
        self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = True,
        scale: float | None = None, ics: bool = False, part_tokens: int = 0, last_stride: int = 1,
        size: Sequence[int] = (256, 128), stride: Sequence[int] = (PATCH, PATCH), hw_ratio: int = 1,
        drop_path: float = 0.1, drop_out: float = 0.0, att_drop: float = 0.0, checkpointing: bool = False,
        jpm: bool = False, parts: int = 4, shift: int = 5, groups: int = 2, rearrange: bool = True,
        sides: Sides | None = None, sie_camera: bool = False, sie_view: bool = False, sie_coe: float = 3.0,
        sie_other: str = "mean",
    ):
        super().__init__()
        refuse_last_stride("a vision transformer", last_stride)
        if ics and tuple(stride) != (PATCH, PATCH):
            raise ValueError(f"MODEL.STRIDE_SIZE={list(stride)}: the patches behind a convolutional stem lie "
                             f"beside each other; use [{PATCH}, {PATCH}]")
        self.feat_dim, self.hw_ratio, self.checkpointing = width, hw_ratio, checkpointing
        self.jigsaw = Jigsaw(parts, shift, groups, rearrange) if jpm else None
        self.patch_embed = Patches(width, stride, ics)
        self.grid = tuple((side - PATCH) // step + 1 for side, step in zip(size, stride, strict=True))
        if min(self.grid) < 1:
            raise ValueError(f"INPUT.SIZE_TRAIN={list(size)} is smaller than a patch of {PATCH} x {PATCH} pixels")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.part_tokens = part_tokens
        # PASS keeps the positions of its tokens apart from those of the patches.
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + (not part_tokens), width))
        for name in self._token_names[1:] + self._position_names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, width)))
        self.pos_drop = nn.Dropout(drop_out)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            make_block(width, heads, mlp_ratio, qkv_bias, scale, drop_out, att_drop, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.stage_names = tuple((f"blocks.{i}",) for i in range(depth))
        self.uses_sides = sie_camera or sie_view
        self.sie = SideTable(width, sides, sie_camera, sie_view, sie_coe, sie_other) if self.uses_sides else None
        self._initialise()
        if jpm:
            self.jpm = nn.ModuleDict({"block": copy.deepcopy(self.blocks[-1]), "norm": copy.deepcopy(self.norm)})
        self.num_parts = parts if jpm else part_tokens

    @property
    def _token_names(self) -> list[str]:
        return ["cls_token", *(f"part_token{i}" for i in range(1, self.part_tokens + 1))]

    @property
    def _position_names(self) -> list[str]:
        return ["cls_pos", *(f"part{i}_pos" for i in range(1, self.part_tokens + 1))] if self.part_tokens else []

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("pos_embed", *self._token_names, *self._position_names):
            nn.init.trunc_normal_(getattr(self, name), std=0.02)

    def forward(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w], the tokens of whole patches; what is left of a picture beside them is not seen.
        """
        return self.features(x, camids, viewids).map

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        """As Backbone.features; parts are those of the jigsaw patch module, or the part tokens."""
        x, grid = self.embed(x, camids, viewids)
        *blocks, last = self.blocks
        for block in blocks:
            x = self._run(block, x)
        parts = self._jigsaw_parts(x) if self.jigsaw else None
        x = self.norm(self._run(last, x))
        if self.part_tokens:
            parts = x[:, 1 : 1 + self.part_tokens]
        patches = x[:, 1 + self.part_tokens :].transpose(1, 2).unflatten(2, grid)
        return Features(patches, x[:, 0], parts)

    def embed(self, x: Tensor, camids: Tensor | None, viewids: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """[B, N, D] tokens with their positions and sides, and the grid (h, w) of the patches."""
        x = self.patch_embed(x)
        grid, positions, prefix = tuple(x.shape[2:]), self.pos_embed, int(not self.part_tokens)
        if grid != self.grid:
            positions = resize_positions(positions, self.grid, grid, num_prefix=prefix)
        if self._position_names:
            positions = torch.cat([*(getattr(self, name) for name in self._position_names), positions], dim=1)
        tokens = torch.cat([getattr(self, name) for name in self._token_names], dim=1)
        # x.shape[0], not len(x): the batch of an exported file is free.
        x = torch.cat([tokens.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + positions
        return self.pos_drop(x if self.sie is None else x + self.sie(camids, viewids)[:, None].to(x.dtype)), grid

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _jigsaw_parts(self, x: Tensor) -> Tensor:
        """[B, N, D] before the last block -> [B, P, D]; a rest of patches that makes no whole part is left out."""
        parts, length, token = self.jigsaw.parts, (x.shape[1] - 1) // self.jigsaw.parts, x[:, :1]
        patches = shuffle(x, self.jigsaw.shift, self.jigsaw.groups) if self.jigsaw.rearrange else x[:, 1:]
        patches = patches[:, : parts * length].unflatten(1, (parts, length))
        sequences = torch.cat([token[:, None].expand(-1, parts, -1, -1), patches], dim=2).flatten(0, 1)
        sequences = self.jpm["norm"](self._run(self.jpm["block"], sequences))
        return sequences[:, 0].unflatten(0, (-1, parts))

    def side_rows(self, camids: Sequence[int] | Tensor, viewids: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self.sie.rows_of(camids, viewids)

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A file's weights: positions for this grid, rows for these cameras; of an ImageNet file the second class token
        of a distilled network and the classifiers are left out, and the jigsaw patch module starts from the last block.
        """
        is_pretraining = not prefix
        if is_pretraining:
            source = _of_imagenet(source)
            if self.jigsaw and not any(key.startswith("jpm.") for key in source):
                last = f"blocks.{len(self.blocks) - 1}."
                pairs = ((last, "jpm.block."), ("norm.", "jpm.norm."))
                source |= {key.replace(start, ours, 1): value.clone() for key, value in source.items()
                           for start, ours in pairs if key.startswith(start)}
        positions, rows = prefix + "pos_embed", int(not self.part_tokens)
        if positions in source and source[positions].shape[1] != self.pos_embed.shape[1]:
            ratio = self.hw_ratio if is_pretraining else self.grid[0] / self.grid[1]
            old = grid_of(source[positions].shape[1] - rows, ratio)
            source = {**source, positions: resize_positions(source[positions], old, self.grid, num_prefix=rows)}
        return source if self.sie is None else self.sie.fit(source, prefix + "sie.", prefix)


def _of_imagenet(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a pretraining file as this program names and shapes them."""
    source = {key: value for key, value in source.items() if not key.startswith(_IMAGENET_HEADS)}
    if source.pop("dist_token", None) is not None:
        table = source["pos_embed"]
        source["pos_embed"] = torch.cat([table[:, :1], table[:, 2:]], dim=1)
    patches = source.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 2:
        source["patch_embed.proj.weight"] = patches.reshape(len(patches), 3, PATCH, PATCH)
    return source


def shuffle(x: Tensor, shift: int, groups: int) -> Tensor:
    """[B, N, D] with the class token first -> [B, N - 1 or more, D]: shifted, and `groups` pieces interleaved.

    A sequence that cannot be cut evenly gets its last entry but one a second time, as in the published networks.
    """
    x = torch.cat([x[:, shift:], x[:, 1:shift]], dim=1)
    if missing := -x.shape[1] % groups:
        x = torch.cat([x, x[:, -2:-1].expand(-1, missing, -1)], dim=1)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def make_block(width: int, heads: int, mlp_ratio: float, qkv_bias: bool, scale: float | None, drop_out: float,
               att_drop: float, drop_path: float) -> nn.Module:
    """timm's block, which has the published names and numbers; another scale needs its attention without fusion."""
    from timm.models.vision_transformer import Block

    block = Block(width, heads, mlp_ratio, qkv_bias=qkv_bias, proj_drop=drop_out, attn_drop=att_drop,
                  drop_path=drop_path, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    if scale is not None:
        block.attn.scale, block.attn.fused_attn = scale, False
    return block


class Patches(nn.Module):
    """[B, 3, H, W] -> [B, D, h, w]: patches of 16 x 16 pixels, or with `ics` of a convolutional stem's 8 x 8 map."""

    def __init__(self, width: int, stride: Sequence[int], ics: bool = False):
        super().__init__()
        self.conv = None
        if ics:
            self.conv = nn.Sequential(*(layer for i, (channels, step) in enumerate(((3, 2), (64, 1), (64, 1)))
                                        for layer in self._stem(channels, 3 if i else 7, step, ibn=i < 2)))
        self.proj = nn.Conv2d(64, width, 8, 8) if ics else nn.Conv2d(3, width, PATCH, tuple(stride))

    def _stem(self, channels: int, size: int, stride: int, ibn: bool) -> list[nn.Module]:
        return [nn.Conv2d(channels, 64, size, stride, size // 2, bias=False), IBN(64) if ibn else nn.BatchNorm2d(64),
                nn.ReLU(inplace=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x if self.conv is None else self.conv(x))


_BASE, _SMALL, _TINY = ({"width": 64 * heads, "depth": 12, "heads": heads} for heads in (12, 6, 3))
BACKBONES = {
    "vit_base": partial(ViT, **_BASE),
    "vit_small": partial(ViT, **_SMALL),
    "vit_tiny": partial(ViT, **_TINY),
    # What TransReID itself calls vit_small: as wide as the base, and less deep.
    "transreid_vit_small": partial(ViT, width=768, depth=8, heads=8, mlp_ratio=3.0, qkv_bias=False, scale=768**-0.5),
    "vit_base_ics": partial(ViT, **_BASE, ics=True),
    "vit_small_ics": partial(ViT, **_SMALL, ics=True),
    "pass_vit_base": partial(ViT, **_BASE, part_tokens=3),
    "pass_vit_small": partial(ViT, **_SMALL, part_tokens=3),
}
WEIGHTS_URLS: dict[str, str] = {}
