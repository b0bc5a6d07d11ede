"""What a gallery's vectors do not tell: names of identities, what people said of rows, undo, thumbnails, the model.

It stands beside any engine: its files lie in the gallery's folder, or for a cluster in a folder of the user's choice.
"""
from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processor.gallery.contract import UNKNOWN, Gallery, Where
from processor.gallery.database import AT_ONCE, Database, among
from processor.gallery.segments import append_bytes, read_setting, wipe_bytes

JPEG = b"\xff\xd8"  # its first bytes
BEGUN, DONE, UNDOING, UNDONE = range(4)  # a change that is begun goes on when its process was killed
SCHEMA = """
CREATE TABLE setting (key TEXT PRIMARY KEY, value);
CREATE TABLE names (identity INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE by_human (id INTEGER PRIMARY KEY);
CREATE TABLE log (number INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, who TEXT NOT NULL,
  what TEXT NOT NULL, state INTEGER NOT NULL);
CREATE TABLE log_rows (number INTEGER, id INTEGER, before INTEGER, after INTEGER, by_human INTEGER,
  PRIMARY KEY (number, id)) WITHOUT ROWID;
CREATE TABLE log_names (number INTEGER, identity INTEGER, before TEXT, PRIMARY KEY (number, identity)) WITHOUT ROWID;
CREATE INDEX log_rows_id ON log_rows (id);
CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, start INTEGER NOT NULL, length INTEGER NOT NULL);
INSERT INTO setting VALUES ('model', ''), ('identity', 0), ('bytes', 0), ('file', 1)"""


@dataclass(frozen=True)
class Change:
    """An entry of the undo log: what was done (no names, only numbers), by whom, and when (ms); undone: since."""

    number: int
    time: int
    who: str
    what: str
    undone: bool


class Ledger:
    """The ledger of a gallery; any thread and any number of processes may use it.

    Raises:
        ValueError: the gallery's vectors are of another model.
    """

    def __init__(self, folder: Path, gallery: Gallery, model: str | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.gallery = folder, gallery
        self._db = Database(folder / "ledger.sqlite", SCHEMA)
        with self._db.reading() as db:
            self.model = read_setting(db, "model")
        if model and model != self.model:
            if self.model or gallery.count():
                raise ValueError(f"{folder}: the gallery holds vectors of {f'model {self.model}' if self.model else ''}"
                                 f"{'' if self.model else 'an unknown model'}, these are of {model}; re-embed the "
                                 "pictures into a new gallery")
            with self._db.writing() as db:
                db.execute("UPDATE setting SET value=? WHERE key='model'", (model,))
            self.model = model

    # ------------------------------------------------------------------ names
    def names(self) -> dict[int, str]:
        """{identity: name} of those that have one."""
        with self._db.reading() as db:
            return dict(db.execute("SELECT identity, name FROM names ORDER BY identity"))

    def identities(self, names: Sequence[str]) -> np.ndarray:
        """[n] int64: the identities of these names; a new one for a name that is new."""
        with self._db.writing() as db:
            held = dict(db.execute("SELECT name, identity FROM names"))
            new = [name for name in dict.fromkeys(names) if name not in held]
            held |= zip(new, range(self._reserve(db, len(new)), 2**63), strict=False)
            _set_names(db, {held[name]: name for name in new})
        return np.array([held[name] for name in names], np.int64)

    def new_identity(self) -> int:
        """A number that no row and no name has."""
        with self._db.writing() as db:
            return self._reserve(db, 1)

    def _reserve(self, db: sqlite3.Connection, count: int) -> int:
        """The first of so many numbers that no row and no name has."""
        first, step = read_setting(db, "identity") + 1, count
        named = "SELECT 1 FROM names WHERE identity BETWEEN ? AND ?"
        while (self.gallery.count(Where(identities=range(first, first + count)))
               or db.execute(named, (first, first + count - 1)).fetchone()):
            first, step = first + step, 2 * step
        db.execute("UPDATE setting SET value=? WHERE key='identity'", (first + count - 1,))
        return first

    def name(self, identity: int, text: str, who: str = "") -> None:
        """Name an identity; "" takes its name away.

        Raises:
            ValueError: another identity has this name.
        """
        self._change(who, f"name {_known(identity)}", names={identity: text.strip()})

    # ------------------------------------------------------------------ what people say about rows
    def assign(self, ids: Sequence[int], identity: int, who: str = "") -> None:
        """These rows are of this identity (-1: of nobody known).

        Raises:
            KeyError: an id is not there.
        """
        before = self.gallery.fetch(ids).facts["identity"].tolist()
        ids = [int(row) for row in ids]
        self._change(who, f"assign {len(set(ids))} rows to {identity}", dict(zip(ids, before, strict=True)), identity)

    def merge(self, into: int, other: int, who: str = "", human: bool = True) -> None:
        """Two identities are one; it keeps the first one's number, and its name if it has one.

        Args:
            human: a person says so; else rows that a person has spoken of may not change.
        Raises:
            ValueError: an identity is not there, both are one, or a person has spoken of the other's rows.
        """
        if into == other:
            raise ValueError(f"merge: identity {into} with itself")
        rows, kept, names = self._rows(_known(other)), self._rows(_known(into)), self.names()
        for identity, ids in ((into, kept), (other, rows)):
            if not ids and identity not in names:
                raise ValueError(f"merge: there is no identity {identity}")
        if not human and self.by_human(rows).any():
            raise ValueError(f"merge: a person has said whose the rows of identity {other} are")
        name = names.get(into) or names.get(other) or ""
        self._change(who, f"merge {other} into {into}", dict.fromkeys(rows, other), into, human,
                     names={other: "", into: name}, stay=dict.fromkeys(kept, into))

    def split(self, ids: Sequence[int], who: str = "") -> int:
        """These rows are of somebody else than the rest of their identity; the new identity.

        Raises:
            KeyError: an id is not there.
            ValueError: they are of several identities, or of none.
        """
        identities = np.unique(self.gallery.fetch(ids).facts["identity"]).tolist()
        if len(identities) != 1:
            raise ValueError(f"split: rows of identities {', '.join(map(str, identities))}; take those of one")
        old, ids = _known(identities[0]), {int(row) for row in ids}
        stay = dict.fromkeys(set(self._rows(old)) - ids, old)
        new = self.new_identity()
        self._change(who, f"split {len(ids)} rows of {old} to {new}", dict.fromkeys(ids, old), new, stay=stay)
        return new

    def by_human(self, ids: Sequence[int]) -> np.ndarray:
        """[n] bool: whether a person has said whose the row is; no machine changes that."""
        with self._db.reading() as db:
            marked = {row for row, in among(db, "SELECT id FROM by_human WHERE id IN ({})", map(int, ids))}
        return np.array([int(row) in marked for row in ids], bool)

    # ------------------------------------------------------------------ the undo log
    def undo(self, number: int | None = None) -> Change:
        """Undo the last change, or the one with this number; what it was.

        Rows that were given another identity since, and names that were taken since, stay.
        Raises:
            ValueError: there is none.
        """
        self._complete()
        changes = [change for change in self.history(None if number else 1) if number in (None, change.number)]
        if not changes:
            raise ValueError(f"undo: there is no change {number}" if number else "undo: nothing is left to undo")
        with self._db.writing() as db:
            db.execute("UPDATE log SET state=? WHERE number=? AND state=?", (UNDOING, changes[0].number, DONE))
        self._complete()
        return changes[0]

    def history(self, limit: int | None = 50, undone: bool = False) -> list[Change]:
        """The last changes, latest first; with `undone` those that were undone, too."""
        with self._db.reading() as db:
            return [Change(*row[:4], undone=row[4] >= UNDOING) for row in db.execute(
                "SELECT number, time, who, what, state FROM log WHERE state < ? ORDER BY number DESC LIMIT ?",
                (UNDONE + 1 if undone else UNDOING, -1 if limit is None else limit))]

    def _change(self, who: str, what: str, rows: Mapping[int, int] | None = None, after: int = UNKNOWN,
                human: bool = True, *, names: Mapping[int, str] | None = None,
                stay: Mapping[int, int] | None = None) -> None:
        """Note a change, then make it.

        Args:
            rows: {id: its identity before} that get the identity `after`; stay: {id: its identity}, spoken of as well.
            names: {identity: its name after, or ""}.
        """
        self._complete()
        rows, names = rows or {}, names or {}
        with self._db.writing() as db:
            number = db.execute("INSERT INTO log (time, who, what, state) VALUES (?, ?, ?, ?)",
                                (int(time.time() * 1000), who, what, BEGUN)).lastrowid
            noted = [(row, before, after) for row, before in rows.items()]
            noted += [(row, before, before) for row, before in (stay or {}).items()]
            db.executemany("INSERT INTO log_rows VALUES (?, ?, ?, ?, EXISTS (SELECT 1 FROM by_human WHERE id=?))",
                           ((number, *row, row[0]) for row in noted))
            if human:
                db.executemany("INSERT OR IGNORE INTO by_human VALUES (?)", ((row,) for row, _, _ in noted))
            db.executemany("INSERT INTO log_names VALUES (?, ?, (SELECT name FROM names WHERE identity=?))",
                           ((number, identity, identity) for identity in names))
            _set_names(db, names)
        try:
            self._complete()
        except OSError:
            with self._db.writing() as db:  # it was not made; what was noted goes
                _restore(db, number)
                db.execute("UPDATE log SET state=? WHERE number=?", (UNDONE, number))
            raise

    def _complete(self) -> None:
        """Bring begun changes to the rows, also those of a process that was killed."""
        with self._db.reading() as db:
            begun = db.execute("SELECT number, state FROM log WHERE state IN (?, ?)", (BEGUN, UNDOING)).fetchall()
        for number, state in begun:
            with self._db.reading() as db:
                rows = db.execute("SELECT id, before, after FROM log_rows WHERE number=? AND before != after",
                                  (number,)).fetchall()
            if state == UNDOING:
                held = {row: after for after in {after for *_, after in rows} for row in self._rows(after)}
                rows = [(row, after, before) for row, before, after in rows if row in held]
            for after in sorted({after for *_, after in rows}):
                self.gallery.assign([row for row, _, to in rows if to == after], identity=after)
            with self._db.writing() as db:
                now = db.execute("UPDATE log SET state=? WHERE number=? AND state=?", (state + 1, number, state))
                if now.rowcount and state == UNDOING:  # else another process has completed it
                    _restore(db, number)

    def _rows(self, identity: int) -> list[int]:
        return [row for batch in self.gallery.scan(Where(identities=[identity])) for row in batch.ids.tolist()]

    # ------------------------------------------------------------------ thumbnails
    def put_thumbnails(self, ids: Sequence[int], jpegs: Sequence[bytes]) -> None:
        """Keep a JPEG for each of these rows; durable on return.

        Raises:
            ValueError: one is no JPEG.
        """
        for row, jpeg in zip(ids, jpegs, strict=True):
            if not jpeg.startswith(JPEG):
                raise ValueError(f"thumbnails: that of {row} is no JPEG")
        self._wipe_thumbnails(ids)
        with self._db.writing() as db:
            self._append(db, ids, jpegs)

    def _append(self, db: sqlite3.Connection, ids: Iterable[int], jpegs: Sequence[bytes]) -> None:
        size = read_setting(db, "bytes")
        starts = size + np.cumsum([0, *map(len, jpegs)])
        append_bytes(self._thumbnails(db), size, b"".join(jpegs))
        db.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?)",
                       zip(map(int, ids), starts.tolist(), map(len, jpegs), strict=False))
        db.execute("UPDATE setting SET value=? WHERE key='bytes'", (int(starts[-1]),))

    def _thumbnails(self, db: sqlite3.Connection) -> Path:
        return self.folder / f"thumbnails.{read_setting(db, 'file')}.jpegs"

    def thumbnail(self, row: int) -> bytes | None:
        """The JPEG of a row, if it has one."""
        while True:
            with self._db.reading() as db:
                place, path = db.execute("SELECT start, length FROM thumbnails WHERE id=?", (int(row),)).fetchone(), \
                    self._thumbnails(db)
                if place is None:
                    return None
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # compacted since: look again
                    jpeg = os.pread(file.fileno(), place[1], place[0])
                    return jpeg if jpeg.startswith(JPEG) else None  # it was wiped since

    def _wipe_thumbnails(self, ids: Iterable[int]) -> None:
        with self._db.writing() as db:
            spans = list(among(db, "SELECT start, length, id FROM thumbnails WHERE id IN ({})", map(int, ids)))
            if spans:
                wipe_bytes(self._thumbnails(db), ((start, length) for start, length, _ in spans))
                db.executemany("DELETE FROM thumbnails WHERE id=?", ((row,) for *_, row in spans))

    def compact(self) -> int:
        """Write the thumbnails anew without what was removed; the number of bytes that it frees."""
        with self._db.writing() as db:
            before, old = read_setting(db, "bytes"), self._thumbnails(db)
            places = db.execute("SELECT id, start, length FROM thumbnails ORDER BY start").fetchall()
            if before == sum(length for *_, length in places):
                return 0
            db.execute("UPDATE setting SET value=value+1 WHERE key='file'")
            db.execute("UPDATE setting SET value=0 WHERE key='bytes'")
            with open(old, "rb") as file:
                for first in range(0, len(places), AT_ONCE):
                    part = places[first : first + AT_ONCE]
                    self._append(db, [row for row, *_ in part],
                                 [os.pread(file.fileno(), length, start) for _, start, length in part])
            after = read_setting(db, "bytes")
        with self._db.writing() as db:
            self._sweep(db)
        return before - after

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove what no commit refers to; only under the write lock."""
        for path in self.folder.glob("thumbnails.*.jpegs"):
            if path == self._thumbnails(db):
                append_bytes(path, read_setting(db, "bytes"), b"")
            else:
                path.unlink()

    # ------------------------------------------------------------------ what is removed
    def forget(self, ids: Iterable[int], identities: Iterable[int] = (), erase: bool = False) -> None:
        """Rows are removed: their thumbnails and what people said of them goes.

        Args:
            identities: theirs. With `erase` the names of those that have no rows any more go, too, and nothing of it
                all remains in the files.
        """
        ids, identities = list(ids), set(identities)
        self._wipe_thumbnails(ids)
        with self._db.reading() as db:  # and those that they had before a merge
            for row in among(db, "SELECT before, after FROM log_rows WHERE id IN ({})", ids):
                identities.update(row)
        gone = [identity for identity in identities
                if erase and identity != UNKNOWN and not self.gallery.count(Where(identities=[identity]))]
        with self._db.writing() as db:
            if erase:
                self._sweep(db)
            for table in ("by_human", "log_rows"):
                db.executemany(f"DELETE FROM {table} WHERE id=?", ((row,) for row in ids))
            for table in ("names", "log_names"):
                db.executemany(f"DELETE FROM {table} WHERE identity=?", ((identity,) for identity in gone))
        if erase:
            self._db.scrub()

    def verify(self) -> list[str]:
        """What is wrong with the ledger's files, in sentences."""
        with self._db.reading() as db:
            return [f"ledger.sqlite: {text}" for text, in db.execute("PRAGMA integrity_check") if text != "ok"]

    def close(self) -> None:
        """Closing again does nothing."""
        self._db.close()


def _known(identity: int) -> int:
    if identity < 0:
        raise ValueError(f"identity {identity}: expected one that is known, 0 or more")
    return identity


def _set_names(db: sqlite3.Connection, names: Mapping[int, str | None]) -> None:
    """Give identities names; "" or None takes theirs away."""
    db.executemany("DELETE FROM names WHERE identity=?", ((identity,) for identity in names))
    for identity, name in names.items():
        holder = db.execute("SELECT identity FROM names WHERE name=?", (name,)).fetchone() if name else None
        if holder:
            raise ValueError(f"{name!r} is the name of identity {holder[0]}; merge the two if they are one")
        if name:
            db.execute("INSERT INTO names VALUES (?, ?)", (identity, name))


def _restore(db: sqlite3.Connection, number: int) -> None:
    """Bring back names and marks as a change found them."""
    names = db.execute("SELECT identity, before FROM log_names WHERE number=?", (number,)).fetchall()
    taken = {name for name, in db.execute("SELECT name FROM names WHERE identity NOT IN "
                                          "(SELECT identity FROM log_names WHERE number=?)", (number,))}
    _set_names(db, {identity: name for identity, name in names if name not in taken})
    db.execute("DELETE FROM by_human WHERE id IN (SELECT id FROM log_rows WHERE number=? AND NOT by_human)", (number,))
