"""Whether an .onnx file has weights in other files, told from its bytes before a runtime opens it.

onnxruntime 1.23, among others, reads any file that a model names, also /etc/passwd; the file may be a stranger's.
Field numbers and wire types: onnx.proto of the ONNX project, and the encoding of protocol buffers.
"""
from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# {message: {number of a field: the message in it}}, as far as tensors can be.
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
_FIXED = {1: 8, 5: 4}  # bytes of the wire types of one size


def check_alone(path: Path) -> None:
    """Refuse an .onnx file that has weights elsewhere, as none of tools/export.py has.

    Raises:
        ValueError: it has, or it is no ONNX file.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            alone = not _has_external_data(data)
    except (ValueError, IndexError):  # an empty file cannot be mapped
        raise ValueError(f"{path}: not an ONNX file: its fields do not fit together") from None
    if not alone:
        raise ValueError(f"{path}: has weights in other files, which are not read; tools/export.py writes all into one")


def _has_external_data(data: mmap.mmap) -> bool:
    waiting = [("model", 0, len(data))]
    while waiting:
        message, start, stop = waiting.pop()
        within = _WITHIN[message]
        for number, begin, end in _messages(data, start, stop):
            if within.get(number) == "external data":
                return True
            if number in within:
                waiting.append((within[number], begin, end))
    return False


def _messages(data: mmap.mmap, place: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the fields of a message that have a length.

    Raises:
        ValueError, IndexError: the bytes are no message.
    """
    while place < stop:
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            _, place = _varint(data, place)
        elif kind == 2:
            length, place = _varint(data, place)
            yield key >> 3, place, place + length
            place += length
        elif kind in _FIXED:
            place += _FIXED[kind]
        else:
            raise ValueError(f"no wire type {kind}")
    if place > stop:
        raise ValueError("a field is longer than what it is in")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it.

    >>> _varint(bytes([0xAC, 0x02, 0x07]), 0)
    (300, 2)
    """
    value = shift = 0
    while shift < 70:
        byte = data[place]
        value, place, shift = value | (byte & 0x7F) << shift, place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than ten bytes")
