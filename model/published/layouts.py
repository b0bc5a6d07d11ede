"""The layouts of published weight files: how each is recognised, which keys mean what, which settings follow."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET = {"INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406], "INPUT.PIXEL_STD": [0.229, 0.224, 0.225]}
HALVES = {"INPUT.PIXEL_MEAN": [0.5, 0.5, 0.5], "INPUT.PIXEL_STD": [0.5, 0.5, 0.5]}
# What stands before the names of a backbone alone: MoCo's and DINO's encoders, mmcv's, Lightning's.
_PREFIX = r"(?:(?:base|backbone|encoder_q|encoder|teacher|student|model|net)\.)?"
_RESNET = _PREFIX + r"layer1\.0\.conv1\.weight$"
_CLASSIFIERS = r"(?:last_linear|classifier|_?fc)\."


@dataclass(frozen=True)
class Layout:
    """A kind of file. All patterns are regular expressions that match at the beginning of a key.

    Attributes:
        title: whose, in words.
        marks: each matches a key of such a file; the first layout of the table to which that applies is the file's.
        names: shell patterns of the backbones that it may be; the first whose weights have these shapes is it.
        rename: (pattern, replacement): the first that matches gives a key its name in `ReIDModel`.
        heads, text, unused: keys that are left out: classifiers of the training's identities or classes, text
            encoders with their prompts, and what no feature depends on.
        config: settings of all such files, as published: pixels, neck, feature.
        when: (pattern of a key of the file, the settings that follow from its being there).
        refused: why it cannot be imported; "" = it can.
    """

    title: str
    marks: tuple[str, ...]
    names: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    refused: str = ""


def _fastreid(title: str, marks: tuple[str, ...], names: tuple[str, ...], pooling: Mapping[str, Any],
              unused: tuple[str, ...] = ()) -> Layout:
    """fast-reid tests after the neck, whatever its NECK_FEAT says; pixels of ImageNet's statistics times 255."""
    return Layout(
        title, (r"backbone\.", r"heads\.(?:bottleneck|bnneck)\.", *marks), names,
        rename=((r"backbone\.", "base."), (r"heads\.(?:bottleneck\.0|bnneck)\.", "bottleneck."),
                (r"heads\.pool_layer\.p$", "gap.p")),
        heads=(r"heads\.(?:weight$|classifier\.)",), unused=(r"pixel_(?:mean|std)$", *unused),
        config={"MODEL.LAST_STRIDE": 1, "MODEL.NECK": "bnneck", "TEST.NECK_FEAT": "after", **IMAGENET, **pooling})


# From the most particular to the most general.
LAYOUTS: dict[str, Layout] = {
    "fastreid_mgn": Layout(
        "fast-reid MGN", (r"b1_head\.",), refused="its three branches with eight heads are not built here; fast-reid's "
        "BoT, SBS and AGW are"),
    "fastreid_reduced": Layout(
        "fast-reid with an embedding layer (EMBEDDING_DIM)", (r"heads\.bottleneck\.1\.",),
        refused="a convolution before the neck is not built here"),
    "fastreid_vit": Layout(
        "fast-reid ViT", (r"backbone\.patch_embed\.", r"heads\.bottleneck\."),
        refused="its transformer is not built here; TransReID's and timm's are others"),
    "fastreid_sbs": _fastreid("fast-reid SBS", (r"backbone\.NL_", r"heads\.pool_layer\.p$"), ("fastreid_*_nl",), {
        "MODEL.POOLING_METHOD": "GeM", "MODEL.GEM_LEARN_P": True, "INPUT.SIZE_TEST": [384, 128]}),
    "fastreid_agw": _fastreid("fast-reid AGW", (r"backbone\.NL_",), ("fastreid_*_nl",), {
        "MODEL.POOLING_METHOD": "GeM", "MODEL.GEM_P": 3.0, "INPUT.SIZE_TEST": [256, 128]}),
    # Its older files hold the exponent of a pooling that it does not use.
    "fastreid_bot": _fastreid("fast-reid BoT", (), ("fastreid_r??", "fastreid_r??_ibn", "fastreid_r???",
                                                    "fastreid_r???_ibn", "resnest*"),
                              {"MODEL.POOLING_METHOD": "avg", "INPUT.SIZE_TEST": [256, 128]},
                              unused=(r"heads\.pool_layer\.p$",)),
    "lineage": Layout(
        "reid-strong-baseline, DMT or NAIC-ReID", (r"base\.(?:layer1\.|_conv_stem\.)", r"(?:bottleneck|classifier)\."),
        ("[!f]*",), rename=((r"(?=base\.|bottleneck\.|gap\.|pcb\.)", ""),),
        heads=(r"classifier\.", r"pcb\.classifiers\.", r"base\._?fc\."), unused=(r"pcb\.bn\.",),
        config={"MODEL.LAST_STRIDE": 1, "MODEL.NECK": "no", "INPUT.SIZE_TEST": [256, 128], **IMAGENET},
        when=((r"bottleneck\.", {"MODEL.NECK": "bnneck"}),
              (r"gap\.p$", {"MODEL.POOLING_METHOD": "GeM", "MODEL.GEM_LEARN_P": True}),
              (r"pcb\.", {"MODEL.IF_USE_PCB": True, "MODEL.MERGE_PCB_FEAT": False,
                          "TEST.USE_PCB_MERGE_FEAT": False}),
              (r"pcb\.(?:gates|dy_weight)", {"MODEL.MERGE_PCB_FEAT": True, "TEST.USE_PCB_MERGE_FEAT": True}),
              (r"pcb\.rpp\.", {"MODEL.PCB_RPP": True}),
              (r"pcb\.local\.", {"TEST.PCB_GLOBAL_FEAT_ENSEMBLE": True}))),
    "efficientnet_lite": Layout(
        "EfficientNet-Lite", (_PREFIX + r"_conv_stem\.weight$",), ("efficientnet_lite*",),
        rename=((_PREFIX, "base."),), heads=(_PREFIX + _CLASSIFIERS,),
        config={"MODEL.LAST_STRIDE": 2, "MODEL.NECK": "no", "INPUT.SIZE_TEST": [256, 128], **HALVES}),
    "backbone": Layout(
        "torchvision, timm, IBN-Net, ResNeSt or efficientnet-pytorch",
        (_RESNET + "|" + _PREFIX + r"_conv_stem\.weight$",), ("[!f]*",),
        rename=((_PREFIX, "base."),), heads=(_PREFIX + _CLASSIFIERS,),
        unused=(r"encoder_k\.", r"queue",),
        config={"MODEL.LAST_STRIDE": 2, "MODEL.NECK": "no", "INPUT.SIZE_TEST": [256, 128], **IMAGENET}),
}
