"""Training lists without the images that stand in another training set as well: what the lineage made by hand.

Its authors compared the files of the four sets and left every picture in one of them only: 2020_fs keeps all, then come
2020_cs, 2019_fs and 2019_cs. `cs_2020equal_path.txt` and its like name the images that go (here with their keys, there
with the absolute paths of one machine and a blank first line), `new_train_list.txt` and its like are the lists without
them, which training prefers (datasets/naic.py). Their list for 2019_fs was never applied; it is here.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.naic import TRAIN_SETS
from datasets.sets.list_files import decode_lines, read_list_file
from processor.doctor.duplicates import equal_groups
from processor.doctor.inspection import Inspected
from processor.doctor.inventory import Inventory
from utils.files import write_text

STAYS_FIRST = ("2020_fs", "2020_cs", "2019_fs", "2019_cs")
EQUAL_LISTS = {"2020_cs": "cs_2020equal_path.txt", "2019_fs": "fs_2019equal_path.txt",
               "2019_cs": "cs_2019equal_path.txt"}
EQUAL_BY = {"bytes": "file", "pixels": "pixels"}  # an option's value -> the record's digest that is compared


class CleanList(NamedTuple):
    """A list that was written.

    Attributes:
        set: of TRAIN_SETS.
        path: where it lies.
        kept: images in it.
        equal: images left out because they stand in another set.
        faulty: other lines left out: those that would stop a training, repeated and mislabelled ones.
        overruled: True: the set's folder has a cleaned list already, which training takes instead.
    """

    set: str
    path: Path
    kept: int
    equal: int
    faulty: int
    overruled: bool

    def describe(self) -> str:
        """The list in a line."""
        return (f"{self.path.name}: {self.kept:,} images kept, {self.equal:,} left out because they stand in another "
                "set" + f", {self.faulty:,} other lines left out" * (self.faulty > 0)
                + "; NOT USED while the set's own folder has such a list" * self.overruled)


def find_equal(inventory: Inventory, inspected: Inspected, by: str = "bytes") -> dict[str, set[str]]:
    """The images of each training set that stand in a set that comes before it in STAYS_FIRST.

    Args:
        by: "bytes", as the lineage compared, or "pixels", which also finds a picture that was saved again.
    Returns:
        Set name -> files below its image folder; for each set of EQUAL_LISTS that is there.
    """
    rank = np.array([STAYS_FIRST.index(image_set.name) if image_set.name in STAYS_FIRST else -1
                     for image_set in inventory.sets])
    ranks = rank[inventory.set_of]
    usable = inspected.records["good"] & (ranks >= 0)
    for position, image_set in enumerate(inventory.sets):
        if image_set.two_pids:  # such a file will not stand in its own set's cleaned list either
            usable[inventory.span(position)] &= [file not in image_set.two_pids for file in image_set.files]
    equal: dict[str, set[str]] = {name: set() for name in EQUAL_LISTS
                                  if name in [image_set.name for image_set in inventory.sets]}
    for group in equal_groups(inspected.records[EQUAL_BY[by]], usable):
        for image in group[ranks[group] > ranks[group].min()].tolist():
            image_set = inventory.sets[inventory.set_of[image]]
            equal[image_set.name].add(inventory.key(image)[len(image_set.folder) + 1:])
    return equal


def read_equal_list(path: Path) -> dict[str, set[str]]:
    """Read a list of paths that go; only their file names count, so that it may come from another machine.

    A path's set is that of a folder in it (train_2019_cs), or else that of the list's name.

    Returns:
        Set name -> file names.
    Raises:
        ValueError: it is no UTF-8 text, names no image, or a path is of no set that can be cleaned.
        OSError: there is no such file.
    """
    lines, bad = decode_lines(read_list_file(path))
    if bad:
        raise ValueError(f"{path}:{bad[0][0]}: {bad[0][1]}")
    set_of_folder = {TRAIN_SETS[name].folder: name for name in EQUAL_LISTS}
    by_file_name = next((name for name, file in EQUAL_LISTS.items() if file == path.name), None)
    equal: dict[str, set[str]] = {}
    for number, line in lines:
        *folders, file = re.split(r"[/\\]", line)
        name = next((set_of_folder[folder] for folder in reversed(folders) if folder in set_of_folder), by_file_name)
        if name is None:
            raise ValueError(f"{path}:{number}: {line!r} names no training set that can be cleaned "
                             f"({', '.join(set_of_folder)}), nor does the list's own name "
                             f"({', '.join(EQUAL_LISTS.values())})")
        equal.setdefault(name, set()).add(file)
    if not equal:
        raise ValueError(f"{path}: names no image")
    return equal


def apply_equal_list(inventory: Inventory, path: Path) -> dict[str, set[str]]:
    """The images of each set that an existing list of equal paths names, as `find_equal` returns them.

    Raises:
        ValueError: as `read_equal_list`; or a set is not there, or has none of the images.
    """
    equal = {}
    for name, names in read_equal_list(path).items():
        image_set = next((image_set for image_set in inventory.sets if image_set.name == name), None)
        if image_set is None:
            raise ValueError(f"{path}: it is about {name}, which is not in {inventory.data}, or was not asked for")
        equal[name] = {file for file in image_set.files if file.rpartition("/")[2] in names}
        if not equal[name]:
            raise ValueError(f"{path}: none of its {len(names)} file names is in {image_set.list}; is it of other "
                             "data?")
    return equal


def write_clean_lists(inventory: Inventory, inspected: Inspected | None, equal: Mapping[str, set[str]],
                      output: Path) -> list[CleanList]:
    """Write the cleaned list of each set in `equal`: the lines of its list that stay, unchanged.

    Lines that would stop a training are left out, too: what is malformed, missing, under two identities, unreadable.

    Args:
        inspected: None: no image was opened.
        equal: set name -> files that go.
        output: the folder for the lists; nothing is written elsewhere.
    """
    written = []
    for position, image_set in enumerate(inventory.sets):
        if image_set.name not in equal:
            continue
        assert image_set.list is not None
        goes, span = equal[image_set.name], inventory.span(position)
        good = inspected.records["good"][span] if inspected else np.ones(len(image_set.files), bool)
        stays = {int(line) for file, line, whole in zip(image_set.files, image_set.lines, good, strict=True)
                 if whole and file not in goes and file not in image_set.two_pids}
        lines, bad = decode_lines(read_list_file(image_set.list))
        train_set = TRAIN_SETS[image_set.name]
        path = output / train_set.cleaned
        write_text(path, "".join(f"{line}\n" for number, line in lines if number in stays))
        overruling = inventory.data / train_set.folder / train_set.cleaned
        written.append(CleanList(
            image_set.name, path, kept=len(stays), equal=len(goes),
            faulty=len(lines) + len(bad) - len(stays) - len(goes),
            overruled=overruling.is_file() and overruling != path.absolute()))
    return written


def write_equal_lists(inventory: Inventory, equal: Mapping[str, set[str]], output: Path) -> None:
    """Write the keys of the images that go, a list a set, in the order of the set's list."""
    for image_set in inventory.sets:
        if image_set.name in equal:
            keys = [f"{image_set.folder}/{file}\n" for file in image_set.files if file in equal[image_set.name]]
            write_text(output / EQUAL_LISTS[image_set.name], "".join(keys))
