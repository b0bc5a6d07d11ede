"""The few images that may be the nearest or the farthest of each image, kept while tiles of distances pass by.

A search sees the distances of all pairs once, tile after tile, and can hold none of them. Of each image it keeps a
`Shortlist`: the `width` smallest values so far with their columns, and a limit, so that almost all of a new tile is
dropped by one comparison. The lists of all images, of the nearest and of the farthest, are `Shortlists`.
"""
from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import places_in_rows
from utils.dist import Workers

GROUP = 8      # rows of a tile that are looked at together for something new
MANY = 100     # new entries of a row in a tile from which on the tile is taken whole
FARTHEST = 16  # length of the shortlist of the farthest


def room_of(width: int) -> int:
    """Places of a row in a shortlist of this width.

    >>> room_of(20), room_of(200)
    (52, 300)
    """
    return width + max(width // 2, 32)


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, columns) of the `count` smallest of each row, or of all if there are fewer, in no order.

    NaN counts as infinite. numpy's selection uses the processor's vector instructions (if there is no NaN); torch's
    takes several times as long on a CPU.

    >>> values, columns = smallest(torch.tensor([[4.0, 1.0, torch.nan]]), 1)
    >>> values, columns
    (tensor([[1.]]), tensor([[1]]))
    """
    count = min(count, values.shape[1])
    values = values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if values.device.type == "cpu" and count < values.shape[1]:
        columns = torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=1)[:, :count].copy())
        return values.gather(1, columns), columns
    return values.topk(count, dim=1, largest=False, sorted=False)


class Shortlist:
    """The `width` smallest values offered so far of each row of a tile; newer ones wait in `room` for the next cut.

    Args:
        beyond: (the best values [R, width], ascending, of which rows) -> the limits [R] from which on no value can
            matter.

    Two rows, of which the two smallest values are wanted:

    >>> lists = Shortlist(2, 2, torch.device("cpu"), lambda best, rows: best[:, -1])
    >>> lists.offer_tile(torch.tensor([[5.0, 1.0, 3.0], [2.0, 8.0, 9.0]]), first_column=10)
    >>> lists.limits  # what is not smaller need not be offered
    tensor([3., 8.])
    >>> lists.offer(rows=torch.tensor([1]), values=torch.tensor([4.0]), columns=torch.tensor([20]))
    >>> indices, values, limits = lists.take(slice(0, 2))
    >>> indices.tolist(), values.tolist(), limits.tolist()
    ([[11, 12], [10, 20]], [[1.0, 3.0], [2.0, 4.0]], [3.0, 4.0])
    """

    def __init__(self, rows: int, width: int, device: torch.device, beyond: Callable[..., Tensor]):
        self.width, self.room, self._beyond = width, room_of(width), beyond
        self.columns_seen = 0
        self._lock = threading.Lock()
        self.values = torch.full((rows, self.room), torch.inf, device=device)
        self.indices = torch.full((rows, self.room), -1, dtype=torch.int32, device=device)
        self.counts = torch.zeros(rows, dtype=torch.int64, device=device)
        self.limits = torch.full((rows,), torch.inf, device=device)  # what is not smaller need not be offered

    def wants_tile(self, columns: int) -> bool:
        """Whether so much of another tile can be expected to enter that it is better taken whole."""
        return self.width * columns > MANY * max(self.columns_seen, columns)

    def offer_tile(self, values: Tensor, first_column: int) -> None:
        """All of values [rows, n], whose columns count from first_column; NaN is nothing."""
        with self._lock:
            self.columns_seen += values.shape[1]
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

    def count_columns(self, columns: int) -> None:
        """Add columns of which single entries are offered."""
        self.columns_seen += columns

    def _offer(self, rows: Tensor, values: Tensor, columns: Tensor, order: Tensor) -> None:
        while len(rows):
            places = places_in_rows(order, len(self.counts))[0] + self.counts[rows]
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
        """Set the limits of these rows by their best values, which are in order."""
        best = self.values[rows, : self.width]
        self.counts[rows] = (best < torch.inf).sum(1)
        self.limits[rows] = torch.minimum(best[:, -1], self._beyond(best, rows))

    def take(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """indices, values [R, width], the best in order, and limits [R] of as many first rows as `rows` are."""
        self.cut()
        count = rows.stop - rows.start
        return self.indices[:count, : self.width], self.values[:count, : self.width], self.limits[:count]

    def collect(self, workers: Workers, owner: int, begun: slice) -> None:
        """Gather what all processes were offered at the owner; all `begun` with the same columns."""
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
            # What a process has dropped stays dropped, whatever the others' limits were.
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
    """The shortlists of all images, a `Shortlist` a tile of rows: of the nearest, and, values negated, of the farthest.

    A tile (i, j) of the upper triangle is offered to the rows of i and to the columns, which are the rows of j.

    Args:
        others: how many nearest images are wanted of each, beside itself.
        width: length of the lists of the nearest.
        longer: of the tiles that begin with a query there are longer lists of the nearest: (of how many, their length).

    Three images at 0, 1 and 3 on a line, all in the one tile (0, 0):

    >>> from processor.retrieval.search.feature_rows import FeatureRows
    >>> from processor.retrieval.search.precision import PRECISIONS
    >>> table = FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]))
    >>> bounds = Bounds(table, PRECISIONS["float32"])
    >>> tiles = Tiles(table, bounds, tile=8)
    >>> lists = Shortlists(tiles, bounds, others=1, width=1)
    >>> lists.begin(0, tiles.product(tiles.left(slice(0, 3), 8, 0.0), tiles.right(0), tiles.places(8)))
    >>> lists.near[0].take(slice(0, 3))[0].tolist(), lists.far[0].take(slice(0, 3))[0][:, 0].tolist()
    ([[1], [0], [1]], [2, 2, 0])
    """

    def __init__(self, tiles: Tiles, bounds: Bounds, others: int, width: int, longer: tuple[int, int] = (0, 0)):
        self.tiles, self.bounds, self.width = tiles, bounds, width
        self.near: list[Shortlist | None] = []
        self.far: list[Shortlist | None] = []
        device = tiles.features.device
        for i in range(tiles.count):
            first = i * tiles.size
            rows = torch.arange(first, first + tiles.size, device=device).clamp_(max=len(tiles.features) - 1)
            begins_with_query = first < tiles.features.num_query
            wanted, length = longer if longer[0] > others and begins_with_query else (others, width)
            limits = _Limits(bounds.of(rows), wanted)
            self.near.append(Shortlist(tiles.size, length, device, limits.near))
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
            self.near[i].count_columns(size)
        if self.near[j].wants_tile(size):
            self.near[j].offer_tile(tile.T.contiguous(), i * size)
            near_columns = nothing
        else:
            self.near[j].count_columns(size)
        groups = tile.view(size // GROUP, GROUP, size)
        near_rows, far_rows = near_rows.view(-1, GROUP), -self.far[i].limits.view(-1, GROUP)
        far_columns = -self.far[j].limits
        nearest = torch.maximum(near_rows.amax(1)[:, None], near_columns)
        farthest = torch.minimum(far_rows.amin(1)[:, None], far_columns)
        for hits, limits, kind, sign in (
            (groups.amin(1) < nearest, (near_rows, near_columns), self.near, 1),
            (groups.amax(1) > farthest, (far_rows, far_columns), self.far, -1),
        ):
            group, column = hits.nonzero(as_tuple=True)
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
