"""fast-reid's ResNets: a stem that pools without padding, and in the `_nl` variants non-local blocks.

Parameter names of its published weights below `backbone.` (`layer1.0.bn1.IN.weight`, `NL_2.0.theta.weight`).
Source: He et al., FastReID: A Pytorch Toolbox for General Instance Re-identification, 2020 (BoT: without, SBS and AGW:
with non-local blocks); Wang et al., Non-local Neural Networks, CVPR 2018.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from model.backbones.resnest import SIZES, ResNeSt
from model.backbones.resnet import DEPTHS, Block, ResNet
from model.backbones.resnet_ibn_a import WITH_IBN


class NonLocal(nn.Module):
    """x + W(y), y_i = theta_i * mean_j(phi_j * g_j): the dot-product form with one inner channel, without softmax.

    One channel is what fast-reid's published networks have (it divides the ratio by itself). So the products of all
    pairs of positions need not be formed: theta_i comes before the sum.
    """

    def __init__(self, planes: int):
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(planes, 1, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(1, planes, 1), nn.BatchNorm2d(planes))
        nn.init.zeros_(self.W[1].weight)  # a new block changes nothing

    def forward(self, x: Tensor) -> Tensor:
        mean = (self.phi(x).float() * self.g(x).float()).mean((2, 3), keepdim=True)
        return x + self.W((self.theta(x).float() * mean).to(x.dtype))


class WithNonLocal(ResNet):
    """A ResNet with `non_local` blocks after the last ones of its second and third stage."""

    stage_names = (("layer1",), ("layer2", "NL_2"), ("layer3", "NL_3"), ("layer4",))

    def add_non_local(self, non_local: tuple[int, int]) -> None:
        for layer, count in zip(("layer2", "layer3"), non_local, strict=True):
            planes = getattr(self, layer)[0].downsample[-1].num_features
            setattr(self, f"NL_{layer[-1]}", nn.ModuleList(NonLocal(planes) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, feat_dim, about H / 32, W / 32], or / 16 with last_stride 1."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        for layer, others in ((self.layer2, self.NL_2), (self.layer3, self.NL_3)):
            first = len(layer) - len(others)
            for i, block in enumerate(layer):
                x = block(x) if i < first else others[i - first](block(x))
        return self.layer4(x)


class FastReIDResNet(WithNonLocal):
    """fast-reid's ResNet.

    Args:
        block, depths, last_stride: as for ResNet.
        ibn: IBN as the first norm of the blocks of the first three stages.
        non_local: numbers of non-local blocks in the second and third stage.
    """

    def __init__(self, block: type[Block], depths: tuple[int, ...], last_stride: int = 1, ibn: bool = False,
                 non_local: tuple[int, int] = (0, 0)):
        self.ibn = ibn
        super().__init__(block, depths, last_stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.add_non_local(non_local)

    def block_type(self, stage: int, last: bool, block: type[Block]) -> type[Block]:
        return WITH_IBN[block] if self.ibn and stage < 3 else block


class FastReIDResNeSt(WithNonLocal, ResNeSt):
    """ResNeSt with non-local blocks; without them, fast-reid's is `resnest50`, padded pooling included."""

    def __init__(self, depths: tuple[int, ...], stem_width: int, last_stride: int = 1,
                 non_local: tuple[int, int] = (2, 3)):
        ResNeSt.__init__(self, depths, stem_width, last_stride)
        self.add_non_local(non_local)


# Depth -> non-local blocks in the second and third stage.
_NON_LOCAL = {"50": (2, 3), "101": (2, 9)}
BACKBONES = {
    f"fastreid_r{depth}{'_ibn' if ibn else ''}{'_nl' if count != (0, 0) else ''}":
        partial(FastReIDResNet, *DEPTHS[f"resnet{depth}"], ibn=ibn, non_local=count)
    for depth, blocks in _NON_LOCAL.items() for ibn in (False, True) for count in ((0, 0), blocks)
}
BACKBONES["fastreid_s50_nl"] = partial(FastReIDResNeSt, *SIZES["resnest50"])
WEIGHTS_URLS: dict[str, str] = {}
