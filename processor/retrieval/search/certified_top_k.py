"""The nearest gallery images of a query by re-ranked distance, searched in any precision, with a proof.

A block of queries is multiplied with the gallery in the search's precision. What that can be wrong by (`Bounds`) says
which images can be among the k nearest; only their distances are computed, from the differences of features
(`PairDistances`), so that the answer has the same bits in any precision.
"""
from __future__ import annotations

import threading

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds, typical_distance
from processor.retrieval.search.encoding import JaccardIndex, jaccard_distance
from processor.retrieval.search.precision import PRECISIONS
from processor.retrieval.search.rows import PairDistances, row_block, squared_euclidean
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import kth_smallest, rank_keys, smallest_keys, worst_distance

ROWS = 128        # queries of one product: the fewer, the less memory in a gallery of a million
ROUNDING = 4e-7  # of the mix of two distances in [0, 1]


class CertifiedNearest:
    """The k nearest gallery images of a block of queries, by re-ranked distance.

    Args:
        tiles, bounds: of the search.
        pairs: what computes the distances that decide.
        index: of the codes; it gives the Jaccard distances.
        farthest: [N] what the squared distances of each row are divided by.
        lambda_value: weight of the original distance.
        k: at most G.
    """

    def __init__(self, tiles: Tiles, bounds: Bounds, pairs: PairDistances, index: JaccardIndex, farthest: Tensor,
                 lambda_value: float, k: int):
        self.tiles, self.features, self.pairs, self.index = tiles, tiles.features, pairs, index
        rank = k * len(self.features) // self.features.num_gallery
        self.bounds = bounds.shifted(typical_distance(self.features, rank) if bounds.result_share else 0.0)
        self.factors = (lambda_value / farthest)[:, None]
        self.jaccard_share, self.k = 1 - lambda_value, k
        self._buffers = threading.local()

    def keys(self, rows: slice) -> Tensor:
        """[len(rows), k] sorted rank_keys of the nearest."""
        keys = []
        for start in range(rows.start, rows.stop, ROWS):
            block = slice(start, min(start + ROWS, rows.stop))
            searched = self._searched(block)
            keys += [self._nearest(queries, searched[part]) for queries, part in self.index.parts_of(block)]
        return torch.cat(keys)

    def _nearest(self, rows: slice, searched: Tensor) -> Tensor:
        """The same of a few queries with their searched values [R, G]."""
        factors = self.factors[rows]
        jaccard = jaccard_distance(self.index.shared(rows))
        bounds = self.bounds.of(rows)
        error = bounds.error(searched) * factors + ROUNDING
        # Exact distances first of the k that look nearest: the last of them bounds what else can matter.
        looks = (searched + bounds.shift).mul_(factors).add_(jaccard, alpha=self.jaccard_share)
        first = looks <= kth_smallest(looks, self.k)[:, None]
        keys = self._exact(rows, first, jaccard)
        more = (looks <= worst_distance(keys[:, -1])[:, None] + error).logical_and_(first.logical_not_())
        return torch.cat([keys, self._exact(rows, more, jaccard)], 1).sort(1).values[:, : self.k]

    def _exact(self, rows: slice, wanted: Tensor, jaccard: Tensor) -> Tensor:
        """[R, k] sorted keys of the wanted images [R, G]."""
        row, image = wanted.nonzero(as_tuple=True)
        squared = self.pairs(row + rows.start, image + self.features.num_query)
        values = (squared * self.factors[rows][row, 0]).add_(jaccard[row, image], alpha=self.jaccard_share)
        return smallest_keys(row, rank_keys(values, image), len(wanted), self.k)

    def _searched(self, rows: slice) -> Tensor:
        """[len(rows), G] searched values: float32's need no rounded operands."""
        if self.tiles.precision is PRECISIONS["float32"]:
            return row_block(self.features, rows, squared_euclidean)
        tiles, num_query = self.tiles, self.features.num_query
        count = rows.stop - rows.start
        out = torch.empty(count, self.features.num_gallery, device=self.features.device)
        left = tiles.left(rows, ROWS, self.bounds.shift)
        if not hasattr(self._buffers, "places"):
            self._buffers.places, self._buffers.right = tiles.places(ROWS), None
        for j in range(num_query // tiles.size, tiles.count):
            columns = tiles.rows_of(j)
            self._buffers.right = right = tiles.right(j, self._buffers.right)
            values = tiles.product(left, right, self._buffers.places)[:count, : columns.stop - columns.start]
            skip = max(num_query - columns.start, 0)  # the first tile can begin with queries
            out[:, columns.start + skip - num_query : columns.stop - num_query] = values[:, skip:]
        return out
