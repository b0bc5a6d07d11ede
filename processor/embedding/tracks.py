"""Boxes of tracks in MOTChallenge's text format, and the frames that they are cut out of.

A line is `frame, id, x, y, w, h, conf, …`, separated by commas or blanks; what follows conf is passed over. Frames, and
the pixels x and y of a box's left upper corner, count from 1; a negative id is nobody's.

Source: Dendorfer et al., MOTChallenge: A Benchmark for Single-Camera Multiple Target Tracking, IJCV 2021.
"""
from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from datasets.bases import Problems
from datasets.files.images import MAX_PIXELS, BadImage, FolderSource, decode, list_images
from datasets.sets.list_files import quoted, read_lines
from processor.embedding.pictures import crop_boxes

COLUMNS = ("frame", "id", "x", "y", "w", "h", "conf")
CROP_QUALITY = 95  # of JPEG

logger = logging.getLogger(__name__)


class Box(NamedTuple):
    """A line of a file of tracks; `x` and `y` as they stand there, conf 1 if there is none."""

    line: int
    frame: int
    id: int
    x: float
    y: float
    w: float
    h: float
    conf: float

    @property
    def name(self) -> str:
        """What its crop is called."""
        return f"{self.frame:06d}_{self.id}"


def read_tracks(path: Path, min_conf: float = -math.inf) -> list[Box]:
    """The boxes of a file in the order of its lines; those below `min_conf` are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no box, or a line is malformed (all).
    """
    problems, boxes = Problems(), []
    seen: dict[tuple[int, int], int] = {}
    for number, text in read_lines(path, path.name, problems):
        try:
            values = [float(word) for word in re.split(r"\s*[,;]\s*|\s+", text.rstrip(" ,;"))[:7]]
            frame, person, x, y, w, h, conf = values if len(values) > 6 else (*values, 1.0)
            box = Box(number, _whole(frame), _whole(person), x, y, w, h, conf)
        except ValueError:
            problems.add(f"{path.name}:{number}: expected frame, id, x, y, w, h, conf as numbers, got {quoted(text)}")
            continue
        if box.conf < min_conf:
            continue
        first = seen.setdefault((box.frame, box.id), number)
        if first != number and box.id >= 0:
            problems.add(f"{path.name}:{number}: frame {box.frame} has id {box.id} already, in line {first}")
        boxes.append(box)
    problems.raise_if_any(str(path))
    if not boxes:
        raise ValueError(f"{path}: holds no box" + f" of a conf of {min_conf:g} or more" * (min_conf > -math.inf))
    return boxes


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


class Frames(Protocol):
    """Pictures by their numbers, asked for in ascending order."""

    def read(self, frame: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB.

        Raises:
            BadImage, OSError: it is not there, or cannot be read.
        """
        ...


class FrameFolder:
    """Frames that are pictures in a folder.

    If all are called by a number (000001.jpg, img_1.jpg) it is the frame's; but where they count from 0 and no frame 0
    is asked for, and with other names, frame 1 is the first of the sorted ones.

    Args:
        frames: numbers that will be asked for.
    Raises:
        ValueError: there is no picture.
    """

    def __init__(self, folder: Path, frames: Iterable[int]):
        self.source, names = FolderSource(folder), list_images(folder)
        if not names:
            raise ValueError(f"{folder} holds no picture")
        matches = [re.fullmatch(r"(.*?)(\d+)", Path(name).stem) for name in names]
        numbers = {int(match[2]): name for match, name in zip(matches, names, strict=True) if match}
        numbered = len(numbers) == len(names) and len({match[1] for match in matches}) == 1
        if numbered and (0 not in numbers or 0 in set(frames)):
            self.names = numbers
        else:
            ordered = [numbers[number] for number in sorted(numbers)] if numbered else names
            self.names = dict(enumerate(ordered, 1))
        first = min(self.names)
        logger.info("frame %d is %s", first, folder / self.names[first])

    def read(self, frame: int) -> np.ndarray:
        if frame not in self.names:
            raise BadImage(f"{self.source.root} has no frame {frame}; it has {min(self.names)} to {max(self.names)}")
        return decode(self.source.read(self.names[frame]), name=str(self.source.root / self.names[frame]))


class Video:
    """Frames of a video file, which is read once from its beginning.

    Raises:
        ValueError: OpenCV cannot open it, or its frames are larger than a picture that is decoded.
    """

    def __init__(self, path: Path):
        self.path, self.capture, self.position = path, cv2.VideoCapture(str(path)), 0
        if not self.capture.isOpened():
            raise ValueError(f"{path}: not a video that OpenCV opens")
        width, height = (int(self.capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            self.capture.release()
            raise ValueError(f"{path}: frames of {width} x {height} pixels; more than {MAX_PIXELS:,} are not decoded")

    def read(self, frame: int) -> np.ndarray:
        while self.position < frame and self.capture.grab():
            self.position += 1
        done, picture = self.capture.retrieve() if self.position == frame > 0 else (False, None)
        if not done:
            raise BadImage(f"{self.path} has no frame {frame}; " + (
                "frames count from 1" if frame < 1 else f"it ends after {self.position}"))
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def open_frames(place: Path, boxes: list[Box]) -> Frames:
    """A folder's pictures, or a video's."""
    if place.is_dir():
        return FrameFolder(place, (box.frame for box in boxes))
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such folder or video")
    return Video(place)


class TrackCrops:
    """The pictures within boxes, as processor.embedding.fill.Pictures.

    Args:
        path: of the file of tracks.
        origin: the number of the first pixel: 1, or 0.
        crops: folder in which they are written as ID/FRAME_ID.jpg, a set `tree:`; those of negative ids are not.
    """

    def __init__(self, path: Path, boxes: list[Box], place: Path, origin: int = 1, crops: Path | None = None):
        self.file, self.boxes, self.place, self.origin, self.crops = path.name, boxes, place, origin, crops
        self.order = sorted(range(len(boxes)), key=lambda row: boxes[row].frame)
        what = (boxes, str(place.resolve()), origin, crops and str(crops.resolve()))
        self.digest = hashlib.sha256(repr(what).encode()).hexdigest()

    def walk(self, rows: Iterable[int]) -> Iterator[np.ndarray | Exception]:
        frames = open_frames(self.place, self.boxes)
        for number, group in groupby(rows, key=lambda row: self.boxes[row].frame):
            try:
                frame = frames.read(number)
            except (ValueError, OSError) as error:
                frame = error
            yield from (self._crop(self.boxes[row], frame) for row in group)

    def _crop(self, box: Box, frame: np.ndarray | Exception) -> np.ndarray | Exception:
        place = f"{self.file}:{box.line}: "
        if isinstance(frame, Exception):
            return BadImage(f"{place}{frame}")
        x, y = box.x - self.origin, box.y - self.origin
        try:
            # A copy: a view would hold its whole frame.
            crop = crop_boxes(frame, [[x, y, x + box.w, y + box.h]])[0].copy()
        except ValueError:
            size = f"{frame.shape[1]} x {frame.shape[0]}"
            return BadImage(f"{place}the box x, y, w, h = {box.x:g}, {box.y:g}, {box.w:g}, {box.h:g} is empty or "
                            f"outside the frame of {size} pixels")
        if self.crops and box.id >= 0:
            target = self.crops / str(box.id) / f"{box.name}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            encoded = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR),
                                   [cv2.IMWRITE_JPEG_QUALITY, CROP_QUALITY])[1]
            target.write_bytes(encoded.tobytes())
        return crop
