"""Commands that are killed and stopped again and again, and must end as if nothing had been.

A chain is about ten signals to one command, each followed by the same command; whenever it comes to its end, what it
leaves is compared with what an undisturbed one leaves.
"""
from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
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
    ended,
    fault_of_chore,
    named,
    stable,
    undisturbed,
)
from tools.campaigns.record import Campaign
from tools.campaigns.tool_server import Running
from tools.campaigns.watched import MADE, Answer, Change, Watcher, can_watch

logger = logging.getLogger(__name__)

QUICK = ("domains", "pack")
# What a chain is not tried on: to write one file and to be refused on it the second time is all that there is.
_LEFT_OUT = ("validation", "ensemble", "import", "calibrate")
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
_SHARE = 0.5  # of a command of stages: where in it a signal falls at the latest, since the next one goes on from there
_LENGTH, _LENGTHS = 10, dict.fromkeys(SLOW, 5) | {"run.sh": 3}
_BUSY = re.compile("another run is at work")
_PATIENCE = 60  # seconds that what was begun by a killed command may go on


class Undisturbed(NamedTuple):
    content: Content
    changes: int
    seconds: float


def run_campaign(campaign: Campaign) -> None:
    """Chains over the commands in turn, as long as there is time."""
    why_not = can_watch()
    if why_not:
        campaign.note(f"only moments by the clock, not those of a write: {why_not}")
    names = [name for name in CHORES if name not in _LEFT_OUT and (not campaign.quick or name in QUICK)]
    chores = named(names, campaign.chores)
    household = Household(campaign.folder)
    known: dict[str, Undisturbed] = {}
    for number, random in campaign.cases(1 if campaign.quick else None):
        chore, _ = chore_of(number, chores, SLOW)
        start = time.monotonic()
        whole = _known(campaign, household, chore, known, number)
        middle = time.monotonic()
        for fault, tried, detail in _chain(campaign, household, chore, whole, random, not why_not):
            campaign.found(fault, number, f"{chore.name}: {tried}", detail)
        logger.info("case %d, %s: %.0f s undisturbed, %.0f s its chain; %s", number, chore.name, middle - start,
                    time.monotonic() - middle, ", ".join(f"{times} {what.partition(': ')[2]}" for what, times in
                                                         campaign.tried.items() if what.startswith(f"{chore.name}: ")))
    if household.litter:
        campaign.note(f"hidden temporary files of killed ones were left beside {', '.join(sorted(household.litter))}")


def _known(campaign: Campaign, household: Household, chore: Chore, known: dict[str, Undisturbed],
           number: int) -> Undisturbed:
    """What comes of the chore undisturbed, or of one that does the same; known holds it from then on."""
    name = chore.like or chore.name
    if name not in known:
        known[name], unlike = _undisturbed(household, CHORES[name])
        if unlike:
            campaign.found("differs", number, f"{name}, undisturbed again", unlike)
    return known[name]


def _undisturbed(household: Household, chore: Chore) -> tuple[Undisturbed, str]:
    with Watcher(household.at) as watcher:
        if chore.name in SLOW:
            return Undisturbed(undisturbed(household, chore, watcher), len(watcher.changes), household.seconds), ""
        content, unlike = stable(household, chore, watcher)
    return Undisturbed(content, len(watcher.changes) // 2, household.seconds), unlike


def _chain(campaign: Campaign, household: Household, chore: Chore, whole: Undisturbed, random: Random,
           watches: bool) -> list[tuple[str, str, str]]:
    """(kind, what was tried, detail) of what must not be."""
    household.restore(chore)
    tried: list[str] = []
    again = False
    share = _SHARE if chore.has_stages else 1.0
    length = _LENGTHS.get(chore.name, _LENGTH)
    for turn in range(length + 1):
        blow = _Blow.drawn(random, whole, watches, share) if turn < length else None
        done = _attempt(household, chore, blow, again)
        if blow and blow.has_fallen:
            campaign.count(f"{chore.name}: {blow.number.name}")
            tried.append(str(blow))
        again = True
        was_signalled = blow and blow.has_fallen and done.returncode in (-signal.SIGKILL, -signal.SIGTERM)
        if blow and blow.has_fallen and not chore.is_script:  # torchrun's own last words are a traceback
            was_signalled = done.returncode != 0
        fault = None if was_signalled else fault_of_chore(done)
        if not fault and not was_signalled and done.returncode == 2 and not (blow and blow.has_fallen):
            fault = "does not go on", done.stderr[-1500:]
        if not fault and not done.returncode:
            unlike = difference(whole.content, household.content(chore))
            if unlike:
                fault = "differs", f"{unlike}\n{done.stderr[-600:]}"
            else:
                household.restore(chore)
                tried, again = [], False
        if fault:
            return [(fault[0], ", ".join(tried), fault[1])]
    return []


def _attempt(household: Household, chore: Chore, blow: _Blow | None, again: bool) -> subprocess.CompletedProcess:
    """Do the chore, on which the blow falls; wait for what a killed one has left at work."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with Watcher(household.at, blow.decide if blow else lambda change: MADE) as watcher:
            running = household.begin(chore, watcher, again)
            with blow.aimed_at(running) if blow else contextlib.nullcontext():
                done = ended(running)
        if not _BUSY.search(done.stderr) or time.monotonic() > deadline:
            return done
        time.sleep(0.5)


class _Blow:
    """A signal at a moment: so many seconds after the start, or at a change of a file, before, amid or after it."""

    def __init__(self, number: signal.Signals, seconds: float | None, change: int, where: str, all_of_them: bool):
        self.number, self.seconds, self.change, self.where = number, seconds, change, where
        self.all_of_them = all_of_them  # of processes that work together; False: the last alone
        self.has_fallen, self._running, self._is_aimed = False, [], threading.Event()

    @classmethod
    def drawn(cls, random: Random, whole: Undisturbed, watches: bool, share: float) -> _Blow:
        """share: of the undisturbed seconds or changes, in which it is to fall."""
        number = random.choice(_SIGNALS)
        seconds = random.uniform(0, share * whole.seconds) if not watches or random.random() < 0.4 else None
        return cls(number, seconds, random.randint(1, max(int(share * whole.changes), 1)),
                   random.choice(("before", "amid", "after")), random.random() < 0.7)

    def __str__(self) -> str:
        return f"{self.number.name} " + (f"{self.where} change {self.change}" if self.seconds is None
                                         else f"after {self.seconds:.2f} s")

    def decide(self, change: Change) -> Answer:
        if self.seconds is not None or self.has_fallen or change.number < self.change:
            return MADE
        self._is_aimed.wait(10)
        self.has_fallen = True
        if self.number == signal.SIGTERM or self.where == "after" or (self.where == "amid" and not change.can_be_cut):
            return Answer(then=self._fall)
        return Answer(is_cut=True, then=self._fall) if self.where == "amid" else Answer(5, then=self._fall)

    def _fall(self) -> None:
        for process in self._running if self.all_of_them else self._running[-1:]:
            if process.returncode is None:  # poll() would ask the server, which one thread may
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, self.number)

    @contextlib.contextmanager
    def aimed_at(self, running: list[Running]) -> Iterator[None]:
        self._running = running
        self._is_aimed.set()
        timer = threading.Timer(self.seconds or 0, self._by_the_clock)
        if self.seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _by_the_clock(self) -> None:
        self.has_fallen = any(process.returncode is None for process in self._running)
        self._fall()

