"""Products of features in tiles of searched squared distances."""
from __future__ import annotations

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds
from processor.retrieval.search.feature_rows import FeatureRows


class Tiles:
    """Features as operands whose product is a tile of searched values: [-2a, |a|² - shift, 1] · [b, 1, |b|²].

    Columns behind the last image are NaN, for which no comparison is true. keep: hold the right operands.
    """

    def __init__(self, features: FeatureRows, bounds: Bounds, tile: int, keep: bool = False):
        self.features, self.precision, self.size = features, bounds.precision, tile
        self.norms = bounds.norms
        self.count = -(-len(features) // tile)
        self.pieces = len(self.precision.pieces(torch.zeros(1)))
        self.width = -(-(features.dim + 2 * self.pieces) // 32) * 32  # products of odd rows are slower
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def rows_of(self, index: int) -> slice:
        return slice(index * self.size, min((index + 1) * self.size, len(self.features)))

    def right(self, index: int, out: Tensor | None = None) -> Tensor:
        """The right operand [tile, width] of a tile's rows; `out` is a place that may be used for it."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        rows = self.rows_of(index)
        out = self._operand(rows, self.size, None if self._kept is not None else out)
        _, ones, pieces = self._columns(out)
        ones.fill_(1)
        self._fill(pieces, rows, 0.0)
        if self._kept is not None:
            self._kept[index] = out
        return out

    def left(self, rows: slice, count: int, shift: float) -> Tensor:
        """A left operand [count, width] of some rows; those behind them are zeros and NaN."""
        out = self._operand(rows, count, None)
        feats, pieces, ones = self._columns(out)
        feats *= -2
        ones.fill_(1)
        self._fill(pieces, rows, shift)
        return out

    def product(self, left: Tensor, right: Tensor, out: tuple[Tensor, Tensor]) -> Tensor:
        """Float32 searched values, in one of the places that `places` made."""
        with self.precision.products(left.device):
            torch.mm(left, right.T, out=out[0])
        return out[0] if out[0] is out[1] else out[1].copy_(out[0])

    def places(self, rows: int) -> tuple[Tensor, Tensor]:
        """Places for a product of so many rows and for its float32 values."""
        first = torch.empty(rows, self.size, device=self.features.device, dtype=self.precision.dtype)
        return first, first if first.dtype == torch.float32 else torch.empty_like(first, dtype=torch.float32)

    def _operand(self, rows: slice, count: int, out: Tensor | None) -> Tensor:
        """[count, width] with the rounded features in its first columns, zeros behind the last row."""
        if out is None:
            out = torch.zeros(count, self.width, device=self.features.device, dtype=self.precision.dtype)
        feats = self.features.rows(rows.start, rows.stop)
        if self.precision.dtype == torch.float32:  # else the conversion is what rounds
            feats = self.precision.round(feats)
        out[: len(feats), : self.features.dim] = feats
        out[len(feats) :, : self.features.dim] = 0
        return out

    def _fill(self, columns: Tensor, rows: slice, shift: float) -> None:
        """Squared lengths less the shift into the columns; NaN behind the last image."""
        columns.fill_(torch.nan)
        for place, piece in enumerate(self.precision.pieces(self.norms[rows] - shift)):
            columns[: len(piece), place] = piece

    def _columns(self, operand: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The operand's columns: features, and the two groups behind them."""
        first = self.features.dim
        second, end = first + self.pieces, first + 2 * self.pieces
        return operand[:, :first], operand[:, first:second], operand[:, second:end]
