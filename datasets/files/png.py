"""PNG files: are they whole, and their pixels inflated by a faster library than OpenCV's.

A PNG holds its rows deflated. OpenCV inflates them by zlib, which is half of its work; igzip (package isal) does it in
half of the time, with the same result, as deflating loses nothing. So if isal is installed, OpenCV gets a file with
the rows as igzip inflated them, in deflate's form for data that are not deflated.
"""
from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

try:
    from isal import isal_zlib
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

    isal_zlib = None

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_MOST = 2**26    # bytes of a picture; above, the second copy is not worth its memory
_PIECE = 2**20   # bytes that are inflated at a time
_RATIO = 1032    # what deflate makes of a byte at most
_TEXTS = (b"zTXt", b"iTXt", b"iCCP")
_LONG = 2**29    # bytes that are inflated in the time of a large picture
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_STORED = 65535  # bytes of deflate's longest block that is not deflated


def find_problem(data: bytes) -> str | None:
    """Why a file is no whole PNG, or None.

    The critical chunks must be undamaged (1 % of the time that decoding takes). Without the last one, IEND, a file is
    whole if its rows are.
    """
    packed = 0
    for kind, start, end in _chunks(data):
        critical = not kind[0] & 0x20  # a capital letter
        checksum = int.from_bytes(data[end:end + 4], "big")
        if critical and crc32(memoryview(data)[start - 4:end]) != checksum:
            return f"the PNG file is damaged (checksum of its {kind!r} chunk)"
        packed += (end - start) * (kind == b"IDAT")
        if kind == b"IEND":
            # Only so much that is deflated can hold up a decoder, which inflates all of it; small files need no look.
            too_long = packed * _RATIO > _LONG and _rows_of(data)[0] > _most_rows(data)
            return "the PNG file is damaged (more rows than its height)" if too_long else None
    length, is_whole = _rows_of(data)
    return None if is_whole and length <= _most_rows(data) else "the PNG file is cut off"


def _rows_of(data: bytes) -> tuple[int, bool]:
    """Bytes that the rows inflate to, or some more than `_most_rows`, and whether their stream comes to its end, which
    has a checksum."""
    stream, length, most = zlib.decompressobj(), 0, _most_rows(data)
    try:
        for kind, start, end in _chunks(data):
            rest = data[start:end] if kind == b"IDAT" else b""
            while rest and not stream.eof and length <= most:
                length += len(stream.decompress(rest, _PIECE))
                rest = stream.unconsumed_tail
    except zlib.error:
        return length, False
    return length, stream.eof


def _most_rows(data: bytes) -> int:
    """Bytes of all rows in the largest kind of a pixel, eight bytes, be they interlaced or not."""
    width, height = struct.unpack_from(">II", data.ljust(24), 16)
    return 8 * width * height + 3 * (height + 8)


def close(data: bytes) -> bytes:
    """The file with its last chunk, for a whole one: its readers ask for it."""
    if data.endswith(_IEND):
        return data
    kind, _, end = list(_chunks(data))[-1]
    return data if kind == b"IEND" else data[:end + 4] + _IEND


def without_texts(data: bytes) -> bytes:
    """A whole file without its deflated texts and color profiles, which libpng would inflate, if they are long."""
    if len(data) <= _LONG // _RATIO:
        return data
    chunks = list(_chunks(data))
    if sum(end - start for kind, start, end in chunks if kind in _TEXTS) <= _LONG // _RATIO:
        return data
    return SIGNATURE + b"".join(data[start - 8:end + 4] for kind, start, end in chunks if kind not in _TEXTS)


def inflate(data: bytes) -> bytes:
    """The same PNG with its rows inflated, for a whole file; the file as it is if that cannot be done."""
    length = _rows_length(data)
    if isal_zlib is None or not 0 < length <= _MOST:
        return data
    places = [(start, end) for kind, start, end in _chunks(data) if kind == b"IDAT"]
    stream = isal_zlib.decompressobj()
    try:
        # A byte more than there should be: igzip looks at the checksum only when it has come to the end.
        inflated = stream.decompress(b"".join(data[start:end] for start, end in places), length + 1)
    except isal_zlib.error:
        return data
    if len(inflated) != length or not stream.eof:
        return data
    body = b"".join([b"IDAT", *_stored(inflated)])
    return b"".join([data[:places[0][0] - 8], struct.pack(">I", len(body) - 4), body,
                     struct.pack(">I", crc32(body)), _IEND])


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of each whole chunk, up to the last, b"IEND"."""
    position, kind = len(SIGNATURE), b""
    while position + 12 <= len(data) and kind != b"IEND":
        start = position + 8
        end = start + int.from_bytes(data[position:position + 4], "big")
        if end + 4 > len(data):
            return
        kind, position = data[position + 4:start], end + 4
        yield kind, start, end


def _rows_length(data: bytes) -> int:
    """Bytes of all rows, each with its filter's; 0: unknown, or the rows are interlaced."""
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data.ljust(29), 16)
    return 0 if interlaced else height * (1 + -(-width * _CHANNELS.get(color, 0) * depth // 8))


def _stored(inflated: bytes) -> Iterator[bytes]:
    """A zlib stream of blocks that are not deflated."""
    yield b"\x78\x01"
    for start in range(0, len(inflated), _STORED):
        block = inflated[start:start + _STORED]
        is_last = start + _STORED >= len(inflated)
        yield struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF)
        yield block
    yield isal_zlib.adler32(inflated).to_bytes(4, "big")
