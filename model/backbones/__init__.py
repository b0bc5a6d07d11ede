"""The backbones by name. A new family is one file and one entry in _FAMILIES."""
from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from model.backbones import (
    efficientnet,
    efficientnet_lite,
    fastreid,
    osnet,
    resnest,
    resnet,
    resnet_ibn_a,
    resnet_ibn_b,
    se_resnet_ibn_a,
)
from model.backbones.base import Backbone, Features, Sides, freeze_stages
from model.backbones.timm_models import PREFIX, Timm, check_timm_name
from model.backbones.transformers import clip, solider, vit

__all__ = ["BACKBONES", "PREFIX", "WEIGHTS_PACKAGES", "WEIGHTS_URLS", "Backbone", "Features", "Sides",
           "build_backbone", "check_name", "constructor_of", "freeze_stages"]

_FAMILIES = (
    resnet,
    resnet_ibn_a,
    resnet_ibn_b,
    se_resnet_ibn_a,
    resnest,
    efficientnet,
    efficientnet_lite,
    fastreid,
    osnet,
    solider,
    clip,
    vit,
)
# Name -> constructor, called with last_stride=1 or 2.
BACKBONES: dict[str, Callable[..., Backbone]] = {k: v for family in _FAMILIES for k, v in family.BACKBONES.items()}
# Name -> address of its published ImageNet weights; a name without an entry has none.
WEIGHTS_URLS: dict[str, str] = {k: v for family in _FAMILIES for k, v in family.WEIGHTS_URLS.items()}
# Name -> Python package that carries them, for names without an address.
WEIGHTS_PACKAGES: dict[str, str] = efficientnet_lite.WEIGHTS_PACKAGES


def build_backbone(name: str, last_stride: int = 1, **settings: Any) -> Backbone:
    """A backbone with random weights.

    Args:
        name: a key of BACKBONES.
        last_stride: stride of the last stage, 1 or 2.
        settings: what else its constructor takes.
    Raises:
        ValueError: the name is unknown (the choices and the nearest spelling are given).
    """
    return constructor_of(name)(last_stride=last_stride, **settings)


def constructor_of(name: str) -> Callable[..., Backbone]:
    """What builds the backbone of a name; ValueError as `check_name`."""
    check_name(name)
    if name.startswith(PREFIX):
        return partial(Timm, name.removeprefix(PREFIX))
    return BACKBONES[name]


def check_name(name: str) -> None:
    """Raise the ValueError of an unknown name; nothing is built. After timm: a name of timm's."""
    if name.startswith(PREFIX):
        check_timm_name(name.removeprefix(PREFIX))
        return
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"MODEL.NAME={name!r} is not a backbone{hint}; choices: {', '.join(BACKBONES)}, timm:NAME")
