"""The stages behind run.sh: prepare -> train each resolution -> test each checkpoint -> ensemble -> summary.

A stage is one command of tools/ in a process of its own. It is skipped when an earlier run finished it with the same
command and the same inputs (config, data lists, checkpoint) and its outputs are still there. A run that was killed
goes on with the stage where it stopped; a training there goes on from its newest checkpoint.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from configs import chain_of_files, load_cfg
from datasets.naic import data_root
from utils.files import epoch_checkpoints, read_json, sha256_of, write_json
from utils.process import EXIT_STOPPED, RunLock, run_logged

logger = logging.getLogger(__name__)
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """configs: one YAML a resolution; epochs: the checkpoints to test of each, () = the last."""

    configs: tuple[str, ...]
    epochs: tuple[int, ...] = ()


RECIPES = {
    "demo": Recipe(("configs/demo/r18_64.yml", "configs/demo/r18_80.yml", "configs/demo/r18_96.yml")),
    "naic": Recipe(
        ("configs/naic/r101_ibn_b_128.yml", "configs/naic/r101_ibn_b_192.yml", "configs/naic/r101_ibn_b_240.yml"),
        epochs=(40, 50),
    ),
}


@dataclass(frozen=True)
class Settings:
    """What run.sh was asked for. data_root None = make the demo set; weights None = train; seed None = the YAMLs'."""

    output_root: Path
    recipe: str = "demo"
    data_root: Path | None = None
    weights: Path | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Stage:
    """command: tool and arguments; inputs(): what its result depends on beside the command; outputs: its files.

    `resume` is put first among the arguments when the stage was begun before with the same inputs.
    """

    name: str
    command: list[str]
    outputs: list[Path]
    inputs: Callable[[], list[str]] = field(default=list)
    resume: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.command, self.inputs()]).encode()).hexdigest()


def digests(*paths: Path) -> list[str]:
    """`NAME DIGEST` of each file, `NAME -` of one that is not there."""
    return [f"{path.name} {sha256_of(path) if path.is_file() else '-'}" for path in paths]


def folder_listing(*folders: Path) -> list[str]:
    """`NAME SIZE` of every file of the folders: the pictures themselves are too many to read for a digest."""
    return [
        f"{folder.name}/{entry.name} {entry.stat().st_size}"
        for folder in folders
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
    ]


def training_lists(my_data_set: Path, derived: Path) -> list[Path]:
    """Every list that decides what is trained on."""
    return [*sorted(my_data_set.glob("*/*train_list.txt")), *sorted(my_data_set.glob("unlabel/label.txt")),
            *sorted(derived.glob("*train_list.txt")), *sorted(derived.glob("unlabel/label.txt"))]


# ------------------------------------------------------------------ the plan
def plan(settings: Settings) -> list[Stage]:
    """The stages of a run, in order. Reads the configs, not the data.

    Raises:
        ValueError: the recipe is unknown, a config is wrong, or WEIGHTS lacks a checkpoint.
    """
    if settings.recipe not in RECIPES:
        raise ValueError(f"RECIPE={settings.recipe!r} is not one of {', '.join(RECIPES)}")
    recipe, out = RECIPES[settings.recipe], settings.output_root
    stages = []
    root = settings.data_root
    if root is None:
        root = out / "demo_data"
        seed = [] if settings.seed is None else ["--seed", str(settings.seed)]
        stages.append(Stage("demo_data", ["tools/make_demo_data.py", "--output", str(root), "--force", *seed],
                            [root / "MyDataSet" / "demo.json"]))
    stages.append(_split_stage(root, recipe, out))
    tests = []
    for config in recipe.configs:
        train, tested = _model_stages(settings, config, recipe.epochs, root)
        stages += train
        tests += tested
    folders = [stage.outputs[0].parent for stage in tests]
    ensemble = ["tools/ensemble.py", "--inputs", *map(str, folders), "--output", str(out / "submission.json")]
    index = [folder / "features" / "index.json" for folder in folders]
    stages += [*tests, Stage("ensemble", ensemble, [out / "submission.json"], lambda: digests(*index))]
    return stages


def _test_folder(root: Path, recipe: Recipe) -> Path:
    return Path(_my_data_set(root)) / load_cfg(REPOSITORY / recipe.configs[0], []).DATASETS.TEST_DIR


def _my_data_set(root: Path) -> Path:
    """The folder with the sets in it; the demo set's is known before it exists."""
    return data_root(root) if root.is_dir() else root / "MyDataSet"


def _split_stage(root: Path, recipe: Recipe, out: Path) -> Stage:
    test_folder = _test_folder(root, recipe)
    parts = [test_folder / "query", test_folder / "gallery"]
    command = ["tools/split_domains.py", "--data_dir_query", str(parts[0]), "--data_dir_gallery", str(parts[1]),
               "--save_dir", str(out / "derived")]
    outputs = [out / "derived" / f"{part}_{domain}.txt" for part in ("query", "gallery") for domain in
               ("green", "normal")]
    return Stage("split_domains", command, outputs, lambda: folder_listing(*parts))


def _model_stages(settings: Settings, config: str, epochs: tuple[int, ...],
                  root: Path) -> tuple[list[Stage], list[Stage]]:
    """The training stage (none with WEIGHTS) and the test stages of one config."""
    model, derived = Path(config).stem, settings.output_root / "derived"
    folder = settings.output_root / model
    common = ["--config_file", config]
    opts = ["DATASETS.ROOT_DIR", str(root), "DATASETS.DERIVED_DIR", str(derived)]
    if settings.seed is not None:
        opts += ["SOLVER.SEED", str(settings.seed)]
    cfg = load_cfg(REPOSITORY / config, opts)
    my_data_set = _my_data_set(root)
    epochs = epochs or (cfg.SOLVER.MAX_EPOCHS,)
    if settings.weights is None:
        checkpoints = {epoch: folder / f"{cfg.MODEL.NAME}_{epoch}.pth" for epoch in epochs}
        train = [Stage(
            f"train_{model}", ["tools/train.py", *common, *opts, "OUTPUT_DIR", str(folder)],
            list(checkpoints.values()),
            lambda: digests(*chain_of_files(REPOSITORY / config), *training_lists(my_data_set, derived)),
            resume=("--resume",),
        )]
    else:
        train, checkpoints = [], find_weights(settings.weights, model, cfg.MODEL.NAME, epochs)
    truths = [my_data_set / cfg.DATASETS.TEST_DIR / "ground_truth.json", my_data_set / "ground_truth.json"]
    lists = sorted(derived / f"{part}_{domain}.txt" for part in ("query", "gallery") for domain in ("green", "normal"))
    tests = []
    for epoch, checkpoint in checkpoints.items():
        name = model if len(checkpoints) == 1 else f"{model}_{epoch}"
        tests.append(Stage(
            f"test_{name}",
            ["tools/test.py", *common, *opts, "TEST.WEIGHT", str(checkpoint),
             "OUTPUT_DIR", str(settings.output_root / name)],
            [settings.output_root / name / leaf for leaf in ("submission.json", "features/index.json")],
            lambda checkpoint=checkpoint: digests(*chain_of_files(REPOSITORY / config), checkpoint, *lists, *truths),
        ))
    return train, tests


def find_weights(weights: Path, model: str, name: str, epochs: tuple[int, ...]) -> dict[int, Path]:
    """The checkpoints of one config in WEIGHTS, by epoch.

    Looked for in WEIGHTS/MODEL/ and WEIGHTS/MODEL_EPOCH/ (as an earlier run or the original left them, as
    NAME_EPOCH.pth) and in WEIGHTS/ itself (as MODEL_EPOCH.pth). The recipe's epochs are taken, or where none of them
    is there all that are.
    Raises:
        ValueError: there is none.
    """
    found = epoch_checkpoints(weights, model)
    folders = [weights / model, *weights.glob(f"{model}_*")]
    for folder in folders:
        if folder == weights / model or re.fullmatch(re.escape(model) + r"_\d+", folder.name):
            found = {**epoch_checkpoints(folder, name), **found}
    wanted = {epoch: path for epoch, path in sorted(found.items()) if epoch in epochs}
    if not found:
        raise ValueError(
            f"WEIGHTS={weights} has no checkpoint for {model}: put one at "
            f"{weights / model / f'{name}_{epochs[-1]}.pth'} or {weights / f'{model}_{epochs[-1]}.pth'}"
        )
    return wanted or dict(sorted(found.items()))


# ------------------------------------------------------------------ running it
def run(settings: Settings) -> dict:
    """Run what is not done yet; return the summary, which is also written to OUTPUT_ROOT/summary.json.

    Raises:
        StageFailed: a command ended with another code than 0; the message names the stage and its log.
        ValueError: the plan cannot be made, or another run works in this folder.
    """
    out = settings.output_root
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / ".lock"):
        if settings.data_root is None:
            logger.info("no DATA_ROOT given: using the embedded demo set, made under %s", out / "demo_data")
        stages = plan(settings)
        seconds = {}
        for number, stage in enumerate(stages, 1):
            seconds[stage.name] = _run_stage(stage, f"[{number}/{len(stages)}] {stage.name}", out)
        summary = summarise(settings, stages, seconds)
        write_json(out / "summary.json", summary)
        return summary


class StageFailed(RuntimeError):
    """A stage's command failed."""


def _run_stage(stage: Stage, title: str, out: Path) -> float:
    """Run one stage, or skip it; return the seconds that it took (when it was run)."""
    done, begun = out / "stages" / f"{stage.name}.done.json", out / "stages" / f"{stage.name}.begun.json"
    fingerprint = stage.fingerprint()
    record = _read_record(done)
    if record.get("fingerprint") == fingerprint and record.get("outputs") == _sizes(stage):
        logger.info("%s: done before, skipped", title)
        return record["seconds"]
    resuming = _read_record(begun).get("fingerprint") == fingerprint
    done.unlink(missing_ok=True)
    write_json(begun, {"fingerprint": fingerprint})
    command = [stage.command[0], *(stage.resume if resuming else ()), *stage.command[1:]]
    log = out / "logs" / f"{stage.name}.log"
    logger.info("%s: python %s", title, shlex.join(command))
    started = time.monotonic()
    code = run_logged([sys.executable, *command], log, cwd=REPOSITORY)
    if code == EXIT_STOPPED:
        raise StageFailed(f"stage {stage.name} was stopped; its checkpoint is written, the same command goes on there")
    if code != 0:
        raise StageFailed(f"stage {stage.name} failed with exit code {code}; its log is {log}")
    missing = [str(path) for path in stage.outputs if not path.is_file()]
    if missing:
        raise StageFailed(f"stage {stage.name} ended well but left no {', '.join(missing)}; its log is {log}")
    took = round(time.monotonic() - started, 1)
    write_json(done, {"fingerprint": fingerprint, "seconds": took, "outputs": _sizes(stage)})
    return took


def _sizes(stage: Stage) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in stage.outputs if path.is_file()}


def _read_record(path: Path) -> dict:
    """A stage's record; one that is missing or damaged means that the stage is not done."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def summarise(settings: Settings, stages: list[Stage], seconds: dict[str, float]) -> dict:
    """Metrics of each model and of the ensemble (null without ground truth) and the seconds of each stage."""
    out = settings.output_root
    models = {}
    for stage in stages:
        if stage.name.startswith("test_"):
            folder = stage.outputs[0].parent
            models[folder.name] = _metrics(folder / "metrics.json")
    return {
        "recipe": settings.recipe,
        "data": "demo" if settings.data_root is None else str(settings.data_root),
        "models": models,
        "ensemble": _metrics(out / "metrics.json"),
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()), 1),
    }


def _metrics(path: Path) -> dict | None:
    return read_json(path)["all"] if path.is_file() else None


def table(summary: dict) -> str:
    """The summary for a person: a line a model, without and with re-ranking."""
    rows = [*summary["models"].items(), ("ensemble", summary["ensemble"])]
    if all(metrics is None for _, metrics in rows):
        return "no ground truth: a submission, but no metrics"
    kinds = [kind for kind in ("plain", "re_ranked") if any(metrics and kind in metrics for _, metrics in rows)]
    titles = {"plain": "without re-ranking", "re_ranked": "with re-ranking"}
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"  {titles[kind]:^26}" for kind in kinds),
             f"{'model':{width}}" + f"  {'mAP':>7} {'Rank-1':>7} {'NAIC':>7}   " * len(kinds)]
    for name, metrics in rows:
        cells = ""
        for kind in kinds:
            result = (metrics or {}).get(kind)
            figures = [result["mAP"], result["rank1"], result["naic_score"]] if result else []
            cells += "  " + (" ".join(f"{100 * figure:6.2f}%" for figure in figures) + "   " if figures else " " * 26)
        lines.append(f"{name:{width}}{cells}".rstrip())
    return "\n".join(lines)
