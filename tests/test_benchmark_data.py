"""The benchmark of feeding: every row runs on the same pictures, and the table says what was measured."""
import json
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.files.images import FolderSource, decode
from tools.benchmarks import harness
from tools.benchmarks.data import DataOptions, Pictures, make_options, run_benchmark
from tools.benchmarks.data_baseline import Image as PilImage
from tools.benchmarks.data_baseline import RandomErasing, make_transforms
from tools.benchmarks.data_measure import ROWS, Endless, Setting, measure
from tools.benchmarks.harness import Job
from tools.benchmarks.reports import format_data
from tools.campaigns.tool_server import run_tool

SIZE = (32, 16)
OPTIONS = DataOptions(sizes=(SIZE,), images=16, batch=8, workers=1, seconds=0.01, repeats=1)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty pictures, PNG and JPEG, in two folders."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(20):
        path = folder / f"{number % 2}" / f"{number:02d}{('.png', '.jpg')[number % 2]}"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (4, 2, 3), dtype=np.uint8), (16, 32)))
    return folder


@pytest.fixture(scope="module")
def pictures(folder, tmp_path_factory) -> Pictures:
    return Pictures(DataOptions(folder=str(folder), images=16), tmp_path_factory.mktemp("sets"))


def setting_of(pictures: Pictures, name: str, seconds: float = 0.01) -> Setting:
    row = ROWS[name]
    return Setting(pictures.root(row.files), pictures.packed(row.packed, SIZE), SIZE, 8, 1, "cpu", seconds)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_goes_on_and_on(pictures, name):
    steps = ROWS[name].run(setting_of(pictures, name))
    counts = [next(steps) for _ in range(5)]  # more than an epoch of the sampler
    steps.close()
    assert set(counts) == {64} if "decode_" in name or name == "lineage_augment" else {8}


def test_each_of_our_rows_is_compared_with_a_row_of_theirs():
    for name, row in ROWS.items():
        assert row.baseline.startswith("lineage_") != name.startswith("lineage_")
        assert not row.baseline or (ROWS[row.baseline].files == row.files and not ROWS[row.baseline].packed)


def test_both_sets_hold_the_same_pictures(folder, pictures):
    png, jpeg = (FolderSource(Path(pictures.root(kind)) / "MyDataSet/train_2020_fs/images") for kind in ("png", "jpeg"))
    for number in range(16):
        key = f"{number:06d}.png"
        assert png.read(key).startswith(b"\x89PNG")
        assert jpeg.read(key).startswith(b"\xff\xd8")
        assert np.abs(decode(png.read(key)).astype(int) - decode(jpeg.read(key))).mean() < 4
    originals = [path.read_bytes() for path in folder.rglob("*.*")]
    assert sum(png.read(f"{number:06d}.png") in originals for number in range(16)) == 8  # the others were JPEGs
    assert "16 of " in pictures.description


def test_a_job_survives_the_command_line(pictures):
    job = Job("loader_png", setting_of(pictures, "loader_png"), "ö.json")
    assert Job.from_json(job.to_json(), Setting) == job


@linux
def test_processor_time_is_that_of_the_workers_too(pictures):
    figures = [measure(Job(name, setting_of(pictures, name, seconds=0.5), "")) for name in ("loader_png", "decode_png")]
    assert all(each["images"] >= 8 and each["seconds"] >= 0.5 for each in figures)
    # A worker and the main process, and one process alone: neither can take more than its cores' time.
    assert 0.05 < figures[0]["cpu_seconds"] / figures[0]["seconds"] < 2.1
    assert 0.05 < figures[1]["cpu_seconds"] / figures[1]["seconds"] < 1.1


def test_endless_epochs_follow_one_another():
    class Sampler:
        width = 1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self):
            yield from ((self.epoch, batch) for batch in range(2))

    batches = [batch for batch, _ in zip(Endless(Sampler()), range(5), strict=False)]
    assert batches == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]


def test_their_transforms_give_a_normalised_picture():
    random.seed(0)
    picture = PilImage.fromarray(np.full((20, 10, 3), 255, np.uint8))
    make = make_transforms(SIZE, 0.5, 2, 0.0, [0.5] * 3, [0.25] * 3)
    for _ in range(20):
        image = make(picture)
        assert (image.shape, image.dtype) == ((3, *SIZE), torch.float32)
        assert image.min() >= -2.0001
        assert image.max() <= 2.0001
    filled = [int((RandomErasing(1.0, [7, 8, 9])(torch.zeros(3, 40, 20))[1] == 8).sum()) for _ in range(200)]
    assert min(filled) > 0.01 * 800
    assert 0.3 * 800 < max(filled) < 0.45 * 800
    assert sum(bool(RandomErasing(0.3, [1, 1, 1])(torch.zeros(3, 40, 20)).any()) for _ in range(500)) in range(100, 200)


# ---------------------------------------------------------------------------------------------------------- the report
def test_rows_take_turns_and_medians_are_compared(folder, monkeypatch):
    rates = {"lineage_png": [100, 300, 200], "loader_decoded": [900, 1000, 8000], "png": [5, 5, 5]}
    asked = []

    def child(module: str, job: Job, tuned_malloc: bool) -> dict:
        assert not tuned_malloc
        asked.append((job.what, bool(job.setting.packed)))
        return {"images": rates[job.what].pop(0), "seconds": 1.0, "cpu_seconds": 2.0}

    monkeypatch.setattr(harness, "run_child", child)
    report = run_benchmark(DataOptions(**{**vars(OPTIONS), "folder": str(folder), "repeats": 3, "rows": tuple(rates)}))
    assert asked == [("lineage_png", False), ("loader_decoded", True), ("png", False)] * 3
    table = format_data(report)
    assert "| 32x16 | PIL + torchvision: the whole, PNG files | 3 | 200 | – | 100 | – |" in table
    assert "| 32x16 | loader alone, packed and decoded | 3 | 1,000 | 5.00 | 500 | 5.00 |" in table
    assert f"torch {torch.__version__}" in table
    assert json.loads(json.dumps(report))["rows"][1]["runs"][2]["images"] == 8000


def test_a_child_that_fails_is_noted_and_not_tried_again(folder, monkeypatch):
    asked = []

    def child(module: str, job: Job, tuned_malloc: bool) -> dict:
        asked.append(job.what)
        if asked[-1] == "png":
            raise RuntimeError("failed with code 1")
        return {"images": 10, "seconds": 1.0, "cpu_seconds": None}

    monkeypatch.setattr(harness, "run_child", child)
    rows = ("lineage_png", "png", "loader_png")
    report = run_benchmark(DataOptions(**{**vars(OPTIONS), "folder": str(folder), "repeats": 2, "rows": rows}))
    assert asked == ["lineage_png", "png", "loader_png", "lineage_png", "loader_png"]
    assert "| 32x16 | the whole, PNG files | 0 | failed with code 1 | – | – | – |" in format_data(report)
    assert "| 32x16 | loader alone, PNG files | 2 | 10 | 1.00 | – | – |" in format_data(report)


def test_what_is_out_of_range_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown row 'pil'; choose from lineage_decode_png"):
        make_options("cpu", None, ["pil"], None, None)
    with pytest.raises(ValueError, match="a batch of 64 cannot be made"):
        run_benchmark(DataOptions(images=16))
    with pytest.raises(ValueError, match=r"holds 0 images .*at least 16"):
        run_benchmark(DataOptions(**{**vars(OPTIONS), "folder": str(tmp_path)}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = make_options("auto", ["384x192"], None, 3, folder)
    assert (options.sizes, options.rows, options.workers, options.device) == (((384, 192),), tuple(ROWS), 3, "cpu")


@pytest.mark.slow
def test_the_tool_measures_rendered_pictures(tmp_path):
    words = ["--sizes", "64x32", "--rows", "lineage_decode_jpeg", "loader_decoded", "--images", "32",
             "--batch", "8", "--workers", "1", "--seconds", "0.05", "--repeats", "1", "--device", "cpu"]
    done = run_tool("benchmark", "data", *words, "--json", tmp_path / "report" / "raw.json", cwd=tmp_path, seconds=400)
    assert done.returncode == 0, done.stderr
    titles = [line.strip("| ").split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| 64x32 ")]
    assert titles == ["PIL: decode JPEG", "loader alone, packed and decoded"]
    raw = json.loads((tmp_path / "report" / "raw.json").read_text())
    assert "32 rendered at 256x128" in raw["pictures"]
    assert all(row["images_per_second"] > 0 for row in raw["rows"])
