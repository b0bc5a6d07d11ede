"""Damage to pictures: headers that promise gigabytes, chunks and segments too many, too few, or twice."""
from __future__ import annotations

import re
import struct
import zlib
from random import Random

from tools.campaigns.inputs.bombs import zlib_zeros
from tools.campaigns.inputs.raw import flip
from tools.campaigns.inputs.values import NUMBERS, Means

_SIDES = (0, 1, 64, 8000, 30_000, 65_500, 65_535)
_JPEG_SEGMENTS = bytes((0xC4, 0xDB, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE, 0xD8, 0xDA, 0xC2, 0xC0, 0xCC, 0xC9))
_ORIENTED = (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",  # turned by 90 degrees
             b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40), b"ICC_PROFILE\0\1\xff",
             b"Adobe\0d\0\0\0\0\7", b"JFIF\0\1\1\0\0\1\0\1\xff\xff")


def is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG")


def is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")


def is_rarer(data: bytes) -> bool:
    return data.startswith((b"BM", b"RIFF", b"II*\0", b"GIF8", b"\0\0\0\x0cjP", b"P6"))


def change_png(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A PNG chunk changed, with the right checksum: a header that promises gigabytes, rows that inflate to them."""
    what = draw.choice(("size", "size", "header", "bomb", "text bomb", "chunk", "chunk", "rows", "rows", "order"))
    if what in ("size", "header"):
        header = bytearray(data[16:29])
        if what == "size":
            width, height = (draw.choice((0, 1, 30_000, 65_535, 1_000_000, 2**31 - 1)) for _ in range(2))
            header[:8] = struct.pack(">II", width, height)
        else:
            header[draw.randrange(8, 13)] = draw.randrange(256)
        return data[:8] + _chunk(b"IHDR", bytes(header)) + data[33:], f"PNG {what} {bytes(header).hex()}"
    if what == "bomb":
        rows = zlib_zeros(draw.choice((10, 10, 10, 300, 3000)))
        header = draw.choice((data[:33], data[:8] + _chunk(b"IHDR", struct.pack(">II", 7000, 7000) + data[24:29])))
        return header + _chunk(b"IDAT", rows) + draw.choice((b"", _chunk(b"IEND", b""))), "PNG rows that inflate"
    if what == "text bomb":
        content = b"a\0\0" + zlib_zeros(draw.choice((10, 100)))
        return data[:33] + _chunk(draw.choice((b"zTXt", b"iCCP")), content) + data[33:], "PNG text that inflates"
    if what == "rows":
        return _change_rows(data, draw)
    chunks = _chunks(data)
    if what == "order":
        place, other = draw.randrange(len(chunks)), draw.randrange(len(chunks))
        how = draw.choice(("swap", "drop", "double"))
        if how == "swap":
            chunks[place], chunks[other] = chunks[other], chunks[place]
        else:
            chunks[place:place + 1] = [] if how == "drop" else [chunks[place]] * draw.choice((2, 500))
        return data[:8] + b"".join(chunks), f"PNG chunks: {how} {place}"
    kind = draw.choice((b"PLTE", b"tRNS", b"gAMA", b"IHDR", b"IEND", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"eXIf",
                        b"sBIT", b"hIST", b"abcd", b"ABCD"))
    content = draw.choice((draw.randbytes(draw.choice((0, 1, 3, 6, 26, 768))), struct.pack(">II", 2**31 - 1, 0)))
    chunks.insert(draw.randrange(1, len(chunks) + 1), _chunk(kind, content))
    return data[:8] + b"".join(chunks), f"PNG chunk {kind!r}"


def _change_rows(data: bytes, draw: Random) -> tuple[bytes, str]:
    """The rows of pixels inflated, changed, and deflated again."""
    chunks = _chunks(data)
    first = next(number for number, chunk in enumerate(chunks) if chunk[4:8] == b"IDAT")
    inner = b"".join(chunk[8:-4] for chunk in chunks if chunk[4:8] == b"IDAT")
    rows, how = bytearray(zlib.decompress(inner)), draw.choice(("filter", "cut", "more", "window", "stored"))
    if how == "filter":
        height = int.from_bytes(data[20:24], "big")
        rows[draw.randrange(height) * (len(rows) // height)] = draw.choice((1, 2, 3, 4, 5, 255))
    elif how == "cut":
        del rows[draw.randrange(len(rows)):]
    elif how == "more":
        rows += bytes(draw.choice((1, 1000, 10**6)))
    packer = zlib.compressobj(0 if how == "stored" else 1, wbits=9 if how == "window" else 15)
    made = _chunk(b"IDAT", packer.compress(bytes(rows)) + packer.flush())
    rest = [chunk for chunk in chunks[first:] if chunk[4:8] != b"IDAT"]
    return data[:8] + b"".join([*chunks[:first], made, *rest]), f"PNG rows: {how}"


def _chunks(data: bytes) -> list[bytes]:
    chunks, place = [], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place:place + 4], "big")
        chunks.append(data[place:end])
        place = end
    return chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# ------------------------------------------------------------------ JPEG
def change_jpeg(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A JPEG frame header with another size, depth or sampling, or a segment too many."""
    frame = re.search(rb"\xff[\xc0-\xc2]\0.", data, re.DOTALL)
    what = draw.choice(("size", "frame", "segment", "marker"))
    if what == "segment" or frame is None:
        marker = bytes([0xFF, draw.choice(_JPEG_SEGMENTS)])
        content = draw.choice((draw.randbytes(draw.choice((0, 2, 20, 600))), *_ORIENTED))
        segment = marker + struct.pack(">H", len(content) + 2) + content
        return data[:2] + segment + data[2:], f"JPEG segment {marker.hex()}"
    at = frame.start()
    if what == "size":
        size = struct.pack(">HH", *(draw.choice(_SIDES) for _ in range(2)))
        return data[:at + 5] + size + data[at + 9:], f"JPEG size {size.hex()}"
    if what == "frame":
        place = at + draw.choice((1, 4, 9, 10, 11, 12, 14))
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1:], f"JPEG frame header at {place}"
    place = draw.randrange(at, len(data))
    return data[:place] + bytes([0xFF, draw.randrange(0xC0, 0x100)]) + data[place:], f"JPEG marker at {place}"


def change_segments(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A segment of a JPEG (a scan with its data is one) twice, or not there, elsewhere, or of another length."""
    segments = _segments(data)
    place, other = draw.randrange(1, len(segments)), draw.randrange(1, len(segments))
    what = draw.choice(("drop", "double", "swap", "length", "scans"))
    if what == "swap":
        segments[place], segments[other] = segments[other], segments[place]
    elif what == "length":
        size = draw.choice((0, 1, 2, 3, 65_535))
        segments[place] = segments[place][:2] + struct.pack(">H", size) + segments[place][4:]
    elif what == "scans":  # each scan of a progressive picture goes over all of it
        scans = [segment for segment in segments if segment[1:2] == b"\xda"]
        size = struct.pack(">HH", *draw.choice(((96, 48), (2000, 2000), (7000, 7000))))
        segments = [segment[:5] + size + segment[9:] if segment[1] in (0xC0, 0xC2) else segment for segment in segments]
        segments[-1:-1] = [draw.choice(scans)] * draw.choice((3, 100, 2000))
    else:
        segments[place:place + 1] = [] if what == "drop" else [segments[place]] * draw.choice((2, 2, 300))
    return b"".join(segments), f"JPEG segments: {what} {place}"


def change_scan(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """What a JPEG's end and middle lose: the end mark, half of it, a part of a scan, while the end mark stays."""
    scan = max(data.find(b"\xff\xda"), 2)
    start = draw.randrange(scan, len(data))
    end = draw.randrange(start, len(data) + 1)
    what = draw.choice(("no end", "half an end", "cut, with an end", "a gap", "zeros", "noise", "an end too early",
                        "zeros instead of the end", "restarts", "bits"))
    if what == "bits":
        changed, _ = flip(data[scan:], draw, means)
        return data[:scan] + changed, "JPEG scan: bits"
    return {
        "no end": data.removesuffix(b"\xff\xd9"), "half an end": data[:-1],
        "cut, with an end": data[:start] + b"\xff\xd9", "a gap": data[:start] + data[end:],
        "zeros": data[:start] + bytes(end - start) + data[end:],
        "noise": data[:start] + draw.randbytes(end - start) + data[end:],
        "an end too early": data[:start] + b"\xff\xd9" + data[start:],
        "zeros instead of the end": data[:start] + bytes(len(data) - start),
        "restarts": data[:start] + bytes([0xFF, 0xD0 + draw.randrange(8)]) * draw.choice((1, 9)) + data[start:],
    }[what], f"JPEG scan: {what} at {start}..{end}"


def _segments(data: bytes) -> list[bytes]:
    """What begins with each marker; a scan's data belong to it."""
    starts = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xd8-\xef\xfe]", data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


# ------------------------------------------------------------------ the other kinds
def change_rarer(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A BMP, WebP, TIFF, GIF, JPEG 2000 or PNM with another size, or its parts once more."""
    if data.startswith(b"P6"):
        words = data.split(None, 4)
        words[draw.randrange(0, 4)] = str(draw.choice((*_SIDES, *NUMBERS, "P3", "P1", "P7", "#", "9" * 500))).encode()
        return b"\n".join(words), "PNM header"
    if data.startswith(b"II*\0"):
        return _change_tiff(data, draw)
    if data.startswith(b"GIF8") and draw.random() < 0.5:
        frame = data.index(b",")
        if draw.random() < 0.5:
            size = struct.pack("<HHHH", *(draw.choice(_SIDES) for _ in range(4)))
            return data[:frame + 1] + size + data[frame + 9:], f"GIF frame {size.hex()}"
        return data[:-1] + data[frame:-1] * draw.choice((2, 500)) + data[-1:], "GIF frames"
    at, width, order = next((place for magic, place in (
        (b"BM", (18, 4, "little")), (b"GIF8", (6, 2, "little")), (b"RIFF", (26, 2, "little")))
        if data.startswith(magic)), (data.find(b"\xff\x51") + 6, 4, "big"))
    if data.startswith(b"\0\0\0\x0cjP") and draw.random() < 0.5:  # tiles, components, or the size in its box
        at = draw.choice((data.find(b"\xff\x51") + 22, data.find(b"\xff\x51") + 14, data.find(b"ihdr") + 4))
    sides = draw.choices((*_SIDES, 2**31 - 1, -1, -7000), k=2)
    size = b"".join((side % 256**width).to_bytes(width, order) for side in sides)
    if data.startswith(b"RIFF") and draw.random() < 0.5:  # a canvas, which animations have
        extended = b"VP8X" + struct.pack("<IB3x", 10, draw.choice((0, 2, 16, 63))) + size[:3] + size[1:4]
        return data[:12] + extended + data[12:], "WebP canvas"
    return data[:at] + size + data[at + 2 * width:], f"size {size.hex()}"


def _change_tiff(data: bytes, draw: Random) -> tuple[bytes, str]:
    """An entry of a TIFF's directory with another value or count, or a directory that is its own successor."""
    at = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[at:at + 2], "little")
    if draw.random() < 0.15:
        return data[:(end := at + 2 + 12 * count)] + struct.pack("<I", at) + data[end + 4:], "TIFF directory for ever"
    entry = at + 2 + 12 * draw.randrange(count)
    place, width = draw.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4)))
    value = draw.choice((*_SIDES, *NUMBERS)) % 256**width
    return data[:entry + place] + value.to_bytes(width, "little") + data[entry + place + width:], \
        f"TIFF entry {int.from_bytes(data[entry:entry + 2], 'little')}, {value} at {place}"
