"""Folders of pictures without labels, and who is on them if a list beside them says so.

What is known is for measuring alone: nothing is ever labelled by it.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.bases import UNKNOWN_CAMID, UNKNOWN_PID, Problems, Sample
from datasets.files.images import FolderSource, MountedSource, list_images, report_others
from datasets.sets.domains import PARTS
from datasets.sets.list_files import read_lines
from datasets.sets.naic_lists import parse_line
from datasets.sets.naic_test import TRUTH, read_truth
from datasets.sets.numbering import class_indices

TRAIN_LIST = "train_list.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unlabelled:
    """Pictures to be labelled.

    Attributes:
        samples: the queries first; a folder's images by name. Keys are FOLDER/NAME with a folder of `folders`; pid:
            number of the true identity, UNKNOWN_PID if it is not known.
        num_query: how many of them are queries.
        folders: first folder of a key -> where it lies: query, query2, … gallery, gallery2, …
    """

    samples: list[Sample]
    num_query: int
    folders: dict[str, Path]

    def source(self) -> MountedSource:
        """What reads the samples' keys."""
        return MountedSource({name: FolderSource(folder) for name, folder in self.folders.items()})

    def path(self, sample: Sample) -> Path:
        """The file of a sample."""
        folder, _, name = sample.key.partition("/")
        return self.folders[folder] / name

    def digest(self) -> str:
        """Changes with the names, the order and the sizes of the images."""
        lines = (f"{sample.key} {os.path.getsize(self.path(sample))}\n" for sample in self.samples)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def find_unlabelled(query: Sequence[str | os.PathLike], gallery: Sequence[str | os.PathLike]) -> Unlabelled:
    """The images of query and gallery folders; no image is opened.

    Who is on them is read from `train_list.txt` in the folder above the images, or, for the folders query/ and
    gallery/, from the ground truth that a test would read.

    Args:
        query: folders of query images; may be empty.
        gallery: folders of the other images; may be empty.
    Raises:
        OSError: a folder is missing.
        ValueError: there is no image in a folder, or in none, or a training list beside a folder is malformed.
    """
    folders = {f"{part}{number}" if number > 1 else part: Path(folder)
               for part, places in zip(PARTS, (query, gallery), strict=True)
               for number, folder in enumerate(places, 1)}
    if not folders:
        raise ValueError("no folder of unlabelled images was named")
    if len({folder.resolve() for folder in folders.values()}) < len(folders):
        raise ValueError(f"a folder is named twice: {', '.join(map(str, folders.values()))}")
    images: list[tuple[str, str | None]] = []  # key, name of the identity
    num_query = 0
    for place, folder in folders.items():
        if not folder.is_dir():
            raise NotADirectoryError(f"image folder {folder} does not exist or is no folder")
        others: list[str] = []
        names = list_images(folder, others)
        report_others(str(folder), others)
        if not names:
            raise ValueError(f"{folder} holds no image")
        truth = _truth_beside(folder, names)
        images += [(f"{place}/{name}", truth.get(name)) for name in names]
        num_query = len(images) if place.startswith(PARTS[0]) else num_query
    number_of = class_indices(name for _, name in images if name)
    samples = [Sample(key, number_of[name] if name else UNKNOWN_PID, UNKNOWN_CAMID) for key, name in images]
    return Unlabelled(samples, num_query, folders)


def _truth_beside(folder: Path, names: list[str]) -> dict[str, str]:
    """Image -> name of its identity, as far as a list beside the folder has it."""
    above = folder.resolve().parent
    if (above / TRAIN_LIST).is_file():
        return _read_list(above / TRAIN_LIST, above.name)
    if folder.name not in PARTS or not any((place / TRUTH).is_file() for place in (above, above.parent)):
        return {}
    try:
        truth = read_truth(above.parent, above, {part: names if part == folder.name else [] for part in PARTS})
    except ValueError as error:
        logger.warning("the labels of %s cannot be measured: %s", folder, error)
        return {}
    return {key.partition("/")[2]: pid for key, (pid, _) in truth.items()}


def _read_list(path: Path, set_name: str) -> dict[str, str]:
    """Image -> SET_PID from a training list; pids count within their set."""
    problems, pid_of = Problems(), {}
    for number, text in read_lines(path, str(path), problems):
        line = parse_line(number, text, "")
        if line.fault:
            problems.add(f"{path}:{number}: {line.text}")
        else:
            pid_of[line.file.rpartition("/")[2]] = f"{set_name}_{line.pid}"
    problems.raise_if_any(str(path), "It is read to measure the labels; correct it, or move it away.")
    return pid_of
