"""Disks that fail: writes of each command once with ENOSPC, once with EIO, once cut short, and disks that are full.

After it a command must have ended with one clear line, or be as good as undisturbed; and the same command, called again
with room, must leave what an undisturbed one leaves.
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tools.campaigns.chores import CHORES, Chore, Content, Household, difference, fault_of_chore, stable
from tools.campaigns.record import Campaign
from tools.campaigns.watched import MADE, Answer, Change, Watcher, can_watch

QUICK = ("domains",)
_LEFT_OUT = ("run.sh", "train, torchrun", "run.sh, forked")
_NEEDS_ROOM = re.compile(r"p?write(v2?)?|sendfile|copy_file_range|create|mkdir|fallocate|link|symlink")
_BY_CHANCE = re.compile(r"\d+\.[0-9a-f]{8}\.tmp|\d+")  # of the names of files
_EACH = 2  # trials of a kind of fault at a kind of change of a kind of file
_MOST = 150  # trials of a chore
_SMALL = 8  # trials of a chore on a small file system
_OF_SQLITE = ("disk I/O error", "database or disk is full", "unable to open database file")
_LINE = re.compile(r"^error: .+", re.MULTILINE)

# Kind of fault -> whether it can befall a change. "full": half of a write has room, and nothing after it.
FAULTS: dict[str, Callable[[Change], bool]] = {
    "ENOSPC": lambda change: True,
    "EIO": lambda change: True,
    "short": lambda change: change.can_be_cut,
    "full": lambda change: bool(_NEEDS_ROOM.fullmatch(change.call)),
}
SMALL = "small file system"  # of which a share of what the chore leaves has room


class Trial(NamedTuple):
    """A chore and its fault: of FAULTS at the change of a number, or SMALL with so many bytes of room."""

    chore: Chore
    kind: str
    at: int
    what: str  # the change, in words


def run_campaign(campaign: Campaign) -> None:
    """Try each command's writes in a random order, as far as there is time."""
    household = Household(campaign.folder)
    chores = [chore for chore in CHORES.values() if chore.name not in _LEFT_OUT
              and (not campaign.quick or chore.name in QUICK)]
    household.need(chores)
    contents: dict[str, Content] = {}
    trials: list[Trial] = []
    reasons = {"writes cannot be failed one by one": can_watch(), "no small file system": _why_no_mount(household.at)}
    for what, why_not in reasons.items():
        if why_not:
            campaign.note(f"{what}: {why_not}")
    watches, mounts = (not why_not for why_not in reasons.values())
    for chore in chores:
        contents[chore.name], unlike = stable(household, chore)
        if unlike:
            campaign.found("differs", -1, f"{chore.name}, twice undisturbed", unlike)
        random = Random(f"disk {campaign.seed} {chore.name}")
        if mounts:
            size = sum(path.stat().st_size for path in household.at.rglob("*") if path.is_file())
            trials += [Trial(chore, SMALL, random.randint(4096, max(size, 8192)), "") for _ in range(_SMALL)]
        if watches:
            found = list(_trials_of(household, chore, random))
            trials += random.sample(found, min(_MOST, len(found)))
    Random(campaign.seed).shuffle(trials)
    campaign.note(f"{len(trials)} trials were drawn")
    for number, _ in campaign.cases(min(len(trials), 5 if campaign.quick else len(trials))):
        trial = trials[number]
        campaign.count(f"{trial.chore.name}: {trial.kind}")
        is_small = trial.kind == SMALL
        with _small_file_system(household.at, trial.at) if is_small else contextlib.nullcontext(list) as grow:
            fault = _try(household, trial, contents[trial.chore.name], grow)
        if fault:
            campaign.found(fault[0], number, f"{trial.chore.name}: {trial.kind} at {trial.at} {trial.what}", fault[1])


def _trials_of(household: Household, chore: Chore, random: Random) -> Iterator[Trial]:
    """Some of each kind of change to each kind of file."""
    household.restore(chore)
    with Watcher(household.at) as watcher:
        household.finish(chore, watcher)
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in watcher.changes:
        groups.setdefault((change.call, _BY_CHANCE.sub("", change.path)), []).append(change)
    for changes in groups.values():
        for kind, can_befall in FAULTS.items():
            able = [change for change in changes if can_befall(change)]
            for change in random.sample(able, min(_EACH, len(able))):
                yield Trial(chore, kind, change.number, f"{change.call} {os.path.relpath(change.path, household.at)}")


def _try(household: Household, trial: Trial, whole: Content, grow: Callable[[], object]) -> tuple[str, str] | None:
    """(kind, detail) of what must not be; None if all is well."""
    household.restore(trial.chore)
    if trial.kind == SMALL:
        done, has_befallen = household.finish(trial.chore), True
    else:
        faults = Faults(trial.kind, trial.at)
        with Watcher(household.at, faults.decide) as watcher:
            done = household.finish(trial.chore, watcher)
        has_befallen = faults.has_begun
    fault = fault_of_chore(done)
    if fault:
        return fault
    if not done.returncode:
        unlike = difference(whole, household.content(trial.chore))
        return ("taken for whole", f"exit code 0, but {unlike}; {done.stderr[-1000:]}") if unlike else None
    if trial.kind == "short" or not has_befallen:
        return "exit code", f"{done.returncode} after a write of half: {done.stderr[-1000:]}"
    lines = _LINE.findall(done.stderr)
    if len(lines) != 1 or not _tells(lines[0]):
        return "unclear", done.stderr[-1000:]
    grow()
    done = household.finish(trial.chore, again=True)
    fault = fault_of_chore(done)
    if fault or done.returncode:
        return fault or ("does not go on", f"{lines[0]}\nagain: {done.stderr[-1000:]}")
    unlike = difference(whole, household.content(trial.chore))
    return ("differs", f"after {lines[0]}\nand once more: {unlike}") if unlike else None


def _tells(line: str) -> bool:
    """Whether a line says what the disk has said."""
    return any(text in line for text in (os.strerror(errno.ENOSPC), os.strerror(errno.EIO), *_OF_SQLITE))


class Faults:
    """What befalls a command: decide(Change) for a Watcher."""

    def __init__(self, kind: str, at: int):
        self.kind, self.at, self.has_begun = kind, at, False

    def decide(self, change: Change) -> Answer:
        can_befall = FAULTS[self.kind](change)
        if not can_befall or change.number < self.at or (self.has_begun and self.kind != "full"):
            return MADE
        is_first, self.has_begun = not self.has_begun, True
        if self.kind == "short" or (self.kind == "full" and is_first and change.can_be_cut):
            return Answer(is_cut=True)
        return Answer(error=errno.EIO if self.kind == "EIO" else errno.ENOSPC)


# ------------------------------------------------------------------ small file systems
@contextlib.contextmanager
def _small_file_system(folder: Path, room: int) -> Iterator[Callable[[], None]]:
    """A tmpfs of so many bytes at a folder, and what gives it all room."""
    _mount("mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(folder))
    try:
        yield lambda: _mount("mount", "-o", "remount,size=1g", str(folder))
    finally:
        _mount("umount", "-l", str(folder))


def _mount(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _why_no_mount(folder: Path) -> str:
    try:
        with _small_file_system(folder, 4096):
            return ""
    except OSError as error:
        return str(error)
