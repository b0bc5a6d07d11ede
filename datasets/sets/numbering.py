"""From the images that a set's layout names to samples: identities get numbers, junk goes, queries meet a gallery."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from datasets.bases import UNKNOWN_CAMID, QueryGallery, ReIDData, Sample

SPLITS = ("train", "query", "gallery")
JUNK = "-1"  # Market-1501's mark of a detection that is no good picture of anybody; other sets took it over

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One image as a layout tells of it.

    Attributes:
        path: below the set's folder, with forward slashes.
        pid: the identity's name within the set; JUNK: of no use, neither match nor mismatch.
        camid: camera from 1, UNKNOWN_CAMID where the set does not say.
    """

    path: str
    pid: str
    camid: int


Records = Mapping[str, list[Record]]  # of SPLITS, those that were asked for


def wanted_splits(parts: Collection[str]) -> list[str]:
    """The splits that the parts "train" and "test" of a data set are made of."""
    return [split for split in SPLITS if ("train" if split == "train" else "test") in parts]


def to_data(name: str, records: Records) -> ReIDData:
    """Number the identities of a set.

    Keys begin with `name`/, and an identity is called `name`/pid, so that neither depends on what the set is combined
    with. Class indices follow these names sorted as strings. Identities with one training image are dropped, as in
    NAIC. Junk is left out everywhere: it would count neither as a match nor as a mistake.

    An evaluation is called `name`. It leaves the query's identity from the query's camera out of the gallery, as all
    published sets do, where every camera is known.
    """
    kept = {split: [record for record in found if record.pid != JUNK] for split, found in records.items()}
    train, pid_names = _number_train(name, kept.get("train", []))
    evaluations = {}
    if "query" in kept and kept["query"] and kept["gallery"]:
        images = [record for split in ("query", "gallery") for record in kept[split]]
        names = sorted({f"{name}/{record.pid}" for record in images})
        number_of = {pid_name: number for number, pid_name in enumerate(names)}
        query, gallery = (sorted(Sample(f"{name}/{path}", number_of[f"{name}/{pid}"], camid)
                                 for path, pid, camid in kept[split]) for split in ("query", "gallery"))
        evaluations[name] = QueryGallery(query, gallery, True, names,
                                         drop_same_camera=all(record.camid != UNKNOWN_CAMID for record in images))
    return ReIDData(train, len(pid_names), pid_names, evaluations)


def _number_train(name: str, records: list[Record]) -> tuple[list[Sample], list[str]]:
    """Training samples with class indices in the order of the records, and the identities' names by class index."""
    counts = Counter(record.pid for record in records)
    singles = sum(count == 1 for count in counts.values())
    if singles:
        logger.info("%s: dropped %d of %d identities, with one image each", name, singles, len(counts))
    pid_names = sorted(f"{name}/{pid}" for pid, count in counts.items() if count > 1)
    class_of = {pid_name: index for index, pid_name in enumerate(pid_names)}
    train = [Sample(f"{name}/{path}", class_of[f"{name}/{pid}"], camid)
             for path, pid, camid in records if counts[pid] > 1]
    return train, pid_names
