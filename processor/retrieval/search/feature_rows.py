"""The query's and the gallery's features as one table of rows, read a piece at a time."""
from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

Features = np.ndarray | Tensor

ROWS_AT_ONCE = 1024  # of a pass over all features


class FeatureRows:
    """The query's and then the gallery's features, read as one [N, D] float32 table.

    Nothing is copied on the CPU, also not to normalise: an ensemble reads many banks, each as large as memory may be.
    Two arrays that lie one behind the other, as the two slices of a feature bank do, are read as one.

    Args:
        query: [Q, D] numpy array (also memory-mapped) or tensor, any float type.
        gallery: [G, D] likewise.
        device: to compute on; None = that of the tensors, the CPU for numpy arrays. Another device than the CPU gets a
            copy of the features.
        normalize: give the rows out with length 1 (zeros stay zeros), with the bits of `l2_normalize`.
    Raises:
        ValueError: query or gallery is not [n >= 1, D >= 1], the dimensions or the devices differ, or a row holds
            NaN or infinity (the message names it).

    >>> table = FeatureRows(np.array([[3.0, 4.0]]), np.array([[0.0, 1.0], [2.0, 0.0]]))
    >>> len(table), table.num_query, table.squared_norms.tolist(), table.rows(1, 3).tolist()
    (3, 1, [25.0, 1.0, 4.0], [[0.0, 1.0], [2.0, 0.0]])
    """

    def __init__(
        self, query: Features, gallery: Features, device: torch.device | str | None = None, normalize: bool = False,
    ) -> None:
        parts = as_query_gallery(query, gallery)
        (self.num_query, self.dim), (self.num_gallery, _) = (part.shape for part in parts)
        devices = {str(part.device) for part in parts if isinstance(part, Tensor)}
        if len(devices) > 1 and device is None:
            raise ValueError(f"the features are on different devices: {', '.join(sorted(devices))}")
        self.device = torch.device(device or (devices.pop() if devices else "cpu"))
        self._owners = parts  # a view over both does not keep the gallery's memory alive
        self._parts = [_as_tensor(part) for part in _as_one_table(*parts)]
        self._parts = [part if part.device == self.device else part.to(self.device, torch.float32)
                       for part in self._parts]
        self._ends = np.cumsum([len(part) for part in self._parts]).tolist()
        self._lengths: Tensor | None = None
        self.squared_norms, mean = self._moments()
        self._check_finite()
        if normalize:
            self._lengths = torch.cat([lengths(self.rows(start, start + ROWS_AT_ONCE)) for start in self._chunks()])
            self.squared_norms, mean = self._moments()
        # Of features that differ little from their mean, |a|² + |b|² - 2ab loses what they differ by.
        self.need_float64 = bool(2 * mean.square().sum() > self.squared_norms.double().mean())

    def _chunks(self) -> range:
        return range(0, len(self), ROWS_AT_ONCE)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """[N] squared lengths, and the mean [D] in float64."""
        squares, total = [], torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for start in self._chunks():
            rows = self.rows(start, start + ROWS_AT_ONCE)
            squares.append(torch.linalg.vector_norm(rows, dim=1).square_())
            total += rows.sum(0)
        return torch.cat(squares), total / len(self)

    def __len__(self) -> int:
        return self.num_query + self.num_gallery

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start ... stop (cut at N) as [n, D] float32 on the device; it may be the table's memory."""
        pieces = []
        for part, end in zip(self._parts, self._ends, strict=True):
            first = end - len(part)
            if start < end and stop > first:
                pieces.append(part[max(start - first, 0) : stop - first].float())
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return rows if self._lengths is None else rows / self._lengths[start:stop, None]

    def take(self, rows: Tensor, out: Tensor) -> Tensor:
        """Gather rows [P] (int64, on the device) into out [P, D] float32, in the order asked for."""
        if len(self._parts) == 1 and self._parts[0].dtype == torch.float32:
            torch.index_select(self._parts[0], 0, rows, out=out)
            return out if self._lengths is None else out.div_(self._lengths[rows, None])
        for part, end in zip(self._parts, self._ends, strict=True):
            inside = ((rows >= end - len(part)) & (rows < end)).nonzero().flatten()
            out[inside] = part[rows[inside] - (end - len(part))].float()
        return out if self._lengths is None else out.div_(self._lengths[rows, None])

    def _check_finite(self) -> None:
        """A NaN would sort anywhere; squared distances beyond float32 (3e38) would make a NaN."""
        broken = (~(self.squared_norms < 1e37)).nonzero()  # so written, it is true of a NaN
        if len(broken):
            row = int(broken[0])
            name = f"query row {row}" if row < self.num_query else f"gallery row {row - self.num_query}"
            raise ValueError(f"{name} holds NaN, infinity or a value too large to be squared in float32")


def lengths(rows: Tensor) -> Tensor:
    """[n] what to divide features [n, D] by to give them length 1; never 0.

    >>> lengths(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """
    return torch.linalg.vector_norm(rows, dim=1).clamp_(min=1e-12)


def as_features(name: str, part: Features) -> Features:
    """`part` as an array or a tensor without gradient; nothing is copied.

    Raises:
        ValueError: it is not [N, D] with N, D >= 1, or holds no real numbers.

    >>> as_features("query", np.zeros(3))
    Traceback (most recent call last):
    ValueError: query: expected features [N, D] with N, D >= 1, got shape (3,)
    """
    part = part.detach() if isinstance(part, Tensor) else np.asanyarray(part)
    if part.ndim != 2 or 0 in part.shape:
        raise ValueError(f"{name}: expected features [N, D] with N, D >= 1, got shape {tuple(part.shape)}")
    is_real = not part.is_complex() if isinstance(part, Tensor) else part.dtype.kind in "fiub"
    if not is_real:
        raise ValueError(f"{name}: expected features of real numbers, got {part.dtype}")
    return part


def as_query_gallery(query: Features, gallery: Features) -> list[Features]:
    """Both by `as_features`.

    Raises:
        ValueError: as `as_features`, and for dimensions that differ.

    >>> as_query_gallery(np.zeros((2, 8)), np.zeros((5, 4)))
    Traceback (most recent call last):
    ValueError: the feature dimensions differ: query 8, gallery 4
    """
    parts = [as_features("query", query), as_features("gallery", gallery)]
    if parts[0].shape[1] != parts[1].shape[1]:
        raise ValueError(f"the feature dimensions differ: query {parts[0].shape[1]}, gallery {parts[1].shape[1]}")
    return parts


def _as_tensor(part: Features) -> Tensor:
    """The same memory as a tensor."""
    if isinstance(part, Tensor):
        return part
    if part.dtype.kind != "f" or not part.dtype.isnative or part.itemsize > 8 or min(part.strides) < 0:
        part = part.astype(np.float32)
    with warnings.catch_warnings():
        # torch cannot mark a tensor read-only and warns of memory that is (memory-mapped features). Nothing here
        # writes to features.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(part)


def _as_one_table(query: Features, gallery: Features) -> list[Features]:
    """[a view of both] if the gallery begins in memory at the query's end, else the two as they are."""
    shape = (len(query) + len(gallery), query.shape[1])
    if isinstance(query, Tensor) and isinstance(gallery, Tensor):
        same = (query.dtype == gallery.dtype and query.is_contiguous() and gallery.is_contiguous()
                and query.untyped_storage().data_ptr() == gallery.untyped_storage().data_ptr()
                and query.data_ptr() + query.numel() * query.element_size() == gallery.data_ptr())
        return [query.as_strided(shape, (query.shape[1], 1))] if same else [query, gallery]
    if isinstance(query, np.ndarray) and isinstance(gallery, np.ndarray):
        same = (query.dtype == gallery.dtype and query.flags.c_contiguous and gallery.flags.c_contiguous
                and query.ctypes.data + query.nbytes == gallery.ctypes.data)
        if same:
            strides = (query.shape[1] * query.itemsize, query.itemsize)
            return [np.lib.stride_tricks.as_strided(query, shape, strides, writeable=False)]
    return [query, gallery]
