"""Several hosts: a training of two processes, one of which is killed or stopped, or whose network is cut.

Two hosts are network namespaces with a cable between them, each with its own torchrun; where namespaces are not
permitted, and in a quick run, two processes on loopback, without a cable to cut. What is not disturbed itself has to
end in time with a line that names the lost process, and an exit code that is not 0; where the disturbance is shorter
than SOLVER.DIST_TIMEOUT the training has to go on. In the end, after a resume where it ended, all checkpoints have to
be those of an undisturbed training, byte for byte.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tools.campaigns.commands import Ended, fault_of, tool
from tools.campaigns.materials import Materials
from tools.campaigns.record import Campaign
from tools.campaigns.tool_server import start_tool

_EPOCHS = 4
_SLACK = 60.0         # seconds beyond the timeout in which a process has to end, on a machine that does other work
_LIMIT = 400.0
_PORT = 29400
_USUAL = 60.0         # SOLVER.DIST_TIMEOUT


class Disturbance(NamedTuple):
    """What is done to a training.

    Attributes:
        kind: "kill", "stop" or "cut".
        seconds: until it is over; 0: never.
        timeout: SOLVER.DIST_TIMEOUT.
    """

    kind: str
    seconds: float
    timeout: float

    @property
    def ends(self) -> bool:
        """Whether the training has to end by it."""
        return self.kind == "kill" or self.seconds > self.timeout

    def __str__(self) -> str:
        times = f" for {self.seconds:g} s, timeout {self.timeout:g} s" if self.seconds else ""
        return {"kill": "a rank killed", "stop": "a rank stopped", "cut": "the link cut"}[self.kind] + times


DISTURBANCES = [Disturbance("kill", 0, 60), Disturbance("stop", 30, 15), Disturbance("cut", 30, 15),
                Disturbance("stop", 30, _USUAL), Disturbance("cut", 30, _USUAL), Disturbance("stop", 70, 60),
                Disturbance("cut", 70, 60)]
QUICK = [Disturbance("kill", 0, 60)]


# -------------------------------------------------------------------------------------------------------- the hosts
class Member:
    """A process of the training, started on one host; rank: what torchrun made it."""

    def __init__(self, process, log: Path | None = None) -> None:
        self.process, self._log, self.ended_at = process, log, 0.0
        self.rank, self.pid = -1, 0

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and not self.ended_at:
            self.ended_at = time.monotonic()
        return code

    def output(self) -> str:
        return (self._log.read_text(encoding="utf-8", errors="replace") if self._log
                else self.process.stdout() + self.process.stderr())


class Loopback:
    """Two processes on this machine, without torchrun, which would end one for the other."""

    can_cut = False

    def start(self, words: list[str], folder: Path) -> list[Member]:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        members = []
        for rank in range(2):
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            member = Member(start_tool("train", *words, env=env, seconds=int(_LIMIT)))
            member.rank, member.pid = rank, member.process.pid
            members.append(member)
        return members


class Namespaces:
    """Two hosts with a cable; a torchrun on each, joined by c10d."""

    can_cut = True

    def __init__(self) -> None:
        mark = f"re{os.getpid() % 100_000}"
        self.names, self.links = [f"{mark}a", f"{mark}b"], [f"{mark}x", f"{mark}y"]
        self.addresses = ["10.213.7.1", "10.213.7.2"]
        self._runs = 0

    def __enter__(self) -> Namespaces:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            _ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer", "name", self.links[1],
                "netns", self.names[1])
            for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", link, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "delete", name)

    def set_link(self, state: str) -> None:
        """up or down, at one end of the cable."""
        _ip("-n", self.names[0], "link", "set", self.links[0], state)

    def start(self, words: list[str], folder: Path) -> list[Member]:
        self._runs += 1
        members = []
        for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
            log = folder / f"host_{name[-1]}.log"
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                       "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", str(self._runs),
                       "--rdzv_endpoint", f"{self.addresses[0]}:{_PORT + self._runs % 100}", "--rdzv_conf",
                       f"is_host={int(name is self.names[0])}", "--local_addr", address,
                       *tool("train", *words)[1:]]
            with open(log, "wb") as out:
                members.append(Member(subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": link}), log))
        return members


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def open_hosts(campaign: Campaign) -> Iterator[Namespaces | Loopback]:
    """Namespaces where they can be had, else loopback; says which."""
    if campaign.quick:
        yield Loopback()
        return
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(Namespaces())
        except OSError as error:
            campaign.note(f"no network namespaces here ({error}): two processes on loopback, killed and stopped only")
            hosts = Loopback()
        yield hosts


# ------------------------------------------------------------------------------------------------------ a training
def find_ranks(members: list[Member]) -> bool:
    """Give each member the pid and rank of its training; False: not all have begun."""
    for member in members:
        if not member.pid:
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    if int(stat.read_text().rpartition(")")[2].split()[1]) != member.process.pid:  # its parent
                        continue
                    environment = dict(word.partition("=")[::2] for word in (stat.parent / "environ").read_text(
                        errors="replace").split("\0"))
                    if "RANK" in environment and "TORCHELASTIC_RUN_ID" in environment:
                        member.pid, member.rank = int(stat.parent.name), int(environment["RANK"])
    return all(member.pid for member in members)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition has come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def disturb(hosts: Namespaces | Loopback, members: list[Member], what: Disturbance, victim: Member) -> float:
    """Do it, to its end; the time of its beginning."""
    begun = time.monotonic()
    if what.kind == "cut":
        hosts.set_link("down")
        time.sleep(what.seconds)
        hosts.set_link("up")
    elif what.kind == "stop":
        os.kill(victim.pid, signal.SIGSTOP)
        wait_until(lambda: False, what.seconds) if not what.ends else wait_until(
            lambda: all(member.poll() is not None for member in members if member is not victim), what.seconds)
        time.sleep(max(0.0, begun + what.seconds - time.monotonic()))
        os.kill(victim.pid, signal.SIGCONT)
    else:
        os.kill(victim.pid, signal.SIGKILL)
    return begun


def judge(what: Disturbance, members: list[Member], victim: Member, begun: float) -> list[tuple[str, str]]:
    """(fault, detail) of a training that was disturbed and has ended."""
    faults = []
    for member in members:
        code, output = member.poll(), member.output()
        name = f"process {member.rank}"
        if code is None:
            faults.append(("hang", f"{name} had not ended {_LIMIT:g} s after its start: {output[-1000:]}"))
            continue
        if not what.ends:
            if code:
                faults.append(("exit code", f"{name} ended with {code}: {output[-1500:]}"))
            continue
        if not code:
            faults.append(("exit code", f"{name} ended with 0"))
        if member is victim and what.kind == "kill":
            continue
        # While it stood still its torchrun may have lost the store of the other, which had ended, and ended it, too.
        is_ended_by_torchrun = member is victim and what.kind == "stop" and "RendezvousConnectionError" in output
        lines = [line for line in output.splitlines() if "error: process" in line]
        others = [other.rank for other in members if other is not member]
        if not is_ended_by_torchrun and not any(re.search(
                rf"(nothing was heard of |: )process {rank} \(", line) for line in lines for rank in others):
            faults.append(("no name", f"{name} named no lost process: {output[-1500:]}"))
        if (fault := fault_of(Ended((), 1, output, 0, False, 0))) and fault[0] == "traceback" \
                and "torch/distributed/" not in output[output.index("Traceback"):][:400]:
            faults.append(fault)
        late = member.ended_at - begun - what.timeout - (what.seconds if member is victim else 0)
        if late > _SLACK:
            faults.append(("late", f"{name} ended {late:.0f} s after the timeout"))
    return faults


def checkpoints(folder: Path) -> dict[str, str]:
    """Digest by name of the checkpoints of a run."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.pth"))}


class Trainings:
    """Trainings of one recipe in one folder, which each begins anew."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign, self.folder = campaign, campaign.folder
        self._materials = Materials(self.folder / "materials")
        self.output = self.folder / "run"
        self._whole: dict[float, tuple[dict[str, str], int]] = {}
        epochs = 1 if campaign.quick else _EPOCHS
        self._words = ["--config_file", self._materials.path("config.yml"), "DATASETS.ROOT_DIR",
                       self._materials.path("data"), "OUTPUT_DIR", self.output, "SOLVER.MAX_EPOCHS", epochs,
                       "SOLVER.LOG_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 2]

    def start(self, hosts: Namespaces | Loopback, timeout: float, *more: str) -> list[Member]:
        return hosts.start([str(word) for word in (*more[:1], *self._words, "SOLVER.DIST_TIMEOUT", timeout)],
                           self.folder)

    def steps(self) -> int:
        """Steps that have been logged."""
        log = self.output / "train_log.txt"
        return log.read_text(encoding="utf-8", errors="replace").count("Iteration[") if log.exists() else 0

    def undisturbed(self, hosts: Namespaces | Loopback, timeout: float) -> tuple[dict[str, str], int]:
        """Checkpoints and steps of an undisturbed training of a time limit, which its checkpoints hold in their config.

        Raises:
            RuntimeError: it failed.
        """
        if timeout not in self._whole:
            shutil.rmtree(self.output, ignore_errors=True)
            members = self.start(hosts, timeout)
            if not self.finish(members) or any(member.poll() for member in members):
                raise RuntimeError("the undisturbed training failed:\n" +
                                   "\n".join(member.output()[-2000:] for member in members))
            self._whole[timeout] = checkpoints(self.output), self.steps()
        return self._whole[timeout]

    def finish(self, members: list[Member]) -> bool:
        """Wait for all; those that take too long are killed, and False."""
        if wait_until(lambda: not sum(member.poll() is None for member in members), _LIMIT):
            return True
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.process.pid, signal.SIGKILL)
        return False


def _try(trainings: Trainings, hosts: Namespaces | Loopback, case: int, draw: random.Random,
         what: Disturbance) -> None:
    campaign = trainings.campaign
    whole, steps = trainings.undisturbed(hosts, what.timeout)
    shutil.rmtree(trainings.output, ignore_errors=True)
    at = draw.randrange(1, max(2, steps // 2))
    members = trainings.start(hosts, what.timeout)
    victim = draw.choice(members)
    tried = f"{what}, at step {at}"
    if not wait_until(lambda: find_ranks(members) and trainings.steps() >= at, _LIMIT):
        trainings.finish(members)
        campaign.found("start", case, tried, "\n".join(member.output()[-1000:] for member in members))
        return
    victim = next(member for member in members if member is victim)
    tried += f", process {victim.rank}"
    begun = disturb(hosts, members, what, victim)
    trainings.finish(members)
    campaign.count(str(what))
    for fault, detail in judge(what, members, victim, begun):
        campaign.found(fault, case, tried, detail)
    after = ", ".join(f"process {member.rank} {member.ended_at - begun:.1f} s" for member in members)
    if what.ends:
        campaign.note(f"case {case}: {tried}: ended after {after}")
        members = trainings.start(hosts, what.timeout, "--resume")
        if not trainings.finish(members) or any(member.poll() for member in members):
            campaign.found("resume", case, tried, "\n".join(member.output()[-1500:] for member in members))
            return
        campaign.count("resumed")
    if (there := checkpoints(trainings.output)) != whole:
        differ = sorted(name for name in whole.keys() | there.keys() if whole.get(name) != there.get(name))
        campaign.found("differs", case, tried, f"other than undisturbed: {', '.join(differ)}")
    else:
        campaign.count("equal to the undisturbed")


def run_campaign(campaign: Campaign) -> None:
    """As many disturbed trainings as there is time for, beside undisturbed ones."""
    trainings = Trainings(campaign)
    with open_hosts(campaign) as hosts:
        kinds = [kind for kind in (QUICK if campaign.quick else DISTURBANCES) if hosts.can_cut or kind.kind != "cut"]
        for case, draw in campaign.cases(len(kinds) if campaign.quick else None):
            _try(trainings, hosts, case, draw, kinds[case % len(kinds)])
