"""EfficientNet b0 to b7, built by the package efficientnet-pytorch and with its parameter names.

Padding follows the actual size of a map (as TensorFlow's SAME), so sides are rounded up at every stride.
Source: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from model.backbones.base import Backbone


class EfficientNet(Backbone):
    """The convolutions of one EfficientNet; its four stages end with the maps at 1/4, 1/8, 1/16 and 1/32.

    Args:
        name: the package's, such as "efficientnet-b0".
        last_stride: of the block that would go to 1/32.
    Raises:
        ImportError: the package is not installed.
    """

    stem_names = ("_conv_stem", "_bn0")

    def __init__(self, name: str, last_stride: int = 1):
        super().__init__()
        net = self.network(name)
        for part in ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_swish"):
            setattr(self, part, getattr(net, part))
        self.feat_dim = net._conv_head.out_channels
        self.drop_connect_rate = net._global_params.drop_connect_rate
        strided = [i for i, block in enumerate(self._blocks) if 2 in _strides(block)]
        self._blocks[strided[-1]]._depthwise_conv.stride = (last_stride, last_stride)
        ends = (*strided[1:], len(self._blocks))
        starts = (0, *strided[1:])
        stages = [tuple(f"_blocks.{i}" for i in range(*pair)) for pair in zip(starts, ends, strict=True)]
        self.stage_names = (*stages[:-1], (*stages[-1], "_conv_head", "_bn1"))

    def network(self, name: str) -> nn.Module:
        """The package's network, whose parts are taken over; for a family to replace."""
        need_package(name.replace("-", "_"))
        from efficientnet_pytorch import EfficientNet as Package

        net = Package.from_name(name, image_size=None)
        net.set_swish(memory_efficient=False)  # nn.SiLU: as frugal, and torch.compile sees through it
        return net

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, feat_dim, H / 32, W / 32], or / 16 with last_stride 1; sides are rounded up."""
        x = self._swish(self._bn0(self._conv_stem(x)))
        for i, block in enumerate(self._blocks):
            x = block(x, drop_connect_rate=self.drop_connect_rate * i / len(self._blocks))
        return self._swish(self._bn1(self._conv_head(x)))


def need_package(name: str) -> None:
    """Raise the ImportError that says what to install for a backbone of this name, if it is missing."""
    try:
        import efficientnet_pytorch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"MODEL.NAME {name} needs the package efficientnet-pytorch; run "
                          "pip install efficientnet-pytorch") from error


def _strides(block) -> tuple[int, ...]:
    stride = block._depthwise_conv.stride
    return stride if isinstance(stride, tuple) else tuple(stride)


BACKBONES = {f"efficientnet_b{i}": partial(EfficientNet, f"efficientnet-b{i}") for i in range(8)}

_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
_HASHES = ("355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843")
WEIGHTS_URLS = {f"efficientnet_b{i}": f"{_RELEASE}efficientnet-b{i}-{digest}.pth" for i, digest in enumerate(_HASHES)}
