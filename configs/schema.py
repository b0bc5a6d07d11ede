"""A rule for every leaf of the config tree, the checks between keys, and ConfigError.

Values reach the rules as they are written in the file or on the command line: a rule, not YAML 1.1, decides what a
text means. (YAML 1.1 reads `no` as False, `3e-4` as a string and `010` as eight.) Values given from Python in their
own type pass through the same rules. Names of backbones, optimisers and data sets are checked by their builders.
"""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from configs.rules import _NULLS, Bool, Choice, ConfigError, DeviceIds, Float, Int, ListOf, NamedShare, OrAuto, Row, Str

# ---------------------------------------------------------------- kinds of rules
# A rule has parse(raw) -> value, which raises ValueError (its text is a hint, or "") for what it does not take, and
# str(rule), which completes "expected ...". parse(parse(raw)) == parse(raw), so that a written config reads back.


# ---------------------------------------------------------------- the table

_SHARE = Float(0, 1)
_SIZE = Row((("height", Int(1)), ("width", Int(1))))

RULES: dict[str, Any] = {
    "MODEL.DEVICE": Choice(("auto", "cuda", "cpu")),
    "MODEL.DEVICE_ID": DeviceIds(),
    "MODEL.NAME": Str(),
    "MODEL.LAST_STRIDE": Int(1, 2),
    "MODEL.PRETRAIN_PATH": Str(empty=True),
    "MODEL.PRETRAIN_CHOICE": Choice(("imagenet", "self", "finetune", "none")),
    "MODEL.PRETRAIN_ALLOW": ListOf(Str(), unique=True),
    "MODEL.NECK": Choice(("bnneck", "no")),
    "MODEL.IF_WITH_CENTER": Bool(),
    "MODEL.METRIC_LOSS_TYPE": Choice(("triplet", "center", "triplet_center", "pair_cosface", "pair_circle",
                                      "triplet_pair_cosface", "triplet_pair_circle")),
    "MODEL.NO_MARGIN": Bool(),
    "MODEL.IF_LABELSMOOTH": Bool(),
    "MODEL.COS_LAYER": Bool(),
    "MODEL.FROZEN": Int(-1, 4),
    "MODEL.FREEZE_EPOCHS": Int(0),
    "MODEL.SYNC_BN": Bool(),
    "MODEL.TRAIN_ONLY": ListOf(Str(), unique=True),
    "MODEL.CHANNELS_LAST": Bool(),
    "MODEL.COMPILE": Bool(),
    "MODEL.POOLING_METHOD": Choice(("avg", "GeM")),
    "MODEL.GEM_P": Float(above=0),
    "MODEL.GEM_LEARN_P": Bool(),
    "MODEL.ID_LOSS_TYPE": Choice(("softmax", "arcface", "cosface", "amsoftmax", "circle")),
    "MODEL.ID_LOSS_WEIGHT": Float(0),
    "MODEL.TRIPLET_LOSS_WEIGHT": Float(0),
    "MODEL.PAIR_LOSS_WEIGHT": Float(0),
    "MODEL.WEIGHTED_TRIPLET": Bool(),
    "MODEL.THRESH": Float(0),
    "MODEL.IF_USE_PCB": Bool(),
    "MODEL.MERGE_PCB_FEAT": Bool(),
    "MODEL.PCB_GATE": Choice(("sigmoid", "affine")),
    "MODEL.PCB_RPP": Bool(),
    "MODEL.PCB_PART_LOSS_WEIGHT": Float(0),
    "MODEL.PCB_MERGED_LOSS_WEIGHT": Float(0),
    "MODEL.PCB_LOCAL_LOSS_WEIGHT": Float(0),
    "INPUT.SIZE_TRAIN": _SIZE,
    "INPUT.SIZE_TEST": _SIZE,
    "INPUT.PROB": _SHARE,
    "INPUT.RE_PROB": _SHARE,
    "INPUT.PIXEL_MEAN": Row((("R", _SHARE), ("G", _SHARE), ("B", _SHARE))),
    "INPUT.PIXEL_STD": Row((("R", Float(above=0)), ("G", Float(above=0)), ("B", Float(above=0)))),
    "INPUT.PADDING": Int(0),
    "INPUT.RANDOM_PATCH_PROB": _SHARE,
    "INPUT.AUTOAUG_PROB": _SHARE,
    "INPUT.AUGMIX_PROB": _SHARE,
    "INPUT.GRAYSCALE_PATCH_PROB": _SHARE,
    "INPUT.GRAYSCALE_PROB": _SHARE,
    "DATASETS.NAMES": Str(),
    "DATASETS.TEST_NAMES": Str(empty=True),
    "DATASETS.VALIDATION": Str(empty=True),
    "DATASETS.ROOT_DIR": Str(),
    "DATASETS.HARD_AUG": Bool(),
    "DATASETS.CHANNEL_SHUFFLE": Bool(),
    "DATASETS.USE_UNLABEL": Bool(),
    "DATASETS.UNLABEL_DIR": Str(empty=True),
    "DATASETS.TRAIN_SETS": ListOf(Choice(("2019_cs", "2019_fs", "2020_cs", "2020_fs")), unique=True),
    "DATASETS.TEST_DIR": Str(),
    "DATASETS.DERIVED_DIR": Str(empty=True),
    "DATASETS.PACKED": Str(empty=True),
    "DATALOADER.NUM_WORKERS": Int(0),
    "DATALOADER.SAMPLER": Choice(("softmax", "triplet", "softmax_triplet")),
    "DATALOADER.NUM_INSTANCE": Int(1),
    "DATALOADER.ON_BAD_IMAGE": Choice(("error", "skip")),
    "DATALOADER.BALANCE_SETS": Bool(),
    "DATALOADER.SET_SHARES": ListOf(NamedShare(), unique=True),
    "SOLVER.OPTIMIZER_NAME": Str(),
    "SOLVER.MAX_EPOCHS": Int(1),
    "SOLVER.BASE_LR": Float(above=0),
    "SOLVER.LARGE_FC_LR": Bool(),
    "SOLVER.BIAS_LR_FACTOR": Float(0),
    "SOLVER.BACKBONE_LR_FACTOR": Float(0),
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.NESTEROV": Bool(),
    "SOLVER.GRADIENT_CENTRALIZATION": Bool(),
    "SOLVER.MARGIN": Float(0),
    "SOLVER.CLUSTER_MARGIN": Float(),
    "SOLVER.CENTER_LR": Float(0),
    "SOLVER.CENTER_LOSS_WEIGHT": Float(0),
    "SOLVER.RANGE_K": Int(),
    "SOLVER.RANGE_MARGIN": Float(),
    "SOLVER.RANGE_ALPHA": Float(),
    "SOLVER.RANGE_BETA": Float(),
    "SOLVER.RANGE_LOSS_WEIGHT": Float(),
    "SOLVER.WEIGHT_DECAY": Float(0),
    "SOLVER.WEIGHT_DECAY_BIAS": Float(0),
    "SOLVER.LR_SCHEDULER": Choice(("multistep", "cosine")),
    "SOLVER.MIN_LR": Float(0),
    "SOLVER.GAMMA": Float(above=0),
    "SOLVER.STEPS": ListOf(Int(1), increasing=True),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_EPOCHS": Int(0),
    "SOLVER.WARMUP_METHOD": Choice(("linear", "constant")),
    "SOLVER.COSINE_MARGIN": Float(0),
    "SOLVER.COSINE_SCALE": Float(above=0),
    "SOLVER.PAIR_MARGIN": Float(0),
    "SOLVER.PAIR_SCALE": Float(above=0),
    "SOLVER.CHECKPOINT_PERIOD": Int(1),
    "SOLVER.CHECKPOINT_KEEP": Int(0),
    "SOLVER.CHECKPOINT_SECONDS": Float(0),
    "SOLVER.BEST_METRIC": Choice(("mAP", "rank1", "mINP", "naic_score")),
    "SOLVER.LOG_PERIOD": Int(1),
    "SOLVER.EVAL_PERIOD": Int(0),
    "SOLVER.FP16": Bool(),
    "SOLVER.AMP_BACKEND": Choice(("auto", "torch", "apex")),
    "SOLVER.AMP_DTYPE": Choice(("auto", "float16", "bfloat16")),
    "SOLVER.IMS_PER_BATCH": Int(1),
    "SOLVER.ACCUMULATION_STEPS": Int(1),
    "SOLVER.CLIP_GRAD_NORM": Float(0),
    "SOLVER.EMA_DECAY": _SHARE,
    "SOLVER.MAX_SKIPPED_STEPS": Int(1),
    "SOLVER.SEED": Int(0, 2**32 - 1),
    "SOLVER.DETERMINISTIC": Bool(),
    "TEST.IMS_PER_BATCH": Int(1),
    "TEST.RE_RANKING": Bool(),
    "TEST.WEIGHT": Str(empty=True),
    "TEST.NECK_FEAT": Choice(("before", "after")),
    "TEST.FEAT_NORM": Bool(),
    "TEST.DISTANCE": Choice(("euclidean", "cosine")),
    "TEST.DIST_MAT": Str(empty=True),
    "TEST.FLIP_FEATS": Bool(),
    "TEST.EVAL": Bool(),
    "TEST.RE_RANKING_PARAMETER": Row((("k1", Int(1)), ("k2", Int(1)), ("lambda", _SHARE))),
    "TEST.QUERY_EXPANSION": Int(0),
    "TEST.DATABASE_AUGMENTATION": Int(0),
    "TEST.EXPANSION_ALPHA": Float(0),
    "TEST.SEARCH_PRECISION": Choice(("auto", "float32", "tf32", "bf16")),
    "TEST.MEMORY_BUDGET": Int(0),
    "TEST.TOP_K": Int(1),
    "TEST.DROP_SAME_CAMERA": OrAuto(Bool()),
    "TEST.USE_LOCAL": Bool(),
    "TEST.LOCAL_WEIGHT": Float(0),
    "TEST.PCB_GLOBAL_FEAT_ENSEMBLE": Bool(),
    "TEST.USE_PCB_MERGE_FEAT": Bool(),
    "TEST.PCB_PART_FEAT": Choice(("plain", "weighted")),
    "UDA.METHOD": Choice(("nearest_query", "dbscan", "agglomerative")),
    "UDA.DISTANCE": Choice(("angle", "cosine", "euclidean", "re_ranked")),
    "UDA.THRESHOLD": Float(0),
    "UDA.RE_RANKING_PARAMETER": Row((("k1", Int(1)), ("k2", Int(1)), ("lambda", _SHARE))),
    "UDA.MERGE_QUERIES": Bool(),
    "UDA.MIN_SAMPLES": Int(2),
    "UDA.ROUNDS": Int(1),
    "UDA.START": Choice(("labeller", "recipe")),
    "OUTPUT_DIR": Str(empty=True),
}

SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in RULES if "." in key))

_NO_RANGE_LOSS = "belonged to a range loss that no version had"

# Keys of the lineage that are still understood and do nothing, and why.
OBSOLETE: dict[str, str] = {
    "MODEL.COS_LAYER": "MODEL.ID_LOSS_TYPE: arcface is what it stood for",
    "SOLVER.CLUSTER_MARGIN": "belonged to a cluster loss that no version had",
    "SOLVER.RANGE_K": _NO_RANGE_LOSS,
    "SOLVER.RANGE_MARGIN": _NO_RANGE_LOSS,
    "SOLVER.RANGE_ALPHA": _NO_RANGE_LOSS,
    "SOLVER.RANGE_BETA": _NO_RANGE_LOSS,
    "SOLVER.RANGE_LOSS_WEIGHT": _NO_RANGE_LOSS,
    "TEST.DIST_MAT": "see tools/test.py --save-distmat",
    "TEST.EVAL": "metrics are computed wherever there is ground truth",
}


# ---------------------------------------------------------------- one key

def _shown(raw: Any, depth: int = 2) -> str:
    """A value as the user wrote it, for a message; long and deep ones are cut."""
    if isinstance(raw, str):
        plain = raw and raw == raw.strip() and raw.isprintable()
        text = raw if plain else repr(raw)
        return text if len(text) <= 80 else text[:77] + "..."
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, (list, tuple)):
        if depth == 0:
            return "[...]"
        return "[" + ", ".join([_shown(item, depth - 1) for item in raw[:8]] + ["..."] * (len(raw) > 8)) + "]"
    if isinstance(raw, int) and raw.bit_length() > 200:  # Python refuses to print integers of many digits.
        return f"an integer of {raw.bit_length()} bits"
    text = repr(raw)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggestion(key: str) -> str:
    """`; did you mean ...?` for an unknown key: the same name in another section, else the nearest spelling."""
    name = key.upper().rsplit(".", 1)[-1]
    same_name = [known for known in RULES if known.rsplit(".", 1)[-1] == name]
    if same_name and "." not in key:
        return f"; did you mean {' or '.join(same_name)}?"
    candidates, cutoff = (same_name, 0.0) if same_name else ((*RULES, *SECTIONS), 0.6)
    near = difflib.get_close_matches(key.upper(), candidates, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else "; configs/defaults.py has them all"


def coerce(key: str, raw: Any) -> Any:
    """The value of a key from what a file, a command line or a caller gave for it.

    Args:
        key: dotted name of a leaf, such as "SOLVER.BASE_LR".
        raw: its text, a list of texts, or a value of the key's own type.
    Returns:
        A value of the key's type; lists are new.
    Raises:
        ConfigError: the key is unknown (the nearest is named), or its rule does not take the value.
    """
    if key in SECTIONS:
        raise ConfigError(f"{key}: expected a section, its keys indented below it, got {_shown(raw)}")
    if key not in RULES:
        raise ConfigError(f"{_shown(key)}: unknown key{_suggestion(key)}")
    rule = RULES[key]
    if raw is None or (isinstance(raw, str) and raw in _NULLS):
        raise ConfigError(f"{key}: null is not a value here; expected {rule}")
    try:
        return rule.parse(raw)
    except ValueError as error:
        hint = f" ({error})" if str(error) else ""
        raise ConfigError(f"{key}: expected {rule}, got {_shown(raw)}{hint}") from None


# ---------------------------------------------------------------- several keys
# A check takes {dotted key: value} and yields a message for each combination that cannot work.
