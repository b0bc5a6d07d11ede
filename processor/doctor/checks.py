"""Checks of the images' records: each image beside its set, pixel-equal images, and nearly equal ones."""
from __future__ import annotations

import heapq
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from datasets.files.image_header import FORMATS, MODES, RGB, SUFFIXES
from processor.doctor.duplicates import Uncompared, equal_groups, near_pairs
from processor.doctor.findings import Findings
from processor.doctor.inspection import Inspected
from processor.doctor.inventory import NO_IDENTITY, Inventory

logger = logging.getLogger(__name__)
MIN_SIDE = 16               # pixels; a backbone divides a side by 16 or 32
MAX_TIMES = 4.0             # a side that is so many times the median of its set, or a fraction of it, is odd
MAX_SHAPE = 2.5             # likewise of the ratio of the sides
_MAX_PICTURES = 6           # of a finding
_MAX_IDENTITIES = 8         # a picture under more (a blank one) is no evidence of who is who


# ----------------------------------------------------------------------------------------------------- single images
def check_images(inventory: Inventory, inspected: Inspected, findings: Findings) -> None:
    """Check each image: that it can be read, and that its size, mode and format are what is usual in its set."""
    for index, problem in sorted(inspected.problems.items()):
        cut = problem.endswith("is cut off") or problem == "the file is empty"
        kind = "damaged image" if inspected.records["good"][index] else "truncated image" if cut else "unreadable image"
        findings.add(kind, f"{inventory.key(index)}: {problem}", (inventory.picture(index),))
    for position in range(len(inventory.sets)):
        span = inventory.span(position)
        _check_set(inventory, inspected.records[span], span.start, findings)


def _check_set(inventory: Inventory, records: np.ndarray, start: int, findings: Findings) -> None:
    """Compare the readable images of a set with its medians; `start` is the index of its first image."""
    def add(kind: str, index: int, text: str) -> None:
        findings.add(kind, f"{inventory.key(start + index)}: {text}", (inventory.picture(start + index),))

    good = np.flatnonzero(records["good"])
    if not len(good):
        return
    height, width = records["height"][good].astype(float), records["width"][good].astype(float)
    usual_height, usual_width = np.median(height), np.median(width)
    odd = (np.minimum(height, width) < MIN_SIDE) | (_times(height, usual_height) > MAX_TIMES) \
        | (_times(width, usual_width) > MAX_TIMES) | (_times(height / width, usual_height / usual_width) > MAX_SHAPE)
    for index in good[odd]:
        add("odd size", index, f"{records['width'][index]} x {records['height'][index]} pixels, where "
                               f"{usual_width:.0f} x {usual_height:.0f} is usual")
    for index in good[records["mode"][good] != MODES.index(RGB)]:
        add("odd mode", index, MODES[records["mode"][index]])
    for index in good:
        suffix = os.path.splitext(inventory.key(start + index))[1].lower()
        image_format = FORMATS[records["format"][index]]
        if SUFFIXES.get(suffix) != image_format:
            add("misnamed format", index, f"a {image_format} file")


def _times(sizes: np.ndarray, usual: float) -> np.ndarray:
    """How many times larger or smaller than usual, from 1."""
    return np.maximum(sizes / usual, usual / sizes)


# ------------------------------------------------------------------------------------------------------ equal images
def check_equal(inventory: Inventory, inspected: Inspected, findings: Findings) -> np.ndarray:
    """Check pixel-equal images: copies in a set and between sets, a picture under two identities, and identities of two
    sets that are one person. Byte-equal files are pixel-equal, so they are among them.

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
        _check_copies(inventory, inspected.records, copies, findings)
        _link(inventory, copies, links)
    _check_links(inventory, links, findings)
    return shared


class _Copies(NamedTuple):
    """The images of a picture: their indices, sets, and identities, and how many are in each set."""

    images: list[int]
    sets: list[int]
    identities: list[int]
    in_set: Counter

    @classmethod
    def of(cls, inventory: Inventory, images: list[int]) -> _Copies:
        sets = inventory.set_of[images].tolist()
        return cls(images, sets, inventory.identity_of[images].tolist(), Counter(sets))


def _check_copies(inventory: Inventory, records: np.ndarray, copies: _Copies, findings: Findings) -> None:
    """Add the findings of a picture, possibly of several kinds."""
    def add(kind: str, sets: Collection[int]) -> None:
        if findings.wants(kind):
            chosen = [image for image, position in zip(copies.images, copies.sets, strict=True) if position in sets]
            findings.add(kind, _describe(inventory, records, chosen),
                         tuple(map(inventory.picture, chosen[:_MAX_PICTURES])))
        else:
            findings.count_more(kind, 1)

    test = {position for position in copies.in_set if inventory.sets[position].is_test}
    train = copies.in_set.keys() - test
    if test and train:
        add("test picture in training", copies.in_set)
    if len(train) > 1:
        add("picture in two sets", train)
    if len(test) > 1 and len({inventory.sets[position].reference for position in test}) == 1:
        add("query in gallery", test)
    by_numbering: dict[str, set[int]] = {}
    for position in sorted(copies.in_set):
        by_numbering.setdefault(inventory.numberings[position], set()).add(position)
    for together in by_numbering.values():
        people = {identity for identity, position in zip(copies.identities, copies.sets, strict=True)
                  if position in together}
        if len(people - {NO_IDENTITY}) > 1:
            add("picture of two identities", together)
            continue
        for position in sorted(together):
            if copies.in_set[position] > 1:
                add("copies in a set", {position})


def _describe(inventory: Inventory, records: np.ndarray, images: list[int]) -> str:
    same = len(np.unique(records["file"][images], axis=0)) == 1
    keys = " = ".join(inventory.key(image) for image in images[:_MAX_PICTURES])
    more = f" = … ({len(images)} in all)" * (len(images) > _MAX_PICTURES)
    return f"{keys}{more}, {'byte for byte' if same else 'pixel for pixel'}"


# ------------------------------------------------------------------------------------------- identities in two sets
@dataclass(slots=True)
class _Link:
    """How many pictures two identities of different sets share, and an image of the first such picture in each."""

    pictures: int
    images: tuple[int, int]


def _link(inventory: Inventory, copies: _Copies, links: dict[tuple[int, int], _Link]) -> None:
    """Count a picture for each pair of identities, in ascending order, that it links."""
    example: dict[int, int] = {}  # identity -> its first image
    for image, identity in zip(copies.images, copies.identities, strict=True):
        if identity != NO_IDENTITY:
            example.setdefault(identity, image)
    if len(example) > _MAX_IDENTITIES:
        return
    for a, b in combinations(sorted(example), 2):
        if inventory.numbering(example[a]) != inventory.numbering(example[b]):
            links.setdefault((a, b), _Link(0, (example[a], example[b]))).pictures += 1


def _check_links(inventory: Inventory, links: dict[tuple[int, int], _Link], findings: Findings) -> None:
    """Add the pairs that are one person, and the pairs that the other pictures of the two contradict.

    Two identities are one person if each shares more pictures with the other than with any other identity of the
    other's set. What else is shared contradicts: a wrong label, or a person under two identities. Example: a shares
    three pictures with x, one with y, all of one set; then a = x is a person, and a = y is a contradiction.
    """
    partners: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)  # (identity, numbering) -> (n, other)
    for (a, b), link in links.items():
        numbering_a, numbering_b = map(inventory.numbering, link.images)
        partners[a, numbering_b].append((link.pictures, b))
        partners[b, numbering_a].append((link.pictures, a))
    # Of each only the two of most pictures are asked for: one may be the pair itself. A person may have 100,000 others.
    partners = {key: heapq.nlargest(2, others) for key, others in partners.items()}
    for (a, b), link in sorted(links.items()):
        numbering_a, numbering_b = map(inventory.numbering, link.images)
        rivals = [(number, identity, other)
                  for identity, numbering, partner in ((a, numbering_b, b), (b, numbering_a, a))
                  for number, other in partners[identity, numbering] if other != partner]
        pictures = tuple(map(inventory.picture, link.images))
        text = f"{_equation(inventory, a, b)}: {_count(link.pictures)} shared"
        if all(link.pictures > number for number, _, _ in rivals):
            findings.add("same person", text, pictures)
        else:
            number, identity, other = max(rivals)
            findings.add("contradiction", f"{text}, but {_equation(inventory, identity, other)}: {_count(number)}",
                         pictures)


def _equation(inventory: Inventory, a: int, b: int) -> str:
    return f"{inventory.identities[a]} = {inventory.identities[b]}"


def _count(pictures: int) -> str:
    return f"{pictures} picture{'s' * (pictures > 1)}"


# --------------------------------------------------------------------------------------------- nearly equal images
def check_near(inventory: Inventory, inspected: Inspected, most_bits: int, findings: Findings,
               progress: bool = True) -> tuple[int, Uncompared]:
    """Check pictures that are nearly, but not pixel for pixel, the same: of two identities, or of training and test.

    Returns:
        How many near pairs there are of the same identity, or of a set without identities: no fault; and what was not
        compared, because too many pictures are alike.
    """
    records, nearest, uncompared = inspected.records, _NearestPairs(findings.kept), Uncompared()
    people = inventory.identity_of.astype(np.int64)
    harmless = 0
    for pairs, bits in near_pairs(records["near"], most_bits, progress, uncompared):
        a, b = pairs.T
        equal = (records["pixels"][a] == records["pixels"][b]).all(1)
        leak = inventory.in_test[a] != inventory.in_test[b]
        two_people = (people[a] != people[b]) & (people[a] != NO_IDENTITY) & (people[b] != NO_IDENTITY)
        fault = (leak | two_people) & ~equal
        harmless += int((~fault & ~equal).sum())
        nearest.add(pairs[fault], bits[fault])
    for a, b, bits in nearest.rows.tolist():
        text = f"{inventory.key(a)} ~ {inventory.key(b)}, {bits} of 256 bits differ"
        findings.add("near-duplicate", text, (inventory.picture(a), inventory.picture(b)))
    findings.count_more("near-duplicate", nearest.count - len(nearest.rows))
    if uncompared.pictures:
        logger.warning("near-duplicates: %s", describe_uncompared(uncompared))
    return harmless, uncompared


def describe_uncompared(uncompared: Uncompared) -> str:
    """A line about what was not compared."""
    return (f"{uncompared.pictures:,} pictures are so much alike that not all of their {uncompared.pairs:,} pairs were "
            "compared, so that there may be more; fewer bits (--near-duplicates BITS) compare more of them")


class _NearestPairs:
    """The `most` nearest of many pairs, by bits and then by indices, and the number of all.

    Attributes:
        rows: [n, 3] int64: index, index, bits.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.rows = np.zeros((0, 3), np.int64)

    def add(self, pairs: np.ndarray, bits: np.ndarray) -> None:
        """Take in [n, 2] pairs and the [n] bits in which they differ."""
        self.count += len(pairs)
        rows = np.concatenate([self.rows, np.column_stack([pairs, bits])])
        order = rows[:, 2] << 58 | rows[:, 0] << 29 | rows[:, 1]  # bits below 16; images below half a billion
        if len(rows) > self.most:  # there may be millions of pairs, and sorting them all takes longer
            chosen = np.argpartition(order, self.most)[:self.most]
            rows, order = rows[chosen], order[chosen]
        self.rows = rows[np.argsort(order)]
