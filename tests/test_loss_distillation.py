"""Relations and logits of a teacher against slow oracles, written from the papers' equations."""
import math

import numpy as np
import pytest
import torch
from conftest import model_config

from loss.distillation import Targets, logit_loss, relation_losses
from loss.make_loss import RKD_ANGLE, RKD_DISTANCE, make_loss
from model.classifiers import CLASSIFIERS
from model.heads import HeadOutput


def huber(x, y):
    """Eq. 5 of Park et al., 2019."""
    return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def distance_oracle(student, teacher):
    """Eq. 3, 4 and 7: pairs of distinct pictures, distances over their mean; float64, pair by pair."""
    potentials = []
    for feats in (student, teacher):
        pairs = {(i, j): math.dist(feats[i], feats[j]) for i in range(len(feats)) for j in range(len(feats)) if i != j}
        mean = sum(pairs.values()) / len(pairs)
        potentials.append({pair: value / mean for pair, value in pairs.items()})
    return np.mean([huber(potentials[0][pair], potentials[1][pair]) for pair in potentials[0]])


def angle_oracle(student, teacher):
    """Eq. 6 and 8: the cosine at j of every three distinct pictures i, j, k."""
    def cosine(feats, i, j, k):
        a, b = feats[i] - feats[j], feats[k] - feats[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    count = range(len(student))
    return np.mean([huber(cosine(student, i, j, k), cosine(teacher, i, j, k))
                    for i in count for j in count for k in count if len({i, j, k}) == 3])


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_relations_are_those_of_the_paper(offset):
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(7, 5)) + offset, random.normal(size=(7, 9)) * 30
    student[1] = student[0] + 1e-3  # one pair is near
    distance, angle = relation_losses(torch.tensor(student), torch.tensor(teacher))
    assert distance.item() == pytest.approx(distance_oracle(student, teacher), rel=1e-5)
    assert angle.item() == pytest.approx(angle_oracle(student, teacher), rel=1e-5)


def test_features_that_are_moved_turned_and_scaled_have_the_same_relations():
    torch.manual_seed(0)
    feat = torch.randn(8, 6)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    for loss in relation_losses(feat @ turn * 7 + 3, feat):
        assert loss.item() < 1e-10


def test_the_gradient_is_that_of_the_difference_quotient_and_finite_with_equal_pictures():
    torch.manual_seed(0)
    feat, teacher = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    total = sum(relation_losses(feat, teacher))
    total.backward()
    step = torch.zeros_like(feat)
    step[2, 1] = 1e-2
    with torch.no_grad():
        slope = (sum(relation_losses(feat + step, teacher)) - sum(relation_losses(feat - step, teacher))) / 2e-2
    assert feat.grad[2, 1].item() == pytest.approx(slope.item(), rel=1e-2)
    for rows in ([0, 0, 1, 2], [0, 0, 0, 0], [0, 1]):
        same = torch.randn(3, 4)[rows].requires_grad_()
        losses = relation_losses(same, torch.randn(len(rows), 4))
        sum(losses).backward()
        assert torch.isfinite(torch.stack(losses)).all()
        assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_logits_are_hintons(temperature):
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(2, 6, 5)) * 3
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (teacher, student))
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    loss = logit_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("with_logits", [True, False])
def test_the_terms_of_a_teacher_stand_beside_the_others_with_the_papers_factors(with_logits):
    torch.manual_seed(0)
    cfg = model_config(SOLVER__DISTILL_WEIGHT=0.5, SOLVER__DISTILL_TEMPERATURE=2.0)
    criterion, pids = make_loss(cfg, 3, {"global": 4}), torch.tensor([0, 0, 1, 1])
    outputs = {"global": HeadOutput(torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 4))}
    targets = Targets(torch.randn(4, 6), torch.randn(4, 3) if with_logits else None)
    (plain, terms), (total, more) = criterion(outputs, pids), criterion(outputs, pids, targets=targets)
    assert set(more) - set(terms) == {"rkd_distance", "rkd_angle"} | ({"kd"} if with_logits else set())
    added = RKD_DISTANCE * more["rkd_distance"] + RKD_ANGLE * more["rkd_angle"] + more.get("kd", 0)
    assert (total - plain).item() == pytest.approx(0.5 * added.item(), rel=1e-4)
    if with_logits:
        expected = logit_loss(outputs["global"].plain_logits, targets.logits, 2.0)
        assert more["kd"].item() == expected.item()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_plain_logits_have_a_gradient_where_a_teacher_asks_for_it(name):
    torch.manual_seed(0)
    classifier = CLASSIFIERS[name](4, 3)
    feat = torch.randn(2, 4)
    detached = classifier(feat, torch.tensor([0, 1]))[1]
    classifier.plain_gradient = True
    plain = classifier(feat, torch.tensor([0, 1]))[1]
    assert torch.equal(plain, detached)
    assert (plain.requires_grad, detached.requires_grad) == (True, False)
