"""k-reciprocal codes as sparse rows, and the Jaccard distance through their inverted index.

An image's code has a weight for each member of its k-reciprocal set; images whose codes share much are near. Weights
are whole numbers of 2**-30: sums of whole numbers are the same in any order, so the codes and the Jaccard distances
have the same bits on any number of threads and processes, and on a GPU. The rounding (1e-9) is below that of float32.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.search.rows import PairDistances
from processor.retrieval.search.search import Neighbours
from utils.dist import ALONE, Workers
from utils.parallel import in_threads

ONE = 2**30
ROWS_AT_ONCE = 2048


@dataclass
class Codes:
    """Sparse rows: columns [E] int32 and weights [E] int32 (of 2**-30), row r from starts[r] to starts[r + 1].

    >>> codes = Codes(torch.tensor([0, 1, 3]), torch.tensor([7, 2, 5]), torch.tensor([ONE, ONE // 2, ONE // 2]))
    >>> which, position = codes.entries(torch.tensor([1, 0]))
    >>> which.tolist(), codes.columns[position].tolist()
    ([0, 0, 1], [2, 5, 7])
    """

    starts: Tensor
    columns: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.starts) - 1

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of rows [R] (repeats allowed): (which of the R [E'], position in columns and weights [E'])."""
        counts = self.starts[rows + 1] - self.starts[rows]
        which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        before = counts.cumsum(0) - counts
        return which, torch.arange(len(which), device=rows.device) + (self.starts[rows] - before)[which]


def encode(neighbours: Neighbours, pairs: PairDistances, k1: int, k2: int, threads: int = 1,
           workers: Workers = ALONE) -> Codes:
    """The k-reciprocal code of every image, averaged over its k2 nearest.

    Args:
        neighbours: at least k1 + 1 a row if there are so many images.
        pairs: for members that an expansion brings and no list has.
        threads: pieces of work at a time.
    Returns:
        N rows whose weights sum to 1 (2**30) up to their rounding.

    Images at 0, 1 and 9 on a line: the first two are each other's nearest, the last is nobody's.

    >>> from processor.retrieval.search.feature_rows import FeatureRows
    >>> table = FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [9.0]]))
    >>> lists = Neighbours(torch.tensor([[0, 1], [1, 0], [2, 1]], dtype=torch.int32),
    ...                    torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 64.0]]), torch.tensor([81.0, 64.0, 81.0]))
    >>> encode(lists, PairDistances(table, 8), k1=1, k2=1).columns.tolist()
    [0, 1, 0, 1, 2]
    """
    neighbours = neighbours.first(k1 + 1)
    sets = ReciprocalSets(neighbours, k1)
    size = len(neighbours.indices)
    chunks = [torch.arange(start, min(start + ROWS_AT_ONCE, size), device=sets.device)
              for start in range(0, size, ROWS_AT_ONCE)]
    codes = _in_chunks(lambda rows: _weighed(sets, neighbours, pairs, rows), chunks, threads, workers)
    if k2 == 1:
        return codes
    return _in_chunks(lambda rows: _averaged(codes, neighbours.indices[rows, :k2]), chunks, threads, workers)


# ------------------------------------------------------------------ sets
class ReciprocalSets:
    """R(i, k1) of every image as marks on its list, and R(i, k1 / 2) as a table."""

    def __init__(self, neighbours: Neighbours, k1: int):
        self.lists, self.device = neighbours.indices, neighbours.indices.device
        # np.around rounds halves to even, as the published code does; + 1 for the image itself.
        half = min(int(np.around(k1 / 2)) + 1, self.lists.shape[1])
        marks, halves, counts = [], [], []
        for start in range(0, len(self.lists), ROWS_AT_ONCE):
            members = self.lists[start : start + ROWS_AT_ONCE]
            lists = self.lists[members.long()]  # [R, k, k]: the lists of the members
            images = torch.arange(start, start + len(members), device=self.device, dtype=torch.int32)[:, None, None]
            marks.append((lists == images).any(2))
            near = (lists[:, :half, :half] == images).any(2)
            halves.append(members[:, :half].masked_fill(~near, -1))
            counts.append(near.sum(1, dtype=torch.int32))
        self.marks, self.halves, self.half_counts = torch.cat(marks), torch.cat(halves), torch.cat(counts)

    def expanded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the expansion adds to the sets of rows [R]: R*(i) without R(i), eq. 5 of the paper.

        The set R(c, k1 / 2) of each member c is added that has more than 2/3 of itself in R(i, k1).
        Returns:
            (which of the rows [E], member [E]), int64, each pair once.
        """
        lists, marks = self.lists[rows], self.marks[rows]
        members = self.halves[lists.long()]  # [R, k, half]: the sets of all in the list
        none = torch.iinfo(torch.int32).max
        reciprocal = torch.where(marks, lists, none).sort(1).values
        flat = members.flatten(1)
        places = torch.searchsorted(reciprocal, flat).clamp_(max=reciprocal.shape[1] - 1)
        inside = (reciprocal.gather(1, places) == flat).view_as(members)
        joins = marks & (3 * inside.sum(2) > 2 * self.half_counts[lists.long()])
        which, c, place = (joins[:, :, None] & ~inside & (members >= 0)).nonzero(as_tuple=True)
        size = len(self.lists)
        added = torch.unique(which * size + members[which, c, place])
        return added // size, added % size


def _weighed(sets: ReciprocalSets, neighbours: Neighbours, pairs: PairDistances, rows: Tensor) -> Codes:
    """The codes of rows [R]: each member of a set has the weight exp(-d), and a row sums to 1."""
    which, place = sets.marks[rows].nonzero(as_tuple=True)
    more, members = sets.expanded(rows)
    columns = torch.cat([neighbours.indices[rows][which, place].long(), members])
    squared = torch.cat([neighbours.distances[rows][which, place], pairs(rows[more], members)])
    which = torch.cat([which, more])
    weights = torch.exp(-squared.double() / neighbours.farthest[rows][which]).mul_(2.0**40).round_().long()
    sums = torch.zeros(len(rows), dtype=torch.int64, device=rows.device).index_add_(0, which, weights)
    shares = (weights.double() * ONE / sums[which]).round_().int()
    return _rows_of(which * len(neighbours.indices) + columns, shares, len(rows), len(neighbours.indices))


def _averaged(codes: Codes, nearest: Tensor) -> Codes:
    """[R] rows: the mean code of the images of each row of nearest [R, k2]."""
    size, k2 = len(codes), nearest.shape[1]
    slot, position = codes.entries(nearest.flatten().long())
    keys, inverse = torch.unique(slot // k2 * size + codes.columns[position], return_inverse=True)
    sums = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    sums.index_add_(0, inverse, codes.weights[position].long())
    means = torch.div(2 * sums + k2, 2 * k2, rounding_mode="floor").int()  # to the nearest
    return _rows_of(keys, means, len(nearest), size, is_sorted=True)


def _rows_of(keys: Tensor, weights: Tensor, rows: int, size: int, is_sorted: bool = False) -> Codes:
    """Codes from entries with keys row * size + column, each key once."""
    if not is_sorted:
        keys, order = keys.sort()
        weights = weights[order]
    counts = torch.bincount(keys // size, minlength=rows)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Codes(starts, (keys % size).int(), weights)


def _in_chunks(make: Callable[[Tensor], Codes], chunks: list[Tensor], threads: int, workers: Workers) -> Codes:
    """The codes of all chunks of rows, in order; chunk i is made by process i modulo their number."""
    local = range(workers.rank, len(chunks), workers.size)
    made = dict(zip(local, in_threads(lambda i: make(chunks[i]), local, threads), strict=True))
    parts = []
    for i in range(len(chunks)):
        part = made.pop(i, None)
        parts.append(Codes(*workers.broadcast_rows(
            (part.starts, part.columns, part.weights) if part else None, i % workers.size)))
    ends = np.cumsum([0] + [len(part.columns) for part in parts])
    starts = [part.starts[bool(i):] + int(end) for i, (part, end) in enumerate(zip(parts, ends[:-1], strict=True))]
    return Codes(torch.cat(starts), torch.cat([part.columns for part in parts]),
                 torch.cat([part.weights for part in parts]))


# ------------------------------------------------------------------ Jaccard
class JaccardIndex:
    """The gallery's codes by column: the inverted index for what a query's code shares with each of them.

    Args:
        codes: of the queries, then of the gallery.
        at_once: queries of `parts_of`.

    >>> starts, columns = torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1, 1, 2, 3, 4], dtype=torch.int32)
    >>> index = JaccardIndex(Codes(starts, columns, torch.full((6,), ONE // 2, dtype=torch.int32)), 1, at_once=8)
    >>> (index.shared(slice(0, 1)) / ONE).tolist()  # the query has columns 0 and 1, the first gallery image has 1, too
    [[0.5, 0.0]]
    """

    def __init__(self, codes: Codes, num_query: int, at_once: int):
        self.codes, self.num_query, self.at_once = codes, num_query, at_once
        self.num_gallery = len(codes) - num_query
        first = int(codes.starts[num_query])
        counts = codes.starts[num_query + 1 :] - codes.starts[num_query:-1]
        images = torch.arange(self.num_gallery, device=counts.device, dtype=torch.int32).repeat_interleave(counts)
        columns, order = codes.columns[first:].sort(stable=True)
        by_column = torch.bincount(columns, minlength=len(codes))
        self.postings = Codes(torch.nn.functional.pad(by_column.cumsum(0), (1, 0)), images[order],
                              codes.weights[first:][order])

    def parts_of(self, rows: slice) -> Iterator[tuple[slice, slice]]:
        """`rows` a few at a time: (which queries, which of `rows`)."""
        for start in range(rows.start, rows.stop, self.at_once):
            stop = min(start + self.at_once, rows.stop)
            yield slice(start, stop), slice(start - rows.start, stop - rows.start)

    def shared(self, rows: slice) -> Tensor:
        """[len(rows), G] int32 (of 2**-30) of these queries: the sum over all columns of the smaller of two weights."""
        queries = torch.arange(rows.start, rows.stop, device=self.codes.starts.device)
        out = torch.zeros(len(queries) * self.num_gallery, dtype=torch.int32, device=queries.device)
        which, position = self.codes.entries(queries)
        entry, posting = self.postings.entries(self.codes.columns[position].long())
        smaller = torch.minimum(self.codes.weights[position[entry]], self.postings.weights[posting])
        out.index_add_(0, which[entry] * self.num_gallery + self.postings.columns[posting], smaller)
        return out.view(-1, self.num_gallery)


def jaccard_distance(shared: Tensor) -> Tensor:
    """1 - s / (2 - s) of what two codes share (of 2**-30), because both codes sum to 1; float32, same shape.

    >>> jaccard_distance(torch.tensor([0, ONE // 2, ONE], dtype=torch.int32))
    tensor([1.0000, 0.6667, 0.0000])
    """
    share = shared.float().mul_(1 / ONE).clamp_(max=1)  # rounding can put a code's sum with itself just above 1
    return share.div_(2 - share).neg_().add_(1)
