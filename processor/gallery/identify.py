"""Who is it: the nearest identity of a gallery, how far the second is behind, and the rows that decided."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from processor.gallery.contract import UNKNOWN, Gallery, Where, check_vectors
from processor.gallery.ranking import ATTEMPTS, search

RULES = ("max", "mean")  # of an identity's best rows' similarities
NOTHING = -1.0  # the similarity to an identity that is not there: the least that there can be


@dataclass(frozen=True)
class Identified:
    """Answers for Q vectors.

    Attributes:
        identities: [Q] int64, UNKNOWN if the nearest is below the threshold.
        nearest: [Q] int64, the nearest whatever its similarity; UNKNOWN if no row has an identity.
        similarities: [Q] float32 of the nearest; NOTHING if there is none.
        margins: [Q] float32, how much less similar the second identity is; NOTHING counts if there is none.
        rows: [Q, m] int64, the rows that decided for the nearest, best first; -1 if there are not so many.
        certified: [Q] bool, no row can change the answer; not so after an approximate search.
    """

    identities: np.ndarray
    nearest: np.ndarray
    similarities: np.ndarray
    margins: np.ndarray
    rows: np.ndarray
    certified: np.ndarray


@dataclass(frozen=True)
class _Near:
    """Rows near a vector: ids, similarities (descending), identities [n]; whole: there are no others."""

    ids: np.ndarray
    similarities: np.ndarray
    identities: np.ndarray
    whole: bool
    certified: bool


def identify(gallery: Gallery, vectors: np.ndarray, where: Where | None = None, *, threshold: float,
             rule: str = "max", m: int = 3, k: int = 64) -> Identified:
    """Find the identity of each vector.

    Args:
        vectors: [Q, D] float32 of length 1.
        where: which rows count; rows of unknown identity never do.
        threshold: the least similarity, a cosine, of a known person: tools/calibrate.py measures one.
        rule: an identity is as similar as its nearest row ("max"), or as the mean of its m nearest ("mean"; of all
            its rows, if it has fewer).
        k: rows to look at first; more are read until two identities are certain.
    Raises:
        ValueError: the rule is unknown, m or k is below 1, or a vector is not such a row.
    """
    if rule not in RULES or m < 1 or k < 1:
        raise ValueError(f"identify: rule {rule!r}, m {m}, k {k}: expected {' | '.join(RULES)}, 1 or more, 1 or more")
    vectors, m = check_vectors(vectors, gallery.dim), 1 if rule == "max" else m
    answers: dict[int, tuple] = {}
    while left := [row for row in range(len(vectors)) if row not in answers]:
        for row, near in zip(left, _shortlists(gallery, vectors[left], k, where), strict=True):
            best = _two_best(gallery, vectors[row], where, near, m)
            if best is not None:
                answers[row] = best
        k *= 4
    values = [answers[row] for row in range(len(vectors))]
    nearest = np.array([best[1] for best, _, _ in values], np.int64)
    first, second = (np.array([value[rank][0] for value in values], np.float32) for rank in (0, 1))
    rows = np.array([[*best[2], *[-1] * (m - len(best[2]))] for best, _, _ in values], np.int64).reshape(-1, m)
    known = first >= np.float32(threshold)
    return Identified(np.where(known, nearest, UNKNOWN), nearest, first, first - second, rows,
                      np.array([certified for *_, certified in values], bool))


def _shortlists(gallery: Gallery, vectors: np.ndarray, k: int, where: Where | None) -> list[_Near]:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found = search(gallery, vectors, k, where)
            ids = np.unique(found.ids[found.ids >= 0])
            identities = gallery.fetch(ids).facts["identity"]
        except KeyError:  # a row was removed between being found and being fetched
            if attempt == ATTEMPTS:
                raise
        else:
            break
    near = []
    for row, similarities, certified in zip(found.ids, found.similarities, found.certified, strict=True):
        row = row[row >= 0]
        near.append(_Near(row, similarities[: len(row)], identities[np.searchsorted(ids, row)], len(row) < k,
                          bool(certified)))
    return near


def _two_best(gallery: Gallery, vector: np.ndarray, where: Where | None, near: _Near,
              m: int) -> tuple[tuple, tuple, bool] | None:
    """(similarity, identity, rows) of the two best identities, and whether all rows counted; None: look at more rows.

    What an identity's rows on the shortlist give is the most that it can have; it is certain with m of them. One that
    has no row there is at most as near as the last row.
    """
    groups = {identity: np.flatnonzero(near.identities == identity)[:m]
              for identity in dict.fromkeys(near.identities.tolist()) if identity != UNKNOWN}
    most = sorted(((_value(near.similarities[rows]), identity) for identity, rows in groups.items()),
                  key=lambda item: (-item[0], item[1]))
    certain: list[tuple] = []
    for value, identity in most:
        if len(certain) > 1 and value < certain[1][0]:
            break
        ids, certified = near.ids[groups[identity]], near.certified
        if len(ids) < m and not near.whole:
            only = replace(where or Where(), identities=[identity])
            rest, = _shortlists(gallery, vector[None], m, only)
            value, ids, certified = _value(rest.similarities), rest.ids, certified and rest.certified
        certain = sorted([*certain, (value, identity, ids.tolist())], key=lambda item: (-item[0], item[1]))
    none = (NOTHING, UNKNOWN, [])
    first, second, *_ = [*certain, none, none]
    if near.whole or (len(certain) > 1 and near.similarities[-1] <= second[0]):
        return first, second, near.certified
    return None


def _value(similarities: np.ndarray) -> float:
    return float(similarities.astype(np.float64).mean()) if len(similarities) else NOTHING
