"""NAIC as it is downloaded, or as DMT had it: what lies in a folder, and what it has to be called here."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets.bases import format_names
from datasets.files.images import is_hidden
from datasets.sets.domains import PARTS
from utils.logger import printable


def describe_downloads(root: Path) -> str:
    """A sentence for an error: what lies in a folder, and how it becomes what is looked for."""
    if not root.is_dir():
        return ""
    names = (printable(path.name) + "/" * path.is_dir() for path in root.iterdir() if not is_hidden(path.name))
    return f". In {root} there is {format_names(names, 8) or 'nothing'}{describe_names(root)}"


def describe_names(root: Path) -> str:
    """What the download in a folder, which is there, has to be called, after a semicolon each; "" = there is none."""
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    return "".join(f"; {hint}" for hint in _hints([*folders, root]))


def _hints(folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        names = {path.name for path in folder.iterdir()} if not folder.name.startswith("train_20") else set()
        if {"images", "label.txt"} <= names:
            yield (f"{folder.name}/ is a training set of NAIC 2020: call it train_2020_cs/ (first round) or "
                   "train_2020_fs/ (second), its list may be label.txt")
        elif {"train", "train_list.txt"} <= names:
            yield (f"{folder.name}/ is a training set of NAIC 2019, as DMT had it: call it train_2019_cs/ (first "
                   "round) or train_2019_fs/ (second)")
        if set(PARTS) <= names:
            yield f"{folder.name}/ is a test folder: DATASETS.TEST_DIR {folder.name}"
        for letter in sorted(name.removeprefix("query_") for name in names if name.startswith("query_")):
            if f"gallery_{letter}" in names and (folder / f"query_{letter}").is_dir():
                yield (f"{folder.name}/ holds a test set: call query_{letter}/ query/ and gallery_{letter}/ gallery/, "
                       f"and set DATASETS.TEST_DIR {folder.name}")
