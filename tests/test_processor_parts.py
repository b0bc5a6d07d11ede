"""Part heads from training to the submission, and fine-tuning through the trainer."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_options

from configs import load_cfg
from processor.evaluation.ensemble import ensemble
from processor.evaluation.feature_bank import Ranking, read_bank
from processor.evaluation.sources import bank_source
from processor.inference import do_inference
from processor.retrieval.distance import distance, l2_normalize
from processor.trainer import do_train

PARTS = ["MODEL.IF_USE_PCB", "True", "SOLVER.MAX_EPOCHS", "2", "SOLVER.STEPS", "[1]"]


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Options and the checkpoint of a model with parts."""
    options = tiny_options(tiny_data, tmp_path_factory.mktemp("parts") / "model") + PARTS
    return options, do_train(load_cfg(None, options))


def run_test(trained, folder, *keys):
    options, weight = trained
    cfg = load_cfg(None, [*options, "TEST.WEIGHT", str(weight), "OUTPUT_DIR", str(folder), *keys])
    return cfg, do_inference(cfg)


def test_the_record_has_a_term_for_every_branch(trained):
    folder = Path(trained[1]).parent
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"id", "triplet", "center", "id_merged", *(f"id_part{i}" for i in range(6))} <= set(line)


@pytest.mark.parametrize(("keys", "branches"), [
    ((), ["global", "merged"]),
    (("TEST.USE_PCB_MERGE_FEAT", "False"), ["global", *(f"part{i}" for i in range(6))]),
    (("TEST.USE_LOCAL", "False"), ["global"]),
])
def test_branches_are_stored_and_their_weighted_distances_summed(trained, tmp_path, keys, branches, caplog):
    with caplog.at_level("INFO"):
        _, metrics = run_test(trained, tmp_path, "TEST.LOCAL_WEIGHT", "0.5", *keys)
    assert "re_ranked" in metrics["all"]
    assert ("times the work of one" in caplog.text) == (len(branches) > 1)
    banks, _ = read_bank(tmp_path / "features")
    bank = next(iter(banks.values()))
    assert sorted(bank.feats) == sorted(branches)
    want = 0
    for branch in branches:
        q, g = map(l2_normalize, bank.branch(branch))
        factor = 1.0 if branch == "global" else 0.5 / (len(branches) - 1)
        want = want + factor * distance(q, g, "euclidean").numpy()
    source = bank_source("x", bank, Ranking(True, "euclidean", None, local_weight=0.5))
    got = np.concatenate([block for _, block in source.streams["plain"]()])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_model_with_parts_joins_an_ensemble(trained, tmp_path):
    for name, keys in (("merged", ()), ("parts", ("TEST.USE_PCB_MERGE_FEAT", "False"))):
        run_test(trained, tmp_path / name, *keys)
    for mode in ("sum", "concat"):
        metrics = ensemble([tmp_path / "merged", tmp_path / "merged"], None, tmp_path / f"{mode}.json", mode)
        assert metrics["all"]
    assert ensemble([tmp_path / "merged", tmp_path / "parts"], None, tmp_path / "both.json")["all"]


def test_learned_parts_are_trained_in_stages(trained, tmp_path):
    options, stripes = trained
    stage = [*options, "MODEL.PCB_RPP", "True", "MODEL.PRETRAIN_CHOICE", "finetune", "SOLVER.MAX_EPOCHS", "1",
             "SOLVER.STEPS", "[]", "SOLVER.WARMUP_EPOCHS", "0"]
    induced = do_train(load_cfg(None, [*stage, "MODEL.PRETRAIN_PATH", str(stripes), "MODEL.PRETRAIN_ALLOW",
                                       "['pcb.rpp.*']", "MODEL.TRAIN_ONLY", "['pcb.rpp.*']",
                                       "OUTPUT_DIR", str(tmp_path / "induce")]))
    joint = do_train(load_cfg(None, [*stage, "MODEL.PRETRAIN_PATH", str(induced),
                                     "OUTPUT_DIR", str(tmp_path / "joint")]))
    first, second, third = (torch.load(path, weights_only=True)["model"] for path in (stripes, induced, joint))
    moved = {key for key, value in second.items() if key not in first or not torch.equal(value, first[key])}
    assert moved == {"pcb.rpp.weight", "pcb.rpp.bias"}
    assert not torch.equal(third["base.conv1.weight"], second["base.conv1.weight"])


def test_fine_tuning_keeps_the_rows_of_known_identities(trained, tmp_path, caplog):
    options, weight = trained
    keys = ["MODEL.PRETRAIN_CHOICE", "finetune", "MODEL.PRETRAIN_PATH", str(weight), "DATASETS.TRAIN_SETS",
            "['2020_cs', '2019_fs']", "SOLVER.BASE_LR", "1e-12", "SOLVER.CENTER_LR", "0", "SOLVER.WEIGHT_DECAY", "0",
            "SOLVER.WEIGHT_DECAY_BIAS", "0", "SOLVER.MAX_EPOCHS", "1", "SOLVER.STEPS", "[]",
            "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", str(tmp_path)]
    with caplog.at_level("INFO"):
        new = torch.load(do_train(load_cfg(None, [*options, *keys])), weights_only=True)
    old = torch.load(weight, weights_only=True)
    assert "identities are known by name, 0 start anew" in caplog.text
    assert len(new["pid_names"]) < len(old["pid_names"])
    rows = [old["pid_names"].index(name) for name in new["pid_names"]]
    for part, key in (("model", "classifier.weight"), ("model", "pcb.classifiers.part3.weight"),
                      ("criterion", "centers.global.centers")):
        torch.testing.assert_close(new[part][key], old[part][key][rows], rtol=0, atol=1e-6)


def test_a_resumed_run_may_not_drop_a_branch(trained):
    options, _ = trained
    with pytest.raises(ValueError, match=r"TEST\.PCB_GLOBAL_FEAT_ENSEMBLE was False and is True"):
        do_train(load_cfg(None, [*options, "TEST.PCB_GLOBAL_FEAT_ENSEMBLE", "True"]), resume="auto")
