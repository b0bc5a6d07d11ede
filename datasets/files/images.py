"""From a key to pixels: where image files lie, what is in a folder, and decoding."""
from __future__ import annotations

import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datasets.bases import Problems, format_names
from datasets.files import jpeg, png
from datasets.files.image_header import Header, read_header
from utils.logger import printable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".ppm",
                  ".pgm", ".pbm", ".pnm", ".jp2", ".j2k")
# What a file manager or an archiver leaves in a folder, beside hidden files; nobody misses it.
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}
_QUIET = {".txt", ".md", ".db", ".ini", ".log", ".csv", ".json", ".xml", ".mat", ".yml", ".yaml"}  # no pictures

# A component that is empty (so is the first of an absolute path), '.' or '..', or begins with a drive letter; a
# backslash; NUL. The same on every system, so that a list that is good on one machine is good on another.
_UNSAFE = re.compile(r"(?:.*/)?(?:[A-Za-z]:|\.{0,2}(?:/|\Z))|.*[\\\0]", re.DOTALL)
# In OpenCV 4.11 and newer decoders give RGB themselves: a sixth of a JPEG's time less than exchanging channels after.
_WHOLE = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)
_GIF = (b"GIF87a", b"GIF89a")
# Of these OpenCV (from 4.7 on) refuses what is cut off by itself: TIFF, PNM, JPEG 2000 as a file and as a bare stream.
_SELF_CHECKED = (b"II*\0", b"MM\0*", *(b"P%d%c" % (kind, blank) for kind in range(1, 7) for blank in b" \t\r\n"),
                 b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
MAX_PIXELS = 50_000_000  # more is not decoded: a file of some kilobytes can ask for gigabytes
_MOST_SCANNED = 100 * MAX_PIXELS  # a progressive JPEG goes over its pixels once for each scan, however short that is
KINDS = "PNG, JPEG, BMP, WebP, TIFF, GIF, JPEG 2000 or PNM"
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

logger = logging.getLogger(__name__)


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


def name_problem(name: str) -> str:
    """Why the name of a file or folder cannot be part of a key, or ""."""
    if not (name.isascii() and name.isprintable()):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            return ("its name is not UTF-8 (an archive from Windows?); rename it, or all at once: "
                    "convmv -f gbk -t utf-8 -r --notest FOLDER")
        if any(character < " " or character == "\x7f" for character in name):
            return "a name may not hold a line break or another control character; rename it"
    return "" if is_safe_path(name) else "a name may not hold a backslash or begin like a drive; rename it"


def is_hidden(name: str) -> bool:
    """True: a file or folder that is no part of any set: hidden, or left by a file manager or an archiver."""
    return name.startswith(".") or name.lower() in _LITTER


def list_images(folder: str | os.PathLike, others: list[str] | None = None) -> list[str]:
    """Sorted names of the image files in a folder, not below it; hidden files are passed over.

    Args:
        others: gets the names of what else is passed over, see `scan_images`.
    Raises:
        OSError: there is no such folder.
        ValueError: images are links that leave the folder, or their names cannot be part of a key (all).
    """
    names, problems = [], Problems()
    for name, problem in sorted(scan_images(folder, others=others)):
        if problem:
            problems.add(f"{os.path.join(folder, name)}: {problem}")
        names.append(name)
    problems.raise_if_any(f"images in {folder}")
    return names


def scan_images(folder: str | os.PathLike, deep: bool = False,
                others: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """(name, "") of each image file in a folder, in no order, or (printable name, problem) if it is refused.

    Args:
        deep: those in its sub-folders, too, as `SUB/NAME`.
        others: gets the printable names of what is passed over and not hidden: files of other kinds, links to nothing,
            and sub-folders (`SUB/`) unless they are looked into.
    Raises:
        OSError: there is no such folder.
    """
    others = [] if others is None else others
    places = [""]
    for place in places:
        with os.scandir(os.path.join(folder, place)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name, is_folder = place + entry.name, entry.is_dir()
                if not deep if is_folder else not entry.name.lower().endswith(IMAGE_SUFFIXES):
                    others.append(printable(name) + "/" * is_folder)
                elif entry.is_symlink() and not is_inside(entry.path, folder):
                    thing = "folder" if is_folder else "image"
                    yield printable(name), f"is a link that leads out of its folder; put the {thing} itself there"
                elif problem := name_problem(entry.name):
                    yield printable(name), problem
                elif is_folder:
                    places += [] if entry.is_symlink() else [f"{name}/"]  # what it leads to is read where it lies
                elif entry.is_file():
                    yield name, ""
                else:
                    others.append(name)


def report_others(what: str, others: Iterable[str], more: Iterable[str] = ()) -> None:
    """A line in the log about what was passed over: a warning, unless no picture can be among it.

    Args:
        what: the set or folder.
        others: as `scan_images` gives them.
        more: what else the line is to say; makes it a warning.
    """
    others, parts = sorted(others), list(more)
    kinds = Counter("folder" if name.endswith("/") else os.path.splitext(name)[1].lower() or "without suffix"
                    for name in others)
    level = logging.WARNING if parts or set(kinds) - _QUIET else logging.INFO
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)) + ", …" * (len(kinds) > 6)
        parts.insert(0, f"passed over {counts}: {format_names(others)}")
    if parts:
        logger.log(level, "%s: %s", what, "; ".join(parts))


def decode(data: bytes, size: tuple[int, int] | None = None, name: str = "") -> np.ndarray:
    """Decode an image file of one of KINDS, whatever its name; of several frames or pages, the first.

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
        BadImage: the file is empty, of another kind, cut off or damaged, or has more than MAX_PIXELS.
    """
    place = f"{name}: " if name else ""
    if problem := _find_problem(data):
        raise BadImage(f"{place}{problem}")
    header = read_header(data)
    if problem := _find_excess(header, data):
        raise BadImage(f"{place}{problem}")
    flag, is_gif = _read_flag(header, size), data.startswith(_GIF)
    if data.startswith(png.SIGNATURE):
        data = png.inflate(png.without_texts(png.close(data)))
    elif data.startswith(jpeg.SIGNATURE):
        data = jpeg.close(data)
    try:
        image = _decode_gif(data) if is_gif else cv2.imdecode(np.frombuffer(data, np.uint8),
                                                              flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadImage(f"{place}cannot be decoded ({error.err or error})") from error
    if image is None:
        raise BadImage(f"{place}cannot be decoded; the file is damaged or of a rare kind")
    if size is not None:
        image = resize(image, size)
    is_bgr = not is_gif and (flag == cv2.IMREAD_COLOR or flag in _REDUCED.values())
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


def _read_flag(header: Header, size: tuple[int, int] | None) -> int:
    """OpenCV's flag for the smallest size that a JPEG can be decoded at and that has at least `size` both ways."""
    if size is not None and header.format == "JPEG":
        for factor, flag in _REDUCED.items():
            if -(-header.height // factor) >= size[0] and -(-header.width // factor) >= size[1]:
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
    if data.startswith((*_GIF, *_SELF_CHECKED)):
        return None
    kind = "HEIC, AVIF or a video" if data[4:8] == b"ftyp" else f"it begins with {data[:8]!r}"
    return f"not a {KINDS} file ({kind})"


def _find_excess(header: Header, data: bytes) -> str | None:
    """Why a file is too large, by what its header promises, or None."""
    pixels = header.width * header.height
    if pixels > MAX_PIXELS:
        return f"{pixels:,} pixels; more than {MAX_PIXELS:,} are not decoded"
    # A scan takes ten bytes at least: nearly no file need be searched for them.
    if pixels * len(data) > 10 * _MOST_SCANNED and pixels * jpeg.count_scans(data) > _MOST_SCANNED:
        return f"{jpeg.count_scans(data):,} scans over {pixels:,} pixels; a whole JPEG has some tens"
    return None


def _decode_gif(data: bytes) -> np.ndarray | None:
    """The first frame, uint8 [h, w, 3], RGB; None if it is damaged. By Pillow: OpenCV before 4.11 knows no GIF."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, Image.DecompressionBombError):
        return None


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
