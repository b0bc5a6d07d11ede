"""Files that others published: whose they are, and what every key of them becomes."""
import numpy as np
import pytest
import torch
from conftest import load_golden_fill
from test_model_networks import tokens

from configs import load_cfg
from model import pretrained
from model.backbones import build_backbone
from model.pretrained import unwrap_state_dict
from model.published import convert, recognise
from processor.embedder import Embedder
from processor.export.model_folder import read_info
from processor.import_weights import import_weights
from processor.inference import load_trained
from processor.trained_model import folder_settings, open_trained
from tools.campaigns.tool_server import run_tool
from utils.files import read_json

fill = load_golden_fill()
GOLDEN = tokens.HERE


def shapes_of(name, **changes):
    """The keys of a golden network's file with tensors that have shapes alone; a change None drops a key."""
    spec = read_json(f"{GOLDEN}/{name}.keys.json")
    state = {key: torch.empty(shape, device="meta") for key, shape in (*spec["keys"], *spec["excluded"])}
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


def on_meta(name, prefix=""):
    with torch.device("meta"):
        return {prefix + key: value for key, value in build_backbone(name).state_dict().items()}


def published(state):
    return convert(state, recognise(state, "file"), "file")


def save_golden(path, name, **options):
    """The file of a golden network's upstream, its weights filled."""
    torch.save(tokens.golden_checkpoint(f"{name}.keys.json", **options), path)
    return path


def assert_gives_the_published_feature(folder, name, case, item="emb"):
    model = open_trained(folder).model
    height, width = (int(side) for side in case.partition("_")[0].split("x"))
    batch = 2 if case.startswith("256x128") else 1
    cameras = {"camids": torch.tensor([1, 4] if batch == 2 else [5])} if model.base.uses_sides else {}
    with torch.no_grad():
        feats = model(torch.from_numpy(tokens.golden_image(height, width, batch)), **cameras)
    archive = np.load(f"{GOLDEN}/{name}.npz")
    assert tokens.compare_case(archive, case, {item: torch.cat(list(feats.values()), 1).numpy()}) == []


def tie_forward_to_embedder(folder):
    """A picture through the normalisation and `forward`, and through Embedder.embed(raw=True)."""
    trained = open_trained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (*trained.info.size, 3), np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(trained.info.preprocessing[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        direct = trained.model((pixels - mean) / std)
    feats = Embedder.load(folder, precision="float32").embed(picture, raw=True)
    for branch, feat in direct.items():
        np.testing.assert_allclose(feats[branch], feat.numpy(), rtol=1e-4, atol=1e-4 * feat.abs().max())


# ------------------------------------------------------------------ recognition
def test_the_text_encoder_and_the_prompts_of_clip_reid_are_skipped_as_such():
    texts = ("text_encoder.ln_final.weight", "prompt_learner.cls_ctx", "text_encoder.positional_embedding")
    result = published(shapes_of("clipreid_rn50", **{key: torch.empty(1) for key in texts}))
    assert sorted(result.account["skipped as text encoder"]) == sorted(texts)
    assert not any("text" in key or "prompt" in key for key in result.weights)


def test_clip_reids_two_necks_become_the_neck_of_both_features_side_by_side():
    state = shapes_of("clipreid_rn50")
    state |= {f"{neck}.bias": torch.full((width,), float(width)) for neck, width in (("bottleneck", 2048),
                                                                                    ("bottleneck_proj", 1024))}
    assert published(state).weights["bottleneck.bias"].tolist() == [2048.0] * 2048 + [1024.0] * 1024


def test_openais_clip_is_recognised_beside_its_text_encoder():
    others = ("logit_scale", "token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "context_length",
              "attn_mask", "text.ln_final.weight")
    state = {**on_meta("clip_vit_b16", "visual."), **dict.fromkeys(others, torch.empty(1))}
    result = published(state)
    assert (result.config["MODEL.NAME"], len(result.account["skipped as text encoder"])) == ("clip_vit_b16", 5)


def test_soliders_pretraining_is_recognised_and_without_semantic_layers_has_no_semantic_weight():
    plain = {key: value for key, value in on_meta("solider_swin_tiny", "backbone.").items() if "semantic" not in key}
    assert published(plain).config["MODEL.SEMANTIC_WEIGHT"] == -1
    assert published(shapes_of("solider_swin_tiny")).config["MODEL.SEMANTIC_WEIGHT"] == 0.2


def test_the_last_block_of_transreids_jigsaw_module_stands_for_that_of_the_backbone():
    result = published(shapes_of("transreid_vit_base_s16_jpm"))
    unused = result.account["skipped, no feature depends on it"]
    assert {key.rpartition(".")[0].split(".attn")[0].split(".mlp")[0] for key in unused} == {
        "base.blocks.11", "base.blocks.11.norm1", "base.blocks.11.norm2", "base.norm"}
    assert {"base.blocks.11.norm1.weight", "base.norm.weight", "base.jpm.norm.bias",
            "joint.necks.3.weight"} <= result.weights.keys()
    assert result.config["MODEL.JPM"]


def test_the_table_of_positions_tells_the_size_of_pictures_and_the_stride():
    for count, size, stride in ((128, [256, 128], None), (210, [256, 128], [12, 12]), (192, [384, 128], None),
                                (310, [384, 128], [12, 12]), (196, [224, 224], None)):
        table = torch.empty(1, count + 1, 384, device="meta")
        config = published(shapes_of("personvit_vit_small", **{"base.pos_embed": table})).config
        assert (config["INPUT.SIZE_TRAIN"], config["INPUT.SIZE_TEST"]) == (size, size)
        assert config.get("MODEL.STRIDE_SIZE") == stride


def test_pass_takes_the_mean_of_its_parts_where_the_classifier_is_as_narrow():
    assert published(shapes_of("pass_vit_small")).config["MODEL.FEAT_FUSION"] == "cat"
    narrow = torch.empty(751, 384, device="meta")
    assert published(shapes_of("pass_vit_small", **{"classifier.weight": narrow})).config["MODEL.FEAT_FUSION"] == "mean"


def test_a_pretraining_teacher_is_taken_without_its_head_and_tells_the_shape_of_its_grid():
    inner = {key: value for key, value in shapes_of("personvit_vit_small").items() if key.startswith("base.")}
    file = {key.replace("base.", "module.backbone."): torch.empty(value.shape) for key, value in inner.items()
            if not key.startswith("base.fc.")} | {"module.head.mlp.0.weight": torch.empty(1)}
    result = published(unwrap_state_dict({"student": {}, "teacher": file, "epoch": 3}, "file"))
    assert (result.config["MODEL.NAME"], result.config["MODEL.PRETRAIN_HW_RATIO"]) == ("vit_small", 2)
    assert result.account["skipped as head"] == ["head.mlp.0.weight"]


def test_positions_of_an_imagenet_file_are_resized_and_the_report_says_so(tmp_path):
    state = build_backbone("vit_tiny", size=(224, 224)).state_dict()
    torch.save({**state, "head.weight": torch.empty(3, 192)}, tmp_path / "file.pth")
    lines = import_weights(tmp_path / "file.pth", tmp_path / "folder")
    assert "resized: base.pos_embed [1, 197, 192] to [1, 129, 192]" in lines


def test_a_distilled_deits_second_token_is_left_out_with_its_position(tmp_path):
    state = build_backbone("vit_tiny", size=(256, 128)).state_dict()
    table = torch.randn(1, 14 * 14 + 2, 192)
    torch.save({"model": {**state, "pos_embed": table, "dist_token": torch.empty(1, 1, 192)}}, tmp_path / "file.pth")
    import_weights(tmp_path / "file.pth", tmp_path / "folder")
    positions = open_trained(tmp_path / "folder").model.base.pos_embed
    torch.testing.assert_close(positions[:, 0], table[:, 0])
    torch.testing.assert_close(positions[:, 1:].mean(), table[:, 2:].mean(), rtol=0, atol=0.01)


def test_any_network_of_timm_is_imported_by_its_name_with_its_own_pixels(tmp_path):
    timm = pytest.importorskip("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no network that is small enough")
    torch.manual_seed(0)
    net = timm.create_model("test_vit", pretrained=False, img_size=(64, 32))
    torch.save(net.state_dict(), tmp_path / "file.pth")
    size = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    import_weights(tmp_path / "file.pth", tmp_path / "folder",
                   opts=["MODEL.NAME", "timm:test_vit", "MODEL.POOLING_METHOD", "token", *size])
    trained, images = open_trained(tmp_path / "folder"), torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(trained.model(images)["global"], net.eval().forward_features(images)[:, 0])
    assert trained.info.preprocessing["mean"] == list(net.pretrained_cfg["mean"])


def test_cameras_of_another_set_than_the_imported_models_are_unknown(tmp_path, tiny_data):
    state = {**build_backbone("vit_tiny").state_dict(prefix="base."), "base.sie_embed": torch.randn(3, 1, 192),
             **torch.nn.BatchNorm1d(192).state_dict(prefix="bottleneck.")}
    torch.save(state, tmp_path / "file.pth")
    for names, other in ((["DATASETS.NAMES", "naic"], False), (["DATASETS.NAMES", "msmt17"], True), ([], True)):
        folder = tmp_path / f"folder{len(names)}{other}"
        import_weights(tmp_path / "file.pth", folder, opts=names)
        settings = [word for pair in folder_settings(read_info(folder)).items() for word in pair]
        cfg = load_cfg(None, [*settings, "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", str(tiny_data)])
        assert load_trained(cfg, folder).on_other_set is other


def test_a_table_of_cameras_and_views_is_cut_by_the_number_of_views_that_is_given(tmp_path):
    rows = torch.randn(6, 1, 192)
    state = {**build_backbone("vit_tiny").state_dict(prefix="base."), "base.sie_embed": rows,
             **torch.nn.BatchNorm1d(192).state_dict(prefix="bottleneck.")}
    torch.save(state, tmp_path / "file.pth")
    import_weights(tmp_path / "file.pth", tmp_path / "folder", views=2)
    model = open_trained(tmp_path / "folder").model
    meant = model.sides([3, 1, 9], [1, 0, 1])
    expected = 3 * torch.stack([rows[2 * 2 + 1, 0], rows[0, 0], rows[1::2, 0].mean(0)])
    torch.testing.assert_close(model.base.sie(**meant), expected)
    for views, reason in ((4, "6 rows of cameras and views .* no multiple"), (-1, "no multiple")):
        with pytest.raises(ValueError, match=reason):
            import_weights(tmp_path / "file.pth", tmp_path / "other", views=views)
    with pytest.raises(ValueError, match="give --views N"):
        import_weights(tmp_path / "file.pth", tmp_path / "other", opts=["MODEL.SIE_VIEW", "True"])
    del state["base.sie_embed"]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="has no embeddings of cameras or views"):
        import_weights(tmp_path / "file.pth", tmp_path / "other", views=2)


def test_torchvisions_vision_transformer_gives_its_own_feature(tmp_path):
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    net = vision.VisionTransformer(224, 16, 12, 3, 192, 768).eval()
    torch.save(net.state_dict(), tmp_path / "file.pth")
    size = ["INPUT.SIZE_TRAIN", "[224, 224]", "INPUT.SIZE_TEST", "[224, 224]"]
    import_weights(tmp_path / "file.pth", tmp_path / "folder", opts=size)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens_in = torch.cat([net.class_token, net._process_input(images)], dim=1)
        theirs, ours = net.encoder(tokens_in)[:, 0], open_trained(tmp_path / "folder").model(images)["global"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder_q."])
@pytest.mark.parametrize("name", ["resnet18", "resnet18_ibn_b", "resnet50_ibn_b_naic", "resnest50"])
def test_a_backbones_file_is_recognised_by_its_shapes_under_any_prefix(name, prefix):
    state = {**on_meta(name, prefix), f"{prefix}fc.weight": torch.empty(1000, 512), "encoder_k.x": torch.empty(1)}
    result = published(state)
    assert (result.config["MODEL.NAME"], result.config["MODEL.NECK"]) == (name, "no")
    assert result.account["skipped as head"] == [f"{prefix}fc.weight"]


def test_a_lineage_file_brings_the_neck_and_the_pooling_that_its_keys_tell_of():
    state = {**on_meta("resnet18_ibn_a", "base."), "classifier.weight": torch.empty(5, 512), "gap.p": torch.ones(1),
             **{f"bottleneck.{key}": torch.empty(512) for key in ("weight", "bias", "running_mean", "running_var")}}
    config = published(state).config
    assert {key: config[key] for key in ("MODEL.NAME", "MODEL.NECK", "MODEL.POOLING_METHOD", "MODEL.LAST_STRIDE")} == {
        "MODEL.NAME": "resnet18_ibn_a", "MODEL.NECK": "bnneck", "MODEL.POOLING_METHOD": "GeM", "MODEL.LAST_STRIDE": 1}


def test_agw_pools_with_a_fixed_exponent_and_sbs_with_the_stored():
    sbs = shapes_of("fastreid_sbs_R50-ibn")
    agw = shapes_of("fastreid_sbs_R50-ibn", **{"heads.pool_layer.p": None})
    assert recognise(agw, "file") == "fastreid_agw"
    assert published(agw).config["MODEL.GEM_P"] == 3
    assert "MODEL.GEM_LEARN_P" not in published(agw).config
    assert "gap.p" in published(sbs).weights


def test_older_fast_reid_files_have_their_necks_name_their_pixels_and_an_exponent_that_bot_does_not_use():
    state = shapes_of("fastreid_bot_R50-ibn")
    older = {key.replace("bottleneck.0", "bnneck"): value for key, value in state.items()} | {
        "heads.pool_layer.p": torch.ones(1), "pixel_mean": torch.full((1, 3, 1, 1), 127.5),
        "pixel_std": torch.full((1, 3, 1, 1), 51.0)}
    result = published(older)
    assert result.weights.keys() == published(state).weights.keys()
    assert (result.config["INPUT.PIXEL_MEAN"], result.config["INPUT.PIXEL_STD"]) == ([0.5] * 3, [0.2] * 3)


def test_a_key_without_a_meaning_is_an_error_that_names_it_and_the_layout():
    with pytest.raises(ValueError, match=r"fast-reid BoT.*1 keys have no meaning: heads.extra"):
        published(shapes_of("fastreid_bot_R50-ibn", **{"heads.extra": torch.empty(1)}))


def test_a_weight_that_is_not_there_is_an_error_that_names_it_and_the_nearest_backbone():
    with pytest.raises(ValueError, match=r"nearest is fastreid_r50_ibn; 1 missing: conv1.weight"):
        published(shapes_of("fastreid_bot_R50-ibn", **{"backbone.conv1.weight": None}))


def test_an_unknown_file_is_refused_with_its_keys_and_the_nearest_layout():
    with pytest.raises(ValueError, match=r"no layout that is known here; the nearest is .*timm:NAME.* are a.b, c"):
        recognise({"a.b": torch.empty(1), "c": torch.empty(1)}, "file")


# ------------------------------------------------------------------ numbers
def test_an_imported_backbone_gives_the_published_map_and_its_embedder_the_same(tmp_path):
    spec = read_json(f"{GOLDEN}/../backbones/resnet18_ibn_b.keys.json")
    state = {f"module.{key}": torch.from_numpy(np.asarray(fill.fill_array(key, tuple(shape))))
             for key, shape in (*spec["keys"], *spec["excluded"])}
    torch.save({"state_dict": state, "epoch": np.float64(3), "best": np.int64(1)}, tmp_path / "file.pth")
    lines = import_weights(tmp_path / "file.pth", tmp_path / "folder")
    assert lines[0].endswith("resnet18_ibn_b")
    assert lines[1].startswith("renamed: ")
    model = open_trained(tmp_path / "folder").model
    images = torch.from_numpy(tokens.golden_image(64, 32, 1))
    plain = build_backbone("resnet18_ibn_b", 2).eval()
    plain.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=False)
    with torch.no_grad():
        assert torch.equal(model(images)["global"], plain(images).mean((2, 3)))
    tie_forward_to_embedder(tmp_path / "folder")


NUMBERS = [
    ("torchreid_osnet_ain_x1_0", "256x128", "emb", {"prefix": "module.", "wrap": "state_dict"}),
    ("torchreid_osnet_x1_0", "236x108", "emb", {}),
    ("fastreid_bot_R50-ibn", "256x128", "emb", {"prefix": "module.", "wrap": "model"}),
    ("fastreid_sbs_R50-ibn", "256x128", "emb", {"wrap": "model"}),
    ("fastreid_sbs_R50-ibn", "236x108", "emb", {"wrap": "model"}),
    ("solider_swin_tiny", "256x128_sw0.2", "emb_before", {}),
    ("solider_swin_tiny", "384x128_sw0.2", "emb_before", {}),
    ("clipreid_rn50", "256x128", "emb_before", {}),
    ("clipreid_rn50", "384x128", "emb_before", {}),
    ("clipreid_vit_b16_sie", "256x128", "emb_before", {}),
    ("clipreid_vit_b16_sie", "384x128", "emb_before", {}),
    ("transreid_vit_small", "256x128", "emb_before", {}),
    ("transreid_vit_base_s16_sie", "256x128", "emb_before", {}),
    ("transreid_vit_base_s16_sie", "384x128", "emb_before", {}),
    ("transreid_vit_base_s16_jpm", "256x128", "emb_before", {}),
    ("transreid_vit_base_s16_jpm", "240x112", "emb_before", {}),
    ("ssl_vit_small_ics", "256x128", "emb_before", {}),
    ("personvit_vit_small", "384x128", "emb_before", {"prefix": "module."}),
    ("pass_vit_small", "256x128", "emb_before", {}),
    ("pass_vit_small", "384x128", "emb_before", {}),
]


@pytest.mark.parametrize(("name", "case", "item", "wrapping"), [
    pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=[pytest.mark.slow] if i else [])
    for i, case in enumerate(NUMBERS)])
def test_an_imported_network_gives_the_published_feature(tmp_path, name, case, item, wrapping):
    save_golden(tmp_path / "file.pth", name, case=case, **wrapping)
    import_weights(tmp_path / "file.pth", tmp_path / "folder")
    assert_gives_the_published_feature(tmp_path / "folder", name, case, item)
    tie_forward_to_embedder(tmp_path / "folder")


# ------------------------------------------------------------------ folders
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastreid_bot_R50-ibn", "torchreid_osnet_x1_0", "solider_swin_tiny",
                                  "transreid_vit_small"])
def test_one_command_leads_from_a_published_file_to_a_page_of_its_rankings(tiny_data, tmp_path, name):
    save_golden(tmp_path / "file.pth", name)
    data = ["DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", str(tiny_data), "DATALOADER.NUM_WORKERS", "0",
            "MODEL.DEVICE", "cpu"]
    done = run_tool("tools/import_weights.py", str(tmp_path / "file.pth"), "--output", str(tmp_path / "folder"),
                    "INPUT.SIZE_TEST", "[256, 128]", "--rank", *data)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folder" / "run" / "ranks" / "index.html").is_file()


def test_another_model_is_not_overwritten_unasked(imported, tmp_path):
    torch.save(build_backbone("resnet18_ibn_b_w32").state_dict(), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"has another model in it .*--force replaces it"):
        import_weights(tmp_path / "file.pth", imported / "model")


def test_a_checkpoint_of_ours_is_sent_to_the_export(tmp_path):
    torch.save({"config": "MODEL: {}", "model": {"a": torch.ones(1)}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"tools/export.py"):
        import_weights(tmp_path / "file.pth", tmp_path / "folder")


def test_a_wrong_layout_name_lists_them(imported):
    with pytest.raises(ValueError, match=r"no such layout; there are .*fastreid_bot"):
        import_weights(imported / "file.pth", imported / "other", "fast-reid")


def test_backbones_whose_package_is_missing_are_named_as_not_compared(monkeypatch):
    def build(name, *args, **options):
        if name != "resnet18":
            raise ImportError("no timm")
        return build_backbone(name, *args, **options)

    monkeypatch.setattr(pretrained, "build_backbone", build)
    pretrained._shapes.cache_clear()
    try:
        state = {"conv1.weight": torch.empty(64, 3, 7, 7), "other": torch.empty(1)}
        some, none = (pretrained.describe_nearest(state, names) for names in (["resnet18", "vit_tiny"], ["vit_tiny"]))
    finally:
        pretrained._shapes.cache_clear()
    assert some.startswith("the nearest is resnet18; ")
    assert none == ("a package is missing (python -m pip install -r requirements.txt), so that it was not compared "
                    "with vit_tiny")
    assert some.endswith(none)
