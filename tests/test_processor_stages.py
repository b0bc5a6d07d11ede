"""What run.sh does again, goes on with, skips, and refuses to overwrite; the stages themselves are acted."""
import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from set_files import write_set

from configs import dump_cfg, load_cfg
from processor import pipeline
from processor.pipeline import Recipe, Settings, StageFailed, plan, run, survey
from processor.stages import facts, running
from processor.stages.stage import Stage, assess, write_done
from tools import pipeline as command_line
from tools.campaigns.tool_server import run_logged_by_server, run_tool
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.files import read_json
from utils.process import EXIT_STOPPED

NET = "resnet18_ibn_b_w32"


@pytest.fixture
def recipe(tiny_opts, tmp_path, monkeypatch):
    """A recipe of one tiny model, as a YAML file; its path."""
    tree: dict = {}
    for key, value in zip(tiny_opts[::2], tiny_opts[1::2], strict=True):
        if key not in ("OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR"):
            section, leaf = key.split(".")
            tree.setdefault(section, {})[leaf] = value
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(tree))
    monkeypatch.setitem(pipeline.RECIPES, "tiny", Recipe((str(path),)))
    return path


class Actor:
    """Acts the stages: leaves their files at once. Names what it acted, and may stop a training."""

    def __init__(self):
        self.acted, self.stops = [], False

    def __call__(self, command, log, cwd):
        tool, words = Path(command[1]).stem, command[2:]
        self.acted.append(f"{tool} --resume" if "--resume" in words else tool)
        if tool in ("split_domains", "split_validation", "make_demo_data"):
            done = run_tool(tool, *words)
            assert done.returncode == 0, done.stderr
            return 0
        if tool == "ensemble":
            Path(words[words.index("--output") + 1]).write_text("{}")
            return 0
        if tool == "visualize":
            return self.page(words)
        if tool == "export":
            folder = Path(words[words.index("--output") + 1])
            folder.mkdir(exist_ok=True)
            shutil.copy(words[words.index("--weight") + 1], folder / "model.safetensors")
            return 0
        words = [word for word in words if word != "--resume"]
        cfg = load_cfg(words[words.index("--config_file") + 1], words[words.index("--config_file") + 2:])
        return self.train(cfg) if tool == "train" else self.test(cfg)

    def train(self, cfg):
        out = Path(cfg.OUTPUT_DIR)
        state = {"epoch": cfg.SOLVER.MAX_EPOCHS, "optimizers": [], "data_digest": "", "model": {"w": torch.rand(3)},
                 "config": dump_cfg(cfg)}
        save_checkpoint(out / "latest.pth", state)
        if self.stops:
            return EXIT_STOPPED
        save_checkpoint(out / f"{NET}_{cfg.SOLVER.MAX_EPOCHS}.pth", state)
        return 0

    def test(self, cfg):
        folder = Path(cfg.OUTPUT_DIR)
        (folder / "features").mkdir(parents=True, exist_ok=True)
        (folder / "features/index.json").write_text(f"{cfg.TEST.TOP_K} {read_checkpoint(Path(cfg.TEST.WEIGHT))}")
        (folder / "submission.json").write_text("{}")
        return 0

    def page(self, words):
        page = Path(words[words.index("--run") + 1]) / "ranks"
        page.mkdir(exist_ok=True)
        (page / "page.js").write_text("")
        return 0

    def again(self, settings):
        """What is run in another run of the pipeline."""
        self.acted = []
        facts.forget()
        run(settings)
        return self.acted


@pytest.fixture
def actor(monkeypatch):
    actor = Actor()
    monkeypatch.setattr(running, "run_logged", actor)
    facts.forget()
    return actor


@pytest.fixture
def data(tiny_data, tmp_path):
    shutil.copytree(tiny_data / "MyDataSet", tmp_path / "data" / "MyDataSet")
    return tmp_path / "data"


@pytest.fixture
def done(recipe, actor, data, tmp_path):
    """Settings of a run that is done."""
    settings = Settings(tmp_path / "out", "tiny", data)
    assert actor.again(settings) == ["split_domains", "train", "test", "ensemble", "visualize", "export"]
    return settings


def changed(settings, **fields):
    return Settings(**{**vars(settings), **fields})


def weights_of(out):
    return {path.name: path.read_bytes() for path in (out / "tiny").glob("*.pth")}


# ------------------------------------------------------------------ what is the same
def test_a_run_that_is_moved_with_its_data_is_still_done(done, actor, tmp_path):
    shutil.move(tmp_path / "out", tmp_path / "far" / "away")
    shutil.move(tmp_path / "data", tmp_path / "disk")
    assert actor.again(changed(done, output_root=tmp_path / "far/away", data_root=tmp_path / "disk")) == []
    shutil.copytree(tmp_path / "far/away", tmp_path / "copy")
    assert actor.again(changed(done, output_root=tmp_path / "copy", data_root=tmp_path / "disk")) == []
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "copy/stages").iterdir())


def test_comments_bases_and_keys_that_change_no_result_do_not_count(done, actor, recipe):
    recipe.write_text(recipe.read_text() + "# a note\n")
    assert actor.again(done) == []
    recipe.rename(recipe.with_name("base.yml"))
    recipe.write_text("_BASE_: base.yml\n")
    assert actor.again(done) == []
    assert actor.again(changed(done, opts=("SOLVER.LOG_PERIOD", "7", "DATALOADER.NUM_WORKERS", "1",
                                           "TEST.IMS_PER_BATCH", "9", "SOLVER.EVAL_PERIOD", "2"))) == []


def test_a_test_key_or_a_gallery_picture_repeats_the_tests_alone(done, actor, data):
    assert actor.again(changed(done, opts=("TEST.TOP_K", "5"))) == ["test", "ensemble", "visualize"]
    path = next((data / "MyDataSet/image_B_v1_1/gallery").iterdir())
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (20, 40)))
    assert actor.again(changed(done, opts=("TEST.TOP_K", "5")))[:2] == ["split_domains", "test"]


def test_a_page_that_fails_loses_no_result_and_is_tried_again(done, actor, caplog):
    shutil.rmtree(done.output_root / "ranks")
    (done.output_root / "summary.json").unlink()
    fine, actor.page = actor.page, lambda words: 1
    assert actor.again(done) == ["visualize"]
    assert "stage ranks failed with exit code 1; its log is" in caplog.text
    assert read_json(done.output_root / "summary.json")["seconds"]["ranks"] >= 0
    actor.page = fine
    assert actor.again(done) == ["visualize"]
    assert actor.again(done) == []


def test_a_page_that_a_user_made_with_other_options_stays(done, actor):
    (done.output_root / "ranks" / "index.html").write_text("with --scatter")
    assert actor.again(done) == []


def test_trainings_that_lost_their_records_are_gone_on_from(done, actor):
    before = weights_of(done.output_root)
    shutil.rmtree(done.output_root / "stages")
    actor.train = lambda cfg: 0
    assert actor.again(done) == ["split_domains", "train --resume", "test", "ensemble", "visualize", "export"]
    assert weights_of(done.output_root) == before


def test_a_stopped_training_goes_on_after_a_move(recipe, actor, data, tmp_path):
    settings, actor.stops = Settings(tmp_path / "out", "tiny", data), True
    with pytest.raises(StageFailed, match="was stopped"):
        run(settings)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    shutil.move(data, tmp_path / "disk")
    actor.stops = False
    assert actor.again(Settings(tmp_path / "moved", "tiny", tmp_path / "disk")) == ["train --resume", "test",
                                                                                  "ensemble", "visualize", "export"]


def test_a_recipe_with_more_epochs_goes_on_from_the_last_one(done, actor):
    longer = changed(done, opts=("SOLVER.MAX_EPOCHS", "9"))
    verdict = {stage.name: verdict for stage, verdict in survey(longer)}["train_tiny"]
    assert verdict == ("go on", "from tiny/latest.pth")
    assert actor.again(longer) == ["train --resume", "test", "ensemble", "visualize", "export"]
    assert actor.again(longer) == []
    with pytest.raises(ValueError, match=r"train_tiny: .* SOLVER\.MAX_EPOCHS was 9 and is 5; the epochs that are "
                       r"trained must keep their schedule\. Undo"):
        actor.again(changed(done, opts=("SOLVER.MAX_EPOCHS", "5")))


# ------------------------------------------------------------------ what is never overwritten
@pytest.mark.parametrize("stopped", [False, True])
def test_another_training_does_not_overwrite_what_is_there(recipe, actor, data, tmp_path, stopped):
    settings, actor.stops = Settings(tmp_path / "out", "tiny", data), stopped
    if stopped:
        with pytest.raises(StageFailed):
            run(settings)
    else:
        run(settings)
    before, other = weights_of(tmp_path / "out"), changed(settings, opts=("SOLVER.BASE_LR", "0.5"))
    for again in range(2):
        with pytest.raises(ValueError, match=r"train_tiny: \S+tiny holds checkpoints of another training, and nothing "
                           r"is overwritten: SOLVER.BASE_LR was 0.0003 and is 0.5. Undo .*another OUTPUT_ROOT.*--force "
                           r"move the folder aside to \S+tiny\.1 "):
            actor.again(other)
        assert actor.acted == [], again
    assert weights_of(tmp_path / "out") == before
    actor.stops = False
    assert actor.again(changed(other, force=True)) == ["train", "test", "ensemble", "visualize", "export"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/tiny.1").glob("*.pth")} == before
    assert actor.again(changed(other, force=True)) == []  # what is done is not forced again


@pytest.mark.parametrize("change", ["picture", "list", "fewer sets"])
def test_a_training_on_other_pictures_does_not_overwrite_that_on_these(done, actor, data, change):
    folder = data / "MyDataSet/train_2019_cs"
    opts = ("DATASETS.TRAIN_SETS", "[2019_cs, 2020_cs]") if change == "fewer sets" else ()
    if change == "picture":
        path = next((folder / "train").iterdir())
        path.write_bytes(path.read_bytes() + b"\0")
    if change == "list":
        lines = (folder / "train_list.txt").read_text().splitlines()
        (folder / "train_list.txt").write_text("\n".join(lines[1:]))
    what = "files" if change == "picture" else "list"
    with pytest.raises(ValueError, match=rf"the {what} of training pictures was .* and is .*--force"):
        actor.again(changed(done, opts=opts))
    assert actor.acted == []


def test_weights_that_are_no_checkpoints_of_ours_are_not_overwritten(recipe, actor, data, tmp_path):
    (tmp_path / "out/tiny").mkdir(parents=True)
    (tmp_path / "out/tiny" / f"{NET}_2.pth").write_text("somebody's")
    with pytest.raises(ValueError, match=rf"nothing is overwritten: .* has no checkpoint to go on from, but {NET}_2"):
        run(Settings(tmp_path / "out", "tiny", data))


# ------------------------------------------------------------------ messages
def actions(settings):
    facts.forget()
    return {stage.name: verdict for stage, verdict in survey(settings)}


def test_a_dry_run_says_of_each_stage_what_and_why(done, actor, capsys, monkeypatch, tmp_path):
    def lines(*words, force=False):
        facts.forget()
        command_line.print_plan(changed(done, opts=words, force=force))
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("    python ")]

    assert lines() == [f"{name}: would be skipped: done before"
                       for name in ("split_domains", "train_tiny", "test_tiny", "ensemble", "ranks", "export_tiny")]
    assert lines("TEST.TOP_K", "5")[2:] == ["test_tiny: would run: TEST.TOP_K was 10 and is 5",
                                            "ensemble: would run: unless test_tiny leaves what was there before",
                                            "ranks: would run: unless ensemble leaves what was there before",
                                            "export_tiny: would be skipped: done before"]
    assert lines("SOLVER.SEED", "5")[1].startswith("train_tiny: would stop: ")
    assert "would run: --force moves" in lines("SOLVER.SEED", "5", force=True)[1]
    (done.output_root / "tiny" / f"{NET}_4.pth").unlink()
    assert lines()[1] == "train_tiny: would go on: from tiny/latest.pth"
    assert not (tmp_path / "new").exists()
    assert {verdict.why for verdict in actions(changed(done, output_root=tmp_path / "new")).values()} == {
        "not done yet"}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("lacking", "message"), [
    ("train_2019_fs", "NAIC training data is missing: no folder .*name the sets you have in DATASETS.TRAIN_SETS"),
    ("image_B_v1_1", "no test folder .*set DATASETS.TEST_DIR"),
])
def test_incomplete_data_are_refused_as_by_a_training_and_keys_help(recipe, actor, data, tmp_path, lacking, message):
    (data / "MyDataSet" / lacking).rename(data / "MyDataSet" / "elsewhere")
    settings = Settings(tmp_path / "out", "tiny", data)
    with pytest.raises(FileNotFoundError, match=message):
        run(settings)
    assert actor.acted == []
    opts = ("DATASETS.TRAIN_SETS", "[2019_cs,2020_cs,2020_fs]", "DATASETS.TEST_DIR",
            "elsewhere" if lacking == "image_B_v1_1" else "image_B_v1_1")
    assert actor.again(changed(settings, opts=opts)) == ["split_domains", "train", "test", "ensemble", "visualize",
                                                         "export"]


@pytest.mark.parametrize(("words", "message"), [
    (["SOLVER.MAX_EPOCHS=3"], "bash run.sh SOLVER.MAX_EPOCHS 3"),
    (["TEST.TOP_K", "3", "RECIPE=own"], "RECIPE=own bash run.sh"),
    (["SOLVER.MAX_EPOCHS"], "SOLVER.MAX_EPOCHS has no value"),
])
def test_words_that_are_no_pairs_are_corrected(words, message):
    with pytest.raises(ValueError, match=message):
        command_line.read_settings(words, False)


@pytest.mark.parametrize(("opts", "message"), [
    (("OUTPUT_DIR", "x"), "OUTPUT_DIR is set for each stage here; use OUTPUT_ROOT"),
    (("TEST.WEIGHT", "x"), "use WEIGHTS"),
    (("SOLVER.MAX_EPOCH", "3"), r"unknown key; did you mean SOLVER\.MAX_EPOCHS"),
])
def test_keys_that_run_sh_cannot_pass_on_are_refused(recipe, tmp_path, opts, message):
    with pytest.raises(ValueError, match=message):
        plan(Settings(tmp_path, "tiny", tmp_path, opts=opts))


def test_keys_reach_every_stage_and_change_the_checkpoints_that_are_tested(tmp_path):
    stages = {stage.name: stage for stage in plan(Settings(tmp_path, "naic", opts=("SOLVER.MAX_EPOCHS", "3",
                                                                                  "SOLVER.STEPS", "[]")))}
    for name in ("train_r101_ibn_b_128", "test_r101_ibn_b_240"):
        assert "SOLVER.MAX_EPOCHS 3 SOLVER.STEPS []" in " ".join(stages[name].command)
    assert stages["train_r101_ibn_b_128"].outputs == [tmp_path / "r101_ibn_b_128/resnet101_ibn_b_3.pth"]


# ------------------------------------------------------------------ own pictures
@pytest.fixture
def people(tiny_data, tmp_path):
    """A folder with a folder of five pictures for each of twelve people."""
    pictures = sorted((tiny_data / "MyDataSet").glob("train_20*/*/*.png"))
    for number, path in enumerate(pictures[:60]):
        folder = tmp_path / "own/people" / f"person {number // 5}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number % 5}.png")
    return tmp_path / "own"


SMALL = ("DATASETS.NAMES", "tree:people", "INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]",
         "SOLVER.MAX_EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.EVAL_PERIOD", "0",
         "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu")


def test_a_folder_of_people_is_trained_measured_and_ranked(people, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run_logged", run_logged_by_server)
    facts.forget()
    summary = run(Settings(tmp_path / "out", "own", people, opts=SMALL))
    assert [*summary["seconds"]] == ["validation", "train_own", "test_own", "ensemble", "ranks", "export_own"]
    assert summary["ensemble"]["plain"]["num_valid"] == 2
    assert {path.name for path in (tmp_path / "out/own/model").iterdir()} == {"card.md", "model.json",
                                                                              "model.safetensors"}
    assert len(read_json(tmp_path / "out/submission.json")) == 2
    assert {verdict.action for verdict in actions(Settings(tmp_path / "out", "own", people, opts=SMALL)).values()} == {
        "be skipped"}


@pytest.mark.parametrize(("layout", "stages"), [
    ("tree", ["validation", "train_own", "test_own", "ensemble", "ranks", "export_own"]),
    ("tree with a test part", ["train_own", "test_own", "ensemble", "ranks", "export_own"]),
    ("naic", ["split_domains", "train_own", "test_own", "ensemble", "ranks", "export_own"]),
])
def test_what_is_prepared_depends_on_the_set(people, data, tmp_path, layout, stages):
    if layout == "tree with a test part":
        shutil.copytree(people / "people", people / "parts/train")
        for part in ("query", "gallery"):
            shutil.copytree(people / "people/person 1", people / "parts" / part / "person 1")
    root, names = {"tree": (people, "tree:people"), "tree with a test part": (people, "tree:parts"),
                   "naic": (data, "naic")}[layout]
    made = plan(Settings(tmp_path / "out", "own", root, opts=("DATASETS.NAMES", names)))
    assert [stage.name for stage in made] == stages


def test_the_folder_of_people_itself_and_the_callers_folder_are_looked_at(people, tmp_path):
    stages = plan(Settings(tmp_path / "out", "own", people / "people"))
    assert stages[0].settings == {"people to measure with": 2}
    opts = ("DATASETS.NAMES", "tree:people")
    assert str(people) in plan(Settings(tmp_path / "out", "own", opts=opts, caller=people))[0].command
    with pytest.raises(ValueError, match="where is people\\? Set DATA_ROOT to the folder that holds it"):
        plan(Settings(tmp_path / "out", "own", opts=opts, caller=tmp_path))


def test_a_public_set_is_looked_for_where_the_caller_is_and_tested_before_it_is_trained(tmp_path):
    """Else a training would end before anybody sees that there is nothing to test on."""
    opts = ("DATASETS.NAMES", "market1501")
    home = write_set(tmp_path, "market1501")
    made = plan(Settings(tmp_path / "out", "own", opts=opts, caller=tmp_path))
    assert [stage.name for stage in made] == ["train_own", "test_own", "ensemble", "ranks", "export_own"]
    assert str(tmp_path) in made[0].command
    with pytest.raises(ValueError, match="where is market1501\\? Set DATA_ROOT to the folder that holds it"):
        plan(Settings(tmp_path / "out", "own", opts=opts, caller=tmp_path / "elsewhere"))
    (home / "query").rename(home / "queries")
    with pytest.raises(FileNotFoundError, match="is incomplete: no query/"):
        plan(Settings(tmp_path / "out", "own", tmp_path, opts=opts))


# ------------------------------------------------------------------ records
def test_a_record_says_what_a_stage_depended_on(done):
    record = json.loads((done.output_root / "stages/train_tiny.done.json").read_text())
    assert record["outputs"].keys() == {f"tiny/{NET}_4.pth"}
    assert record["facts"]["SOLVER.BASE_LR"] == 0.0003
    assert not [key for key in record["facts"] if key.startswith("TEST.T")]


@pytest.mark.parametrize("record", [{"facts": {}, "outputs": []}, {"facts": [], "outputs": {}}, {"facts": 3}, []])
def test_a_record_with_values_of_other_types_is_none(tmp_path, record):
    stage = Stage("test_a", [], [tmp_path / "a" / "metrics.json"], {})
    write_done(stage, tmp_path, {}, 1.0)
    (tmp_path / "stages" / "test_a.done.json").write_text(json.dumps(record))
    assert assess(stage, tmp_path).why == "not done yet"
