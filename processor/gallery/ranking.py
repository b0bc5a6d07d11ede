"""Exact search over any engine: its candidates, ranked by our own distance, and a proof that none is missing."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from processor.gallery.contract import NEAR_ONE, Gallery, Where, check_vectors
from processor.retrieval.reranking import check_parameters
from processor.retrieval.search.encoding import JaccardIndex, encode, jaccard_distance
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.rows import PairDistances
from processor.retrieval.search.search import Neighbours
from utils.parallel import in_threads, thread_count

EXTRA = 32         # candidates beyond k: the gap that they leave proves nearly every answer
QUERIES = 256      # that an engine is asked at a time
FETCHED = 2**14    # rows whose vectors are held at a time
PAIRS = 128        # whose features are gathered at a time
SHORTLIST = 5      # times k1: so many rows are re-ranked at least
ATTEMPTS = 20      # at a search while others remove the rows that it finds


@dataclass(frozen=True)
class Found:
    """The nearest rows of each query.

    Attributes:
        ids: [Q, k] int64, nearest first; re-ranked: in that order; -1 if there are not so many.
        similarities: [Q, k] float32, 1 - d / 2 with the squared Euclidean distance d, which is the cosine; -inf
            where there is no row.
        certified: [Q] whether it is proven that these are the nearest of all.
    """

    ids: np.ndarray
    similarities: np.ndarray
    certified: np.ndarray


def search(gallery: Gallery, queries: np.ndarray, k: int, where: Where | None = None, re_rank: bool = False,
           exact: bool = True, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> Found:
    """The k rows nearest to each query: by the value of `PairDistances`, equal ones by id.

    The answer has the same bits for any engine and any number of threads, because the distances are computed here, each
    from its two vectors alone, and an answer counts as exact only when what the engine has left out is proven to be
    farther; else more is asked for, at last everything.

    Args:
        queries: [Q, D] of length 1.
        where: which rows are searched.
        re_rank: order the nearest, SHORTLIST * k1 at least, by k-reciprocal re-ranking, and take the first k of them;
            k1, k2 and lambda_value as for `re_ranked_blocks`. Similarities stay those of the vectors.
        exact: False: an engine may answer approximately, which is faster there; then nothing is certified.
    Raises:
        ValueError: k < 1, a parameter out of its range, or queries of another length than 1 or another dimension.
        KeyError: rows that were found are removed again and again.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one row is needed")
    check_parameters(k1, k2, lambda_value)
    queries = check_vectors(queries, gallery.dim)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            most = max(k, SHORTLIST * k1) if re_rank else k
            ids, distances, certified = nearest(gallery, queries, most, where, exact)
            for row in range(len(queries) if re_rank else 0):
                order, proven = _re_ranked(gallery, queries[row], ids[row], distances[row], where, exact,
                                           (k1, k2, lambda_value))
                ids[row], distances[row] = ids[row][order], distances[row][order]
                certified[row] &= proven
            return Found(ids[:, :k], 1 - distances[:, :k] / 2, certified)
        except KeyError:  # a row was removed between being found and being fetched
            if attempt == ATTEMPTS:
                raise
    raise AssertionError


def nearest(gallery: Gallery, queries: np.ndarray, k: int, where: Where | None = None,
            exact: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids [Q, k], squared Euclidean distances [Q, k] float32 (inf: no row) and what is certified [Q], as `search`."""
    blocks = [_nearest(gallery, queries[start : start + QUERIES], k, where, exact)
              for start in range(0, max(len(queries), 1), QUERIES)]
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def _nearest(gallery: Gallery, queries: np.ndarray, k: int, where: Where | None,
             exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of few queries."""
    ids, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
    certified = np.zeros(len(queries), bool)
    left, extra = np.arange(len(queries)), EXTRA
    while len(left):
        found = gallery.candidates(queries[left], k + extra, where, exact)
        squared = _distances(gallery, queries[left], found.ids) if found.squared is None else found.squared
        order = np.lexsort((found.ids, squared), axis=1)[:, :k]
        ids[left], distances[left] = (np.take_along_axis(part, order, 1) for part in (found.ids, squared))
        if not found.complete:
            break
        proven = found.ids[:, -1] < 0  # that were all
        proven |= distances[left, -1] < _least_beyond(queries[left], found.scores[:, -1].astype(np.float64)
                                                      + found.error)
        certified[left] = proven
        left, extra = left[~proven], 2 * extra
    return ids, distances, certified


def _least_beyond(queries: np.ndarray, dots: np.ndarray) -> np.ndarray:
    """[Q] no row whose true dot product with the query [Q, D] is at most this [Q] can have a smaller distance."""
    squares = np.square(queries, dtype=np.float64).sum(1) + (1 - NEAR_ONE) ** 2
    # Its float32 sum of D squares is at most this share below the true value.
    return (squares - 2 * dots) * (1 - (queries.shape[1] + 8) * 2.0**-24)


def _distances(gallery: Gallery, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[Q, n] float32 squared Euclidean distances of queries and the rows ids [Q, n]; inf for -1."""
    out, wanted = np.full(ids.shape, np.inf, np.float32), np.unique(ids[ids >= 0])
    for start in range(0, len(wanted), FETCHED):
        part = wanted[start : start + FETCHED]
        rows, columns = np.nonzero((ids >= part[0]) & (ids <= part[-1]))
        right = np.searchsorted(part, ids[rows, columns])
        left, right = torch.from_numpy(rows), torch.from_numpy(right + len(queries))
        pieces = zip(left.split(16 * PAIRS), right.split(16 * PAIRS), strict=True)
        pairs = _pairs(gallery, queries, part)
        squared = in_threads(lambda piece, pairs=pairs: pairs(*piece), pieces, thread_count(left.device))
        out[rows, columns] = torch.cat(list(squared)).numpy()
    return out


def _pairs(gallery: Gallery, queries: np.ndarray, ids: np.ndarray) -> PairDistances:
    """Distances among queries and then the rows with these ids."""
    table = np.concatenate([queries, gallery.fetch(ids, with_facts=False).vectors])
    return PairDistances(FeatureRows(table[: len(queries)], table[len(queries) :]), PAIRS)


# ------------------------------------------------------------------ re-ranking
def _re_ranked(gallery: Gallery, query: np.ndarray, ids: np.ndarray, distances: np.ndarray, where: Where | None,
               exact: bool, parameters: tuple[int, int, float]) -> tuple[np.ndarray, bool]:
    """The places in ids [n] by re-ranked distance, and whether all neighbours are proven.

    The query and the gallery's rows that fulfil `where` are the images. Each of the n nearest asks the gallery for its
    own neighbours, in one batch, so that what is reciprocal among them is so in the whole gallery. An image beyond them
    counts as nobody's reciprocal neighbour. With n = the whole gallery the distances are those of `re_ranking`.
    """
    k1, k2, lambda_value = parameters
    found = np.flatnonzero(ids >= 0)
    if not len(found):
        return np.arange(len(ids)), True
    ids, distances, beyond = ids[found], distances[found], np.flatnonzero(ids < 0)
    vectors = gallery.fetch(ids, with_facts=False).vectors
    near, squared, proven = nearest(gallery, vectors, k1 + 1, where, exact)
    known = np.unique(np.append(near[near >= 0], ids))
    neighbours = _neighbours(known, ids, distances, near, squared)
    # The opposite's nearest is the farthest, up to NEAR_ONE.
    both = np.concatenate([query[None], vectors])
    opposite = nearest(gallery, -both, 1, where, exact)[0]
    farthest = np.maximum(_distances(gallery, both, opposite)[:, 0], np.append(distances.max(), distances))
    farthest[farthest <= 0] = 1
    images = np.append(0, np.searchsorted(known, ids) + 1)
    neighbours.farthest[torch.from_numpy(images)] = torch.from_numpy(farthest)
    codes = encode(neighbours, _pairs(gallery, query[None], known), k1, k2)
    jaccard = jaccard_distance(JaccardIndex(codes, 1, 1).shared(slice(0, 1)))[0].numpy()[images[1:] - 1]
    final = lambda_value * (distances / farthest[0]) + (1 - lambda_value) * jaccard
    return np.concatenate([found[np.lexsort((ids, final))], beyond]), bool(proven.all())


def _neighbours(known: np.ndarray, ids: np.ndarray, distances: np.ndarray, near: np.ndarray,
                squared: np.ndarray) -> Neighbours:
    """The lists of the query (image 0) and of its nearest rows ids [n], among the rows `known` (images 1, 2, …).

    Args:
        known: ids of rows, ascending.
        distances: [n] from the query.
        near, squared: [n, k1 + 1] the ids nearest to each of the n rows and their distances.
    Returns:
        Lists of known images, of those beyond the n nearest too, which hold but themselves and a blank, the last image.
    """
    width, blank = min(near.shape[1], 1 + int((near >= 0).sum(1).max())), len(known) + 1
    lists, values = np.full((blank + 1, width), blank, np.int32), np.zeros((blank + 1, width), np.float32)
    lists[:, 0] = np.arange(blank + 1)
    images = np.searchsorted(known, ids) + 1
    lists[0, 1:], values[0, 1:] = images[: width - 1], distances[: width - 1]
    for row, image in enumerate(images):
        found = near[row] >= 0
        others = np.append(0, np.searchsorted(known, near[row][found]) + 1)  # the query is one of a row's neighbours
        far, others = np.append(distances[row], squared[row][found])[others != image], others[others != image]
        order = np.lexsort((others, far))[: width - 1]
        lists[image, 1:], values[image, 1:] = others[order], far[order]
    return Neighbours(torch.from_numpy(lists), torch.from_numpy(values), torch.ones(blank + 1))
