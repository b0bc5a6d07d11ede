"""Images -> features -> ranking -> files, top to bottom."""
from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs import flatten_cfg, load_cfg_text
from datasets.make_dataloader import DataLoaders, TestLoader, make_dataloader
from datasets.transforms import Normalize
from model.make_model import ReIDModel, make_model, place_model
from model.pretrained import MODEL_HEADS, load_weights
from processor.feature_bank import BankWriter, FeatureBank, Ranking, read_bank
from processor.ranking import Compute, Evaluation, bank_source, rank_domains, write_results
from utils.checkpoint import read_checkpoint
from utils.dist import ALONE, Workers
from utils.files import sha256_of
from utils.precision import Precision, select_device
from utils.progress import progress

logger = logging.getLogger(__name__)
_SHAPES_FEATURES = ("MODEL.LAST_STRIDE", "MODEL.POOLING_METHOD", "MODEL.GEM_P", "MODEL.PCB_GATE", "INPUT.PIXEL_MEAN",
                    "INPUT.PIXEL_STD")
MakeArray = Callable[[str, tuple[int, int]], np.ndarray]


def in_memory(_: str, shape: tuple[int, int]) -> np.ndarray:
    """An array to fill that is not on disk."""
    return np.empty(shape, np.float32)


@torch.inference_mode()
def extract_features(model: ReIDModel, test: TestLoader, normalize: Normalize, flip: bool, precision: Precision,
                     make_array: MakeArray = in_memory, title: str = "") -> FeatureBank:
    """Embed every image of a domain.

    Args:
        model: on the device, in any mode; it is left in eval mode.
        flip: average the features of the image and its mirror image, in float32, before any normalisation.
        make_array: (branch, (N, D)) -> the float32 array to fill, memory-mapped or not.
    Returns:
        A FeatureBank in the loader's order, queries first.
    """
    model.eval()
    feats: dict[str, np.ndarray] = {}
    done = 0
    for batch in progress(test.loader, title, "batch"):
        images = normalize(batch.images.to(precision.device, non_blocking=True))
        views = [images, images.flip(3)] if flip else [images]
        with precision.autocast():
            outputs = [model(view) for view in views]
        rows = slice(done, done + len(batch.pids))
        for branch in outputs[0]:
            mean = torch.stack([output[branch].float() for output in outputs]).mean(0)
            if branch not in feats:
                feats[branch] = make_array(branch, (len(test.samples), mean.shape[1]))
            feats[branch][rows] = mean.cpu().numpy()
        done = rows.stop
    return FeatureBank(
        feats,
        pids=np.array([sample.pid for sample in test.samples]),
        camids=np.array([sample.camid for sample in test.samples]),
        names=np.array([Path(sample.key).name for sample in test.samples]),
        num_query=test.num_query, has_truth=test.has_truth,
    )


def evaluate(cfg, model: ReIDModel, loaders: DataLoaders, precision: Precision) -> dict:
    """Metrics of a model on the test folder without re-ranking or expansion: the check during training.

    Returns {domain or 'all': {'plain': figures}}, {} where no domain has ground truth.
    """
    ranking = replace(Ranking.from_cfg(cfg), re_ranking=None, query_expansion=0, database_augmentation=0)
    compute = Compute.from_cfg(cfg, str(precision.device))
    domains = {}
    for domain, test in loaders.test.items():
        if test.has_truth:
            bank = extract_features(model, test, loaders.normalize, cfg.TEST.FLIP_FEATS, precision, title=domain)
            domains[domain] = [bank_source("model", bank, ranking, compute)]
    return rank_domains(domains, [1.0], Evaluation(cfg.TEST.TOP_K, cfg.TEST.DROP_SAME_CAMERA)).metrics()


def load_trained(cfg, weight: Path) -> ReIDModel:
    """The configured model with a checkpoint's weights; the classifier is of no use here and stays random.

    Warns where the checkpoint remembers a setting that has no weights to contradict the config, but changes features.
    """
    checkpoint = read_checkpoint(weight)
    model = make_model(cfg, num_class=1, pretrained=False)
    # A model may have been trained with a branch that this test leaves out.
    load_weights(model, checkpoint, weight, skip=MODEL_HEADS, allow_unexpected=("pcb.local.*",))
    if "config" in checkpoint:
        then, now = flatten_cfg(load_cfg_text(checkpoint["config"], str(weight))), flatten_cfg(cfg)
        for key in _SHAPES_FEATURES:
            if then[key] != now[key]:
                logger.warning("%s was trained with %s=%s and is tested with %s", weight, key, then[key], now[key])
    return model


def do_inference(cfg, save_distmat: bool = False, workers: Workers = ALONE) -> dict:
    """Test one checkpoint: leave its feature bank, submission.json and metrics.json in cfg.OUTPUT_DIR.

    Args:
        cfg: the config tree; TEST.WEIGHT names the checkpoint.
        save_distmat: write the original's distmat_{1,2}.npy and lists, too.
        workers: processes that share the ranking; the first extracts the features.
    Returns:
        The metrics, {} where the truth is unknown.
    Raises:
        ValueError, FileNotFoundError: the checkpoint or the test data cannot be used; said before anything slow.
    """
    out = Path(cfg.OUTPUT_DIR)
    device = select_device(cfg.MODEL.DEVICE, cfg.MODEL.DEVICE_ID)
    if workers.is_main:
        leave_bank(cfg, device, out / "features")
    workers.wait()
    banks, index = read_bank(out / "features")
    compute = Compute.from_cfg(cfg, workers.device(device), workers)
    domains = {domain: [bank_source(cfg.MODEL.NAME, bank, Ranking.from_cfg(cfg), compute)]
               for domain, bank in banks.items()}
    evaluation = Evaluation(**index["evaluation"])
    ranked = rank_domains(domains, [1.0], evaluation, out if save_distmat else None, workers)
    return write_results(out / "submission.json", ranked, workers, weight=index["weight"])


def leave_bank(cfg, device: torch.device, folder: Path) -> None:
    """Extract the features of every domain with the checkpoint TEST.WEIGHT into a feature bank.

    Raises:
        ValueError, FileNotFoundError: as for `do_inference`.
    """
    weight = Path(cfg.TEST.WEIGHT)
    if not cfg.TEST.WEIGHT:
        raise ValueError("TEST.WEIGHT is empty: name the checkpoint to test, e.g. TEST.WEIGHT output/NAME_60.pth")
    precision = Precision(device, cfg.SOLVER.FP16)
    model = place_model(cfg, load_trained(cfg, weight), device)
    loaders = make_dataloader(cfg, train=False)
    if not loaders.test:
        raise ValueError(f"no domain of {cfg.DATASETS.TEST_DIR} has both queries and gallery images: nothing to rank")
    writer = BankWriter(folder)
    for domain, part in loaders.test.items():
        logger.info("%s: %d queries, %d gallery images", domain, part.num_query, len(part.samples) - part.num_query)
        writer.add(domain, extract_features(
            model, part, loaders.normalize, cfg.TEST.FLIP_FEATS, precision, title=domain,
            make_array=lambda branch, shape, domain=domain: writer.array(domain, branch, shape),
        ))
    evaluation = Evaluation(cfg.TEST.TOP_K, cfg.TEST.DROP_SAME_CAMERA)
    writer.finish(Ranking.from_cfg(cfg), evaluation=vars(evaluation), weight=weight.name,
                  weight_sha256=sha256_of(weight), model=cfg.MODEL.NAME, size=list(cfg.INPUT.SIZE_TEST))
