"""Backbones against golden features of the published networks, and what every backbone must do."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_golden_fill
from torch import nn
from torchvision import models

from model.backbones import BACKBONES, WEIGHTS_URLS, build_backbone, freeze_stages

GOLDEN = Path(__file__).parent / "golden"
WITH_GOLDEN = [name for name in BACKBONES if (GOLDEN / "backbones" / f"{name}.npz").is_file()]
SMALL = "resnet18_ibn_b_w32"
DEEP = ("101", "152")
ALL = [pytest.param(name, marks=pytest.mark.slow) if any(d in name for d in DEEP) else name for name in BACKBONES]


fill = load_golden_fill()


def on_meta(build, *args, **kwargs):
    """A network's names and shapes without its numbers."""
    with torch.device("meta"):
        return build(*args, **kwargs)


def test_numpy_gives_the_golden_streams():
    want = json.loads((GOLDEN / "backbones" / "index.json").read_text())["probe"]
    for name, values in fill.probe().items():
        np.testing.assert_allclose(values, want[name], rtol=0, atol=1e-7)


def test_there_are_golden_backbones():
    assert {"resnet50", "resnet50_ibn_b", "resnet18_ibn_b"} <= set(WITH_GOLDEN)


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_keys_and_shapes_are_the_published_ones(name):
    shapes = {key: tuple(v.shape) for key, v in on_meta(build_backbone, name).state_dict().items()}
    assert fill.compare_keys(f"backbones/{name}.keys.json", shapes) == []


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_features_are_the_golden_ones_for_both_strides(name):
    weights = fill.fill_module(build_backbone(name)).state_dict()
    archive = np.load(GOLDEN / "backbones" / f"{name}.npz")
    for last_stride in (1, 2):
        net = build_backbone(name, last_stride).eval()
        net.load_state_dict(weights)
        for size in ("main", "odd"):
            with torch.no_grad():
                features = net(torch.from_numpy(fill.golden_input(size))).numpy()
            assert fill.compare(archive, f"{size}_ls{last_stride}", features) == []


@pytest.mark.parametrize("name", [name for name in BACKBONES if hasattr(models, name)])
def test_resnet_keys_are_torchvision_keys(name):
    theirs = {k: v.shape for k, v in on_meta(getattr(models, name)).state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in on_meta(build_backbone, name).state_dict().items()} == theirs


def test_resnet18_computes_what_torchvision_computes():
    theirs = models.resnet18()
    ours = build_backbone("resnet18", last_stride=2)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc, theirs.avgpool = nn.Identity(), nn.Identity()
    x = torch.randn(2, 3, 50, 38)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(x).flatten(1), theirs.train()(x))
        torch.testing.assert_close(ours.eval()(x).flatten(1), theirs.eval()(x))


@pytest.mark.parametrize("name", [name for name in BACKBONES if "_ibn_b" in name])
def test_ibn_b_normalises_the_end_of_two_stages_and_the_stem(name):
    net = on_meta(build_backbone, name)
    ends = [key for key, module in net.named_modules() if isinstance(module, nn.InstanceNorm2d)]
    assert ends == ["bn1", f"layer1.{len(net.layer1) - 1}.IN", f"layer2.{len(net.layer2) - 1}.IN"]


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_map_has_feat_dim_channels(name, last_stride):
    net = build_backbone(name, last_stride).eval()
    with torch.no_grad():
        features = net(torch.randn(1, 3, 64, 32))
    side = 16 * last_stride
    assert features.shape == (1, net.feat_dim, 64 // side, 32 // side)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_last_stride_changes_only_the_first_block_of_the_last_stage(name):
    def strides(last_stride):
        net = on_meta(build_backbone, name, last_stride)
        return {key: m.stride for key, m in net.named_modules() if isinstance(m, nn.Conv2d)}

    one, two = strides(1), strides(2)
    changed = {key for key in one if one[key] != two[key]}
    assert len(changed) == 2
    assert "layer4.0.downsample.0" in changed
    assert all(key.startswith("layer4.0.") for key in changed)


def test_small_net_is_half_as_wide():
    small, whole = on_meta(build_backbone, SMALL), on_meta(build_backbone, "resnet18_ibn_b")
    assert small.feat_dim == 256
    assert small.feat_dim * 2 == whole.feat_dim
    assert list(small.state_dict()) == list(whole.state_dict())
    assert SMALL not in WEIGHTS_URLS


def test_random_weights_are_kaiming_fan_out():
    torch.manual_seed(0)
    weight = build_backbone(SMALL).layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_unknown_backbone_lists_choices_and_the_nearest_name():
    with pytest.raises(ValueError, match=r"did you mean resnet50_ibn_b\?.*choices: resnet18, "):
        build_backbone("resnet50_ibnb")


def test_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="LAST_STRIDE=4"):
        build_backbone(SMALL, last_stride=4)


def test_published_weights_are_of_known_backbones():
    assert set(WEIGHTS_URLS) <= set(BACKBONES)
    assert all(url.startswith("https://") and url.endswith(".pth") for url in WEIGHTS_URLS.values())


@pytest.mark.parametrize("n", [-1, 0, 2, 4])
def test_frozen_stages_stay_frozen_after_train(n):
    torch.manual_seed(0)
    net = build_backbone(SMALL)
    freeze_stages(net, n)
    net.eval()
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = [p for p in net.parameters() if p.requires_grad]
    out = net(torch.randn(4, 3, 64, 32))
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        out.square().mean().backward()
        optimizer.step()
    frozen = () if n < 0 else net.stem_names + net.stage_names[:n]
    for key, value in net.state_dict().items():
        if not key.startswith(tuple(f"{name}." for name in frozen)):
            continue
        assert torch.equal(value, before[key]), key
    moved = {key.split(".")[0] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {name for name in net.stem_names + net.stage_names if name not in frozen}


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ValueError, match="FROZEN=5"):
        freeze_stages(on_meta(build_backbone, SMALL), 5)
