"""The campaign of several hosts: a short run of it on loopback, and that it notices what it is there for."""
import time

import pytest

from tools.campaigns import distributed
from tools.campaigns.distributed import Disturbance, Member
from tools.campaigns.record import Campaign


def test_a_short_run_finds_nothing(tmp_path):
    campaign = Campaign("distributed", tmp_path / "distributed", seed=1, seconds=60, quick=True)
    campaign.folder.mkdir()
    distributed.run_campaign(campaign)
    assert campaign.findings == []
    assert dict(campaign.tried) == {"a rank killed": 1, "resumed": 1, "equal to the undisturbed": 1}


class Ended:
    """A process of the training that has ended."""

    def __init__(self, code, output):
        self.poll, self.stdout, self.stderr = (lambda: code), (lambda: ""), (lambda: output)


NAMED = "error: process 0 of 2: nothing was heard of process 1 (10.0.0.2) for 15 s"
KILLED = "error: process 0 of 2: process 1 (10.0.0.2) is gone, so this one stops, too"
KILL, LONG, SHORT = Disturbance("kill", 0, 60), Disturbance("stop", 30, 15), Disturbance("stop", 30, 60)


@pytest.mark.parametrize(("what", "code", "output", "seconds", "expected"), [
    (KILL, 2, KILLED, 1, []),
    (LONG, 2, NAMED, 16, []),
    (SHORT, 0, "", 40, []),
    (KILL, 2, "error: process 0 of 2: another process is gone", 1, ["no name"]),
    (KILL, 0, KILLED, 1, ["exit code"]),
    (KILL, None, KILLED, 1, ["hang"]),
    (LONG, 2, NAMED, 200, ["late"]),
    (SHORT, 2, NAMED, 40, ["exit code"]),
    (KILL, 1, f"Traceback (most recent call last):\n  File a.py\n{KILLED}", 1, ["traceback"]),
])
def test_what_must_not_be_is_noticed(what, code, output, seconds, expected):
    other = Ended(-9 if what.ends else 0, KILLED.replace("process 1", "process 0"))
    members = [Member(Ended(code, output)), Member(other)]
    begun = time.monotonic() - seconds
    for rank, member in enumerate(members):
        member.rank, member.ended_at = rank, begun + (seconds if rank == 0 else 1)
    faults = distributed.judge(what, members, members[1], begun)
    assert [fault for fault, _ in faults] == expected


@pytest.mark.parametrize(("what", "expected"), [(LONG, []), (KILL, []), (Disturbance("cut", 30, 15), ["no name"])])
def test_a_stopped_process_that_its_torchrun_has_ended_names_nobody(what, expected):
    members = [Member(Ended(2, NAMED)), Member(Ended(1, "torch.distributed... RendezvousConnectionError: the store"))]
    begun = time.monotonic() - 40
    for rank, member in enumerate(members):
        member.rank, member.ended_at = rank, begun + 16
    assert [fault for fault, _ in distributed.judge(what, members, members[1], begun)] == expected
