"""A validation split: identities of the training sets that are kept for measuring, recorded in one JSON file.

    {"what": "validation split", "format": 1, "settings": {"sets": "naic", "seed": 0, …},
     "left_out": {"queried": [NAME, …], "distractors": [NAME, …]},
     "evaluations": {"green": {"query": {KEY: NAME, …}, "gallery": {KEY: NAME, …}}, "normal": …},
     "cameras": {KEY: CAMID, …}}

NAME is an identity's stable name, KEY an image's; `cameras` holds those that are known. The images stay where they are.
A training that uses the file leaves all images of these identities out, whether the file lists them or not, and whoever
measures with it measures on the same images, whatever machine, seed or number of training sets.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets.bases import UNKNOWN_CAMID, QueryGallery, ReIDData, format_names
from datasets.files.images import is_safe_path
from datasets.sets.numbering import number_evaluation, number_training
from utils.files import read_json, write_json

VALIDATION = "validation"
WHAT = "validation split"
FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationSplit:
    """Identities that are not trained on, and what is measured with them.

    Attributes:
        queried: names of the identities with queries, sorted.
        distractors: names of those that stand in the gallery only, sorted.
        eval_sets: name -> evaluation; pids are positions in `pid_names`.
        settings: what it was made from, for people.
    """

    queried: Sequence[str]
    distractors: Sequence[str]
    eval_sets: dict[str, QueryGallery]
    settings: Mapping[str, Any]

    @property
    def pid_names(self) -> list[str]:
        """All identities that are left out of training."""
        return sorted([*self.queried, *self.distractors])


def evaluation(query: Mapping[str, str], gallery: Mapping[str, str], cameras: Mapping[str, int],
               pid_names: list[str]) -> QueryGallery:
    """The evaluation of images {key: identity}; see `number_evaluation`."""
    return number_evaluation(*([(key, name, cameras.get(key, UNKNOWN_CAMID)) for key, name in side.items()]
                               for side in (query, gallery)), pid_names)


def leave_out(data: ReIDData, split: ValidationSplit) -> ReIDData:
    """The training data without the split's identities; class indices close up.

    Raises:
        ValueError: nothing is left to train on.
    """
    left_out = set(split.pid_names)
    kept = number_training([(key, data.pid_names[pid], *seen_by) for key, pid, *seen_by in data.train
                            if data.pid_names[pid] not in left_out])
    if not kept.num_classes:
        raise ValueError("the validation split leaves no identity to train on")
    logger.info("validation split: %d of its %d identities are in the training sets and left out, with %d images",
                data.num_classes - kept.num_classes, len(left_out), len(data.train) - len(kept.train))
    if kept.num_classes == data.num_classes:
        logger.warning("validation split: the training sets have none of its identities; was it made from others?")
    return replace(kept, eval_sets=data.eval_sets)


# ------------------------------------------------------------------ the file
def write_split(path: str | os.PathLike, split: ValidationSplit) -> None:
    """Record a split; the file is a function of it, to the byte."""
    evaluations, cameras = {}, {}
    for name, pair in split.eval_sets.items():
        evaluations[name] = {part: {sample.key: pair.pid_names[sample.pid] for sample in getattr(pair, part)}
                             for part in ("query", "gallery")}
        cameras |= {sample.key: sample.camid for sample in (*pair.query, *pair.gallery)
                    if sample.camid != UNKNOWN_CAMID}
    write_json(path, {
        "what": WHAT, "format": FORMAT, "settings": dict(split.settings),
        "left_out": {"queried": list(split.queried), "distractors": list(split.distractors)},
        "evaluations": evaluations, "cameras": cameras})


def read_split(path: str | os.PathLike) -> ValidationSplit:
    """Read a recorded split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no validation split, or damaged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no validation split {path} (DATASETS.VALIDATION); make it with "
                                "tools/split_validation.py, or take the file that others measure with")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("what") != WHAT:
        raise ValueError(f"{path}: not a file of tools/split_validation.py")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: format {content.get('format')}, this version reads {FORMAT}")
    try:
        return _parse(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); make it anew with tools/split_validation.py") from error


def _parse(content: dict[str, Any]) -> ValidationSplit:
    left_out, cameras = content["left_out"], dict(content["cameras"])
    queried, distractors = list(left_out["queried"]), list(left_out["distractors"])
    pid_names = sorted({*queried, *distractors})
    eval_sets = {name: evaluation(dict(sides["query"]), dict(sides["gallery"]), cameras, pid_names)
                 for name, sides in content["evaluations"].items()}
    keys = [sample.key for pair in eval_sets.values() for sample in (*pair.query, *pair.gallery)]
    unsafe = [key for key in keys if not is_safe_path(key)]
    if unsafe:
        raise ValueError(f"images outside their sets' folders: {format_names(unsafe)}")
    if not all(isinstance(camid, int) and camid > 0 for camid in cameras.values()):
        raise ValueError("a camera is no number from 1")
    if not eval_sets or not all(pair.query and pair.gallery for pair in eval_sets.values()):
        raise ValueError("an evaluation without query or gallery")
    return ValidationSplit(queried, distractors, eval_sets, content["settings"])
