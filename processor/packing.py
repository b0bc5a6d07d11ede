"""Packing the images of a configured data set, and checking a pack."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2

from datasets.bases import statistics
from datasets.images import is_inside
from datasets.make_dataloader import image_files, load_set, packed_keys
from datasets.packed import PackedSource
from datasets.packing import pack, verify

logger = logging.getLogger(__name__)

PARTS = ("train", "test")


def pack_set(cfg, folder: Path, decoded: bool, parts: Sequence[str] = PARTS, threads: int | None = None,
             force: bool = False) -> PackedSource:
    """Pack what the config trains and tests on; see `datasets.packing.pack`.

    Args:
        cfg: the config tree.
        folder: where the pack goes.
        decoded: decode at INPUT.SIZE_TRAIN (without a training part INPUT.SIZE_TEST); False: the files as they are.
        parts: of PARTS. With both, a test folder that cannot be read is left out, as in training.
    Raises:
        ValueError: the data cannot be read, the two sizes differ, or the folder lies among the data.
    """
    data, files, reason = load_set(cfg, "train" in parts, "test" in parts)
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
    verify(packed, None if cfg is None else image_files(cfg), threads)
    return packed
