"""Steps whose loss or gradient is not finite: nothing of them stays, and too many end a training."""
import copy
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import quick_options
from trainings import TINY_BACKBONE, assert_same_state

from configs import load_cfg
from processor import trainer
from processor.trainer import do_train
from processor.training.build import build
from processor.training.state import state_of
from processor.training.step import train_step
from utils.meter import PhaseTimer

pytestmark = pytest.mark.usefixtures("tiny_backbone")
SGD = ("SOLVER.OPTIMIZER_NAME", "SGD")
OPTIMIZERS = {
    "SGD": SGD, "SGD without momentum": (*SGD, "SOLVER.MOMENTUM", 0),
    "Nesterov": (*SGD, "SOLVER.NESTEROV", True), "Adam": ("SOLVER.OPTIMIZER_NAME", "Adam"),
    "AdamW": ("SOLVER.OPTIMIZER_NAME", "AdamW"), "Ranger": ("SOLVER.GRADIENT_CENTRALIZATION", True),
}


def spoil_an_image(run, patch):
    augment = run.loaders.augment

    def spoiled(*args):
        images = augment(*args)
        images[-1, 0, 0, 0] = math.nan
        return images

    patch.setattr(run.loaders, "augment", spoiled)


def spoil_the_loss(run, patch):
    """An infinite loss whose gradient is finite."""
    forward = run.criterion.forward

    def spoiled(*args, **others):
        total, terms = forward(*args, **others)
        return total + math.inf, terms

    patch.setattr(run.criterion, "forward", spoiled)


def spoil_gradient(parameter):
    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = -math.inf
        return gradient

    return parameter.register_hook(spoil)


SPOILT = {
    "an image": spoil_an_image,
    "the loss": spoil_the_loss,
    "a weight's gradient": lambda run, patch: spoil_gradient(run.model.classifier.weight),
    "a centre's gradient": lambda run, patch: spoil_gradient(run.criterion.centers["global"].centers),
}


def steps(run, spoil, numbers):
    """Train with the batches of these numbers; a number below 0 stands for a spoilt batch."""
    run.model.train()
    batches = list(run.loaders.train)
    for number in numbers:
        with pytest.MonkeyPatch.context() as patch:
            hook = spoil(run, patch) if number < 0 else None
            values, ok = train_step(run, batches[abs(number)], 1, abs(number), PhaseTimer())
            run.meter.update(values, ok)
            if hook is not None:
                hook.remove()
        assert bool(ok) == (number > 0)


def state(run):
    actual = copy.deepcopy(state_of(run, 0, 0))
    skipped = actual.pop("skipped").tolist()
    return actual, skipped


@pytest.mark.parametrize(("optimizer", "spoilt", "parts"), [
    *((name, "an image", 1) for name in OPTIMIZERS), *(("SGD", spoilt, 1) for spoilt in SPOILT if spoilt != "an image"),
    *(("Ranger", spoilt, 2) for spoilt in SPOILT),
])
def test_a_skipped_step_leaves_no_trace(tiny_data, tmp_path, optimizer, spoilt, parts):
    cfg = load_cfg(None, quick_options(tiny_data, tmp_path, "SOLVER.WARMUP_EPOCHS", 0, "SOLVER.EVAL_PERIOD", 0,
                                       "SOLVER.CLIP_GRAD_NORM", 5, "SOLVER.ACCUMULATION_STEPS", parts,
                                       *OPTIMIZERS[optimizer]))
    run, healthy = build(cfg), build(cfg)
    steps(run, SPOILT[spoilt], [-1, 1, 2])
    before = state(run)[0]
    steps(run, SPOILT[spoilt], [-3, -4])
    after, skipped = state(run)
    assert skipped == [2, 3]
    assert_same_state(before, after, ())
    steps(run, SPOILT[spoilt], [3, -5, 4, 5, 6])
    steps(healthy, None, [1, 2, 3, 4, 5, 6])
    actual, skipped = state(run)
    expected, none = state(healthy)
    assert (skipped, none) == ([0, 4], [0, 0])
    assert_same_state(actual, expected, ())
    assert not any(torch.equal(actual["model"][key], before["model"][key]) for key in actual["model"]
                   if key.endswith(("running_mean", "weight")))


# ------------------------------------------------------------------ in a training
def spoilt_where(bad, seen):
    """A train_step with NaN in a picture where bad(epoch, iteration); `seen` becomes a list of what each step did."""
    def step(run, batch, epoch, iteration, timer):
        before = run.skipped.tolist()
        with pytest.MonkeyPatch.context() as patch:
            if bad(epoch, iteration):
                spoil_an_image(run, patch)
            values, ok = train_step(run, batch, epoch, iteration, timer)
        seen.append(SimpleNamespace(at=(epoch, iteration), ok=bool(ok), keys=batch.keys, skipped_before=before,
                                    values={name: value.item() for name, value in values.items()}))
        return values, ok
    return step


def options(tiny_data, folder, *changes):
    return load_cfg(None, quick_options(tiny_data, folder, "SOLVER.MAX_EPOCHS", 2, "SOLVER.STEPS", "[]",
                                        "SOLVER.EVAL_PERIOD", 0, *changes))


def test_training_goes_on_and_the_log_leaves_the_step_out(tiny_data, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    spoilt, seen = {(1, 2), (1, 7), (1, 8), (2, 1)}, []
    monkeypatch.setattr(trainer, "train_step", spoilt_where(lambda *at: at in spoilt, seen))
    do_train(options(tiny_data, tmp_path, "SOLVER.MAX_SKIPPED_STEPS", 4))
    assert {step.at for step in seen if not step.ok} == spoilt
    assert len(seen) == 16
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["skipped"]) for line in lines] == [(3, 1), (6, 1), (8, 3), (11, 4), (14, 4), (16, 4)]
    for line in lines:
        counted = [step.values for step in seen[: line["step"]] if step.ok and step.at[0] == line["epoch"]]
        for name in ("loss", "id", "triplet", "center", "acc", "grad_norm"):
            mean = sum(values[name] for values in counted) / len(counted)
            assert line[name] == pytest.approx(mean, rel=1e-12)
    assert ", 4 skipped, " in caplog.text


@pytest.mark.parametrize(("seconds", "good"), [(0, "latest.pth"), (1e-9, f"{TINY_BACKBONE}_1.pth")])
def test_too_many_in_a_row_end_the_training_with_what_helps(tiny_data, tmp_path, monkeypatch, seconds, good):
    """With a checkpoint at each step, the latest ones are from among the skipped steps and lead there again."""
    seen = []
    monkeypatch.setattr(trainer, "train_step", spoilt_where(lambda *at: at >= (2, 4), seen))
    with pytest.raises(FloatingPointError) as error:
        do_train(options(tiny_data, tmp_path, "SOLVER.MAX_SKIPPED_STEPS", 3, "SOLVER.CHECKPOINT_SECONDS", seconds))
    text = str(error.value)
    assert text.startswith("epoch 2, iteration 6: 3 steps in a row were skipped")
    assert re.search(r"\(loss nan, id nan, triplet nan, center nan, acc 0(\.\d+)?, grad_norm nan\)", text)
    assert f"The last batch: {', '.join(seen[-1].keys[:8])} and 8 more." in text
    assert "Lower SOLVER.BASE_LR" in text
    assert text.endswith(f"the last good checkpoint is {tmp_path / good}")


def test_a_whole_epoch_of_them_ends_the_training(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", spoilt_where(lambda *_: True, []))
    with pytest.raises(FloatingPointError, match=r"^epoch 1, iteration 8: 8 steps .* there is no checkpoint yet$"):
        do_train(options(tiny_data, tmp_path, "SOLVER.MAX_SKIPPED_STEPS", 100))


def test_the_count_goes_on_after_a_kill(tiny_data, tmp_path, monkeypatch):
    cfg = options(tiny_data, tmp_path, "SOLVER.MAX_SKIPPED_STEPS", 5, "SOLVER.CHECKPOINT_SECONDS", 1e-9)
    seen, save = [], trainer.save_if_asked

    def killed(run, monitor, epoch, iteration):
        save(run, monitor, epoch, iteration)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_step", spoilt_where(lambda *_: True, seen))
    monkeypatch.setattr(trainer, "save_if_asked", killed)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    with pytest.raises(FloatingPointError, match=r"^epoch 1, iteration 5: 5 steps in a row"):
        do_train(cfg, resume="auto")
    assert [(step.at, step.skipped_before) for step in seen[3:]] == [((1, 4), [3, 3]), ((1, 5), [4, 4])]
