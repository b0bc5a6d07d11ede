"""Which keys lead to one file: an image that is a query and in the gallery, or in training and in a test, at once."""
from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from datasets.files.images import FileSource

MOST_PAIRS = 1 << 24  # in a ranking, which leaves each of them out by itself; usual are as many as queries


def identify(files: FileSource, keys: Iterable[str]) -> list[Hashable]:
    """What two keys have in common if and only if they lead to one file, links followed.

    The key itself stands for a file that is not there, because it may be in a pack.
    """
    identities: list[Hashable] = []
    for key in keys:
        try:
            status = os.stat(files.path(key))
        except OSError:
            identities.append(key)
        else:
            identities.append((status.st_dev, status.st_ino))
    return identities


def pair_up(query: Sequence[Hashable], gallery: Sequence[Hashable]) -> np.ndarray:
    """[n, 2] int64: the (query, gallery image) of equal identity, by query.

    Raises:
        ValueError: more than MOST_PAIRS, as where one file stands for all images.

    >>> pair_up(["a", "b"], ["b", "c", "b"]).tolist()
    [[1, 0], [1, 2]]
    """
    wanted = {identity: number for number, identity in enumerate(set(query))}
    numbers = np.array([wanted.get(identity, -1) for identity in gallery], np.int64)
    places = np.argsort(numbers, kind="stable")  # ascending of each identity
    asked = np.array([wanted[identity] for identity in query], np.int64)
    begin, end = (np.searchsorted(numbers[places], asked, side) for side in ("left", "right"))
    counts = end - begin
    total = int(counts.sum())
    if total > MOST_PAIRS:
        largest = int(counts.argmax())
        raise ValueError(f"{total:,} pairs of a query and a gallery image lead to one file, more than {MOST_PAIRS:,}: "
                         f"{int(counts[largest]):,} gallery images are the file of query {largest + 1}; remove the "
                         "links or repeated lines that make them so")
    rows = np.repeat(np.arange(len(asked)), counts)
    offsets = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([rows, places[np.repeat(begin, counts) + offsets]], 1)
