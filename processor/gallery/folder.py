"""A gallery in a folder: SQLite for ids, facts and the commit, and append-only files of vectors that are mapped.

The rules that make it safe: a writer holds SQLite's write lock; vectors are appended and fsynced before the commit that
refers to them; what lies behind the last row of a file is cut only under that lock; a removed row's place is never used
again; a compaction writes new files, swaps them in one commit and then unlinks the old ones, whose maps stay valid.
"""
from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from processor.gallery.contract import (
    FACTS,
    Batch,
    Candidates,
    Where,
    check_facts,
    check_rows,
    check_vectors,
    older_than,
)
from processor.gallery.database import Database, among
from processor.gallery.ledger import Ledger
from processor.gallery.segments import (
    DTYPES,
    SEGMENT_ROWS,
    SLOT_BITS,
    Live,
    Segment,
    Segments,
    append_bytes,
    by_slot,
    read_counts,
    read_setting,
)
from utils.files import remove_leftovers

logger = logging.getLogger(__name__)

DATABASE = "gallery.sqlite"
# dead: places of removed rows. Their id and identity stay until the ledger has forgotten them; wipe: 0 the vector is
# left until a compaction, 1 it is to be overwritten, 2 it is.
SCHEMA = """
CREATE TABLE setting (key TEXT PRIMARY KEY, value);
CREATE TABLE segments (slot INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE sets (code INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE rows (id INTEGER PRIMARY KEY, place INTEGER NOT NULL, camera INTEGER NOT NULL, time INTEGER NOT NULL,
  identity INTEGER NOT NULL, "set" INTEGER NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL, changed INTEGER NOT NULL);
CREATE TABLE dead (place INTEGER PRIMARY KEY, id INTEGER, identity INTEGER, wipe INTEGER NOT NULL,
  changed INTEGER NOT NULL);
CREATE INDEX rows_changed ON rows (changed);
CREATE INDEX dead_changed ON dead (changed);
INSERT INTO setting VALUES ('commit', 0), ('slot', 0), ('dim', {dim}), ('vectors', '{vectors}')"""
BLOCK = 2**15  # rows that a compaction moves at a time


class FolderGallery:
    """A gallery in a folder; any thread may use it, and any number of processes: one writes at a time.

    Attributes:
        dim, model: as `Gallery`.
        vectors: "float32", or "float16": half the disk, and `fetch` gives the rounded rows.
        ledger: names, undo log and thumbnails.
        segment_rows: when an addition begins another file.
    Raises:
        OSError: the folder cannot be written, or is damaged.
        ValueError: it is no gallery, or one of another dimension, dtype or model.
    """

    def __init__(self, folder: Path, dim: int | None = None, *, model: str | None = None, vectors: str | None = None):
        self.folder = folder
        _check_folder(folder, dim, vectors)
        folder.mkdir(parents=True, exist_ok=True)
        self._db = Database(folder / DATABASE, SCHEMA.format(dim=dim, vectors=vectors or DTYPES[0]))
        with self._db.reading() as db:
            self.dim, self.vectors = read_setting(db, "dim"), read_setting(db, "vectors")
        for name, wanted, held in (("dimension", dim, self.dim), ("dtype", vectors, self.vectors)):
            if wanted not in (None, held):
                raise ValueError(f"{folder}: a gallery of {name} {held}, not {wanted}")
        self.segment_rows = SEGMENT_ROWS
        self._segments = Segments(self._path, self.dim, self.vectors)
        self._coded: dict[int, int] = {}  # slot -> rows that were looked at for coding
        self.ledger = Ledger(folder, self, model)
        with contextlib.suppress(TimeoutError):
            self._finish()

    @property
    def model(self) -> str:
        return self.ledger.model

    # ------------------------------------------------------------------ writing
    def add(self, ids: Sequence[int], vectors: np.ndarray, facts: Mapping[str, Sequence], *,
            replace: bool = False) -> None:
        """As `Gallery.add`."""
        ids, vectors, facts = check_rows(ids, vectors, facts, self.dim)
        if not len(ids):
            return
        with self._writing() as (db, commit):
            old = list(among(db, "SELECT id, place FROM rows WHERE id IN ({})", ids.tolist()))
            if old and not replace:
                raise ValueError(f"ids: {old[0][0]} is in the gallery already; with replace the new row takes "
                                 "its place")
            db.executemany("INSERT INTO dead VALUES (?, NULL, NULL, 0, ?)", ((place, commit) for _, place in old))
            codes = {name: self._set_code(db, name) for name in set(facts["set"].tolist())}
            facts["set"] = np.array([codes[name] for name in facts["set"].tolist()])
            values = (facts[name].tolist() for name in FACTS)
            places = self._append(db, [vectors])
            db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                           zip(ids.tolist(), places.tolist(), *values, [commit] * len(ids), strict=True))
        self._code()
        if old:
            self.ledger.forget([known for known, _ in old])

    def remove(self, ids: Sequence[int] | None = None, where: Where | None = None, *, erase: bool = False) -> int:
        """As `Gallery.remove`; with `erase`, nothing of these rows remains in the folder's files when it returns."""
        if (ids is None) == (where is None):
            raise ValueError("remove: give ids or where, one of them")
        with self._writing() as (db, commit):
            ids = np.unique(np.asarray(ids, np.int64)) if where is None else _ids(self.live(where))
            rows = list(among(db, "SELECT place, id, identity FROM rows WHERE id IN ({})", ids.tolist()))
            db.executemany("INSERT INTO dead VALUES (?, ?, ?, ?, ?)", ((*row, int(erase), commit) for row in rows))
            db.executemany("DELETE FROM rows WHERE id=?", ((row[1],) for row in rows))
            if erase:  # earlier vectors of these ids, too: which rows they were of is not known any more
                db.execute("UPDATE dead SET wipe=1 WHERE wipe=0")
        self._finish()
        if erase:  # copies of rows that were removed before, also where the engine has nothing left to overwrite
            self.ledger.removed.clear()
        return len(rows)

    def purge(self, older_than_days: float) -> int:
        """As `Gallery.purge`."""
        return self.remove(where=older_than(older_than_days), erase=True)

    def assign(self, ids: Sequence[int], **facts: Any) -> int:
        """As `Gallery.assign`."""
        values = {name: column.tolist()[0] for name, column in check_facts(
            {name: [value] for name, value in facts.items()}, 1).items() if name in facts}
        ids = np.unique(np.asarray(ids, np.int64)).tolist()
        if not values or not ids:
            return 0
        with self._writing() as (db, commit):
            if "set" in values:
                values["set"] = self._set_code(db, values["set"])
            columns = ", ".join(f'"{name}"=?' for name in values)
            return db.executemany(f"UPDATE rows SET {columns}, changed=? WHERE id=?",
                                  ((*values.values(), commit, row) for row in ids)).rowcount

    def compact(self) -> int:
        """Write the files that hold removed rows anew without these; the number of bytes that it frees."""
        try:
            freed = self._compact()
        finally:  # the old files, or those that a full disk broke off
            with self._db.writing() as db:
                self._sweep(db)
        self._code()
        return freed + self.ledger.compact()

    def _compact(self) -> int:
        with self._writing() as (db, commit):
            self._sweep(db)
            lives = self.live()
            full = [len(live) == len(live.segment) for live in lives]
            if lives and not all(full):
                full[-1] &= len(lives[-1].segment) >= self.segment_rows  # all files but the last are full
            lives = [live for live, kept in zip(lives, full, strict=True) if not kept]
            slots = [live.segment.slot for live in lives]
            db.executemany("DELETE FROM segments WHERE slot=?", ((slot,) for slot in slots))
            places = self._append(db, (live.segment.vectors[live.rows[start : start + BLOCK]] for live in lives
                                       for start in range(0, len(live.rows), BLOCK)), fresh=True)
            ids = [row for live in lives for row in live.ids.tolist()]
            db.executemany("UPDATE rows SET place=?, changed=? WHERE id=?",
                           zip(places.tolist(), [commit] * len(ids), ids, strict=True))
            db.executemany("DELETE FROM dead WHERE place >> 32 = ?", ((slot,) for slot in slots))
        return (sum(len(live.segment) for live in lives) - len(ids)) * self._row_bytes

    def _code(self) -> None:
        """Code rows when enough of them wait; without codes a search is as exact, only slower."""
        try:
            with self._db.writing() as db:
                for slot, count in read_counts(db).items():
                    if self._coded.get(slot) != count:
                        Segment(self._path(slot), slot, self.dim, self.vectors, count).code(self.segment_rows)
                        self._coded[slot] = count
        except OSError as error:  # the rows themselves are there
            logger.warning("searches stay slower, because codes are not written: %s", error)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """The write lock and the number of the commit that is to be."""
        self._finish(scrub=False)
        with self._db.writing() as db:
            yield db, _next(db, "commit")

    def _append(self, db: sqlite3.Connection, blocks: Iterable[np.ndarray], fresh: bool = False) -> np.ndarray:
        """Append vectors to the last file, or with `fresh` to new ones; their places [n] int64."""
        slot, count = max(read_counts(db).items(), default=(0, 0))
        fresh, places = fresh or not slot, [np.empty(0, np.int64)]
        for block in blocks:
            while len(block):
                if fresh or count >= self.segment_rows:
                    slot, count, fresh = _next(db, "slot"), 0, False  # never used again: readers know files by it
                part, block = np.split(block, [self.segment_rows - count])
                data = np.ascontiguousarray(part, self.vectors)
                append_bytes(self._path(slot), count * data[0].nbytes, data.data.cast("B"))
                places.append(np.arange(count, count + len(part)) + (slot << SLOT_BITS))
                count += len(part)
                db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?)", (slot, count))
        return np.concatenate(places)

    def _set_code(self, db: sqlite3.Connection, name: str) -> int:
        db.execute("INSERT OR IGNORE INTO sets (name) VALUES (?)", (name,))
        return db.execute("SELECT code FROM sets WHERE name=?", (name,)).fetchone()[0]

    def _finish(self, scrub: bool = True) -> None:
        """Complete removals: the vectors to overwrite, the ledger; also what a process that was killed left to do."""
        pending = "FROM dead WHERE id IS NOT NULL OR wipe=1"
        with self._db.reading() as db:
            if not db.execute(f"SELECT EXISTS (SELECT 1 {pending})").fetchone()[0]:
                return
        with self._db.writing() as db:
            dead = db.execute(f"SELECT place, id, identity, wipe {pending}").fetchall()
            wiped = [place for place, _, _, wipe in dead if wipe == 1]
            if wiped:
                self._sweep(db)
            for slot, rows in by_slot(np.array(wiped, np.int64)):
                Segment(self._path(slot), slot, self.dim, self.vectors, int(rows.max()) + 1).wipe(rows)
            ids = {row for _, row, _, _ in dead if row is not None}
            ids -= {row for row, in among(db, "SELECT id FROM rows WHERE id IN ({})", ids)}  # added again since
            self.ledger.forget(ids, {identity for _, _, identity, _ in dead if identity is not None}, bool(wiped))
        if wiped and scrub:
            self._db.scrub()
        if scrub or not wiped:
            with self._db.writing() as db:
                db.executemany("UPDATE dead SET id=NULL, identity=NULL, wipe=CASE wipe WHEN 1 THEN 2 ELSE wipe END "
                               "WHERE place=?", ((place,) for place, _, _, _ in dead))

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove what no commit refers to: files, and the tails of files. Only under the write lock."""
        counts = read_counts(db)
        remove_leftovers(self.folder)
        for path in list(self.folder.iterdir()):
            if match := re.fullmatch(r"[a-z]+-(\d{6,})\.\w+", path.name):
                if int(match[1]) not in counts:
                    path.unlink()
                elif path == self._path(int(match[1])):
                    append_bytes(path, counts[int(match[1])] * self._row_bytes, b"")

    @property
    def _row_bytes(self) -> int:
        return self.dim * np.dtype(self.vectors).itemsize

    def _path(self, slot: int) -> Path:
        return self.folder / f"vectors-{slot:06d}.{self.vectors}"

    # ------------------------------------------------------------------ reading
    def candidates(self, queries: np.ndarray, n: int, where: Where | None = None, exact: bool = True) -> Candidates:
        """As `Gallery.candidates`; always exact, with scores that are the same to the bit for any filter."""
        from processor.gallery.nearest import best_rows, score_error  # with torch, which takes seconds
        queries = check_vectors(queries, self.dim)
        while True:
            try:
                ids, squared = best_rows(self.live(where), queries, n)
                break
            except KeyError:  # a row was erased meanwhile, of which the next commit knows
                continue
        return Candidates(ids, 1 - squared / 2, score_error(self.dim), complete=True, squared=squared)

    def live(self, where: Where | None = None) -> list[Live]:
        """The rows that fulfil `where` in the last commit, segment by segment: what a search reads."""
        with self._db.reading() as db:
            self._segments.refresh(db)
            return self._segments.live(where or Where())

    def fetch(self, ids: Sequence[int], with_facts: bool = True) -> Batch:
        """As `Gallery.fetch`."""
        ids = np.asarray(ids, np.int64)
        with self._db.reading() as db:
            self._segments.refresh(db)
            places, facts = _facts(db, ids) if with_facts else (_places(db, ids), {})
            segments = dict(self._segments.by_slot)
        batch = Batch(ids, self._gather(segments, places), facts)
        if len(erased := np.flatnonzero(~batch.vectors.any(1))):  # since
            raise KeyError(f"id {ids[erased[0]]} is not in the gallery")
        return batch

    def scan(self, where: Where | None = None, batch: int = 8192) -> Iterator[Batch]:
        """As `Gallery.scan`; rows that are erased meanwhile are left out."""
        db, segments, ids = self._snapshot(where)
        with contextlib.closing(db), self._db.telling(db):
            for start in range(0, len(ids), batch):
                rows = ids[start : start + batch]
                places, facts = _facts(db, rows)
                vectors = self._gather(segments, places)
                kept = vectors.any(1)
                yield Batch(rows[kept], vectors[kept], {name: column[kept] for name, column in facts.items()})

    def _snapshot(self, where: Where | None) -> tuple[sqlite3.Connection, dict[int, Segment], np.ndarray]:
        """A connection that goes on reading one commit, that commit's segments, and its ids, ascending."""
        while True:
            db = self._db.connect()
            try:
                with self._db.telling(db):
                    db.execute("BEGIN")
                    commit = read_setting(db, "commit")
                lives = self.live(where)
                if self._segments.commit == commit:  # else another commit came between; the columns are of that one
                    return db, {live.segment.slot: live.segment for live in lives}, _ids(lives)
            except BaseException:
                db.close()
                raise
            db.close()

    def _gather(self, segments: Mapping[int, Segment], places: np.ndarray) -> np.ndarray:
        """[n, D] float32 of places [n]."""
        vectors = np.empty((len(places), self.dim), np.float32)
        for slot, rows, picked in by_slot(places, np.arange(len(places))):
            vectors[picked] = segments[slot].read(rows)
        return vectors

    def count(self, where: Where | None = None) -> int:
        """As `Gallery.count`."""
        return sum(len(live) for live in self.live(where))

    def info(self) -> dict[str, Any]:
        """What the folder holds, and in how many bytes."""
        live = self.live()
        with self._db.reading() as db:
            cameras, identities, first, last = db.execute(
                "SELECT COUNT(DISTINCT camera), COUNT(DISTINCT CASE WHEN identity >= 0 THEN identity END), "
                "MIN(CASE WHEN time >= 0 THEN time END), MAX(time) FROM rows").fetchone()
            sets = [name for name, in db.execute('SELECT name FROM sets WHERE code IN (SELECT "set" FROM rows)')]
        return {"folder": str(self.folder), "dim": self.dim, "vectors": self.vectors, "model": self.model,
                "rows": sum(len(part) for part in live), "cameras": cameras, "identities": identities,
                "sets": sorted(sets), "first": first, "last": last if first is not None else None,
                "removed_rows": sum(len(part.segment) - len(part) for part in live),
                # What it takes on the disk: files of codes are made long and filled later.
                "bytes": sum(512 * path.stat().st_blocks for path in self.folder.iterdir() if path.is_file())}

    def verify(self) -> list[str]:
        """What is wrong with the folder's files, in sentences; nothing is changed."""
        with self._db.reading() as db:
            faults = [f"{DATABASE}: {text}" for text, in db.execute("PRAGMA integrity_check") if text != "ok"]
            faults += [f"{DATABASE}: row {row} has no vector of its own" for row, in db.execute(
                "SELECT id FROM rows LEFT JOIN segments ON slot = place >> 32 WHERE slot IS NULL "
                "OR place & 0xffffffff >= count OR place IN (SELECT place FROM dead) "
                "OR place IN (SELECT place FROM rows GROUP BY place HAVING COUNT(*) > 1)")]
            faults += [f"{DATABASE}: row {row} is of a set that is not there" for row, in db.execute(
                'SELECT id FROM rows WHERE "set" NOT IN (SELECT code FROM sets)')]
        if faults:
            return faults
        for live in self.live():
            for start in range(0, len(live.rows), BLOCK):
                rows = live.rows[start : start + BLOCK]
                try:
                    live.segment.check(rows)
                except ValueError as error:
                    faults.append(f"{live.segment.path.name}: of the rows from {rows[0]}: {error}")
        return faults + self.ledger.verify()

    def close(self) -> None:
        """As `Gallery.close`."""
        self._segments.by_slot = {}
        self._db.close()
        self.ledger.close()

    def __enter__(self) -> FolderGallery:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_folder(folder: Path, dim: int | None, vectors: str | None) -> None:
    if vectors not in (None, *DTYPES):
        raise ValueError(f"vectors={vectors!r}: expected {' or '.join(DTYPES)}")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if DATABASE in names:
        return
    if names or folder.is_file():
        raise ValueError(f"{folder}: not a gallery, and not an empty folder that could become one")
    if dim is None or dim < 1:
        raise ValueError(f"{folder}: there is no gallery; to make one, its dimension is needed")


def _next(db: sqlite3.Connection, key: str) -> int:
    """Count a setting up."""
    db.execute("UPDATE setting SET value=? WHERE key=?", (number := read_setting(db, key) + 1, key))
    return number


def _facts(db: sqlite3.Connection, ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Places [n] and facts of rows [n] by id.

    Raises:
        KeyError: an id is not there.
        sqlite3.DatabaseError: a row is of a set that is not there.
    """
    rows = {row: values for row, *values in among(
        db, 'SELECT id, place, camera, time, identity, "set", name, data FROM rows WHERE id IN ({})', ids.tolist())}
    try:
        columns = list(zip(*(rows[row] for row in ids.tolist()), strict=True)) or [()] * (1 + len(FACTS))
    except KeyError as error:
        raise KeyError(f"id {error.args[0]} is not in the gallery") from None
    at = 1 + list(FACTS).index("set")
    # Not joined: a name would be read once a row, however long it is.
    sets = dict(among(db, "SELECT code, name FROM sets WHERE code IN ({})", set(columns[at])))
    lost = [row for row, code in zip(ids.tolist(), columns[at], strict=True) if code not in sets]
    if lost:
        raise sqlite3.DatabaseError(f"damaged: row {lost[0]} is of a set that is not there")
    columns[at] = tuple(sets[code] for code in columns[at])
    dtypes = (np.int64 if isinstance(default, int) else object for default in FACTS.values())
    return np.array(columns[0], np.int64), {name: np.array(column, dtype) for name, column, dtype in
                                            zip(FACTS, columns[1:], dtypes, strict=True)}


def _places(db: sqlite3.Connection, ids: np.ndarray) -> np.ndarray:
    """The same places alone."""
    rows = dict(among(db, "SELECT id, place FROM rows WHERE id IN ({})", ids.tolist()))
    if missing := [row for row in ids.tolist() if row not in rows]:
        raise KeyError(f"id {missing[0]} is not in the gallery")
    return np.array([rows[row] for row in ids.tolist()], np.int64)


def _ids(lives: Sequence[Live]) -> np.ndarray:
    """[n] int64, ascending."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *(live.ids for live in lives)]))
