"""The stages of run.sh: prepare, train each resolution, test each checkpoint, ensemble. See `bash run.sh --help`."""
import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import coerce
from configs.defaults import RULES
from datasets.registry import parse_roots
from processor.pipeline import Settings, StageFailed, run, survey, table
from processor.stages.stage import RESUME, RUN, STOP, refusal
from utils.logger import run_tool, setup_logger

VARIABLES = ("DATA_ROOT", "RECIPE", "WEIGHTS", "OUTPUT_ROOT", "SEED", "PYTHON")
# Keys whose values are files or folders: relative to where run.sh was called, if they are there.
_PATHS = ("DATASETS.ROOT_DIR", "DATASETS.VALIDATION", "DATASETS.PACKED", "DATASETS.UNLABEL_DIR", "MODEL.PRETRAIN_PATH",
          "SOLVER.DISTILL_FROM")


def read_settings(words: list[str], force: bool) -> Settings:
    """DATA_ROOT, RECIPE, WEIGHTS, OUTPUT_ROOT and SEED as run.sh passes them on, an empty text is not set; KEY VALUE.

    Raises:
        ValueError: a folder is not there, a number is none, or words are no KEY VALUE pairs.
    """
    def path(name: str) -> Path | None:
        value = os.environ.get(name)
        if value and name != "OUTPUT_ROOT" and not Path(value).is_dir():
            raise ValueError(f"{name}={value} is not a folder")
        return Path(value).resolve() if value else None

    seed = os.environ.get("SEED") or None
    if seed is not None and not seed.isdecimal():
        raise ValueError(f"SEED={seed!r} is not a whole number >= 0")
    caller, data_root = path("CALLED_FROM"), path("DATA_ROOT")
    opts = dict(_pairs(words, caller or Path.cwd()))
    root = opts.pop("DATASETS.ROOT_DIR", None)
    if root is not None and data_root not in (None, Path(root).resolve()):
        raise ValueError(f"DATA_ROOT={data_root} and DATASETS.ROOT_DIR {root} are two folders; give one of them")
    return Settings(
        output_root=path("OUTPUT_ROOT") or Path("output").resolve(), recipe=os.environ.get("RECIPE") or "demo",
        data_root=data_root if root is None else Path(root).resolve(), weights=path("WEIGHTS"),
        seed=None if seed is None else int(seed), opts=tuple(word for pair in opts.items() for word in pair),
        force=force, caller=caller,
    )


def _pairs(words: list[str], caller: Path) -> list[tuple[str, str]]:
    """The KEY VALUE pairs of a command line; load_cfg finds what is wrong with a pair itself."""
    joined = next((word for word in words[::2] if "=" in word), None)
    if joined is not None:
        name, _, value = joined.partition("=")
        if name in VARIABLES:
            raise ValueError(f"{joined}: a variable stands before the command: {name}={shlex.quote(value)} bash run.sh")
        raise ValueError(f"{joined}: KEY and VALUE are two words: bash run.sh {name} {shlex.quote(value)}")
    if len(words) % 2:
        what = f"{words[-1]} has no value" if words[-1] in RULES else f"{words[-1]!r} has no pair"
        raise ValueError(f"expected KEY VALUE pairs, got {len(words)} words: {what}")
    return [(key, _placed(key, value, caller)) for key, value in zip(words[::2], words[1::2], strict=True)]


def _placed(key: str, value: str, caller: Path) -> str:
    """The value of a key; a path that is there, seen from where run.sh was called, is made absolute."""
    if key == "DATASETS.ROOTS":
        roots = parse_roots(coerce(key, value))
        return f"[{', '.join(f'{name}={_placed(_PATHS[0], folder, caller)}' for name, folder in roots.items())}]"
    return str(caller / value) if key in _PATHS and (caller / value).exists() else value


def print_plan(settings: Settings) -> None:
    """Each stage, what would be done about it and why, and its command."""
    for stage, verdict in survey(settings):
        action, why = verdict
        if action == STOP:
            action, why = (RUN, f"--force moves {stage.folder} aside: {why}") if settings.force else (
                STOP, refusal(stage, verdict))
        print(f"{stage.name}: would {action}: {why}")
        resume = ["--resume"] if action == RESUME else []
        print(f"    python {shlex.join([stage.command[0], *resume, *stage.command[1:]])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true",
                        help="print of each stage what would be done, why, and its command, and stop")
    parser.add_argument("--force", action="store_true",
                        help="move a model's folder aside where it holds another training, instead of stopping")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for every stage, over the recipe's")
    args = parser.parse_intermixed_args()
    settings = read_settings(args.opts, args.force)
    if args.dry_run:
        print_plan(settings)
        return
    setup_logger()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)  # which also stops the stage at work, as at Ctrl-C
    try:
        summary = run(settings)
    except StageFailed as error:
        sys.exit(f"error: {error}")
    print(f"\n{table(summary)}\n")
    print(f"submission: {settings.output_root / 'submission.json'}")
    if (page := settings.output_root / "ranks" / "index.html").is_file():
        print(f"ranks:      {page} (open it in a browser)")
    print(f"summary:    {settings.output_root / 'summary.json'} ({summary['seconds_total']:.0f} s)")


if __name__ == "__main__":
    run_tool(main)
