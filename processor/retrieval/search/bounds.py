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
    """The interval in which the true squared distance of each searched value lies, and the way back.

    A searched value is what a product gives: the squared distance of two rounded features less `shift`. All methods
    take values [R, C] of the R rows that the bounds are of: all images at first, fewer after `of`.

    Attributes:
        product: [R, 1] what the product can be wrong by.
        rounding: [R, 1] how far apart rounding moved two features at most.
        norms: [N] squared lengths of the rounded features.

    Three images at 0, 1 and 3 on a line, searched in float32: the true 9 lies between the two bounds of a searched 9.

    >>> from processor.retrieval.search.precision import PRECISIONS
    >>> bounds = Bounds(FeatureRows(np.zeros((1, 1)), np.array([[1.0], [3.0]])), PRECISIONS["float32"])
    >>> searched = torch.full((3, 1), 9.0)
    >>> bool((bounds.lower(searched) < 9).all() and (bounds.upper(searched) > 9).all())
    True
    """

    def __init__(self, features: FeatureRows, precision: Precision):
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
        # distance itself (all its terms are positive) by n units of it. 8: the columns of the norms, and room.
        share, lengths = (features.dim + 8) * UNIT, self.norms.sqrt()
        self.product = (share * precision.units * (lengths + lengths.max()).square())[:, None]
        self.rounding = ((residuals + residuals.max()) * (1 + share))[:, None]
        self.scale, self.shift, self.result_share = 1 + 2 * share, 0.0, precision.result_share
        self._shift_share = share * precision.units

    def shifted(self, shift: float) -> Bounds:
        """The bounds of values less another shift."""
        bounds = copy.copy(self)
        bounds.product = self.product + self._shift_share * (abs(shift) - abs(self.shift))
        bounds.shift = shift
        return bounds

    def of(self, rows: slice | Tensor) -> Bounds:
        """The bounds of these rows only."""
        bounds = copy.copy(self)
        bounds.product, bounds.rounding = self.product[rows], self.rounding[rows]
        return bounds

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
    """About how far the last of an image's nearest `others` is: searched values near it should be rounded least.

    >>> typical_distance(FeatureRows(np.zeros((1, 1)), np.ones((9, 1))), others=3)  # most images coincide
    0.0
    """
    size, device = len(features), features.device
    left, right = (torch.linspace(0, size - 1, min(size, most), device=device).long() for most in (256, 4096))
    a, b = (features.take(rows, torch.empty(len(rows), features.dim, device=device)) for rows in (left, right))
    squared = features.squared_norms[left][:, None] + features.squared_norms[right] - 2 * a @ b.T
    rank = min(others * len(right) // size + 1, len(right) - 1)  # the first is the image itself, or takes its place
    return float(kth_smallest(squared, rank + 1).clamp_(min=0).median())
