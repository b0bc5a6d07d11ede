"""What a training leaves to be looked at: metrics.jsonl, the board and the picture of its curves."""
import json
import math
import re
import threading

import cv2
import numpy as np
import pytest
import torch
from conftest import quick_options
from processes import longest_file
from trainings import board_of

from configs import load_cfg
from processor import trainer
from processor.trainer import do_train
from processor.training.curves import draw_curves, means_between_lines
from processor.training.metrics_log import MetricsLog, loss_terms, read_lines
from processor.training.step import train_step
from utils.logger import user_message


def texts(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


# ------------------------------------------------------------------ the log alone
def test_what_is_no_number_is_null(tmp_path):
    log = MetricsLog(tmp_path, 0, 0)
    log.write(1, 1, loss=math.nan, id=math.inf, triplet=-math.inf, lr=0.5)
    log.close()
    assert texts(tmp_path) == ['{"epoch": 1, "step": 1, "loss": null, "id": null, "triplet": null, "lr": 0.5}']


def test_a_full_disk_of_the_board_is_told_once_and_without_its_thread_s_traceback(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_value))
    log = MetricsLog(tmp_path, 0, 0)
    with longest_file(200), pytest.raises(OSError, match="File too large") as told:
        log.write(1, 1, loss=0.5, id=0.25, triplet=0.25, lr=0.5)  # a line of 82 bytes, and more for the board
    log.board.file_writer.event_writer._async_writer._worker.join(10)
    assert seen == []
    assert user_message(told.value) == f"{tmp_path}/tensorboard: File too large"
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [type(error) for error in seen] == [ZeroDivisionError]


def written(folder):
    """Two epochs of four steps with a line every second one, and an evaluation after each."""
    log = MetricsLog(folder, 0, 0)
    for epoch in (1, 2):
        for step in (2, 4):
            log.write(4 * (epoch - 1) + step, epoch, loss=float(10 * epoch + step), lr=0.5)
        log.write(4 * epoch, epoch, **{"all/mAP": epoch / 4})
    log.close()


@pytest.mark.parametrize(("epochs", "steps", "losses", "tests"), [
    (0, 0, [], []), (0, 3, [2], []), (0, 4, [2, 4], []), (1, 4, [2, 4], [4]), (1, 6, [2, 4, 6], [4]),
    (1, 8, [2, 4, 6, 8], [4]), (2, 8, [2, 4, 6, 8], [4, 8]),
])
def test_a_resumed_log_keeps_what_its_checkpoint_knows_of(tmp_path, epochs, steps, losses, tests):
    written(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as out:
        out.write('{"epoch": 3, "st')  # a kill cut it off
    log = MetricsLog(tmp_path, epochs, steps)
    lines = [json.loads(text) for text in texts(tmp_path)]
    assert [line["step"] for line in lines if "loss" in line] == losses
    assert [line["step"] for line in lines if "all/mAP" in line] == tests
    log.write(9, 3, loss=1.0)  # the board looks at its files when something is new
    log.close()
    scalars, _ = board_of(tmp_path, tmp_path / "board")
    assert [step for step, _ in scalars["loss"]] == [*losses, 9]
    assert [step for step, _ in scalars.get("all/mAP", [])] == tests
    assert scalars["loss"][:-1] == [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_lines_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('3\n{"epoch": 1}\n\n{"epoch": "x", "step": 1}\nnonsense\n{"epoch": 2, "step": 7, "loss": 1.5}\n')
    assert read_lines(path) == [{"epoch": 2, "step": 7, "loss": 1.5}]
    assert read_lines(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("line", [
    b'{"epoch": 1, "step": 1, "loss": 1.0, "' + b"(" * 200_000 + b'": 1.0}', b'{"epoch": 1, "step": 1, "loss": "1"}',
    b'{"epoch": 1, "step": 1, "loss": NaN}', b'{"epoch": 1, "step": 1, "loss": 1' + b"0" * 400 + b"}",
    b'{"epoch": 0, "step": 1, "loss": 1.0}', b'{"epoch": 1, "step": 1e300, "loss": 1.0}', b"[" * 200_000,
    b'{"epoch": 1, "step": 1, "loss\xff": 1.0' + b', "a": {}}'])
def test_a_damaged_line_is_left_out_and_told_and_the_rest_is_drawn(tmp_path, caplog, line):
    (tmp_path / "metrics.jsonl").write_bytes(line + b'\n{"epoch": 1, "step": 2, "loss": 0.5, "lr": 0.1}\n')
    assert draw_curves(tmp_path).stat().st_size < 200_000
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2]
    assert "metrics.jsonl: 1 lines are left out" in caplog.text


# ------------------------------------------------------------------ of a training
@pytest.mark.usefixtures("tiny_backbone")
def test_a_training_leaves_its_figures_and_one_batch_as_the_model_saw_it(tiny_data, tmp_path, monkeypatch):
    cfg = load_cfg(None, quick_options(tiny_data, tmp_path, "SOLVER.MAX_EPOCHS", 2, "SOLVER.STEPS", "[]"))
    first = []

    def step(run, batch, epoch, iteration, timer):
        if not first:
            first.append(run.loaders.augment(batch.images, epoch, batch.positions))
        return train_step(run, batch, epoch, iteration, timer)

    monkeypatch.setattr(trainer, "train_step", step)
    monkeypatch.setattr(trainer, "draw_curves", draw_curves)  # which tests/conftest.py leaves out
    do_train(cfg)
    assert (tmp_path / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not any(re.search(r"NaN|Infinity", text) for text in texts(tmp_path))
    lines = [json.loads(text) for text in texts(tmp_path)]
    figures = {"loss", "id", "triplet", "center", "acc", "grad_norm", "lr", "skipped", "images_per_second", "data_wait"}
    assert {"epoch", "step", *figures} == set(lines[0])
    assert {f"{domain}/{name}" for domain in ("all", "green", "normal") for name in ("mAP", "rank1", "mINP",
            "naic_score")} | {"epoch", "step"} == set(lines[-1])
    scalars, pictures = board_of(tmp_path, tmp_path / "board")
    assert scalars.keys() == (set(lines[0]) | set(lines[-1])) - {"epoch", "step"}
    for name, curve in scalars.items():
        assert curve == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
    ((name, [(step, png)]),) = pictures.items()
    assert (name, step) == ("batch", 0)
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (cfg.INPUT.PIXEL_STD, cfg.INPUT.PIXEL_MEAN))
    image = (first[0][0] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(picture[:32, :16] / 255 - image).max() <= 1 / 255 + 1e-6  # the first of the grid


def test_terms_of_parts_are_told_as_their_mean():
    line = {"epoch": 1, "step": 2, "loss": 9.0, "id": 1.0, "id_part0": 2.0, "id_part1": 4.0, "acc": 0.5, "lr": 0.1,
            "triplet": None, "grad_norm": 3.0, "skipped": 0, "images_per_second": 9.0, "data_wait": 0.0}
    assert loss_terms(line) == {"id": 1.0, "id_part": 3.0}


# ------------------------------------------------------------------ the picture
def test_means_since_the_last_line_are_had_from_means_since_the_epoch_began():
    random = np.random.default_rng(0)
    losses, bad = random.random((3, 10)), {(0, 1), (1, 4), (1, 5), (1, 6), (2, 0)}
    lines, expected, skipped = [], [], 0
    for epoch in range(3):
        good = [step for step in range(10) if (epoch, step) not in bad]
        for first, end in ((0, 4), (4, 7), (7, 10)):
            skipped += sum((epoch, step) in bad for step in range(first, end))
            counted = [losses[epoch, step] for step in good if step < end]
            lines.append({"epoch": epoch + 1, "step": 10 * epoch + end, "loss": np.mean(counted), "skipped": skipped,
                          "lr": 0.1})
            new = [losses[epoch, step] for step in good if first <= step < end]
            expected.append(np.mean(new) if new else None)
    rows = means_between_lines(lines, 10)
    assert expected.count(None) == 1
    assert [row["loss"] for row in rows] == [value if value is None else pytest.approx(value) for value in expected]
    assert all(row["lr"] == 0.1 for row in rows)


def lines_of(epochs, **changes):
    """Lines as a training writes them: two an epoch, an evaluation after each."""
    lines = []
    for epoch in range(1, epochs + 1):
        for step in (50, 100):
            loss = 10 / (epoch + step / 100)
            lines.append({"epoch": epoch, "step": 100 * (epoch - 1) + step, "loss": loss, "id": loss * 0.8,
                          "triplet": loss * 0.2, "acc": 1 - 1 / epoch, "lr": 0.1 / epoch, "skipped": 0, **changes})
        lines.append({"epoch": epoch, "step": 100 * epoch, "all/mAP": 1 - 1 / (epoch + 1),
                      "all/rank1": 1 - 1 / (epoch + 3)})
    return lines


def colors_of(picture):
    return {tuple(color) for color in picture.reshape(-1, 3)[:, ::-1]}


@pytest.mark.parametrize(("lines", "colors"), [
    (lines_of(6), {"#222222", "#0072B2", "#D55E00", "#AAAAAA"}),
    (lines_of(6, center=400.0), {"#222222", "#0072B2", "#D55E00", "#009E73", "#AAAAAA"}),
    (lines_of(1)[:1], {"#222222", "#0072B2", "#D55E00", "#AAAAAA"}),
    (lines_of(3, triplet=None), {"#222222", "#0072B2", "#AAAAAA"}),
    (lines_of(3, loss=0.0, id=0.0, triplet=0.0), {"#222222", "#AAAAAA"}),
], ids=["usual", "a large term", "one line", "a term without a number", "zeros"])
def test_the_picture_shows_every_curve(tmp_path, lines, colors):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = draw_curves(tmp_path)
    assert path == tmp_path / "training_curve.png"
    picture = cv2.imread(str(path))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1200
    assert {tuple(int(color[i:i + 2], 16) for i in (1, 3, 5)) for color in colors} <= colors_of(picture)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_lines_there_is_no_picture(tmp_path):
    assert draw_curves(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 1, "all/mAP": 0.5}\n')
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "training_curve.png").exists()
