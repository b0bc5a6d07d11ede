"""A stage's command, run in a process of its own: skipped, gone on with, or begun."""
from __future__ import annotations

import logging
import shlex
import sys
import time
from pathlib import Path

from processor.stages import facts
from processor.stages.stage import RESUME, SKIP, STOP, Stage, assess, read_record, refusal, write_begun, write_done
from processor.training.used_folder import move_aside
from utils.process import EXIT_STOPPED, run_logged

logger = logging.getLogger(__name__)
REPOSITORY = Path(__file__).resolve().parent.parent.parent


class StageFailed(RuntimeError):
    """A stage's command failed."""


def run_stage(stage: Stage, title: str, out: Path, force: bool = False) -> float:
    """Run a stage, or skip it if it is done; return the seconds that it took (when it was run).

    Args:
        title: what the log calls it.
        out: OUTPUT_ROOT.
        force: move the folder of another training aside.
    Raises:
        StageFailed: its command failed, and a result depends on it.
        ValueError: it would train over another training.
    """
    verdict = assess(stage, out)
    stage_facts = stage.facts()
    if verdict.action == SKIP:
        logger.info("%s: done before, skipped", title)
        record = read_record(stage, out, "done")
        if "facts" not in record:  # of an earlier version: from now on it may be moved
            write_done(stage, out, stage_facts, record["seconds"])
        return record["seconds"]
    if verdict.action == STOP:
        if not force:
            raise ValueError(refusal(stage, verdict))
        logger.warning("%s: the folder of another training is now %s", title, move_aside(stage.folder))
    write_begun(stage, out, stage_facts)
    command = [stage.command[0], *["--resume"] * (verdict.action == RESUME), *stage.command[1:]]
    logger.info("%s: python %s", title, shlex.join(command))
    started = time.monotonic()
    try:
        _run_command(stage, command, out)
    except StageFailed as error:
        if not stage.optional:
            raise
        logger.warning("%s; the results are whole without it", error)
        return round(time.monotonic() - started, 1)
    facts.forget()
    took = round(time.monotonic() - started, 1)
    write_done(stage, out, stage_facts, took)
    return took


def _run_command(stage: Stage, command: list[str], out: Path) -> None:
    """Run a stage's command; raises StageFailed unless it ends well and leaves its outputs."""
    log = out / "logs" / f"{stage.name}.log"
    code = run_logged([sys.executable, *command], log, cwd=REPOSITORY)
    if code == EXIT_STOPPED:
        raise StageFailed(f"stage {stage.name} was stopped; its checkpoint is written, the same command goes on there")
    if code != 0:
        raise StageFailed(f"stage {stage.name} failed with exit code {code}; its log is {log}")
    missing = [str(path) for path in stage.outputs if not path.is_file()]
    if missing:
        raise StageFailed(f"stage {stage.name} ended well but left no {', '.join(missing)}; its log is {log}")
