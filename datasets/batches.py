"""Decoded images in batches, and the processes that make them."""
from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.bases import Sample
from datasets.files.images import ImageSource, decode
from datasets.sampler import Item
from utils.process import LostWorker


class Batch(NamedTuple):
    """images [B, H, W, 3] uint8 RGB, pids [B] int64, keys: B names, positions [B] int64 numpy."""

    images: torch.Tensor
    pids: torch.Tensor
    keys: list[str]
    positions: np.ndarray


class DecodedImages(Dataset):
    """Sample number -> image of one size. An item is (position, index); the position is passed through."""

    def __init__(self, source: ImageSource, samples: list[Sample], size: tuple[int, int]):
        self.source, self.samples, self.size = source, samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: Item) -> tuple[np.ndarray, int, str, int]:
        position, index = item
        sample = self.samples[index]
        return decode(self.source.read(sample.key), self.size, sample.key), sample.pid, sample.key, position


def collate(items: list[tuple[np.ndarray, int, str, int]]) -> Batch:
    """A batch of the items of `DecodedImages`."""
    images, pids, keys, positions = zip(*items, strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.tensor(pids), list(keys), np.array(positions))


class SequentialBatches:
    """Every sample once, in order; the last batch may be smaller.

    Each of several processes has a run of whole batches: the same batches as a process alone would have.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size

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
    if threading.current_thread() is threading.main_thread():  # or torch would raise again as the system signals it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return LostWorker(f"a process that loads images has died ({reason}); if memory is short, lower "
                      "DATALOADER.NUM_WORKERS")


class ImageLoader(DataLoader):
    """A DataLoader; if one of its processes dies, LostWorker is what comes of it."""

    def __iter__(self) -> Iterator[Any]:
        with naming_lost_workers():
            try:
                yield from super().__iter__()
            except (ConnectionError, EOFError) as error:  # the death may show in its connections first
                if self.num_workers == 0 or "Original Traceback" in str(error):  # an image's: read here, or there
                    raise
                raise _lost_worker(f"it closed its connection: {type(error).__name__}") from error


def _worker_init(_: int) -> None:
    cv2.setNumThreads(0)  # a worker is one process of several: OpenCV's own threads would fight over the cores
    # A signal to all processes of a terminal or a batch job is for the main one, which finishes its step with the
    # workers' batches. They end when it asks them to, ends itself or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@functools.cache
def _end_workers_at_exit() -> None:
    """Python itself would end what workers are left by SIGTERM, which they ignore, and wait for them."""
    import multiprocessing.util  # its hook is registered at its import; of hooks, the last registered runs first

    def end() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their end for a failure
        for child in multiprocessing.active_children():
            child.kill()
    atexit.register(end)


def open_loader(source: ImageSource, samples: list[Sample], size: Sequence[int], batches: Iterable[list[Item]],
                workers: int, make: Callable[..., ImageLoader] = ImageLoader) -> ImageLoader:
    """A loader of decoded images.

    Args:
        size: (height, width) of every image.
        batches: the items of each batch.
        workers: processes, 0 = the calling one; no more than there are cores.
        make: ImageLoader or what takes its arguments.
    """
    workers = min(workers, os.cpu_count() or 1)  # more would only wait for a core
    if workers:
        _end_workers_at_exit()
    return make(
        DecodedImages(source, samples, tuple(size)), batch_sampler=batches, num_workers=workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0, worker_init_fn=_worker_init,
    )
