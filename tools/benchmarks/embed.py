"""The benchmark of embedding: the pictures, the model files, which rows, and the report of them."""
from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import dump_cfg, load_cfg
from datasets.files.images import decode
from datasets.naic import FOLDER
from model.backbones import check_name
from model.make_model import make_model
from processor.export.networks import OnePassNet
from processor.export.onnx_file import quantise, write_onnx
from processor.export.openvino_file import write_openvino
from processor.export.packages import load_package
from processor.trained_model import open_trained
from tools.benchmarks.data import SET, Pictures
from tools.benchmarks.embed_measure import ROWS, Setting
from tools.benchmarks.harness import Entry, check_names, choose_device, measure_in_turns, new_report, parse_size
from utils.checkpoint import save_checkpoint
from utils.seed import seed_everything

BASELINE = "textbook"
MODELS = {"plain.pth": False, "flip.pth": True}  # file -> TEST.FLIP_FEATS
CALIBRATED = 64  # pictures whose ranges an int8 file takes


@dataclass(frozen=True)
class EmbedOptions:
    """What to measure; the fields are the command line's options."""

    rows: Sequence[str] = tuple(ROWS)
    model: str = "resnet50_ibn_a"
    size: tuple[int, int] = (256, 128)
    folder: str = ""         # whose pictures are used; "" = rendered ones
    images: int = 256
    batch: int = 64          # the larger one; the other is 1
    device: str = "cpu"
    seconds: float = 10.0    # of a figure
    repeats: int = 3


def make_options(device: str, size: str, rows: Sequence[str] | None, folder: Path | None, model: str,
                 **others: Any) -> EmbedOptions:
    """The options of a command line; None means the default.

    Raises:
        ValueError: the size is not HEIGHTxWIDTH, a row or the model is unknown, or device is "cuda" and there is none.
    """
    check_names("row", rows or (), ROWS)
    check_name(model)
    return EmbedOptions(rows=tuple(rows or ROWS), model=model, size=parse_size(size), device=choose_device(device),
                        folder=str(folder.resolve()) if folder else "", **others)


def run_benchmark(options: EmbedOptions) -> dict[str, Any]:
    """Measure the rows in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "pictures" and "rows" (one dict each; its "note"
        says why if there are no figures).
    Raises:
        ValueError: a number is out of range, or the pictures cannot be used.
    """
    if min(options.repeats, options.batch) < 1 or options.seconds <= 0:
        raise ValueError("at least one repeat, a batch of one and more than 0 seconds are needed")
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as name:
        folder = Path(name)
        pictures = Pictures(options, folder)
        for file, flip in MODELS.items():
            write_model(folder / "models" / file, options, flip)
        setting = Setting(str(folder / "models"), str(Path(pictures.root("png")) / FOLDER / SET), options.batch,
                          options.device, options.seconds)
        entries = [Entry(row, ROWS[row].title, setting, why_not(row, options.device)) for row in options.rows]
        write_exports({ROWS[entry.name].file for entry in entries if not entry.note}, setting)
        measure_in_turns("tools.benchmarks.embed_measure", entries, options.repeats, folder, options.model,
                         lambda run: f"{run[f'files_{options.batch}']:.1f} images/s from files", tuned_malloc=False)
        rows = {entry.name: _row(entry) for entry in entries}
    for row in rows.values():
        theirs = rows.get(BASELINE, {}).get("rates", {})
        row["times_textbook"] = {what: rate / theirs[what] for what, rate in row["rates"].items() if what in theirs}
    return {**new_report(options), "pictures": pictures.description, "rows": list(rows.values())}


def write_model(file: Path, options: EmbedOptions, flip: bool) -> None:
    """A checkpoint with random weights, always the same."""
    cfg = load_cfg(None, ["MODEL.NAME", options.model, "MODEL.PRETRAIN_CHOICE", "none", "INPUT.SIZE_TEST",
                          list(options.size), "TEST.FLIP_FEATS", flip])
    seed_everything(0)
    save_checkpoint(file, {"model": make_model(cfg, 1).state_dict(), "config": dump_cfg(cfg)})


def write_exports(files: Collection[str], setting: Setting) -> None:
    """Those of the files model.onnx, model.xml and model_int8.xml that are asked for, made of plain.pth."""
    folder = Path(setting.models)
    trained = open_trained(folder / "plain.pth")
    exported, int8 = folder / "model.onnx", folder / "model_int8.onnx"
    if set(files) - set(MODELS):
        write_onnx(trained.network(OnePassNet), trained.info, exported)
    if "model.xml" in files:
        write_openvino(exported, trained.info, folder / "model.xml")
    if "model_int8.xml" in files:
        paths = sorted(Path(setting.pictures).iterdir())[:CALIBRATED]
        images = np.stack([decode(path.read_bytes(), trained.info.size) for path in paths])
        quantise(exported, trained.info, torch.from_numpy(images), int8)
        write_openvino(int8, trained.info, folder / "model_int8.xml")


def why_not(row: str, device: str) -> str:
    """Why a row cannot be measured; empty if it can."""
    if "openvino" in ROWS[row].packages and device == "cuda":
        return "computes on the CPU"
    try:
        for package in ROWS[row].packages:
            load_package(package)
    except ValueError as error:
        return str(error)
    return ""


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the table: medians, and the percentiles of all runs' frames."""
    row = entry.row(row=entry.name, rates={})
    if not entry.note:
        row["rates"] = {what: entry.median(what) for what in entry.runs[0] if what != "frame_seconds"}
        frames = np.concatenate([run["frame_seconds"] for run in entry.runs])
        row |= {f"frame_p{percent}": float(np.percentile(frames, percent)) for percent in (50, 95)}
    return row
