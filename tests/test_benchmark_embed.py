"""The benchmark of embedding: every row embeds the same pictures to the same features, and the table says how fast."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.files.images import decode
from tools.benchmarks import embed, harness
from tools.benchmarks.embed import MODELS, EmbedOptions, make_options, run_benchmark, write_model
from tools.benchmarks.embed_measure import BOXES, ROWS, Setting, make_extractor, make_frame, measure
from tools.benchmarks.harness import Job
from tools.benchmarks.reports import format_embed

OPTIONS = EmbedOptions(model="resnet18_ibn_b_w32", size=(32, 16), images=16, batch=4, seconds=0.01, repeats=1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for file, flip in MODELS.items():
        write_model(folder / file, OPTIONS, flip)
    pictures = Path(__file__).parent / "golden/before_move/files/labelled/images"
    setting = Setting(str(folder), str(pictures), 4, "cpu", 0.01)
    embed.write_exports({row.file for name, row in ROWS.items() if not embed.why_not(name, "cpu")}, setting)
    return setting


@pytest.mark.parametrize("name", ROWS)
def test_every_row_measures_the_same_things(setting, name):
    if reason := embed.why_not(name, "cpu"):
        pytest.skip(reason)
    figures = measure(Job(name, setting, ""))
    assert list(figures) == ["files_1", "files_4", "arrays_1", "arrays_4", "frame_seconds"]
    assert all(figures[key] > 0 for key in list(figures)[:4])
    assert min(figures["frame_seconds"]) > 0


def test_the_textbook_s_features_are_ours(setting):
    picture = decode(next(Path(setting.pictures).iterdir()).read_bytes(), (32, 16))  # the resizings differ, not by size
    box = np.array([[0, 0, 16, 32]])
    theirs, ours = (make_extractor(name, setting).boxes(picture, box) for name in ("textbook", "float32"))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_frame_has_its_boxes_within():
    frame, boxes = make_frame()
    assert len(boxes) == BOXES
    assert (boxes.min(0) >= 0).all()
    assert (boxes.max(0)[2:] <= frame.shape[1::-1]).all()


def test_the_table_has_the_ratio_to_the_textbook(monkeypatch):
    rates = {"textbook": 10.0, "float32": 12.0, "default": 30.0}

    def run(module, job, tuned_malloc):
        if job.what == "float32":
            return {"note": "failed: no memory"}
        return {**dict.fromkeys(("files_1", "arrays_1", "files_4", "arrays_4"), rates[job.what]),
                "frame_seconds": [0.1, 0.2]}

    def refuse(package):
        raise ValueError(f"{package} is not installed")

    monkeypatch.setattr(harness, "run_child", run)
    monkeypatch.setattr(embed, "Pictures", lambda options, folder: type(
        "Few", (), {"description": "few", "root": lambda self, kind: str(folder)})())
    monkeypatch.setattr(embed, "load_package", refuse)
    report = run_benchmark(replace(OPTIONS, rows=(*rates, "openvino")))
    json.dumps(report)
    table = format_embed(report)
    assert "| ours, as it runs | 1 | 30.0 (3.00) | 30.0 (3.00) | 30.0 (3.00) | 30.0 (3.00) | 150 | 195 |" in table
    assert "| ours, float32 | 0 | failed: no memory |" in table
    assert "| OpenVINO, float32 | 0 | onnx is not installed |" in table


def test_options_are_checked_before_anything_slow():
    options = {"device": "cpu", "size": "256x128", "rows": None, "folder": None, "model": "resnet18"}
    assert make_options(**options).rows == tuple(ROWS)
    for wrong, message in (({"rows": ["fast"]}, "choose from textbook"), ({"size": "256"}, "HEIGHTxWIDTH"),
                           ({"model": "resnet51"}, "resnet51")):
        with pytest.raises(ValueError, match=message):
            make_options(**{**options, **wrong})
    with pytest.raises(ValueError, match="at least one repeat"):
        run_benchmark(EmbedOptions(repeats=0))
