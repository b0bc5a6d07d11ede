"""Mixed precision: which type is computed in, that a skipped step leaves everything, and what Apex is given."""
import contextlib
import sys
import types

import pytest
import torch
from torch import nn

from loss.center_loss import CenterLoss
from loss.make_loss import Criterion
from loss.triplet_loss import TripletLoss
from model.classifiers import Arcface
from utils import precision as module
from utils.precision import ApexPrecision, Precision, in_float32, make_precision, select_devices

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.1),
    "adam, fused": lambda params: torch.optim.Adam(params, lr=0.1, fused=True),
    "adamw, fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "sgd, fused": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
}


# ------------------------------------------------------------------ which type
@pytest.mark.parametrize(("asked", "has_bfloat16", "training", "computed"), [
    ({"fp16": False}, True, True, torch.float32),
    ({"fp16": True}, True, True, torch.bfloat16),
    ({"fp16": True}, False, True, torch.float32),
    ({"fp16": True}, True, False, torch.float32),
    ({"fp16": True, "dtype": "float16"}, True, True, torch.float32),
    ({"fp16": True, "dtype": "bfloat16"}, False, False, torch.bfloat16),
    ({"fp16": False, "dtype": "bfloat16"}, True, True, torch.float32),
])
def test_a_product_on_the_cpu_has_the_type_that_was_asked_for(monkeypatch, asked, has_bfloat16, training, computed):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has_bfloat16)
    precision = make_precision(CPU, **asked, training=training)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed
    assert str(precision) == str(computed).removeprefix("torch.")


def test_losses_margins_and_distances_are_float32_under_autocast():
    feat = torch.randn(4, 8).bfloat16()
    pids = torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TripletLoss()(feat, pids).dtype == torch.float32
        assert CenterLoss(2, 8)(feat, pids).dtype == torch.float32
        assert all(logits.dtype == torch.float32 for logits in Arcface(8, 2)(feat, pids))
        with in_float32(CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_the_processor_is_asked_for_bfloat16_by_name(monkeypatch, tmp_path):
    for text, expected in [("flags\t\t: fpu sse2 avx512_bf16 amx_tile\n", True), ("flags : fpu avx512f\n", False),
                           ("Features : asimd bf16\n", True), ("model name : bf16\nflags : fpu\n", False)]:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(module, "Path", lambda _: tmp_path / "cpuinfo")
        assert module.cpu_has_bfloat16.__wrapped__() is expected, text
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "nowhere")
    assert module.cpu_has_bfloat16.__wrapped__() is False


def test_several_devices_are_named_in_order_and_mistakes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_devices("auto", "1,0") == [torch.device("cuda", 1), torch.device("cuda", 0)]
    with pytest.raises(ValueError, match="there are 2 CUDA devices"):
        select_devices("cuda", "0,2")
    with pytest.raises(ValueError, match="names a device twice"):
        select_devices("cuda", "1,1")


# ------------------------------------------------------------------ skipping
def step_twice(kind, value, skip):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5))
    optimizer = kind([p])
    for gradient, wrong in ((1.0, False), (value, skip)):
        p.grad = torch.full((5,), gradient)
        Precision(CPU, fp16=False).step([optimizer], torch.tensor(wrong))
        if not wrong:
            kept = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
    return p, optimizer, kept


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_weights_and_state_to_the_bit(name):
    p, optimizer, (weights, state) = step_twice(OPTIMIZERS[name], float("nan"), True)
    assert torch.equal(p, weights)
    assert state
    for key, value in state.items():
        assert torch.equal(optimizer.state[p][key], value), key
    assert not torch.equal(step_twice(OPTIMIZERS[name], 1.0, False)[0], weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_first_step_that_is_skipped_does_no_harm_either(name):
    kind = OPTIMIZERS[name]
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, plain = kind([p]), kind([q])
    p.grad = torch.full((3,), float("inf"))
    Precision(CPU, fp16=False).step([optimizer], torch.tensor(True))
    assert torch.equal(p, torch.ones(3))
    for _ in range(2):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        Precision(CPU, fp16=False).step([optimizer], torch.tensor(False))
        plain.step()
    torch.testing.assert_close(p, q)


def test_with_a_scaled_loss_the_centres_and_the_model_get_true_gradients():
    """The centres' own gradient has neither the loss scale nor the weight of their loss in it."""
    def gradients(scaled):
        torch.manual_seed(0)
        layer, weight = nn.Linear(6, 4), 0.0005
        criterion = Criterion(None, None, nn.ModuleDict({"global": CenterLoss(3, 4)}), {"center": weight})
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1), torch.optim.SGD(criterion.parameters(), lr=0.5)]
        precision = Precision(CPU, fp16=False)
        if scaled:
            precision._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        feat = layer(torch.randn(5, 6))
        pids = torch.tensor([0, 1, 2, 0, 1])
        output = types.SimpleNamespace(logits=None, metric_feat=feat)
        for last in (False, True):  # two micro-batches
            total, _ = criterion({"global": output}, pids)
            precision.backward(total / 2, optimizers, last)
            output = types.SimpleNamespace(logits=None, metric_feat=layer(torch.randn(5, 6)))
        criterion.unweight_center_gradient()
        of_parameters = [p.grad.clone() for p in (*layer.parameters(), *criterion.parameters())]
        precision.step(optimizers, torch.tensor(False))
        return of_parameters, criterion.centers["global"].centers.detach().clone()

    (plain, centers), (scaled, scaled_centers) = gradients(False), gradients(True)
    for expected, gradient in zip(plain, scaled, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert plain[-1].abs().max() > 0.01  # of the order of a distance, not of 0.0005 of it
    torch.testing.assert_close(centers, scaled_centers)


def test_an_overflow_lowers_the_loss_scale_and_skips():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    precision = Precision(CPU, fp16=False)
    precision._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision.backward((p * torch.tensor([1.0, float("inf"), 1.0])).sum(), [optimizer])
    precision.step([optimizer], ~torch.isfinite(p.grad).all())
    assert torch.equal(p, torch.ones(3))
    assert precision.state_dict()["scale"] == 512.0
    other = Precision(CPU, fp16=False)
    other._scaler = torch.amp.GradScaler("cpu")
    other.load_state_dict(precision.state_dict())
    assert other.state_dict()["scale"] == 512.0


# ------------------------------------------------------------------ Apex
class StandIn:
    """What apex.amp is called for, and its habit of making an optimiser's next step a no-op after an overflow."""

    def __init__(self):
        self.calls, self.casting = [], True

    def initialize(self, model, optimizers, **options):
        self.calls.append(("initialize", options))
        for optimizer in optimizers:
            optimizer._amp_stash = types.SimpleNamespace(already_patched=False)
        return model, optimizers

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizers, delay_unscale):
        self.calls.append(("scale_loss", delay_unscale))
        yield loss * 8
        if delay_unscale:
            return
        for optimizer in optimizers:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            for gradient in gradients:
                gradient.div_(8)
            if not all(torch.isfinite(gradient).all() for gradient in gradients):
                self._patch(optimizer)

    def _patch(self, optimizer):
        step = optimizer.step

        def skip():
            self.calls.append(("skipped step",))
            optimizer.step, optimizer._amp_stash.already_patched = step, False
        optimizer.step, optimizer._amp_stash.already_patched = skip, True

    @contextlib.contextmanager
    def disable_casts(self):
        self.casting = False
        yield
        self.casting = True

    def state_dict(self):
        return {"loss_scaler0": {"loss_scale": 8.0}}

    def load_state_dict(self, state):
        self.calls.append(("load_state_dict", state))


@pytest.fixture
def apex(monkeypatch):
    amp = StandIn()
    package = types.ModuleType("apex")
    package.amp = amp
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setattr(module, "_apex_amp", None)
    yield amp
    module._apex_amp = None


def test_apex_gets_the_calls_that_the_original_made(apex):
    p = nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.SGD([p], lr=1.0)]
    precision = ApexPrecision(CPU, module._import_apex())
    precision.prepare(nn.Linear(1, 1), optimizers)
    assert apex.calls == [("initialize", {"opt_level": "O1", "verbosity": 0})]
    precision.backward((p * 2).sum() / 2, optimizers, last=False)
    precision.backward((p * 2).sum() / 2, optimizers)
    assert apex.calls[1:] == [("scale_loss", True), ("scale_loss", False)]
    assert precision.enabled
    precision.load_state_dict(precision.state_dict())
    assert apex.calls[-1] == ("load_state_dict", {"loss_scaler0": {"loss_scale": 8.0}})


def test_losses_switch_apex_casts_off(apex):
    seen = []

    class Recording(TripletLoss):
        def distances(self, dist, pids):
            seen.append(apex.casting)
            return super().distances(dist, pids)

    assert apex.casting
    Recording()(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
    assert seen == [True]  # not prepared: nothing is patched
    ApexPrecision(CPU, apex).prepare(nn.Linear(1, 1), [])
    Recording()(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
    assert seen == [True, False]
    assert apex.casting


def test_after_an_overflow_apex_takes_the_next_good_step(apex):
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizers = [torch.optim.SGD([p], lr=1.0), torch.optim.SGD([q], lr=1.0)]
    precision = ApexPrecision(CPU, apex)
    precision.prepare(nn.Linear(1, 1), optimizers)
    for factor in (float("inf"), 1.0):
        for optimizer in optimizers:
            optimizer.zero_grad()
        precision.backward((p * factor + q).sum(), optimizers)
        precision.step(optimizers, ~torch.isfinite(p.grad).all())
    assert p.item() == 0.0
    assert q.item() == 0.0  # its own gradient was fine, but the step was skipped as a whole
    assert apex.calls.count(("skipped step",)) == 1


@pytest.mark.parametrize(("package", "message"), [
    (None, "the package `apex` of the Python package index is another program"),
    ("without amp", "the package `apex` of the Python package index is another program"),
    ("other amp", "it is not NVIDIA Apex"),
])
def test_a_missing_and_another_apex_have_errors_of_their_own_that_name_torch(monkeypatch, package, message):
    apex = None if package is None else types.ModuleType("apex")
    if package == "other amp":
        apex.amp = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "apex", apex)
    with pytest.raises(ValueError, match=message) as error:
        make_precision(CUDA, True, "apex", training=True)
    assert "SOLVER.AMP_BACKEND torch" in str(error.value)


def test_apex_on_the_cpu_is_refused_and_not_asked_for_where_it_has_no_work(apex):
    with pytest.raises(ValueError, match="apex needs a CUDA device"):
        make_precision(CPU, True, "apex", training=True)
    assert type(make_precision(CPU, False, "apex", training=True)) is Precision
    assert type(make_precision(CPU, True, "apex")) is Precision  # a test computes with torch.amp


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_apex_itself_trains():
    pytest.importorskip("apex.amp", reason="NVIDIA Apex with apex.amp is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4)).cuda()
    model(torch.randn(2, 3, 8, 8, device="cuda"))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05)]
    precision = make_precision(CUDA, True, "apex", training=True)
    precision.prepare(model, optimizers)
    images, pids = torch.randn(16, 3, 8, 8, device="cuda"), torch.arange(16, device="cuda") % 4
    losses = []
    for _ in range(20):
        optimizers[0].zero_grad()
        loss = nn.functional.cross_entropy(model(images).float(), pids)
        precision.backward(loss, optimizers)
        precision.step(optimizers, ~torch.isfinite(loss))
        losses.append(loss.item())
    assert losses[-1] < losses[0]
