"""The rules of single keys, the checks between keys, and that every key has both a rule and a reader."""
from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from configs import ConfigError, coerce, flatten_cfg, load_cfg
from configs.checks import batch_problem
from configs.defaults import OBSOLETE, RULES, SECTIONS, get_cfg_defaults

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = flatten_cfg(get_cfg_defaults())


# ---------------------------------------------------------------- the table

def test_every_leaf_has_a_rule_and_every_rule_a_leaf_in_the_same_order():
    assert list(RULES) == list(DEFAULTS)


@pytest.mark.parametrize("key", RULES)
def test_every_default_passes_its_rule_unchanged(key):
    assert coerce(key, DEFAULTS[key]) == DEFAULTS[key]


@pytest.mark.parametrize("key", RULES)
def test_every_default_passes_its_rule_as_text(key):
    assert coerce(key, str(DEFAULTS[key])) == DEFAULTS[key]


@pytest.mark.parametrize("key", RULES)
def test_no_key_takes_null_or_a_foreign_type(key):
    for value in (None, "null", "None", "~", {}, {"a": 1}, object(), b"bytes", [None]):
        with pytest.raises(ConfigError, match=key):
            coerce(key, value)


@pytest.mark.parametrize("key", RULES)
def test_no_key_takes_nan_or_infinity(key):
    for value in (float("nan"), float("inf"), [float("nan")] * 3):
        with pytest.raises(ConfigError, match=key):
            coerce(key, value)


def test_obsolete_keys_are_keys_and_each_has_a_reason():
    assert set(OBSOLETE) <= set(RULES)
    assert all(OBSOLETE.values())


def test_every_key_has_a_comment_above_it_or_is_obsolete():
    lines = [line for file in ("model_keys", "defaults")
             for line in (ROOT / f"configs/{file}.py").read_text(encoding="utf-8").splitlines()]
    declared = {line.split(" = ")[0].removeprefix("_C."): above for above, line in itertools.pairwise(lines)
                if line.startswith("_C.") and "SimpleNamespace" not in line}
    assert list(declared) == list(RULES)
    assert {key for key, above in declared.items() if not above.startswith("# ")} == set(OBSOLETE)


def test_the_tree_has_sections_of_leaves_and_no_deeper_level():
    assert set(SECTIONS) == {"MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST", "UDA"}
    assert max(key.count(".") for key in RULES) == 1


# ---------------------------------------------------------------- single keys

@pytest.mark.parametrize(("key", "raw", "expected"), [
    # booleans
    ("MODEL.IF_LABELSMOOTH", "on", True), ("MODEL.IF_LABELSMOOTH", "off", False),
    ("TEST.FEAT_NORM", "yes", True), ("TEST.FEAT_NORM", "NO", False), ("SOLVER.FP16", "True", True),
    ("SOLVER.FP16", "('no')", False), ("SOLVER.FP16", False, False),
    # integers
    ("SOLVER.MAX_EPOCHS", "7", 7), ("MODEL.FROZEN", "-1", -1), ("SOLVER.SEED", "010", 10), ("SOLVER.SEED", "+3", 3),
    # numbers
    ("SOLVER.BASE_LR", "3e-4", 3e-4), ("SOLVER.BASE_LR", "1", 1.0), ("SOLVER.BASE_LR", ".5", 0.5),
    ("SOLVER.BASE_LR", "1.E-3", 1e-3), ("SOLVER.BASE_LR", 2, 2.0), ("SOLVER.COSINE_SCALE", 30, 30.0),
    # texts
    ("MODEL.NECK", "no", "no"), ("MODEL.NECK", False, "no"), ("MODEL.NECK", "('bnneck')", "bnneck"),
    ("MODEL.NAME", "yes", "yes"), ("MODEL.NAME", '("resnet50")', "resnet50"),
    ("DATASETS.NAMES", "('naic')", "naic"), ("DATASETS.NAMES", "naic", "naic"),
    ("DATASETS.ROOT_DIR", "('../data')", "../data"), ("OUTPUT_DIR", Path("a/b"), "a/b"), ("OUTPUT_DIR", "", ""),
    ("TEST.DROP_SAME_CAMERA", "('auto')", "auto"), ("TEST.DROP_SAME_CAMERA", "yes", True),
    ("TEST.DROP_SAME_CAMERA", False, False),
    ("MODEL.DEVICE_ID", "('0,1')", "0,1"), ("MODEL.DEVICE_ID", "0, 1", "0,1"), ("MODEL.DEVICE_ID", 0, "0"),
    # lists
    ("INPUT.SIZE_TRAIN", "(256, 128)", [256, 128]), ("INPUT.SIZE_TRAIN", "[256,128]", [256, 128]),
    ("INPUT.SIZE_TRAIN", ["256", 128], [256, 128]), ("INPUT.SIZE_TRAIN", (256, 128), [256, 128]),
    ("SOLVER.STEPS", "(25,)", [25]), ("SOLVER.STEPS", "[]", []), ("SOLVER.STEPS", "(25)", [25]),
    ("TEST.RE_RANKING_PARAMETER", "[30, 2, 0.8]", [30, 2, 0.8]), ("TEST.RE_RANKING_PARAMETER", [6, 3, 1], [6, 3, 1.0]),
    ("DATASETS.TRAIN_SETS", "['2019_cs', \"2020_fs\"]", ["2019_cs", "2020_fs"]),
    ("DATASETS.TRAIN_SETS", "(2019_cs)", ["2019_cs"]),
    ("DATALOADER.SET_SHARES", "['train_2019_cs:1', market1501: 2.5]", ["train_2019_cs:1", "market1501:2.5"]),
    ("DATASETS.ROOTS", "['market1501=/data/a b', veri = c=d]", ["market1501=/data/a b", "veri=c=d"]),
    ("DATASETS.ROOTS", "naic=/data", ["naic=/data"]),
])
def test_a_value_becomes_the_keys_type(key, raw, expected):
    value = coerce(key, raw)
    assert value == expected
    assert type(value) is type(expected)
    if isinstance(value, list):
        assert [type(item) for item in value] == [type(item) for item in expected]


@pytest.mark.parametrize(("key", "raw", "allowed"), [
    ("SOLVER.FP16", "1", "true or false"), ("SOLVER.FP16", 1, "true or false"), ("SOLVER.FP16", "y", "true or false"),
    ("SOLVER.MAX_EPOCHS", "10.0", "an integer >= 1"), ("SOLVER.MAX_EPOCHS", 10.0, "an integer >= 1"),
    ("SOLVER.MAX_EPOCHS", True, "an integer >= 1"), ("SOLVER.MAX_EPOCHS", "true", "an integer >= 1"),
    ("SOLVER.MAX_EPOCHS", "0", "an integer >= 1"), ("SOLVER.MAX_EPOCHS", "1_0", "an integer >= 1"),
    ("SOLVER.MAX_EPOCHS", "٣", "an integer >= 1"), ("SOLVER.SEED", "-1", "an integer in 0..4294967295"),
    ("MODEL.LAST_STRIDE", "3", "an integer in 1..2"), ("MODEL.FROZEN", "-2", "an integer in -1..4"),
    ("SOLVER.BASE_LR", "nan", "a finite number > 0"), ("SOLVER.BASE_LR", "1e999", "a finite number > 0"),
    ("SOLVER.BASE_LR", 10**400, "a finite number > 0"), ("SOLVER.BASE_LR", "0", "a finite number > 0"),
    ("SOLVER.BASE_LR", True, "a finite number > 0"), ("SOLVER.BASE_LR", "off", "a finite number > 0"),
    ("TEST.DROP_SAME_CAMERA", "Auto", "auto, or true or false"), ("TEST.DROP_SAME_CAMERA", 1, "auto, or true or false"),
    ("INPUT.PROB", "1.1", "a finite number in 0..1"), ("MODEL.GEM_P", "-3", "a finite number > 0"),
    ("MODEL.NECK", True, "bnneck | no"), ("MODEL.NECK", "off", "bnneck | no"),
    ("MODEL.POOLING_METHOD", "gem", "avg | GeM | token | GeM_token | max | avg_max, got gem (did you mean GeM?)"),
    ("MODEL.NAME", "", "a string that is not empty"), ("MODEL.NAME", False, "a string that is not empty"),
    ("MODEL.NAME", ["resnet50"], "a string that is not empty, got [resnet50]"),
    ("MODEL.NAME", "('None')", "a string that is not empty"),
    ("MODEL.DEVICE_ID", "cuda:0", "device numbers"), ("MODEL.DEVICE_ID", "-1", "device numbers"),
    ("INPUT.SIZE_TRAIN", "256", "[height, width]"), ("INPUT.SIZE_TRAIN", [256], "[height, width]"),
    ("INPUT.SIZE_TRAIN", [256, 128, 3], "(3 items)"), ("INPUT.SIZE_TRAIN", "(256, 0)", "[height, width]"),
    ("INPUT.SIZE_TRAIN", [256.0, 128], "an integer >= 1"), ("INPUT.SIZE_TRAIN", "(256,, 128)", "[height, width]"),
    ("INPUT.PIXEL_MEAN", [123.675, 116.28, 103.53], "in 0..1"), ("INPUT.PIXEL_STD", [0, 1, 1], "> 0"),
    ("SOLVER.STEPS", "[40, 25]", "they must increase"), ("SOLVER.STEPS", [40, 40], "they must increase"),
    ("SOLVER.STEPS", [0, 40], "an integer >= 1"), ("SOLVER.STEPS", "40", "a list"), ("SOLVER.STEPS", "", "a list"),
    ("TEST.RE_RANKING_PARAMETER", [30, 2, 1.2], "lambda"), ("TEST.RE_RANKING_PARAMETER", [0, 2, 0.8], "k1"),
    ("TEST.RE_RANKING_PARAMETER", [30.0, 2, 0.8], "k1"),
    ("DATASETS.TRAIN_SETS", "[2019_cs, 2019_cs]", "an item is there twice"),
    ("DATASETS.TRAIN_SETS", ["2021_cs"], "2019_cs | 2019_fs | 2020_cs | 2020_fs"),
    ("DATALOADER.SET_SHARES", ["market1501"], "a name and a number > 0, such as"),
    ("DATASETS.ROOTS", "/data", "a list of NAME=FOLDER, such as"),
    ("DATASETS.ROOTS", ["veri="], "a list of NAME=FOLDER, such as"),
    ("DATASETS.ROOTS", ["veri=/a", "veri=/b"], "a name is there twice"),
    ("DATALOADER.SET_SHARES", ["market1501:0"], "a name and a number > 0"),
    ("DATALOADER.SET_SHARES", [":1"], "a name and a number > 0"),
])
def test_a_wrong_value_is_refused_with_what_is_allowed(key, raw, allowed):
    with pytest.raises(ConfigError) as caught:
        coerce(key, raw)
    assert str(caught.value).startswith(f"{key}: expected ")
    assert allowed in str(caught.value)
    assert ", got " in str(caught.value)


# ---------------------------------------------------------------- several keys

PK = ["DATALOADER.SAMPLER", "softmax_triplet", "DATALOADER.NUM_INSTANCE", "4"]
CENTER = [*PK, "MODEL.METRIC_LOSS_TYPE", "triplet_center"]
PCB = ["MODEL.IF_USE_PCB", "true"]
COSINE = ["SOLVER.LR_SCHEDULER", "cosine"]


@pytest.mark.parametrize(("opts", "message"), [
    ([*PK, "SOLVER.IMS_PER_BATCH", "70"],
     "SOLVER.IMS_PER_BATCH=70 is not divisible by DATALOADER.NUM_INSTANCE=4; use 68 or 72"),
    ([*PK, "SOLVER.IMS_PER_BATCH", "4"],
     "too small for DATALOADER.NUM_INSTANCE=4: a micro-batch has 2 identities, and 1 a process at least; use 8 or"),
    ([*PK, "SOLVER.IMS_PER_BATCH", "7"], "use 8 or more"),
    ([*PK, "DATALOADER.NUM_INSTANCE", "1"], "DATALOADER.NUM_INSTANCE=1 leaves no positive pairs"),
    (["DATALOADER.SAMPLER", "triplet", "DATALOADER.NUM_INSTANCE", "1"], "DATALOADER.NUM_INSTANCE=1"),
    (["DATALOADER.BALANCE_SETS", "on"], "DATALOADER.SAMPLER=softmax shuffles images; use softmax_triplet"),
    ([*PK, "DATALOADER.BALANCE_SETS", "on", "DATALOADER.SET_SHARES", "[a:1, b:1, a:2]"], "a has 2 shares; use one"),
    (["MODEL.IF_WITH_CENTER", "yes"], "MODEL.IF_WITH_CENTER=True contradicts MODEL.METRIC_LOSS_TYPE=triplet"),
    (["DATALOADER.SAMPLER", "triplet", "MODEL.METRIC_LOSS_TYPE", "center"], "a center loss alone"),
    ([*CENTER, "SOLVER.CENTER_LOSS_WEIGHT", "0"], "SOLVER.CENTER_LOSS_WEIGHT=0.0 switches off"),
    ([*PCB, "DATALOADER.SAMPLER", "triplet"], "part heads are trained by ID losses alone"),
    ([*PCB, "MODEL.MERGE_PCB_FEAT", "no"], "TEST.USE_PCB_MERGE_FEAT=True tests the merged parts"),
    ([*PCB, "MODEL.MERGE_PCB_FEAT", "no", "TEST.USE_PCB_MERGE_FEAT", "no", "TEST.PCB_PART_FEAT", "weighted"],
     "TEST.PCB_PART_FEAT=weighted needs the gates"),
    (["MODEL.PCB_RPP", "on"], "MODEL.PCB_RPP=True refines the parts of MODEL.IF_USE_PCB"),
    (["MODEL.GEM_LEARN_P", "on"], "MODEL.GEM_LEARN_P=True has no exponent to learn"),
    ([*COSINE, "SOLVER.MAX_EPOCHS", "10"], "SOLVER.WARMUP_EPOCHS=10 leaves no epoch"),
    ([*COSINE, "SOLVER.MIN_LR", "0.1"], "SOLVER.MIN_LR=0.1 is above SOLVER.BASE_LR=0.0003"),
    (["SOLVER.NESTEROV", "on"], "SOLVER.OPTIMIZER_NAME=Adam has no Nesterov momentum"),
    (["SOLVER.NESTEROV", "on", "SOLVER.OPTIMIZER_NAME", "SGD", "SOLVER.MOMENTUM", "0"], "needs SOLVER.MOMENTUM > 0"),
    (["SOLVER.GRADIENT_CENTRALIZATION", "on"], "SOLVER.OPTIMIZER_NAME=Adam does not do it; use Ranger"),
    (["TEST.RE_RANKING", "on", "TEST.RE_RANKING_PARAMETER", "[5, 7, 0.3]"], "k2=7 is above k1+1=6"),
    (["TEST.QUERY_EXPANSION", "5", "TEST.FEAT_NORM", "no"], "TEST.QUERY_EXPANSION=5 makes features of length 1"),
    (["TEST.DATABASE_AUGMENTATION", "3", "TEST.FEAT_NORM", "no"], "TEST.DATABASE_AUGMENTATION=3 makes features of"),
    (["INPUT.PADDING", "128"], "INPUT.PADDING=128 is not smaller than INPUT.SIZE_TRAIN=[384, 128]"),
    (["MODEL.THRESH", "17"], "MODEL.THRESH=17.0 is above pi, the largest angle (it is in radians)"),
    (["UDA.THRESHOLD", "17", "MODEL.THRESH", "0.3"], "UDA.THRESHOLD=17.0 is above pi"),
    (["UDA.DISTANCE", "cosine", "UDA.THRESHOLD", "2.1"], "UDA.THRESHOLD=2.1 is above 2"),
    (["UDA.DISTANCE", "re_ranked", "UDA.THRESHOLD", "1.1"], "UDA.THRESHOLD=1.1 is above 1"),
    (["UDA.METHOD", "dbscan", "UDA.THRESHOLD", "1"], "1 is the Jaccard distance of images that share no neighbour"),
    (["UDA.RE_RANKING_PARAMETER", "[5, 7, 0.3]"], "UDA.RE_RANKING_PARAMETER: k2=7 is above k1+1=6"),
])
def test_what_cannot_work_together_is_refused(opts, message):
    with pytest.raises(ConfigError) as caught:
        load_cfg(None, opts)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("opts", [
    ["SOLVER.IMS_PER_BATCH", "70", "DATALOADER.NUM_INSTANCE", "1"],  # plain shuffling
    [*PK, "SOLVER.IMS_PER_BATCH", "8"],
    [*CENTER, "MODEL.IF_WITH_CENTER", "yes"],
    [*CENTER, "MODEL.IF_WITH_CENTER", "no"],  # METRIC_LOSS_TYPE decides
    ["MODEL.METRIC_LOSS_TYPE", "triplet_center", "MODEL.IF_WITH_CENTER", "yes"],  # not read with SAMPLER softmax
    ["MODEL.METRIC_LOSS_TYPE", "center", "SOLVER.CENTER_LOSS_WEIGHT", "0"],
    ["MODEL.GEM_LEARN_P", "on", "MODEL.POOLING_METHOD", "GeM"],
    ["SOLVER.MAX_EPOCHS", "5"],  # a run that ends within its warm-up
    [*COSINE, "SOLVER.MAX_EPOCHS", "11"],
    ["SOLVER.MIN_LR", "0.1"],
    ["SOLVER.NESTEROV", "on", "SOLVER.OPTIMIZER_NAME", "SGD"],
    ["SOLVER.GRADIENT_CENTRALIZATION", "on", "SOLVER.OPTIMIZER_NAME", "Ranger"],
    ["TEST.RE_RANKING", "on", "TEST.RE_RANKING_PARAMETER", "[5, 6, 0.3]", "TEST.FEAT_NORM", "no"],
    ["TEST.RE_RANKING_PARAMETER", "[5, 7, 0.3]"],
    ["TEST.QUERY_EXPANSION", "5", "TEST.DATABASE_AUGMENTATION", "3", "TEST.EXPANSION_ALPHA", "3"],
    ["INPUT.PADDING", "0", "INPUT.SIZE_TRAIN", "[1, 1]"],
    ["MODEL.NECK", "no", "TEST.NECK_FEAT", "before"],
    [*PK, "DATALOADER.BALANCE_SETS", "on", "DATALOADER.SET_SHARES", "[train_2019_cs:1, train_2020_fs:2]"],
    ["MODEL.THRESH", "3.14"],
    ["UDA.DISTANCE", "euclidean", "UDA.THRESHOLD", "17"],  # of features of any length
    ["UDA.METHOD", "agglomerative", "UDA.THRESHOLD", "0.99", "MODEL.THRESH", "17"],  # not read there
])
def test_what_can_work_together_loads(opts):
    load_cfg(None, opts)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("sampler", "group"), [("softmax", 7), ("triplet", 2), ("softmax_triplet", 3)])
def test_a_batch_is_refused_if_it_cannot_be_divided_and_the_sizes_that_are_named_can(sampler, group, steps, processes):
    def problem(batch: int) -> str:
        return batch_problem({"DATALOADER.SAMPLER": sampler, "DATALOADER.NUM_INSTANCE": group,
                              "SOLVER.IMS_PER_BATCH": batch, "SOLVER.ACCUMULATION_STEPS": steps}, processes)

    images = group if "triplet" in sampler else 1
    for batch in range(1, 80):
        share, rest = divmod(batch, steps * processes)
        fits = rest == 0 and share % images == 0 and share >= 2 and share * processes >= 2 * images
        assert bool(problem(batch)) != fits
        named = [int(size) for size in re.findall(r"\d+", problem(batch).partition("; use ")[2])]
        assert not any(problem(size) for size in named)
        assert fits or min(abs(size - batch) for size in named) <= 2 * steps * processes * images


@pytest.mark.parametrize(("opts", "remarked"), [
    ([], False),
    (["UDA.DISTANCE", "euclidean"], True),
    (["UDA.THRESHOLD", "0.2"], True),
    (["UDA.METHOD", "dbscan", "UDA.THRESHOLD", "0.2"], True),
])
def test_the_lineages_threshold_is_remarked_if_another_counts(opts, remarked, caplog):
    load_cfg(None, ["MODEL.THRESH", "0.3", *opts])
    assert [("MODEL.THRESH=0.3 is not read" in record.getMessage()) for record in caplog.records] == [True] * remarked


def test_an_exponent_that_weighs_nothing_is_remarked(caplog):
    load_cfg(None, ["TEST.EXPANSION_ALPHA", "3", "TEST.QUERY_EXPANSION", "5"])
    assert not caplog.records
    load_cfg(None, ["TEST.EXPANSION_ALPHA", "3"])
    assert "TEST.EXPANSION_ALPHA=3.0 weighs nothing" in caplog.records[0].getMessage()


def test_shares_that_nothing_reads_are_remarked(caplog):
    load_cfg(None, ["DATALOADER.SET_SHARES", "[a:1]"])
    assert "DATALOADER.SET_SHARES=['a:1'] is not read" in caplog.records[0].getMessage()


# ---------------------------------------------------------------- readers

_TABLES = ("SETTINGS", "OF_TRAINING")  # of model/make_backbone.py: parameter of a constructor -> key


def _read_keys(source: str) -> set[str]:
    """Dotted keys that Python code reads: `cfg.KEY`, `….SECTION.KEY`, and `name.KEY` where name is a section.

    A name is a section where `name = ….SECTION` is in the file, or where it is the section's in small letters. The
    values of a table of _TABLES are read as well.
    """
    tree = ast.parse(source)
    aliases: dict[str, set[str]] = {section.lower(): {section} for section in SECTIONS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=False))
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr in SECTIONS:
                    aliases.setdefault(target.id, set()).add(value.attr)
    keys = {value.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            and getattr(node.targets[0], "id", "") in _TABLES for value in node.value.values}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Attribute) and owner.attr in SECTIONS:
            keys.add(f"{owner.attr}.{node.attr}")
        elif isinstance(owner, ast.Name):
            keys.update(f"{section}.{node.attr}" for section in aliases.get(owner.id, ()))
        if "cfg" in ast.unparse(owner).rsplit(".", 1)[-1]:
            keys.add(node.attr)
    return keys


def test_the_search_for_readers_sees_the_ways_of_reading():
    source = "s, m = cfg.SOLVER, run.cfg.MODEL\ns.SEED, m.NAME, cfg.TEST.TOP_K, cfg.OUTPUT_DIR, x.STEPS, solver.GAMMA\n"
    source += "SETTINGS = {'a': 'INPUT.PROB'}"
    assert _read_keys(source) & set(RULES) == {
        "SOLVER.SEED", "MODEL.NAME", "TEST.TOP_K", "OUTPUT_DIR", "SOLVER.GAMMA", "INPUT.PROB"}


def test_every_key_is_read_outside_the_configs():
    rooms = ("model", "loss", "solver", "datasets", "processor", "tools")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    read = {key for path in files for key in _read_keys(path.read_text(encoding="utf-8"))}
    # Decided within the configs: IF_WITH_CENTER only must not contradict METRIC_LOSS_TYPE.
    elsewhere = {*OBSOLETE, "MODEL.IF_WITH_CENTER"}
    assert sorted(set(RULES) - read - elsewhere) == []
    assert sorted(key for key in read - set(RULES) if "." in key and key.isupper()) == [], "read, but not in the tree"
