"""In which precision the candidate search multiplies, and what it can be wrong by at most.

The search multiplies features rounded to few bits and leaves the decision to float32: every candidate's distance is
computed again, and the bounds here prove, row by row, that no image outside the candidates can be nearer. They follow
from the triangle inequality, | |a - b| - |ã - b̃| | <= |a - ã| + |b - b̃|, with the rounded ã and b̃ of which the hardware
makes its products. The features are rounded here, before the product, so that the bounds hold whatever the hardware
does with the bits that are no longer there.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = 2.0**-24  # float32 rounds by this share at most


def _tf32(x: Tensor) -> Tensor:
    """Round to the 10 mantissa bits of TF32, halves to even, as integers: sign and magnitude round alike."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000).view(torch.float32)


@dataclass(frozen=True)
class Precision:
    """round: float32 -> float32 that the products take as they are; mode: torch.set_float32_matmul_precision's;
    units: how many roundings one addition in a product may cost; tensor cores truncate, which costs two.
    """

    name: str
    round: Callable[[Tensor], Tensor]
    mode: str
    units: int

    def pieces(self, x: Tensor) -> list[Tensor]:
        """Float32 values as a sum of values that the product takes as they are."""
        if self.name == "float32":
            return [x]
        found = [self.round(x)]
        for _ in range(2):  # 8 or 11 bits each: three have all 24
            found.append(self.round(x - sum(found)))
        return found

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Where torch.mm of float32 multiplies in this precision."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.mode)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


PRECISIONS = {
    "float32": Precision("float32", lambda x: x, "highest", 1),
    "tf32": Precision("tf32", _tf32, "high", 2),
    "bf16": Precision("bf16", lambda x: x.bfloat16().float(), "medium", 2),
}
CHOICES = ("auto", *PRECISIONS)


def product_seconds(precision: Precision, device: torch.device, dim: int, rows: int) -> float:
    """Seconds of one [rows, dim] x [dim, rows] product, measured now."""
    a = precision.round(torch.ones(rows, dim, device=device))
    out = torch.empty(rows, rows, device=device)
    seconds = []
    with precision.products():
        for _ in range(3):
            _wait(device)
            start = time.perf_counter()
            torch.mm(a, a.T, out=out)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def choose(name: str, device: torch.device, dim: int, rows: int) -> tuple[Precision, float]:
    """The named precision, for auto the one that pays here, and its `product_seconds`.

    Args:
        name: auto | float32 | tf32 | bf16. auto takes a low one only where its products take less than half as
            long: below that, the wider lists and the float32 pass eat up the gain. The answer is the same.
        device, dim, rows: of the search's products.
    Raises:
        ValueError: an unknown name (the choices are listed).
    """
    if name not in CHOICES:
        raise ValueError(f"unknown precision {name!r}; choose from {', '.join(CHOICES)}")
    names = (name,) if name != "auto" else ("float32", "tf32" if device.type == "cuda" else "bf16")
    seconds = {one: product_seconds(PRECISIONS[one], device, dim, rows) for one in names}
    first, last = names[0], names[-1]
    best = last if seconds[last] < seconds[first] / 2 else first
    return PRECISIONS[best], seconds[best]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
