"""Inspection of a data set's images: whether each can be read, what it is, and three digests to compare it by.

A record of 92 bytes is all that is kept of an image, so that close to a million of them fit into memory.
"""
from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.files import jpeg
from datasets.files.image_header import FORMATS, MODES, read_header
from datasets.files.images import BadImage, FileSource, decode
from datasets.sets.domains import domain_of
from utils.parallel import in_processes
from utils.progress import progress as show_progress
from utils.sqlite_schema import check_schema

RECORD = np.dtype([
    ("file", "<u8", 2),     # digest of the file's bytes
    ("pixels", "<u8", 2),   # digest of what is decoded: 8-bit RGB, as a model sees it; 0 if it cannot be
    ("near", "<u8", 4),     # perceptual hash; 0: too little in the picture, or unreadable
    ("size", "<i8"), ("changed", "<i8"),  # of the file, bytes and ns: if they differ now, it is another file
    ("width", "<u4"), ("height", "<u4"),
    ("format", "u1"), ("mode", "u1"),     # of FORMATS and MODES
    ("green", "?"),         # the picture's domain
    ("good", "?"),          # it can be read
])
MAX_BYTES = 1 << 28      # a larger file is not read
NEAR_SIDE = 16           # the perceptual hash has NEAR_SIDE ** 2 bits

_SECONDS_BETWEEN_SAVES = 2.0
# In what SQLite says where the disk or another process is at fault, and not the file.
_NOT_DAMAGE = ("unable to open", "readonly", "locked", "full", "disk I/O", "permission")

_SCHEMA = """CREATE TABLE made_for (text TEXT);
CREATE TABLE images (key TEXT PRIMARY KEY, record BLOB, problem TEXT) WITHOUT ROWID"""

logger = logging.getLogger(__name__)


class Inspected(NamedTuple):
    """All images of a data set.

    Attributes:
        records: [N] of RECORD.
        problems: index -> why the image cannot be read or, of one that is good, what is wrong with its data.
    """

    records: np.ndarray
    problems: dict[int, str]


def inspect_images(source: FileSource, count: int, key_of: Callable[[int], str], store: RecordStore,
                   workers: int = 1, progress: bool = True) -> Inspected:
    """Inspect the images `key_of(0)` … `key_of(count - 1)`; those that the store knows, and that did not change, are
    not read again. The records are saved every other second, so that a killed run goes on.

    Args:
        source: where the images' files are.
        workers: processes that read and decode; the result is the same.
        progress: True: a bar on a terminal, now and then a log line elsewhere.
    Raises:
        LostWorker: a process was killed; what was read is kept.
    """
    records = np.zeros(count, RECORD)
    problems: dict[int, str] = {}
    unknown = []

    def note(index: int, record: bytes, problem: str) -> None:
        records[index] = np.frombuffer(record, RECORD)[0]
        if problem:
            problems[index] = problem

    for index in range(count):
        known = store.find(key_of(index))
        if known is not None and _is_unchanged(source.path(key_of(index)), known[0]):
            note(index, *known)
        else:
            unknown.append(index)
    if len(unknown) < count:
        logger.info("%d of %d images are known from an earlier run", count - len(unknown), count)
    started = saved = time.monotonic()
    results = in_processes(partial(inspect_file, source), map(key_of, unknown), len(unknown), workers,
                           doing="reads images")
    rows = show_progress(results, "reading", "image", total=len(unknown)) if progress else results
    try:
        for index, (record, problem) in zip(unknown, rows, strict=True):
            note(index, record, problem)
            store.add(key_of(index), record, problem)
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                store.save()
                saved = time.monotonic()
    finally:
        store.save()
        results.close()
    if unknown:
        seconds = time.monotonic() - started
        logger.info("read %d images in %.1f s, %.0f images/s", len(unknown), seconds, len(unknown) / seconds)
    return Inspected(records, problems)


def _is_unchanged(path: str, record: bytes) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    record = np.frombuffer(record, RECORD)[0]
    return (status.st_size, status.st_mtime_ns) == (record["size"], record["changed"])


def _is_record(record: object, problem: object) -> bool:
    """Whether what a file holds is what `inspect_file` gives."""
    if not (isinstance(record, bytes) and len(record) == RECORD.itemsize and isinstance(problem, str)):
        return False
    values = np.frombuffer(record, RECORD)[0]
    return values["format"] < len(FORMATS) and values["mode"] < len(MODES)


def inspect_file(source: FileSource, key: str) -> tuple[bytes, str]:
    """The record (of RECORD, as bytes) of one image file, and why it cannot be read or ""."""
    try:
        status = os.stat(source.path(key))  # before it is read: a file that changes meanwhile is read again next time
        if status.st_size > MAX_BYTES:
            raise BadImage(f"{status.st_size:,} bytes; more than {MAX_BYTES:,} are not taken")
        record, problem = inspect_image(source.read(key))
    except (OSError, BadImage) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return np.zeros((), RECORD).tobytes(), f"cannot be read: {reason}"
    record["size"], record["changed"] = status.st_size, status.st_mtime_ns
    return record.tobytes(), problem


def inspect_image(data: bytes) -> tuple[np.ndarray, str]:
    """The record ([] of RECORD, `size` and `changed` not set) of a file's bytes, and why it cannot be read, what is
    wrong with its data, or ""."""
    record = np.zeros((), RECORD)
    header = read_header(data)
    record["file"] = digest(data)
    record["width"], record["height"] = (min(side, 2**32 - 1) for side in (header.width, header.height))
    record["format"], record["mode"] = FORMATS.index(header.format), MODES.index(header.mode)
    try:
        with jpeg.hear_warnings() as said:
            image = decode(data)
    except BadImage as error:
        return record, str(error)
    record["good"] = True
    record["height"], record["width"] = image.shape[:2]
    record["pixels"] = digest(repr(image.shape).encode() + image.tobytes())
    record["near"] = perceptual_hash(image)
    record["green"] = domain_of(image) == "green"
    return record, f"{said[0]}; a part of the picture may be wrong" if said else ""


def digest(data: bytes) -> np.ndarray:
    """[2] uint64; equal for equal bytes, and for others never in practice (128 bits of BLAKE2b)."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), "<u8")


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """256 bits that stay nearly the same when a picture is compressed, resized or made brighter.

    Which of the 16 x 16 lowest frequencies of the picture, in 64 x 64 grey pixels, are above a level that noise does
    not reach. Measured on pedestrians (the demo set, also blurred or four times as dark) and characters (Omniglot):
    JPEG at quality 90 changes up to 7 bits, half the size 10, JPEG at quality 60 up to 13 (19 if it is dark); two
    different pictures have 29 bits or more between them.

    Args:
        image: uint8 [h, w, 3], RGB.
    Returns:
        [4] uint64. 0: the picture has too little in it to differ from others.
    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010. There the level is the
        median, about which the frequencies of a blurred picture are noise.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    bits = cv2.dct(grey.astype(np.float32))[:NEAR_SIDE, :NEAR_SIDE].ravel() > _NEAR_LEVEL
    bits[0] = False  # the brightness
    if bits.sum() < _NEAR_LEAST:
        return np.zeros(4, "<u8")
    return np.packbits(bits[_SKEWED], bitorder="little").view("<u8")


_NEAR_LEVEL = 8.0  # in units of a grey level's noise: the transform is orthonormal
_NEAR_LEAST = 20   # set bits; a picture of one colour has none
# Each row begins a column later, so that every 16th bit, too, is of another row and another column.
_SKEWED = np.array([row * NEAR_SIDE + (place - row) % NEAR_SIDE
                    for row in range(NEAR_SIDE) for place in range(NEAR_SIDE)])


class RecordStore:
    """key -> record and problem. A run that is killed leaves what it saved last; a file of another kind, and one that
    turns out to be damaged, is replaced.

    Args:
        path: the file; it is made.
        made_for: what the records depend on beside the images: the data's place, the decoder's version. Records that
            were made for something else are dropped.
    Raises:
        OSError: the file cannot be read or written; so do the methods.
    """

    def __init__(self, path: Path, made_for: str) -> None:
        self.path, self._made_for = path, made_for
        path.parent.mkdir(parents=True, exist_ok=True)
        self._guard(self._open)

    def _guard(self, step: Callable[[], Any]) -> Any:
        """What a step gives; None if the file is damaged, which is then begun anew."""
        try:
            return step()
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in _NOT_DAMAGE):
                raise OSError(f"{self.path}: {error}") from error
        logger.warning("%s is damaged or no record store; all images are read again", self.path)
        try:
            self._start_again()
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}") from error
        return None

    def _open(self) -> None:
        self._connection = sqlite3.connect(self.path)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement.replace("TABLE", "TABLE IF NOT EXISTS", 1))
        check_schema(self._connection, _SCHEMA)
        row = self._connection.execute("SELECT text FROM made_for").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO made_for VALUES (?)", (self._made_for,))
        elif row[0] != self._made_for:
            logger.info("%s was made for %s; all images are read again", self.path, row[0])
            self._start_again()
        self._connection.commit()

    def _start_again(self) -> None:
        self._connection.close()
        for name in (self.path, self.path.with_name(self.path.name + "-journal")):
            if os.path.lexists(name):
                os.unlink(name)
        self._open()

    def find(self, key: str) -> tuple[bytes, str] | None:
        """The image's record and problem, or None."""
        query = "SELECT record, problem FROM images WHERE key = ?"
        known = self._guard(lambda: self._connection.execute(query, (key,)).fetchone())
        return known if known and _is_record(*known) else None

    def add(self, key: str, record: bytes, problem: str) -> None:
        """Add an image's record; it lasts from the next `save` on."""
        self._guard(lambda: self._connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)",
                                                     (key, record, problem)))

    def save(self) -> None:
        """Write what was added to the disk."""
        self._guard(lambda: self._connection.commit())

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
