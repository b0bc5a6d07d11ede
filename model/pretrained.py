"""Starting weights from a file: a strict copy, with a report of what was and was not there."""
from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from utils.checkpoint import read_checkpoint

__all__ = [
    "BACKBONE_HEADS", "MODEL_HEADS", "LoadReport", "load_pretrained", "load_weights", "read_checkpoint",
    "unwrap_state_dict",
]

logger = logging.getLogger(__name__)

# Keys that start like this belong to the class count of whoever trained the file. Beware of a search for "fc"
# anywhere in a key: the gates of SE blocks are named so.
BACKBONE_HEADS = ("fc.", "classifier.")
MODEL_HEADS = ("classifier",)
_WRAPPERS = ("state_dict", "model", "params", "model_state_dict")
_SHOWN = 10


class LoadReport(NamedTuple):
    """The names of parameters and buffers, by what happened to them."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the module
    mismatched: tuple[str, ...]  # in both, with different shapes

    def __str__(self) -> str:
        rest = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.mismatched}
        return "; ".join([f"{len(self.loaded)} weights loaded", *_counted(rest)])


def load_pretrained(
    module: nn.Module,
    path: str | Path,
    *,
    skip: Iterable[str] = BACKBONE_HEADS,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Read a file and copy its weights into `module`: `load_weights` for a path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or a pickle of more than tensors; or as load_weights.
    """
    return load_weights(module, read_checkpoint(path), path, skip=skip, allow_missing=allow_missing,
                        allow_unexpected=allow_unexpected)


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

    The dict of weights may be wrapped as {"state_dict" | "model" | "params": ...}, and its keys may start with
    `module.`. Missing `num_batches_tracked` counters (files older than 2018) are no fault.

    Args:
        checkpoint: what `read_checkpoint` gave.
        path: where it came from, for messages.
        skip: keys that start with one of these are left alone, in the file and in the module.
        allow_missing, allow_unexpected: shell patterns (`layer3.*.IN.*`) of keys that may be so.
    Returns:
        what was loaded, and what of the allowed was not.
    Raises:
        ValueError: weights are missing, unexpected, or of another shape: the first ten of each are named, with
            advice where the cause is known.
    """
    skip = tuple(skip)
    found = {key: value for key, value in unwrap_state_dict(checkpoint, path).items() if not key.startswith(skip)}
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(skip)}
    shared = [key for key in own if key in found]
    fitting = {key: found[key] for key in shared if found[key].shape == own[key].shape}
    report = LoadReport(
        loaded=tuple(fitting),
        missing=tuple(k for k in own if k not in found and not k.endswith("num_batches_tracked")),
        unexpected=tuple(k for k in found if k not in own),
        mismatched=tuple(k for k in shared if k not in fitting),
    )
    faults = {
        "missing": _not_allowed(report.missing, allow_missing),
        "unexpected": _not_allowed(report.unexpected, allow_unexpected),
        "misshapen": [f"{k} {list(found[k].shape)}, here {list(own[k].shape)}" for k in report.mismatched],
    }
    if any(faults.values()):
        lines = [f"{path}: does not fit the model ({len(fitting)} of {len(own)} weights do)", *_counted(faults)]
        raise ValueError("\n  ".join(lines + _advice(report)))
    module.load_state_dict(fitting, strict=False)
    logger.info("%s: %s", path, report)
    return report


def unwrap_state_dict(data: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The dict of weights inside a checkpoint, without wrappers and without a leading `module.`.

    Raises:
        ValueError: there are no tensors where weights should be.
    """
    while True:
        inner = next((data[key] for key in _WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            break
        data = inner
    if not data or not all(isinstance(value, Tensor) for value in data.values()):
        held = _first(str(key) for key in data) or "nothing"
        raise ValueError(f"{path}: no dict of weights found; it holds {held}")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _not_allowed(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else "")


def _counted(lists: Mapping[str, Iterable[str]]) -> list[str]:
    """`3 missing: a, b, c` for each list that is not empty."""
    return [f"{len(tuple(names))} {kind}: {_first(names)}" for kind, names in lists.items() if names]


# (list of the report, pattern of a key in it, what to do); the first that applies is said.
_ADVICE = (
    ("unexpected", "base.*", "the file holds a whole re-ID model, not a backbone: set MODEL.PRETRAIN_CHOICE to self"),
    ("missing", "base.conv1.*", "the file holds no whole re-ID model; for a backbone's ImageNet weights set "
     "MODEL.PRETRAIN_CHOICE to imagenet"),
    ("unexpected", "*layer?.*.bn1.IN.*", "the file is of an IBN-a network: choose a MODEL.NAME that has _ibn_a"),
    ("unexpected", "*layer3.*.IN.*", "layer3 ends in an instance norm: the file comes from the lineage's own IBN-b, "
     "which differs from the published one; this backbone has no such layer"),
    ("unexpected", "*layer?.*.IN.*", "the file is of an IBN-b network: choose a MODEL.NAME that has _ibn_b"),
    ("missing", "*layer?.*.IN.*", "the file is of a network without instance norms: choose a MODEL.NAME without ibn"),
)


def _advice(report: LoadReport) -> list[str]:
    """What to do about a cause that we know: at most one sentence."""
    whole = any(key.startswith("base.") for key in report.loaded)
    for field, pattern, sentence in _ADVICE:
        if pattern.startswith("base.") and whole:
            continue
        if any(fnmatch.fnmatchcase(key, pattern) for key in getattr(report, field)):
            return [sentence]
    return []
