"""NAIC's training lists, line by line: what each line names, and what is wrong with it.

A line is `NAME:PID` or `NAME PID`, split at its last separator, so that names may hold blanks and colons; a pid is a
number, `007` and `7` are the same. Loading refuses every fault but REPEATED; the doctor reports them all.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.files.images import is_safe_path
from datasets.sets.list_files import OUTSIDE as OUTSIDE_TEXT
from datasets.sets.list_files import ImageFolder, decode_lines, quoted, read_list_file

# What can be wrong with a line.
NOT_TEXT, MALFORMED, OUTSIDE, MISSING, TWO_PIDS, REPEATED = FAULTS = (
    "not text", "malformed", "outside", "missing", "two pids", "repeated")

_DIGITS = "0123456789"


class ListLine(NamedTuple):
    """One line of a training list.

    Attributes:
        number: from 1.
        file: below the image folder; "" if the line does not say.
        pid: without leading zeros; "" if the line does not say.
        fault: one of FAULTS, or "". REPEATED: an earlier line says the same, which does no harm.
        text: the fault in words, for a message that begins with the place.
    """

    number: int
    file: str
    pid: str
    fault: str = ""
    text: str = ""


def read_list(path: Path, prefix: str, images: Path) -> Iterator[ListLine]:
    """Every line of a list but the blank ones; those that are not UTF-8 come first.

    Args:
        path: the list.
        prefix: what it writes before a file name, such as `train/`.
        images: the image folder; it is listed, no image is opened.
    """
    lines, bad = decode_lines(read_list_file(path))
    for number, problem in bad:
        yield ListLine(number, "", "", NOT_TEXT, problem)
    folder = ImageFolder(images)
    first: dict[str, tuple[str, int]] = {}  # file -> its pid and line
    for number, text in lines:
        line = parse_line(number, text, prefix)
        if not line.fault:
            pid, earlier = first.setdefault(line.file, (line.pid, number))
            if earlier == number:
                line = _look_for(line, folder)
            elif pid == line.pid:
                line = line._replace(fault=REPEATED, text=f"{quoted(line.file)} stands in line {earlier}, too")
            else:
                line = line._replace(fault=TWO_PIDS, text=f"{quoted(line.file)} is identity {line.pid} here and "
                                                          f"identity {pid} in line {earlier}")
        yield line


def parse_line(number: int, line: str, prefix: str) -> ListLine:
    """A stripped line's file and pid, or its fault: MALFORMED, or OUTSIDE if the name leads out of the folder."""
    def wrong(text: str, fault: str = MALFORMED) -> ListLine:
        return ListLine(number, "", "", fault, text)

    # From the end, each character once; a pattern with blanks on both sides of a colon is quadratic in their number.
    before = line.rstrip(_DIGITS)
    pid, name = line[len(before):], before.rstrip()
    if name.endswith(":"):
        name = name[:-1].rstrip()
    if not (pid and name) or name == before or name.endswith(":"):
        return wrong(f"expected 'name:pid' or 'name pid' with a pid of digits, got {quoted(line)}")
    if not is_safe_path(name):
        return wrong(f"{OUTSIDE_TEXT}, got {quoted(name)}", OUTSIDE)
    if not name.startswith(prefix):
        return wrong(f"expected a name that begins with {prefix!r}, got {quoted(name)}")
    return ListLine(number, name[len(prefix):], pid.lstrip("0") or "0")


def _look_for(line: ListLine, folder: ImageFolder) -> ListLine:
    """The line, with its fault if the image is not in its folder."""
    problem = folder.problem(line.file)
    if not problem:
        return line
    fault = OUTSIDE if problem.startswith(OUTSIDE_TEXT) else MISSING
    return line._replace(fault=fault, text=f"{problem}: {quoted(line.file)} in {folder.path}")
