"""Independent pieces of work on all cores: in threads (tensors), or in processes (images).

Threads: operations on a few megabytes spend much of their time waiting for each other's threads, and all of it if
another process uses a core; pieces of work, a thread each, do not. An operation of one thread also has the same bits on
any machine's number of cores, which a matrix product of several threads does not promise.

Processes: work that keeps Python itself busy. torch is imported by threads alone, because a process would spend seconds
on it.
"""
from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from utils.process import LostWorker, die_with_parent

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 16  # more threads than this wait for Python itself
_PROCESS_WORTH = 500  # images; decoding fewer takes less time than starting a process
_PATIENCE = 5.0  # seconds in which a process may end what it is at
_UNDER_WAY = 4  # batches of each process that are made or wait to be: as it takes one, the next are there


# ------------------------------------------------------------------------------------------------------------- threads
@dataclass
class _Turn:
    """Where a thread stands with its `in_threads`.

    Attributes:
        depth: how many it has begun and not ended, one in another or beside it.
        threads: torch's number before the first of them.
        between: it is at work on a result that one of them gave, while the next are made.
    """

    depth: int = 0
    threads: int = 0
    between: bool = False


_turns = threading.local()


def _turn() -> _Turn:
    """This thread's."""
    return _turns.__dict__.setdefault("turn", _Turn())


def thread_count(device: torch.device) -> int:
    """Pieces of work that are worth being done at a time on this device; a piece's own are one."""
    import torch
    if device.type != "cpu":
        return 1
    turn = _turn()
    return min(turn.threads if turn.between else torch.get_num_threads(), _MOST)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results in the order of the items, so many pieces at a time; each operation has one thread of the CPU.

    At most `threads` results are made or waiting to be taken. An exception of a piece is raised where its result would
    come; the pieces under way end first.
    """
    with _one_thread_each() as turn:
        if threads <= 1:
            for item in items:
                yield from _given(function(item), turn)
            return
        waiting = iter(items)
        with ThreadPoolExecutor(threads) as pool:
            running = deque(pool.submit(function, item) for item in islice(waiting, threads))
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(function, item) for item in islice(waiting, 1))
                yield from _given(result, turn)


def _given(result: Result, turn: _Turn) -> Iterator[Result]:
    """The result; what is done with it may have threads of its own."""
    turn.between = True
    yield result
    turn.between = False


@functools.cache
def _call_once() -> None:
    """Call the functions that pieces call, in one thread.

    A vector library chooses its implementation at the first call. Square roots of 12 bits were seen in some fresh
    processes whose first ones were taken by two threads at once.
    """
    import torch
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(4096, dtype=dtype)
        x.sqrt_()
        x.exp_()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[_Turn]:
    """torch gives the number to threads that begin after it was set; the last that ends restores it."""
    import torch
    _call_once()
    turn = _turn()
    before = turn.between
    if not turn.depth:
        turn.threads = torch.get_num_threads()
    turn.depth += 1
    turn.between = False
    torch.set_num_threads(1)
    try:
        yield turn
    finally:
        turn.depth -= 1
        turn.between = before and turn.depth > 0
        if not turn.depth:
            torch.set_num_threads(turn.threads)


# ----------------------------------------------------------------------------------------------------------- processes
def in_processes(function: Callable[[Item], Result], items: Iterable[Item], count: int, workers: int, *, doing: str,
                 batch: int = 32, cost: float = 1) -> Iterator[Result]:
    """The results in the order of the items, the same for any number of processes; closing the iterator ends the work.

    What is too little work for a second process is done in this one. Processes are spawned, not forked, because a
    fork of a process that holds threads (OpenCV's, torch's) can hang; so a script that comes here needs an
    `if __name__ == "__main__":`. They die with this process, and an interrupt is for this one alone: it takes no more
    items, and waits some seconds for the batches under way.

    Args:
        function: picklable; each process gets it once, with all that it holds.
        items: picklable, taken as the work goes on.
        count: how many items there are.
        workers: processes at most.
        doing: what a process does, for the error, such as "reads images".
        batch: items that a process takes at a time.
        cost: how many times as long as decoding a small image an item takes.
    Raises:
        LostWorker: a process was killed; the items it may have been at are named. Or none can be started.
        Exception: what `function` raises, where the result would come.
    """
    workers = min(workers, int(count * cost) // _PROCESS_WORTH)
    if workers < 2:
        yield from map(function, items)
        return
    waiting, running = iter(items), deque()
    with contextlib.closing(_Pool(workers, function)) as pool:
        def submit() -> None:
            if members := list(islice(waiting, batch)):
                with _sigint_blocked():  # it starts processes
                    running.append((members[0], pool.submit(_work_off, members)))

        try:
            for _ in range(_UNDER_WAY * workers):
                submit()
            while running:
                results = running[0][1].result()
                submit()
                running.popleft()
                yield from results
        except BrokenExecutor as error:
            raise LostWorker(
                f"a process that {doing} was killed, at {running[0][0]} or one of {_UNDER_WAY * workers * batch} after "
                "it; if memory is short, take fewer processes (--workers), and run the command again") from error


class _Pool(ProcessPoolExecutor):
    """Processes that call a function; `close` ends them, also one whose read never returns."""

    def __init__(self, workers: int, function: Callable):
        try:
            super().__init__(workers, multiprocessing.get_context("spawn"), _begin, (function, os.getpid()))
        except OSError as error:  # locks between processes are files in shared memory
            raise LostWorker(f"no process can be started ({error}); make room in /dev/shm, or take --workers 1"
                             ) from error

    def close(self) -> None:
        processes = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and any(process.is_alive() for process in processes):
            time.sleep(0.01)
        for process in processes:
            process.kill()


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes that are started within never see Ctrl-C, which a terminal sends to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_function: Callable  # a process' copy


def _begin(function: Callable, parent: int) -> None:
    """A process' start."""
    import cv2  # what comes here works on images

    global _function
    _function = function
    die_with_parent(parent)
    cv2.setNumThreads(0)  # one process of several: OpenCV's own threads would fight over the cores


def _work_off(items: list) -> list:
    """A process' unit of work."""
    return [_function(item) for item in items]
