"""CMC, mAP, mINP and TPR@FPR, counted up a few queries at a time."""
from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from processor.retrieval.roc import RocCounts, count_below
from utils.parallel import in_threads, thread_count

if TYPE_CHECKING:  # a ranking is measured without torch, too
    from utils.dist import Workers

QUERY_FIGURES = ("ap", "ap_at_k", "inp", "first_hit")  # the arrays of a RankResult
_PIECE = 8  # queries that a thread ranks at a time
NO_PAIRS = np.empty((0, 2), np.int64)  # of a query and a gallery image


@dataclass(frozen=True, eq=False)
class RankResult:
    """How well the gallery was ranked: a figure for each query, and their averages.

    A query without a match in the gallery (after its own file and, if that is asked for, its camera were dropped) has
    no rank to measure: it is NaN here, counts in `num_queries`, not in `num_valid`, and in no average.
    """

    ap: np.ndarray         # [Q] float64, NaN without a match
    ap_at_k: np.ndarray    # [Q] float64, NaN without a match
    inp: np.ndarray        # [Q] float64, NaN without a match
    first_hit: np.ndarray  # [Q] int64, rank of the nearest match from 1; 0 without a match
    domain_sizes: tuple[int, ...]  # queries of each domain, domain after domain, if several were merged
    max_rank: int          # length of cmc
    k: int                 # of ap_at_k
    pair_figures: dict[str, float] = field(default_factory=dict)  # RocCounts.figures; {} for several domains together
    pair_intervals: dict[str, list[float]] = field(default_factory=dict)  # RocCounts.intervals, likewise
    tpr_exact: bool = True  # False: so many pairs that the thresholds were rounded to a grid, see RocCounts

    @property
    def valid(self) -> np.ndarray:
        """[Q] bool: the queries that have a match."""
        return self.first_hit > 0

    @property
    def tpr_at_fpr(self) -> dict[str, float]:
        """{"TPR@FPR=1e-04": ...} of `pair_figures`."""
        return {name: value for name, value in self.pair_figures.items() if name.startswith("TPR")}

    @property
    def num_queries(self) -> int:
        return len(self.first_hit)

    @property
    def num_valid(self) -> int:
        return int(np.count_nonzero(self.first_hit))

    @property
    def cmc(self) -> np.ndarray:
        """[max_rank] float64: share of the valid queries with a match among the first r + 1.

        A gallery shorter than max_rank has no first match beyond its end: the last value is repeated.
        """
        within = self.first_hit[self.valid & (self.first_hit <= self.max_rank)]
        return np.cumsum(np.bincount(within, minlength=self.max_rank + 1)[1:]) / self.num_valid

    @property
    def mAP(self) -> float:
        return float(self.ap[self.valid].mean())

    @property
    def mAP_at_k(self) -> float:
        return float(self.ap_at_k[self.valid].mean())

    @property
    def mINP(self) -> float:
        return float(self.inp[self.valid].mean())

    @property
    def naic_score(self) -> float:
        """The NAIC competition's score: the mean of rank-1 and mAP@k (there k = 200)."""
        return (float(self.cmc[0]) + self.mAP_at_k) / 2

    def to_dict(self) -> dict[str, float | int]:
        """The figures by name, for a JSON file; a rank beyond max_rank is left out."""
        cmc = self.cmc
        ranks = {f"rank{r}": float(cmc[r - 1]) for r in (1, 5, 10) if r <= len(cmc)}
        return {**ranks, "mAP": self.mAP, f"mAP@{self.k}": self.mAP_at_k, "mINP": self.mINP,
                "naic_score": self.naic_score, "num_valid": self.num_valid, "num_queries": self.num_queries,
                **self.pair_figures}


class RankAccumulator:
    """Takes the distances in blocks of queries, in any order, and never holds them all.

    Ranks follow the distance, and equal distances the gallery index; -inf comes first and +inf last. AP is the mean
    over a query's matches of the precision at the match's rank (not interpolated); AP@k counts the matches among the
    first k ranks and divides by min(matches, k); INP is the number of matches divided by the last match's rank.
    TPR@FPR is over all pairs that are ranked, those of queries without a match too; see `RocCounts`.

    Rows are sorted, each in a thread, without their indices: only the matches' places in them are asked for.

    Args:
        q_pids, g_pids: [Q], [G] identities.
        q_camids, g_camids: [Q], [G] cameras.
        max_rank: length of the CMC curve; a gallery shorter than this repeats its last value.
        k: ranks that mAP@k looks at.
        drop_same_camera: leave the query's identity from the query's camera out of its ranking (Market-1501's
            protocol); False ranks the whole gallery, as if the cameras were unknown.
        same_file: [n, 2] (query, gallery image) that are one file, see `datasets.files.same_file`: the image is not in
            the query's ranking, neither as a match nor as a mistake.
    Raises:
        ValueError: lengths that do not fit together, or max_rank or k below 1.
    Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015; mINP: Ye et al., Deep Learning
        for Person Re-identification: A Survey and Outlook, TPAMI 2021.

    >>> accumulator = RankAccumulator([7, 8], [8, 7], [0, 0], [1, 1])
    >>> accumulator.update(slice(0, 1), [[0.2, 0.1]])  # the match of query 0 is the nearest ...
    >>> accumulator.update(slice(1, 2), [[0.4, 0.3]])  # ... and that of query 1 the second
    >>> accumulator.result().ap.tolist()
    [1.0, 0.5]
    """

    def __init__(
        self, q_pids: Sequence[int], g_pids: Sequence[int], q_camids: Sequence[int], g_camids: Sequence[int],
        max_rank: int = 50, k: int = 200, drop_same_camera: bool = True, same_file: np.ndarray = NO_PAIRS,
    ) -> None:
        if max_rank < 1 or k < 1:
            raise ValueError(f"max_rank={max_rank}, k={k}: both must be at least 1")
        self.q_pids, self.q_camids = _same_length("query", q_pids, q_camids)
        self.g_pids, self.g_camids = _same_length("gallery", g_pids, g_camids)
        self.max_rank, self.k, self.drop_same_camera = max_rank, k, drop_same_camera
        size = len(self.q_pids)
        self._by_pid = np.argsort(self.g_pids, kind="stable")  # query q's identity: [_begin[q] : _end[q]], ascending
        self._begin, self._end = (np.searchsorted(self.g_pids[self._by_pid], self.q_pids, side)
                                  for side in ("left", "right"))
        self.same_file = np.unique(np.asarray(same_file, np.int64).reshape(-1, 2), axis=0)  # sorted
        same_pid = int((self._end - self._begin).sum())
        left_out = np.count_nonzero(self.q_pids[self.same_file[:, 0]] != self.g_pids[self.same_file[:, 1]])
        self._roc = RocCounts(same_pid, size * len(self.g_pids) - same_pid - int(left_out))
        self._seen = np.zeros(size, bool)
        self._ap, self._ap_at_k, self._inp = (np.full(size, np.nan) for _ in range(3))  # NaN: nothing to find
        self._first_hit = np.zeros(size, np.int64)

    def update(self, rows: slice | np.ndarray, distances: np.ndarray) -> None:
        """Rank the gallery for these queries.

        Args:
            rows: which queries, a slice or an integer array.
            distances: [len(rows), G], smaller is closer.
        Raises:
            ValueError: a wrong shape, NaN, a query out of range, or that was there before. Nothing was counted.
        """
        size = len(self._seen)
        if isinstance(rows, slice):
            rows = np.arange(rows.start or 0, size if rows.stop is None else rows.stop, rows.step or 1)
        rows, distances = np.asarray(rows), np.asarray(distances)
        if distances.shape != (len(rows), len(self.g_pids)):
            raise ValueError(f"expected distances {(len(rows), len(self.g_pids))} for {len(rows)} queries and "
                             f"{len(self.g_pids)} gallery images, got {distances.shape}")
        if len(outside := rows[(rows < 0) | (rows >= size)]):
            raise ValueError(f"query {outside[0]} is out of range: there are {size}")
        times = np.bincount(rows, minlength=size) + self._seen
        if len(repeated := np.flatnonzero(times > 1)):
            raise ValueError(f"query {repeated[0]} came twice")
        if len(unclear := rows[np.isnan(distances.min(axis=1))]):
            raise ValueError(f"the distances of query {unclear[0]} hold NaN")
        pieces = [slice(start, start + _PIECE) for start in range(0, len(rows), _PIECE)]
        for row, ranked in chain.from_iterable(
                self._in_threads(lambda piece: self._rank_all(rows[piece].tolist(), distances[piece]), pieces)):
            self._enter(row, ranked)
        self._seen[rows] = True

    @staticmethod
    def _in_threads(function: Callable[[slice], list], pieces: list[slice]) -> Iterable[list]:
        torch = sys.modules.get("torch")  # it says how many threads this process may have
        if torch is None or len(pieces) == 1:
            return map(function, pieces)
        return in_threads(function, pieces, thread_count(torch.device("cpu")))

    def _rank_all(self, rows: list[int], distances: np.ndarray) -> list[tuple[int, _Ranked]]:
        return [(row, self._rank(row, row_distances)) for row, row_distances in zip(rows, distances, strict=True)]

    def _rank(self, row: int, distances: np.ndarray) -> _Ranked:
        """Find the matches' places in the ranking of a query. Changes nothing: threads do it at a time."""
        same_pid = self._by_pid[self._begin[row] : self._end[row]]
        own = self.same_file[slice(*self.same_file[:, 0].searchsorted((row, row + 1))), 1]
        if len(own):
            same_pid = np.setdiff1d(same_pid, own)
        same_camera = self.g_camids[same_pid] == self.q_camids[row]
        if len(own):  # as if the gallery did not have them
            distances, same_pid = np.delete(distances, own), same_pid - own.searchsorted(same_pid)
        order = np.argsort(distances[same_pid], kind="stable")
        same_pid, dropped = same_pid[order], self.drop_same_camera & same_camera[order]
        ordered = np.sort(distances)
        places = _places(ordered, distances, same_pid)
        near = int(ordered.searchsorted(self._roc.negatives.limit))
        nearest = distances[same_pid]
        positives = nearest[~dropped]
        return _Ranked((places + 1 - np.cumsum(dropped))[~dropped],  # what is dropped takes no rank
                       positives, np.delete(ordered[:near], places[places < near]),
                       count_below(positives), count_below(ordered) - count_below(nearest))

    def _enter(self, row: int, ranked: _Ranked) -> None:
        """Enter the figures of a query."""
        self._roc.add(row, ranked.positives, ranked.negatives)
        self._roc.count(ranked.positives_below, ranked.negatives_below)
        ranks = ranked.ranks
        if not len(ranks):
            return
        precision = np.arange(1, len(ranks) + 1) / ranks
        self._ap[row] = precision.mean()
        self._ap_at_k[row] = precision[ranks <= self.k].sum() / min(len(ranks), self.k)
        self._inp[row] = precision[-1]
        self._first_hit[row] = ranks[0]

    def absorb(self, other: RankAccumulator) -> None:
        """Add what another accumulator, such as another process's, has counted of other queries of the same data.

        The result depends neither on who absorbs whom nor on the order. An accumulator can be pickled.

        Raises:
            ValueError: the labels or settings differ, or both have seen the same query; nothing was added.
        """
        for name in ("q_pids", "g_pids", "q_camids", "g_camids", "max_rank", "k", "drop_same_camera", "same_file"):
            if not np.array_equal(getattr(self, name), getattr(other, name)):
                raise ValueError(f"accumulators that differ in {name} cannot be joined")
        if len(repeated := np.flatnonzero(self._seen & other._seen)):
            raise ValueError(f"query {repeated[0]} came twice")
        rows = other._seen
        for name in ("_ap", "_ap_at_k", "_inp", "_first_hit", "_seen"):
            getattr(self, name)[rows] = getattr(other, name)[rows]
        self._roc.absorb(other._roc)

    def gather(self, workers: Workers) -> RankAccumulator:
        """What all processes have counted together, in each of them."""
        first, *others = workers.gather_objects(self)
        for other in others:
            first.absorb(other)
        return first

    def result(self, pair_intervals: bool = True) -> RankResult:
        """The figures of all queries.

        Args:
            pair_intervals: draw those of the TPR and its distances, too: up to seconds with millions of pairs.
        Raises:
            ValueError: a query was never given, or none has a match in the gallery.
        """
        missing = np.flatnonzero(~self._seen)
        if len(missing):
            raise ValueError(f"{len(missing)} of {len(self._seen)} queries were not given, the first is {missing[0]}")
        if not self._first_hit.any():
            other = " from another camera" if self.drop_same_camera else ""
            raise ValueError(f"none of the {len(self._seen)} queries has an image of its identity{other} in the "
                             f"gallery")
        per_query = (array.copy() for array in (self._ap, self._ap_at_k, self._inp, self._first_hit))
        return RankResult(*per_query, (len(self._seen),), self.max_rank, self.k, self._roc.figures(),
                          self._roc.intervals(len(self._seen)) if pair_intervals else {}, self._roc.exact)


class _Ranked(NamedTuple):
    """What a query's ranking shows.

    Attributes:
        ranks: of the matches, from 1, ascending.
        positives: their distances.
        negatives: the distances of others, as far as they may matter for the TPR.
        positives_below, negatives_below: see `count_below`.
    """

    ranks: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    positives_below: np.ndarray
    negatives_below: np.ndarray


def _places(ordered: np.ndarray, distances: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[n] the places of images in the ranking of a row by (distance, index), from 0.

    Args:
        ordered: [G] the row, ascending.
        distances: [G] the row as it came.
        images: [n] indices into it, nearest first.
    """
    nearest = distances[images]
    places = ordered.searchsorted(nearest)
    tied = ordered.searchsorted(nearest, side="right") - places > 1
    for value in np.unique(nearest[tied]) if tied.any() else ():
        equal = nearest == value
        places[equal] += np.flatnonzero(distances == value).searchsorted(images[equal])
    return places


def _same_length(side: str, pids: Sequence[int], camids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    pids, camids = np.asarray(pids), np.asarray(camids)
    if pids.ndim != 1 or pids.shape != camids.shape or not len(pids):
        raise ValueError(f"{side}: expected one pid and one camid for each of at least one image, got shapes "
                         f"{pids.shape} and {camids.shape}")
    return pids, camids


def evaluate_rank(
    distmat: np.ndarray, q_pids: Sequence[int], g_pids: Sequence[int], q_camids: Sequence[int],
    g_camids: Sequence[int], max_rank: int = 50, same_file: np.ndarray = NO_PAIRS,
) -> RankResult:
    """Market-1501's protocol on a whole distance matrix: same identity from the same camera is dropped.

    Args:
        distmat: [Q, G], smaller is closer.
        q_pids, g_pids, q_camids, g_camids, max_rank, same_file: as for `RankAccumulator`.
    Raises:
        ValueError: as `RankAccumulator`, its `update` and its `result`.

    >>> result = evaluate_rank([[0.1, 0.2, 0.3]], q_pids=[7], g_pids=[7, 1, 7], q_camids=[0], g_camids=[0, 1, 1])
    >>> result.cmc[:2].tolist(), result.mAP  # the nearest is from the query's camera: the match has rank 2
    ([0.0, 1.0], 0.5)
    """
    accumulator = RankAccumulator(q_pids, g_pids, q_camids, g_camids, max_rank, same_file=same_file)
    accumulator.update(slice(0, len(accumulator.q_pids)), distmat)
    return accumulator.result()


def count_matches(
    q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray, drop_same_camera: bool = True,
    same_file: np.ndarray = NO_PAIRS,
) -> np.ndarray:
    """[Q] how many matches each query has to find, known before anything is ranked; arguments as `RankAccumulator`.

    >>> count_matches(*map(np.array, ([7, 8], [7, 7, 8], [1, 1], [1, 2, 1])))  # the other two are from camera 1
    array([1, 0])
    """
    by_pid = Counter(g_pids.tolist())
    dropped = Counter(zip(g_pids.tolist(), g_camids.tolist(), strict=True) if drop_same_camera else ())
    counts = np.array([by_pid[pid] - dropped[pid, camid]
                       for pid, camid in zip(q_pids.tolist(), q_camids.tolist(), strict=True)], np.int64)
    for query, image in same_file.tolist():
        same_camera = drop_same_camera and q_camids[query] == g_camids[image]
        counts[query] -= q_pids[query] == g_pids[image] and not same_camera
    return counts


def own_files(same_file: np.ndarray, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Which gallery images are the own file of the query whose ranking they stand in.

    Args:
        same_file: as for `RankAccumulator`.
        rows: [R] queries.
        images: [R, n] gallery images, or [1, n] the same ones for all of them.
    Returns:
        [R, n] bool.

    >>> own_files(np.array([[4, 1]]), np.array([3, 4]), np.array([[0, 1, 2]])).astype(int).tolist()
    [[0, 0, 0], [0, 1, 0]]
    """
    images = np.broadcast_to(images, (len(rows), images.shape[1]))
    own = np.zeros(images.shape, bool)
    for place in np.flatnonzero(np.isin(rows, same_file[:, 0])):
        own[place] = np.isin(images[place], same_file[same_file[:, 0] == rows[place], 1])
    return own


def merge_results(results: Sequence[RankResult]) -> RankResult:
    """The result over all queries of several domains (as NAIC's green and normal), each weighted by its valid ones.

    A threshold of distances belongs to one gallery, and its FPR cannot be had from the domains' figures: several
    domains together have no TPR@FPR.

    Raises:
        ValueError: there are none, or they differ in max_rank or k.

    >>> green = evaluate_rank([[0.1, 0.2]], [7], [7, 1], [0], [1, 1])
    >>> normal = evaluate_rank([[0.1, 0.2], [0.3, 0.1]], [7, 7], [1, 7], [0, 0], [1, 1])
    >>> merge_results([green, normal]).ap.tolist()
    [1.0, 0.5, 1.0]
    """
    if not results:
        raise ValueError("no results to merge")
    kinds = {(result.max_rank, result.k) for result in results}
    if len(kinds) > 1:
        raise ValueError(f"results of different (max_rank, k) cannot be merged: {sorted(kinds)}")
    if len(results) == 1:
        return results[0]
    per_query = (np.concatenate([getattr(result, name) for result in results]) for name in QUERY_FIGURES)
    sizes = tuple(size for result in results for size in result.domain_sizes)
    return RankResult(*per_query, sizes, results[0].max_rank, results[0].k)


def format_queries(figures: Mapping[str, float | int]) -> str:
    """How many queries the figures of `RankResult.to_dict` are about.

    >>> format_queries({"num_valid": 118, "num_queries": 120}), format_queries({"num_valid": 8, "num_queries": 8})
    ('118 of 120 queries (2 without a match in the gallery)', '8 queries')
    """
    valid, queries = figures["num_valid"], figures.get("num_queries", figures["num_valid"])
    return (f"{valid:,} queries" if valid == queries else
            f"{valid:,} of {queries:,} queries ({queries - valid:,} without a match in the gallery)")


def format_figures(figures: Mapping[str, float | int]) -> str:
    """The means of `RankResult.to_dict`, in per cent, but what is of pairs.

    >>> format_figures({"rank1": 0.5, "mAP": 0.251, "num_valid": 8, "TPR@FPR=1e-02": 0.1})
    'rank1 50.00%, mAP 25.10%'
    """
    return ", ".join(f"{name} {100 * value:.2f}%" for name, value in figures.items()
                     if isinstance(value, float) and not (name == "EER" or "@FPR" in name))
