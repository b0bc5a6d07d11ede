"""What the result of a stage depends on: the values of the config that matter to it, and the data by what it is.

A training does not depend on TEST.*, on paths, on how often it logs or on how many processes read pictures; comments,
`_BASE_` and the order of a YAML file do not count, because values are compared. Data is who is on which picture, and
every picture's name and size, wherever it lies.
"""
from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from configs import flatten_cfg
from configs.defaults import OBSOLETE
from processor.stages.earlier import digests
from processor.stages.stage import Facts
from utils.files import sha256_of
from utils.logger import silence
from utils.packages import weight_file

# Keys of a test that are paths, or change how fast it is and not what comes out.
_NOT_IN_A_RESULT = ("TEST.WEIGHT", "TEST.IMS_PER_BATCH", "TEST.MEMORY_BUDGET", "TEST.SEARCH_PRECISION")
_TEST_KEYS = ("TEST.", "INPUT.SIZE_TEST", "INPUT.PIXEL_", "SOLVER.FP16", "SOLVER.AMP_DTYPE")
_TRAINING_DATA = ("DATASETS.HARD_AUG", "DATASETS.CHANNEL_SHUFFLE")  # the other keys of DATASETS say where data lies


def training_settings(cfg) -> Facts:
    """The values of the config that the weights depend on, by key."""
    from processor.training.checkpoints import shapes_weights  # torch takes seconds to import

    return {key: value for key, value in flatten_cfg(cfg).items()
            if shapes_weights(key) and key not in OBSOLETE
            and (not key.startswith("DATASETS.") or key in _TRAINING_DATA)}


def training_data(cfg) -> Facts:
    """What is trained on, and the weights that a training starts from.

    Raises:
        ValueError, OSError: as a training would, before its first step.
    """
    start = weight_file(cfg.MODEL.PRETRAIN_PATH) if cfg.MODEL.PRETRAIN_CHOICE != "none" else ""
    weights = sha256_of(start) if start and os.path.isfile(start) else None
    return {"MODEL.PRETRAIN_CHOICE": cfg.MODEL.PRETRAIN_CHOICE, "the file of MODEL.PRETRAIN_PATH": weights,
            "the teacher of SOLVER.DISTILL_FROM": _teacher_of(cfg.SOLVER.DISTILL_FROM), **training_pictures(cfg)}


def _teacher_of(path: str) -> str:
    """The digest of a teacher's weights; "none" without one."""
    if not path:
        return "none"
    return sha256_of(weight_file(path)) if os.path.isfile(weight_file(path)) else "missing"


def training_pictures(cfg) -> Facts:
    """What is trained on; raises as `training_data`."""
    labels, pictures, _ = _describe_data(_data_keys(cfg), True)
    return {"the list of training pictures": labels, "the files of training pictures": pictures}


def count_people(cfg) -> int:
    """Identities that are trained on; raises as `training_data`."""
    return _describe_data(_data_keys(cfg), True)[2]


def test_settings(cfg) -> Facts:
    """The values of the config that features and rankings depend on, beside the checkpoint; by key."""
    from processor.training.checkpoints import shapes_weights

    return {key: value for key, value in flatten_cfg(cfg).items()
            if key not in OBSOLETE and key not in _NOT_IN_A_RESULT
            and (key.startswith(_TEST_KEYS) or (key.startswith("MODEL.") and shapes_weights(key)))}


def test_data(cfg, checkpoint: Path, lists: Iterable[Path]) -> Facts:
    """The checkpoint and what it is tested on; lists: files whose bytes count, too.

    Raises:
        ValueError, OSError: as a test would.
    """
    labels, pictures, _ = _describe_data(_data_keys(cfg), False)
    return {"the checkpoint": sha256_of(checkpoint) if checkpoint.is_file() else "missing",
            "the lists": digests(*lists), "the list of test pictures": labels, "the files of test pictures": pictures}


def listing(folders: Iterable[Path]) -> str:
    """Number and digest of the pictures of folders, by name and size."""
    from datasets.files.images import list_images

    return _digest(f"{folder.name}/{name} {_size(folder / name)}" for folder in folders for name in list_images(folder))


def forget() -> None:
    """Read the data anew next time: a stage has written."""
    _describe_data.cache_clear()


# ------------------------------------------------------------------ the data
def _data_keys(cfg) -> tuple:
    """What `_describe_data` reads of a config, to be hashed."""
    values = {**{f"DATASETS.{key}": value for key, value in cfg.DATASETS.items()},
              "DATALOADER.ON_BAD_IMAGE": cfg.DATALOADER.ON_BAD_IMAGE, "OUTPUT_DIR": cfg.OUTPUT_DIR}
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values.items())


@functools.lru_cache(maxsize=16)
def _describe_data(keys: tuple, train: bool) -> tuple[str, str, int]:
    """Who is on which picture, and the pictures' files, a number and a digest each, of the training or the test part;
    and how many identities are trained on."""
    from configs import change_cfg
    from configs.defaults import get_cfg_defaults
    from datasets.make_dataloader import make_sets

    cfg = change_cfg(get_cfg_defaults(), {key: list(value) if isinstance(value, tuple) else value
                                          for key, value in keys})
    with silence("datasets"):  # the stage that reads the data for its work says what it finds
        data, files, _ = make_sets(cfg).load(train=train, test=not train)
    sides = [("train", data.train, data.pid_names)] if train else [
        (f"{name} {side} {pair.drop_same_camera}", getattr(pair, side), pair.pid_names if pair.has_truth else [])
        for name, pair in data.eval_sets.items() for side in ("query", "gallery")]
    labels, sizes = [], {}
    for side, samples, names in sides:
        for sample in samples:
            name = names[sample.pid] if 0 <= sample.pid < len(names) else sample.pid
            labels.append(f"{side} {sample.key} {name} {sample.camid}")
            sizes[sample.key] = None
    pictures = _digest(f"{key} {_size(files.path(key))}" for key in sorted(sizes))
    return _digest(labels), pictures, data.num_classes


def _size(path: str | os.PathLike) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # a packed image's file may be gone


def _digest(lines: Iterable[str]) -> str:
    """`COUNT DIGEST` of lines."""
    count, digest = 0, hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
        count += 1
    return f"{count:,} ({digest.hexdigest()[:16]})"
