"""Training: what it leaves, and that a resumed run equals one that was never stopped."""
import json
import shutil

import pytest
import torch
from conftest import tiny_options
from trainings import assert_same_state

from configs import load_cfg
from processor import trainer
from processor.trainer import do_train, dry_run
from utils.checkpoint import read_checkpoint
from utils.process import RunLock


def cfg_of(tiny_opts, *changes):
    return load_cfg(None, [*tiny_opts, *map(str, changes)])


@pytest.fixture(scope="module")
def whole_run(tiny_data, tmp_path_factory):
    """The folder of a run that was never stopped; not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    do_train(cfg_of(tiny_options(tiny_data, out)))
    return out


def test_a_resumed_run_ends_in_the_same_weights_to_the_bit(tiny_opts, tmp_path, whole_run, monkeypatch):
    cfg = cfg_of(tiny_opts, "OUTPUT_DIR", tmp_path / "parts", "DATALOADER.NUM_WORKERS", 2)
    original, epochs = trainer.train_epoch, []

    def interrupted(run, monitor, epoch, start):
        original(run, monitor, epoch, start)
        epochs.append(epoch)
        if epoch == 3 and len(epochs) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    do_train(cfg, resume="auto")
    assert epochs == [1, 2, 3, 3, 4]
    name = f"{cfg.MODEL.NAME}_4.pth"
    assert_same_state(read_checkpoint(tmp_path / "parts" / name), read_checkpoint(whole_run / name))
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})


def test_with_every_augmentation_a_resumed_run_ends_in_the_same_weights(tiny_data, tmp_path):
    keys = ["INPUT.RANDOM_PATCH_PROB", 0.5, "INPUT.AUTOAUG_PROB", 0.5, "INPUT.AUGMIX_PROB", 0.5,
            "INPUT.GRAYSCALE_PATCH_PROB", 0.5, "INPUT.GRAYSCALE_PROB", 0.2, "DATASETS.CHANNEL_SHUFFLE", "True",
            "DATALOADER.BALANCE_SETS", "True", "SOLVER.STEPS", "[]", "SOLVER.CHECKPOINT_PERIOD", 1]

    def run(name, workers, resume="none"):
        return do_train(cfg_of(tiny_options(tiny_data, tmp_path / name), *keys, "SOLVER.MAX_EPOCHS", 2,
                               "DATALOADER.NUM_WORKERS", workers), resume)

    whole = run("whole", 0)
    first = whole.with_name(whole.name.replace("_2.pth", "_1.pth"))
    (tmp_path / "resumed").mkdir()
    shutil.copy(first, tmp_path / "resumed" / first.name)
    assert_same_state(read_checkpoint(run("resumed", 2, "auto")), read_checkpoint(whole))
    names = read_checkpoint(whole)["pid_names"]
    assert len(names) == len(set(names)) == len(read_checkpoint(whole)["model"]["classifier.weight"])


def test_two_trainings_do_not_write_to_one_folder(tiny_opts, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    half = folder / ".latest.pth.1.tmp"
    half.write_text("what the other run is writing")
    with RunLock(folder / ".train.lock"), pytest.raises(ValueError, match=f"another run is at work in {folder}"):
        do_train(load_cfg(None, tiny_opts))
    assert {path.name for path in folder.iterdir()} == {".train.lock", half.name}


def test_training_leaves_what_the_lineage_leaves(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    checkpoints = {"resnet18_ibn_b_w32_2.pth", "resnet18_ibn_b_w32_4.pth"}
    assert checkpoints | {"metrics.jsonl", "tensorboard", "config.yml"} <= names
    checkpoint = read_checkpoint(whole_run / "resnet18_ibn_b_w32_4.pth")
    assert checkpoint["epoch"] == 4
    assert checkpoint["pid_names"] == sorted(checkpoint["pid_names"])
    assert len(checkpoint["pid_names"]) == len(checkpoint["model"]["classifier.weight"])
    first = json.loads((whole_run / "metrics.jsonl").read_text().splitlines()[0])
    assert {"epoch", "step", "loss", "id", "triplet", "center", "acc", "lr", "images_per_second"} <= first.keys()


def test_a_dry_run_describes_the_training_and_writes_nothing(tiny_opts, tmp_path):
    lines = dry_run(cfg_of(tiny_opts, "SOLVER.EVAL_PERIOD", 2)).splitlines()
    assert lines[0].startswith("resnet18_ibn_b_w32 on cpu in float32: ")
    about = {line.split()[0]: line for line in lines[2:]}
    assert list(about) == ["training", "steps", "parameters", "a", "expected", "evaluation", "RAM"]
    assert "4 epochs x 8 P x K batches of 16 = 32" in about["steps"]
    assert "mean of 3" in about["a"]
    assert "in 2 domains after every 2 epochs, features (global 256)" in about["evaluation"]
    assert not (tmp_path / "model").exists()


def test_log_lines_are_the_lineages(tiny_opts, caplog):
    caplog.set_level("INFO")
    do_train(cfg_of(tiny_opts, "SOLVER.MAX_EPOCHS", 1))
    text = caplog.text
    assert "Epoch[1] Iteration[2/" in text
    assert ", Acc: 0." in text
    assert "Base Lr: 1.00e" in text or "Base Lr: 3.00e" in text
    assert "Epoch 1 done. Time per batch: " in text
    assert "[samples/s]" in text


def test_evaluation_during_training_reports_every_domain(tiny_opts, tmp_path):
    cfg = cfg_of(tiny_opts, "SOLVER.MAX_EPOCHS", 1, "SOLVER.EVAL_PERIOD", 1)
    do_train(cfg)
    last = json.loads((tmp_path / "model" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"all/mAP", "green/mAP", "normal/rank1"} <= last.keys()


def test_training_goes_on_without_a_test_folder(tiny_opts, caplog):
    caplog.set_level("INFO")
    do_train(cfg_of(tiny_opts, "SOLVER.MAX_EPOCHS", 1, "SOLVER.EVAL_PERIOD", 1, "DATASETS.TEST_DIR", "nowhere"))
    assert "no evaluation during training" in caplog.text
    assert "nowhere" in caplog.text


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(tiny_opts, whole_run):
    cfg = cfg_of(tiny_opts, "OUTPUT_DIR", whole_run, "SOLVER.BASE_LR", "0.5")
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR was 0\.0003 and is 0\.5"):
        do_train(cfg, resume="auto")


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(tiny_opts, tmp_path, whole_run):
    first = read_checkpoint(whole_run / "resnet18_ibn_b_w32_2.pth")
    do_train(cfg_of(tiny_opts, "OUTPUT_DIR", tmp_path / "again", "SOLVER.MAX_EPOCHS", 2))
    assert_same_state(read_checkpoint(tmp_path / "again" / "resnet18_ibn_b_w32_2.pth"), first)
    do_train(cfg_of(tiny_opts, "OUTPUT_DIR", tmp_path / "other", "SOLVER.MAX_EPOCHS", 2, "SOLVER.SEED", 99))
    other = read_checkpoint(tmp_path / "other" / "resnet18_ibn_b_w32_2.pth")
    assert not torch.equal(other["model"]["classifier.weight"], first["model"]["classifier.weight"])


def test_a_loss_that_is_not_finite_stops_the_training(tiny_opts):
    with pytest.raises(FloatingPointError, match=r"Lower SOLVER\.BASE_LR"):
        do_train(cfg_of(tiny_opts, "SOLVER.OPTIMIZER_NAME", "SGD", "SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_EPOCHS", 0))


def test_an_unknown_data_set_is_named_with_the_choices(tiny_opts):
    with pytest.raises(ValueError, match=r"'market1502' is not one of csv, cuhk03, .*, naic, .*joined with \+"):
        do_train(cfg_of(tiny_opts, "DATASETS.NAMES", "naic+market1502"))


def test_a_wrong_name_or_missing_weights_are_said_before_the_data_are_read(tiny_opts, monkeypatch):
    monkeypatch.setattr("processor.training.build.make_dataloader", lambda *_, **__: pytest.fail("read the data first"))
    with pytest.raises(ValueError, match=r"did you mean resnest50\?"):
        do_train(load_cfg(None, [*tiny_opts, "MODEL.NAME", "resnest5O"]))
    with pytest.raises(FileNotFoundError, match=r"get the ImageNet weights of resnest50 from https://"):
        do_train(load_cfg(None, [*tiny_opts, "MODEL.NAME", "resnest50", "MODEL.PRETRAIN_CHOICE", "imagenet"]))
