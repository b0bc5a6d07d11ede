"""The nearest first: order by distance, equal distances by index, without a full sort."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from utils.dist import ALONE, Workers

Block = tuple[slice, np.ndarray]  # (rows of the query, float32 distances [len(rows), G])


def rank_keys(distances: Tensor, indices: Tensor) -> Tensor:
    """int64 keys whose order is: the smaller distance first, among equal distances the smaller index.

    A key is unique, so the k smallest keys are one certain set, which torch.topk does not promise for tied values.

    Args:
        distances: float32, no NaN.
        indices: int64 in [0, 2**32), broadcastable to distances.
    """
    bits = (distances + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the 0.0 it is equal to
    # The bits of a float order like an integer, but backwards below zero: flip those.
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32) | indices


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(distances float32, indices int64) that `rank_keys` made the keys of."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), keys & 0xFFFFFFFF


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
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour is needed")
    own = []
    for rows, block in blocks:
        row_numbers = range(*rows.indices(max(rows.stop, num_queries)))
        keys = _smallest_keys(rows, np.asarray(block, dtype=np.float32), k).numpy()
        own += zip(row_numbers, keys, strict=True)
    found: list[np.ndarray | None] = [None] * num_queries
    for row, row_keys in (pair for pairs in workers.gather_objects(own) for pair in pairs):
        if row >= num_queries or found[row] is not None:
            raise ValueError(f"query {row} " + ("came twice" if row < num_queries else
                                                f"is out of range: there are {num_queries}"))
        found[row] = row_keys
    missing = [row for row, row_keys in enumerate(found) if row_keys is None]
    if missing:
        raise ValueError(f"{len(missing)} of {num_queries} queries have no distances, the first is {missing[0]}")
    distances, indices = split_keys(torch.from_numpy(np.stack(found)))
    return indices.numpy(), distances.numpy()


def _smallest_keys(rows: slice, block: np.ndarray, k: int, rows_at_once: int = 64) -> Tensor:
    """[len(rows), min(k, G)] sorted keys; a few rows at a time, for a key is twice a distance's size."""
    if np.isnan(block).any():
        raise ValueError(f"the distances of query {rows.start + int(np.isnan(block).any(1).argmax())} hold NaN")
    columns = torch.arange(block.shape[1])
    return torch.cat([
        rank_keys(torch.from_numpy(np.array(block[start : start + rows_at_once])), columns)
        .topk(min(k, block.shape[1]), largest=False).values
        for start in range(0, len(block), rows_at_once)
    ])
