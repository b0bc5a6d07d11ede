"""A measurement of feeding, in a process of its own: python -m tools.benchmarks.data_measure JOB (JSON)."""
from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from configs import load_cfg
from datasets.batches import open_loader
from datasets.files.images import decode
from datasets.make_dataloader import DataLoaders, make_dataloader, make_sets
from tools.benchmarks import data_baseline as lineage
from tools.benchmarks.harness import Job, serve

NUM_INSTANCE = 4
_STEP = 64       # pictures of a step without batches
_PICTURES = 256  # that are decoded or augmented over and over


@dataclass(frozen=True)
class Setting:
    """What feeds a model, and how long it is measured."""

    root: str                # DATASETS.ROOT_DIR
    packed: str              # DATASETS.PACKED
    size: tuple[int, int]    # height, width
    batch: int
    workers: int
    device: str              # "cpu" or "cuda", for augmentation
    seconds: float           # at least so long

    def cfg(self) -> Any:
        """The config of a training that is fed so."""
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
        self.sampler, self.width = sampler, sampler.width

    def __iter__(self) -> Iterator[list]:
        for epoch in itertools.count(1):
            self.sampler.set_epoch(epoch)
            yield from self.sampler


# ----------------------------------------------------------------------------------------------------- what is measured
def _files(setting: Setting) -> list[bytes]:
    """The bytes of the first training images."""
    cfg = setting.cfg()
    source = make_sets(cfg).files()
    return [source.read(sample.key) for sample in make_dataloader(cfg, test=False).data.train[:_PICTURES]]


def _over_and_over(function: Callable[[Any], Any], items: list) -> Steps:
    """Call it for one item after the other, on one core."""
    torch.set_num_threads(1)
    endless = itertools.cycle(items)
    while True:
        for item in itertools.islice(endless, _STEP):
            function(item)
        yield _STEP


def decode_lineage(setting: Setting) -> Steps:
    """Open, convert and resize with PIL."""
    resize = lineage.T.Resize(setting.size)
    return _over_and_over(lambda data: resize(lineage.read_image(BytesIO(data))), _files(setting))


def decode_ours(setting: Setting) -> Steps:
    return _over_and_over(lambda data: decode(data, setting.size), _files(setting))


def augment_lineage(setting: Setting) -> Steps:
    pictures = [lineage.Image.fromarray(decode(data, setting.size)) for data in _files(setting)]
    return _over_and_over(_lineage_transforms(setting.cfg()), pictures)


def augment_ours(setting: Setting) -> Steps:
    """A batch at a time; on the CPU with one thread."""
    torch.set_num_threads(1)
    images = np.stack([decode(data, setting.size) for data in _files(setting)[: setting.batch]])
    augment = _augmentation(setting, setting.loaders())
    for epoch in itertools.count(1):
        augment(torch.from_numpy(images), epoch, np.arange(len(images)))
        yield len(images)


def load_lineage(setting: Setting) -> Steps:
    """The whole of it: all transforms run in the workers."""
    cfg, loaders = setting.cfg(), setting.loaders()
    data = lineage.ImageDataset(make_sets(cfg).files().root, loaders.data.train, _lineage_transforms(cfg))
    for images, _ in DataLoader(data, batch_sampler=Endless(loaders.sampler), num_workers=setting.workers,
                                collate_fn=lineage.collate):
        yield len(images)


def load(setting: Setting, augmented: bool = False) -> Steps:
    """The loader alone: uint8 batches in the main process; or augmented there."""
    loaders = setting.loaders()
    augment = _augmentation(setting, loaders) if augmented else None
    images = loaders.train.dataset
    endless = open_loader(images.source, images.samples, images.size, Endless(loaders.sampler), setting.workers)
    for batch in endless:
        if augment is not None:
            augment(batch.images, loaders.sampler.epoch, batch.positions)
        yield len(batch.pids)


def load_and_augment(setting: Setting) -> Steps:
    return load(setting, augmented=True)


def _augmentation(setting: Setting, loaders: DataLoaders) -> Callable[[torch.Tensor, int, np.ndarray], None]:
    out = None

    def augment(images: torch.Tensor, epoch: int, positions: np.ndarray) -> None:
        nonlocal out  # as a training step does
        out = loaders.augment(images.to(setting.device, non_blocking=True), epoch, positions, out=out)
        if setting.device == "cuda":
            torch.cuda.synchronize()
    return augment


def _lineage_transforms(cfg: Any) -> Callable:
    return lineage.make_transforms(tuple(cfg.INPUT.SIZE_TRAIN), cfg.INPUT.PROB, cfg.INPUT.PADDING, cfg.INPUT.RE_PROB,
                                   cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)


class Row(NamedTuple):
    """One line of the table; `baseline`: the row whose speed it is compared with."""

    title: str
    run: Callable[[Setting], Steps]
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
    """Processor time of this process and of its living children, user and system; None without Linux's /proc."""
    if not Path("/proc/self/stat").is_file():
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def measure(job: Job) -> dict[str, Any]:
    """Take steps for so many seconds, after a few that fill the queues; images, seconds and processor seconds."""
    setting: Setting = job.setting
    cv2.setNumThreads(0)
    steps = ROWS[job.what].run(setting)
    for _ in range(4 * setting.workers + 1):
        next(steps)
    images, cpu, started = 0, cpu_seconds(), time.perf_counter()
    while (seconds := time.perf_counter() - started) < setting.seconds or not images:
        images += next(steps)
    cpu = None if cpu is None else cpu_seconds() - cpu
    steps.close()  # ends a loader's workers
    return {"images": images, "seconds": seconds, "cpu_seconds": cpu}


if __name__ == "__main__":
    serve(measure, Setting)
