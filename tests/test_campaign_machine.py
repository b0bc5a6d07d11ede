"""The campaign of odd machines: a short run of it, and that it notices what it is there for."""
import signal
import sys

import pytest

from tools.campaigns import machine, paths
from tools.campaigns.commands import Ended, run_command
from tools.campaigns.machine_alone import run_in_terminal
from tools.campaigns.materials import Materials
from tools.campaigns.record import Campaign


def test_a_short_run_finds_nothing(tmp_path):
    campaign = Campaign("machine", tmp_path / "machine", seed=1, seconds=60, quick=True)
    campaign.folder.mkdir()
    machine.run_campaign(campaign)
    assert campaign.findings == []
    assert sum(campaign.tried.values()) == len(machine.QUICK)


@pytest.fixture
def place(tmp_path):
    return paths.Place(tmp_path / "case", Materials(tmp_path / "materials"), paths.TRIALS["demo"])


@pytest.mark.parametrize(("condition", "code", "output", "expected"), [
    ("HOME is not set", 0, "fine", []),
    ("HOME is not set", 1, "Traceback (most recent call last):\n", ["traceback"]),
    ("HOME is not set", -11, "", ["crash"]),
    ("HOME is not set", 2, "error: no home", ["exit code"]),
    ("stdout's reader has gone", 141, "", []),
    ("stdout's reader has gone", 120, "Exception ignored in: <stdout>", ["exit code"]),
    ("stdout's reader has gone", 0, "Exception ignored in: <stdout>", ["traceback"]),
    ("no /dev/shm", 2, "error: no room in /dev/shm", []),
    ("no /dev/shm", 2, "error: [Errno 2]", ["message"]),
    ("a terminal of 40 columns", 0, "epoch 1: " + 40 * " " + "50%|#####", ["broken line"]),
])
def test_what_must_not_be_is_noticed(condition, code, output, expected, place):
    ended = Ended((), code, output, 1.0, False, 0)
    assert [fault for fault, _ in machine.judge(condition, place, ended, (0, {}))] == expected


def test_other_results_are_noticed(place):
    ended = Ended((), 0, "", 1.0, False, 0)
    assert [fault for fault, _ in machine.judge("one core", place, ended, (0, {"a.npy": "1"}))] == ["differs"]


@pytest.fixture
def in_the_background():
    """As nohup and a shell's & begin a command: it ignores SIGHUP and SIGINT."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGHUP, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def test_a_closed_terminal_ends_a_command_of_a_campaign_in_the_background(in_the_background, tmp_path):
    (tmp_path / "waits.py").write_text(f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
                                       "time.sleep(3)\n")
    code, _, is_left = run_in_terminal([sys.executable, str(tmp_path / "waits.py")], {}, tmp_path,
                                       (tmp_path / "begun").exists)
    assert (code, is_left) == (-signal.SIGHUP, False)


def test_commands_of_a_campaign_in_the_background_hear_signals_as_usual(in_the_background):
    script = "from signal import *; print([getsignal(number) is SIG_IGN for number in (SIGHUP, SIGINT)])"
    ended = run_command([sys.executable, "-c", script])
    assert (ended.code, ended.output) == (0, "[False, False]\n")


def test_a_condition_meets_every_command_before_one_again(tmp_path):
    campaign = Campaign("machine", tmp_path, seed=3)
    names = [machine.tool_of("one core", campaign, turn) for turn in range(2 * len(paths.TRIALS))]
    assert set(names[:len(paths.TRIALS)]) == set(names[len(paths.TRIALS):]) == set(paths.TRIALS)
    assert names[:len(paths.TRIALS)] != names[len(paths.TRIALS):]
    assert sum(name in machine._LIGHT for name in names[:9]) == 6
