"""A trained model as a function of pictures."""
import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import tiny_options

from configs import dump_cfg, load_cfg
from datasets.files.images import BadImage, decode
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor.embedder import Embedder, crop_boxes
from processor.evaluation.feature_bank import read_bank
from processor.export.model_folder import feature_weights, info_from_json, read_info, write_model_folder
from processor.inference import do_inference
from processor.retrieval.ensemble import concat_features
from processor.trained_model import open_trained
from utils.checkpoint import save_checkpoint
from utils.files import read_json, write_json
from utils.seed import seed_everything

PARTS = ("MODEL.IF_USE_PCB", "True", "TEST.LOCAL_WEIGHT", "0.5")


def write_checkpoint(folder, opts, seed=0):
    cfg = load_cfg(None, [*opts, "OUTPUT_DIR", str(folder), "TEST.WEIGHT", str(folder / "latest.pth")])
    seed_everything(seed)
    save_checkpoint(folder / "latest.pth", {"model": make_model(cfg, 5).state_dict(), "config": dump_cfg(cfg),
                                            "pid_names": ["a", "b"], "epoch": 3})
    return cfg


@pytest.fixture(scope="module")
def tested(tiny_data, tmp_path_factory):
    """(folder, cfg) of a random model with parts that tools/test.py has tested; the pictures of `green`."""
    folder = tmp_path_factory.mktemp("tested")
    cfg = write_checkpoint(folder, [*tiny_options(tiny_data, folder), *PARTS])
    do_inference(cfg)
    test = make_dataloader(cfg, train=False).test["green"]
    root = test.loader.dataset.source.roots[0]
    return folder, [root / sample.key for sample in test.samples]


@pytest.fixture(scope="module")
def embedder(tested):
    return Embedder.load(tested[0] / "latest.pth", precision="float32")


def test_raw_features_have_the_bits_of_the_feature_bank(tested):
    folder, paths = tested
    bank = read_bank(folder / "features")[0]["green"]
    for precision in ("auto", "float32"):  # of rows; raw features have that of the config
        feats = Embedder.load(folder / "latest.pth", precision=precision).embed(paths, raw=True)
        assert list(feats) == list(bank.feats)
        for branch, feat in feats.items():
            assert np.array_equal(feat, bank.feats[branch])


def test_rows_are_the_normalised_branches_by_the_roots_of_their_weights(tested, embedder):
    raw = embedder.embed(tested[1], raw=True)
    assert list(raw) == ["global", "merged"]
    rows = embedder.embed(tested[1])
    assert rows.dtype == np.float32
    assert rows.shape == (len(tested[1]), embedder.dim)
    np.testing.assert_allclose(rows, concat_features(list(raw.values()), [1 / 1.5, 0.5 / 1.5]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_model_folder_gives_the_bits_of_its_checkpoint_and_needs_nothing_else(tested, embedder, tmp_path):
    trained = open_trained(tested[0] / "latest.pth")
    write_model_folder(tmp_path / "made", trained.info, feature_weights(trained.model))
    shutil.move(tmp_path / "made", tmp_path / "elsewhere")
    other = Embedder.load(tmp_path / "elsewhere", precision="float32")
    assert np.array_equal(other.embed(tested[1][:9]), embedder.embed(tested[1][:9]))
    assert other.info == embedder.info
    assert other.info.trained_on["identities"] == 2


def test_a_model_folder_refuses_other_weights_than_its_own(tested, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_checkpoint(tmp_path / name, [*tiny_options(tmp_path, tmp_path), *PARTS], seed)
        trained = open_trained(tmp_path / name / "latest.pth")
        write_model_folder(tmp_path / name, trained.info, feature_weights(trained.model))
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match=r"model.safetensors: not the weights that model.json"):
        Embedder.load(tmp_path / "a")


def test_thresholds_change_no_model_id_and_survive_another_export(tested, tmp_path):
    trained = open_trained(tested[0] / "latest.pth")
    write_model_folder(tmp_path, trained.info, feature_weights(trained.model))
    write_json(tmp_path / "model.json", {**read_json(tmp_path / "model.json"), "thresholds": {"cosine": {"0.01": 0.5}}})
    assert Embedder.load(tmp_path).threshold(0.01) == 0.5
    write_model_folder(tmp_path, trained.info, feature_weights(trained.model))
    assert read_info(tmp_path).thresholds == {"cosine": {"0.01": 0.5}}


def test_arrays_of_all_kinds_are_the_picture_of_the_file(tested, embedder):
    path = tested[1][0]
    rgb = decode(path.read_bytes())
    expected = embedder.embed(path)
    alike = [rgb, np.dstack([rgb, np.full(rgb.shape[:2], 9, np.uint8)]), path.read_bytes(), str(path)]
    assert np.array_equal(embedder.embed(alike), embedder.embed([path] * 4))
    for bgr in (rgb[:, :, ::-1], cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA)):
        assert np.array_equal(embedder.embed([bgr], bgr=True), expected)
    grey = rgb[:, :, 0]
    assert np.array_equal(embedder.embed([grey, grey[:, :, None]]), embedder.embed([np.dstack([grey] * 3)] * 2))
    assert np.array_equal(embedder.embed(np.stack([rgb, rgb])), embedder.embed([rgb, rgb]))
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_rows_depend_on_no_neighbour_and_no_batch(tested):
    rows = [Embedder.load(tested[0] / "latest.pth", precision="float32", batch_size=size, threads=threads)
            .embed(tested[1][:11]) for size, threads in ((11, 1), (4, 2), (1, 3))]
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=1e-5)


@pytest.mark.parametrize(("item", "reason"), [
    (b"", "the file is empty"), (b"hello", "not a PNG"), (np.zeros((8, 4, 3)), "float64; expected uint8"),
    (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels"), (np.zeros((8, 4, 2), np.uint8), "shape"), (None, "NoneType"),
    ("no_such_file.jpg", "no_such_file.jpg"), (np.zeros((8, 4, 3, 3), np.uint8), "shape"),
    (cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes(), "1 x 1 pixels"),
], ids=str)
def test_a_bad_item_is_named_by_its_index_or_has_a_row_of_nan(tested, embedder, item, reason):
    items = [tested[1][0], item, tested[1][1]]
    with pytest.raises((BadImage, OSError), match=f"item 1: .*{reason}"):
        embedder.embed(items)
    rows, problems = embedder.embed(items, on_error="none")
    assert np.isnan(rows[1]).all()
    np.testing.assert_allclose(rows[[0, 2]], embedder.embed(tested[1][:2]), atol=1e-6)
    assert [index for index, _ in problems] == [1]
    assert reason in problems[0][1]


def test_boxes_are_cut_to_the_frame_and_empty_ones_named(embedder):
    frame = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    crops = crop_boxes(frame, [[-5, 10.5, 20, 90], [3, 4, 13.2, 44]])
    assert np.array_equal(crops[0], frame[10:60, 0:20])
    assert np.array_equal(crops[1], frame[4:44, 3:14])
    assert np.array_equal(embedder.embed_boxes(frame, [[3, 4, 13, 44]]), embedder.embed([frame[4:44, 3:13]]))
    bad = [[0, 0, 9, 9], [5, 5, 5, 9], [90, 5, 99, 9], [9, 9, 3, 3], [0, 0, np.nan, 4], [0, 0, 1, 60]]
    with pytest.raises(ValueError, match=r"boxes 1, 2, 3, 4, 5 are empty"):
        embedder.embed_boxes(frame, np.array(bad))
    assert embedder.embed_boxes(frame, []).shape == (0, embedder.dim)
    for wrong in ([[0, 0, 9, 9, 0.9, 1]] * 2, np.zeros((1, 1, 4))):
        with pytest.raises(ValueError, match=r"expected \[N, 4\] x0, y0, x1, y1"):
            embedder.embed_boxes(frame, wrong)
    with pytest.raises(BadImage, match="not a NoneType"):
        embedder.embed_boxes(None, [[0, 0, 9, 9]])


def test_a_tracklet_is_the_unit_mean_of_its_rows(tested, embedder):
    rows = embedder.embed(tested[1][:5])
    track = embedder.embed_tracklet(tested[1][:5])
    np.testing.assert_allclose(track, rows.mean(0) / np.linalg.norm(rows.mean(0)), atol=1e-6)
    with pytest.raises(ValueError, match="without a picture"):
        embedder.embed_tracklet([])


def test_similarity_is_the_cosine_and_same_asks_for_a_threshold(tested, embedder):
    rows = embedder.embed(tested[1][:4])
    assert embedder.similarity(rows[0], rows).shape == (4,)
    np.testing.assert_allclose(np.diag(embedder.similarity(rows, rows)), 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"not calibrated; measure .* tools/calibrate.py .* --fpr 0.001"):
        embedder.same(rows[0], rows[1])
    with pytest.raises(ValueError, match=r"\(4, \d+\) and \(5,\) are of two models"):
        embedder.similarity(rows, np.zeros(5))


def test_what_is_no_model_is_refused_in_a_line(tested, tmp_path):
    save_checkpoint(tmp_path / "weights.pth", {"model": {}})
    with pytest.raises(ValueError, match="without the config"):
        Embedder.load(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"no model.json.*name a checkpoint in it, such as weights.pth"):
        Embedder.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.onnx"):
        Embedder.load(tmp_path / "no.onnx")
    with pytest.raises(ValueError, match="expected one of auto"):
        Embedder.load(tested[0] / "latest.pth", precision="half")
    for words in ({"device": "tpu"}, {"batch_size": 0}, {"threads": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(words))}=.*: (expected one of|must be at least 1)"):
            Embedder.load(tested[0] / "latest.pth", **words)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("architecture", [], "(architecture is "), ("thresholds", None, "(thresholds is "),
    ("evaluation", "x", "(evaluation is "), ("model_id", 1, "(model_id is "), ("branches", {}, "(branches)"),
    ("thresholds", {"cosine": {"often": 1}}, "(thresholds)"), ("evaluation", {"batch_size": 0}, "(batch_size)"),
    ("preprocessing", {}, "damaged, or not written by this program")])
def test_a_model_json_with_a_value_of_another_kind_is_refused_in_a_line(tested, key, value, told):
    fields = open_trained(tested[0] / "latest.pth").info.to_json()
    assert info_from_json(fields, "m").to_json() == fields
    with pytest.raises(ValueError, match=f"^m: .*{re.escape(told)}"):
        info_from_json({**fields, key: value}, "m")
