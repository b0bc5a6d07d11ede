"""A short code of every vector, and a proven bound on what it hides: a search reads codes first, few vectors after.

A vector x [D] is turned into the m directions in which the gallery varies most, y = Pᵀx, and rounded to int8. For a
query q with Pᵀq = z, rounded to ẑ, and x's code ŷ,

    q·x = ẑ·ŷ + (z - ẑ)·ŷ + z·(y - ŷ) + q·(I - PPᵀ)x,

of which the search has ẑ·ŷ, exactly, in whole numbers. The rest is bounded by the lengths of its parts
(Cauchy-Schwarz); those of the vector are kept beside its code.
"""
from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.files import atomic_path, naming
from utils.parallel import in_threads, thread_count

UNIT = 2.0**-24       # float32 rounds by this share at most
WIDTH = 64            # m is a multiple of it
TAIL = 0.01           # what the directions that are left out may make a dot product wrong by, for nearly all rows
ROWS_AT_ONCE = 1024
HEADER = np.dtype([("magic", "S8"), ("dim", "<i8"), ("width", "<i8"), ("capacity", "<i8"), ("count", "<i8"),
                   ("scale", "<f8"), ("skew", "<f8"), ("spare", "<i8")])
MAGIC = b"reidcod1"

# torch warns once a process of memory that is read-only, as a map is. Nothing here writes to it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), np.float32))


# ------------------------------------------------------------------ vectors to codes
@dataclass(frozen=True)
class Basis:
    """The directions that codes have.

    Attributes:
        matrix: [D, m] float32, P.
        scale: what 1 of a code stands for.
        skew: |PᵀP - I| is at most this.
    """

    matrix: np.ndarray
    scale: float
    skew: float

    @classmethod
    def of(cls, vectors: np.ndarray) -> Basis:
        """For vectors [n, D] like these: as few directions as leave out little, all of them if none is left out."""
        dim = vectors.shape[1]
        vectors = torch.from_numpy(vectors).double()
        directions = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)
        # Of each row what the first 0, WIDTH, 2 WIDTH, … directions leave of its squared length.
        parts = (vectors @ directions).square_().split(WIDTH, 1)
        left = 1 - torch.cumsum(torch.stack([part.sum(1) for part in parts]), 0)
        widths = (left.quantile(0.999, dim=1) <= TAIL).nonzero().flatten()
        width = min((int(widths[0]) + 1) * WIDTH, dim) if len(widths) else dim
        # Turned at random inside, so that no direction is longer than another: one scale then fits all.
        turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double()).Q
        matrix = (directions[:, :width] @ turn).float()
        skew = torch.linalg.matrix_norm(matrix.double().T @ matrix.double() - torch.eye(width))
        scale = float((vectors @ matrix.double()).abs().max()) * 1.05 / 127
        return cls(matrix.numpy(), scale, float(skew) * 1.001 + 1e-12)

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """codes [n, m] int8 and errors [2, n] float32 of vectors [n, D] float32.

        Of the errors the first is at least |y - ŷ|, the second at least |(I - PPᵀ)x|; both are above 0.
        """
        dim, width = self.matrix.shape
        x, matrix = torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(self.matrix)
        turned = x @ matrix
        codes = (turned / self.scale).round_().clamp_(-127, 127)
        errors = torch.stack([torch.linalg.vector_norm(turned - codes * self.scale, dim=1),
                              torch.linalg.vector_norm(x - turned @ matrix.T, dim=1)])
        errors += torch.tensor(_rounding(dim, width))[:, None]
        return codes.to(torch.int8).numpy(), errors.numpy()


class QueryCodes:
    """Queries [Q, D] of length 1 in a basis: ints [Q, m] int8, and what one of their product with a code is worth."""

    def __init__(self, basis: Basis, queries: np.ndarray):
        x, matrix = torch.from_numpy(queries), torch.from_numpy(basis.matrix)
        turned = x @ matrix
        scale = (turned.abs().amax(1, keepdim=True) / 127).clamp_(min=1e-12)
        ints = (turned / scale).round_()
        self.ints, self.unit = ints.to(torch.int8).numpy(), scale[:, 0].double().numpy() * basis.scale
        inside, outside = _rounding(*basis.matrix.shape)
        self._inside = _lengths(turned) + inside
        self._outside = _lengths(x - turned @ matrix.T) + outside
        self._rounding = _lengths(turned - ints * scale) + inside
        self._skew = 1.01 * basis.skew + 1e-9

    def errors(self, errors: np.ndarray, query: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[n] how far the product may be from the dot product, of rows with these `errors` [2, n] and queries [n]."""
        inside, outside = errors.astype(np.float64)
        return (self._inside[query] * inside + self._outside[query] * outside + self._skew
                + self._rounding[query] * (1.001 + self._skew + inside)) * (1 + 1e-6)


def _lengths(rows: torch.Tensor) -> np.ndarray:
    return torch.linalg.vector_norm(rows, dim=1).double().numpy()


def _rounding(dim: int, width: int) -> tuple[float, float]:
    """How far float32 may put Pᵀx, and x - PPᵀx, from the true ones: of each of m or D components a sum's errors."""
    inside = width**0.5 * (dim + 8) * UNIT
    return inside, inside + width**0.5 * (width + 8) * UNIT


# ------------------------------------------------------------------ products of codes
def product(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[Q, n] the dot products of int8 rows [Q, m] and [n, m], exact."""
    left, right = torch.from_numpy(queries), torch.from_numpy(codes)
    kernel = _kernel(len(left) > 1, left.shape[1])
    return kernel(left, right).numpy()


def _int8(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(left, right.T)


def _float32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Exact as long as no sum passes 2**24; a few rows at a time stay in a core's cache."""
    exact = torch.float32 if left.shape[1] * 127**2 < 2**24 else torch.float64
    left = left.to(exact)
    return torch.cat([left @ rows.to(exact).T for rows in right.split(512)], 1)


@functools.cache
def _kernel(batch: bool, width: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The faster of two that is right on this processor: some add pairs of int8 products in 16 bits, which overflow."""
    left = torch.full((64 if batch else 1, width), 127, dtype=torch.int8)
    right = torch.full((2048, width), 127, dtype=torch.int8)
    right[1::2] = -127
    seconds = {}
    for kernel in (_int8, _float32):
        try:
            if not torch.equal(kernel(left, right).double(), left.double() @ right.double().T):
                continue
        except RuntimeError:  # not made for this processor, or not in this version
            continue
        for _ in range(3):
            start = time.perf_counter()
            kernel(left, right)
            seconds[kernel] = min(seconds.get(kernel, 1e9), time.perf_counter() - start)
    return min(seconds, key=seconds.get)


# ------------------------------------------------------------------ codes in a file
class CodedRows:
    """The codes of a file of vectors, of its first rows, mapped; they become more as a writer appends.

    Attributes:
        basis: of all codes in the file.
        codes, errors: [capacity, m] int8 and [2, capacity] float32, of which the first len(self) rows count.
    Raises:
        OSError: the file is none of these, or cut short.
    """

    def __init__(self, path: Path, dim: int):
        with open(path, "rb") as file:
            header = np.frombuffer(file.read(HEADER.itemsize).ljust(HEADER.itemsize), HEADER)[0]
        width, capacity = int(header["width"]), int(header["capacity"])
        self.path, self.starts = path, _starts(dim, width, capacity)
        if header["magic"] != MAGIC or header["dim"] != dim or path.stat().st_size != self.starts[-1]:
            raise OSError(f"{path}: damaged; the next addition makes it again")
        data = np.memmap(path, np.uint8, "r").view(np.ndarray)
        self._header = data[: HEADER.itemsize].view(HEADER)
        matrix, errors, codes = np.split(data, self.starts)[1:4]
        self.basis = Basis(matrix.view(np.float32).reshape(dim, width), float(self._header["scale"][0]),
                           float(self._header["skew"][0]))
        self.errors = errors.view(np.float32).reshape(2, capacity)
        self.codes = codes.view(np.int8).reshape(capacity, width)

    def __len__(self) -> int:
        return int(self._header["count"][0])

    def check(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Raise ValueError if a code is not that of its vector: of rows [n] and their vectors [n, D]."""
        rows, vectors = rows[rows < len(self)], vectors[rows < len(self)]
        codes, errors = torch.from_numpy(self.codes[rows]) * self.basis.scale, self.errors[:, rows]
        matrix = torch.from_numpy(self.basis.matrix)
        turned = torch.from_numpy(vectors) @ matrix
        away = np.stack([_lengths(turned - codes), _lengths(torch.from_numpy(vectors) - turned @ matrix.T)])
        bad = (~(away <= errors) & vectors.any(1)).any(0)
        if bad.any():
            raise ValueError(f"{self.path.name}: damaged: the code of row {rows[bad.argmax()]} is not its vector's; "
                             "remove the file, and the next addition makes it again")

    def spans(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """(start, length) in the file of what it has of rows [n]."""
        middle = (self.starts[1] + self.starts[2]) // 2
        for first, size in ((self.starts[1], 4), (middle, 4), (self.starts[2], self.codes.shape[1])):
            yield from ((first + row * size, size) for row in rows[rows < len(self.codes)].tolist())


def _starts(dim: int, width: int, capacity: int) -> list[int]:
    """Where the matrix, the errors and the codes begin in a file, and its length."""
    sizes = [HEADER.itemsize, 4 * dim * width, 8 * capacity, capacity * width]
    return [sum(sizes[: i + 1]) for i in range(4)]


def make_codes(path: Path, sample: np.ndarray, capacity: int) -> None:
    """A file for the codes of `capacity` vectors like the sample [n, D], n > 0; still without any."""
    basis = Basis.of(sample)
    header = np.array([(MAGIC, *basis.matrix.shape, capacity, 0, basis.scale, basis.skew, 0)], HEADER)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header.tobytes() + basis.matrix.tobytes())
        file.truncate(_starts(*basis.matrix.shape, capacity)[-1])


def append_codes(path: Path, dim: int, vectors: Callable[[slice], np.ndarray], stop: int) -> None:
    """Code the rows up to `stop` that have no code yet, vectors(rows) [n, dim] float32; durable before they count.

    One process at a time may append; others may read.
    """
    rows = CodedRows(path, dim)
    stop = min(stop, len(rows.codes))
    if len(rows) >= stop:
        return
    _, errors_start, codes_start, _ = rows.starts
    errors_middle = (errors_start + codes_start) // 2
    with naming(path), open(path, "r+b") as file:
        firsts = range(len(rows), stop, ROWS_AT_ONCE)
        coded = in_threads(lambda first: rows.basis.encode(vectors(slice(first, min(first + ROWS_AT_ONCE, stop)))),
                           firsts, thread_count(torch.device("cpu")))
        for first, (codes, errors) in zip(firsts, coded, strict=True):
            for start, part in ((codes_start, codes), (errors_start, errors[0]), (errors_middle, errors[1])):
                file.seek(start + first * part[:1].nbytes)
                file.write(part.tobytes())
        file.flush()
        os.fsync(file.fileno())
        file.seek(HEADER.fields["count"][1])
        file.write(np.int64(stop).tobytes())
        file.flush()
        os.fsync(file.fileno())
