"""From a config to batches: which data set, which sampler, which image size."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.bases import ReIDData, Sample
from datasets.images import FolderSource, ImageSource, MountedSource, decode
from datasets.naic import UNLABEL, data_root, load_naic, unlabel_folder
from datasets.sampler import EpochBatchSampler, IdentityBatchSampler, Item, ShuffledBatchSampler
from datasets.transforms import Normalize, TrainAugment
from datasets.unlabelled import Unlabelled


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
    images, pids, keys, positions = zip(*items, strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.tensor(pids), list(keys), np.array(positions))


class SequentialBatches:
    """Every sample once, in order; the last batch may be smaller."""

    def __init__(self, num_samples: int, batch_size: int):
        self.num_samples, self.batch_size = num_samples, batch_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, self.num_samples, self.batch_size):
            yield [(i, i) for i in range(start, min(start + self.batch_size, self.num_samples))]


@dataclass
class TestLoader:
    """One domain's query and gallery images in one walk, queries first."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    loader: DataLoader
    samples: list[Sample]
    num_query: int
    has_truth: bool


@dataclass
class DataLoaders:
    """What `make_dataloader` makes; `train` is None where only testing was asked for."""

    data: ReIDData
    train: DataLoader | None = None
    sampler: EpochBatchSampler | None = None
    augment: TrainAugment | None = None
    normalize: Normalize | None = None
    test: dict[str, TestLoader] = field(default_factory=dict)
    no_test_reason: str = ""


def derived_dir(cfg) -> Path:
    """The folder of derived lists; see DATASETS.DERIVED_DIR."""
    return Path(cfg.DATASETS.DERIVED_DIR or Path(cfg.OUTPUT_DIR).parent / "derived")


def _naic(cfg, parts: tuple[str, ...]) -> ReIDData:
    return load_naic(
        cfg.DATASETS.ROOT_DIR, train_sets=tuple(cfg.DATASETS.TRAIN_SETS), use_unlabel=cfg.DATASETS.USE_UNLABEL,
        unlabel_dir=cfg.DATASETS.UNLABEL_DIR, test_dir=cfg.DATASETS.TEST_DIR, derived_dir=derived_dir(cfg),
        parts=parts,
    )


def _naic_source(cfg) -> ImageSource:
    """MyDataSet/, and the pseudo-labelled set, which may lie elsewhere."""
    own = FolderSource(data_root(cfg.DATASETS.ROOT_DIR))
    unlabel = unlabel_folder(cfg.DATASETS.ROOT_DIR, cfg.DATASETS.UNLABEL_DIR, derived_dir(cfg))
    if not cfg.DATASETS.USE_UNLABEL or not unlabel.is_dir():  # testing needs no training set
        return own
    return MountedSource({UNLABEL.folder: FolderSource(unlabel)}, own)


class DatasetEntry(NamedTuple):
    """load(cfg, parts) -> ReIDData; source(cfg) -> what reads its keys."""

    load: Callable
    source: Callable


DATASETS: dict[str, DatasetEntry] = {"naic": DatasetEntry(_naic, _naic_source)}


def _worker_init(_: int) -> None:
    cv2.setNumThreads(0)  # a worker is one process of several: OpenCV's own threads would fight over the cores


def _loader(cfg, source: ImageSource, samples: list[Sample], size: list[int], batches) -> DataLoader:
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)  # more would only wait for a core
    return DataLoader(
        DecodedImages(source, samples, tuple(size)), batch_sampler=batches, num_workers=workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0, worker_init_fn=_worker_init,
    )


def _make_sampler(cfg, train: list[Sample], rank: int, world_size: int) -> EpochBatchSampler:
    batch, seed = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.SEED
    if "triplet" in cfg.DATALOADER.SAMPLER:
        pids = np.array([sample.pid for sample in train])
        return IdentityBatchSampler(pids, batch, cfg.DATALOADER.NUM_INSTANCE, seed, rank, world_size)
    return ShuffledBatchSampler(len(train), batch, seed, rank, world_size)


def make_dataloader(cfg, train: bool = True, test: bool = True, rank: int = 0, world_size: int = 1) -> DataLoaders:
    """The loaders of the configured data set.

    Args:
        cfg: the config tree.
        train: make the training loader; the training sets are read only then.
        test: make a loader for each test domain. With `train`, a test folder that cannot be read is no error: it
            leaves `test` empty and says why in `no_test_reason`.
    Raises:
        ValueError: DATASETS.NAMES is unknown, or the data on disk are not as its layout says.
    """
    if cfg.DATASETS.NAMES not in DATASETS:
        raise ValueError(f"DATASETS.NAMES={cfg.DATASETS.NAMES!r} is not one of {', '.join(sorted(DATASETS))}")
    entry = DATASETS[cfg.DATASETS.NAMES]
    data, reason = _load(entry, cfg, train, test)
    source = entry.source(cfg)
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    loaders = DataLoaders(data, normalize=Normalize(mean, std), no_test_reason=reason)
    if train:
        loaders.sampler = _make_sampler(cfg, data.train, rank, world_size)
        loaders.train = _loader(cfg, source, data.train, cfg.INPUT.SIZE_TRAIN, loaders.sampler)
        loaders.augment = TrainAugment(
            mean, std, cfg.INPUT.PROB, cfg.INPUT.PADDING, cfg.INPUT.RE_PROB, cfg.DATASETS.HARD_AUG, cfg.SOLVER.SEED
        )
    for domain, pair in data.eval_sets.items():
        samples = [*pair.query, *pair.gallery]
        batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH)
        loader = _loader(cfg, source, samples, cfg.INPUT.SIZE_TEST, batches)
        loaders.test[domain] = TestLoader(loader, samples, len(pair.query), pair.has_truth)
    return loaders


def make_unlabelled_loader(cfg, unlabelled: Unlabelled) -> TestLoader:
    """All unlabelled images in one walk, as a test loader gives them."""
    samples = unlabelled.samples
    batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH)
    loader = _loader(cfg, unlabelled.source(), samples, cfg.INPUT.SIZE_TEST, batches)
    return TestLoader(loader, samples, unlabelled.num_query, has_truth=False)


def _load(entry: DatasetEntry, cfg, train: bool, test: bool) -> tuple[ReIDData, str]:
    """The data, and why there is no test part where training goes on without it."""
    if not train:
        return entry.load(cfg, ("test",)), ""
    data = entry.load(cfg, ("train",))
    if not test:
        return data, "not asked for"
    try:
        return replace(data, eval_sets=entry.load(cfg, ("test",)).eval_sets), ""
    except (ValueError, OSError) as error:
        return data, str(error)
