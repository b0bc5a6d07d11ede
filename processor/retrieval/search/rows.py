"""Distances by blocks of rows, in tiles of a fixed shape."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.precision import PRECISIONS
from processor.retrieval.search.top_k import Block
from utils.dist import ALONE, Workers
from utils.parallel import in_threads, thread_count

# query [R, D], its squared lengths [R], gallery [T, D], its [T], whether float32 would cancel -> [R, T]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]

TILE = 1024        # gallery images of one product
QUERY_ROWS = 256   # queries of one product, and the most in a block: a block over a million images is 1 GiB
BYTES_UNDER_WAY = 2**29  # of blocks that several threads may make ahead
# |a|² + |b|² - 2ab cancels for close vectors. Below this share of |a|² + |b|² the pair is computed in float64 …
NEAR = 1e-3
# … and below this share (1e-6 of the length) the vectors are the same as far as float32 can tell: distance 0.
SAME = 1e-12


def squared_euclidean(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor, need_float64: bool = False) -> Tensor:
    """|a_i - b_j|²: one product, and float64 for the rows in which vectors nearly coincide.

    Args:
        a: [R, D] float32;  b: [T, D] float32;  a_norms, b_norms: [R], [T] their squared lengths.
        need_float64: float64 for all (see FeatureRows.need_float64).
    Returns:
        [R, T] float32, not negative; exactly 0 if the two vectors are equal.

    >>> a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> squared_euclidean(a, a.square().sum(1), b, b.square().sum(1))
    tensor([[ 0., 25.]])
    """
    if need_float64:
        return _precise(a, b).float()
    squared = (a_norms[:, None] + b_norms[None, :]).addmm_(a, b.T, alpha=-2)
    # With b's largest length this picks rows a little too generously, and spares most tiles a full comparison.
    near = squared.amin(1) < NEAR * (a_norms + b_norms.amax())
    rows = (near & (a_norms > 0)).nonzero().flatten()  # zeros, as the padding is, cancel nothing
    if len(rows):
        precise = _precise(a[rows], b).float()
        near = precise < NEAR * (a_norms[rows, None] + b_norms)
        squared[rows] = torch.where(near, precise, squared[rows])
    return squared.clamp_(min=0)


def _precise(a: Tensor, b: Tensor) -> Tensor:
    """The same in float64."""
    left, right = a.double(), b.double()
    length = left.square().sum(1)[:, None] + right.square().sum(1)[None, :]
    precise = torch.addmm(length, left, right.T, alpha=-2)
    return precise.masked_fill_(precise < SAME * length, 0)


def local_blocks(num_query: int, workers: Workers) -> list[slice]:
    """The blocks of queries that this process computes: every workers.size-th of QUERY_ROWS rows.

    >>> local_blocks(600, Workers(rank=1, size=2))
    [slice(256, 512, None)]
    """
    blocks = [slice(start, min(start + QUERY_ROWS, num_query)) for start in range(0, num_query, QUERY_ROWS)]
    return blocks[workers.rank :: workers.size]


def query_gallery_blocks(
    features: FeatureRows, kernel: Kernel, workers: Workers = ALONE,
) -> Iterator[tuple[slice, Tensor]]:
    """Query × gallery distances on the features' device: (rows, [len(rows), G] float32) of the `local_blocks`.

    >>> table = FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]))
    >>> list(query_gallery_blocks(table, squared_euclidean))
    [(slice(0, 1, None), tensor([[1., 9.]]))]
    """
    blocks = local_blocks(features.num_query, workers)
    threads = thread_count(features.device)
    fitting = max(BYTES_UNDER_WAY // (4 * QUERY_ROWS * features.num_gallery), 1)
    with PRECISIONS["float32"].products(features.device):
        distances = in_threads(lambda rows: row_block(features, rows, kernel), blocks, min(threads, fitting))
        yield from zip(blocks, distances, strict=True)


def row_block(features: FeatureRows, rows: slice | Tensor, kernel: Kernel) -> Tensor:
    """[R, G] distances of a block of `local_blocks`, or of single queries [R] (int64); R <= QUERY_ROWS.

    >>> table = FeatureRows(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
    >>> row_block(table, torch.tensor([1]), squared_euclidean)
    tensor([[0., 4.]])
    """
    norms = features.squared_norms[rows]
    if isinstance(rows, slice):
        query = features.rows(rows.start, rows.stop)
    else:
        query = features.take(rows, torch.empty(len(rows), features.dim, device=features.device))
    count = len(query)
    query, norms = _padded(query, norms, QUERY_ROWS)
    block = torch.empty(count, features.num_gallery, device=features.device)
    with PRECISIONS["float32"].products(features.device):
        for start in range(features.num_query, len(features), TILE):
            stop = min(start + TILE, len(features))
            gallery = _padded(features.rows(start, stop), features.squared_norms[start:stop], TILE)
            distances = kernel(query, norms, *gallery, features.need_float64)
            block[:, start - features.num_query : stop - features.num_query] = distances[:count, : stop - start]
    return block


def _padded(feats: Tensor, norms: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both with zeros up to so many rows."""
    missing = rows - len(feats)
    return (F.pad(feats, (0, 0, 0, missing)), F.pad(norms, (0, missing))) if missing else (feats, norms)


def split_rows(blocks: Iterable[Block], block_rows: int) -> Iterator[Block]:
    """The same rows in blocks of `block_rows` at most; only the cuts change, no value does.

    >>> [rows for rows, _ in split_rows([(slice(0, 3), torch.zeros(3, 9).numpy())], 2)]
    [slice(0, 2, None), slice(2, 3, None)]
    """
    for rows, block in blocks:
        for start in range(0, len(block), block_rows):
            piece = block[start : start + block_rows]
            yield slice(rows.start + start, rows.start + start + len(piece)), piece


def check_block_rows(block_rows: int) -> None:
    """Refuse blocks of no rows.

    >>> check_block_rows(0)
    Traceback (most recent call last):
    ValueError: block_rows=0: at least one row is needed
    """
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: at least one row is needed")


class PairDistances:
    """Squared Euclidean distances of single pairs: the float32 sum of squared differences.

    Each is a function of its two features alone: it is the same from either side, 0 for equal features, as exact for
    near ones as for others, and has the same bits whatever other pairs are asked for beside it.

    Args:
        at_once: pairs whose features are gathered at a time; a core's cache should hold them.
        threads: of `in_threads`.

    >>> pairs = PairDistances(FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]])), at_once=8)
    >>> pairs(torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1]))
    tensor([1., 9., 0.])
    """

    def __init__(self, features: FeatureRows, at_once: int, threads: int = 1):
        self.features, self.at_once, self.threads = features, at_once, threads
        self._buffers = threading.local()

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """[P] float32 of rows left [P] and right [P] (int64)."""
        count, buffer = self.at_once, self._buffer()
        chunks = -(-len(left) // count)
        # All chunks have one shape, because on a GPU a kernel's order of summation depends on it.
        rows = torch.zeros(2, chunks * count, dtype=torch.int64, device=left.device)
        rows[0, : len(left)], rows[1, : len(left)] = left, right
        rows = rows.view(2, chunks, count).transpose(0, 1).reshape(chunks, 2 * count)
        out = torch.empty(chunks, count, device=left.device)
        a, b = buffer.view(2, count, -1)
        for chunk, sums in zip(rows.unbind(), out.unbind(), strict=True):
            self.features.take(chunk, buffer)
            torch.ops.aten.mse_loss.out(a, b, 0, out=a)  # (a - b)² in one pass
            torch.sum(a, 1, out=sums)
        return out.flatten()[: len(left)]

    def in_threads(self, left: Tensor, right: Tensor) -> Tensor:
        """The same on all cores, and a pair that is there from both sides only once."""
        size = len(self.features)
        pairs, places = torch.unique(torch.minimum(left, right) * size + torch.maximum(left, right),
                                     return_inverse=True)
        pieces = pairs.split(64 * self.at_once)
        distances = list(in_threads(lambda piece: self(piece // size, piece % size), pieces, self.threads))
        return torch.cat(distances)[places] if distances else torch.empty(0, device=left.device)

    def _buffer(self) -> Tensor:
        """[2 * at_once, D] this thread's place for the features of the pairs at once."""
        if not hasattr(self._buffers, "places"):
            self._buffers.places = torch.zeros(2 * self.at_once, self.features.dim, device=self.features.device)
        return self._buffers.places
