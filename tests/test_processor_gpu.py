"""Training on CUDA devices: each precision learns, two processes share the work, a step never waits for the device."""
import json
import subprocess

import pytest
import torch
from conftest import tiny_options
from processes import torchrun_command
from test_processor_distributed import ROOT, batch_of, frozen_run

from configs import load_cfg
from processor.trainer import do_train
from processor.training.step import train_step
from utils.meter import PhaseTimer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_cuda(tiny_data, folder, **changes):
    options = {"MODEL.DEVICE": "cuda", "SOLVER.FP16": True, "SOLVER.MAX_EPOCHS": 3, "SOLVER.STEPS": "[]", **changes}
    return [*tiny_options(tiny_data, folder / "model"), *(str(word) for pair in options.items() for word in pair)]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "model" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("changes", [
    {"SOLVER.AMP_DTYPE": "float16"}, {"SOLVER.AMP_DTYPE": "bfloat16"}, {"SOLVER.FP16": False},
    {"SOLVER.OPTIMIZER_NAME": "Adam", "SOLVER.EMA_DECAY": 0.9, "SOLVER.ACCUMULATION_STEPS": 2},
    {"SOLVER.DETERMINISTIC": True, "SOLVER.CLIP_GRAD_NORM": 5.0},
], ids=lambda changes: " ".join(map(str, changes.values())))
def test_training_learns_in_every_precision(tiny_data, tmp_path, changes):
    do_train(load_cfg(None, on_cuda(tiny_data, tmp_path, **changes)))
    curve = losses(tmp_path)
    assert curve[-1] < curve[0]


def test_between_log_lines_a_step_does_not_wait_for_the_device(tiny_data, tmp_path):
    opts = on_cuda(tiny_data, tmp_path, **{"SOLVER.OPTIMIZER_NAME": "Adam"})
    run = frozen_run(opts, **{"SOLVER.OPTIMIZER_NAME": "Adam"})
    for step in range(1, 4):  # the first ones make the optimisers' states and choose convolutions
        train_step(run, batch_of(run, step), 1, step, PhaseTimer())
    batch = batch_of(run, 4)._replace(images=batch_of(run, 4).images.pin_memory())
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(run, batch, 1, 4, PhaseTimer())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("sync_bn", [False, True])
def test_two_processes_train_and_evaluate_with_nccl(tiny_data, tmp_path, sync_bn):
    opts = on_cuda(tiny_data, tmp_path, **{"MODEL.SYNC_BN": sync_bn, "SOLVER.EVAL_PERIOD": 1})
    done = subprocess.run([*torchrun_command(2), str(ROOT / "tools" / "train.py"), *opts], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    curve = losses(tmp_path)
    assert curve[-1] < curve[0]
