"""What the training benchmark trains on: real files, for as many identities as a classifier is to have."""
from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from datasets.bases import UNKNOWN_CAMID, ReIDData, Sample
from datasets.registry import DATASETS
from datasets.synthetic import Sizes, make_demo_data

# 192 training pictures of the size that most of NAIC's have, PNG files of 59 kB on average.
PICTURES = Sizes(ids=12, images=4, singles=0, shared=0, query_ids=2, query_images=1, gallery_images=2, distractors=0,
                 height=256, width=128)


def draw_pictures(folder: Path) -> None:
    """Render the pictures into `folder`, in NAIC's layout."""
    make_demo_data(folder, sizes=PICTURES, workers=1, progress=False)  # seconds; starting workers takes as long


def enlarged(data: ReIDData, identities: int, images: int) -> ReIDData:
    """So many identities with so many training images each, over and over the pictures of those that there are.

    Every class of the classifier is trained and the sampler has its full table, yet the disk holds a few files, which
    the system keeps in memory.
    """
    keys: dict[int, list[str]] = defaultdict(list)
    for sample in data.train:
        keys[sample.pid].append(sample.key)
    train = []
    for pid in range(identities):
        own = keys[pid % len(keys)]
        train += [Sample(own[i % len(own)], pid, UNKNOWN_CAMID) for i in range(images)]
    return ReIDData(train, identities, [str(pid) for pid in range(identities)])


@contextlib.contextmanager
def enlarged_naic(identities: int, images: int) -> Iterator[None]:
    """Within: the training part of the data set naic is enlarged."""
    naic = DATASETS["naic"]
    DATASETS["naic"] = naic._replace(load=lambda *place: enlarged(naic.load(*place), identities, images))
    try:
        yield
    finally:
        DATASETS["naic"] = naic
