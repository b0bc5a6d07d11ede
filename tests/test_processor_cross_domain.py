"""Models on sets that they were not trained for, and batch norms that take the statistics of these."""
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_options

from configs import load_cfg
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor.cross_domain import format_cross, measure
from processor.evaluation.adaptation import adapt_batch_norms, split_by_camera
from utils.precision import make_precision


def data_options(tiny_data):
    return ["DATASETS.ROOT_DIR", str(tiny_data), "DATASETS.DERIVED_DIR", str(tiny_data / "derived"),
            "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def loaded(tiny_data, tmp_path):
    cfg = load_cfg(None, [*tiny_options(tiny_data, tmp_path), "MODEL.NAME", "resnet18"])
    return make_model(cfg, 3).eval(), make_dataloader(cfg, train=False)


def test_every_model_is_measured_on_every_set_with_intervals(imported, tiny_data, tmp_path):
    shutil.copytree(imported / "model", tmp_path / "second")
    results = measure([imported / "model", tmp_path / "second"], ["naic"], data_options(tiny_data))
    lines = format_cross(results).splitlines()
    assert (len(lines), lines[1].split()[1:]) == (3, lines[2].split()[1:])
    assert results[0].figures["ci95"]["mAP"][0] <= results[0].figures["mAP"]


def test_adapted_batch_norms_have_the_statistics_of_the_pictures_and_keep_their_momentum(loaded):
    model, loaders = loaded
    test, precision = loaders.test["green"], make_precision(torch.device("cpu"), False)
    momentum = model.base.bn1.momentum
    assert adapt_batch_norms(model, test, loaders.normalize, precision) > 1
    batches = [model.base.conv1(loaders.normalize(batch.images)) for batch in test.loader if len(batch.pids) > 1]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model.base.bn1.running_mean, mean)
    assert (model.base.bn1.momentum, model.base.bn1.training) == (momentum, False)


def test_each_camera_is_walked_alone_and_no_picture_is_lost(loaded):
    test = loaded[1].test["green"]
    parts = split_by_camera(test, 4)
    assert sorted(np.concatenate([rows for rows, _ in parts])) == list(range(len(test.samples)))
    for _, part in parts:
        assert len({int(camid) for batch in part.loader for camid in batch.camids}) == 1


def test_adaptation_changes_the_figures_a_camera_at_a_time_too(imported, tiny_data):
    figures = [measure([imported / "model"], ["naic"], data_options(tiny_data), adapt)[0].figures["mAP"]
               for adapt in ("none", "set", "camera")]
    assert len(set(figures)) == 3
