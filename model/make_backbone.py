"""The backbone of the config: its name, and those of its settings that its constructor takes."""
from __future__ import annotations

import inspect

from model.backbones import Backbone, Sides, build_backbone, constructor_of


def make_backbone(cfg, sides: Sides | None = None) -> Backbone:
    """cfg.MODEL.NAME with random weights.

    A constructor is given the SETTINGS that it has a parameter for.

    Args:
        sides: cameras and views of the training set; None: those of the weights that will be loaded.
    Raises:
        ValueError: the name is unknown, or the settings do not suit the backbone.
    """
    settings = {}
    for parameter, key in setting_keys(cfg.MODEL.NAME).items():
        section, leaf = key.split(".")
        settings[parameter] = cfg[section][leaf]
    return build_backbone(cfg.MODEL.NAME, **settings)


# Parameter of a constructor -> config key. `size` is that of tables of positions.
SETTINGS = {"last_stride": "MODEL.LAST_STRIDE", "size": "INPUT.SIZE_TRAIN", "semantic_weight": "MODEL.SEMANTIC_WEIGHT"}


def setting_keys(name: str) -> dict[str, str]:
    """{parameter: config key} of what a backbone's constructor may be told; ValueError: the name is unknown."""
    known = inspect.signature(constructor_of(name)).parameters
    return {parameter: key for parameter, key in SETTINGS.items() if parameter in known}
