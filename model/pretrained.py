"""Starting weights from a file: a strict copy, with a report of what fitted and what did not."""
from __future__ import annotations

import fnmatch
import functools
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.backbones import BACKBONES, Backbone, build_backbone
from utils.checkpoint import read_checkpoint

logger = logging.getLogger(__name__)

# Keys that start like this belong to the class count of whoever trained the file. Beware of a search for "fc"
# anywhere in a key: the gates of SE blocks are named so, and OSNet's embedding is fc.0 and fc.1.
BACKBONE_HEADS = ("fc.weight", "fc.bias", "_fc.", "classifier.")
MODEL_HEADS = ("classifier.", "pcb.classifiers.", "joint.classifiers.", "base.fc.weight", "base.fc.bias", "base._fc.")
# The averaged weights (SOLVER.EMA_DECAY) before those of the last step: they are what is tested.
_WRAPPERS = ("ema", "state_dict_ema", "model_ema", "state_dict", "model", "params", "model_state_dict", "teacher",
             "student", "net", "network")
# What other tools put before a backbone's names, the one to take first: MoCo's and DINO's teachers, fast-reid, mmcv.
_PREFIXES = ("base.", "backbone.", "encoder_q.", "encoder.", "teacher.", "student.", "model.", "net.")
_NAMES_IN_MESSAGES = 10
# Names in whole models of the lineage, and ours. It had a batch norm, pcb.bn, that it never used.
_LINEAGE_NAMES = (
    (re.compile(r"pcb\.local_conv_list\.(\d)\.add_block\."), r"pcb.embeddings.\1."),
    (re.compile(r"pcb\.dy_weight(\d)\."), r"pcb.gates.\1."),
    (re.compile(r"pcb\.instance(\d)\."), r"pcb.classifiers.part\1."),
    (re.compile(r"pcb\.instance_merge\."), "pcb.classifiers.merged."),
    (re.compile(r"pcb\.local_conv\."), "pcb.local.0."),
    (re.compile(r"pcb\.feat_bn2d\."), "pcb.local.1."),
)
_LINEAGE_UNUSED = "pcb.bn."
_PARALLEL = re.compile(r"^(module\.)+")


class LoadReport(NamedTuple):
    """The names of parameters and buffers, by what happened to them."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the module
    mismatched: tuple[str, ...]  # in both, with different shapes

    def __str__(self) -> str:
        rest = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.mismatched}
        return "; ".join([f"{len(self.loaded)} weights loaded", *_describe(rest)])


def load_pretrained(module: nn.Module, path: str | Path, **options: Iterable[str]) -> LoadReport:
    """Read a file and copy its weights into `module`: `load_weights`, with its options, of a path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or a pickle of more than tensors; or as load_weights.
    """
    return load_weights(module, read_checkpoint(path), path, **options)


def load_weights(
    module: nn.Module,
    checkpoint: Mapping[str, Any],
    path: str | Path,
    *,
    skip: Iterable[str] = BACKBONE_HEADS,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Copy the weights of a checkpoint into `module`, all of them or, on an error, none.

    The dict of weights may be wrapped as {"state_dict" | "model" | "teacher" ...: ...}, and its keys may start with
    `module.`, once or more. If nothing of it fits as it is named, but does without a prefix that other tools use
    (`backbone.`, `encoder_q.`, ...), that prefix is taken off; what has another stays as it is. Missing
    `num_batches_tracked` counters (files older than 2018) are no fault.

    Args:
        checkpoint: what `read_checkpoint` gave.
        path: the file that it came from, for messages.
        skip: keys that start with one of these are left alone, in the file and in the module.
        allow_missing, allow_unexpected: shell patterns (`layer3.*.IN.*`) of keys that may be so.
    Returns:
        the names of what was loaded, and of what was not and was allowed not to be.
    Raises:
        ValueError: weights are missing, unexpected, or of another shape: the first ten of each are named, with
            advice if the cause is known.
    """
    skip = tuple(skip)
    source = _without_prefix(unwrap_state_dict(checkpoint, path), module.state_dict())
    source = {key: value for key, value in source.items() if not key.startswith(skip)}
    for name, part in module.named_modules():
        if isinstance(part, Backbone):
            source = part.fit(source, f"{name}." if name else "")
    target = {key: value for key, value in module.state_dict().items() if not key.startswith(skip)}
    shared = [key for key in target if key in source]
    fitting = {key: source[key] for key in shared if source[key].shape == target[key].shape}
    report = LoadReport(
        loaded=tuple(fitting),
        missing=tuple(k for k in target if k not in source and not k.endswith("num_batches_tracked")),
        unexpected=tuple(k for k in source if k not in target),
        mismatched=tuple(k for k in shared if k not in fitting),
    )
    faults = {
        "missing": _not_allowed(report.missing, allow_missing),
        "unexpected": _not_allowed(report.unexpected, allow_unexpected),
        "misshapen": [f"{k} {list(source[k].shape)}, here {list(target[k].shape)}" for k in report.mismatched],
    }
    if any(faults.values()):
        lines = [f"{path}: does not fit the model ({len(fitting)} of {len(target)} weights do)", *_describe(faults)]
        raise ValueError("\n  ".join(lines + _advise(report, source, target)))
    module.load_state_dict(fitting, strict=False)
    logger.info("%s: %s", path, report)
    return report


def unwrap_state_dict(data: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The dict of weights inside a checkpoint, without wrappers and without a leading `module.`, however often.

    Raises:
        ValueError: there are no tensors where weights should be.
    """
    while True:
        inner = next((data[key] for key in _WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            break
        data = inner
    if not data or not all(isinstance(value, Tensor) for value in data.values()):
        content = list_first(str(key) for key in data) or "nothing"
        raise ValueError(f"{path}: expected a dict of weights, it holds {content}")
    named = {_our_name(_PARALLEL.sub("", key)): value for key, value in data.items()}
    return {key: value for key, value in named.items() if not key.startswith(_LINEAGE_UNUSED)}


def _without_prefix(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the names of `target`: as they are, or without the prefix of _PREFIXES that makes most fit."""
    if any(key in target for key in source) or any(key.startswith("base.") for key in target):
        return dict(source)  # a whole model's names are ours or the lineage's
    prefixes = _PREFIXES[not all(key.startswith("base.") for key in source):]  # with a neck it is a whole model's file

    def fits(prefix: str) -> int:
        return sum(key.startswith(prefix) and key[len(prefix):] in target for key in source)

    best = max(prefixes, key=fits)
    if not fits(best):
        return dict(source)
    logger.info("the weights' names begin with %s, which is taken off", best)
    return {key.removeprefix(best): value for key, value in source.items()}


def _our_name(key: str) -> str:
    for pattern, ours in _LINEAGE_NAMES:
        key = pattern.sub(ours, key) if pattern.match(key) else key
    return key


def _not_allowed(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def list_first(names: Iterable[str]) -> str:
    """The first ten names, and how many more there are."""
    names, most = list(names), _NAMES_IN_MESSAGES
    return ", ".join(names[:most]) + (f", ... ({len(names) - most} more)" if len(names) > most else "")


def _describe(lists: Mapping[str, Iterable[str]]) -> list[str]:
    """`3 missing: a, b, c` for each list that is not empty."""
    return [f"{len(tuple(names))} {kind}: {list_first(names)}" for kind, names in lists.items() if names]


def identify(state: Mapping[str, Tensor], names: Iterable[str] = BACKBONES,
             flexible: Iterable[str] = ()) -> str | None:
    """The name of the backbone whose weights these are; None if no backbone has such.

    Args:
        state: a backbone's weights, or a whole model's under `base.`.
        names: the backbones that it may be; the first of them counts.
        flexible: regular expressions of the beginning of a backbone's weights that do not count.
    """
    shapes = _shapes_in(state, flexible)
    return next((name for name in names if _fixed(_shapes(name), flexible) == shapes), None)


def describe_nearest(state: Mapping[str, Tensor], names: Iterable[str], flexible: Iterable[str] = ()) -> str:
    """Which of these backbones has most of these weights, as `identify` takes them, and what is different."""
    names = list(names)
    built = [name for name in names if _shapes(name)]
    absent = [name for name in names if name not in built]
    missing = [f"a package is missing (python -m pip install -r requirements.txt), so that it was not compared with "
               f"{list_first(absent)}"] if absent else []
    if not built:
        return missing[0]
    shapes = _shapes_in(state, flexible)
    name = max(built, key=lambda name: len(shapes.items() & _shapes(name).items()))
    there = _fixed(_shapes(name), flexible)
    rest = {"missing": there.keys() - shapes.keys(), "unexpected": shapes.keys() - there.keys(),
            "misshapen": {key for key in there.keys() & shapes.keys() if there[key] != shapes[key]}}
    return "; ".join([f"the nearest is {name}", *_describe({kind: sorted(keys) for kind, keys in rest.items()}),
                      *missing])


def _shapes_in(state: Mapping[str, Tensor], flexible: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    inner = {key.removeprefix("base."): value for key, value in state.items() if key.startswith("base.")} or state
    shapes = {key: tuple(value.shape) for key, value in inner.items()
              if not key.startswith(BACKBONE_HEADS) and not key.endswith("num_batches_tracked")}
    return _fixed(shapes, flexible)


def _fixed(shapes: dict[str, tuple[int, ...]], flexible: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if not any(re.match(pattern, key) for pattern in flexible)}


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a backbone's weights without counters; {} if a package that it needs is not there."""
    try:
        with torch.device("meta"):
            state = build_backbone(name).state_dict()
    except ImportError:
        return {}
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


# (list of the report, pattern of a key in it, what to do); the message has the first that applies. All are about a
# whole re-ID model's file for a whole model.
_ADVICE = (
    ("missing", "pcb.embeddings.*", "the file has no part heads: set MODEL.IF_USE_PCB to False, or allow them to start "
     "anew with MODEL.PRETRAIN_ALLOW \"['pcb.*']\""),
    ("unexpected", "pcb.embeddings.*", "the file has part heads: set MODEL.IF_USE_PCB to True"),
    ("missing", "pcb.local.*", "it was trained without the local branch: set TEST.PCB_GLOBAL_FEAT_ENSEMBLE to False"),
    ("unexpected", "pcb.local.*", "it was trained with the local branch: set TEST.PCB_GLOBAL_FEAT_ENSEMBLE to True, or "
     "leave it out with MODEL.PRETRAIN_ALLOW \"['pcb.local.*']\""),
    ("missing", "reduction.*", "the file's feature is not reduced: set MODEL.EMBED_DIM to 0"),
    ("missing", "pcb.rpp.*", "the file has stripes instead of learned parts: allow these to start anew with "
     "MODEL.PRETRAIN_ALLOW \"['pcb.rpp.*']\", or set MODEL.PCB_RPP to False"),
)
_OTHER_REDUCTION = "the file's feature is reduced to {0} numbers: set MODEL.EMBED_DIM to {0}"
_LINEAGE_IBN_B = ("layer3 ends in an instance norm: the file comes from the lineage's own IBN-b: choose a MODEL.NAME "
                  "that ends in _ibn_b_naic")


def _advise(report: LoadReport, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """What to do about a cause that is known for certain: at most one sentence."""
    ours, theirs = (any(key.startswith("base.") for key in state) for state in (target, source))
    of_backbone = [key for key in (*report.missing, *report.unexpected, *report.mismatched)
                   if key.startswith("base.") or not (ours and theirs)]
    if of_backbone:
        name, wanted = identify(source), identify(target)
        other = f" and MODEL.NAME to {name}" if name != wanted else ""
        if name and theirs and not ours:
            return [f"the file holds a whole re-ID model, not a backbone: set MODEL.PRETRAIN_CHOICE to self{other}"]
        if name and ours and not theirs:
            return ["the file holds a backbone's weights, not a whole re-ID model: set MODEL.PRETRAIN_CHOICE to "
                    f"imagenet{other}"]
        if name:
            return [f"the file is of {name}: set MODEL.NAME to {name}"]
        if any(fnmatch.fnmatchcase(key, "*layer3.*.IN.*") for key in report.unexpected):
            return [_LINEAGE_IBN_B]
    reduction = source.get("reduction.linear.weight")
    if reduction is not None and target.get("reduction.linear.weight", reduction[:0]).shape != reduction.shape:
        return [_OTHER_REDUCTION.format(len(reduction))]
    for field, pattern, sentence in _ADVICE if ours and theirs else ():
        if any(fnmatch.fnmatchcase(key, pattern) for key in getattr(report, field)):
            return [sentence]
    return []
