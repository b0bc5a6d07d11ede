"""From a published file's weights to those of `ReIDModel`, with an account of every key."""
from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.backbones import BACKBONES, PREFIX
from model.backbones.timm_models import identify_timm
from model.pretrained import describe_nearest, identify, list_first
from model.published.layouts import LAYOUTS, Layout

logger = logging.getLogger(__name__)
_LEFT_OUT = {"heads": "skipped as head", "text": "skipped as text encoder",
             "unused": "skipped, no feature depends on it"}


class Published(NamedTuple):
    """weights: by `ReIDModel`'s names. config: {key: value} of the network and its pictures. account: {what happened:
    the file's keys}, each key once."""

    layout: Layout
    weights: dict[str, Tensor]
    config: dict[str, Any]
    account: dict[str, list[str]]

    def describe(self) -> list[str]:
        """A line for each thing that happened to keys."""
        return [f"{what}: {len(keys)} ({list_first(keys)})" for what, keys in self.account.items() if keys]


def recognise(state: Mapping[str, Tensor], path: str | Path) -> str:
    """The key of LAYOUTS that a file's weights have.

    Raises:
        ValueError: none; the nearest is named.
    """
    marked = [name for name, layout in LAYOUTS.items() if all(_any(state, mark) for mark in layout.marks)]
    if marked:
        return next((name for name in marked if LAYOUTS[name].refused or _backbone(state, LAYOUTS[name])), marked[0])
    near = max((name for name in LAYOUTS if LAYOUTS[name].names), key=lambda name: _fits(state, LAYOUTS[name]))
    raise ValueError(f"{path}: no layout that is known here; the nearest is {LAYOUTS[near].title} (--as {near}); a "
                     f"file of timm's needs MODEL.NAME timm:NAME. The file's keys are {list_first(state)}")


def convert(state: Mapping[str, Tensor], name: str, path: str | Path) -> Published:
    """The weights of a file of the layout LAYOUTS[name].

    Args:
        state: as `model.pretrained.unwrap_state_dict` gives it.
        path: for errors.
    Raises:
        ValueError: the layout cannot be built here, a key has no meaning in it, or no backbone has such weights.
    """
    layout = LAYOUTS[name]
    if layout.refused:
        raise ValueError(f"{path}: a file of {layout.title}: {layout.refused}")
    weights, account = _rename(state, layout)
    if account["unknown"]:
        raise ValueError(f"{path}: read as {layout.title} (--as {name}), {len(account['unknown'])} keys have no "
                         f"meaning: {list_first(account['unknown'])}")
    backbone = _backbone(state, layout)
    if (layout.names or layout.timm) and backbone is None:
        choices = _choices(layout)
        near = (describe_nearest(weights, choices, layout.flexible) if choices else
                f"none of timm's {', '.join(layout.timm)} has these weights" if layout.timm else "none of its kind is")
        raise ValueError(f"{path}: read as {layout.title} (--as {name}), it has no backbone that is built here: {near}")
    config = {**({"MODEL.NAME": backbone} if backbone else {}), **layout.config, **layout.derive(state)}
    for pattern, settings in layout.when:
        if _any(state, pattern):
            config |= settings
    for key, setting in (("pixel_mean", "INPUT.PIXEL_MEAN"), ("pixel_std", "INPUT.PIXEL_STD")):
        if key in state:  # of pixels 0..255
            config[setting] = [round(float(value) / 255, 6) for value in state[key].flatten()]
    for name, parts in layout.join:
        for leaf in [key.removeprefix(parts[0]) for key in weights if key.startswith(parts[0])]:
            values = [weights.pop(part + leaf) for part in parts if part + leaf in weights]
            weights[name + leaf] = torch.cat(values) if values[0].ndim else values[0]
    if "reduction.linear.weight" in weights:  # a convolution of 1x1 there
        weights["reduction.linear.weight"] = weights["reduction.linear.weight"].flatten(1)
    return Published(layout, weights, config, account)


def _rename(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    blocks = [int(found[1]) for key in state if (found := re.match(r"base\.blocks\.(\d+)\.", key))]
    last = str(max(blocks, default=0))
    weights, account = {}, {what: [] for what in ("loaded", "renamed", *_LEFT_OUT.values(), "unknown")}
    for key, value in state.items():
        left_out = next((what for group, what in _LEFT_OUT.items()
                         if any(re.match(pattern.replace("LAST", last), key) for pattern in getattr(layout, group))),
                        None)
        rule = next((rule for rule in layout.rename if re.match(rule[0], key)), None)
        if left_out or rule is None:
            account[left_out or "unknown"].append(key)
            if not any(re.match(pattern, key) for pattern in layout.telling):
                continue
        ours = re.sub(rule[0], rule[1].replace("LAST", last), key, count=1)
        if not left_out:
            account["loaded" if ours == key else "renamed"].append(key)
        weights[ours] = value
    return weights, account


def _backbone(state: Mapping[str, Tensor], layout: Layout) -> str | None:
    weights = _rename(state, layout)[0]
    if layout.timm:
        name = identify_timm({key.removeprefix("base."): value for key, value in weights.items()}, layout.timm)
        return name and PREFIX + name
    return identify(weights, _choices(layout), layout.flexible)


def _choices(layout: Layout) -> list[str]:
    return list(dict.fromkeys(name for pattern in layout.names for name in fnmatch.filter(BACKBONES, pattern)))


def _any(keys: Iterable[str], pattern: str) -> bool:
    return any(re.match(pattern, key) for key in keys)


def _fits(state: Mapping[str, Tensor], layout: Layout) -> float:
    """The share of a layout's marks that are there, and of the file's keys that have a meaning in it."""
    known = len(state) - len(_rename(state, layout)[1]["unknown"])
    return sum(_any(state, mark) for mark in layout.marks) / len(layout.marks) + known / max(len(state), 1)
