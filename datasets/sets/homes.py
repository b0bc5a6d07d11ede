"""Where below ROOT a public set lies.

Folders that are called as the set is (`Layout.homes`, whatever their capitals and punctuation), and such folders inside
them: `market1501/Market-1501-v15.09.15/` as torchreid has it, and what was unpacked into a folder of its own name. Only
if none of them holds the set, ROOT itself may be its folder. Two different ones that hold it are an error; if one
folder holds it in two layouts, the first of the table counts.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.bases import Places, Reference, format_names
from datasets.sets.layouts import LAYOUTS, Layout

_DEPTH = 3  # folders of the set's names, one in another


def public_folder(reference: Reference, places: Places) -> Path:
    """The set's own folder; raises as `find_home`."""
    return find_home(reference, places)[0]


def find_home(reference: Reference, places: Places) -> tuple[Path, Layout]:
    """The set's own folder, and how it lies in there.

    Raises:
        FileNotFoundError: neither the set's root nor a folder with a usual name of the set in it looks like the set.
        ValueError: two do.
    """
    name, root = reference.kind, places.root_of(reference.name)
    first = LAYOUTS[name]
    layouts = first, *first.others
    named = list(_named_folders(root, first.homes))
    holding = [(home, home / layout.inner, layout) for home in named for layout in layouts
               if _holds(home / layout.inner, layout)]
    if len({os.path.realpath(home) for home, *_ in holding}) > 1:
        homes = dict.fromkeys(str(home) for home, *_ in holding)
        raise ValueError(f"{name} is in {root} twice: {' and '.join(homes)}; name one of them: "
                         f"DATASETS.ROOTS \"['{name}=FOLDER']\"")
    itself = [(root, home, layout) for layout in layouts for home in (root / layout.inner, root)
              if _holds(home, layout)]
    if not holding and not itself:
        raise FileNotFoundError(_not_found(name, root, named, layouts))
    return (holding or itself)[0][1:]


def _named_folders(root: Path, names: Sequence[str], depth: int = _DEPTH) -> Iterator[Path]:
    """The folders in `root` with one of the names, in their order, each followed by those in it."""
    order = {_plain(name): number for number, name in enumerate(names)}
    folders = [path for path in (root.iterdir() if root.is_dir() else ()) if _plain(path.name) in order]
    for folder in sorted(folders, key=lambda path: (order[_plain(path.name)], path.name)):
        if folder.is_dir():
            yield folder
            if depth > 1:
                yield from _named_folders(folder, names, depth - 1)


def _plain(name: str) -> str:
    """A folder's name without capitals and punctuation."""
    return re.sub(r"[\W_]", "", name.lower())


def _holds(home: Path, layout: Layout) -> bool:
    """Whether the folder looks like the set: it has its training or its gallery folder."""
    return any((home / folder).is_dir() for split in ("train", "gallery") for folder in layout.splits[split].folders)


def _not_found(name: str, root: Path, named: list[Path], layouts: Sequence[Layout]) -> str:
    """What was looked for, what lies there, and what to do."""
    first = layouts[0]
    if first.raw:
        file, advice = first.raw
        for path in (path for folder in (root, *named) for path in (folder / file, folder / Path(file).name)):
            if path.is_file():
                return f"no {name} in {root} but its raw download {path}: {advice}"
    inside = " or ".join(f"{layout.splits['train'].folders[0]}/, {layout.splits['gallery'].folders[0]}/, …"
                         for layout in layouts)
    homes = [f"{home}/{first.inner}".rstrip("/") + "/" for home in first.homes]
    there = "; ".join(f"{folder} has {describe_entries(folder)}" for folder in (root, *named[:3]))
    return (f"no {name} in {root}: expected {homes[0]} there (or {', '.join(homes[1:])}; capitals do not matter) with "
            f"{inside} in it; {there}; set DATASETS.ROOT_DIR to the folder that holds it, or for this set alone "
            f"DATASETS.ROOTS \"['{name}=FOLDER']\"")


def describe_entries(folder: Path, limit: int = 8) -> str:
    """What lies in a folder, for a message: "a/, b.txt, … (12 in all)"."""
    if not folder.is_dir():
        return "not been found" if not folder.exists() else "no folder's name: it is a file"
    names = [entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith(".")]
    return format_names(names, limit) or "nothing in it"
