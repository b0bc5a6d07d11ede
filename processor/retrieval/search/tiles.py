"""Products of rounded features: tiles of squared distances, as far as the search's precision knows them."""
from __future__ import annotations

import torch
from torch import Tensor

from processor.retrieval.search.bounds import Bounds
from processor.retrieval.search.feature_rows import FeatureRows


class Tiles:
    """The features in operands of `size` rows, whose products are tiles of searched values.

    One product makes whole squared distances: [-2a, |a|² - shift, 1] · [b, 1, |b|²]. Columns behind the last image
    are NaN, of which no comparison is true.

    Args:
        bounds: of the search; they have its precision and the lengths of the rounded features.
        tile: images of a tile.
        keep: hold the right operands.

    Three images at 0, 1 and 3 on a line; the tile of the first two images and all:

    >>> from processor.retrieval.search.precision import PRECISIONS
    >>> table = FeatureRows(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]))
    >>> tiles = Tiles(table, Bounds(table, PRECISIONS["float32"]), tile=3)
    >>> tiles.product(tiles.left(slice(0, 2), count=2, shift=0.0), tiles.right(0), tiles.places(2))
    tensor([[0., 1., 9.],
            [1., 0., 4.]])
    """

    def __init__(self, features: FeatureRows, bounds: Bounds, tile: int, keep: bool = False):
        self.features, self.precision, self.size = features, bounds.precision, tile
        self.norms = bounds.norms
        self.count = -(-len(features) // tile)
        self.pieces = len(self.precision.pieces(torch.zeros(1)))
        self.width = -(-(features.dim + 2 * self.pieces) // 32) * 32  # products of odd rows are slower
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def rows_of(self, index: int) -> slice:
        """The images of a tile, cut at the last."""
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
        """The left operand [count, width] of these rows; those behind them are zeros and NaN."""
        out = self._operand(rows, count, None)
        feats, pieces, ones = self._columns(out)
        feats *= -2
        ones.fill_(1)
        self._fill(pieces, rows, shift)
        return out

    def product(self, left: Tensor, right: Tensor, out: tuple[Tensor, Tensor]) -> Tensor:
        """Float32 searched values, in memory that `places` made."""
        with self.precision.products(left.device):
            torch.mm(left, right.T, out=out[0])
        return out[0] if out[0] is out[1] else out[1].copy_(out[0])

    def places(self, rows: int) -> tuple[Tensor, Tensor]:
        """Memory [rows, tile] for a product and for its float32 values."""
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
