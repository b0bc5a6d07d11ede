"""Testing and ensembling: features, lists, metrics, files."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_options

from configs import load_cfg
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor.evaluation.comparison import compare_runs, format_comparison
from processor.evaluation.ensemble import ensemble
from processor.evaluation.feature_bank import read_bank
from processor.inference import do_inference, extract_features
from processor.retrieval.submission import submission_problems
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.files import read_json, write_json
from utils.precision import Precision
from utils.process import RunLock
from utils.seed import seed_everything

CPU = Precision(torch.device("cpu"), fp16=False)


def model_tested(tiny_opts, folder, seed, *changes, **kwargs):
    """Test a random model in its folder."""
    cfg = load_cfg(None, [*tiny_opts, "OUTPUT_DIR", str(folder), "TEST.WEIGHT", str(folder / "net_1.pth"),
                          *map(str, changes)])
    seed_everything(seed)
    save_checkpoint(folder / "net_1.pth", {"model": make_model(cfg, 5).state_dict()})
    return cfg, do_inference(cfg, **kwargs)


@pytest.fixture(scope="module")
def models(tiny_data, tmp_path_factory):
    """Three random models tested with re-ranking, in folders a, b and c; not to be changed."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        model_tested(tiny_options(tiny_data, root / name), root / name, seed, save_distmat=True)
    return root


def metrics_of(folder):
    stored = read_json(folder / "metrics.json")
    return {name: stored[name] for name in ("all", "green", "normal")}


def test_a_tested_model_leaves_submission_metrics_and_bank(models):
    metrics = metrics_of(models / "a")
    assert set(metrics) == {"all", "green", "normal"}
    assert set(metrics["all"]) == {"plain", "re_ranked"}
    assert {"mAP", "mAP@10", "rank1", "mINP", "naic_score"} <= metrics["all"]["plain"].keys()
    banks, index = read_bank(models / "a" / "features")
    assert index["weight"] == "net_1.pth"
    answer = read_json(models / "a" / "submission.json")
    expected = {str(name) for bank in banks.values() for name in bank.query_names}
    assert set(answer) == expected
    for bank in banks.values():
        for name in bank.query_names:
            assert len(answer[name]) == len(set(answer[name])) == min(10, len(bank.gallery_names))
            assert set(answer[name]) <= set(bank.gallery_names)


def test_domains_are_weighed_by_their_queries(models):
    metrics = metrics_of(models / "a")
    parts = [metrics[domain]["plain"] for domain in ("green", "normal")]
    counts = [part["num_valid"] for part in parts]
    assert metrics["all"]["plain"]["mAP"] == pytest.approx(np.average([part["mAP"] for part in parts], weights=counts))


def test_batch_size_and_workers_change_nothing(models, tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path, 0, "TEST.IMS_PER_BATCH", 5, "DATALOADER.NUM_WORKERS", 2)
    first, second = (read_bank(folder / "features")[0]["green"] for folder in (models / "a", tmp_path))
    np.testing.assert_allclose(first.feats["global"], second.feats["global"], rtol=1e-4, atol=1e-5)
    assert (first.names == second.names).all()


def test_flipped_features_are_the_mean_of_both_views(tiny_opts):
    cfg = load_cfg(None, tiny_opts)
    model, loaders = make_model(cfg, 3), make_dataloader(cfg, train=False)
    test = loaders.test["green"]
    both = extract_features(model, test, loaders.normalize, True, CPU).feats["global"]
    plain = extract_features(model, test, loaders.normalize, False, CPU).feats["global"]
    mirrored = extract_features(model, test, lambda images: loaders.normalize(images).flip(3), False, CPU)
    np.testing.assert_allclose(both, (plain + mirrored.feats["global"]) / 2, rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain, both)


def test_feat_norm_really_switches_the_norm(tiny_opts, tmp_path):
    results = {}
    for norm in ("yes", "no"):
        model_tested(tiny_opts, tmp_path / norm, 1, "TEST.FEAT_NORM", norm, "TEST.RE_RANKING", "False",
                        "TEST.NECK_FEAT", "before", save_distmat=True)
        results[norm] = np.load(tmp_path / norm / "distmat_1.npy")
    assert results["yes"].max() <= 2
    assert not np.allclose(results["yes"] / results["yes"].max(), results["no"] / results["no"].max(), atol=1e-3)


def test_saved_distmats_have_the_originals_names_and_no_pickles(models):
    for number in (1, 2):
        arrays = {leaf: np.load(models / "a" / f"{leaf}_{number}.npy", allow_pickle=False)
                  for leaf in ("distmat", "query_path", "gallery_path")}
        assert arrays["distmat"].dtype == np.float32
        assert arrays["distmat"].shape == (len(arrays["query_path"]), len(arrays["gallery_path"]))
        assert arrays["query_path"].dtype.kind == "U"


def test_an_ensemble_of_one_is_the_model_itself(models, tmp_path):
    assert ensemble([models / "a"], None, tmp_path / "submission.json") == metrics_of(models / "a")
    assert read_json(tmp_path / "submission.json") == read_json(models / "a" / "submission.json")


def test_banks_and_saved_distmats_give_the_same_ensemble(models, tmp_path):
    folders = [models / name for name in "abc"]
    for mode, saved in (("banks", False), ("distmats", True)):
        ensemble(folders, [1.0, 0.5, 2.0], tmp_path / mode / "submission.json", top=10, saved_distmats=saved)
    assert read_json(tmp_path / "banks/submission.json") == read_json(tmp_path / "distmats/submission.json")


def test_each_model_adds_the_distances_it_was_tested_with(models, tiny_opts, tmp_path):
    """One re-ranked, one plain, one saved: no model falls back to what another has."""
    model_tested(tiny_opts, tmp_path / "plain", 1, "TEST.RE_RANKING", "off", save_distmat=True)
    folders = [models / "a", tmp_path / "plain"]
    metrics = ensemble(folders, None, tmp_path / "e" / "submission.json")
    assert set(metrics["all"]) == {"plain", "re_ranked"}
    (saved := tmp_path / "saved").mkdir()
    for path in (models / "c").glob("*_[12].npy"):
        shutil.copy(path, saved)
    ensemble([*folders, saved], None, tmp_path / "mixed" / "submission.json")
    for parts, name in ((folders, "e"), ([*folders, saved], "mixed")):
        answer = read_json(tmp_path / name / "submission.json")
        for number in (1, 2):
            total = sum(np.load(folder / f"distmat_{number}.npy") for folder in parts)
            queries, gallery = (np.load(models / "a" / f"{leaf}_path_{number}.npy") for leaf in ("query", "gallery"))
            for query, row in zip(queries, np.argsort(total, axis=1, kind="stable")[:, :10], strict=True):
                assert answer[query] == list(gallery[row])


def test_the_log_names_domain_and_model_once_for_each_re_ranking(models, tmp_path, caplog):
    with caplog.at_level("INFO"):
        ensemble([models / "a", models / "b"], None, tmp_path / "submission.json")
    lines = [line for line in caplog.messages if "re-ranking " in line or "neighbours" in line]
    assert sorted(line.split(": ")[0] for line in lines) == ["green, a", "green, b", "normal, a", "normal, b"]


def test_the_ensemble_is_the_weighted_sum_of_distances(models, tmp_path):
    ensemble([models / "a", models / "b"], [1.0, 3.0], tmp_path / "submission.json")
    answer = read_json(tmp_path / "submission.json")
    for number in (1, 2):
        load = {name: np.load(models / name / f"distmat_{number}.npy") for name in "ab"}
        queries, gallery = (np.load(models / "a" / f"{leaf}_path_{number}.npy") for leaf in ("query", "gallery"))
        order = np.argsort(load["a"] + 3 * load["b"], axis=1, kind="stable")[:, :10]
        for query, row in zip(queries, order, strict=True):
            assert answer[query] == list(gallery[row])


def test_concat_ranks_the_joined_features(tiny_opts, tmp_path):
    for seed, name in enumerate("ab"):
        model_tested(tiny_opts, tmp_path / name, seed, "TEST.RE_RANKING", "False")
    ensemble([tmp_path / "a", tmp_path / "b"], None, tmp_path / "e" / "submission.json", mode="concat")
    banks = [read_bank(tmp_path / name / "features")[0]["green"] for name in "ab"]
    feats = [bank.feats["global"] / np.linalg.norm(bank.feats["global"], axis=1, keepdims=True) for bank in banks]
    joined = np.concatenate(feats, 1)
    similarity = joined[: banks[0].num_query] @ joined[banks[0].num_query:].T
    answer = read_json(tmp_path / "e" / "submission.json")
    for query, row in zip(banks[0].query_names, similarity, strict=True):
        assert answer[query][0] == banks[0].gallery_names[row.argmax()]


def test_an_ensemble_of_different_galleries_is_refused(models, tmp_path):
    for name in "ab":
        shutil.copytree(models / name, tmp_path / name)
    path = tmp_path / "b" / "features" / "green.names.npy"
    names = np.load(path)
    names[-2:] = names[[-1, -2]]
    np.save(path, names)
    with pytest.raises(ValueError, match="differ"):
        ensemble([tmp_path / "a", tmp_path / "b"], None, tmp_path / "e.json")
    assert not (tmp_path / "e.json").exists()


def test_two_tests_cannot_share_a_folder(tiny_opts, tmp_path):
    with RunLock(tmp_path / ".test.lock"), pytest.raises(ValueError, match="another run is at work in"):
        model_tested(tiny_opts, tmp_path, 0)
    assert not (tmp_path / "features.partial").exists()  # what the other is writing stays


def test_a_half_written_bank_is_not_read(models, tmp_path):
    shutil.copytree(models / "a", tmp_path / "a")
    (tmp_path / "a" / "features" / "index.json").unlink()
    with pytest.raises(ValueError, match="no complete feature bank"):
        ensemble([tmp_path / "a"], None, tmp_path / "e.json")


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    lambda data: data[:-8],
    lambda data: b"",
])
@pytest.mark.parametrize("name", ["green.global.npy", "green.pids.npy", "green.names.npy"])
def test_a_bank_that_is_not_as_it_was_written_is_refused(models, tmp_path, damage, name):
    shutil.copytree(models / "a" / "features", tmp_path / "features")
    path = tmp_path / "features" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checksum|not a whole \.npy|no text"):
        read_bank(tmp_path / "features")


@pytest.mark.parametrize("change", [
    {"domains": None}, {"domains": {"green": {}}}, {"domains": {"../green": {"branches": {}}}}, {"ranking": []},
    {"ranking": {"feat_norm": True, "distance": "none", "re_ranking": None}}, {"evaluation": 3}])
def test_an_index_of_a_bank_with_other_values_is_refused_in_a_line(models, tmp_path, change):
    shutil.copytree(models / "a" / "features", tmp_path / "features")
    index = read_json(tmp_path / "features" / "index.json")
    write_json(tmp_path / "features" / "index.json", {**index, **change})
    with pytest.raises(ValueError, match=r"index\.json|ranking") as caught:
        read_bank(tmp_path / "features")
    assert "\n" not in str(caught.value)


def test_without_ground_truth_there_is_a_submission_and_no_metrics(models, tiny_opts, tmp_path, tiny_data):
    truth = tiny_data / "MyDataSet" / "image_B_v1_1" / "ground_truth.json"
    hidden = truth.with_suffix(".hidden")
    truth.rename(hidden)
    try:
        _, metrics = model_tested(tiny_opts, tmp_path / "a", 1)
    finally:
        hidden.rename(truth)
    assert metrics == {}
    for name in ("metrics.json", "per_query.json"):
        assert not (tmp_path / "a" / name).exists()
    # Only the nearest were computed there, and all distances here: the lists are the same.
    assert read_json(tmp_path / "a" / "submission.json") == read_json(models / "b" / "submission.json")


def test_metrics_have_intervals_and_two_runs_can_be_compared(models):
    for by_kind in metrics_of(models / "a").values():
        for figures in by_kind.values():
            for name in ("mAP", "mAP@10", "rank1", "mINP", "naic_score"):
                low, high = figures["ci95"][name]
                assert low <= figures[name] <= high
    table = format_comparison(compare_runs(models / "a", models / "b"))
    assert "mAP" in table
    assert "noise" in table or "is better" in table
    same = compare_runs(models / "a", models / "a")
    assert all(difference.p == 1 for difference in same.differences)


@pytest.mark.parametrize("keys", [("TEST.QUERY_EXPANSION", 2), ("TEST.DATABASE_AUGMENTATION", 3)])
def test_expansion_is_what_the_test_and_later_ensembles_use(models, tiny_opts, tmp_path, keys):
    _, metrics = model_tested(tiny_opts, tmp_path / "x", 0, *keys, "TEST.EXPANSION_ALPHA", 3)
    assert metrics["all"]["plain"] != metrics_of(models / "a")["all"]["plain"]
    assert ensemble([tmp_path / "x"], None, tmp_path / "e" / "submission.json") == metrics


def test_precision_and_memory_change_no_result(models, tiny_opts, tmp_path):
    for name, keys in (("bf16", ["TEST.SEARCH_PRECISION", "bf16"]), ("less", ["TEST.MEMORY_BUDGET", 200])):
        model_tested(tiny_opts, tmp_path / name, 0, *keys)
        assert metrics_of(tmp_path / name) == metrics_of(models / "a")
        assert read_json(tmp_path / name / "submission.json") == read_json(models / "a" / "submission.json")
    with pytest.raises(ValueError, match=r"needs \d+ MiB above the features and may use 1: .*TEST.MEMORY_BUDGET"):
        model_tested(tiny_opts, tmp_path / "none", 0, "TEST.MEMORY_BUDGET", 1)


def test_weights_of_the_lineage_load_with_a_module_prefix(models, tiny_opts, tmp_path):
    trained = read_checkpoint(models / "a" / "net_1.pth")["model"]
    torch.save({f"module.{key}": value for key, value in trained.items()}, tmp_path / "lineage.pth")
    cfg = load_cfg(None, [*tiny_opts, "TEST.WEIGHT", str(tmp_path / "lineage.pth"), "OUTPUT_DIR", str(tmp_path)])
    assert do_inference(cfg) == metrics_of(models / "a")


@pytest.mark.parametrize(("changes", "message"), [
    (["TEST.WEIGHT", ""], "TEST.WEIGHT is empty"),
    (["TEST.WEIGHT", "nowhere.pth"], "nowhere.pth"),
])
def test_a_missing_weight_is_refused_before_anything_slow(tiny_opts, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        do_inference(load_cfg(None, [*tiny_opts, *changes]))


def test_a_submission_can_be_checked(models, tmp_path):
    banks, _ = read_bank(models / "a" / "features")
    path = Path(shutil.copy(models / "a" / "submission.json", tmp_path))
    queries = [str(name) for bank in banks.values() for name in bank.query_names]
    gallery = [str(name) for bank in banks.values() for name in bank.gallery_names]
    assert not list(submission_problems(path, queries, gallery, 10))
    answer = json.loads(path.read_text())
    answer.popitem()
    path.write_text(json.dumps(answer))
    (problem,) = submission_problems(path, queries, gallery, 10)
    assert "is missing (1 of" in problem.text
