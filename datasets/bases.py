"""What a data set is asked for and what it hands over: samples, query/gallery pairs, and a table of what there is."""
from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

UNKNOWN_PID = -1  # a test image without ground truth
UNKNOWN_CAMID = 0  # the data set does not say which camera took the picture


def trial_name(set_name: str, number: int) -> str:
    """What one of several random trials of a set's evaluation is called; `set_of_trial` is the way back."""
    return f"{set_name}_trial{number:02d}"


def set_of_trial(evaluation: str) -> str:
    """The set that an evaluation is a trial of, or "" if it is none."""
    name, _, number = evaluation.rpartition("_trial")
    return name if len(number) == 2 and number.isdecimal() else ""


class Sample(NamedTuple):
    """One image. A tuple, not a dataclass: there are close to a million of them.

    Attributes:
        key: what `ImageSource.read` takes: a path with forward slashes, below the data root (NAIC), or below the set's
            folder with the set's name before it.
        pid: training: class index, 0 … num_classes - 1; test: identity number, UNKNOWN_PID without ground truth.
        camid: camera, UNKNOWN_CAMID if the data set does not say.
        viewid: from which side, such as a vehicle's front; 0 if the data set does not say.
    """

    key: str
    pid: int
    camid: int
    viewid: int = 0

    @property
    def set_name(self) -> str:
        """The set that a training image is of: the first folder of its key."""
        return self.key.split("/", 1)[0]


@dataclass(frozen=True)
class QueryGallery:
    """One evaluation: the images asked about and the images searched.

    Attributes:
        query: sorted by key.
        gallery: sorted by key.
        has_truth: True: every pid and camid is known; False: every pid is UNKNOWN_PID.
        pid_names: test identity number -> name, empty without ground truth. The evaluation sets of one data set
            share it, so that pids can be compared between them; they have nothing to do with class indices.
        drop_same_camera: its protocol: True: the query's identity from the query's camera is left out of the gallery
            (Market-1501 and its like); False: it counts (NAIC). TEST.DROP_SAME_CAMERA may say otherwise.
    """

    query: list[Sample]
    gallery: list[Sample]
    has_truth: bool
    pid_names: list[str] = field(default_factory=list)
    drop_same_camera: bool = False


@dataclass(frozen=True)
class ReIDData:
    """A whole data set, or the part of it that was asked for (the rest is empty).

    Attributes:
        train: in a fixed order.
        num_classes: number of training identities, `len(pid_names)`.
        pid_names: class index -> stable identity name.
        eval_sets: name -> evaluation; NAIC: "green" and "normal", as far as both query and gallery have images.
        singles: (key, identity, camid) of training images that are left out because their identity has no other; of a
            single set that is not NAIC.
    """

    train: list[Sample] = field(default_factory=list)
    num_classes: int = 0
    pid_names: list[str] = field(default_factory=list)
    eval_sets: dict[str, QueryGallery] = field(default_factory=dict)
    singles: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.num_classes == len(self.pid_names), (self.num_classes, len(self.pid_names))

    def keys(self) -> list[str]:
        """The key of every image, training first, in order; an image that stands in two parts comes twice."""
        parts = [self.train, *(part for pair in self.eval_sets.values() for part in (pair.query, pair.gallery))]
        return [sample.key for part in parts for sample in part]


class Reference(NamedTuple):
    """A data set by name, as DATASETS.NAMES has it.

    Attributes:
        kind: a key of datasets.registry.DATASETS.
        name: what its identities and its evaluation are called by.
        place: below the root, of a set that a user made (`tree:PLACE`, `csv:PLACE`); else "".
    """

    kind: str
    name: str
    place: str = ""

    @property
    def mount(self) -> str:
        """The folder that its keys begin with; "": NAIC's begin with its own sets' folders."""
        return "" if self.kind == "naic" else self.name


@dataclass(frozen=True)
class Places:
    """Where data sets lie, and which parts of them are meant.

    Attributes:
        root: the folder that holds them.
        roots: name of a set -> the folder that holds it instead.
        train_sets: of NAIC, names of datasets.naic.TRAIN_SETS in any order; empty = all four.
        test_dir: NAIC's test folder, inside MyDataSet/.
        derived_dir: the folder of derived lists (cleaned lists, domain lists), looked at after NAIC's folders, and
            where a pseudo-labelled set is looked for; None = there is none.
        unlabel_dir: where the pseudo-labelled set lies; "" = see `datasets.naic.unlabel_folder`.
        skip: leave out, with a warning, what of a training set is wrong or missing; in a test set it is an error.
    """

    root: str | os.PathLike
    train_sets: Sequence[str] = ()
    test_dir: str = "image_B_v1_1"
    derived_dir: str | os.PathLike | None = None
    unlabel_dir: str | os.PathLike = ""
    skip: bool = False
    roots: Mapping[str, str | os.PathLike] = field(default_factory=dict)

    def root_of(self, name: str) -> Path:
        """The folder that holds a set."""
        return Path(self.roots.get(name, self.root))


class Problems:
    """Collects the faults of files, so that a user sees them all in one error instead of one a run.

    The first `limit` are kept as text, the others counted.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.count = 0
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Note a fault: where, and what."""
        self.count += 1
        if len(self._texts) < self.limit:
            self._texts.append(text)

    def raise_if_any(self, what: str, advice: str = "") -> None:
        """Raise what was collected.

        Raises:
            ValueError: there was a fault; one line each under "WHAT: N problems", and the advice last.
        """
        if self.count:
            raise ValueError("\n".join([*self._lines(what), advice] if advice else self._lines(what)))

    def raise_or_skip(self, what: str, advice: str, parts: Collection[str], skip: bool) -> None:
        """Raise what was collected, or, if it is about training alone and `skip` is true, warn that it is left out.

        Raises:
            ValueError: as `raise_if_any`; of training alone, it names DATALOADER.ON_BAD_IMAGE as well.
        """
        if "test" in parts:  # a ranking would lack an image
            self.raise_if_any(what, advice)
        elif not skip:
            self.raise_if_any(what, f"{advice} Or train without them: DATALOADER.ON_BAD_IMAGE skip.")
        elif self.count:
            logger.warning("left out: %s", "\n".join(self._lines(what)))

    def _lines(self, what: str) -> list[str]:
        lines = [f"{what}: {self.count} problem{'s' * (self.count > 1)}", *self._texts]
        return [*lines, f"… and {self.count - len(self._texts)} more"] if self.count > len(self._texts) else lines


def format_names(names: Iterable[str], limit: int = 3) -> str:
    """The first few of sorted names, for a message: "a.png, b.png, c.png, … (7 in all)"."""
    names = sorted(names)
    head = ", ".join(names[:limit])
    return head if len(names) <= limit else f"{head}, … ({len(names)} in all)"


def names_of_results(eval_sets: dict[str, QueryGallery]) -> Callable[[str, str], str]:
    """(evaluation, key) -> what results call an image: the first that tells all queries and all gallery images apart.

    Its file name, as in NAIC, whose answers hold file names; else its key; else, where an image stands in several
    evaluations, the evaluation and the key.
    """
    def by_file(_: str, key: str) -> str:
        return Path(key).name

    def by_key(_: str, key: str) -> str:
        return key

    for name_of in (by_file, by_key):
        sides = [[name_of(domain, sample.key) for domain, pair in eval_sets.items() for sample in getattr(pair, side)]
                 for side in ("query", "gallery")]
        if all(len(set(names)) == len(names) for names in sides):
            return name_of
    return "{}/{}".format


def statistics(data: ReIDData) -> str:
    """A table of images, identities and cameras, for the log; '-': the data set does not say.

    An identity belongs to one set. The trials of an evaluation are alike, and one stands for all.
    """
    by_set: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.train:
        by_set[sample.set_name].append(sample)
    rows = [(name, *_counts(samples)) for name, samples in by_set.items()]
    if len(by_set) > 1:
        rows.append(("train, all", *_counts(data.train)))
    alike = {set_of_trial(name) or name: pair for name, pair in data.eval_sets.items()}
    for name, pair in alike.items():
        rows.append((f"{name} query", *_counts(pair.query)))
        rows.append((f"{name} gallery", *_counts(pair.gallery)))
    table = [("subset", "images", "identities", "cameras"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0])] + [row[c].rjust(widths[c]) for c in (1, 2, 3)]) for row in table)


def _counts(samples: list[Sample]) -> tuple[str, str, str]:
    """Images, identities and cameras as texts."""
    pids = {sample.pid for sample in samples} - {UNKNOWN_PID}
    cameras = {sample.camid for sample in samples} - {UNKNOWN_CAMID}
    return f"{len(samples):,}", f"{len(pids):,}" if pids else "-", f"{len(cameras):,}" if cameras else "-"
