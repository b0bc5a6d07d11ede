"""Trainings that are killed, stopped and resumed end in the very bits of one that never was."""
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import quick_options, split_of
from trainings import ROOT, assert_same_state, board_of, log_lines, train, train_together

from configs import load_cfg
from processor import trainer
from processor.trainer import do_train
from processor.training.build import checkpoint_folder
from utils.checkpoint import read_checkpoint
from utils.process import EXIT_STOPPED

EPOCHS, BATCHES = 2, 7
EVERY_STEP = ["SOLVER.CHECKPOINT_SECONDS", "1e-9"]
NEVER = ["SOLVER.CHECKPOINT_SECONDS", "0"]


def options(tiny_data, folder, *changes):
    return quick_options(tiny_data, folder, "DATASETS.VALIDATION", split_of(tiny_data), "SOLVER.MAX_EPOCHS", EPOCHS,
                         "SOLVER.STEPS", "[1]", *changes)


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """The folder of a run that nothing befell; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    code, errors = train(options(tiny_data, folder))
    assert code == 0, errors
    return folder


def position(folder):
    """(whole epochs, batches of the next) of latest.pth."""
    checkpoint = read_checkpoint(folder / "latest.pth")
    return checkpoint["epoch"], checkpoint["batches"]


def assert_same_end(folder, whole):
    """Every checkpoint, the metrics log and the board are those of the run that nothing befell."""
    names = sorted(path.name for path in whole.glob("*.pth"))
    assert len(names) == EPOCHS + 2  # latest.pth and best.pth
    assert sorted(path.name for path in folder.glob("*.pth")) == names
    for name in names:
        assert_same_state(read_checkpoint(folder / name), read_checkpoint(whole / name))
    assert log_lines(folder) == log_lines(whole)
    boards = [board_of(one, folder / f"board_{number}") for number, one in enumerate((folder, whole))]
    steps, expected = ({name: [step for step, _ in points] for name, points in board.items()} for board, _ in boards)
    assert steps == expected
    assert boards[0][1] == boards[1][1]  # the example batch, at step 0
    assert not list(folder.glob(".*.tmp"))
    assert (folder / "training_curve.png").is_file()


# ------------------------------------------------------------------ killed
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(whole, tiny_data, tmp_path, workers):
    words = options(tiny_data, tmp_path, *EVERY_STEP, "DATALOADER.NUM_WORKERS", workers)
    kills = [("train_step", 1, 1), ("train_step", 1, 4), ("save_if_asked", 1, 6), ("train_step", 1, 7),
             ("save_epoch", 1), ("save_if_asked", 2, 3), ("draw_curves",)]
    reached = [None, (0, 3), (0, 5), (0, 6), (0, 7), (1, 2), (2, 0)]
    for kill, last in zip(kills, reached, strict=True):
        code, errors = train(["--resume", *words], "kill", kill)
        assert code == -9, errors
        assert (position(tmp_path) if (tmp_path / "latest.pth").exists() else None) == last
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert_same_end(tmp_path, whole)


def test_the_tool_killed_from_outside_goes_on_to_the_same_bits(tiny_data, tmp_path):
    changes = ["MODEL.NAME", "resnet18_ibn_b_w32", "SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]"]
    code, errors = train(options(tiny_data, tmp_path / "whole", *changes))
    assert code == 0, errors
    words = options(tiny_data, tmp_path / "parts", *changes, *EVERY_STEP)
    with subprocess.Popen([sys.executable, str(ROOT / "tools" / "train.py"), *words], stderr=subprocess.PIPE,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        for line in process.stderr:
            if "latest.pth after epoch 0 and 3 batches" in line:
                process.kill()
    assert process.returncode in (-9, 0)  # where the machine is busy, it may have ended before the kill
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    for name in ("resnet18_ibn_b_w32_1.pth", "best.pth"):
        assert_same_state(read_checkpoint(tmp_path / "parts" / name), read_checkpoint(tmp_path / "whole" / name))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kill_without_a_checkpoint_in_the_epoch_costs_the_epoch_and_no_bit(whole, tiny_data, tmp_path, seed):
    words = options(tiny_data, tmp_path, *NEVER)
    random = np.random.default_rng(seed)
    for epoch in (1, 2):
        code, errors = train(["--resume", *words], "kill", ("train_step", epoch, int(random.integers(2, 9))))
        assert code == -9, errors
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert f"going on from {tmp_path / 'latest.pth'} after epoch 1\n" in errors
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize("at", [("train_step", 2, 3), ("save_epoch", 2)])
def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(whole, tiny_data, tmp_path, at):
    words = options(tiny_data, tmp_path, *EVERY_STEP)
    code, errors = train(words, "kill in the next write", at)
    assert code == -9, errors
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert position(tmp_path) == ((1, 2) if at[0] == "train_step" else (1, BATCHES))
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert_same_end(tmp_path, whole)


# ------------------------------------------------------------------ stopped
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_signal_to_all_its_processes_ends_a_run_with_a_checkpoint(whole, tiny_data, tmp_path, signal):
    words = options(tiny_data, tmp_path, "DATALOADER.NUM_WORKERS", 2)
    code, errors = train(words, f"{signal} to the group", ("train_step", 2, 3))
    assert code == EXIT_STOPPED, errors
    assert errors.splitlines()[-1] == f"stopped ({signal}); the checkpoint is written, --resume goes on from it"
    assert position(tmp_path) == (1, 3)  # the step at work was finished
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert_same_end(tmp_path, whole)


def test_a_signal_ends_a_run_whose_images_do_not_come_any_more(whole, tiny_data, tmp_path):
    words = options(tiny_data, tmp_path, *NEVER, "DATALOADER.NUM_WORKERS", 2)
    begun = time.monotonic()
    code, errors = train(words, "no batch, then SIGTERM", ("train_step", 1, 1))
    assert time.monotonic() - begun < 15  # torch would wait for the hung ones for longer
    assert code == EXIT_STOPPED, errors
    epochs, batches = position(tmp_path)
    assert (epochs, batches) < (0, BATCHES)
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert_same_end(tmp_path, whole)


def test_a_second_interrupt_ends_at_once(tiny_data, tmp_path):
    code, errors = train(options(tiny_data, tmp_path, *NEVER), "SIGINT twice", ("train_step", 1, 2))
    assert (code, errors.splitlines()[-1]) == (130, "interrupted")
    assert not (tmp_path / "latest.pth").exists()


def test_a_signal_ends_an_evaluation_at_once_and_the_epoch_is_kept(whole, tiny_data, tmp_path):
    words = options(tiny_data, tmp_path, *NEVER)
    code, errors = train(words, "SIGTERM, then nothing", ("evaluate_epoch", 1))
    assert code == EXIT_STOPPED, errors
    assert position(tmp_path) == (0, BATCHES)
    code, errors = train(["--resume", *words])
    assert code == 0, errors
    assert_same_end(tmp_path, whole)


# ------------------------------------------------------------------ random numbers
def test_a_model_that_draws_in_its_forward_pass_goes_on_with_the_same_draws(tiny_data, tmp_path, monkeypatch):
    changes = ("MODEL.NAME", "efficientnet_b0", "DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]", "SOLVER.MAX_EPOCHS", 1,
               "SOLVER.STEPS", "[]", "SOLVER.EVAL_PERIOD", 0, "SOLVER.OPTIMIZER_NAME", "Adam")
    do_train(load_cfg(None, options(tiny_data, tmp_path / "whole", *changes)))
    cfg = load_cfg(None, options(tiny_data, tmp_path / "parts", *changes, *EVERY_STEP))
    step = trainer.train_step

    def stopped(run, batch, epoch, iteration, timer):
        if iteration == 3:
            run.model.train()
            images = torch.zeros(16, 3, 32, 16)
            with torch.no_grad():  # it does draw: the same images, other features
                assert not torch.equal(run.model.base(images), run.model.base(images))
            raise KeyboardInterrupt
        return step(run, batch, epoch, iteration, timer)

    monkeypatch.setattr(trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    monkeypatch.undo()
    assert checkpoint_folder(cfg).find("auto")[1]["batches"] == 2
    torch.manual_seed(99)  # whatever was drawn before does not count
    last = do_train(cfg, resume="auto")
    assert_same_state(read_checkpoint(last), read_checkpoint(tmp_path / "whole" / last.name))


# ------------------------------------------------------------------ transformers
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_transformer_with_cameras_and_parts_killed_in_an_epoch_goes_on_to_the_same_bits(tiny_data, tmp_path,
                                                                                          processes):
    changes = ["MODEL.NAME", "vit_tiny", "MODEL.POOLING_METHOD", "token", "MODEL.SIE_CAMERA", "True", "MODEL.JPM",
               "True", "MODEL.DROP_PATH", "0.3", "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
               "MODEL.ID_LOSS_TYPE", "softmax", "MODEL.METRIC_LOSS_TYPE", "triplet", "MODEL.IF_WITH_CENTER", "no",
               "SOLVER.OPTIMIZER_NAME", "SGD"]
    whole, parts = (options(tiny_data, tmp_path / name, *changes) for name in ("whole", "parts"))
    codes, errors = train_together(processes, whole)
    assert not any(codes), errors
    codes, errors = train_together(processes, [*parts, *EVERY_STEP], "kill", ("train_step", 2, 3))
    assert codes[0] == -9, errors
    assert position(tmp_path / "parts") == (1, 2)
    codes, errors = train_together(processes, ["--resume", *parts])
    assert not any(codes), errors
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
