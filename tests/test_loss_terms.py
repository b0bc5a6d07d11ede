"""Each loss against golden values and against a slow oracle written from its formula."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from loss.center_loss import CenterLoss
from loss.softmax_loss import IDLoss
from loss.triplet_loss import TripletLoss, WeightedTripletLoss, euclidean_dist, self_distances

GOLDEN = Path(__file__).parent / "golden"
LOSSES = np.load(GOLDEN / "losses.npz")
NOTES = json.loads((GOLDEN / "losses.json").read_text())
TRIPLETS = {
    "triplet_hard_margin0.3": (TripletLoss(0.3), 1),
    "triplet_hard_soft": (TripletLoss(), 1),
    "triplet_hard_margin0.3_normalized": (TripletLoss(0.3), 1),
    "triplet_hard_soft_normalized": (TripletLoss(), 1),
    "triplet_weighted_soft": (WeightedTripletLoss(), 1),
    "triplet_weighted_soft_normalized": (WeightedTripletLoss(), 1),
    "triplet_weighted_margin0.3_corrected": (WeightedTripletLoss(0.3), 1),
    "triplet_weighted_soft_x6": (WeightedTripletLoss(), 6),
}
KINDS = pytest.mark.parametrize("kind", [TripletLoss, WeightedTripletLoss])
MARGINS = pytest.mark.parametrize("margin", [None, 0.3])


def golden(key):
    return torch.from_numpy(LOSSES[key])


def assert_gradient(got, want):
    """Within 1e-4 of the golden gradient's maximum."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def oracle(feat, pids, kind, margin):
    """The triplet loss anchor by anchor, in float64; anchors without negatives add nothing."""
    feat, pids = np.asarray(feat, dtype=np.float64), np.asarray(pids)
    total = 0.0
    for i in range(len(feat)):
        dist = np.sqrt(((feat - feat[i]) ** 2).sum(1))
        near, far = dist[pids != pids[i]], dist[pids == pids[i]]
        if len(near) == 0:
            continue
        if kind is TripletLoss:
            gap = far.max() - near.min()
        else:
            w_far, w_near = np.exp(far - far.max()), np.exp(near.min() - near)
            gap = (w_far * far).sum() / w_far.sum() - (w_near * near).sum() / w_near.sum()
        total += np.logaddexp(0, gap) if margin is None else max(0.0, gap + margin)
    return total / len(feat)


@pytest.mark.parametrize("name", TRIPLETS)
def test_triplet_values_and_gradients_are_the_golden_ones(name):
    loss, factor = TRIPLETS[name]
    feat = (factor * golden("in/feat")).requires_grad_()
    pids = golden("in/labels")
    scaled = torch.nn.functional.normalize(feat) if "normalized" in name else feat
    value = loss(scaled, pids)
    torch.testing.assert_close(value, golden(f"{name}/value"), rtol=1e-5, atol=0)
    value.backward()
    assert_gradient(feat.grad, golden(f"{name}/grad_feat"))
    ap, an = loss.distances(self_distances(scaled.detach()), pids)
    kind = "dist" if "hard" in name else "weighted"
    torch.testing.assert_close(ap, golden(f"{name}/{kind}_ap"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(an, golden(f"{name}/{kind}_an"), rtol=1e-5, atol=1e-6)


def test_weighted_triplet_is_right_and_finite_at_twelve_times_the_feature():
    feat = (12 * golden("in/feat")).requires_grad_()
    value = WeightedTripletLoss()(feat, golden("in/labels"))
    assert value.item() == pytest.approx(NOTES["exact_weighted_soft_x12"], rel=1e-5)
    value.backward()
    assert torch.isfinite(feat.grad).all()


@MARGINS
@KINDS
def test_unequal_numbers_of_images_agree_with_the_oracle(kind, margin):
    torch.manual_seed(0)
    feat, pids = torch.randn(11, 6), torch.tensor([3, 3, 3, 3, 0, 0, 7, 9, 9, 9, 3])
    value = kind(margin)(feat, pids)
    assert value.item() == pytest.approx(oracle(feat, pids, kind, margin), rel=1e-5)


@MARGINS
@KINDS
def test_batch_of_one_identity_adds_nothing(kind, margin):
    feat = torch.randn(4, 6).requires_grad_()
    value = kind(margin)(feat, torch.full((4,), 5))
    value.backward()
    assert value.item() == 0
    assert torch.equal(feat.grad, torch.zeros(4, 6))


@MARGINS
@KINDS
def test_equal_images_have_finite_gradients(kind, margin):
    feat = torch.ones(4, 6).requires_grad_()
    value = kind(margin)(feat, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2) if margin is None else 0.3, rel=1e-5)
    assert torch.isfinite(feat.grad).all()


@KINDS
def test_triplet_computes_in_float32_under_autocast(kind):
    feat, pids = golden("in/feat"), golden("in/labels")
    want = kind()(feat, pids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = kind()(feat, pids)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_cross_entropy_is_the_golden_one(epsilon):
    logits = golden("in/logits").requires_grad_()
    value = IDLoss(epsilon)(logits, golden("in/labels"))
    torch.testing.assert_close(value, golden(f"ce_smooth{epsilon}/value"), rtol=1e-5, atol=0)
    value.backward()
    assert_gradient(logits.grad, golden(f"ce_smooth{epsilon}/grad_logits"))


def test_center_loss_is_the_golden_one():
    feat = golden("in/feat").requires_grad_()
    loss = CenterLoss(16, 64)
    loss.load_state_dict({"centers": golden("in/centers")})
    value = loss(feat, golden("in/labels"))
    torch.testing.assert_close(value, golden("center/value"), rtol=1e-5, atol=0)
    value.backward()
    assert_gradient(feat.grad, golden("center/grad_feat"))
    assert_gradient(loss.centers.grad, golden("center/grad_centers"))


def test_euclidean_distance_is_the_golden_one_and_never_zero():
    feat = golden("in/feat")
    dist = euclidean_dist(feat, feat)
    want = torch.cdist(feat.double(), feat.double())
    off_diagonal = ~torch.eye(len(feat), dtype=torch.bool)
    torch.testing.assert_close(dist[off_diagonal].double(), want[off_diagonal], rtol=1e-5, atol=0)
    assert dist.min() >= 0.99e-6
