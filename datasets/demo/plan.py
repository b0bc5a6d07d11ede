"""What the demo set consists of, before anything is drawn."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from datasets.demo.cast import PLAN, random_stream
from datasets.sets.domains import DOMAINS

TEST_FOLDER = "image_B_v1_1"

# Set name -> its picture folder, what a list line writes before the name, and what stands before the pid.
TRAIN_SETS = {
    "train_2019_cs": ("train", "train/", " "),
    "train_2019_fs": ("train", "train/", " "),
    "train_2020_cs": ("images", "", ":"),
    "train_2020_fs": ("images", "", ":"),
}


# ---------------------------------------------------------------------------------------------- who and where
@dataclass(frozen=True)
class Sizes:
    """How large the demo set is; the defaults make about 2,400 pictures.

    Attributes:
        ids: identities with several images, in each of the four training sets.
        images: images of such an identity (each has images - 2 … images + 2, at least 2).
        singles: identities with one image only, in each training set.
        shared: identities of train_2020_cs that stand again in train_2020_fs, under another pid.
        query_ids: test identities with queries, half of them in each domain.
        query_images: query images of each, from different cameras.
        gallery_images: gallery images of each, over several cameras.
        distractors: gallery identities without a query.
        distractor_images: gallery images of each of those.
        cameras: number of cameras; training and test see through the same ones.
        height, width: of the pictures, in pixels.
    Raises:
        ValueError: a number is too small to make a complete set.
    """

    ids: int = 50
    images: int = 8
    singles: int = 3
    shared: int = 5
    query_ids: int = 60
    query_images: int = 2
    gallery_images: int = 8
    distractors: int = 40
    distractor_images: int = 4
    cameras: int = 6
    height: int = 128
    width: int = 64

    def __post_init__(self) -> None:
        least = {"ids": 2, "images": 2, "query_ids": 2, "query_images": 1, "gallery_images": 2,
                 "distractor_images": 1, "cameras": 2, "height": 16, "width": 8}
        for name, value in asdict(self).items():
            if value < least.get(name, 0):
                raise ValueError(f"{name}={value} is too small for a demo set; the least is {least.get(name, 0)}")
        if self.shared > self.ids:
            raise ValueError(f"shared={self.shared} exceeds ids={self.ids}: only identities of a set can be shared")


# ------------------------------------------------------------------------------------------------ plan and store
@dataclass(frozen=True)
class Shot:
    """A picture to render: who, before which camera, and the files (relative to MyDataSet/) that hold its bytes."""

    person: int
    domain: str
    camid: int
    number: int  # of this person's shots: with the seed, all that the picture depends on
    paths: tuple[str, ...]


@dataclass
class DemoPlan:
    """Everything about a demo set but the pixels.

    Attributes:
        shots: the pictures; `Shot.person` is unique over all sets, training and test.
        lists: set name -> its lines (file name, pid), in the order of train_list.txt.
        truth: test file, as "query/NAME" or "gallery/NAME" -> {"pid", "camid"}.
    """

    shots: list[Shot] = field(default_factory=list)
    lists: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    truth: dict[str, dict] = field(default_factory=dict)


def _file_name(seed: int, *what: object) -> str:
    """An opaque name, as NAIC's are: it gives away neither person nor camera nor order."""
    return hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).hexdigest() + ".png"


def _camera_order(rng: np.random.Generator, cameras: int, images: int) -> list[int]:
    """The camera of each of a person's images: every camera in turn, in an order that is the person's."""
    order = rng.permutation(cameras)
    return [int(order[i % cameras]) + 1 for i in range(images)]


class _Planner:
    """Hands out persons, shots and file names while the plan grows."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.seed, self.sizes, self.plan = seed, sizes, DemoPlan()
        self.persons = 0
        self.domains: list[str] = []  # of each person

    def new_person(self) -> int:
        """Persons alternate between the domains, so that any two in a row cover both."""
        self.domains.append(DOMAINS[self.persons % 2])
        self.persons += 1
        return self.persons - 1

    def shots_of(self, person: int, folder: str, cameras: Sequence[int], first: int = 0) -> list[Shot]:
        """Plan a person's pictures before these cameras, numbered from `first`, into a folder."""
        shots = [Shot(person, self.domains[person], camid, number,
                      (f"{folder}/{_file_name(self.seed, folder, person, number)}",))
                 for number, camid in enumerate(cameras, first)]
        self.plan.shots += shots
        return shots

    def also_store(self, shot: Shot, folder: str) -> Shot:
        """Put the bytes of a planned shot into `folder` as well, under another name."""
        path = f"{folder}/{_file_name(self.seed, folder, shot.person, shot.number)}"
        copied = Shot(shot.person, shot.domain, shot.camid, shot.number, (*shot.paths, path))
        self.plan.shots[self.plan.shots.index(shot)] = copied
        return copied

    def training_set(self, name: str, persons_before: dict[int, list[Shot]]) -> dict[int, list[Shot]]:
        """Plan a training set; `persons_before` stand in it again, half their images as copies.

        Returns:
            Person -> shots, for the identities of this set with several images.
        """
        sizes, folder = self.sizes, f"{name}/{TRAIN_SETS[name][0]}"
        rng = random_stream(self.seed, PLAN, list(TRAIN_SETS).index(name))
        members: list[tuple[int, list[str]]] = []  # person, its file paths in this set
        several = {}
        for i in range(sizes.ids + sizes.singles):
            person = self.new_person()
            count = max(2, sizes.images + int(rng.integers(-2, 3))) if i < sizes.ids else 1
            shots = self.shots_of(person, folder, _camera_order(rng, sizes.cameras, count))
            members.append((person, [shot.paths[0] for shot in shots]))
            if count > 1:
                several[person] = shots
        for person, shots in persons_before.items():
            copies = [self.also_store(shot, folder) for shot in shots[:(len(shots) + 1) // 2]]
            fresh = self.shots_of(person, folder, _camera_order(rng, sizes.cameras, 2), first=len(shots))
            members.append((person, [shot.paths[-1] for shot in copies + fresh]))
        pids = rng.permutation(len(members))
        lines = [(Path(path).name, int(pid)) for pid, (_, paths) in zip(pids, members, strict=True) for path in paths]
        self.plan.lists[name] = [lines[i] for i in rng.permutation(len(lines))]
        return several

    def test_set(self) -> None:
        """Plan query and gallery: a query's own camera is among its gallery cameras, and others always are."""
        sizes = self.sizes
        rng = random_stream(self.seed, PLAN, len(TRAIN_SETS))
        for i in range(sizes.query_ids + sizes.distractors):
            person = self.new_person()
            queried = i < sizes.query_ids
            images = sizes.gallery_images if queried else sizes.distractor_images
            cameras = _camera_order(rng, sizes.cameras, images)
            parts = {"gallery": cameras}
            if queried:
                parts["query"] = _camera_order(rng, len(set(cameras)), sizes.query_images)
                parts["query"] = [sorted(set(cameras))[c - 1] for c in parts["query"]]
            first = 0
            for part, part_cameras in parts.items():
                for shot in self.shots_of(person, f"{TEST_FOLDER}/{part}", part_cameras, first):
                    key = f"{part}/{Path(shot.paths[0]).name}"
                    self.plan.truth[key] = {"pid": f"person{person:04d}", "camid": shot.camid}
                first += len(part_cameras)


def plan_demo(seed: int, sizes: Sizes) -> DemoPlan:
    """Decide everything about a demo set but its pixels; a function of the arguments alone."""
    planner = _Planner(seed, sizes)
    several: dict[int, list[Shot]] = {}
    for name in TRAIN_SETS:
        # NAIC's 2020 preliminary pictures stand again in its 2020 final set, in which people are numbered anew.
        again = dict(list(several.items())[:sizes.shared]) if name == "train_2020_fs" else {}
        several = planner.training_set(name, again)
    planner.test_set()
    planner.plan.truth = dict(sorted(planner.plan.truth.items()))
    return planner.plan
