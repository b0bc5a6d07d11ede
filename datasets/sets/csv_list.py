"""A CSV: a line an image, with its identity, camera and split.

    FILE.csv    path,pid,camid,split
                shots/0001.jpg,alice,3,train
                shots/0002.jpg,alice,,query

UTF-8 (or UTF-16, as Excel's "Unicode text") with a header; commas, semicolons, tabs or bars between the cells. The
columns may stand in any order and have any of the names in COLUMNS, in any case; others are passed over.

**path** is relative to the CSV's folder and stays in it; `./`, backslashes and a whole path into that folder are
understood. **pid** is any text (`3.0` is 3), -1 is junk, which is ignored. **camid** is empty if the camera is unknown,
else a number, also as `cam1`, `c01` or `1.0`; if there is a camera 0, all are counted from there; if no camera has a
number, they are names. **split** is train, query or gallery, or `validation` (`val`, `test`) beside columns is_query
and is_gallery, as open-metric-learning has it. An image may stand in several splits, not twice in one.

Whether an evaluation leaves out the query's own camera follows from whether all cameras are known.
"""
from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, Places, Problems, Reference, ReIDData, format_names
from datasets.files.images import is_safe_path, report_others
from datasets.sets.list_files import OUTSIDE, ImageFolder, quoted, without_comments
from datasets.sets.numbering import SPLITS, SetImage, class_indices, describe_lost, to_data, wanted_splits
from utils.files import read_file
from utils.logger import printable

DEFAULT_PLACE = "data.csv"  # below the root, if the name says no more
# Column -> its names, without blanks, '-' and '_', in small letters. The first wins over the others.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "imgpath", "imagepath", "filepath", "filename", "imagename", "imgname", "file", "image", "img"),
    "pid": ("pid", "id", "personid", "person", "identity", "label", "vehicleid"),
    "camid": ("camid", "cam", "camera", "cameraid", "camno", "camname", "cameraname"),
    "split": ("split", "set", "subset"),
    "is_query": ("isquery",),
    "is_gallery": ("isgallery",),
}
_NEEDED = ("path", "pid", "split")
_NEEDLESS = re.compile(r"(?<![^/])\./+|(?<=/)/+")  # of a path
_POINT_ZERO = re.compile(r"^(-?[0-9]+)\.0+$")  # a number that a table made one of floating point
_BOX = {"x1", "x2", "y1", "y2"}
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "training": "train", "probe": "query"}
_EVALUATED = ("validation", "val", "test")  # is_query and is_gallery say as what
_CAMERA = re.compile(r"(?:(?:c|cam|camera)[ _-]*)?([0-9]{1,9})(?:\.0+)?", re.IGNORECASE)
_UNKNOWN = ("", "nan", "none", "null", "na", "n/a", "<na>")

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """A line of the file: where it stands, and its cells by column ("" of a column that is not there)."""

    number: int
    path: str
    pid: str
    camid: str
    split: str
    is_query: str
    is_gallery: str


def csv_folder(reference: Reference, places: Places) -> Path:
    """The folder of the CSV, which its paths begin at."""
    return _csv_file(reference, places).parent


def _csv_file(reference: Reference, places: Places) -> Path:
    """ROOT/FILE, or ROOT itself where DATASETS.ROOTS names the file."""
    root = places.root_of(reference.name)
    return root if root.is_file() else root / reference.place


def load_csv(reference: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a CSV of images; no image is opened.

    Args:
        reference: its name is what keys and identities begin with.
        places: `root`. `skip`: if parts are "train" alone, leave out, with a warning, lines that are wrong.
        parts: of "train" and "test".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header lacks a column or has two for one, or a line is malformed, or names an image that is not
            there or not inside the file's folder (all).
    """
    path = _csv_file(reference, places)
    if not path.is_file():
        there = format_names((printable(file.name) for file in path.parent.glob("*.[cCtT][sS][vV]")), 6)
        raise FileNotFoundError(f"no file {path}: DATASETS.NAMES csv:FILE names it, below DATASETS.ROOT_DIR (there: "
                                f"{there or 'no CSV'})")
    problems = Problems()
    images: dict[str, list[SetImage]] = {split: [] for split in SPLITS}
    for split, image in _read_images(path, list(_read_rows(path, problems)), problems):
        images[split].append(image)
    problems.raise_or_skip(str(path), "Correct the lines, or put the images there.", parts, places.skip)
    kept = {split: images[split] for split in wanted_splits(parts)}
    report_others(str(path), (), describe_lost(kept.get("train", [])))
    return to_data(reference.name, kept)


def _read_images(path: Path, rows: list[_Row], problems: Problems) -> Iterator[tuple[str, SetImage]]:
    """(split, image) of each good line."""
    cameras = number_cameras(row.camid for row in rows)
    folder, inside = ImageFolder(path.parent), [f"{path.parent.absolute()}/", f"{path.parent.resolve()}/"]
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        line, splits = f"{path.name}:{row.number}", _splits_of(row)
        file, pid = _relative(row.path, inside), _POINT_ZERO.sub(r"\1", row.pid) if "." in row.pid else row.pid
        if not splits:
            problems.add(f"{line}: {_split_fault(row)}")
        elif not pid:
            problems.add(f"{line}: the pid is empty")
        elif row.camid not in cameras:
            problems.add(f"{line}: expected a camid such as 3 or cam3, or none, got {quoted(row.camid)}")
        elif fault := folder.problem(file) if is_safe_path(file) else OUTSIDE:
            problems.add(f"{line}: {fault}: {quoted(file)} in {path.parent}")
        else:
            for split in splits:
                if (split, file) in seen:
                    problems.add(f"{line}: {quoted(file)} is in {split} already, in line {seen[split, file]}")
                else:
                    seen[split, file] = row.number
                    yield split, SetImage(file, pid, cameras[row.camid])


def _relative(path: str, folders: Iterable[str]) -> str:
    """A path as keys have it: with forward slashes, without `./`, and without the folder that it is relative to."""
    path = path.replace("\\", "/")
    for folder in folders:
        path = path.removeprefix(folder)
    return _NEEDLESS.sub("", path) if "./" in path or "//" in path else path


def _splits_of(row: _Row) -> list[str]:
    """The splits that a line puts its image into; none: it does not say."""
    split = row.split.lower()
    if split in _SPLIT_NAMES:
        return [_SPLIT_NAMES[split]]
    flags = {"query": row.is_query, "gallery": row.is_gallery}
    return [part for part, flag in flags.items() if split in _EVALUATED and flag.lower() in ("true", "1", "1.0", "yes")]


def _split_fault(row: _Row) -> str:
    if row.split.lower() in _EVALUATED and row.is_query + row.is_gallery:
        return f"split {quoted(row.split)}, and neither is_query nor is_gallery is true"
    flags = "; it takes columns is_query and is_gallery" if row.split.lower() in _EVALUATED else ""
    return f"split {quoted(row.split)} is not one of {', '.join(SPLITS)}{flags}"


def number_cameras(texts: Iterable[str]) -> dict[str, int]:
    """Camera, as it is written -> camid from 1, UNKNOWN_CAMID if it is unknown; without those that are no camera.

    Where a camera has the number 0, numbers begin there. Cameras are names, in alphabetical order, if none is a number.
    """
    texts = set(texts)
    known = {text for text in texts if text.lower() not in _UNKNOWN}
    numbers = {text: int(match[1]) for text in known if (match := _CAMERA.fullmatch(text))}
    if not numbers and all(text[0].isalpha() for text in known):
        numbers = class_indices(known)
    first = int(0 in numbers.values())
    return {**dict.fromkeys(texts - known, UNKNOWN_CAMID), **{text: number + first for text, number in numbers.items()}}


# ------------------------------------------------------------------ the table
def _read_rows(path: Path, problems: Problems) -> Iterator[_Row]:
    """The lines below the header, stripped; blank ones are passed over.

    Raises:
        ValueError: the file is no text, or its header does not do.
    """
    text = re.sub(r"^sep=.\r?\n", "\n", _read_text(path))  # a line that tells Excel what stands between cells
    text = without_comments(text)
    delimiter = max(",;\t|", key=lambda mark: len(_columns(next(_cells(path, text, mark), (1, []))[1])))
    lines = _cells(path, text, delimiter)
    number, header = next(lines, (1, []))
    places = _check_header(f"{path}:{number}", header)
    unread = [quoted(name) for place, name in enumerate(header) if name and place not in places.values()]
    logger.info("%s: read %s%s", path, ", ".join(f"{name} from {header[place]!r}" for name, place in places.items()),
                f"; passed over: {', '.join(unread)}" if unread else "")
    boxes = [place for place, name in enumerate(header) if _plain(name) in _BOX]
    for number, cells in lines:
        if any(cells[len(header):]):
            problems.add(f"{path.name}:{number}: {len(cells)} cells, where the header has {len(header)}; one that "
                         f"holds {delimiter!r} needs quotes")
            continue
        cells += [""] * (len(header) - len(cells))
        if len(boxes) == len(_BOX) and all(cells[place] for place in boxes):
            raise ValueError(f"{path}:{number}: the columns {', '.join(header[place] for place in boxes)} are boxes in "
                             "larger pictures, but pictures are read whole: cut them out, then remove these columns")
        yield _Row(number, *(cells[places[column]] if column in places else "" for column in COLUMNS))


def _read_text(path: Path) -> str:
    data = read_file(path)
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{number}: not UTF-8 text (byte 0x{data[error.start]:02x}); save it as "
                         "UTF-8") from None


def _cells(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number and stripped cells of each line that is not blank."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: {error}; is it a CSV?") from None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _columns(header: list[str]) -> dict[str, list[str]]:
    """Column of COLUMNS -> the names in a header that mean it; its own name alone, if that is there."""
    columns = {column: [name for name in header if _plain(name) in meant] for column, meant in COLUMNS.items()}
    return {column: [name for name in names if _plain(name) == COLUMNS[column][0]] or names
            for column, names in columns.items() if names}


def _check_header(place: str, header: list[str]) -> dict[str, int]:
    """Column of COLUMNS -> where it stands.

    Raises:
        ValueError: a column that is needed is not there, or several could be it.
    """
    columns = _columns(header)
    there = ", ".join(quoted(name) for name in header) if header else "nothing"
    lacking = [column for column in _NEEDED if column not in columns]
    if lacking:
        cure = ("name the columns so, and add what is missing (split: train, query or gallery)" if columns else
                "put the line path,pid,camid,split, in the order of your columns, before it")
        raise ValueError(f"{place}: expected a header with path, pid, split and, where it is known, camid; it lacks "
                         f"{', '.join(lacking)} and has {there}: {cure}")
    for column, names in columns.items():
        if len(names) > 1:
            raise ValueError(f"{place}: {' and '.join(map(quoted, names))} could both be the {column}; rename the "
                             f"right one to {column}")
    return {column: header.index(names[0]) for column, names in columns.items()}
