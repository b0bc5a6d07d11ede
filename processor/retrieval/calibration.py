"""From cosines of pairs to a decision: thresholds at given false positive rates, and a probability of the same person.

Half of the identities sets them and the other half checks them, so that no threshold is measured on the pairs that it
was chosen by.
"""
from __future__ import annotations

import numpy as np

from processor.retrieval.metrics import NO_PAIRS, own_files
from processor.retrieval.roc import SmallestValues

ENOUGH = 10  # wrong pairs that a threshold must let through to be more than the distance of a few odd pictures
_ROWS = 512  # queries at a time
_BINS = 4096  # of the cosines from -1 to 1, for the probability


class Pairs:
    """Cosines of pairs of a query and a gallery picture; of different persons the `keep` largest.

    num_positives, num_negatives: pairs of a person, and of different persons, that were added.
    same, different: their numbers in _BINS steps of the cosine.
    """

    def __init__(self, keep: int = 1 << 23):
        self.num_positives = self.num_negatives = 0
        self.same, self.different = np.zeros(_BINS), np.zeros(_BINS)
        self._positives: list[np.ndarray] = []
        self._negatives = SmallestValues(keep)

    def add(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        """Take cosines of any shape."""
        self.num_positives += positives.size
        self.num_negatives += negatives.size
        self._positives.append(positives.ravel())
        self._negatives.add(-negatives)
        self.same += np.histogram(positives, _BINS, (-1, 1))[0]
        self.different += np.histogram(negatives, _BINS, (-1, 1))[0]

    def threshold(self, fpr: float) -> float:
        """The least cosine from which on (>=) at most a share `fpr` of the different persons' pairs is accepted.

        Raises:
            ValueError: there are too few pairs for this rate; the message says how many it takes.

        >>> pairs = Pairs()
        >>> pairs.add(np.float32([0.9]), np.arange(100, dtype=np.float32) / 100)
        >>> 0.89 < pairs.threshold(0.1) < 0.9  # 0.90 .. 0.99, ten of a hundred, pass
        True
        """
        if self.num_negatives < needed_pairs(fpr):
            raise ValueError(f"a false positive rate of {fpr:g} cannot be measured on {self.num_negatives} pairs of "
                             f"different persons: it takes {needed_pairs(fpr)}")
        return float(np.nextafter(np.float32(-self._negatives.value_at(int(self.num_negatives * fpr))),
                                  np.float32(np.inf)))

    def rates(self, cosine: float) -> dict[str, float]:
        """{"fpr": the share of different persons' pairs that are accepted, "tpr": that of a person's own}."""
        below = np.nextafter(np.float32(-cosine), np.float32(np.inf))
        accepted = sum(int((piece >= np.float32(cosine)).sum()) for piece in self._positives)
        return {"fpr": self._negatives.count_below(below) / max(self.num_negatives, 1),
                "tpr": accepted / max(self.num_positives, 1)}


def needed_pairs(fpr: float) -> int:
    """Pairs of different persons without which a threshold for a rate is chance.

    >>> needed_pairs(1e-3)
    10000
    """
    return round(ENOUGH / fpr)


def split_identities(pids: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the identities, drawn from the seed; -1, junk, is in neither.

    >>> [half.tolist() for half in split_identities(np.array([4, 4, -1, 7, 9, 5]))]
    [[4, 7], [5, 9]]
    """
    known = np.unique(pids[pids >= 0])
    drawn = np.random.default_rng(seed).permutation(known)
    return np.sort(drawn[: len(known) // 2]), np.sort(drawn[len(known) // 2:])


def count_pairs(pairs: Pairs, query: tuple[np.ndarray, np.ndarray, np.ndarray],
                gallery: tuple[np.ndarray, np.ndarray, np.ndarray], half: np.ndarray, drop_same_camera: bool,
                same_file: np.ndarray = NO_PAIRS) -> None:
    """Add the pairs of queries and gallery pictures whose identities are both of a half.

    Args:
        query, gallery: rows [N, D] of length 1, pids [N], camids [N].
        half: the identities.
        drop_same_camera: leave out two pictures of a person by the same camera, as the metrics do.
        same_file: [n, 2] (query, gallery picture) that are one file; they are left out, too.

    >>> rows, pairs = np.eye(2, dtype=np.float32), Pairs()
    >>> count_pairs(pairs, (rows, np.array([3, 5]), np.zeros(2)), (rows, np.array([3, 4]), np.ones(2)), [3, 4], True)
    >>> pairs.num_positives, pairs.num_negatives  # the query of identity 5 is of the other half
    (1, 1)
    """
    queries, images = (np.flatnonzero(np.isin(side[1], half)) for side in (query, gallery))
    rows, pids, camids = (column[images] for column in gallery)
    for begin in range(0, len(queries), _ROWS):
        part = queries[begin : begin + _ROWS]
        cosines = query[0][part] @ rows.T
        same = query[1][part, None] == pids
        own = own_files(same_file, part, images[None])
        dropped = own | (same & drop_same_camera & (query[2][part, None] == camids))
        pairs.add(cosines[same & ~dropped], cosines[~same & ~own])


def fit_probability(pairs: Pairs) -> dict[str, float]:
    """The logistic curve over the distance, sqrt(2 - 2 cosine), as if same and different were equally many.

    `probability` is the curve; another share of same pairs adds its log odds to the offset.
    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999.

    >>> pairs = Pairs()
    >>> pairs.add(np.linspace(0.6, 0.9, 99), np.linspace(0.1, 0.4, 99))
    >>> curve = fit_probability(pairs)
    >>> bool(probability(0.5, **curve) > 0.99), bool(probability(1.3, **curve) < 0.01)
    (True, True)
    """
    from sklearn.linear_model import LogisticRegression

    middles = (np.arange(_BINS) + 0.5) * 2 / _BINS - 1
    distances = np.tile(np.sqrt(2 - 2 * middles), 2)[:, None]
    shares = np.concatenate([pairs.same / pairs.same.sum(), pairs.different / pairs.different.sum()])
    model = LogisticRegression(C=1e3, max_iter=1000).fit(distances, np.repeat([1, 0], _BINS), shares * _BINS)
    return {"slope": float(model.coef_[0, 0]), "offset": float(model.intercept_[0])}


def probability(distance: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """`fit_probability`'s curve, 1 / (1 + exp(-(slope * distance + offset))).

    >>> float(probability(0.5, slope=-10.0, offset=5.0))
    0.5
    """
    return 1 / (1 + np.exp(-(slope * np.asarray(distance) + offset)))
