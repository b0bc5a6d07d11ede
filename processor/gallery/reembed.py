"""A gallery's pictures through another model: a new gallery with the same ids, facts, names, marks and undo log.

It is made beside its place, in FOLDER.part, and moved there when it is whole; a later call goes on with what is there.
"""
from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from processor.gallery.contract import FACTS, Batch, Gallery, count_rows
from processor.gallery.folder import FolderGallery
from utils.files import read_object, sync_folder, write_json

logger = logging.getLogger(__name__)
BATCH = 256  # rows whose pictures are held at a time
NAMED = 10  # rows that a message names
_SECONDS = 10  # between two lines of the log
_ALIKE = 8  # grey levels by which a picture's thumbnail may differ from the one that is kept, on average


@dataclass
class Report:
    """What became of the rows: embedded from their pictures, from their thumbnails, there from a run before, left out.

    left: {id: (name, why)}.
    """

    pictures: int = 0
    thumbnails: int = 0
    earlier: int = 0
    left: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """Where a row's picture is looked for, and what reads it.

    Attributes:
        folders: a row's name is a path in one of these; the first whose picture has the row's thumbnail counts.
        decode: bytes of an image file -> uint8 [H, W, 3] RGB; ValueError says why not.
        shrink: a picture -> JPEG, as the thumbnails of the gallery were made.
        embed: pictures -> float32 [N, D] of length 1.
    """

    folders: Sequence[Path]
    decode: Callable[[bytes], np.ndarray]
    shrink: Callable[[np.ndarray], bytes]
    embed: Callable[[list[np.ndarray]], np.ndarray]

    def paths(self, name: str) -> list[Path]:
        """The files that a row of this name may be of; a name never leads out of a folder."""
        parts = PurePath(name).parts
        if not name or "\0" in name or ".." in parts or PurePath(name).is_absolute():
            return []
        return [path for folder in self.folders if (path := folder / name).is_file()]

    def read(self, name: str, thumbnail: bytes | None) -> tuple[np.ndarray, bool]:
        """The picture of a row, and whether it is a file's; else it is the thumbnail's.

        Raises:
            ValueError, OSError: there is none, or it cannot be read.
        """
        problem: Exception = ValueError("no picture and no thumbnail")
        small = None if thumbnail is None else self.decode(thumbnail)
        for path in self.paths(name):
            try:
                picture = self.decode(path.read_bytes())
            except (ValueError, OSError) as error:
                problem = error
                continue
            if small is None or _are_alike(small, self.decode(self.shrink(picture))):
                return picture, True
        if small is None:
            raise problem
        return small, False


def _are_alike(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and np.abs(left.astype(np.int16) - right).mean() <= _ALIKE


def re_embed(source: Gallery, folder: Path, pictures: Pictures, dim: int, model: str, *, vectors: str | None = None,
             leave_out: bool = False) -> Report:
    """Make the gallery `folder` of the rows of `source`, with vectors of another model.

    Ids, all facts, names, persons' words, the undo log and thumbnails are carried over; what was removed from `source`
    cannot be brought back in the new gallery. Rows that are added or changed meanwhile are seen, those whose picture is
    replaced under the same id are not.

    Args:
        dim, model, vectors: of the new gallery, as `open_gallery`.
        leave_out: go on without rows that have no picture; the report names them.
    Raises:
        ValueError: `folder` is there, the model is the one that `source` has, FOLDER.part is of another source or
            model, or rows have no picture; the first of these are named.
        OSError: something cannot be read or written; call it again.
    """
    part, ledger, report = folder.with_name(f"{folder.name}.part"), source.ledger, Report()
    if folder.exists():
        raise ValueError(f"{folder}: is there already; name a folder for the new gallery that is not")
    if model == source.model:
        raise ValueError(f"the gallery holds vectors of model {model} already")
    if not leave_out:
        _check_pictures(source, pictures)
    _claim(part, source, model)
    with FolderGallery(part / "gallery", dim, model=model, vectors=vectors) as target:
        first = target.count()
        while _bring(source, target, pictures, report, leave_out):  # what was changed meanwhile, too
            pass
        report.earlier = max(0, min(first, target.count() - report.pictures - report.thumbnails))
    if ledger is not None:
        ledger.copy_to(part / "gallery", model)
        with FolderGallery(part / "gallery", dim, model=model) as target:
            target.ledger.forget(report.left)
    os.rename(part / "gallery", folder)
    sync_folder(folder.parent)
    shutil.rmtree(part)
    return report


def _claim(part: Path, source: Gallery, model: str) -> None:
    """Make FOLDER.part, or see that it was begun for the same."""
    place = str(getattr(source, "url", None) or Path(source.folder).resolve())
    wanted, note = {"source": place, "model": model}, part / "of.json"
    if note.is_file():
        if (held := read_object(note)) != wanted:
            raise ValueError(f"{part}: begun from {held.get('source')} with model {held.get('model')}; remove it to "
                             "begin anew")
        return
    if part.exists() and any(part.iterdir()):
        raise ValueError(f"{part}: is there already, and is no re-embedding that was broken off; move it away")
    part.mkdir(parents=True, exist_ok=True)
    write_json(note, wanted)


def _check_pictures(source: Gallery, pictures: Pictures) -> None:
    """Raise ValueError, before hours of work, if rows have neither a file nor a thumbnail."""
    lacking = [(row, name) for batch in source.scan() for row, name in zip(
        batch.ids.tolist(), batch.facts["name"], strict=True)
        if (source.ledger is None or source.ledger.thumbnail(row) is None) and not pictures.paths(name)]
    if lacking:
        raise ValueError(f"no picture in the folders that were named, and no thumbnail, of {count_rows(len(lacking))}: "
                         f"{describe(lacking)}; name more folders, or leave these rows out")


def describe(rows: Iterable[tuple[int, str]]) -> str:
    """The first of (id, name), for a message."""
    rows = list(rows)
    more = f" and {len(rows) - NAMED} more" * (len(rows) > NAMED)
    return ", ".join(f"{row} ({name or 'without a name'})" for row, name in rows[:NAMED]) + more


def _bring(source: Gallery, target: FolderGallery, pictures: Pictures, report: Report, leave_out: bool) -> int:
    """Bring the target's rows up to the source's; the number of rows that were not as they should be."""
    held = np.sort(np.concatenate([np.empty(0, np.int64), *(live.ids for live in target.live())]))
    total, seen, changes, told = source.count(), [np.empty(0, np.int64)], 0, time.monotonic()
    for batch in source.scan(batch=BATCH):
        seen.append(batch.ids)
        there = np.isin(batch.ids, held)
        fresh = ~there & ~np.isin(batch.ids, list(report.left))
        changes += _update(target, _rows(batch, there)) + _embed(source, target, _rows(batch, fresh), pictures, report)
        if report.left and not leave_out:
            raise ValueError(f"no picture that can be read of {count_rows(len(report.left))}: " + describe(
                (row, f"{name}: {why}") for row, (name, why) in report.left.items()) + "; mend it, or leave them out")
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            logger.info("%d of %d rows", sum(map(len, seen)), total)
    gone = np.setdiff1d(held, np.concatenate(seen))
    return changes + (target.remove(gone, erase=True) if len(gone) else 0)


def _rows(batch: Batch, which: np.ndarray) -> Batch:
    return Batch(batch.ids[which], batch.vectors[which], {name: column[which] for name, column in batch.facts.items()})


def _update(target: FolderGallery, rows: Batch) -> int:
    """Give rows that are there the facts that the source has."""
    held = target.fetch(rows.ids)
    stale = np.zeros(len(rows.ids), bool)
    for name in FACTS:
        stale |= held.facts[name] != rows.facts[name]
    if stale.any():
        rows = _rows(rows, stale)
        target.add(rows.ids, held.vectors[stale], rows.facts, replace=True)
    return int(stale.sum())


def _embed(source: Gallery, target: FolderGallery, rows: Batch, pictures: Pictures, report: Report) -> int:
    """Add rows that are not there yet."""
    found, made, files = [], [], 0
    for at, (row, name) in enumerate(zip(rows.ids.tolist(), rows.facts["name"], strict=True)):
        try:
            picture, is_file = pictures.read(name, source.ledger and source.ledger.thumbnail(row))
        except (ValueError, OSError) as error:
            report.left[row] = (name, str(error))
            continue
        found.append(at)
        made.append(picture)
        files += is_file
    if made:
        rows = _rows(rows, np.array(found))
        target.add(rows.ids, pictures.embed(made), rows.facts)
    report.pictures, report.thumbnails = report.pictures + files, report.thumbnails + len(made) - files
    return len(made)
