"""JPEG files: what stands in them before the first scan, and whether they are whole."""
from __future__ import annotations

from typing import NamedTuple

SIGNATURE = b"\xff\xd8\xff"
_END = b"\xff\xd9"
_SCAN = 0xDA
# Markers that begin a frame: all of C0 … CF but the Huffman tables, JPG and the arithmetic conditioning.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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


def find_problem(data: bytes) -> str | None:
    """Why a file is no whole JPEG, or None."""
    # In what follows the start of the scan, FF D9 is never data: it is the end of the image.
    scan = read_header(data).scan
    return None if scan and data.rfind(_END, scan) >= 0 else "the JPEG file is cut off"
