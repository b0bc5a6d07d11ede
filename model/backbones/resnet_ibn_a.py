"""ResNet-IBN-a: in the first three stages a block's first norm is half instance norm, half batch norm.

Source: Pan et al., Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, ECCV 2018; parameter
names of its published weights (`layer1.0.bn1.IN.weight`).
"""
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from model.backbones.norms import keep_format
from model.backbones.resnet import DEPTHS, BasicBlock, Block, Bottleneck, ResNet


class IBN(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest."""

    def __init__(self, planes: int):
        super().__init__()
        self.half = planes // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(planes - self.half)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x.split([self.half, x.shape[1] - self.half], dim=1)
        out = torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)
        return keep_format(out, x) if self.training else out


def with_ibn(block: type[Block]) -> type[Block]:
    """The block with an IBN as its first norm, the one that all its kinds name `bn1`."""

    class WithIBN(block):
        def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
            super().__init__(inplanes, planes, stride, downsample)
            self.bn1 = IBN(planes)

    WithIBN.__name__ = f"{block.__name__}IBN"
    return WithIBN


WITH_IBN = {block: with_ibn(block) for block in (BasicBlock, Bottleneck)}


class ResNetIBNa(ResNet):
    """A ResNet whose first three stages have IBN blocks."""

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        return WITH_IBN[block] if stage < 3 else block


BACKBONES = {f"{name}_ibn_a": partial(ResNetIBNa, block, depths) for name, (block, depths) in DEPTHS.items()}

_RELEASE = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
WEIGHTS_URLS = {
    "resnet18_ibn_a": _RELEASE + "resnet18_ibn_a-2f571257.pth",
    "resnet34_ibn_a": _RELEASE + "resnet34_ibn_a-94bc1577.pth",
    "resnet50_ibn_a": _RELEASE + "resnet50_ibn_a-d9d0bb7b.pth",
    "resnet101_ibn_a": _RELEASE + "resnet101_ibn_a-59ea0ac6.pth",
}
