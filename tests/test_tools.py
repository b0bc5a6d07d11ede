"""The commands as a person types them: a whole tiny run, and what a mistake looks like."""
import os
import shutil
import subprocess
import sys

import pytest

from configs import load_cfg
from processor import trainer
from tools import train
from tools.campaigns.tool_server import ROOT, run_tool
from tools.train import name_resumed_file
from utils.files import read_json


def test_train_test_and_ensemble_one_after_the_other(tiny_opts, tmp_path):
    train = run_tool("train", *tiny_opts, "SOLVER.MAX_EPOCHS", 1, cwd=tmp_path)
    assert train.returncode == 0, train.stderr
    assert "Epoch[1] Iteration[" in train.stderr
    model = tmp_path / "model"
    assert "Epoch 1 done" in (model / "train_log.txt").read_text()

    weight = model / "resnet18_ibn_b_w32_1.pth"
    test = run_tool("test", "--save-distmat", *tiny_opts, "TEST.WEIGHT", weight, cwd=tmp_path)
    assert test.returncode == 0, test.stderr
    assert test.stdout.strip() == f"wrote {model / 'submission.json'}"
    assert "all, re-ranked: rank1" in (model / "test_log.txt").read_text()
    assert (model / "distmat_1.npy").is_file()

    out = tmp_path / "ensemble" / "submission.json"
    ensemble = run_tool("ensemble", "--inputs", model, model, "--weights", 1, 2, "--output", out)
    assert ensemble.returncode == 0, ensemble.stderr
    assert read_json(out) == read_json(model / "submission.json")  # the same ranking, of three times its distances


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
    done = run_tool(name, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") or "\nerror: " in f"\n{done.stderr}"
    assert message is None or message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")
                                        if "__main__" in path.read_text(encoding="utf-8")))
def test_every_tool_has_help_in_a_fresh_interpreter(name, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "usage:" in done.stdout


RESUME_FROM = ["--resume-from", "a/NAME_3.pth"]


@pytest.mark.parametrize(("words", "meant"), [
    ([], []),
    (["--resume"], ["--resume"]),
    (["--resume", "SOLVER.SEED", "3"], ["--resume", "SOLVER.SEED", "3"]),
    (["SOLVER.SEED", "3", "--resume", "OUTPUT_DIR", "x"], ["SOLVER.SEED", "3", "--resume", "OUTPUT_DIR", "x"]),
    (["--resume", "--config_file", "x.yml"], ["--resume", "--config_file", "x.yml"]),
    (["--resume", "SOLVER.SEED"], ["--resume", "SOLVER.SEED"]),
    (["--resume", "a/NAME_3.pth"], RESUME_FROM),
    (["--resume=a/NAME_3.pth", "SOLVER.SEED", "3"], ["--resume-from=a/NAME_3.pth", "SOLVER.SEED", "3"]),
    (["--resume", "a/NAME_3.pth", "MODEL.FROZEN", "-1"], [*RESUME_FROM, "MODEL.FROZEN", "-1"]),
    (["SOLVER.SEED", "3", "--resume", "a/NAME_3.pth", "--config_file", "x.yml", "TEST.TOP_K", "5"],
     ["SOLVER.SEED", "3", *RESUME_FROM, "--config_file", "x.yml", "TEST.TOP_K", "5"]),
    ([*RESUME_FROM, "SOLVER.SEED", "3"], [*RESUME_FROM, "SOLVER.SEED", "3"]),
])
def test_an_odd_count_of_words_after_resume_begins_with_a_file(words, meant):
    assert name_resumed_file(words) == meant


@pytest.mark.parametrize(("words", "resume"), [
    ([], "none"), (["--resume"], "auto"), (["--resume", "a/NAME_3.pth"], "a/NAME_3.pth"), (RESUME_FROM, "a/NAME_3.pth"),
])
def test_a_training_is_asked_to_go_on_from_what_the_command_line_names(words, resume, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "do_train", lambda cfg, resume, workers: asked.append((cfg.SOLVER.SEED, resume)))
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "SOLVER.SEED", "3", "OUTPUT_DIR", str(tmp_path)])
    train.main()
    assert asked == [(3, resume)]


def test_a_printed_config_loads_to_the_same_tree(tmp_path):
    recipe = "configs/naic/r101_ibn_b_192_pseudo.yml"
    opts = ["TEST.TOP_K", "5", "OUTPUT_DIR", "模型"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "tools/train.py", "--config_file", recipe, "--print-config", *opts],
                          capture_output=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "printed.yml").write_bytes(done.stdout)
    assert load_cfg(tmp_path / "printed.yml") == load_cfg(ROOT / recipe, opts)
    lines = {"  TOP_K: 5  # command line", f"  THRESH: 0.3  # {recipe}", "  PROB: 0.5",
             "  SIZE_TRAIN: [384, 192]  # configs/naic/r101_ibn_b_192.yml",
             "  OPTIMIZER_NAME: Ranger  # configs/naic/_lineage.yml"}
    assert lines <= set(done.stdout.decode().splitlines())


def test_requirements_that_are_not_met_are_named(tmp_path):
    listed = tmp_path / "r.txt"
    listed.write_text("# comment\nnumpy>=1.0\nno-such-package; platform_machine == 'x86_64'\n")
    assert run_tool("check_requirements", listed).returncode == 0
    listed.write_text("numpy>=999\nno-such-package-here\n")
    done = run_tool("check_requirements", listed)
    assert done.returncode == 1
    assert "is older than 999" in done.stderr
    assert "no-such-package-here is not installed" in done.stderr


@pytest.mark.parametrize(("opencv", "numpy", "lines"), [
    ("4.7.0.72", "2.1.0", ["opencv-python-headless 4.7.0.72 fails beside numpy 2.1.0; from 4.10 on it does not"]),
    ("4.7.0.72", "1.26.4", []), ("4.10.0.84", "2.1.0", []), (None, "2.1.0", []),
])
def test_versions_that_fail_together_are_named(monkeypatch, opencv, numpy, lines):
    from tools import check_requirements

    versions = {"opencv-python-headless": opencv, "numpy": numpy}
    monkeypatch.setattr(check_requirements, "installed", versions.get)
    assert check_requirements.clashes() == lines


def test_run_sh_explains_itself_and_refuses_the_unknown():
    done = subprocess.run(["bash", str(ROOT / "run.sh"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("DATA_ROOT", "RECIPE", "WEIGHTS", "OUTPUT_ROOT", "PYTHON", "--dry-run", "test"):
        assert name in done.stdout
    assert subprocess.run(["bash", str(ROOT / "run.sh"), "--nonsense"], capture_output=True).returncode == 2


@pytest.mark.parametrize("words", [["tset"], ["--dry-run", "test"], ["SOLVER.SEED", "-1", "--forse"]])
def test_run_sh_refuses_words_that_are_no_keys_before_it_installs(words):
    done = subprocess.run(["bash", str(ROOT / "run.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: unknown argument: {words[-1]}\n")


def test_run_sh_passes_keys_and_its_options_on_in_any_order(tmp_path):
    """The interpreter is one that prints its words."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$1" in tools/pipeline.py) echo "$@" ;; esac\n')
    python.chmod(0o755)
    words = ["SOLVER.SEED", "-1", "--dry-run", "INPUT.SIZE_TRAIN", "[64, 32]", "--force", "TEST.TOP_K=5"]
    done = subprocess.run(["bash", str(ROOT / "run.sh"), *words], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": str(python)})
    assert done.stdout == f"tools/pipeline.py {' '.join(words)}\n"


def test_run_sh_says_every_few_seconds_that_it_installs(tmp_path):
    """A copy of run.sh with an interpreter that lacks everything, and a clock that runs fast."""
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text("""#!/bin/sh
case "$*" in
    *check_requirements.py*) [ -f .venv/installed ] ;;
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"-m pip"*) while [ ! -f go ]; do /bin/sleep 0.02; done; touch .venv/installed ;;
    *tools/pipeline.py*) echo ran ;;
esac
""")
    (tmp_path / "bin/sleep").write_text("#!/bin/sh\necho >> slept; [ $(wc -l < slept) -lt 12 ] || touch go\n"
                                        "/bin/sleep 0.02\n")
    for name in ("python3", "sleep"):
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(["bash", "run.sh"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                               "PYTHON": str(tmp_path / "bin/python3")})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran\n"
    assert "installing: 5 s, " in done.stderr
    assert "installing: 10 s, " in done.stderr


def test_run_sh_takes_paths_relative_to_the_caller(tiny_data):
    environment = {**os.environ, "PYTHON": sys.executable, "DATA_ROOT": tiny_data.name, "OUTPUT_ROOT": "here"}
    done = subprocess.run(["bash", str(ROOT / "run.sh"), "--dry-run"], capture_output=True, text=True,
                          cwd=tiny_data.parent, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"DATASETS.ROOT_DIR {tiny_data}" in done.stdout
    assert f"--output {tiny_data.parent / 'here' / 'submission.json'}" in done.stdout
    assert "demo_data" not in done.stdout
