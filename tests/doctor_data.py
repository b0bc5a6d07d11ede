"""A small sound data set in NAIC's layout, for tests that plant faults in it."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from datasets.naic import TRAIN_SETS
from datasets.sets.domains import split_domains

HEIGHT, WIDTH = 64, 32
SETS = tuple(TRAIN_SETS)


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth random picture, uint8 [h, w, 3]; another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def png(image: np.ndarray, level: int = 3) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()


def make_naic(root: Path) -> Path:
    """MyDataSet/ with three identities of three images in each training set, and a test of two people, all different.

    An image is named PID_NUMBER.png. Nothing about it is worth a remark.
    """
    data, seed = root / "MyDataSet", 0
    for name, train_set in TRAIN_SETS.items():
        images_of(data, name).mkdir(parents=True)
        (data / train_set.folder / "train_list.txt").touch()
        for pid in (3, 7, 12):
            for number in range(3):
                add_image(data, name, f"{pid}_{number}.png", pid, png(picture(seed := seed + 1)))
    test, truth = data / "image_B_v1_1", {}
    for part, images in (("query", 1), ("gallery", 2)):
        (test / part).mkdir(parents=True)
        for pid in (1, 2):
            for number in range(images):
                truth[f"{part}/{pid}_{number}.png"] = {"pid": f"person{pid}", "camid": number}
                (test / part / f"{pid}_{number}.png").write_bytes(png(picture(seed := seed + 1)))
    (test / "ground_truth.json").write_text(json.dumps({"files": truth}))
    split_domains(test / "query", test / "gallery", test, workers=1, progress=False)
    return data


def images_of(data: Path, name: str) -> Path:
    """The image folder of a training set."""
    return data / TRAIN_SETS[name].folder / TRAIN_SETS[name].images


def list_of(data: Path, name: str) -> Path:
    return data / TRAIN_SETS[name].folder / "train_list.txt"


def add_image(data: Path, name: str, file: str, pid: int | str, content: bytes) -> None:
    """One more image of a training set, and its line."""
    (images_of(data, name) / file).write_bytes(content)
    add_line(data, name, f"train/{file} {pid}" if name.startswith("2019") else f"{file}:{pid}")


def add_line(data: Path, name: str, line: str) -> None:
    with open(list_of(data, name), "a", encoding="utf-8") as out:
        out.write(f"{line}\n")


def copy_image(data: Path, source: tuple[str, str], name: str, file: str, pid: int | str) -> None:
    """The image `source` (set, file), byte for byte, as another image of a set."""
    add_image(data, name, file, pid, (images_of(data, source[0]) / source[1]).read_bytes())
