"""Schedules against the golden lrs, and which parameter gets which lr and decay."""
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from configs.defaults import get_cfg_defaults
from solver.lr_scheduler import WarmupCosineLR, WarmupMultiStepLR
from solver.make_optimizer import OPTIMIZERS, SCHEDULERS, make_optimizer, make_scheduler

SCHEDULE = json.loads((Path(__file__).parent / "golden" / "lr_schedule.json").read_text())
CASES = [(method, name) for method in ("linear", "constant") for name in SCHEDULE[method]]


class Tiny(nn.Module):
    """A model with the names that the rules look at."""

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.gap = nn.Module()
        self.gap.p = nn.Parameter(torch.tensor([3.0]))
        self.bottleneck = nn.BatchNorm1d(4)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(4, 5, bias=False)


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(5, 4))


def config(**keys):
    cfg = get_cfg_defaults()
    for key, value in keys.items():
        assert key in cfg.SOLVER, key
        cfg.SOLVER[key] = value
    return cfg


def rates(model, optimizer):
    """{parameter's name: (lr, weight decay)}."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def run(scheduler, optimizer, epochs):
    """The lr of each group in each of the epochs, as a trainer would see it."""
    out = []
    for _ in range(epochs):
        out.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(out)


def two_groups(lr=1.0):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr * f} for f in (1, 2)], lr=1)


@pytest.mark.parametrize(("method", "name"), CASES)
def test_multistep_lrs_are_the_golden_ones(method, name):
    base = float(name.split()[1])
    optimizer = two_groups(base)
    scheduler = WarmupMultiStepLR(
        optimizer, SCHEDULE["milestones"], SCHEDULE["gamma"], SCHEDULE["warmup_factor"], SCHEDULE["warmup_epochs"],
        method,
    )
    assert [group["initial_lr"] for group in optimizer.param_groups] == [base, 2 * base]
    lrs = run(scheduler, optimizer, SCHEDULE["epochs"])
    np.testing.assert_allclose(lrs[:, 0], SCHEDULE[method][name], rtol=1e-12)
    np.testing.assert_allclose(lrs[:, 1], 2 * np.array(SCHEDULE[method][name]), rtol=1e-12)


def test_cosine_goes_from_base_to_min_after_the_warm_up():
    optimizer = two_groups(0.01)
    lrs = run(WarmupCosineLR(optimizer, 30, min_factor=0.1, warmup_epochs=5), optimizer, 30)
    np.testing.assert_allclose(lrs[:, 1], 2 * lrs[:, 0])
    assert lrs[0, 0] == pytest.approx(0.01 * 0.01)
    assert lrs[5, 0] == pytest.approx(0.01)
    assert lrs[17, 0] == pytest.approx(0.01 * 0.55)
    assert lrs[29, 0] == pytest.approx(0.001)
    assert (np.diff(lrs[:6, 0]) > 0).all()
    assert (np.diff(lrs[5:, 0]) < 0).all()


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 5), (5, 5), (6, 5)])
def test_cosine_of_few_epochs_is_defined(epochs, warmup):
    optimizer = two_groups()
    lrs = run(WarmupCosineLR(optimizer, epochs, warmup_epochs=warmup), optimizer, epochs)
    assert np.isfinite(lrs).all()
    assert (lrs > 0).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_resumes_where_it_was(name):
    cfg = config(LR_SCHEDULER=name, MAX_EPOCHS=20, STEPS=[8, 15], WARMUP_EPOCHS=4, BASE_LR=0.1, MIN_LR=0.001)
    optimizer = two_groups()
    whole = run(make_scheduler(cfg, optimizer), optimizer, 20)
    for stop in (2, 4, 9):
        first = two_groups()
        scheduler = make_scheduler(cfg, first)
        run(scheduler, first, stop)
        buffer = io.BytesIO()
        torch.save({"optimizer": first.state_dict(), "scheduler": scheduler.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        second = two_groups()
        resumed = make_scheduler(cfg, second)
        second.load_state_dict(saved["optimizer"])
        resumed.load_state_dict(saved["scheduler"])
        assert np.array_equal(run(resumed, second, 20 - stop), whole[stop:])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_saved_before_it_was_a_lambda_lr_goes_on(name):
    """Such a state had the settings as attributes, and no `lr_lambdas`."""
    cfg = config(LR_SCHEDULER=name, MAX_EPOCHS=20, STEPS=[8, 15], WARMUP_EPOCHS=4, BASE_LR=0.1, MIN_LR=0.001)
    optimizer, resumed = two_groups(), two_groups()
    scheduler = make_scheduler(cfg, optimizer)
    run(scheduler, optimizer, 9)
    settings = {"warmup_factor": 0.01, "warmup_epochs": 4, "warmup_method": "linear", "milestones": [8, 15],
                "gamma": 0.1, "max_epochs": 20, "min_factor": 0.01}
    state = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    other = make_scheduler(cfg, resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict({**state, **settings})
    assert np.array_equal(run(other, resumed, 11), run(scheduler, optimizer, 11))


def test_parameters_get_the_lr_and_decay_of_their_kind():
    model = Tiny()
    cfg = config(
        BASE_LR=0.1, BIAS_LR_FACTOR=2.0, BACKBONE_LR_FACTOR=0.5, LARGE_FC_LR=True, WEIGHT_DECAY=0.01,
        WEIGHT_DECAY_BIAS=0.02,
    )
    optimizer, center = make_optimizer(cfg, model, nn.Module())
    assert center is None
    assert rates(model, optimizer) == {
        "base.0.weight": (0.05, 0.01),
        "base.0.bias": (0.1, 0.02),
        "base.1.weight": (0.05, 0.01),
        "base.1.bias": (0.1, 0.02),
        "gap.p": (1.0, 0.0),
        "bottleneck.weight": (0.1, 0.01),
        "classifier.weight": (0.2, 0.01),
    }


def test_equal_rates_share_one_group_and_frozen_parameters_have_none():
    model = Tiny()
    model.base.requires_grad_(False)
    del model.gap
    optimizer, _ = make_optimizer(config(), model, nn.Module())
    assert len(optimizer.param_groups) == 1
    assert set(rates(model, optimizer)) == {"bottleneck.weight", "classifier.weight"}


def test_parallel_wrapper_does_not_change_the_rules():
    model = Tiny()
    wrapped = nn.Module()
    wrapped.module = model
    cfg = config(BACKBONE_LR_FACTOR=0.5, LARGE_FC_LR=True)
    assert rates(model, make_optimizer(cfg, wrapped, nn.Module())[0]) == rates(
        model, make_optimizer(cfg, model, nn.Module())[0]
    )


def test_a_model_that_is_all_frozen_is_refused():
    with pytest.raises(ValueError, match="no parameter is left to train"):
        make_optimizer(config(), Tiny().requires_grad_(False), nn.Module())


def test_centers_have_their_own_sgd():
    criterion = Centers()
    _, center = make_optimizer(config(CENTER_LR=0.5), Tiny(), criterion)
    criterion.centers.grad = torch.ones(5, 4)
    center.step()
    assert torch.equal(criterion.centers, torch.full((5, 4), -0.5))


def test_unknown_optimizer_lists_the_choices():
    with pytest.raises(ValueError, match=r"OPTIMIZER_NAME='Lion'.*choices: SGD, Adam, AdamW, Ranger"):
        make_optimizer(config(OPTIMIZER_NAME="Lion"), Tiny(), nn.Module())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_and_resumes_exactly(name):
    cfg = config(OPTIMIZER_NAME=name, BASE_LR=0.01, NESTEROV=True, GRADIENT_CENTRALIZATION=True)
    torch.manual_seed(0)
    model, other = Tiny(), Tiny()
    grads = [[torch.randn_like(p) for p in model.parameters()] for _ in range(8)]

    def step(net, optimizer, number):
        for p, grad in zip(net.parameters(), grads[number], strict=True):
            p.grad = grad.clone() if p.requires_grad else None
        optimizer.step()

    optimizer, _ = make_optimizer(cfg, model, nn.Module())
    start = model.classifier.weight.detach().clone()
    for number in range(4):
        step(model, optimizer, number)
    assert not torch.equal(model.classifier.weight, start)
    resumed, _ = make_optimizer(cfg, other, nn.Module())
    other.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for number in range(4, 8):
        step(model, optimizer, number)
        step(other, resumed, number)
    for (key, value), twin in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, twin), key


def test_config_options_reach_the_optimizer():
    sgd, _ = make_optimizer(config(OPTIMIZER_NAME="SGD", NESTEROV=True, MOMENTUM=0.8), Tiny(), nn.Module())
    assert sgd.param_groups[0]["nesterov"] is True
    assert sgd.param_groups[0]["momentum"] == 0.8
    ranger, _ = make_optimizer(
        config(OPTIMIZER_NAME="Ranger", GRADIENT_CENTRALIZATION=True), Tiny(), nn.Module()
    )
    assert ranger.param_groups[0]["centralize"] is True
    assert ranger.param_groups[0]["betas"] == (0.95, 0.999)
