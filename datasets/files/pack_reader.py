"""A packed set: many images in a few large files, read at random through memory maps.

A pack is a folder, made by datasets.files.pack_writer:

    index.json       format, size, number of images, the shards with their lengths, checksums of the next two
    keys.npy         [N] the keys in UTF-8, sorted, for a binary search
    records.npy      [N] ROW: which shard, where in it, how long, crc32
    00000.shard …    HEADER, then one image file after the other

What is stored for an image is an image file again: the file itself, or, decoded and resized once, an uncompressed BMP.
So a pack is an ImageSource like a folder, and what is read from it is decoded by the same function.
"""
from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bases import format_names
from datasets.files.images import BadImage, ImageSource, decode
from datasets.files.png import crc32
from utils.files import read_array, read_json, sha256_of

FORMAT = 1
INDEX, KEYS, ROWS, BEGUN = "index.json", "keys.npy", "records.npy", "begun.json"
HEADER = b"re-ID pack shard"
ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("checksum", "<u4"), ("shard", "<u4")])
_COMPARED = 32  # images that are compared with their files when a pack is opened


class PackedSource:
    """The images of a pack.

    Checked when it is opened: the index and the tables (by checksum) and that every shard has its length. Each image's
    own checksum is checked when it is read.

    Args:
        folder: made by tools/pack.py.
    Attributes:
        size: (height, width) that the images were decoded at; None: they are the files as they were.
    Raises:
        OSError: there is no such folder, or no pack in it.
        ValueError: the pack is not finished, damaged, or of a format that this version does not know.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._index = read_index(self.folder)
        for name in (KEYS, ROWS):
            if sha256_of(self.folder / name) != self._index["sha256"].get(name):
                raise ValueError(_damaged(self.folder, f"{name} is not as it was written"))
        self._open()

    def _open(self) -> None:
        size = self._index["size"]
        self.size: tuple[int, int] | None = None if size is None else (size[0], size[1])
        self._keys = read_array(self.folder / KEYS, "S", 1, mapped=True)
        self._rows = read_array(self.folder / ROWS, "V", 1, mapped=True)
        if self._rows.dtype != ROW or len(self._rows) != len(self._keys) or not len(self._keys):
            raise ValueError(_damaged(self.folder, f"{KEYS} and {ROWS} do not belong together"))
        self._shards = [_map(self.folder / shard_name(number), length)
                        for number, length in enumerate(self._index["shards"])]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_index": self._index}  # a worker that is spawned maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"PackedSource({str(self.folder)!r})"

    def describe(self) -> str:
        """How many images, stored how, in how much."""
        shards = self._index["shards"]
        return (f"{len(self):,} images, {stored_as(self.size)}, in {len(shards)} shard{'s' * (len(shards) > 1)}, "
                f"{sum(shards) / 2**20:,.1f} MiB")

    def all_keys(self) -> list[str]:
        """All keys, in the order in which their images are stored."""
        return [decode_key(name) for name in self._keys]

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that the pack does not hold."""
        names = np.array([encode_key(key) for key in keys], np.bytes_)
        rows = np.searchsorted(self._keys, names).clip(max=len(self) - 1)
        return [keys[i] for i in np.flatnonzero(self._keys[rows] != names)]

    def read(self, key: str) -> bytes:
        """The image file stored for `key`; see `ImageSource.read`.

        Raises:
            OSError: the pack does not hold the key, or the image is damaged in it.
        """
        row = self._row(key)
        if row is None:
            raise FileNotFoundError(f"{key}: not in the packed set {self.folder}")
        offset, length, checksum, shard = self._rows[row].item()
        if shard >= len(self._shards):
            raise OSError(f"{key}: damaged in {self.folder} (no shard {shard}); pack the set again")
        data = self._shards[shard][offset:offset + length]
        if crc32(data) != checksum:
            raise OSError(f"{key}: damaged in {self.folder / shard_name(shard)} (checksum); pack the set again")
        return data

    def _row(self, key: str) -> int | None:
        """Where in the tables a key stands."""
        name = encode_key(key)
        if len(name) > self._keys.itemsize:  # numpy would widen, and copy, all keys to compare it
            return None
        row = int(np.searchsorted(self._keys, np.bytes_(name)))
        return row if row < len(self._keys) and self._keys[row] == name else None


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:05d}.shard"


def encode_key(key: str) -> bytes:
    """A key as the tables hold it; a file name that is no UTF-8 comes back as it was."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(name: bytes) -> str:
    """The inverse of `encode_key`."""
    return name.decode("utf-8", "surrogateescape")


def read_index(folder: Path) -> dict[str, Any]:
    """A pack's index.json: format, size, shards (lengths in bytes), sha256 (of the tables), plan.

    Raises:
        OSError, ValueError: as `PackedSource`.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"packed set {folder} does not exist or is no folder")
    if not (folder / INDEX).is_file():
        if (folder / BEGUN).is_file():
            raise ValueError(f"the packed set {folder} is not finished; run the same tools/pack.py command again, it "
                             "goes on where it stopped")
        raise FileNotFoundError(f"{folder} holds no packed set (no {INDEX}); tools/pack.py makes one")
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{folder / INDEX}: not an index of a packed set that this version reads (format {FORMAT})")
    if not ({"size", "shards", "sha256", "plan"} <= set(index) and isinstance(index["sha256"], dict)
            and isinstance(index["plan"], dict) and _are_counts(index["shards"])
            and is_size(index["size"])):
        raise ValueError(f"{folder / INDEX} is not whole; remove the folder and pack the set again")
    return index


def is_size(value: Any) -> bool:
    """Whether a value of JSON is (height, width) of decoded images, or None."""
    return value is None or (_are_counts(value) and len(value) == 2)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is int and value > 0 for value in values)


def _map(path: Path, length: int) -> mmap.mmap:
    """A shard's memory map."""
    size = path.stat().st_size if path.is_file() else 0
    if size != length:
        raise ValueError(_damaged(path.parent, f"{path.name} should have {length:,} bytes and has {size:,}"))
    with open(path, "rb") as shard:
        return mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ)


def _damaged(folder: Path, what: str) -> str:
    return f"the packed set {folder} is damaged: {what}; pack it again with tools/pack.py --force"


def open_packed(folder: str | os.PathLike, files: ImageSource, keys: Sequence[str],
                sizes: Mapping[str, tuple[int, int]]) -> PackedSource:
    """Open a pack for images that could also be read from `files`, and see to it that it gives the same.

    Args:
        folder: the pack.
        files: where the images come from without it.
        keys: of the images that will be read.
        sizes: the sizes (height, width) that they will be decoded at, by the config key that has it.
    Raises:
        OSError, ValueError: as `PackedSource`; the pack lacks images; it was decoded at another size; or one of a
            few images that are compared, spread over `keys`, is not the file's.
    """
    packed = PackedSource(folder)
    for name, size in sizes.items():
        if packed.size not in (None, tuple(size)):
            raise ValueError(
                f"DATASETS.PACKED={folder} holds images {stored_as(packed.size)}, but {name}={list(size)}; pack the "
                "set at that size or as files (tools/pack.py), or set DATASETS.PACKED to ''")
    missing = packed.missing(keys)
    if missing:
        raise ValueError(f"DATASETS.PACKED={folder} lacks {len(missing):,} of {len(keys):,} images "
                         f"({format_names(missing)}); pack the set again, or set DATASETS.PACKED to ''")
    problem = first_difference(packed, files, keys[::len(keys) // _COMPARED + 1])
    if problem:
        raise ValueError(f"DATASETS.PACKED={folder} was made from other files than those in {files}: {problem}; pack "
                         "the set again (tools/pack.py --force), or set DATASETS.PACKED to ''")
    return packed


def first_difference(packed: PackedSource, files: ImageSource, keys: Iterable[str]) -> str | None:
    """The first `difference` among `keys`; an image that cannot be read is passed over: reading it will raise."""
    for key in keys:
        with contextlib.suppress(OSError):
            if problem := difference(packed, files, key):
                return problem
    return None


def difference(packed: PackedSource, files: ImageSource, key: str) -> str | None:
    """What of an image is not in the pack as it is in the files; None: it is, in every byte or every pixel.

    Raises:
        OSError, BadImage: the image cannot be read.
    """
    stored, data = packed.read(key), files.read(key)
    if stored == data:
        return None
    if packed.size is None:
        return f"{key} has {len(data):,} bytes there, {len(stored):,} in the pack, not the same ones"
    try:
        same = np.array_equal(decode(data, packed.size, key), decode(stored, packed.size, key))
    except BadImage as error:  # what cannot be decoded is stored as it is
        return f"one of the two cannot be decoded: {error}"
    return None if same else f"{key} gives other pixels, or this version decodes it in another way"


def stored_as(size: Sequence[int] | None) -> str:
    """In words, what a pack of this size holds."""
    return "as files" if size is None else f"decoded at {size[0]}x{size[1]}"
