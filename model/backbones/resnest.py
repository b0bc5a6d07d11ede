"""ResNeSt: blocks with split attention, a stem of three convolutions, and pooling instead of a ResNet's strides.

Source: Zhang et al., ResNeSt: Split-Attention Networks, 2020, with radix 2 and one group; parameter names of its
published weights (`layer1.0.conv2.bn0.weight`, `layer1.0.downsample.1.weight`). The `_ibn` variants are the lineage's;
nobody published weights for them.
"""
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from model.backbones.resnet import Block, Bottleneck, ResNet, conv
from model.backbones.resnet_ibn_a import with_ibn

RADIX = 2


class SplitAttention(nn.Module):
    """A 3x3 convolution to two splits, and their mean weighted by a softmax over the splits, channel by channel."""

    def __init__(self, planes: int):
        super().__init__()
        self.planes = planes
        inner = max(planes * RADIX // 4, 32)
        self.conv = nn.Conv2d(planes, planes * RADIX, 3, padding=1, groups=RADIX, bias=False)
        self.bn0 = nn.BatchNorm2d(planes * RADIX)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(planes, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.fc2 = nn.Conv2d(inner, planes * RADIX, 1)

    def forward(self, x: Tensor) -> Tensor:
        splits = self.relu(self.bn0(self.conv(x))).split(self.planes, dim=1)
        gap = torch.stack(splits).sum(0).mean((2, 3), keepdim=True)
        attention = self.fc2(self.relu(self.bn1(self.fc1(gap))))  # [B, 2 planes, 1, 1]
        attention = attention.flatten(1).unflatten(1, (RADIX, self.planes)).softmax(1)[..., None, None]
        return sum(split * attention[:, i] for i, split in enumerate(splits))


class SplitBottleneck(Bottleneck):
    """Bottleneck with split attention for its 3x3 convolution, which never strides."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(inplanes, planes, 1, downsample)
        self.conv2 = SplitAttention(planes)
        self.bn2 = self.avd_layer = nn.Identity()  # the split attention has its norm inside

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.avd_layer(self.conv2(x))))


class PoolingSplitBottleneck(SplitBottleneck):
    """The block of the stages after the first: in a stage's first block a pooling after the split attention strides.

    It is there at any stride: the published layer4.0 smooths its map by 3x3, and without that its weights give other
    features at LAST_STRIDE 1.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(inplanes, planes, stride, downsample)
        if downsample is not None:
            self.avd_layer = nn.AvgPool2d(3, stride, padding=1)


WITH_IBN = {block: with_ibn(block) for block in (SplitBottleneck, PoolingSplitBottleneck)}


class ResNeSt(ResNet):
    """A ResNet of split-attention blocks.

    Args:
        depths, last_stride: as for ResNet.
        stem_width: channels of the stem's first two convolutions; its third has twice as many.
        ibn: IBN as the first norm of the blocks of the first three stages.
    """

    def __init__(self, depths: tuple[int, ...], stem_width: int, last_stride: int = 1, ibn: bool = False):
        self.ibn, self.stem_width = ibn, stem_width
        super().__init__(SplitBottleneck, depths, last_stride)

    def stem(self, width: int) -> nn.Module:
        s = self.stem_width
        return nn.Sequential(
            conv(3, s, 3, 2), nn.BatchNorm2d(s), nn.ReLU(inplace=True),
            conv(s, s, 3), nn.BatchNorm2d(s), nn.ReLU(inplace=True),
            conv(s, 2 * s, 3),
        )

    def stem_norm(self, planes: int) -> nn.Module:
        return nn.BatchNorm2d(2 * self.stem_width)

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        block = PoolingSplitBottleneck if stage > 0 else block
        return WITH_IBN[block] if self.ibn and stage < 3 else block

    def shortcut(self, inplanes: int, planes: int, stride: int) -> nn.Module:
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, conv(inplanes, planes, 1), nn.BatchNorm2d(planes))


# Name -> (blocks of each stage, stem width).
SIZES = {
    "resnest50": ((3, 4, 6, 3), 32),
    "resnest101": ((3, 4, 23, 3), 64),
    "resnest200": ((3, 24, 36, 3), 64),
    "resnest269": ((3, 30, 48, 8), 64),
}
BACKBONES = {name: partial(ResNeSt, *size) for name, size in SIZES.items()}
BACKBONES |= {f"{name}_ibn": partial(ResNeSt, *SIZES[name], ibn=True) for name in ("resnest50", "resnest101")}

_RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
WEIGHTS_URLS = {
    "resnest50": _RELEASE + "resnest50-528c19ca.pth",
    "resnest101": _RELEASE + "resnest101-22405ba7.pth",
    "resnest200": _RELEASE + "resnest200-75117900.pth",
    "resnest269": _RELEASE + "resnest269-0cc87c48.pth",
}
