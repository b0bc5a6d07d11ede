"""Checkpoint files: written whole or not at all, checked when read, read as data and never as code."""
from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils.files import atomic_path
from utils.plain_values import NotPlain, as_plain, stand_ins

CHECKSUM = "checksum"
FOLDER_WEIGHTS = "model.safetensors"  # of a model folder
# How torch names what it does not read: GLOBAL a.b.C, class <class 'a.b.C'>, or a module of its blocklist.
_REFUSED = re.compile(r"(?:GLOBAL |<(?:class|function) '?|module )([\w.]+)")
_UNPACKED = 2**26  # bytes that a compressed checkpoint may have, however small its file is


def save_checkpoint(path: str | Path, data: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts atomically, with a checksum over all of them.

    Raises:
        OSError: there is no room for it, or the folder cannot be written to; what `path` was before is still there.
    """
    data = _on_cpu(data)
    with atomic_path(path) as temporary:
        try:
            # To a path torch writes that path's name into the file, which is by chance: the same would differ.
            with open(temporary, "wb") as file:
                out = _Out(file)
                torch.save({**data, CHECKSUM: digest(data)}, out)
        except (OSError, RuntimeError) as error:  # torch makes the latter of a failed write
            why = error if isinstance(error, OSError) else out.error or error
            free = shutil.disk_usage(temporary.parent).free
            raise OSError(f"{path} cannot be written, {free / 2**20:.0f} MiB are free there; make room, and go on from "
                          f"the checkpoint before it ({why})") from error


class _Out:
    """A file for torch.save, which forgets why a write failed."""

    def __init__(self, file: BinaryIO):
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def link_checkpoint(path: Path, other: Path) -> None:
    """Let `other` be the same file, in place of what it was; a copy if the file system has no hard links."""
    with atomic_path(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 over all that a checkpoint holds: names, types, shapes, bits, and plain values as Python writes them."""
    hasher = hashlib.sha256()
    _add(hasher, {key: value for key, value in data.items() if key != CHECKSUM})
    return hasher.hexdigest()


def _add(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(value.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        hasher.update(b"{")
        for key, inner in value.items():
            hasher.update(repr(key).encode())
            _add(hasher, inner)
    elif isinstance(value, (list, tuple)):
        hasher.update(b"[")
        for inner in value:
            _add(hasher, inner)
    else:
        hasher.update(repr(value).encode())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(inner) for inner in value)
    return value


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    A `.safetensors` file gives its flat dict of tensors, a model folder (tools/export.py) that of its file. Numpy
    scalars and arrays, argparse.Namespace and paths of other tools' files become numbers, tensors, dicts and strings
    (see utils.plain_values).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, no checkpoint, or holds objects that only running code could read: the
            message says which, and what to do.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FOLDER_WEIGHTS).is_file():
            raise ValueError(f"{path}: a folder without {FOLDER_WEIGHTS}, expected a checkpoint file or a model folder")
        path /= FOLDER_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if advice := _archive_advice(path):
        raise ValueError(f"{path}: {advice}")
    try:
        with stand_ins():
            data = as_plain(torch.load(path, map_location="cpu", weights_only=True))
    except NotPlain as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # what a damaged file makes torch raise may be of any type
        raise ValueError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected a dict of tensors")
    if CHECKSUM in data and data[CHECKSUM] != digest(data):
        raise ValueError(f"{path}: damaged: its content does not have the checksum it was written with")
    return data


def identity_names(checkpoint: Mapping[str, Any], path: object) -> tuple[str, ...]:
    """The identities that a checkpoint of a training names, in class order; () if it names none.

    Raises:
        ValueError: what stands in their place is no list of names.
    """
    names = checkpoint.get("pid_names")
    if names is None:
        return ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: damaged, or of another program: pid_names is no list of names")
    return tuple(names)


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch does not read, and what to do; torch's own advice is to run its code."""
    with open(path, "rb") as source:
        start = source.read(2)
    if start and tarfile.is_tarfile(path):
        return "a tar archive, as torch wrote them before 2017; load it with the program that wrote it, and save " \
               "model.state_dict() with today's torch"
    if start and start != b"PK" and start[:1] != b"\x80":
        return "not a checkpoint: neither a zip archive nor a pickle, as torch writes them"
    text = str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return f"truncated or damaged: {text.split('. ')[0] or type(error).__name__}"
    refused, instead = _REFUSED.search(text), "save the weights alone: torch.save(model.state_dict(), FILE)"
    what = f"holds an object of {refused[1]}" if refused else "damaged, or holds more than tensors and plain values"
    if "perand" in text:
        what, instead = "damaged, or written with another pickle protocol", "use torch.save's default protocol"
    return f"{what} (files are read as data, never as code); in the program that wrote it, {instead}"


def _archive_advice(path: Path) -> str:
    """What to do about a zip archive that is no checkpoint; "" for a file that may be one. Older torch runs some."""
    try:
        if not zipfile.is_zipfile(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            names, unpacked = archive.namelist(), sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):  # a damaged one may raise any of these
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return ("a TorchScript archive, which is a program; save its weights alone: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')")
    if not any(name.endswith("/data.pkl") for name in names):
        kind = "an exported program" if path.suffix == ".pt2" else "a zip archive without a checkpoint in it"
        return f"{kind}; expected what torch.save(model.state_dict(), FILE) writes"
    if unpacked > max(_UNPACKED, 8 * path.stat().st_size):  # torch.save does not compress; numbers hardly shrink
        return (f"promises {unpacked:,} bytes in a file of {path.stat().st_size:,}; expected what torch.save writes, "
                "which is not compressed")
    return ""


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # safetensors raises its own Rust error type
        raise ValueError(f"{path}: truncated or not a safetensors file: {error}") from error
