"""load_cfg: what it reads, what it refuses and how it says so."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from configs import (
    COMMAND_LINE,
    ConfigError,
    chain_of_files,
    change_cfg,
    dump_cfg,
    flatten_cfg,
    load_cfg,
    load_cfg_text,
    load_cfg_with_origins,
)


@pytest.fixture
def write(tmp_path: Path):
    """write(text) -> path of a config file with that text."""
    def _write(text: str | bytes, name: str = "x.yml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return _write


def problems_of(config_file, opts=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_cfg(config_file, opts)
    return str(caught.value).splitlines()


# ---------------------------------------------------------------- files

@pytest.mark.parametrize("text", ["", "\n# nothing\n", "---\n", b"\xef\xbb\xbf"])
def test_an_empty_file_gives_the_defaults(write, text):
    assert flatten_cfg(load_cfg(write(text, "default.yml"))) == flatten_cfg(load_cfg(None))


def test_a_byte_order_mark_is_skipped(write):
    assert load_cfg(write(b"\xef\xbb\xbfSOLVER:\r\n  MAX_EPOCHS: 3\r\n")).SOLVER.MAX_EPOCHS == 3


def test_a_str_path_and_a_path_object_load_alike(write):
    path = write("SOLVER: {MAX_EPOCHS: 3}")
    assert load_cfg(str(path)) == load_cfg(path)


def test_a_missing_file_is_named_with_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems_of("configs/none.yml") == [f"configs/none.yml: no such file (looked for from {tmp_path})"]


@pytest.mark.parametrize(("text", "message"), [
    ("- a\n- b\n", "expected a mapping of sections at the top, got a sequence"),
    ("hello", "expected a mapping of sections at the top, got a scalar"),
    ("SOLVER:\n\tMAX_EPOCHS: 3\n", "line 2: not YAML"),
    ("SOLVER: [1\n", "not YAML"),
    ("SOLVER: {MAX_EPOCHS: 3}\n---\nSOLVER: {MAX_EPOCHS: 4}\n", "line 2: not YAML"),
    ("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", "line 1: not YAML that a config can hold"),
    ("[" * 3000, "not YAML that a config can hold"),
    (b"OUTPUT_DIR: \xff\xfe\n", "not UTF-8 at byte 12"),
    ("OUTPUT_DIR: a\x00b\n", "not YAML that a config can hold"),
])
def test_a_file_that_is_no_config_is_refused_with_the_place(write, text, message):
    path = write(text)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: ")
    assert message in problem


def test_a_folder_is_refused(tmp_path):
    assert "cannot be read" in problems_of(tmp_path)[0]


def test_a_key_given_twice_is_named_with_both_lines(write):
    path = write("SOLVER:\n  BASE_LR: 0.1\n  SEED: 3\n  BASE_LR: 0.2\n")
    assert problems_of(path) == [f"{path}: SOLVER.BASE_LR: given twice, on line 2 and on line 4"]


def test_a_section_given_twice_is_named_with_both_lines(write):
    path = write("SOLVER:\n  BASE_LR: 0.1\nTEST:\n  TOP_K: 3\nSOLVER:\n  SEED: 3\n")
    assert problems_of(path) == [f"{path}: SOLVER: given twice, on line 1 and on line 5"]


def test_a_key_given_dotted_and_nested_counts_as_twice(write):
    path = write("SOLVER:\n  BASE_LR: 0.1\nSOLVER.BASE_LR: 0.2\n")
    assert problems_of(path) == [f"{path}: SOLVER.BASE_LR: given twice, on line 2 and on line 3"]


def test_an_override_beside_a_yaml_merge_is_not_a_duplicate(write):
    cfg = load_cfg(write("<<: {OUTPUT_DIR: here, TEST: {TOP_K: 5}}\nOUTPUT_DIR: there\n"))
    assert (cfg.TEST.TOP_K, cfg.OUTPUT_DIR) == (5, "there")
    cfg = load_cfg(write("TEST: &t {IMS_PER_BATCH: 6}\nSOLVER:\n  <<: *t\n  SEED: 1\n"))
    assert (cfg.TEST.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.SEED) == (6, 6, 1)


def test_an_alias_that_holds_itself_is_refused(write):
    assert "INPUT.SIZE_TRAIN: expected [height, width]" in problems_of(write("INPUT: {SIZE_TRAIN: &a [*a, 1]}"))[0]
    assert "MODEL.NAME: expected a string" in problems_of(write("MODEL: &m {NAME: *m}"))[0]


# ---------------------------------------------------------------- bases

def test_a_base_is_merged_key_by_key_and_a_list_is_replaced_whole(write):
    write("MODEL: {NAME: resnet101}\nSOLVER: {STEPS: [5, 6, 7], BASE_LR: 0.1, SEED: 1}\n", "first.yml")
    write("_BASE_: first.yml\nSOLVER: {STEPS: [8], SEED: 2}\n", "second.yml")
    cfg = load_cfg(write("SOLVER: {SEED: 3}\nSOLVER.MAX_EPOCHS: 9\n_BASE_: second.yml\n"), ["MODEL.NECK", "no"])
    assert flatten_cfg(cfg) == flatten_cfg(load_cfg(None)) | {
        "MODEL.NAME": "resnet101", "MODEL.NECK": "no", "SOLVER.STEPS": [8], "SOLVER.BASE_LR": 0.1, "SOLVER.SEED": 3,
        "SOLVER.MAX_EPOCHS": 9, "OUTPUT_DIR": "output/x"}


def test_a_base_is_looked_for_beside_the_file_that_names_it(write, tmp_path, monkeypatch):
    (tmp_path / "rooms").mkdir()
    write("SOLVER: {SEED: 3}", "base.yml")
    write("_BASE_: ('../base.yml')", "rooms/beside.yml")
    path = write(f"_BASE_: {tmp_path / 'rooms' / 'beside.yml'}", "rooms/named.yml")
    monkeypatch.chdir(tmp_path / "rooms")
    assert load_cfg("named.yml").SOLVER.SEED == 3
    assert chain_of_files(path) == [path, tmp_path / "rooms/beside.yml", tmp_path / "base.yml"]


@pytest.mark.parametrize(("texts", "message"), [
    (["_BASE_: 1.yml", "_BASE_: none.yml"], "0.yml -> 1.yml -> none.yml: no such file (looked for from "),
    (["_BASE_: ."], "0.yml -> .: cannot be read: Is a directory"),
    (["_BASE_: 0.yml"], "0.yml -> 0.yml: _BASE_ goes in a circle; take it out of 0.yml"),
    (["_BASE_: 1.yml", "_BASE_: 2.yml", "_BASE_: ./1.yml"], "1.yml -> 2.yml -> 1.yml: _BASE_ goes in a circle"),
    (["_BASE_: 1.yml", "SOLVER: [1"], "0.yml -> 1.yml: line 1: not YAML that a config can hold"),
    (["_BASE_: 1.yml", "- a"], "0.yml -> 1.yml: expected a mapping of sections at the top, got a sequence"),
    (["_BASE_: 1.yml", b"OUTPUT_DIR: \xff"], "0.yml -> 1.yml: not UTF-8 at byte 12"),
    (['_BASE_: "a\\0b"'], "cannot be read: embedded null byte"),
    (["_BASE_: [1.yml, 2.yml]"], "0.yml: _BASE_: expected the path of a YAML file, relative to the folder of this"),
    (["_BASE_: {a: b}"], "0.yml: _BASE_: expected the path of a YAML file"),
    (["_BASE_: 1.yml", "_BASE_:"], "0.yml -> 1.yml: _BASE_: expected the path of a YAML file"),
    (["_BASE_: ''"], "0.yml: _BASE_: expected the path of a YAML file"),
    (["_BASE_: 1.yml\n_BASE_: 1.yml", ""], "0.yml: _BASE_: given twice, on line 1 and on line 2"),
    (["SOLVER: {_BASE_: 1.yml}", ""], "0.yml: SOLVER._BASE_: only a YAML file that a tool is given has a base"),
])
def test_a_base_that_cannot_be_used_is_refused_with_the_chain(write, tmp_path, texts, message):
    paths = [write(text, f"{number}.yml") for number, text in enumerate(texts)]
    (problem,) = problems_of(paths[0])
    assert message in problem.replace(f"{tmp_path}/", "").replace(str(tmp_path), ".")


def test_a_base_by_another_name_of_the_same_file_is_a_circle(write, tmp_path):
    path = write("_BASE_: link.yml")
    (tmp_path / "link.yml").symlink_to(path)
    assert "goes in a circle" in problems_of(path)[0]


def test_mistakes_name_the_file_of_the_chain_that_has_them(write, caplog):
    base = write("SOLVER: {SED: 1, BASE_LR: 0.1, BASE_LR: 0.2}\nTEST: {TOP_K: 0}\n", "base.yml")
    path = write("_BASE_: base.yml\nTEST: {TOP_K: 1}\nSOLVER: {BASE_LR: 0.3, STEPS: [2, 1]}")
    assert problems_of(path) == [
        f"{base}: SOLVER.BASE_LR: given twice, on line 1 and on line 1",
        f"{base}: SOLVER.SED: unknown key; did you mean SOLVER.SEED?",
        f"{base}: TEST.TOP_K: expected an integer >= 1, got 0",
        f"{path}: SOLVER.STEPS: expected a list, each item an integer >= 1, got [2, 1] (they must increase)"]
    base = write("TEST: {EVAL: yes}", "base.yml")
    load_cfg(write("_BASE_: base.yml\nMODEL: {COS_LAYER: no}"))
    (record,) = caplog.records
    assert f"TEST.EVAL in {base} (" in record.getMessage()
    assert f"MODEL.COS_LAYER in {path} (" in record.getMessage()


def test_an_unreadable_base_does_not_hide_what_is_wrong_before_it(write):
    path = write("_BASE_: none.yml\nTEST: {TOP_K: 0}")
    missing, wrong = problems_of(path)
    assert missing.startswith(f"{path} -> {path.parent / 'none.yml'}: no such file")
    assert wrong == f"{path}: TEST.TOP_K: expected an integer >= 1, got 0"


def test_only_a_file_has_a_base(write):
    path = write("SOLVER: {SEED: 3}")
    for text in (f"_BASE_: {path}", "_BASE_: none.yml"):
        with pytest.raises(ConfigError, match=r"^last\.pth: _BASE_: only a YAML file that a tool is given has a base"):
            load_cfg_text(text, "last.pth")
    assert problems_of(None, ["_BASE_", str(path)])[0].startswith("command line: _BASE_: only a YAML file")
    assert "_BASE_" not in dump_cfg(load_cfg(write(f"_BASE_: {path.name}", "y.yml")))


# ---------------------------------------------------------------- where values are from

def test_a_value_that_is_not_the_default_has_its_origin_behind_it(write):
    base = write("MODEL: {NAME: resnet50}\nSOLVER: {STEPS: [5, 6], SEED: 1, MAX_EPOCHS: 7}", "base #1.yml")
    path = write("_BASE_: 'base #1.yml'\nSOLVER: {SEED: 2}")
    cfg, origins = load_cfg_with_origins(path, ["SOLVER.MAX_EPOCHS", "8", "TEST.WEIGHT", "a # b"])
    text = dump_cfg(cfg, origins)
    assert [line.strip() for line in text.splitlines() if "  # " in line] == [
        f"MAX_EPOCHS: 8  # {COMMAND_LINE}", f"STEPS: [5, 6]  # {base}", f"SEED: 2  # {path}",
        f"WEIGHT: 'a # b'  # {COMMAND_LINE}", f"OUTPUT_DIR: output/x  # {path}"]
    assert load_cfg_text(text) == cfg


def test_a_comment_stays_on_its_line(write, tmp_path):
    path = write("SOLVER: {SEED: 2}", "a\nSOLVER: {SEED: 4}.yml")
    cfg, origins = load_cfg_with_origins(path, ["OUTPUT_DIR", "x " * 3000, "TEST.WEIGHT", "a\nb\u2028"])
    assert load_cfg_text(dump_cfg(cfg, origins)) == cfg


# ---------------------------------------------------------------- unknown keys

@pytest.mark.parametrize(("key", "suggestion"), [
    ("SOLVER.IMS_PER_BATC", "SOLVER.IMS_PER_BATCH"),
    ("TEST.IMS_PER_BACH", "TEST.IMS_PER_BATCH"),
    ("SOLVERS.BASE_LR", "SOLVER.BASE_LR"),
    ("MODEL.BASE_LR", "SOLVER.BASE_LR"),
    ("MODEL.IMS_PER_BATCH", "SOLVER.IMS_PER_BATCH or TEST.IMS_PER_BATCH"),
    ("BASE_LR", "SOLVER.BASE_LR"),
    ("model.name", "MODEL.NAME"),
    ("OUTPUTDIR", "OUTPUT_DIR"),
    ("SOLVR", "SOLVER"),
])
def test_an_unknown_key_names_the_nearest(write, key, suggestion):
    section, _, name = key.rpartition(".")
    path = write(f"{section}:\n  {name}: 1\n" if section else f"{name}: 1\n")
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: {key}: unknown key; did you mean ")
    assert set(problem.split("did you mean ")[1].rstrip("?").split(" or ")) <= set(suggestion.split(" or "))
    assert problems_of(None, [key, "1"]) == [problem.replace(str(path), "command line")]


def test_an_unknown_key_like_no_other_points_to_the_defaults():
    assert problems_of(None, ["QQQQ", "1"]) == ["command line: QQQQ: unknown key; configs/defaults.py has them all"]


def test_a_section_whose_keys_are_all_comments_changes_nothing(write):
    path = write("SOLVER:\n#   SEED: 3\nDATASETS:\n", "default.yml")
    assert flatten_cfg(load_cfg(path)) == flatten_cfg(load_cfg(None))


def test_a_section_that_is_no_mapping_is_refused(write):
    for text in ("SOLVER: 3", "SOLVER: [1]"):
        assert "SOLVER: expected a section" in problems_of(write(text))[0]
    assert "SOLVER: expected a section" in problems_of(None, ["SOLVER", "3"])[0]


def test_a_key_below_a_key_is_refused(write):
    assert problems_of(write("SOLVER: {BASE_LR: {x: 1}}"))[0].endswith(
        "SOLVER.BASE_LR: expected a finite number > 0, got a mapping")


# ---------------------------------------------------------------- messages

def test_all_problems_of_file_options_and_combinations_are_in_one_message(write):
    path = write("""
SOLVER:
  BASE_LR: fast
  IMS_PER_BATC: 64
  IMS_PER_BATCH: 70
MODEL:
  NECK: bneck
  IF_WITH_CENTER: yes
DATALOADER: {SAMPLER: softmax_triplet, NUM_INSTANCE: 4}
""")
    assert problems_of(path, ["TEST.TOP_K", "0", "INPUT.PADING", "1"]) == [
        f"{path}: SOLVER.BASE_LR: expected a finite number > 0, got fast",
        f"{path}: SOLVER.IMS_PER_BATC: unknown key; did you mean SOLVER.IMS_PER_BATCH?",
        f"{path}: MODEL.NECK: expected bnneck | no, got bneck (did you mean bnneck?)",
        "command line: TEST.TOP_K: expected an integer >= 1, got 0",
        "command line: INPUT.PADING: unknown key; did you mean INPUT.PADDING?",
        f"{path} + command line: SOLVER.IMS_PER_BATCH=70 is not divisible by DATALOADER.NUM_INSTANCE=4; use 68 or 72",
        f"{path} + command line: MODEL.IF_WITH_CENTER=True contradicts MODEL.METRIC_LOSS_TYPE=triplet; use center or "
        "triplet_center, or IF_WITH_CENTER False",
    ]


def test_combinations_with_a_refused_value_are_not_judged(write):
    path = write("SOLVER: {IMS_PER_BATCH: many}\nDATALOADER: {SAMPLER: triplet, NUM_INSTANCE: 48}\n")
    assert problems_of(path) == [f"{path}: SOLVER.IMS_PER_BATCH: expected an integer >= 1, got many"]


def test_an_unreadable_file_does_not_hide_the_options_problems(tmp_path):
    missing, wrong = problems_of(tmp_path / "none.yml", ["TEST.TOP_K", "0"])
    assert "no such file" in missing
    assert "TEST.TOP_K" in wrong


def test_long_and_odd_values_are_cut_in_messages():
    assert len(problems_of(None, ["SOLVER.SEED", "9" * 9999])[0]) < 250
    assert len(problems_of(None, ["SOLVER.SEED", 1 << 99999])[0]) < 250
    assert len(problems_of(None, ["SOLVER.STEPS", [[[["a" * 500]]]] * 99])[0]) < 1000
    assert problems_of(None, ["MODEL.NAME", ""])[0].endswith("expected a string that is not empty, got ''")


# ---------------------------------------------------------------- options

def test_options_override_the_file(write):
    cfg = load_cfg(write("SOLVER: {MAX_EPOCHS: 3, BASE_LR: 0.1}"), ["SOLVER.MAX_EPOCHS", "4"])
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.BASE_LR) == (4, 0.1)


def test_the_last_option_of_a_key_counts():
    assert load_cfg(None, ["SOLVER.SEED", "1", "SOLVER.SEED", "2"]).SOLVER.SEED == 2


@pytest.mark.parametrize("opts", [None, [], ()])
def test_no_options_are_fine(opts):
    assert load_cfg(None, opts) == load_cfg(None)


def test_an_odd_count_of_options_is_refused():
    assert problems_of(None, ["SOLVER.SEED"]) == [
        "command line: expected KEY VALUE pairs, got 1 words; the last is 'SOLVER.SEED'"]
    assert problems_of(None, ["SOLVER.SEED=3"]) == [
        "command line: expected KEY VALUE pairs, got 1 words; write 'SOLVER.SEED 3'"]
    assert problems_of(None, ["SOLVER.SEED=3", "TEST.TOP_K=5"]) == [
        "command line: expected KEY VALUE pairs, got 2 words; write 'SOLVER.SEED 3'"]
    assert problems_of(None, ["SOLVER.SEAD=3"]) == [
        "command line: expected KEY VALUE pairs, got 1 words; SOLVER.SEAD: unknown key; did you mean SOLVER.SEED?"]
    assert load_cfg(None, ["OUTPUT_DIR", "SOLVER.SEED=3"]).OUTPUT_DIR == "SOLVER.SEED=3"


def test_options_may_have_the_keys_own_type(tmp_path):
    cfg = load_cfg(None, ["SOLVER.SEED", 3, "INPUT.SIZE_TRAIN", (64, 32), "SOLVER.FP16", False, "SOLVER.BASE_LR", 1,
                          "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN_SETS", ["2020_cs"]])
    assert (cfg.SOLVER.SEED, cfg.INPUT.SIZE_TRAIN, cfg.SOLVER.FP16) == (3, [64, 32], False)
    assert cfg.DATASETS.TRAIN_SETS == ["2020_cs"]
    assert Path(cfg.OUTPUT_DIR) == tmp_path
    assert isinstance(cfg.SOLVER.BASE_LR, float)


# ---------------------------------------------------------------- the result

def test_the_result_is_frozen(write):
    cfg = load_cfg(write("SOLVER: {MAX_EPOCHS: 3}"))
    with pytest.raises(AttributeError):
        cfg.SOLVER.MAX_EPOCHS = 4
    with pytest.raises(AttributeError):
        cfg.OUTPUT_DIR = "x"


def test_two_calls_share_nothing(write):
    steps = [5, 6]
    first = load_cfg(write("MODEL: {NAME: other}"), ["SOLVER.STEPS", steps])
    first.SOLVER.STEPS.append(7)
    first.INPUT.SIZE_TRAIN.append(7)
    assert steps == [5, 6]
    second = load_cfg(None)
    assert (second.MODEL.NAME, second.SOLVER.STEPS, second.INPUT.SIZE_TRAIN) == ("resnet50", [40, 70], [384, 128])


@pytest.mark.parametrize(("name", "text", "opts", "expected"), [
    ("r101.yml", "", [], "output/r101"),
    ("r101.v2.yml", "OUTPUT_DIR: ''", [], "output/r101.v2"),
    ("r101.yml", "OUTPUT_DIR: ('../model/a')", [], "../model/a"),
    ("r101.yml", "OUTPUT_DIR: a", ["OUTPUT_DIR", "b"], "b"),
])
def test_an_empty_output_dir_is_named_after_the_file(write, name, text, opts, expected):
    cfg = load_cfg(write(text, name), opts)
    assert expected == cfg.OUTPUT_DIR


def test_without_a_file_the_output_dir_is_default():
    assert load_cfg(None).OUTPUT_DIR == "output/default"


# ---------------------------------------------------------------- obsolete keys and other remarks

def test_obsolete_keys_are_named_in_one_warning(write, caplog):
    path = write("MODEL: {COS_LAYER: true}\nTEST: {EVAL: true}\n")
    load_cfg(path, ["SOLVER.RANGE_K", "3"])
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "configs")
    for key in ("MODEL.COS_LAYER", "TEST.EVAL", "SOLVER.RANGE_K"):
        assert record.getMessage().count(key) == 1


def test_nothing_obsolete_is_no_warning(write, caplog):
    load_cfg(None)
    load_cfg(write("SOLVER: {MAX_EPOCHS: 90}"))
    load_cfg(write(dump_cfg(load_cfg(None, ["SOLVER.MAX_EPOCHS", "90"]))))
    assert not caplog.records


def test_steps_that_never_come_are_remarked(caplog):
    load_cfg(None, ["SOLVER.MAX_EPOCHS", "50"])
    assert "SOLVER.STEPS: [70] never come" in caplog.records[0].getMessage()
    caplog.clear()
    load_cfg(None, ["SOLVER.MAX_EPOCHS", "50", "SOLVER.LR_SCHEDULER", "cosine"])
    assert not caplog.records


# ---------------------------------------------------------------- text and back

@pytest.mark.parametrize("opts", [
    [],
    ["SOLVER.BASE_LR", "1e-5", "SOLVER.WEIGHT_DECAY", "5e-300", "INPUT.SIZE_TRAIN", "(64, 32)"],
    ["MODEL.NECK", "no", "MODEL.DEVICE_ID", "0,1", "OUTPUT_DIR", "off", "TEST.WEIGHT", "3e-4"],
    ["OUTPUT_DIR", "模型/a b: c #d", "TEST.WEIGHT", "'quoted' \"twice\"", "DATASETS.ROOT_DIR", " ../data "],
    ["OUTPUT_DIR", "x" * 300 + " " + "y" * 300, "DATASETS.TEST_DIR", "2020-10-05", "MODEL.NAME", "1:30"],
    ["DATASETS.TRAIN_SETS", "[2019_cs, 2020_fs]", "SOLVER.STEPS", "[]", "TEST.WEIGHT", "a\tb\udcff\x85\u2028\ufeff\n"],
    ["MODEL.THRESH", "0.3", "SOLVER.RANGE_ALPHA", "0.5", "TEST.USE_LOCAL", "no"],
])
def test_a_dumped_config_reads_back_to_the_same_tree(write, opts):
    cfg = load_cfg(None, opts)
    text = dump_cfg(cfg)
    assert load_cfg_text(text) == cfg
    assert load_cfg(write(text)) == cfg
    assert dump_cfg(load_cfg_text(text)) == text
    assert load_cfg_text(text).is_frozen()


def test_a_changed_config_is_another_and_checked_like_any():
    cfg = load_cfg(None, ["SOLVER.SEED", "5"])
    changed = change_cfg(cfg, {"SOLVER.MAX_EPOCHS": 7, "OUTPUT_DIR": "elsewhere"})
    differs = {key: value for key, value in flatten_cfg(changed).items() if value != flatten_cfg(cfg)[key]}
    assert differs == {"SOLVER.MAX_EPOCHS": 7, "OUTPUT_DIR": "elsewhere"}
    assert changed.is_frozen()
    with pytest.raises(ConfigError, match=r"^config: SOLVER\.MAX_EPOCHS: expected an integer >= 1, got 0$"):
        change_cfg(cfg, {"SOLVER.MAX_EPOCHS": 0})


def test_config_text_is_checked_like_a_file():
    with pytest.raises(ConfigError, match=r"^last\.pth: SOLVER\.SED: unknown key; did you mean SOLVER\.SEED\?$"):
        load_cfg_text("SOLVER: {SED: 1}", "last.pth")
    with pytest.raises(ConfigError, match=r"last\.pth: expected a mapping"):
        load_cfg_text("nonsense", "last.pth")


def test_a_file_that_is_no_config_for_its_length_is_refused_at_once(tmp_path):
    (tmp_path / "a.yml").write_text("a:\n " * 200_000)
    with pytest.raises(ValueError, match=r"a\.yml: cannot be read: more than 256 KiB, which no config is"):
        load_cfg(tmp_path / "a.yml", [])
