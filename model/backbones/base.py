"""What every backbone has in common, whatever its family."""
from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """A network from images [B, 3, H, W] to a feature map [B, feat_dim, h, w].

    A family sets `feat_dim` and, if they differ from a ResNet's, the names of the modules that make up its stem and
    each of its stages; the names of its parameters are those of the published weights, without the classifier.
    `may_miss` are shell patterns of weights that no published file has.
    """

    feat_dim: int
    stem_names: tuple[str, ...] = ("conv1", "bn1")
    stage_names: tuple[tuple[str, ...], ...] = (("layer1",), ("layer2",), ("layer3",), ("layer4",))
    may_miss: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._frozen_names: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module.train, but frozen stages stay in eval mode: their statistics are frozen, too."""
        super().train(mode)
        for name in self._frozen_names:
            self.get_submodule(name).eval()
        return self


def freeze_stages(backbone: Backbone, n: int) -> None:
    """Freeze the stem and the first `n` stages: they get no gradient, and their batch-norm statistics stay.

    Args:
        n: -1 freezes nothing, 0 the stem alone, 4 a ResNet's whole backbone.
    Raises:
        ValueError: the backbone has fewer stages than n, or n < -1.
    """
    if not -1 <= n <= len(backbone.stage_names):
        raise ValueError(f"MODEL.FROZEN={n}: expected -1 (nothing), 0 (the stem) .. {len(backbone.stage_names)}")
    if n < 0:
        return
    backbone._frozen_names = sum(backbone.stage_names[:n], backbone.stem_names)
    for name in backbone._frozen_names:
        backbone.get_submodule(name).requires_grad_(False)
    backbone.train(backbone.training)
