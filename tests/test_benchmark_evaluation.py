"""The benchmark of evaluating: ours and the dense baseline agree, and the table says what was measured."""
import json

import numpy as np
import pytest
import torch

from processor.retrieval.distance import distance
from processor.retrieval.metrics import evaluate_rank
from tools.benchmarks import evaluation, harness
from tools.benchmarks.evaluation import EvaluationOptions, make_options, run_benchmark
from tools.benchmarks.evaluation_measure import Setting, baseline, make_bank, measure
from tools.benchmarks.harness import Job
from tools.benchmarks.reports import format_evaluation

SETTING = Setting(queries=60, gallery=900, identities=40, cameras=4, dim=64, ranked=60)
OPTIONS = EvaluationOptions(queries=60, gallery=900, identities=40, cameras=4, dim=64, baseline_queries=30, repeats=1)


def test_the_baseline_gives_the_figures_of_the_protocol():
    bank = make_bank(SETTING)
    labels = bank.pids[:60], bank.pids[60:], bank.camids[:60], bank.camids[60:]
    expected = evaluate_rank(distance(*bank.branch("global"), "euclidean").numpy(), *labels)
    figures = baseline(bank)
    assert figures["rank1"] == pytest.approx(expected.cmc[0], abs=1e-6)
    assert figures["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
    assert figures["mINP"] == pytest.approx(expected.mINP, abs=1e-6)
    assert 0 < figures["mINP"] < figures["mAP"] < 1


@pytest.mark.parametrize("ranked", [60, 25])
def test_ours_and_the_baseline_measure_the_same(ranked):
    setting = Setting(**{**vars(SETTING), "ranked": ranked})
    runs = [measure(Job(name, setting, "")) for name in ("ours", "baseline")]
    for name in ("rank1", "mAP", "mINP"):
        assert runs[0][name] == pytest.approx(runs[1][name], abs=1e-6)
    for run in runs:
        assert min(run["product"], run["figures"]) > 0
        assert run["rest"] >= run["figures"]
        assert run["lists"] == run["rest"] - run["figures"]
    assert set(runs[0]) == set(runs[1])


def test_every_identity_is_in_the_gallery():
    bank = make_bank(SETTING)
    assert set(bank.pids[60:]) == set(range(40))
    assert bank.feats["global"].shape == (960, 64)
    assert np.allclose(np.linalg.norm(bank.feats["global"], axis=1), 1, atol=1e-5)


def test_rows_take_turns_and_what_does_not_fit_is_not_started(monkeypatch):
    asked = []

    def child(module: str, job: Job, tuned_malloc: bool) -> dict:
        asked.append((job.what, job.setting.ranked))
        seconds = len(asked) * (1 if job.what == "ours" else 10)
        return {"product": 1.5, "figures": seconds, "lists": 2.0, "rest": seconds + 2.0, "peak_bytes": 2**21,
                "rank1": 0.9, "mAP": 0.5, "mINP": 0.25}

    monkeypatch.setattr(harness, "run_child", child)
    monkeypatch.setattr(evaluation, "free_bytes", lambda device: 2**31 if device == torch.device("cpu") else 0)
    options = EvaluationOptions(**{**vars(OPTIONS), "repeats": 3, "rows": ("ours", "ours_part")})
    report = json.loads(json.dumps(run_benchmark(options)))
    assert asked == [("ours", 60), ("ours_part", 30)] * 3
    table = format_evaluation(report)
    assert "60 queries x 900 gallery images, 40 identities, 4 cameras, features of 64" in table
    assert ("| as tools/test.py evaluates | 60 | 3 | 1.50 | 3.00 | 2.00 | 5.00 | 83.33 | 2 | 0.900000 | 0.500000 | "
            "0.250000 |") in table
    report = run_benchmark(EvaluationOptions(queries=11_659, baseline_queries=11_659, rows=("baseline",)))
    assert "| dense matrix, argsort, loop | 11,659 | 0 | does not fit: 2" in format_evaluation(report)
    assert len(asked) == 6


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="unknown row 'theirs'; choose from ours, ours_part, baseline"):
        make_options(["theirs"])
    with pytest.raises(ValueError, match="901 identities need as many gallery images, not 900"):
        run_benchmark(EvaluationOptions(**{**vars(OPTIONS), "identities": 901}))
    with pytest.raises(ValueError, match="the baseline's 61 queries are among 60"):
        run_benchmark(EvaluationOptions(**{**vars(OPTIONS), "baseline_queries": 61}))
