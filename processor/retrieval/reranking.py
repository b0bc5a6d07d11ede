"""k-reciprocal re-ranking, exact, without a matrix over all pairs of images.

The N = Q + G images of query and gallery are compared in tiles. Of every image only its k1 + 1 nearest and the
distance of its farthest are kept; from these lists on, everything is a sparse [N, N] matrix with a few dozen
entries a row, and the distances are given out a few queries at a time.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from processor.retrieval import distance as tiles
from processor.retrieval.distance import (
    Block,
    FeatureRows,
    Features,
    check_block_rows,
    query_gallery_blocks,
    rank_keys,
    regroup,
    split_keys,
    squared_euclidean,
)

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 8192   # of the sparse matrices
PAIRS_AT_ONCE = 1024  # of features gathered from here and there
NO_KEY = (0x7F800000 << 32) | 0xFFFFFFFF  # rank_keys of an infinite distance: an empty place in a list


class Neighbours(NamedTuple):
    """The nearest images of every image among query and gallery: itself, then by distance, then by index."""

    indices: np.ndarray    # [N, k] int32, query images first, then the gallery's
    distances: np.ndarray  # [N, k] float32, squared Euclidean
    farthest: np.ndarray   # [N] float32, the largest squared distance of the row; 1 where all images coincide


def re_ranking(query: Features, gallery: Features, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """`re_ranked_blocks` in one piece.

    Returns:
        [Q, G] float32 numpy, smaller is closer.
    """
    return np.concatenate([block for _, block in re_ranked_blocks(query, gallery, k1, k2, lambda_value)])


def re_ranked_blocks(
    query: Features, gallery: Features, k1: int, k2: int, lambda_value: float, block_rows: int = tiles.TILE,
) -> Iterator[Block]:
    """Re-ranked distance from every query to every gallery image, in [0, 1]; smaller is closer.

    d = lambda_value * (squared Euclidean / its row's largest over query and gallery) + (1 - lambda_value) * Jaccard.

    Args:
        query: [Q, D] float32, numpy (also memory-mapped) or tensor. Any norm; re-ID usually normalises first.
        gallery: [G, D] likewise, on query's device.
        k1: reciprocal neighbours; lists are cut to N = Q + G where k1 + 1 is more.
        k2: nearest images (the image itself is the first) whose encodings are averaged; 1 averages nothing.
        lambda_value: weight of the original distance, in [0, 1].
        block_rows: the most query rows in one block; it changes the memory, never the values.
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order. The
        work that all queries share is done when the first block is asked for.
    Raises:
        ValueError: at the call, where a parameter is out of its range, the dimensions differ or a feature is not
            finite.
    """
    if k1 < 1:
        raise ValueError(f"k1={k1}: at least one neighbour is needed")
    if not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2={k2}: must be from 1 to k1 + 1 = {k1 + 1}, for only the k1 + 1 nearest are known")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value={lambda_value}: must be from 0 to 1")
    check_block_rows(block_rows)
    return regroup(_re_ranked(FeatureRows(query, gallery), k1, k2, lambda_value), block_rows)


def _re_ranked(features: FeatureRows, k1: int, k2: int, lambda_value: float) -> Iterator[Block]:
    """One block for each row of tiles."""
    start = time.perf_counter()
    logger.info("re-ranking %d queries and %d gallery images of dimension %d: about %.0f MiB above the features",
                features.num_query, features.num_gallery, features.dim, predicted_bytes(features, k1, k2) / 2**20)
    neighbours = nearest_neighbours(features, k1 + 1)
    logger.info("re-ranking: neighbours found after %.1f s", time.perf_counter() - start)
    codes = encode(features, neighbours, k1, k2)
    # Row j of `columns` are the gallery images whose code holds image j: the inverted index of the Jaccard sum.
    columns = codes[features.num_query :].T.tocsr()
    codes = codes[: features.num_query]
    logger.info("re-ranking: %.0f entries a gallery image after %.1f s",
                columns.nnz / features.num_gallery, time.perf_counter() - start)
    for rows, squared in query_gallery_blocks(features, squared_euclidean):
        block = squared.cpu().numpy()
        block /= neighbours.farthest[rows, None]
        block *= np.float32(lambda_value)
        for row, mixed in zip(range(rows.start, rows.stop), block, strict=True):
            entries = slice(codes.indptr[row], codes.indptr[row + 1])
            mixed += np.float32(1 - lambda_value) * jaccard(codes.indices[entries], codes.data[entries], columns)
        yield rows, block


def predicted_bytes(features: FeatureRows, k1: int, k2: int) -> int:
    """A rough estimate of the memory that re-ranking takes above the features."""
    lists = len(features) * (k1 + 1) * 32            # keys, their copy to sort, indices and distances
    entries = 8 * len(features) * 2 * (k1 + 1)       # int32 and float32; about this many before the averaging …
    codes = 2 * entries * (1 + min(k2, 4) // 2)      # … and after it (neighbours' codes overlap), and its inverse
    chunk = ROWS_AT_ONCE * (k1 + 1) ** 2 * 12
    tile = features.tile_rows * (features.tile_rows * 96 + features.dim * 24)
    return max(lists + tile, lists // 2 + chunk + codes) + 4 * features.tile_rows * features.num_gallery


def nearest_neighbours(features: FeatureRows, k: int) -> Neighbours:
    """The k nearest images of every image, itself first. Only the upper triangle of tiles is computed."""
    keys = torch.full((len(features), min(k, len(features))), NO_KEY, device=features.device)
    farthest = torch.zeros(len(features), device=features.device)
    for i in range(features.num_tiles):
        rows, a, a_norms = features.tile_slice(i), features.tile(i), features.norms_of_tile(i)
        for j in range(i, features.num_tiles):
            columns = features.tile_slice(j)
            b = a if j == i else features.tile(j)
            tile = squared_euclidean(a, a_norms, b, features.norms_of_tile(j))
            tile = tile[: rows.stop - rows.start, : columns.stop - columns.start]
            if j == i:
                # One half decides for both, so that a pair has one distance. -1 puts an image before its duplicates.
                tile = tile.triu(1) + tile.triu(1).T
                tile.fill_diagonal_(-1)
            else:
                _keep_nearest(keys[columns], farthest[columns], tile.T, rows.start)
            _keep_nearest(keys[rows], farthest[rows], tile, columns.start)
    distances, indices = split_keys(keys.sort(dim=1).values)
    return Neighbours(indices.to(torch.int32).cpu().numpy(), distances.clamp_(min=0).cpu().numpy(),
                      torch.where(farthest > 0, farthest, 1).cpu().numpy())


def _keep_nearest(keys: Tensor, farthest: Tensor, tile: Tensor, first_column: int) -> None:
    """Merge a tile's columns into the rows' lists and maxima, in place."""
    torch.maximum(farthest, tile.amax(1), out=farthest)
    # After the first tiles few distances can still enter a list: only these are made into keys.
    worst, _ = split_keys(keys.amax(1))
    rows, columns = (tile <= worst[:, None]).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(keys))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    found = keys.new_full((len(keys), keys.shape[1] + int(counts.max())), NO_KEY)
    found[:, : keys.shape[1]] = keys
    found[rows, keys.shape[1] + places] = rank_keys(tile[rows, columns], columns + first_column)
    keys.copy_(found.topk(keys.shape[1], largest=False, sorted=False).values)


def encode(features: FeatureRows, neighbours: Neighbours, k1: int, k2: int) -> sparse.csr_matrix:
    """The k-reciprocal code of every image, averaged over its k2 nearest: [N, N] float32, rows sum to 1."""
    size = len(features)
    full = _reciprocal(neighbours.indices)
    # np.around rounds halves to even, as the published code does; + 1 for the image itself.
    half = _reciprocal(neighbours.indices[:, : int(np.around(k1 / 2)) + 1])
    codes = sparse.vstack([
        _weigh(features, neighbours, start, _expand(full[start : start + ROWS_AT_ONCE], half))
        for start in range(0, size, ROWS_AT_ONCE)
    ], format="csr")
    if k2 == 1:
        return codes
    averaged = _rows_of_ones(neighbours.indices[:, :k2], np.float32) @ codes
    averaged.data /= np.float32(min(k2, size))
    return averaged


def _rows_of_ones(indices: np.ndarray, dtype: type) -> sparse.csr_matrix:
    """[N, N] with a one at every (row, indices[row, :])."""
    size, k = indices.shape
    starts = np.arange(0, size * k + 1, k)
    return sparse.csr_matrix((np.ones(size * k, dtype), indices.ravel(), starts), shape=(size, size))


def _reciprocal(indices: np.ndarray) -> sparse.csr_matrix:
    """[N, N] ones at (i, j) where each is in the other's list."""
    near = _rows_of_ones(indices, np.int32)
    return near.multiply(near.T).tocsr()


def _expand(full: sparse.csr_matrix, half: sparse.csr_matrix) -> sparse.csr_matrix:
    """Add the set of each reciprocal neighbour that shares more than 2/3 of it: R*(i) of the paper, eq. 5.

    Args:
        full: [rows, N] the reciprocal sets for k1, of some images.
        half: [N, N] the reciprocal sets for k1 / 2, of all.
    """
    shared = (full @ half.T).multiply(full).tocsr()  # (i, c): how much of c's set is in i's
    shared.data = (3 * shared.data > 2 * np.diff(half.indptr)[shared.indices]).astype(np.int32)
    shared.eliminate_zeros()
    expanded = (shared @ half + full).tocsr()
    expanded.sort_indices()
    return expanded


def _weigh(
    features: FeatureRows, neighbours: Neighbours, start: int, sets: sparse.csr_matrix,
) -> sparse.csr_matrix:
    """Give each member of the sets of images `start` … the weight exp(-d), each row summing to 1."""
    size, count = len(features), sets.shape[0]
    rows = np.repeat(np.arange(start, start + count), np.diff(sets.indptr))
    squared = _listed_distances(neighbours, start, count, rows * size + sets.indices)
    missing = np.flatnonzero(np.isnan(squared))
    squared[missing] = _pair_distances(features, rows[missing], sets.indices[missing])
    weights = np.exp(-squared / neighbours.farthest[rows])
    sums = np.bincount(rows - start, weights=weights, minlength=count)
    weights /= sums.astype(np.float32)[rows - start]
    return sparse.csr_matrix((weights, sets.indices, sets.indptr), shape=sets.shape)


def _listed_distances(neighbours: Neighbours, start: int, count: int, pairs: np.ndarray) -> np.ndarray:
    """Distances of the pairs (row * N + column) that are in the lists of rows `start` …, NaN for the others."""
    size = len(neighbours.indices)
    chunk = slice(start, start + count)
    listed = (np.arange(start, start + count)[:, None] * size + neighbours.indices[chunk]).ravel()
    order = listed.argsort()
    at = np.minimum(np.searchsorted(listed, pairs, sorter=order), listed.size - 1)
    found = order[at]
    return np.where(listed[found] == pairs, neighbours.distances[chunk].ravel()[found], np.float32(np.nan))


def _pair_distances(features: FeatureRows, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[P] squared distances of single pairs: an expansion can reach images that are not in the list."""
    out = np.empty(len(left), np.float32)
    for start in range(0, len(left), PAIRS_AT_ONCE):
        chunk = slice(start, start + PAIRS_AT_ONCE)
        difference = features.take(left[chunk]).sub_(features.take(right[chunk]))
        out[chunk] = difference.square_().sum(1).cpu().numpy()
    return out


def jaccard(indices: np.ndarray, weights: np.ndarray, columns: sparse.csr_matrix) -> np.ndarray:
    """Jaccard distance of one code to those of the gallery; 1 where they share nothing.

    Args:
        indices, weights: the code's entries.
        columns: [N, G] the gallery's codes, transposed.
    Returns:
        [G] float32, 1 - sum(min) / (2 - sum(min)), for both codes sum to 1.
    """
    touched = columns[indices]
    smaller = np.minimum(touched.data, np.repeat(weights, np.diff(touched.indptr)))
    shared = np.bincount(touched.indices, weights=smaller, minlength=columns.shape[1]).astype(np.float32)
    np.minimum(shared, 1, out=shared)  # rounding can put a code's sum with itself just above 1
    return 1 - shared / (2 - shared)
