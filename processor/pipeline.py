"""The stages behind run.sh: prepare -> train each resolution -> test each checkpoint -> ensemble -> page ->
model folders -> summary.

A stage is one command of tools/ in a process of its own. It is skipped when an earlier run finished it with the same
settings and the same data (processor/stages) and its outputs are still there. A run that was killed goes on with the
stage where it stopped; a training there goes on from its newest checkpoint. A training is never run over checkpoints
that it would not go on from: the run stops, before anything is done.

What is prepared depends on the sets: NAIC's test pictures are split by domain; sets of one's own without query and
gallery pictures get a validation split, so that there is something to measure on.
"""
from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs import chain_of_files, load_cfg
from datasets.naic import data_root, find_test_parts
from datasets.registry import DATASETS, Places, Reference, parse_names, parse_roots
from processor.stages import facts
from processor.stages.earlier import digests, folder_listing, training_lists
from processor.stages.running import StageFailed, run_stage
from processor.stages.stage import SKIP, STOP, Stage, Verdict, assess, refusal
from processor.stages.summary import summarise, table
from utils.files import as_file_name, epoch_checkpoints, write_json
from utils.logger import silence
from utils.packages import weight_file
from utils.process import RunLock

__all__ = ["RECIPES", "Recipe", "Settings", "StageFailed", "find_weights", "plan", "run", "survey", "table"]

logger = logging.getLogger(__name__)
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """configs: one YAML a resolution; epochs: the checkpoints to test of each, () = the last."""

    configs: tuple[str, ...]
    epochs: tuple[int, ...] = ()


RECIPES = {
    "demo": Recipe(("configs/demo/r18_64.yml", "configs/demo/r18_80.yml", "configs/demo/r18_96.yml")),
    "lite": Recipe(("configs/demo/lite.yml",)),
    "naic": Recipe(
        ("configs/naic/r101_ibn_b_128.yml", "configs/naic/r101_ibn_b_192.yml", "configs/naic/r101_ibn_b_240.yml"),
        epochs=(40, 50),
    ),
    "own": Recipe(("configs/own.yml",)),
    "small": Recipe(("configs/small/lite.yml",)),
}
# Keys that the pipeline sets -> what to use instead.
_OURS = {"OUTPUT_DIR": "OUTPUT_ROOT", "DATASETS.DERIVED_DIR": "OUTPUT_ROOT, whose folder derived/ it is",
         "TEST.WEIGHT": "WEIGHTS", "DATASETS.ROOT_DIR": "DATA_ROOT"}
_PEOPLE_TO_MEASURE = 5, 500  # one in so many people of a set without a test part, this many at most


@dataclass(frozen=True)
class Settings:
    """What run.sh was asked for.

    Attributes:
        data_root: None = the demo set, or for sets of one's own the recipe's DATASETS.ROOT_DIR.
        weights: a folder of checkpoints; None = train.
        seed: None = the YAMLs'.
        opts: KEY VALUE pairs, over those of the recipe in every stage.
        force: move the folder of another training aside instead of stopping.
        caller: the folder that run.sh was called from; sets of one's own are looked for there, too.
    """

    output_root: Path
    recipe: str = "demo"
    data_root: Path | None = None
    weights: Path | None = None
    seed: int | None = None
    opts: tuple[str, ...] = ()
    force: bool = False
    caller: Path | None = None


# ------------------------------------------------------------------ the plan
@dataclass(frozen=True)
class _Run:
    """What the stages of a run have in common.

    Attributes:
        root: DATASETS.ROOT_DIR.
        naic_root: the folder that holds MyDataSet/: that, or what DATASETS.ROOTS says.
        opts: KEY VALUE pairs of every stage that takes a config.
        prepared: names of the stages that make data to train on.
    """

    settings: Settings
    recipe: Recipe
    root: Path
    naic_root: Path
    opts: tuple[str, ...]
    prepared: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.settings.output_root

    @property
    def derived(self) -> Path:
        return self.out / "derived"

    def cfg(self, config: str, *more: str):
        """The config of a stage."""
        return load_cfg(REPOSITORY / config, [*self.opts, *more])


def plan(settings: Settings) -> list[Stage]:
    """The stages of a run, in order. Reads the configs, and of sets of one's own what is in them.

    Raises:
        ValueError, OSError: the recipe is unknown, a config or a set is wrong, or WEIGHTS lacks a checkpoint.
    """
    if settings.recipe not in RECIPES:
        raise ValueError(f"RECIPE={settings.recipe!r} is not one of {', '.join(RECIPES)}")
    for key in set(settings.opts[::2]) & set(_OURS):
        raise ValueError(f"{key} is set for each stage here; use {_OURS[key]}")
    recipe, out = RECIPES[settings.recipe], settings.output_root
    seed = () if settings.seed is None else ("SOLVER.SEED", str(settings.seed))
    cfg = load_cfg(REPOSITORY / recipe.configs[0], [*seed, *settings.opts])
    if settings.weights is None and cfg.MODEL.PRETRAIN_CHOICE != "none":
        weight_file(cfg.MODEL.PRETRAIN_PATH)  # of a package that is missing we want to hear before anything is made
    root, stages = _find_root(settings, cfg), []
    run = _Run(settings, recipe, root, _places(cfg, root).root_of("naic"),
               ("DATASETS.ROOT_DIR", str(root), "DATASETS.DERIVED_DIR", str(out / "derived"), *seed, *settings.opts))
    if settings.data_root is None and root == out / "demo_data":
        words = [] if settings.seed is None else ["--seed", str(settings.seed)]
        stages.append(Stage("demo_data", ["tools/make_demo_data.py", "--output", str(root), "--force", *words],
                            [root / "MyDataSet" / "demo.json"], {"the seed": settings.seed or 0}))
    elif not cfg.DATASETS.VALIDATION and not _has_test_part(cfg, root):
        stages.append(_validation_stage(run))
        run = _with_opts(run, "DATASETS.VALIDATION", str(out / "validation.json"))
    run = _with_opts(run, prepared=tuple(stage.name for stage in stages))
    if "naic" in _kinds(_tested(cfg)) and not run.cfg(recipe.configs[0]).DATASETS.VALIDATION:
        stages.append(_split_stage(run))
    pairs = [_model_stages(run, config, tuple(stage.name for stage in stages)) for config in recipe.configs]
    stages += [stage for train, _ in pairs for stage in train]
    tests = [stage for _, tested in pairs for stage in tested]
    exports = [_export_stage(stage) for stage in tests] if settings.weights is None else []
    return [*stages, *tests, _ensemble_stage(out, tests), _page_stage(run, tests), *exports]


def _with_opts(run: _Run, *opts: str, prepared: tuple[str, ...] = ()) -> _Run:
    return _Run(run.settings, run.recipe, run.root, run.naic_root, (*run.opts, *opts), prepared)


def _tested(cfg) -> list[Reference]:
    """The sets that are tested on, if there is no validation split."""
    return parse_names(cfg.DATASETS.TEST_NAMES or cfg.DATASETS.NAMES)


def _kinds(references: Sequence[Reference]) -> set[str]:
    return {reference.kind for reference in references}


def _find_root(settings: Settings, cfg) -> Path:
    """The folder that holds the sets; that of the demo set need not exist.

    Raises:
        ValueError: other sets than the demo's are asked for, and nobody says where they are.
    """
    if settings.data_root is not None:
        return settings.data_root
    names, elsewhere = [*parse_names(cfg.DATASETS.NAMES), *_tested(cfg)], parse_roots(cfg.DATASETS.ROOTS)
    if _kinds(names) == {"naic"} and "naic" not in elsewhere:
        return settings.output_root / "demo_data"
    for root in (root.resolve() for root in (settings.caller, REPOSITORY / cfg.DATASETS.ROOT_DIR) if root is not None):
        missing = [reference for reference in names if not _is_there(reference, _places(cfg, root))]
        if not missing:
            return root
    raise ValueError(f"where is {missing[0].place or missing[0].name}? Set DATA_ROOT to the folder that holds it: "
                     f"DATA_ROOT=/path/to/folder RECIPE={settings.recipe} bash run.sh "
                     f"{shlex.join(['DATASETS.NAMES', cfg.DATASETS.NAMES])}")


def _is_there(reference: Reference, places: Places) -> bool:
    """Whether a set lies where it is looked for; what is in it does not matter."""
    try:
        DATASETS[reference.kind].folder(reference, places)
    except OSError:
        return False
    return (places.root_of(reference.name) / reference.place).exists()


def _places(cfg, root: Path) -> Places:
    return Places(root, roots=parse_roots(cfg.DATASETS.ROOTS))


def _has_test_part(cfg, root: Path) -> bool:
    """Whether any tested set has query and gallery pictures; NAIC's are not looked at, as they are to be split.

    Raises:
        ValueError, OSError: a set cannot be tested on, as a test would say after the training.
    """
    places = _places(cfg, root)
    with silence("datasets"):
        parts = [reference.kind == "naic" or DATASETS[reference.kind].load(reference, places, ("test",)).eval_sets
                 for reference in _tested(cfg)]
    return any(parts)


def _validation_stage(run: _Run) -> Stage:
    """Cut a validation split from sets without a test part."""
    config, target = run.recipe.configs[0], run.out / "validation.json"
    cfg = run.cfg(config)
    people = facts.count_people(cfg)
    batch = cfg.SOLVER.IMS_PER_BATCH // cfg.DATALOADER.NUM_INSTANCE
    share, most = _PEOPLE_TO_MEASURE
    chosen = max(1, min(people // share, people - batch, most))
    command = ["tools/split_validation.py", "--config_file", config, "--output", str(target), "--identities",
               str(chosen), "--distractors", "0", "--green", "none", "--force", *run.opts]
    return Stage("validation", command, [target], {"people to measure with": chosen},
                 partial(facts.training_pictures, cfg))


def _my_data_set(root: Path) -> Path:
    """The folder with NAIC's sets in it; the demo set's is known before it exists."""
    return data_root(root) if root.is_dir() else root / "MyDataSet"


def _split_stage(run: _Run) -> Stage:
    """Split NAIC's test pictures by domain."""
    folder = _my_data_set(run.naic_root) / run.cfg(run.recipe.configs[0]).DATASETS.TEST_DIR
    parts = [folder / "query", folder / "gallery"]
    command = ["tools/split_domains.py", "--data_dir_query", str(parts[0]), "--data_dir_gallery", str(parts[1]),
               "--save_dir", str(run.derived)]
    return Stage("split_domains", command, _domain_lists(run.derived),
                 data=lambda: {"the test pictures": facts.listing(find_test_parts(folder))}, after=run.prepared,
                 earlier=lambda: folder_listing(*parts))


def _domain_lists(derived: Path) -> list[Path]:
    return [derived / f"{part}_{domain}.txt" for part in ("query", "gallery") for domain in ("green", "normal")]


def _model_stages(run: _Run, config: str, before: tuple[str, ...]) -> tuple[list[Stage], list[Stage]]:
    """The training stage (none with WEIGHTS) and the test stages of one config; before: those that prepare."""
    model = Path(config).stem
    folder = run.out / model
    cfg = run.cfg(config, "OUTPUT_DIR", str(folder))
    epochs = tested_epochs(cfg, run.recipe.epochs)
    if run.settings.weights is None:
        checkpoints = {epoch: folder / f"{as_file_name(cfg.MODEL.NAME)}_{epoch}.pth" for epoch in epochs}
        train = [Stage(
            f"train_{model}", ["tools/train.py", "--config_file", config, *run.opts, "OUTPUT_DIR", str(folder)],
            list(checkpoints.values()), facts.training_settings(cfg), partial(facts.training_data, cfg), run.prepared,
            partial(_find_begin, cfg),
            lambda: digests(*chain_of_files(REPOSITORY / config),
                            *training_lists(_my_data_set(run.naic_root), run.derived)))]
    else:
        train, checkpoints = [], find_weights(run.settings.weights, model, as_file_name(cfg.MODEL.NAME), epochs)
    after = (*before, *(stage.name for stage in train))
    tests = [_test_stage(run, config, model if len(checkpoints) == 1 else f"{model}_{epoch}", checkpoint, after)
             for epoch, checkpoint in checkpoints.items()]
    return train, tests


def tested_epochs(cfg, wanted: Sequence[int]) -> list[int]:
    """Those of the wanted epochs whose checkpoints a training leaves, or its last."""
    last, solver = cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER
    left = [epoch for epoch in range(1, last + 1) if epoch % solver.CHECKPOINT_PERIOD == 0 or epoch == last]
    left = left[-solver.CHECKPOINT_KEEP:] if solver.CHECKPOINT_KEEP else left
    return [epoch for epoch in wanted if epoch in left] or [last]


def _find_begin(cfg) -> Path:
    """The checkpoint that a training would go on from.

    Raises:
        ValueError: there is none of this configuration.
    """
    from processor.training.build import checkpoint_folder  # torch takes seconds to import

    return checkpoint_folder(cfg).find("auto")[0]


def _test_stage(run: _Run, config: str, name: str, checkpoint: Path, after: tuple[str, ...]) -> Stage:
    folder = run.out / name
    cfg = run.cfg(config, "OUTPUT_DIR", str(folder), "TEST.WEIGHT", str(checkpoint))
    command = ["tools/test.py", "--config_file", config, *run.opts, "TEST.WEIGHT", str(checkpoint), "OUTPUT_DIR",
               str(folder)]

    def lists() -> list[Path]:
        if "naic" not in _kinds(_tested(cfg)) or cfg.DATASETS.VALIDATION:
            return []
        my_data_set = _my_data_set(run.naic_root)
        truths = [my_data_set / cfg.DATASETS.TEST_DIR / "ground_truth.json", my_data_set / "ground_truth.json"]
        return [*sorted(_domain_lists(run.derived)), *truths]

    return Stage(f"test_{name}", command, [folder / leaf for leaf in ("submission.json", "features/index.json")],
                 facts.test_settings(cfg), lambda: facts.test_data(cfg, checkpoint, lists()), after,
                 earlier=lambda: digests(*chain_of_files(REPOSITORY / config), checkpoint, *lists()))


def _ensemble_stage(out: Path, tests: list[Stage]) -> Stage:
    indices = [stage.folder / "features" / "index.json" for stage in tests]
    command = ["tools/ensemble.py", "--inputs", *(str(stage.folder) for stage in tests), "--output",
               str(out / "submission.json")]
    return Stage("ensemble", command, [out / "submission.json"],
                 data=lambda: {"the tested models": [stage.folder.name for stage in tests],
                               "their features": digests(*indices)},
                 after=tuple(stage.name for stage in tests), earlier=lambda: digests(*indices))


def _page_stage(run: _Run, tests: list[Stage]) -> Stage:
    """The page of ranked lists. Its script stands for it: a page that a user made anew, with other options, stays."""
    indices = [stage.folder / "features" / "index.json" for stage in tests]
    return Stage("ranks", ["tools/visualize.py", "--run", str(run.out), "--data", str(run.root)],
                 [run.out / "ranks" / "page.js"],
                 data=lambda: {"the answer and the features": digests(run.out / "submission.json", *indices)},
                 after=("ensemble",), optional=True)


def _export_stage(test: Stage) -> Stage:
    """The model folder of a checkpoint that was trained and tested. Its weights stand for it: files and thresholds
    that a user added stay."""
    checkpoint = Path(test.command[test.command.index("TEST.WEIGHT") + 1])
    folder = test.folder / "model"
    return Stage(f"export_{test.folder.name}",
                 ["tools/export.py", "--weight", str(checkpoint), "--output", str(folder), "--force"],
                 [folder / "model.safetensors"], data=lambda: {"the checkpoint": digests(checkpoint)},
                 after=test.after, optional=True)


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
def survey(settings: Settings) -> list[tuple[Stage, Verdict]]:
    """The stages of a run with what would be done about each, as things are; nothing is written.

    Raises:
        ValueError, OSError: the plan cannot be made, or the data are not as they must be.
    """
    waiting, found = [], []
    for stage in plan(settings):
        verdict = assess(stage, settings.output_root, waiting)
        found.append((stage, verdict))
        if verdict.action != SKIP:
            waiting.append(stage.name)
    return found


def run(settings: Settings) -> dict:
    """Run what is not done yet; return the summary, which is also written to OUTPUT_ROOT/summary.json.

    Raises:
        StageFailed: a command ended with another code than 0; the message names the stage and its log.
        ValueError, OSError: before anything is done: the plan cannot be made, the data are not as they must be, a
            training would overwrite another, or another run works in this folder.
    """
    out = settings.output_root
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / ".lock"):
        found = survey(settings)
        for stage, verdict in found:
            if verdict.action == STOP and not settings.force:
                raise ValueError(refusal(stage, verdict))
        demo = any(stage.name == "demo_data" for stage, _ in found)
        if demo:
            logger.info("no DATA_ROOT given: using the embedded demo set, made under %s", out / "demo_data")
        stages, seconds = [stage for stage, _ in found], {}
        for number, stage in enumerate(stages, 1):
            seconds[stage.name] = run_stage(stage, f"[{number}/{len(stages)}] {stage.name}", out, settings.force)
        data = "demo" if demo else str(settings.data_root or "")
        summary = summarise(out, settings.recipe, data, stages, seconds)
        write_json(out / "summary.json", summary)
        return summary
