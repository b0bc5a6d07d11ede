"""What other tools' checkpoints hold beside tensors, read as plain values: numpy scalars and arrays, Namespaces, paths.

torch's safe reader looks every class and function of a pickle up by name in a table. The stand-ins here take the names
of harmless ones and make Python's own numbers, dicts and strings of what the file gives them; numpy's own classes and
functions are never called on it.
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

_PLAIN = re.compile(r"[<>|=]?([biufc]\d{1,2}|U\d{1,6})")


class NotPlain(ValueError):
    """A numpy value that is no number and no text, such as an array of objects."""


class _DType:
    """numpy.dtype as a pickle gives it: a code such as "f8", and a byte order that its state tells."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code, self.order = code.decode("ascii") if isinstance(code, bytes) else code, "="

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def numpy(self) -> np.dtype:
        if not _PLAIN.fullmatch(self.code) or self.order not in "<>|=":
            raise NotPlain(f"holds numpy values of type {self.code}, expected numbers")
        return np.dtype(self.code).newbyteorder(self.order)


class _NDArray:
    """numpy.ndarray: its shape, type and bytes; `as_plain` makes a tensor of it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.numpy().kind == "U":
            raise NotPlain("holds a numpy array of texts, expected numbers")
        array = np.frombuffer(raw, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        self.array = array.astype(array.dtype.newbyteorder("="))  # a copy: the file's bytes cannot be written to


class _Namespace(dict):
    """argparse.Namespace, types.SimpleNamespace: a dict of its attributes."""

    def __setstate__(self, state: Mapping) -> None:
        self.update(state)


def _scalar(dtype: _DType, raw: bytes | str) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, dtype.numpy(), count=1)[0].item()


def _reconstruct(array: type[_NDArray], *_: object) -> _NDArray:
    return array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


def _bytes(*content: object) -> bytes:
    if content:  # bytes(10**12) would be memory for nothing
        raise NotPlain("holds bytes that are spelled out as numbers")
    return b""


def _path(*parts: str) -> str:
    return "/".join(parts).replace("//", "/")


def _named(module: str, name: str, meaning: Callable) -> Callable:
    """A callable of its own that bears another's name: how torch finds it, and how no other is confused with it."""
    if isinstance(meaning, type):
        stand_in = type(name, (meaning,), {})
    else:
        def stand_in(*args: Any) -> Any:
            return meaning(*args)
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


STAND_INS = [
    *(_named(f"numpy.{core}.multiarray", name, meaning) for core in ("core", "_core")
      for name, meaning in (("scalar", _scalar), ("_reconstruct", _reconstruct))),
    _named("numpy", "dtype", _DType), _named("numpy", "ndarray", _NDArray), _named("_codecs", "encode", _encode),
    _named("builtins", "bytes", _bytes), _named("builtins", "set", lambda items=(): set(items)),  # set: torch 2.4
    _named("argparse", "Namespace", _Namespace), _named("types", "SimpleNamespace", _Namespace),
    *(_named(module, name, _path) for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
]


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within: torch.load(..., weights_only=True) takes the names of STAND_INS."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def as_plain(value: Any) -> Any:
    """A value that was read within `stand_ins`, with dicts for Namespaces and tensors for numpy arrays."""
    if isinstance(value, _NDArray):
        return torch.from_numpy(value.array)
    if isinstance(value, _Namespace):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, dict):
        for key in value:
            value[key] = as_plain(value[key])
    elif type(value) in (list, tuple):
        return type(value)(as_plain(inner) for inner in value)
    return value
