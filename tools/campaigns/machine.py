"""Odd machines: the tools where something is missing, closed, small, or in another language.

A fault is a traceback, a hang or a crash, another exit code than the condition allows, or other results than on a usual
machine.
"""
from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.campaigns.commands import ROOT, Ended, fault_of, run_command, tool
from tools.campaigns.machine_alone import PASS, SPECIALS, MemoryGroup, shell
from tools.campaigns.materials import Materials, make_locales
from tools.campaigns.paths import TRIALS, Place
from tools.campaigns.record import Campaign

_SECONDS = 400  # on a machine that does other work
_ROOMS = ("configs", "datasets", "loss", "model", "processor", "solver", "utils")
_NODES = " && ".join(f"mknod -m 666 /dev/{name} c 1 {number}" for name, number in
                     (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)))
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *s = getenv("CLOCK_SHIFT"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (!code && id == CLOCK_REALTIME) t->tv_sec += shift();
    return code;
}
time_t time(time_t *t) {
    struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


def _our_warnings() -> str:
    """PYTHONWARNINGS that make errors of what is blamed on a module of ours."""
    modules = (path.relative_to(ROOT).with_suffix("") for room in _ROOMS for path in (ROOT / room).rglob("*.py"))
    return ",".join(f"error:::{'.'.join(module.parts).removesuffix('.__init__')}" for module in modules)


class Condition(NamedTuple):
    """An odd machine.

    Attributes:
        wrapper: words before the command.
        env: variables of it; {home}, {work} are folders of the case and of the campaign.
        flags: of the interpreter.
        codes: exit codes besides the usual one.
        message: of these, what has to be in the output.
        extra: words after the command's own.
        tools: names of trials; () = any.
        is_result_same: the results are to be those of a usual machine.
    """

    wrapper: Sequence[str] = ()
    env: tuple[tuple[str, str], ...] = ()
    flags: Sequence[str] = ()
    codes: tuple[int, ...] = ()
    message: str = ""
    extra: Sequence[str] = ()
    tools: tuple[str, ...] = ()
    is_result_same: bool = True


_LIGHT = ("doctor", "doctor lists", "doctor people", "split_domains", "split_validation", "print config", "pipeline",
          "demo", "compare", "validate", "dry run", "gallery verify", "gallery compact")  # most do without torch
_TRAININGS = ("train", "train people", "train csv", "train packed", "train on validation")
_WORKERS = ("DATALOADER.NUM_WORKERS", "2")
CONDITIONS: dict[str, Condition] = {
    "HOME is not set": Condition(["env", "-u", "HOME", "-u", "XDG_CACHE_HOME"]),
    "HOME is empty text": Condition(env=(("HOME", ""), ("XDG_CACHE_HOME", ""))),
    "HOME is no folder": Condition(env=(("HOME", "/dev/null"), ("XDG_CACHE_HOME", "/dev/null/x"))),
    "HOME cannot be written": Condition(env=(("HOME", "/proc"), ("XDG_CACHE_HOME", "/proc/x"))),
    "/dev/shm of 64 MB": Condition(shell(f"mount -t tmpfs -o size=64m tmpfs /dev/shm && {PASS}", "unshare", "-m"),
                                   extra=_WORKERS, tools=_TRAININGS),
    "/dev/shm of 4 KB": Condition(shell(f"mount -t tmpfs -o size=4k tmpfs /dev/shm && {PASS}", "unshare", "-m"),
                                  extra=_WORKERS, tools=_TRAININGS, codes=(2,), message="/dev/shm"),
    "/dev/shm that cannot be written": Condition(
        shell(f"mount -t tmpfs -o ro tmpfs /dev/shm && {PASS}", "unshare", "-m"),
        extra=_WORKERS, tools=_TRAININGS, codes=(2,), message="/dev/shm"),
    "no /dev/shm": Condition(shell(f"mount -t tmpfs tmpfs /dev && {_NODES} && {PASS}", "unshare", "-m"),
                             extra=_WORKERS, tools=_TRAININGS, codes=(2,), message="/dev/shm"),
    "no /dev/shm and no processes": Condition(
        shell(f"mount -t tmpfs tmpfs /dev && {_NODES} && {PASS}", "unshare", "-m")),
    "no /proc": Condition(shell(f"mount -t tmpfs -o ro tmpfs /proc && {PASS}", "unshare", "-m"),
                          is_result_same=False),  # what the CPU can do is read there, so the precision may be another
    "one core": Condition(["taskset", "-c", "0"]),
    "locale C": Condition(env=(("LC_ALL", "C"),)),
    "locale C, ASCII": Condition(env=(("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0"))),
    "locale POSIX, ASCII": Condition(env=(("LC_ALL", "POSIX"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0"))),
    "a locale that is not there": Condition(env=(("LC_ALL", "xx_YY.UTF-8"), ("PYTHONUTF8", "0"))),
    "locale GB18030": Condition(env=(("LC_ALL", "zh_CN.GB18030"), ("LOCPATH", "{work}/locales"), ("PYTHONUTF8", "0"))),
    "ASCII streams": Condition(env=(("PYTHONIOENCODING", "ascii"),)),
    "stdin closed": Condition(shell(f"{PASS} <&-")),
    "stdout closed": Condition(shell(f"{PASS} >&-")),
    "stderr closed": Condition(shell(f"{PASS} 2>&-")),
    "all streams closed": Condition(shell(f"{PASS} <&- >&- 2>&-")),
    "stdout full": Condition(shell(f"{PASS} >/dev/full"), codes=(2,), message="No space left"),
    "stderr full": Condition(shell(f"{PASS} 2>/dev/full")),
    "stdout's reader has gone": Condition(shell('"$@" | true; exit ${PIPESTATUS[0]}'), codes=(141,)),
    "both streams' reader has gone": Condition(shell('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}'), codes=(141,)),
    "umask 077": Condition(shell(f"umask 077; {PASS}")),
    "umask 777 of others": Condition(shell(f"umask 027; {PASS}")),
    "a working directory that cannot be written": Condition(shell(f"cd /proc; {PASS}")),
    "a working directory that is gone": Condition(shell(f"d=$(mktemp -d); cd $d; rmdir $d; {PASS}"),
                                              codes=(2,), message="working directory"),
    "TMPDIR is missing": Condition(env=(("TMPDIR", "/nowhere"),)),
    "no room in TMPDIR": Condition(
        shell(f"mount -t tmpfs -o size=4k tmpfs $TMPDIR; yes >$TMPDIR/full; {PASS}", "unshare", "-m")),
    "python -O": Condition(flags=("-O",)),
    "python -OO": Condition(flags=("-OO",)),
    "python -I": Condition(flags=("-I",)),
    "python -B -u": Condition(flags=("-B", "-u")),
    "our warnings are errors": Condition(env=(("PYTHONWARNINGS", _our_warnings()),), flags=("-X", "dev")),
    "PYTHONHASHSEED": Condition(env=(("PYTHONHASHSEED", "1"),)),
    "another PYTHONHASHSEED": Condition(env=(("PYTHONHASHSEED", "4242"),)),
    "files: 64 at a time": Condition(shell(f"ulimit -n 64; {PASS}")),
    "nice 5 more, SIGHUP and SIGPIPE ignored": Condition(shell(f"trap '' HUP PIPE; {PASS}", "nice", "-n", "5")),
    "a terminal of 40 columns": Condition(),
    "a memory limit of 3 GB": Condition(),
    "a clock 10 years ahead": Condition(env=(("LD_PRELOAD", "{work}/clock.so"), ("CLOCK_SHIFT", "315360000"))),
    "a clock of 1970": Condition(env=(("LD_PRELOAD", "{work}/clock.so"), ("CLOCK_SHIFT", f"-{int(time.time()) - 99}"))),
    "a time zone that is not there": Condition(env=(("TZ", "No/Where"),)),
    "OMP_NUM_THREADS is no number": Condition(env=(("OMP_NUM_THREADS", "many"),)),
    "COLUMNS is no number": Condition(env=(("COLUMNS", "wide"), ("LINES", "-1"))),
    "TERM is dumb": Condition(env=(("TERM", "dumb"), ("NO_COLOR", "1"))),
}
QUICK = ("HOME is not set", "stdout closed", "stdout's reader has gone", "locale C, ASCII")
QUICK_TOOLS = ("print config",)


def run_campaign(campaign: Campaign) -> None:
    """Walk round after round over the conditions, each time with another tool, and over what is tried by itself."""
    work = campaign.folder
    if "/dev/shm" in str(work) and not campaign.quick:
        raise ValueError(f"{work} cannot be seen where another /dev/shm is mounted: name an --output elsewhere")
    materials, plains = Materials(work / "materials"), {}
    if not campaign.quick:
        _make_clock(work / "clock.so")
        make_locales(work / "locales")
    names = list(QUICK if campaign.quick else CONDITIONS)
    random.Random(campaign.seed).shuffle(names)
    names += [] if campaign.quick else SPECIALS  # which take minutes
    for number, rng in campaign.cases(len(QUICK) if campaign.quick else None):
        turn, place_of = divmod(number, len(names))
        condition_name = names[place_of]
        if condition_name in SPECIALS:
            SPECIALS[condition_name](campaign, number, materials, rng)
            continue
        condition, name = CONDITIONS[condition_name], tool_of(condition_name, campaign, turn)
        if (missing := unavailable(condition_name)):
            campaign.note(f"case {number}: {condition_name}: {missing}")
            continue
        key = name, bool(condition.extra)
        if key not in plains:
            plains[key] = _run_usual(work, materials, name, condition.extra)
        place = Place(work / "case", materials, TRIALS[name])
        ended = run_under(condition_name, place, work)
        campaign.count(condition_name)
        for fault, detail in judge(condition_name, place, ended, plains[key]):
            campaign.found(fault, number, f"{name}: {condition_name}", detail)
    shutil.rmtree(work / "case", ignore_errors=True)
    shutil.rmtree(materials.folder, ignore_errors=True)


def tool_of(condition_name: str, campaign: Campaign, turn: int) -> str:
    """The trial that a condition is tried with in its n-th turn: none comes again before all have been there.

    Two of three are light as long as there are any, because a machine is tried with several in the time of one other.
    """
    tools = list(QUICK_TOOLS if campaign.quick else CONDITIONS[condition_name].tools or TRIALS)
    again, turn = divmod(turn, len(tools))
    random.Random(f"{campaign.seed} {condition_name} {again}").shuffle(tools)
    light, other = ([name for name in tools if (name in _LIGHT) == is_light] for is_light in (True, False))
    ordered = []
    while light or other:
        ordered += light[:2] + other[:1]
        light, other = light[2:], other[1:]
    return ordered[turn]


def unavailable(condition_name: str) -> str:
    """Why a condition cannot be tried here, or ""."""
    if condition_name == "a memory limit of 3 GB" and not MemoryGroup.is_there():
        return "no memory cgroup can be made here"
    return ""


def run_under(name: str, place: Place, work: Path) -> Ended:
    """Run a place's command on an odd machine."""
    condition = CONDITIONS[name]
    tool_name, words, env = place.command()
    words = tool(tool_name, *words, *condition.extra)
    words[1:1] = condition.flags
    env |= {key: value.format(home=place.folder / "home", work=work) for key, value in condition.env}
    how = {"seconds": _SECONDS, "env": {key: str(value) for key, value in env.items()}, "cwd": place.folder / "cwd"}
    if name == "a terminal of 40 columns":
        words = ["script", "-qec", f"stty cols 40 rows 20; {shlex.join(words)}", "/dev/null"]
    if name == "a memory limit of 3 GB":
        with MemoryGroup(3 << 30) as group:
            return run_command(words, wrapper=group.wrapper, **how)
    return run_command(words, wrapper=condition.wrapper, **how)


def judge(name: str, place: Place, ended: Ended, usual: tuple[int, dict[str, str]]) -> list[tuple[str, str]]:
    """(fault, detail) of what must not be."""
    condition, tail = CONDITIONS[name], f"exit code {ended.code}: {ended.output[-1500:]}"
    if ended.code in condition.codes and ended.code != usual[0]:
        if "Traceback" in ended.output or "Exception ignored" in ended.output:
            return [("traceback", tail)]
        return [] if condition.message in ended.output else [("message", tail)]
    if fault := fault_of(ended):
        return [fault]
    if ended.code != usual[0]:
        return [("exit code", f"{usual[0]} on a usual machine; {tail}")]
    if "Exception ignored" in ended.output or "--- Logging error ---" in ended.output:
        return [("traceback", tail)]
    wide = [line for line in re.split(r"[\r\n]", ended.output) if "%|" in line and len(line) > 40]
    if name == "a terminal of 40 columns" and wide:
        return [("broken line", wide[0])]
    results = place.results()
    if condition.is_result_same and results != usual[1]:
        differing = sorted(key for key in results.keys() | usual[1].keys() if results.get(key) != usual[1].get(key))
        return [("differs", f"{', '.join(differing[:9])}; {tail}")]
    return []


def _run_usual(work: Path, materials: Materials, name: str, extra: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Exit code and results of a command on this machine as it is."""
    place = Place(work / "case", materials, TRIALS[name])
    tool_name, words, env = place.command()
    ended = run_command(tool(tool_name, *words, *extra), seconds=_SECONDS, cwd=place.folder / "cwd",
                        env={key: str(value) for key, value in env.items()})
    if ended.code not in (0, 1) or fault_of(ended):
        raise RuntimeError(f"{name} fails on the machine as it is: {ended.output[-2000:]}")
    return ended.code, place.results()


def _make_clock(path: Path) -> None:
    """A library to preload, which shifts the clock by CLOCK_SHIFT seconds."""
    source = path.with_suffix(".c")
    source.write_text(_CLOCK, encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", path, source, "-ldl"], check=True, capture_output=True)
