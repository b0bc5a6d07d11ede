"""The loader of starting weights: what it takes, what it refuses, and in which words."""
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_golden_fill
from torch import nn

from model.backbones import build_backbone
from model.pretrained import MODEL_HEADS, load_pretrained, unwrap_state_dict

GOLDEN = Path(__file__).parent / "golden"
NAME = "resnet18_ibn_b"


fill = load_golden_fill()


class Gates(nn.Module):
    """A small module with a key that has "fc" in its middle, as the gates of SE blocks have."""

    def __init__(self, width=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 1)
        self.se = nn.ModuleDict({"fc": nn.Linear(width, 2)})


def save(path, data):
    torch.save(data, path)
    return path


@pytest.mark.parametrize("style", ["flat", "old", "wrapped"])
def test_published_file_styles_give_the_golden_features(tmp_path, style):
    path = save(tmp_path / "w.pth", fill.golden_checkpoint(NAME, style))
    net = build_backbone(NAME)
    report = load_pretrained(net, path)
    counters = sum(key.endswith("num_batches_tracked") for key in net.state_dict())
    assert len(report.loaded) == len(net.state_dict()) - (counters if style == "old" else 0)
    assert report.missing == report.unexpected == report.mismatched == ()
    with torch.no_grad():
        features = net.eval()(torch.from_numpy(fill.golden_input("main"))).numpy()
    assert fill.compare(np.load(GOLDEN / "backbones" / f"{NAME}.npz"), "main_ls1", features) == []


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "params"])
def test_wrappers_and_the_parallel_prefix_are_removed(tmp_path, wrapper):
    source, target = Gates(), Gates()
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    report = load_pretrained(target, save(tmp_path / "w.pth", {wrapper: state, "epoch": 3}))
    assert len(report.loaded) == 4
    assert torch.equal(target.se["fc"].weight, source.se["fc"].weight)


def test_only_the_classifier_is_left_out_and_not_every_fc(tmp_path):
    source, target = Gates(), Gates()
    state = {**source.state_dict(), "fc.weight": torch.zeros(9, 9), "fc.bias": torch.zeros(9)}
    load_pretrained(target, save(tmp_path / "w.pth", state))
    assert torch.equal(target.se["fc"].weight, source.se["fc"].weight)


def test_module_in_the_middle_of_a_key_stays(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"module": nn.Linear(2, 2)})

    report = load_pretrained(Wrapped(), save(tmp_path / "w.pth", Wrapped().state_dict()))
    assert report.loaded == ("inner.module.weight", "inner.module.bias")


def test_skipped_heads_may_have_any_shape(tmp_path):
    source, target = nn.ModuleDict({"base": nn.Linear(2, 2), "classifier": nn.Linear(2, 9)}), None
    target = nn.ModuleDict({"base": nn.Linear(2, 2), "classifier": nn.Linear(2, 5)})
    path = save(tmp_path / "w.pth", {"model": source.state_dict(), "epoch": 1})
    report = load_pretrained(target, path, skip=MODEL_HEADS)
    assert report.loaded == ("base.weight", "base.bias")


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path):
    state = Gates(width=4).state_dict()
    state["conv2.weight"] = state.pop("conv1.bias")
    target = Gates()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_pretrained(target, save(tmp_path / "w.pth", state))
    text = str(caught.value)
    assert "w.pth" in text
    assert "1 missing: conv1.bias" in text
    assert "1 unexpected: conv2.weight" in text
    assert "2 misshapen: conv1.weight [4, 3, 1, 1], here [3, 3, 1, 1], se.fc.weight [2, 4], here [2, 3]" in text
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_long_list_of_names_is_cut_to_ten(tmp_path):
    state = {f"x{i:02}.weight": torch.zeros(1) for i in range(25)}
    with pytest.raises(ValueError, match=r"25 unexpected: x00.weight, .*x09.weight, \.\.\. \(15 more\)"):
        load_pretrained(Gates(), save(tmp_path / "w.pth", state))


def test_allowed_gaps_are_reported_and_logged(tmp_path, caplog):
    state = Gates().state_dict()
    state["conv2.weight"] = state.pop("conv1.bias")
    path = save(tmp_path / "w.pth", state)
    with caplog.at_level("INFO"):
        report = load_pretrained(Gates(), path, allow_missing=["conv1.*"], allow_unexpected=["conv2.*"])
    assert str(report) == "3 weights loaded; 1 missing: conv1.bias; 1 unexpected: conv2.weight"
    assert str(report) in caplog.text


def test_misshapen_weights_are_never_allowed(tmp_path):
    path = save(tmp_path / "w.pth", Gates(width=4).state_dict())
    with pytest.raises(ValueError, match="3 misshapen"):
        load_pretrained(Gates(), path, allow_missing=["*"], allow_unexpected=["*"])


@pytest.mark.parametrize(("file_of", "given_to"), [
    ("resnet18", NAME), (NAME, "resnet18"), ("resnet18_ibn_a", NAME), ("efficientnet_b0", "efficientnet_b7"),
    ("resnet50_ibn_b_naic", "resnet50_ibn_b"),
])
def test_a_file_of_another_backbone_is_recognised(tmp_path, file_of, given_to):
    with torch.device("meta"):
        net = build_backbone(given_to)
    path = save(tmp_path / "w.pth", {**build_backbone(file_of).state_dict(), "fc.weight": torch.zeros(9, 2)})
    with pytest.raises(ValueError, match=f"the file is of {file_of}: set MODEL.NAME to {file_of}$"):
        load_pretrained(net, path)


def test_a_lineage_norm_in_layer3_is_explained(tmp_path):
    state = build_backbone(NAME).state_dict()
    state["layer3.1.IN.weight"] = torch.ones(256)
    with pytest.raises(ValueError, match=r"choose a MODEL\.NAME that ends in _ibn_b_naic"):
        load_pretrained(build_backbone(NAME), save(tmp_path / "w.pth", state))


def test_the_lineages_own_ibn_b_may_start_from_imagenet(tmp_path):
    path = save(tmp_path / "w.pth", build_backbone("resnet50_ibn_b").state_dict())
    net = build_backbone("resnet50_ibn_b_naic")
    report = load_pretrained(net, path, allow_missing=net.may_miss)
    assert report.missing == ("layer3.5.IN.weight", "layer3.5.IN.bias")


@pytest.mark.parametrize("name", ["resnet50_ibn_a", "se_resnet50_ibn_a", "resnest50", "efficientnet_b0"])
@pytest.mark.parametrize("style", ["flat", "old", "wrapped"])
def test_every_familys_file_loads_whole(tmp_path, name, style):
    net = build_backbone(name)
    report = load_pretrained(net, save(tmp_path / "w.pth", fill.golden_checkpoint(name, style)))
    parameters = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    assert parameters <= set(report.loaded)
    assert report.missing == report.unexpected == report.mismatched == ()


def test_a_lineage_checkpoint_with_parts_gets_our_names(tmp_path):
    part = {f"module.pcb.{key}": torch.zeros(1) for key in (
        "local_conv_list.3.add_block.1.running_var", "dy_weight5.2.bias", "instance0.weight", "instance_merge.bias",
        "local_conv.weight", "feat_bn2d.weight", "bn.running_mean")}
    assert set(unwrap_state_dict(part, "w.pth")) == {
        "pcb.embeddings.3.1.running_var", "pcb.gates.5.2.bias", "pcb.classifiers.part0.weight",
        "pcb.classifiers.merged.bias", "pcb.local.0.weight", "pcb.local.1.weight"}


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "w.pth", {"state_dict": Gates().state_dict(), "hook": Evil()})
    with pytest.raises(ValueError, match="never as code"):
        load_pretrained(Gates(), path)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match=r"raw\.pth"):
        load_pretrained(Gates(), tmp_path / "raw.pth")
    assert not Path("touched-by-a-pickle").exists()


def test_truncated_file_is_named(tmp_path):
    path = save(tmp_path / "w.pth", Gates().state_dict())
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"w\.pth"):
            load_pretrained(Gates(), path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_pretrained(Gates(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("data", [{}, {"epoch": 3, "best": 0.5}, {"state_dict": {"a": 1}}])
def test_file_without_weights_says_what_it_holds(tmp_path, data):
    with pytest.raises(ValueError, match=r"expected a dict of weights, it holds (nothing|epoch, best|a)"):
        load_pretrained(Gates(), save(tmp_path / "w.pth", data))


def test_safetensors_file_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = Gates(), Gates()
    safetensors.save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_pretrained(target, tmp_path / "w.safetensors")
    assert torch.equal(target.conv1.weight, source.conv1.weight)
