"""Readings of files in a forked process, with limits of time and memory, and what became of each."""
from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from utils.process import LostWorker

SECONDS = 10
MOST_MEMORY = 2 << 30  # bytes
_LIMIT = 6 << 30  # of a process' data, so that the machine survives what is found
# What utils.logger.run_tool makes a line of.
_OURS = (ValueError, OSError, FloatingPointError, LostWorker)
_allowed = 0  # seconds of the case at work
_TRACEBACK = "Traceback (most recent call last)"

Case = Callable[[Callable[[], None]], Any]  # calls what it is given when it begins to read, and gives what it read


class Outcome(NamedTuple):
    """What a reading came to.

    Attributes:
        fault: "" or "traceback", "hang", "crash", "memory".
        detail: the end of the traceback, the signal, the peak.
        error: the one line that a user would see; "" if it was read.
        value: a digest of what was read; "" if it was refused.
        peak_bytes: of the process.
    """

    fault: str = ""
    detail: str = ""
    error: str = ""
    value: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


def try_cases(cases: Sequence[Case], work: Path, seconds: int = SECONDS) -> Iterator[Outcome]:
    """The outcome of each case, one after the other in a forked process; after a death the next goes on in another.

    Args:
        work: the current folder of the process.
        seconds: of a processor that a case may take, and a sixth of those that it may take by the clock, because the
            machine may be busy; 0: any.
    """
    done = 0
    while done < len(cases):
        receive, send = os.pipe()
        process = os.fork()
        if not process:
            os.close(receive)
            _run(cases[done:], work, send, seconds)
        os.close(send)
        with os.fdopen(receive, encoding="utf-8") as answers:
            for line in answers:
                yield Outcome(*json.loads(line))
                done += 1
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if done < len(cases):
            said = (work / "said").read_text("utf-8", "replace")[-1500:]
            if -code in (signal.SIGALRM, signal.SIGPROF):
                yield Outcome("hang", f"not done after {seconds} s\n{said}", seconds=seconds)
            else:
                yield Outcome("crash", f"{signal.strsignal(-code) if code < 0 else f'exit code {code}'}\n{said}")
            done += 1


def _run(cases: Sequence[Case], work: Path, send: int, seconds: int) -> NoReturn:
    """Write a line of JSON for each case, and end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with its parent
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = os.open(work / "said", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, said, said)):
        os.dup2(file, number)
    sys.stdout = sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    logging.getLogger().handlers = [logging.StreamHandler(sys.stderr)]
    os.chdir(work)
    os.fsync = lambda _: None  # no power fails here, and a busy disk takes most of a case's time
    with os.fdopen(send, "w", encoding="utf-8") as answers:
        for case in cases:
            os.truncate(said, 0)
            print(json.dumps(_try(case, said, seconds)), file=answers, flush=True)
    os._exit(0)


def _try(case: Case, said: int, seconds: int) -> Outcome:
    start, fault, detail, error, value = time.process_time(), "", "", "", ""

    def begin() -> None:
        nonlocal start
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
        _limit(seconds)
        start = time.process_time()

    try:
        value = digest(case(begin))
    except _OURS as problem:
        error = str(problem).strip() or type(problem).__name__
    except MemoryError:
        fault, detail = "memory", traceback.format_exc()
    except BaseException:
        fault, detail = "traceback", traceback.format_exc()
    took = time.process_time() - start
    _limit(0)
    text = os.pread(said, 1 << 16, 0).decode("utf-8", "replace")
    if not fault and _TRACEBACK in text:
        fault, detail = "traceback", text
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text("ascii"))[1]) * 1024
    if peak > MOST_MEMORY and fault in ("", "traceback"):
        fault, detail = "memory", f"{peak / 2**20:,.0f} MiB\n{detail or error}"
    return Outcome(fault, detail[-3000:], error[:3000], value, took, peak)


def _limit(seconds: int) -> None:
    global _allowed
    _allowed = seconds
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(6 * seconds)


def begin_step() -> None:
    """What follows is another command's work, which has the whole time."""
    _limit(_allowed)


def digest(value: Any) -> str:
    """Of plain values, arrays and tensors, however they are nested."""
    hasher = hashlib.sha256()
    _add(hasher, value)
    return hasher.hexdigest()


def _add(hasher: Any, value: Any) -> None:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            hasher.update(repr(key).encode())
            _add(hasher, inner)
    elif isinstance(value, (list, tuple)):
        hasher.update(f"[{len(value)}".encode())
        for inner in value:
            _add(hasher, inner)
    else:
        hasher.update(repr(value).encode("utf-8", "surrogatepass"))
