"""The pictures that a command is to work on: a folder, a text with a path a line, a CSV, or a single file."""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.bases import Problems
from datasets.files.images import IMAGE_SUFFIXES, name_problem, report_others, scan_images
from datasets.sets.list_files import decode_lines, quoted, read_lines, without_comments
from utils.files import read_file

PATH_COLUMN = "path"


class PictureList(NamedTuple):
    """Pictures in the order of their rows.

    Attributes:
        names: as the list has them, or relative to the folder.
        paths: where they lie.
        table: a CSV's lines, the header first; [] of no CSV.
    """

    names: list[str]
    paths: list[str]
    table: list[list[str]]


def find_pictures(place: Path) -> PictureList:
    """The pictures of a folder and of those below it, sorted; of a .csv with a column `path`; or of a text, one a line.

    In a file paths are relative to its folder, or absolute. No picture is opened.

    Raises:
        OSError: there is no such folder or file.
        ValueError: it names no picture, a line is malformed, or a name has a line break (all).
    """
    problems, table = Problems(), []
    if place.is_dir():
        names, others = [], []
        for name, problem in sorted(scan_images(place, deep=True, others=others)):
            names.append(name)
            if problem:
                problems.add(f"{name}: {problem}")
        report_others(str(place), others)
    elif place.suffix.lower() in IMAGE_SUFFIXES:
        place.stat()  # there must be one
        return PictureList([place.name], [str(place)], [])
    elif place.suffix.lower() == ".csv":
        table = _read_csv(place, problems)
        column = table[0].index(PATH_COLUMN)
        names = [] if problems.count else [row[column] for row in table[1:]]
    else:
        names = [line for _, line in read_lines(place, place.name, problems)]
    problems.raise_if_any(str(place))
    if not names:
        raise ValueError(f"{place}: names no picture ({', '.join(IMAGE_SUFFIXES)})")
    folder = place if place.is_dir() else place.parent
    return PictureList(names, [os.path.join(folder, name) for name in names], table)


def _read_csv(place: Path, problems: Problems) -> list[list[str]]:
    """The lines, the header first."""
    rows = _numbered_rows(place)
    number, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    if header.count(PATH_COLUMN) != 1:
        raise ValueError(f"{place}:{number}: expected a header with a column {PATH_COLUMN}, got "
                         f"{', '.join(header)[:200]!r}")
    table, column = [header], header.index(PATH_COLUMN)
    for number, row in rows:
        if len(row) != len(header) or not row[column]:
            problems.add(f"{place.name}:{number}: expected {len(header)} columns and a {PATH_COLUMN}, got "
                         f"{quoted(', '.join(row))}")
        elif problem := name_problem(os.path.basename(row[column])):
            problems.add(f"{place.name}:{number}: {problem}")
        table.append(row)
    return table


def read_table(place: Path) -> list[list[str]]:
    """The lines of a CSV, the header first; blank ones, and comments before the header, are passed over.

    Raises:
        ValueError: it is no UTF-8 text, or no CSV; the message has the place and the line.
    """
    return [row for _, row in _numbered_rows(place)]


def _numbered_rows(place: Path) -> Iterator[tuple[int, list[str]]]:
    data = read_file(place)
    _, bad = decode_lines(data)
    if bad:
        raise ValueError(f"{place}:{bad[0][0]}: {bad[0][1]}")
    rows = csv.reader(io.StringIO(without_comments(data.decode("utf-8-sig")), newline=""))
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise ValueError(f"{place}:{rows.line_num}: {error}; is it a CSV?") from None
