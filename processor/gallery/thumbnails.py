"""The small pictures of rows: JPEGs one after the other in a file, whose places a database knows."""
from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from processor.gallery.database import AT_ONCE, Database, among
from processor.gallery.segments import append_bytes, read_setting, wipe_bytes

JPEG = b"\xff\xd8"  # its first bytes


class Thumbnails:
    """Those of a ledger, in its folder; the table `thumbnails` and the settings are of its database."""

    def __init__(self, folder: Path, db: Database):
        self.folder, self._db = folder, db

    def put(self, ids: Sequence[int], jpegs: Sequence[bytes]) -> None:
        """Keep a JPEG for each of these rows; durable on return.

        Raises:
            ValueError: one is no JPEG.
        """
        for row, jpeg in zip(ids, jpegs, strict=True):
            if not jpeg.startswith(JPEG):
                raise ValueError(f"thumbnails: that of {row} is no JPEG")
        self.wipe(ids)
        with self._db.writing() as db:
            self._append(db, ids, jpegs)

    def _append(self, db: sqlite3.Connection, ids: Iterable[int], jpegs: Sequence[bytes]) -> None:
        size = read_setting(db, "bytes")
        starts = size + np.cumsum([0, *map(len, jpegs)])
        append_bytes(self._file(db), size, b"".join(jpegs))
        db.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?)",
                       zip(map(int, ids), starts.tolist(), map(len, jpegs), strict=False))
        db.execute("UPDATE setting SET value=? WHERE key='bytes'", (int(starts[-1]),))

    def _file(self, db: sqlite3.Connection) -> Path:
        return self.folder / f"thumbnails.{read_setting(db, 'file')}.jpegs"

    def read(self, row: int) -> bytes | None:
        """The JPEG of a row, if it has one."""
        missing = None
        while True:
            with self._db.reading() as db:
                place, path = db.execute("SELECT start, length FROM thumbnails WHERE id=?", (int(row),)).fetchone(), \
                    self._file(db)
                if place is None or path == missing:  # not compacted since, but removed by somebody
                    return None
                missing = path
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # compacted since: look again
                    _check_spans(path, [place])
                    jpeg = os.pread(file.fileno(), place[1], place[0])
                    return jpeg if jpeg.startswith(JPEG) else None  # it was wiped since

    def wipe(self, ids: Iterable[int]) -> None:
        """Overwrite those of these rows."""
        with self._db.writing() as db:
            spans = list(among(db, "SELECT start, length, id FROM thumbnails WHERE id IN ({})", map(int, ids)))
            if spans:
                _check_spans(self._file(db), (span[:2] for span in spans))
                wipe_bytes(self._file(db), ((start, length) for start, length, _ in spans))
                db.executemany("DELETE FROM thumbnails WHERE id=?", ((row,) for *_, row in spans))

    def copy_to(self, folder: Path, db: sqlite3.Connection) -> None:
        """Copy the file; only under the write lock. Durable on return."""
        path = self._file(db)
        if path.exists():
            shutil.copyfile(path, folder / path.name)
            with open(folder / path.name, "rb") as file:
                os.fsync(file.fileno())

    def compact(self) -> int:
        """Write the file anew without what was removed; the number of bytes that it frees."""
        with self._db.writing() as db:
            before, old = read_setting(db, "bytes"), self._file(db)
            places = db.execute("SELECT id, start, length FROM thumbnails ORDER BY start").fetchall()
            if before == sum(length for *_, length in places):
                return 0
            db.execute("UPDATE setting SET value=value+1 WHERE key='file'")
            db.execute("UPDATE setting SET value=0 WHERE key='bytes'")
            with open(old, "rb") as file:
                _check_spans(old, (place[1:] for place in places))
                for first in range(0, len(places), AT_ONCE):
                    part = places[first : first + AT_ONCE]
                    self._append(db, [row for row, *_ in part],
                                 [os.pread(file.fileno(), length, start) for _, start, length in part])
            after = read_setting(db, "bytes")
        with self._db.writing() as db:
            self.sweep(db)
        return before - after

    def sweep(self, db: sqlite3.Connection) -> None:
        """Remove what no commit refers to; only under the write lock."""
        for path in self.folder.glob("thumbnails.*.jpegs"):
            if path == self._file(db):
                append_bytes(path, read_setting(db, "bytes"), b"")
            else:
                path.unlink()


def _check_spans(path: Path, spans: Iterable[Sequence[int]]) -> None:
    """Raise OSError for a span (start, length) that does not lie in a file."""
    size = path.stat().st_size
    for start, length in spans:
        if start < 0 or length < 0 or start + length > size:
            raise OSError(f"{path}: damaged: {size} bytes, where the ledger has a thumbnail at {start} of {length}")
