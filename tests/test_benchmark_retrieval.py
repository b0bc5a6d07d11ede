"""The benchmark: its dense baseline is right, its meters measure, and its table has every row."""
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from processor.retrieval.metrics import evaluate_rank
from processor.retrieval.reranking import re_ranking
from tools.benchmarks import harness, machine, retrieval
from tools.benchmarks import retrieval_measure as measure_module
from tools.benchmarks.harness import Job, run_child
from tools.benchmarks.machine import Meter, product_rates
from tools.benchmarks.reports import format_retrieval
from tools.benchmarks.retrieval import RetrievalOptions, make_options, run_benchmark
from tools.benchmarks.retrieval_baseline import PRODUCTS, dense_bytes, dense_re_ranking
from tools.benchmarks.retrieval_measure import (
    IMAGES,
    IMPLEMENTATIONS,
    RATES,
    Setting,
    independent_tiles,
    make_features,
    make_pids,
    ranked,
)
from tools.campaigns.tool_server import run_tool

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def features_of(size: int, dim: int, num_query: int) -> tuple[np.ndarray, np.ndarray]:
    features = make_features(make_pids(size), dim).numpy()
    return features[:num_query], features[num_query:]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("size", "dim", "k1", "k2"), [
    (300, 16, 20, 6), (400, 64, 30, 6), (90, 8, 7, 1), (25, 8, 30, 3),
])
def test_the_dense_baseline_gives_the_same_distances(size, dim, k1, k2, product):
    query, gallery = features_of(size, dim, size // 5)
    distances = dense_re_ranking(query, gallery, k1, k2, 0.3, product)
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, re_ranking(query, gallery, k1, k2, 0.3), rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def dense_child(tmp_path_factory) -> tuple[Job, dict[str, float]]:
    """A job and its figures, measured in a fresh process as the benchmark does."""
    setting = Setting(size=1500, dim=16, k1=20, k2=6, lambda_value=0.3, device="cpu", square=64, product="numpy")
    job = Job("dense", setting, str(tmp_path_factory.mktemp("child") / "ö.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return job, run_child(retrieval.MODULE, job)


def test_a_child_measures_the_job_of_its_command_line(dense_child):
    job, figures = dense_child
    assert Job.from_json(job.to_json(), Setting) == job
    assert set(figures) == {"seconds", "peak_bytes", "mAP"}
    assert json.loads(Path(job.result).read_text()) == figures
    assert np.load(Path(job.result).with_suffix(".npy")).shape == (225, 10)


@linux
def test_the_dense_baseline_takes_the_memory_it_predicts(dense_child):
    """In a fresh process: the heap of the tests before has holes and leftovers."""
    assert 0.8 < dense_child[1]["peak_bytes"] / dense_bytes(1500, 225, 16) < 1.3


def test_features_are_clustered_unit_vectors_and_always_the_same():
    pids = make_pids(9000)
    features = make_features(pids, 32)
    assert torch.equal(features, make_features(pids, 32))
    assert not torch.equal(features, make_features(pids, 32, seed=1))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(9000))
    counts = np.bincount(pids)
    assert IMAGES[0] <= counts[:-1].min()
    assert counts.max() <= IMAGES[1]
    cosines, same = features[:1000] @ features.T, torch.from_numpy(pids[:1000, None] == pids)
    assert cosines[same].mean() > 0.3 > 0.1 > cosines[~same].mean().abs()


@linux
def test_the_meter_counts_only_what_happens_inside():
    meter = Meter("cpu")
    for mib in (32, 64):
        with meter:
            inside = np.ones(mib << 18, np.float32)
        del inside
        outside = np.ones(256 << 18, np.float32)
        del outside
    assert 60 < meter.peak_bytes / 2**20 < 160  # of what was freed an allocator may keep some, but none of outside's
    assert 0 < meter.seconds < 5


def test_tiles_rank_below_exact_re_ranking():
    pids = make_pids(600)
    query, gallery = features_of(600, 32, 90)
    setting = Setting(600, 32, 20, 6, 0.3, "cpu", 64)
    mean_ap = {
        name: ranked(run(query, gallery, setting, Meter("cpu")), pids, 90)[1]
        for name, run in {"exact": IMPLEMENTATIONS["full_rows"].run, "tiles": independent_tiles(90, 102),
                          "one tile": independent_tiles(90, 510)}.items()
    }
    assert mean_ap["tiles"] < mean_ap["exact"] - 0.02
    assert mean_ap["one tile"] == pytest.approx(mean_ap["exact"], abs=1e-6)


def test_only_the_first_queries_are_evaluated_but_all_are_ranked(monkeypatch):
    monkeypatch.setattr(measure_module, "EVALUATED", 40)
    query, gallery = features_of(300, 16, 100)
    pids, distances = make_pids(300), re_ranking(query, gallery, 20, 6, 0.3)
    asked = []

    def blocks():
        for start in range(0, 100, 30):
            asked.append(start)
            yield slice(start, min(start + 30, 100)), distances[start : start + 30]

    nearest, mean_ap = ranked(blocks(), pids, 100)
    assert asked == [0, 30, 60, 90]
    assert np.array_equal(nearest, distances[:40].argsort(1, kind="stable")[:, :10])
    expected = evaluate_rank(distances[:40], pids[:40], pids[100:], np.zeros(40), np.ones(200))
    assert mean_ap == pytest.approx(expected.mAP_at_k)


def test_product_rates_are_of_the_right_size(monkeypatch):
    monkeypatch.setattr(machine, "LEAST_SECONDS", 0.01)
    rates = product_rates(dim=16, square=128, device="cpu")
    assert {"float32_tile", "float32_square", "bf16_tile", "numpy", "torch"} <= set(rates)
    assert all(1e7 < rate < 1e14 for rate in rates.values())


@pytest.mark.slow
def test_the_tool_prints_every_row(tmp_path):
    words = ["--sizes", "300", "--dim", "16", "--square", "64", "--repeats", "1", "--device", "cpu",
             "--json", str(tmp_path / "report" / "raw.json")]
    (tmp_path / "temporary").mkdir()
    done = run_tool("benchmark", "retrieval", *words, cwd=tmp_path, seconds=400, env={"TMPDIR": tmp_path / "temporary"})
    assert done.returncode == 0, done.stderr
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| 300 ")]
    assert [row[1] for row in cells] == [implementation.title for implementation in IMPLEMENTATIONS.values()]
    assert "torch " + torch.__version__ in done.stdout
    raw = json.loads((tmp_path / "report" / "raw.json").read_text())
    rows = {row["implementation"]: row for row in raw["rows"]}
    for name in ("top200_float32", "top200_auto", "full_rows", "dense"):
        assert rows[name]["mAP"] == pytest.approx(rows["dense"]["mAP"], abs=1e-3)
        assert rows[name]["same_top10"] > 0.9
    assert rows["none"]["mAP"] < rows["dense"]["mAP"]
    assert all(row["seconds"] > 0 and row["peak_bytes"] >= 0 for row in raw["rows"])
    assert not list((tmp_path / "temporary").iterdir())


class Children:
    """Stands in for the child processes: gives figures, and remembers what was asked for."""

    def __init__(self, monkeypatch, **seconds: list[float]) -> None:
        self.seconds, self.asked = seconds, []
        monkeypatch.setattr(harness, "run_child", self)
        monkeypatch.setattr(retrieval, "run_child", self)

    def __call__(self, module: str, job: Job, tuned_malloc: bool = False) -> dict[str, float]:
        assert not tuned_malloc
        self.asked.append((job.setting.size, job.what))
        if job.what == RATES:
            return {"float32_tile": 1e9, "float32_square": 2e9, "bf16_tile": 1e9, "numpy": 1e9, "torch": 3e9}
        assert job.setting.product == "torch"
        if not self.seconds[job.what]:
            raise RuntimeError("failed with code -9")
        nearest = np.zeros((4, 10), int)
        nearest[0, :2] = job.what == "dense"
        np.save(Path(job.result).with_suffix(".npy"), nearest)
        return {"seconds": self.seconds[job.what].pop(0), "peak_bytes": 2**20, "mAP": 0.5}


def test_implementations_take_turns_and_the_median_counts(monkeypatch):
    children = Children(monkeypatch, full_rows=[1, 3, 2, 9], dense=[5, 5, 5, 7], tiles=[1, 1, 1])
    monkeypatch.setattr(retrieval, "free_bytes", lambda device: 2**60)
    options = RetrievalOptions(sizes=(1000, 50_000), dim=16, implementations=("full_rows", "dense", "tiles"))
    report = run_benchmark(options)
    turn = ["rates", "full_rows", "dense", "tiles"]
    assert children.asked == [(1000, what) for what in turn * 3] + [(50_000, what) for what in turn[:3]]
    first, second, *_ = report["rows"]
    assert first["seconds"] == 2
    assert first["floor_seconds"] == 1000**2 * 16 / 2e9
    assert (first["same_top10"], second["same_top10"]) == (1, 0.75)
    assert "| 1,000 | full rows | 3 | 2.00 | 1 | 1 / 2 | 0.01 | 250.00 | 0.5000 | 100.0 % |" in format_retrieval(report)
    assert json.loads(json.dumps(report))["plan"] == json.loads(json.dumps(asdict(options)))


def test_what_does_not_fit_or_fails_has_a_note_in_the_table(monkeypatch):
    children = Children(monkeypatch, full_rows=[1, 1], top200_auto=[1])
    monkeypatch.setattr(retrieval, "free_bytes", lambda device: 2**31)
    report = run_benchmark(RetrievalOptions(sizes=(20_000,), dim=16, repeats=2,
                                      implementations=("dense", "top200_auto", "full_rows")))
    table = format_retrieval(report)
    assert "| 20,000 | dense numpy | 0 | does not fit: 7.7 of 2.0 GiB free | – | – | – | – | – | – |" in table
    assert "| 20,000 | top 200, auto | 0 | failed with code -9 | –" in table  # its first figure alone is none
    assert "| 20,000 | full rows | 2 | 1.00 |" in table
    assert (20_000, "dense") not in children.asked


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="unknown implementation 'sparse'; choose from top200_float32"):
        run_benchmark(RetrievalOptions(implementations=("sparse",)))
    with pytest.raises(ValueError, match="at least 20 images"):
        run_benchmark(RetrievalOptions(sizes=(19,)))


def test_the_options_of_a_command_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = (5000, 10_000, 20_000, 50_000, 100_000)
    assert make_options("auto", None, True, None, k1=30) == RetrievalOptions(sizes=sizes, k1=30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_options("auto", [5], True, ["dense"]).sizes == (5, 100_000, 1_000_000)
