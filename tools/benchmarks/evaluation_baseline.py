"""How re-ID code commonly evaluates: the whole distance matrix, its argsort, a loop over the queries.

Written for measuring, from the protocol (Zheng et al., ICCV 2015), in the way that it is commonly done.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import normalize


def dense_bytes(queries: int, gallery: int, dim: int) -> int:
    """At its peak: distances (float32), their order (int64), the identities in that order (int64), matches (int32)."""
    return queries * gallery * (4 + 8 + 8 + 4) + 4 * (queries + gallery) * dim


def dense_evaluation(
    query: np.ndarray, gallery: np.ndarray, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray,
    g_camids: np.ndarray, over_product: Callable[[Callable], Callable], over_figures: Callable[[Callable], Callable],
    max_rank: int = 50,
) -> tuple[np.ndarray, float, float]:
    """cmc [max_rank], mAP and mINP, the same camera's images of the query's identity left out.

    Args:
        query, gallery: [Q, D] and [G, D] float32.
        over_product, over_figures: wrap what is timed as the distances and as the figures.
    """
    distmat = over_product(_distances)(query, gallery)
    return over_figures(_figures)(distmat, q_pids, g_pids, q_camids, g_camids, max_rank)


def _distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    q, g = (normalize(torch.from_numpy(feats)) for feats in (query, gallery))
    squared = q.pow(2).sum(1, keepdim=True) + g.pow(2).sum(1)
    return squared.addmm_(q, g.T, alpha=-2).clamp_(min=1e-12).sqrt_().numpy()


def _figures(distmat: np.ndarray, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray,
             max_rank: int) -> tuple[np.ndarray, float, float]:
    indices = np.argsort(distmat, axis=1)
    matches = (g_pids[indices] == q_pids[:, None]).astype(np.int32)
    cmcs, aps, inps = [], [], []
    for row, order in enumerate(indices):
        kept = (g_pids[order] != q_pids[row]) | (g_camids[order] != q_camids[row])
        hits = matches[row][kept]
        if not hits.any():
            continue
        found = hits.cumsum()
        places = np.flatnonzero(hits)
        inps.append(found[places[-1]] / (places[-1] + 1))
        precision = found / (np.arange(len(found)) + 1.0)
        aps.append((precision * hits).sum() / hits.sum())
        cmcs.append(np.minimum(found, 1)[:max_rank])
    return np.mean(cmcs, axis=0), float(np.mean(aps)), float(np.mean(inps))
