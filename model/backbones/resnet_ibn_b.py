"""ResNet-IBN-b: instance norm after the stem and at the end of the first two stages.

Source: Pan et al., Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, ECCV 2018; parameter
names of its published weights (`layer1.2.IN.weight`). The lineage's own copy normalised layer3 as well, which no
published weights have: for its checkpoints there are the names that end in `_naic`.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from model.backbones.norms import InstanceNorm2d
from model.backbones.resnet import DEPTHS, BasicBlock, Block, Bottleneck, ResNet


def with_instance_norm(block: type[Block]) -> type[Block]:
    """The block with an instance norm between the sum and its ReLU."""

    class WithIN(block):
        def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
            super().__init__(inplanes, planes, stride, downsample)
            self.IN = InstanceNorm2d(planes * self.expansion, affine=True)

        def end(self, x: Tensor) -> Tensor:
            return self.IN(x)

    WithIN.__name__ = f"{block.__name__}IN"
    return WithIN


WITH_IN = {block: with_instance_norm(block) for block in (BasicBlock, Bottleneck)}


class ResNetIBNb(ResNet):
    """A ResNet whose stem and first two stages end in an instance norm."""

    normed_stages = (0, 1)

    def stem_norm(self, planes: int) -> nn.Module:
        return InstanceNorm2d(planes, affine=True)

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        return WITH_IN[block] if last and stage in self.normed_stages else block


class ResNetIBNbNAIC(ResNetIBNb):
    """The lineage's: an instance norm at the end of the third stage, too. ImageNet files have no weights for it."""

    normed_stages = (0, 1, 2)
    may_miss = ("layer3.*.IN.*",)


BACKBONES = {f"{name}_ibn_b": partial(ResNetIBNb, block, depths) for name, (block, depths) in DEPTHS.items()}
# Half as wide, for the demo and for CPUs: 32, 64, 128, 256 channels, 2.8 M weights. Nobody published weights for it.
BACKBONES["resnet18_ibn_b_w32"] = partial(ResNetIBNb, *DEPTHS["resnet18"], width=32)
BACKBONES |= {f"{name}_ibn_b_naic": partial(ResNetIBNbNAIC, *DEPTHS[name]) for name in ("resnet50", "resnet101")}

_RELEASE = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
WEIGHTS_URLS = {
    "resnet18_ibn_b": _RELEASE + "resnet18_ibn_b-bc2f3c11.pth",
    "resnet34_ibn_b": _RELEASE + "resnet34_ibn_b-04134c37.pth",
    "resnet50_ibn_b": _RELEASE + "resnet50_ibn_b-9ca61e85.pth",
    "resnet101_ibn_b": _RELEASE + "resnet101_ibn_b-c55f6dba.pth",
}
WEIGHTS_URLS |= {f"{name}_naic": WEIGHTS_URLS[name] for name in ("resnet50_ibn_b", "resnet101_ibn_b")}
