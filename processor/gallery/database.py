"""SQLite files that a kill, a full disk and several processes leave whole."""
from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.sqlite_schema import check_schema, find_ill_typed

WAIT = 30  # seconds for another process that writes
FORMAT = 1  # of the tables
_CONVERSION = ("invalid literal", "could not convert", "cannot convert")  # how ValueErrors of values begin
AT_ONCE = 900  # values of one query; old SQLites take 999


class Database:
    """One file, with a connection for reading and one for writing; any thread may use it.

    Args:
        path: made if it is missing.
        schema: the statements that make its tables, with `;` between them.
    Raises:
        OSError: the file cannot be opened or written, or is damaged; TimeoutError: another process keeps it.
        ValueError: it is of a later version.
    """

    def __init__(self, path: Path, schema: str):
        self.path, self.schema = path, schema
        self._read_lock, self._write_lock = threading.RLock(), threading.RLock()
        with plain_errors(path):
            self._writer = self.connect()
            if self._format() == 0:
                with self.writing() as db:
                    if self._format() == 0:  # no other process was faster
                        for statement in schema.split(";"):
                            db.execute(statement)
                        db.execute(f"PRAGMA user_version={FORMAT}")
            if self._format() > FORMAT:
                raise ValueError(f"{path}: written by a later version of this project; update it to read this gallery")
            check_schema(self._writer, schema)
            self._reader = self.connect()

    def _format(self) -> int:
        return self._writer.execute("PRAGMA user_version").fetchone()[0]

    def connect(self) -> sqlite3.Connection:
        """A connection of one's own, for a long read; close it."""
        db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        # FULL: a commit is on the disk when it returns. secure_delete: what is deleted is overwritten with zeros.
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=ON")
        deadline = time.monotonic() + WAIT
        while True:
            try:
                db.execute("PRAGMA journal_mode=WAL")
                return db
            except sqlite3.OperationalError as error:  # SQLite does not wait while another process makes the file
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read inside is of one commit."""
        with self._read_lock, plain_errors(self.path), self._blaming(self._reader):
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is one commit, durable afterwards, or nothing; one writer at a time."""
        with self._write_lock, plain_errors(self.path), self._blaming(self._writer):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def telling(self, db: sqlite3.Connection) -> Iterator[None]:
        """Within: errors of a connection of one's own are OSErrors that name the file."""
        with plain_errors(self.path), self._blaming(db):
            yield

    @contextlib.contextmanager
    def _blaming(self, db: sqlite3.Connection) -> Iterator[None]:
        """Within: what values of other types than their columns' make our code raise is an OSError that names them."""
        try:
            yield
        except (TypeError, AttributeError, OverflowError, IndexError, ValueError) as error:
            # Of all others somebody asked for what is not there, or may not be: no reason to read the whole file.
            is_of_values = not isinstance(error, ValueError) or str(error).startswith(_CONVERSION)
            if is_of_values and (place := find_ill_typed(db, self.schema)):
                raise OSError(f"{self.path}: damaged: {place}, which nobody wrote so") from error
            raise

    def scrub(self) -> None:
        """Leave nothing on the disk of what was deleted.

        secure_delete alone leaves copies in the gaps of pages that were split, and the log keeps old pages.
        Raises:
            TimeoutError: a scan under way still needs the old pages.
        """
        with self._write_lock, plain_errors(self.path):
            self._writer.execute("VACUUM")
            deadline = time.monotonic() + WAIT
            while self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path}: rows are removed, but a scan that is under way keeps their "
                                       "pages; erase them once more when it has ended")
                time.sleep(0.01)  # SQLite does not wait while another process copies pages

    def close(self) -> None:
        """Closing again does nothing."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()


@contextlib.contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as OSError that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        if "locked" in str(error) or "busy" in str(error):
            raise TimeoutError(f"{path}: another process has been writing for {WAIT} s; try again") from error
        raise OSError(f"{path}: {error}") from error


def among(db: sqlite3.Connection, query: str, values: Iterable[int]) -> Iterator[tuple]:
    """The answers to a query for many values; `{}` in it stands for them."""
    values = list(values)
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        yield from db.execute(query.format(",".join("?" * len(part))), part)
