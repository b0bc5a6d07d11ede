"""What the benchmarks share: a fresh process for each run, runs in turn, a note for what fails, checks of options."""
from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tools.benchmarks.machine import describe
from utils.files import read_json, write_json
from utils.process import run_logged

ROOT = Path(__file__).resolve().parent.parent.parent

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------ child process
@dataclass(frozen=True)
class Job:
    """What a child process measures.

    Attributes:
        what: an entry's name.
        setting: a frozen dataclass of the benchmark, of numbers, strings and tuples of them.
        result: the JSON file for the figures.
    """

    what: str
    setting: Any
    result: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, setting_class: type) -> Job:
        job = json.loads(text)
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in job["setting"].items()}
        return cls(**{**job, "setting": setting_class(**fields)})


def run_child(module: str, job: Job, tuned_malloc: bool = False) -> dict[str, Any]:
    """Run `python -m module JOB` in a fresh process, which ends with this one.

    Args:
        module: it calls `serve`.
        tuned_malloc: give it the allocator's settings of run.sh's stages.
    Returns:
        The figures that it measured.
    Raises:
        RuntimeError: it failed (what it printed is on the terminal).
    """
    result = Path(job.result)
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, job.to_json()]
    code = run_logged(command, result.with_suffix(".log"), ROOT, tuned_malloc)
    if code or not result.is_file():
        raise RuntimeError(f"failed with code {code}")
    return read_json(result)


def serve(measure: Callable[[Job], dict[str, Any]], setting_class: type) -> None:
    """A child's whole program: measure the job of the command line and write its figures.

    Only the parent ends it, by SIGTERM. A terminal's Ctrl-C reaches the parent, too, which ends its child. A loader's
    workers look every five seconds whether their parent is still there, and clear away their files; killed, they would
    not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not by an exception: one that is raised in a signal's handler may be swallowed by a callback.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    job = Job.from_json(sys.argv[1], setting_class)
    write_json(job.result, measure(job))


# --------------------------------------------------------------------------------------------------------------- turns
@dataclass
class Entry:
    """A row of a table while it is measured.

    Attributes:
        name: what the child is asked for.
        title: the name in the table.
        setting: see Job.
        note: why there are no figures; "" as long as there may be.
        runs: the figures of each run.
    """

    name: str
    title: str
    setting: Any
    note: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)

    def median(self, key: str) -> float:
        """Of the runs' figures."""
        return statistics.median(run[key] for run in self.runs)

    def row(self, **place: Any) -> dict[str, Any]:
        """The beginning of the report's row; `place` says which it is."""
        return {**place, "title": self.title, "note": self.note, "runs": self.runs}


def measure_in_turns(module: str, entries: Sequence[Entry], repeats: int, folder: Path, title: str,
                     summarize: Callable[[dict[str, Any]], str], before_turn: Callable[[], None] | None = None,
                     tuned_malloc: bool = False) -> None:
    """Measure A B C, A B C, A B C, each run in a fresh process; an entry that fails gets a note and no further run.

    Args:
        module: the child's.
        entries: those without a note are measured; their runs are appended.
        folder: NAME.json there are the figures of an entry's last run.
        title: of the setting that the entries share, for the log.
        summarize: a run's figures in a few words, for the log.
        before_turn: called at the beginning of each turn.
        tuned_malloc: see run_child.
    """
    for turn in range(1, repeats + 1):
        if before_turn:
            before_turn()
        for entry in entries:
            if entry.note:
                continue
            what = f"{title}, run {turn} of {repeats}: {entry.title}"
            logger.info("%s …", what)
            try:
                figures = run_child(module, Job(entry.name, entry.setting, str(folder / f"{entry.name}.json")),
                                    tuned_malloc)
            except RuntimeError as error:
                figures = {"note": str(error)}
            if "note" in figures:
                entry.note = figures["note"]
                logger.error("%s: %s", what, entry.note)
            else:
                entry.runs.append(figures)
                logger.info("%s: %s", what, summarize(figures))


def new_report(options: Any) -> dict[str, Any]:
    """A report that JSON can hold, still without rows.

    Args:
        options: a dataclass with a `device`.
    """
    return {"machine": describe(options.device), "plan": asdict(options), "rows": []}


# ------------------------------------------------------------------------------------------------------------- options
def choose_device(device: str) -> str:
    """ "cpu" or "cuda"; "auto" is cuda if there is an accelerator.

    Raises:
        ValueError: device is "cuda" and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds none on this machine; use cpu")
    return device


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "256x128".

    Raises:
        ValueError: it is not HEIGHTxWIDTH.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"size {text!r} is not HEIGHTxWIDTH, such as 256x128")
    return int(height), int(width)


def check_names(kind: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Raise ValueError, with the choices, for the first name that is none of them."""
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(choices)}")
