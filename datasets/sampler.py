"""Batches of sample indices for an epoch, each index with its position in the epoch's sequence.

Both samplers are functions of (seed, epoch) alone: they can start at any batch, and with `world_size` > 1 each rank
yields its share of the same global batches. An item is `(position, index)`: `index` says which sample, `position` is
what an image's random draws are made from.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from utils.seed import generator

Item = tuple[int, int]


class EpochBatchSampler:
    """What the samplers share: epochs, a start batch, ranks, and the walk over an epoch's [batches, batch] table."""

    def __init__(self, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} images cannot be shared by {world_size} processes")
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start_batch = 0, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch to begin with."""
        self.epoch, self.start_batch = epoch, start_batch

    def epoch_table(self) -> np.ndarray:
        """[batches, batch_size] sample indices of the current epoch."""
        raise NotImplementedError

    def _share(self) -> slice:
        """This rank's columns of a batch: a contiguous run, so that groups of one identity stay together."""
        width = self.batch_size // self.world_size
        return slice(self.rank * width, (self.rank + 1) * width)

    def __iter__(self) -> Iterator[list[Item]]:
        table = self.epoch_table()
        columns = range(self.batch_size)[self._share()]
        for batch in range(self.start_batch, len(table)):
            yield [(batch * self.batch_size + column, int(table[batch, column])) for column in columns]


class ShuffledBatchSampler(EpochBatchSampler):
    """Every image once an epoch in random order; the images that do not fill a last batch are left out."""

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        super().__init__(batch_size, seed, rank, world_size)
        if num_samples < batch_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH={batch_size}, but there are only {num_samples} training images; lower it"
            )
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def epoch_table(self) -> np.ndarray:
        order = generator(self.seed, self.epoch, "shuffle").permutation(self.num_samples)
        return order[: len(self) * self.batch_size].reshape(len(self), self.batch_size)


class IdentityBatchSampler(EpochBatchSampler):
    """P x K batches: P different identities with K images each.

    An epoch shows every identity at least once. An identity of n images gives ceil(n / K) groups of K; a group that is
    not full takes further images of its identity, a second time only where it has fewer than K. No identity stands
    twice in a batch, so an identity with more groups than the epoch has batches loses the surplus; the number of
    batches is the largest for which all batches can be filled so, plus one (filled up with identities drawn anew)
    where an identity would be left out otherwise.
    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """

    def __init__(self, pids: np.ndarray, batch_size: int, num_instances: int, seed: int,
                 rank: int = 0, world_size: int = 1):
        """pids: [N] class index of each sample; batch_size = P * num_instances over all ranks.

        Raises:
            ValueError: P is not a whole number for every rank, or there are fewer than P identities.
        """
        super().__init__(batch_size, seed, rank, world_size)
        if batch_size % (num_instances * world_size):
            raise ValueError(
                f"a batch of {batch_size} images on {world_size} processes is not made of whole groups of "
                f"NUM_INSTANCE={num_instances}"
            )
        pids = np.asarray(pids)
        self.num_instances, self.num_pids_per_batch = num_instances, batch_size // num_instances
        self._by_pid = np.argsort(pids, kind="stable")
        self._sizes = np.unique(pids, return_counts=True)[1]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        if len(self._sizes) < self.num_pids_per_batch:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH={batch_size} with DATALOADER.NUM_INSTANCE={num_instances} needs "
                f"{self.num_pids_per_batch} identities a batch, but there are only {len(self._sizes)}; lower the "
                "batch or raise NUM_INSTANCE"
            )
        self._groups = -(-self._sizes // num_instances)
        self._kept, self._num_batches = self._plan()

    def _plan(self) -> tuple[np.ndarray, int]:
        """How many groups each identity shows in an epoch, before topping up, and the number of batches."""
        per_batch, groups = self.num_pids_per_batch, self._groups
        low, high = 1, int(groups.sum() // per_batch)  # the largest B with sum(min(groups, B)) >= P * B
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(groups, middle).sum() >= per_batch * middle else (low, middle - 1)
        kept = np.minimum(groups, low)
        surplus = int(kept.sum() - per_batch * low)
        spare = int((kept - 1).sum())
        return (kept, low) if surplus <= spare else (kept, low + 1)

    def __len__(self) -> int:
        return self._num_batches

    def epoch_table(self) -> np.ndarray:
        random = generator(self.seed, self.epoch, "identity batches")
        pid_of_slot = self._assign(random)  # [batches, P]
        samples = self._draw_groups(pid_of_slot.reshape(-1), random)  # [batches * P, K]
        return samples.reshape(len(self), self.batch_size)

    def _assign(self, random: np.random.Generator) -> np.ndarray:
        """Which identity stands in each of the P slots of each batch, none twice in a batch."""
        total = len(self) * self.num_pids_per_batch
        counts = self._kept.copy()
        if counts.sum() > total:  # take the surplus from identities that have more than one group
            spare = np.repeat(np.arange(len(counts)), counts - 1)
            np.subtract.at(counts, random.choice(spare, int(counts.sum() - total), replace=False), 1)
        elif counts.sum() < total:  # fill the last batch with identities drawn anew
            room = np.flatnonzero(counts < len(self))
            counts[random.choice(room, int(total - counts.sum()), replace=False)] += 1
        # An identity's groups lie next to each other in `slots`, and slot i goes to batch i mod B: with at most B
        # groups an identity never meets itself.
        order = random.permutation(len(counts))
        slots = np.repeat(order, counts[order])
        table = slots.reshape(self.num_pids_per_batch, len(self)).T
        return table[random.permutation(len(self))]

    def _draw_groups(self, pid_of_group: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[G, K] sample indices: each identity's groups walk through one shuffle of its images and start over."""
        shuffle = random.random(len(self._by_pid))
        pid_of_sample = np.repeat(np.arange(len(self._sizes)), self._sizes)
        shuffled = self._by_pid[np.lexsort((shuffle, pid_of_sample))]
        order = np.argsort(pid_of_group, kind="stable")
        ordered = pid_of_group[order]
        first = np.searchsorted(ordered, ordered)
        nth_group = np.empty(len(order), dtype=np.int64)
        nth_group[order] = np.arange(len(order)) - first
        offsets = nth_group[:, None] * self.num_instances + np.arange(self.num_instances)
        sizes = self._sizes[pid_of_group][:, None]
        return shuffled[self._starts[pid_of_group][:, None] + offsets % sizes]
