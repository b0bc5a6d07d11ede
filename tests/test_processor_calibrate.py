"""From a test's features to a threshold, and to a probability."""
import numpy as np
import pytest
from conftest import tiny_options

from configs import dump_cfg, load_cfg
from model.make_model import make_model
from processor.embedder import Embedder
from processor.evaluation.calibrate import calibrate, format_thresholds
from processor.evaluation.feature_bank import BankWriter, FeatureBank, Ranking, read_bank
from processor.export.model_folder import feature_weights, read_info, write_model_folder
from processor.inference import do_inference
from processor.retrieval.calibration import Pairs, count_pairs, fit_probability, probability, split_identities
from processor.trained_model import open_trained
from utils.checkpoint import save_checkpoint
from utils.seed import seed_everything

RNG = np.random.default_rng(0)


def pairs_of(positives, negatives, keep=1 << 20):
    pairs = Pairs(keep)
    pairs.add(np.float32(positives), np.float32(negatives))
    return pairs


@pytest.mark.parametrize("fpr", [0.01, 0.0123, 0.1])
@pytest.mark.parametrize("step", [0.0, 0.01])  # with 0.01 many are equal
def test_a_threshold_is_the_least_that_keeps_the_rate(fpr, step):
    negatives = np.float32(RNG.normal(0.3, 0.1, 5000))
    negatives = np.round(negatives / step) * step if step else negatives
    pairs = pairs_of(RNG.normal(0.7, 0.1, 300), negatives, keep=700)
    cosine = np.float32(pairs.threshold(fpr))
    assert (np.float32(negatives) >= cosine).mean() <= fpr
    assert (np.float32(negatives) >= np.nextafter(cosine, np.float32(-1))).mean() > fpr
    assert pairs.rates(cosine)["fpr"] == (np.float32(negatives) >= cosine).mean()


def test_too_few_pairs_are_counted_and_the_need_named():
    with pytest.raises(ValueError, match=r"0.001 cannot be measured on 999 pairs .* takes 10000"):
        pairs_of([0.9], np.zeros(999)).threshold(1e-3)


def test_only_pairs_within_a_half_and_by_the_protocol_count():
    rows = RNG.normal(size=(40, 8)).astype(np.float32)
    pids, camids = RNG.integers(-1, 6, 40), RNG.integers(0, 3, 40)
    side = rows / np.linalg.norm(rows, axis=1, keepdims=True), pids, camids
    half = split_identities(pids)[0]
    for drop in (False, True):
        pairs = Pairs()
        count_pairs(pairs, side, side, half, drop)
        inside = [(i, j) for i in range(40) for j in range(40) if pids[i] in half and pids[j] in half]
        same = [(i, j) for i, j in inside if pids[i] == pids[j] and not (drop and camids[i] == camids[j])]
        assert pairs.num_positives == len(same)
        assert pairs.num_negatives == sum(pids[i] != pids[j] for i, j in inside)


def test_a_file_and_itself_are_no_pair():
    side = np.eye(3, dtype=np.float32), np.array([1, 1, 2]), np.zeros(3)
    pairs = Pairs()
    count_pairs(pairs, side, side, [1, 2], False, np.array([[0, 0], [1, 1], [2, 1]]))
    assert (pairs.num_positives, pairs.num_negatives) == (3, 3)


def test_the_probability_is_a_half_where_both_are_as_likely():
    curve = fit_probability(pairs_of(RNG.normal(0.7, 0.1, 3000), RNG.normal(0.3, 0.1, 30000)))
    assert curve["slope"] < 0
    assert probability(np.sqrt(2 - 2 * 0.5), **curve) == pytest.approx(0.5, abs=0.05)
    assert probability(0.0, **curve) > 0.99


@pytest.fixture
def exported(tiny_data, tmp_path):
    """A random model's OUTPUT_DIR after its test, and its folder."""
    options = [*tiny_options(tiny_data, tmp_path / "run"), "TEST.WEIGHT", str(tmp_path / "net.pth")]
    cfg = load_cfg(None, options)
    seed_everything(0)
    save_checkpoint(tmp_path / "net.pth", {"model": make_model(cfg, 5).state_dict(), "config": dump_cfg(cfg)})
    do_inference(cfg)
    trained = open_trained(tmp_path / "net.pth")
    write_model_folder(tmp_path / "model", trained.info, feature_weights(trained.model))
    return tmp_path / "run", tmp_path / "model"


def test_a_run_calibrates_its_model_and_no_other(exported, tmp_path):
    run, model = exported
    before = read_info(model)
    thresholds = calibrate(run, model, [0.5])
    info = read_info(model)
    assert (info.model_id, info.thresholds) == (before.model_id, thresholds)
    embedder = Embedder.load(model)
    assert embedder.threshold(0.5) == thresholds["cosine"]["0.5"]
    row = np.eye(embedder.dim, dtype=np.float32)
    assert embedder.same(row[0], row[:2], fpr=0.5).tolist() == [True, False]
    assert embedder.probability(row[0], row[0]) > embedder.probability(row[0], row[1])
    assert "of half of its identities" in format_thresholds(thresholds)
    with pytest.raises(ValueError, match="it takes 100000"):
        calibrate(run, model, [1e-4])
    trained = open_trained(model)
    weights = feature_weights(trained.model)
    other = trained.info.__class__(**{**vars(trained.info), "model_id": "other"})
    write_model_folder(tmp_path / "other", other, weights)
    with pytest.raises(ValueError, match="features of another model"):
        calibrate(run, tmp_path / "other")


def test_a_test_without_truth_calibrates_nothing(exported, tmp_path):
    run, model = exported
    bank = next(iter(read_bank(run / "features")[0].values()))
    writer = BankWriter(tmp_path / "blind" / "features")
    feats = {name: writer.array("green", name, feat.shape) for name, feat in bank.feats.items()}
    writer.add("green", FeatureBank(feats, bank.pids, bank.camids, bank.names, bank.num_query, has_truth=False))
    writer.finish(Ranking(True, "euclidean", None), model_id=read_info(model).model_id)
    with pytest.raises(ValueError, match="who is on the pictures is not known"):
        calibrate(tmp_path / "blind", model)
