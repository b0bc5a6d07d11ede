"""The backbone of the config: its name, and those of its settings that its constructor takes."""
from __future__ import annotations

import inspect

from model.backbones import Backbone, Sides, build_backbone, check_name, constructor_of

# MODEL.NAME of TransReID and its descendants, whose MODEL.TRANSFORMER_TYPE is the network.
TRANSFORMER = "transformer"
_TYPES = {
    "vit_base_patch16_224_TransReID": "vit_base",
    "deit_base_patch16_224_TransReID": "vit_base",
    "vit_small_patch16_224_TransReID": "transreid_vit_small",
    "deit_small_patch16_224_TransReID": "vit_small",
    "vit_tiny_patch16_224_TransReID": "vit_tiny",
    "swin_base_patch4_window7_224": "solider_swin_base",
    "swin_small_patch4_window7_224": "solider_swin_small",
    "swin_tiny_patch4_window7_224": "solider_swin_tiny",
}
# MODEL.NAME of CLIP-ReID.
_CLIPS = {"ViT-B-16": "clip_vit_b16", "RN50": "clip_rn50"}
# PersonViT's MODEL.POOLING -> MODEL.POOLING_METHOD.
_POOLINGS = {"token": "token", "gem": "GeM_token", "avg": "avg", "max": "max", "avg_max": "avg_max"}


def make_backbone(cfg, sides: Sides | None = None) -> Backbone:
    """The backbone of MODEL.NAME with random weights.

    A constructor is given those SETTINGS that it has a parameter for.

    Args:
        sides: cameras and views of the training set; None: those of the weights that will be loaded.
    Raises:
        ValueError: the name is unknown, or the settings do not suit the backbone.
    """
    name = network_name(cfg)
    known = inspect.signature(constructor_of(name)).parameters
    for key, parameter in (("JPM", "jpm"), ("SIE_CAMERA", "sides"), ("SIE_VIEW", "sides")):
        if cfg.MODEL[key] and parameter not in known:
            raise ValueError(f"MODEL.{key}=True: {name} has none; it is of vision transformers such as vit_base")
    settings = {"sides": sides} if "sides" in known else {}
    for parameter, key in {**SETTINGS, **OF_TRAINING}.items():
        if parameter in known:
            section, leaf = key.split(".")
            settings[parameter] = cfg[section][leaf]
    return build_backbone(name, **settings)


# Parameter of a constructor -> config key. `size` is that of tables of positions.
SETTINGS = {
    "last_stride": "MODEL.LAST_STRIDE", "size": "INPUT.SIZE_TRAIN", "semantic_weight": "MODEL.SEMANTIC_WEIGHT",
    "stride": "MODEL.STRIDE_SIZE", "jpm": "MODEL.JPM", "parts": "MODEL.DEVIDE_LENGTH", "shift": "MODEL.SHIFT_NUM",
    "groups": "MODEL.SHUFFLE_GROUP", "rearrange": "MODEL.RE_ARRANGE", "sie_camera": "MODEL.SIE_CAMERA",
    "sie_view": "MODEL.SIE_VIEW", "sie_coe": "MODEL.SIE_COE", "sie_other": "MODEL.SIE_OTHER",
}
# Likewise of what a trained network does not depend on.
OF_TRAINING = {
    "hw_ratio": "MODEL.PRETRAIN_HW_RATIO", "drop_path": "MODEL.DROP_PATH", "drop_out": "MODEL.DROP_OUT",
    "att_drop": "MODEL.ATT_DROP_RATE", "checkpointing": "MODEL.GRADIENT_CHECKPOINTING",
}


def setting_keys(name: str) -> dict[str, str]:
    """{parameter: config key} of what a backbone's constructor may be told; ValueError: the name is unknown."""
    known = inspect.signature(constructor_of(name)).parameters
    return {parameter: key for parameter, key in SETTINGS.items() if parameter in known}


def network_name(cfg) -> str:
    """The backbone's name: MODEL.NAME, or in the settings of TransReID and its descendants what its type means.

    Raises:
        ValueError: the name or the type is unknown.
    """
    name, kind = _CLIPS.get(cfg.MODEL.NAME, cfg.MODEL.NAME), cfg.MODEL.TRANSFORMER_TYPE
    if name == TRANSFORMER:
        if kind not in _TYPES:
            raise ValueError(f"MODEL.TRANSFORMER_TYPE={kind!r} is unknown; choices: {', '.join(_TYPES)}")
        name = _TYPES[kind]
        if name == "transreid_vit_small" and (cfg.MODEL.PRETRAIN_HW_RATIO == 2 or cfg.MODEL.STEM_CONV):
            name = "vit_small"  # who pretrains on pictures of people means the usual one
        name += "_ics" * (cfg.MODEL.STEM_CONV and name.startswith("vit_"))
    check_name(name)
    return name


def pooling_name(cfg) -> str:
    """MODEL.POOLING_METHOD, or what the settings of TransReID's descendants mean; TransReID takes the class token."""
    if cfg.MODEL.NAME in _CLIPS:
        return "token"
    if cfg.MODEL.NAME != TRANSFORMER or cfg.MODEL.TRANSFORMER_TYPE.startswith("swin"):
        return cfg.MODEL.POOLING_METHOD
    return "GeM_token" if cfg.MODEL.GEM_POOLING else _POOLINGS[cfg.MODEL.POOLING]
