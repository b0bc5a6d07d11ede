"""One step: clipping, micro-batches, a held backbone, draws, and what it does not ask of the device."""
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import quick_options
from torch import Tensor, nn
from trainings import assert_same_state

from configs import load_cfg
from datasets.transforms import Recipe
from processor import trainer
from processor.trainer import do_train
from processor.training.build import build
from processor.training.state import state_of
from processor.training.step import clip_gradients, forward_backward, train_step
from solver.make_optimizer import OPTIMIZERS
from utils import meter
from utils.checkpoint import read_checkpoint
from utils.meter import PhaseTimer

pytestmark = pytest.mark.usefixtures("tiny_backbone")


def cfg_of(tiny_data, folder, *changes):
    return load_cfg(None, quick_options(tiny_data, folder, "SOLVER.EVAL_PERIOD", 0, *changes))


def first_batch(run):
    return next(iter(run.loaders.train))


def gradients(run, batch, frozen=True, at=(1, 1)):
    """Gradients by name, and the values, of one batch; frozen: batch norms keep their statistics, nothing drops out."""
    run.model.train(not frozen)
    run.model.zero_grad()
    run.criterion.zero_grad()
    values = forward_backward(run, batch, *at, PhaseTimer())
    named = [*run.model.named_parameters(), *run.criterion.named_parameters()]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, values


# ------------------------------------------------------------------ gradients
def test_clipping_is_torchs_and_leaves_the_centres_alone(tiny_data, tmp_path):
    run = build(cfg_of(tiny_data, tmp_path))
    before, _ = gradients(run, first_batch(run))
    of_model = {name: gradient for name, gradient in before.items() if name != "centers.global.centers"}
    assert len(of_model) == len(before) - 1
    norm = torch.stack([gradient.double().norm() for gradient in of_model.values()]).norm()
    for limit, factor in ((0.0, 1.0), (2 * norm.item(), 1.0), (norm.item() / 4, 0.25)):
        run.cfg.defrost()
        run.cfg.SOLVER.CLIP_GRAD_NORM = limit
        for name, parameter in run.model.named_parameters():
            parameter.grad = of_model[name].clone() if name in of_model else None
        expected = [nn.Parameter(gradient) for gradient in of_model.values()]
        for parameter in expected:
            parameter.grad = parameter.detach().clone()
        if limit:
            nn.utils.clip_grad_norm_(expected, limit)
        assert clip_gradients(run).item() == pytest.approx(norm.item(), rel=1e-6)
        for (name, gradient), other in zip(of_model.items(), expected, strict=True):
            actual = run.model.get_parameter(name).grad
            assert torch.equal(actual, other.grad)
            torch.testing.assert_close(actual, gradient * factor, rtol=1e-5, atol=0)
        assert torch.equal(run.criterion.centers["global"].centers.grad, before["centers.global.centers"])


@pytest.mark.parametrize("sampler", ["softmax", "softmax_triplet"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_batch(tiny_data, tmp_path, sampler, parts):
    """The ID loss and the center loss are means over images; a triplet loss sees the pairs of a micro-batch only."""
    changes = ("DATALOADER.SAMPLER", sampler)
    whole = build(cfg_of(tiny_data, tmp_path, *changes))
    run = build(cfg_of(tiny_data, tmp_path, *changes, "SOLVER.ACCUMULATION_STEPS", parts))
    batch = first_batch(whole)
    (expected, values), (actual, means) = gradients(whole, batch), gradients(run, batch)
    assert actual.keys() == expected.keys()
    for name in ("id", "acc", "center"):
        if name in values:
            torch.testing.assert_close(means[name], values[name], rtol=1e-5, atol=1e-6)
    if sampler == "softmax_triplet":
        assert not torch.allclose(means["triplet"], values["triplet"], rtol=1e-4)
        images = run.loaders.augment(batch.images, 1, batch.positions)
        found_parts = zip(images.chunk(parts), batch.pids.chunk(parts), strict=True)
        terms = [run.criterion(run.model(*part), part[1])[1]["triplet"] for part in found_parts]
        torch.testing.assert_close(means["triplet"], torch.stack(terms).mean())
        actual, expected = ({"centers": each["centers.global.centers"]} for each in (actual, expected))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


def test_draws_are_those_of_the_place_in_the_run(tiny_data, tmp_path, monkeypatch):
    run = build(cfg_of(tiny_data, tmp_path))
    batch, losses = first_batch(run), {}
    images = run.loaders.augment(batch.images, 1, batch.positions)
    monkeypatch.setattr(run.loaders, "augment", lambda *_: images)  # so that the model's draws alone differ
    for at in ((1, 1), (1, 2), (2, 1), (1, 1)):
        torch.rand(3)  # what was drawn before does not matter
        losses.setdefault(at, []).append(gradients(run, batch, frozen=False, at=at)[1]["loss"].item())
    assert losses[1, 1][0] == losses[1, 1][1]
    assert len({actual[0] for actual in losses.values()}) == 3


# ------------------------------------------------------------------ a held backbone
def states_of_epochs(cfg, monkeypatch, resume="none", stop=None):
    """The state after each epoch of a training; it is killed at the step `stop` = (epoch, iteration)."""
    finish, states = trainer.finish_epoch, {}

    def watched(run, monitor, epoch):
        states[epoch] = {name: tensor.clone() for name, tensor in state_of(run, epoch, 0)["model"].items()}
        finish(run, monitor, epoch)

    def step(run, batch, epoch, iteration, timer):
        if (epoch, iteration) == stop:
            raise KeyboardInterrupt
        return train_step(run, batch, epoch, iteration, timer)

    monkeypatch.setattr(trainer, "finish_epoch", watched)
    monkeypatch.setattr(trainer, "train_step", step)
    try:
        do_train(cfg, resume)
    except KeyboardInterrupt:
        assert stop is not None
    monkeypatch.undo()
    return states


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_held_backbone_stays_to_the_bit_and_then_learns(tiny_data, tmp_path, monkeypatch, optimizer):
    cfg = cfg_of(tiny_data, tmp_path, "MODEL.FREEZE_EPOCHS", 2, "SOLVER.OPTIMIZER_NAME", optimizer,
                 "SOLVER.WARMUP_EPOCHS", 0)
    start = {name: tensor.clone() for name, tensor in build(cfg).model.state_dict().items()}
    states = states_of_epochs(cfg, monkeypatch)
    of_base = [name for name in start if name.startswith("base.")]
    assert any(name.endswith("running_var") for name in of_base)
    for epoch in (1, 2):
        for name in of_base:
            assert torch.equal(states[epoch][name], start[name]), name
        assert not torch.equal(states[epoch]["classifier.weight"], start["classifier.weight"])
    for name in of_base:
        assert not torch.equal(states[3][name], start[name]), name


def test_a_run_killed_while_its_backbone_is_held_ends_in_the_same_bits(tiny_data, tmp_path, monkeypatch):
    changes = ("MODEL.FREEZE_EPOCHS", 2, "SOLVER.MAX_EPOCHS", 3, "SOLVER.STEPS", "[]", "SOLVER.OPTIMIZER_NAME", "SGD",
               "SOLVER.CHECKPOINT_SECONDS", 1e-9)
    whole = do_train(cfg_of(tiny_data, tmp_path / "whole", *changes))
    cfg = cfg_of(tiny_data, tmp_path / "parts", *changes)
    for stop, resume in (((1, 4), "none"), ((3, 1), "auto"), ((3, 3), "auto"), (None, "auto")):
        states_of_epochs(cfg, monkeypatch, resume, stop)
    assert_same_state(read_checkpoint(tmp_path / "parts" / whole.name), read_checkpoint(whole))


def test_holding_all_that_learns_is_refused(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE_EPOCHS=1: nothing but the backbone learns here \(.*triplet"):
        build(cfg_of(tiny_data, tmp_path, "MODEL.FREEZE_EPOCHS", 1, "DATALOADER.SAMPLER", "triplet"))


# ------------------------------------------------------------------ in the loop
ASKING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__format__")


def test_between_log_lines_nothing_is_asked_of_the_device(tiny_data, tmp_path, monkeypatch):
    """Every way from a tensor to a number of Python is counted; a CUDA device would be waited for at each."""
    cfg = cfg_of(tiny_data, tmp_path, "SOLVER.OPTIMIZER_NAME", "Adam", "SOLVER.CLIP_GRAD_NORM", 1.0,
                 "SOLVER.ACCUMULATION_STEPS", 2)
    run = build(cfg)
    monkeypatch.setattr(Recipe, "is_lineage", lambda _: False)  # augmented as on a CUDA device
    batches, timer, asked = list(run.loaders.train), PhaseTimer(), Counter()
    run.model.train()
    for name in ASKING:
        original = getattr(Tensor, name)

        def counting(self, *args, name=name, original=original):
            asked[name] += 1
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, counting)
    bool(torch.ones(()))
    assert asked.pop("__bool__") == 1
    for iteration, batch in enumerate(batches[:4], 1):
        values, ok = train_step(run, batch, 1, iteration, timer)
        run.meter.update(values, ok)
    assert asked == {}
    run.meter.means()
    assert asked == {"tolist": 1}


def test_the_schedule_moves_after_each_epoch(tiny_data, tmp_path):
    do_train(cfg_of(tiny_data, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {1: 3e-6, 2: 3e-4, 3: 3e-4, 4: 3e-5}  # one epoch of warm-up from 1 %, a step after the third
    assert {line["epoch"] for line in lines} == expected.keys()
    assert [line["lr"] for line in lines] == pytest.approx([expected[line["epoch"]] for line in lines])


def test_a_checkpoint_is_not_taken_for_waiting_for_data(tiny_data, tmp_path, monkeypatch):
    """The clock moves in save_position alone: all time of a run is between steps."""
    now = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(*_):
        now[0] += 100.0

    monkeypatch.setattr(trainer, "save_position", slow)
    do_train(cfg_of(tiny_data, tmp_path, "SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]",
                    "SOLVER.CHECKPOINT_SECONDS", 1e-9, "SOLVER.LOG_PERIOD", 8))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["data_wait"] == 0.0
    assert line["images_per_second"] == pytest.approx(8 * 16 / 700, abs=0.05)
