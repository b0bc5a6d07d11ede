"""The commands as a person types them: a whole tiny run, and what a mistake looks like."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import read_json

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT)


def test_train_test_and_ensemble_from_the_shell(tiny_opts, tmp_path):
    train = tool("train", *tiny_opts, "SOLVER.MAX_EPOCHS", 1, cwd=tmp_path)
    assert train.returncode == 0, train.stderr
    assert "Epoch[1] Iteration[" in train.stderr
    model = tmp_path / "model"
    assert "Epoch 1 done" in (model / "train_log.txt").read_text()

    weight = model / "resnet18_ibn_b_w32_1.pth"
    test = tool("test", "--save-distmat", *tiny_opts, "TEST.WEIGHT", weight, cwd=tmp_path)
    assert test.returncode == 0, test.stderr
    assert test.stdout.strip() == f"wrote {model / 'submission.json'}"
    assert "all, re-ranked: rank1" in (model / "test_log.txt").read_text()
    assert (model / "distmat_1.npy").is_file()

    out = tmp_path / "ensemble" / "submission.json"
    ensemble = tool("ensemble", "--inputs", model, model, "--weights", 1, 2, "--output", out)
    assert ensemble.returncode == 0, ensemble.stderr
    assert read_json(out) == read_json(model / "submission.json")  # one ranking, three times its distances


@pytest.mark.parametrize(("name", "words", "message"), [
    ("train", ["SOLVER.IMS_PER_BATC", "3"], "did you mean SOLVER.IMS_PER_BATCH?"),
    ("train", ["--config_file", "nowhere.yml"], "nowhere.yml"),
    ("train", ["MODEL.PRETRAIN_CHOICE", "none", "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", "nowhere"], "nowhere"),
    ("train", ["MODEL.NAME", "resnet51", "DATASETS.NAMES", "naic"], None),
    ("test", ["TEST.WEIGHT", "nowhere.pth"], "nowhere.pth"),
    ("ensemble", ["--inputs", "nowhere", "--output", "x.json"], "nowhere"),
    ("split_domains", ["--data_dir_query", "nowhere", "--data_dir_gallery", "nowhere", "--save_dir", "x"], "nowhere"),
])
def test_a_mistake_is_one_message_and_code_2(name, words, message, tmp_path):
    done = tool(name, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") or "\nerror: " in f"\n{done.stderr}"
    assert message is None or message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_every_tool_has_help(name):
    done = tool(name, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout


def test_requirements_are_told_apart(tmp_path):
    listed = tmp_path / "r.txt"
    listed.write_text("# comment\nnumpy>=1.0\nno-such-package; platform_machine == 'x86_64'\n")
    assert tool("check_requirements", listed).returncode == 0
    listed.write_text("numpy>=999\nno-such-package-here\n")
    done = tool("check_requirements", listed)
    assert done.returncode == 1
    assert "is older than 999" in done.stderr
    assert "no-such-package-here is not installed" in done.stderr


def test_run_sh_explains_itself_and_refuses_the_unknown():
    shown = subprocess.run(["bash", str(ROOT / "run.sh"), "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for name in ("DATA_ROOT", "RECIPE", "WEIGHTS", "OUTPUT_ROOT", "PYTHON", "--dry-run", "test"):
        assert name in shown.stdout
    assert subprocess.run(["bash", str(ROOT / "run.sh"), "--nonsense"], capture_output=True).returncode == 2


def test_run_sh_takes_paths_relative_to_the_caller(tiny_data):
    environment = {**os.environ, "PYTHON": sys.executable, "DATA_ROOT": tiny_data.name, "OUTPUT_ROOT": "here"}
    done = subprocess.run(["bash", str(ROOT / "run.sh"), "--dry-run"], capture_output=True, text=True,
                          cwd=tiny_data.parent, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"DATASETS.ROOT_DIR {tiny_data}" in done.stdout
    assert f"--output {tiny_data.parent / 'here' / 'submission.json'}" in done.stdout
    assert "demo_data" not in done.stdout
