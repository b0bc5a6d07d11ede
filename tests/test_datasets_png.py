"""PNG files inflated by igzip: the pixels that OpenCV itself finds, and any file that is not as usual left to it."""
import struct
import zlib

import cv2
import numpy as np
import pytest

from datasets.files import png
from datasets.files.images import decode

NOISE = np.random.default_rng(0).integers(0, 256, (97, 61, 4), dtype=np.uint8)


def file(header: tuple, rows: bytes, *between: tuple[bytes, bytes], parts: int = 1) -> bytes:
    """A PNG; header: width, height, depth, colour type, interlaced; rows: a zlib stream, in so many chunks."""
    width, height, depth, color, interlaced = header
    length = max(1, -(-len(rows) // parts))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)), *between,
              *((b"IDAT", rows[start:start + length]) for start in range(0, len(rows), length)), (b"IEND", b"")]
    return png.SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks)


def raw(height: int, row_bytes: int) -> bytes:
    """Rows of noise, each filtered by another of the five filters."""
    random = np.random.default_rng(1)
    rows = random.integers(0, 256, (height, 1 + row_bytes), dtype=np.uint8)
    rows[:, 0] = np.arange(height) % 5
    return rows.tobytes()


PALETTE = (b"PLTE", bytes(range(48)))
KINDS = {
    "colours": ((40, 30, 8, 2, 0), 120, ()), "of 16 bits": ((40, 30, 16, 2, 0), 240, ()),
    "transparent": ((40, 30, 8, 6, 0), 160, ()), "grey": ((40, 30, 8, 0, 0), 40, ()),
    "grey of 16 bits": ((40, 30, 16, 0, 0), 80, ()), "grey and transparent": ((40, 30, 8, 4, 0), 80, ()),
    "black and white": ((41, 30, 1, 0, 0), 6, ()), "palette": ((41, 30, 4, 3, 0), 21, (PALETTE,)),
    "transparent palette": ((41, 30, 4, 3, 0), 21, (PALETTE, (b"tRNS", b"\0\x80"))),
    "more than a block": ((300, 200, 8, 2, 0), 900, ()), "a text within": ((4, 3, 8, 2, 0), 12, ((b"tEXt", b"a\0b"),)),
    "one pixel": ((1, 1, 8, 2, 0), 3, ()),
}


@pytest.fixture
def isal():
    return pytest.importorskip("isal")


@pytest.mark.usefixtures("isal")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_inflated_has_the_pixels_of_the_file(kind, parts, monkeypatch):
    header, row_bytes, between = KINDS[kind]
    data = file(header, zlib.compress(raw(header[1], row_bytes)), *between, parts=parts)
    inflated = png.inflate(data)
    assert inflated != data
    assert png.find_problem(inflated) is None
    found = decode(data)
    monkeypatch.setattr(png, "isal_zlib", None)
    assert png.inflate(data) == data
    np.testing.assert_array_equal(found, decode(data))
    np.testing.assert_array_equal(found, decode(inflated))


@pytest.mark.usefixtures("isal")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_opencvs_own_files_are_inflated_to_the_same_pixels(channels, level):
    image = np.ascontiguousarray(NOISE[..., :channels])
    data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
    again = cv2.imdecode(np.frombuffer(png.inflate(data), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again.reshape(image.shape), image)


ROWS = raw(30, 120)
STREAM = zlib.compress(ROWS)
UNUSUAL = {
    "interlaced": ((40, 30, 8, 2, 1), STREAM),
    "of unknown colours": ((40, 30, 8, 5, 0), STREAM),
    "of fewer rows": ((40, 31, 8, 2, 0), STREAM),
    "of more rows": ((40, 29, 8, 2, 0), STREAM),
    "of a wrong checksum": ((40, 30, 8, 2, 0), STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "cut off": ((40, 30, 8, 2, 0), STREAM[:-6]),
    "no stream": ((40, 30, 8, 2, 0), b"no stream"),
    "without rows": ((40, 30, 8, 2, 0), b""),
    "of no height": ((40, 0, 8, 2, 0), STREAM),
    "that says it is huge": ((2**31 - 1, 2**31 - 1, 8, 2, 0), STREAM),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_file_that_is_not_as_usual_is_left_as_it_is(kind):
    data = file(*UNUSUAL[kind])
    assert png.inflate(data) == data


@pytest.mark.usefixtures("isal")
def test_a_small_file_does_not_swell_beyond_its_picture(monkeypatch):
    asked = []

    class Counting:
        def __init__(self):
            self.stream = original()

        def decompress(self, data, most):
            asked.append(most)
            return self.stream.decompress(data, most)

        eof = property(lambda self: self.stream.eof)

    original = png.isal_zlib.decompressobj
    monkeypatch.setattr(png.isal_zlib, "decompressobj", Counting)
    bomb = file((40, 30, 8, 2, 0), zlib.compress(bytes(10**8)))
    assert png.inflate(bomb) == bomb
    assert asked == [30 * 121 + 1]


@pytest.mark.parametrize("length", [0, 8, 12, 20, 33])
def test_a_piece_of_a_file_is_left_as_it_is(length):
    data = file((40, 30, 8, 2, 0), STREAM)[:length]
    assert png.inflate(data) == data
