"""The NAIC person re-ID data of 2019 and 2020, as the competition laid it out on disk.

    ROOT/MyDataSet/                       or ROOT is this folder itself
        train_2019_cs/  train/*.png       train_list.txt: `train/NAME.png PID`
        train_2019_fs/  train/*.png       train_list.txt: `train/NAME.png PID`
        train_2020_cs/  images/*.png      train_list.txt: `NAME.png:PID`
        train_2020_fs/  images/*.png      train_list.txt: `NAME.png:PID`
        unlabel/        images/*.png      label.txt:      `NAME.png:PID`     pseudo-labelled; may lie elsewhere
        image_B_v1_1/   query/ gallery/   ground_truth.json, optional, may stand in MyDataSet/ instead
                        query_green.txt query_normal.txt gallery_green.txt gallery_normal.txt, or in the derived folder

**Lists.** UTF-8, with or without a byte-order mark, LF or CRLF; blank lines are passed over. Either separator is read
in any list, blanks around it do not matter, and a line is split at its last one, so that names may hold blanks and
colons. A pid is a number: `007` and `7` are one identity. A name begins at the set's image folder (2019: with
`train/` before it) and must stay inside it, through `..`, drive letters and links as well. An image that is listed
twice under one pid counts once; under two pids it is an error. All faults of all lists stand in one error.

**Identities.** A pid counts within its set: pid 7 of train_2019_cs and pid 7 of train_2020_fs are two people, named
`train_2019_cs_7` and `train_2020_fs_7`. Identities with one image are dropped. Class indices follow the names sorted
as strings, so they are the same on every machine and for any order of the lines.

**Cameras.** Training images have camid 0, unknown: NAIC does not tell.
"""
from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, UNKNOWN_PID, Problems, QueryGallery, ReIDData, Sample
from datasets.files.images import is_safe_path, list_images
from datasets.sets.domains import DOMAINS, PARTS
from datasets.sets.naic_lists import REPEATED, read_list
from datasets.sets.naic_test import read_domains, read_truth

FOLDER = "MyDataSet"
TEST_DIR = "image_B_v1_1"

logger = logging.getLogger(__name__)


class TrainSet(NamedTuple):
    """How one training set lies on disk.

    Attributes:
        folder: inside MyDataSet/, and what the set's keys begin with.
        images: its image folder.
        prefix: what its list writes before a file name.
        list_file: its list.
        cleaned: name of a cleaned list that is taken instead where there is one, or "".
        identity: what stands before `_PID` in the names of its identities.
        mislabelled: files of its image folder known to carry a wrong label; they are dropped.
    """

    folder: str
    images: str
    prefix: str
    list_file: str
    cleaned: str
    identity: str
    mislabelled: frozenset[str] = frozenset()


TRAIN_SETS: dict[str, TrainSet] = {
    "2019_cs": TrainSet("train_2019_cs", "train", "train/", "train_list.txt", "new_2019_cs_train_list.txt",
                        "train_2019_cs"),
    "2019_fs": TrainSet("train_2019_fs", "train", "train/", "train_list.txt", "new_2019_fs_train_list.txt",
                        "train_2019_fs", frozenset({"105180993.png", "829283568.png", "943445997.png"})),
    "2020_cs": TrainSet("train_2020_cs", "images", "", "train_list.txt", "new_train_list.txt", "train_2020_cs"),
    "2020_fs": TrainSet("train_2020_fs", "images", "", "train_list.txt", "", "train_2020_fs"),
}
UNLABEL = TrainSet("unlabel", "images", "", "label.txt", "", "train_2020_fs_unlabel")


# ------------------------------------------------------------------------------------------------------- the whole
def load_naic(root: str | os.PathLike, *, train_sets: Sequence[str] = (), test_dir: str = TEST_DIR,
              derived_dir: str | os.PathLike | None = None, parts: Collection[str] = ("train", "test"),
              skip: bool = False) -> ReIDData:
    """Read the lists of NAIC and check them against the disk; no image is opened.

    Only what `parts` asks for is looked at: training needs no test folder, testing no training set.

    Args:
        root: the folder that holds MyDataSet/, or MyDataSet itself.
        train_sets: names of TRAIN_SETS to train on, in any order; empty = all four.
        test_dir: the test folder's name inside MyDataSet/.
        derived_dir: folder of derived lists (cleaned lists, domain lists), looked at after the data's own folders.
        parts: of "train" and "test".
        skip: leave out, with a warning, lines of training lists that are wrong.
    Returns:
        Keys are relative to `data_root(root)`. Training samples are in the order of the sets in TRAIN_SETS and of their
        lists. Evaluations: "green" and "normal"; a domain without queries or without gallery is left out, with a line
        in the log.
    Raises:
        ValueError: a list, a name in it, the ground truth or an argument is wrong (all faults, as FILE:LINE).
        OSError: a set, list or test folder is missing (what, where and what to do).
    """
    unknown = sorted(set(parts) - {"train", "test"})
    if unknown:
        raise ValueError(f"parts={unknown}: choose from 'train' and 'test'")
    data = data_root(root)
    derived = Path(derived_dir) if derived_dir else None
    train: list[Sample] = []
    pid_names: list[str] = []
    if "train" in parts:
        train, pid_names = _load_train(_find_lists(data, _choose_sets(train_sets), derived), data, skip)
    evaluations = _load_test(data, test_dir, derived) if "test" in parts else {}
    return ReIDData(train, len(pid_names), pid_names, evaluations)


def load_unlabel(folder: str | os.PathLike, skip: bool = False) -> ReIDData:
    """Read a pseudo-labelled set, images/ and label.txt, as `load_naic` reads a training set; `skip` as there.

    Returns:
        Keys are `unlabel/images/NAME`, whatever the folder is called. Identities are named so that those of NAIC's own
        sets come before them.
    Raises:
        ValueError, OSError: as `load_naic`.
    """
    folder = Path(folder)
    path = folder / UNLABEL.list_file
    if not path.is_file() or not (folder / UNLABEL.images).is_dir():
        raise FileNotFoundError(f"no pseudo-labelled set in {folder}: it needs {UNLABEL.images}/ and {path.name}; "
                                "tools/pseudo_label.py makes one. Name its folder in DATASETS.UNLABEL_DIR, or set "
                                "DATASETS.USE_UNLABEL to False")
    train, pid_names = _load_train([(UNLABEL, folder, path)], folder.parent, skip)
    return ReIDData(train, len(pid_names), pid_names, {})


def data_root(root: str | os.PathLike) -> Path:
    """MyDataSet/: the folder that keys are relative to.

    Raises:
        FileNotFoundError: neither root/MyDataSet nor root looks like it.
    """
    root = Path(root)
    if (root / FOLDER).is_dir():
        return root / FOLDER
    known = [train_set.folder for train_set in (*TRAIN_SETS.values(), UNLABEL)]
    if root.is_dir() and (root.name == FOLDER or any((root / name).is_dir() for name in known)
                          or any((child / "query").is_dir() for child in root.iterdir())):
        return root
    raise FileNotFoundError(
        f"no NAIC data in {root}: expected a folder {FOLDER}/ there, or {known[0]}/, … or a test folder in it; "
        "set DATASETS.ROOT_DIR to the folder that holds MyDataSet/")


# -------------------------------------------------------------------------------------------------------- training
def _choose_sets(names: Sequence[str]) -> list[TrainSet]:
    """The sets asked for, in TRAIN_SETS' order."""
    if isinstance(names, str):
        names = [names]
    unknown = [name for name in names if name not in TRAIN_SETS]
    if unknown:
        raise ValueError(f"DATASETS.TRAIN_SETS: unknown set {', '.join(map(repr, unknown))}; "
                         f"choose from {', '.join(TRAIN_SETS)}, or [] for all of them")
    return [train_set for name, train_set in TRAIN_SETS.items() if not names or name in names]


def _load_train(lists: list[tuple[TrainSet, Path, Path]], data: Path, skip: bool) -> tuple[list[Sample], list[str]]:
    """Training samples with class indices, and the identities' names by class index.

    Args:
        lists: each set with its folder and its list.
        data: the folder that files are named from in messages.
        skip: leave out, with a warning, lines that are wrong.
    """
    problems = Problems()
    images = [(train_set, *_read_set(train_set, folder, path, data, problems)) for train_set, folder, path in lists]
    problems.settle("training lists", "Correct the lists, or complete the image folders.", ("train",), skip)

    kept: list[tuple[TrainSet, list[str], list[str]]] = []
    names: set[str] = set()
    for train_set, files, pids in images:
        counts = Counter(pids)
        singles = sum(count == 1 for count in counts.values())
        if singles:
            logger.info("%s: dropped %d of %d identities, with one image each", train_set.folder, singles, len(counts))
        if singles == len(counts):
            logger.warning("%s: no identity has two images; nothing of it is used", train_set.folder)
        pairs = [(file, pid) for file, pid in zip(files, pids, strict=True) if counts[pid] > 1]
        kept.append((train_set, [file for file, _ in pairs], [f"{train_set.identity}_{pid}" for _, pid in pairs]))
        names.update(kept[-1][2])
    if not names:
        folders = ", ".join(train_set.folder for train_set, _, _ in lists)
        raise ValueError(f"nothing to train on in {data}: no identity of {folders} has two images")
    pid_names = sorted(names)
    class_of = {name: index for index, name in enumerate(pid_names)}
    train = [Sample(f"{train_set.folder}/{train_set.images}/{file}", class_of[name], UNKNOWN_CAMID)
             for train_set, files, identities in kept for file, name in zip(files, identities, strict=True)]
    return train, pid_names


def _find_lists(data: Path, train_sets: list[TrainSet], derived: Path | None) -> list[tuple[TrainSet, Path, Path]]:
    """The folder and the list of each set, the cleaned list where there is one.

    Raises:
        FileNotFoundError: sets, image folders or lists are missing; all of them are named.
    """
    found, missing = [], []
    for train_set in train_sets:
        folder = data / train_set.folder
        own = folder / train_set.list_file
        cleaned = cleaned_lists(data, train_set, derived)
        path = cleaned[0] if cleaned else own
        if not folder.is_dir():
            missing.append(f"no folder {folder}")
        elif not (folder / train_set.images).is_dir():
            missing.append(f"no image folder {folder / train_set.images}")
        elif not path.is_file():
            missing.append(f"no list {own}")
        else:
            found.append((train_set, folder, path))
        if path != own:
            logger.info("%s: the cleaned list %s is used, not %s", train_set.folder, path, own.name)
        if len(cleaned) == 2:
            logger.info("%s: %s is not used, the set's own folder wins", train_set.folder, cleaned[1])
    if missing:
        there = [name for name, train_set in TRAIN_SETS.items() if (data / train_set.folder).is_dir()]
        raise FileNotFoundError("NAIC training data is missing: " + "; ".join(missing) + ". Put it there, or name the "
                                f"sets you have in DATASETS.TRAIN_SETS (folders there: {there}; [] means all four)")
    return found


def cleaned_lists(data: Path, train_set: TrainSet, derived: Path | None) -> list[Path]:
    """The cleaned lists of a set that are there; the first is the one that training reads instead of the set's own."""
    places = (data / train_set.folder, derived)
    names = [place / train_set.cleaned for place in places if train_set.cleaned and place is not None]
    return [path for path in names if path.is_file()]


def _read_set(train_set: TrainSet, set_folder: Path, path: Path, data: Path,
              problems: Problems) -> tuple[list[str], list[str]]:
    """Read a set's list `path` and look for its images in its folder.

    Returns:
        Files, relative to the set's image folder, and their pids, in the order of the list.
    """
    shown = shown_list(data, path)
    files: list[str] = []
    pids: list[str] = []
    repeated = mislabelled = 0
    for line in read_list(path, train_set.prefix, set_folder / train_set.images):
        if line.file in train_set.mislabelled:
            mislabelled += 1
        elif line.fault == REPEATED:
            repeated += 1
        elif line.fault:
            problems.add(f"{shown}:{line.number}: {line.text}")
        else:
            files.append(line.file)
            pids.append(line.pid)
    if repeated:
        logger.info("%s: dropped %d lines that repeat another", shown, repeated)
    if mislabelled:
        logger.info("%s: dropped %d images known to be mislabelled", shown, mislabelled)
    return files, pids


def shown_list(data: Path, path: Path) -> str:
    """A list's name in messages: below the data root, or the whole path of one that lies elsewhere."""
    return path.relative_to(data).as_posix() if path.is_relative_to(data) else str(path)


# ------------------------------------------------------------------------------------------------------------ test
def find_test_parts(folder: Path) -> list[Path]:
    """query/ and gallery/ of a test folder.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"no test folder {folder / part}; put query/ and gallery/ into {folder}, or set "
                                    "DATASETS.TEST_DIR to the folder that has them")
    return [folder / part for part in PARTS]


def _load_test(data: Path, test_dir: str, derived: Path | None) -> dict[str, QueryGallery]:
    """The evaluations of a test folder, by domain."""
    if not is_safe_path(test_dir):
        raise ValueError(f"DATASETS.TEST_DIR={test_dir!r} must be the name of a folder inside {data}")
    folder = data / test_dir
    images = {part.name: list_images(part) for part in find_test_parts(folder)}
    domains = read_domains(folder, images, derived)
    truth = read_truth(data, folder, images)
    names = sorted({pid for pid, _ in truth.values()})
    number_of = {name: number for number, name in enumerate(names)}

    def sample(part: str, name: str) -> Sample:
        key = f"{test_dir}/{part}/{name}"
        if not truth:
            return Sample(key, UNKNOWN_PID, UNKNOWN_CAMID)
        pid, camid = truth[f"{part}/{name}"]
        return Sample(key, number_of[pid], camid)

    evaluations = {}
    for domain in DOMAINS:
        query, gallery = ([sample(part, name) for name in domains[part, domain]] for part in PARTS)
        if query and gallery:
            evaluations[domain] = QueryGallery(query, gallery, bool(truth), names)
        else:
            logger.warning("domain %s of %s is left out: it has %d query and %d gallery images",
                           domain, folder, len(query), len(gallery))
    if not evaluations:
        raise ValueError(f"{folder}: no domain has both query and gallery images; there is nothing to test")
    return evaluations
