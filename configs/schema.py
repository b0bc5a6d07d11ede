"""A rule for every leaf of the config tree, the checks between keys, and ConfigError.

Values reach the rules as they are written in the file or on the command line: a rule, not YAML 1.1, decides what a
text means. (YAML 1.1 reads `no` as False, `3e-4` as a string and `010` as eight.) Values given from Python in their
own type pass through the same rules. Names of backbones, optimisers and data sets are checked by their builders.
"""
from __future__ import annotations

import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """Mistakes in a config file or in the options of a command line: a line each."""


# ---------------------------------------------------------------- kinds of rules
# A rule has parse(raw) -> value, which raises ValueError (its text is a hint, or "") for what it does not take, and
# str(rule), which completes "expected ...". parse(parse(raw)) == parse(raw), so that a written config reads back.

_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BRACKETED_STRING = re.compile(r"\(\s*(['\"])(.*)\1\s*\)", re.DOTALL)
_NULLS = ("null", "Null", "NULL", "None", "~")


def _unbracketed(raw: Any) -> Any:
    """('naic') -> naic: the lineage writes texts as Python expressions in brackets. What is no text stays."""
    while isinstance(raw, str) and (match := _BRACKETED_STRING.fullmatch(raw.strip())):
        raw = match[2]
    return raw


def _range_text(low: float | None, high: float | None, above: float | None = None) -> str:
    """The range as it is read aloud: '', ' >= 1', ' > 0', ' in 0..1'."""
    if above is not None:
        return f" > {above}" + (f" and <= {high}" if high is not None else "")
    if low is not None and high is not None:
        return f" in {low}..{high}"
    return f" >= {low}" if low is not None else ""


@dataclass(frozen=True)
class Bool:
    """True or False; the texts true/false, on/off and yes/no in any case. 1 and 0 are not booleans."""

    def parse(self, raw: Any) -> bool:
        if isinstance(raw, bool):
            return raw
        raw = _unbracketed(raw)
        if isinstance(raw, str) and raw.lower() in _BOOLEANS:
            return _BOOLEANS[raw.lower()]
        raise ValueError

    def __str__(self) -> str:
        return "true or false (or on/off, yes/no)"


@dataclass(frozen=True)
class Int:
    """An integer in low..high, either end open when None. A bool is not an integer, 10.0 is not either."""

    low: int | None = None
    high: int | None = None

    def parse(self, raw: Any) -> int:
        if isinstance(raw, str) and _INTEGER.fullmatch(raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError
        if (self.low is not None and raw < self.low) or (self.high is not None and raw > self.high):
            raise ValueError
        return raw

    def __str__(self) -> str:
        return "an integer" + _range_text(self.low, self.high)


@dataclass(frozen=True)
class Float:
    """A finite number, >= low or > above, and <= high; each is optional. Integers become floats."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def parse(self, raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise ValueError
        if isinstance(raw, str) and not _NUMBER.fullmatch(raw):
            raise ValueError
        try:
            value = float(raw)
        except OverflowError:
            raise ValueError from None
        if not math.isfinite(value) or (self.low is not None and value < self.low):
            raise ValueError
        if (self.high is not None and value > self.high) or (self.above is not None and value <= self.above):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "a finite number" + _range_text(self.low, self.high, self.above)


@dataclass(frozen=True)
class Str:
    """A text, or a path object; the lineage's brackets are taken off. "" passes where empty is True."""

    empty: bool = False

    def parse(self, raw: Any) -> str:
        if isinstance(raw, int) and not isinstance(raw, bool):
            raw = str(raw)
        if isinstance(raw, os.PathLike):
            raw = os.fspath(raw)
        if not isinstance(raw, str):
            raise ValueError
        raw = _unbracketed(raw)
        if raw in _NULLS or not (self.empty or raw.strip()):
            raise ValueError
        return raw

    def __str__(self) -> str:
        return 'a string ("" for none)' if self.empty else "a string that is not empty"


@dataclass(frozen=True)
class Choice:
    """One of a few texts, spelled exactly."""

    choices: tuple[str, ...]

    def parse(self, raw: Any) -> str:
        if isinstance(raw, bool):  # `NECK: no`, read by someone else's YAML reader
            spellings = [text for text, value in _BOOLEANS.items() if value is raw and text in self.choices]
            raw = spellings[0] if len(spellings) == 1 else raw
        if not isinstance(raw, str):
            raise ValueError
        value = Str().parse(raw)
        if value not in self.choices:
            folded = {choice.lower(): choice for choice in self.choices}
            near = difflib.get_close_matches(value.lower(), folded, n=1)
            raise ValueError(f"did you mean {folded[near[0]]}?" if near else "")
        return value

    def __str__(self) -> str:
        return " | ".join(self.choices)


@dataclass(frozen=True)
class OrAuto:
    """What another rule takes, or the text auto."""

    rule: Any

    def parse(self, raw: Any) -> Any:
        text = _unbracketed(raw)
        return text if isinstance(text, str) and text == "auto" else self.rule.parse(raw)

    def __str__(self) -> str:
        return f"auto, or {self.rule}"


@dataclass(frozen=True)
class DeviceIds:
    """CUDA device numbers as one text: '0', '0,1'."""

    def parse(self, raw: Any) -> str:
        value = re.sub(r"\s", "", Str().parse(raw))
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", value):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "device numbers such as 0 or 0,1"


@dataclass(frozen=True)
class NamedShare:
    """A name and a number > 0 as one text, 'name:2.5'."""

    def parse(self, raw: Any) -> str:
        name, colon, share = Str().parse(raw).rpartition(":")
        if not colon or not name.strip():
            raise ValueError
        Float(above=0).parse(share.strip())
        return f"{name.strip()}:{share.strip()}"

    def __str__(self) -> str:
        return "a name and a number > 0, such as train_2019_cs:2.5"


def _items(raw: Any) -> list:
    """The items of a list, a tuple, or of a text in () or [] such as "(256, 128)"; quotes of items are taken off."""
    if isinstance(raw, (list, tuple)):
        return list(raw)
    if not isinstance(raw, str) or raw.strip()[:1] + raw.strip()[-1:] not in ("()", "[]"):
        raise ValueError
    inner = raw.strip()[1:-1].strip().removesuffix(",")
    return [re.sub(r"^(['\"])(.*)\1$", r"\2", item.strip()) for item in inner.split(",")] if inner else []


@dataclass(frozen=True)
class ListOf:
    """A list of any length (0, too) whose items keep one rule."""

    item: Any
    increasing: bool = False
    unique: bool = False

    def parse(self, raw: Any) -> list:
        value = [self.item.parse(item) for item in _items(raw)]
        # Strictly: the same step twice would be one step too few or one too many.
        if self.increasing and any(left >= right for left, right in itertools.pairwise(value)):
            raise ValueError("they must increase")
        if self.unique and len(set(value)) < len(value):
            raise ValueError("one is there twice")
        return value

    def __str__(self) -> str:
        return f"a list, each item {self.item}"


@dataclass(frozen=True)
class Row:
    """A list of fixed length whose items have a name and a rule each."""

    items: tuple[tuple[str, Any], ...]

    def parse(self, raw: Any) -> list:
        values = _items(raw)
        if len(values) != len(self.items):
            raise ValueError(f"{len(values)} items")
        return [rule.parse(value) for (_, rule), value in zip(self.items, values, strict=True)]

    def __str__(self) -> str:
        names = ", ".join(name for name, _ in self.items)
        rules = dict.fromkeys(str(rule) for _, rule in self.items)
        if len(rules) == 1:
            return f"[{names}], each {next(iter(rules))}"
        return f"[{names}]: " + ", ".join(f"{name} {rule}" for name, rule in self.items)


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

Values = Mapping[str, Any]


def _check_pk_batches(v: Values) -> Iterator[str]:
    """A P x K batch has at least two identities with at least two images each, and no remainder."""
    if "triplet" not in v["DATALOADER.SAMPLER"]:
        return
    batch, instances = v["SOLVER.IMS_PER_BATCH"], v["DATALOADER.NUM_INSTANCE"]
    if instances < 2:
        yield (f"DATALOADER.NUM_INSTANCE={instances} leaves no positive pairs for DATALOADER.SAMPLER="
               f"{v['DATALOADER.SAMPLER']}; use 2 or more")
        return
    lower = batch // instances * instances
    if batch < 2 * instances:
        yield (f"SOLVER.IMS_PER_BATCH={batch} holds fewer than 2 identities of DATALOADER.NUM_INSTANCE={instances}"
               f" images; use {2 * instances} or more")
    elif lower != batch:
        yield (f"SOLVER.IMS_PER_BATCH={batch} is not divisible by DATALOADER.NUM_INSTANCE={instances}; "
               f"use {lower} or {lower + instances}")


def _check_balance(v: Values) -> Iterator[str]:
    """Sets are balanced by their identities in P x K batches, and a set has one share."""
    if v["DATALOADER.BALANCE_SETS"] and "triplet" not in v["DATALOADER.SAMPLER"]:
        yield (f"DATALOADER.BALANCE_SETS=True chooses identities, but DATALOADER.SAMPLER={v['DATALOADER.SAMPLER']} "
               "shuffles images; use softmax_triplet or triplet, or False")
    names = [text.rsplit(":", 1)[0] for text in v["DATALOADER.SET_SHARES"]]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"DATALOADER.SET_SHARES: {name} has {names.count(name)} shares; use one"


def _check_micro_batches(v: Values) -> Iterator[str]:
    """A batch is made of equal micro-batches, and each of those of whole groups of an identity, two at least."""
    batch, parts = v["SOLVER.IMS_PER_BATCH"], v["SOLVER.ACCUMULATION_STEPS"]
    grouped = "triplet" in v["DATALOADER.SAMPLER"]
    unit = parts * (v["DATALOADER.NUM_INSTANCE"] if grouped else 1)
    of = f" of whole groups of DATALOADER.NUM_INSTANCE={v['DATALOADER.NUM_INSTANCE']}" if grouped else ""
    least = 2 * unit
    if parts == 1:
        return
    if batch < least:
        yield (f"SOLVER.ACCUMULATION_STEPS={parts} leaves fewer than 2 {'identities' if grouped else 'images'} of "
               f"SOLVER.IMS_PER_BATCH={batch} for a micro-batch; use a batch of {least} or more")
    elif batch % unit:
        lower = batch // unit * unit
        yield (f"SOLVER.IMS_PER_BATCH={batch} is not divisible into SOLVER.ACCUMULATION_STEPS={parts} "
               f"micro-batches{of}; use {lower} or {lower + unit}")


def _check_training(v: Values) -> Iterator[str]:
    """Keys of the engine that cannot go together."""
    if v["SOLVER.AMP_BACKEND"] == "apex" and v["SOLVER.AMP_DTYPE"] == "bfloat16":
        yield "SOLVER.AMP_DTYPE=bfloat16: SOLVER.AMP_BACKEND=apex computes in float16 only; use torch"
    if v["MODEL.SYNC_BN"] and v["MODEL.DEVICE"] == "cpu":
        yield "MODEL.SYNC_BN=True: torch's synchronised batch norm runs on CUDA devices only, not with MODEL.DEVICE=cpu"
    if v["MODEL.FREEZE_EPOCHS"] >= v["SOLVER.MAX_EPOCHS"]:
        yield (f"MODEL.FREEZE_EPOCHS={v['MODEL.FREEZE_EPOCHS']} leaves no epoch of SOLVER.MAX_EPOCHS="
               f"{v['SOLVER.MAX_EPOCHS']} for the backbone; use fewer, or MODEL.FROZEN to freeze it for good")
    if v["SOLVER.EMA_DECAY"] == 1:
        yield "SOLVER.EMA_DECAY=1.0 never takes in a weight; use less, such as 0.999, or 0 for no average"


def _check_center(v: Values) -> Iterator[str]:
    """The two switches of the center loss agree, and its weight is not zero where it is used."""
    has_center = "center" in v["MODEL.METRIC_LOSS_TYPE"]
    if v["MODEL.IF_WITH_CENTER"] and not has_center:
        yield (f"MODEL.IF_WITH_CENTER=True contradicts MODEL.METRIC_LOSS_TYPE={v['MODEL.METRIC_LOSS_TYPE']}; "
               "use center or triplet_center, or IF_WITH_CENTER False")
    if has_center and "triplet" in v["DATALOADER.SAMPLER"] and v["SOLVER.CENTER_LOSS_WEIGHT"] == 0:
        yield (f"SOLVER.CENTER_LOSS_WEIGHT=0.0 switches off the center loss that MODEL.METRIC_LOSS_TYPE="
               f"{v['MODEL.METRIC_LOSS_TYPE']} asks for; use a weight > 0, or triplet")
    if v["DATALOADER.SAMPLER"] == "triplet" and v["MODEL.METRIC_LOSS_TYPE"] == "center":
        yield ("DATALOADER.SAMPLER=triplet with MODEL.METRIC_LOSS_TYPE=center: a center loss alone draws all features "
               "to one point; use SAMPLER softmax_triplet, or METRIC_LOSS_TYPE triplet_center")


def _check_parts(v: Values) -> Iterator[str]:
    """Part heads learn from ID losses, and what is tested must have been trained."""
    if not v["MODEL.IF_USE_PCB"]:
        if v["MODEL.PCB_RPP"]:
            yield "MODEL.PCB_RPP=True refines the parts of MODEL.IF_USE_PCB, which is False; use True there"
        return
    if v["DATALOADER.SAMPLER"] == "triplet":
        yield ("MODEL.IF_USE_PCB=True with DATALOADER.SAMPLER=triplet: part heads are trained by ID losses alone; use "
               "softmax_triplet or softmax")
    if not v["MODEL.MERGE_PCB_FEAT"]:
        if v["TEST.USE_PCB_MERGE_FEAT"] and not v["TEST.PCB_GLOBAL_FEAT_ENSEMBLE"]:
            yield ("TEST.USE_PCB_MERGE_FEAT=True tests the merged parts, which MODEL.MERGE_PCB_FEAT=False does not "
                   "train; set one of them to the other")
        if v["TEST.PCB_PART_FEAT"] == "weighted":
            yield ("TEST.PCB_PART_FEAT=weighted needs the gates, which MODEL.MERGE_PCB_FEAT=False does not train; "
                   "use plain")


def _check_pooling(v: Values) -> Iterator[str]:
    if v["MODEL.GEM_LEARN_P"] and v["MODEL.POOLING_METHOD"] != "GeM":
        yield (f"MODEL.GEM_LEARN_P=True has no exponent to learn with MODEL.POOLING_METHOD="
               f"{v['MODEL.POOLING_METHOD']}; use GeM")


def _check_cosine_schedule(v: Values) -> Iterator[str]:
    """The cosine runs over the epochs after the warm-up, downwards."""
    if v["SOLVER.LR_SCHEDULER"] != "cosine":
        return
    if v["SOLVER.WARMUP_EPOCHS"] >= v["SOLVER.MAX_EPOCHS"]:
        yield (f"SOLVER.WARMUP_EPOCHS={v['SOLVER.WARMUP_EPOCHS']} leaves no epoch for the cosine of "
               f"SOLVER.MAX_EPOCHS={v['SOLVER.MAX_EPOCHS']}; use fewer")
    if v["SOLVER.MIN_LR"] > v["SOLVER.BASE_LR"]:
        yield (f"SOLVER.MIN_LR={v['SOLVER.MIN_LR']} is above SOLVER.BASE_LR={v['SOLVER.BASE_LR']}; "
               "the cosine falls from BASE_LR to MIN_LR")


def _check_optimizer(v: Values) -> Iterator[str]:
    """Switches of one optimiser are not given to another, which would ignore them."""
    name = v["SOLVER.OPTIMIZER_NAME"]
    if v["SOLVER.NESTEROV"] and name != "SGD":
        yield f"SOLVER.NESTEROV=True: SOLVER.OPTIMIZER_NAME={name} has no Nesterov momentum; use SGD"
    if v["SOLVER.NESTEROV"] and v["SOLVER.MOMENTUM"] == 0:
        yield "SOLVER.NESTEROV=True needs SOLVER.MOMENTUM > 0"
    if v["SOLVER.GRADIENT_CENTRALIZATION"] and name != "Ranger":
        yield f"SOLVER.GRADIENT_CENTRALIZATION=True: SOLVER.OPTIMIZER_NAME={name} does not do it; use Ranger"


def _check_re_ranking(v: Values) -> Iterator[str]:
    """Query expansion averages over the first k2 of the k1 neighbours and the image itself."""
    k1, k2, _ = v["TEST.RE_RANKING_PARAMETER"]
    if v["TEST.RE_RANKING"] and k2 > k1 + 1:
        yield (f"TEST.RE_RANKING_PARAMETER: k2={k2} is above k1+1={k1 + 1}, the image and its k1 neighbours; "
               "use a smaller k2")


def _check_expansion(v: Values) -> Iterator[str]:
    """An average is a direction: its length says how well its features agree, not what they look like."""
    for key in ("TEST.QUERY_EXPANSION", "TEST.DATABASE_AUGMENTATION"):
        if v[key] and not v["TEST.FEAT_NORM"]:
            yield (f"{key}={v[key]} makes features of length 1, which cannot be compared with the others' own lengths "
                   "under TEST.FEAT_NORM=False; use True there")


def _check_padding(v: Values) -> Iterator[str]:
    height, width = v["INPUT.SIZE_TRAIN"]
    if v["INPUT.PADDING"] >= min(height, width):
        yield (f"INPUT.PADDING={v['INPUT.PADDING']} is not smaller than INPUT.SIZE_TRAIN=[{height}, {width}]: "
               "a crop could miss the image; use less")


# The largest value of a distance of pseudo-labelling, as it is said.
_LARGEST = {"angle": (math.pi, "pi, the largest angle (it is in radians)"), "cosine": (2.0, "2, the largest 1 - cos"),
            "re_ranked": (1.0, "1, the largest re-ranked distance"), "euclidean": (math.inf, "")}


def _check_pseudo_labels(v: Values) -> Iterator[str]:
    """A threshold beyond its distance's range takes every image; k2 as in re-ranking."""
    clusters, threshold = v["UDA.METHOD"] != "nearest_query", v["UDA.THRESHOLD"]
    key = "UDA.THRESHOLD" if threshold or clusters or v["UDA.DISTANCE"] != "angle" else "MODEL.THRESH"
    if clusters and threshold >= 1:
        yield (f"UDA.THRESHOLD={threshold} with UDA.METHOD={v['UDA.METHOD']}: 1 is the Jaccard distance of images that "
               "share no neighbour; use less")
    elif not clusters and v[key] > _LARGEST[v["UDA.DISTANCE"]][0]:
        yield f"{key}={v[key]} is above {_LARGEST[v['UDA.DISTANCE']][1]}: every image would be taken; use less"
    k1, k2, _ = v["UDA.RE_RANKING_PARAMETER"]
    if k2 > k1 + 1:
        yield (f"UDA.RE_RANKING_PARAMETER: k2={k2} is above k1+1={k1 + 1}, the image and its k1 neighbours; "
               "use a smaller k2")


def _check_validation(v: Values) -> Iterator[str]:
    """An evaluation measures on one thing."""
    if v["DATASETS.VALIDATION"] and v["DATASETS.TEST_NAMES"]:
        yield (f"DATASETS.TEST_NAMES={v['DATASETS.TEST_NAMES']} is not measured on while DATASETS.VALIDATION="
               f"{v['DATASETS.VALIDATION']} is set; set one of them to ''")


CHECKS: tuple[Callable[[Values], Iterator[str]], ...] = (
    _check_pk_batches, _check_balance, _check_micro_batches, _check_training, _check_center, _check_parts,
    _check_pooling, _check_cosine_schedule, _check_optimizer, _check_re_ranking, _check_expansion, _check_padding,
    _check_validation, _check_pseudo_labels,
)


def cross_problems(values: Values) -> list[str]:
    """What does not fit together among the values: a message each.

    Args:
        values: {dotted key: value}, each as `coerce` returns it. A check that needs a key that is not there (its
            value was refused) is left out.
    """
    problems = []
    for check in CHECKS:
        try:
            problems.extend(check(values))
        except KeyError as missing:
            if missing.args[0] not in RULES:
                raise  # a check misspells a key: our own mistake
    return problems


def remarks(values: Values, given: Sequence[str]) -> list[str]:
    """What works but is probably not meant: one text for all obsolete keys, one for each value that nothing reads.

    Args:
        values: {dotted key: value} for every key.
        given: the keys that a file or a command line set.
    """
    found = []
    obsolete = [f"{key} ({reason})" for key, reason in OBSOLETE.items() if key in given]
    if obsolete:
        found.append("obsolete keys, without effect: " + "; ".join(obsolete))
    names = values["DATASETS.NAMES"]
    if values["DATASETS.TRAIN_SETS"] and "naic" not in names.replace(" ", "").split("+"):
        found.append(f"DATASETS.TRAIN_SETS={values['DATASETS.TRAIN_SETS']} is about naic, which is not among "
                     f"DATASETS.NAMES={names}")
    epochs = values["SOLVER.MAX_EPOCHS"]
    late = [step for step in values["SOLVER.STEPS"] if step >= epochs]
    if late and values["SOLVER.LR_SCHEDULER"] == "multistep":
        found.append(f"SOLVER.STEPS: {late} never come, SOLVER.MAX_EPOCHS is {epochs}")
    if values["TEST.EXPANSION_ALPHA"] and not (values["TEST.QUERY_EXPANSION"] or values["TEST.DATABASE_AUGMENTATION"]):
        found.append(f"TEST.EXPANSION_ALPHA={values['TEST.EXPANSION_ALPHA']} weighs nothing: TEST.QUERY_EXPANSION and "
                     "TEST.DATABASE_AUGMENTATION are 0")
    if values["DATALOADER.SET_SHARES"] and not values["DATALOADER.BALANCE_SETS"]:
        found.append(f"DATALOADER.SET_SHARES={values['DATALOADER.SET_SHARES']} is not read: "
                     "DATALOADER.BALANCE_SETS is False")
    if "MODEL.THRESH" in given and values["MODEL.THRESH"]:
        nearest, distance = values["UDA.METHOD"] == "nearest_query", values["UDA.DISTANCE"]
        if not nearest or distance != "angle" or values["UDA.THRESHOLD"]:
            found.append(f"MODEL.THRESH={values['MODEL.THRESH']} is not read: UDA.THRESHOLD is the threshold of "
                         f"UDA.METHOD={values['UDA.METHOD']}" + f" with UDA.DISTANCE={distance}" * nearest)
    return found
