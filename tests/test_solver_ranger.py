"""Ranger against its golden trajectories, and its state."""
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from solver.ranger import Ranger

GOLDEN = Path(__file__).parent / "golden"
PATHS = np.load(GOLDEN / "ranger.npz")
HYPER = json.loads((GOLDEN / "ranger.json").read_text())["hyper"]
KEYS = ("weight", "bias")


def golden_problem():
    params = {key: torch.nn.Parameter(torch.from_numpy(PATHS[f"{key}/p0"].copy())) for key in KEYS}
    optimizer = Ranger([{"params": [params[key]], **HYPER["groups"][key]} for key in KEYS])
    return params, optimizer


def set_gradients(params):
    for key, p in params.items():
        target, curv = (torch.from_numpy(PATHS[f"{key}/{name}"]) for name in ("target", "curv"))
        p.grad = curv * (p.detach() - target)


def steps(params, optimizer, n):
    for _ in range(n):
        set_gradients(params)
        optimizer.step()


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant_lr", "scheduled_lr"])
def test_trajectory_is_the_golden_one(scheduled):
    params, optimizer = golden_problem()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(HYPER["steps"] + 1):
        for key in KEYS:
            want = PATHS[f"{key}/ranger_lr_schedule" if scheduled else f"{key}/ranger"][t]
            np.testing.assert_allclose(params[key].detach().numpy(), want, rtol=0, atol=2e-6)
        if t < HYPER["steps"]:
            factor = PATHS["lr_multiplier"][t] if scheduled else 1.0
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor
            steps(params, optimizer, 1)


@pytest.mark.parametrize("before", [1, 4, 6, 11])
def test_state_round_trip_is_exact(before):
    params, optimizer = golden_problem()
    steps(params, optimizer, before)
    buffer = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, buffer)
    steps(params, optimizer, 15)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed, other = golden_problem()
    with torch.no_grad():
        for key in KEYS:
            resumed[key].copy_(saved["params"][key])
    other.load_state_dict(saved["optimizer"])
    steps(resumed, other, 15)
    for key in KEYS:
        assert torch.equal(resumed[key], params[key])
        for name, value in optimizer.state[params[key]].items():
            assert torch.equal(other.state[resumed[key]][name], value), name


def test_weight_decay_of_the_groups_survives_a_step():
    params, optimizer = golden_problem()
    steps(params, optimizer, 2)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [HYPER["groups"][k]["weight_decay"] for k in KEYS]


def test_a_state_saved_when_the_decay_was_ours_goes_on_with_radams():
    params, optimizer = golden_problem()
    steps(params, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["decoupled_weight_decay"] = False  # RAdam's default, while the decay was done outside of it
    copied, resumed = golden_problem()
    with torch.no_grad():
        for key in KEYS:
            copied[key].copy_(params[key])
    resumed.load_state_dict(state)
    steps(params, optimizer, 3)
    steps(copied, resumed, 3)
    assert all(torch.equal(copied[key], params[key]) for key in KEYS)


def test_weights_without_gradient_stay():
    params, optimizer = golden_problem()
    set_gradients(params)
    params["weight"].grad = None
    optimizer.step()
    np.testing.assert_array_equal(params["weight"].detach().numpy(), PATHS["weight/p0"])
    assert not optimizer.state[params["weight"]]


def test_closure_is_called_once_and_its_loss_returned():
    p = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = Ranger([p], lr=0.1)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    assert len(calls) == 1
    assert p.detach().abs().sum() < 3.0


def test_gradient_centralisation_takes_the_mean_off_weights_only():
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(4, 3, 2, 2)), torch.nn.Parameter(torch.randn(4))
    optimizer = Ranger([weight, bias], centralize=True)
    weight.grad, bias.grad = torch.randn(4, 3, 2, 2), torch.randn(4)
    want, bias_grad = weight.grad - weight.grad.mean((1, 2, 3), keepdim=True), bias.grad.clone()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], 0.05 * want)
    torch.testing.assert_close(optimizer.state[bias]["exp_avg"], 0.05 * bias_grad)


def test_slow_weights_start_at_the_initial_ones_and_pull_back_every_sixth_step():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Ranger([p], lr=0.1)
    for step in range(1, 7):
        p.grad = torch.ones(1)
        before = p.detach().clone()
        optimizer.step()
        if step < 6:
            assert p < before
            assert optimizer.state[p]["slow"].item() == 1.0
    assert p > before
    assert torch.equal(optimizer.state[p]["slow"], p.detach())


def test_works_under_a_gradient_scaler():
    params, optimizer = golden_problem()
    plain, other = golden_problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(7):
        set_gradients(params)
        set_gradients(plain)
        scaler.scale(torch.zeros(()))  # starts the scaler
        for p in params.values():
            p.grad.mul_(4.0)
        scaler.step(optimizer)
        scaler.update()
        other.step()
    for key in KEYS:
        torch.testing.assert_close(params[key], plain[key])


def test_copies_and_takes_more_groups():
    params, optimizer = golden_problem()
    steps(params, optimizer, 2)
    copied = copy.deepcopy(optimizer)
    copied.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5})
    assert copied.param_groups[-1]["k"] == 6
    assert copied.param_groups[-1]["alpha"] == 0.5


@pytest.mark.parametrize("options", [{"k": 0}, {"alpha": 1.5}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="Ranger"):
        Ranger([torch.nn.Parameter(torch.zeros(1))], **options)


def test_the_step_in_one_pass_is_radams_own():
    """In every phase: before the rectification, after it, at a lookahead; for weights of any memory layout."""
    def trained(fused):
        torch.manual_seed(0)
        layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 1), torch.nn.Linear(5, 3)])
        layers[0].to(memory_format=torch.channels_last)
        optimizer = Ranger([{"params": layers[:2].parameters(), "weight_decay": 0.01},
                            {"params": layers[2].parameters(), "lr": 0.002}], lr=0.01, fused=fused)
        for step in range(20):
            for number, p in enumerate(layers.parameters()):
                late = step < 4 and number == 2  # a parameter that is behind the others
                p.grad = None if late else torch.randn_like(p)
            optimizer.step()
        return [p.detach() for p in layers.parameters()]

    for fast, slow in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
