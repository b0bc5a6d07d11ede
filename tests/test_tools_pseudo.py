"""Pseudo-labelling as a person types it: a whole tiny run, and what a mistake looks like."""
from pathlib import Path

from configs import load_cfg
from model.make_model import make_model
from tools.campaigns.tool_server import run_tool
from utils.checkpoint import save_checkpoint
from utils.files import read_json

NAME = "resnet18_ibn_b_w32"


def test_labelling_alone_and_with_its_training(tiny_opts, tiny_data, tmp_path):
    weight = tmp_path / "first.pth"
    save_checkpoint(weight, {"model": make_model(load_cfg(None, tiny_opts), 5).state_dict()})
    test = tiny_data / "MyDataSet/image_B_v1_1"
    folders = ["--data_dir_query", test / "query", "--data_dir_gallery", test / "gallery"]
    rules = ["TEST.WEIGHT", weight, "MODEL.THRESH", "0.6", "SOLVER.MAX_EPOCHS", "1", "SOLVER.STEPS", "[]"]

    label = run_tool("pseudo_label", *folders, "--output", "labels", *tiny_opts, *rules, cwd=tmp_path)
    assert label.returncode == 0, label.stderr
    wrote, advice = label.stdout.splitlines()
    report = read_json(tmp_path / "labels/report.json")
    assert wrote.startswith(f"wrote labels: {report['labelled']} of 42 images in {report['identities']} identities; ")
    assert advice.endswith("DATASETS.USE_UNLABEL True DATASETS.UNLABEL_DIR labels")

    (tmp_path / "test.yml").write_text("MODEL: {METRIC_LOSS_TYPE: triplet}\n")
    both = run_tool("train_UDA", "--config_file_test", "test.yml", *folders, *tiny_opts, *rules, "OUTPUT_DIR", "uda",
                cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.strip() == f"wrote {Path('uda/round_1') / f'{NAME}_1.pth'}"
    assert (tmp_path / "uda/round_1/unlabel/label.txt").read_bytes() == (tmp_path / "labels/label.txt").read_bytes()


def test_a_mistake_is_one_message_and_code_2(tiny_opts, tmp_path):
    for name, words, message in (
        ("pseudo_label", ["TEST.WEIGHT", "nowhere.pth", "MODEL.THRESH", "0.3"], "TEST.WEIGHT='nowhere.pth' is no file"),
        ("train_UDA", ["MODEL.THRESH", "17"], "it is in radians"),
        ("train_UDA", [], "UDA.THRESHOLD is 0, not set"),
    ):
        done = run_tool(name, *tiny_opts, *words, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
