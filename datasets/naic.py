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

**Cameras.** Training images have camid 0, unknown: NAIC does not say.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datasets.bases import (
    UNKNOWN_CAMID,
    UNKNOWN_PID,
    Places,
    Problems,
    QueryGallery,
    Reference,
    ReIDData,
    Sample,
    format_names,
)
from datasets.files.images import is_safe_path, list_images, report_others
from datasets.sets.domains import DOMAINS, PARTS
from datasets.sets.naic_downloads import describe_downloads
from datasets.sets.naic_lists import REPEATED, read_list
from datasets.sets.naic_test import read_domains, read_truth
from datasets.sets.numbering import NamedImage, SetImage, class_indices, drop_singles, number_training
from utils.logger import printable

FOLDER = "MyDataSet"
TEST_DIR = Places.test_dir  # image_B_v1_1

logger = logging.getLogger(__name__)


class TrainSet(NamedTuple):
    """How a training set lies on disk.

    Attributes:
        folder: inside MyDataSet/, and what the set's keys begin with.
        images: its image folder.
        prefix: what its list writes before a file name.
        list_file: its list.
        cleaned: name of a cleaned list that is taken instead if there is any, or "".
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
def load_naic(_: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read the lists of NAIC and check them against the disk; no image is opened.

    Only what `parts` asks for is looked at: training needs no test folder, testing no training set.

    Args:
        places: `root`: the folder that holds MyDataSet/, or MyDataSet itself. `skip`: leave out, with a warning, lines
            of training lists that are wrong.
        parts: of "train" and "test".
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
    data = data_root(places.root_of("naic"))
    derived = Path(places.derived_dir) if places.derived_dir else None
    train = ReIDData()
    if "train" in parts:
        train = _load_train(_find_lists(data, _choose_sets(places.train_sets), derived), data, places.skip)
    return replace(train, eval_sets=_load_test(data, places.test_dir, derived) if "test" in parts else {})


def load_unlabel(reference: Reference, places: Places, parts: Collection[str] = ("train",)) -> ReIDData:
    """Read a pseudo-labelled set, images/ and label.txt, as `load_naic` reads a training set; it has no test part.

    Returns:
        Keys are `unlabel/images/NAME`, whatever the folder is called. Identities are named so that those of NAIC's own
        sets come before them.
    Raises:
        ValueError, OSError: as `load_naic`.
    """
    if "train" not in parts:
        return ReIDData()
    folder = unlabel_folder(reference, places)
    path = folder / UNLABEL.list_file
    if not path.is_file() or not (folder / UNLABEL.images).is_dir():
        raise FileNotFoundError(f"no pseudo-labelled set in {folder}: it needs {UNLABEL.images}/ and {path.name}; "
                                "tools/pseudo_label.py makes one. Name its folder in DATASETS.UNLABEL_DIR, or set "
                                "DATASETS.USE_UNLABEL to False")
    return _load_train([(UNLABEL, folder, path)], folder.parent, places.skip)


def unlabel_folder(_: Reference, places: Places) -> Path:
    """Where the pseudo-labelled set lies: as `places` name it, else beside the other sets, else the derived folder."""
    if places.unlabel_dir:
        return Path(places.unlabel_dir)
    root = places.root_of("naic")
    beside = (root / FOLDER if (root / FOLDER).is_dir() else root) / UNLABEL.folder
    derived = Path(places.derived_dir) / UNLABEL.folder if places.derived_dir else beside
    return derived if derived.is_dir() and not beside.is_dir() else beside


def data_root(root: str | os.PathLike) -> Path:
    """MyDataSet/: the folder that keys are relative to.

    Raises:
        FileNotFoundError: neither root/MyDataSet nor root looks like it.
    """
    root = Path(root)
    known = [train_set.folder for train_set in (*TRAIN_SETS.values(), UNLABEL)]
    if (root / FOLDER).is_dir():
        twice = root / FOLDER / FOLDER  # a zip that was unpacked into a folder of its own name
        is_outer = any((root / FOLDER / name).is_dir() for name in known) or not twice.is_dir()
        return root / FOLDER if is_outer else twice
    if root.is_dir() and (root.name == FOLDER or any((root / name).is_dir() for name in known)
                          or any((child / "query").is_dir() for child in root.iterdir())):
        return root
    raise FileNotFoundError(
        f"no NAIC data in {root}: expected a folder {FOLDER}/ there, or {known[0]}/, … or a test folder in it; "
        f"set DATASETS.ROOT_DIR to the folder that holds MyDataSet/{describe_downloads(root)}")


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


def _load_train(lists: list[tuple[TrainSet, Path, Path]], data: Path, skip: bool) -> ReIDData:
    """Training samples with class indices, and the identities' names by class index.

    Args:
        lists: each set with its folder and its list.
        data: the folder that files are named from in messages.
        skip: leave out, with a warning, lines that are wrong.
    """
    problems = Problems()
    by_set = [(train_set, _read_set(train_set, folder, path, data, problems)) for train_set, folder, path in lists]
    problems.raise_or_skip("training lists", "Correct the lists, or complete the image folders.", ("train",), skip)
    named: list[NamedImage] = []
    for train_set, images in by_set:
        kept = drop_singles(train_set.folder, images)
        if not kept:
            logger.warning("%s: no identity has two images; nothing of it is used", train_set.folder)
        named += [(f"{train_set.folder}/{train_set.images}/{file}", f"{train_set.identity}_{pid}", camid)
                  for file, pid, camid, _ in kept]
    if not named:
        folders = ", ".join(train_set.folder for train_set, _, _ in lists)
        raise ValueError(f"nothing to train on in {data}: no identity of {folders} has two images")
    return number_training(named)


def _find_lists(data: Path, train_sets: list[TrainSet], derived: Path | None) -> list[tuple[TrainSet, Path, Path]]:
    """The folder and the list of each set, the cleaned list if there is any.

    Raises:
        FileNotFoundError: sets, image folders or lists are missing; all of them are named.
    """
    lists, missing = [], []
    for train_set in train_sets:
        folder = data / train_set.folder
        raw = raw_list(folder, train_set)
        cleaned = cleaned_lists(data, train_set, derived)
        path = cleaned[0] if cleaned else raw
        if not folder.is_dir():
            missing.append(f"no folder {folder}")
        elif not (folder / train_set.images).is_dir():
            missing.append(f"no image folder {folder / train_set.images}{_beside(folder)}")
        elif not path.is_file():
            missing.append(f"no list {raw}{_beside(folder)}")
        else:
            lists.append((train_set, folder, path))
        if path != raw:
            logger.info("%s: the cleaned list %s is used, not %s", train_set.folder, path, raw.name)
        if len(cleaned) == 2:
            logger.info("%s: %s is not used, the set's own folder wins", train_set.folder, cleaned[1])
    if missing:
        there = [name for name, train_set in TRAIN_SETS.items() if (data / train_set.folder).is_dir()]
        raise FileNotFoundError("NAIC training data is missing: " + "; ".join(missing) + ". Put it there, or name the "
                                f"sets you have in DATASETS.TRAIN_SETS (folders there: {there}; [] means all four)"
                                f"{describe_downloads(data)}")
    return lists


def _beside(folder: Path) -> str:
    return f" (there: {format_names(printable(path.name) for path in folder.iterdir()) or 'nothing'})"


def raw_list(folder: Path, train_set: TrainSet) -> Path:
    """The list that came with a set: its `list_file`, or, where that is missing, label.txt, as NAIC 2020 called it."""
    path, downloaded = folder / train_set.list_file, folder / UNLABEL.list_file
    return downloaded if downloaded.is_file() and not path.is_file() else path


def cleaned_lists(data: Path, train_set: TrainSet, derived: Path | None) -> list[Path]:
    """The cleaned lists of a set that are there; training reads the first instead of the set's `list_file`."""
    places = (data / train_set.folder, derived)
    names = [place / train_set.cleaned for place in places if train_set.cleaned and place is not None]
    return [path for path in names if path.is_file()]


def _read_set(train_set: TrainSet, set_folder: Path, path: Path, data: Path, problems: Problems) -> list[SetImage]:
    """Read a set's list `path` and look for its images in its folder.

    Returns:
        The images, relative to the set's image folder, in the order of the list.
    """
    name = list_label(data, path)
    images: list[SetImage] = []
    repeated = mislabelled = 0
    for line in read_list(path, train_set.prefix, set_folder / train_set.images):
        if line.file in train_set.mislabelled:
            mislabelled += 1
        elif line.fault == REPEATED:
            repeated += 1
        elif line.fault:
            problems.add(f"{name}:{line.number}: {line.text}")
        else:
            images.append(SetImage(line.file, line.pid))
    if repeated:
        logger.info("%s: dropped %d lines that repeat another", name, repeated)
    if mislabelled:
        logger.info("%s: dropped %d images known to be mislabelled", name, mislabelled)
    return images


def list_label(data: Path, path: Path) -> str:
    """A list's name in messages: below the data root, or the whole path of a list that lies elsewhere."""
    return path.relative_to(data).as_posix() if path.is_relative_to(data) else str(path)


# ------------------------------------------------------------------------------------------------------------ test
def find_test_parts(folder: Path) -> list[Path]:
    """query/ and gallery/ of a test folder.

    Raises:
        FileNotFoundError: a list is missing.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"no test folder {folder / part}; put query/ and gallery/ into {folder}, or set "
                                    f"DATASETS.TEST_DIR to the folder that has them{describe_downloads(folder.parent)}")
    return [folder / part for part in PARTS]


def _load_test(data: Path, test_dir: str, derived: Path | None) -> dict[str, QueryGallery]:
    """The evaluations of a test folder, by domain."""
    if not is_safe_path(test_dir):
        raise ValueError(f"DATASETS.TEST_DIR={test_dir!r} must be the name of a folder inside {data}")
    folder = data / test_dir
    others: list[str] = []
    images = {part.name: list_images(part, others) for part in find_test_parts(folder)}
    report_others(str(folder), others)
    domains = read_domains(folder, images, derived)
    truth = read_truth(data, folder, images)
    number_of = class_indices(pid for pid, _ in truth.values())
    names = list(number_of)

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
