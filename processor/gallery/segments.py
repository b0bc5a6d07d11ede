"""The files of a folder gallery: vectors one after the other, mapped into memory, with the columns of their rows."""
from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from processor.gallery.contract import Where, check_vectors
from utils.files import naming, sync_folder

if TYPE_CHECKING:
    from processor.gallery.codes import CodedRows

logger = logging.getLogger(__name__)

SEGMENT_ROWS = 2**18  # rows of one file: half a GiB for 512 float32
SLOT_BITS = 32  # a row's place is slot << SLOT_BITS | its row in the slot's file
DTYPES = ("float32", "float16")
READ = 2**16  # rows whose columns are read at a time
CODE_ROWS = 8192  # rows without a code that are worth one
_TEXTS = ("model", "vectors")  # settings that are no number
COLUMNS = ("id", "camera", "time", "identity", "set")  # set as its code


def append_bytes(path: Path, size: int, data: memoryview | bytes) -> None:
    """Write behind the first `size` bytes; what lies there is of a writer that was killed. Durable on return.

    Raises:
        OSError: there is no room, or the file is shorter than `size`; what was there is kept.
    """
    fresh = not size
    try:
        with open(path, "wb" if fresh else "r+b") as file:
            if file.seek(0, os.SEEK_END) < size:
                raise OSError(f"damaged: {file.tell()} bytes where {size} were written")
            file.truncate(size)
            file.seek(size)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
    except OSError as error:
        raise OSError(f"{path}: nothing was added: {error.strerror or error}") from error
    if fresh:
        sync_folder(path.parent)


def wipe_bytes(path: Path, spans: Iterable[tuple[int, int]]) -> None:
    """Overwrite (start, length) spans of a file with zeros; durable on return."""
    with naming(path), open(path, "r+b") as file:
        for start, length in spans:
            file.seek(start)
            file.write(bytes(length))
        file.flush()
        os.fsync(file.fileno())


class Segment:
    """One file of vectors and the columns of its rows; rows are only ever appended, a row's vector never moves.

    Attributes:
        vectors: [n, D] of the gallery's dtype, read-only, mapped.
        columns: {name of COLUMNS: [capacity] int64}, of which the first n count.
        live: [capacity] bool, whether a row is there and not removed.
    """

    def __init__(self, path: Path, slot: int, dim: int, dtype: str, count: int):
        self.path, self.slot, self.dim, self.dtype = path, slot, dim, np.dtype(dtype)
        self.columns = {name: np.zeros(count, np.int64) for name in COLUMNS}
        self.live = np.zeros(count, bool)
        self._coded: CodedRows | None = None
        self.extend(count)

    def __len__(self) -> int:
        return len(self.vectors)

    def extend(self, count: int) -> None:
        """Map the first `count` rows.

        Raises:
            FileNotFoundError: a compaction has removed the file.
            OSError: it is too short.
        """
        size, wanted = self.path.stat().st_size, count * self.dim * self.dtype.itemsize
        if size < wanted:
            raise OSError(f"{self.path}: damaged: {size} bytes where {wanted} were written")
        if count > len(self.live):
            capacity = max(count, min(2 * len(self.live), SEGMENT_ROWS))  # few copies, however few rows come at a time
            self.columns = {name: _extended(column, capacity) for name, column in self.columns.items()}
            self.live = _extended(self.live, capacity)
        self.vectors = np.memmap(self.path, self.dtype, "r", shape=(count, self.dim)).view(np.ndarray)

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Set the columns of rows [n] from values [n, len(COLUMNS)]."""
        for name, column in zip(COLUMNS, values.T, strict=True):
            self.columns[name][rows] = column
        self.live[rows] = True

    def read(self, rows: np.ndarray | slice) -> np.ndarray:
        """[n, D] float32 of length 1: float32 rows as they were added; a slice of these is a view of the map.

        float16 rows are scaled to length 1 again, so that a similarity is as exact as for any other row.
        """
        vectors = self.vectors[rows]
        if self.dtype == np.float32:
            return vectors
        vectors = vectors.astype(np.float64)
        lengths = np.sqrt(np.square(vectors).sum(1, keepdims=True))
        return np.divide(vectors, lengths, out=vectors, where=lengths > 0).astype(np.float32)

    @property
    def codes_path(self) -> Path:
        return self.path.with_name(f"codes-{self.slot:06d}.int8")

    @property
    def coded(self) -> CodedRows | None:
        """The codes of its first rows, if there are any."""
        if not self._coded and self.codes_path.exists():
            from processor.gallery.codes import CodedRows  # with torch, which takes seconds
            try:
                self._coded = CodedRows(self.codes_path, self.dim)
            except OSError as error:
                logger.warning("searching without codes: %s", error)
        return self._coded

    def code(self, capacity: int) -> None:
        """Code the rows without a code if they are many, or the file, of `capacity` rows, is full; under the lock."""
        waiting = len(self) - (len(self.coded) if self.coded else 0)
        if waiting < CODE_ROWS and (waiting == 0 or self.coded is None or len(self) < capacity):
            return
        from processor.gallery.codes import append_codes, make_codes
        if self.coded is None:
            rows = self.read(np.unique(np.linspace(0, len(self) - 1, CODE_ROWS).astype(int)))
            rows = rows[rows.any(1)]  # not those that are erased
            if not len(rows):
                return
            make_codes(self.codes_path, rows, max(capacity, len(self)))
        append_codes(self.codes_path, self.dim, self.read, len(self))

    def check(self, rows: np.ndarray) -> None:
        """Raise ValueError for a vector of rows [n] that is none of length 1, or a code that is not its vector's."""
        vectors = check_vectors(self.read(rows), self.dim)
        if self.coded:
            self.coded.check(rows, vectors)

    def wipe(self, rows: np.ndarray) -> None:
        """Overwrite rows [n] with zeros, codes as well; durable on return."""
        row_bytes = self.vectors[:1].nbytes
        wipe_bytes(self.path, ((row * row_bytes, row_bytes) for row in rows.tolist()))
        if self.coded is not None:
            wipe_bytes(self.codes_path, self.coded.spans(rows))
        else:
            self.codes_path.unlink(missing_ok=True)


def _extended(column: np.ndarray, capacity: int) -> np.ndarray:
    return np.concatenate([column, np.zeros(capacity - len(column), column.dtype)])


@dataclass(frozen=True)
class Live:
    """Of the first n rows of a segment those `kept` [n]. They keep their meaning when the gallery changes."""

    segment: Segment
    kept: np.ndarray

    def __len__(self) -> int:
        return int(np.count_nonzero(self.kept))

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[len(self)] int64 ascending."""
        return np.flatnonzero(self.kept)

    @property
    def ids(self) -> np.ndarray:
        """[n] int64."""
        return self.segment.columns["id"][self.rows]


class Segments:
    """All files of a gallery as one commit has them; the caller locks.

    Attributes:
        by_slot: {slot: Segment}.
        commit: its number; 0 before anything is read.
    """

    def __init__(self, path_of: Callable[[int], Path], dim: int, dtype: str):
        self._path_of, self._dim, self._dtype = path_of, dim, dtype
        self.by_slot: dict[int, Segment] = {}
        self.commit, self._sets = 0, {}

    def live(self, where: Where) -> list[Live]:
        """The rows that fulfil `where`."""
        if where.sets is not None:
            where = replace(where, sets=[self._sets[name] for name in where.sets if name in self._sets])
        lives = []
        for _, segment in sorted(self.by_slot.items()):
            kept = segment.live[: len(segment)].copy()
            if not where.is_open:
                kept &= where.mask({name: column[: len(segment)] for name, column in segment.columns.items()})
            lives.append(Live(segment, kept))
        return lives

    def refresh(self, db: sqlite3.Connection) -> None:
        """Come up to the commit that `db` reads, or to a later one, which it then reads."""
        while (commit := read_setting(db, "commit")) != self.commit:
            try:
                self._map(db)
            except FileNotFoundError:  # by a compaction since; then there is a later commit
                db.execute("ROLLBACK")
                db.execute("BEGIN")
                if read_setting(db, "commit") == commit:
                    raise
                continue
            self._read_rows(db)
            self.commit = commit

    def _map(self, db: sqlite3.Connection) -> None:
        counts = read_counts(db)
        self.by_slot = {slot: segment for slot, segment in self.by_slot.items() if slot in counts}
        for slot, count in counts.items():
            if slot not in self.by_slot:
                self.by_slot[slot] = Segment(self._path_of(slot), slot, self._dim, self._dtype, count)
            elif len(self.by_slot[slot]) != count:
                self.by_slot[slot].extend(count)

    def _read_rows(self, db: sqlite3.Connection) -> None:
        """Bring in what has changed since this commit.

        Raises:
            sqlite3.DatabaseError: there are rows of no file, or other values than whole numbers.
        """
        try:
            self._put_rows(db)
        except (TypeError, ValueError, OverflowError, LookupError) as error:
            raise sqlite3.DatabaseError(f"damaged: rows that nobody wrote so ({error})") from error

    def _put_rows(self, db: sqlite3.Connection) -> None:
        self._sets = dict(db.execute("SELECT name, code FROM sets"))
        # The first time in the table's order: through the index it would take longer.
        rows = db.execute('SELECT place, id, camera, time, identity, "set" FROM rows '
                          f"WHERE {'' if self.commit else '+'}changed > ?", (self.commit,))
        while block := rows.fetchmany(READ):
            values = np.array(block, np.int64)
            for slot, places, picked in by_slot(values[:, 0], values[:, 1:]):
                self.by_slot[slot].put(places, picked)
        dead = db.execute("SELECT place FROM dead WHERE changed > ?", (self.commit,)).fetchall()
        for slot, places in by_slot(np.array(dead, np.int64).reshape(-1)):
            self.by_slot[slot].live[places] = False


def read_setting(db: sqlite3.Connection, key: str) -> Any:
    """A value of the table `setting`.

    Raises:
        sqlite3.DatabaseError: it is not there, or none that was written.
    """
    value, = db.execute("SELECT value FROM setting WHERE key=?", (key,)).fetchone() or (None,)
    is_good = isinstance(value, str) if key in _TEXTS else type(value) is int and value >= 0
    if not is_good or (key == "dim" and not value) or (key == "vectors" and value not in DTYPES):
        raise sqlite3.DatabaseError(f"damaged: its setting {key} is {_described(value)}")
    return value


def read_counts(db: sqlite3.Connection) -> dict[int, int]:
    """{slot: rows of its file}, ascending.

    Raises:
        sqlite3.DatabaseError: a count is none.
    """
    counts = dict(db.execute("SELECT slot, count FROM segments ORDER BY slot"))
    for slot, count in counts.items():
        if type(count) is not int or not 0 <= count <= 2**SLOT_BITS:
            raise sqlite3.DatabaseError(f"damaged: {_described(count)} rows in file {slot}")
    return counts


def _described(value: Any) -> str:
    """A value for a message; of a long one, which takes memory to be written, its type."""
    is_long = isinstance(value, (str, bytes)) and len(value) > 40
    return f"a {type(value).__name__} of {len(value)}" if is_long else repr(value)


def by_slot(places: np.ndarray, *values: np.ndarray) -> Iterator[tuple]:
    """(slot, rows in its file, what of `values` is theirs) for each slot of places [n]."""
    slots = places >> SLOT_BITS
    for slot in np.unique(slots).tolist():
        picked = slots == slot
        yield slot, places[picked] & (2**SLOT_BITS - 1), *(value[picked] for value in values)
