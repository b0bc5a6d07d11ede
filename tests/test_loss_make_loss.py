"""The weighted sum: which terms it has, their weights, and the centres' own gradient."""
from typing import NamedTuple

import pytest
import torch

from configs.defaults import get_cfg_defaults
from loss.make_loss import METRIC_LOSSES, make_loss

FEAT_DIMS = {"global": 6}
PIDS = torch.tensor([0, 0, 1, 1, 2, 2])


class Output(NamedTuple):
    logits: torch.Tensor
    plain_logits: torch.Tensor
    metric_feat: torch.Tensor


def config(**keys):
    cfg = get_cfg_defaults()
    for key, value in {"DATALOADER__SAMPLER": "softmax_triplet", **keys}.items():
        node, name = key.split("__")
        assert name in cfg[node], key
        cfg[node][name] = value
    return cfg


def outputs(branches=("global",), dtype=torch.float32):
    torch.manual_seed(0)
    out = {}
    for branch in branches:
        logits, feat = torch.randn(6, 3, dtype=dtype), torch.randn(6, 6, dtype=dtype)
        out[branch] = Output(logits.requires_grad_(), logits.detach(), feat.requires_grad_())
    return out


@pytest.mark.parametrize(
    ("sampler", "metric", "terms"),
    [
        ("softmax", "triplet", {"id"}),
        ("softmax", "triplet_center", {"id"}),
        ("triplet", "triplet", {"triplet"}),
        ("triplet", "triplet_center", {"triplet", "center"}),
        ("softmax_triplet", "triplet", {"id", "triplet"}),
        ("softmax_triplet", "center", {"id", "center"}),
        ("softmax_triplet", "triplet_center", {"id", "triplet", "center"}),
    ],
)
def test_sampler_and_metric_loss_decide_the_terms(sampler, metric, terms):
    cfg = config(DATALOADER__SAMPLER=sampler, MODEL__METRIC_LOSS_TYPE=metric)
    criterion = make_loss(cfg, 3, FEAT_DIMS)
    total, got = criterion(outputs(), PIDS)
    assert set(got) == terms
    assert total.shape == ()
    assert total.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in got.values())
    assert len(list(criterion.parameters())) == ("center" in terms)


@pytest.mark.parametrize("metric", METRIC_LOSSES)
def test_total_is_the_weighted_sum_of_the_terms(metric):
    weights = {"MODEL__ID_LOSS_WEIGHT": 0.3, "MODEL__TRIPLET_LOSS_WEIGHT": 0.9, "SOLVER__CENTER_LOSS_WEIGHT": 0.01,
               "MODEL__PAIR_LOSS_WEIGHT": 0.7}
    criterion = make_loss(config(**weights, MODEL__METRIC_LOSS_TYPE=metric), 3, FEAT_DIMS)
    total, terms = criterion(outputs(), PIDS)
    factors = {"id": 0.3, "triplet": 0.9, "center": 0.01, "pair": 0.7}
    torch.testing.assert_close(total, sum(factors[name] * value for name, value in terms.items()))


def test_config_chooses_smoothing_margin_and_weighting():
    def terms(**keys):
        return make_loss(config(**keys), 3, FEAT_DIMS)(outputs(), PIDS)[1]

    base = terms()
    assert terms(MODEL__IF_LABELSMOOTH=False)["id"] != base["id"]
    triplets = {terms(**keys)["triplet"].item() for keys in (
        {}, {"SOLVER__MARGIN": 0.5}, {"MODEL__NO_MARGIN": True}, {"MODEL__WEIGHTED_TRIPLET": True},
        {"MODEL__NO_MARGIN": True, "MODEL__WEIGHTED_TRIPLET": True},
    )}
    assert len(triplets) == 5


def test_centers_get_their_own_gradient_and_features_the_weighted_one():
    weight = 0.0005
    criterion = make_loss(config(MODEL__METRIC_LOSS_TYPE="center", SOLVER__CENTER_LOSS_WEIGHT=weight), 3, FEAT_DIMS)
    out = outputs()
    criterion(out, PIDS)[0].backward()
    criterion.unweight_center_gradient()
    centers, feat = criterion.centers["global"].centers, out["global"].metric_feat
    plain_feat, plain_centers = feat.detach().requires_grad_(), centers.detach().requires_grad_()
    (plain_feat - plain_centers[PIDS]).pow(2).sum(1).mean().backward()
    torch.testing.assert_close(centers.grad, plain_centers.grad)
    torch.testing.assert_close(feat.grad, weight * plain_feat.grad)


def test_center_weight_of_zero_leaves_the_centers_where_they_are():
    criterion = make_loss(config(MODEL__METRIC_LOSS_TYPE="center", SOLVER__CENTER_LOSS_WEIGHT=0.0), 3, FEAT_DIMS)
    total, terms = criterion(outputs(), PIDS)
    total.backward()
    criterion.unweight_center_gradient()
    assert terms["center"] > 0
    assert torch.equal(criterion.centers["global"].centers.grad, torch.zeros(3, 6))


def test_branches_are_summed_and_named():
    dims = {"global": 6, "part0": 6}
    criterion = make_loss(config(MODEL__METRIC_LOSS_TYPE="triplet_center"), 3, dims)
    out = outputs(dims)
    total, terms = criterion(out, PIDS)
    assert set(terms) == {"id", "triplet", "center", "id_part0", "triplet_part0", "center_part0"}
    alone = sum(criterion({branch: out[branch]}, PIDS)[0] for branch in dims)
    torch.testing.assert_close(total, alone)


def test_parts_have_an_id_loss_alone_and_factors_of_their_own():
    branches = ["global", *(f"part{i}" for i in range(6)), "merged", "local"]
    keys = {"MODEL__IF_USE_PCB": True, "MODEL__PCB_PART_LOSS_WEIGHT": 0.6, "MODEL__PCB_MERGED_LOSS_WEIGHT": 0.3,
            "MODEL__PCB_LOCAL_LOSS_WEIGHT": 0.2, "MODEL__ID_LOSS_WEIGHT": 0.1}
    out = outputs(branches)
    out = {b: o if b == "global" else o._replace(metric_feat=None) for b, o in out.items()}
    total, terms = make_loss(config(**keys), 3, FEAT_DIMS)(out, PIDS)
    assert set(terms) == {"triplet", "id", *(f"id_{b}" for b in branches[1:])}
    mean = sum(terms[f"id_part{i}"] for i in range(6)) / 6
    want = (0.1 * terms["id"] + terms["triplet"] + 0.6 * mean + 0.3 * terms["id_merged"] + 0.2 * terms["id_local"])
    torch.testing.assert_close(total, want)


def test_gathered_metric_features_may_be_more_than_the_logits():
    criterion = make_loss(config(MODEL__METRIC_LOSS_TYPE="triplet_center"), 3, FEAT_DIMS)
    whole = outputs()["global"]
    local = whole._replace(logits=whole.logits[:2])
    _, terms = criterion({"global": local}, PIDS[:2], metric_pids=PIDS)
    _, want = criterion({"global": whole}, PIDS)
    torch.testing.assert_close(terms["triplet"], want["triplet"])
    torch.testing.assert_close(terms["center"], want["center"])
    assert terms["id"] != want["id"]


def test_criterion_computes_in_float32_from_half_inputs():
    criterion = make_loss(config(MODEL__METRIC_LOSS_TYPE="triplet_center"), 3, FEAT_DIMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = criterion(outputs(dtype=torch.bfloat16), PIDS)
    assert {value.dtype for value in (total, *terms.values())} == {torch.float32}
