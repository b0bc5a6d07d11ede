"""Distances between query and gallery, a few query rows at a time.

Every product has the fixed shape [QUERY_ROWS, D] x [D, TILE] (the last ones are padded with zeros before it and cut
after it), so a pair's distance has the same bits whatever number of rows a caller asks for at a time, and whichever
process computes it.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.search.feature_rows import FeatureRows, Features, as_features, lengths
from processor.retrieval.search.rows import (
    QUERY_ROWS,
    TILE,
    Kernel,
    check_block_rows,
    query_gallery_blocks,
    split_rows,
    squared_euclidean,
)
from processor.retrieval.search.top_k import Block, top_k
from utils.dist import ALONE, Workers

__all__ = ["METRICS", "Block", "Features", "distance", "distance_blocks", "l2_normalize", "top_k"]


def _cosine(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor, _: bool) -> Tensor:
    lengths_a, lengths_b = a_norms.sqrt().clamp_(min=1e-12), b_norms.sqrt().clamp_(min=1e-12)
    return (1 - a @ b.T / lengths_a[:, None] / lengths_b).clamp_(0, 2)


METRICS: dict[str, Kernel] = {
    "euclidean": lambda *operands: squared_euclidean(*operands).sqrt_(),
    "cosine": _cosine,
}


def l2_normalize(feat: Features) -> Features:
    """Scale each feature to length 1; a feature of zeros stays as it is.

    Args:
        feat: [N, D] numpy array (also memory-mapped) or tensor; it is not modified.
    Returns:
        [N, D] float32, of the same kind and on the same device.

    >>> l2_normalize(np.array([[3.0, 0.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    feat = as_features("feat", feat)
    if isinstance(feat, Tensor):
        return feat.float() / lengths(feat.float())[:, None]
    out = np.empty(feat.shape, np.float32)
    for start in range(0, len(feat), TILE):
        rows = torch.from_numpy(np.array(feat[start : start + TILE], np.float32))
        out[start : start + TILE] = (rows / lengths(rows)[:, None]).numpy()
    return out


def distance(query: Features, gallery: Features, metric: str) -> Tensor:
    """Distance from every query to every gallery feature; smaller is closer.

    Args:
        query: [Q, D] float32, any norm.
        gallery: [G, D] float32, on query's device.
        metric: "euclidean" (not squared) or "cosine" (1 - cos, in [0, 2]).
    Returns:
        [Q, G] float32; the inputs are not modified. A feature is at distance 0 from an equal feature (cosine: 1e-6).
    Raises:
        ValueError: the feature dimensions differ, a feature is not finite, or metric is unknown (the choices
            are listed).
    Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.

    >>> distance(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 4.0]]), "euclidean")
    tensor([[5., 0.]])
    """
    features = FeatureRows(query, gallery)
    return torch.cat([block for _, block in query_gallery_blocks(features, _kernel(metric))])


def distance_blocks(
    query: Features, gallery: Features, metric: str, block_rows: int = QUERY_ROWS, *,
    normalize: bool = False, device: torch.device | str | None = None, workers: Workers = ALONE,
) -> Iterator[Block]:
    """`distance`, a few query rows at a time; nothing of size [Q, G] is held.

    Args:
        query, gallery, metric: as for `distance`; numpy arrays may be memory-mapped.
        block_rows: the most query rows in one block, QUERY_ROWS at most; it changes the memory, never the values.
        normalize: give the features length 1 first, without a copy of them.
        device: to compute on; None: the features' device.
        workers: processes that share the queries; each is given its `local_blocks`.
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order.
    Raises:
        ValueError: as for `distance`, at the call.

    >>> for rows, block in distance_blocks(np.zeros((3, 2)), np.array([[3.0, 4.0]]), "euclidean", block_rows=2):
    ...     print(rows, block.tolist())
    slice(0, 2, None) [[5.0], [5.0]]
    slice(2, 3, None) [[5.0]]
    """
    check_block_rows(block_rows)
    blocks = query_gallery_blocks(FeatureRows(query, gallery, device, normalize), _kernel(metric), workers)
    return split_rows(((rows, block.cpu().numpy()) for rows, block in blocks), block_rows)


def _kernel(metric: str) -> Kernel:
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    return METRICS[metric]
