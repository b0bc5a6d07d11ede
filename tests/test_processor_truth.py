"""Evaluations that cannot be measured on, pictures that are a query and in the gallery at once, or in training, too."""
from __future__ import annotations

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from bank_files import forget_checksums
from conftest import quick_options
from set_files import write_image

from configs import load_cfg
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor import trainer
from processor.evaluation.ensemble import ensemble
from processor.evaluation.feature_bank import read_bank
from processor.evaluation.truth import Truth, common_truth
from processor.inference import do_inference
from processor.stages.summary import table
from processor.trainer import do_train, dry_run
from processor.training.build import choose_evaluations
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("tiny_backbone")
CURE = ("none of its 2 queries has an image of its identity from another camera in the gallery; with "
        "TEST.DROP_SAME_CAMERA false 2 of them have one")


def write_csv(root, name, cameras=(1, 1), people=2, rows=()):
    """NAME.csv below `root`: four people to train on, and others with one query and two gallery images each.

    cameras: of a person's query and of its gallery images. rows: more lines.
    """
    lines = ["path,pid,camid,split"]
    for pid in range(4 + people):
        splits = ("train",) * 3 if pid < 4 else ("query", "gallery", "gallery")
        for number, split in enumerate(splits):
            path = f"shots/{name}_{pid}_{number}.png"
            write_image(root / path, pid, number)
            lines.append(f"{path},{pid},{cameras[0] if split == 'query' else cameras[1]},{split}")
    (root / f"{name}.csv").write_text("\n".join([*lines, *rows]) + "\n")


@pytest.fixture
def config(tiny_data, tmp_path):
    """config(names, *changes) -> the config of a quick training and test on sets in tmp_path."""
    def make(names, *changes):
        return load_cfg(None, quick_options(
            tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", tmp_path, "DATASETS.NAMES", names, "SOLVER.MAX_EPOCHS", 1,
            "SOLVER.IMS_PER_BATCH", 4, "SOLVER.STEPS", "[]", "TEST.RE_RANKING", "False", *changes))
    return make


def measure(config, names, *changes):
    """The metrics of a random model."""
    cfg = config(names, *changes)
    cfg = config(names, *changes, "TEST.WEIGHT", f"{cfg.OUTPUT_DIR}/net.pth")
    torch.manual_seed(0)
    save_checkpoint(cfg.TEST.WEIGHT, {"model": make_model(cfg, 5).state_dict()})
    return do_inference(cfg)


# ------------------------------------------------------------------ nothing to measure
def test_a_training_whose_evaluation_has_no_match_says_so_first_and_goes_on_to_its_end(config, tmp_path, caplog):
    write_csv(tmp_path, "one")
    cfg = config("csv:one.csv")
    assert f"evaluation  none: one: {CURE}" in dry_run(cfg)
    caplog.clear()
    last = do_train(cfg)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == [f"one is not measured on: {CURE}"]
    assert last.is_file()
    assert not (tmp_path / "out/best.pth").exists()


def test_a_test_whose_queries_have_no_match_ranks_all_the_same(config, tmp_path, caplog):
    write_csv(tmp_path, "one")
    assert measure(config, "csv:one.csv") == {}
    assert f"one is not measured on: {CURE}" in caplog.messages
    answer = read_json(tmp_path / "out/submission.json")
    assert {len(names) for names in answer.values()} == {4}
    caplog.clear()
    assert ensemble([tmp_path / "out"], None, tmp_path / "e/submission.json") == {}
    assert f"one is not measured on: {CURE}" in caplog.messages
    assert read_json(tmp_path / "e/submission.json") == answer
    assert not (tmp_path / "e/metrics.json").exists()
    cured = measure(config, "csv:one.csv", "TEST.DROP_SAME_CAMERA", "False")
    assert cured["one"]["plain"]["num_valid"] == 2


def test_the_other_sets_of_a_combination_are_measured_on(config, tmp_path, caplog):
    caplog.set_level("INFO")
    write_csv(tmp_path, "one")
    write_csv(tmp_path, "two", cameras=(1, 2))
    metrics = measure(config, "csv:one.csv+csv:two.csv")
    assert set(metrics) == {"all", "two"}
    assert metrics["all"]["plain"]["num_queries"] == 2
    stored = read_json(tmp_path / "out/metrics.json")
    assert stored["not_measured"] == {"one": CURE}
    assert "left out (TEST.DROP_SAME_CAMERA true)" in stored["protocol"]["two"]
    assert len(read_json(tmp_path / "out/submission.json")) == 4
    loaders = make_dataloader(config("csv:one.csv+csv:two.csv"))
    choose_evaluations(loaders)
    assert list(loaders.test) == ["two"]
    assert caplog.messages[-2] == "evaluation during training measures on the test set of two"


def test_a_set_without_a_test_part_is_not_named_among_those_measured_on(config, tmp_path):
    write_csv(tmp_path, "two", cameras=(1, 2))
    write_csv(tmp_path, "two_more", people=0)
    assert make_dataloader(config("csv:two_more.csv+csv:two.csv")).measured_on == "the test set of two"


def test_a_validation_split_without_a_match_chooses_no_best(config, tmp_path):
    write_csv(tmp_path, "one")
    write_json(tmp_path / "split.json", {
        "what": "validation split", "format": 1, "settings": {}, "left_out": {"queried": ["one/0"], "distractors": []},
        "evaluations": {"validation": {"query": {"one/shots/one_0_0.png": "one/0"},
                                       "gallery": {"one/shots/one_0_0.png": "one/0"}}}, "cameras": {}})
    cfg = config("csv:one.csv", "DATASETS.VALIDATION", tmp_path / "split.json")
    assert "validation: none of its 1 queries has another image of its identity in the gallery\n" in dry_run(cfg)
    do_train(cfg)
    assert not (tmp_path / "out/best.pth").exists()


def test_the_cure_is_named_only_where_it_cures():
    labels = [np.array(values) for values in ([7], [8, 9], [1], [1, 1])]
    assert Truth(*labels, True, np.empty((0, 2), int)).find_obstacle() == (
        "none of its 1 queries has an image of its identity from another camera in the gallery")


def test_queries_without_a_match_are_counted_beside_the_figures(config, tmp_path, caplog):
    caplog.set_level("INFO")
    write_csv(tmp_path, "two", cameras=(1, 2), rows=["shots/two_0_0.png,other,1,query"])
    measure(config, "csv:two.csv")
    assert "%, 2 of 3 queries (1 without a match in the gallery)" in caplog.messages[-1]


def test_the_table_of_a_pipeline_counts_queries_without_a_match():
    figures = {"mAP": 0.5, "rank1": 0.5, "naic_score": 0.5, "num_queries": 120}
    models = {"a": {"plain": {**figures, "num_valid": 118}}}
    assert table({"models": models, "ensemble": models["a"]}).splitlines()[-1] == (
        "118 of 120 queries (2 without a match in the gallery)")
    models["a"]["plain"]["num_valid"] = 120
    assert "queries" not in table({"models": models, "ensemble": models["a"]})


def test_a_k1_as_large_as_the_gallery_is_remarked_on_before_the_features_are_made(config, tmp_path, caplog):
    write_csv(tmp_path, "two", cameras=(1, 2))
    keys = ["TEST.RE_RANKING", "True", "TEST.RE_RANKING_PARAMETER"]
    measure(config, "csv:two.csv", *keys, "[3, 2, 0.3]")
    assert caplog.messages == []
    measure(config, "csv:two.csv", *keys, "[4, 2, 0.3]")
    remark = "k1 of TEST.RE_RANKING_PARAMETER is 4, and there are 4 images to be neighbours"
    assert [message.split(": ")[0] for message in caplog.messages if remark in message] == ["two"]
    ensemble([tmp_path / "out"], None, tmp_path / "e/submission.json")
    assert len([message for message in caplog.messages if remark in message]) == 2
    measure(config, "csv:two.csv", "TEST.DATABASE_AUGMENTATION", 9)
    assert "two: TEST.DATABASE_AUGMENTATION is 9, and there are 4 images to be neighbours" in caplog.text


# ------------------------------------------------------------------ one file twice
def own_rows(tmp_path):
    """Each query of two.csv in the gallery: by its own path, and by a link to it."""
    os.symlink("two_5_0.png", tmp_path / "shots" / "link.png")
    return ["shots/two_4_0.png,4,2,gallery", "shots/link.png,5,2,gallery"]


def test_a_query_that_stands_in_the_gallery_is_not_its_own_match(config, tmp_path):
    (tmp_path / "shots").mkdir()
    write_csv(tmp_path, "two", cameras=(1, 2))
    without = measure(config, "csv:two.csv")["two"]["plain"]
    write_csv(tmp_path, "two", cameras=(1, 2), rows=own_rows(tmp_path))
    with_own = measure(config, "csv:two.csv")["two"]["plain"]
    bank = read_bank(tmp_path / "out/features")[0]["two"]
    names = [(str(bank.query_names[q]), str(bank.gallery_names[g])) for q, g in bank.same_file]
    assert names == [("two_4_0.png", "two_4_0.png"), ("two_5_0.png", "link.png")]
    answer = read_json(tmp_path / "out/submission.json")
    assert [answer[query][0] for query, _ in names] == [name for _, name in names]  # the ranking keeps it
    # The other query's copy is one more mistake, which may come before a match or not.
    assert with_own["rank1"] <= without["rank1"]
    assert with_own["num_valid"] == 2
    assert "which leaves out 2 pairs" in read_json(tmp_path / "out/metrics.json")["protocol"]["two"]


def test_a_gallery_of_the_queries_themselves_has_no_match(config, tmp_path):
    write_csv(tmp_path, "two", people=0, rows=["shots/two_0_0.png,a,,query", "shots/two_0_0.png,a,,gallery",
                                               "shots/two_1_0.png,b,,query", "shots/two_1_0.png,b,,gallery"])
    assert measure(config, "csv:two.csv") == {}


def test_all_that_measure_leave_own_files_out_alike(config, tmp_path):
    write_csv(tmp_path, "two", cameras=("", ""), rows=["shots/two_4_0.png,4,,gallery", "shots/two_5_0.png,5,,gallery"])
    cfg = config("csv:two.csv")
    weight = do_train(cfg)
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    metrics = do_inference(config("csv:two.csv", "TEST.WEIGHT", weight))
    assert metrics["two"]["plain"]["mAP"] == pytest.approx(last["two/mAP"], abs=1e-6)
    assert ensemble([tmp_path / "out"], None, tmp_path / "e/submission.json") == metrics
    joined = ensemble([tmp_path / "out"], None, tmp_path / "c/submission.json", "concat")["all"]["plain"]
    assert joined.pop("ci95") == {name: pytest.approx(bounds, abs=1e-6)  # lengths are made 1 twice
                                  for name, bounds in metrics["all"]["plain"].pop("ci95").items()}
    assert joined == pytest.approx(metrics["all"]["plain"], abs=1e-6)


def test_a_bank_made_earlier_knows_own_files_by_their_keys(config, tmp_path):
    """File names that repeat make results use keys, which a bank always had."""
    for folder in ("a", "b"):
        write_image(tmp_path / folder / "1.png", 1, ord(folder))
    write_csv(tmp_path, "two", people=0, rows=[
        "a/1.png,x,,query", "b/1.png,y,,query", "a/1.png,x,,gallery", "b/1.png,x,,gallery"])
    metrics = measure(config, "csv:two.csv")
    (tmp_path / "out/features/two.same_file.npy").unlink()
    forget_checksums(tmp_path / "out")
    assert read_bank(tmp_path / "out/features")[0]["two"].same_file.tolist() == [[0, 0], [1, 1]]
    assert ensemble([tmp_path / "out"], None, tmp_path / "e/submission.json") == metrics
    assert metrics["all"]["plain"]["num_valid"] == 1


def test_inputs_share_what_any_of_them_knows_of_own_files():
    labels = [np.array(values) for values in ([7], [7, 7], [1], [1, 1])]
    truths = {name: Truth(*labels, False, np.array(pairs, int).reshape(-1, 2))
              for name, pairs in (("old", []), ("new", [[0, 1]]), ("newer", [[0, 1]]))}
    assert common_truth("x", truths).same_file.tolist() == [[0, 1]]
    assert common_truth("x", truths).num_valid() == 1


def test_pictures_in_training_and_test_are_counted_in_one_warning(config, tmp_path, caplog):
    os.makedirs(tmp_path / "shots")
    write_csv(tmp_path, "two", cameras=(1, 2), rows=["shots/link.png,0,1,train", "shots/two_4_0.png,1,1,train"])
    (tmp_path / "shots/link.png").symlink_to("two_5_0.png")
    make_dataloader(config("csv:two.csv"))
    assert caplog.messages == ["2 of 6 query and gallery pictures stand in training, too: their figures will be too "
                               "good: two/shots/two_4_0.png, two/shots/two_5_0.png"]
    caplog.clear()
    shutil.copy(tmp_path / "two.csv", tmp_path / "again.csv")  # another set, the same files
    make_dataloader(config("csv:again.csv", "DATASETS.TEST_NAMES", "csv:two.csv"))
    assert len(caplog.messages) == 1
    caplog.clear()
    make_dataloader(config("csv:two.csv"), train=False)
    assert caplog.messages == []


# ------------------------------------------------------------------ the schedule of a resumed run
def test_a_run_that_was_stopped_at_its_first_evaluation_goes_on_without_torchs_warning(config, tmp_path, monkeypatch):
    write_csv(tmp_path, "two", cameras=(1, 2))
    cfg = config("csv:two.csv", "SOLVER.MAX_EPOCHS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            do_train(cfg)
    assert read_checkpoint(tmp_path / "out/latest.pth")["epoch"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert do_train(cfg, "auto").is_file()
