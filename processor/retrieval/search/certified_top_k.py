"""The nearest gallery images of a query by re-ranked distance, searched in any precision, with a proof.

An image that shares no neighbour with a query is as far as the original distance and a Jaccard distance of 1 say. So
the k nearest are among those that share one, which the inverted index tells, and the nearest by the original distance,
of which the search has kept a list (`Longer`). Where the list does not prove it, or there is none, the queries are
multiplied with the gallery once more, in the search's precision. What searched values can be wrong by (`Bounds`) says
which images can be among the k nearest; only their distances are computed, from the differences of features
(`PairDistances`), so that the answer has the same bits in any precision.
"""
from __future__ import annotations

import threading

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds, typical_distance
from processor.retrieval.search.encoding import ONE, JaccardIndex, jaccard_distance
from processor.retrieval.search.precision import PRECISIONS
from processor.retrieval.search.rows import PairDistances, row_block, squared_euclidean
from processor.retrieval.search.search import Neighbours
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import kth_smallest, places_in_rows, rank_keys, smallest_keys, worst_distance

ROWS = 128        # queries of one product: the fewer, the less memory in a gallery of a million
SOON = 64         # images beyond a query's list whose distances are computed before it is asked which others can matter
ROUNDING = 4e-7  # of the mix of two distances in [0, 1]


class CertifiedNearest:
    """The k nearest gallery images of a block of queries, by re-ranked distance.

    Args:
        tiles, bounds: of the search.
        pairs: what computes the distances that decide.
        index: of the codes; it gives the Jaccard distances.
        neighbours: what the search found; its `farthest` is what the squared distances of each row are divided by.
        lambda_value: weight of the original distance.
        k: at most G.
    """

    def __init__(self, tiles: Tiles, bounds: Bounds, pairs: PairDistances, index: JaccardIndex, neighbours: Neighbours,
                 lambda_value: float, k: int):
        self.tiles, self.features, self.pairs, self.index = tiles, tiles.features, pairs, index
        rank = k * len(self.features) // self.features.num_gallery
        self.bounds = bounds.shifted(typical_distance(self.features, rank) if bounds.result_share else 0.0)
        self.longer, self.bounds_of_lists = neighbours.longer, None
        if self.longer:
            self.bounds_of_lists = bounds.shifted(self.longer.shift)
        self.factors = (lambda_value / neighbours.farthest)[:, None]
        self.jaccard_share, self.k = 1 - lambda_value, k
        self._buffers = threading.local()

    def keys(self, rows: slice) -> Tensor:
        """[len(rows), k] sorted rank_keys of the nearest."""
        keys = []
        for start in range(rows.start, rows.stop, ROWS):
            block = slice(start, min(start + ROWS, rows.stop))
            keys += self._of_lists(block) if self.longer else self._of_products(block)
        return torch.cat(keys)

    def _of_products(self, rows: slice) -> list[Tensor]:
        """The same, a few queries each."""
        searched = self._searched(rows)
        return [self._nearest(queries, searched[part]) for queries, part in self.index.parts_of(rows)]

    def _of_lists(self, rows: slice) -> list[Tensor]:
        """The same; few queries' lists do not prove it."""
        keys = []
        for queries, _ in self.index.parts_of(rows):
            nearest, is_proven = self._listed(queries)
            keys += [nearest] if is_proven else self._of_products(queries)
        return keys

    def _listed(self, rows: slice) -> tuple[Tensor, bool]:
        """The same of a few queries from the search's lists, and whether they are proven."""
        factors, shared = self.factors[rows], self.index.shared(rows)
        indices, searched, limits = (table[rows] for table in self.longer[:3])
        bounds = self.bounds_of_lists.of(rows)
        images = indices.long() - self.features.num_query  # of the gallery; queries and empty places are below 0
        known, images = images >= 0, images.clamp(min=0)
        searched = searched.masked_fill(~known, 0)  # an empty place's is infinite
        jaccard = jaccard_distance(shared.gather(1, images))
        looks = (searched + bounds.shift).mul_(factors).add_(jaccard, alpha=self.jaccard_share)
        error = bounds.error(searched) * factors + ROUNDING
        keys = self._smallest(rows, looks, error, known, images, jaccard)
        listed = torch.full_like(images, ONE, dtype=torch.int32).masked_fill_(known, 0)
        shared.scatter_reduce_(1, images, listed, "amin")  # an empty place has image 0's column, and leaves it
        # What is not listed is as far as the limit, at least.
        beyond = (bounds.lower(limits[:, None]) * factors).masked_fill_(limits[:, None] == torch.inf, torch.inf)
        images, jaccard, known = _sharing(shared)
        least = (beyond + jaccard * self.jaccard_share).masked_fill_(~known, torch.inf)
        soon = least <= kth_smallest(least, min(SOON, least.shape[1]))[:, None]
        for part in (soon, ~soon):  # the first spare most of the others
            wanted = part & known & (least <= worst_distance(keys[:, -1])[:, None] + ROUNDING)
            keys = torch.cat([keys, self._exact_of(rows, wanted, images, jaccard)], 1).sort(1).values[:, : self.k]
        # All that are left share no neighbour: their Jaccard distance is 1.
        return keys, bool((beyond + self.jaccard_share > worst_distance(keys[:, -1])[:, None] + ROUNDING).all())

    def _smallest(self, rows: slice, looks: Tensor, error: Tensor, known: Tensor, images: Tensor,
                  jaccard: Tensor) -> Tensor:
        """[R, k] sorted keys of the nearest among tables of images [R, C].

        Args:
            looks: what their distances seem to be.
            error: [R, 1] how much smaller they may be.
            known: False in empty places.
        """
        looks.masked_fill_(~known, torch.inf)
        # Exact distances first of the k that look nearest: the last of them bounds what else can matter.
        first = (looks <= kth_smallest(looks, self.k)[:, None]) & known
        keys = self._exact_of(rows, first, images, jaccard)
        more = (looks <= worst_distance(keys[:, -1])[:, None] + error) & known & ~first
        return torch.cat([keys, self._exact_of(rows, more, images, jaccard)], 1).sort(1).values[:, : self.k]

    def _exact_of(self, rows: slice, wanted: Tensor, images: Tensor, jaccard: Tensor) -> Tensor:
        """[R, k] sorted keys of the wanted images [R, W]."""
        row, place = wanted.nonzero(as_tuple=True)
        image = images[row, place]
        squared = self.pairs(row + rows.start, image + self.features.num_query)
        values = (squared * self.factors[rows][row, 0]).add_(jaccard[row, place], alpha=self.jaccard_share)
        return smallest_keys(row, rank_keys(values, image), rows.stop - rows.start, self.k)

    def _nearest(self, rows: slice, searched: Tensor) -> Tensor:
        """The same of a few queries with their searched values [R, G]."""
        factors = self.factors[rows]
        jaccard = jaccard_distance(self.index.shared(rows))
        bounds = self.bounds.of(rows)
        error = bounds.error(searched) * factors + ROUNDING
        looks = (searched + bounds.shift).mul_(factors).add_(jaccard, alpha=self.jaccard_share)
        images = torch.arange(looks.shape[1], device=looks.device).expand_as(looks)
        known = torch.ones_like(looks, dtype=torch.bool)
        return self._smallest(rows, looks, error, known, images, jaccard)

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


def _sharing(shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(images, Jaccard distances, which places are filled) [R, C] of those that share something in shared [R, G]."""
    row, image = shared.nonzero(as_tuple=True)
    places, counts = places_in_rows(row, len(shared))
    images = torch.zeros(len(shared), max(int(counts.max()), 1), dtype=torch.int64, device=row.device)
    images[row, places] = image
    known = torch.arange(images.shape[1], device=row.device) < counts[:, None]
    return images, jaccard_distance(shared.gather(1, images)), known
