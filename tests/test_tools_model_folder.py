"""Model folders where a checkpoint may be named: testing, training, and what counts more."""
import argparse

import pytest
import torch
from conftest import quick_options, tiny_options
from trainings import train

from configs import load_cfg
from processor.export.model_folder import read_info
from processor.inference import do_inference
from tools.arguments import with_model_folder
from utils.checkpoint import read_checkpoint
from utils.files import read_json


def config(key, *opts, file=None):
    args = argparse.Namespace(config_file=file, opts=list(opts))
    return with_model_folder(load_cfg(file, args.opts), args, key)


def test_a_folder_is_tested_as_the_network_and_with_the_pictures_that_it_tells_of(imported, tiny_data, tmp_path):
    folder = imported / "model"
    words = tiny_options(tiny_data, tmp_path / "run")
    data = [word for pair in zip(words[::2], words[1::2], strict=True) for word in pair
            if not pair[0].startswith(("MODEL.", "INPUT.", "TEST.")) or pair[0] == "MODEL.DEVICE"]
    do_inference(config("TEST.WEIGHT", *data, "TEST.WEIGHT", str(folder)))
    index = read_json(tmp_path / "run" / "features" / "index.json")
    assert (index["model_id"], index["size"]) == (read_info(folder).model_id, [64, 32])


def test_in_a_test_the_folder_counts_more_than_the_file_and_less_than_the_command_line(imported, tmp_path):
    (tmp_path / "a.yml").write_text("MODEL: {NAME: resnet50, NECK: bnneck}\nTEST: {FLIP_FEATS: true}\n")
    words = ["TEST.WEIGHT", str(imported / "model"), "INPUT.SIZE_TEST", "[32, 16]"]
    cfg = config("TEST.WEIGHT", *words, file=tmp_path / "a.yml")
    assert (cfg.MODEL.NAME, cfg.MODEL.NECK, cfg.TEST.FLIP_FEATS) == ("resnet18_ibn_b_w32", "no", False)
    assert cfg.INPUT.SIZE_TEST == [32, 16]


def test_in_a_training_the_file_counts_more_than_the_folder(imported, tmp_path):
    (tmp_path / "a.yml").write_text("MODEL: {NAME: resnet50, NECK: bnneck}\n")
    words = ["MODEL.PRETRAIN_CHOICE", "finetune", "MODEL.PRETRAIN_PATH", str(imported / "model")]
    cfg = config("MODEL.PRETRAIN_PATH", *words, file=tmp_path / "a.yml")
    assert (cfg.MODEL.NAME, cfg.MODEL.NECK, cfg.INPUT.SIZE_TRAIN) == ("resnet50", "bnneck", [64, 32])


@pytest.mark.slow
def test_a_training_starts_from_a_folders_backbone_with_a_neck_of_its_own(imported, tiny_data, tmp_path):
    options = quick_options(tiny_data, tmp_path / "run", "MODEL.PRETRAIN_CHOICE", "imagenet", "MODEL.PRETRAIN_PATH",
                            str(imported / "model"), "MODEL.NAME", "resnet18_ibn_b_w32", "SOLVER.MAX_EPOCHS", 1,
                            "SOLVER.BASE_LR", 1e-9)
    code, errors = train(options)
    assert code == 0, errors
    trained = read_checkpoint(tmp_path / "run" / "latest.pth")["model"]
    start = read_checkpoint(imported / "model")
    assert "bottleneck.weight" in trained
    torch.testing.assert_close(trained["base.conv1.weight"], start["base.conv1.weight"], rtol=0, atol=1e-4)
