"""The features of many pictures in two dimensions."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from processor.retrieval.ensemble import concat_features

MAX_POINTS = 2000
COLOURS = 8  # identities that have one


class Points(NamedTuple):
    """positions: [n, 2] in 0 … 1; rows: [n] of the features; groups: [n] 0 … COLOURS - 1 of the identities with a
    colour, the worst first, -1: none."""

    positions: np.ndarray
    rows: np.ndarray
    groups: np.ndarray


def worst_identities(q_pids: np.ndarray, ap: np.ndarray) -> np.ndarray:
    """The identities with the lowest mean AP over their queries, COLOURS at most; ap [Q]: NaN without a match."""
    known = ~np.isnan(ap)
    pids, numbers = np.unique(q_pids[known], return_inverse=True)
    means = np.bincount(numbers, ap[known]) / np.maximum(np.bincount(numbers), 1)
    return pids[np.argsort(means, kind="stable")[:COLOURS]]


def scatter(feats: Sequence[np.ndarray], weights: Sequence[float], pids: np.ndarray, worst: np.ndarray) -> Points:
    """Neighbours of the feature space as neighbours on paper, by t-SNE with a fixed seed.

    Args:
        feats: [N, D] of each branch (and model); weights: of their distances.
        pids: [N]; of more than MAX_POINTS pictures, those of `worst` are taken, and others evenly.
        worst: identities that get a colour.
    Raises:
        ValueError: there are fewer than 4 pictures.
    Source: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.
    """
    from sklearn.manifold import TSNE  # takes seconds to import

    if len(pids) < 4:
        raise ValueError(f"--scatter needs at least 4 pictures, there are {len(pids)}")
    chosen = np.flatnonzero(np.isin(pids, worst))[:MAX_POINTS]
    others = np.setdiff1d(np.arange(len(pids)), chosen)
    room = min(MAX_POINTS - len(chosen), len(others))
    rows = np.sort(np.append(chosen, others[np.linspace(0, len(others) - 1, room).astype(int)])) if room else chosen
    features = concat_features([np.asarray(feat[rows]) for feat in feats], weights)
    places = TSNE(2, perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=0).fit_transform(features)
    places = (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-12)
    group_of = {pid: group for group, pid in enumerate(worst.tolist())}
    return Points(places, rows, np.array([group_of.get(pid, -1) for pid in pids[rows].tolist()]))
