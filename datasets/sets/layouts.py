"""The public re-ID sets, as their authors and later tools laid them out on disk: one table.

    ROOT/Market-1501-v15.09.15/  bounding_box_train/ query/ bounding_box_test/    0002_c1s1_000451_03.jpg
    ROOT/DukeMTMC-reID/          bounding_box_train/ query/ bounding_box_test/    0001_c2_f0046182.jpg
    ROOT/cuhk03-np/detected/     bounding_box_train/ query/ bounding_box_test/    0001_c1_1.png
    ROOT/cuhk03/                 images_detected/ splits_new_detected.json        1_001_1_01.png
    ROOT/VeRi/                   image_train/ image_query/ image_test/            0002_c002_00030600_0.jpg
    ROOT/MSMT17_V1/              train/ test/  list_train.txt list_val.txt list_query.txt list_gallery.txt with lines
                                               0000/0000_000_01_0303morning_0008_0.jpg 0
    ROOT/MSMT17/                 bounding_box_train/ query/ bounding_box_test/    0000_c1_0002.jpg, or the names above
    ROOT/VehicleID_V1.0/         image/  train_test_split/train_list.txt test_list_800.txt … with lines
                                         0002211 5

`datasets.sets.homes` finds a set's folder, `datasets.sets.public` reads it. File names hold identity and camera;
cameras keep their published numbers, which all begin at 1; VehicleID does not say which camera took a picture.

**Evaluation.** Where cameras are known, the gallery images of the query's own identity and camera are left out of its
ranking. Market-1501 also has junk (-1), which is ignored, and distractors (0), which stay. VehicleID is measured in ten
random trials (see `datasets.sets.public`).
"""
from __future__ import annotations

import re
from typing import NamedTuple

from datasets.sets.numbering import JUNK


class Counts(NamedTuple):
    """How much there is of something; None: not published."""

    images: int | None
    identities: int
    cameras: int | None


class Split(NamedTuple):
    """How a split of a set lies on disk.

    Attributes:
        folders: its image folder, by the names that it has in different releases.
        published: what there must be, without junk.
        lists: files beside the folder that name its images, `PATH PID` a line, or torchreid's JSON of splits; empty:
            every image in the folder.
        prefix: put before its pids, where test identities are counted from 0 again.
    """

    folders: tuple[str, ...]
    published: Counts
    lists: tuple[str, ...] = ()
    prefix: str = ""


class Layout(NamedTuple):
    """How a set lies on disk.

    Attributes:
        homes: its folder, by its usual names, the published one first; capitals and punctuation do not matter.
        splits: of "train", "query" and "gallery".
        name: what its file names look like, with groups `pid` (unless lists have it) and `camid` (if it is known).
        source: who published it.
        example: a file name, and what it says, for errors.
        inner: the folder inside its folder, where that holds several sets.
        suffix: of the files, where lists leave it out.
        trials: random divisions of the test images that are measured; 0: query and gallery are fixed.
        raw: a file of the original download that is not read, and what to do instead, if there is such a file.
        others: other ways in which the same set lies on disk.
    """

    homes: tuple[str, ...]
    splits: dict[str, Split]
    name: re.Pattern
    source: str
    example: str
    inner: str = ""
    suffix: str = ""
    trials: int = 0
    raw: tuple[str, str] | None = None
    others: tuple[Layout, ...] = ()


def _market_like(train: Counts, query: Counts, gallery: Counts, prefix: str = "") -> dict[str, Split]:
    """Market-1501's folders, which others took over; prefix: of the test part's pids."""
    return {"train": Split(("bounding_box_train",), train), "query": Split(("query",), query, prefix=prefix),
            "gallery": Split(("bounding_box_test",), gallery, prefix=prefix)}


_CAMERA = r"(?P<camid>0*[1-9]\d{0,8})"  # from 1: 0 would mean that it is unknown; a number that an array holds
_HOMES = {
    "market1501": ("Market-1501-v15.09.15", "market1501", "Market-1501", "market"),
    "dukemtmc": ("DukeMTMC-reID", "dukemtmc", "duke"),
    "msmt17": ("MSMT17_V1", "MSMT17", "MSMT17_V2", "MSMT"),
    "cuhk03": ("cuhk03-np", "cuhk03"),
    "veri": ("VeRi", "VeRi-776", "VeRi_with_plate"),
    "vehicleid": ("VehicleID_V1.0", "vehicleid", "PKU-VehicleID"),
}


def _msmt17() -> Layout:
    counts = Counts(32621, 1041, 15), Counts(11659, 3060, 15), Counts(82161, 3060, 15)
    train, test = ("train", "mask_train_v2"), ("test", "mask_test_v2")
    source = "Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018"
    in_markets_folders = Layout(
        _HOMES["msmt17"], _market_like(*counts, prefix="test_"),
        re.compile(rf"(?P<pid>\d+)_(?:c|\d+_){_CAMERA}_.+"), source,
        "0000_c1_0002.jpg or 0000_000_01_0303morning_0008_0.jpg (identity 0, camera 1)")
    return Layout(
        _HOMES["msmt17"],
        # The paper's training set is both lists; some papers train on list_train.txt alone (30,248 images).
        {"train": Split(train, counts[0], ("list_train.txt", "list_val.txt")),
         "query": Split(test, counts[1], ("list_query.txt",), "test_"),
         "gallery": Split(test, counts[2], ("list_gallery.txt",), "test_")},
        re.compile(rf"\d+_\d+_{_CAMERA}_.+"), source, "0000_000_01_0303morning_0008_0.jpg (camera 1)",
        others=(in_markets_folders,))


def _cuhk03(boxes: str, *counts: Counts) -> Layout:
    """Either kind of bounding boxes, in the new protocol."""
    source = ("Li et al., DeepReID, CVPR 2014, in the new protocol of Zhong et al., Re-ranking Person "
              "Re-identification with k-reciprocal Encoding, CVPR 2017")
    folder, lists = (f"images_{boxes}",), (f"splits_new_{boxes}.json",)
    by_torchreid = Layout(
        _HOMES["cuhk03"], {split: Split(folder, count, lists)
                           for split, count in zip(("train", "query", "gallery"), counts, strict=True)},
        re.compile(r"(?P<pid>\d_\d{3})_(?P<camid>[12])_\d\d\.png"), source,
        "1_001_2_07.png (camera pair 1, person 001, camera 2)")
    return Layout(
        _HOMES["cuhk03"], _market_like(*counts), re.compile(rf"(?P<pid>\d+)_c{_CAMERA}_\d+\..+"), source,
        "0001_c1_1.png (identity 1, camera 1)", inner=boxes,
        raw=("cuhk03_release/cuhk-03.mat",
             f"MATLAB files are not read; take CUHK03-NP (cuhk03-np/{boxes}/), or what torchreid makes of this file "
             f"(images_{boxes}/ and splits_new_{boxes}.json in one folder)"),
        others=(by_torchreid,))


def _vehicleid(size: int, images: int | None = None) -> Layout:
    """With the test list of `size` vehicles, which names so many images."""
    test = (f"train_test_split/test_list_{size}.txt",)
    return Layout(
        _HOMES["vehicleid"],
        {"train": Split(("image",), Counts(113346, 13164, None), ("train_test_split/train_list.txt",)),
         "query": Split(("image",), Counts(images and images - size, size, None), test),
         "gallery": Split(("image",), Counts(size, size, None), test)},
        re.compile(r"\d+\.jpg"), "Liu et al., Deep Relative Distance Learning: Tell the Difference Between Similar "
        "Vehicles, CVPR 2016", "0002211 5 (image/0002211.jpg is vehicle 5)", suffix=".jpg", trials=10)


LAYOUTS: dict[str, Layout] = {
    "market1501": Layout(
        _HOMES["market1501"], _market_like(Counts(12936, 751, 6), Counts(3368, 750, 6), Counts(15913, 751, 6)),
        # What people call their own pictures in its folders is read, too, where it begins with PID_cCAMERA.
        re.compile(rf"(?P<pid>{JUNK}|\d+)[_-]c(?:am)?{_CAMERA}(?:s\d+)?[\W_].*", re.IGNORECASE),
        "Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015",
        "0002_c1s1_000451_03.jpg or 0002_c1_0001.jpg (identity 2, camera 1; cameras count from 1)"),
    "dukemtmc": Layout(
        _HOMES["dukemtmc"], _market_like(Counts(16522, 702, 8), Counts(2228, 702, 8), Counts(17661, 1110, 8)),
        re.compile(rf"(?P<pid>\d+)_c{_CAMERA}_f\d+\..+"),
        "Zheng et al., Unlabeled Samples Generated by GAN Improve the Person Re-identification Baseline in vitro, "
        "ICCV 2017", "0001_c2_f0046182.jpg (identity 1, camera 2)"),
    "msmt17": _msmt17(),
    "cuhk03": _cuhk03("detected", Counts(7365, 767, 2), Counts(1400, 700, 2), Counts(5332, 700, 2)),
    "cuhk03_labeled": _cuhk03("labeled", Counts(7368, 767, 2), Counts(1400, 700, 2), Counts(5328, 700, 2)),
    "veri": Layout(
        _HOMES["veri"],
        {"train": Split(("image_train",), Counts(37778, 576, 20)),
         "query": Split(("image_query",), Counts(1678, 200, None)),
         "gallery": Split(("image_test",), Counts(11579, 200, None))},
        re.compile(rf"(?P<pid>\d+)_c{_CAMERA}_\d+_\d+\..+"),
        "Liu et al., Large-scale Vehicle Re-identification in Urban Surveillance Videos, ICME 2016",
        "0002_c002_00030600_0.jpg (identity 2, camera 2)"),
    "vehicleid": _vehicleid(800, 6493),
    "vehicleid_1600": _vehicleid(1600, 13377),
    "vehicleid_2400": _vehicleid(2400, 19777),
    "vehicleid_3200": _vehicleid(3200),
    "vehicleid_6000": _vehicleid(6000),
    "vehicleid_13164": _vehicleid(13164),
}
