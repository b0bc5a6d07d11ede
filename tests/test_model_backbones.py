"""Backbones against golden features of the published networks, and what every backbone must do."""
import functools
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import load_golden_fill
from torch import nn

from model.backbones import BACKBONES, WEIGHTS_URLS, build_backbone, freeze_stages
from model.backbones.resnet import BACKBONES as RESNETS

GOLDEN = Path(__file__).parent / "golden"
WITH_GOLDEN = [name for name in BACKBONES if (GOLDEN / "backbones" / f"{name}.npz").is_file()]
SMALL = "resnet18_ibn_b_w32"
# The smallest of each family, in the quick suite; the others run with --all.
QUICK = (SMALL, "resnet18", "resnet18_ibn_a", "resnet18_ibn_b", "resnet50_ibn_b_naic", "se_resnet50_ibn_a", "resnest50",
         "resnest50_ibn", "efficientnet_b0", "efficientnet_lite0", "fastreid_r50_nl",
         "osnet_x0_25", "osnet_ain_x0_25", "solider_swin_tiny", "clip_rn50", "vit_tiny")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
# Their last stage has no stride to choose.
FIXED = [name for name in BACKBONES if name.startswith(("osnet", "solider", "clip_vit", "vit", "transreid", "pass"))]
EFFICIENT = [name for name in BACKBONES if name.startswith("efficientnet")]
# Parameters with the classifier of 1000 classes, as the authors count them (millions).
PUBLISHED = {
    "resnet18": 11.69, "resnet34": 21.80, "resnet50": 25.56, "resnet101": 44.55, "resnet152": 60.19,
    "resnest50": 27.48, "resnest101": 48.28, "resnest200": 70.20, "resnest269": 110.93,
    "efficientnet_b0": 5.29, "efficientnet_b1": 7.79, "efficientnet_b2": 9.11, "efficientnet_b3": 12.23,
    "efficientnet_b4": 19.34, "efficientnet_b5": 30.39, "efficientnet_b6": 43.04, "efficientnet_b7": 66.35,
    "efficientnet_lite0": 4.65, "efficientnet_lite1": 5.42, "efficientnet_lite2": 6.09, "efficientnet_lite3": 8.20,
    "efficientnet_lite4": 13.01,
}


fill = load_golden_fill()


def new_on_meta(build, *args):
    """A network's names and shapes without its numbers."""
    def not_drawn(tensor, *_, **__):  # where there are no numbers, to draw them takes most of the time
        return tensor

    with mock.patch.multiple(torch.Tensor, normal_=not_drawn, uniform_=not_drawn), torch.device("meta"):
        return build(*args)


on_meta = functools.cache(new_on_meta)  # for those who only look


def golden_weights(name):
    """The golden value of every tensor of a backbone; its own are not drawn for that."""
    shapes = {key: value.shape for key, value in on_meta(build_backbone, name).state_dict().items()}
    return {key: torch.from_numpy(value) for key, value in fill.fill_dict(shapes).items()}


def with_weights(name, last_stride, weights):
    """A backbone that has these very tensors, to be tested."""
    net = new_on_meta(build_backbone, name, last_stride).eval()
    net.load_state_dict(net.fit(weights, ""), assign=True)
    return net


def test_numpy_gives_the_golden_streams():
    want = json.loads((GOLDEN / "backbones" / "index.json").read_text())["probe"]
    for name, values in fill.probe().items():
        np.testing.assert_allclose(values, want[name], rtol=0, atol=1e-7)


def test_there_are_golden_backbones():
    assert set(WITH_GOLDEN) == {"resnet50", "resnet50_ibn_a", "resnet50_ibn_b", "resnet18_ibn_b", "se_resnet50_ibn_a",
                                "resnest50", "efficientnet_b0"}


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_keys_and_shapes_are_the_published_ones(name):
    shapes = {key: tuple(v.shape) for key, v in on_meta(build_backbone, name).state_dict().items()}
    assert fill.compare_keys(f"backbones/{name}.keys.json", shapes) == []


def golden_cases(name):
    """(last stride, input, case of the archive); EfficientNet was published with one stride."""
    if name in EFFICIENT:
        return [(2, "main", "main"), (2, "odd", "odd_dynamic")]
    return [(stride, size, f"{size}_ls{stride}") for stride in (1, 2) for size in ("main", "odd")]


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_features_are_the_golden_ones_for_both_strides(name):
    weights = golden_weights(name)
    archive = np.load(GOLDEN / "backbones" / f"{name}.npz")
    for last_stride, size, case in golden_cases(name):
        net = with_weights(name, last_stride, weights)
        with torch.no_grad():
            features = net(torch.from_numpy(fill.golden_input(size))).numpy()
        assert fill.compare(archive, case, features, tol=1e-4) == []


@pytest.mark.parametrize("name", ["resnet50_ibn_a", "resnest50", "efficientnet_b0", "resnet18_ibn_b"])
def test_channels_last_changes_no_feature(name):
    x = torch.from_numpy(fill.golden_input("main")).to(memory_format=torch.channels_last)
    last_stride, _, case = golden_cases(name)[0]
    net = with_weights(name, last_stride, golden_weights(name)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = net(x).contiguous().numpy()
    assert fill.compare(np.load(GOLDEN / "backbones" / f"{name}.npz"), case, features, tol=1e-4) == []


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["se_resnet50_ibn_a", "resnest50", "efficientnet_b0", "resnet18_ibn_b"])
def test_compiling_changes_no_feature(name):
    torch._dynamo.reset()
    last_stride, _, case = golden_cases(name)[0]
    net = with_weights(name, last_stride, golden_weights(name))
    net.compile()
    with torch.no_grad():
        features = net(torch.from_numpy(fill.golden_input("main"))).numpy()
    assert fill.compare(np.load(GOLDEN / "backbones" / f"{name}.npz"), case, features) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    net = on_meta(build_backbone, name)
    total = sum(p.numel() for p in net.parameters()) + 1000 * (net.feat_dim + 1)
    assert total / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith(("resn", "se_"))])
def test_blocks_of_a_stage_are_those_of_the_golden_sibling(name):
    """Depth apart, a deeper net is its sibling: inner blocks have the same keys and shapes."""
    sibling = {"resnest": "resnest50", "se_resn": "se_resnet50_ibn_a"}.get(name[:7], "resnet50")
    sibling = "resnet50_ibn_a" if name.startswith("resnet") and "_ibn_a" in name else sibling
    basic = name.startswith(("resnet18", "resnet34"))
    spec = json.loads((GOLDEN / "backbones" / f"{sibling}.keys.json").read_text())
    inner = {}
    for key, shape in spec["keys"]:
        layer, _, rest = key.partition(".")
        block, _, rest = rest.partition(".")
        if layer.startswith("layer") and block == "1":
            inner[layer, rest] = tuple(shape)
    shapes = {key: tuple(v.shape) for key, v in on_meta(build_backbone, name).state_dict().items()}
    for key, shape in shapes.items():
        layer, _, rest = key.partition(".")
        block, _, rest = rest.partition(".")
        if not layer.startswith("layer") or block == "0" or basic or rest.startswith("IN."):
            continue
        if rest.startswith("bn1") and name.endswith("_ibn"):
            continue  # IBN: below
        assert inner[layer, rest] == shape, key


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.endswith(("_ibn_a", "_ibn"))])
def test_ibn_splits_the_first_norm_of_three_stages_in_halves(name):
    net = on_meta(build_backbone, name)
    halves = {key: (m.IN.num_features, m.BN.num_features) for key, m in net.named_modules() if hasattr(m, "BN")}
    blocks = [f"layer{stage}.{i}.bn1" for stage in (1, 2, 3) for i in range(len(getattr(net, f"layer{stage}")))]
    assert list(halves) == blocks
    assert all(first == rest == 32 * 2 ** (int(key[5]) - 1) for key, (first, rest) in halves.items())


def test_a_short_reference_of_a_split_attention_block_agrees():
    torch.manual_seed(0)
    layer = build_backbone("resnest50").layer2[1].conv2.eval()
    x = torch.randn(2, 128, 5, 3)
    with torch.no_grad():
        got = layer(x)
        y = layer.relu(layer.bn0(layer.conv(x)))
        for b in range(2):
            mean = (y[b, :128] + y[b, 128:]).mean((1, 2))
            logits = layer.fc2(layer.relu(layer.bn1(layer.fc1(mean[None, :, None, None])))).flatten()
            for c in (0, 77, 127):
                w = torch.softmax(torch.stack([logits[c], logits[128 + c]]), 0)
                torch.testing.assert_close(got[b, c], w[0] * y[b, c] + w[1] * y[b, 128 + c])


@pytest.mark.parametrize("name", ["efficientnet_b1", pytest.param("efficientnet_b4", marks=pytest.mark.slow),
                                  pytest.param("efficientnet_b7", marks=pytest.mark.slow)])
def test_efficientnet_computes_what_its_package_computes(name):
    package = pytest.importorskip("efficientnet_pytorch").EfficientNet.from_name(name.replace("_", "-"))
    package.eval()
    net = build_backbone(name, last_stride=2).eval()
    net.load_state_dict({k: v for k, v in package.state_dict().items() if not k.startswith("_fc.")})
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), package.extract_features(x), rtol=1e-4, atol=1e-5)


def test_without_its_package_an_efficientnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_pytorch", None)
    with pytest.raises(ImportError, match="efficientnet_b3 needs the package efficientnet-pytorch"):
        build_backbone("efficientnet_b3")


@pytest.mark.parametrize("name", [f"efficientnet_lite{i}" if i == 2 else
                                  pytest.param(f"efficientnet_lite{i}", marks=pytest.mark.slow) for i in range(5)])
def test_an_efficientnet_lite_computes_what_timm_computes(name):
    theirs = pytest.importorskip("timm").create_model(f"tf_{name}", num_classes=0, global_pool="").eval()
    net = build_backbone(name, last_stride=2).eval()
    pairs = zip(net.state_dict().values(), theirs.state_dict().values(), strict=True)  # by the order of construction
    for ours, other in pairs:
        ours.copy_(other)
    x = torch.randn(1, 3, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_two_training_steps_reach_every_parameter(name):
    torch.manual_seed(0)
    net = build_backbone(name).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    images = torch.randn(4, 3, 64, 32)
    for _ in range(2):
        optimizer.zero_grad()
        features = net.features(images)
        sum(x.square().mean() for x in (features.map, features.token) if x is not None).backward()
        without = [key for key, p in net.named_parameters()
                   if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
        assert without == []
        optimizer.step()


@pytest.fixture
def models():
    """torchvision's, whose import takes as long as torch's: not for those who only collect tests."""
    return pytest.importorskip("torchvision.models")


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_keys_and_weights_are_torchvisions(name, models):
    assert models.get_model_weights(name).IMAGENET1K_V1.url == WEIGHTS_URLS[name]
    theirs = {k: v.shape for k, v in on_meta(getattr(models, name)).state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in on_meta(build_backbone, name).state_dict().items()} == theirs


def test_resnet18_computes_what_torchvision_computes(models):
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
    stages = (1, 2, 3) if name.endswith("_naic") else (1, 2)
    assert ends == ["bn1", *(f"layer{i}.{len(getattr(net, f'layer{i}')) - 1}.IN" for i in stages)]


@pytest.mark.parametrize("name", ALL)
def test_map_has_feat_dim_channels(name):
    first = build_backbone(name, last_stride=1).eval()
    others = [] if name in FIXED else [(2, with_weights(name, 2, first.state_dict()))]
    for last_stride, net in ((1, first), *others):
        with torch.no_grad():
            features = net(torch.randn(1, 3, 64, 32))
        side = 32 if name.startswith("solider") else 16 * last_stride
        assert features.shape == (1, net.feat_dim, 64 // side, 32 // side)
        assert torch.isfinite(features).all()


@pytest.mark.parametrize(("name", "last_stride"), [
    (name, stride) for name in BACKBONES for stride in (1, 2) if stride == 1 or name not in FIXED])
def test_a_256x128_image_gives_a_16x8_or_8x4_map(name, last_stride):
    net = on_meta(build_backbone, name, last_stride).eval()
    with torch.no_grad():
        out = net(torch.empty(1, 3, 256, 128, device="meta"))
    last_stride = 2 if name.startswith("solider") else last_stride
    assert out.shape == (1, net.feat_dim, 16 // last_stride, 8 // last_stride)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in FIXED])
def test_last_stride_changes_only_the_last_stage(name):
    def strides(last_stride):
        net = on_meta(build_backbone, name, last_stride)
        last = tuple(f"{module}." for module in net.stage_names[-1])
        return {key: m.stride for key, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.AvgPool2d))}, last

    (first, last), (second, _) = strides(1), strides(2)
    changed = {key for key in first if first[key] != second[key]}
    assert len(changed) == (1 if name in EFFICIENT else 2)
    assert all(key.startswith(last) for key in changed)


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


def test_published_weights_are_of_known_backbones():
    assert set(WEIGHTS_URLS) <= set(BACKBONES)
    assert all(url.startswith("https://") and url.endswith(".pth") for url in WEIGHTS_URLS.values())


@pytest.mark.parametrize("name", [SMALL, "resnet18_ibn_a", "resnest50", "efficientnet_b0", "fastreid_r50_nl",
                                  "osnet_ain_x0_25", "solider_swin_tiny", "clip_rn50"])
@pytest.mark.parametrize("n", [-1, 0, 2, 4])
def test_frozen_stages_stay_frozen_after_train(name, n):
    torch.manual_seed(0)
    net = build_backbone(name)
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
    groups = [net.stem_names, *net.stage_names]
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    for i, names in enumerate(groups):
        inside = {key for key in moved if key.startswith(tuple(f"{name}." for name in names))}
        assert bool(inside) == (i > n), names
    assert sum(len([k for k in before if k.startswith(tuple(f"{m}." for m in g))]) for g in groups) == len(before)


def test_a_frozen_efficientnet_drops_no_connection():
    net = build_backbone("efficientnet_b0")
    freeze_stages(net, 4)
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(net.train()(x), net.train()(x))


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ValueError, match="FROZEN=5"):
        freeze_stages(on_meta(build_backbone, SMALL), 5)
