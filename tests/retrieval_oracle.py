"""Slow definitions that the retrieval tests compare with, and features to try them on."""
from __future__ import annotations

import numpy as np
import torch

from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.rows import PairDistances
from processor.retrieval.search.search import Neighbours


def people(num_query, num_gallery, dim=12, identities=6, noise=0.5, norms=1.0, seed=0):
    """Clustered features, unit length if norms is 1."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities, dim))
    feat = centres[rng.integers(identities, size=num_query + num_gallery)]
    feat = feat + noise * rng.standard_normal(feat.shape)
    feat /= np.linalg.norm(feat, axis=1, keepdims=True)
    feat *= rng.uniform(1, norms, (len(feat), 1))
    return feat[:num_query].astype(np.float32), feat[num_query:].astype(np.float32)


def squared_distances(query, gallery):
    """[N, N] float32, all pairs pair after pair: if two nearly tie, these decide."""
    features = FeatureRows(query, gallery)
    size = len(features)
    left, right = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    return PairDistances(features, 256)(left, right).view(size, size).numpy()


def slow_order(squared):
    """[N, N]: every image's neighbours, itself first, then by distance, then by index."""
    size = len(squared)
    return np.array([sorted(range(size), key=lambda j, i=i: (j != i, squared[i, j], j)) for i in range(size)])


def slow_farthest(squared):
    return np.where(squared.max(1) > 0, squared.max(1), np.float32(1))


def slow_neighbours(squared, k):
    order = slow_order(squared)[:, :k]
    return Neighbours(torch.from_numpy(order).int(), torch.from_numpy(np.take_along_axis(squared, order, 1)),
                      torch.from_numpy(slow_farthest(squared)))


def slow_set(order, i, k1):
    """R*(i, k1): the k-reciprocal neighbours of image i, and what their sets add (eq. 5 of the paper)."""
    def reciprocal(image, k):
        return {j for j in order[image][: k + 1] if image in order[j][: k + 1]}

    base = reciprocal(i, k1)
    expanded = set(base)
    for candidate in base:
        other = reciprocal(candidate, int(np.around(k1 / 2)))
        if 3 * len(other & base) > 2 * len(other):
            expanded |= other
    return sorted(expanded)


def slow_codes(squared, k1, k2):
    """[N, N] float64: exp(-d) of the members of each image's set, a row summing to 1, averaged over its k2 nearest."""
    order = slow_order(squared)
    codes = np.zeros(squared.shape)
    for i in range(len(squared)):
        members = slow_set(order, i, k1)
        codes[i, members] = np.exp(-squared[i, members].astype(np.float64) / slow_farthest(squared)[i])
        codes[i] /= codes[i].sum()
    return np.stack([codes[order[i][:k2]].mean(0) for i in range(len(squared))])


def slow_jaccard(codes, num_query):
    shared = np.minimum(codes[:num_query, None], codes[None, num_query:]).sum(2)
    return 1 - shared / (2 - shared)


def slow_re_ranking(squared, num_query, k1, k2, lambda_value):
    """The paper's formulas on a dense matrix, one image after the other."""
    original = (squared / slow_farthest(squared)[:, None])[:num_query, num_query:]
    return lambda_value * original + (1 - lambda_value) * slow_jaccard(slow_codes(squared, k1, k2), num_query)
