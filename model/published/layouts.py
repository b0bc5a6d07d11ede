"""The layouts of published weight files: how each is recognised, which keys mean what, which settings follow."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor

IMAGENET = {"INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406], "INPUT.PIXEL_STD": [0.229, 0.224, 0.225]}
HALVES = {"INPUT.PIXEL_MEAN": [0.5, 0.5, 0.5], "INPUT.PIXEL_STD": [0.5, 0.5, 0.5]}
CLIPS = {"INPUT.PIXEL_MEAN": [0.481455, 0.457828, 0.408211], "INPUT.PIXEL_STD": [0.268630, 0.261303, 0.275777]}
_SIZES = ((256, 128), (384, 128), (224, 224), (240, 112), (256, 256), (384, 384))
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
        names: shell patterns of the backbones that it may be; the first whose weights have these shapes is it. () =
            the caller knows it.
        timm: likewise of timm's networks, by whose names `rename` calls the weights.
        rename: (pattern, replacement): the first that matches gives a key its name in `ReIDModel`. LAST in a pattern
            or a replacement is the number of the last transformer block.
        join: (name, names): weights by the names that `rename` gave, which lie one behind the other in that of `name`.
        flexible: patterns of a backbone's weights by which it is not recognised, because settings decide on them.
        heads, text, unused: keys that are left out: classifiers of the training's identities or classes, text
            encoders with their prompts, and what no feature depends on.
        telling: of `unused`, what is passed on all the same, because it tells a backbone whose tables these are.
        config: settings of all such files, as published: pixels, neck, feature.
        when: (pattern of a key of the file, the settings that follow from its being there).
        derive: the settings that follow from the shapes of the file's weights.
        alone: a backbone alone, as pretraining makes it: tables are resized by the rule of such files.
        refused: why it cannot be imported; "" = it can.
    """

    title: str
    marks: tuple[str, ...]
    names: tuple[str, ...] = ()
    timm: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    derive: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda state: {}
    alone: bool = False
    join: tuple[tuple[str, tuple[str, ...]], ...] = ()
    flexible: tuple[str, ...] = ()
    refused: str = ""


def _grid_of(count: int) -> dict[str, Any]:
    """Picture size and stride of patches of 16 x 16 pixels that give so many; {} if those that are usual do not."""
    for stride, (height, width) in product((16, 12, 14, 11), _SIZES):
        if count == ((height - 16) // stride + 1) * ((width - 16) // stride + 1):
            size = {"INPUT.SIZE_TRAIN": [height, width], "INPUT.SIZE_TEST": [height, width]}
            return size if stride == 16 else {**size, "MODEL.STRIDE_SIZE": [stride, stride]}
    return {}


def _of_transreid(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return _grid_of(state["base.pos_embed"].shape[1] - 1)


def _of_fastreids_vit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return _grid_of(state["backbone.pos_embed"].shape[1] - 1)


def _of_swin(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """SOLIDER's network of the same size; ValueError if there is none."""
    blocks = sum(bool(re.search(r"layers\.\d\.blocks\.\d+\.norm1\.weight$", key)) for key in state)
    width = next(len(value) for key, value in state.items() if key.endswith("patch_embed.proj.weight"))
    sizes = {(12, 96): "tiny", (24, 96): "small", (24, 128): "base"}
    if (blocks, width) not in sizes:
        raise ValueError(f"a Swin of {blocks} blocks and width {width}: SOLIDER has none; its have "
                         + ", ".join(f"{count} and {size}" for count, size in sizes))
    return {"MODEL.NAME": f"solider_swin_{sizes[blocks, width]}"}


def _of_pass(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Without a classifier no file tells whether the mean of the parts stands beside the class token or is mixed in."""
    table, classifier = state["base.pos_embed"], state.get("classifier.weight")
    mixed = classifier is not None and classifier.shape[1] == table.shape[2]
    return {"MODEL.FEAT_FUSION": "mean" if mixed else "cat", **_grid_of(table.shape[1])}


def _of_clipreid(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "image_encoder.positional_embedding" in state:
        return {**HALVES, **_grid_of(len(state["image_encoder.positional_embedding"]) - 1)}
    grid = _grid_of(len(state["image_encoder.attnpool.positional_embedding"]) - 1)
    return {**IMAGENET, **{key: size for key, size in grid.items() if key.startswith("INPUT.")}}


def _of_pretraining(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Positions of pictures of people have a grid twice as high as wide; others a square one."""
    table = next(table for key, table in state.items() if key.endswith("pos_embed"))
    upright = table.shape[1] - 1 == 128 or table.shape[1] == 128
    by_people = upright or any(key.endswith("dist_token") for key in state)
    return {"MODEL.PRETRAIN_HW_RATIO": 2 if upright else 1, **(IMAGENET if by_people else HALVES)}


def _width_of_fastreid(state: Mapping[str, Tensor]) -> dict[str, Any]:
    neck = state.get("heads.bottleneck.0.weight")
    return {"MODEL.EMBED_DIM": len(neck)} if neck is not None and neck.ndim == 4 else {}


_FASTREID_HEADS = (r"heads\.(?:weight$|classifier\.)",)


def _fastreid(title: str, marks: tuple[str, ...], names: tuple[str, ...], pooling: Mapping[str, Any],
              unused: tuple[str, ...] = (), reduced: bool = False) -> Layout:
    """fast-reid tests after the neck, whatever its NECK_FEAT says; pixels of ImageNet's statistics times 255.

    reduced: with EMBEDDING_DIM a convolution is at 0 of the neck, and the batch norm at 1.
    """
    neck = r"heads\.bottleneck\.1\." if reduced else r"heads\.(?:bottleneck\.0|bnneck)\."
    return Layout(
        title + ", reduced (EMBEDDING_DIM)" * reduced, (r"backbone\.", neck, *marks), names,
        rename=((r"backbone\.", "base."), (neck, "bottleneck."), (r"heads\.pool_layer\.p$", "gap.p"),
                *(((r"heads\.bottleneck\.0\.weight$", "reduction.linear.weight"),) if reduced else ())),
        derive=_width_of_fastreid, heads=_FASTREID_HEADS, unused=(r"pixel_(?:mean|std)$", *unused),
        config={"MODEL.LAST_STRIDE": 1, "MODEL.NECK": "bnneck", "TEST.NECK_FEAT": "after", **IMAGENET, **pooling})


# Method -> the first arguments of `_fastreid`.
_FASTREID: dict[str, tuple] = {
    "sbs": ("fast-reid SBS", (r"backbone\.NL_", r"heads\.pool_layer\.p$"), ("fastreid_*_nl",), {
        "MODEL.POOLING_METHOD": "GeM", "MODEL.GEM_LEARN_P": True, "INPUT.SIZE_TEST": [384, 128]}),
    "agw": ("fast-reid AGW", (r"backbone\.NL_",), ("fastreid_*_nl",), {
        "MODEL.POOLING_METHOD": "GeM", "MODEL.GEM_P": 3.0, "INPUT.SIZE_TEST": [256, 128]}),
    # Its older files hold the exponent of a pooling that it does not use.
    "bot": ("fast-reid BoT", (), ("fastreid_r??", "fastreid_r??_ibn", "fastreid_r???", "fastreid_r???_ibn", "resnest*"),
            {"MODEL.POOLING_METHOD": "avg", "INPUT.SIZE_TEST": [256, 128]}, (r"heads\.pool_layer\.p$",)),
}
_TEXT = (r"prompt_learner\.", r"text_encoder\.", r"transformer\.resblocks\.", r"token_embedding\.", r"ln_final\.",
         r"text_projection$", r"positional_embedding$", r"logit_(?:scale|bias)$", r"attn_mask$", r"text\.")
_BEFORE = {"MODEL.NECK": "bnneck", "TEST.NECK_FEAT": "before"}
_PERSONS = {"INPUT.SIZE_TRAIN": [256, 128], "INPUT.SIZE_TEST": [256, 128]}
_VIT = _PREFIX + (r"(?=(?:(?:cls|dist)_token|pos_embed|part_token\d|cls_pos|part\d_pos)$|patch_embed\.|blocks\."
                  r"|norm\.)")
_VIT_TABLES = (r"pos_embed$", r"sie", r"dist_token$")
_OF_TIMM = {"MODEL.NECK": "no", **_PERSONS}  # pixels are those of timm's network
_SQUARE = {"INPUT.SIZE_TRAIN": [224, 224], "INPUT.SIZE_TEST": [224, 224]}
_SWIN_MARKS = (_PREFIX + r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$", _PREFIX + r"patch_embed\.proj\.")
# The small ones first: what is not looked at need not be built.
_SWINS = ("swin_tiny_*", "swin_small_*", "swin_base_*", "swin_*")
_DINOV2 = tuple(f"vit_{size}_*_dinov2" for size in ("small", "base", "large", "giant"))
_TOKEN = {"MODEL.POOLING_METHOD": "token"}
_SWIN_BUFFERS = (r".*\.attn_mask$", r".*\.relative_position_index$")
_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
_SEMANTIC = (r"(?:base|backbone)\.semantic_embed_w", {"MODEL.SEMANTIC_WEIGHT": 0.2})

# From the most particular to the most general.
LAYOUTS: dict[str, Layout] = {
    "fastreid_mgn": Layout(
        "fast-reid MGN", (r"b1_head\.",), refused="its three branches with eight heads are not built here; fast-reid's "
        "BoT, SBS and AGW are"),
    "fastreid_vit": Layout(
        "fast-reid ViT", (r"backbone\.patch_embed\.", r"heads\.(?:bottleneck|bnneck)\."),
        ("transreid_vit_small", "vit_*"),
        rename=((r"backbone\.", "base."), (r"heads\.(?:bottleneck\.0|bnneck)\.", "bottleneck.")),
        heads=_FASTREID_HEADS, unused=(r"pixel_(?:mean|std)$",), flexible=_VIT_TABLES, derive=_of_fastreids_vit,
        config={"MODEL.NECK": "bnneck", "TEST.NECK_FEAT": "after", "MODEL.POOLING_METHOD": "token", **HALVES}),
    **{f"fastreid_{method}" + "_reduced" * reduced: _fastreid(*arguments, reduced=reduced)
       for reduced in (True, False) for method, arguments in _FASTREID.items()},
    "transreid_jpm": Layout(
        "TransReID with its jigsaw patch module", (r"base\.cls_token$", r"b1\.0\.", r"b2\.0\."),
        ("transreid_vit_small", "vit_*"),
        rename=((r"b1\.0\.", "base.blocks.LAST."), (r"b1\.1\.", "base.norm."), (r"b2\.0\.", "base.jpm.block."),
                (r"b2\.1\.", "base.jpm.norm."), (r"bottleneck_1\.", "joint.necks.0."),
                (r"bottleneck_2\.", "joint.necks.1."), (r"bottleneck_3\.", "joint.necks.2."),
                (r"bottleneck_4\.", "joint.necks.3."), (r"(?=base\.|bottleneck\.)", "")),
        heads=(r"classifier(?:_\d)?\.", r"base\.fc\."), unused=(r"base\.blocks\.LAST\.", r"base\.norm\."),
        flexible=(*_VIT_TABLES, r"jpm\."), config={**_BEFORE, **HALVES, "MODEL.POOLING_METHOD": "token",
                                                   "MODEL.JPM": True, "TEST.USE_LOCAL": True},
        when=((r"base\.sie_embed$", {"MODEL.SIE_CAMERA": True}),), derive=_of_transreid),
    "pass": Layout(
        "PASS", (r"base\.part_token1$",), ("pass_*",),
        rename=((r"bottleneck_1\.", "joint.necks.0."), (r"bottleneck_2\.", "joint.necks.1."),
                (r"bottleneck_3\.", "joint.necks.2."), (r"(?=base\.|bottleneck\.)", "")),
        heads=(r"classifier\.", r"base\.fc\."), flexible=_VIT_TABLES,
        config={**_BEFORE, **HALVES, "MODEL.POOLING_METHOD": "token"}, derive=_of_pass),
    "transreid": Layout(
        "TransReID, TransReID-SSL or PersonViT", (r"base\.cls_token$", r"base\.patch_embed\.",
                                                  r"(?:bottleneck|classifier)\."),
        ("transreid_vit_small", "vit_*"), rename=((r"(?=base\.|bottleneck\.)", ""),),
        heads=(r"classifier\.", r"base\.fc\."), flexible=_VIT_TABLES,
        config={**_BEFORE, **HALVES, "MODEL.POOLING_METHOD": "token"},
        when=((r"base\.sie_embed$", {"MODEL.SIE_CAMERA": True}),), derive=_of_transreid),
    "dinov2": Layout(
        "DINOv2", (_PREFIX + r"blocks\.0\.ls1\.gamma$", _PREFIX + r"mask_token$"), timm=_DINOV2,
        rename=((_PREFIX, "base."),), unused=(_PREFIX + r"mask_token$",), telling=(_PREFIX + r"mask_token$",),
        alone=True, config={**_OF_TIMM, **_TOKEN}),
    "timm_dino": Layout(
        "timm's DINOv2 or DINOv3", (r"blocks\.0\.(?:ls1\.gamma|gamma_1)$", r"cls_token$"),
        timm=(*_DINOV2, "vit_small_*dinov3*", "vit_*_dinov3*"), rename=((r"", "base."),), heads=(r"head\.",),
        alone=True, config={**_OF_TIMM, **_TOKEN}),
    "swin": Layout(
        "Swin's authors or timm's Swin", _SWIN_MARKS, timm=_SWINS,
        rename=((_PREFIX, "base."),), heads=(_PREFIX + r"head\.",), unused=_SWIN_BUFFERS, alone=True,
        config={**_OF_TIMM, **_SQUARE}),
    "solider_of_swin": Layout(
        "Swin's authors or timm's Swin, for SOLIDER's network, whose norms of maps start anew", (r"(?!)",),
        rename=((_PREFIX, "base."),), heads=(_PREFIX + r"head\.",),
        unused=(*_SWIN_BUFFERS, _PREFIX + r"norm\."), alone=True, derive=_of_swin,
        config={"MODEL.NECK": "no", "MODEL.SEMANTIC_WEIGHT": -1.0, **_PERSONS, **IMAGENET}),
    "torchvision_swin": Layout(
        "torchvision's Swin", (r"features\.1\.0\.attn\.relative_position_bias_table$",), timm=_SWINS,
        rename=((r"features\.0\.0\.", "base.patch_embed.proj."), (r"features\.0\.2\.", "base.patch_embed.norm."),
                *((rf"features\.{2 * i + 1}\.(\d+)\.mlp\.{n}\.", rf"base.layers.{i}.blocks.\1.mlp.fc{1 + n // 3}.")
                  for i in range(4) for n in (0, 3)),
                *((rf"features\.{2 * i + 1}\.(\d+)\.", rf"base.layers.{i}.blocks.\1.") for i in range(4)),
                *((rf"features\.{2 * i}\.", f"base.layers.{i}.downsample.") for i in range(1, 4)),
                (r"norm\.", "base.norm.")),
        heads=(r"head\.",), unused=(r".*relative_position_index$",), alone=True, config={**_OF_TIMM, **_SQUARE}),
    "convnext": Layout(
        "timm's ConvNeXt", (r"stem\.0\.weight$", r"stages\.0\.blocks\.0\.conv_dw\.weight$"),
        timm=("convnext_tiny", "convnext*"), rename=((r"", "base."),), heads=(r"head\.fc\.",), alone=True,
        config=_OF_TIMM),
    "torchvision_convnext": Layout(
        "torchvision's ConvNeXt", (r"features\.1\.0\.layer_scale$",), timm=("convnext_tiny", "convnext*"),
        rename=((r"features\.0\.", "base.stem."), (r"classifier\.0\.", "base.head.norm."),
                *((rf"features\.{2 * i + 1}\.(\d+)\.{theirs}", rf"base.stages.{i}.blocks.\1.{timms}")
                  for i in range(4) for theirs, timms in (
                      (r"layer_scale$", "gamma"), (r"block\.0\.", "conv_dw."), (r"block\.2\.", "norm."),
                      (r"block\.3\.", "mlp.fc1."), (r"block\.5\.", "mlp.fc2."))),
                *((rf"features\.{2 * i}\.", f"base.stages.{i}.downsample.") for i in range(1, 4))),
        heads=(r"classifier\.2\.",), alone=True, config=_OF_TIMM),
    "vit": Layout(
        "a pretrained vision transformer (timm, DeiT, TransReID-SSL, PASS, PersonViT)",
        (_PREFIX + r"cls_token$", _PREFIX + r"patch_embed\.", _PREFIX + r"pos_embed$"),
        ("transreid_vit_small", "vit_*", "pass_*"), rename=((_VIT, "base."),),
        heads=(_PREFIX + r"(?:head|head_dist|pre_logits)\.",), flexible=_VIT_TABLES, alone=True,
        config={"MODEL.NECK": "no", "MODEL.POOLING_METHOD": "token", **_PERSONS}, derive=_of_pretraining),
    "torchvision_vit": Layout(
        "torchvision's vision transformer", (r"class_token$", r"conv_proj\.", r"encoder\.pos_embedding$"), ("vit_*",),
        rename=((r"class_token$", "base.cls_token"), (r"conv_proj\.", "base.patch_embed.proj."),
                (r"encoder\.pos_embedding$", "base.pos_embed"), (r"encoder\.ln\.", "base.norm."),
                (_LAYER + r"ln_(\d)\.", r"base.blocks.\1.norm\2."),
                (_LAYER + r"self_attention\.in_proj_", r"base.blocks.\1.attn.qkv."),
                (_LAYER + r"self_attention\.out_proj\.", r"base.blocks.\1.attn.proj."),
                (_LAYER + r"mlp\.(?:0|linear_1)\.", r"base.blocks.\1.mlp.fc1."),
                (_LAYER + r"mlp\.(?:3|linear_2)\.", r"base.blocks.\1.mlp.fc2.")),
        heads=(r"heads\.",), flexible=_VIT_TABLES, alone=True,
        config={"MODEL.NECK": "no", "MODEL.POOLING_METHOD": "token", **_PERSONS, **IMAGENET}),
    "solider": Layout(
        "SOLIDER", (r"base\.stages\.0\.blocks\.", r"bottleneck\."), ("solider_*",),
        rename=((r"(?=base\.|bottleneck\.)", ""),), heads=(r"classifier\.",), flexible=(r"semantic_embed",),
        config={**_BEFORE, **HALVES, "MODEL.SEMANTIC_WEIGHT": -1.0, "INPUT.SIZE_TEST": [384, 128]}, when=(_SEMANTIC,)),
    "solider_pretrained": Layout(
        "SOLIDER's pretraining", (_PREFIX + r"stages\.0\.blocks\.0\.attn\.w_msa\.",), ("solider_*",),
        rename=((_PREFIX + r"(?=stages\.|patch_embed\.|norm\d\.|semantic_embed)", "base."),),
        heads=(_PREFIX + r"head\.",), flexible=(r"semantic_embed",),
        config={"MODEL.NECK": "no", **HALVES, "MODEL.SEMANTIC_WEIGHT": -1.0, "INPUT.SIZE_TEST": [384, 128]},
        when=(_SEMANTIC,)),
    "clipreid": Layout(
        "CLIP-ReID", (r"image_encoder\.", r"bottleneck_proj\."), ("clip_*",),
        rename=((r"image_encoder\.", "base."), (r"cv_embed$", "base.cv_embed"), (r"(?=bottleneck)", "")),
        heads=(r"classifier(?:_proj)?\.",), text=_TEXT, flexible=(r".*positional_embedding$", r"sie|cv_embed"),
        join=(("bottleneck.", ("bottleneck.", "bottleneck_proj.")),),
        config={**_BEFORE, "MODEL.POOLING_METHOD": "token"},
        when=((r"cv_embed$", {"MODEL.SIE_CAMERA": True, "MODEL.SIE_COE": 1.0}),), derive=_of_clipreid),
    "clip": Layout(
        "OpenAI's CLIP or OpenCLIP", (r"visual\.(?:class_embedding|attnpool\.)",), ("clip_*",),
        rename=((r"visual\.", "base."),), text=_TEXT, flexible=(r".*positional_embedding$", r"sie|cv_embed"),
        unused=(r"(?:input_resolution|context_length|vocab_size)$",), alone=True,
        config={"MODEL.NECK": "no", "MODEL.POOLING_METHOD": "token", **CLIPS, **_PERSONS}),
    "osnet": Layout(
        "torchreid's OSNet", (r"conv1\.conv\.weight$", r"fc\.0\.weight$"), ("osnet_*",),
        rename=((r"(?=conv|pool|fc\.\d)", "base."),), heads=(r"classifier\.",),
        config={"MODEL.NECK": "no", "MODEL.POOLING_METHOD": "token", "INPUT.SIZE_TEST": [256, 128], **IMAGENET}),
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
    "timm": Layout(
        "timm, with MODEL.NAME timm:NAME", (r"(?!)",), rename=((r"", "base."),), alone=True,
        config={"MODEL.NECK": "no", **_PERSONS}),
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
