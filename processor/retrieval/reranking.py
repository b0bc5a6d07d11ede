"""k-reciprocal re-ranking, exact, without a matrix over all pairs of images.

The N = Q + G images of query and gallery are compared in tiles, of which only each image's nearest and its farthest
are kept (`search`); from these lists on everything is sparse (`encoding`), and distances are given out a few queries
at a time, or only the nearest gallery images of each query.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.budget import Work, plan_search
from processor.retrieval.distance import (
    QUERY_ROWS,
    Block,
    check_block_rows,
    own_rows,
    row_block,
    split_rows,
    squared_euclidean,
)
from processor.retrieval.encoding import JaccardIndex, encode, jaccard_distance
from processor.retrieval.features import FeatureRows, Features
from processor.retrieval.precision import CHOICES, PRECISIONS
from processor.retrieval.ranks import rank_keys, split_keys
from processor.retrieval.search import Bounds, Candidates, Neighbours, PairDistances, SearchPlan, search
from utils.dist import ALONE, Workers
from utils.parallel import in_threads
from utils.progress import progress

logger = logging.getLogger(__name__)
EMPTY = torch.iinfo(torch.int64).max  # no key
ROUNDING = 4e-7  # of the mix of two distances in [0, 1]


def re_ranking(query: Features, gallery: Features, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """`re_ranked_blocks` in one piece.

    Returns:
        [Q, G] float32 numpy, smaller is closer.
    """
    return np.concatenate([block for _, block in re_ranked_blocks(query, gallery, k1, k2, lambda_value)])


def re_ranked_blocks(
    query: Features, gallery: Features, k1: int, k2: int, lambda_value: float, block_rows: int = QUERY_ROWS,
    **options: object,
) -> Iterator[Block]:
    """Re-ranked distance from every query to every gallery image, in [0, 1]; smaller is closer.

    d = lambda_value * (squared Euclidean / its row's largest over query and gallery) + (1 - lambda_value) * Jaccard.

    Args:
        query: [Q, D] float32, numpy (also memory-mapped) or tensor. Any norm; re-ID usually normalises first.
        gallery: [G, D] likewise, on query's device.
        k1: reciprocal neighbours; lists are cut to N = Q + G where k1 + 1 is more.
        k2: nearest images (the image itself is the first) whose encodings are averaged; 1 averages nothing.
        lambda_value: weight of the original distance, in [0, 1].
        block_rows: the most query rows in one block, QUERY_ROWS at most; it changes the memory, never the values.
        options: of `ReRanker`: precision, memory, normalize, device, workers.
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order (with
        workers: those of this process). The work that all queries share is done when the first block is asked for.
    Raises:
        ValueError: at the call, where a parameter is out of its range, the dimensions differ or a feature is not
            finite.
    """
    check_block_rows(block_rows)
    check_parameters(k1, k2, lambda_value)
    ranker = ReRanker(query, gallery, k1, **options)
    return split_rows(ranker.blocks(k1, k2, lambda_value), block_rows)


def re_ranked_top_k(
    query: Features, gallery: Features, k1: int, k2: int, lambda_value: float, k: int = 200, **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery images nearest to each query by re-ranked distance, without computing the others' distances.

    A query is certified where no other image can be among its nearest; the others get full rows. The distances are
    those of `re_ranked_blocks` up to float32's rounding (1e-6), computed from the differences of features.

    Args:
        k: cut to G.  The rest as for `re_ranked_blocks`.
    Returns:
        indices [Q, k] int64 and distances [Q, k] float32, nearest first, equal distances by gallery index.
    Raises:
        ValueError: as `re_ranked_blocks`, and for k < 1.
    """
    check_parameters(k1, k2, lambda_value)
    return ReRanker(query, gallery, k1, top_k=k, **options).top_k(k1, k2, lambda_value)


def check_parameters(k1: int, k2: int, lambda_value: float) -> None:
    """Raise ValueError for parameters that have no meaning."""
    if k1 < 1:
        raise ValueError(f"k1={k1}: at least one neighbour is needed")
    if not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2={k2}: must be from 1 to k1 + 1 = {k1 + 1}, for only the k1 + 1 nearest are known")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value={lambda_value}: must be from 0 to 1")


class ReRanker:
    """One candidate search, and from it any number of re-rankings with k1 up to the one it was made for.

    Args:
        query, gallery: as for `re_ranked_blocks`.
        k1: the largest that will be asked for.
        top_k: so many nearest gallery images will be asked for; None: full rows only.
        precision: of the candidate search's products: auto | float32 | tf32 | bf16. The answer is the same.
        memory: bytes that may be used above the features; None: four fifths of what is free. The answer is the same.
        normalize: give the features length 1 first, without a copy of them.
        device: where to compute; None: where the features are.
        workers: processes that share the work, each with all the features.
    Raises:
        ValueError: unfit features or options; when the work starts, where it needs more memory than it may have.
    """

    def __init__(
        self, query: Features, gallery: Features, k1: int, *, top_k: int | None = None, precision: str = "auto",
        memory: int | None = None, normalize: bool = False, device: torch.device | str | None = None,
        workers: Workers = ALONE,
    ) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"k={top_k}: at least one neighbour is needed")
        self.features = FeatureRows(query, gallery, device, normalize)
        self.k1, self.workers = k1, workers
        self.k = None if top_k is None else min(top_k, self.features.num_gallery)
        self.work = Work(self.features, k1, self.k or 0, workers.size)
        self._options = precision, memory
        if precision not in CHOICES:
            raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(CHOICES)}")
        self._encoded: dict[tuple[int, int], JaccardIndex] = {}

    @cached_property
    def plan(self) -> SearchPlan:
        """Made when the work starts: what is free then counts, after what others of an ensemble hold."""
        return plan_search(self.work, *self._options, self.workers)

    @cached_property
    def pairs(self) -> PairDistances:
        return PairDistances(self.features, self.plan.pairs)

    @cached_property
    def _searched(self) -> tuple[Neighbours, Candidates | None]:
        start = time.perf_counter()
        logger.info("re-ranking %s", self.work.describe(self.plan))
        found = search(self.features, self.k1 + 1, self.plan, self.work.candidates, self.workers)
        logger.info("re-ranking: neighbours found after %.1f s", time.perf_counter() - start)
        return found

    @property
    def neighbours(self) -> Neighbours:
        return self._searched[0]

    def index(self, k1: int, k2: int) -> JaccardIndex:
        """The codes for k1 and k2; the last ones are kept."""
        check_parameters(k1, k2, 0)
        if k1 > self.k1:
            raise ValueError(f"k1={k1}: the neighbours were searched for k1={self.k1}")
        if (k1, k2) not in self._encoded:
            self._encoded.clear()
            codes = encode(self.neighbours, self.pairs, k1, k2, self.workers)
            self._encoded[k1, k2] = JaccardIndex(codes, self.features.num_query, self.plan.queries)
        return self._encoded[k1, k2]

    def parts(self, k1: int, k2: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, original distance in [0, 1], Jaccard distance), [len(rows), G] each, that lambda mixes."""
        index = self.index(k1, k2)
        farthest = self.neighbours.farthest
        for rows in progress(own_rows(self.features.num_query, self.workers), "re-ranked distances", "blocks"):
            original = row_block(self.features, rows, squared_euclidean).div_(farthest[rows, None])
            yield rows, original, jaccard_distance(index.shared(rows))

    def blocks(self, k1: int, k2: int, lambda_value: float) -> Iterator[Block]:
        """Full rows of distances, QUERY_ROWS queries at a time."""
        for rows, original, jaccard in self.parts(k1, k2):
            yield rows, original.mul_(lambda_value).add_(jaccard, alpha=1 - lambda_value).cpu().numpy()

    def top_k(self, k1: int, k2: int, lambda_value: float) -> tuple[np.ndarray, np.ndarray]:
        """indices [Q, k] and distances [Q, k], for the top_k that this was made for."""
        assert self.k is not None, "made without top_k"
        ranking = _TopK(self, self.index(k1, k2), lambda_value)
        num_query = self.features.num_query
        keys = torch.zeros(num_query, self.k, dtype=torch.int64, device=self.features.device)

        def rank(rows: slice) -> None:
            keys[rows] = ranking.keys(rows)

        blocks = own_rows(num_query, self.workers)
        for _ in progress(in_threads(rank, blocks, self.features.device), "nearest images", "blocks", len(blocks)):
            pass
        if ranking.candidates is not None and ranking.full_rows:
            logger.info("re-ranking: %d of %d queries needed a full row", ranking.full_rows, num_query)
        for i, start in enumerate(range(0, num_query, QUERY_ROWS)):
            self.workers.broadcast(keys[start : start + QUERY_ROWS], i % self.workers.size)
        distances, indices = split_keys(keys)
        return indices.cpu().numpy(), distances.cpu().numpy()


class _TopK:
    """The nearest gallery images of a block of queries, from the candidates where that can be proven."""

    def __init__(self, ranker: ReRanker, index: JaccardIndex, lambda_value: float):
        self.features, self.index, self.pairs, self.k = ranker.features, index, ranker.pairs, ranker.k
        self.candidates, self.farthest = ranker._searched[1], ranker.neighbours.farthest
        self.full_bounds = Bounds(self.features, PRECISIONS["float32"])
        self.lambda_value = lambda_value
        self.full_rows = 0

    def keys(self, rows: slice) -> Tensor:
        """[len(rows), k] sorted rank_keys of the nearest."""
        shared = self.index.shared(rows)
        if self.candidates is None:
            return self._from_full_rows(torch.arange(rows.start, rows.stop, device=shared.device), shared)
        queries = torch.arange(rows.start, rows.stop, device=shared.device)
        bounds = self.candidates.bounds.of(queries)
        gallery = self.candidates.indices[rows].long() - self.features.num_query
        known = gallery >= 0  # neither a query nor an empty place
        gallery.clamp_(min=0)
        jaccard = jaccard_distance(shared.gather(1, gallery))
        searched = self.candidates.searched[rows].masked_fill(~known, 0)
        lower = self._mixed(queries, bounds.lower(searched), jaccard).masked_fill_(~known, torch.inf)
        upper = self._mixed(queries, bounds.upper(searched), jaccard).masked_fill_(~known, torch.inf)
        # The k that look nearest first: the last of them bounds what else is worth an exact distance.
        nearest = upper.topk(min(self.k, upper.shape[1]), largest=False).indices
        first = torch.zeros_like(known).scatter_(1, nearest, True)
        keys = self._exact(queries, gallery, first & known, jaccard)
        more = known & ~first & (lower <= self._worst(keys)[:, None])
        keys = _smallest(torch.cat([keys, self._exact(queries, gallery, more, jaccard)], 1), self.k)
        # What is not among the candidates is no nearer than the limit, and shares with the query what is left.
        kth = self._worst(keys)
        beyond = bounds.lower(self.candidates.limits[rows, None])
        rest = torch.nn.functional.pad(shared, (0, 1)).scatter_(1, torch.where(known, gallery, shared.shape[1]), 0)
        rest = rest[:, :-1]
        open_rows = self._mixed(queries, beyond, torch.ones_like(beyond))[:, 0] <= kth
        near_rest = self._mixed(queries, beyond, jaccard_distance(rest.amax(1, keepdim=True)))[:, 0] <= kth
        some = (near_rest & ~open_rows).nonzero().flatten()
        if len(some):
            far = jaccard_distance(rest[some])
            wanted = (rest[some] > 0) & (self._mixed(queries[some], beyond[some], far) <= kth[some, None])
            everything = torch.arange(wanted.shape[1], device=shared.device).expand_as(wanted)
            more = self._exact(queries[some], everything, wanted, far)
            keys[some] = _smallest(torch.cat([keys[some], more], 1), self.k)
        open_rows = open_rows.nonzero().flatten()
        if len(open_rows):
            keys[open_rows] = self._from_full_rows(queries[open_rows], shared[open_rows])
        return keys

    def _from_full_rows(self, queries: Tensor, shared: Tensor) -> Tensor:
        """The same for queries [R] (QUERY_ROWS at most) of which every image is a candidate."""
        self.full_rows += len(queries)
        bounds = self.full_bounds.of(queries)
        searched = row_block(self.features, queries, squared_euclidean)
        jaccard = jaccard_distance(shared)
        kth = self._kth(self._mixed(queries, bounds.upper(searched), jaccard))
        wanted = self._mixed(queries, bounds.lower(searched), jaccard) <= kth[:, None]
        everything = torch.arange(wanted.shape[1], device=shared.device).expand_as(wanted)
        return self._exact(queries, everything, wanted, jaccard)

    def _exact(self, queries: Tensor, gallery: Tensor, wanted: Tensor, jaccard: Tensor) -> Tensor:
        """[R, k] sorted keys of the wanted of gallery [R, C], by their exact distances."""
        row, place = wanted.nonzero(as_tuple=True)
        images = gallery[row, place]
        squared = self.pairs(queries[row], images + self.features.num_query)
        values = self._mixed(queries[row], squared[:, None], jaccard[row, place][:, None])[:, 0]
        counts = torch.bincount(row, minlength=len(queries))
        places = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        keys = torch.full((len(queries), max(int(counts.max()), self.k)), EMPTY,
                          device=row.device)
        keys[row, places] = rank_keys(values, images)
        return _smallest(keys, self.k)

    def _mixed(self, queries: Tensor, squared: Tensor, jaccard: Tensor) -> Tensor:
        """The final distances [R, C] from squared ones and Jaccard's, in one order of operations everywhere."""
        return (squared * (self.lambda_value / self.farthest[queries, None])).add_(jaccard, alpha=1 - self.lambda_value)

    def _kth(self, upper: Tensor) -> Tensor:
        """[R] what the k-th nearest is at most; infinite where there are fewer than k."""
        if upper.shape[1] < self.k:
            return torch.full((len(upper),), torch.inf, device=upper.device)
        if upper.device.type == "cpu":
            return torch.from_numpy(np.partition(upper.numpy(), self.k - 1, axis=1)[:, self.k - 1] + ROUNDING)
        return upper.kthvalue(self.k, dim=1).values + ROUNDING

    @staticmethod
    def _worst(keys: Tensor) -> Tensor:
        """[R] the distance of the last of sorted keys; infinite where there are fewer."""
        distances = split_keys(keys[:, -1])[0]
        return torch.where(keys[:, -1] == EMPTY, torch.inf, distances) + ROUNDING


def _smallest(keys: Tensor, k: int) -> Tensor:
    return keys.sort(1).values[:, :k]
