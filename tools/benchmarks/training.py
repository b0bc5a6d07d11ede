"""The benchmark of training: which settings and arms, one child process a measurement, and the report of them."""
from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from model.backbones import build_backbone, check_name
from model.zoo import multiply_adds
from tools.benchmarks.child import run_child
from tools.benchmarks.machine import describe
from tools.benchmarks.training_measure import ARMS, PHASES, Job, Setting, arm_cfg, draw_pictures
from utils.precision import cpu_has_bfloat16

logger = logging.getLogger(__name__)

MODELS = ("resnet50_ibn_a", "resnet101_ibn_b")
SIZES = ((256, 128), (384, 192), (480, 240))
IDENTITIES = (500, 52_000)  # the second is the size of the original's classifier
HALF = {"cpu": "bfloat16", "cuda": "float16"}  # what SOLVER.FP16 stands for
BASELINES = ("textbook_float32", "textbook_fp16")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

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

    def settings(self) -> list[Setting]:
        return [Setting(model, size, identities, self.batch, self.device, self.warmup, self.steps, self.square)
                for model, size, identities in product(self.models, self.sizes, self.identities)]


SMALL = {"models": MODELS[:1], "sizes": ((128, 64),), "identities": IDENTITIES[:1]}
DEFAULTS: dict[str, dict[str, Any]] = {
    # Ranger's full step begins with the sixth, and every sixth also looks ahead.
    "cpu": {**SMALL, "batch": 32, "warmup": 5, "steps": 12, "square": 4096},
    # The warm-up uses up what the loader's workers had ready by its beginning, so that waiting for data shows.
    "cuda": {"models": MODELS, "sizes": SIZES, "identities": IDENTITIES, "batch": 128, "warmup": 30, "steps": 100,
             "square": 8192},
}
LARGE = {"models": MODELS, "sizes": ((128, 64), (256, 128)), "identities": IDENTITIES}  # on the CPU: hours


def make_plan(device: str, large: bool, sizes: Sequence[str] | None, arms: Sequence[str] | None,
              **others: Any) -> Plan:
    """The plan for a command line; None means the device's default.

    Raises:
        ValueError: device is "cuda" and there is none, a size is not HEIGHTxWIDTH, or an arm is unknown.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds none on this machine; use cpu")
    unknown = [arm for arm in arms or () if arm not in ARMS]
    if unknown:
        raise ValueError(f"unknown arm {unknown[0]!r}; choose from {', '.join(ARMS)}")
    chosen = {**DEFAULTS[device], **(LARGE if large and device == "cpu" else {})}
    chosen |= {name: value for name, value in others.items() if value is not None}
    if sizes:
        chosen["sizes"] = tuple(map(_parse_size, sizes))
    usual = [arm for arm in ARMS if not _why_not(arm, device)]
    return Plan(device=device, arms=tuple(arms or usual), **chosen)


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"size {text!r} is not HEIGHTxWIDTH, such as 256x128")
    return int(height), int(width)


def _why_not(arm: str, device: str) -> str:
    """Why an arm cannot be measured on the device; empty where it can."""
    if device == "cuda" or not ARMS[arm].fp16:
        return ""
    if arm in BASELINES:
        return "float16 needs CUDA"
    return "" if cpu_has_bfloat16() else "this processor has no bfloat16 products"


def benchmark_training(plan: Plan) -> dict[str, Any]:
    """Measure the plan's arms in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" and "rows" (one dict for each setting and arm; its "note" says
        why where there are no figures).
    Raises:
        ValueError: the model is unknown or a number is out of range.
    """
    if min(plan.steps, plan.repeats, plan.square) < 1 or plan.warmup < 0:
        raise ValueError("at least one step, one repeat and a square of one are needed, and a warm-up of 0 or more")
    settings = plan.settings()
    for setting in settings:
        _check(setting)
    report = {"machine": describe(plan.device), "plan": asdict(plan), "rows": []}
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        logger.info("rendering pictures …")
        draw_pictures(Path(folder) / "data")
        with _compiled_code_in(Path(folder) / "compiled"):
            for setting in settings:
                report["rows"] += _measure_setting(plan, setting, Path(folder))
    return report


@contextlib.contextmanager
def _compiled_code_in(folder: Path) -> Iterator[None]:
    """Within: child processes leave torch.compile's code there, and find what an earlier one left.

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
    check_name(setting.model)
    cfg = arm_cfg(Job("ours_float32", setting, "-", ""))
    least = setting.batch // cfg.DATALOADER.NUM_INSTANCE
    if setting.identities < least:
        raise ValueError(f"{setting.identities} identities are too few: a batch of {setting.batch} has {least} of them")


def _measure_setting(plan: Plan, setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """All arms in one setting, in turn: A B C, A B C, A B C."""
    notes = {name: _why_not(name, plan.device) for name in plan.arms}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.arms}
    for turn in range(1, plan.repeats + 1):
        for name in plan.arms:
            if notes[name]:
                continue
            what = f"{_title_of(setting)}, run {turn} of {plan.repeats}: {_title(name, plan.device)}"
            logger.info("%s …", what)
            try:
                found = _child(Job(name, setting, str(folder / "data"), str(folder / "result.json")))
            except RuntimeError as error:
                found = {"note": str(error)}
            if "note" in found:
                notes[name] = found["note"]
                logger.error("%s: %s", what, found["note"])
            else:
                runs[name].append(found)
                logger.info("%s: %.1f images/s", what, found["images_per_second"])
    rows = {name: _row(name, setting, notes[name], runs[name]) for name in plan.arms}
    _compare(rows)
    return list(rows.values())


def _title_of(setting: Setting) -> str:
    return f"{setting.model} {setting.size[0]}x{setting.size[1]}, {setting.identities:,} identities"


def _title(arm: str, device: str) -> str:
    return ARMS[arm].title.format(half=HALF[device])


def _child(job: Job) -> dict[str, Any]:
    """One job's figures, in the environment of run.sh's stages; see `run_child`."""
    return run_child("tools.benchmarks.training_measure", job.to_json(), Path(job.result), tuned_malloc=True)


def _row(arm: str, setting: Setting, note: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table; medians where there are figures, and of the shares means, whose sum is 1."""
    row = {"model": setting.model, "size": list(setting.size), "identities": setting.identities, "arm": arm,
           "title": _title(arm, setting.device), "note": note, "runs": runs}
    if note:
        return row
    row |= {key: statistics.median(run[key] for run in runs) for key in ("images_per_second", "peak")}
    row["shares"] = {phase: statistics.mean(run["shares"][phase] for run in runs) for phase in PHASES}
    row["first_step_seconds"] = runs[0]["first_step_seconds"]  # later runs find the first one's compiled code
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
