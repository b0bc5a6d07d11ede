"""How far a metric may be trusted: bootstrap intervals over queries, and a paired test of two rankings.

Every metric here is a mean over queries, so all that is needed is each query's share in it.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from processor.retrieval.metrics import RankResult

_AT_A_TIME = 1 << 20  # draws × queries under way: tens of MiB


def query_values(result: RankResult) -> dict[str, np.ndarray]:
    """{metric as in `RankResult.to_dict`: [Q] float64 whose mean it is}; NaN for a query without a match.

    >>> from processor.retrieval.metrics import evaluate_rank
    >>> query_values(evaluate_rank([[0.1, 0.2], [0.1, 0.2]], [7, 9], [1, 7], [0, 0], [1, 1]))["mAP"].tolist()
    [0.5, nan]
    """
    rank1 = np.where(result.valid, result.first_hit == 1, np.nan)
    return {"rank1": rank1, "mAP": result.ap, f"mAP@{result.k}": result.ap_at_k, "mINP": result.inp,
            "naic_score": (rank1 + result.ap_at_k) / 2}


def intervals(result: RankResult, draws: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, list[float]]:
    """Percentile bootstrap over queries: {metric: [lower, upper]}, ready for JSON.

    The valid queries are drawn with replacement, as many as there are; of a merged result within each domain, so that
    every draw weighs the domains alike. The draws depend on `seed` and on the numbers of queries alone.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    >>> from processor.retrieval.metrics import evaluate_rank
    >>> intervals(evaluate_rank([[0.1, 0.2]] * 3, [7, 7, 7], [1, 7], [0, 0, 0], [1, 1]))["mAP"]  # three times 0.5
    [0.5, 0.5]
    """
    values = query_values(result)
    means = _bootstrap_means(_columns(values, result), _strata(result), draws, seed)
    return {name: bounds.tolist() for name, bounds in zip(values, _percentiles(means, level), strict=True)}


@dataclass(frozen=True)
class Difference:
    """A metric of two rankings of the same queries."""

    metric: str
    a: float
    b: float
    low: float     # 95 % interval of b - a
    high: float
    p: float       # two-sided, of this metric alone
    p_holm: float  # p adjusted for all metrics that were tested together

    def verdict(self, alpha: float = 0.05) -> str:
        """Which is better, if the adjusted p is below alpha; else noise."""
        if self.p_holm >= alpha:
            return "noise"
        return "B is better" if self.b > self.a else "A is better"


def compare(a: RankResult, b: RankResult, seed: int = 0, bootstrap_draws: int = 1000,
            permutations: int = 10_000) -> list[Difference]:
    """Each metric of two rankings, the interval of their difference and how likely chance alone is to give it.

    The interval is the paired bootstrap's (a query is drawn with both its figures, within its domain). p is the
    paired sign-flip test's: under the null hypothesis a query's two figures might as well be swapped, so each query's
    difference gets a random sign; p = (1 + draws at least as far from 0 as the difference itself) / (1 + draws).

    Args:
        a, b: the same queries in the same order.
    Raises:
        ValueError: numbers of queries, the valid ones or k differ.
    Source: Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information Retrieval
        Evaluation, CIKM 2007; the + 1: Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010.

    >>> from processor.retrieval.metrics import evaluate_rank
    >>> a = evaluate_rank([[0.2, 0.1]] * 50, [7] * 50, [7, 1], [0] * 50, [1, 1])  # every match has rank 2 ...
    >>> b = evaluate_rank([[0.1, 0.2]] * 50, [7] * 50, [7, 1], [0] * 50, [1, 1])  # ... and here rank 1
    >>> [(change.metric, change.a, change.b, change.verdict()) for change in compare(a, b)][1]
    ('mAP', 0.5, 1.0, 'B is better')
    """
    if (a.domain_sizes, a.k) != (b.domain_sizes, b.k) or not np.array_equal(a.valid, b.valid):
        raise ValueError(f"the rankings differ in their queries ({a.num_valid} and {b.num_valid} valid, in domains of "
                         f"{a.domain_sizes} and {b.domain_sizes}) or in k ({a.k} and {b.k})")
    values_a, values_b = query_values(a), query_values(b)
    columns_a, columns_b = _columns(values_a, a), _columns(values_b, b)
    changes = columns_b - columns_a
    bounds = _percentiles(_bootstrap_means(changes, _strata(a), bootstrap_draws, seed), 0.95)
    p = sign_flip_test(changes, permutations, seed)
    rows = zip(values_a, columns_a.mean(0), columns_b.mean(0), *bounds.T, p, holm(p), strict=True)
    return [Difference(name, *map(float, figures)) for name, *figures in rows]


def sign_flip_test(changes: np.ndarray, draws: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided p of the hypothesis that each row's sign is chance; the columns share their signs.

    Args:
        changes: [n, M] differences, one row a query.
    Returns:
        [M] in [1 / (draws + 1), 1].

    >>> sign_flip_test(np.array([[0.3, 0.1], [0.2, -0.1]]), draws=999).round(1).tolist()  # 2 of 4 signs, 4 of 4
    [0.5, 1.0]
    """
    size = len(changes)
    rng = np.random.default_rng([seed, size, 1])
    total = changes.sum(axis=0)
    as_far = np.zeros(changes.shape[1], np.int64)
    for count in _portions(draws, size):
        bits = np.unpackbits(rng.integers(256, size=(count, (size + 7) // 8), dtype=np.uint8), axis=1, count=size)
        flipped = 2 * (bits.astype(np.float64) @ changes) - total  # the sum with the signs of the zero bits turned
        # Sums that are equal but for rounding count as equal.
        as_far += (np.abs(flipped) >= np.abs(total) * (1 - 1e-9)).sum(axis=0)
    return (1 + as_far) / (1 + draws)


def holm(p: Sequence[float]) -> np.ndarray:
    """p values adjusted for being tested together: below alpha if Holm's step-down procedure rejects.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    >>> holm([0.01, 0.04, 0.03]).tolist()  # 3 * 0.01; 2 * 0.03; and no less than that
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _columns(values: dict[str, np.ndarray], result: RankResult) -> np.ndarray:
    """[valid queries, M]"""
    return np.stack([column[result.valid] for column in values.values()], axis=1)


def _strata(result: RankResult) -> list[int]:
    """Valid queries of each domain."""
    ends = np.cumsum(result.domain_sizes)
    return [int(part.sum()) for part in np.split(result.valid, ends[:-1])]


def _bootstrap_means(values: np.ndarray, strata: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """[n, M] values, the first strata[0] rows of a stratum, ... -> [draws, M] means of the resampled rows."""
    rng = np.random.default_rng([seed, *strata])
    sums = np.zeros((draws, values.shape[1]))
    begin = 0
    for size in filter(None, strata):
        part, done = values[begin : begin + size], 0
        begin += size
        for count in _portions(draws, size):
            drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
            for column in range(values.shape[1]):  # not a matrix product: its rounding depends on the threads
                sums[done : done + count, column] += (times * part[:, column]).sum(axis=1)
            done += count
    return sums / len(values)


def _portions(draws: int, size: int) -> Iterator[int]:
    """How many draws of `size` queries to make at a time; a function of the two alone."""
    step = max(1, _AT_A_TIME // size)
    for begin in range(0, draws, step):
        yield min(step, draws - begin)


def _percentiles(means: np.ndarray, level: float) -> np.ndarray:
    """[draws, M] -> [M, 2]"""
    return np.percentile(means, [50 * (1 - level), 50 * (1 + level)], axis=0).T
