"""TPR@FPR over all pairs of a query and a gallery image, in one pass and in bounded memory."""
from __future__ import annotations

import numpy as np

FPR_EXPONENTS = (4, 3, 2)  # FPR 1e-4, 1e-3, 1e-2
MAX_POOL = 1 << 25         # values that are kept as they are: 128 MiB of float32, up to four times that while sorted
_GRID_SHIFT = 8            # the histogram leaves out the last 8 of a float32's 32 bits


class SmallestValues:
    """The `size` smallest of the values that pass by.

    limit: `size` values below or at it are known; a value that is not below it need not be added.

    >>> kept = SmallestValues(2)
    >>> kept.add(np.array([5.0, 1.0, 3.0, 4.0, 2.0]))
    >>> kept.value_at(0), float(kept.limit)
    (1.0, 2.0)
    """

    def __init__(self, size: int) -> None:
        self.size, self.limit = size, np.float32(np.inf)
        self._pieces: list[np.ndarray] = [np.empty(0, np.float32)]
        self._count = 0

    def add(self, values: np.ndarray) -> None:
        """Take values of any shape and order; what is not below the limit is forgotten."""
        piece = values[values < self.limit]
        self._pieces.append(piece)
        self._count += len(piece)
        if self._count > 2 * self.size:
            values = np.concatenate(self._pieces)
            values.partition(self.size - 1)
            self._pieces, self._count = [values[: self.size].copy()], self.size
            self.limit = values[self.size - 1]

    def absorb(self, other: SmallestValues) -> None:
        """Add what `other` keeps."""
        for piece in other._pieces:
            self.add(piece)

    def value_at(self, k: int) -> float:
        """The k-th smallest value, k from 0 and below `size`; infinity if so many were not finite."""
        return float(np.partition(np.concatenate(self._pieces), k)[k]) if k < self._count else np.inf

    def count_below(self, threshold: float) -> int:
        return sum(int(np.count_nonzero(piece < threshold)) for piece in self._pieces)


class Histogram:
    """`SmallestValues` for more values than can be kept: counts on a grid of 2^24 steps of the float32 numbers.

    A step is 2^-15 of the number it begins at. `value_at` gives the beginning of the step that holds the k-th value.
    """

    def __init__(self, size: int) -> None:
        self.size, self.limit = size, np.float32(np.inf)
        self._counts = np.zeros(1 << (32 - _GRID_SHIFT), np.int64)
        self._added = 0

    def add(self, values: np.ndarray) -> None:
        steps, counts = np.unique(_step_of(values[values < self.limit]), return_counts=True)
        self._counts[steps] += counts
        self._added += int(counts.sum())
        if self._added > self.size:  # as many new ones as the limit is for: it may have moved
            self._added = 0
            self.limit = min(self.limit, self._begin_of_step(self.size - 1, after=1))

    def absorb(self, other: Histogram) -> None:
        self._counts += other._counts
        self.limit = min(self.limit, other.limit)

    def value_at(self, k: int) -> float:
        return float(self._begin_of_step(k))

    def count_below(self, threshold: float) -> int:
        return int(self._counts[: int(_step_of(np.float32([threshold]))[0])].sum())

    def _begin_of_step(self, k: int, after: int = 0) -> np.float32:
        """Where the step of the k-th value begins, or the step `after` it."""
        step = int(np.cumsum(self._counts).searchsorted(k, side="right")) + after
        bits = step << _GRID_SHIFT
        if bits >> 32:
            return np.float32(np.inf)
        number = np.uint32(bits ^ 0x80000000 if bits >> 31 else bits ^ 0xFFFFFFFF).view(np.float32)
        return np.float32(-np.inf) if np.isnan(number) else number  # the step of -inf begins among the NaN


def _step_of(values: np.ndarray) -> np.ndarray:
    """[n] numbers -> [n] steps of the grid in the same order: a float32's bits sort as integers, once turned round."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0: -0.0 becomes 0.0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(_GRID_SHIFT)


class RocCounts:
    """TPR at given FPR over pairs of two images, of which those nearer than a threshold are accepted as a match.

    TPR@FPR=x is the share of the matching pairs that the largest threshold accepts whose FPR - the share of the
    other pairs that it accepts - is at most x. With m = floor(x · num_negatives) these are the matching pairs that
    are strictly nearer than the (m + 1)-th nearest other pair. fast-reid's `evaluate_roc` looks at the same pairs,
    but takes the nearest point of its ROC curve, and gives scikit-learn the distances as scores of the pairs that do
    NOT match: its figures are shares of those pairs, not comparable with these.

    Args:
        num_positives: at least the number of matching pairs to come.
        num_negatives: the exact number of other pairs to come.
    Only the smallest hundredth of the negatives decides, so it is all that is kept. exact: False if even that, or the
    positives, are more than MAX_POOL values; then both are counted on `Histogram`'s grid, and the threshold is the
    largest on that grid.

    >>> counts = RocCounts(num_positives=2, num_negatives=100)
    >>> counts.add(positives=np.array([0.1, 0.35]), negatives=np.arange(100) / 10 + 0.2)
    >>> counts.tpr_at_fpr()["TPR@FPR=1e-02"]  # a threshold between 0.2 and 0.3 accepts 1 of 100 wrong pairs
    0.5
    """

    def __init__(self, num_positives: int, num_negatives: int) -> None:
        sizes = max(num_positives, 1), num_negatives // 10 ** min(FPR_EXPONENTS) + 1
        self.exact = max(sizes) <= MAX_POOL
        self.positives, self.negatives = map(SmallestValues if self.exact else Histogram, sizes)
        self._num_positives, self._num_negatives = 0, num_negatives

    def add(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        """Take distances; negatives that are not below `self.negatives.limit` may be left out."""
        self._num_positives += len(positives)
        self.positives.add(positives)
        self.negatives.add(negatives)

    def absorb(self, other: RocCounts) -> None:
        """Add the pairs of another count made for the same totals."""
        self._num_positives += other._num_positives
        self.positives.absorb(other.positives)
        self.negatives.absorb(other.negatives)

    def tpr_at_fpr(self) -> dict[str, float]:
        """{"TPR@FPR=1e-04": ...}; {} if there is no matching or no other pair."""
        if not self._num_positives or not self._num_negatives:
            return {}
        thresholds = {e: self.negatives.value_at(self._num_negatives // 10 ** e) for e in FPR_EXPONENTS}
        return {f"TPR@FPR=1e-{e:02d}": self.positives.count_below(threshold) / self._num_positives
                for e, threshold in thresholds.items()}
