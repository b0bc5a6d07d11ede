"""MODEL.NAME timm:NAME: any network of the package timm, which is imported when one is asked for."""
from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, Features
from model.backbones.transformers.positions import grid_of, resize_positions

PREFIX = "timm:"


def import_timm() -> Any:
    """The package; ImportError says how to get it."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"MODEL.NAME {PREFIX}... needs the package timm; run python -m pip install timm") from error


def check_timm_name(name: str) -> None:
    """Raise the ValueError of a name that timm does not know; the nearest are given."""
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        raise ValueError(f"MODEL.NAME={PREFIX}{name}: timm {timm.__version__} has no such network"
                         + (f"; did you mean {' or '.join(near)}?" if near else ""))


class Timm(Backbone):
    """A network of timm without its classifier: a convolutional one's last map, or a transformer's tokens as a map.

    Args:
        name: as timm has it, with or without the tag of its weights.
        last_stride: 1 takes the stride of 2 from the last stage of a network whose convolutions there are of odd size;
            others keep theirs.
        size: of the pictures, for networks with positions.
        drop_path: of networks that have it.
        checkpointing: of networks that have it.
    """

    stem_names, stage_names = (), (("net",),)

    def __init__(self, name: str, last_stride: int = 1, size: Sequence[int] = (256, 128), drop_path: float = 0.0,
                 checkpointing: bool = False):
        super().__init__()
        self.name, self.size = name, tuple(size)
        self.net = self._create(False, drop_path)
        self.feat_dim = self.net.num_features
        self.num_prefix = getattr(self.net, "num_prefix_tokens", 0)
        self.has_token = getattr(self.net, "cls_token", None) is not None
        self.fixed = self.num_prefix or hasattr(self.net, "patch_embed")
        if last_stride == 1:
            _take_last_stride(self.net)
        if checkpointing:
            self.net.set_grad_checkpointing(True)

    def _create(self, pretrained: bool, drop_path: float = 0.0) -> nn.Module:
        """With those of the settings that the network takes."""
        tries = ({"img_size": self.size, "drop_path_rate": drop_path}, {"drop_path_rate": drop_path},
                 {"img_size": self.size}, {})
        for settings in tries:
            try:
                return import_timm().create_model(self.name, pretrained=pretrained, num_classes=0, **settings)
            except TypeError as error:
                if not settings or "unexpected keyword" not in str(error):
                    raise
        raise AssertionError("the last has no settings")

    def forward(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, feat_dim, h, w]."""
        return self.features(x).map

    def features(self, x: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Features:
        """The map and, of a transformer that has one, its class token."""
        if self.fixed and tuple(x.shape[2:]) != self.size:
            raise ValueError(f"{PREFIX}{self.name} is built for pictures of {self.size} (INPUT.SIZE_TRAIN), these have "
                             f"{tuple(x.shape[2:])}; use the same INPUT.SIZE_TEST")
        x = self.net.forward_features(x)
        if x.ndim == 3:
            grid = tuple(self.net.patch_embed.grid_size)
            patches = x[:, self.num_prefix:].transpose(1, 2).unflatten(2, grid)
            return Features(patches, x[:, 0] if self.has_token else None)
        if x.shape[1] != self.feat_dim:  # channels last, as Swin has them
            x = x.permute(0, 3, 1, 2)
        return Features(x)

    def fit(self, source: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A file of timm's without its classifier, its tables for this size by timm's own rules."""
        inner, own = prefix + "net.", self.net.state_dict()
        if any(key.startswith(inner) for key in source):
            return source
        heads = self.net.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        state = {key: value.reshape(own[key].shape) if key in own and _same_but_ones(value, own[key]) else value
                 for key, value in source.items()}
        if own.keys() <= state.keys():  # some releases of timm tell its own files from others by their classifier
            state = {**{f"{head}weight": torch.empty(0) for head in heads}, **state}
        if _is_plain_dinov2(state) and state["pos_embed"].shape != own["pos_embed"].shape:
            grid, size = grid_of(state["pos_embed"].shape[1] - 1), tuple(self.net.patch_embed.grid_size)
            state["pos_embed"] = resize_positions(state["pos_embed"], grid, size, "dinov2")
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        state = convert(state, self.net) if convert else state
        return {inner + key: value for key, value in state.items() if not key.startswith(heads)}

    def download(self) -> dict[str, Tensor]:
        """timm's own weights, by the names of this network.

        Raises:
            OSError: they cannot be had; the message says which file to fetch and where to name it.
        """
        try:
            return self._create(True).state_dict(prefix="net.")
        except Exception as error:  # the hub's library has its own types
            cfg = self.net.pretrained_cfg
            place = f"https://huggingface.co/{cfg['hf_hub_id']}" if cfg.get("hf_hub_id") else cfg.get("url")
            advice = (f"fetch the weight file of {place} and name it in MODEL.PRETRAIN_PATH" if place else
                      "timm knows of no weights of it; MODEL.PRETRAIN_CHOICE none starts from random ones")
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"MODEL.PRETRAIN_PATH=timm: the weights of {self.name} cannot be had ({reason}): {advice}"
                          ) from error


def identify_timm(state: Mapping[str, Tensor], patterns: Iterable[str]) -> str | None:
    """The first of timm's networks whose weights these are, but for their tables of positions; None if none has them.

    Args:
        state: weights by timm's names, or by those that it converts of Swin's and DINOv2's authors.
        patterns: shell patterns of names.
    """
    wanted = _shapes(state)
    names = [name for pattern in patterns for name in fnmatch.filter(import_timm().list_models(), pattern)]
    return next((name for name in dict.fromkeys(names) if _shapes_of(name) == wanted), None)


@functools.cache
def _shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    create = functools.partial(import_timm().create_model, name, pretrained=False, num_classes=0)
    try:
        with torch.device("meta"):
            return _shapes(create().state_dict())
    except (NotImplementedError, RuntimeError):  # timm before 1.0 computes with numbers while it builds some networks
        return _shapes(create().state_dict())


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without sides of 1, positions and what DINOv2 masks with; the merging before a stage of Swin, as timm has it."""
    first = any(key.startswith("layers.0.downsample.") for key in state)
    names = {key: re.sub(r"(?<=^layers\.)\d(?=\.downsample)", lambda found: str(int(found[0]) + first), key)
             .replace("register_tokens", "reg_token") for key in state}
    return {names[key]: tuple(side for side in value.shape if side != 1) for key, value in state.items()
            if key not in ("pos_embed", "mask_token")}


def _same_but_ones(one: Tensor, other: Tensor) -> bool:
    """Whether the shapes are the same without sides of 1: torchvision's layer scales are [C, 1, 1]."""
    return one.shape != other.shape and one.squeeze().shape == other.squeeze().shape


def _is_plain_dinov2(state: Mapping[str, Tensor]) -> bool:
    """DINOv2's own file of a network without registers, whose positions are resized by a rule of their own."""
    return "mask_token" in state and "register_tokens" not in state


def _take_last_stride(net: nn.Module) -> None:
    """Stride 1 for the convolutions and poolings behind the stage whose map is 1/16, if they are of odd size."""
    stages = getattr(net, "feature_info", None)
    if not stages or not isinstance(stages, list):
        return
    before = [stage["module"] for stage in stages if stage["reduction"] == 16]
    if not before or stages[-1]["reduction"] != 32:
        return
    names = [name for name, _ in net.named_modules()]
    last = max(i for i, name in enumerate(names) if f"{name}.".startswith(f"{before[-1]}."))
    strided = [module for name, module in list(net.named_modules())[last + 1:]
               if getattr(module, "stride", 1) in (2, (2, 2)) and isinstance(module, (nn.Conv2d, nn.AvgPool2d))]
    if all(module.kernel_size[0] % 2 for module in strided if isinstance(module, nn.Conv2d)):
        for module in strided:
            module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1
            if isinstance(module, nn.AvgPool2d):
                module.kernel_size = 1
