"""Sets of one's own: a tree with a folder for each identity, or a CSV.

    FOLDER/alice/*.jpg                          all of it is for training
    FOLDER/{train,query,gallery}/alice/*.jpg    with an evaluation; a split may be missing

    FILE.csv    path,pid,camid,split
                shots/0001.jpg,alice,3,train
                shots/0002.jpg,alice,,query

**Tree.** A folder's name is the identity; the pictures lie in it and not deeper. Cameras are unknown.

**CSV.** UTF-8 with a header; the columns may stand in any order, and others are passed over. `path` is relative to the
CSV's folder and stays in it; `pid` is any text, -1 for junk, which is ignored; `camid` is a number from 1, empty where
it is unknown; `split` is train, query or gallery. An image may stand in several splits, not twice in one.

Whether an evaluation leaves out the query's own camera follows from whether all cameras are known.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from datasets.bases import UNKNOWN_CAMID, Problems, ReIDData, some
from datasets.images import is_inside, is_safe_path, list_images
from datasets.lists import OUTSIDE, ImageFolder, quoted
from datasets.records import SPLITS, Record, to_data, wanted_splits

COLUMNS = ("path", "pid", "camid", "split")


def load_tree(name: str, folder: str | os.PathLike, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a tree of identity folders; no image is opened.

    Args:
        name: what its keys and identities begin with.
        folder: the tree.
        parts: of "train" and "test".
    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: the folder mixes splits and identities, or a link leads out of it.
    """
    folder = Path(folder)
    names = set(_folders(folder))
    splits = names & set(SPLITS)
    if splits and names != splits:
        raise ValueError(f"{folder} has both {some(splits)} and {some(names - splits)}: put all identities into "
                         "train/, query/ or gallery/, or none of them")
    there = {split: split for split in splits} if splits else {"train": "."}
    return to_data(name, {split: list(_read_identities(folder, there[split])) if split in there else []
                          for split in wanted_splits(parts)})


def _read_identities(folder: Path, split: str) -> Iterator[Record]:
    """The images of all identities in a split's folder, "." where the tree has no splits."""
    for pid in _folders(folder / split):
        for file in list_images(folder / split / pid):
            yield Record(f"{pid}/{file}" if split == "." else f"{split}/{pid}/{file}", pid, UNKNOWN_CAMID)


def _folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder; hidden ones are passed over."""
    if not folder.is_dir():
        raise NotADirectoryError(f"no folder {folder}: a tree has a folder for each identity, or train/, query/ and "
                                 "gallery/ with such folders; DATASETS.NAMES tree:FOLDER names it, below "
                                 "DATASETS.ROOT_DIR")
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            if not is_safe_path(entry.name):
                raise ValueError(f"{entry.path}: a name may not hold a backslash or begin like a drive; rename it")
            if entry.is_symlink() and not is_inside(entry.path, folder):
                raise ValueError(f"{entry.path}: is a link that leads out of its folder; put the folder itself there")
            names.append(entry.name)
    return sorted(names)


def load_csv(name: str, path: str | os.PathLike, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a CSV of images; no image is opened.

    Args:
        name: what its keys and identities begin with.
        path: the file.
        parts: of "train" and "test".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or names an image that is not there or not inside the file's folder (all).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: DATASETS.NAMES csv:FILE names it, below DATASETS.ROOT_DIR")
    problems = Problems()
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for split, record in _read_rows(path, problems):
        records[split].append(record)
    problems.raise_if_any(str(path))
    return to_data(name, {split: records[split] for split in wanted_splits(parts)})


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[str, Record]]:
    """(split, record) of each good line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    lacking = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if lacking:
        raise ValueError(f"{path}:1: expected a header {','.join(COLUMNS)}; it lacks {', '.join(lacking)}")
    images = ImageFolder(path.parent)
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        file, pid, camid, split = ((row[column] or "").strip() for column in COLUMNS)
        line = f"{path.name}:{rows.line_num}"
        if split not in SPLITS:
            problems.add(f"{line}: split {quoted(split)} is not one of {', '.join(SPLITS)}")
        elif not pid:
            problems.add(f"{line}: the pid is empty")
        elif camid and not (camid.isascii() and camid.isdigit() and int(camid)):
            problems.add(f"{line}: expected a camid from 1, or none, got {quoted(camid)}")
        elif fault := images.problem(file) if is_safe_path(file) else OUTSIDE:
            problems.add(f"{line}: {fault}: {quoted(file)} in {path.parent}")
        elif (split, file) in seen:
            problems.add(f"{line}: {quoted(file)} is in {split} already, in line {seen[split, file]}")
        else:
            seen[split, file] = rows.line_num
            yield split, Record(file, pid, int(camid or UNKNOWN_CAMID))
