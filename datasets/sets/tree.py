"""A tree: a folder of pictures for each identity.

    FOLDER/alice/*.jpg                          all of it is for training
    FOLDER/{train,query,gallery}/alice/*.jpg    with an evaluation; a split may be missing

A folder's name is the identity; the pictures lie in it or in folders below it (`alice/cam1/*.jpg`). Cameras are
unknown, so an evaluation leaves none out. What is passed over, and whom no picture or a single one is left of, is
counted in a warning.
"""
from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from datasets.bases import Places, Problems, Reference, ReIDData, format_names
from datasets.files.images import is_hidden, is_inside, name_problem, report_others, scan_images
from datasets.sets.numbering import SPLITS, SetImage, describe_lost, to_data, wanted_splits
from utils.logger import printable

DEFAULT_PLACE = "tree"  # below the root, if the name says no more
# What others call a split, and where its people belong here.
_OTHER_SPLITS = {"training": "train", "bounding_box_train": "train", "test": "gallery", "testing": "gallery",
                 "bounding_box_test": "gallery", "probe": "query", "queries": "query",
                 **dict.fromkeys(("val", "valid", "validation"), "query/ and gallery"),
                 **{name: name for name in SPLITS}}


def tree_folder(reference: Reference, places: Places) -> Path:
    """ROOT/FOLDER; where there is none, ROOT itself if it is called so, or if `tree` alone is asked for."""
    root = places.root_of(reference.name)
    folder = root / reference.place
    is_root = reference.place == DEFAULT_PLACE or root.name == folder.name
    return root if is_root and root.is_dir() and not folder.is_dir() else folder


def load_tree(reference: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read a tree of identity folders; no image is opened.

    Args:
        reference: its name is what keys and identities begin with.
        places: `root`. `skip`: if parts are "train" alone, leave out, with a warning, what leads out of the folder.
        parts: of "train" and "test".
    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: the folder mixes splits and identities, holds a single folder of folders, a link leads out of it,
            or a name cannot be part of a key (all).
    """
    folder, problems = tree_folder(reference, places), Problems()
    others: list[str] = []
    identities = _folders(folder, problems, others if "train" in parts else [])
    splits = _check_folders(folder, identities)
    images: dict[str, list[SetImage]] = {split: [] for split in wanted_splits(parts)}
    found = [(split, f"{split}/", _folders(folder / split, problems, others)) for split in SPLITS
             if split in splits and split in images]
    if not splits and "train" in images:
        found = [("train", "", identities)]
    empty: list[str] = []
    for split, prefix, pids in found:
        for pid in pids:
            before = len(images[split]) + problems.count
            images[split] += _read_identity(folder, prefix, pid, problems, others)
            empty += [prefix + pid] if len(images[split]) + problems.count == before else []
    problems.raise_or_skip(str(folder), "Rename it, or put there what links lead to.", parts, places.skip)
    lost = [f"{len(empty)} folder{'s' * (len(empty) > 1)} without an image: {format_names(empty)}"] if empty else []
    report_others(str(folder), others, [*lost, *describe_lost(images.get("train", []))])
    return to_data(reference.name, images)


def _check_folders(folder: Path, names: list[str]) -> set[str]:
    """Those of a tree's folders that are splits; refuses what would be read as other than it is meant."""
    splits = set(names) & set(SPLITS)
    meant = [f"{name}/ to {_OTHER_SPLITS[name.lower()]}/" for name in names
             if name not in splits and name.lower() in _OTHER_SPLITS and _has_folders(folder / name)]
    if meant:
        raise ValueError(f"{folder} has {format_names(names, 6)}: the splits of a tree are called train/, query/ and "
                         f"gallery/; rename {', '.join(meant)}, or move it away")
    if splits and len(splits) < len(names):
        raise ValueError(f"{folder} has both {format_names(splits)} and {format_names(set(names) - splits)}: put all "
                         "identities into train/, query/ or gallery/, or none of them")
    if not splits and len(names) == 1 and _has_folders(folder / names[0]) and not any(scan_images(folder / names[0])):
        raise ValueError(f"{folder} holds a single folder, {names[0]}/, with more folders in it: if these are the "
                         f"people, name {folder.name}/{names[0]} in DATASETS.NAMES (tree:FOLDER)")
    return splits


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not is_hidden(entry.name) for entry in os.scandir(folder))


def _read_identity(folder: Path, split: str, pid: str, problems: Problems, others: list[str]) -> Iterator[SetImage]:
    """The images of an identity; split: what the paths begin with."""
    passed: list[str] = []
    for file, problem in sorted(scan_images(folder / split / pid, deep=True, others=passed)):
        if problem:
            problems.add(f"{split}{pid}/{file}: {problem}")
        else:
            yield SetImage(f"{split}{pid}/{file}", pid)
    others += [f"{split}{pid}/{file}" for file in passed]


def _folders(folder: Path, problems: Problems, others: list[str]) -> list[str]:
    """Sorted names of the folders in a folder; hidden ones are passed over, files go to `others`."""
    if not folder.is_dir():
        there = [printable(path.name) for path in folder.parent.glob("[!.]*") if path.is_dir()]
        raise NotADirectoryError(f"no folder {folder}: a tree has a folder for each identity, or train/, query/ and "
                                 "gallery/ with such folders; DATASETS.NAMES tree:FOLDER names it, below "
                                 f"DATASETS.ROOT_DIR, and tree alone is that folder itself (folders there: "
                                 f"{format_names(there, 6) or 'none'})")
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not entry.is_dir():
                others.append(printable(entry.name))
            elif problem := name_problem(entry.name):
                problems.add(f"{folder}/{printable(entry.name)}: {problem}")
            elif entry.is_symlink() and not is_inside(entry.path, folder):
                problems.add(f"{entry.path}: is a link that leads out of its folder; put the folder itself there")
            else:
                names.append(entry.name)
    return sorted(names)
