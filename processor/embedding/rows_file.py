"""Arrays of rows that are filled for hours: memory-mapped, shared by processes, and gone on with after a kill.

Until they are whole they lie in the folder NAME.partial beside their place, with `done`, a byte for each batch that is
in them, and `begun.json`, what is being written.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.dist import Workers
from utils.files import make_mapped_array, naming, read_array, read_object, write_json
from utils.process import RunLock

ROWS = ""  # the name of an array that is the only one
_BEGUN = "begun.json"
_SECONDS_BETWEEN_FLUSHES = 1.0

logger = logging.getLogger(__name__)

Problems = list[tuple[int, str]]  # (row, what is wrong with its picture)
Before = Callable[[Problems, Mapping[str, np.ndarray]], None]


def array_path(path: Path, name: str) -> Path:
    """Where an array's file lies: feats.npy, or feats.NAME.npy."""
    return path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path


class RowsFile:
    """float32 .npy files [N, D], filled a batch of rows at a time; each process calls every method.

    Args:
        path: of the file, see `array_path`.
        dims: {array's name: D}.
        count: N.
        batches: in how many pieces they come.
        record: what the rows depend on, plain values; another record's work is not gone on with.
        restart: begin anew, and replace files that stand there.
        workers: the processes that fill it.
    Raises:
        FileExistsError: there is such a file already.
        ValueError: another run is at work there, or what was begun is of another record.
        OSError: there is no room.
    """

    def __init__(self, path: Path, dims: Mapping[str, int], count: int, batches: int, record: dict[str, Any],
                 restart: bool, workers: Workers):
        self.path, self.partial, self._workers = path, path.with_name(path.name + ".partial"), workers
        self._names, self._lock = list(dims), contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            opening.push(self._lock)  # let go of it if something is wrong here
            if workers.is_main:
                self._prepare(dims, count, batches, record, restart)
            opening.pop_all()
        workers.wait()
        self._arrays = {name: np.lib.format.open_memmap(self._file(name), "r+") for name in dims}
        self._done = np.memmap(self.partial / "done", np.uint8, "r+")
        self._pending: list[int] = []
        self._problems: Problems = []  # of the pending batches
        self._flushed = time.monotonic()
        undone = np.flatnonzero(self._done == 0).tolist()
        self.finished = batches - len(undone)
        self.undone = undone[workers.rank :: workers.size]  # of this process
        workers.wait()  # before anybody writes

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._lock.close()

    def write(self, batch: int, rows: list[int], feats: Mapping[str, np.ndarray], problems: Problems) -> None:
        """Enter the rows of a batch; a kill in the next second may lose it, and no other."""
        for name, feat in feats.items():
            self._arrays[name][rows] = feat
        self._problems += problems
        self._pending.append(batch)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._flush()

    def finish(self, before: Before) -> Problems:
        """Put the whole files in their place.

        Args:
            before: the first process calls it just before, with all problems and the arrays.
        Returns:
            All problems, in the order of rows.
        """
        self._flush()
        self._workers.wait()
        problems = self._read_problems()
        self._workers.wait()
        if self._workers.is_main:
            assert self._done.all()
            before(problems, self._arrays)
            for name in self._names:
                os.replace(self._file(name), array_path(self.path, name))
            shutil.rmtree(self.partial)
        self._workers.wait()
        return problems

    def _prepare(self, dims: Mapping[str, int], count: int, batches: int, record: dict[str, Any],
                 restart: bool) -> None:
        taken = [place for name in dims if (place := array_path(self.path, name)).exists()]
        begun = self.partial / _BEGUN
        if taken and not restart and not begun.is_file():  # a kill within `finish` has put some in place
            raise FileExistsError(f"{taken[0]} is there already; name another place, or ask to restart")
        self.partial.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(RunLock(self.partial / ".lock"))
        if begun.is_file() and not restart:
            before = read_object(begun)
            differing = [key for key in {**record, **before} if record.get(key) != before.get(key)]
            if differing:
                changes = ", ".join(f"{key} {_short(before.get(key))} (now {_short(record.get(key))})"
                                    for key in differing)
                raise ValueError(f"{self.partial} was begun with {changes}; ask for the same again, name another "
                                 "place, or ask to restart")
            if self._is_whole(dims, count, batches):
                return
            logger.warning("%s is not as it was written; it is begun anew", self.partial)
        begun.unlink(missing_ok=True)  # first: without it the others are nothing
        for file in self.partial.iterdir():
            if file.name != ".lock":
                file.unlink()
        for name, dim in dims.items():
            make_mapped_array(self._file(name), (count, dim))
        (self.partial / "done").write_bytes(bytes(batches))
        write_json(begun, record)

    def _is_whole(self, dims: Mapping[str, int], count: int, batches: int) -> bool:
        """Whether the files that were begun are those of so many rows and batches."""
        done = self.partial / "done"
        try:
            return done.stat().st_size == batches and all(
                read_array(self._file(name), "f", 2, mapped=True).shape == (count, dim) for name, dim in dims.items())
        except (OSError, ValueError):
            return False

    def _file(self, name: str) -> Path:
        return self.partial / f"rows{'.' * bool(name)}{name}.npy"

    def _flush(self) -> None:
        """The rows before the bytes that say that they are there."""
        if self._pending:
            with naming(self.partial):
                with open(self.partial / f"problems.{self._workers.rank}", "a", encoding="utf-8") as file:
                    # A line break first, because a kill may have cut off the line before.
                    file.writelines(f"\n{json.dumps(problem)}\n" for problem in self._problems)
                for array in self._arrays.values():
                    array.flush()
                self._done[self._pending] = 1
                self._done.flush()
        self._pending, self._problems, self._flushed = [], [], time.monotonic()

    def _read_problems(self) -> Problems:
        """Of all processes, of this run and of those before it; a batch that was done twice has them twice."""
        found: dict[int, str] = {}
        for file in self.partial.glob("problems.*"):
            for line in file.read_bytes().splitlines():
                # Cut off by a kill, before its batch was done; or damaged.
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    row, reason = json.loads(line)
                    found[int(row)] = str(reason)
        return sorted(found.items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"
