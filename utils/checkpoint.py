"""Checkpoint files: written whole or not at all, checked when read, read as data and never as code."""
from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_path

CHECKSUM = "checksum"


def save_checkpoint(path: str | Path, data: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts atomically, with a checksum over all of them.

    Raises:
        OSError: there is no room for it, or the folder cannot be written to; what `path` was before is still there.
    """
    data = _on_cpu(data)
    with atomic_path(path) as temporary:
        try:
            torch.save({**data, CHECKSUM: digest(data)}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            free = shutil.disk_usage(temporary.parent).free
            raise OSError(f"{path} cannot be written, {free / 2**20:.0f} MiB are free there; make room, and go on from "
                          "the checkpoint before it") from error


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

    A `.safetensors` file gives its flat dict of tensors.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, no checkpoint, or a pickle that wants to run code: the message has which.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected a checkpoint file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes torch raise may be of any type
        raise ValueError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected a dict of tensors")
    if CHECKSUM in data and data[CHECKSUM] != digest(data):
        raise ValueError(f"{path}: damaged: its content does not have the checksum it was written with")
    return data


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch does not read, in a sentence; torch's own advice is dangerous."""
    with open(path, "rb") as source:
        start = source.read(2)
    if start and start != b"PK" and start[:1] != b"\x80":
        return "not a checkpoint: neither a zip archive nor a pickle, as torch writes them"
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"\b(?:[Uu]nsupported|not allowed)\b[^\n]*", text)
        return ("not read, because it is damaged or holds more than tensors and plain values (files are read as data, "
                f"never as code): {refused[0] if refused else text.splitlines()[0]}")
    return f"truncated or damaged: {text.split('. ')[0] or type(error).__name__}"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # safetensors raises its own Rust error type
        raise ValueError(f"{path}: truncated or not a safetensors file: {error}") from error
