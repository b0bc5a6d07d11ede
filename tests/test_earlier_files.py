"""Files that were written before the folders were redrawn still open, and give what they gave then.

tests/golden/before_move/README.txt says how they were made. The tests run in a folder with a copy of them, which stands
for the place where they were made: their paths are relative to it.
"""
import json
import os
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from set_files import load_kind, load_naic

from datasets.files.images import FolderSource, decode
from datasets.files.pack_reader import PackedSource
from datasets.files.pack_writer import pack
from datasets.validation.split import read_split
from processor import pipeline
from processor.evaluation.feature_bank import read_bank
from processor.pipeline import Recipe, Settings
from processor.pseudo_label import read_report
from processor.stages import running
from tools.campaigns.tool_server import ROOT, run_tool
from utils.checkpoint import read_checkpoint
from utils.files import read_json

EARLIER = ROOT / "tests" / "golden" / "before_move"
RECIPE, NET = EARLIER / "recipe.yml", EARLIER / "small_net.py"
DATA = ["DATASETS.ROOT_DIR", "data", "DATASETS.DERIVED_DIR", "run/derived"]
WRITTEN = 1_700_000_000  # when the data's files were
_SPEEDS = ("images_per_second", "data_wait", "gpu_gib")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A copy of the files, as the current folder."""
    shutil.copytree(EARLIER / "files", tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "data").rglob("*.*"):
        os.utime(path, (WRITTEN, WRITTEN))  # what looks at an image again goes by its time
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tool(name, *words):
    """What a command of tools/ says on stdout and stderr, with the small net among the backbones."""
    done = run_tool(NET, ROOT / "tools" / f"{name}.py", *words, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def assert_close(now, then, tolerance):
    """Numbers in nested dicts and lists are close, all else is equal."""
    if isinstance(then, dict):
        assert now.keys() == then.keys()
        for key in then:
            assert_close(now[key], then[key], tolerance)
    elif isinstance(then, list):
        assert len(now) == len(then)
        for pair in zip(now, then, strict=True):
            assert_close(*pair, tolerance)
    else:
        assert now == (pytest.approx(then, rel=tolerance, abs=tolerance) if isinstance(then, float) else then)


# ------------------------------------------------------------------ checkpoints
def lines_of(folder):
    """The figures of a training, without its speeds."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _SPEEDS} for line in lines]


def test_a_training_that_was_stopped_goes_on_to_the_same_end(place):
    log = tool("train", "--config_file", RECIPE, "--resume", *DATA, "DATASETS.VALIDATION", "validation.json",
               "OUTPUT_DIR", "stopped")
    assert "going on from stopped/latest.pth after epoch 1 and 1 batches" in log
    assert lines_of("stopped")[:6] == lines_of(EARLIER / "files" / "stopped")
    assert_close(lines_of("stopped"), lines_of("whole"), 1e-3)
    end, whole = (read_checkpoint(Path(folder, "small_net_2.pth")) for folder in ("stopped", "whole"))
    assert end.keys() == whole.keys()
    for part in ("model", "ema", "criterion"):
        assert end[part].keys() == whole[part].keys()
        for name, tensor in end[part].items():
            torch.testing.assert_close(tensor, whole[part][name], rtol=1e-3, atol=1e-3, msg=f"{part} {name}")


def test_a_checkpoint_gives_the_features_and_the_answer_that_it_gave(place):
    tool("test", "--config_file", RECIPE, *DATA, "TEST.WEIGHT", "run/recipe/small_net_2.pth", "OUTPUT_DIR", "again")
    then, now = read_bank(Path("run/recipe/features")), read_bank(Path("again/features"))
    assert then[1]["ranking"] == now[1]["ranking"]
    for domain, bank in then[0].items():
        assert bank.feats.keys() == now[0][domain].feats.keys()
        for branch, feats in bank.feats.items():
            np.testing.assert_allclose(now[0][domain].feats[branch], feats, rtol=1e-4, atol=1e-5)
    assert read_json(Path("again/submission.json")) == read_json(Path("run/recipe/submission.json"))
    assert_close(read_json(Path("again/metrics.json"))["all"], read_json(Path("run/recipe/metrics.json"))["all"], 1e-4)


# ------------------------------------------------------------------ banks, distances and what is measured with them
def test_a_bank_ranks_to_the_same_answer(place):
    tool("ensemble", "--inputs", "run/recipe", "--output", "again/submission.json")
    assert read_json(Path("again/submission.json")) == read_json(Path("run/submission.json"))
    assert_close(read_json(Path("again/metrics.json"))["all"], read_json(Path("run/metrics.json"))["all"], 1e-6)


def test_saved_distances_rank_to_the_same_answer(place):
    tool("ensemble", "--inputs", "distmats", "--distmats", "--top_k", 5, "--output", "again/submission.json")
    assert read_json(Path("again/submission.json")) == read_json(Path("distmats/submission.json"))


def test_rankings_that_were_tuned_are_not_measured_again(place):
    log = tool("tune_rerank", "--inputs", "run/recipe", "--k1", 4, "--k2", 1, 2, "--lambda", 0.3, 0.5,
               "--output", "tuning")
    assert "5 rankings measured before need not be measured again" in log
    for name in ("tuning.json", "tuning.csv"):
        assert Path("tuning", name).read_text() == (EARLIER / "files" / "tuning" / name).read_text()


def test_runs_are_compared_query_by_query(place):
    assert "queries with a match: green 3, normal 3" in tool("compare", "run/recipe", "run")


def test_finished_stages_of_a_pipeline_are_skipped(place, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setitem(pipeline.RECIPES, "small", Recipe((str(RECIPE.relative_to(ROOT)),)))
    run = []  # what came after these files: optional stages, whose failure costs nothing
    monkeypatch.setattr(running, "run_logged", lambda command, *_, **__: run.append(command[1]) or 1)
    summary = pipeline.run(Settings(Path("run"), "small", Path("data")))
    assert caplog.text.count("done before, skipped") == 4
    assert set(run) <= {"tools/visualize.py", "tools/export.py"}
    assert summary["ensemble"] == read_json(Path("run/metrics.json"))["all"]


# ------------------------------------------------------------------ packs
def keys_of(files):
    return sorted(path.relative_to(files.root).as_posix() for path in files.root.rglob("*.png"))


def test_packs_give_the_images_of_the_files(place):
    files = FolderSource("data/MyDataSet")
    stored, decoded = PackedSource("packs/files"), PackedSource("packs/decoded")
    assert stored.all_keys() == decoded.all_keys() == keys_of(files)
    assert (stored.size, decoded.size) == (None, (32, 16))
    for key in keys_of(files):
        assert stored.read(key) == files.read(key)
        np.testing.assert_array_equal(decode(decoded.read(key)), decode(files.read(key)))


@pytest.mark.parametrize("name", ["files", "decoded"])
def test_a_set_is_packed_already(place, name):
    before = {path: path.stat().st_mtime_ns for path in Path("packs", name).iterdir()}
    tool("pack", "--config_file", RECIPE, "--output", f"packs/{name}", *["--decoded"] * (name == "decoded"), *DATA)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    tool("pack", "--config_file", RECIPE, "--output", f"packs/{name}", "--compare", *DATA)


def test_a_packing_that_was_stopped_goes_on_after_its_last_whole_shard(place):
    files, read = FolderSource("data/MyDataSet"), []

    class Counting:
        def read(self, key):
            read.append(key)
            return files.read(key)

    packed = pack(Counting(), keys_of(files), "packs/begun", shard_bytes=16000)
    missing = keys_of(files)[len(np.load(EARLIER / "files" / "packs" / "begun" / "00000.npy")):]
    assert 0 < len(missing) < 40
    assert read[: len(missing)] == missing  # then a few are compared
    assert [packed.read(key) for key in keys_of(files)] == [files.read(key) for key in keys_of(files)]


# ------------------------------------------------------------------ what was noted of a data set
def test_the_doctor_reads_again_what_an_earlier_version_looked_at_less_closely(place):
    store = sqlite3.connect("doctor/doctor_records.sqlite")
    (made_for,), = store.execute("SELECT text FROM made_for")
    store.execute("UPDATE made_for SET text = ?", (  # as if the data stood here, and the decoder were of this version
        made_for.replace("/data/", f"{place.resolve()}/data/").replace("OpenCV 5.0.0", f"OpenCV {cv2.__version__}"),))
    store.commit()
    store.close()
    then = read_json(Path("doctor/doctor.json"))
    log = tool("doctor", "--root", "data", "--output", "doctor")
    assert "all images are read again" in log
    now = read_json(Path("doctor/doctor.json"))
    assert [{key: new[key] for key in old} for new, old in zip(now["sets"], then["sets"], strict=True)] == then["sets"]
    for key in ("shared_images", "verdict"):
        assert now[key] == then[key]
    seen_in_images = [finding for finding in then["findings"] if finding["kind"] != "absent"]
    assert [finding for finding in now["findings"] if finding["kind"] != "absent"] == seen_in_images
    assert len(seen_in_images) == 2


def test_cleaned_lists_and_lists_of_equal_paths_are_taken(place):
    train = load_naic("data", derived_dir=Path("doctor"), parts=("train",)).train
    assert len(train) == 35
    assert "train_2019_cs/train/3_0.png" not in {sample.key for sample in train}
    tool("doctor", "--root", "data", "--output", "again", "--equal-list", "doctor/cs_2019equal_path.txt")
    assert Path("again/new_2019_cs_train_list.txt").read_text() == Path("doctor/new_2019_cs_train_list.txt").read_text()


def test_domain_lists_are_taken(place):
    sets = load_naic("data", derived_dir=Path("run/derived")).eval_sets
    assert {name: (len(part.query), len(part.gallery)) for name, part in sets.items()} == {"green": (3, 9),
                                                                                          "normal": (3, 9)}
    assert {Path(sample.key).name[0] for sample in sets["normal"].gallery} == set("456")


def test_a_validation_split_names_the_same_people_and_images(place):
    content = read_json(Path("validation.json"))
    split = read_split(Path("validation.json"))
    assert sorted(split.queried) == content["left_out"]["queried"]
    assert sorted(split.distractors) == content["left_out"]["distractors"]
    for name, sides in content["evaluations"].items():
        for side, images in sides.items():
            samples = getattr(split.eval_sets[name], side)
            assert {sample.key: split.pid_names[sample.pid] for sample in samples} == images


def test_a_labelled_set_is_a_training_set(place):
    data, report = load_kind("unlabel", "data", ("train",), unlabel_dir="labelled"), read_report(Path("labelled"))
    listed = dict(line.split(":") for line in Path("labelled/label.txt").read_text().splitlines())
    assert report["identities"] == len(set(listed.values())) == data.num_classes
    assert {Path(sample.key).name: data.pid_names[sample.pid].rsplit("_", 1)[1] for sample in data.train} == listed
