"""The public sets in miniature: folders and file names as they were published, for tests."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.bases import Places, Reference, ReIDData
from datasets.registry import DATASETS
from datasets.sets.public import LAYOUTS


def _in(folder: str, images: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {f"{folder}/{name}": identity for name, identity in images.items()}


_CUHK03 = {
    "train": _in("bounding_box_train", {"0001_c1_1.png": ("1", 1), "0001_c2_6.png": ("1", 2),
                                        "0002_c1_11.png": ("2", 1), "0002_c2_16.png": ("2", 2)}),
    "query": _in("query", {"0003_c1_22.png": ("3", 1), "0003_c2_27.png": ("3", 2)}),
    "gallery": _in("bounding_box_test", {"0003_c1_21.png": ("3", 1), "0003_c2_26.png": ("3", 2)}),
}

# set -> split -> path below the set's folder -> (identity, camera)
IMAGES: dict[str, dict[str, dict[str, tuple[str, int]]]] = {
    "market1501": {
        "train": _in("bounding_box_train", {
            "0002_c1s1_000451_03.jpg": ("2", 1), "0002_c3s2_000551_01.jpg": ("2", 3),
            "0007_c2s3_070952_01.jpg": ("7", 2), "0007_c6s3_077117_02.jpg": ("7", 6)}),
        "query": _in("query", {"0001_c1s1_001051_00.jpg": ("1", 1), "0003_c4s6_015641_00.jpg": ("3", 4)}),
        "gallery": _in("bounding_box_test", {
            "0001_c1s1_001051_03.jpg": ("1", 1), "0001_c2s1_000301_01.jpg": ("1", 2),
            "0003_c1s6_015971_02.jpg": ("3", 1), "0000_c1s1_000151_01.jpg": ("0", 1)}),
    },
    "dukemtmc": {
        "train": _in("bounding_box_train", {
            "0001_c2_f0046182.jpg": ("1", 2), "0001_c5_f0051341.jpg": ("1", 5),
            "0005_c2_f0046985.jpg": ("5", 2), "0005_c8_f0066617.jpg": ("5", 8)}),
        "query": _in("query", {"0008_c1_f0079544.jpg": ("8", 1)}),
        "gallery": _in("bounding_box_test", {
            "0008_c1_f0079424.jpg": ("8", 1), "0008_c4_f0049385.jpg": ("8", 4), "0002_c1_f0044158.jpg": ("2", 1)}),
    },
    "msmt17": {
        "train": _in("train", {
            "0000/0000_000_01_0303morning_0008_0.jpg": ("0", 1), "0000/0000_001_14_0303morning_0022_1.jpg": ("0", 14),
            "0001/0001_000_01_0303morning_0017_2.jpg": ("1", 1), "0001/0001_030_15_0303noon_0405_1.jpg": ("1", 15)}),
        "query": _in("test", {"0000/0000_000_01_0303morning_0015_0.jpg": ("test_0", 1)}),
        "gallery": _in("test", {"0000/0000_001_05_0303morning_0016_0.jpg": ("test_0", 5),
                                "0012/0012_004_01_0302morning_0312_0.jpg": ("test_12", 1)}),
    },
    "cuhk03": _CUHK03,
    "cuhk03_labeled": _CUHK03,
    "veri": {
        "train": _in("image_train", {
            "0001_c001_00016450_0.jpg": ("1", 1), "0001_c012_00017900_0.jpg": ("1", 12),
            "0776_c020_00077740_0.jpg": ("776", 20), "0776_c019_00077885_0.jpg": ("776", 19)}),
        "query": _in("image_query", {"0002_c002_00030600_0.jpg": ("2", 2)}),
        # A query stands in the gallery, too, by the same file name: its own camera, so that it does not count.
        "gallery": _in("image_test", {
            "0002_c002_00030600_0.jpg": ("2", 2), "0002_c003_00084280_0.jpg": ("2", 3),
            "0005_c003_00084385_0.jpg": ("5", 3)}),
    },
}
_OF_VEHICLEID = {path: (pid, 0) for pid in ("700", "701", "702") for path in (
    f"image/{int(pid) * 10 + number:07d}.jpg" for number in range(3))}
IMAGES |= {name: {
    "train": _in("image", {"0000001.jpg": ("2", 0), "0000002.jpg": ("2", 0),
                           "0000003.jpg": ("5", 0), "0000004.jpg": ("5", 0)}),
    "test": _OF_VEHICLEID,  # divided at random
} for name in LAYOUTS if name.startswith("vehicleid")}
_OTHER_FILES = {  # what else lies in a download
    "market1501": ("readme.txt", "bounding_box_test/Thumbs.db", "gt_bbox/0001_c1s1_001051_00.jpg",
                   "gt_query/0001_c1s1_001051_00_good.mat"),
    "veri": ("name_train.txt", "name_query.txt", "name_test.txt", "gt_index.txt", "jk_index.txt", "train_label.xml"),
}
JUNK = "bounding_box_test/-1_c1s1_000401_03.jpg"  # of Market-1501


def write_set(root: Path, name: str, home: str = "") -> Path:
    """A miniature of a set below `root`, in its published folder or in `home`; returns that folder."""
    folder = root / (home or LAYOUTS[name].homes[0]) / LAYOUTS[name].inner
    for number, path in enumerate(path for split in IMAGES[name].values() for path in split):
        pid = path.rsplit("/", 1)[1].split("_")[0]
        write_image(folder / path, int(pid.removesuffix(".jpg")), number)
    if name == "market1501":
        write_image(folder / JUNK, 99, 0)
    for file in _OTHER_FILES.get(name, ()):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    if name == "msmt17":
        write_msmt17_lists(folder)
    if LAYOUTS[name].trials:
        for split, rule in ((split, LAYOUTS[name].splits[split]) for split in ("train", "query")):
            images = IMAGES[name]["train" if split == "train" else "test"]
            lines = [f"{path[6:-4]} {pid}\n" for path, (pid, _) in images.items()]
            (folder / "train_test_split").mkdir(exist_ok=True)
            (folder / rule.lists[0]).write_text("".join(lines))
    return folder


def write_msmt17_lists(folder: Path) -> None:
    """Its four lists; the last of the training images stands in list_val.txt."""
    for split, paths in IMAGES["msmt17"].items():
        lines = [f"{path.split('/', 1)[1]} {int(pid.removeprefix('test_'))}\n" for path, (pid, _) in paths.items()]
        if split == "train":
            (folder / "list_val.txt").write_text(lines.pop())
        (folder / f"list_{split}.txt").write_text("".join(lines))


def load_kind(kind: str, root: Path, parts: Sequence[str] = ("train", "test"), name: str = "", place: str = "",
              **places) -> ReIDData:
    """A set of a kind of DATASETS by itself, as the registry reads it; places: see `Places`."""
    return DATASETS[kind].load(Reference(kind, name or kind, place), Places(root, **places), parts)


def load_naic(root: Path, parts: Sequence[str] = ("train", "test"), **places) -> ReIDData:
    """NAIC as the registry reads it."""
    return load_kind("naic", root, parts, **places)


def write_image(path: Path, identity: int, number: int = 0, green: bool = True) -> None:
    """A 32 x 16 picture: one colour an identity and some noise, bright enough for the green domain or not."""
    colour = np.random.default_rng(identity).integers(100, 220, 3) if green else [20, 40, 200 - identity % 100]
    noise = np.random.default_rng([identity, number]).integers(-15, 15, (32, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.clip(colour + noise, 0, 255).astype(np.uint8))
