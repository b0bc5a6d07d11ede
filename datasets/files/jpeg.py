"""JPEG files: what stands in them before the first scan, and whether they are whole."""
from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

SIGNATURE = b"\xff\xd8\xff"
_END = b"\xff\xd9"
# What may follow a scan, each other bits: in between the restart markers, at which a decoder begins anew.
_CONTINUATIONS = tuple(b"".join(bytes([first, *range(first % 7, 251), 0xFF, restart]) for restart in range(0xD0, 0xD8))
                       for first in (0x00, 0x55, 0xAA, 0xE3))
_PADDING = 8  # zeros at the end of a file are no data if there are so many
_SILENT = threading.RLock()  # threads would take each other's standard error; one may listen while it listens
_SCAN = 0xDA
_SCAN_MARK = bytes([0xFF, _SCAN])  # FF in a scan is followed by 00 or a restart
_DAMAGE = (b"Corrupt JPEG data", b"Premature end of JPEG", b"Inconsistent progression", b"Invalid SOS parameters")
_WORDS = (*_DAMAGE, b"Unknown Adobe color transform", b"Warning: unknown JFIF revision", b"Application transferred")
# Markers that begin a frame: all of C0 … CF but the Huffman tables, JPG and the arithmetic conditioning.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The next marker that is neither a data byte FF nor a restart.
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


class JpegHeader(NamedTuple):
    """What is known before the first scan; 0: the file does not say.

    Attributes:
        height, width: in pixels.
        depth: bits of a channel.
        channels: 1, 3 or 4.
        scan: where in the file the first scan begins.
    """

    height: int = 0
    width: int = 0
    depth: int = 0
    channels: int = 0
    scan: int = 0


def read_header(data: bytes) -> JpegHeader:
    """Walk the segments of a JPEG up to its first scan; an embedded thumbnail lies inside one of them."""
    position, header = 2, JpegHeader()
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _SCAN:
            return header._replace(scan=position)
        if marker in _FRAMES and position + 10 <= len(data):
            height, width = (int.from_bytes(data[at:at + 2], "big") for at in (position + 5, position + 7))
            header = JpegHeader(height, width, data[position + 4], data[position + 9])
        # FF may be repeated as padding; every other segment before the scan has a length.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2:position + 4], "big")
    return header


def count_scans(data: bytes) -> int:
    """How often a decoder goes over a JPEG's pixels, those of its thumbnail counted in; 0 for another file."""
    return data.count(_SCAN_MARK) if data.startswith(SIGNATURE) else 0


def find_problem(data: bytes) -> str | None:
    """Why a file is no whole JPEG, or None. Without its end mark it is whole if none of its pixels is missing."""
    # In what follows the start of the scan, FF D9 is never data: it is the end of the image.
    scan = read_header(data).scan
    if scan and (data.rfind(_END, scan) >= 0 or (_has_all_scans(data) and _has_all_pixels(data))):
        return None
    return "the JPEG file is cut off"


def close(data: bytes) -> bytes:
    """The file with an end mark, for a whole one: OpenCV leaves out the last rows of a file without."""
    return data if data.endswith(_END) or data.rfind(_END, read_header(data).scan) >= 0 else _trim(data) + _END


def _trim(data: bytes) -> bytes:
    """A file that has no end mark without half of one, and without the zeros that an interrupted download leaves."""
    trimmed = data.rstrip(b"\0")
    if len(data) - len(trimmed) < _PADDING:  # a scan itself may end in some
        return data.rstrip(b"\xff")
    return trimmed + b"\0" if trimmed.endswith(b"\xff") else trimmed


def _has_all_scans(data: bytes) -> bool:
    """Every coefficient of every channel is there to its last bit, by what the scans say of themselves.

    A file that ends between the scans of a progressive picture, or within what stands before a scan, lacks some.
    """
    missing: dict[int, set[int]] = {}  # channel -> coefficients
    position = 2
    while position + 4 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2:position + 4], "big")
        segment = data[position + 4:position + 2 + length]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if data[position] != 0xFF or len(segment) < max(length - 2, 3 * (marker == _SCAN)):
            return False
        if marker in _FRAMES:
            missing = {channel: set(range(64)) for channel in segment[6::3]}
        position += 2 + length
        if marker == _SCAN:
            first, last, bits = segment[-3:]
            if bits & 15 == 0:
                for channel in segment[1:-3:2]:
                    missing.get(channel, set()).difference_update(range(first, last + 1))
            end = _AFTER_SCAN.search(data, position)
            position = end.start() if end else len(data)
    return bool(missing) and not any(missing.values())


def _has_all_pixels(data: bytes) -> bool:
    """Whatever follows the last scan does not change a pixel: a decoder that lacks data would take it for them."""
    data = _trim(data)
    try:
        with hear_warnings():
            pictures = [cv2.imdecode(np.frombuffer(data + more + _END, np.uint8), cv2.IMREAD_COLOR)
                        for more in _CONTINUATIONS]
    except cv2.error:
        return True  # far too large, as decoding it will say
    return all(picture is not None and np.array_equal(pictures[0], picture) for picture in pictures)


@contextlib.contextmanager
def hear_warnings() -> Iterator[list[str]]:
    """Within: libjpeg's word on damage, which goes past Python to the standard error, goes to the list at the end.

    It says no more than the first thing of a picture, and nothing of a fault that leaves as many blocks as there should
    be. What else is written there meanwhile is passed on. One thread at a time.
    What is heard by one of these within another is not heard by the other.
    """
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_SILENT)
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            kept = None
        if kept is None:
            yield said
            return
        stack.callback(os.close, kept)
        caught = stack.enter_context(_scratch())
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            if caught.seek(0, os.SEEK_END):
                caught.seek(0)
                for line in caught.read().splitlines(keepends=True):
                    if not line.startswith(_WORDS):
                        os.write(2, line)
                    elif line.startswith(_DAMAGE):
                        said.append(line.decode("ascii", "replace").strip())


def _scratch() -> BinaryIO:
    """An empty file that vanishes; in memory, which takes a tenth of the time, if the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("libjpeg"), "w+b")
    return tempfile.TemporaryFile()
