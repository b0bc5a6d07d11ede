"""Distances between query and gallery, a few query rows at a time.

Every product has one fixed shape, [QUERY_ROWS, D] x [D, TILE] (the last ones are padded with zeros before it and cut
after it), so a pair's distance has the same bits whatever number of rows a caller asks for at a time, and whichever
process computes it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from processor.retrieval.features import FeatureRows, Features, as_features, lengths
from processor.retrieval.precision import PRECISIONS
from processor.retrieval.ranks import Block, top_k
from utils.dist import ALONE, Workers
from utils.parallel import in_threads, thread_count

__all__ = ["METRICS", "Block", "Features", "distance", "distance_blocks", "l2_normalize", "top_k"]

# query [R, D], its squared lengths [R], gallery [T, D], its [T], whether float32 would cancel -> [R, T]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]

TILE = 1024        # gallery images of one product
QUERY_ROWS = 256   # queries of one product, and the most in a block: a block over a million images is 1 GiB
BYTES_UNDER_WAY = 2**29  # of blocks that several threads may make ahead
# |a|² + |b|² - 2ab cancels for close vectors. Below this share of |a|² + |b|² the pair is computed in float64 …
NEAR = 1e-3
# … and below this one (1e-6 of the length) the vectors are the same as far as float32 can tell: distance 0.
SAME = 1e-12


def squared_euclidean(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor, need_float64: bool = False) -> Tensor:
    """|a_i - b_j|²: one product, and float64 for the rows in which vectors nearly coincide.

    Args:
        a: [R, D] float32;  b: [T, D] float32;  a_norms, b_norms: [R], [T] their squared lengths.
        need_float64: float64 for all (see FeatureRows.need_float64).
    Returns:
        [R, T] float32, not negative; exactly 0 where the two vectors are equal.
    """
    if need_float64:
        return _precise(a, b).float()
    squared = (a_norms[:, None] + b_norms[None, :]).addmm_(a, b.T, alpha=-2)
    # With b's largest length this picks rows a little too generously, and spares most tiles a full comparison.
    near = squared.amin(1) < NEAR * (a_norms + b_norms.amax())
    rows = (near & (a_norms > 0)).nonzero().flatten()  # zeros, as the padding is, cancel nothing
    if len(rows):
        precise = _precise(a[rows], b).float()
        near = precise < NEAR * (a_norms[rows, None] + b_norms)
        squared[rows] = torch.where(near, precise, squared[rows])
    return squared.clamp_(min=0)


def _precise(a: Tensor, b: Tensor) -> Tensor:
    """The same in float64."""
    left, right = a.double(), b.double()
    length = left.square().sum(1)[:, None] + right.square().sum(1)[None, :]
    precise = torch.addmm(length, left, right.T, alpha=-2)
    return precise.masked_fill_(precise < SAME * length, 0)


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
        [Q, G] float32; the inputs are not modified. A feature is at distance 0 from an equal one (cosine: 1e-6).
    Raises:
        ValueError: the feature dimensions differ, a feature is not finite, or metric is unknown (the choices
            are listed).
    Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
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
        device: where to compute; None: where the features are.
        workers: processes that share the queries; each is given the blocks of its own (`own_rows`).
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order.
    Raises:
        ValueError: as for `distance`, at the call.
    """
    check_block_rows(block_rows)
    blocks = query_gallery_blocks(FeatureRows(query, gallery, device, normalize), _kernel(metric), workers)
    return split_rows(((rows, block.cpu().numpy()) for rows, block in blocks), block_rows)


def _kernel(metric: str) -> Kernel:
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    return METRICS[metric]


def own_rows(num_query: int, workers: Workers) -> list[slice]:
    """The blocks of queries that this process computes: every workers.size-th of QUERY_ROWS rows."""
    blocks = [slice(start, min(start + QUERY_ROWS, num_query)) for start in range(0, num_query, QUERY_ROWS)]
    return blocks[workers.rank :: workers.size]


def query_gallery_blocks(
    features: FeatureRows, kernel: Kernel, workers: Workers = ALONE,
) -> Iterator[tuple[slice, Tensor]]:
    """Query × gallery distances on the features' device: (rows, [len(rows), G] float32) for `own_rows`."""
    blocks = own_rows(features.num_query, workers)
    threads = thread_count(features.device)
    fitting = max(BYTES_UNDER_WAY // (4 * QUERY_ROWS * features.num_gallery), 1)
    with PRECISIONS["float32"].products(features.device):
        distances = in_threads(lambda rows: row_block(features, rows, kernel), blocks, min(threads, fitting))
        yield from zip(blocks, distances, strict=True)


def row_block(features: FeatureRows, rows: slice | Tensor, kernel: Kernel) -> Tensor:
    """[R, G] distances of some queries, R <= QUERY_ROWS: a block of `own_rows`, or single ones [R] (int64)."""
    norms = features.squared_norms[rows]
    if isinstance(rows, slice):
        query = features.rows(rows.start, rows.stop)
    else:
        query = features.take(rows, torch.empty(len(rows), features.dim, device=features.device))
    count = len(query)
    query, norms = _padded(query, norms, QUERY_ROWS)
    block = torch.empty(count, features.num_gallery, device=features.device)
    with PRECISIONS["float32"].products(features.device):
        for start in range(features.num_query, len(features), TILE):
            stop = min(start + TILE, len(features))
            gallery = _padded(features.rows(start, stop), features.squared_norms[start:stop], TILE)
            distances = kernel(query, norms, *gallery, features.need_float64)
            block[:, start - features.num_query : stop - features.num_query] = distances[:count, : stop - start]
    return block


def _padded(feats: Tensor, norms: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both with zeros up to so many rows."""
    missing = rows - len(feats)
    return (F.pad(feats, (0, 0, 0, missing)), F.pad(norms, (0, missing))) if missing else (feats, norms)


def split_rows(blocks: Iterable[Block], block_rows: int) -> Iterator[Block]:
    """The same rows in blocks of `block_rows` at most; only the cuts change, no value does."""
    for rows, block in blocks:
        for start in range(0, len(block), block_rows):
            piece = block[start : start + block_rows]
            yield slice(rows.start + start, rows.start + start + len(piece)), piece


def check_block_rows(block_rows: int) -> None:
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: at least one row is needed")
