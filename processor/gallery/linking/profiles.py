"""Groups of rows as the sums of their vectors: the mean cosine over all pairs of two groups is one product."""
from __future__ import annotations

import heapq

import numpy as np

_DIGITS = 10  # of a similarity: what lies behind depends on the machine, and must not decide


class Profiles:
    """Groups in slots, which are numbers from 0 that are used again.

    sums [slots, D] float64, counts [slots] int64: of the rows of a group; 0 rows: the slot is free.
    """

    def __init__(self, dim: int):
        self.sums, self.counts = np.zeros((64, dim)), np.zeros(64, np.int64)
        self._free = list(range(64))

    def new(self, vector: np.ndarray, count: int = 1) -> int:
        """The slot of a new group: the lowest that is free."""
        if not self._free:
            size = len(self.counts)
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self._free = list(range(size, 2 * size))
        slot = heapq.heappop(self._free)
        self.sums[slot], self.counts[slot] = vector, count
        return slot

    def add(self, slot: int, vector: np.ndarray, count: int = 1) -> None:
        """Rows join a group; vector [D] is their sum."""
        self.sums[slot] += vector
        self.counts[slot] += count

    def take(self, slot: int, vector: np.ndarray, count: int = 1) -> None:
        """Rows leave a group, which keeps others."""
        self.add(slot, -vector, -count)

    def remove(self, slot: int) -> None:
        """Free a slot."""
        self.sums[slot], self.counts[slot] = 0, 0
        heapq.heappush(self._free, slot)

    def similarities(self, vector: np.ndarray, count: int = 1) -> np.ndarray:
        """[slots] the mean cosine of `count` rows, whose sum is vector [D], to each group's; -inf: a free slot.

        >>> profiles = Profiles(2)
        >>> slot = profiles.new(np.array([1.0, 1.0]), 2)  # of rows (1, 0) and (0, 1)
        >>> profiles.similarities(np.array([1.0, 0.0]))[:2].tolist()
        [0.5, -inf]
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.round(self.sums @ vector / (self.counts * count), _DIGITS)
        return np.where(self.counts > 0, means, -np.inf)
