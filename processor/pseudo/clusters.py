"""From features to pseudo-identities: the nearest query, DBSCAN, average linkage. Arrays in, arrays out.

A labelling is an int64 array [N]: the number of each image's identity, from 0 in the order of their first images, and
NOBODY for an image that belongs to none.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from processor.evaluation.sources import HERE, Compute
from processor.pseudo.linkage import average_linkage
from processor.retrieval.distance import Block, Features, distance_blocks
from processor.retrieval.jaccard_graph import jaccard_graph, re_ranked_among_queries
from processor.retrieval.reranking import ReRanker

NOBODY = -1


@dataclass(frozen=True)
class Rules:
    """How images are labelled: the UDA section.

    Attributes:
        method: nearest_query | dbscan | agglomerative.
        distance: of nearest_query: angle | cosine | euclidean | re_ranked.
        threshold: in the distance's unit, > 0.
        re_ranking: k1, k2, lambda.
        merge_queries: whether near queries are one identity.
        min_samples: of dbscan.
    """

    method: str
    distance: str
    threshold: float
    re_ranking: tuple[int, int, float]
    merge_queries: bool = True
    min_samples: int = 4

    def describe_distance(self) -> str:
        """What the distances of `Labels` are, in words."""
        if self.method != "nearest_query":
            return "Jaccard distance to the nearest image of the same identity, else to the nearest image"
        return {"angle": "angle to the nearest query, radians", "cosine": "1 - cos to the nearest query",
                "euclidean": "Euclidean distance to the nearest query",
                "re_ranked": "re-ranked distance to the nearest query"}[self.distance]


@dataclass(frozen=True)
class Labels:
    """A labelling, and how near each image is to its identity.

    Attributes:
        identities: [N] int64, see above.
        distances: [N] float32, see `Rules.describe_distance`; 0 for a query, under nearest_query.
    """

    identities: np.ndarray
    distances: np.ndarray


def label(feats: Features, num_query: int, rules: Rules, normalize: bool, compute: Compute = HERE) -> Labels:
    """Label the images of a set.

    Args:
        feats: [N, D] float32, numpy (also memory-mapped), the queries first.
        num_query: how many are queries; only nearest_query asks.
        normalize: give the features length 1 first; the angle and the cosine do not depend on it.
        compute: how to compute; its workers are not asked.
    Raises:
        ValueError: nearest_query without queries or without other images, or a feature is not finite.
    """
    search = {"precision": compute.precision, "memory": compute.memory, "normalize": normalize,
              "device": compute.device}
    if rules.method == "nearest_query":
        labels = _nearest_query(feats, num_query, rules, search)
    else:
        labels = _clusters(feats, rules, search)
    return Labels(renumber(labels.identities), labels.distances)


def renumber(identities: np.ndarray) -> np.ndarray:
    """The same labelling without identities of one image, numbered from 0 by first images."""
    names, first, inverse, counts = np.unique(identities, return_index=True, return_inverse=True, return_counts=True)
    kept = (counts > 1) & (names != NOBODY)
    numbers = np.full(len(names), NOBODY)
    numbers[np.flatnonzero(kept)[np.argsort(first[kept])]] = np.arange(kept.sum())
    return numbers[inverse]


# ------------------------------------------------------------------ the nearest query
def _nearest_query(feats: Features, num_query: int, rules: Rules, search: dict) -> Labels:
    query, gallery = feats[:num_query], feats[num_query:]
    if not len(query) or not len(gallery):
        raise ValueError(f"UDA.METHOD=nearest_query needs query and gallery images, there are {len(query)} and "
                         f"{len(gallery)}; use dbscan or agglomerative for images without queries")
    to_gallery, among_queries = _streams(query, gallery, rules, search)
    nearest, distances = nearest_rows(to_gallery, len(gallery))
    of_query = np.arange(num_query)
    if rules.merge_queries:
        of_query = merge_queries(among_queries, num_query, rules.threshold)
    of_gallery = np.where(distances < rules.threshold, of_query[nearest], NOBODY)
    return Labels(np.concatenate([of_query, of_gallery]),
                  np.concatenate([np.zeros(num_query, np.float32), distances]))


def _streams(query: Features, gallery: Features, rules: Rules, search: dict) -> tuple[Iterator[Block], Iterator[Block]]:
    """Blocks of the distances from the queries to the gallery, and to the queries."""
    if rules.distance == "re_ranked":
        ranker = ReRanker(query, gallery, rules.re_ranking[0], **search)
        return ranker.blocks(*rules.re_ranking), re_ranked_among_queries(ranker, query, *rules.re_ranking)
    metric = "cosine" if rules.distance == "cosine" else "euclidean"
    options = {"normalize": search["normalize"] or rules.distance == "angle", "device": search["device"]}
    streams = (distance_blocks(query, others, metric, **options) for others in (gallery, query))
    if rules.distance == "angle":
        streams = (_angles(blocks) for blocks in streams)
    return tuple(streams)


def _angles(blocks: Iterator[Block]) -> Iterator[Block]:
    """Distances of points on the unit sphere as angles; by the chord, because arccos is inexact for near images."""
    for rows, chords in blocks:
        yield rows, 2 * np.arcsin(np.minimum(chords / 2, 1))


def nearest_rows(blocks: Iterator[Block], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest query of each gallery image, the first if several are as near: its row [width], distance [width]."""
    nearest, distances = np.zeros(width, np.int64), np.full(width, np.inf, np.float32)
    for rows, block in blocks:
        best = block.argmin(0)
        smallest = block[best, np.arange(width)]
        closer = smallest < distances
        nearest[closer], distances[closer] = best[closer] + rows.start, smallest[closer]
    return nearest, distances


def merge_queries(blocks: Iterator[Block], size: int, threshold: float) -> np.ndarray:
    """[size] a number for each query's identity: groups of queries nearer than the threshold on average are a person.

    The mean is over all pairs of two groups, each counted up to twice the threshold, so that single near pairs do not
    chain many persons into one. Of a pair's two distances, which differ in re-ranking, the larger counts.
    """
    reach = 2 * threshold
    pairs = [(rows.start, *np.nonzero(block < reach), block[block < reach]) for rows, block in blocks]
    row = np.concatenate([first + row for first, row, _, _ in pairs])
    column, distances = (np.concatenate([part[i] for part in pairs]) for i in (2, 3))
    others = row != column
    near = csr_matrix((1 - distances[others] / reach, (row[others], column[others])), shape=(size, size))
    graph = near.minimum(near.T).tocsr()
    graph.data = 1 - graph.data
    return average_linkage(graph, 0.5)


# ------------------------------------------------------------------ clusters
def _clusters(feats: Features, rules: Rules, search: dict) -> Labels:
    k1, k2, _ = rules.re_ranking
    if rules.method == "dbscan":
        from sklearn.cluster import DBSCAN  # slow to import, and of no use to the other methods

        graph = jaccard_graph(feats, k1, k2, rules.threshold, **search)
        identities = DBSCAN(eps=rules.threshold, min_samples=rules.min_samples, metric="precomputed").fit_predict(graph)
    else:
        graph = jaccard_graph(feats, k1, k2, **search)
        identities = average_linkage(graph, rules.threshold)
    return Labels(identities, _nearest_of_identity(graph, renumber(identities)))


def _nearest_of_identity(graph: csr_matrix, identities: np.ndarray) -> np.ndarray:
    """[N] distance to the nearest image of the same identity (without one, of any); 1 beyond the graph."""
    row = np.repeat(np.arange(len(identities)), np.diff(graph.indptr))
    asked = (identities[row] == identities[graph.indices]) | (identities[row] == NOBODY)
    asked &= row != graph.indices  # some versions of DBSCAN put a diagonal of zeros into the graph that they are given
    nearest = np.ones(len(identities), np.float32)
    np.minimum.at(nearest, row[asked], graph.data[asked])
    return nearest


# ------------------------------------------------------------------ from round to round
def keep_numbers(identities: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Numbers for a labelling's identities that go on from an earlier labelling of the same images.

    An identity takes the number of the earlier identity with which it shares most images, the pairs that share most
    first; those for which none is free are numbered after all earlier identities.

    Args:
        identities: [N] a labelling.
        before: [N] numbers that images had, NOBODY for those that had none.
    Returns:
        [N] the labelling with other numbers.
    """
    both = (identities != NOBODY) & (before != NOBODY)
    fresh = int(before.max(initial=NOBODY)) + 1
    pairs, shared = np.unique(identities[both] * fresh + before[both], return_counts=True)
    number_of: dict[int, int] = {}
    taken: set[int] = set()
    for pair in pairs[np.argsort(-shared, kind="stable")].tolist():
        new, old = divmod(pair, fresh)
        if new not in number_of and old not in taken:
            number_of[new] = old
            taken.add(old)
    for new in range(int(identities.max(initial=NOBODY)) + 1):
        if new not in number_of:
            number_of[new] = fresh
            fresh += 1
    table = np.array([number_of[new] for new in sorted(number_of)] + [NOBODY])
    return table[identities]
