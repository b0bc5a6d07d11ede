"""Testing and ensembling: features, lists, metrics, files."""
import json

import numpy as np
import pytest
import torch

from configs import load_cfg
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor.feature_bank import read_bank
from processor.inference import do_inference, extract_features
from processor.ranking import ensemble
from processor.retrieval.submission import check_submission
from utils.checkpoint import save_checkpoint
from utils.files import read_json
from utils.precision import Precision
from utils.seed import seed_everything

CPU = Precision(torch.device("cpu"), fp16=False)


def model_tested(tiny_opts, folder, seed, *changes, **kwargs):
    """Test a random model in a folder of its own."""
    cfg = load_cfg(None, [*tiny_opts, "OUTPUT_DIR", str(folder), "TEST.WEIGHT", str(folder / "net_1.pth"),
                          *map(str, changes)])
    seed_everything(seed)
    save_checkpoint(folder / "net_1.pth", {"model": make_model(cfg, 5).state_dict()})
    return cfg, do_inference(cfg, **kwargs)


def test_a_tested_model_leaves_submission_metrics_and_bank(tiny_opts, tmp_path):
    _, metrics = model_tested(tiny_opts, tmp_path / "a", 1)
    assert set(metrics) == {"all", "green", "normal"}
    assert set(metrics["all"]) == {"plain", "re_ranked"}
    assert {"mAP", "mAP@10", "rank1", "mINP", "naic_score"} <= metrics["all"]["plain"].keys()
    stored = read_json(tmp_path / "a" / "metrics.json")
    assert {name: stored[name] for name in metrics} == metrics
    banks, index = read_bank(tmp_path / "a" / "features")
    assert index["weight"] == "net_1.pth"
    answer = read_json(tmp_path / "a" / "submission.json")
    expected = {str(name) for bank in banks.values() for name in bank.query_names}
    assert set(answer) == expected
    for bank in banks.values():
        for name in bank.query_names:
            assert len(answer[name]) == len(set(answer[name])) == min(10, len(bank.gallery_names))
            assert set(answer[name]) <= set(bank.gallery_names)


def test_domains_are_weighed_by_their_queries(tiny_opts, tmp_path):
    _, metrics = model_tested(tiny_opts, tmp_path / "a", 1)
    parts = [metrics[domain]["plain"] for domain in ("green", "normal")]
    counts = [part["num_valid"] for part in parts]
    assert metrics["all"]["plain"]["mAP"] == pytest.approx(np.average([part["mAP"] for part in parts], weights=counts))


def test_batch_size_and_workers_change_nothing(tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path / "a", 1)
    model_tested(tiny_opts, tmp_path / "b", 1, "TEST.IMS_PER_BATCH", 5, "DATALOADER.NUM_WORKERS", 2)
    first, second = (read_bank(tmp_path / name / "features")[0]["green"] for name in "ab")
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


def test_saved_distmats_have_the_originals_names_and_no_pickles(tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path / "a", 1, save_distmat=True)
    for number in (1, 2):
        arrays = {leaf: np.load(tmp_path / "a" / f"{leaf}_{number}.npy", allow_pickle=False)
                  for leaf in ("distmat", "query_path", "gallery_path")}
        assert arrays["distmat"].dtype == np.float32
        assert arrays["distmat"].shape == (len(arrays["query_path"]), len(arrays["gallery_path"]))
        assert arrays["query_path"].dtype.kind == "U"


def test_an_ensemble_of_one_is_the_model_itself(tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path / "a", 1)
    metrics = ensemble([tmp_path / "a"], None, tmp_path / "e" / "submission.json")
    stored = read_json(tmp_path / "a" / "metrics.json")
    assert metrics == {name: stored[name] for name in metrics}
    assert read_json(tmp_path / "e" / "submission.json") == read_json(tmp_path / "a" / "submission.json")


def test_banks_and_saved_distmats_give_the_same_ensemble(tiny_opts, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for seed, folder in enumerate(folders):
        model_tested(tiny_opts, folder, seed, save_distmat=True)
    for mode, saved in (("banks", False), ("distmats", True)):
        ensemble(folders, [1.0, 0.5, 2.0], tmp_path / mode / "submission.json", saved_distmats=saved)
    assert read_json(tmp_path / "banks/submission.json") == read_json(tmp_path / "distmats/submission.json")


def test_the_ensemble_is_the_weighted_sum_of_distances(tiny_opts, tmp_path):
    for seed, name in enumerate("ab"):
        model_tested(tiny_opts, tmp_path / name, seed, save_distmat=True)
    ensemble([tmp_path / "a", tmp_path / "b"], [1.0, 3.0], tmp_path / "e" / "submission.json")
    answer = read_json(tmp_path / "e" / "submission.json")
    for number in (1, 2):
        load = {name: np.load(tmp_path / name / f"distmat_{number}.npy") for name in "ab"}
        queries, gallery = (np.load(tmp_path / "a" / f"{leaf}_path_{number}.npy") for leaf in ("query", "gallery"))
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


def test_an_ensemble_of_different_galleries_is_refused(tiny_opts, tmp_path):
    for seed, name in enumerate("ab"):
        model_tested(tiny_opts, tmp_path / name, seed)
    path = tmp_path / "b" / "features" / "green.names.npy"
    names = np.load(path)
    names[-2:] = names[[-1, -2]]
    np.save(path, names)
    with pytest.raises(ValueError, match="differ"):
        ensemble([tmp_path / "a", tmp_path / "b"], None, tmp_path / "e.json")
    assert not (tmp_path / "e.json").exists()


def test_a_half_written_bank_is_not_read(tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path / "a", 1)
    (tmp_path / "a" / "features" / "index.json").unlink()
    with pytest.raises(ValueError, match="no complete feature bank"):
        ensemble([tmp_path / "a"], None, tmp_path / "e.json")


def test_without_ground_truth_there_is_a_submission_and_no_metrics(tiny_opts, tmp_path, tiny_data):
    truth = tiny_data / "MyDataSet" / "image_B_v1_1" / "ground_truth.json"
    hidden = truth.with_suffix(".hidden")
    truth.rename(hidden)
    try:
        _, metrics = model_tested(tiny_opts, tmp_path / "a", 1)
    finally:
        hidden.rename(truth)
    assert metrics == {}
    assert not (tmp_path / "a" / "metrics.json").exists()
    assert read_json(tmp_path / "a" / "submission.json")


def test_weights_of_the_lineage_load_with_a_module_prefix(tiny_opts, tmp_path):
    cfg, metrics = model_tested(tiny_opts, tmp_path / "a", 1)
    state = make_model(cfg, 9).state_dict()
    from utils.checkpoint import read_checkpoint
    trained = read_checkpoint(tmp_path / "a" / "net_1.pth")["model"]
    torch.save({f"module.{key}": trained[key] for key in state}, tmp_path / "lineage.pth")
    changes = ["TEST.WEIGHT", str(tmp_path / "lineage.pth"), "OUTPUT_DIR", str(tmp_path / "b")]
    other = load_cfg(None, [*tiny_opts, *changes])
    assert do_inference(other) == metrics


@pytest.mark.parametrize(("changes", "message"), [
    (["TEST.WEIGHT", ""], "TEST.WEIGHT is empty"),
    (["TEST.WEIGHT", "nowhere.pth"], "nowhere.pth"),
])
def test_a_missing_weight_is_said_before_anything_slow(tiny_opts, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        do_inference(load_cfg(None, [*tiny_opts, *changes]))


def test_a_submission_can_be_checked(tiny_opts, tmp_path):
    model_tested(tiny_opts, tmp_path / "a", 1)
    banks, _ = read_bank(tmp_path / "a" / "features")
    path = tmp_path / "a" / "submission.json"
    queries = [str(name) for bank in banks.values() for name in bank.query_names]
    gallery = [str(name) for bank in banks.values() for name in bank.gallery_names]
    check_submission(path, queries, gallery, 10)
    answer = json.loads(path.read_text())
    answer.popitem()
    path.write_text(json.dumps(answer))
    with pytest.raises(ValueError, match="1 of"):
        check_submission(path, queries, gallery, 10)
