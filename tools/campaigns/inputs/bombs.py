"""Zeros that are small until somebody inflates them, made without ever being there."""
from __future__ import annotations

import functools
import struct
import zlib

_MIB = 1 << 20
_ADLER = 65521


@functools.cache
def _pieces() -> tuple[bytes, bytes]:
    """A deflated MiB of zeros that others may follow, and what ends a stream."""
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH), packer.flush()


def deflated_zeros(mib: int) -> bytes:
    """A raw deflate stream of that many MiB, a thousandth of their size."""
    piece, end = _pieces()
    return piece * mib + end


def zlib_zeros(mib: int) -> bytes:
    """The same with zlib's header and checksum."""
    return b"\x78\xda" + deflated_zeros(mib) + struct.pack(">I", (mib * _MIB % _ADLER) << 16 | 1)


@functools.cache
def crc_of_zeros(mib: int) -> int:
    """CRC-32 of that many MiB of zeros."""
    crc, piece = 0, bytes(_MIB)
    for _ in range(mib):
        crc = zlib.crc32(piece, crc)
    return crc
