"""What is made of a configured data set before a training: a validation split, a pack of its images."""
from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2

from datasets.bases import ReIDData, statistics
from datasets.files.images import is_inside
from datasets.files.pack_reader import PackedSource
from datasets.files.pack_writer import pack, verify
from datasets.make_dataloader import make_sets, packed_keys
from datasets.registry import parse_names
from datasets.validation.cut import SplitRequest, cut
from datasets.validation.split import write_split

logger = logging.getLogger(__name__)

PARTS = ("train", "test")  # of a pack


def make_validation(cfg, request: SplitRequest, output: str | os.PathLike, workers: int | None = None) -> str:
    """Cut a validation split from the training sets of a config and write it down; no image is copied or moved.

    Args:
        cfg: its DATASETS name the training sets; DATASETS.VALIDATION is not read.
        request: what to cut out.
        output: the JSON file, see datasets.validation.split.
        workers: processes that decode to tell the domains; None = one a core, eight at most.
    Returns:
        A table of what is in it.
    Raises:
        ValueError: the sets have too few identities for the request (how many fit), or cannot be read.
    """
    data, source = make_sets(cfg).load_labelled()
    settings = {"sets": cfg.DATASETS.NAMES, "train_sets": list(cfg.DATASETS.TRAIN_SETS), **asdict(request)}
    split = cut(data, source, request, settings, workers)
    write_split(output, split)
    return statistics(ReIDData(eval_sets=split.eval_sets))


def green_share(text: str | None, cfg) -> float | None:
    """`SplitRequest.green` from a command line.

    Args:
        text: a number, "none", or None = half if NAIC is among the config's sets.
    Raises:
        ValueError: it is none of these.
    """
    if text is None:
        return 0.5 if any(reference.kind == "naic" for reference in parse_names(cfg.DATASETS.NAMES)) else None
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--green {text}: expected a share in 0..1, or none") from None


def pack_set(cfg, folder: Path, decoded: bool, parts: Sequence[str] = PARTS, threads: int | None = None,
             force: bool = False) -> PackedSource:
    """Pack what the config trains and tests on; see `datasets.files.pack_writer.pack`.

    Args:
        cfg: the config tree.
        folder: where the pack goes.
        decoded: decode at INPUT.SIZE_TRAIN (without a training part INPUT.SIZE_TEST); False: the files as they are.
        parts: of PARTS. With both, a test folder that cannot be read is left out, as in training.
    Raises:
        ValueError: the data cannot be read, the two sizes differ, or the folder lies among the data.
    """
    data, files, reason = make_sets(cfg).load("train" in parts, "test" in parts)
    for root in files.roots:
        if is_inside(folder, root):
            raise ValueError(f"{folder} lies in the data folder {root}, where nothing is written; name another")
    logger.info("packing\n%s", statistics(data))
    if "test" in parts and reason:
        logger.warning("the test images are not packed: %s", reason)
    size = _size(cfg, bool(data.train), bool(data.eval_sets)) if decoded else None
    cv2.setNumThreads(0)  # an image a thread: OpenCV's own threads would fight with them over the cores
    return pack(files, packed_keys(data), folder, size, threads, force)


def _size(cfg, train: bool, test: bool) -> tuple[int, int]:
    """The one size at which images are decoded."""
    height, width = cfg.INPUT.SIZE_TRAIN if train else cfg.INPUT.SIZE_TEST
    if train and test and [height, width] != list(cfg.INPUT.SIZE_TEST):
        raise ValueError(f"INPUT.SIZE_TRAIN={cfg.INPUT.SIZE_TRAIN} and INPUT.SIZE_TEST={cfg.INPUT.SIZE_TEST} differ, "
                         "and a pack is decoded at one size; pack one part (--part), or the files as they are")
    return height, width


def verify_pack(folder: Path, cfg=None, threads: int | None = None) -> PackedSource:
    """Check every image's checksum and, with a config, that it is what its file gives; see `verify`."""
    packed = PackedSource(folder)
    cv2.setNumThreads(0)
    verify(packed, None if cfg is None else make_sets(cfg).files(), threads)
    return packed
