"""The image encoders of CLIP as CLIP-ReID has them, with OpenAI's parameter names.

The published feature is [class token, its projection]; here map and token have both, side by side, at every position.
Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021; Li et al.,
CLIP-ReID: Exploiting Vision-Language Model for Image Re-identification without Concrete Text Labels, AAAI 2023.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.base import Backbone, Features, Sides, refuse_last_stride
from model.backbones.resnet import Bottleneck, ResNet, conv
from model.backbones.transformers.positions import grid_of, resize_positions
from model.backbones.transformers.side_table import SideTable

PATCH, DIM, HEADS, DEPTH, FEAT_DIM = 16, 768, 12, 12, 512


def with_positions(source: dict[str, Tensor], key: str, grid: tuple[int, int], is_ours: bool) -> dict[str, Tensor]:
    """The weights of a file with the table of positions resized to `grid`.

    is_ours: the file is of a re-ID model, whose grid has about the shape of this one; else it is a square.
    """
    table = source.get(key)
    if table is None or len(table) == grid[0] * grid[1] + 1:
        return source
    old = grid_of(len(table) - 1, grid[0] / grid[1] if is_ours else 1.0)
    return {**source, key: resize_positions(table, old, grid)}


def image_weights(source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of a file of a whole CLIP, which has `visual.` before them, those of the image encoder; else all."""
    inner = {key.removeprefix("visual."): value for key, value in source.items() if key.startswith("visual.")}
    return source if prefix or not inner else inner


def _grid(x: Tensor) -> tuple[int, int]:
    """Height and width of a map as numbers, in a trace, too."""
    return int(x.shape[2]), int(x.shape[3])


class PoolingBottleneck(Bottleneck):
    """A bottleneck whose stride is an average pooling behind its 3x3 convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(inplanes, planes, 1, downsample)
        self.avgpool = nn.AvgPool2d(stride)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(self.relu(self.bn2(self.conv2(x))))
        return self.bn3(self.conv3(x))


class AttentionPool(nn.Module):
    """Attention of the positions of a map and of their mean, which stands first, to each other."""

    def __init__(self, grid: tuple[int, int], dim: int, heads: int, feat_dim: int):
        super().__init__()
        self.heads, self.grid = heads, grid
        self.positional_embedding = nn.Parameter(torch.randn(grid[0] * grid[1] + 1, dim) / dim**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.c_proj = nn.Linear(dim, feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 1 + h w, feat_dim]."""
        positions, grid = self.positional_embedding, _grid(x)
        if grid != self.grid:
            positions = resize_positions(positions, self.grid, grid)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + positions
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CLIPResNet(ResNet):
    """CLIP's RN50: a stem of three convolutions, poolings instead of strides, attention pooling.

    Args:
        size: height and width of an image; positions are learned for it and resized for others.
        last_stride: as for ResNet; OpenAI trained with 2, CLIP-ReID with 1.
    """

    has_token = True
    stem_names = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    stage_names = (("layer1",), ("layer2",), ("layer3",), ("layer4", "attnpool"))

    def __init__(self, size: Sequence[int] = (256, 128), last_stride: int = 1):
        super().__init__(PoolingBottleneck, (3, 4, 6, 3), last_stride)
        self.maxpool = nn.AvgPool2d(2)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv(32, 32, 3), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = conv(32, 64, 3), nn.BatchNorm2d(64)
        self.map_grid = tuple(n // (16 * last_stride) for n in size)
        self.attnpool = AttentionPool(self.map_grid, self.feat_dim, self.feat_dim // 64, self.feat_dim // 2)
        self.text_dim = self.feat_dim // 2
        self.feat_dim += self.text_dim

    def stem(self, width: int) -> nn.Module:
        return conv(3, width // 2, 3, 2)

    def shortcut(self, inplanes: int, planes: int, stride: int) -> nn.Module:
        return nn.Sequential(OrderedDict([("-1", nn.AvgPool2d(stride)), ("0", conv(inplanes, planes, 1)),
                                          ("1", nn.BatchNorm2d(planes))]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 3072, H / 16, W / 16] with last_stride 1: layer4 and the pooling's output there."""
        return self.features(x).map

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x))))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        pooled = self.attnpool(x)
        places = pooled[:, 1:].transpose(1, 2).unflatten(2, _grid(x))
        return Features(torch.cat([x, places], 1), torch.cat([x.mean((2, 3)), pooled[:, 0]], 1))

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return with_positions(image_weights(source, prefix), f"{prefix}attnpool.positional_embedding",
                              self.map_grid, bool(prefix))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), with which CLIP was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CLIPBlock(nn.Module):
    """A transformer block with the norms before its two halves; causal: a position sees those before it alone."""

    def __init__(self, dim: int, heads: int, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict([("c_fc", nn.Linear(dim, 4 * dim)), ("gelu", QuickGELU()),
                                              ("c_proj", nn.Linear(4 * dim, dim))]))

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        qkv = qkv.unflatten(2, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*qkv, is_causal=self.causal)
        x = x + self.attn.out_proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


class CLIPViT(Backbone):
    """CLIP's ViT-B/16 with CLIP-ReID's camera embedding, which is added to the class token alone.

    Args:
        size: height and width of an image; positions are learned for it and resized for others.
        stride: step of the patches in pixels, rows and columns; below 16 they overlap.
        sides, sie_camera, sie_view, sie_coe, sie_other: see SideTable; the published factor is 1.
    """

    has_token = True
    stem_names = ("conv1", "ln_pre")
    stage_names = tuple((f"transformer.resblocks.{i}",) for i in range(DEPTH))
    last_parameters = ("proj",)
    may_miss = ("sie.*",)

    def __init__(self, size: Sequence[int] = (256, 128), stride: Sequence[int] = (PATCH, PATCH), last_stride: int = 1,
                 sides: Sides | None = None, sie_camera: bool = False, sie_view: bool = False, sie_coe: float = 1.0,
                 sie_other: str = "mean"):
        super().__init__()
        refuse_last_stride("ViT", last_stride)
        self.map_grid = tuple((n - PATCH) // step + 1 for n, step in zip(size, stride, strict=True))
        self.conv1 = nn.Conv2d(3, DIM, PATCH, tuple(stride), bias=False)
        scale = DIM**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(DIM))
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.map_grid[0] * self.map_grid[1] + 1, DIM))
        self.ln_pre, self.ln_post = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(CLIPBlock(DIM, HEADS) for _ in range(DEPTH)))
        self.proj = nn.Parameter(scale * torch.randn(DIM, FEAT_DIM))
        self.feat_dim, self.text_dim = DIM + FEAT_DIM, FEAT_DIM
        self.uses_sides = sie_camera or sie_view
        self.sie = SideTable(DIM, sides, sie_camera, sie_view, sie_coe, sie_other) if self.uses_sides else None
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=scale)
            nn.init.normal_(block.attn.out_proj.weight, std=scale * (2 * DEPTH) ** -0.5)

    def forward(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, 1280, h, w]: the last layer at each position, and its projection."""
        return self.features(x, camids, viewids).map

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        x = self.conv1(x)
        grid, positions, token = _grid(x), self.positional_embedding, self.class_embedding[None]
        if grid != self.map_grid:
            positions = resize_positions(positions, self.map_grid, grid)
        if self.sie is not None:
            token = token + self.sie(camids, viewids)
        token = token.to(x.dtype)[:, None].expand(x.shape[0], -1, -1)
        x = torch.cat([token, x.flatten(2).transpose(1, 2)], dim=1) + positions
        x = self.ln_post(self.transformer.resblocks(self.ln_pre(x)))
        x = torch.cat([x, x @ self.proj], dim=2)
        return Features(x[:, 1:].transpose(1, 2).unflatten(2, grid), x[:, 0])

    def side_rows(self, camids: Sequence[int] | Tensor, viewids: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self.sie.rows_of(camids, viewids)

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        source = with_positions(image_weights(source, prefix), f"{prefix}positional_embedding", self.map_grid,
                                bool(prefix))
        return source if self.sie is None else self.sie.fit(source, prefix + "sie.", prefix)


BACKBONES = {"clip_rn50": CLIPResNet, "clip_vit_b16": CLIPViT}
WEIGHTS_URLS: dict[str, str] = {}
