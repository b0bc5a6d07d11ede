"""The nearest rows: by the codes of all rows, and the vectors of the few that codes leave.

A row's score is 1 - d / 2 with the distance d, about its dot product. What is kept of a row is an interval that holds
its score. A row whose upper end is below a floor is left out. There are two kinds of floors:

- The n-th largest lower end so far. The n best scores are at least that, so that no row left out is among them.
- A guess: a sample's n / SAMPLE-th best score, and some ranks lower. If at last n exact scores are found at or above
  it, the n best are, and no row left out, whose score is below the guess, is among them. If not, the guess was wrong,
  and the query is searched again with floors of the first kind.

So it is proven, not likely, that no row is missed.
"""
from __future__ import annotations

import copy
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
SAMPLE = 64            # of so many rows one tells how near the nearest are
FIRST = 4096           # rows of the first product where nothing does
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
        block = queries[start : start + QUERY_ROWS]
        search = _Search(lives, block, n)
        search.floor = guess = search.guess()
        found = list(search.run())
        again = [row for row, (_, near) in enumerate(found) if _scores(near[n - 1 :]).max(initial=-np.inf) < guess[row]]
        for row, right in zip(again, _Search(lives, block[again], n).run() if again else (), strict=True):
            found[row] = right
        for row, (best_ids, distances) in enumerate(found, start):
            ids[row, : len(best_ids)], squared[row, : len(best_ids)] = best_ids, distances
    return ids, squared


def _scores(squared: np.ndarray) -> np.ndarray:
    return 1 - squared.astype(np.float64) / 2


def _places(chosen: np.ndarray, wanted: np.ndarray | None) -> np.ndarray:
    """Where in `chosen` [Q, rows], flat, a row is True and wanted [rows]."""
    if wanted is not None:
        chosen &= wanted
    return np.flatnonzero(chosen)

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
        self.spread = 1  # of so many rows one is live at most
        self.score_error = score_error(queries.shape[1])
        self.product_error = self.score_error + 1.01 * queries.shape[1] * UNIT  # it is not the true value, either
        self.threads = thread_count(torch.device("cpu"))
        self.floor = np.full(len(queries), -np.inf)
        self.coded = [live.segment.coded for live in lives]
        self.codes = list(in_threads(lambda coded: coded and QueryCodes(coded.basis, queries), self.coded,
                                     min(self.threads, len(queries))))
        # Gathering vectors costs as much as reading three times as many, codes twenty; a product of many queries more.
        self.gather = (0.25, 0.05) if len(queries) < 16 else (0.9, 0.9)

    def guess(self) -> np.ndarray:
        """[Q] a score that the n-th best row has at least unless a sample misleads; -inf where rows are few.

        Of the n best rows n / SAMPLE are in the sample, more or less: hardly ever four standard deviations more.
        """
        rank = int(self.n / SAMPLE + 4 * (self.n / SAMPLE) ** 0.5) + 3
        sample = copy.copy(self)
        sample.lives = [Live(live.segment, np.zeros_like(live.kept)) for live in self.lives]
        for live, picked in zip(self.lives, sample.lives, strict=True):
            picked.kept[::SAMPLE] = live.kept[::SAMPLE]
        if sum(map(len, sample.lives)) < max(FIRST, 4 * rank):
            return self.floor
        sample.n, sample.spread = rank, SAMPLE
        return np.array([_scores(squared)[-1] for _, squared in sample.run()])

    def run(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each query the ids and distances of the nearest."""
        hits, pruned = [], len(self.queries) * self.n * (1 if np.isneginf(self.floor).any() else 4)
        for found in in_threads(lambda chunk: self._hits(*chunk), self._chunks(), self.threads):
            hits.append(found)
            if sum(len(part.query) for part in hits) > 2 * pruned or np.isneginf(self.floor).any():
                hits = [self._prune(hits)]
                pruned = max(len(hits[0].query), len(self.queries) * self.n)
        hits = self._prune(hits)
        cuts = np.searchsorted(hits.query, np.arange(len(self.queries) + 1))
        return in_threads(lambda query: self._best(query, hits.of(slice(cuts[query], cuts[query + 1]))),
                          range(len(self.queries)), min(self.threads, len(self.queries)))

    def _chunks(self) -> Iterator[tuple[int, int, int]]:
        """(part, start, stop) of rows, few as long as there is no floor."""
        most = self.spread * min(MOST_ROWS, max(MOST_VALUES // len(self.queries), FIRST))
        size = self.spread * FIRST if np.isneginf(self.floor).any() else most
        for part, live in enumerate(self.lives):
            start, end = 0, len(live.kept)  # another thread may have added rows since
            coded = min(len(self.coded[part]), end) if self.coded[part] else 0  # a writer may be ahead
            while start < end:
                stop = min(start + size, coded if start < coded else end)
                yield part, start, stop
                start, size = stop, min(2 * size, most)

    def _hits(self, part: int, start: int, stop: int) -> _Hits:
        """The rows of a chunk that may be among the best."""
        wanted = self.lives[part].kept[start:stop]
        count, coded = int(np.count_nonzero(wanted)), self.coded[part]
        coded = bool(coded) and stop <= len(coded)
        if not count:
            return _Hits(*np.empty((2, 0), np.int64), *np.empty((2, 0)))
        which, places, found = slice(start, stop), None, None
        if count < self.gather[coded] * (stop - start):
            which = places = np.flatnonzero(wanted) + start
        if count == stop - start or places is not None:
            wanted = None
        if coded:
            found = self._by_code(part, which, wanted)
        if found is None:
            found = self._by_vector(part, which, wanted)
        query, column, middle, error = found
        place = column + start if places is None else places[column]
        return _Hits(query, place + (part << SLOT_BITS), middle, error)

    def _by_code(self, part: int, which: np.ndarray | slice, wanted: np.ndarray | None) -> tuple | None:
        """(query, column, middle, error) of hits by codes; None if codes would leave too many."""
        codes, errors = self.codes[part], self.coded[part].errors[:, which]
        products = product(codes.ints, self.coded[part].codes[which])
        most = codes.errors(errors.max(1)) + self.score_error
        floor = self._floor(products, wanted, codes.unit, most)
        least = np.clip(np.floor((floor - most) / codes.unit) - 1, -2**31, 2**31 - 1).astype(products.dtype)
        flat = _places(products >= least[:, None], wanted)
        if len(flat) > products.size // 8:
            return None
        query, column = np.divmod(flat, products.shape[1])
        middle, error = products.ravel()[flat] * codes.unit[query], codes.errors(errors[:, column], query)
        error += self.score_error
        kept = np.flatnonzero(middle + error >= floor[query])
        return query[kept], column[kept], middle[kept], error[kept]

    def _by_vector(self, part: int, which: np.ndarray | slice, wanted: np.ndarray | None) -> tuple:
        """The same by vectors."""
        vectors = torch.from_numpy(self.lives[part].segment.read(which))
        products = torch.mm(torch.from_numpy(self.queries), vectors.T).numpy()
        floor = self._floor(products, wanted, 1.0, self.product_error)
        flat = _places(products >= (floor - self.product_error)[:, None], wanted)
        query, column = np.divmod(flat, products.shape[1])
        return query, column, products.ravel()[flat].astype(np.float64), np.full(len(flat), self.product_error)

    def _floor(self, products: np.ndarray, wanted: np.ndarray | None, unit: np.ndarray | float,
               error: np.ndarray | float) -> np.ndarray:
        """[Q] the floors; as long as a query has none, by the n-th best of these rows' products [Q, rows]."""
        floor = self.floor
        if np.isneginf(floor).any():
            products = products if wanted is None else products[:, wanted]
            if products.shape[1] >= self.n:
                floor = np.maximum(floor, np.partition(products, -self.n, 1)[:, -self.n] * unit - error)
        return floor

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
        rest = rest[(hits.middle + hits.error)[rest] >= _scores(squared).min(initial=np.inf)]
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
            if not rows[np.flatnonzero(rows[: len(block), 0] == 0)].any(1).all():
                raise KeyError("a row was erased meanwhile")
            pairs = torch.from_numpy(rows)
            torch.ops.aten.mse_loss.out(queries, pairs, 0, out=pairs)  # as PairDistances, for the same bits
            squared[start : start + PAIRS] = torch.sum(pairs, 1)[: len(block)].numpy()
        return ids, squared
