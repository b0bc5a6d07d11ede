"""The demo set is hard for an untrained network and learnable: the README's claim, on a seed of its own."""
import pytest
import torch

from configs import load_cfg
from datasets.demo.synthetic import make_demo_data
from datasets.sets.domains import split_domains
from model.make_model import make_model
from processor.inference import do_inference
from processor.pipeline import RECIPES
from processor.trainer import do_train
from utils.checkpoint import save_checkpoint
from utils.seed import seed_everything


@pytest.mark.slow
def test_the_demo_recipe_learns_the_demo_set(tmp_path):
    torch.set_num_threads(2)
    seed = 5
    folder = make_demo_data(tmp_path, seed=seed, progress=False) / "image_B_v1_1"
    split_domains(folder / "query", folder / "gallery", tmp_path / "derived", progress=False)
    options = ["DATASETS.ROOT_DIR", tmp_path, "DATASETS.DERIVED_DIR", tmp_path / "derived",
               "OUTPUT_DIR", tmp_path / "model", "SOLVER.SEED", seed, "TEST.RE_RANKING", "off"]

    def mean_average_precision(weight):
        cfg = load_cfg(RECIPES["demo"].configs[0], [*options, "TEST.WEIGHT", weight])
        return do_inference(cfg)["all"]["plain"]["mAP"]

    cfg = load_cfg(RECIPES["demo"].configs[0], options)
    seed_everything(seed)
    save_checkpoint(tmp_path / "untrained.pth", {"model": make_model(cfg, 2).state_dict()})
    assert mean_average_precision(tmp_path / "untrained.pth") <= 0.2
    assert mean_average_precision(do_train(cfg)) >= 0.6
