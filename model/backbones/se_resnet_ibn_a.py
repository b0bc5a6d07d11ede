"""SE-ResNet-IBN-a: a channel gate after each block's last norm, and IBN as in ResNet-IBN-a.

Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, and Pan et al., ECCV 2018; parameter names of the
published weights (`layer1.0.se.fc.0.weight`: a loader that drops every key with "fc" in it leaves the gates random).
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from model.backbones.resnet import DEPTHS, Block, Bottleneck, ResNet
from model.backbones.resnet_ibn_a import with_ibn

REDUCTION = 16


class SEGate(nn.Module):
    """Each channel times a factor in (0, 1) that is computed from the means of all channels."""

    def __init__(self, planes: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(planes, planes // REDUCTION, bias=False), nn.ReLU(inplace=True),
            nn.Linear(planes // REDUCTION, planes, bias=False), nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class SEBottleneck(Bottleneck):
    """Bottleneck with a gate before the sum."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(inplanes, planes, stride, downsample)
        self.se = SEGate(planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        return self.se(super().branch(x))


SEBottleneckIBN = with_ibn(SEBottleneck)


class SEResNetIBNa(ResNet):
    """A ResNet of gated blocks whose first three stages have IBN."""

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        return SEBottleneckIBN if stage < 3 else SEBottleneck


BACKBONES = {
    f"se_{name}_ibn_a": partial(SEResNetIBNa, block, depths)
    for name, (block, depths) in DEPTHS.items() if block is Bottleneck
}
WEIGHTS_URLS = {
    "se_resnet101_ibn_a":
        "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/se_resnet101_ibn_a-fabed4e2.pth",
}
