"""Rows for a gallery out of files: pictures, lists, and what tools/embed.py wrote, with the facts that they tell."""
from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datasets.bases import Problems
from datasets.files.image_header import read_header
from datasets.files.images import BadImage, decode
from processor.embed_files import FEATS, INFO, NAMES, TABLE
from processor.embedder import Embedder
from processor.embedding.picture_lists import PATH_COLUMN, find_pictures, read_table
from processor.gallery.contract import FACTS, UNKNOWN, Gallery
from utils.files import read_array, read_file, read_object

if TYPE_CHECKING:
    from processor.gallery.reembed import Pictures
    from processor.gallery.service.answers import Vision

# Fact -> the columns that tell it, best first; a column of another name is kept in `data`.
COLUMNS = {"camera": ("camera", "camid"), "time": ("time", "timestamp"), "person": ("person", "pid"),
           "set": ("set", "split")}
_CHUNK = 512  # rows at a time
_ALIKE = 0.01  # numbers of a picture's rows in other precisions or batches differ by less


class Rows(NamedTuple):
    """Rows to add.

    Attributes:
        ids: [n], a function of set and name, so that a row that is there already is known.
        vectors: [n, D]; facts as `Gallery.add` takes them, but for persons, whose identities the ledger knows.
        persons: [n] names, "" = nobody yet.
        paths: [n] of the pictures, "" = not known.
    """

    ids: list[int]
    vectors: np.ndarray
    facts: dict[str, list]
    persons: list[str]
    paths: list[str]


class Told(NamedTuple):
    """What the command line says of all rows, where a file says nothing: camera, set, and a pattern for names.

    pattern: its groups camera, time, person and set are read from each name.
    """

    camera: int = UNKNOWN
    set: str = ""
    pattern: re.Pattern | None = None


def row_id(group: str, name: str) -> int:
    """The id of the picture `name` of a set."""
    digest = hashlib.blake2b(f"{group}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def read_rows(place: Path, embedder: Embedder | None, told: Told) -> Iterator[Rows]:
    """The rows of a folder of pictures, a text or CSV with their paths, or a folder that tools/embed.py wrote.

    Raises:
        ValueError: a fact is malformed (all of a file are named), the vectors are of another model than `embedder`, or
            pictures are to be embedded without one.
        BadImage, OSError: a picture or a file cannot be read.
    """
    embedded = (place / FEATS).is_file()
    if embedded:
        names, table, paths = _read_names(place / NAMES), [], None
        vectors = read_array(place / FEATS, "f", 2, mapped=True)
        if len(vectors) != len(names):
            raise ValueError(f"{place}: {len(vectors)} rows, but {len(names)} names; make it anew with --restart")
        if (place / TABLE).is_file():
            table = read_table(place / TABLE)
            if len(table) != len(names) + 1 or any(len(line) != len(table[0]) for line in table):
                raise ValueError(f"{place / TABLE}: damaged: not a line for each of {len(names)} names in {NAMES}; "
                                 "make it anew with --restart")
    else:
        names, paths, table = find_pictures(place)
        if embedder is None:
            raise ValueError(f"{place}: pictures are embedded with a model: name it with --model")
    facts, persons = read_facts(place / TABLE if embedded else place, names, table, told)
    ids = [row_id(group, name) for group, name in zip(facts["set"], names, strict=True)]
    for start in range(0, len(names), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = np.array(vectors[part]) if embedded else embedder.embed(paths[part])
        good = np.flatnonzero(~np.isnan(rows[:, 0]))  # NaN: a picture that tools/embed.py has passed over
        picked = {name: _pick(column[part], good) for name, column in facts.items()}
        yield Rows(_pick(ids[part], good), rows[good], picked, _pick(persons[part], good),
                   _pick(paths[part] if paths else [""] * len(rows), good))


def add_rows(gallery: Gallery, place: Path, embedder: Embedder | None, told: Told,
             thumbnails: bool = True) -> tuple[int, int]:
    """Add what `read_rows` reads, with small pictures where it knows the files; (rows added, rows there already).

    Raises:
        ValueError, BadImage, OSError: as `read_rows` and `are_there`; what was added before stays.
    """
    from processor.gallery.service.answers import make_thumbnail

    added = known = 0
    for rows in read_rows(place, embedder, told):
        fresh = [i for i, there in enumerate(are_there(gallery, rows)) if not there]
        known += len(rows.ids) - len(fresh)
        if not fresh:
            continue
        ids, persons = [rows.ids[i] for i in fresh], [rows.persons[i] for i in fresh]
        facts = {name: [column[i] for i in fresh] for name, column in rows.facts.items()}
        named = sorted({person for person in persons if person})
        numbers = {"": UNKNOWN, **dict(zip(named, gallery.ledger.identities(named).tolist(), strict=True))}
        facts["identity"] = [numbers[person] for person in persons]
        gallery.add(ids, rows.vectors[fresh], facts)
        paths = {row: rows.paths[i] for row, i in zip(ids, fresh, strict=True) if rows.paths[i]}
        if paths and thumbnails:
            gallery.ledger.put_thumbnails(list(paths), [
                make_thumbnail(decode_picture(read_file(path), sys.maxsize)) for path in paths.values()])
        added += len(fresh)
    return added, known


def are_there(gallery: Gallery, rows: Rows) -> list[bool]:
    """Whether each row is in the gallery already.

    Raises:
        ValueError: another picture of this name is.
    """
    there = []
    for row, vector, name in zip(rows.ids, rows.vectors, rows.facts["name"], strict=True):
        try:
            held = gallery.fetch([row]).vectors[0]
        except KeyError:
            there.append(False)
            continue
        if np.abs(held - vector).max() > _ALIKE:
            raise ValueError(f"the gallery holds another picture {name}; give these a set of their own with --set NAME")
        there.append(True)
    return there


def model_of(place: Path) -> str:
    """The model_id of a folder that tools/embed.py wrote, "" of anything else."""
    return str(read_object(place / INFO).get("model_id", "")) if (place / INFO).is_file() else ""


def _read_names(path: Path) -> list[str]:
    try:  # not splitlines(), which would break a name at characters that it may hold
        names = read_file(path).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged: not UTF-8 at byte {error.start}; make it anew with --restart") from error
    return names


def _pick(values: Sequence, rows: np.ndarray) -> list:
    return [values[row] for row in rows.tolist()]


# ------------------------------------------------------------------ facts
def read_facts(place: Path, names: Sequence[str], table: Sequence[Sequence[str]],
               told: Told) -> tuple[dict[str, list], list[str]]:
    """({fact: [n]}, [n] persons) of pictures, from a CSV's lines (header first), their names, and the command line.

    Raises:
        ValueError: a camera or a time is malformed, or the pattern fits no name; all lines are named.
    """
    problems, header = Problems(), list(table[0]) if table else []
    sources = {fact: next((header.index(name) for name in columns if name in header), None)
               for fact, columns in COLUMNS.items()}
    used = {*sources.values(), header.index(PATH_COLUMN) if PATH_COLUMN in header else None}
    rest = [column for column in range(len(header)) if column not in used]
    facts: dict[str, list] = {name: [] for name in FACTS}
    persons = []
    for number, name in enumerate(names):
        line = table[number + 1] if table else []
        values = {fact: line[column].strip() for fact, column in sources.items() if column is not None}
        values = {**_from_name(name, told.pattern), **{fact: value for fact, value in values.items() if value}}
        try:
            facts["camera"].append(_whole("camera", values["camera"]) if "camera" in values else told.camera)
            facts["time"].append(read_time(values["time"]) if "time" in values else UNKNOWN)
        except ValueError as error:
            problems.add(f"{place.name}:{number + 2}: {error}" if table else f"{name}: {error}")
        facts["set"].append(values.get("set", told.set))
        facts["name"].append(name)
        facts["data"].append(json.dumps({header[column]: line[column] for column in rest}, ensure_ascii=False))
        persons.append("" if values.get("person") == str(UNKNOWN) else values.get("person", ""))
    problems.raise_if_any(str(place))
    if told.pattern and not any(told.pattern.search(name) for name in names):
        raise ValueError(f"the pattern {told.pattern.pattern!r} fits no name, the first is {names[0]}")
    facts["identity"] = [UNKNOWN] * len(names)
    return facts, persons


def _from_name(name: str, pattern: re.Pattern | None) -> Mapping[str, str]:
    match = pattern.search(name) if pattern else None
    return {fact: value for fact, value in match.groupdict().items() if value} if match else {}


def read_time(text: str) -> int:
    """ms since 1970: a whole number of them, or a date as ISO 8601 has it; without a zone it is this machine's.

    Raises:
        ValueError: it is neither.

    >>> read_time("1700000000000"), read_time("2023-11-14T22:13:20+00:00")
    (1700000000000, 1700000000000)
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(f"time: expected ms since 1970, or a date like 2026-01-31T12:00:00, got {text!r}") from None


def _whole(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{what}: expected a whole number, got {text!r}") from None


# ------------------------------------------------------------------ pictures from outside
def decode_picture(data: bytes, pixels: int) -> np.ndarray:
    """uint8 [H, W, 3] RGB of an image file whose header promises no more than so many pixels.

    Raises:
        BadImage: it is larger, does not say its size, or is no whole picture.
    """
    if not data:
        raise BadImage("the picture is an empty file")
    try:
        header = read_header(data)
    except Exception as error:  # a decoder's own kinds: Pillow has one for bombs
        raise BadImage(f"the picture's header cannot be read: {error}") from error
    if not header.width or not header.height:
        raise BadImage("not a picture of a known kind, or its header does not say its size")
    if header.width * header.height > pixels:
        raise BadImage(f"the picture has {header.width} x {header.height} pixels, more than {pixels}")
    return decode(data)


def make_vision(embedder: Embedder, fpr: float, pixels: int) -> Vision:
    """What the gallery's service may know of a model: its threshold at `fpr`, and pictures of up to so many pixels."""
    from processor.embedding.pictures import crop_boxes
    from processor.gallery.service.answers import Vision

    thresholds = embedder.info.thresholds
    unit = np.zeros(embedder.dim, np.float32)
    unit[0] = 1

    def probability(similarities: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(similarities), embedder.dim), np.float32)  # vectors of these cosines to `unit`
        rows[:, 0], rows[:, -1] = similarities, np.sqrt(np.maximum(1 - np.square(similarities), 0))
        return embedder.probability(unit, rows)

    return Vision(lambda data: decode_picture(data, pixels), crop_boxes, embedder.embed,
                  probability if "probability" in thresholds else None,
                  embedder.threshold(fpr) if thresholds.get("cosine") else None)


def make_pictures(folders: Sequence[Path], embedder: Embedder) -> Pictures:
    """Where and how `re_embed` reads pictures.

    Raises:
        FileNotFoundError: a folder is not there.
    """
    from processor.gallery.reembed import Pictures
    from processor.gallery.service.answers import make_thumbnail

    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    return Pictures(folders, lambda data: decode_picture(data, sys.maxsize), make_thumbnail, embedder.embed)


def describe(values: Mapping[str, Any]) -> str:
    """A line a value, for people."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:{width}}  {value}" for name, value in values.items())
