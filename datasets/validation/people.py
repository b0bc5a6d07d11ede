"""The people behind the identities: two identities that share a picture, byte for byte, are one person.

NAIC's sets overlap: the same pictures stand in several of them, under pids that have nothing to do with one another.
"""
from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from datasets.bases import ReIDData, Sample
from datasets.files.images import ImageSource
from utils.parallel import in_threads
from utils.progress import progress

_THREADS = 8  # they wait for the disk; hashing needs no lock of Python's

logger = logging.getLogger(__name__)


class Person(NamedTuple):
    """names: of its identities, sorted. samples: sorted by key; of pictures that are equal, the first."""

    names: list[str]
    samples: list[Sample]


def people_of(data: ReIDData, source: ImageSource | None) -> list[Person]:
    """The people of the training images, sorted by name.

    Args:
        source: reads every image once to compare them; None: every identity is a person.
    Raises:
        OSError: an image cannot be read.
    """
    person_of = np.arange(data.num_classes)
    samples = sorted(data.train)
    if source is not None:
        samples = _join_equal(samples, source, person_of)
    names: dict[int, list[str]] = defaultdict(list)
    for index, name in enumerate(data.pid_names):
        names[_root(person_of, index)].append(name)
    by_person: dict[int, list[Sample]] = {person: [] for person in names}
    for sample in samples:
        by_person[_root(person_of, sample.pid)].append(sample)
    joined = data.num_classes - len(names)
    if joined:
        logger.info("%d of %d identities share a picture with another: they are the same person", joined,
                    data.num_classes)
    return sorted(Person(sorted(names[person]), by_person[person]) for person in names)


def _join_equal(samples: list[Sample], source: ImageSource, person_of: np.ndarray) -> list[Sample]:
    """Join the identities that share a picture; returns the samples without the repeated ones."""
    def digest_of(sample: Sample) -> bytes:
        return hashlib.blake2b(source.read(sample.key), digest_size=16).digest()

    first: dict[bytes, Sample] = {}
    different = []
    digests = progress(in_threads(digest_of, samples, _THREADS), "comparing", "image", total=len(samples))
    for sample, digest in zip(samples, digests, strict=True):
        known = first.setdefault(digest, sample)
        if known is sample:
            different.append(sample)
        else:
            person_of[_root(person_of, sample.pid)] = _root(person_of, known.pid)
    return different


def _root(person_of: np.ndarray, index: int) -> int:
    """The identity that stands for a person (union-find with path halving)."""
    while person_of[index] != index:
        person_of[index] = person_of[person_of[index]]
        index = person_of[index]
    return int(index)
