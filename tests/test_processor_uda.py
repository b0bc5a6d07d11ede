"""Rounds of labelling and training: what they leave, and that an interrupted run goes on."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import tiny_options
from processes import torchrun_command
from set_files import load_naic

from configs import load_cfg
from processor import uda
from processor.trainer import do_train
from processor.uda import do_uda
from utils.checkpoint import read_checkpoint
from utils.files import read_json
from utils.process import RunLock

ROOT = Path(__file__).resolve().parent.parent
NAME = "resnet18_ibn_b_w32"
RULES = ("SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]", "UDA.METHOD", "agglomerative", "UDA.THRESHOLD", 0.7,
         "UDA.RE_RANKING_PARAMETER", "[6, 2, 0]", "UDA.ROUNDS", 2)


@pytest.fixture(scope="module")
def weight(tiny_data, tmp_path_factory) -> Path:
    """A model trained for an epoch on two of the four sets."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("first")
    return do_train(load_cfg(None, [*tiny_options(tiny_data, out), "SOLVER.MAX_EPOCHS", "1", "SOLVER.STEPS", "[]",
                                    "DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]"]))


@pytest.fixture
def cfg_of(tiny_opts, weight):
    def make(*changes):
        options = ["DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]", *RULES, "TEST.WEIGHT", weight, *changes]
        return load_cfg(None, [*tiny_opts, *map(str, options)])
    return make


@pytest.fixture(scope="module")
def whole(tiny_data, weight, tmp_path_factory) -> Path:
    """The folder of two rounds that were never stopped; not to be changed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    cfg = load_cfg(None, [*tiny_options(tiny_data, out), "DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]",
                          *map(str, RULES), "TEST.WEIGHT", str(weight)])
    assert do_uda(cfg, cfg) == out / "round_2" / f"{NAME}_1.pth"
    return out


def test_what_the_trainings_cannot_measure_on_is_said_before_anything_is_labelled(cfg_of, monkeypatch, caplog):
    """No query of the test folder has an image from another camera if all are from one."""
    before = []
    monkeypatch.setattr(uda, "_rounds", lambda *_: before.extend(caplog.messages))
    monkeypatch.setattr("processor.evaluation.truth.count_matches", lambda *, drop_same_camera, **_: [
        0 if drop_same_camera else 1])
    cfg = cfg_of("SOLVER.EVAL_PERIOD", 1, "TEST.DROP_SAME_CAMERA", "True")
    do_uda(cfg, cfg)
    assert ["with TEST.DROP_SAME_CAMERA false 1 of them have one" in text for text in before] == [True, True]


def weights_of(path):
    return read_checkpoint(path)["model"]


def assert_equal(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_each_round_is_labelled_by_the_last_and_trained_on_the_union(whole, weight, tiny_data):
    record = read_json(whole / "uda.json")
    first, second = (whole / f"round_{n}" / f"{NAME}_1.pth" for n in (1, 2))
    assert [(entry["labelled_by"], entry["trained"]) for entry in record] == [
        (str(weight), str(first)), (str(first), str(second))]
    for number, entry in enumerate(record, 1):
        report = read_json(whole / f"round_{number}/unlabel/report.json")
        assert report["made_of"]["weight"] == f"{NAME}_1.pth"
        assert entry["identities"] == report["identities"]
        names = read_checkpoint(whole / f"round_{number}" / f"{NAME}_1.pth")["pid_names"]
        known = load_naic(tiny_data, train_sets=["2019_cs", "2020_cs"], parts=("train",)).pid_names
        assert names[: len(known)] == known  # the labels come after those of the sets that are trained on
        assert len(names) == len(known) + report["identities"]
        assert all(name.startswith("train_2020_fs_unlabel_") for name in names[len(known):])


def test_a_round_begins_with_the_labeller_and_its_rows_of_the_identities_that_stay(cfg_of, tmp_path, weight,
                                                                                  monkeypatch):
    """With a learning rate of next to nothing the weights stay what the round began with."""
    cfg = cfg_of("SOLVER.BASE_LR", 1e-30, "SOLVER.CENTER_LR", 0, "SOLVER.WEIGHT_DECAY", 0,
                 "SOLVER.WEIGHT_DECAY_BIAS", 0, "OUTPUT_DIR", tmp_path)
    do_uda(cfg, cfg)
    before = read_checkpoint(weight)
    for number in (1, 2):
        after = read_checkpoint(tmp_path / f"round_{number}" / f"{NAME}_1.pth")
        assert torch.allclose(after["model"]["base.conv1.weight"], before["model"]["base.conv1.weight"])
        shared = [name for name in after["pid_names"] if name in before["pid_names"]]
        assert shared
        for name in shared:
            then, now = before["pid_names"].index(name), after["pid_names"].index(name)
            assert torch.allclose(after["model"]["classifier.weight"][now], before["model"]["classifier.weight"][then])
        before = after
    assert any("unlabel" in name for name in shared)  # the same people, a round later


@pytest.mark.parametrize("stop", [
    pytest.param("labelling 1", marks=pytest.mark.slow), pytest.param("training 1", marks=pytest.mark.slow),
    "labelling 2", "training 2"])
def test_an_interrupted_run_goes_on_to_the_same_weights(cfg_of, tmp_path, whole, monkeypatch, stop):
    what, number = stop.split()
    target = "write_sheet" if what == "labelling" else "do_train"
    place = uda if what == "training" else __import__("processor.pseudo_label", fromlist=["write_sheet"])
    original, calls = getattr(place, target), []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == int(number):
            raise KeyboardInterrupt
        return original(*args, **options)

    cfg = cfg_of("OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(place, target, interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_uda(cfg, cfg)
    last = do_uda(cfg, cfg)
    assert_equal(last, whole / "round_2" / f"{NAME}_1.pth")
    for name in ("round_1/unlabel/label.txt", "round_2/unlabel/label.txt"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_labels_and_trains_nothing_and_takes_further_rounds(cfg_of, tmp_path, whole, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(whole, out)
    # Paths are part of the config that a training goes on with.
    monkeypatch.setattr(uda, "do_train", lambda recipe, resume, workers: Path(recipe.OUTPUT_DIR) / f"{NAME}_1.pth")
    labelled = []
    original = uda.pseudo_label
    monkeypatch.setattr(uda, "pseudo_label", lambda *args, **options: labelled.append(args[2]) or original(
        *args, **options))
    cfg = cfg_of("OUTPUT_DIR", out)
    do_uda(cfg, cfg)
    assert labelled == []
    cfg = cfg_of("OUTPUT_DIR", out, "UDA.ROUNDS", 3)
    do_uda(cfg, cfg)
    assert labelled == [out / "round_3/unlabel"]


def test_rounds_made_by_other_rules_are_not_mixed(cfg_of, tmp_path, whole):
    shutil.copytree(whole / "round_1/unlabel", tmp_path / "round_1/unlabel")
    cfg = cfg_of("OUTPUT_DIR", tmp_path, "UDA.THRESHOLD", 0.6)
    with pytest.raises(ValueError, match=r"made otherwise \(UDA\.THRESHOLD was 0\.7 and is 0\.6\); use another OUTPUT"):
        do_uda(cfg, cfg)


def test_the_test_config_labels_and_stays_out_of_the_training(cfg_of, tmp_path, monkeypatch):
    """In the lineage the two were one object, and the test file's settings leaked into the training."""
    trained, labelled = [], []
    monkeypatch.setattr(uda, "do_train", lambda recipe, resume, workers: trained.append(recipe) or tmp_path / "x.pth")
    monkeypatch.setattr(uda, "pseudo_label", lambda cfg, *_, **__: labelled.append(cfg) or {"labelled": 1})
    cfg = cfg_of("OUTPUT_DIR", tmp_path / "out", "UDA.THRESHOLD", 0.6, "MODEL.THRESH", 0.2)
    cfg_test = cfg_of("TEST.FLIP_FEATS", "off", "SOLVER.BASE_LR", 1, "UDA.THRESHOLD", 0.1, "MODEL.THRESH", 0.1)
    do_uda(cfg, cfg_test)
    assert [one.TEST.FLIP_FEATS for one in labelled] == [False, True]
    assert [one.TEST.WEIGHT for one in labelled] == [cfg_test.TEST.WEIGHT, str(tmp_path / "x.pth")]
    assert [(one.UDA.THRESHOLD, one.MODEL.THRESH) for one in labelled] == [(0.6, 0.2)] * 2
    assert [one.SOLVER.BASE_LR for one in trained] == [cfg.SOLVER.BASE_LR] * 2
    assert [one.MODEL.PRETRAIN_CHOICE for one in trained] == ["finetune"] * 2
    assert Path(cfg.OUTPUT_DIR) == tmp_path / "out"
    assert not cfg.DATASETS.USE_UNLABEL


def test_another_model_than_the_labeller_starts_as_its_recipe_says_or_is_refused_first(cfg_of, tmp_path, monkeypatch):
    monkeypatch.setattr(uda, "pseudo_label", lambda *_, **__: {"labelled": 1})
    trained = []
    monkeypatch.setattr(uda, "do_train", lambda recipe, resume, workers: trained.append(recipe) or tmp_path / "x.pth")
    other = ("MODEL.NAME", "resnet18", "UDA.ROUNDS", 1, "OUTPUT_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"set UDA\.START recipe"):
        do_uda(cfg_of(*other), cfg_of())
    do_uda(cfg_of(*other, "UDA.START", "recipe"), cfg_of())
    assert [one.MODEL.PRETRAIN_CHOICE for one in trained] == ["none"]


@pytest.mark.parametrize(("changes", "message"), [
    (("TEST.WEIGHT", ""), "TEST.WEIGHT='' is no file"),
    (("UDA.THRESHOLD", 0), "UDA.THRESHOLD is 0, not set"),
    (("DATASETS.TEST_DIR", "nowhere"), "nowhere"),
])
def test_mistakes_are_said_first(cfg_of, tmp_path, changes, message):
    cfg = cfg_of("OUTPUT_DIR", tmp_path / "out", *changes)
    with pytest.raises((ValueError, OSError), match=message):
        do_uda(cfg, cfg)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_label_as_one_does_and_train_together(tiny_opts, tiny_data, weight, whole, tmp_path):
    words = [*tiny_opts, "DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]", *map(str, RULES), "TEST.WEIGHT", str(weight),
             "UDA.ROUNDS", "1", "OUTPUT_DIR", str(tmp_path / "two")]
    done = subprocess.run([*torchrun_command(2), str(ROOT / "tools/train_UDA.py"), *words], capture_output=True,
                          text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"wrote {tmp_path / 'two/round_1' / f'{NAME}_1.pth'}"
    label = "round_1/unlabel/label.txt"
    assert (tmp_path / "two" / label).read_bytes() == (whole / label).read_bytes()


def test_two_runs_in_one_folder_are_refused(cfg_of, tmp_path):
    cfg = cfg_of("OUTPUT_DIR", tmp_path)
    with RunLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another run is at work"):
        do_uda(cfg, cfg)
