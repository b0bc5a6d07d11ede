"""What every backbone has in common, whatever its family."""
from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """What a backbone gives of a batch: map [B, D, h, w]; class token and parts [B, P, D] if it has such."""

    map: Tensor
    token: Tensor | None = None
    parts: Tensor | None = None


class Sides(NamedTuple):
    """From where pictures were seen: the cameras and the views (camids, viewids) of a data set, sorted."""

    camids: tuple[int, ...] = ()
    viewids: tuple[int, ...] = ()


class Backbone(nn.Module):
    """A network from images [B, 3, H, W] to a feature map [B, feat_dim, h, w].

    A family sets `feat_dim` and, if they differ from a ResNet's, the names of the modules that make up its stem and
    each of its stages; the names of its parameters are those of the published weights, without the classifier.
    Parameters of the network itself are its stem's, but for `last_parameters`. `may_miss` are shell patterns of weights
    that no published file has. A transformer overrides `features`; `has_token` says that there is a class token,
    `token_names` which modules nothing but it needs, `num_parts` how many parts, and `uses_sides` that it looks at
    cameras and views; the last `text_dim` numbers of its features are for texts.
    """

    feat_dim: int
    has_token: bool = False
    token_names: tuple[str, ...] = ()
    num_parts: int = 0
    uses_sides: bool = False
    text_dim: int = 0
    stem_names: tuple[str, ...] = ("conv1", "bn1")
    stage_names: tuple[tuple[str, ...], ...] = (("layer1",), ("layer2",), ("layer3",), ("layer4",))
    last_parameters: tuple[str, ...] = ()
    may_miss: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._frozen_names: tuple[str, ...] = ()

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        """All that the backbone gives.

        Args:
            x: [B, 3, H, W] float, normalised.
            camids, viewids: [B] int64, rows of the tables of cameras and views (see `side_rows`); a number that is none
                is an unknown camera or view. None: all are unknown.
        """
        return Features(self(x))

    def forward_tokens(self, x: Tensor, camids: Tensor | None = None,
                       viewids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The map, and the class token [B, D] where `has_token`, else None; arguments as `features`."""
        features = self.features(x, camids, viewids)
        return features.map, features.token

    def side_rows(self, camids: Iterable[int], viewids: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Rows of the tables of cameras and views, [B] int64 each, of a data set's numbers; -1 = unknown."""
        raise NotImplementedError

    def stages_behind(self, name: str) -> int:
        """How many stages, or blocks of a transformer, stand behind that of a parameter; one more for the stem.

        What is before all stages and in none, such as a table of positions, is of the stem; end norms have 0.
        """
        count, module = len(self.stage_names), name.rpartition(".")[0]
        for number, names in enumerate(self.stage_names):
            if any(f"{module}.".startswith(f"{stage}.") for stage in names):
                return count - number
        is_own = not module and name not in self.last_parameters
        is_stem = is_own or any(f"{module}.".startswith(f"{stem}.") for stem in (*self.stem_names, "sie"))
        return count + 1 if is_stem else 0

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A file's weights as this backbone takes them; tables whose size the file decides take it here.

        Args:
            source: the weights of a file by name.
            prefix: with which the names of this backbone's begin there.
        """
        return source

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
    for name, parameter in backbone.named_parameters(recurse=False):
        if name not in backbone.last_parameters:  # tokens and positions, which patches meet before the first block
            parameter.requires_grad_(False)
    backbone.train(backbone.training)


def refuse_last_stride(kind: str, last_stride: int) -> None:
    """Raise the ValueError of a network whose last stage has no stride to choose, if it is not left at 1."""
    if last_stride != 1:
        raise ValueError(f"MODEL.LAST_STRIDE={last_stride}: {kind} has no stride to choose in its last stage; use 1")
