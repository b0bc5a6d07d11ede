"""The benchmark of training: which arms in which settings, and the report of them."""
from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from model.backbones import build_backbone, check_name
from model.zoo import multiply_adds
from tools.benchmarks.harness import Entry, check_names, choose_device, measure_in_turns, new_report, parse_size
from tools.benchmarks.training_measure import ARMS, PHASES, Setting, arm_cfg, draw_pictures
from utils.precision import cpu_has_bfloat16

logger = logging.getLogger(__name__)

MODELS = ("resnet50_ibn_a", "resnet101_ibn_b")
SIZES = ((256, 128), (384, 192), (480, 240))
IDENTITIES = (500, 52_000)  # the second is the size of the original's classifier
HALF = {"cpu": "bfloat16", "cuda": "float16"}  # what SOLVER.FP16 stands for
BASELINES = ("textbook_float32", "textbook_fp16")


@dataclass(frozen=True)
class TrainingOptions:
    """What to measure; the fields are the command line's options."""

    models: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    identities: Sequence[int]
    batch: int
    warmup: int
    steps: int
    device: str
    arms: Sequence[str]
    repeats: int = 3
    square: int = 4096
    beside: Sequence[tuple[str, tuple[int, int], int]] = ()  # other models at one size, with a batch of their own

    def settings(self, data: str = "-") -> list[Setting]:
        """Every model at every size with every number of identities, on the pictures in the folder `data`, and those
        beside with the first number.
        """
        chosen = [(*words, self.batch) for words in product(self.models, self.sizes, self.identities)]
        chosen += [(model, size, self.identities[0], batch) for model, size, batch in self.beside]
        return [Setting(data, model, size, identities, batch, self.device, self.warmup, self.steps, self.square)
                for model, size, identities, batch in chosen]


SMALL = {"models": MODELS[:1], "sizes": ((128, 64),), "identities": IDENTITIES[:1]}
DEFAULTS: dict[str, dict[str, Any]] = {
    # Ranger's full step begins with the sixth, and every sixth also looks ahead.
    "cpu": {**SMALL, "batch": 32, "warmup": 5, "steps": 12, "square": 4096,
            "beside": (("vit_small", (256, 128), 8),)},
    # The warm-up uses up what the loader's workers had ready by its beginning, so that waiting for data shows.
    "cuda": {"models": MODELS, "sizes": SIZES, "identities": IDENTITIES, "batch": 128, "warmup": 30, "steps": 100,
             "square": 8192, "beside": (("vit_small", (256, 128), 128),)},
}
LARGE = {"models": MODELS, "sizes": ((128, 64), (256, 128)), "identities": IDENTITIES}  # on the CPU: hours


def make_options(device: str, large: bool, sizes: Sequence[str] | None, arms: Sequence[str] | None,
                 **others: Any) -> TrainingOptions:
    """The options of a command line; None means the device's default, in which a transformer is beside the others.

    Raises:
        ValueError: device is "cuda" and there is none, a size is not HEIGHTxWIDTH, or an arm is unknown.
    """
    device = choose_device(device)
    check_names("arm", arms or (), ARMS)
    chosen = {**DEFAULTS[device], **(LARGE if large and device == "cpu" else {})}
    chosen |= {name: value for name, value in others.items() if value is not None}
    if sizes:
        chosen["sizes"] = tuple(map(parse_size, sizes))
    if sizes or others.get("models"):  # whoever chooses wants no others
        chosen["beside"] = ()
    usual = [arm for arm in ARMS if not _why_not(arm, device)]
    return TrainingOptions(device=device, arms=tuple(arms or usual), **chosen)


def _why_not(arm: str, device: str) -> str:
    """Why an arm cannot be measured on the device; empty if it can."""
    if device == "cuda" or not ARMS[arm].fp16:
        return ""
    if arm in BASELINES:
        return "float16 needs CUDA"
    return "" if cpu_has_bfloat16() else "this processor has no bfloat16 products"


def run_benchmark(options: TrainingOptions) -> dict[str, Any]:
    """Measure the arms in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options) and "rows" (one dict for each setting and arm; its
        "note" says why if there are no figures).
    Raises:
        ValueError: the model is unknown or a number is out of range.
    """
    if min(options.steps, options.repeats, options.square) < 1 or options.warmup < 0:
        raise ValueError("at least one step, one repeat and a square of one are needed, and a warm-up of 0 or more")
    for setting in options.settings():
        _check(setting)
    report = new_report(options)
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        data, compiled = Path(folder) / "data", Path(folder) / "compiled"
        logger.info("rendering pictures …")
        draw_pictures(data)
        with _compiled_code_in(compiled):
            for setting in options.settings(str(data)):
                report["rows"] += _measure_setting(options, setting, Path(folder))
    return report


@contextlib.contextmanager
def _compiled_code_in(folder: Path) -> Iterator[None]:
    """Within: child processes leave torch.compile's code there, and load what an earlier one left.

    So the first to compile takes as long as it does with an empty cache, and the code vanishes with the folder.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    usual = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]
        if usual is not None:
            os.environ[name] = usual


def _check(setting: Setting) -> None:
    """Raise ValueError if the model is unknown or a batch cannot be filled."""
    check_name(setting.model)
    cfg = arm_cfg("ours_float32", setting)
    least = setting.batch // cfg.DATALOADER.NUM_INSTANCE
    if setting.identities < least:
        raise ValueError(f"{setting.identities} identities are too few: a batch of {setting.batch} has {least} of them")


def _measure_setting(options: TrainingOptions, setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """All arms in a setting, with the environment of run.sh's stages."""
    entries = [Entry(arm, ARMS[arm].title.format(half=HALF[options.device]), setting, _why_not(arm, options.device))
               for arm in options.arms]
    title = f"{setting.model} {setting.size[0]}x{setting.size[1]}, {setting.identities:,} identities"
    measure_in_turns("tools.benchmarks.training_measure", entries, options.repeats, folder, title,
                     lambda run: f"{run['images_per_second']:.1f} images/s", tuned_malloc=True)
    rows = {entry.name: _row(entry) for entry in entries}
    _compare(rows)
    return list(rows.values())


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the table; medians if there are figures, and of the shares means, whose sum is 1."""
    setting, runs = entry.setting, entry.runs
    row = entry.row(model=setting.model, size=list(setting.size), identities=setting.identities, arm=entry.name)
    if entry.note:
        return row
    row |= {key: entry.median(key) for key in ("images_per_second", "peak")}
    row["shares"] = {phase: statistics.mean(run["shares"][phase] for run in runs) for phase in PHASES}
    row["first_step_seconds"] = runs[0]["first_step_seconds"]  # later runs load the code that the first one compiled
    row |= {key: runs[0][key] for key in ("first_loss", "type", "workers")}
    row["flops"] = row["images_per_second"] * flop_per_image(setting.model, setting.size, setting.identities)
    return row


def flop_per_image(model: str, size: tuple[int, int], identities: int) -> float:
    """FLOP of a training step for each image: three times those of the forward pass, 2 a multiply-add.

    A backward pass computes two products for each of the forward's, by the inputs and by the weights. Counted are
    convolutions, linear layers and the classifier, as the model's definition has them.
    """
    with torch.device("meta"):
        net = build_backbone(model, last_stride=1).eval()
    return 3 * 2 * (multiply_adds(net, size) + net.feat_dim * identities)


def _compare(rows: dict[str, dict[str, Any]]) -> None:
    """Enter how many times as fast each row is as each of the baselines that were measured with it."""
    for row in rows.values():
        if not row["note"]:
            row["times"] = {name: row["images_per_second"] / rows[name]["images_per_second"]
                            for name in BASELINES if name in rows and not rows[name]["note"]}
