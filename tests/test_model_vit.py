"""Vision transformers of TransReID and its descendants: golden features, positions, cameras, jigsaw parts, settings."""
import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from conftest import model_config
from test_model_networks import complaints, image_of, size_of, tokens, weights_of, with_slow

from configs import load_cfg
from loss.make_loss import make_loss
from model.backbones import Sides, build_backbone, freeze_stages
from model.backbones.transformers.positions import RULES, grid_of, resize_positions
from model.backbones.transformers.side_table import SideTable
from model.backbones.transformers.vit import shuffle
from model.make_backbone import network_name
from model.make_model import make_model
from model.pretrained import load_weights
from solver.make_optimizer import make_optimizer, make_scheduler

GOLDEN = Path(__file__).parent / "golden"
PIDS = torch.tensor([0, 0, 1, 1])
TINY = {"MODEL__NAME": "vit_tiny", "MODEL__POOLING_METHOD": "token", "INPUT__SIZE_TRAIN": [64, 32]}
# The upstream's names in ours.
RENAMED = (("b1.0.", "base.blocks.11."), ("b1.1.", "base.norm."), ("b2.0.", "base.jpm.block."),
           ("b2.1.", "base.jpm.norm."), *((f"bottleneck_{i}.", f"joint.necks.{i - 1}.") for i in range(1, 5)))
# (golden network, our name, case, settings, {golden item: (pooling, neck)}).
PLAIN = {"emb_before": ("token", "before"), "emb_after": ("token", "after")}
CASES = [
    ("ssl_vit_small", "vit_small", "256x128", {}, {**PLAIN, "emb_gem": ("GeM_token", "before")}),
    ("ssl_vit_small", "vit_small", "384x128", {}, PLAIN),
    ("ssl_vit_small_ics", "vit_small_ics", "384x128", {}, PLAIN),
    ("pass_vit_small", "pass_vit_small", "384x128", {}, PLAIN),
    ("personvit_vit_small", "vit_small", "384x128", {}, {
        f"emb_{name}": (name, "before") for name in ("avg", "max", "avg_max")}),
    ("transreid_vit_small", "transreid_vit_small", "384x128", {}, PLAIN),
    ("transreid_vit_base_s16_sie", "vit_base", "384x128", {"MODEL__SIE_CAMERA": True}, PLAIN),
    ("transreid_vit_base_s16_jpm", "vit_base", "240x112", {"MODEL__JPM": True}, PLAIN),
]


def ours(weights, jpm):
    """The upstream's weights by our names; with jigsaw parts its own last block is not used."""
    named = {}
    for key, value in weights.items():
        if not (jpm and key.startswith(("base.blocks.11.", "base.norm."))):
            old, new = next(((old, new) for old, new in RENAMED if key.startswith(old)), ("", ""))
            named[new + key.removeprefix(old)] = value
    return named


@pytest.mark.parametrize(("golden", "name", "case", "settings", "items"), with_slow(CASES))
@torch.no_grad()
def test_vision_transformers_give_the_published_features(golden, name, case, settings, items):
    weights = ours(weights_of(golden, case), "MODEL__JPM" in settings)
    for item, (pooling, neck) in items.items():
        model = make_model(model_config(MODEL__NAME=name, MODEL__POOLING_METHOD=pooling, TEST__NECK_FEAT=neck,
                                        INPUT__SIZE_TRAIN=list(size_of(case)), **settings), 3).eval()
        load_weights(model, weights, golden, skip=("classifier", "joint.classifiers.", "base.fc."))
        camids = torch.tensor([5]) if "sie" in golden else None
        assert complaints(golden, case, {item: model(image_of(case), camids=camids)["global"]}) == []


@pytest.mark.parametrize(("source", "old", "rule", "prefix", "golden"), [
    ("transreid/source_14x14", (14, 14), "bilinear", 1, "transreid/14x14_to_21x10"),
    ("ssl/source_16x8", (16, 8), "bilinear", 1, "ssl/16x8_to_24x8"),
    ("pass/source_16x8", (16, 8), "bilinear", 0, "pass/16x8_to_21x10"),
    ("clip/source_7x7", (7, 7), "bilinear", 1, "clip/7x7_to_16x8"),
    ("transreid/source_14x14", (14, 14), "timm", 1, "timm/14x14_to_16x8"),
    ("dinov2/source_37x37", (37, 37), "dinov2", 1, "dinov2/plain_37x37_to_18x9"),
    ("dinov2/source_37x37", (37, 37), "timm", 1, "dinov2/reg4_37x37_to_18x9"),
])
def test_positions_are_resampled_by_the_rule_of_their_origin(source, old, rule, prefix, golden):
    archive = np.load(GOLDEN / "networks" / "pos_embed_resize.npz")
    new = tuple(int(side) for side in golden.rpartition("_")[2].split("x"))
    table = torch.from_numpy(archive[source])
    for name in RULES:
        same = np.allclose(resize_positions(table, old, new, name, prefix), archive[golden], atol=1e-6)
        assert same == (name == rule)


def test_a_grid_is_square_or_has_the_ratio_that_is_asked_for():
    assert [grid_of(196), grid_of(128, 2), grid_of(192, 3), grid_of(210, 2.1)] == [(14, 14), (16, 8), (24, 8), (21, 10)]


def test_a_pretraining_file_loses_its_heads_and_its_second_token_and_fits_this_grid():
    state = build_backbone("vit_tiny", size=(224, 224)).state_dict()
    positions = state["pos_embed"]
    file = {**state, "head.weight": torch.zeros(9, 192), "dist_token": torch.zeros(1, 1, 192),
            "pos_embed": torch.cat([positions[:, :1], torch.full((1, 1, 192), 9.0), positions[:, 1:]], dim=1),
            "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    net = build_backbone("vit_tiny", size=(256, 128), jpm=True, sie_camera=True, sides=Sides((1, 2)))
    load_weights(net, file, "deit.pth", allow_missing=net.may_miss)
    expected = resize_positions(positions, (14, 14), (16, 8))
    assert torch.equal(net.pos_embed, expected)
    assert torch.equal(net.jpm["block"].mlp.fc1.weight, state["blocks.11.mlp.fc1.weight"])


def test_patches_are_shifted_and_their_halves_interleaved():
    x = torch.arange(9.0)[None, :, None]  # the class token is 0
    assert shuffle(x, 5, 2).flatten().tolist() == [5, 1, 6, 2, 7, 3, 8, 4]
    assert shuffle(x[:, :8], 5, 2).flatten().tolist() == [5, 2, 6, 3, 7, 4, 1, 3]  # the last but one once more


# ---------------------------------------------------------------- cameras
def side_table(**settings):
    table = SideTable(4, Sides((3, 7), (0, 1)), **{"camera": True, "view": True, "factor": 2.0, **settings})
    torch.nn.init.normal_(table.table)
    return table


def test_each_pair_of_camera_and_view_has_its_row_and_the_unknown_their_mean():
    table = side_table()
    rows = table.rows_of([3, 7, 4, 7], [1, 0, 0, 9])
    assert [numbers.tolist() for numbers in rows] == [[0, 1, -1, 1], [1, 0, 0, -1]]
    weights = table.table
    expected = torch.stack([weights[0, 1], weights[1, 0], weights[:, 0].mean(0), weights[1].mean(0)])
    torch.testing.assert_close(table(*rows), 2 * expected)
    torch.testing.assert_close(table(None, None), 2 * weights.mean((0, 1))[None])


def test_unknown_cameras_can_add_nothing():
    table = side_table(other="none")
    assert table(None, None).eq(0).all()
    assert table(torch.tensor([5]), torch.tensor([0])).eq(0).all()


def test_a_checkpoint_remembers_its_cameras_and_forgets_them_for_another_set():
    source = make_model(model_config(**TINY, MODEL__SIE_CAMERA=True), 2, sides=Sides((2, 5, 9)))
    model = make_model(model_config(**TINY, MODEL__SIE_CAMERA=True), 2)
    load_weights(model, source.state_dict(), "w.pth")
    assert model.sides([9, 1], [0, 0])["camids"].tolist() == [2, -1]
    assert torch.equal(model.base.sie.table, source.base.sie.table)
    model.base.sie.go_to_other_set()
    assert model.sides([9, 2], [0, 0])["camids"].tolist() == [-1, -1]


def test_new_cameras_begin_at_the_mean_of_those_that_the_weights_know():
    source = make_model(model_config(**TINY, MODEL__SIE_CAMERA=True), 2, sides=Sides((2, 5)))
    cfg = model_config(**TINY, MODEL__SIE_CAMERA=True, MODEL__SIE_OTHER="new")
    model = make_model(cfg, 2, sides=Sides((5, 6)))
    load_weights(model, source.state_dict(), "w.pth")
    old, new = source.base.sie.table, model.base.sie.table
    assert torch.equal(new[0], old[1])
    torch.testing.assert_close(new[1], old.mean(0))


def test_cameras_change_the_feature_of_the_model_and_reach_it_in_training():
    model = make_model(model_config(**TINY, MODEL__SIE_CAMERA=True), 2, sides=Sides((1, 2))).train()
    images, sides = torch.randn(4, 3, 64, 32), model.sides([1, 1, 2, 2], [0] * 4)
    model(images, PIDS, **sides)["global"].logits.sum().backward()
    assert model.base.sie.table.grad.abs().sum((1, 2)).gt(0).all()
    model.eval()
    assert not torch.equal(model(images, **sides)["global"], model(images)["global"])
    assert make_model(model_config(**TINY), 2).sides([1], [0]) == {}


# ---------------------------------------------------------------- parts, training
@pytest.mark.parametrize(("name", "settings", "branches", "dim"), [
    ("vit_tiny", {"MODEL__JPM": True}, ["global", "part0", "part1", "part2", "part3"], 5 * 192),
    ("vit_tiny", {"MODEL__JPM": True, "TEST__USE_LOCAL": False}, ["global", "part0", "part1", "part2", "part3"], 192),
    pytest.param("pass_vit_small", {"MODEL__FEAT_FUSION": "mean"}, ["global"], 384, marks=pytest.mark.slow),
    pytest.param("pass_vit_small", {}, ["global"], 768, marks=pytest.mark.slow),
])
def test_every_weight_learns_and_an_embedding_has_the_parts(name, settings, branches, dim):
    cfg = model_config(**{**TINY, "MODEL__NAME": name, "MODEL__GRADIENT_CHECKPOINTING": True, **settings})
    model = make_model(cfg, 2).train()
    outputs = model(torch.randn(4, 3, 64, 32), PIDS)
    assert list(outputs) == branches == list(model.feat_dims)[:len(branches)]
    assert all(out.metric_feat.shape[1] == model.feat_dims[branch] for branch, out in outputs.items())
    make_loss(cfg, 2, model.feat_dims)(outputs, PIDS)[0].backward()
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 32))["global"].shape[1] == dim == model.embedding_dims["global"]


def test_half_of_a_loss_is_the_global_branchs_and_half_the_mean_of_the_parts():
    cfg = model_config(MODEL__JPM=True, MODEL__TRIPLET_LOSS_WEIGHT=2.0)
    criterion = make_loss(cfg, 2, {"global": 4, "part0": 4})
    outputs = dict.fromkeys(["global", "part0", "part1", "part2", "part3"])
    weights = [criterion._weight("triplet", branch, outputs) for branch in outputs]
    assert weights == [1.0, 0.25, 0.25, 0.25, 0.25]


def test_checkpointed_blocks_give_the_same_gradients():
    images, gradients = torch.randn(4, 3, 64, 32), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = build_backbone("vit_tiny", size=(64, 32), drop_path=0.5, checkpointing=checkpointing).train()
        torch.manual_seed(1)
        net(images).square().sum().backward()
        gradients.append(net.blocks[0].mlp.fc1.weight.grad)
    assert torch.equal(*gradients)


def test_the_lr_falls_from_block_to_block_towards_the_pictures():
    cfg = model_config(**TINY, SOLVER__LAYER_DECAY=0.5, SOLVER__BASE_LR=1.0, SOLVER__BIAS_LR_FACTOR=1.0)
    model = make_model(cfg, 2)
    groups = make_optimizer(cfg, model, make_loss(cfg, 2, model.feat_dims))[0].param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {"base.norm.weight": 1.0, "base.blocks.11.norm1.weight": 0.5, "base.blocks.0.norm1.weight": 2**-12,
                "base.patch_embed.proj.weight": 2**-13, "base.pos_embed": 2**-13, "classifier.weight": 1.0}
    parameters = dict(model.named_parameters())
    assert {key: rates[id(parameters[key])] for key in expected} == expected


@pytest.mark.parametrize(("name", "tables"), [
    ("vit_tiny", {"cls_token", "pos_embed"}), ("clip_vit_b16", {"class_embedding", "positional_embedding"}),
    ("pass_vit_small", {"cls_token", "part_token3", "pos_embed", "cls_pos", "part3_pos"})])
def test_a_frozen_stem_has_the_tokens_and_positions_in_it(name, tables):
    with torch.device("meta"):
        net = build_backbone(name)
    freeze_stages(net, 0)
    learning = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
    assert not tables & learning
    assert len(learning) > 12
    assert {net.stages_behind(table) for table in tables} == {len(net.stage_names) + 1}
    if name == "clip_vit_b16":
        assert "proj" in learning
        assert net.stages_behind("proj") == 0


def test_the_schedule_of_their_settings_is_theirs():
    cfg = model_config(SOLVER__WARMUP_METHOD="cosine", SOLVER__BASE_LR=0.008, SOLVER__MAX_EPOCHS=120,
                       SOLVER__WARMUP_EPOCHS=5)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.008}, {"params": [torch.nn.Parameter(weight.clone())],
                                                                     "lr": 0.016}])
    scheduler = make_scheduler(cfg, optimizer)
    rates = []
    for _ in range(120):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    for epoch, pair in enumerate(rates, 1):
        for lr, base in zip(pair, (0.008, 0.016), strict=True):
            warm = 8e-5 + epoch * (base - 8e-5) / 5
            cold = 1.6e-5 + 0.5 * (base - 1.6e-5) * (1 + math.cos(math.pi * epoch / 120))
            assert lr == pytest.approx(warm if epoch < 5 else cold, rel=1e-9)


# ---------------------------------------------------------------- timm
@pytest.mark.parametrize(("name", "grid", "has_token"), [
    ("vit_tiny_patch16_224.augreg_in21k", (4, 2), True), ("convnext_atto", (2, 1), False),
    ("efficientnet_lite0", (4, 2), False), *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("vit_small_patch14_dinov2", (4, 2), True), ("vit_small_patch16_dinov3", (4, 2), True),
        ("eva02_tiny_patch14_224", (4, 2), True), ("swin_tiny_patch4_window7_224", (2, 1), False),
        ("mobilenetv4_conv_small", (4, 2), False), ("resnet10t", (4, 2), False)])])
def test_a_network_of_timm_gives_a_map_and_its_class_token_and_learns(name, grid, has_token):
    cfg = model_config(MODEL__NAME=f"timm:{name}", INPUT__SIZE_TRAIN=[64, 32])
    model = make_model(cfg, 2).train()
    features = model.base.features(torch.randn(4, 3, 64, 32))
    assert features.map.shape == (4, model.base.feat_dim, *grid)
    assert model.base.has_token == has_token == (features.token is not None)
    model(torch.randn(4, 3, 64, 32), PIDS)["global"].logits.sum().backward()


def test_timms_files_are_read_strictly_and_their_positions_by_its_own_rule(tmp_path):
    theirs = build_backbone("timm:vit_tiny_patch16_224", size=(224, 224)).net
    state = {**theirs.state_dict(), "head.weight": torch.zeros(9, 192), "head.bias": torch.zeros(9)}
    net = build_backbone("timm:vit_tiny_patch16_224", size=(64, 32))
    load_weights(net, dict(state), "vit.pth")
    expected = resize_positions(theirs.pos_embed.data, (14, 14), (4, 2), "timm")
    torch.testing.assert_close(net.net.pos_embed.data, expected)
    with pytest.raises(ValueError, match=r"1 missing: net\.blocks\.0\.norm1\.weight"):
        load_weights(net, {key: value for key, value in state.items() if key != "blocks.0.norm1.weight"}, "vit.pth")


def test_pixels_are_those_of_timms_network_unless_the_config_has_its_own(caplog):
    caplog.set_level("INFO")
    name = ["MODEL.NAME", "timm:vit_tiny_patch16_224.augreg_in21k"]
    assert load_cfg(None, name).INPUT.PIXEL_MEAN == [0.5, 0.5, 0.5]
    assert "pixels by the network's own settings: mean [0.5, 0.5, 0.5]" in caplog.text
    assert load_cfg(None, [*name, "INPUT.PIXEL_STD", "[0.2, 0.2, 0.2]"]).INPUT.PIXEL_STD == [0.2, 0.2, 0.2]


def test_timms_download_without_a_network_says_which_file_goes_where(monkeypatch):
    import timm
    net = build_backbone("timm:vit_tiny_patch16_224", size=(64, 32))
    monkeypatch.setattr(timm, "create_model", mock.Mock(side_effect=OSError("no route")))
    with pytest.raises(OSError, match=r"no route\): fetch the weight file of https://huggingface.co/timm/vit_tiny\S+ "
                                      "and name it in MODEL.PRETRAIN_PATH"):
        net.download()


def test_a_wrong_name_of_timm_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean vit_tiny_patch16_224"):
        build_backbone("timm:vit_tiny_patch16_225")


# ---------------------------------------------------------------- their files
RECIPES = [(project, name, recipe) for project in ("transreid", "pass", "personvit", "solider")
           for name, recipe in json.loads((GOLDEN / "transformers" / f"{project}.json").read_text())["recipes"].items()]


@pytest.mark.parametrize(("project", "recipe"), [pytest.param(project, recipe, id=f"{project}-{name}")
                                                 for project, name, recipe in RECIPES])
def test_their_yaml_files_load_unchanged(project, recipe, tmp_path):
    file = tmp_path / "theirs.yml"
    file.write_text(yaml.safe_dump(recipe))
    cfg = load_cfg(file)
    kind = cfg.MODEL.TRANSFORMER_TYPE.split("_")[:2]
    name = {"swin": f"solider_swin_{kind[1]}", "deit": "vit_small"}.get(kind[0], f"vit_{kind[1]}")
    if project == "transreid" and kind == ["vit", "small"]:
        name = "transreid_vit_small"
    assert network_name(cfg) == name + "_ics" * cfg.MODEL.STEM_CONV
    theirs, defaults = recipe["MODEL"], load_cfg(None).MODEL
    for key in ("JPM", "SIE_CAMERA", "SIE_VIEW", "SHIFT_NUM", "STRIDE_SIZE", "SIE_COE", "PRETRAIN_HW_RATIO"):
        assert cfg.MODEL[key] == theirs.get(key, defaults[key]), key


def test_the_streams_of_the_golden_weights_are_as_they_were():
    assert tokens.probe()["base.pos_embed|1,129,768"]
