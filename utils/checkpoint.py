"""Checkpoint files: written whole or not at all, read as data and never as code."""
from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_path


def save_checkpoint(path: str | Path, data: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts atomically."""
    with atomic_path(path) as temporary:
        torch.save(data, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    A `.safetensors` file gives its flat dict of tensors.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no checkpoint, or a pickle that wants to run code; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path}: not read, because it is damaged or holds more than tensors and plain values (files are read "
            f"as data, never as code): {reason}"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or not a checkpoint: {str(error).splitlines()[:1]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected a dict of tensors")
    return data


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # safetensors raises its own Rust error type
        raise ValueError(f"{path}: truncated or not a safetensors file: {error}") from error
