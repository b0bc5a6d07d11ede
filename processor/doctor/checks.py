"""What equal and nearly equal pictures say about labels: one picture under two identities, one person in two sets."""
from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from processor.doctor.duplicates import equal_groups, near_pairs
from processor.doctor.findings import Findings
from processor.doctor.image_header import FORMATS, MODES, RGB, SUFFIXES
from processor.doctor.inspection import Inspected
from processor.doctor.inventory import NO_IDENTITY, Inventory

_SHOWN = 6               # pictures of a finding
_MOST_IDENTITIES = 50    # a picture of more (a blank one) says nothing about who is who


def check_equal(inventory: Inventory, inspected: Inspected, findings: Findings) -> np.ndarray:
    """Tell what pixel-equal pictures reveal. Byte-equal files are pixel-equal, so they are among them.

    Returns:
        [S, S] int64: at [a, b], images of set a whose picture is in set b, too; at [a, a], copies inside set a without
        the first of each picture.
    """
    shared = np.zeros((len(inventory.sets), len(inventory.sets)), np.int64)
    links: dict[tuple[int, int], _Link] = {}
    for group in equal_groups(inspected.records["pixels"], inspected.records["good"]):
        copies = _Copies.of(inventory, group.tolist())
        for a, number in copies.in_set.items():
            shared[a, a] += number - 1
            for b in copies.in_set:
                shared[a, b] += number if a != b else 0
        _tell_copies(inventory, inspected.records, copies, findings)
        _link(inventory, copies, links)
    _tell_links(inventory, links, findings)
    return shared


class _Copies(NamedTuple):
    """The images of one picture: their indices, sets, and identities, and how many are in each set."""

    images: list[int]
    sets: list[int]
    identities: list[int]
    in_set: Counter

    @classmethod
    def of(cls, inventory: Inventory, images: list[int]) -> _Copies:
        sets = inventory.set_of[images].tolist()
        return cls(images, sets, inventory.identity_of[images].tolist(), Counter(sets))


def _tell_copies(inventory: Inventory, records: np.ndarray, copies: _Copies, findings: Findings) -> None:
    """Tell of one picture, possibly under several kinds."""
    def tell(kind: str, sets: Collection[int]) -> None:
        if findings.wants(kind):
            chosen = [image for image, position in zip(copies.images, copies.sets, strict=True) if position in sets]
            findings.add(kind, _describe(inventory, records, chosen), tuple(map(inventory.picture, chosen[:_SHOWN])))
        else:
            findings.count_more(kind, 1)

    test = {position for position in copies.in_set if inventory.sets[position].is_test}
    train = copies.in_set.keys() - test
    if test and train:
        tell("test picture in training", copies.in_set)
    if len(train) > 1:
        tell("picture in two sets", train)
    if len(test) > 1:
        tell("query in gallery", test)
    for together in [*({position} for position in sorted(train)), *([test] if test else [])]:  # one numbering of people
        people = {identity for identity, position in zip(copies.identities, copies.sets, strict=True)
                  if position in together}
        if len(people - {NO_IDENTITY}) > 1:
            tell("picture of two identities", together)
            continue
        for position in sorted(together):
            if copies.in_set[position] > 1:
                tell("copies in a set", {position})


def _describe(inventory: Inventory, records: np.ndarray, images: list[int]) -> str:
    same = len(np.unique(records["file"][images], axis=0)) == 1
    keys = " = ".join(inventory.key(image) for image in images[:_SHOWN])
    more = f" = … ({len(images)} in all)" * (len(images) > _SHOWN)
    return f"{keys}{more}, {'byte for byte' if same else 'pixel for pixel'}"


# ------------------------------------------------------------------------------------------- identities in two sets
@dataclass
class _Link:
    """How many pictures two identities of different sets share, and an image of the first such picture in each."""

    pictures: int
    images: tuple[int, int]


def _numbering(inventory: Inventory, position: int) -> int:
    """Which numbering of people a set has: each training set its own, query and gallery one."""
    return -1 if inventory.sets[position].is_test else position


def _link(inventory: Inventory, copies: _Copies, links: dict[tuple[int, int], _Link]) -> None:
    """Note the identities that share a picture, by pairs in ascending order."""
    example: dict[int, tuple[int, int]] = {}  # identity -> its numbering, its first image
    for image, position, identity in zip(copies.images, copies.sets, copies.identities, strict=True):
        if identity != NO_IDENTITY:
            example.setdefault(identity, (_numbering(inventory, position), image))
    if len(example) > _MOST_IDENTITIES:
        return
    for a, b in combinations(sorted(example), 2):
        (numbering_a, image_a), (numbering_b, image_b) = example[a], example[b]
        if numbering_a != numbering_b:
            links.setdefault((a, b), _Link(0, (image_a, image_b))).pictures += 1


def _tell_links(inventory: Inventory, links: dict[tuple[int, int], _Link], findings: Findings) -> None:
    """Pairs that are one person, and pairs that the other pictures of the two contradict.

    Two identities are one person where each shares more pictures with the other than with any other identity of the
    other's set. What else is shared contradicts: a wrong label, or a person under two identities.
    """
    partners: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # (identity, numbering) -> (n, other)
    for (a, b), link in links.items():
        numbering_a, numbering_b = (_numbering(inventory, int(inventory.set_of[image])) for image in link.images)
        partners[a, numbering_b].append((link.pictures, b))
        partners[b, numbering_a].append((link.pictures, a))
    for (a, b), link in sorted(links.items()):
        numbering_a, numbering_b = (_numbering(inventory, int(inventory.set_of[image])) for image in link.images)
        names = [inventory.identities[one] for one in (a, b)]
        pictures = tuple(map(inventory.picture, link.images))
        said = f"{names[0]} = {names[1]}: {_pictures(link.pictures)} shared"
        others = [(one, [pair for pair in partners[one, numbering] if pair[1] != other])
                  for one, numbering, other in ((a, numbering_b, b), (b, numbering_a, a))]
        if all(link.pictures > number for _, pairs in others for number, _ in pairs):
            findings.add("same person", said, pictures)
            continue
        number, one, other = max((number, one, other) for one, pairs in others for number, other in pairs)
        findings.add("contradiction", f"{said}, but {inventory.identities[one]} = {inventory.identities[other]}: "
                                      f"{_pictures(number)}", pictures)


def _pictures(number: int) -> str:
    return f"{number} picture{'s' * (number > 1)}"


# --------------------------------------------------------------------------------------------------- nearly the same
def check_near(inventory: Inventory, inspected: Inspected, most_bits: int, findings: Findings,
               progress: bool = True) -> int:
    """Tell of pictures that are nearly, but not pixel for pixel, the same, and are not of one identity of one set.

    Returns:
        How many near pairs there are of one identity, or of one set without identities: no fault.
    """
    records, kept = inspected.records, _Nearest(findings.kept)
    is_test = np.array([one.is_test for one in inventory.sets], bool)
    people = inventory.identity_of.astype(np.int64)
    harmless = 0
    for pairs, bits in near_pairs(records["near"], most_bits, progress):
        a, b = pairs.T
        equal = (records["pixels"][a] == records["pixels"][b]).all(1)
        leak = is_test[inventory.set_of[a]] != is_test[inventory.set_of[b]]
        other = (people[a] != people[b]) & (people[a] != NO_IDENTITY) & (people[b] != NO_IDENTITY)
        telling = (leak | other) & ~equal
        harmless += int((~telling & ~equal).sum())
        kept.add(pairs[telling], bits[telling])
    for a, b, bits in kept.rows:
        text = f"{inventory.key(a)} ~ {inventory.key(b)}, {bits} of 256 bits differ"
        findings.add("near-duplicate", text, (inventory.picture(a), inventory.picture(b)))
    findings.count_more("near-duplicate", kept.count - len(kept.rows))
    return harmless


class _Nearest:
    """The nearest of many pairs, by bits and then by indices, and their number."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self._rows = np.zeros((0, 3), np.int64)  # index, index, bits

    def add(self, pairs: np.ndarray, bits: np.ndarray) -> None:
        self.count += len(pairs)
        rows = np.concatenate([self._rows, np.column_stack([pairs, bits])])
        self._rows = rows[np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2]))[:self.most]]

    @property
    def rows(self) -> list[list[int]]:
        return self._rows.tolist()


MIN_SIDE = 16       # pixels; a backbone divides a side by 16 or 32
MAX_TIMES = 4.0     # a side that is so many times the median of its set, or a fraction of it, is odd
MAX_SHAPE = 2.5     # likewise of the ratio of the sides


def check_images(inventory: Inventory, inspected: Inspected, findings: Findings) -> None:
    """Tell the findings of each image."""
    for index, problem in sorted(inspected.problems.items()):
        cut = problem.endswith("is cut off") or problem == "the file is empty"
        findings.add("truncated image" if cut else "unreadable image", f"{inventory.key(index)}: {problem}",
                     (inventory.picture(index),))
    for position in range(len(inventory.sets)):
        span = inventory.span(position)
        _check_set(inventory, inspected.records[span], span.start, findings)


def _check_set(inventory: Inventory, records: np.ndarray, start: int, findings: Findings) -> None:
    """Compare the good images of a set with what is usual in it."""
    good = np.flatnonzero(records["good"])
    if not len(good):
        return
    height, width = records["height"][good].astype(float), records["width"][good].astype(float)
    usual_height, usual_width = np.median(height), np.median(width)
    odd = (np.minimum(height, width) < MIN_SIDE) | (_times(height, usual_height) > MAX_TIMES) \
        | (_times(width, usual_width) > MAX_TIMES) | (_times(height / width, usual_height / usual_width) > MAX_SHAPE)
    for index in good[odd]:
        findings.add("odd size", f"{inventory.key(start + index)}: {records['width'][index]} x "
                                 f"{records['height'][index]} pixels, where {usual_width:.0f} x {usual_height:.0f} is "
                                 "usual", (inventory.picture(start + index),))
    for index in good[records["mode"][good] != MODES.index(RGB)]:
        findings.add("odd mode", f"{inventory.key(start + index)}: {MODES[records['mode'][index]]}",
                     (inventory.picture(start + index),))
    for index in good:
        suffix = os.path.splitext(inventory.key(start + index))[1].lower()
        told, real = SUFFIXES.get(suffix), FORMATS[records["format"][index]]
        if told != real:
            findings.add("misnamed format", f"{inventory.key(start + index)}: a {real} file",
                         (inventory.picture(start + index),))


def _times(sizes: np.ndarray, usual: float) -> np.ndarray:
    """How many times larger or smaller than usual, from 1."""
    return np.maximum(sizes / usual, usual / sizes)
