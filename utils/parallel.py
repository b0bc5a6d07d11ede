"""Independent pieces of tensor work on all cores: a thread for each piece instead of all threads for each operation.

Operations on a few megabytes spend much of their time waiting for each other's threads, and all of it where another
process uses a core; pieces of work do not. An operation of one thread also has the same bits on any machine's number of
cores, which a matrix product of several threads does not promise.
"""
from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 16  # more threads than this wait for Python itself


def thread_count(device: torch.device) -> int:
    """Pieces of work that are worth being done at a time on this device."""
    return min(torch.get_num_threads(), _MOST) if device.type == "cpu" else 1


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results in the order of the items, so many pieces at a time; each operation has one thread of the CPU.

    At most `threads` results are made or waiting to be taken. An exception of a piece is raised where its result would
    come; the pieces under way end first.
    """
    with _one_thread_each():
        if threads <= 1:
            yield from map(function, items)
            return
        waiting = iter(items)
        with ThreadPoolExecutor(threads) as pool:
            running = deque(pool.submit(function, item) for item in islice(waiting, threads))
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(function, item) for item in islice(waiting, 1))
                yield result


@functools.cache
def _call_once() -> None:
    """Call the functions that pieces call, in one thread.

    A vector library chooses its implementation at the first call. Square roots of 12 bits were seen in some fresh
    processes whose first ones were taken by two threads at once.
    """
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(4096, dtype=dtype)
        x.sqrt_()
        x.exp_()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch gives the number to threads that begin after it was set."""
    _call_once()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
