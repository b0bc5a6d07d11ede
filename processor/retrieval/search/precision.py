"""In which precision the candidate search multiplies.

The features are rounded here, before the product, so that what `bounds` says of them holds whatever the hardware does
with the bits that are no longer there.
"""
from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def _tf32(x: Tensor) -> Tensor:
    """Round to the 10 mantissa bits of TF32, halves to even, as integers: sign and magnitude round alike."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000).view(torch.float32)


@dataclass(frozen=True)
class Precision:
    """One kind of product.

    round: float32 -> float32, to values that the product takes as they are.
    dtype: of its operands and its result.  mode: torch.set_float32_matmul_precision's, for float32 operands.
    units: how many roundings an addition in a product may cost; tensor cores truncate, which costs two.
    result_share: by which share of itself the result is rounded at the end.
    """

    name: str
    round: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    mode: str
    units: int
    result_share: float = 0.0

    def pieces(self, x: Tensor) -> list[Tensor]:
        """Float32 values as a sum of values that the product takes as they are."""
        if self.name == "float32":
            return [x]
        pieces = [self.round(x)]
        for _ in range(2):  # 8 or 11 bits each: three have all 24
            pieces.append(self.round(x - sum(pieces)))
        return pieces

    @contextlib.contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """While it is open, torch.mm multiplies in this precision and adds in float32.

        The setting is the whole process'. The user's comes back when the last product that is under way ends, in any
        order, because the blocks of several models are made in turn.
        """
        _Setting.enter(self.mode if device.type == "cuda" else "highest")  # a CPU has no TF32
        try:
            yield
        finally:
            _Setting.leave()


class _Setting:
    """torch's process-wide settings of products while any `Precision.products` is under way."""

    lock, depth, before = threading.Lock(), 0, ("highest", True)

    @classmethod
    def enter(cls, mode: str) -> None:
        cuda = torch.backends.cuda.matmul
        with cls.lock:
            if cls.depth == 0:
                cls.before = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
                cuda.allow_bf16_reduced_precision_reduction = False
            cls.depth += 1
            torch.set_float32_matmul_precision(mode)

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.depth -= 1
            torch.set_float32_matmul_precision("highest" if cls.depth else cls.before[0])
            if cls.depth == 0:
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = cls.before[1]


PRECISIONS = {
    "float32": Precision("float32", lambda x: x, torch.float32, "highest", 1),
    "tf32": Precision("tf32", _tf32, torch.float32, "high", 2),
    "bf16": Precision("bf16", lambda x: x.bfloat16().float(), torch.bfloat16, "highest", 2, 2.0**-8),
}
CHOICES = ("auto", *PRECISIONS)
PROBE = 128  # rows of a first product: a processor without bfloat16 takes the better part of a second for a large one


def product_seconds(precision: Precision, device: torch.device, dim: int, rows: int) -> float:
    """Seconds of one [rows, dim] x [dim, rows] product, measured now.

    >>> product_seconds(PRECISIONS["float32"], torch.device("cpu"), dim=8, rows=8) > 0
    True
    """
    a = torch.ones(rows, dim, device=device, dtype=precision.dtype)
    out = torch.empty(rows, rows, device=device, dtype=precision.dtype)
    seconds = []
    with precision.products(device):
        for _ in range(3):
            _wait(device)
            start = time.perf_counter()
            torch.mm(a, a.T, out=out)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def choose(name: str, device: torch.device, dim: int, rows: int) -> tuple[Precision, float]:
    """The named precision, for auto what pays here, and its `product_seconds`.

    Args:
        name: auto | float32 | tf32 | bf16. auto takes a low precision only if its products take less than half as
            long: else the wider lists and the float32 pass eat up the gain. The answer is the same.
        device, dim, rows: of the search's products.

    >>> choose("bf16", torch.device("cpu"), dim=8, rows=8)[0].name
    'bf16'
    """
    def measured(name: str, rows: int) -> float:
        return product_seconds(PRECISIONS[name], device, dim, rows)

    if name != "auto":
        return PRECISIONS[name], measured(name, rows)
    low = "tf32" if device.type == "cuda" else "bf16"
    seconds = measured("float32", rows)
    if measured(low, min(PROBE, rows)) < measured("float32", min(PROBE, rows)):
        low_seconds = measured(low, rows)
        if low_seconds < seconds / 2:
            return PRECISIONS[low], low_seconds
    return PRECISIONS["float32"], seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
