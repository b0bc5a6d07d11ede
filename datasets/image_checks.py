"""What the records of images say about each image by itself: unreadable, of an odd size or colour mode, misnamed."""
from __future__ import annotations

import os

import numpy as np

from datasets.findings import Findings
from datasets.image_header import FORMATS, MODES, RGB, SUFFIXES
from datasets.inspection import Inspected
from datasets.inventory import Inventory

MIN_SIDE = 16       # pixels; a backbone divides a side by 16 or 32
MAX_TIMES = 4.0     # a side that is so many times the median of its set, or a fraction of it, is odd
MAX_SHAPE = 2.5     # likewise of the ratio of the sides


def check_images(inventory: Inventory, inspected: Inspected, findings: Findings) -> None:
    """Tell the findings of each image."""
    for index, problem in sorted(inspected.problems.items()):
        cut = problem.endswith("is cut off") or problem == "the file is empty"
        findings.add("truncated image" if cut else "unreadable image", f"{inventory.key(index)}: {problem}",
                     (inventory.picture(index),))
    for position in range(len(inventory.sets)):
        span = inventory.span(position)
        _check_set(inventory, inspected.records[span], span.start, findings)


def _check_set(inventory: Inventory, records: np.ndarray, start: int, findings: Findings) -> None:
    """Compare the good images of a set with what is usual in it."""
    good = np.flatnonzero(records["good"])
    if not len(good):
        return
    height, width = records["height"][good].astype(float), records["width"][good].astype(float)
    usual_height, usual_width = np.median(height), np.median(width)
    odd = (np.minimum(height, width) < MIN_SIDE) | (_times(height, usual_height) > MAX_TIMES) \
        | (_times(width, usual_width) > MAX_TIMES) | (_times(height / width, usual_height / usual_width) > MAX_SHAPE)
    for index in good[odd]:
        findings.add("odd size", f"{inventory.key(start + index)}: {records['width'][index]} x "
                                 f"{records['height'][index]} pixels, where {usual_width:.0f} x {usual_height:.0f} is "
                                 "usual", (inventory.picture(start + index),))
    for index in good[records["mode"][good] != MODES.index(RGB)]:
        findings.add("odd mode", f"{inventory.key(start + index)}: {MODES[records['mode'][index]]}",
                     (inventory.picture(start + index),))
    for index in good:
        suffix = os.path.splitext(inventory.key(start + index))[1].lower()
        told, real = SUFFIXES.get(suffix), FORMATS[records["format"][index]]
        if told != real:
            findings.add("misnamed format", f"{inventory.key(start + index)}: a {real} file",
                         (inventory.picture(start + index),))


def _times(sizes: np.ndarray, usual: float) -> np.ndarray:
    """How many times larger or smaller than usual, from 1."""
    return np.maximum(sizes / usual, usual / sizes)
