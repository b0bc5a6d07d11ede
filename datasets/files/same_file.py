"""Which keys lead to one file: an image that is a query and in the gallery, or in training and in a test, at once."""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from datasets.files.images import FileSource


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

    >>> pair_up(["a", "b"], ["b", "c", "b"]).tolist()
    [[1, 0], [1, 2]]
    """
    wanted, places = set(query), defaultdict(list)
    for place, identity in enumerate(gallery):
        if identity in wanted:
            places[identity].append(place)
    pairs = [(row, place) for row, identity in enumerate(query) for place in places.get(identity, ())]
    return np.array(pairs, np.int64).reshape(-1, 2)
