"""The nearest and the farthest images of every image, exactly, without a matrix over all pairs.

The plainest way, a block of rows at a time (`plain_search`, the oracle at the head of tests/test_retrieval_search.py):

    searched = row_block(table, rows, squared_euclidean)                # [R, N], wrong by `error` at most
    near = searched <= kth_smallest(searched, k)[:, None] + 2 * error   # all that can be among the k nearest
    row, image = near.nonzero(as_tuple=True)
    exact = pairs(row + rows.start, image)                              # `PairDistances`: these decide
    keys = smallest_keys(row, rank_keys(exact, image), R, k)            # by distance, then by index

and the farthest image likewise. It multiplies all N² pairs, in float32, and holds whole rows. `search` gives the same
lists to the bit and does less:

1. Only the upper triangle of pairs is multiplied, in tiles and in any precision. Each tile feeds two kinds of
   shortlist, of its rows and of its columns: a few more than the k nearest, and a few of the farthest (`Shortlists`).
2. Every distance that can matter is computed again from the difference of the two features, in float32 and in one
   fixed order (`PairDistances`). What the search computed has no other part in the answer, which therefore has the
   same bits in any precision and for any tile, memory budget and number of threads or processes.
3. A row is certified if no image outside its shortlist can be among its k nearest, or be its farthest (`Bounds`); the
   other rows are compared with all images again.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds, typical_distance
from processor.retrieval.search.feature_rows import ROWS_AT_ONCE, FeatureRows
from processor.retrieval.search.precision import PRECISIONS, Precision
from processor.retrieval.search.rows import PairDistances
from processor.retrieval.search.shortlists import Shortlist, Shortlists
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import NO_KEY, key_table, rank_keys, split_keys, worst_distance
from utils.dist import ALONE, Workers
from utils.parallel import in_threads
from utils.progress import progress

logger = logging.getLogger(__name__)

ROWS_REFINED = 32768  # rows whose candidates are computed again at a time


class InexactProducts(FloatingPointError):
    """A candidate's distance lies outside what was proven of its searched value: the device adds in too few bits."""


class Longer(NamedTuple):
    """Lists of the queries, longer than those of their nearest images, as the search found them.

    indices: [Q, W] int32, -1 in empty places.
    searched: [Q, W] float32 searched values (see `Bounds`), ascending, infinite in empty places.
    limits: [Q] float32, no image that is not listed was searched to be nearer.
    shift: what the searched values are less by.
    """

    indices: Tensor
    searched: Tensor
    limits: Tensor
    shift: float


@dataclass
class Neighbours:
    """The nearest images of every image among query and gallery: itself, then by distance, then by index.

    indices: [N, k] int32, query images first, then the gallery's.
    distances: [N, k] float32, squared Euclidean.
    farthest: [N] float32, the largest squared distance of the row; 1 if all images coincide.
    longer: the queries' longer lists, where the plan has them.
    """

    indices: Tensor
    distances: Tensor
    farthest: Tensor
    longer: Longer | None = None

    def first(self, k: int) -> Neighbours:
        """The same for a smaller k."""
        return Neighbours(self.indices[:, :k], self.distances[:, :k], self.farthest)


@dataclass(frozen=True)
class SearchPlan:
    """How to compute; no field changes the answer.

    Attributes:
        precision: of the products.
        tile: rows and columns of a tile, a multiple of GROUP.
        strip: tiles of rows that are held at a time.
        pairs: features gathered at a time.
        width: length of the shortlists.
        queries: queries whose Jaccard sums are made at a time.
        threads: pieces of work at a time, on the CPU.
        keep: hold the rounded features, of two bytes a number, as long as there are products.
        product_seconds: what the product of a tile takes, for the prediction.
        longer: nearest images that are kept of each query, and the length of the lists that keep them; 0 = none.
    """

    precision: Precision
    tile: int
    strip: int
    pairs: int
    width: int
    queries: int = 32
    threads: int = 1
    keep: bool = False
    product_seconds: float = 0.0
    longer: tuple[int, int] = (0, 0)


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
        total = sum(len(_local_columns(first, tiles.count, workers)) for first in strips)
        columns = _strips(tiles, lists, strips, operand, threads, workers)
        for _ in progress(columns, "candidate search", "columns of tiles", total):
            pass


def _local_columns(first: int, count: int, workers: Workers) -> range:
    """The columns of tiles of a strip that begins with tile `first` that this process computes."""
    return range(first + 1 + (workers.rank - first) % workers.size, count, workers.size)


def _strips(tiles: Tiles, lists: Shortlists, strips: range, operand: Callable, threads: int,
            workers: Workers) -> Iterator[None]:
    """A strip of tile rows after the other, and in each a column of tiles after the other."""
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

        yield from in_threads(column, _local_columns(first, tiles.count, workers), threads)


# ------------------------------------------------------------------ from candidates to neighbours
class _Refiner:
    """Turns the shortlists of rows into exact neighbours, and certifies rows.

    as_proven: whether all distances were within the bounds of their searched values.
    """

    def __init__(self, bounds: Bounds, pairs: PairDistances, others: int):
        self.bounds, self.pairs, self.others = bounds, pairs, others
        self.as_proven = True

    def nearest(self, rows: Tensor, indices: Tensor, searched: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """rank_keys [R, others] of the nearest but the image itself, and whether they are proven [R].

        Args:
            rows: [R] int64;  indices, searched: [R, width] shortlists, ascending, -1 and infinite in empty
                places;  limits: [R] no image that is not listed was searched to be nearer.
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
        """The largest distance [R] float32, and whether it is proven [R]; arguments as of `nearest`, negated."""
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
        """[R] the distance of the last of the nearest `others`, infinite if there are not so many."""
        if keys.shape[1] < self.others:
            return torch.full((len(keys),), torch.inf, device=keys.device)
        return worst_distance(keys.kthvalue(self.others, dim=1).values)


def _compare_with_all(features: FeatureRows, pairs: PairDistances, rows: Tensor, keys: Tensor,
                      farthest: Tensor) -> None:
    """Finish rows [R] that could not be certified, in place: keys [R, others] and farthest [R] become exact.

    Every pair that float32 cannot tell from what the row has is computed from its difference.
    """
    bounds = Bounds(features, PRECISIONS["float32"])
    for part in torch.arange(len(rows), device=features.device).split(ROWS_AT_ONCE):
        images = rows[part]
        limits = bounds.of(images)
        a = features.take(images, torch.empty(len(images), features.dim, device=features.device))
        for start in range(0, len(features), ROWS_AT_ONCE):
            b, norms = features.rows(start, start + ROWS_AT_ONCE), features.squared_norms[start : start + ROWS_AT_ONCE]
            with PRECISIONS["float32"].products(features.device):
                searched = (features.squared_norms[images, None] + norms).addmm_(a, b.T, alpha=-2)
            ids = torch.arange(start, start + len(b), device=features.device)
            # Keys, not distances: if all tie, as equal images do, only smaller indices still matter.
            possible = rank_keys(limits.lower(searched), ids) < keys[part].amax(1, keepdim=True)
            row, place = (possible & (images[:, None] != ids)).nonzero(as_tuple=True)
            keys[part] = _merged(keys[part], row, rank_keys(pairs(images[row], ids[place]), ids[place]))
            row, place = (limits.upper(searched) > farthest[part, None]).nonzero(as_tuple=True)
            farthest[part] = farthest[part].scatter_reduce(0, row, pairs(images[row], ids[place]), "amax")


def _merged(keys: Tensor, row: Tensor, new_keys: Tensor) -> Tensor:
    """[R, k] the smallest different ones of keys [R, k] and of new_keys [E], of ascending rows."""
    both = torch.cat([keys, key_table(row, new_keys, len(keys))], 1).sort(1).values
    both[:, 1:].masked_fill_(both[:, 1:] == both[:, :-1], NO_KEY)  # in both
    return both.sort(1).values[:, : keys.shape[1]]


# ------------------------------------------------------------------ the search
def search(features: FeatureRows, k: int, plan: SearchPlan, workers: Workers = ALONE,
           tiles: Tiles | None = None, bounds: Bounds | None = None) -> Neighbours:
    """The k nearest images of every image, itself first, and its farthest; cut to N.

    Args:
        k: list length, the image itself included.
        plan: how to compute; it changes time and memory, never the result.
        workers: the processes that share the work; each gets the whole result.
        tiles, bounds: in the plan's precision; None = they are made.
    Raises:
        InexactProducts: the proof does not hold on this device; every candidate's distance is checked against it.

    Images at 0, 1 and 3 on a line:

    >>> table = FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]))
    >>> lists = search(table, 2, SearchPlan(PRECISIONS["bf16"], tile=8, strip=1, pairs=8, width=2))
    >>> lists.indices.tolist(), lists.distances.tolist(), lists.farthest.tolist()
    ([[0, 1], [1, 0], [2, 1]], [[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]], [9.0, 4.0, 9.0])
    """
    others = min(k, len(features)) - 1
    if others == 0:
        return search(features, 2, plan, workers, tiles, bounds).first(1)
    bounds = bounds or Bounds(features, plan.precision)
    tiles = tiles or Tiles(features, bounds, plan.tile, plan.keep)
    bounds = bounds.shifted(typical_distance(features, others) if plan.precision.result_share else 0.0)
    pairs = PairDistances(features, plan.pairs, plan.threads)
    lists = Shortlists(tiles, bounds, others, max(plan.width, others), plan.longer)
    _scan(tiles, lists, plan.strip, plan.threads, workers)
    refiner = _Refiner(bounds, pairs, others)
    refined = _refine(refiner, tiles, lists, plan.threads, workers)
    if not all(workers.gather_objects(refiner.as_proven)):
        raise InexactProducts(f"{plan.precision.name} products of this device are wrong by more than their rounding "
                              "errors can be: compute on another device")
    del lists
    _finish(features, pairs, refined, plan, workers)
    distances, indices = split_keys(refined.keys)
    images = torch.arange(len(features), device=features.device)[:, None]
    return Neighbours(
        torch.cat([images.to(torch.int32), indices.to(torch.int32)], 1),
        torch.cat([torch.zeros_like(distances[:, :1]), distances], 1),
        torch.where(refined.farthest > 0, refined.farthest, 1),
        refined.longer and Longer(*refined.longer, bounds.shift),
    )


@dataclass
class _Refined:
    """keys [N, others], farthest [N] and proven [N] of all rows; each process fills those of its tiles.

    longer: of the queries, the first three of `Longer`; empty if the plan has none.
    """

    keys: Tensor
    farthest: Tensor
    proven: Tensor
    longer: tuple[Tensor, ...]


def _refine(refiner: _Refiner, tiles: Tiles, lists: Shortlists, threads: int, workers: Workers) -> _Refined:
    """Gather each tile's shortlists at its owner, tile i at process i modulo their number, and refine them."""
    count, device = len(tiles.features), tiles.features.device
    refined = _Refined(torch.full((count, refiner.others), NO_KEY, device=device), torch.zeros(count, device=device),
                       torch.ones(count, dtype=torch.bool, device=device), _no_longer(tiles, lists))
    if workers.size > 1:
        for i in range(tiles.count):
            lists.near[i].collect(workers, owner=i % workers.size, begun=tiles.rows_of(i))
            lists.far[i].collect(workers, owner=i % workers.size, begun=tiles.rows_of(i))

    local = range(workers.rank, tiles.count, workers.size)
    together = max(ROWS_REFINED // tiles.size, 1)  # the more rows, the more pairs are there from both sides
    for chunk in progress([local[at : at + together] for at in range(0, len(local), together)], "neighbours", "chunks"):
        parts = [tiles.rows_of(i) for i in chunk]
        rows = torch.cat([torch.arange(part.start, part.stop, device=device) for part in parts])
        for kind, refine, out in ((lists.near, refiner.nearest, refined.keys),
                                  (lists.far, refiner.farthest, refined.farthest)):
            cut = in_threads(lambda i, kind=kind: _taken(kind, i, tiles, lists, refined.longer), chunk, threads)
            out[rows], proven = refine(rows, *(torch.cat(table) for table in zip(*cut, strict=True)))
            refined.proven[rows] &= proven
        for i in chunk:
            lists.near[i] = lists.far[i] = None
    return refined


def _no_longer(tiles: Tiles, lists: Shortlists) -> tuple[Tensor, ...]:
    """Places for the first three of `Longer`, if the queries have longer lists."""
    width, num_query, device = lists.near[0].width, tiles.features.num_query, tiles.features.device
    if width == lists.width:
        return ()
    return (torch.full((num_query, width), -1, dtype=torch.int32, device=device),
            torch.full((num_query, width), torch.inf, device=device),
            torch.full((num_query,), torch.inf, device=device))


def _taken(kind: list[Shortlist], i: int, tiles: Tiles, lists: Shortlists,
           longer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a shortlist of tile i holds, cut to the length of all; a longer one's is entered in `longer` first."""
    taken = indices, values, limits = kind[i].take(tiles.rows_of(i))
    if kind is lists.far or kind[i].width == lists.width:
        return taken
    first = i * tiles.size
    for table, part in zip(longer, taken, strict=True):
        rows = table[first : first + len(part)]
        rows.copy_(part[: len(rows)])
    limits = torch.minimum(limits, values[:, lists.width])  # what is cut off was not searched to be nearer than this
    return indices[:, : lists.width], values[:, : lists.width], limits


def _finish(features: FeatureRows, pairs: PairDistances, refined: _Refined, plan: SearchPlan, workers: Workers) -> None:
    """Settle what is not proven, and let every process have all rows."""
    rows = (~refined.proven).nonzero().flatten()
    if len(rows):
        logger.info("candidate search: %d of %d rows are compared with all images again", len(rows), len(features))
        keys, farthest = refined.keys[rows], refined.farthest[rows]
        _compare_with_all(features, pairs, rows, keys, farthest)
        refined.keys[rows], refined.farthest[rows] = keys, farthest
    for i, start in enumerate(range(0, len(features), plan.tile)):
        part = slice(start, start + plan.tile)
        for table in (refined.keys, refined.farthest, *refined.longer):
            if start < len(table):
                workers.broadcast(table[part], i % workers.size)
