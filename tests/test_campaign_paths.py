"""The campaign of odd paths: a short run of it, and that it notices what it is there for."""
import os
import random

import pytest

from tools.campaigns import oddities, paths
from tools.campaigns.commands import Ended
from tools.campaigns.materials import Materials
from tools.campaigns.oddities import FINE, REFUSED, Odd, can_mount, odd_argument, odd_entry
from tools.campaigns.record import Campaign


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    return Materials(tmp_path_factory.mktemp("materials") / "materials")


def test_a_short_run_finds_nothing(tmp_path):
    campaign = Campaign("paths", tmp_path / "paths", seed=5, seconds=1.0, quick=True)
    campaign.folder.mkdir()
    paths.run_campaign(campaign)
    assert campaign.findings == []
    assert sum(campaign.tried.values()) > 0
    assert not (campaign.folder / "case").exists()


def make_place(tmp_path, materials, name="split_domains"):
    place = paths.Place(tmp_path / "case", materials, paths.TRIALS[name])
    return place, Odd("planted", place.folder, FINE)


def faults(place, odd, code=0, text="", before=None, plain=(0, {})):
    ended = Ended((), code, text, 1.0, code == -14, 0)
    return [fault for fault, _ in paths.judge(place, odd, ended, text, before or place.surroundings(), plain)]


def test_what_must_not_be_is_noticed(tmp_path, materials):
    place, odd = make_place(tmp_path, materials)
    assert faults(place, odd) == []
    assert faults(place, odd, 1, "Traceback (most recent call last):\n") == ["traceback"]
    assert faults(place, odd, -14) == ["hang"]
    assert faults(place, odd, -11) == ["crash"]
    assert faults(place, odd, 0, "read a\x1b[31m.png") == ["unprintable"]
    assert faults(place, odd, 2, "error: no") == ["refused"]
    assert faults(place, odd, 0, plain=(0, {"a.npy": "1"})) == ["differs"]
    refused = odd._replace(expected=REFUSED, name="a\nb")
    assert faults(place, refused, 2, "error: a\\nb: no such file") == []
    assert faults(place, refused, 2, "error: no such file") == ["nameless"]
    assert faults(place, refused, 0, plain=(0, {"a.npy": "1"})) == ["accepted"]
    assert faults(place, odd._replace(expected="any"), 2, "it went wrong") == ["exit code"]


@pytest.mark.parametrize("deed", [
    lambda place: (place.folder / "cwd" / "new").touch(),
    lambda place: next(place.paths["pictures"].glob("*.png")).unlink(),
    lambda place: next(place.paths["pictures"].glob("*.png")).write_bytes(b"x"),
    lambda place: (place.folder / "outside" / "secret.png").unlink(),
    lambda place: (place.folder / "tmp" / "left").mkdir(),
])
def test_a_change_outside_of_the_output_is_noticed(deed, tmp_path, materials):
    place, odd = make_place(tmp_path, materials)
    before = place.surroundings()
    (place.folder / "out" / "result").mkdir()
    assert faults(place, odd, before=before) == []
    deed(place)
    assert faults(place, odd, before=before) == ["changed"]


@pytest.mark.skipif(not can_mount(), reason="nothing may be mounted here")
def test_an_input_that_is_mounted_read_only_cannot_be_written_by_root_and_is_released(tmp_path, materials):
    place, _ = make_place(tmp_path, materials)
    picture = min(place.paths["pictures"].glob("*.png"))
    oddities._mount_read_only(place.paths["pictures"])
    with pytest.raises(OSError, match="Read-only"):
        picture.write_bytes(b"x")
    paths.open_doors(place.folder)
    picture.write_bytes(b"x")


def test_a_seed_repeats_its_oddities(tmp_path, materials):
    whats = []
    for run in range(2):
        drawn = []
        for seed in range(12):
            place = paths.Place(tmp_path / str(run) / str(seed), materials, paths.TRIALS["split_domains"])
            rng = random.Random(seed)
            drawn += [odd_entry(place.paths["pictures"], place.outside, rng).what,
                      odd_argument(place.paths["frames"], rng, is_input=True).what]
            paths.open_doors(place.folder)
        whats.append(drawn)
    assert whats[0] == whats[1]
    assert len(set(whats[0])) > 12


@pytest.mark.skipif(os.name != "posix", reason="capabilities are Linux'")
def test_a_closed_door_is_closed_to_root_too(tmp_path, materials):
    place, odd = make_place(tmp_path, materials)
    place.paths["frames"].chmod(0)
    ended, _ = place.run(odd._replace(is_root=False))
    place.paths["frames"].chmod(0o755)
    assert ended.code == 2
    assert "frames" in ended.output
