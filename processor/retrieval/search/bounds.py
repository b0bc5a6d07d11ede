"""What a search in low precision can be wrong by at most.

The search multiplies features rounded to few bits and leaves the decision to float32: every candidate's distance is
computed again, and the bounds here prove, row by row, that no image outside the candidates can be nearer. They follow
from the triangle inequality, | |a - b| - |ã - b̃| | <= |a - ã| + |b - b̃|, with the rounded ã and b̃ of which the hardware
makes its products, and from the textbook bound of a sum's rounding errors (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1).
"""
from __future__ import annotations

import copy

import torch
from torch import Tensor

from processor.retrieval.search.feature_rows import ROWS_AT_ONCE, FeatureRows
from processor.retrieval.search.precision import Precision
from processor.retrieval.search.top_k import kth_smallest

UNIT = 2.0**-24  # float32 rounds by this share at most


class Bounds:
    """From a searched value to the interval in which the true squared distance lies, and back.

    A searched value is the product's squared distance of the rounded features less `shift`. `of(rows)` has the bounds
    of some rows: product [R, 1] is what the product can be wrong by, rounding [R, 1] how far apart rounding moved two
    features at most. norms: [N] squared lengths of the rounded features.
    """

    def __init__(self, features: FeatureRows, precision: Precision, shift: float = 0.0):
        self.precision = precision
        self.norms, residuals = features.squared_norms, torch.zeros_like(features.squared_norms)
        if precision.name != "float32":
            self.norms = torch.empty_like(self.norms)
            for start in range(0, len(features), ROWS_AT_ONCE):
                rows, part = features.rows(start, start + ROWS_AT_ONCE), slice(start, start + ROWS_AT_ONCE)
                rounded = precision.round(rows)
                self.norms[part] = torch.linalg.vector_norm(rounded, dim=1).square_()
                residuals[part] = torch.linalg.vector_norm(rounded.sub_(rows), dim=1)
        # A sum of n products in float32 is wrong by n units of the sum of their absolute values at most, and of the
        # distance itself (all its terms are positive) by n units of itself. 8: the norms' own columns, and room.
        share, lengths = (features.dim + 8) * UNIT, self.norms.sqrt()
        self.product = (share * precision.units * (lengths + lengths.max()).square())[:, None]
        self.rounding = ((residuals + residuals.max()) * (1 + share))[:, None]
        self.scale, self.shift, self.result_share = 1 + 2 * share, 0.0, precision.result_share
        self._shift_share = share * precision.units
        if shift:
            self.__dict__ = self.shifted(shift).__dict__

    def shifted(self, shift: float) -> Bounds:
        """The bounds for values less another shift."""
        other = copy.copy(self)
        other.product = self.product + self._shift_share * (abs(shift) - abs(self.shift))
        other.shift = shift
        return other

    def of(self, rows: slice | Tensor) -> Bounds:
        """The bounds of some rows only."""
        some = copy.copy(self)
        some.product, some.rounding = self.product[rows], self.rounding[rows]
        return some

    def lower(self, searched: Tensor) -> Tensor:
        """[R, C] no true distance with this searched value is smaller."""
        least = searched * (1 - self.result_share * searched.sign()) + (self.shift - self.product)
        return (least.clamp_(min=0).sqrt_() - self.rounding).clamp_(min=0).square_() / self.scale

    def upper(self, searched: Tensor) -> Tensor:
        """[R, C] no true distance with this searched value is larger."""
        most = searched * (1 + self.result_share * searched.sign()) + (self.shift + self.product)
        return (most.clamp_(min=0).sqrt_() + self.rounding).square_() * self.scale

    def error(self, searched: Tensor) -> Tensor:
        """[R, 1] how far a true distance can be from its searched value plus shift, in rows of values [R, C]."""
        least, most = searched.amin(1, keepdim=True), searched.amax(1, keepdim=True)
        searched_error = self.product + self.result_share * torch.maximum(least.abs(), most.abs())
        reach = (most + self.shift + searched_error).clamp_(min=0).sqrt_()
        rounded = self.rounding * (2 * reach + self.rounding)
        return searched_error + rounded + (self.scale - 1) * (reach + self.rounding).square()

    def lowest_beyond(self, true: Tensor) -> Tensor:
        """[R, C] the searched value from which on no true distance is `true` or smaller."""
        least = ((true * self.scale).sqrt_() + self.rounding).square_() * (1 + 8 * UNIT) + self.product - self.shift
        return least / (1 - self.result_share * least.sign()) + 8 * UNIT * abs(self.shift)

    def highest_below(self, true: Tensor) -> Tensor:
        """[R, C] the searched value up to which no true distance is `true` or larger."""
        root = ((true / self.scale).sqrt_() - self.rounding).clamp_(min=0)
        most = root.square_() * (1 - 8 * UNIT) - self.product - self.shift
        return most / (1 + self.result_share * most.sign()) - 8 * UNIT * abs(self.shift)


def typical_distance(features: FeatureRows, others: int) -> float:
    """About how far the last of an image's nearest `others` is: searched values near it should be rounded least."""
    size, device = len(features), features.device
    some = torch.linspace(0, size - 1, min(size, 256), device=device).long()
    many = torch.linspace(0, size - 1, min(size, 4096), device=device).long()
    a, b = (features.take(rows, torch.empty(len(rows), features.dim, device=device)) for rows in (some, many))
    squared = features.squared_norms[some][:, None] + features.squared_norms[many] - 2 * a @ b.T
    rank = min(others * len(many) // size + 1, len(many) - 1)  # the first is the image itself, or takes its place
    return float(kth_smallest(squared, rank + 1).clamp_(min=0).median())
