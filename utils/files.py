"""Writing files so that a reader sees the old file or the new file, never a half."""
from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What a shell or a caller has opened for the command to read: <(...) and -; it comes to an end.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_GIVEN = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")

@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`; what was written there is fsynced and renamed to `path` on success.

    On an exception the temporary file is removed and `path` stays as it was. Parent folders are made. What killed
    processes left of theirs for the same `path` is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{_mark_of_host()}{uuid.uuid4().hex[:4]}.tmp")
    _remove_earlier(path)
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Within: what a disk says of a write, which names no file, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_A_DISK and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise


_A_DAY = 86400
_earlier: dict[str, dict[str, list[tuple[str, int, str]]]] = {}  # of a folder: {name: what was to become it}


def _remove_earlier(path: Path) -> None:
    """Remove temporary files for `path` of processes that are dead, looking for them once in each folder.

    Nobody else's: one that lives on another host or in another container, which has numbers of its own, may be at work
    in the same folder, so that what it left stays for a day; and what bears our number for as long: a thread's.
    """
    folder = os.path.abspath(path.parent)
    if folder not in _earlier:
        _earlier[folder] = _temporary_files(folder)
    for name, process, mark in _earlier[folder].pop(path.name, ()):
        with contextlib.suppress(OSError):  # to tidy up is no reason to write nothing
            is_ours = mark == _mark_of_host() and process != os.getpid()
            file = os.path.join(folder, name)
            if not _is_another(process) if is_ours else time.time() - os.lstat(file).st_mtime > _A_DAY:
                os.unlink(file)


def _temporary_files(folder: str) -> dict[str, list[tuple[str, int, str]]]:
    """{name: [(temporary name for it, number of the process, mark of its host)]}."""
    found: dict[str, list[tuple[str, int, str]]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = re.fullmatch(r"\.(.+)\.(\d+)\.([0-9a-f]{4})[0-9a-f]{4}\.tmp", entry.name)
            if match and entry.is_file(follow_symlinks=False):
                found.setdefault(match[1], []).append((entry.name, int(match[2]), match[3]))
    return found


@functools.cache
def _mark_of_host() -> str:
    """Four digits for the host, and its container if it is in one: where numbers of processes mean the same."""
    numbers = ""
    with contextlib.suppress(OSError):
        numbers = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{os.uname().nodename} {numbers}".encode()).hexdigest()[:4]


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """An empty folder beside `target` that takes its place on success, and vanishes on an exception.

    What killed processes left of theirs for the same target is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.name)
    mark = f"{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    fresh, old = target.with_name(f".{target.name}.{mark}"), target.with_name(f".{target.name}.old.{mark}")
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        sync_folder(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def work_folder(parent: str | os.PathLike, name: str) -> Iterator[Path]:
    """A hidden folder in `parent` that vanishes in the end; after a kill, with the next one of this name."""
    remove_leftovers(parent, name)
    folder = Path(parent) / f".{name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike, name: str = "") -> None:
    """Remove what killed processes left of what they wrote (`atomic_path`, `new_folder`); a living process' stays.

    name: only what was to become this; "": all.
    """
    for path in Path(folder).glob(f".{glob.escape(name)}*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp", path.name)
        if match and not _is_another(int(match[1])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_another(process: int) -> bool:
    """Whether another process has this number. This process may: in a container each run has the same number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 with '\\n' line ends, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        out.write(text)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write `data` as indented JSON in a fixed key order (the caller's), atomically. NaN is refused."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array of numbers or strings as .npy, atomically.

    np.save leaves the writing to C, where nobody asks whether the last 4 KiB came to the disk: if that is full, the
    file is cut off and nothing is raised (seen in numpy 2.4).
    """
    array = np.ascontiguousarray(array)
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(out, header)
        out.write(array.reshape(-1).view(np.uint8))


def regular_file(path: str | os.PathLike) -> str | os.PathLike:
    """The path, if a reader of it comes to an end.

    Raises:
        OSError: it is a pipe, a device or a socket. What is not there, or no file, is for the reader to tell.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or os.fspath(path).startswith(_GIVEN)):
            raise OSError(f"{path}: a pipe, a device or a socket, not a file")
    return path


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or is a pipe, a device or a socket; the message names it.
    """
    with open(regular_file(path), "rb") as source:
        try:
            return source.read()
        except OSError as error:  # of a damaged disk; the system names no file
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        OSError: as `read_file`.
        ValueError: it is not JSON; the message names the file and the line.
    """
    data = read_file(path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{path}: not a JSON file that can be read: it is nested too deeply") from error
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def read_object(path: str | os.PathLike, **fields: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON object that has these fields, each of its type; it may have others.

    Raises:
        ValueError: it is not JSON, no object, or a field is missing or of another type; the message names the file.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: damaged, or of another program: expected a JSON object, got {_short(data)}")
    for name, kind in fields.items():
        if name not in data or not isinstance(data[name], kind):
            what = f"is {_short(data[name])}" if name in data else "is missing"
            raise ValueError(f"{path}: damaged, or of another program: the field {name} {what}")
    return data


def read_array(path: str | os.PathLike, kinds: str, ndim: int, mapped: bool = False) -> np.ndarray:
    """Read a .npy file. Nothing is taken from memory for what a header promises and the file does not hold.

    Args:
        kinds: numpy's letters of the types that it may hold: "f" floating point, "biu" whole numbers, "U" texts, "S"
            bytes, "V" records.
        ndim: its dimensions.
        mapped: read it from the disk as it is used; it is read-only.
    Raises:
        OSError: there is no such file.
        ValueError: it is no whole .npy file, holds something else, or no valid texts; the message names it.
    """
    try:
        array = np.load(regular_file(path), mmap_mode="r", allow_pickle=False)
        array = np.array(array) if isinstance(array, np.memmap) and not mapped else array
    except OSError:
        raise
    except Exception as error:  # what a damaged header makes numpy raise may be of any type
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a whole .npy file of numbers or texts ({reason})") from error
    if not isinstance(array, np.ndarray):  # an archive of several
        raise ValueError(f"{path}: not a .npy file")
    if array.dtype.kind not in kinds or array.ndim != ndim:
        raise ValueError(f"{path}: damaged, or of another program: {array.dtype} {array.shape} where {ndim} "
                         f"dimension{'s' * (ndim != 1)} of a type of {kinds!r} were written")
    if array.dtype.kind == "U" and array.size and np.ascontiguousarray(array).view(np.uint32).max() > sys.maxunicode:
        raise ValueError(f"{path}: damaged: it holds what is no text")
    return array


@contextlib.contextmanager
def as_damage(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Within: what values of other types than a file's should have make our code raise is a ValueError that names it.

    Args:
        advice: what to do, after a semicolon.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: damaged, or not written by this program ({type(error).__name__}: {error})"
                         f"{'; ' * bool(advice)}{advice}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_file_name(name: str) -> str:
    """A network's name in that of a file: timm:a/b -> timm_a_b."""
    return name.replace(":", "_").replace("/", "_")


def sha256_of(path: str | os.PathLike) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(regular_file(path), "rb") as source:
        while piece := source.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def epoch_checkpoints(folder: str | Path, name: str) -> dict[int, Path]:
    """The checkpoints NAME_EPOCH.pth of a folder by epoch, ascending."""
    pattern = re.compile(re.escape(name) + r"_(\d+)\.pth")
    paths = {}
    for path in Path(folder).glob(f"{name}_*.pth"):
        if match := pattern.fullmatch(path.name):
            paths[int(match.group(1))] = path
    return dict(sorted(paths.items()))


def make_mapped_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 .npy file to fill through a memory map, with all its room taken from the disk now.

    Without that a disk that fills up later ends the process by a signal.
    Raises:
        OSError: there is no room for it; no file is left.
    """
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        try:
            with open(path, "r+b") as held:
                os.posix_fallocate(held.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise OSError(f"{path} cannot be made: it takes {size / 2**20:.0f} MiB, of which "
                          f"{shutil.disk_usage(path.parent).free / 2**20:.0f} are free ({error.strerror})") from error
    return array
