"""Decoded images in batches, and the processes that make them."""
from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import multiprocessing.queues
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.bases import Sample
from datasets.batch_memory import BatchMemory, open_batch_memory
from datasets.files.images import ImageSource, decode
from datasets.sampler import EpochBatchSampler, Item
from utils.process import LostWorker, Stopped, die_with_parent, keep_freed_memory

logger = logging.getLogger(__name__)

_SHARED = "/dev/shm"  # where torch lays the tensors that a process sends to another; 64 MiB in a container of Docker
_AHEAD = 2  # batches of each process that are made or wait to be taken
_IN_USE = 2  # batches of one process that were taken: the one that was asked for last, and the one before
_CURE = "a container gets more by docker run --shm-size=8g or --ipc=host; DATALOADER.NUM_WORKERS 0 needs none"


_lay: Callable[[Sequence[np.ndarray]], tuple | None] | None = None  # in a process that loads images: `BatchMemory.lay`


class Batch(NamedTuple):
    """images [B, H, W, 3] uint8 RGB, pids, camids and viewids [B] int64, keys: B names, positions [B] int64 numpy."""

    images: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor
    viewids: torch.Tensor
    keys: list[str]
    positions: np.ndarray


class DecodedImages(Dataset):
    """Sample number -> image of one size. An item is (position, index); the position is passed through."""

    def __init__(self, source: ImageSource, samples: list[Sample], size: tuple[int, int]):
        self.source, self.samples, self.size = source, samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: Item) -> tuple[np.ndarray, Sample, int]:
        position, index = item
        sample = self.samples[index]
        return decode(self.source.read(sample.key), self.size, sample.key), sample, position


def collate(items: list[tuple[np.ndarray, Sample, int]]) -> Batch:
    """A batch of the items of `DecodedImages`."""
    images, samples, positions = zip(*items, strict=True)
    keys, *labels = zip(*samples, strict=True)
    stack = _stack if get_worker_info() is None else _Sent
    labels = [stack(np.array(label, np.int64)) for label in labels]  # pids, camids, viewids
    return Batch(stack(images), *labels, list(keys), np.array(positions))


def _stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


class _Sent:
    """Arrays that arrive as a tensor, their stack, in the process that they are sent to.

    It goes by the loader's memory (`BatchMemory`), or else by fresh shared memory, or else by the pipe.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays

    def __reduce__(self) -> tuple[Callable, tuple]:
        # What fails here, in a thread of the sender's queue, torch and Python drop, and the receiver waits for ever.
        nbytes = len(self.arrays) * self.arrays[0].nbytes
        if nbytes >= 2**16 and _lay is not None and (laid := _lay(self.arrays)):  # less is as fast in the pipe
            return laid
        array = np.stack(self.arrays)
        if 2**16 <= nbytes <= _free_shared() // 2:  # others need room, too
            with contextlib.suppress(RuntimeError, OSError):  # it is taken, too many files are open, no TMPDIR, ...
                return pickle.loads, (bytes(ForkingPickler.dumps(torch.from_numpy(array))),)
        return torch.from_numpy, (array,)


def _free_shared() -> float:
    """Bytes of shared memory that are free."""
    try:
        room = os.statvfs(_SHARED)
    except OSError:
        return float("inf")  # a system that keeps it elsewhere
    return room.f_bavail * room.f_frsize


@functools.cache
def _warn_of_slow_batches(free: int, wanted: int) -> None:
    logger.warning("%s has %d MiB free and the batches under way may take %d MiB: what finds no room there is copied "
                   "through pipes, which is slower; %s", _SHARED, free, wanted, _CURE)


class SequentialBatches:
    """Every sample once, in order; the last batch may be smaller.

    Each of several processes has a run of whole batches: the same batches as a process alone would have.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size
        self.width = min(num_samples, batch_size)

    def rows(self, rank: int) -> slice:
        """The samples of a process."""
        batches = -(-self.num_samples // self.batch_size)
        first, last = (batches * part // self.world_size * self.batch_size for part in (rank, rank + 1))
        return slice(min(first, self.num_samples), min(last, self.num_samples))

    def __len__(self) -> int:
        rows = self.rows(self.rank)
        return -(-(rows.stop - rows.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        rows = self.rows(self.rank)
        for start in range(rows.start, rows.stop, self.batch_size):
            yield [(i, i) for i in range(start, min(start + self.batch_size, rows.stop))]


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """What torch raises if a loader's process dies is a LostWorker here.

    It does so at the next batch, or earlier, wherever the main process is when the system signals the death.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _lost_worker(str(error).splitlines()[0]) from error


def _lost_worker(reason: str) -> LostWorker:
    _ignore_deaths()
    return LostWorker(f"a process that loads images has died ({reason}); if memory is short, lower "
                      f"DATALOADER.NUM_WORKERS; if {_SHARED} is: {_CURE}")


def _ignore_deaths() -> None:
    """torch's handler would raise at the end of any worker that the system signals from now on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class ImageLoader(DataLoader):
    """A DataLoader; if its processes cannot be started or one of them dies, LostWorker is what comes of it.

    Args:
        batch_bytes: of the images of the largest batch.
    """

    def __init__(self, *args: Any, batch_bytes: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batch_bytes = batch_bytes

    def __iter__(self) -> Iterator[Any]:
        with naming_lost_workers():
            try:
                yield from self._begin()
            except (ConnectionError, EOFError) as error:  # the death may show in its connections first
                if self.num_workers == 0 or "Original Traceback" in str(error):  # an image's: read here, or there
                    raise
                raise _lost_worker(f"it closed its connection: {type(error).__name__}") from error
            except (Stopped, KeyboardInterrupt):
                self.end()
                raise

    def _begin(self) -> Iterator[Any]:
        try:
            if self.num_workers and self._iterator is None:
                multiprocessing.Event()  # takes a file in _SHARED; without room, torch would leave a traceback, too
                # Processes that are no more may have taken places: those that begin now get memory of their own.
                memory = open_batch_memory(self.num_workers, _AHEAD + _IN_USE, self.batch_bytes)
                is_main = threading.current_thread() is threading.main_thread()
                self.worker_init_fn = functools.partial(_worker_init, memory, is_main)
                # The folder of the sockets that they send from: if this process has one they take it, and it is removed
                # here; of their own each would leave one, because they are killed. Without one they send by pipes.
                with contextlib.suppress(OSError):
                    multiprocessing.util.get_temp_dir()
            return super().__iter__()
        except ConnectionError:
            raise
        except OSError as error:
            raise LostWorker(f"no process that loads images can be started ({error}); if {_SHARED} has no room: {_CURE}"
                             ) from error

    def end(self) -> None:
        """Kill the processes: one whose read never returns, of a network that is down, would be waited for."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            _ignore_deaths()
            for worker in iterator._workers:
                worker.kill()
            iterator._shutdown = True  # or torch would wait for each, and for the rest of what it was sending


def _worker_init(memory: BatchMemory | None, is_main: bool, number: int) -> None:
    """is_main: begun by the main thread, with whose end the process may die; a thread may end before its loader."""
    global _lay
    parent = multiprocessing.parent_process()
    if is_main and parent is not None and os.getppid() == parent.pid:  # forked by itself, not by a server
        # torch lets it notice the death, but then it would wait for ever to be rid of a batch that nobody takes.
        die_with_parent(parent.pid)
    _lay = functools.partial(memory.lay, number) if memory else None
    keep_freed_memory()
    gc.freeze()  # what came with the fork is in use: looking through it would copy the pages that hold it
    cv2.setNumThreads(0)  # a worker is one process of several: OpenCV's own threads would fight over the cores
    # A signal to all processes of a terminal or a batch job is for the main one, which finishes its step with the
    # workers' batches. They end when it asks them to, ends itself or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_without_sending)


def _end_without_sending(error: Exception, _: object) -> None:
    """End this process, whose batch cannot be sent: Python would go on without it, and the receiver wait for ever."""
    sys.stderr.write(f"a process that loads images cannot send its batch: {type(error).__name__}: {error}\n")
    os._exit(1)


@functools.cache
def _end_workers_at_exit() -> None:
    """Python itself would end what workers are left by SIGTERM, which they ignore, and wait for them."""
    import multiprocessing.util  # its hook is registered at its import; of hooks, the last registered runs first

    def end() -> None:
        _ignore_deaths()
        for child in multiprocessing.active_children():
            child.kill()
    atexit.register(end)


def open_loader(source: ImageSource, samples: list[Sample], size: Sequence[int],
                batches: SequentialBatches | EpochBatchSampler, workers: int,
                make: Callable[..., ImageLoader] = ImageLoader) -> ImageLoader:
    """A loader of decoded images; a warning if there is little shared memory for its processes.

    Args:
        size: (height, width) of every image.
        batches: the items of each batch.
        workers: processes, 0 = the calling one; no more than there are cores.
        make: ImageLoader or what takes its arguments.
    """
    workers = min(workers, os.cpu_count() or 1)  # more would only wait for a core
    batch_bytes = batches.width * 3 * size[0] * size[1]
    if workers:
        _end_workers_at_exit()
        together = workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        wanted, free = together * (_AHEAD + 1) * batch_bytes, _free_shared()
        if wanted > free and os.environ.get("LOCAL_RANK", "0") == "0" and not open_batch_memory(1, 1, 1):
            _warn_of_slow_batches(int(free) >> 20, wanted >> 20)
    return make(
        DecodedImages(source, samples, tuple(size)), batch_sampler=batches, num_workers=workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0,
        prefetch_factor=_AHEAD if workers else None, batch_bytes=batch_bytes,
    )
