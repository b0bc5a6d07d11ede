"""What of an odd machine is tried by itself, and not with a drawn command: trainings that are stopped and go on at
another time or after their terminal was closed, workers with little shared memory, and the whole demo in 3 GB.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.campaigns.commands import ROOT, Ended, fault_of, hear_signals, kill_group, run_command, tool
from tools.campaigns.materials import Materials
from tools.campaigns.paths import TRIALS, Place
from tools.campaigns.record import Campaign
from utils.process import EXIT_STOPPED

PASS = 'exec "$@"'
_SECONDS = 300
_DEMO_SECONDS = 2400
_SMALL_SHM = f"mount -t tmpfs -o size=64m tmpfs /dev/shm && {PASS}"


def shell(script: str, *before: str) -> list[str]:
    """A wrapper: the command is "$@" of the script."""
    return [*before, "bash", "-c", script, "bash"]


class MemoryGroup:
    """A memory cgroup of its own, of version 1 or 2, for what `wrapper` begins.

    Attributes:
        wrapper: words before the command.
    """

    _ROOTS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "total_rss"),
              ("/sys/fs/cgroup", "memory.max", "memory.peak", "anon"))

    def __init__(self, size: int) -> None:
        root, limit, self._peak, self._field = next(way for way in self._ROOTS if self._fits(*way[:2]))
        self.folder = Path(root) / f"campaign_{os.getpid()}"
        self._limit, self._size, self._over = limit, size, threading.Event()
        self.resident = 0  # bytes, the most that was seen of what is not cache
        self.wrapper = shell(f"echo $$ > {self.folder}/cgroup.procs && {PASS}")

    @classmethod
    def is_there(cls) -> bool:
        return any(cls._fits(*way[:2]) for way in cls._ROOTS)

    @staticmethod
    def _fits(root: str, limit: str) -> bool:
        """Whether a group can be made below `root` that has the limit's file."""
        probe = Path(root) / f"probe_{os.getpid()}"
        try:
            probe.mkdir()
        except OSError:
            return False
        found = (probe / limit).exists()
        probe.rmdir()
        return found

    def __enter__(self) -> MemoryGroup:
        self.folder.mkdir()
        (self.folder / self._limit).write_text(str(self._size))
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(OSError):
                text = (self.folder / "memory.stat").read_text()
                self.resident = max(self.resident, int(re.search(rf"^{self._field} (\d+)", text, re.MULTILINE)[1]))

    def peak(self) -> int:
        """Bytes, the cache of files included: what the limit looks at."""
        return int((self.folder / self._peak).read_text())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        for _ in range(100):  # those that were killed may take a moment to be gone
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)


# ------------------------------------------------------------------------------ a training that is stopped, and goes on
def _words_of(place: Place, *words: str) -> tuple[list[str], dict[str, str]]:
    name, own, env = place.command()
    return (tool(name, *own, "SOLVER.MAX_EPOCHS", "3", "SOLVER.LOG_PERIOD", "1", *words),
            {key: str(value) for key, value in env.items()})


def _train(place: Place, *words: str, env: dict[str, str] | None = None,
           disturb: Callable[[subprocess.Popen], None] | None = None, wrapper: Sequence[str] = ()) -> Ended:
    command, usual = _words_of(place, *words)
    return run_command(command, seconds=_SECONDS, env=usual | (env or {}), cwd=place.folder / "cwd", disturb=disturb,
                       wrapper=wrapper)


def _try_clock(campaign: Campaign, number: int, materials: Materials, rng: random.Random) -> None:
    """A training that is stopped and goes on with a clock that was set back ends with the same weights."""
    place = Place(campaign.folder / "case", materials, TRIALS["train"])
    _train(place)
    whole = weights_digest(place.paths["out"])
    place = Place(campaign.folder / "case", materials, TRIALS["train"])
    clock = {"LD_PRELOAD": str(campaign.folder / "clock.so")}
    runs, code = 0, EXIT_STOPPED
    while code == EXIT_STOPPED and runs < 12:
        shift = {"CLOCK_SHIFT": str(rng.randrange(-10**8, 10**8))}
        ended = _train(place, *["--resume"] * (runs > 0), env={**clock, **shift},
                       disturb=_signal_after_iteration(place, signal.SIGTERM, runs))
        code, runs = ended.code, runs + 1
        if code != -signal.SIGTERM and (fault := fault_of(ended)):
            campaign.found(fault[0], number, "a training whose clock jumps", fault[1])
    campaign.count("a resume at another time", runs - 1)
    if code != 0 or weights_digest(place.paths["out"]) != whole:
        campaign.found("differs", number, "a training whose clock jumps", f"{code}: {ended.output[-1500:]}")


def _try_closed_terminal(campaign: Campaign, number: int, materials: Materials, rng: random.Random) -> None:
    """A terminal is closed: the checkpoint is written, no process is left, a resume ends with the same weights."""
    workers = rng.choice(("0", "2"))
    words, what = ("DATALOADER.NUM_WORKERS", workers), f"a closed terminal, {workers} workers"
    place = Place(campaign.folder / "case", materials, TRIALS["train"])
    _train(place, *words)
    whole = weights_digest(place.paths["out"])
    place = Place(campaign.folder / "case", materials, TRIALS["train"])
    command, env = _words_of(place, *words)
    code, output, is_left = run_in_terminal(command, env, place.folder / "cwd",
                                            lambda: _has_iteration(place.paths["out"] / "train_log.txt"))
    campaign.count(what)
    if code != EXIT_STOPPED or is_left:
        campaign.found("exit code" if code != EXIT_STOPPED else "orphan", number, what, f"{code}: {output[-900:]}")
    ended = _train(place, "--resume", *words)
    if ended.code or weights_digest(place.paths["out"]) != whole:
        campaign.found("differs", number, what, f"{ended.code}: {ended.output[-900:]}")


def run_in_terminal(words: Sequence[str], env: dict[str, str], cwd: Path,
                    is_time: Callable[[], bool]) -> tuple[int, str, bool]:
    """Run a command in a terminal of its own, which is closed as soon as `is_time`, or when the command has ended.

    Returns:
        Its exit code (-9: it had not ended _SECONDS after its start), what it printed until then, and whether a process
        of its group was left 5 seconds after it.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env={**os.environ, **env},
                               start_new_session=True, preexec_fn=_take_terminal)
    os.close(slave)
    os.set_blocking(master, False)
    output, deadline = b"", time.monotonic() + _SECONDS
    while process.poll() is None and not is_time() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            output += os.read(master, 1 << 16)
        time.sleep(0.02)
    os.close(master)  # the kernel sends SIGHUP, and what is written from now on fails with EIO
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=max(1.0, deadline - time.monotonic()))
    is_left, until = True, time.monotonic() + 5
    while is_left and time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            is_left = False
        time.sleep(0.05)
    kill_group(process)
    return process.wait(), output.decode("utf-8", "replace"), is_left


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    hear_signals()


def _has_iteration(log: Path, start: int = 0) -> bool:
    return log.exists() and b"Iteration[" in log.read_bytes()[start:]


def _signal_after_iteration(place: Place, number: int, runs: int) -> Callable[[subprocess.Popen], None]:
    """Send a signal as soon as this run has logged a step; only the first two runs get one."""
    def send(process: subprocess.Popen) -> None:
        log = place.paths["out"] / "train_log.txt"
        start = log.stat().st_size if log.exists() else 0
        while process.poll() is None:
            if _has_iteration(log, start):
                os.kill(process.pid, number)
                return
            time.sleep(0.05)

    return send if runs < 2 else lambda process: None


def weights_digest(folder: Path) -> str:
    """Of the tensors of the newest checkpoint's network; "" without one."""
    import torch

    if not (folder / "latest.pth").exists():
        return ""
    state = torch.load(folder / "latest.pth", weights_only=True, map_location="cpu")
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                add(value[name])

    add(state["model"])
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------- what is too small
def _try_shared_memory(campaign: Campaign, number: int, materials: Materials, rng: random.Random) -> None:
    """Two workers with batches of a competition's size in 64 MB of /dev/shm: the weights are those of no workers."""
    height, batch = rng.choice((("[256, 128]", 64), ("[384, 192]", 64), ("[384, 192]", 32)))
    # The pictures are a few; one epoch of a batch as large as there are, and P x K identities take each several times.
    words = ("SOLVER.MAX_EPOCHS", "1", "SOLVER.IMS_PER_BATCH", str(batch), "DATALOADER.NUM_INSTANCE", "8",
             "INPUT.SIZE_TRAIN", height, "SOLVER.EVAL_PERIOD", "0")
    what, digests = f"2 workers, {batch} images of {height} in 64 MB of /dev/shm", []
    for workers, wrapper in (("0", ()), ("2", shell(_SMALL_SHM, "unshare", "-m"))):
        place = Place(campaign.folder / "case", materials, TRIALS["train"])
        ended = _train(place, *words, "DATALOADER.NUM_WORKERS", workers, wrapper=wrapper)
        digests.append(weights_digest(place.paths["out"]))
        if fault := fault_of(ended):
            campaign.found(fault[0], number, what, fault[1])
    campaign.count(f"2 workers in 64 MB of /dev/shm: {'refused' if ended.code == 2 else 'trained'}")
    if ended.code == 2 and "/dev/shm" in ended.output:
        return
    if ended.code or not digests[0] or digests[0] != digests[1]:
        campaign.found("differs", number, what, f"{ended.code}: {ended.output[-1500:]}")


def _try_demo(campaign: Campaign, number: int, materials: Materials, rng: random.Random) -> None:
    """`bash run.sh` without any data, in 3 GB and 64 MB of /dev/shm, with two workers; once in a campaign."""
    if campaign.tried["the whole demo in 3 GB"] or not MemoryGroup.is_there():
        return
    output = campaign.folder / "demo"
    with MemoryGroup(3 << 30) as group:
        ended = run_command(["bash", str(ROOT / "run.sh"), "DATALOADER.NUM_WORKERS", "2"], seconds=_DEMO_SECONDS,
                            env={"OUTPUT_ROOT": str(output), "PYTHON": sys.executable},
                            wrapper=[*shell(_SMALL_SHM, "unshare", "-m"), *group.wrapper])
        peak = group.peak()
    campaign.count("the whole demo in 3 GB")
    summary = output / "summary.json"
    campaign.note(f"the whole demo with 2 workers in 3 GB and 64 MB of /dev/shm: exit code {ended.code}, "
                  f"{ended.seconds:.0f} s, {group.resident / 2**20:,.0f} MiB resident at the most in all processes, "
                  f"{peak / 2**20:,.0f} MiB with the cache of files")
    if (fault := fault_of(ended)) or ended.code or not summary.exists() or not json.loads(summary.read_text()):
        campaign.found(fault[0] if fault else "exit code", number, "the whole demo in 3 GB", ended.output[-1500:])
    shutil.rmtree(output, ignore_errors=True)


SPECIALS: dict[str, Callable[[Campaign, int, Materials, random.Random], None]] = {
    "a clock that jumps": _try_clock,
    "a closed terminal": _try_closed_terminal,
    "64 MB for 2 workers": _try_shared_memory,
    "the whole demo in 3 GB": _try_demo,
}
