"""The memory that batches travel in, from the processes that load images to the one that asked for them.

A system hands out fresh shared memory page by page: 0.11 ms an image of 256x128, half as long as its JPEG takes to be
decoded. So a loader keeps its memory: places for batches in a file without a name, which all its processes map and
which is no part of /dev/shm, 64 MiB in a container of Docker. Each process has places of its own. One is taken when a
batch is written to it, and free again when nothing holds the tensor that was made of it.
"""
from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch

_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()  # of this process' loaders


class BatchMemory:
    """Places for the batches of each of several processes.

    Only what was written to takes memory, and a process writes to the first of its places that is free.

    Args:
        workers: processes, numbered from 0.
        places: of each of them: batches that wait to be taken or are in use.
        size: bytes of the largest batch.
    Raises:
        OSError: the system gives none.

    >>> memory = BatchMemory(workers=1, places=1, size=2)
    >>> build, arguments = memory.lay(0, [np.uint8(7), np.uint8(8)])  # in the worker
    >>> batch = build(*arguments)  # in the process that receives it
    >>> batch, memory.lay(0, [np.uint8(9)]) is None  # there is no other place
    (tensor([7, 8], dtype=torch.uint8), True)
    """

    def __init__(self, workers: int, places: int, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no files without names")
        self._number, self._places = next(_numbers), places
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._start = -(-workers * places // mmap.PAGESIZE) * mmap.PAGESIZE  # before it, a byte a place: is it taken?
        self._open(os.memfd_create("batches"), self._start + workers * places * self._size)
        _known[self._number] = self

    def _open(self, descriptor: int, length: int) -> None:
        self._descriptor, self._there = descriptor, set()
        weakref.finalize(self, os.close, descriptor).atexit = False
        os.ftruncate(descriptor, length)
        self._map = mmap.mmap(descriptor, length)
        self._taken = np.frombuffer(self._map, np.uint8, self._start)

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked, but started anew."""
        names = ("_number", "_places", "_size", "_start")
        return {"length": len(self._map), "descriptor": reduction.DupFd(self._descriptor),
                **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        length, descriptor = state.pop("length"), state.pop("descriptor")
        self.__dict__.update(state)
        self._open(descriptor.detach(), length)

    def lay(self, worker: int, images: Sequence[np.ndarray]) -> tuple[Callable[..., torch.Tensor], tuple] | None:
        """Write arrays of one shape to a place of this worker; a function and its arguments that give their stack.

        None: all places are taken, the arrays are too large, or the system has no memory left.
        """
        own = self._taken[worker * self._places:(worker + 1) * self._places]
        place = worker * self._places + int(own.argmin())
        if self._taken[place] or len(images) * images[0].nbytes > self._size:
            return None
        if place not in self._there:  # or a system that is out of memory would end the process as it writes
            try:
                os.posix_fallocate(self._descriptor, self._start + place * self._size, self._size)
            except OSError:
                return None
            self._there.add(place)
        shape, dtype = (len(images), *images[0].shape), images[0].dtype.str
        np.stack(images, out=self._at(place, shape, dtype))
        self._taken[place] = 1
        return _receive, (self._number, place, shape, dtype)

    def receive(self, place: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """The tensor in a place, which is free when it and all its views are gone."""
        array = self._at(place, shape, dtype)
        weakref.finalize(array, _set_free, self._taken, place).atexit = False
        return torch.from_numpy(array)

    def _at(self, place: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.ndarray(shape, dtype, self._map, self._start + place * self._size)


def open_batch_memory(workers: int, places: int, size: int) -> BatchMemory | None:
    """A `BatchMemory`; None if the system gives none."""
    with contextlib.suppress(OSError):
        return BatchMemory(workers, places, size)
    return None


def _receive(number: int, place: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    return _known[number].receive(place, shape, dtype)


def _set_free(taken: np.ndarray, place: int) -> None:
    # The last reading of the batch comes before: torch gave up its storage by an atomic operation.
    taken[place] = 0
