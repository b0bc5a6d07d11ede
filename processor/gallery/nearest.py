"""The nearest rows: by the codes of all rows, and the vectors of the few that codes leave.

A row's score is 1 - d / 2 with the distance d, about its dot product. What is kept of a row is an interval of scores.
The n-th largest lower end so far is a floor: a row whose upper end is below it cannot be among the n nearest. So it is
proven, not likely, that no row is missed.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from processor.gallery.codes import UNIT, QueryCodes, product
from processor.gallery.contract import NEAR_ONE
from processor.gallery.segments import SLOT_BITS, Live
from utils.parallel import in_threads, thread_count

QUERY_ROWS = 256       # queries of one pass over the rows
FIRST = 4096           # rows of the first product, which is of vectors: it gives the first floor
MOST_ROWS = 2**16      # of a product
MOST_VALUES = 2**21    # of a product
PAIRS = 128            # rows whose distances are computed together: always so many, for the same bits


def score_error(dim: int) -> float:
    """How far 1 - d / 2 is from the true dot product, d being the float32 sum of a pair of vectors near length 1.

    >>> 2e-5 < score_error(512) < 1e-4
    True
    """
    return 2.01 * NEAR_ONE + 2.01 * (dim + 9) * UNIT  # of the two lengths; of a sum of D squares that is at most 4


def best_rows(lives: Sequence[Live], queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n nearest rows for each query by squared Euclidean distance, equal ones by id.

    Args:
        lives: the rows to search.
        queries: [Q, D] float32 of length 1.
    Returns:
        ids [Q, n] int64 (-1: not so many), distances [Q, n] float32 (inf) with the bits of `PairDistances`: each is a
        function of its two vectors alone, so that neither codes nor chunks nor filters nor threads change a bit.
    Raises:
        KeyError: a row was erased meanwhile.
    """
    ids, squared = np.full((len(queries), n), -1, np.int64), np.full((len(queries), n), np.inf, np.float32)
    for start in range(0, len(queries) if n else 0, QUERY_ROWS):
        search = _Search(lives, queries[start : start + QUERY_ROWS], n)
        for row, (best_ids, distances) in enumerate(search.run(), start):
            ids[row, : len(best_ids)], squared[row, : len(best_ids)] = best_ids, distances
    return ids, squared


class _Hits(NamedTuple):
    """Rows that may be among the best [H]: of which query, where (part << SLOT_BITS | row), and their scores' middle
    and how far they may be from it."""

    query: np.ndarray
    place: np.ndarray
    middle: np.ndarray
    error: np.ndarray

    def of(self, which: np.ndarray) -> _Hits:
        return _Hits(*(column[which] for column in self))


class _Search:
    """The n best rows of a block of queries [Q, D]."""

    def __init__(self, lives: Sequence[Live], queries: np.ndarray, n: int):
        self.lives, self.queries, self.n = lives, queries, n
        self.score_error = score_error(queries.shape[1])
        self.product_error = self.score_error + 1.01 * queries.shape[1] * UNIT  # it is not the true value, either
        self.threads = thread_count(torch.device("cpu"))
        self.floor = np.full(len(queries), -np.inf)
        self.coded = [live.segment.coded for live in lives]
        self.codes = [coded and QueryCodes(coded.basis, queries) for coded in self.coded]
        # Gathering rows costs about as much as reading them two or three times; a product of many queries costs more.
        self.gather = 0.25 if len(queries) < 16 else 0.9

    def run(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each query the ids and distances of the nearest."""
        hits, pruned = [], len(self.queries) * self.n
        for found in in_threads(lambda chunk: self._hits(*chunk), self._chunks(), self.threads):
            hits.append(found)
            if sum(len(part.query) for part in hits) > 2 * pruned or np.isneginf(self.floor).any():
                hits = [self._prune(hits)]
                pruned = max(len(hits[0].query), len(self.queries) * self.n)
        hits = self._prune(hits)
        cuts = np.searchsorted(hits.query, np.arange(len(self.queries) + 1))
        return in_threads(lambda query: self._best(query, hits.of(slice(cuts[query], cuts[query + 1]))),
                          range(len(self.queries)), self.threads)

    def _chunks(self) -> Iterator[tuple[int, int, int]]:
        """(part, start, stop) of rows, few at first: each search of many rows should know a good floor."""
        size, most = FIRST, min(MOST_ROWS, max(MOST_VALUES // len(self.queries), FIRST))
        for part, live in enumerate(self.lives):
            start, end = 0, len(live.segment)
            coded = min(len(self.coded[part]), end) if self.coded[part] else 0  # a writer may be ahead
            while start < end:
                stop = min(start + size, coded if start < coded else end)
                yield part, start, stop
                start, size = stop, min(2 * size, most)

    def _hits(self, part: int, start: int, stop: int) -> _Hits:
        """The rows of a chunk that may be among the best."""
        live = self.lives[part]
        rows = live.rows[slice(*np.searchsorted(live.rows, (start, stop)))]
        if not len(rows):
            return _Hits(*np.empty((2, 0), np.int64), *np.empty((2, 0)))
        which, places, wanted = slice(start, stop), np.arange(start, stop), None
        if len(rows) < self.gather * (stop - start):
            which, places = rows, rows
        elif len(rows) < stop - start:
            wanted = np.zeros(stop - start, bool)
            wanted[rows - start] = True
        found = None
        if self.coded[part] and stop <= len(self.coded[part]):
            found = self._by_code(part, which, wanted)
        if found is None:
            found = self._by_vector(part, which, wanted)
        query, column, middle, error = found
        return _Hits(query, places[column] + (part << SLOT_BITS), middle, error)

    def _by_code(self, part: int, which: np.ndarray | slice, wanted: np.ndarray | None) -> tuple | None:
        """(query, column, middle, error) of hits by codes; None if codes would leave too many."""
        floor, codes = self.floor.copy(), self.codes[part]
        if np.isneginf(floor).any():
            return None
        errors = self.coded[part].errors[:, which]
        products = product(codes.ints, self.coded[part].codes[which])
        least = np.floor((floor - codes.errors(errors.max(1))) / codes.unit) - 1
        flat = np.flatnonzero(products >= np.clip(least, -2**31, 2**31 - 1).astype(products.dtype)[:, None])
        if len(flat) > products.size // 8:
            return None
        query, column = np.divmod(flat, products.shape[1])
        middle, error = products.ravel()[flat] * codes.unit[query], codes.errors(errors[:, column], query)
        error += self.score_error
        kept = middle + error >= floor[query]
        if wanted is not None:
            kept &= wanted[column]
        return query[kept], column[kept], middle[kept], error[kept]

    def _by_vector(self, part: int, which: np.ndarray | slice, wanted: np.ndarray | None) -> tuple:
        """The same by vectors."""
        vectors = torch.from_numpy(self.lives[part].segment.read(which))
        products = torch.mm(torch.from_numpy(self.queries), vectors.T).numpy()
        if wanted is not None:
            products[:, ~wanted] = -np.inf
        floor = self.floor
        if self.n < products.shape[1] and np.isneginf(floor).any():  # the n-th best of these rows is one as well
            floor = np.maximum(floor, np.partition(products, -self.n, 1)[:, -self.n] - self.product_error)
        flat = np.flatnonzero((products >= (floor - self.product_error)[:, None]) & (products > -np.inf))
        query, column = np.divmod(flat, products.shape[1])
        return query, column, products.ravel()[flat].astype(np.float64), np.full(len(flat), self.product_error)

    def _prune(self, parts: list[_Hits]) -> _Hits:
        """The hits that can still be among the best, by query; the floors rise."""
        if not parts:
            return _Hits(*np.empty((2, 0), np.int64), *np.empty((2, 0)))
        hits = _Hits(*map(np.concatenate, zip(*parts, strict=True)))
        order = np.argsort(hits.query, kind="stable")
        lowest, query_of = (hits.middle - hits.error)[order], hits.query[order]
        cuts = np.searchsorted(query_of, np.arange(len(self.queries) + 1))
        floor = self.floor.copy()
        for query, (start, stop) in enumerate(pairwise(cuts)):
            if stop - start >= self.n:
                floor[query] = max(floor[query], np.partition(lowest[start:stop], -self.n)[-self.n])
        self.floor = floor
        return hits.of(order[(hits.middle + hits.error)[order] >= floor[query_of]])

    def _best(self, query: int, hits: _Hits) -> tuple[np.ndarray, np.ndarray]:
        """ids and distances of the n nearest of a query's hits: those first that look best, then what they leave."""
        order = np.argsort(-hits.middle)
        first, rest = order[: self.n], order[self.n :]
        ids, squared = self._distances(query, hits.place[first])
        rest = rest[(hits.middle + hits.error)[rest] >= 1 - squared.max(initial=-np.inf).astype(np.float64) / 2]
        if len(rest):
            more_ids, more = self._distances(query, hits.place[rest])
            ids, squared = np.concatenate([ids, more_ids]), np.concatenate([squared, more])
        order = np.lexsort((ids, squared))[: self.n]
        return ids[order], squared[order]

    def _distances(self, query: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids [n] and squared distances [n] float32 of the rows at `places`, in any order."""
        places, vector = np.sort(places), torch.from_numpy(self.queries[query])
        ids, squared = np.empty(len(places), np.int64), np.empty(len(places), np.float32)
        rows, queries = np.zeros((PAIRS, len(vector)), np.float32), vector.expand(PAIRS, -1).contiguous()
        for start in range(0, len(places), PAIRS):
            block = places[start : start + PAIRS]
            cuts = [0, *(np.flatnonzero(np.diff(block >> SLOT_BITS)) + 1), len(block)]
            for begin, end in pairwise(cuts):
                segment = self.lives[block[begin] >> SLOT_BITS].segment
                numbers = block[begin:end] & (2**SLOT_BITS - 1)
                rows[begin:end] = segment.read(numbers)
                ids[start + begin : start + end] = segment.columns["id"][numbers]
            if not rows[: len(block)].any(1).all():
                raise KeyError("a row was erased meanwhile")
            pairs = torch.from_numpy(rows)
            torch.ops.aten.mse_loss.out(queries, pairs, 0, out=pairs)  # as PairDistances, for the same bits
            squared[start : start + PAIRS] = torch.sum(pairs, 1)[: len(block)].numpy()
        return ids, squared
