"""One measurement of feeding, in a process of its own: python -m tools.benchmarks.data_measure JOB (JSON)."""
from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from configs import load_cfg
from datasets.files.images import decode
from datasets.make_dataloader import DataLoaders, image_files, make_dataloader
from tools.benchmarks import data_baseline as lineage
from tools.benchmarks.child import end_with_parent
from utils.files import write_json

NUM_INSTANCE = 4
_STEP = 64       # pictures of a step where none are batched
_PICTURES = 256  # that are decoded or augmented over and over


@dataclass(frozen=True)
class Job:
    """What one child measures."""

    what: str                # a name of ROWS
    root: str                # DATASETS.ROOT_DIR
    packed: str              # DATASETS.PACKED
    size: tuple[int, int]    # height, width
    batch: int
    workers: int
    device: str              # "cpu" or "cuda", for augmentation
    seconds: float           # at least so long
    result: str              # the JSON file to write

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "size": tuple(fields["size"])})

    def cfg(self) -> Any:
        """The config that feeds as the job says."""
        return load_cfg(None, [
            "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", self.root, "DATASETS.TRAIN_SETS", ["2020_fs"],
            "DATASETS.PACKED", self.packed, "DATASETS.HARD_AUG", True, "INPUT.SIZE_TRAIN", list(self.size),
            "DATALOADER.NUM_WORKERS", self.workers, "DATALOADER.SAMPLER", "softmax_triplet",
            "DATALOADER.NUM_INSTANCE", NUM_INSTANCE, "SOLVER.IMS_PER_BATCH", self.batch])

    def loaders(self) -> DataLoaders:
        return make_dataloader(self.cfg(), test=False)


Steps = Iterator[int]  # endless; each item is the number of images of the step that has just been done


class Endless:
    """A sampler's epochs one after the other, so that no epoch's end is measured."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list]:
        for epoch in itertools.count(1):
            self.sampler.set_epoch(epoch)
            yield from self.sampler


# ----------------------------------------------------------------------------------------------------- what is measured
def _files(job: Job) -> list[bytes]:
    """Some training images, read."""
    cfg = job.cfg()
    return [image_files(cfg).read(sample.key) for sample in make_dataloader(cfg, test=False).data.train[:_PICTURES]]


def _over_and_over(function: Callable[[Any], Any], items: list) -> Steps:
    """Call it for one item after the other, on one core."""
    torch.set_num_threads(1)
    endless = itertools.cycle(items)
    while True:
        for item in itertools.islice(endless, _STEP):
            function(item)
        yield _STEP


def decode_lineage(job: Job) -> Steps:
    """Open, convert and resize with PIL."""
    resize = lineage.T.Resize(job.size)
    return _over_and_over(lambda data: resize(lineage.read_image(BytesIO(data))), _files(job))


def decode_ours(job: Job) -> Steps:
    return _over_and_over(lambda data: decode(data, job.size), _files(job))


def augment_lineage(job: Job) -> Steps:
    pictures = [lineage.Image.fromarray(decode(data, job.size)) for data in _files(job)]
    return _over_and_over(_lineage_transforms(job.cfg()), pictures)


def augment_ours(job: Job) -> Steps:
    """A batch at a time; on the CPU with one thread."""
    torch.set_num_threads(1)
    images = np.stack([decode(data, job.size) for data in _files(job)[: job.batch]])
    augment = _augmentation(job, job.loaders())
    for epoch in itertools.count(1):
        augment(torch.from_numpy(images), epoch, np.arange(len(images)))
        yield len(images)


def load_lineage(job: Job) -> Steps:
    """The whole of it: all transforms run in the workers."""
    cfg, loaders = job.cfg(), job.loaders()
    data = lineage.ImageDataset(image_files(cfg).root, loaders.data.train, _lineage_transforms(cfg))
    for images, _ in DataLoader(data, batch_sampler=Endless(loaders.sampler), num_workers=job.workers,
                                collate_fn=lineage.collate):
        yield len(images)


def load(job: Job, augmented: bool = False) -> Steps:
    """The loader alone: uint8 batches in the main process; or augmented there."""
    loaders = job.loaders()
    augment = _augmentation(job, loaders) if augmented else None
    train = loaders.train
    endless = DataLoader(
        train.dataset, batch_sampler=Endless(loaders.sampler), num_workers=train.num_workers,
        collate_fn=train.collate_fn, worker_init_fn=train.worker_init_fn, pin_memory=train.pin_memory)
    for batch in endless:
        if augment is not None:
            augment(batch.images, loaders.sampler.epoch, batch.positions)
        yield len(batch.pids)


def load_and_augment(job: Job) -> Steps:
    return load(job, augmented=True)


def _augmentation(job: Job, loaders: DataLoaders) -> Callable[[torch.Tensor, int, np.ndarray], None]:
    out = None

    def augment(images: torch.Tensor, epoch: int, positions: np.ndarray) -> None:
        nonlocal out  # as a training step does
        out = loaders.augment(images.to(job.device, non_blocking=True), epoch, positions, out=out)
        if job.device == "cuda":
            torch.cuda.synchronize()
    return augment


def _lineage_transforms(cfg: Any) -> Callable:
    return lineage.make_transforms(tuple(cfg.INPUT.SIZE_TRAIN), cfg.INPUT.PROB, cfg.INPUT.PADDING, cfg.INPUT.RE_PROB,
                                   cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)


class Row(NamedTuple):
    """One line of the table; `baseline`: the row whose speed it is compared with."""

    title: str
    run: Callable[[Job], Steps]
    files: str = "png"       # "png" or "jpeg"
    packed: str = ""         # "", "files" or "decoded"
    baseline: str = ""


ROWS = {
    "lineage_decode_png": Row("PIL: decode PNG", decode_lineage),
    "decode_png": Row("decode PNG", decode_ours, baseline="lineage_decode_png"),
    "lineage_decode_jpeg": Row("PIL: decode JPEG", decode_lineage, "jpeg"),
    "decode_jpeg": Row("decode JPEG", decode_ours, "jpeg", baseline="lineage_decode_jpeg"),
    "lineage_augment": Row("torchvision: augment", augment_lineage),
    "augment": Row("augment", augment_ours, baseline="lineage_augment"),
    "lineage_png": Row("PIL + torchvision: the whole, PNG files", load_lineage),
    "png": Row("the whole, PNG files", load_and_augment, baseline="lineage_png"),
    "decoded": Row("the whole, packed and decoded", load_and_augment, "png", "decoded", "lineage_png"),
    "loader_png": Row("loader alone, PNG files", load, baseline="lineage_png"),
    "loader_packed": Row("loader alone, packed PNG files", load, "png", "files", "lineage_png"),
    "loader_decoded": Row("loader alone, packed and decoded", load, "png", "decoded", "lineage_png"),
    "lineage_jpeg": Row("PIL + torchvision: the whole, JPEG files", load_lineage, "jpeg"),
    "jpeg": Row("the whole, JPEG files", load_and_augment, "jpeg", baseline="lineage_jpeg"),
    "loader_jpeg": Row("loader alone, JPEG files", load, "jpeg", baseline="lineage_jpeg"),
}


# ------------------------------------------------------------------------------------------------------------ measuring
def cpu_seconds() -> float | None:
    """Processor time of this process and of its living children, user and system; None where only Linux would tell."""
    if not Path("/proc/self/stat").is_file():
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def measure(job: Job) -> None:
    """Take steps for so many seconds, after some that fill the queues, and write what they took."""
    cv2.setNumThreads(0)
    steps = ROWS[job.what].run(job)
    for _ in range(4 * job.workers + 1):
        next(steps)
    images, cpu, started = 0, cpu_seconds(), time.perf_counter()
    while (seconds := time.perf_counter() - started) < job.seconds or not images:
        images += next(steps)
    cpu = None if cpu is None else cpu_seconds() - cpu
    steps.close()  # ends a loader's workers
    write_json(job.result, {"images": images, "seconds": seconds, "cpu_seconds": cpu})


if __name__ == "__main__":
    end_with_parent()
    measure(Job.from_json(sys.argv[1]))
