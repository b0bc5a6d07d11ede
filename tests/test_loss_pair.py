"""Pairwise losses against sums written out pair by pair."""
import math

import pytest
import torch
from torch.nn import functional as F

from loss.pair_loss import PairCircle, PairCosface

PIDS = torch.tensor([0, 0, 0, 1, 1, 2])


def written_out(kind, feat, pids, scale, m):
    feat, total = F.normalize(feat), 0.0
    for i in range(len(feat)):
        positives = negatives = 0.0
        for j in range(len(feat)):
            s = (feat[i] @ feat[j]).item()
            if i == j:
                continue
            if pids[i] == pids[j]:
                weight = 1.0 if kind is PairCosface else max(1 + m - s, 0)
                positives += math.exp(-scale * weight * (s if kind is PairCosface else s - (1 - m)))
            else:
                weight = 1.0 if kind is PairCosface else max(s + m, 0)
                negatives += math.exp(scale * weight * (s + m if kind is PairCosface else s - m))
        total += math.log1p(positives * negatives)
    return total / len(feat)


@pytest.mark.parametrize("kind", [PairCosface, PairCircle])
def test_value_is_the_sum_over_pairs(kind):
    torch.manual_seed(0)
    feat = torch.randn(6, 5)
    want = written_out(kind, feat.double(), PIDS, 8.0, 0.25)
    assert kind(8.0, 0.25)(feat, PIDS).item() == pytest.approx(want, rel=1e-5)


def test_the_factors_of_circle_carry_no_gradient():
    torch.manual_seed(0)
    feat = torch.randn(6, 5, dtype=torch.float64).float().requires_grad_()
    PairCircle(4.0, 0.25)(feat, PIDS).backward()
    fixed = feat.detach().clone().requires_grad_()
    s = F.normalize(fixed) @ F.normalize(fixed).t()
    d = s.detach()
    same = PIDS[:, None] == PIDS[None, :]
    p = (-4 * (1.25 - d).clamp(min=0) * (s - 0.75)).masked_fill(~same | torch.eye(6, dtype=torch.bool), -torch.inf)
    n = (4 * (d + 0.25).clamp(min=0) * (s - 0.25)).masked_fill(same, -torch.inf)
    rows = [0, 1, 2, 3, 4]  # the last image has no positive: its row is empty
    F.softplus(p[rows].logsumexp(1) + n[rows].logsumexp(1)).sum().div(6).backward()
    torch.testing.assert_close(feat.grad, fixed.grad)


@pytest.mark.parametrize("kind", [PairCosface, PairCircle])
@pytest.mark.parametrize("pids", [torch.zeros(4, dtype=torch.long), torch.arange(4)])
def test_a_batch_without_positives_or_negatives_gives_zero_and_no_gradient(kind, pids):
    feat = torch.randn(4, 3, requires_grad=True)
    loss = kind(64.0, 0.35)(feat, pids)
    loss.backward()
    assert loss.item() == 0
    assert not feat.grad.any()


@pytest.mark.parametrize("kind", [PairCosface, PairCircle])
def test_equal_and_opposite_features_have_finite_gradients_in_float32(kind):
    base = torch.randn(1, 8)
    feat = torch.cat([base, base, -base, -base, 1e-8 * base, 1e8 * base]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kind(64.0, 0.35)(feat, PIDS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert feat.grad.isfinite().all()
