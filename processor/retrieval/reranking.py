"""k-reciprocal re-ranking, exact, without a matrix over all pairs of images.

The N = Q + G images of query and gallery are compared in tiles, of which only each image's nearest and its farthest
are kept (`search`); from these lists on everything is sparse (`encoding`), and distances are given out a few queries
at a time, or only the nearest gallery images of each query.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from processor.retrieval.distance import Block
from processor.retrieval.search.bounds import Bounds
from processor.retrieval.search.budget import Work, plan_search
from processor.retrieval.search.certified_top_k import CertifiedNearest
from processor.retrieval.search.encoding import JaccardIndex, encode, jaccard_distance
from processor.retrieval.search.feature_rows import FeatureRows, Features
from processor.retrieval.search.precision import CHOICES, PRECISIONS
from processor.retrieval.search.rows import (
    QUERY_ROWS,
    PairDistances,
    check_block_rows,
    local_blocks,
    row_block,
    split_rows,
    squared_euclidean,
)
from processor.retrieval.search.search import InexactProducts, Neighbours, SearchPlan, search
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import nearest_keys, split_keys
from utils.dist import ALONE, Workers
from utils.parallel import in_threads
from utils.progress import progress

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def re_ranking(query: Features, gallery: Features, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """`re_ranked_blocks` in a single matrix.

    Returns:
        [Q, G] float32 numpy, smaller is closer.

    The second gallery image is as near to the query as the first, but the query is not among its nearest:

    >>> query, gallery = np.array([[0.0]], np.float32), np.array([[1.0], [-1.0], [-1.5], [-1.2]], np.float32)
    >>> re_ranking(query, gallery, k1=1, k2=1, lambda_value=0.3).astype(float).round(2).tolist()
    [[0.32, 0.83, 1.0, 0.89]]
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
        k1: reciprocal neighbours; lists are cut to N = Q + G if k1 + 1 is more.
        k2: nearest images (the image itself is the first) whose encodings are averaged; 1 averages nothing.
        lambda_value: weight of the original distance, in [0, 1].
        block_rows: the most query rows in one block, QUERY_ROWS at most; it changes the memory, never the values.
        options: of `ReRanker`: precision, memory, normalize, device, workers, title.
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order (with
        workers: those of this process). The work that all queries share is done when the first block is asked for.
    Raises:
        ValueError: at the call, if a parameter is out of its range, the dimensions differ or a feature is not finite.

    >>> query, gallery = np.array([[0.0], [9.0]], np.float32), np.array([[1.0], [8.0]], np.float32)
    >>> [rows for rows, _ in re_ranked_blocks(query, gallery, k1=1, k2=1, lambda_value=0.3, block_rows=1)]
    [slice(0, 1, None), slice(1, 2, None)]
    """
    check_block_rows(block_rows)
    check_parameters(k1, k2, lambda_value)
    ranker = ReRanker(query, gallery, k1, **options)
    return split_rows(ranker.blocks(k1, k2, lambda_value), block_rows)


def re_ranked_top_k(
    query: Features, gallery: Features, k1: int, k2: int, lambda_value: float, k: int = 200, **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery images nearest to each query by re-ranked distance, without computing the others' distances.

    In a large gallery a query's distances are searched in the search's precision; what that can be wrong by says which
    images can be among the nearest, and only their distances are computed, from the differences of features. They equal
    those of `re_ranked_blocks` up to float32's rounding (1e-6): images that differ by less may stand in another order
    there. In a gallery smaller than budget.FULL_ROWS_BELOW full rows are faster, and the two are the same.

    Args:
        k: cut to G.  The rest as for `re_ranked_blocks`.
    Returns:
        indices [Q, k] int64 and distances [Q, k] float32, nearest first, equal distances by gallery index.
    Raises:
        ValueError: as `re_ranked_blocks`, and for k < 1.

    >>> query, gallery = np.array([[0.0], [9.0]], np.float32), np.array([[1.0], [8.0]], np.float32)
    >>> re_ranked_top_k(query, gallery, k1=1, k2=1, lambda_value=0.3, k=1)[0].tolist()
    [[0], [1]]
    """
    check_parameters(k1, k2, lambda_value)
    return ReRanker(query, gallery, k1, top_k=k, **options).top_k(k1, k2, lambda_value)


def check_parameters(k1: int, k2: int, lambda_value: float) -> None:
    """Raise ValueError for parameters that have no meaning.

    >>> check_parameters(k1=0, k2=1, lambda_value=0.3)
    Traceback (most recent call last):
    ValueError: k1=0: at least one neighbour is needed
    """
    if k1 < 1:
        raise ValueError(f"k1={k1}: at least one neighbour is needed")
    if not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2={k2}: must be from 1 to k1 + 1 = {k1 + 1}: only the k1 + 1 nearest are known")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value={lambda_value}: must be from 0 to 1")


class ReRanker:
    """A candidate search, and from it any number of re-rankings with k1 up to that of the search.

    Args:
        query, gallery: as for `re_ranked_blocks`.
        k1: the largest that will be asked for.
        top_k: so many nearest gallery images will be asked for; None: full rows only.
        precision: of the candidate search's products: auto | float32 | tf32 | bf16. The answer is the same.
        memory: bytes that may be used above the features; None: four fifths of what is free. The answer is the same.
        normalize: give the features length 1 first, without a copy of them.
        device: to compute on; None: the features' device.
        workers: processes that share the work, each with all the features.
        title: what is re-ranked, such as domain and model, for the log.
    Raises:
        ValueError: unfit features or options; when the work starts, if it needs more memory than it may have.

    >>> query, gallery = np.array([[0.0], [9.0]], np.float32), np.array([[1.0], [8.0]], np.float32)
    >>> ranker = ReRanker(query, gallery, k1=2)
    >>> [block.argmin(1).tolist() for k1 in (1, 2) for _, block in ranker.blocks(k1, 1, 0.3)]
    [[0, 1], [0, 1]]
    """

    def __init__(
        self, query: Features, gallery: Features, k1: int, *, top_k: int | None = None, precision: str = "auto",
        memory: int | None = None, normalize: bool = False, device: torch.device | str | None = None,
        workers: Workers = ALONE, title: str = "",
    ) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"k={top_k}: at least one neighbour is needed")
        self.features = FeatureRows(query, gallery, device, normalize)
        self.k1, self.workers, self.normalize, self.title = k1, workers, normalize, title
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
        return PairDistances(self.features, self.plan.pairs, self.plan.threads)

    @cached_property
    def _bounds(self) -> Bounds:
        return Bounds(self.features, self.plan.precision)

    @cached_property
    def _tiles(self) -> Tiles:
        return Tiles(self.features, self._bounds, self.plan.tile, self.plan.keep)

    @cached_property
    def neighbours(self) -> Neighbours:
        """The search; it is done when it is first asked for."""
        start = time.perf_counter()
        logger.info("%sre-ranking %s", self.title and f"{self.title}: ", self.work.describe(self.plan))
        try:
            lists = search(self.features, self.k1 + 1, self.plan, self.workers, self._tiles, self._bounds)
        except InexactProducts:
            if self.plan.precision.name == "float32":
                raise
            logger.warning("the %s products of this device are less exact than they must be: searching in float32",
                           self.plan.precision.name)
            self.plan = replace(self.plan, precision=PRECISIONS["float32"], keep=False)
            del self._bounds, self._tiles
            lists = search(self.features, self.k1 + 1, self.plan, self.workers, self._tiles, self._bounds)
        logger.debug("neighbours found after %.1f s", time.perf_counter() - start)
        return lists

    def index(self, k1: int, k2: int) -> JaccardIndex:
        """The codes for k1 and k2; the last ones are kept."""
        check_parameters(k1, k2, 0)
        if k1 > self.k1:
            raise ValueError(f"k1={k1}: the neighbours were searched for k1={self.k1}")
        if (k1, k2) not in self._encoded:
            self._encoded.clear()
            codes = encode(self.neighbours, self.pairs, k1, k2, self.plan.threads, self.workers)
            self._encoded[k1, k2] = JaccardIndex(codes, self.features.num_query, self.plan.queries)
        return self._encoded[k1, k2]

    def parts(self, k1: int, k2: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, original distance in [0, 1], Jaccard distance), [len(rows), G] each, that lambda mixes."""
        index = self.index(k1, k2)

        def make(rows: slice) -> tuple[slice, Tensor, Tensor]:
            return rows, self._original(rows), jaccard_distance(index.shared(rows))

        yield from self._in_blocks(make)  # whoever mixes them reports the progress

    def blocks(self, k1: int, k2: int, lambda_value: float) -> Iterator[Block]:
        """Full rows of distances, QUERY_ROWS queries at a time."""
        index = self.index(k1, k2)

        def make(rows: slice) -> Block:
            original = self._original(rows)
            for queries, part in index.parts_of(rows):
                mix(original[part], index, queries, lambda_value)
            return rows, original.cpu().numpy()

        yield from self._with_progress(make)

    def _original(self, rows: slice) -> Tensor:
        squared = row_block(self.features, rows, squared_euclidean)
        return squared.div_(self.neighbours.farthest[rows, None])

    def _in_blocks(self, make: Callable[[slice], Result]) -> Iterator[Result]:
        """make(rows) of the blocks of this process' queries, in order."""
        blocks = local_blocks(self.features.num_query, self.workers)
        with PRECISIONS["float32"].products(self.features.device):
            yield from in_threads(make, blocks, self.plan.threads)

    def _with_progress(self, make: Callable[[slice], Result]) -> Iterator[Result]:
        count = len(local_blocks(self.features.num_query, self.workers))
        return progress(self._in_blocks(make), "re-ranked distances", "blocks", count)

    def top_k(self, k1: int, k2: int, lambda_value: float) -> tuple[np.ndarray, np.ndarray]:
        """indices [Q, k] and distances [Q, k], with the top_k of the constructor as k."""
        assert self.k is not None, "made without top_k"
        index, num_query = self.index(k1, k2), self.features.num_query
        certified = CertifiedNearest(self._tiles, self._bounds, self.pairs, index, self.neighbours, lambda_value,
                                     self.k)
        keys = torch.zeros(num_query, self.k, dtype=torch.int64, device=self.features.device)

        def rank(rows: slice) -> None:
            if not self.work.by_full_rows:
                keys[rows] = certified.keys(rows)
                return
            original = self._original(rows)
            for queries, part in index.parts_of(rows):  # a few stay in a core's cache from the mix to the selection
                mix(original[part], index, queries, lambda_value)
                keys[queries] = nearest_keys(original[part], self.k)

        for _ in self._with_progress(rank):
            pass
        for i, start in enumerate(range(0, num_query, QUERY_ROWS)):
            self.workers.broadcast(keys[start : start + QUERY_ROWS], i % self.workers.size)
        distances, indices = split_keys(keys)
        return indices.cpu().numpy(), distances.cpu().numpy()


def mix(original: Tensor, index: JaccardIndex, rows: slice, lambda_value: float) -> None:
    """Make the original distances [R, G] in [0, 1] of a few queries their final ones, in place.

    >>> from processor.retrieval.search.encoding import ONE, Codes
    >>> starts, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 1], dtype=torch.int32)
    >>> index = JaccardIndex(Codes(starts, columns, torch.full((2,), ONE, dtype=torch.int32)), 1, at_once=1)
    >>> original = torch.tensor([[0.5]])
    >>> mix(original, index, slice(0, 1), 0.4)  # 0.4 * 0.5 + 0.6 * 1: the codes share nothing
    >>> original
    tensor([[0.8000]])
    """
    original.mul_(lambda_value).add_(jaccard_distance(index.shared(rows)), alpha=1 - lambda_value)
