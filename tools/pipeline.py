"""The stages of run.sh: prepare, train each resolution, test each checkpoint, ensemble. See `bash run.sh --help`."""
import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processor.pipeline import Settings, StageFailed, plan, run, table
from utils.logger import run_tool, setup_logger


def settings_from_environment() -> Settings:
    """DATA_ROOT, RECIPE, WEIGHTS, OUTPUT_ROOT and SEED as run.sh passes them on; an empty text is not set."""
    def path(name: str) -> Path | None:
        value = os.environ.get(name)
        if value and name != "OUTPUT_ROOT" and not Path(value).is_dir():
            raise ValueError(f"{name}={value} is not a folder")
        return Path(value).resolve() if value else None

    seed = os.environ.get("SEED") or None
    if seed is not None and not seed.isdecimal():
        raise ValueError(f"SEED={seed!r} is not a whole number >= 0")
    return Settings(
        output_root=path("OUTPUT_ROOT") or Path("output").resolve(), recipe=os.environ.get("RECIPE") or "demo",
        data_root=path("DATA_ROOT"), weights=path("WEIGHTS"), seed=None if seed is None else int(seed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the stages with their commands and stop")
    args = parser.parse_args()
    settings = settings_from_environment()
    if args.dry_run:
        for stage in plan(settings):
            print(f"{stage.name}:\n    python {shlex.join(stage.command)}")
        return
    setup_logger()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which also stops the stage at work, as at Ctrl-C
    try:
        summary = run(settings)
    except StageFailed as error:
        sys.exit(f"error: {error}")
    print(f"\n{table(summary)}\n")
    print(f"submission: {settings.output_root / 'submission.json'}")
    print(f"summary:    {settings.output_root / 'summary.json'} ({summary['seconds_total']:.0f} s)")


if __name__ == "__main__":
    run_tool(main)
