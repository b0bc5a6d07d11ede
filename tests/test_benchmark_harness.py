"""What the benchmarks share: child processes, options, and that an interrupt leaves nothing behind."""
import signal
import sys

import cv2
import numpy as np
import pytest
import torch
from processes import members_of, wait_for

from tools.benchmarks.harness import Job, check_names, choose_device, parse_size, run_child
from tools.benchmarks.retrieval_measure import Setting
from tools.campaigns.tool_server import start_tool


def test_a_child_that_fails_is_a_runtime_error(tmp_path):
    setting = Setting(size=300, dim=16, k1=20, k2=6, lambda_value=0.3, device="cpu", square=64)
    with pytest.raises(RuntimeError, match="failed with code 1"):
        run_child("no_such_module", Job("none", setting, str(tmp_path / "result.json")))


def test_a_size_is_height_x_width():
    assert parse_size("256x128") == (256, 128)
    for text in ("256", "256x", "x128", "0x128", "-1x128", "256x128x3", "256 x 128"):
        with pytest.raises(ValueError, match=f"size '{text}' is not HEIGHTxWIDTH"):
            parse_size(text)


def test_an_unknown_name_is_refused_with_the_choices():
    check_names("arm", ["b", "a"], {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="unknown arm 'c'; choose from a, b"):
        check_names("arm", ["a", "c"], {"a": 1, "b": 2})


def test_the_device_is_an_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="torch finds none"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == "cuda"


# What is measured for minutes, and how many processes there are by then: the tool, its child and the child's workers.
ENDLESS = {
    "retrieval": (2, ["--sizes", "6000", "--dim", "16", "--square", "4096", "--implementations", "dense"]),
    "data": (4, ["--folder", "pictures", "--images", "16", "--sizes", "32x16", "--rows", "loader_png", "--batch", "8",
                 "--workers", "2", "--seconds", "600"]),
    "train": (3, ["--models", "resnet18_ibn_b_w32", "--sizes", "32x16", "--identities", "30", "--batch", "8",
                  "--steps", "100000", "--warmup", "0", "--square", "64", "--arms", "ours_float32"]),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["retrieval", pytest.param("data", marks=pytest.mark.slow),
                                  pytest.param("train", marks=pytest.mark.slow)])
def test_an_interrupt_ends_all_processes_and_leaves_no_file(what, tmp_path):
    processes, words = ENDLESS[what]
    temporary = tmp_path / "temporary"
    for folder in (temporary, tmp_path / "pictures"):
        folder.mkdir()
    for number in range(16 if what == "data" else 0):
        cv2.imwrite(str(tmp_path / f"pictures/{number}.png"), np.full((32, 16, 3), 10 * number, np.uint8))
    # torch itself makes a folder of compiled code beside its temporary files
    tool = start_tool("benchmark", what, *words, "--device", "cpu", cwd=tmp_path, seconds=400,
                      env={"TMPDIR": temporary, "TORCHINDUCTOR_CACHE_DIR": tmp_path / "inductor"})
    try:
        wait_for(lambda: len(members_of(tool.pid)) >= processes or tool.poll() is not None, seconds=300)
        assert tool.poll() is None, tool.stderr()
        assert list(temporary.iterdir())
        tool.send_signal(signal.SIGTERM)  # SIGINT is ignored in background jobs
        assert tool.wait(60) == 130
    finally:
        tool.kill()  # a child dies with it
    assert tool.stderr().endswith("interrupted\n")
    assert "Traceback" not in tool.stderr() or what != "retrieval"  # a worker may print that its parent is gone
    wait_for(lambda: not members_of(tool.pid), seconds=20)  # a worker looks for its parent every 5 s
    assert not list(temporary.iterdir())
