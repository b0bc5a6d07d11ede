"""What a person hands over as a picture: paths, bytes, arrays and boxes of a frame, to pixels."""
from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np

from datasets.files.images import BadImage, decode, resize
from utils.files import read_file

Item = str | os.PathLike | bytes | np.ndarray
_LEAST_SIDE = 2  # pixels; of less there is nothing to see
_SMALL_FILE = 1024  # bytes, within which a picture of less has room


def read_picture(item: Item, size: tuple[int, int], bgr: bool = False) -> np.ndarray:
    """uint8 [height, width, 3] RGB of a path, the bytes of an image file, or an array, see `Embedder.embed`.

    Raises:
        BadImage, OSError: it is no picture.
    """
    if isinstance(item, np.ndarray):
        return np.ascontiguousarray(resize(_to_rgb(item, bgr), size))
    if isinstance(item, bytes):
        return _decode(item, size)
    if not isinstance(item, (str, os.PathLike)):
        raise BadImage(f"a {type(item).__name__}; expected a path, the bytes of an image file or a uint8 array "
                       "(np.asarray makes one of a PIL picture)")
    return _decode(read_file(item), size, str(item))


def _decode(data: bytes, size: tuple[int, int], name: str = "") -> np.ndarray:
    if len(data) < _SMALL_FILE:
        _check_sides(decode(data, name=name), name)
    return decode(data, size, name)


def _check_sides(picture: np.ndarray, name: str = "") -> None:
    height, width = picture.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        raise BadImage(f"{name}{': ' if name else ''}a picture of {width} x {height} pixels shows nobody")


def _to_rgb(array: np.ndarray, bgr: bool) -> np.ndarray:
    if array.dtype != np.uint8:
        raise BadImage(f"an array of {array.dtype}; expected uint8 with values 0..255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise BadImage(f"an array of shape {array.shape}; expected [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA")
    _check_sides(array)
    if array.ndim == 2:
        return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2RGB)
    array = array[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if bgr else array)


def crop_boxes(frame: np.ndarray, boxes: np.ndarray | Sequence) -> list[np.ndarray]:
    """The parts of a frame [H, W, ...] within boxes, see `Embedder.embed_boxes`; every pixel that a box touches."""
    if not isinstance(frame, np.ndarray) or frame.ndim < 2:
        raise BadImage(f"a frame is a uint8 array [H, W, 3], not a {type(frame).__name__} (cv2.imread gives None where "
                       "there is no picture)")
    boxes = np.atleast_2d(np.asarray(boxes, dtype=np.float64)) if len(boxes) else np.empty((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape}; expected [N, 4] x0, y0, x1, y1")
    height, width = frame.shape[:2]
    limits = np.array([width, height, width, height], dtype=np.float64)
    finite = np.isfinite(boxes).all(1)
    low, high = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])
    clipped = np.clip(np.hstack([low, high]), 0, limits)
    sides = clipped[:, 2:] - clipped[:, :2]
    bad = np.flatnonzero(~finite | ~(boxes[:, 2:] > boxes[:, :2]).all(1) | ~(sides >= _LEAST_SIDE).all(1))
    if len(bad):
        first = boxes[bad[0]].tolist()
        raise ValueError(f"boxes {', '.join(map(str, bad[:20]))} are empty, not finite or outside the frame of {width} "
                         f"x {height} pixels (the first is x0, y0, x1, y1 = {first})")
    return [frame[y0:y1, x0:x1] for x0, y0, x1, y1 in clipped.astype(int)]
