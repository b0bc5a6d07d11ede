"""Which images the data sets of a config have; what a training would refuse goes to the findings.

NAIC's lists are read line by line (processor/doctor/inventory.py), every other set by its own reader.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.bases import Places, QueryGallery, Reference, ReIDData, Sample, format_names
from datasets.files.images import IMAGE_SUFFIXES
from datasets.naic import TRAIN_SETS
from datasets.registry import DATASETS, DEFAULT_PLACES, PSEUDO, ChosenSets, open_folders, parse_names
from datasets.sets.domains import PARTS
from datasets.sets.list_files import quoted
from datasets.sets.naic_downloads import describe_names
from processor.doctor.findings import Findings, Picture
from processor.doctor.inventory import NO_IDENTITY, ImageSet, Inventory, read_naic
from utils.logger import printable, silence

_MOST = 6  # names of what lies in a folder


def read_inventory(sets: ChosenSets, findings: Findings, ignore_cleaned: bool = False,
                   least_identities: int = 2) -> Inventory:
    """Read the lists of data sets and look for their images; no image is opened.

    Args:
        sets: what is trained and tested on; of NAIC see `read_naic`.
        findings: takes all that is wrong with lists and names.
        ignore_cleaned: True: read NAIC's train_list.txt even if there is a cleaned list.
        least_identities: that a batch takes.
    Raises:
        ValueError: train_sets or test_dir cannot be, or folders of two sets have one name.
        OSError: there is no folder that holds a set.
    """
    data, places = sets.places.root_of("naic"), sets.places
    image_sets: list[ImageSet] = []
    identities: list[str] = []
    folders: dict[str, Path] = {}
    for reference in dict.fromkeys([*sets.named, *sets.tested]):
        try:
            folders[reference.mount] = DATASETS[reference.kind].folder(reference, places)
        except (ValueError, OSError):
            if not places.root_of(reference.name).is_dir():
                raise
        parts = [part for part, chosen in (("train", sets.named), ("test", sets.tested)) if reference in chosen]
        if reference.kind == "naic":
            data = folders.get(reference.mount, data)
            image_sets += read_naic(data, places, parts, ignore_cleaned, identities, findings)
        else:
            image_sets += _read_set(reference, places, parts, identities, findings)
    inventory = Inventory(data, image_sets, identities, open_folders(folders))
    for index in range(len(inventory)):
        key = inventory.key(index)
        if not key.isascii():
            findings.add("foreign name", quoted(key), (inventory.picture(index),))
    usable = sum(_check_identities(inventory, reference, folders.get(reference.mount, places.root_of(reference.name)),
                                   findings) for reference in sets.named)
    if 0 < usable < least_identities:
        findings.add("too few identities", f"{usable} with two images, where a batch takes {least_identities}")
    return inventory


def _check_identities(inventory: Inventory, reference: Reference, folder: Path, findings: Findings) -> int:
    """Check a set for identities of one training image; how many others there are."""
    of_set = np.array([image_set.reference == reference.name for image_set in inventory.sets], bool)
    known = np.flatnonzero(~inventory.in_test & (inventory.identity_of != NO_IDENTITY) & of_set[inventory.set_of])
    counts = np.bincount(inventory.identity_of[known], minlength=len(inventory.identities))
    for index in known[counts[inventory.identity_of[known]] == 1]:
        findings.add("one image", inventory.label(index), (inventory.picture(index),))
    usable = int((counts > 1).sum())
    if not usable:
        findings.add("nothing to train on", f"{reference.name}: {_describe_lack(reference, len(known))}; "
                                            f"{describe_folder(folder)}{_describe_likeness(folder, reference)}"
                                            f"{describe_names(folder) if reference.kind == 'naic' else ''}")
    return usable


def _describe_lack(reference: Reference, known: int) -> str:
    """Why nothing of a set can be trained on, and what was looked for."""
    if known:
        return "no identity has two images"
    lists = ", ".join(f"{row.folder}/{row.list_file}" for row in TRAIN_SETS.values())
    return f"no image of an identity{f', looked for in {lists}' if reference.kind == 'naic' else ''}"


# ------------------------------------------------------------------------------------------------- sets but NAIC
def _read_set(reference: Reference, places: Places, parts: Sequence[str], identities: list[str],
              findings: Findings) -> list[ImageSet]:
    """The parts of a set that are there; new identities are appended."""
    numbers: dict[str, int] = {}

    def image_set(part: str, images: Iterable[tuple[str, str, int]]) -> ImageSet:
        images = list(images)
        for _, name, *_ in images:
            if name not in numbers:
                numbers[name] = len(identities)
                identities.append(name)
        return ImageSet(f"{reference.name} {part}", reference.mount, part != "train",
                        [key.removeprefix(f"{reference.mount}/") for key, *_ in images],
                        np.array([numbers[name] for _, name, *_ in images], np.int32), reference=reference.name,
                        cameras=len({camid for _, _, camid, *_ in images} - {0}))

    sets = []
    if "train" in parts:
        data = _load(reference, places, "train", findings)
        named = [(key, data.pid_names[pid], camid) for key, pid, camid, _ in data.train]
        sets += [image_set("train", [*named, *data.singles])] if named or data.singles else []
    pairs = _load(reference, places, "test", findings).eval_sets if "test" in parts else {}
    if "test" in parts and not pairs:
        findings.add("absent", f"{reference.name}: nothing to test on, no query and gallery images")
    for pair in pairs.values():
        _check_matches(reference.name, pair, findings)
    sides: dict[str, list[tuple[str, str, int]]] = {}
    for pair in pairs.values():
        for part in PARTS:  # in several evaluations, a trial each, images change sides
            sides.setdefault(part if len(pairs) == 1 else "test", []).extend(
                (sample.key, pair.pid_names[sample.pid], sample.camid) for sample in getattr(pair, part))
    return [*sets, *(image_set(part, dict.fromkeys(images)) for part, images in sides.items())]


def _load(reference: Reference, places: Places, part: str, findings: Findings) -> ReIDData:
    """A part of a set; what a training would refuse is left out if the rest can be read."""
    for skip in (places.skip, True):
        try:
            return DATASETS[reference.kind].load(reference, replace(places, skip=skip), (part,))
        except (ValueError, OSError) as error:
            if skip == places.skip:
                findings.add("unreadable set", f"{reference.name}, {part}: {error}")
    return ReIDData()


def _check_matches(name: str, pair: QueryGallery, findings: Findings) -> None:
    """Check an evaluation for queries without a match, by its own protocol; the query's own picture is none."""
    gallery = Counter((sample.pid, sample.camid) for sample in pair.gallery)
    people, searched = Counter(sample.pid for sample in pair.gallery), {sample.key for sample in pair.gallery}

    def count(query: Sample) -> int:
        itself = query.key in searched
        return people[query.pid] - (gallery[query.pid, query.camid] if pair.drop_same_camera else itself)

    for query in pair.query:
        if not count(query):
            why = "was seen by its own camera only" if people[query.pid] > (query.key in searched) else "is missing"
            findings.add("no match", f"{query.key}: in the gallery its person {why}",
                         (Picture(query.key, f"{name} query"),))


# --------------------------------------------------------------------------------------------- what lies in a folder
def describe_folder(folder: Path) -> str:
    """What lies in a folder, and in its folders: "in DATA there are query/ (12 pictures), readme.txt"."""
    names = [f"{printable(path.name)}/ ({_describe_entries(path)})" if path.is_dir() else printable(path.name)
             for path in sorted(folder.iterdir())[:_MOST + 1]] if folder.is_dir() else []
    more = ", …" * (len(names) > _MOST)
    return f"in {folder} there is {', '.join(names[:_MOST]) + more or 'nothing'}"


def _describe_entries(folder: Path) -> str:
    names = sorted(printable(path.name) + "/" * path.is_dir() for path in folder.iterdir())
    pictures = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    others = [name for name in names if not name.lower().endswith(IMAGE_SUFFIXES)]
    counted = [f"{pictures:,} picture{'s' * (pictures > 1)}"] * (pictures > 0)
    return ", ".join([*counted, *filter(None, [format_names(others)])]) or "empty"


def _describe_likeness(folder: Path, reference: Reference) -> str:
    """What else than `reference` a folder looks like, by what DATASETS.NAMES calls it; "" = nothing."""
    with silence("datasets"):
        words = [kind for kind in DATASETS if kind not in (PSEUDO.kind, *DEFAULT_PLACES, reference.kind)
                 and _is_trainable(kind, folder)]
        words = words or [word for word in _own_names(folder) if _is_trainable(word, folder)]
    return f". It looks like {' or '.join(f'DATASETS.NAMES {word}' for word in words[:3])}" if words else ""


def _own_names(folder: Path) -> list[str]:
    """The names that a CSV in a folder, and a tree of people in it, would have."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [*(f"csv:{path.name}" for path in paths if path.suffix == ".csv"),
            *(f"tree:{path.name}" for path in paths if path.is_dir() and _is_tree(path)),
            *(["tree"] if _is_tree(folder) else [])]


def _is_tree(folder: Path) -> bool:
    """Whether it has folders of pictures, which are called as nobody calls a part of a data set."""
    folder = folder / "train" if (folder / "train").is_dir() else folder
    people = [path for path in folder.iterdir() if path.is_dir()
              and any(child.name.lower().endswith(IMAGE_SUFFIXES) for child in path.iterdir())]
    parts = ("train", "test", "query", "gallery", "image")
    return len(people) > 1 and not any(part in path.name.lower() for path in people for part in parts)


def _is_trainable(word: str, folder: Path) -> bool:
    """Whether a set of DATASETS.NAMES is in a folder, with an identity of two images."""
    try:
        (reference,) = parse_names(word)
        train_sets = tuple(name for name, row in TRAIN_SETS.items()
                           if any(folder.glob(f"{row.folder}")) or any(folder.glob(f"*/{row.folder}")))
        return bool(DATASETS[reference.kind].load(reference, Places(folder, train_sets, skip=True), ("train",)).train)
    except (ValueError, OSError):
        return False
