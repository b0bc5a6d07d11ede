"""The rows with the largest dot products, from all vectors in float32."""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from processor.gallery.segments import Live

CHUNK = 8192  # rows of one product
QUERY_ROWS = 256  # queries of one product
GATHER = 1 / 8  # of a chunk's rows: if fewer are wanted, they are gathered, else the product of all is masked


def dot_error(dim: int) -> float:
    """How far the dot product of float32 vectors of length 1 is from the true one, in any order of summation.

    >>> dot_error(512) == 512 * 2.0**-24
    True
    """
    return dim * 2.0**-24


def best_rows(lives: Sequence[Live], queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest dot products for each query, ties by id.

    Args:
        lives: the rows to search.
        queries: [Q, D] float32 of length 1.
    Returns:
        ids [Q, n] int64 (-1: not so many), scores [Q, n] float32 descending (-inf). A score is a function of its two
        vectors alone, so that neither chunks nor filters nor threads change a bit.
    """
    ids, scores = np.full((len(queries), n), -1, np.int64), np.full((len(queries), n), -np.inf, np.float32)
    for start in range(0, len(queries) if n else 0, QUERY_ROWS):
        block = queries[start : start + QUERY_ROWS]
        # Twice for each of two rows: its product is not the true value, its score is not, either.
        best = [Best(n, 4 * dot_error(block.shape[1])) for _ in block]
        for part, live in enumerate(lives):
            for rows, products in _products(live, block):
                for query, row_products in zip(best, products, strict=True):
                    query.take(part, rows, row_products)
        for row, (query, vector) in enumerate(zip(best, block, strict=True), start):
            best_ids, best_scores = query.result(lives, vector)
            ids[row, : len(best_ids)], scores[row, : len(best_ids)] = best_ids, best_scores
    return ids, scores


def _products(live: Live, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows [m], products [Q, m]) by chunks of the segment; a chunk of which no row is wanted is not read."""
    cuts = np.searchsorted(live.rows, np.arange(0, len(live.segment) + CHUNK, CHUNK))
    for chunk, (start, stop) in enumerate(itertools.pairwise(cuts)):
        rows = live.rows[start:stop]
        if len(rows) == 0:
            continue
        if len(rows) < GATHER * CHUNK:
            yield rows, queries @ live.segment.read(rows).T
        else:
            products = queries @ live.segment.read(slice(chunk * CHUNK, (chunk + 1) * CHUNK)).T
            yield rows, products if len(rows) == products.shape[1] else products[:, rows - chunk * CHUNK]


class Best:
    """The rows of one query that may be among its n best, as far as products within `slack` of each other tell."""

    def __init__(self, n: int, slack: float):
        self.n, self.slack, self.floor, self.count = n, slack, -np.inf, 0
        self.parts: list[np.ndarray] = []  # [m] int64: part of the gallery, row
        self.rows: list[np.ndarray] = []
        self.products: list[np.ndarray] = []

    def take(self, part: int, rows: np.ndarray, products: np.ndarray) -> None:
        """Look at more rows [m] with their products [m]."""
        kept = np.flatnonzero(products >= self.floor)
        if len(kept):
            self.parts.append(np.full(len(kept), part))
            self.rows.append(rows[kept])
            self.products.append(products[kept])
            self.count += len(kept)
        if self.count > 4 * self.n + 1024:
            self._prune()

    def _prune(self) -> None:
        parts, rows, products = map(np.concatenate, (self.parts, self.rows, self.products))
        if len(products) > self.n:
            self.floor = np.partition(products, -self.n)[-self.n] - self.slack
            kept = products >= self.floor
            parts, rows, products = parts[kept], rows[kept], products[kept]
        self.parts, self.rows, self.products, self.count = [parts], [rows], [products], 0

    def result(self, lives: Sequence[Live], query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of the n best."""
        if not self.parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._prune()
        ids, scores = [], []
        for part in np.unique(self.parts[0]):
            rows, segment = self.rows[0][self.parts[0] == part], lives[part].segment
            ids.append(segment.columns["id"][rows])
            # Each row's own sum, in an order that depends on D alone.
            scores.append((segment.read(rows) * query).sum(1))
        ids, scores = np.concatenate(ids), np.concatenate(scores)
        order = np.lexsort((ids, -scores))[: self.n]
        return ids[order], scores[order]
