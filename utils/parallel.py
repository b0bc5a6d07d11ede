"""Independent pieces of tensor work on all cores: a thread for each piece instead of all threads for each operation.

Operations on a few megabytes spend much of their time waiting for each other's threads; pieces of work do not.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 4  # more threads than this wait for Python itself


def thread_count(device: torch.device) -> int:
    """How many pieces `in_threads` works on at a time."""
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), _MOST)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """The results in any order, computed on several pieces at a time; on a GPU one after the other.

    An exception of a piece is raised when the pieces under way have ended; no further piece is begun then.
    """
    count = thread_count(device)
    if count == 1:
        yield from map(function, items)
        return
    waiting, running = iter(items), set()
    with _threads_each(torch.get_num_threads() // count), ThreadPoolExecutor(count) as pool:
        for item in waiting:
            running.add(pool.submit(function, item))
            if len(running) >= count:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        for future in running:
            yield future.result()


@contextlib.contextmanager
def _threads_each(count: int) -> Iterator[None]:
    """Let operations use so many threads; torch gives the number to threads that begin after it was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
