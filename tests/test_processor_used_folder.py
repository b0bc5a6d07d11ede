"""A training never overwrites another one's checkpoints unless that is asked for."""
import os

import pytest
from conftest import tiny_options

from configs import dump_cfg, load_cfg
from processor.trainer import prepare_folder
from processor.training.build import checkpoint_folder
from processor.training.used_folder import LOCK, checkpoint_files, move_aside
from tools.campaigns.tool_server import run_tool
from utils.checkpoint import save_checkpoint
from utils.process import RunLock


@pytest.fixture
def cfg(tiny_data, tmp_path):
    """The config of a training whose folder has a checkpoint after two epochs."""
    cfg = load_cfg(None, tiny_options(tiny_data, tmp_path / "model"))
    save_checkpoint(tmp_path / "model" / "latest.pth", {"epoch": 2, "optimizers": [], "config": dump_cfg(cfg),
                                                        "data_digest": "", "model": {}})
    (tmp_path / "model" / "metrics.jsonl").write_text("{}\n")
    return cfg


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_training_from_epoch_1_in_a_used_folder_names_the_ways_out(cfg, tiny_data, tmp_path):
    folder = tmp_path / "model"
    before = content(folder)
    done = run_tool("train", *tiny_options(tiny_data, folder))
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"error: {folder} holds checkpoints (latest.pth) that this training would overwrite: --resume would go on from "
        f"latest.pth. Keep them with another OUTPUT_DIR, or let --force move the folder aside to {folder}.1 and train "
        "anew")
    assert content(folder) == before
    done = run_tool("train", "--resume", "--force", *tiny_options(tiny_data, folder))
    assert done.returncode == 2
    assert "give one of them" in done.stderr


def test_resume_is_advised_only_if_it_would_go_on(cfg, tiny_data, tmp_path):
    other = load_cfg(None, [*tiny_options(tiny_data, tmp_path / "model"), "SOLVER.BASE_LR", "0.5"])
    with pytest.raises(FileExistsError) as error:
        prepare_folder(other)
    assert "they belong to another configuration (SOLVER.BASE_LR was 0.0003 and is 0.5)" in str(error.value)
    assert "--resume" not in str(error.value)


def test_a_checkpoint_from_elsewhere_is_not_gone_on_from_over_others(cfg, tmp_path):
    prepare_folder(cfg, "auto")
    prepare_folder(cfg, str(tmp_path / "model" / "latest.pth"))
    with pytest.raises(FileExistsError, match="would overwrite"):
        prepare_folder(cfg, str(tmp_path / "elsewhere" / "latest.pth"))


def test_force_moves_the_folder_aside_to_the_next_number(cfg, tmp_path):
    folder = tmp_path / "model"
    (tmp_path / "model.1").mkdir()
    before = content(folder)
    prepare_folder(cfg, force=True)
    assert not folder.exists()
    assert {name: data for name, data in content(tmp_path / "model.2").items() if name != LOCK} == before
    assert not list((tmp_path / "model.1").iterdir())
    prepare_folder(cfg, force=True)  # nothing is there


def test_a_linked_folder_stays_a_link_to_the_disk_where_it_lay(cfg, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").rename(tmp_path / "disk" / "run")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "run")
    assert move_aside(tmp_path / "model") == tmp_path / "disk" / "run.1"
    assert os.path.islink(tmp_path / "model")
    assert (tmp_path / "model").is_dir()


def test_a_folder_in_which_a_training_is_at_work_is_not_moved(cfg, tmp_path):
    with RunLock(tmp_path / "model" / LOCK), pytest.raises(ValueError, match="another run is at work"):
        move_aside(tmp_path / "model")
    assert checkpoint_files(tmp_path / "model")


def test_a_folder_that_cannot_be_renamed_is_said(cfg, tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(OSError, match=r"cannot be moved aside to .* \(Device or resource busy\); train in another"):
        prepare_folder(cfg, force=True)


def test_damaged_checkpoints_and_other_peoples_weights_are_not_trained_over(cfg, tmp_path):
    (tmp_path / "model" / "latest.pth").write_bytes(b"PK")
    (tmp_path / "model" / "resnet50_120.pth").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match=r"has no checkpoint to go on from, but latest\.pth, resnet50_120\.pth"):
        checkpoint_folder(cfg).find("auto")
    (tmp_path / "model" / "pretrained.pth").touch()  # no name of a training's checkpoint
    assert len(checkpoint_files(tmp_path / "model")) == 2
