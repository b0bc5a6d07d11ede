"""Running commands: one at a time in a folder, output both seen and kept, no orphans."""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
# glibc otherwise gives large tensors' memory back to the system and takes it again, page by page, at every step:
# measured, training on the CPU is 15 % faster so.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32),
           "MALLOC_TOP_PAD_": str(2**28)}


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


def keep_freed_memory(most: int = 2**28) -> None:
    """Keep so many bytes of what this process frees for its next allocations (glibc); see _MALLOC."""
    with contextlib.suppress(AttributeError, OSError):  # another library
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, most)):
            libc.mallopt(option, value)


class LostWorker(RuntimeError):
    """A process that works for this one, or beside it, has died or gone away."""


class RunLock:
    """Holds a folder for one run; the system lets go of it however the run ends.

    This process alone holds the lock, not a loader's workers, which outlive a killed run by seconds. If the file system
    knows no locks, there is none.
    """

    _held: ClassVar[set[str]] = set()  # a process is not in its own way, and closing any handle of a file unlocks it

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> RunLock:
        self._name = os.path.realpath(self.path)
        taken = f"another run is at work in {self.path.parent}; wait for it or use another folder"
        if self._name in self._held:
            raise ValueError(taken)
        self._file = open(self.path, "a")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._file.close()
            raise ValueError(taken) from error
        except OSError as error:
            logger.debug("%s cannot be locked: %s", self.path, error)
        self._held.add(self._name)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.discard(self._name)
        self._file.close()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: not between a fork and an exec


def die_with_parent(parent: int) -> None:
    """Let this process, a child of `parent`, be killed with it, even at a kill -9 (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


class HeldSignals:
    """Within: signals to end wait until `release`, because Python swallows what handlers raise during a fork."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(signal.getsignal(number)):  # what is ignored or ends the process at once raises nothing
                    self._before[number] = signal.signal(number, lambda number, _: self._came.append(number))

    def __enter__(self) -> HeldSignals:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back to their handlers, and raise the first that came."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        came, self._before, self._came = self._came[:1], {}, []
        for number in came:
            signal.raise_signal(number)


def run_logged(command: list[str], log: Path, cwd: Path, tuned_malloc: bool = True) -> int:
    """Run a command, showing its output as it comes and keeping it in `log`; return its exit code.

    tuned_malloc: let it keep freed memory for its next allocations, which is faster and holds more.
    Interrupted, it ends the command by SIGTERM and waits for it. The command dies with this process, even at a kill -9
    (Linux), so that it cannot go on writing beside the next run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb", buffering=0) as kept, HeldSignals() as held, subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
        env={**(_MALLOC if tuned_malloc else {}), **os.environ},
    ) as process:
        def pass_on() -> None:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                kept.write(piece)
                with contextlib.suppress(OSError):  # the terminal was closed; the log goes on
                    sys.stderr.buffer.write(piece)
                    sys.stderr.buffer.flush()

        try:
            held.release()
            pass_on()
        except BaseException:
            process.terminate()
            pass_on()  # its last lines, and until it has ended: a training writes a checkpoint first
            raise
    return process.returncode


EXIT_STOPPED = 75  # "try again later" of sysexits.h: what was done is kept, and the same command with --resume goes on


class Stopped(BaseException):  # no Exception, for it is raised at any place, also where mistakes are dealt with
    """A run that got a signal to end has kept what it had done.

    Args:
        signal_name: the message.
        advice: what is kept, and how to go on.
    """

    def __init__(self, signal_name: str, advice: str = "the checkpoint is written, --resume goes on from it"):
        super().__init__(signal_name)
        self.advice = advice


class StopRequest:
    """Within `with`: `requested` is the name of the first signal that came, "" before.

    A second SIGINT (Ctrl-C twice) interrupts at once, as if there were no such object. Outside of the main thread no
    signal is caught.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = ""
        self._came, self._patience = 0.0, None  # when the signal came; seconds after which it raises Stopped
        self._again = threading.Timer(0, lambda: None)  # sends the signal once more
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self._SIGNALS
                            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # nohup
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        again = bool(self.requested)
        self._came = self._came or time.monotonic()
        self.requested = self.requested or signal.Signals(number).name
        self._raise_in_time()
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    def _raise_in_time(self) -> None:
        """Raise Stopped if the patience is over; send the signal again later if not, or if that is swallowed.

        Python swallows what handlers raise while a process is forked.
        """
        if self._patience is None or not self.requested:
            return
        left = self._came + self._patience - time.monotonic()
        self._again.cancel()
        self._again = threading.Timer(max(left, 1.0), signal.pthread_kill, (threading.get_ident(), signal.SIGTERM))
        self._again.daemon = True
        self._again.start()
        if left <= 0:
            raise Stopped(self.requested)

    @contextlib.contextmanager
    def at_once(self, patience: float = 0.0) -> Iterator[None]:
        """Within: a signal raises Stopped so many seconds after it came, not at the end of a step.

        For work in which nothing can be lost, or that may never end.
        """
        self._patience = patience
        try:
            self._raise_in_time()
            yield
        finally:
            self._patience = None
            self._again.cancel()
