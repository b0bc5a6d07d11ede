"""The keys of every published file that we have a list of, and what becomes of it. A new list needs a row."""
import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model_networks import tokens
from test_model_published import GOLDEN, tie_forward_to_embedder

from model.backbones import PREFIX, build_backbone
from model.backbones.timm_models import Timm
from model.published import LAYOUTS, convert, recognise
from processor.import_weights import import_weights
from processor.trained_model import open_trained
from utils.files import read_json

# Key list -> its layout, and the network; a layout that is refused has no network.
OUTCOMES = {
    "clipreid_rn50": ("clipreid", "clip_rn50"),
    "clipreid_rn50_checkpoint": ("clipreid", "clip_rn50"),
    "clipreid_vit_b16": ("clipreid", "clip_vit_b16"),
    "clipreid_vit_b16_checkpoint": ("clipreid", "clip_vit_b16"),
    "clipreid_vit_b16_s12_sie": ("clipreid", "clip_vit_b16"),
    "clipreid_vit_b16_sie": ("clipreid", "clip_vit_b16"),
    "dinov2_vit_base": ("dinov2", "timm:vit_base_patch14_dinov2"),
    "dinov2_vit_base_reg4": ("dinov2", "timm:vit_base_patch14_reg4_dinov2"),
    "dinov2_vit_small": ("dinov2", "timm:vit_small_patch14_dinov2"),
    "fastreid_agw_R50": ("fastreid_agw", "fastreid_r50_nl"),
    "fastreid_bot_R50": ("fastreid_bot", "fastreid_r50"),
    "fastreid_bot_R50-ibn": ("fastreid_bot", "fastreid_r50_ibn"),
    "fastreid_bot_S50": ("fastreid_bot", "resnest50"),
    "fastreid_bot_vit": ("fastreid_vit", "vit_base"),
    "fastreid_mgn_R50-ibn": ("fastreid_mgn", ""),
    "fastreid_sbs_R101-ibn": ("fastreid_sbs", "fastreid_r101_ibn_nl"),
    "fastreid_sbs_R50": ("fastreid_sbs", "fastreid_r50_nl"),
    "fastreid_sbs_R50-ibn": ("fastreid_sbs", "fastreid_r50_ibn_nl"),
    "pass_vit_base": ("pass", "pass_vit_base"),
    "pass_vit_small": ("pass", "pass_vit_small"),
    "pass_vit_small_mean": ("pass", "pass_vit_small"),
    "personvit_vit_small": ("transreid", "vit_small"),
    "personvit_vit_tiny": ("transreid", "vit_tiny"),
    "solider_swin_base": ("solider", "solider_swin_base"),
    "solider_swin_small": ("solider", "solider_swin_small"),
    "solider_swin_tiny": ("solider", "solider_swin_tiny"),
    "ssl_vit_base_ics": ("transreid", "vit_base_ics"),
    "ssl_vit_small": ("transreid", "vit_small"),
    "ssl_vit_small_ics": ("transreid", "vit_small_ics"),
    "timm_convnext_tiny": ("convnext", "timm:convnext_tiny"),
    "timm_deit_base_distilled_patch16_224": ("vit", "vit_base"),
    "timm_deit_small_distilled_patch16_224": ("vit", "vit_small"),
    "timm_swin_base_patch4_window7_224": ("swin", "timm:swin_base_patch4_window7_224"),
    "timm_vit_base_patch14_dinov2": ("timm_dino", "timm:vit_base_patch14_dinov2"),
    "timm_vit_base_patch14_reg4_dinov2": ("timm_dino", "timm:vit_base_patch14_reg4_dinov2"),
    "timm_vit_base_patch16_224": ("vit", "vit_base"),
    "timm_vit_base_patch16_dinov3": ("timm_dino", "timm:vit_base_patch16_dinov3"),
    "timm_vit_small_patch14_dinov2": ("timm_dino", "timm:vit_small_patch14_dinov2"),
    "timm_vit_small_patch16_224": ("vit", "vit_small"),
    "timm_vit_small_patch16_dinov3": ("timm_dino", "timm:vit_small_patch16_dinov3"),
    "torchreid_osnet_ain_x1_0": ("osnet", "osnet_ain_x1_0"),
    "torchreid_osnet_ibn_x1_0": ("osnet", "osnet_ibn_x1_0"),
    "torchreid_osnet_x0_25": ("osnet", "osnet_x0_25"),
    "torchreid_osnet_x1_0": ("osnet", "osnet_x1_0"),
    "torchvision_convnext_tiny": ("torchvision_convnext", "timm:convnext_tiny"),
    "torchvision_swin_b": ("torchvision_swin", "timm:swin_base_patch4_window7_224"),
    "torchvision_swin_t": ("torchvision_swin", "timm:swin_tiny_patch4_window7_224"),
    "torchvision_vit_b_16": ("torchvision_vit", "vit_base"),
    "transreid_deit_small": ("transreid", "vit_small"),
    "transreid_vit_base_s12": ("transreid", "vit_base"),
    "transreid_vit_base_s12_sie_jpm": ("transreid_jpm", "vit_base"),
    "transreid_vit_base_s16": ("transreid", "vit_base"),
    "transreid_vit_base_s16_jpm": ("transreid_jpm", "vit_base"),
    "transreid_vit_base_s16_sie": ("transreid", "vit_base"),
    "transreid_vit_small": ("transreid", "transreid_vit_small"),
}


@functools.cache
def key_lists():
    """{list: {key: shape}}, those beside golden numbers and those without."""
    with gzip.open(f"{GOLDEN}/key_lists.json.gz", "rt") as file:
        lists = json.load(file)
    for path in Path(GOLDEN).glob("*.keys.json"):
        spec = read_json(path)
        lists[path.name.removesuffix(".keys.json")] = dict((*spec["keys"], *spec["excluded"]))
    return lists


def filled(name):
    """A file of these keys with the golden values."""
    def value(key, shape):
        if key.endswith("relative_position_index"):
            index = torch.from_numpy(tokens.window_index(49))
            return index.flatten() if len(shape) == 1 else index
        if key.endswith("attn_mask"):
            return torch.zeros(shape)
        return torch.from_numpy(np.asarray(tokens.fill_array(key, shape)))

    return {key: value(key, shape) for key, shape in key_lists()[name].items()}


def of_shapes(name):
    return {key: torch.empty(shape, device="meta") for key, shape in key_lists()[name].items()}


def test_every_list_has_a_row():
    assert OUTCOMES.keys() == key_lists().keys()


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if network.startswith(PREFIX) and "tiny" not in network else [])
    for name, (_, network) in OUTCOMES.items()])
def test_a_key_list_is_recognised_with_a_meaning_for_every_key_or_refused_by_name(name):
    state, (layout, network) = of_shapes(name), OUTCOMES[name]
    assert recognise(state, "file") == layout
    if not network:
        with pytest.raises(ValueError, match=f"{LAYOUTS[layout].title}.*not built here"):
            convert(state, layout, "file")
        return
    result = convert(state, layout, "file")
    assert result.config["MODEL.NAME"] == network
    assert sorted(key for keys in result.account.values() for key in keys) == sorted(state)
    heads = ("classifier", "heads.", "head.", "head_dist.", "base.fc.")
    assert all(key.startswith(heads) for key in result.account["skipped as head"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, network) in OUTCOMES.items() if network])
def test_a_file_of_a_key_list_is_imported_strictly_and_its_embedder_gives_what_forward_gives(tmp_path, name):
    torch.save(filled(name), tmp_path / "file.pth")
    import_weights(tmp_path / "file.pth", tmp_path / "folder")
    tie_forward_to_embedder(tmp_path / "folder")


# ------------------------------------------------------------------ networks of timm
@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def imported(tmp_path, state, *opts):
    torch.save(state, tmp_path / "file.pth")
    lines = import_weights(tmp_path / "file.pth", tmp_path / "folder", opts=opts)
    return open_trained(tmp_path / "folder"), lines


def as_its_authors_name_it(state, head="head."):
    """A Swin of timm's as its authors' file: merging behind a stage, buffers, a classifier."""
    theirs = {}
    for key, value in state.items():
        stage = key.split(".")[1] if ".downsample." in key else ""
        theirs[key.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.") if stage else key] = value
    return {"model": {**theirs, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49), f"{head}weight": torch.ones(3),
                      "layers.0.blocks.0.attn.relative_position_index": torch.from_numpy(tokens.window_index(49))}}


@pytest.mark.slow
@torch.no_grad()
def test_a_file_of_swins_authors_gives_timms_map_and_for_soliders_network_that_of_whole_windows(timm, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    net = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0).eval()
    file = as_its_authors_name_it(net.state_dict())
    trained, _ = imported(tmp_path, file)
    theirs = net.forward_features(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(trained.model.base(images), theirs)
    # SOLIDER's rolls even where one window covers the map; timm's does so if it always cuts windows.
    whole = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, always_partition=True)
    whole.load_state_dict(net.state_dict())
    theirs = whole.eval().forward_features(images).permute(0, 3, 1, 2)
    for number, state in enumerate((file, net.state_dict())):
        (tmp_path / str(number)).mkdir()
        trained, _ = imported(tmp_path / str(number), state, "MODEL.NAME", "solider_swin_tiny")
        torch.testing.assert_close(trained.model.base(images), theirs, rtol=1e-4, atol=1e-4)


def test_the_merging_of_swins_authors_has_the_published_order_for_soliders_network():
    from model.backbones.transformers.solider import _of_swin

    archive = np.load(f"{GOLDEN}/pos_embed_resize.npz")
    for kind, value in (("norm", torch.arange(24)), ("reduction", torch.arange(24).expand(12, 24))):
        name = f"layers.0.downsample.{kind}.weight"
        (ours,) = _of_swin({name: value}).values()
        assert ours.reshape(-1, 24)[-1].tolist() == archive[f"solider/merge_order_C6_{kind}"].tolist()


def test_biases_of_windows_of_another_size_are_resized_by_soliders_rule(monkeypatch):
    from model.backbones.transformers import solider

    archive = np.load(f"{GOLDEN}/pos_embed_resize.npz")
    monkeypatch.setattr(solider, "WINDOW", 12)
    ours = solider._resize_biases(torch.from_numpy(archive["solider/bias_table_7_source"]))
    np.testing.assert_allclose(ours, archive["solider/bias_table_7_to_12"], atol=1e-6)


def test_a_swin_that_solider_does_not_have_is_refused():
    state = {f"layers.0.blocks.{i}.norm1.weight": torch.empty(8) for i in range(3)}
    with pytest.raises(ValueError, match="3 blocks and width 8: SOLIDER has none"):
        convert({**state, "patch_embed.proj.weight": torch.empty(8, 3, 4, 4)}, "solider_of_swin", "file")


def test_positions_of_a_dinov2_file_are_resized_by_its_rule_and_those_of_timms_by_timms(timm):
    archive = np.load(f"{GOLDEN}/pos_embed_resize.npz")
    net = Timm("vit_small_patch14_dinov2", size=(252, 126))
    table = torch.zeros(1, 1370, 384)
    table[..., :8] = torch.from_numpy(archive["dinov2/source_37x37"])
    state = {**net.net.state_dict(), "pos_embed": table}
    ours = net.fit({**state, "mask_token": torch.empty(1, 384)}, "")["net.pos_embed"][..., :8]
    np.testing.assert_allclose(ours, archive["dinov2/plain_37x37_to_18x9"], atol=1e-5)
    np.testing.assert_allclose(net.fit(state, "")["net.pos_embed"][..., :8], archive["timm/37x37_to_18x9"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
@torch.no_grad()
def test_torchvisions_networks_give_their_own_maps(timm, tmp_path, name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net = getattr(models, name)(weights=None).eval()
    trained, _ = imported(tmp_path, net.state_dict())
    images = torch.randn(1, 3, *trained.info.size)
    theirs = net.features(images)
    theirs = net.norm(theirs).permute(0, 3, 1, 2) if name == "swin_t" else theirs
    torch.testing.assert_close(trained.model.base(images), theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fast_reids_transformer_gives_the_class_token_behind_its_neck(tmp_path):
    torch.manual_seed(0)
    net, neck = build_backbone("vit_tiny").eval(), torch.nn.BatchNorm1d(192).eval()
    neck.running_mean.normal_()
    state = {**net.state_dict(prefix="backbone."), **neck.state_dict(prefix="heads.bottleneck.0."),
             "heads.weight": torch.empty(5, 192)}
    trained, _ = imported(tmp_path, {"model": state, "iteration": 3})
    images = torch.randn(2, 3, 256, 128)
    torch.testing.assert_close(trained.model(images)["global"], neck(net.features(images).token))
    assert trained.info.preprocessing["mean"] == [0.5] * 3
