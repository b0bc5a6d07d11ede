"""The nearest and the farthest images of every image, exactly, without a matrix over all pairs.

1. The upper triangle of N x N squared distances is computed in tiles, in any precision. Each tile feeds two kinds of
   shortlist, of its rows and of its columns: some more than the k nearest, and a few of the farthest.
2. Every distance that can matter is computed again from the difference of the two features, in float32 and in one
   fixed order: `pair_distances` is the distance. What the search computed has no other part in the answer, which is
   therefore the same to the bit for any precision, tile, memory budget and number of processes.
3. A row is certified where no image outside its shortlist can be among its k nearest, or be its farthest
   (`processor.retrieval.precision` has the bound); the other rows are compared with all images again.
"""
from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.features import ROWS_AT_ONCE, FeatureRows
from processor.retrieval.precision import PRECISIONS, UNIT, Precision
from processor.retrieval.ranks import NO_KEY, kth_smallest, rank_keys, split_keys, worst_distance
from utils.dist import ALONE, Workers
from utils.parallel import in_threads
from utils.progress import progress

logger = logging.getLogger(__name__)

GROUP = 8            # rows of a tile that are looked at together for something new
MANY = 100            # new entries of a row in a tile from which on the tile is taken whole
ROWS_REFINED = 32768  # rows whose candidates are computed again at a time
FARTHEST = 16        # length of the shortlist of the farthest


class InexactProducts(RuntimeError):
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


# ------------------------------------------------------------------ the distance
class PairDistances:
    """Squared Euclidean distances of single pairs: the float32 sum of squared differences.

    Each is a function of its two features alone: it is the same from either side, 0 for equal features, as exact for
    near ones as for others, and has the same bits whatever other pairs are asked for beside it.
    """

    def __init__(self, features: FeatureRows, at_once: int, threads: int = 1):
        """at_once: pairs whose features are gathered at a time; a core's cache should hold them."""
        self.features, self.at_once, self.threads = features, at_once, threads
        self._buffers = threading.local()

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """[P] float32 for rows left [P] and right [P] (int64)."""
        count, places = self.at_once, self._places()
        chunks = -(-len(left) // count)
        # All chunks have one shape, for on a GPU a kernel's order of summation depends on it.
        rows = torch.zeros(2, chunks * count, dtype=torch.int64, device=left.device)
        rows[0, : len(left)], rows[1, : len(left)] = left, right
        rows = rows.view(2, chunks, count).transpose(0, 1).reshape(chunks, 2 * count)
        out = torch.empty(chunks, count, device=left.device)
        a, b = places.view(2, count, -1)
        for some, part in zip(rows.unbind(), out.unbind(), strict=True):
            self.features.take(some, places)
            torch.ops.aten.mse_loss.out(a, b, 0, out=a)  # (a - b)² in one pass
            torch.sum(a, 1, out=part)
        return out.flatten()[: len(left)]

    def in_threads(self, left: Tensor, right: Tensor) -> Tensor:
        """The same on all cores, and a pair that is there from both sides only once."""
        size = len(self.features)
        pairs, places = torch.unique(torch.minimum(left, right) * size + torch.maximum(left, right),
                                     return_inverse=True)
        pieces = pairs.split(64 * self.at_once)
        found = list(in_threads(lambda piece: self(piece // size, piece % size), pieces, self.threads))
        return torch.cat(found)[places] if found else torch.empty(0, device=left.device)

    def _places(self) -> Tensor:
        """This thread's places for the features of the pairs at once."""
        if not hasattr(self._buffers, "places"):
            self._buffers.places = torch.zeros(2 * self.at_once, self.features.dim, device=self.features.device)
        return self._buffers.places


class Bounds:
    """From a searched value to the interval in which the true squared distance lies, and back.

    A searched value is the product's squared distance of the rounded features less `shift`. `of(rows)` has the bounds
    of some rows: product [R, 1] is what the product can be wrong by, rounding [R, 1] how far apart rounding moved two
    features at most. norms: [N] squared lengths of the rounded features.
    """

    def __init__(self, features: FeatureRows, precision: Precision, shift: float = 0.0):
        self.precision = precision
        self.norms, residuals = features.squared_norms, torch.zeros_like(features.squared_norms)
        if precision.name != "float32":
            self.norms = torch.empty_like(self.norms)
            for start in range(0, len(features), ROWS_AT_ONCE):
                rows, part = features.rows(start, start + ROWS_AT_ONCE), slice(start, start + ROWS_AT_ONCE)
                rounded = precision.round(rows)
                self.norms[part] = torch.linalg.vector_norm(rounded, dim=1).square_()
                residuals[part] = torch.linalg.vector_norm(rounded.sub_(rows), dim=1)
        # A sum of n products in float32 is wrong by n units of the sum of their absolute values at most, and of the
        # distance itself (all its terms are positive) by n units of itself. 8: the norms' own columns, and room.
        share, lengths = (features.dim + 8) * UNIT, self.norms.sqrt()
        self.product = (share * precision.units * (lengths + lengths.max()).square())[:, None]
        self.rounding = ((residuals + residuals.max()) * (1 + share))[:, None]
        self.scale, self.shift, self.result_share = 1 + 2 * share, 0.0, precision.result_share
        self._shift_share = share * precision.units
        if shift:
            self.__dict__ = self.shifted(shift).__dict__

    def shifted(self, shift: float) -> Bounds:
        """The bounds for values less another shift."""
        other = copy.copy(self)
        other.product = self.product + self._shift_share * (abs(shift) - abs(self.shift))
        other.shift = shift
        return other

    def of(self, rows: slice | Tensor) -> Bounds:
        """The bounds of some rows only."""
        some = copy.copy(self)
        some.product, some.rounding = self.product[rows], self.rounding[rows]
        return some

    def lower(self, searched: Tensor) -> Tensor:
        """[R, C] no true distance with this searched value is smaller."""
        least = searched * (1 - self.result_share * searched.sign()) + (self.shift - self.product)
        return (least.clamp_(min=0).sqrt_() - self.rounding).clamp_(min=0).square_() / self.scale

    def upper(self, searched: Tensor) -> Tensor:
        """[R, C] no true distance with this searched value is larger."""
        most = searched * (1 + self.result_share * searched.sign()) + (self.shift + self.product)
        return (most.clamp_(min=0).sqrt_() + self.rounding).square_() * self.scale

    def error(self, searched: Tensor) -> Tensor:
        """[R, 1] how far a true distance can be from its searched value plus shift, in rows of values [R, C]."""
        least, most = searched.amin(1, keepdim=True), searched.amax(1, keepdim=True)
        searched_error = self.product + self.result_share * torch.maximum(least.abs(), most.abs())
        reach = (most + self.shift + searched_error).clamp_(min=0).sqrt_()
        rounded = self.rounding * (2 * reach + self.rounding)
        return searched_error + rounded + (self.scale - 1) * (reach + self.rounding).square()

    def lowest_beyond(self, true: Tensor) -> Tensor:
        """[R, C] the searched value from which on no true distance is `true` or smaller."""
        least = ((true * self.scale).sqrt_() + self.rounding).square_() * (1 + 8 * UNIT) + self.product - self.shift
        return least / (1 - self.result_share * least.sign()) + 8 * UNIT * abs(self.shift)

    def highest_below(self, true: Tensor) -> Tensor:
        """[R, C] the searched value up to which no true distance is `true` or larger."""
        root = ((true / self.scale).sqrt_() - self.rounding).clamp_(min=0)
        most = root.square_() * (1 - 8 * UNIT) - self.product - self.shift
        return most / (1 + self.result_share * most.sign()) - 8 * UNIT * abs(self.shift)


# ------------------------------------------------------------------ tiles
class Tiles:
    """Features as operands whose product is a tile of searched values: [-2a, |a|² - shift, 1] · [b, 1, |b|²].

    Columns behind the last image are NaN, for which no comparison is true. keep: hold the right operands.
    """

    def __init__(self, features: FeatureRows, bounds: Bounds, tile: int, keep: bool = False):
        self.features, self.precision, self.size = features, bounds.precision, tile
        self.norms = bounds.norms
        self.count = -(-len(features) // tile)
        self.pieces = len(self.precision.pieces(torch.zeros(1)))
        self.width = -(-(features.dim + 2 * self.pieces) // 32) * 32  # products of odd rows are slower
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def rows_of(self, index: int) -> slice:
        return slice(index * self.size, min((index + 1) * self.size, len(self.features)))

    def right(self, index: int, out: Tensor | None = None) -> Tensor:
        """The right operand [tile, width] of a tile's rows; `out` is a place that may be used for it."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        rows = self.rows_of(index)
        out = self._operand(rows, self.size, None if self._kept is not None else out)
        _, ones, pieces = self._columns(out)
        ones.fill_(1)
        self._fill(pieces, rows, 0.0)
        if self._kept is not None:
            self._kept[index] = out
        return out

    def left(self, rows: slice, count: int, shift: float) -> Tensor:
        """A left operand [count, width] of some rows; those behind them are zeros and NaN."""
        out = self._operand(rows, count, None)
        feats, pieces, ones = self._columns(out)
        feats *= -2
        ones.fill_(1)
        self._fill(pieces, rows, shift)
        return out

    def product(self, left: Tensor, right: Tensor, out: tuple[Tensor, Tensor]) -> Tensor:
        """Float32 searched values, in one of the places that `places` made."""
        with self.precision.products(left.device):
            torch.mm(left, right.T, out=out[0])
        return out[0] if out[0] is out[1] else out[1].copy_(out[0])

    def places(self, rows: int) -> tuple[Tensor, Tensor]:
        """Places for a product of so many rows and for its float32 values."""
        first = torch.empty(rows, self.size, device=self.features.device, dtype=self.precision.dtype)
        return first, first if first.dtype == torch.float32 else torch.empty_like(first, dtype=torch.float32)

    def _operand(self, rows: slice, count: int, out: Tensor | None) -> Tensor:
        """[count, width] with the rounded features in its first columns, zeros behind the last row."""
        if out is None:
            out = torch.zeros(count, self.width, device=self.features.device, dtype=self.precision.dtype)
        feats = self.features.rows(rows.start, rows.stop)
        if self.precision.dtype == torch.float32:  # else the conversion is what rounds
            feats = self.precision.round(feats)
        out[: len(feats), : self.features.dim] = feats
        out[len(feats) :, : self.features.dim] = 0
        return out

    def _fill(self, columns: Tensor, rows: slice, shift: float) -> None:
        """Squared lengths less the shift into the columns; NaN behind the last image."""
        columns.fill_(torch.nan)
        for place, piece in enumerate(self.precision.pieces(self.norms[rows] - shift)):
            columns[: len(piece), place] = piece

    def _columns(self, operand: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The operand's columns: features, and the two groups behind them."""
        first = self.features.dim
        second, end = first + self.pieces, first + 2 * self.pieces
        return operand[:, :first], operand[:, first:second], operand[:, second:end]


def typical_distance(features: FeatureRows, others: int) -> float:
    """About how far the last of an image's nearest `others` is: searched values near it should be rounded least."""
    size, device = len(features), features.device
    some = torch.linspace(0, size - 1, min(size, 256), device=device).long()
    many = torch.linspace(0, size - 1, min(size, 4096), device=device).long()
    a, b = (features.take(rows, torch.empty(len(rows), features.dim, device=device)) for rows in (some, many))
    squared = features.squared_norms[some][:, None] + features.squared_norms[many] - 2 * a @ b.T
    rank = min(others * len(many) // size + 1, len(many) - 1)  # the first is the image itself, or takes its place
    return float(kth_smallest(squared, rank + 1).clamp_(min=0).median())


def room_of(width: int) -> int:
    """Places of a row in a shortlist of this width."""
    return width + max(width // 2, 32)


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, columns) of the `count` smallest of each row, or of all where there are fewer, in no order.

    NaN counts as infinite. numpy's selection uses the processor's vector instructions (where there is no NaN); torch's
    takes several times as long on a CPU.
    """
    count = min(count, values.shape[1])
    values = values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if values.device.type == "cpu" and count < values.shape[1]:
        columns = torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=1)[:, :count].copy())
        return values.gather(1, columns), columns
    return values.topk(count, dim=1, largest=False, sorted=False)


class Shortlist:
    """Of each row of a tile, the `width` smallest values offered so far; newer ones wait in `room` for the next cut.

    Args:
        beyond: (the best values [R, width], ascending, of which rows) -> the limits [R] from which on no value can
            matter.
    """

    def __init__(self, rows: int, width: int, device: torch.device, beyond: Callable[..., Tensor]):
        self.width, self.room, self._beyond = width, room_of(width), beyond
        self.seen = 0  # columns that were offered
        self._lock = threading.Lock()
        self.values = torch.full((rows, self.room), torch.inf, device=device)
        self.indices = torch.full((rows, self.room), -1, dtype=torch.int32, device=device)
        self.counts = torch.zeros(rows, dtype=torch.int64, device=device)
        self.limits = torch.full((rows,), torch.inf, device=device)  # what is not smaller need not be offered

    def wants_tile(self, columns: int) -> bool:
        """Whether so much of another tile can be expected to enter that it is better taken whole."""
        return self.width * columns > MANY * max(self.seen, columns)

    def offer_tile(self, values: Tensor, first_column: int) -> None:
        """All of values [rows, n], whose columns count from first_column; NaN is nothing."""
        with self._lock:
            self.seen += values.shape[1]
            best, columns = smallest(values, self.width)
            missing = ~(best < torch.inf)
            best, columns = best.masked_fill_(missing, torch.inf), (columns + first_column).masked_fill_(missing, -1)
            if int(self.counts.max()):
                self.cut()
                best = torch.cat([self.values[:, : self.width], best], 1)
                columns = torch.cat([self.indices[:, : self.width].long(), columns], 1)
            best, places = best.topk(min(self.width, best.shape[1]), dim=1, largest=False)
            self.values[:, : best.shape[1]] = best
            self.indices[:, : best.shape[1]] = columns.gather(1, places)
            self._limit(slice(None))

    def offer(self, rows: Tensor, values: Tensor, columns: Tensor, order: Tensor | None = None) -> None:
        """Single entries [E], values below the row's limit, ascending in `order`, which numbers the rows anew.

        order: None = the rows themselves.
        """
        with self._lock:
            self._offer(rows, values, columns, rows if order is None else order)

    def expect(self, best: Tensor) -> Tensor:
        """The limits [rows] that follow from a value of each row [rows] that will be offered."""
        self.limits = self._beyond(best[:, None].expand(-1, self.width), slice(None))
        return self.limits

    def see(self, columns: int) -> None:
        """So many columns were looked at for `offer`."""
        self.seen += columns

    def _offer(self, rows: Tensor, values: Tensor, columns: Tensor, order: Tensor) -> None:
        while len(rows):
            counts = torch.bincount(order, minlength=len(self.counts))
            before = torch.cumsum(counts, 0) - counts
            places = torch.arange(len(rows), device=rows.device) - before[order] + self.counts[rows]
            self.counts.index_add_(0, rows, torch.ones_like(rows))
            full = (self.counts > self.room).nonzero().flatten()
            if not len(full):
                self.values[rows, places] = values
                self.indices[rows, places] = columns.int()
                return
            fits = places < self.room
            self.values[rows[fits], places[fits]] = values[fits]
            self.indices[rows[fits], places[fits]] = columns[fits].int()
            self._cut(full)
            rest = (~fits & (values < self.limits[rows])).nonzero().flatten()
            rows, values, columns, order = rows[rest], values[rest], columns[rest], order[rest]

    def cut(self) -> None:
        """Drop what is not among the `width` smallest, and sort these."""
        self._cut(slice(None))

    def _cut(self, rows: Tensor | slice) -> None:
        best, places = self.values[rows].topk(self.width, dim=1, largest=False)
        indices = self.indices[rows].gather(1, places)
        self.values[rows] = torch.nn.functional.pad(best, (0, self.room - self.width), value=torch.inf)
        self.indices[rows, : self.width] = indices
        self._limit(rows)

    def _limit(self, rows: Tensor | slice) -> None:
        """What the best of some rows, in order, say about values to come."""
        best = self.values[rows, : self.width]
        self.counts[rows] = (best < torch.inf).sum(1)
        self.limits[rows] = torch.minimum(best[:, -1], self._beyond(best, rows))

    def take(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """indices, values [R, width], the best in order, and limits [R] of as many first rows as `rows` are."""
        self.cut()
        count = rows.stop - rows.start
        return self.indices[:count, : self.width], self.values[:count, : self.width], self.limits[:count]

    def collect(self, workers: Workers, owner: int, begun: slice) -> None:
        """Bring what all processes were offered together at one of them; all `begun` with the same columns."""
        if workers.size == 1:
            return
        self.cut()
        if workers.rank != owner:
            twice = (self.indices >= begun.start) & (self.indices < begun.stop)
            self.values.masked_fill_(twice, torch.inf)
            self.indices.masked_fill_(twice, -1)
        values = workers.gather(self.values[:, : self.width].contiguous(), owner)
        indices = workers.gather(self.indices[:, : self.width].contiguous(), owner)
        limits = workers.gather(self.limits, owner)
        if workers.rank == owner:
            best, places = torch.cat(values, 1).topk(self.width, dim=1, largest=False)
            self.values[:, : self.width] = best
            self.indices[:, : self.width] = torch.cat(indices, 1).gather(1, places)
            self._limit(slice(None))
            # What one process has dropped stays dropped, whatever the others' limits were.
            self.limits = torch.stack([self.limits, *limits]).amin(0)


class _Limits:
    """What can still matter to the rows of a tile, from the best that their shortlists hold."""

    def __init__(self, bounds: Bounds, others: int):
        self.bounds, self.others = bounds, others

    def near(self, best: Tensor, rows: Tensor | slice) -> Tensor:
        bounds = self.bounds.of(rows)
        return bounds.lowest_beyond(bounds.upper(best[:, self.others - 1 : self.others]))[:, 0]

    def far(self, best: Tensor, rows: Tensor | slice) -> Tensor:
        bounds = self.bounds.of(rows)
        return -bounds.highest_below(bounds.lower(-best[:, :1]))[:, 0]


class Shortlists:
    """The shortlists of all rows: of the nearest, and, values negated, of the farthest.

    Args:
        others: how many nearest images are wanted of a row.
        width: length of the lists of the nearest.
    """

    def __init__(self, tiles: Tiles, bounds: Bounds, others: int, width: int):
        self.tiles, self.bounds, self.width = tiles, bounds, width
        self.near: list[Shortlist | None] = []
        self.far: list[Shortlist | None] = []
        device = tiles.features.device
        for i in range(tiles.count):
            first = i * tiles.size
            own = torch.arange(first, first + tiles.size, device=device).clamp_(max=len(tiles.features) - 1)
            limits = _Limits(bounds.of(own), others)
            self.near.append(Shortlist(tiles.size, width, device, limits.near))
            self.far.append(Shortlist(tiles.size, FARTHEST, device, limits.far))

    def begin(self, i: int, tile: Tensor) -> None:
        """Tile (i, i): the first that its rows are offered."""
        tile.fill_diagonal_(torch.nan)  # an image is not in its own lists: it comes first in the answer anyway
        self.near[i].offer_tile(tile, i * self.tiles.size)
        # Of the farthest few are wanted: the largest alone sets a limit that few others pass.
        negated = tile.nan_to_num(nan=-torch.inf).neg_()
        limits = self.far[i].expect(negated.amin(1))
        rows, columns = (negated < limits[:, None]).nonzero(as_tuple=True)
        self.far[i].offer(rows, negated[rows, columns], columns + i * self.tiles.size)

    def offer(self, i: int, j: int, tile: Tensor) -> None:
        """Tile (i, j), i < j, to its rows and to its columns: what can still enter a list.

        Groups of rows are looked at first, and only then the members of those that have something new.
        """
        size = self.tiles.size
        nothing = torch.full((size,), -torch.inf, device=tile.device)
        near_rows, near_columns = self.near[i].limits, self.near[j].limits
        if self.near[i].wants_tile(size):
            self.near[i].offer_tile(tile, j * size)
            near_rows = nothing
        else:
            self.near[i].see(size)
        if self.near[j].wants_tile(size):
            self.near[j].offer_tile(tile.T.contiguous(), i * size)
            near_columns = nothing
        else:
            self.near[j].see(size)
        groups = tile.view(size // GROUP, GROUP, size)
        near_rows, far_rows = near_rows.view(-1, GROUP), -self.far[i].limits.view(-1, GROUP)
        far_columns = -self.far[j].limits
        nearest = torch.maximum(near_rows.amax(1)[:, None], near_columns)
        farthest = torch.minimum(far_rows.amin(1)[:, None], far_columns)
        for found, limits, kind, sign in (
            (groups.amin(1) < nearest, (near_rows, near_columns), self.near, 1),
            (groups.amax(1) > farthest, (far_rows, far_columns), self.far, -1),
        ):
            group, column = found.nonzero(as_tuple=True)
            if not len(group):
                continue
            values = groups[group, :, column] * sign  # [hits, GROUP]
            new = values < limits[0][group] * sign
            if new.any():
                # Member by member: so the entries of a row are together, in this order of rows.
                member, hit = new.T.nonzero(as_tuple=True)
                kind[i].offer(group[hit] * GROUP + member, values[hit, member], column[hit] + j * size,
                              order=member * (size // GROUP) + group[hit])
            hit, member = (values < limits[1][column, None] * sign).nonzero(as_tuple=True)
            if len(hit):
                order = column[hit].argsort()
                hit, member = hit[order], member[order]
                kind[j].offer(column[hit], values[hit, member], group[hit] * GROUP + member + i * size)


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
        raise InexactProducts(plan.precision.name)
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
