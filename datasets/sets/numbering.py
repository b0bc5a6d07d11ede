"""Class numbering: from images with the names of their identities to samples with numbers."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, QueryGallery, ReIDData, Sample, format_names

SPLITS = ("train", "query", "gallery")
JUNK = "-1"  # Market-1501's mark of a detection that is no good picture of anybody; other sets took it over

logger = logging.getLogger(__name__)


class SetImage(NamedTuple):
    """An image as its set's layout describes it.

    Attributes:
        path: below a folder that the loader knows, with forward slashes.
        pid: the identity's name within the set; JUNK: of no use, neither match nor mismatch.
        camid: camera from 1, UNKNOWN_CAMID if the set does not say.
        viewid: from which side, 0 if the set does not say.
    """

    path: str
    pid: str
    camid: int = UNKNOWN_CAMID
    viewid: int = 0


# key, stable name of its identity, camid and, if it is known, viewid
NamedImage = tuple[str, str, int] | tuple[str, str, int, int]


def class_indices(names: Iterable[str]) -> dict[str, int]:
    """Name -> class index: the different names, sorted as strings, are 0, 1, … in this order.

    So an index is the same on every machine and for any order of the images: ["b", "a", "b"] -> {"a": 0, "b": 1}.
    """
    return {name: index for index, name in enumerate(sorted(set(names)))}


def number_training(images: Sequence[NamedImage]) -> ReIDData:
    """Training data, in the order of the images, with `class_indices` of the names of their identities."""
    index_of = class_indices(image[1] for image in images)
    train = [Sample(key, index_of[name], *seen_by) for key, name, *seen_by in images]
    return ReIDData(train, len(index_of), list(index_of))


def number_evaluation(query: Iterable[NamedImage], gallery: Iterable[NamedImage], pid_names: list[str]) -> QueryGallery:
    """An evaluation with ground truth; its pids are positions in `pid_names`.

    The query's identity from the query's camera is left out of the gallery, as all published sets do it, if every
    camera is known.

    Raises:
        KeyError: an identity is not in pid_names.
    """
    number_of = {name: number for number, name in enumerate(pid_names)}
    sides = [sorted(Sample(key, number_of[name], *seen_by) for key, name, *seen_by in side)
             for side in (query, gallery)]
    known = all(sample.camid != UNKNOWN_CAMID for side in sides for sample in side)
    return QueryGallery(*sides, has_truth=True, pid_names=pid_names, drop_same_camera=known)


def drop_singles(name: str, images: Sequence[SetImage]) -> list[SetImage]:
    """The training images of identities that have two at least; `name` is the set's, for the log."""
    counts = Counter(image.pid for image in images)
    singles = sum(count == 1 for count in counts.values())
    if singles:
        logger.info("%s: dropped %d of %d identities, with one image each", name, singles, len(counts))
    return [image for image in images if counts[image.pid] > 1]


def describe_lost(images: Sequence[SetImage]) -> Iterator[str]:
    """Which of the training images of a user's own set are not trained on, for the log."""
    counts = Counter(image.pid for image in images)
    if JUNK in counts:
        number = counts.pop(JUNK)
        yield f"{number} image{'s' * (number > 1)} of {JUNK}, which is junk"
    singles = [pid for pid, count in counts.items() if count == 1]
    if singles:
        yield (f"{len(singles)} of {len(counts)} people not trained on, since they have a single image: "
               f"{format_names(singles)}")


def wanted_splits(parts: Collection[str]) -> list[str]:
    """The splits that the parts "train" and "test" of a data set are made of."""
    return [split for split in SPLITS if ("train" if split == "train" else "test") in parts]


def to_data(name: str, images: Mapping[str, Sequence[SetImage]]) -> ReIDData:
    """The data of a set; images: those of SPLITS that were asked for.

    Keys begin with `name`/, and an identity is called `name`/pid, so that neither depends on what the set is combined
    with. Identities with one training image are dropped, as in NAIC. Junk is left out everywhere: it would count
    neither as a match nor as a mistake. The evaluation is called `name`.
    """
    kept = {split: [image for image in members if image.pid != JUNK] for split, members in images.items()}
    labelled = kept.get("train", [])
    kept["train"] = drop_singles(name, labelled)
    several = {image.pid for image in kept["train"]}
    kept["singles"] = [image for image in labelled if image.pid not in several]
    named = {split: [(f"{name}/{path}", f"{name}/{pid}", *seen_by) for path, pid, *seen_by in members]
             for split, members in kept.items()}
    data = replace(number_training(named["train"]), singles=named["singles"])
    if named.get("query") and named["gallery"]:
        pid_names = list(class_indices(pid_name for split in ("query", "gallery") for _, pid_name, *_ in named[split]))
        data = replace(data, eval_sets={name: number_evaluation(named["query"], named["gallery"], pid_names)})
    return data
