"""Published re-ID networks against golden features: weights by the upstream's keys, outputs of the upstream's code."""
import copy
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import model_config

from configs import load_cfg
from model.backbones import BACKBONES, build_backbone
from model.make_backbone import network_name, pooling_name
from model.make_model import make_model
from model.pooling import POOLINGS
from model.pretrained import load_weights

GOLDEN = Path(__file__).parent / "golden"


def load_fill_tokens():
    """tests/golden/networks/fill_tokens.py as a module; it imports fill.py, which lies a folder higher."""
    path = GOLDEN / "networks" / "fill_tokens.py"
    spec = importlib.util.spec_from_file_location("golden_fill_tokens", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(GOLDEN))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(GOLDEN))
    return module


tokens = load_fill_tokens()
# What stands before a backbone's names in the files of its upstream, by the first word of a golden network's name.
PREFIXES = {"fastreid": "backbone.", "torchreid": "", "solider": "base.", "clipreid": "image_encoder."}
# (golden network, our name, case, settings of our constructor).
FASTREID = [
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "236x108", {}),
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "384x128", {}),
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "256x128", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "236x108", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "384x128", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "256x128", {}),
]
OSNETS = [
    (f"torchreid_osnet_{kind}", f"osnet_{kind}", case, {}) for case in ("236x108", "384x128", "256x128")
    for kind in ("ain_x1_0", "x1_0")
]
SOLIDER = [
    ("solider_swin_tiny", "solider_swin_tiny", case, {"semantic_weight": weight}) for case, weight in [
        ("250x122_sw0.2", 0.2), ("256x128_none", -1.0), ("256x128_sw0.2", 0.2), ("384x128_sw0.2", 0.2),
        ("224x224_sw0.2", 0.2), ("256x128_eps", 0.2), ("256x128_sw1.0", 1.0)]
]
CLIP = [("clipreid_rn50", "clip_rn50", case, {"size": size}) for case, size in [
    ("384x128", (384, 128)), ("256x128", (256, 128))]]
CLIP += [("clipreid_vit_b16_sie", "clip_vit_b16", case, {"size": size, "sie_camera": True}) for case, size in [
    ("384x128", (384, 128)), ("256x128", (256, 128)), ("256x128_cam0to5", (256, 128))]]
CAMERAS = {"384x128": [5], "256x128": [1, 4], "256x128_cam0to5": [0, 1, 2, 3, 4, 5]}


def with_slow(cases):
    """The first case of a family in the quick suite, the others slow."""
    return [pytest.param(*case, id="-".join(map(str, case[:3])), marks=[pytest.mark.slow] if i else [])
            for i, case in enumerate(cases)]


def size_of(case):
    return tuple(int(n) for n in case.partition("_")[0].split("x"))


def image_of(case):
    two = case.startswith("256x128") and "cam" not in case
    return torch.from_numpy(tokens.golden_image(*size_of(case), batch=2 if two else 1))


@functools.cache
def weights_of(golden, case):
    """The file of the upstream, classifier included."""
    return tokens.golden_checkpoint(f"{golden}.keys.json", case)


def load_golden(golden, name, case, settings, **renamed):
    """Our backbone with the weights of the upstream's file; all of its weights must be there."""
    prefix = PREFIXES[golden.partition("_")[0]]
    weights = weights_of(golden, case)
    inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    with torch.device("meta"):
        shapes = BACKBONES[name](**settings)
    net = shapes.to_empty(device="cpu").eval()
    load_weights(net, {**inner, **renamed}, golden, skip=("classifier",))
    return net, weights


def complaints(golden, case, outputs):
    archive = np.load(GOLDEN / "networks" / f"{golden}.npz")
    return tokens.compare_case(archive, case, {item: value.numpy() for item, value in outputs.items()})


@pytest.mark.parametrize(("golden", "name", "case", "settings"), with_slow(FASTREID))
@torch.no_grad()
def test_fast_reids_networks_give_its_maps_and_its_pooled_features(golden, name, case, settings):
    net, weights = load_golden(golden, name, case, settings)
    x = net(image_of(case))
    pool = POOLINGS["GeM" if "sbs" in golden else "avg"](float(weights.get("heads.pool_layer.p", [1.0])[0]), False)
    assert complaints(golden, case, {"map": x, "emb_pooled": pool(x)}) == []


@pytest.mark.parametrize(("golden", "name", "case", "settings"), with_slow(OSNETS))
@torch.no_grad()
def test_osnet_gives_torchreids_map_and_its_embedding_after_fc_norm_and_relu(golden, name, case, settings):
    net, _ = load_golden(golden, name, case, settings)
    x = image_of(case)
    features = net.features(x)
    assert complaints(golden, case, {"map": net.last_layer(x), "emb": features.token}) == []
    torch.testing.assert_close(net.fc[1:](features.map.mean((2, 3))), features.token)


@pytest.mark.parametrize(("golden", "name", "case", "settings"), with_slow(SOLIDER))
@torch.no_grad()
def test_swin_gives_soliders_last_map_and_its_mean(golden, name, case, settings):
    net, _ = load_golden(golden, name, case, settings)
    if case.endswith("eps"):  # so small that only the norm's epsilon tells
        for parameter in net.patch_embed.projection.parameters():
            parameter *= 1e-3
    x = net(image_of(case))
    assert complaints(golden, case, {"map3": x, "emb_before": x.mean((2, 3))}) == []


@pytest.mark.parametrize(("golden", "name", "case", "settings"), with_slow(CLIP))
@torch.no_grad()
def test_the_image_encoders_give_clip_reids_feature_and_its_projection(golden, name, case, settings):
    cameras = {key: value for key, value in weights_of(golden, case).items() if key == "cv_embed"}
    net, _ = load_golden(golden, name, case, settings, **cameras)
    image, rows = image_of(case), torch.tensor(CAMERAS[case])
    image = image[:1].expand(6, -1, -1, -1) if len(rows) == 6 else image
    assert complaints(golden, case, {"emb_before": net.features(image, rows).token}) == []


QUICK = ("osnet_x0_25", "vit_tiny")
TIMMS = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224",
         "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv4_conv_small", "efficientnet_lite0")
TRAINED = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow)
                     for name in (*BACKBONES, *(f"timm:{name}" for name in TIMMS)) if name not in QUICK)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_are_one_and_one_more_from_its_checkpoint(name, mixed):
    with torch.device("meta"):
        pooling = "token" if build_backbone(name).has_token else "avg"
    cfg = model_config(MODEL__NAME=name, MODEL__POOLING_METHOD=pooling, INPUT__SIZE_TRAIN=[64, 32])
    images, pids = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])

    def build(seed, state=None):
        torch.manual_seed(seed)
        model = make_model(cfg, 2)
        model.load_state_dict(state or model.state_dict())
        return model

    def step(model, number):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        torch.manual_seed(number)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            head = model(images, pids)["global"]
        loss = torch.nn.functional.cross_entropy(head.logits.float(), pids) + head.metric_feat.square().mean()
        loss.backward()
        assert loss.isfinite()
        optimizer.step()
        optimizer.zero_grad()

    whole = build(0)
    step(whole, 1)
    checkpoint = copy.deepcopy(whole.state_dict())
    resumed = build(1, checkpoint)
    for model in (whole, resumed):
        step(model, 2)
    assert any(not torch.equal(value, checkpoint[name]) for name, value in whole.named_parameters())
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


def test_a_last_stride_that_a_network_does_not_have_is_refused():
    for name in ("osnet_x0_25", "solider_swin_tiny", "clip_vit_b16"):
        with torch.device("meta"), pytest.raises(ValueError, match=r"LAST_STRIDE=2: .* use 1"):
            build_backbone(name, 2)


def test_a_yaml_file_of_clip_reid_loads_and_its_second_stage_is_the_training(tmp_path, caplog):
    (tmp_path / "theirs.yml").write_text(
        "MODEL: {NAME: ViT-B-16, ID_LOSS_WEIGHT: 0.25, I2T_LOSS_WEIGHT: 1.0}\n"
        "SOLVER: {STAGE1: {BASE_LR: 0.00035, LR_MIN: 1e-6}, STAGE2: {BASE_LR: 5e-06, WARMUP_ITERS: 10}}\nDATASETS:\n")
    cfg = load_cfg(tmp_path / "theirs.yml")
    assert (network_name(cfg), pooling_name(cfg), cfg.SOLVER.BASE_LR) == ("clip_vit_b16", "token", 5e-6)
    assert "tools/learn_prompts.py" in caplog.text


@pytest.mark.parametrize("name", ["clip_rn50", "clip_vit_b16"])
def test_a_file_of_a_whole_clip_gives_its_image_encoder(name):
    with torch.device("meta"):
        net = BACKBONES[name]()
        text = {"transformer.resblocks.0.ln_1.weight": torch.ones(512), "logit_scale": torch.ones(())}
        source = {f"visual.{key}": value for key, value in net.state_dict().items()} | text
        assert net.fit(source, "").keys() == net.state_dict().keys()
        table = "positional_embedding" if name == "clip_vit_b16" else "attnpool.positional_embedding"
        resized = net.fit({"visual.proj": text["logit_scale"], f"visual.{table}": torch.zeros(197, 8)}, "")
        assert resized[table].shape == (129, 8)
        assert net.fit({"base.proj": text["logit_scale"]}, "base.").keys() == {"base.proj"}


def test_a_non_local_block_is_the_sum_over_all_pairs_of_positions():
    torch.manual_seed(0)
    block = build_backbone("fastreid_r50_nl").NL_2[0].eval()
    torch.nn.init.ones_(block.W[1].weight)
    x = torch.randn(2, 512, 3, 2)
    with torch.no_grad():
        theta, phi, g = (layer(x).flatten(2) for layer in (block.theta, block.phi, block.g))  # [B, 1, N]
        y = (theta.transpose(1, 2) @ phi / 6 @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 2))
        torch.testing.assert_close(block(x), x + block.W(y))
