"""Data sets by name, several of them together, and where their images lie.

A text such as DATASETS.NAMES is one name or several with `+` between them: `naic`, a set of datasets.sets.public, or
one's own: `tree:FOLDER` and `csv:FILE`, below the root (see datasets.sets.custom; `tree` and `csv` alone are
`tree:tree` and `csv:data.csv`). A pseudo-labelled set (DATASETS.USE_UNLABEL) may stand beside them. Nothing about a set
depends on what it is combined with but class indices and cameras: keys and identities of NAIC begin with its own
folders' names, those of any other set with that set's name.
"""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, ReIDData, Sample
from datasets.files.images import FolderSource, ImageSource, MountedSource, is_safe_path
from datasets.naic import FOLDER, TEST_DIR, TRAIN_SETS, UNLABEL, data_root, load_naic, load_unlabel
from datasets.sets.custom import load_csv, load_tree
from datasets.sets.domains import DOMAINS
from datasets.sets.public import LAYOUTS, layout_home, load_layout
from datasets.validation.split import VALIDATION

logger = logging.getLogger(__name__)

_OWN = {"tree": "tree", "csv": "data.csv"}  # kinds of set that one makes oneself -> where it is looked for
# Names that stand for something else in keys, identities or evaluations.
_TAKEN = {"naic", *LAYOUTS, *DOMAINS, VALIDATION, "all", UNLABEL.folder, *(one.folder for one in TRAIN_SETS.values())}


@dataclass(frozen=True)
class Places:
    """Where sets lie and which parts of them are meant.

    Attributes:
        root: the folder that holds them.
        train_sets, test_dir: NAIC's, see `load_naic`.
        derived_dir: NAIC's, and where a pseudo-labelled set is looked for.
        unlabel_dir: where the pseudo-labelled set lies; "" = see `unlabel_folder`.
        skip: what of a training set is wrong or missing is left out with a warning; of a test set it is an error.
    """

    root: str | os.PathLike
    train_sets: Sequence[str] = ()
    test_dir: str = TEST_DIR
    derived_dir: str | os.PathLike | None = None
    unlabel_dir: str | os.PathLike = ""
    skip: bool = False


class Reference(NamedTuple):
    """One set of a text of names.

    Attributes:
        kind: a key of DATASETS.
        name: what its identities and its evaluation are called by.
        place: below the root, of a set of one's own; else "".
    """

    kind: str
    name: str
    place: str = ""

    @property
    def mount(self) -> str:
        """The folder that its keys begin with; "" where they begin with folders of its own."""
        return "" if self.kind == "naic" else self.name


class DatasetEntry(NamedTuple):
    """How a kind of set is read.

    Attributes:
        load: (reference, places, parts) -> ReIDData.
        folder: (reference, places) -> the folder that its keys, without the mount, are relative to.
    """

    load: Callable[[Reference, Places, Collection[str]], ReIDData]
    folder: Callable[[Reference, Places], Path]


# ------------------------------------------------------------------ the kinds
def _load_naic(_: Reference, places: Places, parts: Collection[str]) -> ReIDData:
    return load_naic(places.root, train_sets=places.train_sets, test_dir=places.test_dir,
                     derived_dir=places.derived_dir, parts=parts, skip=places.skip)


def _naic_folder(_: Reference, places: Places) -> Path:
    return data_root(places.root)


def _load_unlabel(_: Reference, places: Places, parts: Collection[str]) -> ReIDData:
    return load_unlabel(unlabel_folder(places), places.skip) if "train" in parts else ReIDData()


def unlabel_folder(places: Places) -> Path:
    """Where the pseudo-labelled set lies: where it was said to, else beside the other sets, else the derived folder."""
    if places.unlabel_dir:
        return Path(places.unlabel_dir)
    root = Path(places.root)
    own = (root / FOLDER if (root / FOLDER).is_dir() else root) / UNLABEL.folder
    derived = Path(places.derived_dir) / UNLABEL.folder if places.derived_dir else own
    return derived if derived.is_dir() and not own.is_dir() else own


def _load_layout(reference: Reference, places: Places, parts: Collection[str]) -> ReIDData:
    return load_layout(reference.kind, places.root, parts, places.skip)


def _layout_folder(reference: Reference, places: Places) -> Path:
    return layout_home(reference.kind, places.root)


def _load_tree(reference: Reference, places: Places, parts: Collection[str]) -> ReIDData:
    return load_tree(reference.name, _tree_folder(reference, places), parts, places.skip)


def _tree_folder(reference: Reference, places: Places) -> Path:
    """ROOT/FOLDER; ROOT itself where `tree` alone is asked for and there is no ROOT/tree."""
    folder = Path(places.root) / reference.place
    return Path(places.root) if reference.place == _OWN["tree"] and not folder.is_dir() else folder


def _load_csv(reference: Reference, places: Places, parts: Collection[str]) -> ReIDData:
    return load_csv(reference.name, Path(places.root) / reference.place, parts, places.skip)


def _csv_folder(reference: Reference, places: Places) -> Path:
    return (Path(places.root) / reference.place).parent


PSEUDO = Reference(UNLABEL.folder, UNLABEL.folder)  # DATASETS.USE_UNLABEL
DATASETS: dict[str, DatasetEntry] = {
    "naic": DatasetEntry(_load_naic, _naic_folder),
    **dict.fromkeys(LAYOUTS, DatasetEntry(_load_layout, _layout_folder)),
    "tree": DatasetEntry(_load_tree, _tree_folder),
    "csv": DatasetEntry(_load_csv, _csv_folder),
    PSEUDO.kind: DatasetEntry(_load_unlabel, lambda _, places: unlabel_folder(places)),
}
_NAMED = [kind for kind in DATASETS if kind != PSEUDO.kind]


# ------------------------------------------------------------------ names
def parse_names(text: str, key: str = "DATASETS.NAMES") -> list[Reference]:
    """The sets that a text names, in its order.

    Args:
        key: where the text stands, for errors.
    Raises:
        ValueError: a name is unknown (the choices are listed), leaves the root, stands for something else, or is there
            twice.
    """
    references = [_parse_name(name.strip(), text, key) for name in text.split("+")]
    names = [reference.name for reference in references]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{key}={text!r}: two sets are called {twice!r}; name each once")
    return references


def _parse_name(text: str, whole: str, key: str) -> Reference:
    kind, colon, place = text.partition(":")
    if kind not in _NAMED or (colon and kind not in _OWN):
        raise ValueError(f"{key}={whole!r}: {text!r} is not one of {', '.join(sorted(_NAMED))}, tree:FOLDER, csv:FILE"
                         "; several are joined with +")
    if kind not in _OWN:
        return Reference(kind, kind)
    if colon and not is_safe_path(place):
        raise ValueError(f"{key}={whole!r}: {place!r} must be a path below DATASETS.ROOT_DIR, with forward slashes")
    name = PurePosixPath(place).name.removesuffix(".csv") if colon else kind
    if name in _TAKEN or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{key}={whole!r}: a set cannot be called {name!r}; rename {place!r} to letters, digits, '_', "
                         "'-' and '.' that are no other set's name")
    return Reference(kind, name, place if colon else _OWN[kind])


# ------------------------------------------------------------------ data
def find_folders(references: Sequence[Reference], places: Places) -> dict[str, Path]:
    """{what a set's keys begin with: its folder}, for `open_folders`.

    Raises:
        OSError: a set is not there.
    """
    return {reference.mount: DATASETS[reference.kind].folder(reference, places) for reference in references}


def load_sets(references: Sequence[Reference], places: Places,
              parts: Collection[str] = ("train", "test")) -> tuple[ReIDData, dict[str, Path]]:
    """Read several sets and put them together.

    Returns:
        The data, and the sets' folders, see `find_folders`.
    Raises:
        ValueError, OSError: a set cannot be read, one has nothing to train on, or none anything to test on.
    """
    folders = find_folders(references, places)
    loaded = []
    for reference in references:
        data, folder = DATASETS[reference.kind].load(reference, places, parts), folders[reference.mount]
        if "test" in parts and not data.eval_sets:
            logger.warning("%s in %s has no query and gallery images: it is not tested on", reference.name, folder)
        if "train" in parts and not data.train:
            raise ValueError(f"nothing to train on: {reference.name} in {folder} has no identity with two images")
        loaded.append(data)
    if "test" in parts and not any(data.eval_sets for data in loaded):
        raise ValueError(f"nothing to test on: no query and gallery images in {', '.join(map(str, folders.values()))}")
    return combine(loaded), folders


def combine(parts: Sequence[ReIDData]) -> ReIDData:
    """One data set from several whose identities have different names.

    Class indices follow the names of all identities sorted as strings. Known cameras of training images are moved
    behind those of the sets before, so that no two sets share one. Evaluations stay as they are: each is ranked by
    itself.
    """
    if len(parts) == 1:
        return parts[0]
    pid_names = sorted(name for data in parts for name in data.pid_names)
    class_of = {name: index for index, name in enumerate(pid_names)}
    assert len(class_of) == len(pid_names), "two sets share an identity's name"
    train: list[Sample] = []
    cameras = 0
    for data in parts:
        train += [Sample(key, class_of[data.pid_names[pid]], camid + cameras if camid != UNKNOWN_CAMID else camid)
                  for key, pid, camid in data.train]
        cameras += max((sample.camid for sample in data.train), default=0)
    return ReIDData(train, len(pid_names), pid_names,
                    {name: pair for data in parts for name, pair in data.eval_sets.items()})


def open_folders(folders: Mapping[str, Path]) -> ImageSource:
    """The images of sets, by what their keys begin with; NAIC's ("") alone is a plain folder.

    Raises:
        ValueError: a folder of NAIC's has another set's name, so that their keys cannot be told apart.
    """
    for mount in set(folders) - {"", PSEUDO.mount}:  # the pseudo-labelled set is taken from where it was found
        inside = folders[""] / mount if "" in folders else None
        if inside and inside.is_dir() and not inside.samefile(folders[mount]):
            raise ValueError(f"{inside} and {folders[mount]} are both called {mount}; rename one of them")
    sources = {mount: FolderSource(folder) for mount, folder in folders.items()}
    return sources[""] if list(sources) == [""] else MountedSource(sources)
