"""Fine-tuning with a grown, shrunk or re-ordered set of identities."""
import pytest
import torch

from configs.defaults import get_cfg_defaults
from loss.make_loss import make_loss
from model.identities import transfer_identities
from model.make_model import make_model
from model.pretrained import MODEL_HEADS

OLD = ["a", "b", "c", "d"]


def build(names, seed, **keys):
    cfg = get_cfg_defaults()
    cfg.MODEL.NAME, cfg.MODEL.PRETRAIN_CHOICE, cfg.DATALOADER.SAMPLER = "resnet18_ibn_b_w32", "none", "softmax_triplet"
    cfg.MODEL.METRIC_LOSS_TYPE, cfg.MODEL.IF_USE_PCB, cfg.MODEL.ID_LOSS_TYPE = "triplet_center", True, "arcface"
    torch.manual_seed(seed)
    model = make_model(cfg, len(names))
    return {"model": model, "criterion": make_loss(cfg, len(names), model.feat_dims)}


def checkpoint(names, seed=0):
    modules = build(names, seed)
    return {**{part: module.state_dict() for part, module in modules.items()}, "pid_names": names}


def tables(modules):
    state = {**modules["model"].state_dict(), **modules["criterion"].state_dict()}
    return {key: value for key, value in state.items() if key.startswith(MODEL_HEADS) or key.endswith("centers")}


@pytest.mark.parametrize("names", [3, "abcd", [1, "b"], [["a"]], torch.zeros(4)])
def test_names_that_are_none_are_refused(names):
    with pytest.raises(ValueError, match=r"old\.pth: damaged, or of another program: pid_names is no list of names"):
        transfer_identities(build(OLD, 1), {**checkpoint(OLD), "pid_names": names}, OLD, "old.pth")


@pytest.mark.parametrize("new", [["d", "a", "c", "b"], ["e", "c", "a", "b", "d", "f"], ["c"], OLD])
def test_rows_follow_the_name_and_unknown_identities_start_anew(new, caplog):
    old = checkpoint(OLD)
    modules = build(new, 1)
    before = {key: value.clone() for key, value in tables(modules).items()}
    with caplog.at_level("INFO"):
        known = transfer_identities(modules, old, new, "old.pth")
    assert known == len(set(new) & set(OLD))
    source = {**old["model"], **old["criterion"]}
    after = tables(modules)
    assert len(after) == 16  # the global weight, weight and bias of six parts and of the merged one, the centres
    for key, table in after.items():
        for row, name in enumerate(new):
            want = source[key][OLD.index(name)] if name in OLD else before[key][row]
            assert torch.equal(table[row], want), (key, name)
    assert f"{known} of {len(new)} identities are known by name, {len(new) - known} start anew" in caplog.text


def test_averaged_rows_come_before_those_of_the_last_step():
    old = checkpoint(OLD)
    old["ema"] = {key: value + 1 for key, value in old["model"].items()}
    modules = build(OLD[::-1], 1)
    transfer_identities(modules, old, OLD[::-1], "old.pth")
    assert torch.equal(modules["model"].classifier.weight, old["ema"]["classifier.weight"].flip(0))
    assert torch.equal(tables(modules)["centers.global.centers"], old["criterion"]["centers.global.centers"].flip(0))


def test_nothing_but_the_tables_of_identities_moves():
    names = [f"id{i}" for i in range(256)]  # as many as the backbone has channels
    old = checkpoint(names)
    modules = build(names[::-1], 1)
    before = {key: value.clone() for key, value in modules["model"].state_dict().items()}
    transfer_identities(modules, old, names[::-1], "old.pth")
    moved = {k for k, v in modules["model"].state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(key.startswith(MODEL_HEADS) for key in moved)


def test_a_checkpoint_without_names_is_warned_of(caplog):
    assert transfer_identities(build(OLD, 0), {"model": {}}, OLD, "lineage.pth") == 0
    assert "lineage.pth names no identities" in caplog.text


def test_a_checkpoint_of_other_people_is_warned_of(caplog):
    assert transfer_identities(build(["x"], 0), checkpoint(OLD), ["x"], "old.pth") == 0
    assert "knows none of the identities: its first is 'a', here it is 'x'" in caplog.text
