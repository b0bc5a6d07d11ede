"""Commands of this repository in processes of their own, and what must never be seen of one."""
from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.process import EXIT_STOPPED

ROOT = Path(__file__).resolve().parent.parent.parent
OUR_EXIT_CODES = {0, 1, 2, EXIT_STOPPED, 130}  # utils.logger.run_tool's; a negative one is a signal
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit code, negative where a signal ended it.
        output: what it printed, both streams.
        seconds: by the clock.
        is_hung: it took longer than it was given, and was killed.
        peak_bytes: the largest memory of it or of a child of it.
    """

    words: tuple[str, ...]
    code: int
    output: str
    seconds: float
    is_hung: bool
    peak_bytes: int


def tool(name: str, *words: object) -> list[str]:
    """The words of `python tools/NAME.py WORD ...`."""
    return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]


def run_command(words: Sequence[str], *, seconds: float = 600, env: Mapping[str, str] | None = None,
                cwd: Path = ROOT, disturb: Callable[[subprocess.Popen], None] | None = None,
                wrapper: Sequence[str] = ()) -> Ended:
    """Run a command to its end, in a group of its own.

    Args:
        seconds: the whole group is killed after these.
        env: put into the environment; (PATH and all else stay).
        disturb: called in a thread with the process as soon as it has begun: it may sleep, and send signals.
        wrapper: words before the command, such as ["prlimit", "--as=..."].
    """
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*wrapper, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                   cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True,
                                   preexec_fn=hear_signals)
        thread = None
        if disturb is not None:
            thread = threading.Thread(target=disturb, args=(process,), daemon=True)
            thread.start()
        is_hung = False
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            is_hung = True
        kill_group(process)
        process.wait()
        if thread is not None:
            thread.join(timeout=seconds)
        out.seek(0)
        output = out.read().decode("utf-8", "replace")
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest child so far: an upper bound
    return Ended(tuple(words), process.returncode, output, time.monotonic() - start, is_hung, after * 1024)


def hear_signals() -> None:
    """Let this process be ended by what a campaign in the background (`nohup`, `&`) ignores; to be called in a child.

    What is ignored stays so in a new program, which is right for a tool and makes a campaign's cases others.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def kill_group(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to a command and to all that it has begun, if any of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def fault_of(ended: Ended) -> tuple[str, str] | None:
    """(kind, detail) of what a user must never see of a command: a traceback, a hang, a crash; None if all is well."""
    tail = ended.output[-1500:]
    if ended.is_hung:
        return "hang", f"killed after {ended.seconds:.0f} s: {tail}"
    if ended.code < 0 or (ended.code > 128 and ended.code != 130):
        return "crash", f"ended by {ended.code}: {tail}"
    if _TRACEBACK in ended.output:
        return "traceback", ended.output[ended.output.index(_TRACEBACK):][:1500]
    if ended.code not in OUR_EXIT_CODES:
        return "exit code", f"{ended.code}: {tail}"
    if ended.code == 1 and "error" not in ended.output.lower() and not ended.output.strip():
        return "exit code", "1 without a word"
    return None
