"""The campaigns of kills and of failing disks: they find what is planted, and nothing in a short run's commands."""
import errno
import re
import subprocess
import sys

import pytest

from tools.campaigns import disk, kill
from tools.campaigns.chores import CHORES, SLOW, Chore, Household, chore_of, difference, named, stable, without_gaps
from tools.campaigns.record import Campaign
from tools.campaigns.watched import MADE, Answer, Watcher, can_watch

watching = pytest.mark.skipif(bool(can_watch()), reason="seccomp's notifications")
WRITES_TWICE = """
import os, sys
for name in ("a", "b"):
    with open(os.path.join(sys.argv[1], name), "wb", buffering=0) as out:
        out.write(bytes(1000))
"""
PLANTED = {
    "half a file is whole to it": "open(path, 'wb', buffering=0).write(bytes(1000))",
    "a full disk is no matter": "try: open(path, 'wb').write(bytes(1000))\nexcept OSError: pass",
    "a traceback": "open(path, 'wb').write(bytes(1000))",
    "what a kill left is in the way": "open(path, 'xb').write(bytes(1000))",
}


def run_watched(folder, decide, script=WRITES_TWICE):
    with Watcher(folder, decide) as watcher:
        done = subprocess.run([sys.executable, *watcher.words(sys.executable, "-c", script, folder, how="exec")],
                              capture_output=True, text=True)
    return done, watcher.changes


@watching
def test_each_change_of_a_command_is_told_and_can_be_failed_or_cut(tmp_path):
    done, changes = run_watched(tmp_path, lambda change: MADE)
    assert done.returncode == 0
    assert [(change.call, change.path, change.size) for change in changes] == [
        ("create", f"{tmp_path}/a", 0), ("write", f"{tmp_path}/a", 1000),
        ("create", f"{tmp_path}/b", 0), ("write", f"{tmp_path}/b", 1000)]
    # The files are there now, and to open one is no change.
    done, changes = run_watched(tmp_path, lambda change: Answer(is_cut=True) if change.number == 1 else MADE)
    assert [change.path[-1] for change in changes] == ["a", "b"]
    assert [(tmp_path / name).stat().st_size for name in ("a", "b")] == [500, 1000]
    done, _ = run_watched(tmp_path, lambda change: Answer(errno.EIO) if change.number == 2 else MADE)
    assert "[Errno 5] Input/output error" in done.stderr
    assert (tmp_path / "b").stat().st_size == 0


@watching
@pytest.mark.parametrize("kind", [disk, kill])
def test_a_short_campaign_over_whole_commands_finds_nothing(tmp_path, kind):
    campaign = Campaign("short", tmp_path, seed=1, quick=True)
    kind.run_campaign(campaign)
    assert campaign.findings == []
    assert sum(campaign.tried.values()) >= 5


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """planted(what) -> a household, and a chore of its own that has this fault."""
    def make(what):
        monkeypatch.setattr(Household, "prepare", lambda self: None)
        household = Household(tmp_path / "house")
        script = tmp_path / "tool.py"
        script.write_text(f"import sys\npath = sys.argv[1] + '/file'\n{PLANTED[what]}\n")
        return household, Chore("planted", (str(script), "{at}"))

    (tmp_path / "house").mkdir()
    return make


@watching
@pytest.mark.parametrize(("what", "fault"), [("half a file is whole to it", "short"),
                                             ("a full disk is no matter", "ENOSPC"), ("a traceback", "EIO")])
def test_what_a_failing_disk_does_to_a_careless_command_is_found(planted, what, fault):
    household, chore = planted(what)
    whole, unlike = stable(household, chore)
    assert not unlike
    plan = disk._Plan(household, chore, 0)
    trials = filter(None, (plan.trial(fault, index) for index in range(10)))
    found = [disk._try(household, trial, whole, lambda room: None) for trial in trials]
    assert ("traceback" if what == "a traceback" else "taken for whole") in {kind for kind, _ in filter(None, found)}


@watching
def test_what_a_kill_does_to_a_careless_command_is_found(planted, tmp_path):
    household, chore = planted("what a kill left is in the way")
    whole, _ = kill._undisturbed(household, chore)
    campaign = Campaign("kill", tmp_path)
    found = [fault for seed in range(5)
             for fault, *_ in kill._chain(campaign, household, chore, whole, kill.Random(seed), True)]
    assert "traceback" in found
    assert campaign.tried["planted: SIGKILL"]


def test_what_two_folders_hold_is_compared_by_file():
    assert difference({"a": b"1", "b": b"1"}, {"b": b"2", "c": b"1"}) == "b differs; has c, too; lacks a"


def test_the_first_round_has_every_command_and_slow_ones_come_seldom():
    chores = list(CHORES.values())
    first = [chore_of(number, chores, SLOW) for number in range(len(chores))]
    assert [chore.name for chore, _ in first][:-len(SLOW)] == [name for name in list(CHORES)[::-1] if name not in SLOW]
    assert {chore.name for chore, _ in first[-len(SLOW):]} == set(SLOW)
    assert {count for _, count in first} == {0}
    second = [chore_of(number, chores, SLOW) for number in range(len(chores), 2 * len(chores) - len(SLOW))]
    assert [chore.name for chore, _ in second] == [chore.name for chore, _ in first if chore.name not in SLOW]
    assert {count for _, count in second} == {1}


@watching
def test_each_kind_of_change_is_failed_once_before_any_is_failed_twice(planted):
    household, chore = planted("what a kill left is in the way")
    (household.base.parent.parent / "tool.py").write_text(WRITES_TWICE.replace('"b")', '"b", "b2", "b3")'))
    plan = disk._Plan(household, chore, 0)
    calls = [plan.trial("EIO", index).what for index in range(4)]  # b, b2 and b3 are one kind of file
    assert sorted(re.sub(r"\d", "", what) for what in calls) == ["create a", "create b", "write a", "write b"]
    assert plan.trial("EIO", 8) is None
    assert plan.trial(disk.SMALL, 3) == plan.trial(disk.SMALL, 3)


@watching
def test_every_single_change_is_failed_once_in_order_and_a_careless_one_is_found(planted, tmp_path, monkeypatch):
    household, chore = planted("a full disk is no matter")
    script = household.base.parent.parent / "tool.py"
    script.write_text(WRITES_TWICE + "try: open(sys.argv[1] + '/c', 'xb')\nexcept OSError: pass\n")
    for module, name, value in ((disk, "Household", lambda folder: household), (disk, "named", lambda *_: [chore])):
        monkeypatch.setattr(module, name, value)
    campaign = Campaign("disk", tmp_path, seed=1, every=True)
    disk.run_campaign(campaign)
    assert campaign.tried == {"planted: full": 2, "planted: ENOSPC": 2, "planted: EIO": 1}
    assert campaign.notes == ["planted: 5 changes of files, 5 of them have failed once each"]
    tried = [(finding.fault, finding.tried) for finding in campaign.findings]
    assert [fault for fault, _ in tried] == ["traceback"] * 3 + ["taken for whole"] * 2
    assert [re.sub(r".* \d+ ", "", what) for _, what in tried] == ["create a", "write a", "create b", "write b",
                                                                   "create c"]


def test_commands_can_be_chosen_and_an_unknown_one_is_told():
    assert [chore.name for chore in named(["pack", "doctor", "test"], ("test", "pack"))] == ["pack", "test"]
    with pytest.raises(ValueError, match="--chores packs: not of this campaign, which has pack; doctor"):
        named(["pack", "doctor"], ("packs",))


def test_identities_are_compared_by_their_order_where_a_kill_may_leave_a_number_out():
    text = '{"identity": "7", "camera": 7}\n{"identity": null}\n{"identity": "12"}\n{"identity": "7"}'
    assert without_gaps(text) == text.replace('"7"', '"1"').replace('"12"', '"2"')
    assert without_gaps(text) != without_gaps(text.replace('"12"', '"3"'))  # the other is first now
