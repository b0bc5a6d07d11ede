"""The benchmark of following people: its streams are what they are said to be, its rows and figures are right."""
import numpy as np
import pytest

from processor.evaluation.feature_bank import FeatureBank
from tools.benchmarks import linking
from tools.benchmarks.linking import LinkingOptions, draw_stream, idf1, pairwise_f1, run_benchmark
from tools.benchmarks.reports import FORMATS


@pytest.fixture(autouse=True)
def _few_clusterings(monkeypatch):
    monkeypatch.setattr(linking, "EPS", linking.EPS[::8])
    monkeypatch.setattr(linking, "MIN_SAMPLES", (2,))
    monkeypatch.setattr(linking, "CUTS", linking.CUTS[::8])


def draw_bank(seed: int, noise: float = 0.15, people: int = 40, pictures: int = 5, dim: int = 32) -> FeatureBank:
    rng = np.random.default_rng(seed)
    pids = rng.permutation(np.repeat(np.arange(people), pictures))
    feats = (rng.standard_normal((people, dim))[pids] + noise * dim**0.5 * rng.standard_normal((len(pids), dim)))
    return FeatureBank({"global": feats.astype(np.float32)}, pids, rng.integers(0, 4, len(pids)),
                       np.array([f"{i}.png" for i in range(len(pids))]), 60, has_truth=True, drop_same_camera=True)


@pytest.fixture
def banks(monkeypatch):
    banks = {"green": draw_bank(0), "normal": draw_bank(1)}
    monkeypatch.setattr(linking, "read_bank", lambda folder: (banks, {}))
    return banks


def test_a_stream_has_every_picture_of_half_of_the_people_once(banks):
    stream, pairs = draw_stream(banks, seed=5)
    assert len(np.unique(stream.people)) == 40
    assert stream.pictures.sum() == 40 * 5
    assert set(stream.pictures.tolist()) == {1, 2, 3}
    assert [tracklet.id for tracklet in stream.tracklets] == list(range(len(stream.tracklets)))
    times = [tracklet.time for tracklet in stream.tracklets]
    assert times == sorted(times)
    np.testing.assert_allclose([np.linalg.norm(tracklet.vector) for tracklet in stream.tracklets], 1, atol=1e-6)
    assert pairs.num_positives > 0


def test_only_other_people_by_the_same_camera_are_in_a_frame(banks):
    stream, _ = draw_stream(banks, seed=5)
    linked = [(i, j) for i, tracklet in enumerate(stream.tracklets) for j in tracklet.apart]
    assert linked
    for i, j in linked:
        first, second = stream.tracklets[i], stream.tracklets[j]
        assert first.camera == second.camera
        assert abs(first.time - second.time) < 1000 * linking.PICTURES * linking.PICTURE_SECONDS
        assert stream.people[i] != stream.people[j]
        assert i in second.apart


def test_a_seed_draws_the_same_stream(banks):
    (first, _), (again, _), (other, _) = (draw_stream(banks, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.people, again.people)
    assert first.tracklets[7].vector.tobytes() == again.tracklets[7].vector.tobytes()
    assert first.people.tolist() != other.people.tolist()


def test_the_figures_of_known_labellings():
    people, pictures = np.array([0, 0, 0, 1, 1]), np.array([1, 2, 3, 4, 5])
    assert idf1(people + 9, people, pictures) == pairwise_f1(people + 9, people) == 1
    alone = np.arange(5)
    assert idf1(alone, people, pictures) == pytest.approx(8 / 15)
    assert pairwise_f1(alone, people) == 0
    assert idf1(people * 0, people, pictures) == pytest.approx(9 / 15)
    assert pairwise_f1(people * 0, people) == pytest.approx(2 * 4 / (10 + 4))


def test_what_people_do_today_finds_clear_people():
    people = np.array([0, 1, 0, 1, 2, 0])
    vectors = np.eye(8, dtype=np.float32)[people]
    assert pairwise_f1(linking.nearest_neighbour(vectors, 0.5), people) == 1
    for labellings in (linking.dbscans(vectors), linking.average_linkages(vectors)):
        assert max(pairwise_f1(labels, people) for labels in labellings) == 1


def test_the_report_has_a_row_for_each_way_and_a_run_for_each_seed(banks):
    report = run_benchmark(LinkingOptions("run", rates=(0.01,), seeds=(0, 1)))
    rows = {row["title"]: row["runs"] for row in report["rows"]}
    assert len(rows) == 4
    ours = rows["Linker, threshold at fpr 0.01"]
    for run, usual in zip(ours, rows["nearest neighbour, cosine 0.5"], strict=True):
        assert usual["idf1"] < run["idf1"] <= 1
        assert 0 < run["first_idf1"] <= run["idf1"]
    table = FORMATS["linking"](report)
    assert table.count("\n| Linker, threshold at fpr 0.01 | 2 | ") == 1


def test_features_without_the_truth_are_refused(banks):
    for bank in banks.values():
        object.__setattr__(bank, "has_truth", False)
    with pytest.raises(ValueError, match="who is on the pictures is not known"):
        run_benchmark(LinkingOptions("run"))
