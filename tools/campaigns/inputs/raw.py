"""Damage to bytes, whatever they are: as disks, networks and unlucky programs do it."""
from __future__ import annotations

import pickle
from pathlib import Path
from random import Random
from typing import Any

from tools.campaigns.inputs.values import NUMBERS, WORDS, Means


class Payload:
    """What unpickling it would do: make the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple]:
        return open, (str(self.canary), "w")


def _span(data: bytes, draw: Random, most: int = 4096) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 2, 4, 8, 64, draw.randint(1, most))))


def flip(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    if not data:
        return b"\0", "a byte in an empty file"
    changed, count = bytearray(data), draw.choice((1, 1, 1, 2, 16))
    for _ in range(count):
        place = draw.randrange(min(len(data), draw.choice((16, 64, 512, len(data)))))
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed), f"{count} bits flipped"


def overwrite(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    filler = draw.choice((b"\0", b"\xff", None))
    piece = filler * (end - start) if filler else draw.randbytes(end - start)
    return data[:start] + piece + data[end:], f"bytes {start}..{end} overwritten"


def number(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A binary number, as a header has them, replaced by an extreme one."""
    width = draw.choice((1, 2, 4, 8))
    start = draw.randrange(min(len(data), draw.choice((32, 128, 1024, len(data) + 1))))
    value = draw.choice(NUMBERS) % 256**width
    return data[:start] + value.to_bytes(width, draw.choice(("little", "big"))) + data[start + width:], \
        f"{value} in {width} bytes at {start}"


def cut(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    length = draw.choice((0, 1, draw.randrange(len(data) + 1), max(0, len(data) - draw.randint(1, 32))))
    return data[:length], f"cut to {length} bytes"


def remove(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    return data[:start] + data[end:], f"bytes {start}..{end} removed"


def insert(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    start = draw.randrange(len(data) + 1)
    piece = draw.choice((draw.randbytes(draw.randint(1, 64)), bytes(draw.randint(1, 64)), b"\n" * 3,
                         draw.choice(WORDS).encode("utf-8")))
    return data[:start] + piece + data[start:], f"{len(piece)} bytes put in at {start}"


def repeat(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    place, times = draw.choice((end, draw.randrange(len(data) + 1))), draw.choice((1, 2, 50))
    return data[:place] + data[start:end] * times + data[place:], f"bytes {start}..{end} repeated {times} times"


def append(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    return data + draw.choice((data, bytes(4096), draw.randbytes(100))), "something behind the end"


def pickled(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    return pickle.dumps(Payload(means.canary), protocol=draw.choice((0, 2, 4))), "a pickle that runs code"


def _splice(data: bytes, draw: Random, others: list[bytes]) -> tuple[bytes, str]:
    other = draw.choice(others)
    start, end = _span(other, draw, 65536)
    place = draw.choice((0, draw.randrange(len(data) + 1)))
    rest = data[place:] if draw.random() < 0.5 else data[place + end - start:]
    return data[:place] + other[start:end] + rest, "a piece of another kind of file"


def splice(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    other = draw.choice(means.others)
    start, end = _span(other, draw, 65536)
    place = draw.choice((0, draw.randrange(len(data) + 1)))
    rest = data[place:] if draw.random() < 0.5 else data[place + end - start:]
    return data[:place] + other[start:end] + rest, "a piece of another kind of file"
