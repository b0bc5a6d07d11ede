"""Training on some sets and measuring on others, each by its own protocol; a validation split from end to end."""
from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny_options
from set_files import write_image, write_set

from configs import ConfigError, load_cfg
from datasets.make_dataloader import make_dataloader
from processor import inference, trainer
from processor.evaluation.feature_bank import read_bank
from processor.inference import do_inference, extract_features
from processor.retrieval.distance import distance
from processor.retrieval.metrics import RankAccumulator
from processor.trainer import do_train
from tools.campaigns.tool_server import run_tool
from utils.checkpoint import read_checkpoint
from utils.files import read_json
from utils.precision import make_precision


@pytest.fixture
def own_sets(tmp_path):
    """tree/ and data.csv, four identities of three images each, with file names that repeat; and Market-1501."""
    lines = ["path,pid,camid,split"]
    for pid in range(1, 5):
        for number in range(3):
            write_image(tmp_path / "tree" / f"id{pid}" / f"{number}.png", pid, number)
            write_image(tmp_path / "shots" / f"{pid}{number}.png", 10 + pid, number)
            lines.append(f"shots/{pid}{number}.png,{pid},{number + 1},train")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    write_set(tmp_path, "market1501")
    return tmp_path


def options(tiny_data, output, *changes):
    return [*tiny_options(tiny_data, output), "TEST.RE_RANKING", "False", *map(str, changes)]


def test_training_on_two_sets_and_testing_on_a_third(tiny_data, own_sets, tmp_path, caplog):
    caplog.set_level("INFO")
    opts = options(tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", own_sets, "DATASETS.NAMES", "tree+csv",
                   "DATASETS.TEST_NAMES", "market1501", "SOLVER.MAX_EPOCHS", 1, "SOLVER.EVAL_PERIOD", 1)
    weight = do_train(load_cfg(None, opts))
    assert "evaluation during training measures on the test set of market1501" in caplog.text
    assert "no best.pth is kept: an epoch is chosen by a validation split (DATASETS.VALIDATION)" in caplog.text
    assert not (tmp_path / "out/best.pth").exists()
    assert "Epoch[1] market1501: rank1 " in caplog.text
    assert "(2 queries) on the test set of market1501\n" in caplog.text
    assert read_checkpoint(weight)["pid_names"] == [f"{name}/{pid}" for name, ids in (
        ("csv", range(1, 5)), ("tree", ("id1", "id2", "id3", "id4"))) for pid in ids]
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    metrics = do_inference(load_cfg(None, [*opts, "TEST.WEIGHT", str(weight)]))
    assert metrics["market1501"]["plain"]["mAP"] == pytest.approx(last["market1501/mAP"], abs=1e-6)
    assert set(read_json(tmp_path / "out/submission.json")) == {"0001_c1s1_001051_00.jpg", "0003_c4s6_015641_00.jpg"}


def test_fine_tuning_knows_the_identities_of_a_set_in_another_combination(tiny_data, own_sets, tmp_path, caplog):
    opts = options(tiny_data, tmp_path / "one", "DATASETS.ROOT_DIR", own_sets, "SOLVER.MAX_EPOCHS", 1,
                   "SOLVER.IMS_PER_BATCH", 4)
    weight = do_train(load_cfg(None, [*opts, "DATASETS.NAMES", "tree"]))
    caplog.set_level("INFO")
    do_train(load_cfg(None, [*opts, "DATASETS.NAMES", "market1501+tree+csv", "OUTPUT_DIR", str(tmp_path / "two"),
                             "MODEL.PRETRAIN_CHOICE", "finetune", "MODEL.PRETRAIN_PATH", str(weight)]))
    assert "4 of 10 identities are known by name" in caplog.text


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A checkpoint of the tiny net, trained on the demo set for an epoch."""
    out = tmp_path_factory.mktemp("trained")
    return do_train(load_cfg(None, options(tiny_data, out, "SOLVER.MAX_EPOCHS", 1)))


def market_metrics(tiny_data, own_sets, trained, out, *changes):
    opts = options(tiny_data, out, "DATASETS.ROOT_DIR", own_sets, "DATASETS.NAMES", "market1501", "TEST.WEIGHT",
                   trained, *changes)
    return do_inference(load_cfg(None, opts))["market1501"]["plain"], read_bank(out / "features")[0]["market1501"]


@pytest.mark.parametrize(("value", "dropped"), [("auto", True), ("True", True), ("False", False)])
def test_market1501_is_measured_by_its_protocol_unless_the_key_says_otherwise(
        tiny_data, own_sets, trained, tmp_path, value, dropped):
    figures, bank = market_metrics(tiny_data, own_sets, trained, tmp_path / "out", "TEST.DROP_SAME_CAMERA", value)
    assert bank.drop_same_camera == dropped
    q = bank.num_query
    oracle = RankAccumulator(bank.pids[:q], bank.pids[q:], bank.camids[:q], bank.camids[q:], k=10,
                             drop_same_camera=dropped)
    feats = bank.feats["global"] / np.linalg.norm(bank.feats["global"], axis=1, keepdims=True)
    oracle.update(slice(0, q), distance(*map(_tensor, (feats[:q], feats[q:])), "euclidean").numpy())
    assert figures["mAP"] == pytest.approx(oracle.result().mAP)
    assert len(bank.names) - q == 4  # without junk


def _tensor(array):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def test_trials_share_their_features_and_their_mean_is_measured(tiny_data, trained, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    write_set(tmp_path, "vehicleid")
    opts = options(tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", tmp_path, "DATASETS.NAMES", "vehicleid",
                   "TEST.WEIGHT", trained)
    walks = []
    monkeypatch.setattr(inference, "extract_features",
                        lambda *args: walks.append(args[1]) or extract_features(*args))
    metrics = do_inference(load_cfg(None, opts))
    trials = [f"vehicleid_trial{number:02d}" for number in range(1, 11)]
    assert list(metrics) == ["all", "vehicleid", *trials]
    assert len(walks) == 1
    for figure in ("mAP", "rank1", "mINP"):
        mean = np.mean([metrics[name]["plain"][figure] for name in trials])
        assert metrics["vehicleid"]["plain"][figure] == metrics["all"]["plain"][figure] == pytest.approx(mean)
    assert "vehicleid, plain: rank1 " in caplog.text
    assert "trial" not in "".join(line for line in caplog.text.splitlines() if "rank1" in line)
    loaders = make_dataloader(load_cfg(None, opts), train=False)
    banks = read_bank(tmp_path / "out/features")[0]
    first = dict(zip((sample.key for sample in loaders.test[trials[0]].samples), banks[trials[0]].feats["global"],
                     strict=True))
    for name, bank in banks.items():
        assert (bank.feats["global"] == [first[sample.key] for sample in loaders.test[name].samples]).all()
    answer = read_json(tmp_path / "out/submission.json")
    assert len(answer) == 10 * 6
    assert all(len(gallery) == 3 and {name.split("/")[0] for name in gallery} == {query.split("/")[0]}
               for query, gallery in answer.items())
    cfg = load_cfg(None, opts)
    in_training = inference.evaluate(cfg, inference.load_trained(cfg, trained), loaders,
                                     make_precision(inference.CPU, False))
    assert in_training["all"]["plain"]["mAP"] == pytest.approx(metrics["all"]["plain"]["mAP"])
    assert len(walks) == 2


def test_each_of_several_test_lists_has_its_mean(tiny_data, trained, tmp_path):
    folder = write_set(tmp_path, "vehicleid") / "train_test_split"
    lines = (folder / "test_list_800.txt").read_text().splitlines(True)
    (folder / "test_list_1600.txt").write_text("".join(lines[:6]))
    metrics = do_inference(load_cfg(None, options(
        tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", tmp_path, "DATASETS.NAMES", "vehicleid",
        "DATASETS.TEST_NAMES", "vehicleid+vehicleid_1600", "TEST.WEIGHT", trained)))
    assert list(metrics)[:3] == ["all", "vehicleid", "vehicleid_1600"]
    assert [metrics[name]["plain"]["num_valid"] for name in list(metrics)[:3]] == [10 * (6 + 4), 10 * 6, 10 * 4]


def test_sets_of_different_protocols_are_measured_in_one_test(tiny_data, own_sets, trained, tmp_path):
    (own_sets / "MyDataSet").symlink_to(tiny_data / "MyDataSet")
    opts = options(tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", own_sets, "DATASETS.NAMES", "naic+market1501",
                   "TEST.WEIGHT", trained)
    metrics = do_inference(load_cfg(None, opts), save_distmat=True)
    banks = read_bank(tmp_path / "out/features")[0]
    assert {name: bank.drop_same_camera for name, bank in banks.items()} == {
        "green": False, "normal": False, "market1501": True}
    assert set(metrics) == {"all", "green", "normal", "market1501"}
    assert {path.name for path in (tmp_path / "out").glob("distmat_*")} == {
        "distmat_1.npy", "distmat_2.npy", "distmat_market1501.npy"}
    alone = market_metrics(tiny_data, own_sets, trained, tmp_path / "alone")[0]
    assert metrics["market1501"]["plain"] == alone
    done = run_tool("ensemble", "--inputs", tmp_path / "out", "--distmats", "--top_k", 10, "--output",
                tmp_path / "e/submission.json")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "e/submission.json") == read_json(tmp_path / "out/submission.json")


def test_a_bank_that_was_written_before_evaluations_had_protocols_keeps_its_own(tiny_data, own_sets, trained, tmp_path):
    market_metrics(tiny_data, own_sets, trained, tmp_path / "out")
    path = tmp_path / "out/features/index.json"
    index = read_json(path)
    for dropped in (True, False):
        index["domains"]["market1501"].pop("drop_same_camera", None)
        index["evaluation"]["drop_same_camera"] = dropped
        path.write_text(json.dumps(index))
        assert read_bank(path.parent)[0]["market1501"].drop_same_camera == dropped


def test_runs_of_different_protocols_are_not_summed(tiny_data, own_sets, trained, tmp_path):
    for name, value in (("a", "auto"), ("b", "False")):
        market_metrics(tiny_data, own_sets, trained, tmp_path / name, "TEST.DROP_SAME_CAMERA", value)
    for words in (["ensemble", "--inputs", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "s.json"],
                  ["tune_rerank", "--inputs", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "t"]):
        done = run_tool(*words)
        assert done.returncode == 2
        assert "different settings of TEST.DROP_SAME_CAMERA in market1501" in done.stderr


def test_file_names_that_repeat_are_told_apart_in_results(tiny_data, trained, tmp_path):
    for split, number in (("query", 0), ("gallery", 1)):
        for pid in (1, 2):
            write_image(tmp_path / "tree" / split / str(pid) / f"{number}.png", pid, number)
    opts = options(tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", tmp_path, "DATASETS.NAMES", "tree", "TEST.WEIGHT",
                   trained)
    do_inference(load_cfg(None, opts))
    answer = read_json(tmp_path / "out/submission.json")
    assert set(answer) == {"tree/query/1/0.png", "tree/query/2/0.png"}
    assert sorted(answer["tree/query/1/0.png"]) == ["tree/gallery/1/1.png", "tree/gallery/2/1.png"]


# ------------------------------------------------------------------ validation
@pytest.fixture(scope="module")
def split(tiny_data, tmp_path_factory):
    """A split of the tiny demo set: four identities with queries, two distractors, half of them green."""
    path = tmp_path_factory.mktemp("split") / "validation.json"
    done = run_tool("split_validation", "--output", path, "--identities", 4, "--distractors", 2, "--green", 0.5,
                "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", tiny_data)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows[:4:2]] == [("green", "query"), ("normal", "query")]
    assert [row[3] for row in rows[:4:2]] == ["2", "2"]
    return path


def test_a_split_is_not_replaced_unasked(tiny_data, split):
    before = split.read_bytes()
    words = ["split_validation", "--output", split, "--identities", 2, "--distractors", 1, "DATASETS.NAMES", "naic",
             "DATASETS.ROOT_DIR", tiny_data]
    done = run_tool(*words)
    assert (done.returncode, split.read_bytes()) == (2, before)
    assert "--force replaces it" in done.stderr


def test_training_measures_on_the_split_and_leaves_it_out(tiny_data, split, tmp_path, caplog):
    caplog.set_level("INFO")
    opts = options(tiny_data, tmp_path / "out", "DATASETS.VALIDATION", split, "SOLVER.MAX_EPOCHS", 1,
                   "SOLVER.EVAL_PERIOD", 1, "DATASETS.TEST_DIR", "nowhere")
    weight = do_train(load_cfg(None, opts))
    assert f"evaluation during training measures on the validation split {split}" in caplog.text
    assert "no best.pth" not in caplog.text
    assert read_checkpoint(tmp_path / "out/best.pth")["best"]["on"] == f"the validation split {split}"
    gone = {name for names in read_json(split)["left_out"].values() for name in names}
    names = read_checkpoint(weight)["pid_names"]
    assert len(gone) == 6
    assert not gone & set(names)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    metrics = do_inference(load_cfg(None, [*opts, "TEST.WEIGHT", str(weight)]))
    assert set(metrics) == {"all", "green", "normal"}
    assert metrics["all"]["plain"]["mAP"] == pytest.approx(lines[-1]["all/mAP"], abs=1e-6)
    assert metrics["all"]["plain"]["num_valid"] == metrics["all"]["plain"]["num_queries"] == 4
    banks, _ = read_bank(tmp_path / "out/features")
    for domain, bank in banks.items():
        evaluation = read_json(split)["evaluations"][domain]
        assert len(bank.names) == len(evaluation["query"]) + len(evaluation["gallery"])


def test_loaders_say_whether_they_measure_on_a_validation_split(tiny_data, split, tmp_path):
    cfg = load_cfg(None, options(tiny_data, tmp_path, "DATASETS.VALIDATION", split))
    loaders = make_dataloader(cfg)
    assert (loaders.on_validation, loaders.measured_on) == (True, f"the validation split {split}")
    loaders = make_dataloader(load_cfg(None, options(tiny_data, tmp_path)))
    assert (loaders.on_validation, loaders.measured_on) == (False, "the test set of naic (image_B_v1_1)")


def test_a_split_of_another_set_than_naic_has_no_domains_and_keeps_its_protocol(
        tiny_data, own_sets, trained, tmp_path):
    path = tmp_path / "split.json"
    done = run_tool("split_validation", "--output", path, "--identities", 2, "--distractors", 1,
                "DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", own_sets)
    assert done.returncode == 0, done.stderr
    opts = options(tiny_data, tmp_path / "out", "DATASETS.ROOT_DIR", own_sets, "DATASETS.NAMES", "tree+csv",
                   "DATASETS.VALIDATION", path, "TEST.WEIGHT", trained)
    figures = do_inference(load_cfg(None, opts))["validation"]["plain"]
    bank = read_bank(tmp_path / "out/features")[0]["validation"]
    assert (bank.drop_same_camera, figures["num_valid"], len(bank.names)) == (True, 2, 9)
    assert {sample.key.split("/")[0] for sample in make_dataloader(load_cfg(None, opts), train=False).test[
        "validation"].samples} == {"csv"}


def test_a_demand_for_cameras_is_not_followed_where_they_are_unknown(tiny_data, split, trained, tmp_path, caplog):
    """The demo's recipes set TEST.DROP_SAME_CAMERA for its test folder; training images of NAIC have no camera."""
    opts = options(tiny_data, tmp_path, "TEST.DROP_SAME_CAMERA", True)
    loaders = make_dataloader(load_cfg(None, opts), train=False)
    assert [test.drop_same_camera for test in loaders.test.values()] == [True, True]
    assert "not followed" not in caplog.text
    loaders = make_dataloader(load_cfg(None, [*opts, "DATASETS.VALIDATION", str(split)]), train=False)
    assert [test.drop_same_camera for test in loaders.test.values()] == [False, False]
    assert "green: TEST.DROP_SAME_CAMERA is not followed, its cameras are unknown" in caplog.text


def test_a_figure_from_another_set_is_no_bar_for_the_best_checkpoint(monkeypatch):
    """A resumed run may be measured on another split than before; a test set chooses nothing."""
    cfg = load_cfg(None, ["SOLVER.BEST_METRIC", "mAP"])
    run = SimpleNamespace(cfg=cfg, model=None, precision=None, workers=None, batches=1, best={},
                          loaders=SimpleNamespace(measured_on="a", on_validation=True), broadcast_buffers=lambda: None,
                          tested_weights=contextlib.nullcontext)
    is_best = []
    for on, value in (("a", 0.5), ("test", 0.9), ("a", 0.4), ("b", 0.3), ("b", 0.3), ("b", 0.4)):
        run.loaders.measured_on, run.loaders.on_validation = on, on != "test"
        figures = {"all": {"plain": {"mAP": value, "num_valid": 1}}}
        monkeypatch.setattr(trainer, "evaluate", lambda *_, figures=figures: figures)
        is_best.append(trainer.evaluate_epoch(run, SimpleNamespace(log=None), 1))
    assert is_best == [True, False, False, True, False, True]


def test_a_missing_split_stops_the_training(tiny_data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no validation split nowhere"):
        do_train(load_cfg(None, options(tiny_data, tmp_path, "DATASETS.VALIDATION", "nowhere.json")))


def test_a_validation_split_and_a_test_set_at_once_are_refused():
    with pytest.raises(ConfigError, match="TEST_NAMES=veri is not measured on while"):
        load_cfg(None, ["DATASETS.VALIDATION", "v.json", "DATASETS.TEST_NAMES", "veri"])


def test_naics_keys_without_naic_are_remarked_on(caplog):
    load_cfg(None, ["DATASETS.NAMES", "market1501+veri", "DATASETS.TRAIN_SETS", "[2019_cs]"])
    assert "DATASETS.TRAIN_SETS=['2019_cs'] is about naic, which is not among" in caplog.text
