"""What every engine of a gallery gives, and what it refuses before anything is written.

A row is a vector of length 1 with an id and facts: camera, time, set, identity, the picture's name, and free JSON.
Engines differ in where rows lie (a folder, a cluster), never in what a method means: the same tests run over all.
"""
from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from processor.gallery.ledger import Ledger

UNKNOWN = -1  # a camera, a time or an identity that is not known
_DAY = 24 * 60 * 60 * 1000  # ms
NEAR_ONE = 1e-5  # how far from 1 a vector's length may be
# The facts of a row: {name: what an absent one is}. Numbers are int64; time is in ms since 1970; data is JSON text.
FACTS: dict[str, int | str] = {"camera": UNKNOWN, "time": UNKNOWN, "identity": UNKNOWN, "set": "", "name": "",
                               "data": "{}"}


@dataclass(frozen=True)
class Where:
    """Which rows: all conditions that are given hold.

    Attributes:
        cameras, identities, sets: the row's is one of these.
        since, until: ms; since <= time < until.
    """

    cameras: Collection[int] | None = None
    since: int | None = None
    until: int | None = None
    identities: Collection[int] | None = None
    sets: Collection[str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether every row fulfils it."""
        return all(getattr(self, field.name) is None for field in fields(self))

    def mask(self, facts: Mapping[str, np.ndarray]) -> np.ndarray:
        """[N] bool: the rows with these facts (camera, time, identity, set) that fulfil it.

        >>> Where(cameras=[2], until=9).mask({"camera": np.array([2, 2, 1]), "time": np.array([5, 9, 5])}).tolist()
        [True, False, False]
        """
        kept = np.ones(len(next(iter(facts.values()))), bool)
        for name, values in (("camera", self.cameras), ("identity", self.identities), ("set", self.sets)):
            if values is not None:
                kept &= _among(facts[name], np.unique(list(values)))
        if self.since is not None:
            kept &= facts["time"] >= self.since
        if self.until is not None:
            kept &= facts["time"] < self.until
        return kept


def _among(column: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[N] bool: which of a column [N] int64 are among the values [n], ascending; much faster than `np.isin`."""
    if values.dtype.kind != "i":  # none, or such as no row has
        return np.isin(column, values)
    first, last = int(values[0]), int(values[-1])
    if last - first == len(values) - 1:
        return (column >= first) & (column <= last)
    if last - first > 2**16:
        return np.isin(column, values, kind="sort" if len(values) < 50 else None)
    table = np.zeros(last - first + 3, bool)
    table[values - first + 1] = True
    return table.take(column - first + 1, mode="clip")  # its ends are False; a difference that wraps is beyond them


@dataclass(frozen=True)
class Candidates:
    """Rows that an engine takes for the nearest.

    Attributes:
        ids: [Q, n] int64, best first; -1 if there are not so many.
        scores: [Q, n] float32 dot products as the engine has them, descending; -inf if there are not so many.
        error: |score - true dot product| <= error.
        complete: no row that fulfils the filter was skipped; an approximate search is not complete.
        squared: [Q, n] float32, where the engine computes them as we do: the values of `PairDistances`, inf if there
            are not so many; then rows come by these, equal ones by id.
    """

    ids: np.ndarray
    scores: np.ndarray
    error: float
    complete: bool
    squared: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of a scan: ids [n] int64, vectors [n, D] float32, facts {name: [n]} as FACTS has them."""

    ids: np.ndarray
    vectors: np.ndarray
    facts: dict[str, np.ndarray]


class Gallery(Protocol):
    """An open gallery; a context manager that closes it.

    dim: D. model: the model_id that its vectors are of, "" = not known.
    ledger: names, undo log and thumbnails; None beside a cluster if it was opened without `state`.
    """

    dim: int
    model: str
    ledger: Ledger | None

    def add(self, ids: Sequence[int], vectors: np.ndarray, facts: Mapping[str, Sequence], *,
            replace: bool = False) -> None:
        """Add rows, all or none; they are durable when it returns.

        Args:
            ids: [n], 0 <= id < 2**63.
            vectors: [n, D] of length 1.
            facts: {name of FACTS: [n]}; what is absent is not known.
            replace: rows with a known id take its place; else a known id is an error.
        Raises:
            ValueError: see `check_rows`; nothing was written.
        """
        ...

    def remove(self, ids: Sequence[int] | None = None, where: Where | None = None, *, erase: bool = False) -> int:
        """Remove rows by id, or those that fulfil `where`; the number of rows that were there.

        The ledger forgets them, too. With `erase`, nothing of them remains where the engine can promise it.
        Raises:
            ValueError: neither is given, or both.
        """
        ...

    def purge(self, older_than_days: float) -> int:
        """Remove the rows whose time is known and longer ago, as with `erase`; the number of rows."""
        ...

    def assign(self, ids: Sequence[int], **facts: Any) -> int:
        """Give rows another identity, set, camera, time, name or data, one value for all; the number of rows."""
        ...

    def candidates(self, queries: np.ndarray, n: int, where: Where | None = None, exact: bool = True) -> Candidates:
        """The n best rows for each query [Q, D] by dot product."""
        ...

    def fetch(self, ids: Sequence[int], with_facts: bool = True) -> Batch:
        """Rows by id, in this order, the vectors with the bits that were added; without facts it is faster.

        Raises:
            KeyError: an id is not there; the message names the first.
        """
        ...

    def scan(self, where: Where | None = None, batch: int = 8192) -> Iterator[Batch]:
        """All rows that fulfil `where`, by ascending id, as they were when it began."""
        ...

    def count(self, where: Where | None = None) -> int:
        """How many rows fulfil `where`."""
        ...

    def close(self) -> None:
        """Release files and connections; closing again does nothing."""
        ...


# ------------------------------------------------------------------ what is refused
def check_rows(ids: Sequence[int], vectors: np.ndarray, facts: Mapping[str, Sequence],
               dim: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The rows as arrays: ids [n] int64, vectors [n, D] float32, facts {every name of FACTS: [n]}.

    Raises:
        ValueError: a wrong shape, an id twice or out of range, a vector that is not finite or not of length 1 (within
            NEAR_ONE), an unknown fact, or a fact's value of another kind; the first bad row is named.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"ids: expected a list of whole numbers, got {ids.dtype} of shape {ids.shape}")
    given, ids = ids, ids.astype(np.int64)  # an unsigned number that is too large becomes a negative one
    if len(bad := np.flatnonzero(ids < 0)):
        raise ValueError(f"ids: {given[bad[0]]} is not in 0 .. 2**63 - 1")
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(f"ids: {values[counts > 1][0]} comes twice")
    return ids, check_vectors(vectors, dim, len(ids)), check_facts(facts, len(ids))


def check_vectors(vectors: np.ndarray, dim: int, count: int | None = None) -> np.ndarray:
    """[n, D] float32, contiguous; for rows and for queries.

    Raises:
        ValueError: as `check_rows`.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim or (count is not None and len(vectors) != count):
        raise ValueError(f"vectors: expected [{'n' if count is None else count}, {dim}], got {list(vectors.shape)}")
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if len(bad := np.flatnonzero(~(np.abs(lengths - 1) <= NEAR_ONE))):  # NaN is bad, too
        raise ValueError(f"vectors: row {bad[0]} has length {lengths[bad[0]]:.6g}, expected 1; Embedder.embed gives "
                         "such rows")
    return vectors


def check_facts(facts: Mapping[str, Sequence], count: int) -> dict[str, np.ndarray]:
    """{every name of FACTS: [n] int64, or objects that are str}.

    Raises:
        ValueError: as `check_rows`.

    >>> check_facts({"camera": [4]}, 1)["camera"].tolist(), check_facts({}, 1)["data"].tolist()
    ([4], ['{}'])
    """
    unknown = set(facts) - set(FACTS)
    if unknown:
        raise ValueError(f"facts: {', '.join(sorted(unknown))} is none of {', '.join(FACTS)}")
    return {name: _check_fact(name, facts[name] if name in facts else [default] * count, count)
            for name, default in FACTS.items()}


def _check_fact(name: str, values: Sequence, count: int) -> np.ndarray:
    values = np.asarray(values, dtype=None if count else object)
    if values.shape != (count,):
        raise ValueError(f"facts: {name} has shape {list(values.shape)}, expected [{count}]")
    if isinstance(FACTS[name], int):
        kind, numbers = values.dtype.kind, values
        if kind in "iu" or not count:
            numbers = values.astype(np.int64)  # an unsigned number that is too large becomes a negative one
        if count and (kind not in "iu" or (kind == "u" and numbers.min() < 0)):
            raise ValueError(f"facts: {name} is {values.dtype}, expected int64")
        return numbers
    values = values.astype(object)
    for row, value in enumerate(values):
        # A name of bytes that are not UTF-8 has surrogates, which no engine can store.
        if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
            raise ValueError(f"facts: {name} of row {row} is {value!r}, expected text that UTF-8 can write")
    return values


def count_rows(count: int) -> str:
    """For a sentence.

    >>> count_rows(1), count_rows(2)
    ('1 row', '2 rows')
    """
    return f"{count} row{'s' * (count != 1)}"


def older_than(days: float) -> Where:
    """Rows whose time is known and at least so long ago, as `purge` erases them.

    Raises:
        ValueError: days is below 0, or no number.
    """
    if not 0 <= days < float("inf"):
        raise ValueError(f"purge: {days} days; expected 0 or more")
    return Where(since=0, until=int(time.time() * 1000 - days * _DAY))
