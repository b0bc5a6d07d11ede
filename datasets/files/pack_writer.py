"""Making a packed set (datasets.files.pack_reader), and checking one.

Shards are written one after the other, each whole or not at all, and the index last. A packing that is stopped goes on
after its last whole shard: until the index is there, begun.json has what is being packed and NUMBER.npy what is in
shard NUMBER.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.bases import Problems, format_names
from datasets.files.images import BadImage, ImageSource, decode
from datasets.files.pack_reader import (
    BEGUN,
    FORMAT,
    HEADER,
    INDEX,
    KEYS,
    ROW,
    ROWS,
    PackedSource,
    decode_key,
    difference,
    encode_key,
    first_difference,
    is_size,
    shard_name,
    stored_as,
)
from utils.files import atomic_path, read_array, read_json, sha256_of, write_array, write_json
from utils.parallel import in_threads
from utils.process import RunLock
from utils.progress import progress

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**31
_LOCK = ".lock"
_LEFT = re.compile(r"\.lock|\.begun\.json\..*\.tmp")  # what a packing leaves that was killed when it began
_OURS = re.compile(r"(index|begun)\.json|(keys|records|\d{5,})\.npy|\d{5,}\.shard|\.lock|\..*\.\d+\.[0-9a-f]{8}\.tmp")
_PART = np.dtype([("length", "<u4"), ("checksum", "<u4"), ("broken", "?")])  # of an image, in NUMBER.npy


class _Stored(NamedTuple):
    """What a pack keeps of an image; `broken`: it cannot be decoded, and is kept as it is."""

    data: bytes
    checksum: int
    broken: bool


def pack(source: ImageSource, keys: Sequence[str], folder: str | os.PathLike, size: tuple[int, int] | None = None,
         threads: int | None = None, force: bool = False, shard_bytes: int = SHARD_BYTES) -> PackedSource:
    """Pack images, or go on where an earlier call with the same images and size was stopped.

    If files are decoded, a file that cannot be is kept as it is, so that reading it from the pack gives the same error
    as reading the file.

    Args:
        source: what gives the images; several threads read from it.
        keys: of the images; twice is once.
        folder: where the pack goes: a new or empty folder, or one that holds a pack.
        size: (height, width) to decode and resize to; None = keep the files as they are.
        threads: that read and decode, and images in memory at a time; None = one a core.
        force: replace another pack that stands there.
        shard_bytes: a shard ends with the image that makes it as long as this.
    Returns:
        The pack, opened.
    Raises:
        OSError: an image cannot be read, or the pack cannot be written.
        ValueError: there is nothing to pack, the folder holds something else, or a pack of files that have changed.
    """
    folder, names = Path(folder), sorted({encode_key(key) for key in keys})
    if not names:
        raise ValueError("there is no image to pack")
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"format": FORMAT, "size": None if size is None else list(size), "shard_bytes": shard_bytes,
            "images": len(names), "keys": hashlib.sha256(b"\0".join(names)).hexdigest()}
    with RunLock(folder / _LOCK):
        for path in folder.glob(".*.tmp"):  # left by a packing that was killed
            path.unlink()
        if not _is_finished(folder, plan, force):
            parts = _whole_shards(folder, len(names))
            _write_shards(folder, source, [decode_key(name) for name in names], size, threads or os.cpu_count() or 1,
                          shard_bytes, parts)
            _finish(folder, plan, names, parts)
        for path in [folder / BEGUN, *folder.glob("[0-9]*.npy")]:  # of use to an unfinished pack only
            path.unlink(missing_ok=True)
    packed = PackedSource(folder)
    compared = packed.all_keys()[:: len(names) // 100 + 1]
    if problem := first_difference(packed, source, compared):
        raise ValueError(f"{folder} was packed from other files than those in {source}: {problem}; pack them again "
                         "with --force")
    return packed


# ------------------------------------------------------------------------------------------- what stands there already
def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a pack: nothing of anyone else's is mixed with it or removed."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder for the packed set")
    ours = _OURS if _plan_in(folder) else _LEFT
    others = [path.name for path in folder.glob("*") if not ours.fullmatch(path.name)]
    if others:
        raise ValueError(f"{folder} holds other files ({format_names(others)}); name a new folder for the packed set")


def _plan_in(folder: Path) -> dict[str, Any] | None:
    """What the pack in this folder, finished or not, was made of; None: there is none."""
    for name in (INDEX, BEGUN):
        if (folder / name).is_file():
            plan = read_json(folder / name)
            plan = plan.get("plan") if name == INDEX and isinstance(plan, dict) else plan
            if _is_plan(plan):
                return plan
    return None


def _is_plan(plan: Any) -> bool:
    return (isinstance(plan, dict) and {"format", "size", "images", "keys"} <= set(plan) and is_size(plan["size"])
            and type(plan["images"]) is int and isinstance(plan["keys"], str))


def _is_finished(folder: Path, plan: dict[str, Any], force: bool) -> bool:
    """True: this very pack is there. False: it is to be made, and the folder is ready for that or for going on.

    Raises:
        ValueError: another pack is there, finished or not, and is not to be replaced.
    """
    there = _plan_in(folder)
    if there == plan and not force:
        return (folder / INDEX).is_file()
    if there and not force:
        raise ValueError(f"{folder} holds another pack, of {_describe(there)}, not of {_describe(plan)}; replace it "
                         "with --force, or name another folder")
    # In this order: at no time does a shard of the old pack count as one of the new.
    for path in folder.glob("[0-9]*.npy"):
        path.unlink()
    write_json(folder / BEGUN, plan)
    for path in [folder / INDEX, folder / KEYS, folder / ROWS, *folder.glob("[0-9]*.shard")]:
        path.unlink(missing_ok=True)
    return False


def _describe(plan: dict[str, Any]) -> str:
    return f"{plan['images']:,} images {stored_as(plan['size'])} (digest of their names {plan['keys'][:8]})"


def _whole_shards(folder: Path, images: int) -> list[np.ndarray]:
    """The tables of the shards that an earlier packing of so many images finished, [n] _PART each.

    A shard that does not fit its table, for one of them is damaged, and those behind it are packed again.
    """
    parts: list[np.ndarray] = []
    while (table := _part_path(folder, len(parts))).is_file() and (folder / shard_name(len(parts))).is_file():
        part = _read_part(table, folder / shard_name(len(parts)), images - sum(map(len, parts)))
        if part is None:
            logger.warning("%s is damaged, or %s is: from there on, the set is packed again", table.name,
                           shard_name(len(parts)))
            break
        parts.append(part)
    if parts:
        logger.info("%s: going on after %d shards, %d images", folder, len(parts), sum(map(len, parts)))
    return parts


def _read_part(table: Path, shard: Path, most: int) -> np.ndarray | None:
    """The table of a shard of `most` images at most; None: it is not that of this shard."""
    try:
        part = read_array(table, "V", 1)
    except ValueError:
        return None
    if part.dtype != _PART or not 0 < len(part) <= most:
        return None
    length = len(HEADER) + int(part["length"].sum(dtype=np.uint64))
    return part if shard.stat().st_size == length else None


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


# ------------------------------------------------------------------------------------------------------------- packing
def _write_shards(folder: Path, source: ImageSource, keys: list[str], size: tuple[int, int] | None, threads: int,
                  shard_bytes: int, parts: list[np.ndarray]) -> None:
    """Write what is not in `parts` yet, and add each shard's table to it."""
    def store(key: str) -> _Stored:
        return _encode(source.read(key), size)

    left = keys[sum(map(len, parts)):]
    _check_space(folder, len(left), size)
    stored = progress(in_threads(store, left, threads), "packing", "image", total=len(left))
    while sum(map(len, parts)) < len(keys):
        number = len(parts)
        part = _write_shard(folder / shard_name(number), stored, shard_bytes)
        write_array(_part_path(folder, number), part)
        parts.append(part)
    next(stored, None)  # let the progress bar end


def _encode(data: bytes, size: tuple[int, int] | None) -> _Stored:
    """What a pack of this size keeps of an image file."""
    broken = False
    if size is not None:
        try:
            data = to_bmp(decode(data, size))
        except BadImage:
            broken = True
    return _Stored(data, zlib.crc32(data), broken)


def to_bmp(image: np.ndarray) -> bytes:
    """An uncompressed 24-bit BMP file of uint8 [h, w, 3], RGB."""
    return cv2.imencode(".bmp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _check_space(folder: Path, images: int, size: tuple[int, int] | None) -> None:
    """Decoded images have a known length; a full disk had better be known before than after hours."""
    if size is not None:
        needed, free = 3 * images * size[0] * size[1], shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(f"{folder}: {images:,} images of {size[0]}x{size[1]} take {needed / 2**20:,.2f} MiB, "
                          f"and {free / 2**20:,.2f} MiB are free there")


def _write_shard(path: Path, stored: Iterator[_Stored], shard_bytes: int) -> np.ndarray:
    """Write a shard of what comes from `stored`; return its table."""
    rows: list[tuple[int, int, bool]] = []
    with atomic_path(path) as temporary, open(temporary, "wb") as shard:
        shard.write(HEADER)
        for data, checksum, broken in stored:
            shard.write(data)
            rows.append((len(data), checksum, broken))
            if shard.tell() >= shard_bytes:
                break
    return np.array(rows, _PART)


def _finish(folder: Path, plan: dict[str, Any], names: list[bytes], parts: list[np.ndarray]) -> None:
    """Write the tables, then the index: from now on it is a pack."""
    table = np.empty(len(names), ROW)
    shards, done = [], 0
    for number, part in enumerate(parts):
        ends = len(HEADER) + np.cumsum(part["length"], dtype=np.uint64)
        rows = table[done : done + len(part)]
        rows["offset"], rows["length"], rows["checksum"] = ends - part["length"], part["length"], part["checksum"]
        rows["shard"] = number
        shards.append(int(ends[-1]))
        done += len(part)
    write_array(folder / KEYS, np.array(names, np.bytes_))
    write_array(folder / ROWS, table)
    write_json(folder / INDEX, {
        "format": FORMAT, "size": plan["size"], "images": len(names), "shards": shards,
        "sha256": {name: sha256_of(folder / name) for name in (KEYS, ROWS)}, "opencv": cv2.__version__, "plan": plan,
    })
    broken = [decode_key(names[row]) for row in np.flatnonzero(np.concatenate(parts)["broken"])]
    if broken:
        logger.warning("%s: %d of %d images cannot be decoded and are kept as they are: %s", folder, len(broken),
                       len(names), format_names(broken, 20))


# ------------------------------------------------------------------------------------------------------------ checking
def verify(packed: PackedSource, files: ImageSource | None = None, threads: int | None = None) -> int:
    """Read every image of a pack: its checksum must fit and, with `files`, it must be what they give.

    Returns:
        The number of images.
    Raises:
        ValueError: images are damaged or differ; the first twenty are named.
    """
    def fault(key: str) -> str | None:
        try:
            if files is not None:
                return difference(packed, files, key)
            packed.read(key)
        except (OSError, BadImage) as error:
            return str(error)
        return None

    problems, keys = Problems(), packed.all_keys()
    faults = in_threads(fault, keys, threads or os.cpu_count() or 1)
    for problem in progress(faults, "verifying", "image", total=len(keys)):
        if problem:
            problems.add(problem)
    problems.raise_if_any(f"packed set {packed.folder}", "Pack it again with tools/pack.py --force.")
    return len(keys)
