"""The campaign of full size: a short run of it, and that it notices what it is there for."""
import pytest

from tools.campaigns import scale
from tools.campaigns.commands import Ended
from tools.campaigns.record import Campaign


def test_a_short_run_finds_nothing(tmp_path):
    campaign = Campaign("scale", tmp_path / "scale", seed=1, seconds=60, quick=True)
    campaign.folder.mkdir()
    scale.run_campaign(campaign)
    assert campaign.findings == []
    assert sum(campaign.tried.values()) == 9


def used(cpu: float = 1.0, peak: int = 1 << 20, code: int = 0, output: str = "", is_hung: bool = False) -> scale.Used:
    return scale.Used(Ended((), code, output, cpu, is_hung, 0), cpu, peak)


@pytest.mark.parametrize(("taken", "before", "expected"), [
    (used(), None, []),
    (used(output="Traceback (most recent call last):\n"), None, ["traceback"]),
    (used(is_hung=True), None, ["hang"]),
    (used(code=2), None, ["exit code"]),
    (used(peak=5 << 30), None, ["memory"]),
    (used(cpu=80.0), used(cpu=10.0), []),      # eight times the time for eight times the data
    (used(cpu=640.0), used(cpu=10.0), ["steep"]),
    (used(cpu=14.0), used(cpu=0.2), []),       # too short to tell
    (used(output="x" * 200_000), None, ["output"]),
])
def test_what_must_not_be_is_noticed(taken, before, expected):
    assert [fault for fault, _ in scale.judge(taken, before, {0})] == expected


def test_time_and_memory_are_of_the_command_alone(tmp_path):
    code = "held = bytearray(200 << 20); print(sum(range(3_000_000)))"
    taken = scale.measure([scale.sys.executable, "-c", code], tmp_path)
    assert (taken.ended.code, taken.ended.output) == (0, "4499998500000\n")
    assert 200 << 20 <= taken.peak < 300 << 20
    assert taken.cpu > 0
