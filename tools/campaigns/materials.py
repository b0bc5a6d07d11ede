"""What the tools read, in miniature: a demo set, a checkpoint, tested runs, a gallery …, made when asked for."""
from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from datasets.demo.plan import TEST_FOLDER, Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.sets.domains import split_domains
from tools.campaigns.tool_server import run_tool

SIZES = Sizes(ids=4, images=4, singles=1, shared=1, query_ids=8, query_images=2, gallery_images=3, distractors=8,
              distractor_images=2, cameras=3, height=32, width=16)
CONFIG = """\
MODEL: {NAME: resnet18_ibn_b_w32, PRETRAIN_CHOICE: none, DEVICE: cpu, METRIC_LOSS_TYPE: triplet}
INPUT: {SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16], PADDING: 2}
DATASETS: {NAMES: naic}
DATALOADER: {SAMPLER: softmax_triplet, NUM_INSTANCE: 2, NUM_WORKERS: 0}
SOLVER: {MAX_EPOCHS: 1, WARMUP_EPOCHS: 0, STEPS: [], IMS_PER_BATCH: 8, CHECKPOINT_PERIOD: 1, EVAL_PERIOD: 0}
TEST: {RE_RANKING: true, RE_RANKING_PARAMETER: [4, 2, 0.5], FLIP_FEATS: on, TOP_K: 5, IMS_PER_BATCH: 16}
UDA: {METHOD: dbscan, THRESHOLD: 0.5}
"""


class Materials:
    """Files and folders by name, below `folder`; `path` makes one, and what it is made of, at the first call."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @functools.cache  # noqa: B019  a campaign has one
    def path(self, name: str) -> Path:
        """Where a material lies.

        Raises:
            RuntimeError: the tool that makes it failed.
        """
        place = self.folder / name
        MAKERS[name](self, place)
        return place

    def copy(self, name: str, place: Path) -> None:
        """Copy a material; times of change are kept, by which a tool may know what it has read already."""
        source = self.path(name)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, place)

    def run(self, tool: str, *words: object) -> None:
        """Run a tool that has to succeed."""
        done = run_tool(tool, *words, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{tool} {' '.join(map(str, words))}: {done.returncode}: {done.stderr[-2000:]}")


def _set_words(materials: Materials) -> list[object]:
    """The words that train and test on the demo set."""
    return ["--config_file", materials.path("config.yml"), "DATASETS.ROOT_DIR", materials.path("data"),
            "DATASETS.DERIVED_DIR", materials.folder / "derived"]


def _make_data(_: Materials, place: Path) -> None:
    """The demo set; the domain lists lie in its test folder, as one may have got it."""
    test = make_demo_data(place, seed=3, sizes=SIZES, workers=1, progress=False) / TEST_FOLDER
    split_domains(test / "query", test / "gallery", test, workers=1, progress=False)


def _make_people(materials: Materials, place: Path) -> None:
    """A tree of people with splits, and a CSV of the same pictures."""
    folder = materials.path("data") / "MyDataSet" / "train_2020_fs"
    lines = (folder / "train_list.txt").read_text(encoding="utf-8").split()
    rows, number = ["path,pid,camid,split"], dict.fromkeys(line.rpartition(":")[2] for line in lines)
    for line in lines:
        name, _, pid = line.rpartition(":")
        count = number[pid] = (number[pid] or 0) + 1
        split = "train" if list(number).index(pid) % 2 else ("query" if count == 1 else "gallery")
        target = place / split / f"p{pid}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "images" / name, target)
        rows.append(f"{target.relative_to(place).as_posix()},p{pid},,{split}")
    (place / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _make_pictures(materials: Materials, place: Path) -> None:
    """A folder of pictures with a list of them, and the boxes of a track over them."""
    shutil.copytree(materials.path("data") / "MyDataSet" / TEST_FOLDER / "query", place)
    names = sorted(path.name for path in place.iterdir())
    (place / "list.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _make_run(materials: Materials, place: Path, *opts: object) -> None:
    materials.run("test", *_set_words(materials), "TEST.WEIGHT", materials.path("weight.pth"), "OUTPUT_DIR", place,
                  *opts)


def _make_weight(materials: Materials, place: Path) -> None:
    output = materials.folder / "training"
    materials.run("train", *_set_words(materials), "OUTPUT_DIR", output)
    shutil.copyfile(output / "latest.pth", place)


def _make_backbone(_: Materials, place: Path) -> None:
    import torch

    from model.backbones import build_backbone

    torch.manual_seed(0)
    torch.save(build_backbone("resnet18_ibn_b_w32").state_dict(), place)


def _make_gallery(materials: Materials, place: Path) -> None:
    model = materials.path("model")
    materials.run("gallery", "create", "--gallery", place, "--model", model)
    materials.run("gallery", "add", "--gallery", place, "--model", model, materials.path("pictures"))


def _make_frames(materials: Materials, place: Path) -> None:
    place.mkdir()
    pictures = sorted(materials.path("pictures").glob("*.png"))
    for number in (1, 2):
        shutil.copy2(pictures[number], place / f"{number:06d}.png")


def _make_picture(materials: Materials, place: Path) -> None:
    shutil.copy2(min(materials.path("pictures").glob("*.png")), place)


def _make_submission(materials: Materials, place: Path) -> None:
    shutil.copyfile(materials.path("run") / "submission.json", place)


def make_locales(place: Path) -> None:
    """A folder for LOCPATH with zh_CN.GB18030.

    Raises:
        OSError: localedef, or its sources, are not here.
    """
    place.mkdir()
    done = subprocess.run(["localedef", "-f", "GB18030", "-i", "zh_CN", place / "zh_CN.GB18030"], capture_output=True,
                          text=True)
    if done.returncode:
        raise OSError(f"zh_CN.GB18030 cannot be made here: {done.stderr.strip()}")


MAKERS: dict[str, Callable[[Materials, Path], None]] = {
    "config.yml": lambda materials, place: place.write_text(CONFIG, encoding="utf-8") and None,
    "data": _make_data,
    "people": _make_people,
    "pictures": _make_pictures,
    "backbone.pth": _make_backbone,
    "weight.pth": _make_weight,
    "model": lambda materials, place: materials.run("export", "--weight", materials.path("weight.pth"),
                                                    "--output", place),
    "run": _make_run,
    "run2": lambda materials, place: _make_run(materials, place, "TEST.FLIP_FEATS", "off"),
    "gallery": _make_gallery,
    "pack": lambda materials, place: materials.run("pack", *_set_words(materials), "--output", place),
    "rows": lambda materials, place: materials.run("embed", "--model", materials.path("model"), "--images",
                                                   materials.path("pictures"), "--output", place),
    "boxes.txt": lambda materials, place: place.write_text(
        "".join(f"{frame},{person},2,2,10,24,1\n" for frame in (1, 2) for person in (1, 2)), encoding="utf-8") and None,
    "frames": _make_frames,
    "validation.json": lambda materials, place: materials.run(
        "split_validation", *_set_words(materials), "--output", place, "--identities", 2, "--distractors", 0,
        "--no-compare"),
    "picture.png": _make_picture,
    "locales": lambda _, place: make_locales(place),
    "submission.json": _make_submission,
}
