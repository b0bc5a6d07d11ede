"""The loader of starting weights: what it takes, what it refuses, and in which words."""
import argparse
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_golden_fill
from torch import nn

from model.backbones import build_backbone
from model.pretrained import MODEL_HEADS, load_pretrained, unwrap_state_dict
from utils.checkpoint import read_checkpoint

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


# ------------------------------------------------------------------ files of other tools
def golden_weights():
    return fill.golden_checkpoint(NAME, "flat")


def renamed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def test_a_file_of_torchreids_trainer_is_read_with_its_numpy_scalars(tmp_path):
    path = save(tmp_path / "model.pth.tar-10", {
        "state_dict": renamed(golden_weights(), "module."), "epoch": 10, "rank1": np.float64(0.625),
        "optimizer": {"lr": np.float32(0.5), "steps": np.int64(7), "table": np.arange(6).reshape(2, 3)}})
    data = read_checkpoint(path)
    assert (data["rank1"], data["optimizer"]["lr"], data["optimizer"]["steps"]) == (0.625, 0.5, 7)
    assert type(data["rank1"]) is float
    assert torch.equal(data["optimizer"]["table"], torch.arange(6).reshape(2, 3))
    assert len(load_pretrained(build_backbone(NAME), path).loaded) > 100


@pytest.mark.parametrize("namespace", [argparse.Namespace, types.SimpleNamespace])
def test_a_namespace_and_its_paths_are_read_as_a_dict(tmp_path, namespace):
    args = namespace(arch="r18", output=Path("a/b"), lr=np.float64(0.25))
    path = save(tmp_path / "w.pth", {"args": args, "order": OrderedDict(first=np.bool_(True))})
    assert read_checkpoint(path) == {"args": {"arch": "r18", "output": "a/b", "lr": 0.25}, "order": {"first": True}}


def test_numpy_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="numpy values of type O8"):
        read_checkpoint(save(tmp_path / "w.pth", {"a": np.array([{}], dtype=object)}))


def test_reading_a_file_leaves_torchs_table_of_safe_names_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save(tmp_path / "w.pth", {"rank1": np.float64(0.5)}))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("prefix", ["backbone.", "module.module.", "module.encoder_q.", "teacher.", "module.backbone."])
def test_a_prefix_of_other_tools_is_taken_off(tmp_path, prefix):
    report = load_pretrained(build_backbone(NAME), save(tmp_path / "w.pth", renamed(golden_weights(), prefix)))
    assert report.missing == report.unexpected == ()


def test_of_teacher_and_student_the_teacher_is_taken(tmp_path):
    teacher, student = Gates(), Gates()
    path = save(tmp_path / "w.pth", {
        "student": renamed(student.state_dict(), "module."), "teacher": renamed(teacher.state_dict(), "backbone."),
        "epoch": 3, "args": argparse.Namespace(lr=0.1)})
    target = Gates()
    load_pretrained(target, path)
    assert torch.equal(target.conv1.weight, teacher.conv1.weight)


def test_what_stands_beside_a_prefixed_backbone_is_named_and_can_be_allowed(tmp_path):
    state = {**renamed(golden_weights(), "backbone."), "heads.weight": torch.zeros(3, 4)}
    path = save(tmp_path / "w.pth", {"model": state})
    with pytest.raises(ValueError, match=r"1 unexpected: heads\.weight") as error:
        load_pretrained(build_backbone(NAME), path)
    assert "set MODEL." not in str(error.value)  # no advice is better than one that fails
    load_pretrained(build_backbone(NAME), path, allow_unexpected=["heads.*"])


def whole_model(name):
    model = nn.Module()
    model.base, model.bottleneck = build_backbone(name), nn.BatchNorm1d(2)  # without a neck it counts as a backbone
    return model


def test_advice_about_whole_models_and_backbones_names_the_backbone_too(tmp_path):
    whole = save(tmp_path / "whole.pth", whole_model("resnet18_ibn_b_w32").state_dict())
    with pytest.raises(ValueError, match=r"PRETRAIN_CHOICE to self and MODEL\.NAME to resnet18_ibn_b_w32"):
        load_pretrained(build_backbone(NAME), whole)
    with pytest.raises(ValueError, match=r"PRETRAIN_CHOICE to self$"):
        load_pretrained(build_backbone("resnet18_ibn_b_w32"), whole)
    backbone = save(tmp_path / "backbone.pth", build_backbone("resnet18_ibn_b_w32").state_dict())
    with pytest.raises(ValueError, match=r"PRETRAIN_CHOICE to imagenet$"):
        load_pretrained(whole_model("resnet18_ibn_b_w32"), backbone)


def test_no_advice_is_given_about_a_network_that_is_not_known(tmp_path):
    path = save(tmp_path / "w.pth", {"stem.weight": torch.zeros(3), "blocks.0.weight": torch.zeros(3)})
    for module in (build_backbone("resnet18_ibn_b_w32"), whole_model("resnet18_ibn_b_w32")):
        with pytest.raises(ValueError, match="2 unexpected") as error:
            load_pretrained(module, path)
        assert "set MODEL." not in str(error.value)


def test_programs_are_refused_with_what_to_do_instead_and_it_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Gates(), "whole.pth")
    with pytest.raises(ValueError, match=r"test_model_pretrained\.Gates.*torch\.save\(model\.state_dict\(\), FILE\)"):
        read_checkpoint("whole.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), "script.pt")
    with pytest.raises(ValueError, match="TorchScript") as error:
        read_checkpoint("script.pt")
    exec(str(error.value).split("alone: ")[1], {"torch": torch})
    assert set(read_checkpoint("weights.pth")) == {"weight", "bias"}
    with tarfile.open("old.pth", "w") as archive:
        archive.add("whole.pth")
    with pytest.raises(ValueError, match="tar archive"):
        read_checkpoint("old.pth")


def test_a_file_that_unpacks_to_far_more_than_it_is_is_refused_unread(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as source, zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name) + bytes(2**26 if name.endswith("data/0") else 0))
    with pytest.raises(ValueError, match=r"bomb\.pth: promises 67,\d+,\d+ bytes in a file of \d+,\d+;"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", ["module", "scalar", "later protocol"])
def test_torchs_advice_to_unpickle_is_never_passed_on(tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "later protocol":
        torch.save({"rank1": np.float64(1)}, path, pickle_protocol=4)
    else:
        torch.save(Gates() if content == "module" else {"hook": Evil()}, path)
    with pytest.raises(ValueError, match=r"w\.pth") as error:
        read_checkpoint(path)
    assert not any(word in str(error.value) for word in ("weights_only", "safe_globals", "trust", "allowlist"))
