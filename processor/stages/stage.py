"""One stage of a pipeline, and what is to be done about it: skip it, run it, go on with it, or stop.

A stage's record is OUTPUT_ROOT/stages/NAME.done.json, {"facts": {WHAT: VALUE}, "seconds": S, "outputs": {PATH: SIZE}},
with paths relative to OUTPUT_ROOT; NAME.begun.json has the facts alone. Nothing in it depends on where OUTPUT_ROOT or
the data lie, so that a folder can be moved, copied or mounted elsewhere.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from processor.stages.earlier import is_of_earlier, relative_outputs
from processor.training.used_folder import checkpoint_files, next_sibling
from utils.files import read_json, write_json

Facts = dict[str, Any]  # what a result depends on; None: that cannot be known, and is not compared

SKIP, RUN, RESUME, STOP = "be skipped", "run", "go on", "stop"


class Verdict(NamedTuple):
    """What is to be done about a stage, of SKIP, RUN, RESUME and STOP, and why."""

    action: str
    why: str


@dataclass(frozen=True)
class Stage:
    """One command of tools/ and what its result depends on.

    Attributes:
        command: tool and arguments.
        outputs: the files that it leaves.
        settings: the facts that the config and the command line give.
        data: reads the other facts, of files.
        after: names of the stages whose results it reads.
        begin: of a training: raises ValueError unless a run could go on from the checkpoints that are there, and
            returns the one it would go on from. Such a stage is never run over checkpoints that are there.
        earlier: what earlier versions compared instead of facts, beside the command.
        optional: its failure is a warning, because no result depends on it.
    """

    name: str
    command: list[str]
    outputs: list[Path]
    settings: Facts = field(default_factory=dict)
    data: Callable[[], Facts] = dict
    after: tuple[str, ...] = ()
    begin: Callable[[], Path] | None = None
    earlier: Callable[[], list[str]] = list
    optional: bool = False

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return self.outputs[0].parent

    def facts(self) -> Facts:
        """All of them, as a record gives them back."""
        return json.loads(json.dumps({**self.settings, **self.data()}))


# ------------------------------------------------------------------ records
def read_record(stage: Stage, out: Path, kind: str) -> dict:
    """A stage's record, kind "done" or "begun"; {} if it is missing or damaged."""
    try:
        record = read_json(_record_path(stage, out, kind))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return record if all(isinstance(record.get(name, {}), dict) for name in ("facts", "outputs")) else {}


def write_begun(stage: Stage, out: Path, facts: Facts) -> None:
    """Record that a stage begins: from now on it is not done."""
    _record_path(stage, out, "done").unlink(missing_ok=True)
    write_json(_record_path(stage, out, "begun"), {"facts": facts})


def write_done(stage: Stage, out: Path, facts: Facts, seconds: float) -> None:
    """Record that a stage has ended well."""
    write_json(_record_path(stage, out, "done"), {"facts": facts, "seconds": seconds, "outputs": sizes(stage, out)})


def _record_path(stage: Stage, out: Path, kind: str) -> Path:
    return out / "stages" / f"{stage.name}.{kind}.json"


def sizes(stage: Stage, out: Path) -> dict[str, int]:
    """{path relative to `out`: size} of the outputs that are there."""
    return {os.path.relpath(path, out): path.stat().st_size for path in stage.outputs if path.is_file()}


def changes(then: Facts, now: Facts) -> list[str]:
    """`WHAT was X and is Y` for each of `now`'s facts that was another; what is not known on a side is no change."""
    return [f"{what} was {_short(then[what])} and is {_short(value)}" for what, value in now.items()
            if what in then and None not in (value, then[what]) and then[what] != value]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------ verdicts
def assess(stage: Stage, out: Path, waiting: Collection[str] = ()) -> Verdict:
    """What is to be done about a stage.

    Args:
        out: OUTPUT_ROOT.
        waiting: names of stages that will be run before this one is.
    Raises:
        ValueError, OSError: what it reads is not as it must be.
    """
    first = next((name for name in stage.after if name in waiting), None)
    if stage.begin is not None:
        return _assess_training(stage, out, first)
    record = read_record(stage, out, "done")
    if first is not None:
        return Verdict(RUN, f"unless {first} leaves what was there before" if record else "not done yet")
    facts = stage.facts()
    if not record:
        return Verdict(RUN, "not done yet")
    changed = _changes_of(stage, out, record, facts)
    return Verdict(RUN, "; ".join(changed)) if changed else Verdict(SKIP, "done before")


def _assess_training(stage: Stage, out: Path, first: str | None) -> Verdict:
    """As `assess`: nothing that took hours is run over."""
    if not checkpoint_files(stage.folder):
        if first is None:
            stage.data()  # raises what a training would
        known = any(read_record(stage, out, kind) for kind in ("done", "begun"))
        return Verdict(RUN, "its checkpoints are gone" if known else "not done yet")
    done = read_record(stage, out, "done")
    record = done or read_record(stage, out, "begun")
    try:
        data = stage.data()
    except (OSError, ValueError):
        if first is None:
            raise
        data = {}  # not made yet
    facts = {**stage.settings, **data}
    if done and not (changed := _changes_of(stage, out, done, json.loads(json.dumps(facts)))):
        return Verdict(SKIP, "done before")
    # What a checkpoint does not know of: the run itself asks for the same settings and lists.
    if changed := changes(record.get("facts", {}), json.loads(json.dumps(data))):
        return Verdict(STOP, "; ".join(changed))
    try:
        return Verdict(RESUME, f"from {os.path.relpath(stage.begin(), out)}")
    except ValueError as error:
        return Verdict(STOP, "; ".join(getattr(error, "changes", [])) or str(error))


def _changes_of(stage: Stage, out: Path, record: dict, facts: Facts) -> list[str]:
    """Why a stage with this record is not done, [] if it is."""
    there = sizes(stage, out)
    if "facts" not in record:
        if not is_of_earlier(record, stage.command, stage.earlier(), out, list(there)):
            return ["its record is of an earlier version, and something has changed"]
        record = {"facts": {}, "outputs": relative_outputs(record, list(there))}
    if changed := changes(record["facts"], facts):
        return changed
    names = [os.path.relpath(path, out) for path in stage.outputs]
    return [f"{name} is {'of another size' if name in there else 'missing'}" for name in names
            if there.get(name, -1) != record.get("outputs", {}).get(name)]


def refusal(stage: Stage, verdict: Verdict) -> str:
    """The message for a training that stops instead of overwriting another one."""
    return (f"{stage.name}: {stage.folder} holds checkpoints of another training, and nothing is overwritten: "
            f"{verdict.why}. Undo the change, name another OUTPUT_ROOT, or let --force move the folder aside to "
            f"{next_sibling(stage.folder)} and train anew")
