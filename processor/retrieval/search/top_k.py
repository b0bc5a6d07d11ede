"""The nearest first: order by distance, equal distances by index, without a full sort."""
from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from utils.dist import ALONE, Workers
from utils.parallel import in_threads, thread_count

NO_KEY = torch.iinfo(torch.int64).max  # behind all keys: an empty place in a list
_OF_ROW = 16       # every so manieth distance of a row is looked at before all of them
_PIECE = 8         # queries whose nearest a thread finds at a time
Block = tuple[slice, np.ndarray]  # (rows of the query, float32 distances [len(rows), G])


def rank_keys(distances: Tensor, indices: Tensor) -> Tensor:
    """int64 keys whose order is: the smaller distance first, among equal distances the smaller index.

    A key is unique, so the k smallest keys are a certain set, which torch.topk does not promise of tied values.

    Args:
        distances: float32, no NaN.
        indices: int64 in [0, 2**32), broadcastable to distances.

    >>> keys = rank_keys(torch.tensor([0.5, 0.25, 0.5]), torch.tensor([7, 8, 2]))
    >>> split_keys(keys.sort().values)
    (tensor([0.2500, 0.5000, 0.5000]), tensor([8, 2, 7]))
    """
    bits = (distances + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the 0.0 it is equal to
    # The bits of a float order like an integer, but backwards below zero: flip those.
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32) | indices


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(distances float32, indices int64) that `rank_keys` made the keys of.

    >>> split_keys(rank_keys(torch.tensor([-2.0]), torch.tensor([3])))
    (tensor([-2.]), tensor([3]))
    """
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), keys & 0xFFFFFFFF


def worst_distance(keys: Tensor) -> Tensor:
    """The distances of keys [R], such as of each list's last; infinite for NO_KEY.

    >>> worst_distance(torch.tensor([int(rank_keys(torch.tensor(0.5), torch.tensor(7))), NO_KEY]))
    tensor([0.5000,    inf])
    """
    return torch.where(keys == NO_KEY, torch.inf, split_keys(keys)[0])


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """[R] the k-th smallest (k from 1) of each row of values [R, C], k <= C, without NaN.

    >>> kth_smallest(torch.tensor([[4.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), 2)
    tensor([3., 2.])
    """
    if values.device.type == "cpu":  # numpy's selection uses the processor's vector instructions
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1].copy())
    return values.kthvalue(k, dim=1).values


def places_in_rows(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """How many entries of its row come before each entry [E], and how many each row has [rows].

    Args:
        row: [E] int64, the row of each entry, ascending.

    >>> places_in_rows(torch.tensor([0, 0, 2]), rows=3)
    (tensor([0, 1, 0]), tensor([2, 0, 1]))
    """
    counts = torch.bincount(row, minlength=rows)
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row], counts


def key_table(row: Tensor, keys: Tensor, rows: int, width: int = 0) -> Tensor:
    """[rows, C] the keys [E] of ascending rows as a table, filled up with NO_KEY; C is at least `width`.

    >>> (key_table(torch.tensor([0, 0, 1]), torch.tensor([5, 9, 6]), rows=2) == NO_KEY).tolist()
    [[False, False], [False, True]]
    """
    places, counts = places_in_rows(row, rows)
    table = torch.full((rows, max(int(counts.max()), width)), NO_KEY, device=row.device)
    table[row, places] = keys
    return table


def smallest_keys(row: Tensor, keys: Tensor, rows: int, k: int) -> Tensor:
    """[rows, k] the smallest of each row's keys, sorted, from keys [E] of ascending rows; NO_KEY if there are fewer.

    >>> smallest_keys(torch.tensor([0, 0, 0, 1]), torch.tensor([9, 5, 7, 6]), rows=2, k=2)[:, 0]
    tensor([5, 6])
    """
    return key_table(row, keys, rows, k).sort(1).values[:, :k]


def nearest_keys(distances: Tensor, k: int) -> Tensor:
    """[R, k] sorted rank_keys of the k <= G nearest of distances [R, G], without NaN.

    >>> split_keys(nearest_keys(torch.tensor([[0.5, 0.1, 0.5, 0.9]]), 2))[1]
    tensor([[1, 0]])
    """
    if distances.device.type == "cpu":
        images = [_near_images(row, k) for row in distances.numpy()]
        row = torch.arange(len(images)).repeat_interleave(torch.tensor([len(near) for near in images]))
        image = torch.from_numpy(np.concatenate(images))
    else:
        row, image = (distances <= kth_smallest(distances, k)[:, None]).nonzero(as_tuple=True)
    return smallest_keys(row, rank_keys(distances[row, image], image), len(distances), k)


def _near_images(row: np.ndarray, k: int) -> np.ndarray:
    """Indices, ascending, of all that are as near as the k-th nearest of a row [G], and mostly of some more.

    A part of the row tells a distance within which there are likely as many, in a tenth of a selection's time.
    """
    part = row[::_OF_ROW]
    likely = k // _OF_ROW + 4 * math.isqrt(k // _OF_ROW + 1) + 4
    if likely < len(part) // 2:
        near = np.flatnonzero(row <= np.partition(part, likely - 1)[likely - 1])
        if k <= len(near) <= 4 * _OF_ROW * likely:  # more are equally near ones, of which a selection leaves out most
            return near
    return np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])


def top_k(
    blocks: Iterable[Block], k: int, num_queries: int, workers: Workers = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery images of every query, exactly: by distance, equal distances by gallery index.

    Args:
        blocks: (rows, distances [len(rows), G]) as from `distance_blocks`; together every query once.
        k: neighbours wanted, cut to G.
        num_queries: Q.
        workers: processes that have the queries' blocks between them; each gets the whole result.
    Returns:
        indices [Q, k] int64 and distances [Q, k] float32, nearest first.
    Raises:
        ValueError: k < 1, a query is missing, comes twice or is out of range, or a distance is NaN.

    >>> distances = np.array([[0.3, 0.1, 0.3], [0.2, 0.9, 0.0]], np.float32)
    >>> indices, nearest = top_k([(slice(0, 2), distances)], k=2, num_queries=2)
    >>> indices.tolist()
    [[1, 0], [2, 0]]
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour is needed")
    local = []
    for rows, block in blocks:
        row_numbers = range(*rows.indices(max(rows.stop, num_queries)))
        local += zip(row_numbers, _keys_of_block(rows, np.asarray(block, dtype=np.float32), k), strict=True)
    keys_by_query: list[np.ndarray | None] = [None] * num_queries
    for row, keys in (pair for pairs in workers.gather_objects(local) for pair in pairs):
        if row >= num_queries or keys_by_query[row] is not None:
            raise ValueError(f"query {row} " + ("came twice" if row < num_queries else
                                                f"is out of range: there are {num_queries}"))
        keys_by_query[row] = keys
    missing = [row for row, keys in enumerate(keys_by_query) if keys is None]
    if missing:
        raise ValueError(f"{len(missing)} of {num_queries} queries have no distances, the first is {missing[0]}")
    distances, indices = split_keys(torch.from_numpy(np.stack(keys_by_query)))
    return indices.numpy(), distances.numpy()


def _keys_of_block(rows: slice, block: np.ndarray, k: int) -> np.ndarray:
    """[len(rows), min(k, G)] sorted keys; a few rows at a time, each such piece in a thread."""
    def keys_of(start: int) -> np.ndarray:
        piece = block[start : start + _PIECE]
        if len(unclear := np.flatnonzero(np.isnan(piece.min(axis=1)))):
            raise ValueError(f"the distances of query {rows.start + start + unclear[0]} hold NaN")
        piece = piece if piece.flags.writeable else piece.copy()  # torch warns of what it must not write to
        return nearest_keys(torch.from_numpy(piece), min(k, block.shape[1])).numpy()

    threads = thread_count(torch.device("cpu")) if len(block) > _PIECE else 1
    return np.concatenate(list(in_threads(keys_of, range(0, len(block), _PIECE), threads)))
