"""What is known of images from an earlier run, in one SQLite file."""
from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

logger = logging.getLogger(__name__)


class RecordStore:
    """key -> record and problem. A run that is killed leaves what it saved last; a file of another kind is replaced.

    Args:
        path: the file; it is made.
        made_for: what the records depend on beside the images: the data's place, the decoder's version. Records that
            were made for something else are forgotten.
    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, made_for: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open(made_for)
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: cannot be opened ({error})") from error
        except sqlite3.DatabaseError:
            logger.warning("%s is damaged or no record store; all images are read again", path)
            self._start_again(made_for)

    def _open(self, made_for: str) -> None:
        self._connection = sqlite3.connect(self.path)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS made_for (text TEXT)")
        self._connection.execute("CREATE TABLE IF NOT EXISTS images (key TEXT PRIMARY KEY, record BLOB, problem TEXT) "
                                 "WITHOUT ROWID")
        row = self._connection.execute("SELECT text FROM made_for").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO made_for VALUES (?)", (made_for,))
        elif row[0] != made_for:
            logger.info("%s was made for %s; all images are read again", self.path, row[0])
            self._start_again(made_for)
        self._connection.commit()

    def _start_again(self, made_for: str) -> None:
        self._connection.close()
        for name in (self.path, self.path.with_name(self.path.name + "-journal")):
            if os.path.lexists(name):
                os.unlink(name)
        self._open(made_for)

    def find(self, key: str) -> tuple[bytes, str] | None:
        """The image's record and problem, or None."""
        return self._connection.execute("SELECT record, problem FROM images WHERE key = ?", (key,)).fetchone()

    def add(self, key: str, record: bytes, problem: str) -> None:
        """Note an image; it lasts from the next `save` on."""
        self._connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (key, record, problem))

    def save(self) -> None:
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
