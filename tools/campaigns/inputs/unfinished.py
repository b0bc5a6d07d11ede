"""Work that a later command goes on from: what it left is made here, and read as that command reads it."""
from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

from configs import load_cfg
from datasets.demo.synthetic import FOLDER, MANIFEST, make_demo_data
from datasets.files.images import FolderSource, list_images
from datasets.files.pack_writer import pack
from datasets.make_dataloader import make_sets
from processor.embedding.gallery_files import decode_picture
from processor.gallery import open_gallery, reembed
from processor.gallery.reembed import Pictures, re_embed
from processor.gallery.service.answers import make_thumbnail
from processor.pseudo_label import pseudo_label, unlabelled_images
from processor.trained_model import open_trained
from processor.training.build import build, checkpoint_folder
from processor.training.state import restore
from processor.uda import label_round
from tools.campaigns.inputs.kind import Kind, together
from tools.campaigns.inputs.specimens import SIZES, options
from utils.checkpoint import CHECKSUM, read_checkpoint

_SHARD = 6000  # bytes: a few pictures
_SEED = 3  # of the demo set
_SIDE = 4  # pixels of a picture that make its row


class _Interrupted(Exception):
    """The work was broken off."""


# ------------------------------------------------------------------ packs
class _Ending(FolderSource):
    """A folder that cannot be read any more after so many pictures."""

    left = 9

    def read(self, key: str) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise _Interrupted
        return super().read(key)


def _make_pack(base: Path) -> None:
    pictures = base / "pictures"
    with contextlib.suppress(_Interrupted):
        pack(_Ending(pictures), list_images(pictures), base / "packing", threads=1, shard_bytes=_SHARD)


def _read_pack(copy: Path, file: Path, base: Path) -> list[bytes]:
    pictures = base / "pictures"
    packed = pack(FolderSource(pictures), list_images(pictures), copy, threads=1, shard_bytes=_SHARD)
    return [packed.read(key) for key in packed.all_keys()]


# ------------------------------------------------------------------ the demo set
def _make_demo(base: Path) -> None:
    (base / "demo" / FOLDER).mkdir(parents=True)
    shutil.copy(base / "data" / FOLDER / MANIFEST, base / "demo" / FOLDER)


def _read_demo(copy: Path, file: Path, base: Path) -> Any:
    return make_demo_data(copy, seed=_SEED, sizes=SIZES, workers=1, progress=False).name


# ------------------------------------------------------------------ rounds of pseudo labels
def _labeller(base: Path) -> Any:
    return load_cfg(None, [*options(base), "TEST.WEIGHT", str(base / "training" / "latest.pth"), "UDA.METHOD",
                           "agglomerative", "UDA.THRESHOLD", "0.7", "UDA.RE_RANKING_PARAMETER", "[6, 2, 0]"])


def _make_rounds(base: Path) -> None:
    cfg, first = _labeller(base), base / "rounds" / "round_1"
    pseudo_label(cfg, unlabelled_images(cfg), first / "unlabel", first / "features")


def _read_rounds(copy: Path, file: Path, base: Path) -> list[Any]:
    cfg, first = _labeller(base), copy / "round_1"
    unlabelled = unlabelled_images(cfg)

    def train_on() -> str:
        words = ["DATASETS.USE_UNLABEL", "True", "DATASETS.UNLABEL_DIR", str(first / "unlabel")]
        return repr(make_sets(load_cfg(None, [*options(base), *words])).load()[0].train)

    return together(
        lambda: json.dumps(label_round(cfg, unlabelled, first, None), allow_nan=False).encode(), train_on,
        lambda: pseudo_label(cfg, unlabelled, copy / "round_2" / "unlabel", first / "features",
                             before=first / "unlabel"))


# ------------------------------------------------------------------ a gallery's pictures through another model
def _embed(pictures: list[np.ndarray]) -> np.ndarray:
    """[N, 3 * _SIDE**2] of length 1: the pictures, tiny."""
    rows = np.array([cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
                     for picture in pictures], np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _pictures(base: Path) -> Pictures:
    return Pictures([base / "pictures"], lambda data: decode_picture(data, 1 << 24), make_thumbnail, _embed)


def _make_part(base: Path) -> None:
    """A gallery, and another that is half made of it."""
    folder, names = base / "reembed", sorted(path.name for path in (base / "pictures").iterdir())
    folder.mkdir()
    pictures, batches = _pictures(base), iter(range(2))

    def embed_some(some: list[np.ndarray]) -> np.ndarray:
        if next(batches, None) is None:
            raise _Interrupted
        return _embed(some)

    with open_gallery(folder / "people", 8, model="old") as source, patch.object(reembed, "BATCH", 4):
        source.add(range(len(names)), np.eye(8, dtype=np.float32)[np.arange(len(names)) % 8],
                   {"camera": [1] * len(names), "name": names, "set": ["s"] * len(names)})
        source.ledger.name(source.ledger.new_identity(), "ann")
        source.ledger.put_thumbnails([0, 1], [
            make_thumbnail(pictures.read(name, None)[0]) for name in names[:2]])
        with contextlib.suppress(_Interrupted):
            re_embed(source, folder / "new", replace(pictures, embed=embed_some), 3 * _SIDE**2, "new")


def _read_part(copy: Path, file: Path, base: Path) -> Any:
    """A part that was begun is of the gallery among the specimens, which each reading leaves as it is."""
    is_part = "new.part" in file.parts
    with open_gallery((base / "reembed" if is_part else copy) / "people") as source:
        report = re_embed(source, copy / ("new" if is_part else "other"), _pictures(base), 3 * _SIDE**2, "new",
                          leave_out=True)
    return report.pictures, report.thumbnails, sorted(report.left)


# ------------------------------------------------------------------ checkpoints of before they had a checksum
def _make_older(base: Path) -> None:
    state = read_checkpoint(base / "training" / "latest.pth")
    (base / "older").mkdir()
    torch.save({key: value for key, value in state.items() if key != CHECKSUM}, base / "older" / "latest.pth")


def _read_older(copy: Path, file: Path, base: Path) -> list[Any]:
    cfg = load_cfg(None, [*options(base), "OUTPUT_DIR", str(copy)])
    tuned = load_cfg(None, [*options(base), "OUTPUT_DIR", str(copy / "tuned"), "MODEL.PRETRAIN_CHOICE", "finetune",
                            "MODEL.PRETRAIN_PATH", str(copy / "latest.pth")])

    def go_on() -> Any:
        found = checkpoint_folder(cfg).find("auto")
        run = build(cfg, pretrained=False)
        return restore(run, *found), run.model.state_dict(), run.scheduler.get_last_lr()

    return together(go_on, lambda: build(tuned).model.state_dict(),
                    lambda: open_trained(copy / "latest.pth", heads=True).model.state_dict())


KINDS: tuple[Kind, ...] = (
    Kind("packs that are being packed: plan, tables, shards", "packing", ("*.json", "*.npy", "*.shard"), _read_pack,
         ("*",), turns=3),
    Kind("the demo set's manifest", "demo", (f"{FOLDER}/{MANIFEST}",), _read_demo, turns=2),
    Kind("rounds of pseudo labels: reports, lists, features", "rounds",
         ("*/unlabel/report.json", "*/unlabel/label.txt", "*/features/*"), _read_rounds, quick=False, turns=2),
    Kind("galleries that are re-embedded, and half of the new one", "reembed",
         ("*.part/of.json", "*.part/of.json", "*.part/gallery/*", "people/*"), _read_part, turns=2),
    Kind("checkpoints of before they had a checksum", "older", ("latest.pth",), _read_older, quick=False, turns=2),
)


def make_unfinished(base: Path, quick: bool) -> None:
    """Make the specimens below `base`, beside those of `make_specimens`; quick: without those that take a model."""
    for make in (_make_pack, _make_demo, _make_part, *(() if quick else (_make_rounds, _make_older))):
        make(base)
