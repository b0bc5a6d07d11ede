"""Rows that were removed and may come back: what undo needs of them, until they are erased or compacted away."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from processor.gallery.contract import FACTS, Batch
from processor.gallery.database import Database

KEPT = 20  # removals whose rows are kept
SCHEMA = """
CREATE TABLE removals (number INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE removed (number INTEGER, id INTEGER, vector BLOB NOT NULL, facts TEXT NOT NULL, thumbnail BLOB,
  said TEXT NOT NULL, PRIMARY KEY (number, id))"""


class Removed:
    """The last removals, by the numbers that they have in the undo log; in a file of its own, so that it can go whole.

    Rows lie here as copies, which makes a removal the same for any engine.
    """

    def __init__(self, folder: Path):
        self._db = Database(folder / "removed.sqlite", SCHEMA)

    def begin(self, number: int, erased: int = 0) -> None:
        """A removal of this number, which has erased so many rows; those that are too long ago lose their rows."""
        with self._db.writing() as db:
            db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (number, erased))
            db.execute("DELETE FROM removed WHERE number NOT IN (SELECT number FROM removals ORDER BY number DESC "
                       "LIMIT ?)", (KEPT,))

    def keep(self, number: int, batch: Batch, thumbnails: Mapping[int, bytes], said: Mapping[int, Sequence]) -> None:
        """Rows that are about to be removed; durable on return.

        Args:
            said: {id: what the ledger knows of it} as JSON can hold it.
        """
        columns = {name: column.tolist() for name, column in batch.facts.items()}
        with self._db.writing() as db:
            db.executemany("INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?, ?, ?)", (
                (number, row, vector.tobytes(), json.dumps([columns[name][i] for name in FACTS]), thumbnails.get(row),
                 json.dumps(said.get(row, []))) for i, (row, vector) in enumerate(
                    zip(batch.ids.tolist(), batch.vectors, strict=True))))
            db.execute("UPDATE removals SET count=count+? WHERE number=?", (len(batch.ids), number))

    def count(self, number: int) -> tuple[int, int] | None:
        """(rows that this change removed, those of them that are still here); None: it was no removal."""
        with self._db.reading() as db:
            held = db.execute("SELECT count, (SELECT COUNT(*) FROM removed WHERE removed.number=removals.number) "
                              "FROM removals WHERE number=?", (number,)).fetchone()
        return held and tuple(held)

    def numbers(self) -> dict[int, int]:
        """{number: rows} of all removals."""
        with self._db.reading() as db:
            return dict(db.execute("SELECT number, count FROM removals"))

    def rows(self, number: int, size: int = 1024) -> Iterator[tuple[Batch, dict[int, bytes], dict[int, list]]]:
        """What `keep` was given, in batches."""
        last = -1
        while True:
            with self._db.reading() as db:
                rows = db.execute("SELECT id, vector, facts, thumbnail, said FROM removed WHERE number=? AND id > ? "
                                  "ORDER BY id LIMIT ?", (number, last, size)).fetchall()
            if not rows:
                return
            try:
                batch = _as_kept(rows)
            except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RecursionError) as error:
                raise OSError(f"{self._db.path}: damaged: what it has of removed rows is nothing that was written "
                              f"({error}); they cannot come back") from error
            yield batch
            last = rows[-1][0]

    def drop(self, number: int) -> None:
        """Forget one removal: it was undone, or never made."""
        with self._db.writing() as db:
            for table in ("removed", "removals"):
                db.execute(f"DELETE FROM {table} WHERE number=?", (number,))

    def clear(self) -> int:
        """No removal so far can be undone any more, and nothing of its rows remains; the bytes that this frees."""
        with self._db.reading() as db:
            if not db.execute("SELECT EXISTS (SELECT 1 FROM removed)").fetchone()[0]:
                return 0
        before = self._db.path.stat().st_size
        with self._db.writing() as db:
            db.execute("DELETE FROM removed")
        self._db.scrub()
        return max(0, before - self._db.path.stat().st_size)

    def verify(self) -> list[str]:
        """What is wrong with the file, in sentences."""
        with self._db.reading() as db:
            return [f"{self._db.path.name}: {text}" for text, in db.execute("PRAGMA integrity_check") if text != "ok"]

    def close(self) -> None:
        """Closing again does nothing."""
        self._db.close()


def _as_kept(rows: Sequence[tuple]) -> tuple[Batch, dict[int, bytes], dict[int, list]]:
    """Rows of the table `removed` as `Removed.keep` was given them."""
    ids, vectors, facts, thumbnails, said = zip(*rows, strict=True)
    columns = dict(zip(FACTS, zip(*map(json.loads, facts), strict=True), strict=True))
    facts = {name: np.array(column, np.int64 if isinstance(FACTS[name], int) else object)
             for name, column in columns.items()}
    vectors = np.stack([np.frombuffer(vector, np.float32) for vector in vectors])
    lines = {row: [*map(bool, kept[:1]), *([int(number) for number in line] for line in kept[1:])]
             for row, kept in zip(ids, map(json.loads, said), strict=True)}
    return (Batch(np.array(ids, np.int64), vectors, facts),
            {row: bytes(jpeg) for row, jpeg in zip(ids, thumbnails, strict=True) if jpeg is not None}, lines)
