"""The lineage's defaults and recipes, and the recipes of this repository."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from configs import chain_of_files, flatten_cfg, load_cfg
from configs.defaults import get_cfg_defaults
from datasets.registry import parse_names

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LINEAGE_DEFAULTS = json.loads((GOLDEN / "lineage_defaults.json").read_text(encoding="utf-8"))
RECIPES = json.loads((GOLDEN / "lineage_recipes.json").read_text(encoding="utf-8"))
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yml"))
OURS = [name for name in FILES if not Path(name).name.startswith("_")]  # the others are bases, no recipes themselves
NAIC = {"128": ([256, 128], 256), "192": ([384, 192], 240), "240": ([480, 240], 200)}

SWITCHES = {"MODEL.IF_LABELSMOOTH", "MODEL.IF_WITH_CENTER", "TEST.FEAT_NORM", "TEST.FLIP_FEATS"}
TRUE = ("yes", "on")


def leaves(tree: dict) -> dict:
    """{dotted key: value} of a golden tree, in the types that the keys have here."""
    flat = {}
    for section, keys in tree.items():
        flat.update({f"{section}.{key}": value for key, value in keys.items()} if isinstance(keys, dict)
                    else {section: keys})
    for key, value in flat.items():
        if key in SWITCHES:
            flat[key] = value in TRUE
        elif isinstance(value, str) and value.startswith("('"):
            flat[key] = value[2:-2]
    return flat


def as_yaml(recipe: dict) -> str:
    return yaml.safe_dump(recipe)


def as_flow_yaml(recipe: dict) -> str:
    return yaml.safe_dump(recipe, default_flow_style=True)


def as_written_by_hand(recipe: dict) -> str:
    """Nothing quoted, lists as tuples: `IF_LABELSMOOTH: on`, `NAMES: ('naic')`, `SIZE_TRAIN: (256, 128)`."""
    lines = []
    for section, keys in recipe.items():
        if not isinstance(keys, dict):
            lines.append(f"{section}: ('{keys}')")
            continue
        lines.append(f"{section}:")
        for key, value in keys.items():
            text = f"({', '.join(map(str, value))})" if isinstance(value, list) else '""' if value == "" else value
            lines.append(f"  {key}: {text}  # a comment")
        lines.append("")
    return "\n".join(lines)


def as_a_command_line(recipe: dict) -> list[str]:
    raw = {}
    for section, keys in recipe.items():
        raw.update({f"{section}.{key}": str(value) for key, value in keys.items()} if isinstance(keys, dict)
                   else {section: keys})
    return [word for pair in raw.items() for word in pair]


def test_defaults_are_the_lineages_but_for_the_device():
    ours = flatten_cfg(get_cfg_defaults())
    expected = leaves(LINEAGE_DEFAULTS) | {"MODEL.DEVICE": "auto"}
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.parametrize("style", [as_yaml, as_flow_yaml, as_written_by_hand])
@pytest.mark.parametrize("name", RECIPES)
def test_a_lineage_recipe_loads_with_its_values_over_the_defaults(tmp_path, name, style):
    path = tmp_path / name
    path.write_text(style(RECIPES[name]), encoding="utf-8")
    loaded = flatten_cfg(load_cfg(path))
    expected = flatten_cfg(get_cfg_defaults()) | leaves(RECIPES[name])
    assert loaded == expected
    assert {key: type(value) for key, value in loaded.items() if key in SWITCHES} == dict.fromkeys(SWITCHES, bool)
    assert isinstance(loaded["SOLVER.COSINE_SCALE"], float)


@pytest.mark.parametrize("name", RECIPES)
def test_a_lineage_recipe_loads_from_the_command_line(name):
    loaded = flatten_cfg(load_cfg(None, as_a_command_line(RECIPES[name])))
    assert loaded == flatten_cfg(get_cfg_defaults()) | leaves(RECIPES[name])


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_of_ours_loads_with_relative_paths_and_without_remarks(name, caplog):
    cfg = load_cfg(ROOT / name)
    assert not caplog.records
    for path in (cfg.OUTPUT_DIR, cfg.DATASETS.ROOT_DIR, cfg.MODEL.PRETRAIN_PATH, cfg.TEST.WEIGHT):
        assert not Path(path).is_absolute()


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_is_short_because_it_states_what_it_changes(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 30
    assert len(chain_of_files(ROOT / name)) > 1


def test_every_base_is_the_base_of_a_recipe():
    used = {str(path.relative_to(ROOT)) for name in OURS for path in chain_of_files(ROOT / name)}
    assert used == set(FILES)


# A recipe, the one that it is a variant of, and the keys in which alone they differ, beside OUTPUT_DIR.
VARIANTS = [
    ("demo/r18_80", "demo/r18_64", {"INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "INPUT.PADDING"}),
    ("demo/r18_96", "demo/r18_64", {"INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "INPUT.PADDING"}),
    ("demo/r18_64_uda", "demo/r18_64", {"SOLVER.BASE_LR", "SOLVER.MAX_EPOCHS", "SOLVER.CHECKPOINT_PERIOD", "UDA.METHOD",
                                        "UDA.THRESHOLD", "UDA.RE_RANKING_PARAMETER", "UDA.ROUNDS"}),
    ("dukemtmc/r50", "market1501/r50", {"DATASETS.NAMES"}),
    ("cuhk03/r50_ibn_a", "msmt17/r50_ibn_a", {"DATASETS.NAMES"}),
    ("msmt17/vit_transreid", "market1501/vit_transreid", {"DATASETS.NAMES"}),
    ("veri/r50_ibn_a", "msmt17/r50_ibn_a", {"DATASETS.NAMES", "INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"}),
    ("vehicleid/r50_ibn_a", "veri/r50_ibn_a", {"DATASETS.NAMES"}),
    ("naic/s101_pcb", "naic/s101", {"MODEL.IF_USE_PCB"}),
    ("naic/winner_s200", "naic/winner_s101", {"MODEL.NAME", "MODEL.PRETRAIN_PATH"}),
    ("naic/r50_rpp_3_joint", "naic/r50_rpp_2_induce", {"MODEL.PRETRAIN_PATH", "MODEL.PRETRAIN_ALLOW",
                                                       "MODEL.TRAIN_ONLY", "SOLVER.MAX_EPOCHS"}),
    *((f"naic/r101_ibn_b_{width}_pseudo", f"naic/r101_ibn_b_{width}", {"MODEL.THRESH", "DATASETS.USE_UNLABEL"})
      for width in NAIC),
    *((f"naic/r101_ibn_b_{width}_50", f"naic/r101_ibn_b_{width}", {"TEST.WEIGHT", "DATASETS.USE_UNLABEL"})
      for width in NAIC),
]


@pytest.mark.parametrize(("name", "other", "keys"), VARIANTS)
def test_a_variant_differs_from_its_recipe_in_these_keys_alone(name, other, keys):
    values, others = (flatten_cfg(load_cfg(ROOT / f"configs/{recipe}.yml")) for recipe in (name, other))
    assert {key for key, value in values.items() if value != others[key]} == keys | {"OUTPUT_DIR"}


def test_each_recipe_of_ours_has_its_output_folder():
    folders = [load_cfg(ROOT / name).OUTPUT_DIR for name in OURS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("width", NAIC)
def test_a_naic_recipe_is_the_lineages_with_the_reports_batch(tmp_path, width, pseudo):
    name = f"r101_ibn_b_{width}" + "_pseudo" * pseudo
    size, batch = NAIC[width]
    cfg = load_cfg(ROOT / f"configs/naic/{name}.yml")
    ours = flatten_cfg(cfg)

    path = tmp_path / "lineage.yml"
    path.write_text(as_yaml(RECIPES[f"naic_round2_model_b_{width}.yml"]), encoding="utf-8")
    lineage = flatten_cfg(load_cfg(path))
    assert {key: value for key, value in ours.items() if value != lineage[key]} == {
        "MODEL.DEVICE_ID": "0",
        "MODEL.PRETRAIN_PATH": "weights/resnet101_ibn_b.pth",
        **({} if pseudo else {"DATASETS.USE_UNLABEL": False, "MODEL.THRESH": 0.0}),  # of pseudo-labelling
        "SOLVER.CENTER_LOSS_WEIGHT": 0.0005,  # not read: no center loss
        "SOLVER.EVAL_PERIOD": 0,
        "SOLVER.IMS_PER_BATCH": batch,
        "TEST.USE_PCB_MERGE_FEAT": True,  # not read: no part heads
        "TEST.WEIGHT": "",
        "OUTPUT_DIR": f"output/naic/{name}",
    }
    assert [size, size] == [cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST]
    assert (cfg.SOLVER.OPTIMIZER_NAME, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS) == ("Ranger", 0.01, [25, 40])
    assert (cfg.MODEL.GEM_P, cfg.MODEL.GEM_LEARN_P, cfg.MODEL.IF_LABELSMOOTH) == (3.0, False, False)
    assert cfg.TEST.RE_RANKING_PARAMETER == [30, 2, 0.8]


# Ours -> the lineage's recipe, and what differs beside places, device, evaluation and what no part of the run reads.
OTHERS = {
    "r101_ibn_a": ("naic_round2_model_a.yml", {}),
    "r101_ibn_b_128_50": ("naic_round2_model_b_128_50.yml", {"SOLVER.IMS_PER_BATCH": 256}),
    "r101_ibn_b_192_50": ("naic_round2_model_b_192_50.yml", {"SOLVER.IMS_PER_BATCH": 240}),
    "r101_ibn_b_240_50": ("naic_round2_model_b_240_50.yml", {"SOLVER.IMS_PER_BATCH": 200}),
    "s101": ("naic_round2_model_resnest.yml", {}),
    "s101_pcb": ("naic_round2_model_resnest.yml", {"MODEL.IF_USE_PCB": True}),
    "se_r50_ibn_a": ("naic_round2_model_se.yml", {}),
    "efn_b0": ("efn_b0_model.yml", {"MODEL.NAME": "efficientnet_b0"}),
}
NOT_COMPARED = ("MODEL.DEVICE_ID", "MODEL.PRETRAIN_PATH", "MODEL.THRESH", "SOLVER.EVAL_PERIOD", "TEST.WEIGHT",
                "OUTPUT_DIR")


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_naic_recipes_are_the_lineages(tmp_path, name):
    theirs, differs = OTHERS[name]
    path = tmp_path / theirs
    path.write_text(as_yaml(RECIPES[theirs]), encoding="utf-8")
    ours, lineage = flatten_cfg(load_cfg(ROOT / f"configs/naic/{name}.yml")), flatten_cfg(load_cfg(path))
    unread = set() if "center" in ours["MODEL.METRIC_LOSS_TYPE"] else {"SOLVER.CENTER_LOSS_WEIGHT"}
    unread |= set() if ours["MODEL.IF_USE_PCB"] else {"TEST.USE_PCB_MERGE_FEAT"}
    differing = {key: value for key, value in ours.items()
                 if value != lineage[key] and key not in NOT_COMPARED and key not in unread}
    assert differing == differs


# reid-strong-baseline's softmax_triplet.yml; softmax_triplet_with_center.yml has its center loss, too.
STRONG_BASELINE = {
    "MODEL.LAST_STRIDE": 1, "MODEL.NECK": "bnneck", "MODEL.ID_LOSS_TYPE": "softmax", "MODEL.IF_LABELSMOOTH": True,
    "MODEL.WEIGHTED_TRIPLET": False, "MODEL.NO_MARGIN": False, "MODEL.POOLING_METHOD": "avg", "INPUT.PROB": 0.5,
    "INPUT.RE_PROB": 0.5, "INPUT.PADDING": 10, "DATASETS.HARD_AUG": False, "DATALOADER.SAMPLER": "softmax_triplet",
    "DATALOADER.NUM_INSTANCE": 4, "SOLVER.OPTIMIZER_NAME": "Adam", "SOLVER.MAX_EPOCHS": 120, "SOLVER.BASE_LR": 3.5e-4,
    "SOLVER.IMS_PER_BATCH": 64, "SOLVER.LR_SCHEDULER": "multistep", "SOLVER.STEPS": [40, 70], "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 0.01, "SOLVER.WARMUP_EPOCHS": 10, "SOLVER.WARMUP_METHOD": "linear", "SOLVER.MARGIN": 0.3,
    "SOLVER.BIAS_LR_FACTOR": 1.0, "SOLVER.WEIGHT_DECAY": 5e-4, "SOLVER.WEIGHT_DECAY_BIAS": 5e-4,
    "SOLVER.CENTER_LR": 0.5, "SOLVER.CENTER_LOSS_WEIGHT": 5e-4, "SOLVER.EVAL_PERIOD": 40, "TEST.NECK_FEAT": "after",
    "TEST.FEAT_NORM": True, "TEST.FLIP_FEATS": False, "TEST.RE_RANKING": False, "TEST.DROP_SAME_CAMERA": "auto",
}


@pytest.mark.parametrize(("name", "net", "center", "size"), [
    ("market1501/r50", "resnet50", True, [256, 128]), ("dukemtmc/r50", "resnet50", True, [256, 128]),
    ("msmt17/r50_ibn_a", "resnet50_ibn_a", False, [256, 128]),
    ("cuhk03/r50_ibn_a", "resnet50_ibn_a", False, [256, 128]),
    ("veri/r50_ibn_a", "resnet50_ibn_a", False, [256, 256]),
    ("vehicleid/r50_ibn_a", "resnet50_ibn_a", False, [256, 256]),
])
def test_the_recipes_of_the_public_sets_are_the_strong_baselines(name, net, center, size):
    cfg = flatten_cfg(load_cfg(ROOT / f"configs/{name}.yml"))
    assert {key: cfg[key] for key in STRONG_BASELINE} == STRONG_BASELINE
    assert (cfg["MODEL.NAME"], cfg["DATASETS.NAMES"]) == (net, name.split("/")[0])
    assert cfg["MODEL.METRIC_LOSS_TYPE"] == ("triplet_center" if center else "triplet")
    assert cfg["INPUT.SIZE_TRAIN"] == cfg["INPUT.SIZE_TEST"] == size


def test_the_transreid_recipes_are_theirs(tmp_path):
    theirs = json.loads((ROOT / "tests/golden/transformers/transreid.json").read_text())["recipes"]
    file = tmp_path / "vit_transreid_stride.yml"
    file.write_text(yaml.safe_dump(theirs["configs/MSMT17/vit_transreid_stride.yml"]))
    lineage, ours = (flatten_cfg(load_cfg(path)) for path in (file, ROOT / "configs/msmt17/vit_transreid.yml"))
    differing = {key for key, value in ours.items() if value != lineage[key] and key not in NOT_COMPARED}
    assert differing <= {"MODEL.NAME", "MODEL.TRANSFORMER_TYPE", "MODEL.POOLING_METHOD", "MODEL.DEVICE_ID",
                         "SOLVER.WARMUP_METHOD", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD",
                         "SOLVER.EVAL_PERIOD", "MODEL.PRETRAIN_PATH", "DATASETS.ROOT_DIR", "TEST.EVAL", "OUTPUT_DIR"}


@pytest.mark.parametrize("name", [None, *OURS])
def test_every_recipe_and_the_default_name_sets_that_can_be_read(name):
    cfg = load_cfg(name and ROOT / name)
    assert parse_names(cfg.DATASETS.NAMES)


def test_every_lineage_recipe_has_one_of_ours():
    covered = {theirs for theirs, _ in OTHERS.values()} | {f"naic_round2_model_b_{width}.yml" for width in NAIC}
    assert covered == set(RECIPES)
