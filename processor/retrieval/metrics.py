"""CMC, mAP and mINP, counted up a few queries at a time."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankResult:
    """How well the gallery was ranked, averaged over the queries that have a match to find.

    A query without a match in the gallery (after dropping its own camera, where that is asked for) has no rank to
    measure: it counts in `num_queries`, not in `num_valid`, and in no average.
    """

    cmc: np.ndarray    # [max_rank] float64: share of the queries with a match among the first r + 1
    mAP: float
    mAP_at_k: float
    mINP: float
    num_valid: int
    num_queries: int
    k: int             # of mAP_at_k

    @property
    def naic_score(self) -> float:
        """The NAIC competition's score: the mean of rank-1 and mAP@k (there k = 200)."""
        return (float(self.cmc[0]) + self.mAP_at_k) / 2

    def to_dict(self) -> dict[str, float | int]:
        """The figures by name, for a JSON file; a rank beyond max_rank is left out."""
        ranks = {f"rank{r}": float(self.cmc[r - 1]) for r in (1, 5, 10) if r <= len(self.cmc)}
        return {**ranks, "mAP": self.mAP, f"mAP@{self.k}": self.mAP_at_k, "mINP": self.mINP,
                "naic_score": self.naic_score, "num_valid": self.num_valid, "num_queries": self.num_queries}


class RankAccumulator:
    """Takes the distances in blocks of queries, in any order, and never holds them all.

    Ranks follow the distance, and equal distances the gallery index. AP is the mean over a query's matches of the
    precision at the match's rank (not interpolated); AP@k counts the matches among the first k ranks and divides by
    min(matches, k); INP is the number of matches divided by the last one's rank.

    Args:
        q_pids, g_pids: [Q], [G] identities.
        q_camids, g_camids: [Q], [G] cameras.
        max_rank: length of the CMC curve; a gallery shorter than this repeats its last value.
        k: ranks that mAP@k looks at.
        drop_same_camera: leave the query's identity from the query's camera out of its ranking (Market-1501's
            protocol); False ranks the whole gallery, as where the cameras are unknown.
    Raises:
        ValueError: lengths that do not fit together, or max_rank or k below 1.
    Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015; mINP: Ye et al., Deep Learning
        for Person Re-identification: A Survey and Outlook, TPAMI 2021.
    """

    def __init__(
        self, q_pids: Sequence[int], g_pids: Sequence[int], q_camids: Sequence[int], g_camids: Sequence[int],
        max_rank: int = 50, k: int = 200, drop_same_camera: bool = True,
    ) -> None:
        if max_rank < 1 or k < 1:
            raise ValueError(f"max_rank={max_rank}, k={k}: both must be at least 1")
        self.q_pids, self.q_camids = _same_length("query", q_pids, q_camids)
        self.g_pids, self.g_camids = _same_length("gallery", g_pids, g_camids)
        self.max_rank, self.k, self.drop_same_camera = max_rank, k, drop_same_camera
        size = len(self.q_pids)
        self._seen = np.zeros(size, bool)
        self._ap, self._ap_at_k, self._inp = (np.full(size, np.nan) for _ in range(3))  # NaN: nothing to find
        self._first_hits = np.zeros(max_rank, np.int64)  # queries whose first match is at this rank

    def update(self, rows: slice | np.ndarray, distances: np.ndarray) -> None:
        """Rank the gallery for some queries.

        Args:
            rows: which queries, a slice or an integer array.
            distances: [len(rows), G], smaller is closer.
        Raises:
            ValueError: a wrong shape, NaN, a query out of range, or one that was there before.
        """
        size = len(self._seen)
        if isinstance(rows, slice):
            rows = np.arange(rows.start or 0, size if rows.stop is None else rows.stop, rows.step or 1)
        rows, distances = np.asarray(rows), np.asarray(distances)
        if distances.shape != (len(rows), len(self.g_pids)):
            raise ValueError(f"expected distances {(len(rows), len(self.g_pids))} for {len(rows)} queries and "
                             f"{len(self.g_pids)} gallery images, got {distances.shape}")
        for row, row_distances in zip(rows.tolist(), distances, strict=True):
            if not 0 <= row < size:
                raise ValueError(f"query {row} is out of range: there are {size}")
            if self._seen[row]:
                raise ValueError(f"query {row} came twice")
            if np.isnan(row_distances).any():
                raise ValueError(f"the distances of query {row} hold NaN")
            self._seen[row] = True
            self._rank(row, row_distances)

    def _rank(self, row: int, distances: np.ndarray) -> None:
        """Enter one query's figures."""
        matches = self.g_pids == self.q_pids[row]
        if self.drop_same_camera:
            kept = ~(matches & (self.g_camids == self.q_camids[row]))
            matches, distances = matches[kept], distances[kept]
        if not matches.any():
            return
        ranks = np.flatnonzero(matches[np.argsort(distances, kind="stable")]) + 1  # of the matches, from 1
        precision = np.arange(1, len(ranks) + 1) / ranks
        self._ap[row] = precision.mean()
        self._ap_at_k[row] = precision[ranks <= self.k].sum() / min(len(ranks), self.k)
        self._inp[row] = precision[-1]
        if ranks[0] <= self.max_rank:
            self._first_hits[ranks[0] - 1] += 1

    def result(self) -> RankResult:
        """The averages over the valid queries.

        Raises:
            ValueError: a query was never given, or none has a match in the gallery.
        """
        missing = np.flatnonzero(~self._seen)
        if len(missing):
            raise ValueError(f"{len(missing)} of {len(self._seen)} queries were not given, the first is {missing[0]}")
        valid = ~np.isnan(self._ap)
        if not valid.any():
            other = " from another camera" if self.drop_same_camera else ""
            raise ValueError(f"none of the {len(valid)} queries has an image of its identity{other} in the gallery")
        num_valid = int(valid.sum())
        return RankResult(
            # A gallery shorter than max_rank has no first match beyond its end: the sum repeats the last value.
            cmc=np.cumsum(self._first_hits) / num_valid,
            mAP=float(self._ap[valid].mean()),
            mAP_at_k=float(self._ap_at_k[valid].mean()),
            mINP=float(self._inp[valid].mean()),
            num_valid=num_valid, num_queries=len(valid), k=self.k,
        )


def _same_length(side: str, pids: Sequence[int], camids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    pids, camids = np.asarray(pids), np.asarray(camids)
    if pids.ndim != 1 or pids.shape != camids.shape or not len(pids):
        raise ValueError(f"{side}: expected one pid and one camid for each of at least one image, got shapes "
                         f"{pids.shape} and {camids.shape}")
    return pids, camids


def evaluate_rank(
    distmat: np.ndarray, q_pids: Sequence[int], g_pids: Sequence[int], q_camids: Sequence[int],
    g_camids: Sequence[int], max_rank: int = 50,
) -> RankResult:
    """Market-1501's protocol on a whole distance matrix: same identity from the same camera is dropped.

    Args:
        distmat: [Q, G], smaller is closer.
        q_pids, g_pids, q_camids, g_camids, max_rank: as for `RankAccumulator`.
    Raises:
        ValueError: as `RankAccumulator`, its `update` and its `result`.
    """
    accumulator = RankAccumulator(q_pids, g_pids, q_camids, g_camids, max_rank)
    accumulator.update(slice(0, len(accumulator.q_pids)), distmat)
    return accumulator.result()


def merge_results(results: Sequence[RankResult]) -> RankResult:
    """The result over all queries of several sets (as NAIC's green and normal), each weighted by its valid ones.

    Raises:
        ValueError: there are none, or they differ in max_rank or k.
    """
    if not results:
        raise ValueError("no results to merge")
    kinds = {(len(result.cmc), result.k) for result in results}
    if len(kinds) > 1:
        raise ValueError(f"results of different (max_rank, k) cannot be merged: {sorted(kinds)}")
    valid = [result.num_valid for result in results]

    def mean(name: str) -> np.ndarray:
        return np.average([getattr(result, name) for result in results], axis=0, weights=valid)

    return RankResult(
        cmc=mean("cmc"), mAP=float(mean("mAP")), mAP_at_k=float(mean("mAP_at_k")), mINP=float(mean("mINP")),
        num_valid=sum(valid), num_queries=sum(result.num_queries for result in results), k=results[0].k,
    )
