"""Sets that a user makes: a tree with a folder for each identity, or a CSV.

    FOLDER/alice/*.jpg                          all of it is for training
    FOLDER/{train,query,gallery}/alice/*.jpg    with an evaluation; a split may be missing

    FILE.csv    path,pid,camid,split
                shots/0001.jpg,alice,3,train
                shots/0002.jpg,alice,,query

**Tree.** A folder's name is the identity; the pictures lie in it and not deeper. Cameras are unknown.

**CSV.** UTF-8 with a header; the columns may stand in any order, and others are passed over. `path` is relative to the
CSV's folder and stays in it; `pid` is any text, -1 for junk, which is ignored; `camid` is a number from 1, empty if
it is unknown; `split` is train, query or gallery. An image may stand in several splits, not twice in one.

Whether an evaluation leaves out the query's own camera follows from whether all cameras are known.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from datasets.bases import UNKNOWN_CAMID, Places, Problems, Reference, ReIDData, format_names
from datasets.files.images import is_inside, is_safe_path, scan_images
from datasets.sets.list_files import OUTSIDE, ImageFolder, quoted
from datasets.sets.numbering import SPLITS, SetImage, to_data, wanted_splits

COLUMNS = ("path", "pid", "camid", "split")
DEFAULT_PLACES = {"tree": "tree", "csv": "data.csv"}  # kind -> below the root, if the name says no more


def tree_folder(reference: Reference, places: Places) -> Path:
    """ROOT/FOLDER; ROOT itself if `tree` alone is asked for and there is no ROOT/tree."""
    root = places.root_of(reference.name)
    folder = root / reference.place
    return root if reference.place == DEFAULT_PLACES["tree"] and not folder.is_dir() else folder


def load_tree(reference: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a tree of identity folders; no image is opened.

    Args:
        reference: its name is what keys and identities begin with.
        places: `root`. `skip`: if parts are "train" alone, leave out, with a warning, what leads out of the folder.
        parts: of "train" and "test".
    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: the folder mixes splits and identities, or a link leads out of it (all).
    """
    folder, problems = tree_folder(reference, places), Problems()
    identities = _folders(folder, problems)
    names = set(identities)
    splits = names & set(SPLITS)
    if splits and names != splits:
        raise ValueError(f"{folder} has both {format_names(splits)} and {format_names(names - splits)}: put all "
                         "identities into train/, query/ or gallery/, or none of them")
    images: dict[str, list[SetImage]] = {split: [] for split in wanted_splits(parts)}
    for split in splits & set(images):
        images[split] = list(_read_identities(folder, f"{split}/", _folders(folder / split, problems), problems))
    if not splits and "train" in images:
        images["train"] = list(_read_identities(folder, "", identities, problems))
    problems.raise_or_skip(str(folder), "Rename it, or put there what links lead to.", parts, places.skip)
    return to_data(reference.name, images)


def _read_identities(folder: Path, split: str, pids: list[str], problems: Problems) -> Iterator[SetImage]:
    """The images of these identities; split: what the paths begin with."""
    for pid in pids:
        for file, problem in sorted(scan_images(folder / split / pid)):
            if problem:
                problems.add(f"{split}{pid}/{file}: {problem}")
            else:
                yield SetImage(f"{split}{pid}/{file}", pid)


def _folders(folder: Path, problems: Problems) -> list[str]:
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
                problems.add(f"{entry.path}: a name may not hold a backslash or begin like a drive; rename it")
            elif entry.is_symlink() and not is_inside(entry.path, folder):
                problems.add(f"{entry.path}: is a link that leads out of its folder; put the folder itself there")
            else:
                names.append(entry.name)
    return sorted(names)


def csv_folder(reference: Reference, places: Places) -> Path:
    """The folder of the CSV, which its paths begin at."""
    return (places.root_of(reference.name) / reference.place).parent


def load_csv(reference: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a CSV of images; no image is opened.

    Args:
        reference: its name is what keys and identities begin with.
        places: `root`. `skip`: if parts are "train" alone, leave out, with a warning, lines that are wrong.
        parts: of "train" and "test".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or names an image that is not there or not inside the file's folder (all).
    """
    path = places.root_of(reference.name) / reference.place
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: DATASETS.NAMES csv:FILE names it, below DATASETS.ROOT_DIR")
    problems = Problems()
    images: dict[str, list[SetImage]] = {split: [] for split in SPLITS}
    for split, image in _read_rows(path, problems):
        images[split].append(image)
    problems.raise_or_skip(str(path), "Correct the lines, or put the images there.", parts, places.skip)
    return to_data(reference.name, {split: images[split] for split in wanted_splits(parts)})


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[str, SetImage]]:
    """(split, image) of each good line."""
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
            yield split, SetImage(file, pid, int(camid or UNKNOWN_CAMID))
