"""Disks that fail: writes of each command once with ENOSPC, once with EIO, once cut short, and disks that are full.

Which changes of files fail is drawn, of each kind of change one first; with campaign.every each single one fails once,
in order. After it a command must have ended with one clear line, or be as good as undisturbed; and the same command,
called again with room, must leave what an undisturbed one leaves.
"""
from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tools.campaigns.chores import (
    CHORES,
    SLOW,
    Chore,
    Content,
    Household,
    chore_of,
    difference,
    fault_of_chore,
    named,
    undisturbed,
)
from tools.campaigns.record import Campaign
from tools.campaigns.watched import MADE, Answer, Change, Watcher, can_watch

logger = logging.getLogger(__name__)

QUICK = ("domains",)
_LEFT_OUT = ("run.sh",)  # its forked kin has the same stages
# A share of the chores' rounds: a round tries each kind of fault at a chore, of these one alone.
_DEAR = {"train, torchrun": 2, "run.sh, forked": 2, "pseudo rounds": 2}
_NEEDS_ROOM = re.compile(r"p?write(v2?)?|sendfile|copy_file_range|create|mkdir|fallocate|link|symlink")
_BY_CHANCE = re.compile(r"\d+\.[0-9a-f]{8}\.tmp|\d+")  # of the names of files
_OF_SQLITE = ("disk I/O error", "database or disk is full", "unable to open database file")
_BEFORE_IT = "MiB are free"  # of a command that asks for the room that it needs
_UNFINISHED = "the results are whole without it"  # of the pipeline's page and model folders, which come the next time
_LINE = re.compile(r"^error: .+", re.MULTILINE)

# Kind of fault -> whether it can befall a change. "full": half of a write has room, and nothing after it.
FAULTS: dict[str, Callable[[Change], bool]] = {
    "ENOSPC": lambda change: True,
    "EIO": lambda change: True,
    "short": lambda change: change.can_be_cut,
    "full": lambda change: bool(_NEEDS_ROOM.fullmatch(change.call)),
}
SMALL = "small file system"  # of which a share of what the chore leaves has room
_FAILING = ("ENOSPC", "EIO", "full")  # which the command is told of; of a half write it may make a whole one


class Trial(NamedTuple):
    """A chore and its fault: of FAULTS at the change of a number, or SMALL with so many bytes of room."""

    chore: Chore
    kind: str
    at: int
    what: str  # the change, in words
    kind_of_change: str = ""


class _Plan:
    """What is tried of a chore: for each kind of fault, trials in a random order, of each kind of change one first.

    content: what it leaves undisturbed.
    """

    def __init__(self, household: Household, chore: Chore, seed: int):
        self._chore, self._seed = chore, f"disk {seed} {chore.name}"
        with Watcher(household.at) as watcher:
            self.content = undisturbed(household, chore, watcher)
        self._size = sum(path.stat().st_size for path in household.at.rglob("*") if path.is_file())
        self._changes, self._at = watcher.changes, household.at
        self._trials = {kind: list(self._trials_of(kind)) for kind in FAULTS}

    def trial(self, kind: str, index: int) -> Trial | None:
        """The trial of a kind and a number; None if it has not so many."""
        if kind == SMALL:
            room = Random(f"{self._seed} {index}").randint(4096, max(self._size, 8192))
            return Trial(self._chore, SMALL, room, "")
        return self._trials[kind][index] if index < len(self._trials[kind]) else None

    def every(self, seed: int) -> Iterator[Trial]:
        """A trial of each change, in order; the kinds that fail it take turns, and the seed says which begins."""
        for change in self._changes:
            kinds = [kind for kind in _FAILING if FAULTS[kind](change)]
            yield self._trial(kinds[(change.number + seed) % len(kinds)], change)

    def _trials_of(self, kind: str) -> Iterator[Trial]:
        random = Random(f"{self._seed} {kind}")
        groups: dict[str, list[Change]] = {}
        for change in self._changes:
            if FAULTS[kind](change):
                groups.setdefault(kind_of(change), []).append(change)
        while groups:
            for key in random.sample(list(groups), len(groups)):
                yield self._trial(kind, groups[key].pop(random.randrange(len(groups[key]))))
            groups = {key: left for key, left in groups.items() if left}

    def _trial(self, kind: str, change: Change) -> Trial:
        what = f"{change.call} {os.path.relpath(change.path, self._at)}"
        return Trial(self._chore, kind, change.number, what, kind_of(change))


def kind_of(change: Change) -> str:
    """What is the same of a change when its command is done again, and of others to files of its kind."""
    return f"{change.call} {_BY_CHANCE.sub('', change.path)}"


def run_campaign(campaign: Campaign) -> None:
    """Try each kind of fault at each command in turn, round by round, as long as there is time."""
    chores = named([name for name in CHORES if name not in _LEFT_OUT and (not campaign.quick or name in QUICK)],
                   campaign.chores)
    household = Household(campaign.folder)
    if campaign.every:
        return _fail_every_change(campaign, household, chores)
    reasons = {"writes cannot be failed one by one": can_watch(), "no small file system": _why_no_mount(household.at)}
    for what, why_not in reasons.items():
        if why_not:
            campaign.note(f"{what}: {why_not}")
    watches, mounts = (not why_not for why_not in reasons.values())
    kinds = [*FAULTS] * watches + [SMALL] * mounts
    plans: dict[str, _Plan] = {}
    for number, _ in campaign.cases((1 if campaign.quick else None) if kinds else 0):
        chore, turn = chore_of(number, chores, _DEAR)
        start = time.monotonic()
        if chore.name not in plans:
            plans[chore.name] = _Plan(household, chore, campaign.seed)
        index, here = turn, kinds
        if chore.name in SLOW:
            index, which = divmod(turn // _DEAR.get(chore.name, 1), len(kinds))
            here = kinds[which:which + 1]
        tried = [trial for kind in here if (trial := plans[chore.name].trial(kind, index))]
        for trial in tried:
            fault = _try_alone(campaign, household, trial, plans[chore.name].content)
            if fault:
                campaign.found(fault[0], number, f"{chore.name}: {trial.kind} at {trial.at} {trial.what}", fault[1])
        logger.info("case %d, %s: %s in %.0f s", number, chore.name, ", ".join(trial.kind for trial in tried),
                    time.monotonic() - start)


def _fail_every_change(campaign: Campaign, household: Household, chores: Sequence[Chore]) -> None:
    """Fail each change of each command once, one command after the other, as long as there is time."""
    if why_not := can_watch():
        raise ValueError(f"--every: writes cannot be failed one by one: {why_not}")
    plans = {chore.name: _Plan(household, chore, campaign.seed) for chore in chores}
    trials = {name: list(plan.every(campaign.seed)) for name, plan in plans.items()}
    failed = Counter[str]()
    in_order = list(itertools.chain.from_iterable(trials.values()))
    for number, _ in campaign.cases(len(in_order)):
        trial = in_order[number]
        name, faults = trial.chore.name, Faults(trial.kind, trial.at)
        fault = _try(household, trial, plans[name].content, lambda room: None, faults)
        campaign.count(f"{name}: {trial.kind}")
        failed[name] += faults.first is not None and kind_of(faults.first) == trial.kind_of_change
        if fault:
            campaign.found(fault[0], number, f"{name}: {trial.kind} at {trial.at} {trial.what}", fault[1])
    for name, those in trials.items():
        campaign.note(f"{name}: {len(those)} changes of files, {failed[name]} of them have failed once each")


def _try_alone(campaign: Campaign, household: Household, trial: Trial, whole: Content) -> tuple[str, str] | None:
    campaign.count(f"{trial.chore.name}: {trial.kind}")
    is_small = trial.kind == SMALL
    with _small_file_system(household.at) if is_small else contextlib.nullcontext(lambda room: None) as resize:
        return _try(household, trial, whole, resize)


def _try(household: Household, trial: Trial, whole: Content, resize: Callable[[int | None], object],
         faults: Faults | None = None) -> tuple[str, str] | None:
    """(kind, detail) of what must not be; None if all is well.

    Args:
        resize: gives a small file system so many bytes above what lies there, or all room for None.
        faults: the trial's, for one who wants to know what they have befallen.
    """
    household.restore(trial.chore)
    if trial.kind == SMALL:
        resize(trial.at)
        done, has_befallen = household.finish(trial.chore), True
    else:
        faults = faults or Faults(trial.kind, trial.at)
        with Watcher(household.at, faults.decide) as watcher:
            done = household.finish(trial.chore, watcher)
        has_befallen = faults.first is not None
    fault = fault_of_chore(done)
    if fault:
        return fault
    if not done.returncode and _UNFINISHED not in done.stderr:
        unlike = difference(whole, household.content(trial.chore))
        return ("taken for whole", f"exit code 0, but {unlike}; {done.stderr[-1000:]}") if unlike else None
    if trial.kind == "short" or not has_befallen:
        return "exit code", f"{done.returncode} after a write of half: {done.stderr[-1000:]}"
    lines = _LINE.findall(done.stderr)
    if not lines or not any(map(_tells, lines)) or (len(lines) > 1 and not trial.chore.begins_others):
        return "unclear", done.stderr[-1000:]
    resize(None)
    done = household.finish(trial.chore, again=True)
    fault = fault_of_chore(done)
    if fault or done.returncode:
        return fault or ("does not go on", f"{lines[0]}\nagain: {done.stderr[-1000:]}")
    unlike = difference(whole, household.content(trial.chore))
    return ("differs", f"after {lines[0]}\nand once more: {unlike}") if unlike else None


def _tells(line: str) -> bool:
    """Whether a line says what the disk has said."""
    return any(text in line for text in (os.strerror(errno.ENOSPC), os.strerror(errno.EIO), *_OF_SQLITE, _BEFORE_IT))


class Faults:
    """What befalls a command: decide(Change) for a Watcher.

    first: the change that it has befallen first, None until then.
    """

    def __init__(self, kind: str, at: int):
        self.kind, self.at, self.first = kind, at, None

    def decide(self, change: Change) -> Answer:
        can_befall = FAULTS[self.kind](change)
        if not can_befall or change.number < self.at or (self.first and self.kind != "full"):
            return MADE
        is_first, self.first = self.first is None, self.first or change
        if self.kind == "short" or (self.kind == "full" and is_first and change.can_be_cut):
            return Answer(is_cut=True)
        return Answer(error=errno.EIO if self.kind == "EIO" else errno.ENOSPC)


# ------------------------------------------------------------------ small file systems
@contextlib.contextmanager
def _small_file_system(folder: Path) -> Iterator[Callable[[int | None], None]]:
    """A tmpfs at a folder, and what leaves it so many bytes of room, or all for None."""
    def resize(room: int | None) -> None:
        held = os.statvfs(folder)
        size = "1g" if room is None else (held.f_blocks - held.f_bfree) * held.f_frsize + room
        _mount("mount", "-o", f"remount,size={size}", str(folder))

    _mount("mount", "-t", "tmpfs", "-o", "size=1g", "none", str(folder))
    try:
        yield resize
    finally:
        _mount("umount", "-l", str(folder))


def _mount(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _why_no_mount(folder: Path) -> str:
    try:
        with _small_file_system(folder):
            return ""
    except OSError as error:
        return str(error)
