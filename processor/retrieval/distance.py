"""Distances between features in tiles of one fixed shape, and the nearest gallery images of a query.

Every tile is [TILE, TILE] (the last ones are padded with zeros before the product and cut after it), so a
pair's distance has the same bits whatever number of rows a caller asks for at a time.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Features = np.ndarray | Tensor
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # tiles a, |a|², b, |b|² -> [TILE, TILE]
Block = tuple[slice, np.ndarray]  # (rows of the query, float32 distances [len(rows), G])

TILE = 1024
# |a|² + |b|² - 2ab cancels for close vectors. Below this share of |a|² + |b|² the pair is computed in float64 …
NEAR = 1e-3
# … and below this one (1e-6 of the length) the vectors are the same as far as float32 can tell: distance 0.
SAME = 1e-12


class FeatureRows:
    """The query's and then the gallery's features, read as one [N, D] float32 table without joining them.

    Args:
        query: [Q, D] numpy array (also memory-mapped) or tensor, any float type.
        gallery: [G, D] likewise. Tiles are made on the device of the tensors; without a tensor, on the CPU.
    Raises:
        ValueError: one is not [n >= 1, D >= 1], the dimensions or the devices differ, or a row holds NaN or
            infinity (which one and where is said).
    """

    def __init__(self, query: Features, gallery: Features) -> None:
        self.parts = {"query": _plain("query", query), "gallery": _plain("gallery", gallery)}
        (self.num_query, self.dim), (self.num_gallery, gallery_dim) = (p.shape for p in self.parts.values())
        if gallery_dim != self.dim:
            raise ValueError(f"the feature dimensions differ: query {self.dim}, gallery {gallery_dim}")
        self.starts = (0, self.num_query)
        devices = {str(part.device) for part in self.parts.values() if isinstance(part, Tensor)}
        if len(devices) > 1:
            raise ValueError(f"the features are on different devices: {', '.join(sorted(devices))}")
        self.device = torch.device(devices.pop() if devices else "cpu")
        self.tile_rows = TILE
        self.squared_norms = torch.cat([self.tile(i).square().sum(1) for i in range(self.num_tiles)])
        self._check_finite()

    def __len__(self) -> int:
        return self.num_query + self.num_gallery

    @property
    def num_tiles(self) -> int:
        return -(-len(self) // self.tile_rows)

    def tile_slice(self, index: int) -> slice:
        """The rows of tile `index`, without its padding."""
        return slice(index * self.tile_rows, min((index + 1) * self.tile_rows, len(self)))

    def tile(self, index: int) -> Tensor:
        """[tile_rows, D] float32, padded with zeros behind the last row."""
        rows = self.tile_slice(index)
        out = torch.zeros(self.tile_rows, self.dim, device=self.device)
        for start, part in zip(self.starts, self.parts.values(), strict=True):
            first, last = max(rows.start, start), min(rows.stop, start + len(part))
            if first < last:
                out[first - rows.start : last - rows.start] = _tensor(part[first - start : last - start])
        return out

    def norms_of_tile(self, index: int) -> Tensor:
        """[tile_rows] squared lengths of the rows of `tile(index)`."""
        return self.squared_norms[index * self.tile_rows : (index + 1) * self.tile_rows]

    def take(self, rows: np.ndarray) -> Tensor:
        """[len(rows), D] float32, the rows in the order asked for."""
        out = torch.empty(len(rows), self.dim, device=self.device)
        for start, part in zip(self.starts, self.parts.values(), strict=True):
            inside = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            wanted = rows[inside] - start
            if isinstance(part, Tensor):
                wanted = torch.from_numpy(wanted).to(self.device)
            out[torch.from_numpy(inside).to(self.device)] = _tensor(part[wanted]).to(self.device)
        return out

    def _check_finite(self) -> None:
        """A NaN would sort anywhere; squared distances beyond float32 (3e38) would make one."""
        broken = (~(self.squared_norms < 1e37)).nonzero()  # so written, it is true of a NaN
        if len(broken):
            row = int(broken[0])
            where = f"query row {row}" if row < self.num_query else f"gallery row {row - self.num_query}"
            raise ValueError(f"{where} holds NaN, infinity or a value too large to be squared in float32")


def _plain(name: str, part: Features) -> Features:
    """`part` as an array or a tensor without gradient; nothing is copied."""
    part = part.detach() if isinstance(part, Tensor) else np.asanyarray(part)
    if part.ndim != 2 or 0 in part.shape:
        raise ValueError(f"{name}: expected features [N, D] with N, D >= 1, got shape {tuple(part.shape)}")
    return part


def _tensor(rows: Features) -> Tensor:
    """A few rows as a float32 tensor."""
    if isinstance(rows, Tensor):
        return rows.float()
    rows = np.asarray(rows, dtype=np.float32)
    # torch cannot mark a tensor read-only, and warns of memory that is (memory-mapped features).
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def squared_euclidean(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
    """|a_i - b_j|² of two tiles: one product, and float64 for the rows in which vectors nearly coincide.

    Args:
        a, b: [T, D] float32;  a_norms, b_norms: [T] their squared lengths.
    Returns:
        [T, T] float32, not negative; exactly 0 where the two vectors are equal. Where a is b, the halves above and
        below the diagonal may differ in the last bit.
    """
    squared = (a_norms[:, None] + b_norms[None, :]).addmm_(a, b.T, alpha=-2)
    if a is b:
        squared.fill_diagonal_(torch.inf)  # an image coincides with itself: no reason to look closer
    # With b's largest length this picks rows a little too generously, and spares most tiles a full comparison.
    near = squared.amin(1) < NEAR * (a_norms + b_norms.amax())
    rows = (near & (a_norms > 0)).nonzero().flatten()  # zeros, as the padding is, cancel nothing
    if len(rows):
        left, right = a[rows].double(), b.double()
        length = left.square().sum(1)[:, None] + right.square().sum(1)[None, :]
        precise = torch.addmm(length, left, right.T, alpha=-2)
        precise[precise < SAME * length] = 0
        squared[rows] = torch.where(precise < NEAR * length, precise.float(), squared[rows])
    return squared.fill_diagonal_(0) if a is b else squared


def _euclidean(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
    return squared_euclidean(a, a_norms, b, b_norms).sqrt_()


def _cosine(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
    return (1 - F.normalize(a) @ F.normalize(b).T).clamp_(0, 2)


METRICS: dict[str, Kernel] = {
    "euclidean": _euclidean,
    "cosine": _cosine,
}


def l2_normalize(feat: Features) -> Features:
    """Scale each feature to length 1; a feature of zeros stays as it is.

    Args:
        feat: [N, D] numpy array (also memory-mapped) or tensor; it is not modified.
    Returns:
        [N, D] float32, of the same kind and on the same device.
    """
    feat = _plain("feat", feat)
    if isinstance(feat, Tensor):
        return F.normalize(feat.float())
    out = np.empty(feat.shape, np.float32)
    for start in range(0, len(feat), TILE):
        out[start : start + TILE] = F.normalize(_tensor(feat[start : start + TILE])).numpy()
    return out


def distance(query: Features, gallery: Features, metric: str) -> Tensor:
    """Distance from every query to every gallery feature; smaller is closer.

    Args:
        query: [Q, D] float32, any norm.
        gallery: [G, D] float32, on query's device.
        metric: "euclidean" (not squared) or "cosine" (1 - cos, in [0, 2]).
    Returns:
        [Q, G] float32; the inputs are not modified. A feature is at distance 0 from an equal one (cosine: 1e-6).
    Raises:
        ValueError: the feature dimensions differ, a feature is not finite, or metric is unknown (the choices
            are listed).
    Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
    """
    return torch.cat([block for _, block in _tile_row_blocks(query, gallery, metric)])


def distance_blocks(query: Features, gallery: Features, metric: str, block_rows: int = TILE) -> Iterator[Block]:
    """`distance`, a few query rows at a time; nothing of size [Q, G] is held.

    Args:
        query, gallery, metric: as for `distance`; numpy arrays may be memory-mapped.
        block_rows: the most query rows in one block; it changes the memory, never the values.
    Returns:
        An iterator of (rows, distances [len(rows), G] float32), `rows` a slice; every query once, in order.
    Raises:
        ValueError: as for `distance`, at the call.
    """
    check_block_rows(block_rows)
    blocks = _tile_row_blocks(query, gallery, metric)
    return regroup(((rows, block.cpu().numpy()) for rows, block in blocks), block_rows)


def _tile_row_blocks(query: Features, gallery: Features, metric: str) -> Iterator[tuple[slice, Tensor]]:
    """One row of tiles after the other, on the features' device; what can be wrong raises at the call."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    return query_gallery_blocks(FeatureRows(query, gallery), METRICS[metric])


def query_gallery_blocks(features: FeatureRows, kernel: Kernel) -> Iterator[tuple[slice, Tensor]]:
    """Query × gallery distances, one row of tiles of the table at a time: (rows, [len(rows), G] float32)."""
    first_gallery_tile = features.num_query // features.tile_rows
    for i in range(-(-features.num_query // features.tile_rows)):
        rows = slice(features.tile_slice(i).start, min(features.tile_slice(i).stop, features.num_query))
        block = torch.empty(rows.stop - rows.start, features.num_gallery, device=features.device)
        a, a_norms = features.tile(i), features.norms_of_tile(i)
        for j in range(first_gallery_tile, features.num_tiles):
            tile = kernel(a, a_norms, features.tile(j), features.norms_of_tile(j))
            # A tile may begin with the last queries; its gallery images start at `skip`.
            columns = features.tile_slice(j)
            skip = max(features.num_query - columns.start, 0)
            first, last = columns.start + skip - features.num_query, columns.stop - features.num_query
            block[:, first:last] = tile[: len(block), skip : columns.stop - columns.start]
        yield rows, block


def regroup(blocks: Iterable[Block], block_rows: int) -> Iterator[Block]:
    """The same rows in blocks of `block_rows` (the last may be shorter); only the cuts change, no value does."""
    pieces: list[np.ndarray] = []
    start = held = 0
    for _, block in blocks:
        taken = 0
        while taken < len(block):
            pieces.append(block[taken : taken + block_rows - held])
            taken += len(pieces[-1])
            held += len(pieces[-1])
            if held == block_rows:
                yield slice(start, start + held), pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
                pieces, start, held = [], start + held, 0
    if held:
        yield slice(start, start + held), pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def check_block_rows(block_rows: int) -> None:
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: at least one row is needed")


def rank_keys(distances: Tensor, indices: Tensor) -> Tensor:
    """int64 keys whose order is: the smaller distance first, among equal distances the smaller index.

    A key is unique, so the k smallest keys are one certain set, which torch.topk does not promise for tied values.

    Args:
        distances: float32, no NaN.
        indices: int64 in [0, 2**32), broadcastable to distances.
    """
    bits = (distances + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the 0.0 it is equal to
    # The bits of a float order like an integer, but backwards below zero: flip those.
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32) | indices


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(distances float32, indices int64) that `rank_keys` made the keys of."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), keys & 0xFFFFFFFF


def top_k(blocks: Iterable[Block], k: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery images of every query, exactly: by distance, equal distances by gallery index.

    Args:
        blocks: (rows, distances [len(rows), G]) as from `distance_blocks`; together every query once.
        k: neighbours wanted, cut to G.
        num_queries: Q.
    Returns:
        indices [Q, k] int64 and distances [Q, k] float32, nearest first.
    Raises:
        ValueError: k < 1, a query is missing, comes twice or is out of range, or a distance is NaN.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour is needed")
    found: list[Tensor | None] = [None] * num_queries
    for rows, block in blocks:
        keys = _smallest_keys(rows, np.asarray(block, dtype=np.float32), k)
        for row, row_keys in zip(range(*rows.indices(max(rows.stop, num_queries))), keys, strict=True):
            if row >= num_queries or found[row] is not None:
                raise ValueError(f"query {row} " + ("came twice" if row < num_queries else
                                                    f"is out of range: there are {num_queries}"))
            found[row] = row_keys
    missing = [row for row, row_keys in enumerate(found) if row_keys is None]
    if missing:
        raise ValueError(f"{len(missing)} of {num_queries} queries have no distances, the first is {missing[0]}")
    distances, indices = split_keys(torch.stack(found))
    return indices.numpy(), distances.numpy()


def _smallest_keys(rows: slice, block: np.ndarray, k: int, rows_at_once: int = 64) -> Tensor:
    """[len(rows), min(k, G)] sorted keys; a few rows at a time, for a key is twice a distance's size."""
    if np.isnan(block).any():
        raise ValueError(f"the distances of query {rows.start + int(np.isnan(block).any(1).argmax())} hold NaN")
    columns = torch.arange(block.shape[1])
    return torch.cat([
        rank_keys(_tensor(block[start : start + rows_at_once]), columns)
        .topk(min(k, block.shape[1]), largest=False).values
        for start in range(0, len(block), rows_at_once)
    ])
