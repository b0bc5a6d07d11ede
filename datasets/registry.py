"""Data sets by name, several of them together, and where their images lie.

A text such as DATASETS.NAMES is a name or several with `+` between them: `naic`, a set of datasets.sets.public, or a
set that a user made: `tree:FOLDER` and `csv:FILE`, below the root (datasets.sets.tree, csv_list; `tree` and `csv`
alone are `tree:tree` and `csv:data.csv`). A pseudo-labelled set (DATASETS.USE_UNLABEL) may stand beside them. Nothing
about a set depends on what it is combined with but class indices and cameras: keys and identities of NAIC begin with
its folders' names, those of any other set with that set's name.

A new kind of set is a file with two functions, and a line of DATASETS.
"""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, Places, Reference, ReIDData, format_names
from datasets.files.images import FileSource, FolderSource, MountedSource, is_safe_path
from datasets.naic import TRAIN_SETS, UNLABEL, data_root, load_naic, load_unlabel, unlabel_folder
from datasets.sets import csv_list, tree
from datasets.sets.domains import DOMAINS
from datasets.sets.numbering import NamedImage, number_training
from datasets.sets.public import LAYOUTS, load_public, public_folder
from datasets.validation.split import VALIDATION, leave_out, read_split

logger = logging.getLogger(__name__)


class DatasetEntry(NamedTuple):
    """How a kind of set is read.

    Attributes:
        load: (reference, places, parts of "train" and "test") -> ReIDData.
        folder: (reference, places) -> the folder that its keys, without the mount, are relative to.
    """

    load: Callable[[Reference, Places, Collection[str]], ReIDData]
    folder: Callable[[Reference, Places], Path]


PSEUDO = Reference(UNLABEL.folder, UNLABEL.folder)  # DATASETS.USE_UNLABEL
DATASETS: dict[str, DatasetEntry] = {
    "naic": DatasetEntry(load_naic, lambda _, places: data_root(places.root_of("naic"))),
    **dict.fromkeys(LAYOUTS, DatasetEntry(load_public, public_folder)),
    "tree": DatasetEntry(tree.load_tree, tree.tree_folder),
    "csv": DatasetEntry(csv_list.load_csv, csv_list.csv_folder),
    PSEUDO.kind: DatasetEntry(load_unlabel, unlabel_folder),
}
DEFAULT_PLACES = {"tree": tree.DEFAULT_PLACE, "csv": csv_list.DEFAULT_PLACE}
# Names that stand for something else in keys, identities or evaluations.
_TAKEN = {"naic", *LAYOUTS, *DOMAINS, VALIDATION, "all", UNLABEL.folder, *(row.folder for row in TRAIN_SETS.values())}


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
    choices = sorted(kind for kind in DATASETS if kind != PSEUDO.kind)
    if kind not in choices or (colon and kind not in DEFAULT_PLACES):
        raise ValueError(f"{key}={whole!r}: {text!r} is not one of {', '.join(choices)}, tree:FOLDER, csv:FILE; "
                         "several are joined with +")
    if kind not in DEFAULT_PLACES:
        return Reference(kind, kind)
    place = re.sub(r"^(?:\./+)+|/+$", "", place)  # ./people/ is people
    if colon and not is_safe_path(place):
        above, _, last = place.rpartition("/")
        hint = (f"for this one set DATASETS.ROOT_DIR {above}, and {kind}:{last}" if above.startswith("/") and last
                else f"{kind} alone is {DEFAULT_PLACES[kind]} there")
        raise ValueError(f"{key}={whole!r}: {place!r} must be a path below DATASETS.ROOT_DIR, with forward slashes "
                         f"({hint})")
    name = re.sub(r"(?i)\.csv$", "", PurePosixPath(place).name) if colon else kind
    if name in _TAKEN or not re.fullmatch(r"\w[\w .()-]*", name):
        raise ValueError(f"{key}={whole!r}: a set cannot be called {name!r}; rename {place!r} to letters, digits, "
                         "blanks, '_', '-', '.' and round brackets, the first a letter or digit, that are no other "
                         "set's name")
    return Reference(kind, name, place if colon else DEFAULT_PLACES[kind])


def parse_roots(texts: Sequence[str], references: Sequence[Reference] = ()) -> dict[str, str]:
    """DATASETS.ROOTS, texts NAME=FOLDER, as {name of a set: its root}; vehicleid's is that of vehicleid_1600, too.

    Args:
        references: the sets in use; another name must be that of a public set, so that a site's roots fit any recipe.
    Raises:
        ValueError: a name is none of these.
    """
    roots = {name: os.path.expanduser(folder) for name, _, folder in (text.partition("=") for text in texts)}
    known = {"naic", *LAYOUTS, *(reference.name for reference in references)}
    unknown = format_names(set(roots) - known)
    if references and unknown:
        raise ValueError(f"DATASETS.ROOTS names {unknown}, which is none of the sets in use "
                         f"({', '.join(dict.fromkeys(reference.name for reference in references))}) nor one of "
                         f"{', '.join(sorted({'naic', *LAYOUTS}))}")
    variants = {kind: roots[name] for name in roots for kind in LAYOUTS if kind.startswith(f"{name}_")}
    return {**variants, **roots}


# ------------------------------------------------------------------ data
def find_folders(references: Sequence[Reference], places: Places) -> dict[str, Path]:
    """{what a set's keys begin with: its folder}, for `open_folders`.

    Raises:
        OSError: a set is not there.
        ValueError: it is there twice.
    """
    return {reference.mount: DATASETS[reference.kind].folder(reference, places) for reference in references}


def load_sets(references: Sequence[Reference], places: Places,
              parts: Collection[str] = ("train", "test")) -> tuple[ReIDData, dict[str, Path]]:
    """Read several sets and put them together.

    Returns:
        The data, and the sets' folders, see `find_folders`.
    Raises:
        ValueError, OSError: a set cannot be read, or has nothing to train on, or no set has anything to test on.
    """
    folders = find_folders(references, places)
    _check_apart(references, folders, parts)
    loaded = []
    for reference in references:
        data, folder = DATASETS[reference.kind].load(reference, places, parts), folders[reference.mount]
        if "test" in parts and not data.eval_sets:
            logger.warning("%s in %s has no query and gallery images: it is not tested on", reference.name, folder)
        if "train" in parts and not data.train:
            hint = "; a tree has a folder of pictures for each identity" if reference.kind == "tree" else ""
            raise ValueError(f"nothing to train on: {reference.name} in {folder} has no identity with two images"
                             f"{hint}")
        loaded.append(data)
    people = [name for data in loaded for name in data.pid_names]
    if "train" in parts and len(people) == 1:
        raise ValueError(f"nothing to learn: {people[0]} is the only identity with two images, and a training tells "
                         "identities apart")
    if "test" in parts and not any(data.eval_sets for data in loaded):
        raise ValueError(f"nothing to test on: no query and gallery images in {', '.join(map(str, folders.values()))}")
    return combine(loaded), folders


def _check_apart(references: Sequence[Reference], folders: Mapping[str, Path], parts: Collection[str]) -> None:
    """No public set is trained on twice, or taken for another; test lists of one set may be measured together.

    Raises:
        ValueError: two sets are read from one folder.
    """
    first: dict[Path, Reference] = {}
    for reference in references:
        if reference.kind in LAYOUTS:
            other = first.setdefault(folders[reference.mount].resolve(), reference)
            homes = {LAYOUTS[other.kind].homes, LAYOUTS[reference.kind].homes}
            if other != reference and ("train" in parts or len(homes) > 1):
                raise ValueError(f"{other.name} and {reference.name} are both read from {folders[reference.mount]}; "
                                 "name one of them, or say where each lies: DATASETS.ROOTS \"['NAME=FOLDER', …]\"")


def combine(parts: Sequence[ReIDData]) -> ReIDData:
    """One data set from several whose identities have different names.

    Class indices are those of all identities' names together. Known cameras of training images are moved behind those
    of the sets before, so that no two sets share one. Evaluations stay as they are: each is ranked by itself.
    """
    if len(parts) == 1:
        return parts[0]
    images: list[NamedImage] = []
    cameras = 0
    for data in parts:
        images += [(key, data.pid_names[pid], camid + cameras if camid != UNKNOWN_CAMID else camid, viewid)
                   for key, pid, camid, viewid in data.train]
        cameras += max((sample.camid for sample in data.train), default=0)
    whole = number_training(images)
    assert whole.num_classes == sum(data.num_classes for data in parts), "two sets share an identity's name"
    return replace(whole, eval_sets={name: pair for data in parts for name, pair in data.eval_sets.items()})


def open_folders(folders: Mapping[str, Path]) -> FileSource:
    """The images of sets, by what their keys begin with; NAIC's ("") alone is a plain folder.

    Raises:
        ValueError: a folder of NAIC's has another set's name, so that their keys cannot be distinguished.
    """
    for mount in set(folders) - {"", PSEUDO.mount}:  # the pseudo-labelled set is read from its folder
        inside = folders[""] / mount if "" in folders else None
        if inside and inside.is_dir() and not inside.samefile(folders[mount]):
            raise ValueError(f"{inside} and {folders[mount]} are both called {mount}; rename one of them")
    sources = {mount: FolderSource(folder) for mount, folder in folders.items()}
    return sources[""] if list(sources) == [""] else MountedSource(sources)


# ------------------------------------------------------------------ the choice of a config
@dataclass(frozen=True)
class ChosenSets:
    """The sets that a config names, and what is read of them.

    Attributes:
        named: those of DATASETS.NAMES.
        tested: those whose evaluations are measured on, unless a validation split stands for them.
        places: where they lie.
        use_unlabel: train on the pseudo-labelled set as well.
        validation: the file of a validation split; "" = none.
    """

    named: list[Reference]
    tested: list[Reference]
    places: Places
    use_unlabel: bool = False
    validation: str = ""

    def measured_on(self, folders: Collection[str]) -> str:
        """What the evaluations are, in a few words.

        Args:
            folders: the first folder of their keys; a set that has none of them is not named, unless all have none.
        """
        if self.validation:
            return f"the validation split {self.validation}"
        first = self.places.test_dir.partition("/")[0]
        tested = [reference for reference in self.tested if (reference.mount or first) in folders] or self.tested
        names = [f"{reference.name} ({self.places.test_dir})" if reference.kind == "naic" else reference.name
                 for reference in tested]
        return f"the test set of {' and '.join(names)}"

    def load(self, train: bool = True, test: bool = True) -> tuple[ReIDData, FileSource, str]:
        """The data, their image files, and why there is no evaluation if training goes on without it.

        Args:
            train, test: what is read. With both, a test set that cannot be read is no error.
        Raises:
            ValueError: the data on disk are not as their layout says.
            OSError: a set or the validation split is missing.
        """
        data, folders = ReIDData(), {}
        if train:
            data, folders = load_sets([*self.named, *[PSEUDO] * self.use_unlabel], self.places, ("train",))
        reason = "" if test else "not asked for"
        if self.validation:
            split = read_split(self.validation)
            data = replace(leave_out(data, split) if train else data, eval_sets=split.eval_sets if test else {})
            folders = folders or find_folders(self.named, self.places)
        elif test:
            try:
                evaluated, others = load_sets(self.tested, self.places, ("test",))
                data, folders = replace(data, eval_sets=evaluated.eval_sets), {**folders, **others}
            except (ValueError, OSError) as error:
                if not train:
                    raise
                reason = str(error)
        return data, open_folders(folders), reason

    def load_labelled(self) -> tuple[ReIDData, FileSource]:
        """The training sets as they are on disk, before any split and without pseudo-labels, and their image files.

        Raises:
            ValueError, OSError: as `load`.
        """
        data, folders = load_sets(self.named, self.places, ("train",))
        return data, open_folders(folders)

    def files(self) -> FileSource:
        """The images of all sets but the pseudo-labelled one, as files.

        Raises:
            OSError: a set is missing.
        """
        return open_folders(find_folders([*self.named, *self.tested], self.places))
