"""Rows of all pictures of a folder or a list, or of all boxes of tracks, into a folder: what tools/embed.py calls."""
from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.files.images import BadImage
from processor.embedder import Embedder
from processor.embedding.fill import ItemList, Pictures, fill_rows, record_of
from processor.embedding.picture_lists import find_pictures
from processor.embedding.rows_file import ROWS, Problems, array_path
from processor.embedding.tracks import COLUMNS, TrackCrops, open_frames, read_tracks
from utils.dist import ALONE, Workers
from utils.files import read_array, read_object, write_array, write_json, write_text
from utils.process import StopRequest

FORMAT = 1
FEATS, BOXES = "feats.npy", "boxes.npy"
NAMES, TABLE, PROBLEMS, INFO = "names.txt", "rows.csv", "problems.txt", "info.json"
_CHUNK = 4096  # rows in memory at a time


class Request(NamedTuple):
    """How a folder of rows is made.

    Attributes:
        output: the folder.
        raw: the branches before normalisation, a file each.
        skip_bad: a picture that cannot be used gets a row of NaN and a line in problems.txt.
        restart: begin anew, and replace the rows that are there.
        workers: the processes that share the work.
    """

    output: Path
    raw: bool = False
    skip_bad: bool = False
    restart: bool = False
    workers: Workers = ALONE


class Boxes(NamedTuple):
    """Boxes of tracks.

    Attributes:
        path: of the file.
        frames: a folder of pictures, or a video.
        tracklets: a row is of an id, not of a box.
        crops: folder that gets the crops as a set `tree:`, None = they are not written.
        origin: number of the first pixel.
        min_conf: boxes of less are left out.
    """

    path: Path
    frames: Path
    tracklets: bool = False
    crops: Path | None = None
    origin: int = 1
    min_conf: float = -math.inf


def embed_pictures(embedder: Embedder, place: Path, request: Request) -> str:
    """feats.npy, names.txt, info.json and, of a CSV, rows.csv of the pictures of a folder, a list or a CSV.

    Returns:
        What was written, in a line.
    Raises:
        ValueError, OSError: as `find_pictures` and `Embedder.embed_into`.
    """
    listed = find_pictures(place)
    return _Folder(embedder, ItemList(listed.paths), request, listed.names, listed.table).fill()


def embed_boxes_of(embedder: Embedder, boxes: Boxes, request: Request) -> str:
    """The same of the boxes in a file of tracks; or of its ids, whose boxes' rows are then in boxes.npy.

    Returns:
        What was written, in a line.
    Raises:
        ValueError, OSError: the file, the frames or a box cannot be used, or crops are asked for in a folder that holds
            something; or as `Embedder.embed_into`.
    """
    if boxes.tracklets and request.raw:
        raise ValueError("a tracklet's row is a mean of normalised rows: ask for raw rows of boxes")
    read = read_tracks(boxes.path, boxes.min_conf)
    if boxes.tracklets and not (read := [box for box in read if box.id >= 0]):
        raise ValueError(f"{boxes.path}: all ids are negative: these are detections, not tracks")
    open_frames(boxes.frames, read)  # before anything slow
    crops = TrackCrops(boxes.path, read, boxes.frames, boxes.origin, boxes.crops)
    kind = _Tracklets if boxes.tracklets else _Folder
    folder = kind(embedder, crops, request, [box.name for box in read],
                  [COLUMNS, *(box[1:] for box in read)])
    begun = folder.partial.is_dir() and not request.restart
    if boxes.crops and not folder.is_whole() and not begun and boxes.crops.is_dir() and any(boxes.crops.iterdir()):
        raise ValueError(f"{boxes.crops} is not empty; name a new folder for the crops")
    return folder.fill()


class _Folder:
    """The folder that a run fills: names and a table of rows beside the arrays; info.json says what they are of."""

    rows_file = FEATS

    def __init__(self, embedder: Embedder, pictures: Pictures, request: Request, names: list[str],
                 table: Sequence[Sequence[Any]]):
        self.embedder, self.pictures, self.request, self.names, self.table = embedder, pictures, request, names, table
        self.output = request.output
        self.partial = self.output / f"{self.rows_file}.partial"
        self.info = {"format": FORMAT, "file": self.rows_file, **record_of(embedder, pictures, request.raw)}

    def is_whole(self) -> bool:
        """Whether all of it is there already.

        Raises:
            FileExistsError: the folder holds rows of something else.
        """
        if self.request.restart or self.partial.is_dir() or not (self.output / INFO).is_file():
            return False
        before = read_object(self.output / INFO)
        differing = [key for key, value in self.info.items() if before.get(key) != value]
        if differing:
            raise FileExistsError(f"{self.output} holds rows that were made with another {', '.join(differing)}; name "
                                  "another folder, or replace them with --restart")
        return True

    def fill(self) -> str:
        """Do it, as far as it is not done."""
        request = self.request
        if not self.is_whole():
            self.output.mkdir(parents=True, exist_ok=True)
            try:
                with StopRequest() as stop:
                    fill_rows(self.embedder, self.output / self.rows_file, self.pictures, raw=request.raw,
                              on_error="none" if request.skip_bad else "raise", restart=request.restart,
                              workers=request.workers, stop=stop, before=self.write_beside)
            except (BadImage, FileNotFoundError) as error:
                raise BadImage(f"{error}; mend it, or pass over such pictures with --skip-bad") from error
        bad = read_object(self.output / INFO, problems=int)["problems"]
        shapes = [f"{path}: {' x '.join(map(str, read_array(path, 'f', 2, mapped=True).shape))}"
                  for path in (array_path(self.output / FEATS, name) for name in self.embedder.dims(request.raw))]
        return ", ".join(shapes) + f"; {bad} pictures could not be used, see {self.output / PROBLEMS}" * bool(bad)

    def write_beside(self, problems: Problems, arrays: Mapping[str, np.ndarray]) -> None:
        """All but the arrays."""
        write_text(self.output / NAMES, "".join(f"{name}\n" for name in self.names))
        _write_or_remove(self.output / TABLE, _format_csv(self.table))
        _write_or_remove(self.output / PROBLEMS, "".join(
            f"{row}\t{self.names[row]}\t{' '.join(reason.removeprefix(f'item {row}: ').split())}\n"
            for row, reason in problems))
        write_json(self.output / INFO, {**self.info, "problems": len(problems),
                                        "branches": self.embedder.dims(raw=True)})


class _Tracklets(_Folder):
    """Rows of ids, made of the rows of boxes, which are kept in boxes.npy, with boxes.csv."""

    rows_file = BOXES

    def write_beside(self, problems: Problems, arrays: Mapping[str, np.ndarray]) -> None:
        ids, tracks = np.unique([row[1] for row in self.table[1:]], return_inverse=True)
        frames = np.array([row[0] for row in self.table[1:]])
        feats, used = _unit_means(arrays[ROWS], tracks, len(ids))
        write_array(self.output / FEATS, feats)
        write_text(self.output / "boxes.csv", _format_csv(self.table))
        super().write_beside(problems, arrays)
        write_text(self.output / NAMES, "".join(f"{person}\n" for person in ids))
        write_text(self.output / TABLE, _format_csv([("id", "first_frame", "last_frame", "boxes"), *(
            (person, frames[tracks == track].min(), frames[tracks == track].max(), used[track])
            for track, person in enumerate(ids))]))


def _unit_means(rows: np.ndarray, groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """([count, D] float32 of length 1, the mean of each group's rows, NaN without any; [count] how many there were).

    A row of NaN is of a bad picture, and does not count.
    """
    totals, used = np.zeros((count, rows.shape[1])), np.zeros(count, np.int64)
    for start in range(0, len(rows), _CHUNK):
        chunk, group = rows[start : start + _CHUNK], groups[start : start + _CHUNK]
        good = ~np.isnan(chunk[:, 0])
        np.add.at(totals, group[good], chunk[good])
        np.add.at(used, group[good], 1)
    totals[used == 0] = np.nan
    return (totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)).astype(np.float32), used


def _format_csv(table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def _write_or_remove(path: Path, text: str) -> None:
    """An empty file would say that there was something to say."""
    if text:
        write_text(path, text)
    else:
        path.unlink(missing_ok=True)
