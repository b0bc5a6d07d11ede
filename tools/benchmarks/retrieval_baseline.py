"""k-reciprocal re-ranking on dense matrices, as re-ID code commonly writes it: what the sparse one is measured against.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, eq. 3 to 12, in
float32 numpy: [N, N] distances from one product, [N, N] ranks, [N, N] encodings, one image after the other.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

PRODUCTS: dict[str, Product] = {
    "numpy": np.matmul,
    "torch": lambda a, b: torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy(),
}


def dense_re_ranking(
    query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_value: float, product: str = "numpy",
) -> np.ndarray:
    """Re-ranked distance from every query to every gallery image; smaller is closer.

    Args:
        query, gallery: [Q, D], [G, D] float32, without two equal rows: ties fall as numpy's partition lets them.
        k1, k2, lambda_value: as for `processor.retrieval.reranking.re_ranking`.
        product: which library multiplies the [N, D] features by themselves, a key of PRODUCTS.
    Returns:
        [Q, G] float32. `dense_bytes` says what it takes on the way.
    """
    features, num_query = np.concatenate([query, gallery]), len(query)
    original = _squared_distances(features, PRODUCTS[product])
    original = original / original.max(1)[:, None]
    k1 = min(k1, len(features) - 1)
    ranks = np.argpartition(original, range(1, k1 + 1))  # [N, N] int64, sorted as far as k1 + 1
    codes = _encodings(original, ranks, k1)
    if k2 > 1:
        averaged = np.zeros_like(codes)
        for i, neighbours in enumerate(ranks[:, :k2]):
            averaged[i] = codes[neighbours].mean(0)
        codes = averaged
    del ranks
    jaccard = _jaccard_distances(codes, num_query)
    return lambda_value * original[:num_query, num_query:] + (1 - lambda_value) * jaccard


def dense_bytes(size: int, num_query: int, dim: int) -> int:
    """Memory of `dense_re_ranking` above its inputs, at its peak, when both encodings and the ranks are held."""
    square = 4 * size**2  # of a float32 matrix; distances 1, int64 ranks 2, encodings 1 and averaged 1
    return 5 * square + 4 * size * dim + 4 * num_query * size


def _squared_distances(features: np.ndarray, product: Product) -> np.ndarray:
    """[N, N] |a|² + |b|² - 2ab."""
    norms = np.square(features).sum(1)
    squared = product(features, features.T)
    squared *= -2
    squared += norms[:, None]
    squared += norms
    return squared


def _reciprocal(ranks: np.ndarray, i: int, k: int) -> np.ndarray:
    """R(i, k): those of the k + 1 nearest of image i (itself among them) that have i among theirs."""
    forward = ranks[i, : k + 1]
    return forward[(ranks[forward, : k + 1] == i).any(1)]


def _encodings(original: np.ndarray, ranks: np.ndarray, k1: int) -> np.ndarray:
    """[N, N] weights exp(-d) of the expanded reciprocal sets R*(i, k1), each row summing to 1."""
    codes = np.zeros_like(original)
    half = int(np.around(k1 / 2))
    for i in range(len(original)):
        base = _reciprocal(ranks, i, k1)
        expanded = [base]
        for candidate in base:
            other = _reciprocal(ranks, candidate, half)
            if len(np.intersect1d(other, base)) > 2 / 3 * len(other):
                expanded.append(other)
        members = np.unique(np.concatenate(expanded))
        weights = np.exp(-original[i, members])
        codes[i, members] = weights / weights.sum()
    return codes


def _jaccard_distances(codes: np.ndarray, num_query: int) -> np.ndarray:
    """[Q, G] 1 - sum(min) / sum(max), through an index of the images whose code holds an image."""
    holders = [np.flatnonzero(column) for column in codes.T]
    out = np.empty((num_query, len(codes) - num_query), np.float32)
    for i in range(num_query):
        shared = np.zeros(len(codes), np.float32)
        for member in np.flatnonzero(codes[i]):
            images = holders[member]
            shared[images] += np.minimum(codes[i, member], codes[images, member])
        out[i] = (1 - shared / (2 - shared))[num_query:]
    return out
