"""The backbone of the config: its name, and those of its settings that its constructor takes."""
from __future__ import annotations

import inspect
from typing import Any

from model.backbones import Backbone, Sides, build_backbone, constructor_of


def make_backbone(cfg, sides: Sides | None = None) -> Backbone:
    """cfg.MODEL.NAME with random weights.

    A constructor is given the settings that it has a parameter for, by the names of `backbone_settings`.

    Args:
        sides: cameras and views of the training set; None: those of the weights that will be loaded.
    Raises:
        ValueError: the name is unknown, or the settings do not suit the backbone.
    """
    name = cfg.MODEL.NAME
    known = inspect.signature(constructor_of(name)).parameters
    settings = {key: value for key, value in backbone_settings(cfg, sides).items() if key in known}
    return build_backbone(name, **settings)


def backbone_settings(cfg, sides: Sides | None) -> dict[str, Any]:
    """{parameter of a constructor: value} of all that a backbone may be told."""
    return {"last_stride": cfg.MODEL.LAST_STRIDE}
