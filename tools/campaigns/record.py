"""What a campaign tried and found, and the random choices that made it, which a seed repeats."""
from __future__ import annotations

import logging
import random
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.files import write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """Something that must not happen.

    Attributes:
        fault: its kind, such as "traceback", "hang", "crash", "memory", "exit code", "lost", "differs", "code run".
        case: the number of the case; `tools/campaign.py NAME --seed S --only CASE` repeats it.
        tried: what was done, in words.
        detail: what came of it: the end of an output, the names of files that differ.
        kept: the input that made it, below the campaign's folder; empty if there is none.
    """

    fault: str
    case: int
    tried: str
    detail: str
    kept: str = ""


@dataclass
class Campaign:
    """One kind of trial: it is told what to try for how long, and is told what came of it.

    Attributes:
        name: of the kind, such as "kill".
        folder: its own, for the work and what is kept; empty at the start.
        seed: of all random choices.
        seconds: no case begins later than this after the start.
        only: try this case alone; None: all of them.
        quick: a short run over the cheapest cases, for the tests.
        chores: of the campaigns of many commands these alone; empty: all.
        every: of the campaign of disks: fail each change of a file once, in order, instead of drawn ones.
        tried: {what: how often}, in the words of the table of docs/reliability.md.
    """

    name: str
    folder: Path
    seed: int = 0
    seconds: float = 60.0
    only: int | None = None
    quick: bool = False
    chores: tuple[str, ...] = ()
    every: bool = False
    tried: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)

    def cases(self, count: int | None = None):
        """Yield (number, random.Random of this case alone) until the time is over or `count` cases have begun."""
        number = 0 if self.only is None else self.only
        while (count is None or number < count) and (self.only is not None or not self.is_over()):
            yield number, random.Random(f"{self.name} {self.seed} {number}")
            if self.only is not None:
                return
            number += 1

    def is_over(self) -> bool:
        return time.monotonic() - self._start > self.seconds

    def count(self, what: str, times: int = 1) -> None:
        """`what` was tried once more."""
        self.tried[what] += times
        if sum(self.tried.values()) % 100 == 0:
            logger.info("%s: %d tried in %.0f s, %d found", self.name, sum(self.tried.values()),
                        time.monotonic() - self._start, len(self.findings))

    def found(self, fault: str, case: int, tried: str, detail: str, kept: Path | None = None) -> None:
        """Record a finding; `kept`, a file or a folder, is copied below the campaign's folder."""
        name = ""
        if kept is not None and kept.exists():
            name = f"found/{len(self.findings)}_{kept.name}"[:200]
            (self.folder / "found").mkdir(exist_ok=True)
            copy = shutil.copytree if kept.is_dir() else shutil.copyfile
            copy(kept, self.folder / name)
        self.findings.append(Finding(fault, case, tried, detail[-2000:], name))
        logger.warning("%s: %s in case %d: %s\n    %s", self.name, fault, case, tried,
                       detail[-600:].replace("\n", "\n    "))

    def note(self, text: str) -> None:
        """Something that a reader of the table must know: what this machine could not try, what a figure is."""
        self.notes.append(text)
        logger.info("%s: %s", self.name, text)

    def write(self) -> dict[str, Any]:
        """Write findings.json into its folder.

        Returns:
            The same: name, seed, seconds, {tried: times}, findings, notes.
        """
        report = {"name": self.name, "seed": self.seed, "seconds": round(time.monotonic() - self._start, 1),
                  "tried": dict(self.tried), "findings": [asdict(finding) for finding in self.findings],
                  "notes": self.notes}
        write_json(self.folder / "findings.json", report)
        return report


def format_reports(reports: list[dict[str, Any]]) -> str:
    """The table of docs/reliability.md: what was tried, how often, what was found."""
    lines = ["| campaign | tried | times | found |", "|---|---|---:|---|"]
    for report in reports:
        faults = Counter(finding["fault"] for finding in report["findings"])
        found = ", ".join(f"{times} {fault}" for fault, times in faults.items()) or "nothing"
        for row, (what, times) in enumerate(report["tried"].items()):
            lines.append(f"| {'' if row else report['name']} | {what} | {times:,} | {'' if row else found} |")
        lines += [f"| | note: {note} | | |" for note in report["notes"]]
    return "\n".join(lines)
