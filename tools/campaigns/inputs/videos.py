"""Damage to the pictures within a video, whose frames are written out again so that a reader comes to them."""
from __future__ import annotations

import struct
from random import Random

from tools.campaigns.inputs import pictures
from tools.campaigns.inputs.values import NUMBERS, Means

_FRAME = b"00dc"


def is_avi(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"AVI "


def change_frame(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A frame of an AVI that is a JPEG or a PNG, damaged as such files are; or all of them become that one."""
    places = _frames(data)
    start, length = draw.choice(places)
    frame = data[start:start + length]
    change = draw.choice((pictures.change_png,) if pictures.is_png(frame) else (
        pictures.change_jpeg, pictures.change_segments, pictures.change_scan))
    changed, done = change(frame, draw, means)
    which = places if draw.random() < 0.3 else [(start, length)]
    for start, length in reversed(which):
        piece = struct.pack("<I", len(changed)) + changed + b"\0" * (len(changed) % 2)
        data = data[:start - 4] + piece + data[start + length + length % 2:]
    return data, f"{len(which)} frames, {done}"


def change_header(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A number of an AVI's headers: sides, counts, rates, offsets."""
    end = data.index(b"movi")
    place = 12 + 4 * draw.randrange((end - 12) // 4)
    number = draw.choice(NUMBERS) % 2**32
    return data[:place] + struct.pack("<I", number) + data[place + 4:], f"AVI: {number} at {place}"


def _frames(data: bytes) -> list[tuple[int, int]]:
    """(place, length) of the frames that are a JPEG or a PNG."""
    found, at = [], data.index(b"movi") + 4
    while data[at:at + 4] == _FRAME:
        length = int.from_bytes(data[at + 4:at + 8], "little")
        frame = data[at + 8:at + 8 + length]
        if pictures.is_png(frame) or pictures.is_jpeg(frame):
            found.append((at + 8, length))
        at += 8 + length + length % 2
    return found
