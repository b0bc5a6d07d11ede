"""The nearest and the farthest images of every image, exactly, without a matrix over all pairs.

1. The upper triangle of N x N squared distances is computed in tiles, in any precision. Each tile feeds two kinds of
   shortlist, of its rows and of its columns: some more than the k nearest, and a few of the farthest.
2. Every distance that can matter is computed again from the difference of the two features, in float32 and in one
   fixed order (`PairDistances`). What the search computed has no other part in the answer, which is therefore the same
   to the bit for any precision, tile, memory budget and number of threads or processes.
3. A row is certified where no image outside its shortlist can be among its k nearest, or be its farthest (`Bounds`);
   the other rows are compared with all images again.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds, typical_distance
from processor.retrieval.search.feature_rows import ROWS_AT_ONCE, FeatureRows
from processor.retrieval.search.precision import PRECISIONS, Precision
from processor.retrieval.search.rows import PairDistances
from processor.retrieval.search.shortlists import Shortlists
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import NO_KEY, rank_keys, split_keys, worst_distance
from utils.dist import ALONE, Workers
from utils.parallel import in_threads
from utils.progress import progress

logger = logging.getLogger(__name__)

ROWS_REFINED = 32768  # rows whose candidates are computed again at a time


class InexactProducts(FloatingPointError):
    """A candidate's distance lies outside what was proven of its searched value: the device adds in too few bits."""


@dataclass
class Neighbours:
    """The nearest images of every image among query and gallery: itself, then by distance, then by index.

    indices: [N, k] int32, query images first, then the gallery's.
    distances: [N, k] float32, squared Euclidean.
    farthest: [N] float32, the largest squared distance of the row; 1 where all images coincide.
    """

    indices: Tensor
    distances: Tensor
    farthest: Tensor

    def first(self, k: int) -> Neighbours:
        """The same for a smaller k."""
        return Neighbours(self.indices[:, :k], self.distances[:, :k], self.farthest)


@dataclass(frozen=True)
class SearchPlan:
    """tile: rows and columns of a tile, a multiple of GROUP;  strip: tiles of rows held at a time;
    pairs: features gathered at a time;  width: length of the shortlists;  queries: queries whose Jaccard sums are made
    at a time;  threads: pieces of work at a time, on the CPU;  keep: hold the rounded features, of two bytes a number,
    for as long as there are products;  product_seconds: what the product of one tile takes, for the prediction."""

    precision: Precision
    tile: int
    strip: int
    pairs: int
    width: int
    queries: int = 32
    threads: int = 1
    keep: bool = False
    product_seconds: float = 0.0


def _scan(tiles: Tiles, lists: Shortlists, strip: int, threads: int, workers: Workers) -> None:
    """Compute this process' share of the upper triangle of tiles."""
    buffers = threading.local()

    def operand(j: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """This thread's right operand, of tile j, and its places for a product."""
        if not hasattr(buffers, "right"):
            buffers.right, buffers.places = None, tiles.places(tiles.size)
        buffers.right = tiles.right(j, buffers.right)
        return buffers.right, buffers.places

    def begin(i: int) -> None:
        right, places = operand(i)
        lists.begin(i, tiles.product(tiles.left(tiles.rows_of(i), tiles.size, lists.bounds.shift), right, places))

    with tiles.precision.products(tiles.features.device):
        for _ in progress(in_threads(begin, range(tiles.count), threads), "candidate search, its start", "tiles",
                          tiles.count):
            pass
        strips = range(0, tiles.count, strip)
        total = sum(len(_own_columns(first, tiles.count, workers)) for first in strips)
        columns = _strips(tiles, lists, strips, operand, threads, workers)
        for _ in progress(columns, "candidate search", "columns of tiles", total):
            pass


def _own_columns(first: int, count: int, workers: Workers) -> range:
    """The columns of tiles of a strip that begins with tile `first` that this process computes."""
    return range(first + 1 + (workers.rank - first) % workers.size, count, workers.size)


def _strips(tiles: Tiles, lists: Shortlists, strips: range, operand: Callable, threads: int,
            workers: Workers) -> Iterator[None]:
    """One strip of tile rows after the other, and in each one column of tiles after the other."""
    left: dict[int, Tensor] = {}
    for first in strips:
        members = range(first, min(first + strips.step, tiles.count))
        left.clear()  # two strips at once would not fit the budget
        left.update((i, tiles.left(tiles.rows_of(i), tiles.size, lists.bounds.shift)) for i in members)

        def column(j: int, members: range = members) -> None:
            right, places = operand(j)
            shift = j % len(members)  # threads beside each other begin at different rows of tiles
            for i in (*members[shift:], *members[:shift]):
                if i < j:
                    lists.offer(i, j, tiles.product(left[i], right, places))

        yield from in_threads(column, _own_columns(first, tiles.count, workers), threads)


# ------------------------------------------------------------------ from candidates to neighbours
class _Refiner:
    """Turns the shortlists of some rows into exact neighbours, and says which rows it cannot certify."""

    def __init__(self, bounds: Bounds, pairs: PairDistances, others: int):
        self.bounds, self.pairs, self.others = bounds, pairs, others
        self.as_proven = True

    def nearest(self, rows: Tensor, indices: Tensor, searched: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """rank_keys [R, others] of the nearest but the image itself, and whether they are proven [R].

        Args:
            rows: [R] int64;  indices, searched: [R, width] shortlists, ascending, -1 and infinite where there is
                nothing;  limits: [R] no image that is not listed was searched to be nearer.
        """
        bounds, known = self.bounds.of(rows), indices >= 0
        interval = bounds.lower(searched), bounds.upper(searched)
        keys = torch.full(indices.shape, NO_KEY, device=rows.device)
        first = known.clone()
        first[:, self.others + 4 :] = False  # a few more than needed: they spare many of the rest
        self._fill(keys, rows, indices, first, interval)
        possible = interval[0] <= self._worst(keys)[:, None]
        self._fill(keys, rows, indices, known & ~first & possible, interval)
        keys = keys.sort(1).values[:, : self.others]
        return keys, self._worst(keys) < bounds.lower(limits[:, None])[:, 0]

    def farthest(self, rows: Tensor, indices: Tensor, searched: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The largest distance [R] float32, and whether it is proven [R]; arguments as for `nearest`, negated."""
        bounds, known = self.bounds.of(rows), indices >= 0
        searched = -searched.masked_fill(~known, 0)
        least = bounds.lower(searched).masked_fill(~known, 0).amax(1, keepdim=True)
        row, place = (known & (bounds.upper(searched) >= least)).nonzero(as_tuple=True)
        distances = torch.zeros(indices.shape, device=rows.device)
        distances[row, place] = self.pairs.in_threads(rows[row], indices[row, place].long())
        farthest = distances.amax(1)
        nothing_left = limits == torch.inf
        beyond = bounds.upper(-limits.masked_fill(nothing_left, 0)[:, None])[:, 0]  # of what is not listed
        return farthest, (beyond <= farthest) | nothing_left

    def _fill(self, keys: Tensor, rows: Tensor, indices: Tensor, wanted: Tensor,
              interval: tuple[Tensor, Tensor]) -> None:
        row, place = wanted.nonzero(as_tuple=True)
        columns = indices[row, place].long()
        distances = self.pairs.in_threads(rows[row], columns)
        keys[row, place] = rank_keys(distances, columns)
        lower, upper = interval
        self.as_proven &= bool(((lower[row, place] <= distances) & (distances <= upper[row, place])).all())

    def _worst(self, keys: Tensor) -> Tensor:
        """[R] the distance of the last of the nearest `others`, infinite where there are not so many."""
        if keys.shape[1] < self.others:
            return torch.full((len(keys),), torch.inf, device=keys.device)
        return worst_distance(keys.kthvalue(self.others, dim=1).values)


def _compare_with_all(features: FeatureRows, pairs: PairDistances, rows: Tensor, keys: Tensor,
                      farthest: Tensor) -> None:
    """Finish rows [R] that could not be certified, in place: keys [R, others] and farthest [R] become exact.

    Every pair that float32 cannot tell from what the row has is computed from its difference.
    """
    bounds = Bounds(features, PRECISIONS["float32"])
    for some in torch.arange(len(rows), device=features.device).split(ROWS_AT_ONCE):
        own = rows[some]
        a = features.take(own, torch.empty(len(own), features.dim, device=features.device))
        for start in range(0, len(features), ROWS_AT_ONCE):
            b, norms = features.rows(start, start + ROWS_AT_ONCE), features.squared_norms[start : start + ROWS_AT_ONCE]
            with PRECISIONS["float32"].products(features.device):
                searched = (features.squared_norms[own, None] + norms).addmm_(a, b.T, alpha=-2)
            ids = torch.arange(start, start + len(b), device=features.device)
            # Keys, not distances: where all tie, as equal images do, only smaller indices still matter.
            possible = rank_keys(bounds.of(own).lower(searched), ids) < keys[some].amax(1, keepdim=True)
            wanted = possible & (own[:, None] != ids)
            row, place = wanted.nonzero(as_tuple=True)
            keys[some] = _merged(keys[some], row, rank_keys(pairs(own[row], ids[place]), ids[place]))
            row, place = (bounds.of(own).upper(searched) > farthest[some, None]).nonzero(as_tuple=True)
            farthest[some] = farthest[some].scatter_reduce(0, row, pairs(own[row], ids[place]), "amax")


def _merged(keys: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    """The smallest different keys of each row, old and found; rows ascending."""
    counts = torch.bincount(rows, minlength=len(keys))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    both = keys.new_full((len(keys), keys.shape[1] + int(counts.max())), NO_KEY)
    both[:, : keys.shape[1]] = keys
    both[rows, keys.shape[1] + places] = found
    both = both.sort(1).values
    both[:, 1:].masked_fill_(both[:, 1:] == both[:, :-1], NO_KEY)  # found again
    return both.sort(1).values[:, : keys.shape[1]]


# ------------------------------------------------------------------ the search
def search(features: FeatureRows, k: int, plan: SearchPlan, workers: Workers = ALONE,
           tiles: Tiles | None = None, bounds: Bounds | None = None) -> Neighbours:
    """The k nearest images of every image, itself first, and its farthest; cut to N.

    Args:
        k: list length, the image itself included.
        plan: how to compute; it changes time and memory, never the result.
        workers: the processes that share the work; each gets the whole result.
        tiles, bounds: for the plan's precision, where they are at hand.
    Raises:
        InexactProducts: the proof does not hold on this device; every candidate's own distance is checked against it.
    """
    others = min(k, len(features)) - 1
    if others == 0:
        return search(features, 2, plan, workers, tiles, bounds).first(1)
    bounds = bounds or Bounds(features, plan.precision)
    tiles = tiles or Tiles(features, bounds, plan.tile, plan.keep)
    bounds = bounds.shifted(typical_distance(features, others) if plan.precision.result_share else 0.0)
    pairs = PairDistances(features, plan.pairs, plan.threads)
    lists = Shortlists(tiles, bounds, others, max(plan.width, others))
    _scan(tiles, lists, plan.strip, plan.threads, workers)
    refiner = _Refiner(bounds, pairs, others)
    found = _refine(refiner, tiles, lists, plan.threads, workers)
    if not all(workers.gather_objects(refiner.as_proven)):
        raise InexactProducts(f"{plan.precision.name} products of this device are wrong by more than their rounding "
                              "errors can be: compute on another device")
    del lists
    _finish(features, pairs, found, plan, workers)
    distances, indices = split_keys(found.keys)
    own = torch.arange(len(features), device=features.device)[:, None]
    return Neighbours(
        torch.cat([own.to(torch.int32), indices.to(torch.int32)], 1),
        torch.cat([torch.zeros_like(distances[:, :1]), distances], 1),
        torch.where(found.farthest > 0, found.farthest, 1),
    )


@dataclass
class _Found:
    """keys [N, others], farthest [N] and proven [N] of all rows; each process fills those of its own tiles."""

    keys: Tensor
    farthest: Tensor
    proven: Tensor


def _refine(refiner: _Refiner, tiles: Tiles, lists: Shortlists, threads: int, workers: Workers) -> _Found:
    """Bring each tile's shortlists together at its owner, tile i at process i modulo their number, and refine them."""
    count, device = len(tiles.features), tiles.features.device
    found = _Found(torch.full((count, refiner.others), NO_KEY, device=device), torch.zeros(count, device=device),
                   torch.ones(count, dtype=torch.bool, device=device))
    if workers.size > 1:
        for i in range(tiles.count):
            lists.near[i].collect(workers, owner=i % workers.size, begun=tiles.rows_of(i))
            lists.far[i].collect(workers, owner=i % workers.size, begun=tiles.rows_of(i))

    own = range(workers.rank, tiles.count, workers.size)
    together = max(ROWS_REFINED // tiles.size, 1)  # the more rows, the more pairs are there from both sides
    for chunk in progress([own[at : at + together] for at in range(0, len(own), together)], "neighbours", "chunks"):
        parts = [tiles.rows_of(i) for i in chunk]
        rows = torch.cat([torch.arange(part.start, part.stop, device=device) for part in parts])
        for kind, refine, out in ((lists.near, refiner.nearest, found.keys),
                                  (lists.far, refiner.farthest, found.farthest)):
            cut = in_threads(lambda i, kind=kind: kind[i].take(tiles.rows_of(i)), chunk, threads)
            out[rows], proven = refine(rows, *(torch.cat(table) for table in zip(*cut, strict=True)))
            found.proven[rows] &= proven
        for i in chunk:
            lists.near[i] = lists.far[i] = None
    return found


def _finish(features: FeatureRows, pairs: PairDistances, found: _Found, plan: SearchPlan, workers: Workers) -> None:
    """Settle what is not proven, and let every process have all rows."""
    rows = (~found.proven).nonzero().flatten()
    if len(rows):
        logger.info("candidate search: %d of %d rows are compared with all images again", len(rows), len(features))
        keys, farthest = found.keys[rows], found.farthest[rows]
        _compare_with_all(features, pairs, rows, keys, farthest)
        found.keys[rows], found.farthest[rows] = keys, farthest
    for i, start in enumerate(range(0, len(features), plan.tile)):
        part = slice(start, start + plan.tile)
        for table in (found.keys, found.farthest):
            workers.broadcast(table[part], i % workers.size)
