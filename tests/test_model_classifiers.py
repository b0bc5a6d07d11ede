"""Pooling, neck and classifiers: golden values, hard cases and precision."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.classifiers import CLASSIFIERS, Arcface, CircleLoss, Cosface
from model.heads import BNNeck
from model.pooling import POOLINGS, WITH_TOKEN, AvgPool, GeM

LOSSES = np.load(Path(__file__).parent / "golden" / "losses.npz")
ARC = {"scale": 30.0, "margin": 0.4}
GOLDEN = {
    "arcface_s30_m0.4": (Arcface, ARC),
    "arcface_s30_m0.4_edge": (Arcface, ARC),
    "cosface_s30_m0.4": (Cosface, ARC),
    "cosface_s30_m0.4_edge": (Cosface, ARC),
    "amsoftmax_s30_m0.4": (CLASSIFIERS["amsoftmax"], ARC),
    "circle_s256_m0.25": (CircleLoss, {"scale": 256.0, "margin": 0.25}),
    "circle_s64_m0.25": (CircleLoss, {"scale": 64.0, "margin": 0.25}),
    "circle_s30_m0.4": (CircleLoss, ARC),
}


def golden(key):
    return torch.from_numpy(LOSSES[key])


def assert_gradient(got, want):
    """Within 1e-4 of the golden gradient's maximum."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def build(kind, num_class=5, feat_dim=8, **options):
    torch.manual_seed(0)
    return kind(feat_dim, num_class, **options)


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_loss_and_gradients_are_the_golden_ones(name):
    kind, options = GOLDEN[name]
    edge = "edge_" if name.endswith("_edge") else ""
    feat, pids = golden(f"in/{edge}feat").requires_grad_(), golden(f"in/{edge}labels")
    weight = golden("in/weight")
    classifier = kind(weight.shape[1], weight.shape[0], **options)
    classifier.load_state_dict({"weight": weight})
    logits, plain = classifier(feat, pids)
    torch.testing.assert_close(logits, golden(f"{name}/logits"), rtol=0, atol=1e-3)
    loss = F.cross_entropy(logits, pids)
    torch.testing.assert_close(loss, golden(f"{name}/value"), rtol=1e-5, atol=0)
    loss.backward()
    assert_gradient(feat.grad, golden(f"{name}/grad_feat"))
    assert_gradient(classifier.weight.grad, golden(f"{name}/grad_weight"))
    cosine = F.normalize(feat.detach()) @ F.normalize(weight).t()
    torch.testing.assert_close(plain, options["scale"] * cosine)


def test_all_golden_heads_are_compared():
    heads = {key.split("/")[0] for key in LOSSES.files if key.endswith("/grad_weight")}
    assert {head for head in heads if "_easy" not in head} == set(GOLDEN)  # no config asks for ArcFace's easy margin


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_has_a_weight_and_detached_plain_logits(name):
    classifier = build(CLASSIFIERS[name], scale=30.0, margin=0.4)
    assert {key: tuple(v.shape) for key, v in classifier.state_dict().items()} == {"weight": (5, 8)}
    logits, plain = classifier(torch.randn(3, 8), torch.tensor([0, 4, 2]))
    assert logits.shape == plain.shape == (3, 5)
    assert logits.requires_grad
    assert not plain.requires_grad


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "softmax"])
def test_margin_makes_the_true_class_harder(name):
    classifier = build(CLASSIFIERS[name], scale=30.0, margin=0.4)
    pids = torch.tensor([0, 4, 2])
    logits, plain = classifier(torch.randn(3, 8), pids)
    assert (F.cross_entropy(logits, pids, reduction="none") > F.cross_entropy(plain, pids, reduction="none")).all()


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["same", "opposite"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parallel_feature_has_finite_logits_and_gradients(name, sign):
    classifier = build(CLASSIFIERS[name], scale=30.0, margin=0.4)
    pids = torch.arange(5)
    feat = (sign * 3 * classifier.weight.detach()).requires_grad_()
    logits, _ = classifier(feat, pids)
    F.cross_entropy(logits, pids).backward()
    for tensor in (logits, feat.grad, classifier.weight.grad):
        assert torch.isfinite(tensor).all()


def test_arcface_at_zero_angle_is_cos_of_the_margin():
    classifier = Arcface(4, 2, scale=30.0, margin=0.4)
    classifier.load_state_dict({"weight": torch.eye(4)[:2]})
    logits, plain = classifier(torch.eye(4)[:1] * 7, torch.tensor([0]))
    assert logits[0, 0].item() == pytest.approx(30 * math.cos(0.4), abs=2e-3)
    assert plain[0, 0].item() == pytest.approx(30.0)


def test_linear_weights_start_small():
    assert build(CLASSIFIERS["softmax"], 400, 500).weight.std().item() == pytest.approx(0.001, rel=0.02)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_compute_in_float32_under_autocast(name):
    classifier = build(CLASSIFIERS[name], scale=30.0, margin=0.4)
    feat, pids = torch.randn(3, 8), torch.tensor([0, 4, 2])
    want, _ = classifier(feat, pids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, plain = classifier(feat, pids)
    assert got.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_gem_is_the_generalised_mean():
    x = torch.rand(3, 5, 4, 2) + 0.1
    want = np.mean(x.double().numpy() ** 2.5, axis=(2, 3)) ** (1 / 2.5)
    np.testing.assert_allclose(GeM(2.5)(x).numpy(), want, rtol=1e-6)
    torch.testing.assert_close(GeM(1.0)(x), AvgPool()(x))


def test_gem_of_zeros_has_a_gradient_that_is_finite():
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    out = GeM(3.0)(x)
    out.sum().backward()
    torch.testing.assert_close(out, torch.full((1, 2), 1e-6))
    assert torch.isfinite(x.grad).all()


def test_gem_exponent_is_a_parameter_only_when_learned():
    assert list(GeM(3.0).state_dict()) == []
    learned = GeM(3.0, learn=True)
    assert {key: v.tolist() for key, v in learned.state_dict().items()} == {"p": [3.0]}
    learned(torch.rand(2, 3, 4, 4)).sum().backward()
    assert learned.p.grad.abs() > 0


@pytest.mark.parametrize("method", POOLINGS)
def test_pooling_keeps_a_batch_of_one_two_dimensional(method):
    token = [torch.rand(1, 7)] * (method in WITH_TOKEN)
    assert POOLINGS[method](3.0, False)(torch.rand(1, 7, 2, 2), *token).shape == (1, 7)


@pytest.mark.parametrize("method", POOLINGS)
def test_pooling_of_float16_is_float32(method):
    x = torch.rand(2, 3, 4, 2) * 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        token = [torch.rand(len(x), x.shape[1])] * (method in WITH_TOKEN)
        out = POOLINGS[method](3.0, True)(x.half(), *token)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, POOLINGS[method](3.0, True)(x, *token), rtol=1e-3, atol=1e-6)


def test_bnneck_bias_is_fixed_at_zero():
    neck = BNNeck(4)
    assert not neck.bias.requires_grad
    assert neck.weight.requires_grad
    neck(torch.randn(5, 4)).square().sum().backward()
    assert neck.bias.grad is None
    assert neck.bias.abs().sum() == 0


@pytest.mark.parametrize("kind", dict.fromkeys(CLASSIFIERS.values()), ids=lambda kind: kind.__name__)
def test_a_hundred_thousand_classes_stay_finite_at_parallel_and_opposite_features(kind):
    classifier = build(kind, num_class=100_000, feat_dim=16, scale=64.0, margin=0.35)
    feat = torch.cat([classifier.weight[:2].detach() * 5, -classifier.weight[2:4].detach()]).requires_grad_()
    pids = torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = classifier(feat, pids)
        loss = F.cross_entropy(logits, pids)
    loss.backward()
    assert logits.dtype == torch.float32
    assert loss.isfinite()
    assert feat.grad.isfinite().all()
    assert classifier.weight.grad.isfinite().all()
