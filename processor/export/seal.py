"""The checksum that an exported file has of itself, so that a changed byte is noticed wherever the file goes.

It stands in the file's metadata as `reid-onnx-sha256:` or `reid-xml-sha256:` and 64 digits, the SHA-256 of the file
with zeros in their place; an .xml has the sum of the .bin beside it as `reid-bin-sha256:`.
"""
from __future__ import annotations

import hashlib
import logging
import mmap
from pathlib import Path

from utils.files import sha256_of

logger = logging.getLogger(__name__)

SEALS = {suffix: f"reid-{suffix[1:]}-sha256:" for suffix in (".onnx", ".xml", ".bin")}
DIGITS = 64
EMPTY = "0" * DIGITS


def seal(path: Path) -> None:
    """Put the sums into a file that was written with `SEALS[suffix] + EMPTY`, an .xml also with that of .bin."""
    if path.suffix == ".xml":
        _fill(path, SEALS[".bin"], sha256_of(path.with_suffix(".bin")))
    _fill(path, SEALS[path.suffix], _digest(path, _place(path, SEALS[path.suffix])))


def check_seal(path: Path) -> None:
    """Compare a file, and an .xml's .bin, with the sums; a file of an earlier version, without, is warned of.

    Raises:
        ValueError: a byte of it has changed since it was exported.
    """
    place = _place(path, SEALS[path.suffix])
    if place < 0:
        logger.warning("%s: has no checksum, because an earlier version exported it: export it again, so that damage "
                       "is noticed", path)
        return
    if _digits(path, place) != _digest(path, place):
        raise ValueError(f"{path}: damaged: it does not have the checksum it was written with; export the model again")
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file() and \
            _digits(path, _place(path, SEALS[".bin"])) != sha256_of(weights):
        raise ValueError(f"{weights}: damaged, or of another export than {path.name} beside it (checksum); export the "
                         "model again")


def _place(path: Path, mark: str) -> int:
    """Where the digits behind a mark begin, -1 if there are none."""
    if not path.stat().st_size:
        return -1
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.rfind(mark.encode())
        return -1 if start < 0 or start + len(mark) + DIGITS > len(data) else start + len(mark)


def _digits(path: Path, place: int) -> str:
    with open(path, "rb") as file:
        file.seek(place)
        return file.read(DIGITS).decode("ascii", "replace") if place >= 0 else ""


def _digest(path: Path, place: int) -> str:
    """SHA-256 of a file with zeros for its digits."""
    assert place >= 0, path
    digest = hashlib.sha256()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, \
            memoryview(data) as view, view[:place] as before, view[place + DIGITS:] as after:
        for piece in (before, EMPTY.encode(), after):
            digest.update(piece)
    return digest.hexdigest()


def _fill(path: Path, mark: str, digits: str) -> None:
    place = _place(path, mark)
    assert _digits(path, place) == EMPTY, path
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(digits.encode())
