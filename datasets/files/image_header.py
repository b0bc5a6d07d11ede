"""What an image file says of itself before it is decoded: format, size and colour mode."""
from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

from datasets.files import jpeg, png

FORMATS = ("unknown", "PNG", "JPEG", "BMP", "WebP", "TIFF", "GIF", "PNM", "JPEG 2000")
SUFFIXES = {".png": "PNG", ".webp": "WebP", ".gif": "GIF",
            **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"), **dict.fromkeys((".bmp", ".dib"), "BMP"),
            **dict.fromkeys((".tif", ".tiff"), "TIFF"), **dict.fromkeys((".jp2", ".j2k"), "JPEG 2000"),
            **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PNM")}
RGB = "RGB"
MODES = ("unknown", RGB, "RGBA", "grey", "grey with alpha", "palette", "black and white", "CMYK", "16-bit RGB",
         "16-bit RGBA", "16-bit grey", "16-bit grey with alpha", "12-bit")

_PNG_MODES = {0: "grey", 2: RGB, 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_JPEG_MODES = {1: "grey", 3: RGB, 4: "CMYK"}
_PILLOW_FORMATS = {"TIFF": "TIFF", "GIF": "GIF", "PPM": "PNM", "JPEG2000": "JPEG 2000"}
_PILLOW_MODES = {"RGB": RGB, "RGBA": "RGBA", "L": "grey", "LA": "grey with alpha", "P": "palette",
                 "1": "black and white", "CMYK": "CMYK", "I;16": "16-bit grey", "I;16B": "16-bit grey"}
_BMP_MODES = {1: "palette", 4: "palette", 8: "palette", 16: RGB, 24: RGB, 32: RGB}  # 32: the fourth byte is padding


class Header(NamedTuple):
    """format of FORMATS, size in pixels (0 = the file does not say), mode of MODES."""

    format: str = "unknown"
    width: int = 0
    height: int = 0
    mode: str = "unknown"


def read_header(data: bytes) -> Header:
    """The header of a whole image file; what is of none of FORMATS, or ends within its header, is unknown."""
    for magic, read in ((png.SIGNATURE, _png), (jpeg.SIGNATURE, _jpeg), (b"BM", _bmp), (b"RIFF", _webp)):
        if data.startswith(magic):
            try:
                return read(data)
            except IndexError:
                return Header()
    return _rarer(data)


def _png(data: bytes) -> Header:
    depth, colour = data[24], data[25]
    mode = _PNG_MODES.get(colour, "unknown")
    if depth == 16:
        mode = f"16-bit {mode}"
    elif depth == 1 and mode == "grey":
        mode = "black and white"
    return Header("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"),
                  mode if mode in MODES else "unknown")


def _jpeg(data: bytes) -> Header:
    header = jpeg.read_header(data)
    if not header.depth:
        return Header()
    mode = _JPEG_MODES.get(header.channels, "unknown") if header.depth == 8 else "12-bit"
    return Header("JPEG", header.width, header.height, mode)


def _bmp(data: bytes) -> Header:
    if int.from_bytes(data[14:18], "little") < 40:  # OS/2's header of 1987
        return Header("BMP", int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little"),
                      _BMP_MODES.get(data[24], "unknown"))
    width, height = (abs(int.from_bytes(data[at:at + 4], "little", signed=True)) for at in (18, 22))
    return Header("BMP", width, height, _BMP_MODES.get(data[28], "unknown"))  # a height below 0: top row first


def _webp(data: bytes) -> Header:
    if data[8:12] != b"WEBP":
        return Header()
    kind = data[12:16]
    if kind == b"VP8X":  # a flag byte, three reserved ones, then width - 1 and height - 1
        width, height = (1 + int.from_bytes(data[at:at + 3], "little") for at in (24, 27))
        return Header("WebP", width, height, "RGBA" if data[20] & 0x10 else RGB)
    if kind == b"VP8L":  # a signature byte, then 14 bits each of width - 1 and height - 1, and one for alpha
        bits = int.from_bytes(data[21:25], "little")
        return Header("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), "RGBA" if bits >> 28 & 1 else RGB)
    width, height = (int.from_bytes(data[at:at + 2], "little") & 0x3FFF for at in (26, 28))
    return Header("WebP", width, height, RGB)


def _rarer(data: bytes) -> Header:
    """A format that few sets have, as Pillow reads its header."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, and of tags that are cut off
            with Image.open(io.BytesIO(data), formats=list(_PILLOW_FORMATS)) as image:
                return Header(_PILLOW_FORMATS[image.format], *image.size, _PILLOW_MODES.get(image.mode, "unknown"))
    except Image.DecompressionBombError as error:  # it does not say in which format, nor both sides
        return Header(width=int(re.search(r"\d+", str(error))[0]), height=1)
    except Exception:  # what a damaged header makes Pillow raise may be of any type
        return Header()
