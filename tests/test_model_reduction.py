"""MODEL.EMBED_DIM: every head with fewer numbers, from training to an embedding, and files with and without it."""
import logging
from functools import partial

import numpy as np
import pytest
import torch
from conftest import model_config
from test_model_published import fill, published, shapes_of, tokens
from torch.nn import functional as F

from configs import ConfigError, load_cfg
from datasets.transforms import Normalize
from loss.make_loss import make_loss
from model.backbones import BACKBONES
from model.make_model import make_model
from processor.import_weights import import_weights
from processor.trained_model import open_trained
from processor.visual.maps import location_features
from solver.make_optimizer import make_optimizer

PIDS = torch.tensor([0, 0, 1, 1])
HEADS = {
    "BNNeck": {},
    "no neck": {"MODEL__NECK": "no"},
    "GeM and the center loss": {"MODEL__POOLING_METHOD": "GeM", "MODEL__GEM_LEARN_P": True,
                                "MODEL__METRIC_LOSS_TYPE": "triplet_center", "MODEL__ID_LOSS_TYPE": "arcface"},
    "the metric loss alone": {"DATALOADER__SAMPLER": "triplet"},
    "merged parts": {"MODEL__IF_USE_PCB": True, "MODEL__PCB_RPP": True},
    "token": {"MODEL__NAME": "vit_tiny", "MODEL__POOLING_METHOD": "token"},
    "JPM": {"MODEL__NAME": "vit_tiny", "MODEL__POOLING_METHOD": "token", "MODEL__JPM": True},
    "JPM, the metric loss alone": {"MODEL__NAME": "vit_tiny", "MODEL__POOLING_METHOD": "token", "MODEL__JPM": True,
                                   "DATALOADER__SAMPLER": "triplet"},
    "PASS": {"MODEL__NAME": "pass_vit_small", "MODEL__POOLING_METHOD": "token"},
}
# Beside `global` at 24.
WIDTHS = {"merged parts": {"global": 24, "merged": 24}, "JPM": {"global": 5 * 24}, "PASS": {"global": 2 * 24},
          "JPM, the metric loss alone": {"global": 5 * 24}}


def config(**keys):
    return model_config(**{"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], **keys})


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """A vision transformer of two blocks: what stands behind it is tested here."""
    for name in ("vit_tiny", "pass_vit_small"):
        monkeypatch.setitem(BACKBONES, name, partial(BACKBONES[name], depth=2))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_embeds_at_the_reduced_width(head):
    cfg = config(MODEL__EMBED_DIM=24, **HEADS[head])
    torch.manual_seed(0)
    model = make_model(cfg, 2).train()
    criterion = make_loss(cfg, 2, model.feat_dims)
    optimizer, _ = make_optimizer(cfg, model, criterion)
    outputs = model(torch.randn(4, 3, 64, 32), PIDS)
    for branch, dim in model.feat_dims.items():
        assert outputs[branch].metric_feat.shape == (4, dim)
    assert model.feat_dims["global"] == (48 if head == "PASS" else 24)
    criterion(outputs, PIDS)[0].backward()
    reductions = [p for name, p in model.named_parameters() if "reduction" in name]
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert reductions
    assert all(p.grad.abs().max() > 0 and id(p) in learning for p in reductions if p.ndim == 2)
    with torch.no_grad():
        feats = model.eval()(torch.randn(3, 3, 64, 32))
    assert {branch: feat.shape[1] for branch, feat in feats.items()} == model.embedding_dims
    assert model.embedding_dims == WIDTHS.get(head, {"global": 24})


def test_without_it_weights_and_their_first_values_are_as_ever():
    torch.manual_seed(3)
    plain = make_model(config(), 5)
    assert load_cfg(None, []).MODEL.EMBED_DIM == 0
    assert not [key for key in plain.state_dict() if "reduction" in key]
    torch.manual_seed(3)
    reduced = make_model(config(MODEL__EMBED_DIM=24), 5)
    for key, value in plain.base.state_dict().items():
        assert torch.equal(value, reduced.base.state_dict()[key]), key


@pytest.mark.parametrize("neck", ["bnneck", "no"])
def test_an_embedding_is_the_pooled_feature_times_a_matrix_and_through_one_batch_norm(neck):
    torch.manual_seed(0)
    model = make_model(config(MODEL__EMBED_DIM=24, MODEL__NECK=neck), 2)
    model.train()(torch.randn(8, 3, 64, 32), torch.arange(8) % 2)  # the norm has statistics
    x, norm = torch.randn(2, 3, 64, 32), model.bottleneck if neck == "bnneck" else model.reduction.norm
    model.eval()
    with torch.no_grad():
        pooled = model.base(x).mean((2, 3)).double()
        reduced = pooled @ model.reduction.linear.weight.T.double()
        expected = (reduced - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(model(x)["global"].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neck", ["bnneck", "no"])
def test_a_map_adds_up_to_the_reduced_embedding(neck):
    model = make_model(config(MODEL__EMBED_DIM=24, MODEL__NECK=neck), 2)
    model.train()(torch.randn(8, 3, 64, 32), torch.arange(8) % 2)
    normalize, image = Normalize([0.5] * 3, [0.5] * 3), torch.randint(0, 256, (64, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.eval()(normalize(image[None]))["global"][0]
    torch.testing.assert_close(location_features(model, normalize, image, False).sum((1, 2)), expected,
                               rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ files
def saved(path, **keys):
    torch.manual_seed(1)
    model = make_model(config(**keys), 5)
    torch.save({"model": model.state_dict()}, path)
    return model


def start_from(path, **keys):
    return make_model(config(MODEL__PRETRAIN_CHOICE="self", MODEL__PRETRAIN_PATH=str(path), **keys), 2)


@pytest.mark.parametrize("keys", [{}, HEADS["merged parts"], HEADS["JPM"]], ids=["global", "parts", "JPM"])
def test_a_reduction_that_the_file_has_not_is_new_and_said(tmp_path, caplog, keys):
    old = saved(tmp_path / "wide.pth", **keys)
    with caplog.at_level(logging.INFO):
        new = start_from(tmp_path / "wide.pth", MODEL__EMBED_DIM=24, **keys)
    assert "has no reduction: that to MODEL.EMBED_DIM=24 is new" in caplog.text
    for key, value in old.base.state_dict().items():
        assert torch.equal(new.base.state_dict()[key], value), key


def test_a_reduction_of_the_same_width_is_taken_and_another_is_named(tmp_path):
    old = saved(tmp_path / "narrow.pth", MODEL__EMBED_DIM=24)
    new = start_from(tmp_path / "narrow.pth", MODEL__EMBED_DIM=24)
    assert torch.equal(new.reduction.linear.weight, old.reduction.linear.weight)
    for other in (0, 32):
        with pytest.raises(ValueError, match=r"reduced to 24 numbers: set MODEL\.EMBED_DIM to 24"):
            start_from(tmp_path / "narrow.pth", MODEL__EMBED_DIM=other)


def test_texts_and_a_reduction_do_not_go_together():
    with pytest.raises(ConfigError, match=r"MODEL\.EMBED_DIM=256 .*MODEL\.PROMPTS=a\.pth"):
        load_cfg(None, ["MODEL.EMBED_DIM", "256", "MODEL.PROMPTS", "a.pth"])


def reduced_file(width, **changes):
    """The keys of fast-reid's BoT with EMBEDDING_DIM: a convolution at 0 of the neck."""
    norm = {f"heads.bottleneck.0.{name}": None for name in ("bias", "num_batches_tracked", "running_mean",
                                                            "running_var")}
    keys = {f"heads.bottleneck.1.{name}": torch.empty(width) for name in ("weight", "bias", "running_mean",
                                                                        "running_var")}
    return shapes_of("fastreid_bot_R50-ibn", **norm, **keys, **{
        "heads.bottleneck.0.weight": torch.empty(width, 2048, 1, 1), "heads.weight": torch.empty(751, width),
        "heads.bottleneck.1.num_batches_tracked": torch.empty(()), **changes})


def test_fast_reids_embedding_layer_becomes_the_reduction(tmp_path):
    state = reduced_file(48)
    result = published(state)
    assert (result.layout.title, result.config["MODEL.EMBED_DIM"]) == ("fast-reid BoT, reduced (EMBEDDING_DIM)", 48)
    assert sorted(key for keys in result.account.values() for key in keys) == sorted(state)
    filled = {key: torch.from_numpy(np.asarray(fill.fill_array(key, tuple(value.shape))))
              for key, value in state.items()}
    torch.save({"model": filled}, tmp_path / "file.pth")
    import_weights(tmp_path / "file.pth", tmp_path / "model")
    trained = open_trained(tmp_path / "model")
    assert (trained.info.architecture["MODEL.EMBED_DIM"], trained.info.dim) == (48, 48)
    images = torch.from_numpy(tokens.golden_image(64, 32, 2))
    with torch.no_grad():
        x = F.conv2d(trained.model.base(images).mean((2, 3), keepdim=True), filled["heads.bottleneck.0.weight"])
        expected = F.batch_norm(x, *(filled[f"heads.bottleneck.1.{name}"] for name in (
            "running_mean", "running_var", "weight", "bias")))[..., 0, 0]
        torch.testing.assert_close(trained.model(images)["global"], expected, rtol=1e-4, atol=1e-5)
