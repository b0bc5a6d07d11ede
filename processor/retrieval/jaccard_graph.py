"""Distances among the images of one set, as far as they are near: what clustering and merging need.

The images are one table of N rows; each is compared with all others, and only the pairs that are near are kept.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017 (the distance);
Song et al., Unsupervised Domain Adaptive Re-identification: Theory and Practice, Pattern Recognition 2020 (clustering
by it).
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix

from processor.retrieval.distance import Block
from processor.retrieval.reranking import ReRanker, check_parameters, mix
from processor.retrieval.search.encoding import Codes, JaccardIndex, jaccard_distance
from processor.retrieval.search.feature_rows import FeatureRows, Features
from processor.retrieval.search.rows import QUERY_ROWS, row_block, squared_euclidean
from utils.parallel import in_threads
from utils.progress import progress


def jaccard_graph(feats: Features, k1: int, k2: int, radius: float = 1.0, **options: object) -> csr_matrix:
    """The k-reciprocal Jaccard distances of all pairs of a set that are near, each pair from both sides.

    This is re-ranking with lambda 0 in which every image is a query and all others are its gallery, each image being
    there once. Nothing of size [N, N] is made.

    Args:
        feats: [N, D] float32, numpy (also memory-mapped) or tensor.
        k1, k2: as for `re_ranked_blocks`.
        radius: the largest distance that is kept; of distance 1, that of images that share no neighbour, none is.
        options: of `ReRanker`: precision, memory, normalize, device.
    Returns:
        [N, N] sparse float32 without its diagonal; equal images have an explicit 0.
    Raises:
        ValueError: fewer than two images, parameters out of range, or a feature that is not finite.

    >>> feats = np.array([[0.0], [1.0], [9.0]], np.float32)
    >>> jaccard_graph(feats, k1=1, k2=1).toarray().astype(float).round(3).tolist()  # the third has no reciprocal
    [[0.0, 0.014, 0.0], [0.014, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    check_parameters(k1, k2, 0)
    if len(feats) < 2:
        raise ValueError(f"{len(feats)} image has no pairs; at least two are needed")
    ranker = ReRanker(feats[:1], feats[1:], k1, **options)  # which images are called queries does not matter
    size = len(feats)
    index = JaccardIndex(ranker.index(k1, k2).codes, 0, ranker.plan.queries)
    starts = range(0, size, index.at_once)

    def near(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many pairs each of a few rows has [R], their columns and distances."""
        rows = slice(start, min(start + index.at_once, size))
        distances = jaccard_distance(index.shared(rows))
        distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = 1  # the image itself
        row, column = ((distances <= radius) & (distances < 1)).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(distances))
        return tuple(part.cpu().numpy() for part in (counts, column.int(), distances[row, column]))

    pieces = list(progress(in_threads(near, starts, ranker.plan.threads), "near pairs", "blocks", len(starts)))
    counts, columns, distances = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return csr_matrix((distances, columns, np.concatenate([[0], np.cumsum(counts)])), shape=(size, size))


def re_ranked_among_queries(
    ranker: ReRanker, query: Features, k1: int, k2: int, lambda_value: float,
) -> Iterator[Block]:
    """Re-ranked distances from every query to every query, by the neighbours of query and gallery together.

    Args:
        ranker: made of `query` and a gallery.
        query: [Q, D], as the ranker was given it.
    Returns:
        An iterator of (rows, distances [len(rows), Q] float32).

    >>> query, gallery = np.array([[0.0], [1.0]], np.float32), np.array([[9.0]], np.float32)
    >>> blocks = re_ranked_among_queries(ReRanker(query, gallery, k1=1), query, k1=1, k2=1, lambda_value=0)
    >>> [block.astype(float).round(3).tolist() for _, block in blocks]
    [[[0.0, 0.014], [0.014, 0.0]]]
    """
    codes, count = ranker.index(k1, k2).codes, len(query)
    end = int(codes.starts[count])
    index = JaccardIndex(Codes(codes.starts[: count + 1], codes.columns[:end], codes.weights[:end]), 0,
                         ranker.plan.queries)
    features = FeatureRows(query, query, ranker.features.device, ranker.normalize)
    for start in range(0, count, QUERY_ROWS):
        rows = slice(start, min(start + QUERY_ROWS, count))
        distances = row_block(features, rows, squared_euclidean).div_(ranker.neighbours.farthest[rows, None])
        for queries, part in index.parts_of(rows):
            mix(distances[part], index, queries, lambda_value)
        yield rows, distances.cpu().numpy()
