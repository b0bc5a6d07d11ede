"""List files that name images: their lines, and whether what they name is there and inside its folder."""
from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

from datasets.bases import Problems
from datasets.files.images import is_inside, name_problem
from utils.files import read_file
from utils.logger import printable

OUTSIDE = "a list may only name files inside its own folder"
_LARGEST = 1 << 30   # bytes of a list; 880,000 lines with the longest names that a file system takes have a fifth of it
_LONGEST = 1 << 14   # bytes of a line: a path has 4096 at most


def quoted(text: str) -> str:
    """A piece of a list for a message, cut: what is no list may hold very long lines."""
    return repr(text if len(text) <= 200 else text[:200] + "…")


def read_lines(path: Path, name: str, problems: Problems) -> list[tuple[int, str]]:
    """Numbered, stripped, non-blank lines of a UTF-8 text; a byte-order mark and CRLF do not matter.

    Args:
        path: the file.
        name: its name in problems.
        problems: get one entry for all lines that are not UTF-8 or far too long; these are left out.
    """
    lines, bad = decode_lines(read_list_file(path))
    if bad:
        more = f" (and {len(bad) - 1} more lines)" * (len(bad) > 1)
        problems.add(f"{name}:{bad[0][0]}: {bad[0][1]}{more}")
    return lines


def read_list_file(path: Path) -> bytes:
    """The content of a list.

    Raises:
        OSError: it cannot be read.
        ValueError: it is far larger than a list can be.
    """
    if path.is_file() and (size := os.path.getsize(path)) > _LARGEST:
        raise ValueError(f"{path}: {size:,} bytes, where a list has {_LARGEST:,} at most; is it a list?")
    return read_file(path)


def decode_lines(data: bytes) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """The lines of a list file, as `read_lines` gives them, and (number, problem) of each that is no text of a line."""
    lines: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    for number, (start, end) in enumerate(_spans(data), 1):
        if end - start > _LONGEST:
            bad.append((number, f"a line of {end - start:,} bytes, where a name and a pid take {_LONGEST:,} at most"))
            continue
        piece = data[start:end]
        try:
            line = piece.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            bad.append((number, f"not UTF-8 text (byte 0x{piece[error.start]:02x}); save it as UTF-8"))
            if number == 1 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                break  # what follows are no lines of single bytes
        else:
            if line:
                lines.append((number, line))
    return lines, bad


def _spans(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each line of a text begins and ends; nothing is copied."""
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    while (end := data.find(b"\n", start)) >= 0:  # not splitlines(): a file name may hold others of its line breaks
        yield start, end
        start = end + 1
    yield start, len(data)


def without_comments(text: str) -> str:
    """A CSV's text with empty lines for those before its header that begin with `#`; a header may begin with one.

    >>> without_comments("# made by hand\\n#path,pid\\na.png,#1\\n")
    '\\npath,pid\\na.png,#1\\n'
    """
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            break
        cells = re.split(r"[,;\t|]", line[1:])
        is_header = line.startswith("#") and len(cells) > 1 and any(
            re.fullmatch(r"[\s\"']*(\w*path|image|img|file|\w+name)[\s\"']*", cell, re.IGNORECASE) for cell in cells)
        lines[place] = line[1:] if is_header else ""
        if is_header:
            break
    return "\n".join(lines)


class ImageFolder:
    """What lies in an image folder; it and each sub-folder are listed once, instead of asking for every image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: dict[str, tuple[set[str], set[str], str]] = {}
        self._hints: dict[str, tuple[dict[str, str], str]] = {}

    def problem(self, file: str) -> str:
        """Why `file`, a safe relative path, is no file inside this folder, or ""."""
        folder, _, name = file.rpartition("/")
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        files, links, reason = self._listed[folder]
        if name in files:
            return ""
        if name in links:
            target = self.path / file
            if not is_inside(target, self.path):
                return f"{OUTSIDE}, and this is a link that leads out of it"
            return "" if target.is_file() else "a link to no file"
        return (reason or "no such image") + self._hint(folder, name)

    def _hint(self, folder: str, name: str) -> str:
        """Where a missing image may be: under a name that differs in case or suffix, or is not UTF-8; or ""."""
        if self._listed[folder][2]:  # it is a folder that is missing; from above, for below it there is none to look at
            folder, name = self._first_missing(folder)
        if folder not in self._hints:
            names = {_stem(file): file for file in os.listdir(self.path / folder)}
            bad = next((file for file in names.values() if not file.isascii() and name_problem(file)), "")
            self._hints[folder] = names, f" ({printable(bad)} there: {name_problem(bad)})" if bad else ""
        names, bad = self._hints[folder]
        near = names.get(_stem(name), name)
        return bad if near == name else f" (there is {near!r})"

    def _first_missing(self, folder: str) -> tuple[str, str]:
        """(the folder that is there, the name in it that is not) on the way to a folder."""
        above = ""
        for name in folder.split("/"):
            below = f"{above}/{name}" if above else name
            if below not in self._listed:
                self._listed[below] = self._list(below)
            if self._listed[below][2]:
                break
            above = below
        return above, name

    def _list(self, folder: str) -> tuple[set[str], set[str], str]:
        """Names of the files and of the links in a sub-folder, and why there are none."""
        path = self.path / folder if folder else self.path
        files: set[str] = set()
        links: set[str] = set()
        try:
            with os.scandir(path) as entries:
                if folder and not is_inside(path, self.path):
                    return files, links, f"{OUTSIDE}, and a link leads out of it"
                for entry in entries:
                    if entry.is_symlink():
                        links.add(entry.name)
                    elif entry.is_file():
                        files.add(entry.name)
        except OSError as error:
            return files, links, f"no such image ({error.strerror or error})"
        return files, links, ""


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()
