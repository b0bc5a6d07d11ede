"""Average linkage over a sparse graph of distances."""
from __future__ import annotations

import itertools

import numpy as np
from scipy.sparse import csr_matrix

ONE = 2**30  # similarities are whole numbers of 2**-30: their sums are the same in any order


def average_linkage(graph: csr_matrix, threshold: float) -> np.ndarray:
    """Agglomerative clustering by the mean distance over all pairs of two clusters, cut at a threshold. Exact.

    Follows chains of nearest neighbours, whose ends that are each other's are merged: with average linkage the order
    of merges does not matter, and a cluster whose nearest is beyond the threshold is finished. Distances that the graph
    leaves out are 1, so that a cluster is a sparse row of summed similarities.

    Args:
        graph: [N, N] symmetric distances in [0, 1) without diagonal; those left out are 1.
        threshold: clusters at a mean distance up to this are merged, < 1.
    Returns:
        [N] a number for each image's cluster, the same for all its images.
    Source: Murtagh, A Survey of Recent Advances in Hierarchical Clustering Algorithms, The Computer Journal 1983.
    """
    clusters = _Clusters(graph)
    finished = np.zeros(graph.shape[0], bool)
    for start in range(graph.shape[0]):
        chain = [start]
        while chain:
            last = chain[-1]
            if finished[last] or clusters.owner[last] != last:  # `start` was drawn into another cluster
                chain.pop()
                continue
            before = chain[-2] if len(chain) > 1 else None
            nearest, distance = clusters.nearest(last, before)
            if distance > threshold:
                finished[chain.pop()] = True
            elif nearest == before:
                merged = clusters.merge(chain.pop(), chain.pop())
                chain = chain or [merged]
            else:
                chain.append(nearest)
    return clusters.owner


class _Clusters:
    """Clusters, each by the number of one of its images, with their summed similarities to the others.

    A row names others by what their number was when it was last looked at; `owner` knows what it is now.
    """

    def __init__(self, graph: csr_matrix):
        size = graph.shape[0]
        self.owner, self.sizes = np.arange(size), np.ones(size, np.int64)
        self._members = [[i] for i in range(size)]
        similarity = np.rint((1 - graph.data.astype(np.float64)) * ONE).astype(np.int64)
        self._rows = [(graph.indices[a:b].astype(np.int64), similarity[a:b])
                      for a, b in itertools.pairwise(graph.indptr)]

    def nearest(self, cluster: int, preferred: int | None) -> tuple[int, float]:
        """The nearest other cluster (if several are, the preferred, else the first), and the mean distance to it."""
        others, totals = self._row(cluster)
        if not len(others):
            return cluster, 1.0
        # The same numbers from either side, so that chains cannot go round.
        means = totals / (self.sizes[others] * self.sizes[cluster])
        best = means.argmax()
        if preferred is not None:
            place = min(np.searchsorted(others, preferred), len(others) - 1)
            if others[place] == preferred and means[place] == means[best]:
                best = place
        return int(others[best]), 1 - means[best] / ONE

    def _row(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the other clusters, ascending, and the sums of all similarities to their images."""
        others, sums = self._rows[cluster]
        others = self.owner[others]
        order = np.argsort(others, kind="stable")
        order = order[others[order] != cluster]
        others, sums = others[order], sums[order]
        first = np.flatnonzero(np.diff(others, prepend=-1))
        if len(first):
            others, sums = others[first], np.add.reduceat(sums, first)
        self._rows[cluster] = others, sums
        return others, sums

    def merge(self, a: int, b: int) -> int:
        """Merge two clusters, under the number of the larger."""
        kept, gone = (a, b) if self.sizes[a] >= self.sizes[b] else (b, a)
        self.owner[self._members[gone]] = kept
        self._members[kept] += self._members[gone]
        self._rows[kept] = tuple(np.concatenate(pair) for pair in
                                 zip(self._rows[kept], self._rows[gone], strict=True))
        self.sizes[kept] += self.sizes[gone]
        self._members[gone], self._rows[gone] = [], ()
        return kept
