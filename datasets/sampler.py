"""Batches of sample indices for an epoch, each index with its position in the epoch's sequence.

Both samplers are functions of (seed, epoch) alone: they can start at any batch, and with `world_size` > 1 each rank
yields its share of the same global batches. An item is `(position, index)`: `index` says which sample, `position` is
what an image's random draws are made from.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from utils.seed import generator

Item = tuple[int, int]


class EpochBatchSampler:
    """What the samplers share: epochs, a start batch, ranks, and the walk over an epoch's table."""

    def __init__(self, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        assert batch_size % world_size == 0, "configs.checks.batch_problem has looked"
        self.batch_size, self.seed, self.width = batch_size, seed, batch_size // world_size
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
        return slice(self.rank * self.width, (self.rank + 1) * self.width)

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

    Every identity comes at least once in an epoch. An identity of n images gives ceil(n / K) groups of K; a group that
    is not full takes further images of its identity, a second time only if it has fewer than K. No identity stands
    twice in a batch, so an identity with more groups than the epoch has batches loses the surplus; the number of
    batches is the largest for which all batches can be filled so, or more if an identity would be left out.

    With `sets`, each batch's identities come from the sets in given shares (rounded up or down in a batch, exact over
    the epoch). Of a set with more groups than its share a random part comes, of a set with fewer groups come again.
    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """

    def __init__(self, pids: np.ndarray, batch_size: int, num_instances: int, seed: int,
                 rank: int = 0, world_size: int = 1, sets: Sequence[str] | None = None,
                 shares: Mapping[str, Fraction] | None = None):
        """
        Args:
            pids: [N] class index of each sample.
            batch_size: P * num_instances, over all ranks; P is a whole number for each of them.
            sets: [N] name of the set that each sample is of, the same for all of an identity; None: one set.
            shares: a positive number for each set, in proportion to its part of a batch; None: the same for all.
        Raises:
            ValueError: there are fewer identities, in all or in a set, than a batch takes, or shares do not name the
                sets.
        """
        super().__init__(batch_size, seed, rank, world_size)
        assert batch_size % (num_instances * world_size) == 0, "configs.checks.batch_problem has looked"
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
        names = ["all"] * len(self._sizes) if sets is None else [sets[first] for first in self._by_pid[self._starts]]
        self.set_names, self._set_of_pid = np.unique(names, return_inverse=True)
        self._num_batches, self._slots = self._count_batches(self._normalise(shares))

    def _normalise(self, given: Mapping[str, Fraction] | None) -> list[Fraction]:
        """Each set's part of the whole."""
        names = self.set_names.tolist()
        if given is not None and set(given) != set(names):
            raise ValueError(f"DATALOADER.SET_SHARES names {', '.join(sorted(given))}; the training data has the sets "
                             f"{', '.join(names)}, and each of them needs a share")
        shares = [Fraction(1 if given is None else given[name]) for name in names]
        return [share / sum(shares) for share in shares]

    def _count_batches(self, shares: list[Fraction]) -> tuple[int, list[int]]:
        """The number of batches, and how many of their slots for an identity each set fills."""
        per_batch, groups = self.num_pids_per_batch, self._groups
        identities = np.bincount(self._set_of_pid).tolist()
        wanted = [share * per_batch for share in shares]  # identities a batch
        for name, number, there in zip(self.set_names, wanted, identities, strict=True):
            if math.ceil(number) > there:
                raise ValueError(f"the share of {name} is {float(number):.3g} of {per_batch} identities a batch, but "
                                 f"it has only {there}; change DATALOADER.SET_SHARES, lower SOLVER.IMS_PER_BATCH or "
                                 "raise DATALOADER.NUM_INSTANCE")
        low, high = 1, int(groups.sum() // per_batch)  # the largest B with sum(min(groups, B)) >= P * B
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(groups, middle).sum() >= per_batch * middle else (low, middle - 1)
        batches = max(low, *(math.ceil(there / number) for there, number in zip(identities, wanted, strict=True)))
        slots = [math.floor(number * batches) for number in wanted]
        by_remainder = sorted(range(len(slots)), key=lambda i: slots[i] - wanted[i] * batches)
        for number in by_remainder[:batches * per_batch - sum(slots)]:
            slots[number] += 1
        return batches, slots

    def __len__(self) -> int:
        return self._num_batches

    def epoch_table(self) -> np.ndarray:
        random = generator(self.seed, self.epoch, "identity batches")
        pid_of_slot = self._assign(random)  # [batches, P]
        samples = self._draw_groups(pid_of_slot.reshape(-1), random)  # [batches * P, K]
        return samples.reshape(len(self), self.batch_size)

    def _assign(self, random: np.random.Generator) -> np.ndarray:
        """Which identity stands in each of the P slots of each batch, none twice in a batch."""
        counts = np.minimum(self._groups, len(self))
        for number, slots in enumerate(self._slots):
            members = np.flatnonzero(self._set_of_pid == number)
            counts[members] = _fitted(counts[members], slots, len(self), random)
        # An identity's groups lie next to each other in `slots`, and slot i goes to batch i mod B: with at most B
        # groups an identity never meets itself. So do a set's identities: its slots are spread evenly over the batches.
        order = random.permutation(len(counts))
        order = order[np.argsort(self._set_of_pid[order], kind="stable")]
        slots = np.repeat(order, counts[order])
        table = slots.reshape(self.num_pids_per_batch, len(self)).T
        table = table[random.permutation(len(self))]
        # Sets change places within a batch, because a rank takes its share from an end.
        return random.permuted(table, axis=1) if len(self._slots) > 1 else table

    def _draw_groups(self, pid_of_group: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[G, K] sample indices: each identity's groups walk through a shuffle of its images and start over."""
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


def _fitted(counts: np.ndarray, total: int, most: int, random: np.random.Generator) -> np.ndarray:
    """How often each identity appears, at random, so that the sum is `total` and each is in 1..most.

    Args:
        counts: [identities] as often as an identity has groups, 1..most.
        total: in len(counts)..len(counts) * most.
    """
    def draw(tickets: np.ndarray, number: int) -> np.ndarray:
        """`number` of all tickets, of which identity i has tickets[i]."""
        owners = np.repeat(np.arange(len(tickets)), tickets)
        return np.bincount(random.choice(owners, number, replace=False), minlength=len(tickets))

    groups, surplus = counts, int(counts.sum()) - total
    if surplus > 0:
        return counts - draw(counts - 1, surplus)
    while surplus < 0:  # every group once more, or as many as there is room for
        again = np.minimum(groups, most - counts)
        counts = counts + (again if again.sum() <= -surplus else draw(again, -surplus))
        surplus = int(counts.sum()) - total
    return counts
