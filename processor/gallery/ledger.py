"""What a gallery's vectors do not tell: names of identities, what people said of rows, undo, thumbnails, the model.

It stands beside any engine: its files lie in the gallery's folder, or for a cluster in a folder of the user's choice.
"""
from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processor.gallery.contract import UNKNOWN, Batch, Gallery, Where, count_rows
from processor.gallery.database import Database, among
from processor.gallery.removed import Removed
from processor.gallery.segments import read_setting
from processor.gallery.thumbnails import Thumbnails

BEGUN, DONE, UNDOING, UNDONE, GONE = range(5)  # a change that is begun goes on when its process was killed
_ROWS = 4096  # that are removed at a time
_ALIKE = 1e-3  # numbers of a row that is stored in half precision twice differ by less
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
        self.removed, self._thumbnails = Removed(folder), Thumbnails(folder, self._db)
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
        self._change(who, f"assign {count_rows(len(set(ids)))} to {identity}", dict(zip(ids, before, strict=True)),
                     identity)

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
        if identities[0] < 0:
            raise ValueError("split: these rows are of nobody yet; assign them to a person instead")
        old, ids = _known(identities[0]), {int(row) for row in ids}
        stay = dict.fromkeys(set(self._rows(old)) - ids, old)
        new = self.new_identity()
        self._change(who, f"split {count_rows(len(ids))} of {old} to {new}", dict.fromkeys(ids, old), new, stay=stay)
        return new

    def remove(self, ids: Sequence[int] | None = None, where: Where | None = None, who: str = "",
               erase: bool = False) -> int:
        """Remove rows by id, or those that fulfil `where`, so that `undo` brings them back; the number of rows.

        Copies of them are kept until the next erasure or compaction, those of the last `removed.KEPT` removals.

        Args:
            erase: for ever; nothing of these rows, nor of those that were removed before, comes back.
        Raises:
            KeyError: an id is not there (and they are not to be erased); nothing was removed.
        """
        self._complete()
        with self._db.writing() as db:
            number = db.execute("INSERT INTO log (time, who, what, state) VALUES (?, ?, '', ?)",
                                (int(time.time() * 1000), who, GONE)).lastrowid
        rows: list[int] = []
        try:
            self.removed.begin(number)
            for batch in () if erase else self._batches(ids, where):
                rows += batch.ids.tolist()
                jpegs = {row: jpeg for row in batch.ids.tolist() if (jpeg := self.thumbnail(row)) is not None}
                self.removed.keep(number, batch, jpegs, self._marks_and_lines(batch.ids))
        except BaseException:
            self.removed.drop(number)
            raise
        self._set_state(number, BEGUN, f"remove {count_rows(len(rows))}")
        if not erase:
            count = self.gallery.remove(rows) if rows else 0
        else:
            count = self.gallery.remove(ids, where, erase=True)
            self.removed.begin(number, count)
            self._set_state(number, BEGUN, f"erase {count_rows(count)}")
        self._complete()
        return count

    def _batches(self, ids: Sequence[int] | None, where: Where | None) -> Iterator[Batch]:
        if (ids is None) == (where is None):
            raise ValueError("remove: give ids or where, one of them")
        if where is not None:
            yield from self.gallery.scan(where)
            return
        ids = np.unique(np.asarray(ids, np.int64))
        for start in range(0, len(ids), _ROWS):
            yield self.gallery.fetch(ids[start : start + _ROWS])

    def _marks_and_lines(self, ids: Sequence[int]) -> dict[int, list]:
        """{id: whether a person has said whose it is, and then its lines of the log}, as `Removed.keep` takes it."""
        kept: dict[int, list] = {row: [bool(marked)] for row, marked in zip(map(int, ids), self.by_human(ids),
                                                                            strict=True)}
        with self._db.reading() as db:
            for row, *line in among(db, "SELECT id, number, before, after, by_human FROM log_rows WHERE id IN ({})",
                                    kept):
                kept[row].append(line)
        return kept

    def _bring_back(self, number: int) -> None:
        """Add the rows again that a change removed; those whose ids are others' by now stay away."""
        for batch, jpegs, said in self.removed.rows(number):
            try:
                self.gallery.add(batch.ids, batch.vectors, batch.facts)
            except ValueError:  # some are there: added by others, or before a kill
                for at in range(len(batch.ids)):
                    with contextlib.suppress(ValueError):
                        self.gallery.add(batch.ids[at : at + 1], batch.vectors[at : at + 1],
                                         {name: column[at : at + 1] for name, column in batch.facts.items()})
            held = self.gallery.fetch(batch.ids, with_facts=False).vectors
            ours = batch.ids[np.abs(held - batch.vectors).max(1) < _ALIKE].tolist()
            lost = [row for row in ours if row in jpegs and self.thumbnail(row) is None]
            self.put_thumbnails(lost, [jpegs[row] for row in lost])
            with self._db.writing() as db:
                db.executemany("INSERT OR IGNORE INTO by_human VALUES (?)", ((row,) for row in ours if said[row][0]))
                db.executemany("INSERT OR IGNORE INTO log_rows VALUES (?, ?, ?, ?, ?)", (
                    (line[0], row, *line[1:]) for row in ours for line in said[row][1:]))

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
            ValueError: there is none, or it removed rows that were erased or compacted away since; the next call
                goes on with what was done before.
        """
        self._complete()
        changes = [change for change in self.history(None if number else 1) if number in (None, change.number)]
        if not changes:
            raise ValueError(f"undo: there is no change {number}" if number else "undo: nothing is left to undo")
        removed, kept = self.removed.count(changes[0].number) or (0, 0)
        if removed > kept:
            self._set_state(changes[0].number, GONE)
            raise ValueError(f"undo: {changes[0].what}: what was erased, or whose room was freed by a compaction, "
                             "cannot come back; call undo once more for what was done before")
        with self._db.writing() as db:
            db.execute("UPDATE log SET state=? WHERE number=? AND state=?", (UNDOING, changes[0].number, DONE))
        self._complete()
        return changes[0]

    def _set_state(self, number: int, state: int, what: str | None = None) -> None:
        with self._db.writing() as db:
            db.execute("UPDATE log SET state=?, what=COALESCE(?, what) WHERE number=?", (state, what, number))

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
            if state == UNDOING:
                self._bring_back(number)
            with self._db.writing() as db:
                now = db.execute("UPDATE log SET state=? WHERE number=? AND state=?", (state + 1, number, state))
                if now.rowcount and state == UNDOING:  # else another process has completed it
                    _restore(db, number)
            if state == UNDOING:
                self.removed.drop(number)

    def _rows(self, identity: int) -> list[int]:
        return [row for batch in self.gallery.scan(Where(identities=[identity])) for row in batch.ids.tolist()]

    # ------------------------------------------------------------------ thumbnails
    def put_thumbnails(self, ids: Sequence[int], jpegs: Sequence[bytes]) -> None:
        """Keep a JPEG for each of these rows; durable on return.

        Raises:
            ValueError: one is no JPEG.
        """
        self._thumbnails.put(ids, jpegs)

    def thumbnail(self, row: int) -> bytes | None:
        """The JPEG of a row, if it has one."""
        return self._thumbnails.read(row)

    def compact(self) -> int:
        """Free the room of thumbnails and copies of what was removed, which undo cannot bring back then; the bytes."""
        return self.removed.clear() + self._thumbnails.compact()

    # ------------------------------------------------------------------ what is removed
    def forget(self, ids: Iterable[int], identities: Iterable[int] = (), erase: bool = False) -> None:
        """Rows are removed: their thumbnails and what people said of them goes.

        Args:
            identities: theirs. With `erase` the names of those that have no rows any more go, too, and the copies of
                all removed rows; nothing of it all remains in the files.
        """
        ids, identities = list(ids), set(identities)
        self._thumbnails.wipe(ids)
        with self._db.reading() as db:  # and those that they had before a merge
            for row in among(db, "SELECT before, after FROM log_rows WHERE id IN ({})", ids):
                identities.update(row)
        gone = [identity for identity in identities
                if erase and identity != UNKNOWN and not self.gallery.count(Where(identities=[identity]))]
        with self._db.writing() as db:
            if erase:
                self._thumbnails.sweep(db)
            for table in ("by_human", "log_rows"):
                db.executemany(f"DELETE FROM {table} WHERE id=?", ((row,) for row in ids))
            for table in ("names", "log_names"):
                db.executemany(f"DELETE FROM {table} WHERE identity=?", ((identity,) for identity in gone))
        if erase:
            self.removed.clear()
            self._db.scrub()

    def copy_to(self, folder: Path, model: str) -> None:
        """Put a copy beside a gallery of the same ids, whose vectors are of another model; the folder is closed.

        What was removed stays removed: its copies hold vectors of this model. A kill leaves the old ledger or the new.
        """
        fresh = folder / ".ledger.sqlite.fresh"
        with self._db.writing() as db, contextlib.closing(self._db.connect()) as source:
            self._thumbnails.copy_to(folder, db)
            fresh.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as copy, contextlib.closing(
                    sqlite3.connect(folder / "ledger.sqlite")) as target:
                source.backup(copy)
                copy.execute("UPDATE setting SET value=? WHERE key='model'", (model,))
                copy.backup(target)
        for path in folder.glob(f"{fresh.name}*"):
            path.unlink()
        with contextlib.closing(Removed(folder)) as removed:
            for number, count in self.removed.numbers().items():
                removed.begin(number, count)

    def verify(self) -> list[str]:
        """What is wrong with the ledger's files, in sentences."""
        with self._db.reading() as db:
            faults = [f"ledger.sqlite: {text}" for text, in db.execute("PRAGMA integrity_check") if text != "ok"]
        return faults + self.removed.verify()

    def close(self) -> None:
        """Closing again does nothing."""
        self._db.close()
        self.removed.close()


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
