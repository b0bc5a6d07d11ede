"""From a key to pixels: where image files lie, what is in a folder, and decoding."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datasets.files import jpeg, png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

# A component that is empty (so is the first of an absolute path), '.' or '..', or begins with a drive letter; a
# backslash; NUL. The same on every system, so that a list that is good on one machine is good on another.
_UNSAFE = re.compile(r"(?:.*/)?(?:[A-Za-z]:|\.{0,2}(?:/|\Z))|.*[\\\0]", re.DOTALL)
# In OpenCV 4.11 and newer decoders give RGB themselves: a sixth of a JPEG's time less than exchanging channels after.
_WHOLE = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class BadImage(ValueError):
    """An image file that cannot be used: empty, cut off, damaged, no image, or a link that leads out of its set."""


def is_safe_path(path: str) -> bool:
    """True: a relative path with forward slashes that cannot climb out of the folder it is joined to."""
    return _UNSAFE.match(path) is None


class ImageSource(Protocol):
    """Where the bytes of images come from; picklable, because loader workers get a copy."""

    def read(self, key: str) -> bytes:
        """The bytes of the image file `key`.

        Raises:
            OSError: there is no such image, or it cannot be read; the message names it.
            ValueError: the key leads out of the source.
            BadImage: the image is a link that does.
        """
        ...


class FileSource(ImageSource, Protocol):
    """A source whose images are files."""

    def path(self, key: str) -> str:
        """Where the file of an image lies."""
        ...


class FolderSource:
    """Image files below a folder.

    Args:
        root: the folder that keys are relative to.
    Raises:
        NotADirectoryError: root is no folder.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise NotADirectoryError(f"image folder {self.root} does not exist or is no folder")

    @property
    def roots(self) -> list[Path]:
        """The folders that images are read from."""
        return [self.root]

    def read(self, key: str) -> bytes:
        """The bytes of `root/key`; see `ImageSource.read`.

        Linked folders are followed, because a user may well keep the sets on several disks; a file that is itself a
        link must lead to a place inside the root or inside the folder it lies in.
        """
        if not is_safe_path(key):
            raise ValueError(f"image key {key!r} leads out of {self.root}; keys are relative, with forward slashes")
        path = self.path(key)
        if os.path.islink(path) and not (is_inside(path, self.root) or is_inside(path, os.path.dirname(path))):
            raise BadImage(f"image key {key!r} is a link that leads out of {self.root}")
        with open(path, "rb") as image:
            return image.read()

    def path(self, key: str) -> str:
        """Where the file of an image lies."""
        return os.path.join(self.root, key)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r})"


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """True: `path`, all links followed, lies in `folder`, all links followed, or is it."""
    real, base = os.path.realpath(path), os.path.realpath(folder)
    return real == base or real.startswith(os.path.join(base, ""))


def list_images(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the image files in a folder, not below it; hidden files and other suffixes are passed over.

    Raises:
        OSError: there is no such folder.
        ValueError: an image is a link that leaves the folder, or its name cannot be part of a key.
    """
    names = []
    for name, problem in scan_images(folder):
        if problem:
            raise ValueError(f"{os.path.join(folder, name)}: {problem}")
        names.append(name)
    return sorted(names)


def scan_images(folder: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """(name, "") of each image file in a folder, in no order, or (name, problem) if it is refused.

    Raises:
        OSError: there is no such folder.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if entry.is_symlink() and not is_inside(entry.path, folder):
                yield entry.name, "is a link that leads out of its folder; put the image itself there"
            elif not is_safe_path(entry.name):
                yield entry.name, "a name may not hold a backslash or begin like a drive; rename it"
            elif entry.is_file():
                yield entry.name, ""


def decode(data: bytes, size: tuple[int, int] | None = None, name: str = "") -> np.ndarray:
    """Decode a PNG, JPEG, BMP or WebP file, whatever its name.

    Grey, palette and 16-bit pictures become 8-bit RGB; transparency is dropped and EXIF orientation ignored, as the
    lineage's PIL `convert("RGB")` does.

    A JPEG that is at least twice as large as `size` both ways is decoded at 1/2, 1/4 or 1/8 of its size, by a smaller
    inverse DCT, and resized from there: a third of the time. The pixels are not those of a full decoding (a grey level
    or two apart in the mean), but a function of the file and of `size` alone, so that a training and a test at one
    size see the same.

    Args:
        data: a whole image file.
        size: (height, width) to resize to; None = as it is.
        name: the image's name; errors begin with it.
    Returns:
        uint8 [h, w, 3], RGB, contiguous.
    Raises:
        BadImage: the file is empty, of another kind, cut off or damaged.
    """
    place = f"{name}: " if name else ""
    problem = _find_problem(data)
    if problem:
        raise BadImage(f"{place}{problem}")
    flag = _read_flag(data, size)
    if data.startswith(png.SIGNATURE):
        data = png.inflate(png.close(data))
    elif data.startswith(jpeg.SIGNATURE):
        data = jpeg.close(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadImage(f"{place}cannot be decoded ({error.err or error})") from error
    if image is None:
        raise BadImage(f"{place}cannot be decoded; the file is damaged")
    if size is not None:
        image = resize(image, size)
    is_bgr = flag == cv2.IMREAD_COLOR or flag in _REDUCED.values()
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if is_bgr else image


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image, each direction by the method that suits it.

    Shrinking averages areas, because interpolation would skip pixels. Enlarging is bilinear in fixed point: within one
    grey level of PIL's bilinear filter, which the lineage trained with, and the same bytes on every machine.

    Args:
        image: uint8 [h, w, 3].
        size: (height, width).
    Returns:
        uint8 [height, width, 3]; the input itself if it has that size.
    """
    height, width = size
    # A direction that shrinks goes first, alone: INTER_AREA is bilinear, without averaging, as soon as one enlarges.
    least = min(height, image.shape[0]), min(width, image.shape[1])
    if least != image.shape[:2]:
        image = cv2.resize(image, least[::-1], interpolation=cv2.INTER_AREA)
    if least != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return image


def _read_flag(data: bytes, size: tuple[int, int] | None) -> int:
    """OpenCV's flag for the smallest size that a JPEG can be decoded at and that has at least `size` both ways."""
    if size is not None and data.startswith(jpeg.SIGNATURE):
        height, width = jpeg.read_header(data)[:2]
        for factor, flag in _REDUCED.items():
            if -(-height // factor) >= size[0] and -(-width // factor) >= size[1]:
                return flag
    return _WHOLE


def _find_problem(data: bytes) -> str | None:
    """Why a file is no whole image, or None. OpenCV may return a half-grey picture, with a warning, for those."""
    if not data:
        return "the file is empty"
    if data.startswith(png.SIGNATURE):
        return png.find_problem(data)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.find_problem(data)
    if data.startswith(b"BM"):
        return "the BMP file is cut off" if int.from_bytes(data[2:6], "little") > len(data) else None
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "the WebP file is cut off" if int.from_bytes(data[4:8], "little") + 8 > len(data) else None
    kind = "a GIF file" if data.startswith((b"GIF87a", b"GIF89a")) else f"it begins with {data[:8]!r}"
    return f"not a PNG, JPEG, BMP or WebP file ({kind})"


class MountedSource:
    """Images of several sets.

    Args:
        sources: first folder of a key -> the source that reads what follows it; "" reads, with their whole keys, all
            images that belong to no other.
    """

    def __init__(self, sources: Mapping[str, ImageSource]) -> None:
        self.sources = dict(sources)

    @property
    def roots(self) -> list[Path]:
        """The folders that images are read from."""
        return [root for source in self.sources.values() for root in source.roots]

    def read(self, key: str) -> bytes:
        """The bytes of an image; see `ImageSource.read`.

        Raises:
            ValueError: besides, no source is mounted for the key.
        """
        source, rest = self._find(key)
        return source.read(rest)

    def path(self, key: str) -> str:
        """Where the file of an image lies, if its set is one of files.

        Raises:
            ValueError: no source is mounted for the key.
        """
        source, rest = self._find(key)
        return source.path(rest)

    def _find(self, key: str) -> tuple[ImageSource, str]:
        """The source of an image, and its key there."""
        first, _, rest = key.partition("/")
        if first in self.sources and first:
            return self.sources[first], rest
        if "" in self.sources:
            return self.sources[""], key
        raise ValueError(f"image key {key!r} begins with none of the sets {', '.join(self.sources)}")

    def __repr__(self) -> str:
        return f"MountedSource({self.sources!r})"
