"""Small copies of pictures beside a page: a file each, named by its content, however many lists show it."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datasets.files.images import ImageSource, decode, resize
from utils.parallel import in_threads
from utils.progress import progress

HEIGHT, WIDTH = 128, 192  # most pixels of a small copy
_THREADS = 8


class Place(NamedTuple):
    """A picture of a run: whose lists show it (0, or 1 the other run's), the domain, "query" or "gallery", its name."""

    run: int
    domain: str
    part: str
    name: str


def small_jpeg(image: np.ndarray, height: int = HEIGHT, width: int = WIDTH) -> tuple[bytes, int]:
    """A JPEG of an RGB picture, at most so large and never enlarged, and its height."""
    scale = min(1.0, height / image.shape[0], width / image.shape[1])
    small = resize(image, tuple(max(1, round(side * scale)) for side in image.shape[:2]))
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), small.shape[0]


@dataclass
class RunPictures:
    """Where a run's pictures come from. keys: {(domain, part): {name in results: key of the source}}."""

    source: ImageSource
    keys: Mapping[tuple[str, str], Mapping[str, str]]

    def read(self, place: Place) -> bytes:
        """A picture's file.

        Raises:
            OSError, ValueError: it is not there, or the data set does not know the name.
        """
        key = self.keys.get((place.domain, place.part), {}).get(place.name)
        if key is None:
            raise FileNotFoundError(f"{place.name} is not among the {place.part} pictures of {place.domain}")
        return self.source.read(key)


@dataclass
class SmallCopies:
    """The folder of small copies of a page that is being made.

    Attributes:
        earlier: that of the page before; what it has is not made again.
        names: {place: file name}, None: the picture cannot be read.
        problems: why pictures cannot be read.
    """

    folder: Path
    earlier: Path
    names: dict[Place, str | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def make(self, runs: list[RunPictures], places: Iterable[Place]) -> None:
        """Copy pictures, in threads.

        Raises:
            ValueError: none of them can be read; the first one's reason is given.
            OSError: a copy cannot be written.
        """
        self.folder.mkdir(parents=True)
        places = sorted(set(places))
        made = in_threads(partial(self._make, runs), places, min(os.cpu_count() or 1, _THREADS))
        for place, (name, problem) in zip(places, progress(made, "small pictures", "pictures", len(places)),
                                          strict=True):
            self.names[place] = name
            self.problems += [problem] if problem else []
        if places and len(self.problems) == len(places):
            raise ValueError(f"none of the {len(places)} pictures can be read ({self.problems[0]}); name the folder "
                             "that DATASETS.ROOT_DIR is now with --data")

    def _make(self, runs: list[RunPictures], place: Place) -> tuple[str | None, str]:
        try:
            data = runs[place.run].read(place)
            name = f"{hashlib.sha256(data).hexdigest()[:20]}_{HEIGHT}.jpg"
            if (self.folder / name).exists():  # another list shows it, too
                return name, ""
            copy = self.earlier / name
            small = copy.read_bytes() if copy.is_file() else small_jpeg(decode(data))[0]
        except (OSError, ValueError) as error:
            return None, str(error)
        self._write(name, small)  # what fails here is the page's disk, not the picture
        return name, ""

    def add(self, image: np.ndarray) -> str:
        """The name of the small copy of a drawn picture."""
        data = small_jpeg(image, 2 * HEIGHT, 2 * WIDTH)[0]
        name = f"{hashlib.sha256(data).hexdigest()[:20]}.jpg"
        self._write(name, data)
        return name

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
