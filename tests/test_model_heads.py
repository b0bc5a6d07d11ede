"""Part heads: stripes, gates, learned parts, and that what is tested is what was trained."""
import itertools
import re

import pytest
import torch
from conftest import model_config
from torch.nn import functional as F

from loss.make_loss import make_loss
from model.heads import PART_DIM, PARTS, PCB, pool_by, stripes
from model.make_model import make_model, place_model
from model.pretrained import load_weights

PIDS = torch.tensor([0, 0, 1, 2])
PART_NAMES = [f"part{i}" for i in range(PARTS)]


def config(**keys):
    return model_config(**{"MODEL__IF_USE_PCB": True, **keys})


def images(n=4):
    torch.manual_seed(1)
    return torch.randn(n, 3, 64, 32)


def pcb(feat_dim=8, **options):
    torch.manual_seed(0)
    return PCB(feat_dim, 5, **options)


@pytest.mark.parametrize("height", [1, 4, 6, 15, 16, 24, 30])
def test_stripes_are_adaptive_pooling(height):
    x = torch.randn(2, 5, height, 3)
    want = F.adaptive_avg_pool2d(x, (PARTS, 1))[..., 0]
    torch.testing.assert_close(pool_by(x, stripes(x)), want)


def test_training_gives_every_branch_and_only_the_global_one_a_metric_feature():
    model = make_model(config(TEST__PCB_GLOBAL_FEAT_ENSEMBLE=True), 7).train()
    out = model(images(), PIDS)
    assert list(out) == ["global", *PART_NAMES, "merged", "local"]
    assert all(o.logits.shape == o.plain_logits.shape == (4, 7) for o in out.values())
    assert [branch for branch, o in out.items() if o.metric_feat is not None] == ["global"]


@pytest.mark.parametrize(("keys", "dims"), [
    ({}, {"merged": PARTS * PART_DIM}),
    ({"TEST__USE_PCB_MERGE_FEAT": False}, dict.fromkeys(PART_NAMES, PART_DIM)),
    ({"TEST__PCB_GLOBAL_FEAT_ENSEMBLE": True}, {"local": PART_DIM}),
    ({"TEST__USE_LOCAL": False}, {}),
    ({"MODEL__PCB_RPP": True, "TEST__USE_PCB_MERGE_FEAT": False}, dict.fromkeys(PART_NAMES, PART_DIM)),
])
def test_embeddings_of_one_image_have_the_branches_that_the_test_asks_for(keys, dims):
    model = make_model(config(**keys), 7).eval()
    with torch.no_grad():
        out = model(images(1))
    assert {branch: feat.shape for branch, feat in out.items()} == {
        "global": (1, 256), **{branch: (1, dim) for branch, dim in dims.items()}}
    assert all(feat.dtype == torch.float32 for feat in out.values())


@pytest.mark.parametrize(("merged", "local", "rpp", "gate"),
                         list(itertools.product([True, False], [True, False], [True, False], ["sigmoid", "affine"])))
def test_every_parameter_gets_a_gradient(merged, local, rpp, gate):
    cfg = config(MODEL__MERGE_PCB_FEAT=merged, TEST__PCB_GLOBAL_FEAT_ENSEMBLE=local, MODEL__PCB_RPP=rpp,
                 MODEL__PCB_GATE=gate, TEST__USE_PCB_MERGE_FEAT=merged)
    model = make_model(cfg, 7).train()
    total, _ = make_loss(cfg, 7, model.feat_dims)(model(images(), PIDS), PIDS)
    total.backward()
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
    assert any("pcb.gates" in name for name in learns) == merged


def lineage_reference(head, x, gate):
    """The lineage's formulas, part by part: plain parts, gates and merged feature."""
    pooled = F.adaptive_avg_pool2d(x, (6, 1))
    parts, gates = [], []
    for i in range(6):
        conv, norm = head.embeddings[i]
        y = F.conv2d(pooled[:, :, i : i + 1], conv.weight)
        parts.append(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).flatten(1))
        g = F.adaptive_avg_pool2d(x, 1)
        for layer in (1, 2, 3):
            g = F.conv2d(g, head.gates[i][layer].weight, head.gates[i][layer].bias)
        gates.append(gate(F.linear(g.flatten(1), head.gates[i][5].weight, head.gates[i][5].bias)))
    return parts, gates, torch.cat([p * g for p, g in zip(parts, gates, strict=True)], 1)


@pytest.mark.parametrize(("name", "function"), [("affine", lambda x: x), ("sigmoid", torch.sigmoid)])
def test_features_are_those_of_the_formulas(name, function):
    x = torch.randn(3, 8, 12, 4)
    head = pcb(gate=name, test="merged").eval()
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    parts, gates, merged = lineage_reference(head, x, function)
    with torch.no_grad():
        torch.testing.assert_close(head(x)["merged"], merged)
        head.test = "parts"
        torch.testing.assert_close(list(head(x).values()), parts)
        head.weighted = True
        torch.testing.assert_close(list(head(x).values()), [p * g for p, g in zip(parts, gates, strict=True)])


def test_tested_parts_are_the_ones_that_the_classifiers_were_trained_on():
    x = torch.randn(4, 8, 12, 4)
    head = pcb(test="parts").eval()
    with torch.no_grad():
        trained, tested = head(x, PIDS), head(x)
    for name, feat in tested.items():
        classifier = head.classifiers[name]
        torch.testing.assert_close(trained[name].logits, F.linear(feat, classifier.weight, classifier.bias))


def test_the_local_branch_is_trained_and_keeps_what_a_relu_keeps():
    x = torch.randn(4, 8, 6, 3)
    head = pcb(local=True, test="local")
    head(x, PIDS)["local"].logits.sum().backward()
    assert head.local[0].weight.grad.abs().sum() > 0
    feat = head.eval()(x)["local"]
    y = head.local(x)
    want = (y / y.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
    torch.testing.assert_close(feat, want)


def test_a_sigmoid_gate_is_bounded():
    head = pcb(gate="sigmoid")
    gates = torch.stack(head._gates(1e4 * torch.randn(4, 8, 6, 3)))
    assert ((gates >= 0) & (gates <= 1)).all()


def test_refined_parts_are_means_by_probability():
    x = torch.randn(2, 8, 6, 3)
    head = pcb(rpp=True, test="parts").eval()
    probability = head._refined(x)
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 6, 3))
    got = pool_by(x, probability)
    for b, part in itertools.product(range(2), range(PARTS)):
        p = probability[b, part]
        torch.testing.assert_close(got[b, :, part], (x[b] * p).sum((1, 2)) / p.sum())


def test_a_certain_part_classifier_gives_the_stripes():
    x = torch.randn(2, 8, 12, 3)
    rows = torch.zeros(1, PARTS, 12, 3)
    for i in range(PARTS):
        rows[:, i, 2 * i : 2 * i + 2] = 1
    torch.testing.assert_close(pool_by(x, rows), pool_by(x, stripes(x)))


def test_train_only_moves_nothing_else():
    model = make_model(config(MODEL__PCB_RPP=True, MODEL__TRAIN_ONLY=["pcb.rpp.*"]), 7).train()
    cfg = config(MODEL__PCB_RPP=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()
        make_loss(cfg, 7, model.feat_dims)(model(images(), PIDS), PIDS)[0].backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"pcb.rpp.weight", "pcb.rpp.bias"}


def test_train_only_refuses_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"MODEL\.TRAIN_ONLY: 'pcb\.rpp\.\*' matches no parameter"):
        make_model(config(MODEL__TRAIN_ONLY=["pcb.rpp.*"]), 7)


def test_learned_parts_start_from_stripes_where_that_is_allowed(tmp_path):
    path = tmp_path / "stripes.pth"
    source = make_model(config(), 7)
    torch.save({"model": source.state_dict()}, path)
    keys = {"MODEL__PCB_RPP": True, "MODEL__PRETRAIN_CHOICE": "self", "MODEL__PRETRAIN_PATH": str(path)}
    with pytest.raises(ValueError, match=r"MODEL\.PRETRAIN_ALLOW"):
        make_model(config(**keys), 7)
    model = make_model(config(**keys, MODEL__PRETRAIN_ALLOW=["pcb.rpp.*"]), 9)
    assert torch.equal(model.pcb.gates[2][5].weight, source.pcb.gates[2][5].weight)
    assert model.pcb.classifiers["part0"].weight.shape == (9, PART_DIM)


@pytest.mark.parametrize(("keys", "advice"), [
    ({"MODEL__IF_USE_PCB": False}, r"set MODEL\.IF_USE_PCB to True"),
    ({"TEST__PCB_GLOBAL_FEAT_ENSEMBLE": True}, r"set TEST\.PCB_GLOBAL_FEAT_ENSEMBLE to False"),
])
def test_a_checkpoint_with_other_heads_is_explained(keys, advice):
    state = make_model(config(), 7).state_dict()
    with pytest.raises(ValueError, match=advice):
        load_weights(make_model(config(**keys), 7), state, "w.pth", skip=("classifier.", "pcb.classifiers."))


def test_a_whole_model_of_the_lineage_loads():
    model = make_model(config(), 7)
    names = {"embeddings.": "local_conv_list.", "gates.": "dy_weight", "classifiers.part": "instance",
             "classifiers.merged": "instance_merge"}
    lineage = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(f"pcb.{ours}", f"pcb.{theirs}")
        key = re.sub(r"local_conv_list\.(\d)\.", r"local_conv_list.\1.add_block.", key)
        lineage[f"module.{key}"] = value
    lineage |= {"module.pcb.bn.weight": torch.ones(256), "module.pcb.local_conv.weight": torch.ones(256, 256, 1, 1),
                "module.pcb.feat_bn2d.bias": torch.ones(256)}
    report = load_weights(make_model(config(), 7), lineage, "w.pth", skip=("classifier.", "pcb.classifiers."),
                          allow_unexpected=("pcb.local.*",))
    assert report.missing == ()
    assert sum(key.startswith("pcb.gates") for key in report.loaded) == 48


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_is_a_key_and_changes_no_embedding(channels_last):
    torch.manual_seed(0)
    cfg = config(MODEL__CHANNELS_LAST=channels_last)
    model = place_model(cfg, make_model(cfg, 7), torch.device("cpu")).eval()
    assert model.base.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    torch.manual_seed(0)
    plain = make_model(cfg, 7).eval()
    with torch.no_grad():
        for branch, feat in model(images()).items():
            torch.testing.assert_close(feat, plain(images())[branch], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiling_is_a_key_and_changes_no_embedding():
    torch.manual_seed(0)
    cfg = config(MODEL__COMPILE=True)
    model = place_model(cfg, make_model(cfg, 7), torch.device("cpu")).eval()
    torch.manual_seed(0)
    plain = make_model(cfg, 7).eval()
    assert set(model.state_dict()) == set(plain.state_dict())
    with torch.no_grad():
        for branch, feat in model(images()).items():
            torch.testing.assert_close(feat, plain(images())[branch], rtol=1e-3, atol=1e-4)


def test_losses_and_features_of_parts_are_float32_under_autocast():
    cfg = config(TEST__PCB_GLOBAL_FEAT_ENSEMBLE=True, MODEL__PCB_RPP=True)
    model = make_model(cfg, 7).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images(), PIDS)
        total, _ = make_loss(cfg, 7, model.feat_dims)(out, PIDS)
        feats = model.eval()(images())
    assert {o.logits.dtype for o in out.values()} == {total.dtype} == {torch.float32}
    assert {feat.dtype for feat in feats.values()} == {torch.float32}
