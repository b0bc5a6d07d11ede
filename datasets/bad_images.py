"""Training on although images cannot be read: another image stands in for each."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.batches import ImageLoader
from datasets.files.images import BadImage
from datasets.sampler import EpochBatchSampler
from utils.seed import uniform

logger = logging.getLogger(__name__)

_MORE_IDENTITIES = 10  # tried if an identity has no image left; if these have none either, the disk is at fault


class StandIns:
    """Who may stand in for an image: the others of its identity, beginning with a drawn one.

    If all of those are bad, too, the next identities follow, so that the images of a whole bad group are replaced by
    those of a single identity.

    Args:
        pids: [N] class index of each sample.
        seed: of the draws, which are a function of (seed, epoch, position).
    """

    def __init__(self, pids: np.ndarray, seed: int) -> None:
        self.seed = seed
        self._by_pid = np.argsort(pids, kind="stable")
        self._starts = np.flatnonzero(np.diff(pids[self._by_pid], prepend=-1))
        self._identity = np.searchsorted(np.unique(pids), pids)

    def __call__(self, epoch: int, position: int, index: int) -> Iterator[int]:
        """Sample numbers, without `index`, in the order in which they are to be tried."""
        drawn = uniform(self.seed, epoch, np.array([position]), "bad image", 1)[0, 0]
        groups, identity = len(self._starts), int(self._identity[index])
        for group in range(identity, identity + min(groups, 1 + _MORE_IDENTITIES)):
            start = self._starts[group % groups]
            stop = self._starts[group % groups + 1] if group % groups + 1 < groups else len(self._by_pid)
            first = int(drawn * (stop - start))
            members = self._by_pid[start:stop]
            yield from (int(other) for other in np.roll(members, -first) if other != index)


class Replaced(Dataset):
    """A data set whose bad images are replaced; (position, index, epoch) -> (its item, problems met on the way)."""

    def __init__(self, images: Dataset, stand_ins: StandIns) -> None:
        self.images, self.stand_ins = images, stand_ins

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Any, list[str]]:
        position, index, epoch = item
        problems: list[str] = []
        try:
            return self.images[position, index], problems
        except (BadImage, OSError) as error:
            problems.append(str(error))
        for other in self.stand_ins(epoch, position, index):
            try:
                return self.images[position, other], problems
            except (BadImage, OSError) as error:
                problems.append(str(error))
        raise BadImage(f"an identity has no image that can be read, nor have the next {_MORE_IDENTITIES} "
                       f"({len(problems)} tried); the first: {problems[0]}")


class _WithEpoch:
    """A sampler's batches with the epoch in each item: a worker does not know it otherwise."""

    def __init__(self, sampler: EpochBatchSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for batch in self.sampler:
            yield [(position, index, self.sampler.epoch) for position, index in batch]


def _collate(collate: Callable[[list], Any], items: list[tuple[Any, list[str]]]) -> tuple[Any, list[str]]:
    """A batch, and the problems of all its images."""
    return collate([item for item, _ in items]), [problem for _, problems in items for problem in problems]


class ReplacingLoader(ImageLoader):
    """An ImageLoader that replaces bad images, names each the first time and counts them after each epoch.

    Args:
        dataset, batch_sampler, collate_fn: as without replacing; the batches are those of collate_fn.
        pids, seed: see `StandIns`.
    """

    def __init__(self, dataset: Dataset, batch_sampler: EpochBatchSampler, collate_fn: Callable[[list], Any],
                 pids: np.ndarray, seed: int, **options: Any) -> None:
        super().__init__(Replaced(dataset, StandIns(pids, seed)), batch_sampler=_WithEpoch(batch_sampler),
                         collate_fn=partial(_collate, collate_fn), **options)
        self.epoch_sampler, self.named = batch_sampler, set()

    def __iter__(self) -> Iterator[Any]:
        replaced = 0
        for batch, problems in super().__iter__():
            for problem in problems:
                if problem not in self.named:
                    self.named.add(problem)
                    logger.warning("bad image, replaced: %s", problem)
            replaced += len(problems)
            yield batch
        if replaced:
            logger.warning("epoch %d: %d times an image could not be read and another took its place; %d different "
                           "images so far", self.epoch_sampler.epoch, replaced, len(self.named))
