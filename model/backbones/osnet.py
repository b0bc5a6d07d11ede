"""OSNet, OSNet-IBN and OSNet-AIN, with torchreid's parameter names, its 512-wide embedding included.

Its published feature is ReLU(BN(FC(mean of the last layer))). FC is linear, so that it may as well come before the
mean: it makes the map here. The whole feature is the token, which MODEL.POOLING_METHOD token takes.
Source: Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019, and Learning Generalisable
Omni-Scale Representations for Person Re-Identification, TPAMI 2021 (AIN).
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.base import Backbone, Features, refuse_last_stride
from model.backbones.norms import InstanceNorm2d

FEAT_DIM = 512


class ConvLayer(nn.Module):
    """A convolution, its norm (batch, instance or none) and, unless it is linear, a ReLU."""

    def __init__(self, inplanes: int, planes: int, size: int = 1, stride: int = 1, norm=nn.BatchNorm2d,
                 linear: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inplanes, planes, size, stride, size // 2, bias=False)
        self.bn = norm(planes)
        self.relu = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class LightConv(nn.Module):
    """A 1x1 convolution and a 3x3 one channel by channel, with one norm and ReLU behind both."""

    def __init__(self, planes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, groups=planes, bias=False)
        self.bn = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class ChannelGate(nn.Module):
    """x times a factor in (0, 1) of each channel, from the channels' means."""

    def __init__(self, planes: int):
        super().__init__()
        self.fc1 = nn.Conv2d(planes, planes // 16, 1)
        self.fc2 = nn.Conv2d(planes // 16, planes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Stream(nn.Module):
    """`depth` LightConvs, as AIN's files name them."""

    def __init__(self, planes: int, depth: int):
        super().__init__()
        self.layers = nn.Sequential(*(LightConv(planes) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OSBlock(nn.Module):
    """A residual block of four streams, whose outputs one shared gate weighs.

    Args:
        ain: name the streams as AIN does.
        norm: the instance norm: "" none | "after" on the sum (IBN) | "inside" instead of the branch's batch norm (AIN).
    """

    def __init__(self, inplanes: int, planes: int, ain: bool, norm: str):
        super().__init__()
        inner = planes // 4
        self.conv1 = ConvLayer(inplanes, inner)
        if ain:
            self.conv2 = nn.ModuleList(Stream(inner, depth) for depth in (1, 2, 3, 4))
        else:
            self.conv2a = LightConv(inner)
            self.conv2b, self.conv2c, self.conv2d = (
                nn.Sequential(*(LightConv(inner) for _ in range(depth))) for depth in (2, 3, 4))
        self.gate = ChannelGate(inner)
        branch_norm = nn.Identity if norm == "inside" else nn.BatchNorm2d
        self.conv3 = ConvLayer(inner, planes, norm=branch_norm, linear=True)
        self.downsample = ConvLayer(inplanes, planes, linear=True) if inplanes != planes else None
        self.norm = norm
        if norm:
            self.IN = InstanceNorm2d(planes, affine=True)
        self.streams = ("conv2",) if ain else ("conv2a", "conv2b", "conv2c", "conv2d")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        streams = self.conv2 if len(self.streams) == 1 else [getattr(self, name) for name in self.streams]
        x = self.conv3(sum(self.gate(stream(x)) for stream in streams))
        x = (self.IN(x) if self.norm == "inside" else x) + shortcut
        return (self.IN(x) if self.norm == "after" else x).relu()


class OSNet(Backbone):
    """One OSNet.

    Args:
        widths: channels of the stem and of the three stages.
        variant: "" | "ibn" | "ain".
        last_stride: 1; its last stage has no stride.
    """

    has_token = True
    token_names = ("fc.1",)
    stem_names = ("conv1",)

    def __init__(self, widths: tuple[int, ...], variant: str = "", last_stride: int = 1):
        super().__init__()
        refuse_last_stride("OSNet", last_stride)
        ain = variant == "ain"
        stem_norm = partial(InstanceNorm2d, affine=True) if variant else nn.BatchNorm2d
        self.conv1 = ConvLayer(3, widths[0], 7, 2, norm=stem_norm)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, norms in enumerate(_NORMS[variant]):
            inplanes, planes = widths[stage:stage + 2]
            blocks = [OSBlock(inplanes, planes, ain, norms[0]), OSBlock(planes, planes, ain, norms[1])]
            # Sides are rounded down here, not up.
            shrink = [] if stage == 2 else [nn.Sequential(ConvLayer(planes, planes), nn.AvgPool2d(2, 2))]
            setattr(self, f"conv{stage + 2}", nn.Sequential(*blocks, *([] if ain else shrink)))
            if ain and shrink:
                setattr(self, f"pool{stage + 2}", shrink[0])
        self.conv5 = ConvLayer(widths[-1], widths[-1])
        self.fc = nn.Sequential(nn.Linear(widths[-1], FEAT_DIM), nn.BatchNorm1d(FEAT_DIM), nn.ReLU(inplace=True))
        pools = (("pool2",), ("pool3",)) if ain else ((), ())
        self.stage_names = (("conv2", *pools[0]), ("conv3", *pools[1]), ("conv4",), ("conv5", "fc"))
        self.feat_dim = FEAT_DIM
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 512, H / 16, W / 16]."""
        return self._map(self.last_layer(x))

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        x = self.last_layer(x)
        return Features(self._map(x), self.fc(x.float().mean((2, 3))))

    def last_layer(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width of the last stage, H / 16, W / 16]."""
        x = self.maxpool(self.conv1(x))
        for names in self.stage_names[:3]:
            for name in names:
                x = self.get_submodule(name)(x)
        return self.conv5(x)

    def _map(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.fc[0].weight[:, :, None, None], self.fc[0].bias)


# Variant -> the instance norms of each stage's two blocks.
_NORMS = {
    "": (("", ""), ("", ""), ("", "")),
    "ibn": (("after", "after"), ("", ""), ("", "")),
    "ain": (("inside", "inside"), ("", "inside"), ("inside", "")),
}
_WIDTHS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
BACKBONES = {f"osnet_{size}": partial(OSNet, widths) for size, widths in _WIDTHS.items()}
BACKBONES["osnet_ibn_x1_0"] = partial(OSNet, _WIDTHS["x1_0"], "ibn")
BACKBONES |= {f"osnet_ain_{size}": partial(OSNet, widths, "ain") for size, widths in _WIDTHS.items()}
WEIGHTS_URLS: dict[str, str] = {}
