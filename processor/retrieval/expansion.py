"""Query expansion and database augmentation: each feature is replaced by its mean with its nearest gallery features."""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from processor.retrieval.distance import Features, distance_blocks, top_k
from processor.retrieval.search.feature_rows import as_query_gallery
from utils.progress import progress

# Rows under way at a time, of the features and of the gallery: it bounds the memory (at D = 2048 to about 0.6 GiB
# beyond the results), and it is fixed, so that no bit of the result depends on what is free.
ROWS = 8192


@torch.no_grad()
def expand(
    query: Features, gallery: Features, query_expansion: int, database_augmentation: int, alpha: float,
) -> tuple[Features, Features]:
    """Average the features with those of their nearest gallery images: first the gallery's, then the queries'.

    All features are scaled to length 1 first. With x the feature and y_1 … y_n its nearest ones by Euclidean distance
    (which orders as the cosine does; equal distances by gallery index), the new feature is

        x + Σ_i w(x, y_i) y_i,   w = max(0, x·y_i)^alpha, or 1 if alpha is 0,

    scaled to length 1. Database augmentation looks for the neighbours of a gallery image among the other images of the
    original gallery: the image itself counts once, with weight 1, even if it has duplicates. The queries are then
    expanded over the augmented gallery, which is what is searched (Gordo et al.). The neighbours are exact.

    Args:
        query: [Q, D] numpy array (also memory-mapped) or tensor, any norm.
        gallery: [G, D] likewise. All is computed on the device of the tensors; without a tensor, on the CPU.
        query_expansion: neighbours averaged into a query, cut to G; 0 = none, the query comes back as it is.
        database_augmentation: neighbours averaged into a gallery feature, cut to G - 1; 0 = none, likewise.
        alpha: exponent of the weights, >= 0; 0 = plain mean.
    Returns:
        (query, gallery), each of the input's kind, float32 and of length 1 if they were averaged; a sum of zero stays
        zero. The inputs are not modified. Beside the results nothing is held that grows with Q × G, with G × G or with
        D × G.
    Raises:
        ValueError: features that are not [N >= 1, D], differ in D or hold NaN or infinity, or a parameter below 0.
    Source: Chum et al., Total Recall, ICCV 2007 (alpha = 0); Radenović et al., Fine-tuning CNN Image Retrieval with No
        Human Annotation, TPAMI 2018 (alpha); database augmentation: Turcot & Lowe, ICCV Workshops 2009; Arandjelović &
        Zisserman, CVPR 2012; Gordo et al., End-to-end Learning of Deep Visual Representations, IJCV 2017.

    >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [-1.0, 0.0]])
    >>> expanded, _ = expand(query, gallery, query_expansion=1, database_augmentation=0, alpha=0)
    >>> expanded.astype(float).round(4).tolist()  # (1, 0) + (0, 1), scaled to length 1
    [[0.7071, 0.7071]]
    """
    _check(query, gallery, query_expansion, database_augmentation, alpha)
    if database_augmentation:
        gallery = _averaged("gallery", gallery, gallery, database_augmentation, alpha)
    if query_expansion:
        query = _averaged("query", query, gallery, query_expansion, alpha)
    return query, gallery


def _check(query: Features, gallery: Features, query_expansion: int, database_augmentation: int, alpha: float) -> None:
    as_query_gallery(query, gallery)
    if query_expansion < 0 or database_augmentation < 0:
        raise ValueError(f"query_expansion={query_expansion}, database_augmentation={database_augmentation}: a number "
                         "of neighbours cannot be negative; 0 switches it off")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha}: the exponent must be finite and not negative; 0 is the plain mean")


def _averaged(name: str, feats: Features, gallery: Features, neighbours: int, alpha: float) -> Features:
    """`feats` averaged over their nearest in `gallery`; name "gallery" says that they are this gallery themselves."""
    device = next((part.device for part in (feats, gallery) if isinstance(part, Tensor)), torch.device("cpu"))
    is_tensor = isinstance(feats, Tensor)
    out = torch.empty(feats.shape, device=feats.device) if is_tensor else np.empty(feats.shape, np.float32)
    for start in progress(range(0, len(feats), ROWS), f"averaging {name} features", "block"):
        rows = slice(start, min(start + ROWS, len(feats)))
        part = _unit(name, feats, rows, device)
        if name == "gallery":
            nearest = _without(_nearest(part, gallery, neighbours + 1), np.arange(rows.start, rows.stop))
        else:
            nearest = _nearest(part, gallery, neighbours)
        total = part.clone()
        for column in nearest.T:  # a neighbour of every row at a time: [rows, n, D] would grow with n
            neighbour = _unit("gallery", gallery, column, device)
            if alpha:
                neighbour *= (part * neighbour).sum(1, keepdim=True).clamp_(min=0) ** alpha
            total += neighbour
        mean = F.normalize(total)  # the mean's length is of no account, so nothing is divided by the weights' sum
        out[rows] = mean if is_tensor else mean.cpu().numpy()
    return out


def _unit(name: str, feats: Features, rows: slice | np.ndarray, device: torch.device) -> Tensor:
    """[len(rows), D] float32 copies of these rows, of length 1; a feature of zeros stays as it is."""
    if isinstance(feats, Tensor):
        picked = feats[rows if isinstance(rows, slice) else torch.as_tensor(rows, device=feats.device)].float()
    else:
        picked = torch.from_numpy(np.array(feats[rows], dtype=np.float32))
    picked = picked.to(device)
    broken = (~picked.norm(dim=1).isfinite()).nonzero().flatten()
    if len(broken):
        row = int(broken[0]) + rows.start if isinstance(rows, slice) else rows[int(broken[0])]
        raise ValueError(f"{name} row {row} holds NaN, infinity or a value too large to be squared in float32")
    return F.normalize(picked)


def _nearest(feats: Tensor, gallery: Features, k: int) -> np.ndarray:
    """[len(feats), min(k, G)] indices of the nearest gallery images, by distance, equal distances by index."""
    distances, indices = np.empty((len(feats), 0), np.float32), np.empty((len(feats), 0), np.int64)
    for start in range(0, len(gallery), ROWS):
        part = _unit("gallery", gallery, slice(start, min(start + ROWS, len(gallery))), feats.device)
        columns, values = top_k(distance_blocks(feats, part, "euclidean"), k, len(feats))
        distances, indices = np.hstack([distances, values]), np.hstack([indices, columns + start])
        # Earlier blocks have the smaller indices and stand first: a stable sort keeps equal distances in order.
        order = distances.argsort(axis=1, kind="stable")[:, :k]
        distances, indices = np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
    return indices


def _without(indices: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[R, k - 1] of [R, k]: each row without images[row], or without its last if duplicates crowded that out."""
    kept = indices != images[:, None]
    kept[kept.all(1), -1] = False
    return indices[kept].reshape(len(indices), -1)
