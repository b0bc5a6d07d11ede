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

_MOST_VALUES = 1_000_000  # of a file: the largest models have a hundredth of it
_SHARED, _MOST_BYTES = 4, 1 << 28  # so often may a file's numbers be in it, and as many bytes more
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
    """A value that was read within `stand_ins`, with dicts for Namespaces and tensors for numpy arrays.

    Raises:
        NotPlain: it holds tensors without numbers of their own, or a small file's references make far more of it than
            the file holds.
    """
    return _Walk().plain(value)


class _Walk:
    """Through a value, counting what it would be if nothing in it were shared."""

    def __init__(self) -> None:
        self.values = self.size = self.held = 0
        self.storages: set[int] = set()  # their addresses

    def plain(self, value: Any) -> Any:
        self.values += 1
        if isinstance(value, torch.Tensor):
            value = self._tensor(value)
        elif isinstance(value, _NDArray):
            value = torch.from_numpy(value.array)
        elif isinstance(value, _Namespace):
            value = {key: self.plain(inner) for key, inner in value.items()}
        elif isinstance(value, dict):
            for key in value:
                value[key] = self.plain(value[key])
        elif type(value) in (list, tuple):
            value = type(value)(self.plain(inner) for inner in value)
        elif isinstance(value, (str, bytes)):
            self.size += len(value)
        if self.values > _MOST_VALUES or self.size > _SHARED * self.held + _MOST_BYTES:
            raise NotPlain("holds the same values and numbers again and again: more than memory holds, were they whole")
        return value

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            kind = "a quantised" if value.is_quantized else f"a {value.layout} {value.device}".replace("torch.", "")
            raise NotPlain(f"holds {kind} tensor, expected whole ones of plain numbers")
        self.size += value.numel() * value.element_size()
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.held += storage.nbytes()
        return value.resolve_conj().resolve_neg()
