"""ResNet, with torchvision's parameter names and its stem (7x7 conv, norm, ReLU, 3x3 max pooling).

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; the stride of a bottleneck is on its 3x3
convolution, as in torchvision ("v1.5").
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from model.backbones.base import Backbone


def conv(inplanes: int, planes: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A `size` x `size` convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(inplanes, planes, size, stride=stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """A residual block: relu(end(branch(x) + shortcut(x))). `end` is the place of IBN-b's norm."""

    expansion = 1

    def __init__(self, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.stride = stride
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def end(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.branch(x)
        out += shortcut
        return self.relu(self.end(out))


class BasicBlock(Block):
    """Two 3x3 convolutions: ResNet-18 and -34."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(stride, downsample)
        self.conv1 = conv(inplanes, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, four times as wide at the end: ResNet-50, -101 and -152."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__(stride, downsample)
        self.conv1 = conv(inplanes, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(Backbone):
    """The trunk of a ResNet, up to its last map.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        last_stride: stride of layer4.0 (and of its shortcut): 1, as re-ID uses it, or 2, as ImageNet trained it.
        width: channels of the first stage, before the block's expansion; it doubles from stage to stage.
    """

    def __init__(self, block: type[Block], depths: tuple[int, ...], last_stride: int = 1, width: int = 64):
        super().__init__()
        self.conv1 = self.stem(width)
        self.bn1 = self.stem_norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inplanes = self.bn1.num_features
        for stage, (depth, stride) in enumerate(zip(depths, (1, 2, 2, last_stride), strict=True)):
            planes = width * 2**stage
            setattr(self, f"layer{stage + 1}", self._stage(stage, block, inplanes, planes, depth, stride))
            inplanes = planes * block.expansion
        self.feat_dim = inplanes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, width: int) -> nn.Module:
        """The first convolution, for a family to replace."""
        return nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)

    def stem_norm(self, planes: int) -> nn.Module:
        """The norm after the first convolution, for a family to replace."""
        return nn.BatchNorm2d(planes)

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        """The class of a block of a stage (0..3); `last` is its last block; for a family to replace."""
        return block

    def shortcut(self, inplanes: int, planes: int, stride: int) -> nn.Module:
        """The convolution beside a block that changes the map's size or width, for a family to replace."""
        return nn.Sequential(conv(inplanes, planes, 1, stride), nn.BatchNorm2d(planes))

    def _stage(
        self, stage: int, block: type[Block], inplanes: int, planes: int, depth: int, stride: int
    ) -> nn.Sequential:
        width = planes * block.expansion
        downsample = None
        # The published weights have a shortcut convolution in every strided stage, at any LAST_STRIDE.
        if stage > 0 or inplanes != width:
            downsample = self.shortcut(inplanes, width, stride)
        blocks = []
        for i in range(depth):
            kind = self.block_type(stage, i == depth - 1, block)
            blocks.append(kind(inplanes, planes, stride, downsample) if i == 0 else kind(width, planes))
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, feat_dim, H / 32, W / 32], or / 16 with last_stride 1; sides are rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


DEPTHS: dict[str, tuple[type[Block], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
BACKBONES = {name: partial(ResNet, block, depths) for name, (block, depths) in DEPTHS.items()}

# As torchvision has them. It is not imported for them, because that takes as long as to import torch.
_RELEASE = "https://download.pytorch.org/models/"
WEIGHTS_URLS = {
    "resnet18": _RELEASE + "resnet18-f37072fd.pth",
    "resnet34": _RELEASE + "resnet34-b627a593.pth",
    "resnet50": _RELEASE + "resnet50-0676ba61.pth",
    "resnet101": _RELEASE + "resnet101-63fe2227.pth",
    "resnet152": _RELEASE + "resnet152-394f9c45.pth",
}
