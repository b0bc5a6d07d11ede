"""TPR@FPR over all pairs of a query and a gallery image, in one pass and in bounded memory."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

FPR_EXPONENTS = (4, 3, 2)  # FPR 1e-4, 1e-3, 1e-2
# Distances at which error rates are counted, for the point where they are equal: 1e-3 to 16384 in steps of 1 %.
_GRID = (2.0 ** (np.arange(-10 * 64, 14 * 64) / 64)).astype(np.float32)
_BOOTSTRAPPED = 1 << 21    # kept values of which intervals are drawn; more would take longer than the ranking
MAX_POOL = 1 << 25         # values that are kept as they are: 128 MiB of float32, up to four times that while sorted
_GRID_SHIFT = 8            # the histogram leaves out the last 8 of a float32's 32 bits


def count_below(ascending: np.ndarray) -> np.ndarray:
    """[len(_GRID)] int64: how many of the values are below each of _GRID, which begins at 2**-10.

    >>> count_below(np.float32([0.0, 0.5, 2.0]))[[0, -1]].tolist()
    [1, 3]
    """
    counts = np.zeros(len(_GRID), np.int64)
    if len(ascending):
        first, last = _GRID.searchsorted(ascending[[0, -1]], side="right")  # few of its distances lie in between
        counts[first:last] = ascending.searchsorted(_GRID[first:last])
        counts[last:] = len(ascending)
    return counts


class SmallestValues:
    """The `size` smallest of the values that pass by.

    with_rows: keep, too, which query each is of.
    limit: `size` values below or at it are known; a value that is not below it need not be added. Who knows a lower one
        may set it.

    >>> kept = SmallestValues(2)
    >>> kept.add(np.array([5.0, 1.0, 3.0, 4.0, 2.0]))
    >>> kept.value_at(0), float(kept.limit)
    (1.0, 2.0)
    """

    def __init__(self, size: int, with_rows: bool = True) -> None:
        self.size, self.with_rows, self.limit = size, with_rows, np.float32(np.inf)
        self._pieces: list[np.ndarray] = [np.empty(0, np.float32)]
        self._rows: list[np.ndarray] = [np.empty(0, np.int32)]
        self._count = 0

    def add(self, values: np.ndarray, row: int = 0) -> None:
        """Take values of any shape and order, of a query; what is not below the limit is forgotten."""
        piece = values[values < self.limit]
        self._add(piece, np.full(len(piece) if self.with_rows else 0, row, np.int32))

    def _add(self, values: np.ndarray, rows: np.ndarray) -> None:
        self._pieces.append(values)
        self._rows.append(rows)
        self._count += len(values)
        if self._count > 2 * self.size:
            self._forget()

    def _forget(self) -> None:
        """Keep what is below the limit, or the `size` smallest if that is still far too much."""
        values, rows = np.concatenate(self._pieces), np.concatenate(self._rows)
        kept = np.flatnonzero(values < self.limit)
        if not self.size <= len(kept) <= 3 * self.size // 2:
            kept = np.argpartition(values, self.size - 1)[: self.size]
            self.limit = values[kept[-1]]
        self._pieces, self._rows = [values[kept]], [rows[kept] if self.with_rows else rows]
        self._count = len(kept)

    def absorb(self, other: SmallestValues) -> None:
        """Add what `other` keeps."""
        for values, rows in zip(other._pieces, other._rows, strict=True):
            below = values < self.limit
            self._add(values[below], rows[below] if self.with_rows else rows)

    def ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """The values, ascending, and the query of each; equal ones by query."""
        values, rows = np.concatenate(self._pieces), np.concatenate(self._rows)
        order = np.lexsort((rows, values))[: self.size]
        return values[order], rows[order]

    def value_at(self, k: int) -> float:
        """The k-th smallest value, k from 0 and below `size`; infinity if so many were not finite."""
        return self.values_at([k])[0]

    def values_at(self, ks: Sequence[int]) -> list[float]:
        """`value_at` of each, by one selection."""
        values = np.partition(np.concatenate(self._pieces), np.array([k for k in ks if k < self._count], np.intp))
        return [float(values[k]) if k < self._count else np.inf for k in ks]

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

    def add(self, values: np.ndarray, row: int = 0) -> None:
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

    def values_at(self, ks: Sequence[int]) -> list[float]:
        return [self.value_at(k) for k in ks]

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
    Only the smallest hundredth of the negatives decides, so that, or twice that if intervals are to be drawn, is all
    that is kept. exact: False if even twice that, or the positives, are more than MAX_POOL values; then both are
    counted on `Histogram`'s grid, and the threshold is the largest on that grid.

    >>> counts = RocCounts(num_positives=2, num_negatives=100)
    >>> counts.add(0, positives=np.array([0.1, 0.35]), negatives=np.arange(100) / 10 + 0.2)
    >>> figures = counts.figures()
    >>> figures["TPR@FPR=1e-02"], round(figures["distance@FPR=1e-02"], 3)  # below 0.3 there is 1 of 100 wrong pairs
    (0.5, 0.3)
    """

    def __init__(self, num_positives: int, num_negatives: int) -> None:
        num_positives, deciding = max(num_positives, 1), num_negatives // 10 ** min(FPR_EXPONENTS) + 1
        self.exact = max(num_positives, 2 * deciding - 1) <= MAX_POOL
        self._has_intervals = self.exact and 2 * deciding - 1 <= _BOOTSTRAPPED
        make = partial(SmallestValues, with_rows=self._has_intervals) if self.exact else Histogram
        kept = 2 * deciding - 1 if self._has_intervals else deciding
        self.positives, self.negatives = make(num_positives), make(kept)
        self._num_positives, self._num_negatives = 0, num_negatives
        self._below = np.zeros((2, len(_GRID)), np.int64)  # matching and other pairs nearer than each of _GRID

    def add(self, row: int, positives: np.ndarray, negatives: np.ndarray) -> None:
        """Take a query's distances; negatives that are not below `self.negatives.limit` may be left out."""
        self._num_positives += len(positives)
        self.positives.add(positives, row)
        self.negatives.add(negatives, row)

    def count(self, positives_below: np.ndarray, negatives_below: np.ndarray) -> None:
        """Take a query's `count_below`, for the equal error rate, after its distances were added."""
        self._below += positives_below, negatives_below
        enough = int(self._below[1].searchsorted(self.negatives.size))
        if enough < len(_GRID):
            self.negatives.limit = min(self.negatives.limit, _GRID[enough])

    def absorb(self, other: RocCounts) -> None:
        """Add the pairs of another count made for the same totals."""
        self._num_positives += other._num_positives
        self.positives.absorb(other.positives)
        self.negatives.absorb(other.negatives)
        self._below += other._below

    def figures(self) -> dict[str, float]:
        """{"TPR@FPR=1e-04": ..., "distance@FPR=1e-04": the threshold, ..., "EER": ...}; {} if there is no matching or
        no other pair. What is infinite is left out."""
        if not self._num_positives or not self._num_negatives:
            return {}
        places = [self._num_negatives // 10 ** e for e in FPR_EXPONENTS]
        thresholds = dict(zip(FPR_EXPONENTS, self.negatives.values_at(places), strict=True))
        tpr = {f"TPR@FPR=1e-{e:02d}": self.positives.count_below(threshold) / self._num_positives
               for e, threshold in thresholds.items()}
        distances = {f"distance@FPR=1e-{e:02d}": threshold for e, threshold in thresholds.items()
                     if np.isfinite(threshold)}
        return {**tpr, **distances, **self._equal_error_rate()}

    def _equal_error_rate(self) -> dict[str, float]:
        """{"EER": the rate at which as many matching pairs are refused as others are accepted}, between two distances
        of _GRID on the straight line; {} if nothing was counted or it is not within the grid."""
        refused = 1 - self._below[0] / self._num_positives
        accepted = self._below[1] / self._num_negatives
        after = int(np.argmax(accepted >= refused))
        if not self._below.any() or after == 0:
            return {}
        gaps = refused[after - 1] - accepted[after - 1], accepted[after] - refused[after]
        share = gaps[0] / (gaps[0] + gaps[1])
        return {"EER": float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))}

    def intervals(self, num_queries: int, draws: int = 200, seed: int = 0, level: float = 0.95) -> dict[str, list]:
        """Percentile bootstrap over queries of the TPR and the distances of `figures`; {} if it would take long.

        A draw weighs each query by how often it was drawn; its threshold is that of the drawn pairs.
        """
        figures = self.figures() if self._has_intervals else {}
        if not figures:
            return {}
        (near, near_rows), (same, same_rows) = self.negatives.ordered(), self.positives.ordered()
        if not (len(near) and len(same)):
            return {}
        rng = np.random.default_rng([seed, num_queries])
        drawn: dict[str, list[float]] = {name: [] for name in figures if name != "EER"}
        for _ in range(draws):
            times = np.bincount(rng.integers(num_queries, size=num_queries), minlength=num_queries)
            wrong, right = np.cumsum(times[near_rows]), np.cumsum(times[same_rows])
            for e in FPR_EXPONENTS if right[-1] else ():
                place = min(wrong.searchsorted(self._num_negatives // 10 ** e, "right"), len(near) - 1)
                accepted = same.searchsorted(near[place])
                drawn[f"TPR@FPR=1e-{e:02d}"].append(right[accepted - 1] / right[-1] if accepted else 0.0)
                if f"distance@FPR=1e-{e:02d}" in drawn:
                    drawn[f"distance@FPR=1e-{e:02d}"].append(float(near[place]))
        bounds = 50 * (1 - level), 50 * (1 + level)
        return {name: np.percentile(values, bounds).tolist() for name, values in drawn.items()
                if values and np.isfinite(values).all()}
