"""Testing a model: images -> features -> ranking -> files, top to bottom."""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from configs import dump_cfg, flatten_cfg, load_cfg_text
from datasets.make_dataloader import DataLoaders, TestLoader, make_dataloader
from datasets.transforms import Normalize
from model.embedding import embed_views
from model.make_model import ReIDModel, make_model, place_model
from model.pretrained import MODEL_HEADS, load_weights
from processor.evaluation.feature_bank import BankWriter, FeatureBank, Ranking, read_bank
from processor.evaluation.ranking import rank_domains, write_results
from processor.evaluation.sources import Compute, bank_source, warn_of_ranking
from processor.evaluation.truth import truths_of, warn_of_obstacles
from processor.export.model_folder import read_info, read_weights
from processor.trained_model import describe_model, folder_settings
from utils.checkpoint import read_checkpoint
from utils.dist import ALONE, Workers
from utils.files import sha256_of
from utils.packages import weight_file
from utils.precision import Precision, make_precision, select_device
from utils.process import RunLock
from utils.progress import progress

logger = logging.getLogger(__name__)
_SHAPES_FEATURES = ("MODEL.LAST_STRIDE", "MODEL.POOLING_METHOD", "MODEL.GEM_P", "MODEL.PCB_GATE", "INPUT.PIXEL_MEAN",
                    "INPUT.PIXEL_STD")
CPU = torch.device("cpu")
MakeArray = Callable[[str, tuple[int, int]], np.ndarray]
MakeDomainArray = Callable[[str, str, tuple[int, int]], np.ndarray]


def ranking_of(cfg) -> Ranking:
    """The TEST section: how features become distances."""
    k1, k2, lambda_value = cfg.TEST.RE_RANKING_PARAMETER
    re_ranking = (int(k1), int(k2), float(lambda_value)) if cfg.TEST.RE_RANKING else None
    return Ranking(cfg.TEST.FEAT_NORM, cfg.TEST.DISTANCE, re_ranking, cfg.TEST.LOCAL_WEIGHT,
                   cfg.TEST.QUERY_EXPANSION, cfg.TEST.DATABASE_AUGMENTATION, cfg.TEST.EXPANSION_ALPHA)


def device_of(cfg, workers: Workers = ALONE) -> torch.device:
    """MODEL.DEVICE and DEVICE_ID: the device on which this process tests."""
    return torch.device(workers.device(select_device(cfg.MODEL.DEVICE, cfg.MODEL.DEVICE_ID)))


def compute_of(cfg, device: str, workers: Workers = ALONE) -> Compute:
    """The TEST section: how distances are computed."""
    return Compute(cfg.TEST.SEARCH_PRECISION, cfg.TEST.MEMORY_BUDGET * 2**20 or None, device, workers)


@torch.inference_mode()
def extract_features(model: ReIDModel, test: TestLoader, normalize: Normalize, flip: bool, precision: Precision,
                     make_array: MakeArray | None = None, title: str = "", workers: Workers = ALONE) -> FeatureBank:
    """Embed every image of an evaluation.

    Args:
        model: on the device, in any mode; it is left in eval mode.
        test: the domain; of several processes each walks its share.
        flip: average the features of the image and its mirror image, in float32, before any normalisation.
        make_array: (branch, (N, D)) -> the float32 array to fill, a memory map of a file that all processes see; None =
            in memory.
        workers: the processes among which `test` is shared; all have all features in the end.
    Returns:
        A FeatureBank in the loader's order, queries first.
    """
    model.eval()
    make = make_array or (lambda _, shape: np.empty(shape, np.float32))
    feats = {branch: make(branch, (len(test.samples), dim)) for branch, dim in model.embedding_dims.items()}
    done = test.batches.rows(workers.rank).start
    for batch in progress(test.loader, title, "batch"):
        images = normalize(batch.images.to(precision.device, non_blocking=True))
        with precision.autocast():
            outputs = embed_views(model, images, flip, **model.sides(batch.camids, batch.viewids))
        rows = slice(done, done + len(batch.pids))
        for branch, output in outputs.items():
            feats[branch][rows] = output.cpu().numpy()
        done = rows.stop
    if make_array is None:
        for rank in range(workers.size):
            for feat in feats.values():
                workers.broadcast(torch.from_numpy(feat[test.batches.rows(rank)]), rank)
    return make_bank(test, feats)


def extract_banks(model: ReIDModel, tests: dict[str, TestLoader], normalize: Normalize, flip: bool,
                  precision: Precision, make_array: MakeDomainArray | None = None,
                  workers: Workers = ALONE) -> Iterator[tuple[str, FeatureBank]]:
    """(domain, its FeatureBank) of each evaluation; those that have the same images share one walk.

    Args:
        make_array: (domain, branch, (N, D)) -> the array to fill, see `extract_features`.
        The others: as `extract_features`.
    """
    walked: dict[frozenset[str], tuple[dict[str, int], FeatureBank]] = {}
    for domain, test in tests.items():
        keys = [sample.key for sample in test.samples]
        make = partial(make_array, domain) if make_array else None
        row_of, first = walked.get(frozenset(keys), ({}, None))
        if first is None:
            bank = extract_features(model, test, normalize, flip, precision, make, domain, workers)
            walked[frozenset(keys)] = {key: row for row, key in enumerate(keys)}, bank
        else:
            bank = make_bank(test, {branch: make(branch, feat.shape) if make else np.empty_like(feat)
                                     for branch, feat in first.feats.items()})
            rows = [row_of[key] for key in keys]
            for branch, feat in bank.feats.items():
                if workers.is_main or not make:
                    feat[:] = first.feats[branch][rows]
        yield domain, bank


def make_bank(test: TestLoader, feats: dict[str, np.ndarray]) -> FeatureBank:
    """The bank of an evaluation with these features {branch: [N, D]}, in its loader's order."""
    return FeatureBank(
        feats,
        pids=test.pids, camids=test.camids, names=np.array(test.names), num_query=test.num_query,
        has_truth=test.has_truth, drop_same_camera=test.drop_same_camera,
        keys=np.array([sample.key for sample in test.samples]), same_file=test.same_file,
    )


def evaluate(cfg, model: ReIDModel, loaders: DataLoaders, precision: Precision, workers: Workers = ALONE) -> dict:
    """Metrics of a model on `loaders.measured_on` without re-ranking or expansion: the check during training.

    The workers share the images and the ranking.
    Returns {domain or 'all': {'plain': figures}}, {} if no domain has ground truth.
    """
    ranking = replace(ranking_of(cfg), re_ranking=None, query_expansion=0, database_augmentation=0)
    compute = compute_of(cfg, str(precision.device), workers)
    tests = {domain: test for domain, test in loaders.test.items() if test.has_truth}
    banks = extract_banks(model, tests, loaders.normalize, cfg.TEST.FLIP_FEATS, precision, workers=workers)
    model.on_other_set = not loaders.on_validation and is_other_set(cfg.DATASETS.NAMES, cfg)
    try:
        domains = {domain: [bank_source("model", bank, ranking, compute)] for domain, bank in banks}
    finally:
        model.on_other_set = False
    return rank_domains(domains, [1.0], cfg.TEST.TOP_K, workers=workers).metrics()


def load_trained(cfg, weight: Path, device: torch.device = CPU) -> ReIDModel:
    """The configured model with a checkpoint's or a model folder's weights; its classifier stays random.

    Warns if a setting that changes features, but has no weights to contradict it, was another in training.
    """
    if weight.is_dir():
        info = read_info(weight)
        checkpoint, then = read_weights(weight, info), folder_settings(info)
        trained_on = info.trained_on.get("sets", "")
    else:
        checkpoint = read_checkpoint(weight)
        text = checkpoint.get("config")
        then = flatten_cfg(load_cfg_text(text, str(weight))) if text is not None else {}
        trained_on = then.get("DATASETS.NAMES", "")
    model = make_model(cfg, num_class=1, pretrained=False)
    # A model may have been trained with a branch that this test leaves out.
    load_weights(model, checkpoint, weight, skip=MODEL_HEADS, allow_unexpected=("pcb.local.*",))
    if then:
        now = flatten_cfg(cfg)
        model.on_other_set = is_other_set(trained_on, cfg)
        if model.base.uses_sides and model.on_other_set:
            logger.info("%s knows the cameras of %s; those of %s count as unknown (MODEL.SIE_OTHER=%s)", weight,
                        trained_on or "an unnamed set", cfg.DATASETS.TEST_NAMES or cfg.DATASETS.NAMES,
                        cfg.MODEL.SIE_OTHER)
        for key in _SHAPES_FEATURES:
            if then.get(key, now[key]) != now[key]:
                logger.warning("%s was trained with %s=%s and is tested with %s", weight, key, then[key], now[key])
    return place_model(cfg, model, device)


def is_other_set(trained: str, cfg) -> bool:
    """Whether a test's cameras are numbered otherwise than those of DATASETS.NAMES in training.

    Of several sets together the cameras are counted on, while each is tested by its own numbers.
    """
    return "+" in trained or trained != (cfg.DATASETS.TEST_NAMES or cfg.DATASETS.NAMES)


def do_inference(cfg, save_distmat: bool = False, workers: Workers = ALONE) -> dict:
    """Test a checkpoint: write its feature bank, submission.json and metrics.json to cfg.OUTPUT_DIR.

    Args:
        cfg: the config tree; TEST.WEIGHT names the checkpoint.
        save_distmat: write the original's distmat_{1,2}.npy and lists, too.
        workers: processes that share the images and the ranking; OUTPUT_DIR is a folder that all of them see.
    Returns:
        The metrics, {} if the truth is unknown.
    Raises:
        ValueError, OSError: before anything slow: the checkpoint or the test data cannot be used, or another test is at
            work in the folder; later: an image cannot be read.
    """
    out = Path(cfg.OUTPUT_DIR)
    device = device_of(cfg, workers)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / ".test.lock") if workers.is_main else contextlib.nullcontext():
        _extract_tests(cfg, device, out / "features", workers)
        banks, index = read_bank(out / "features", check=False)  # it was written just now
        compute = compute_of(cfg, str(device), workers)
        domains = {domain: [bank_source(cfg.MODEL.NAME, bank, ranking_of(cfg), compute, domain)]
                   for domain, bank in banks.items()}
        ranked = rank_domains(domains, [1.0], cfg.TEST.TOP_K, out if save_distmat else None, workers)
        return write_results(out / "submission.json", ranked, workers, weight=index["weight"])


def _extract_tests(cfg, device: torch.device, folder: Path, workers: Workers) -> None:
    """The bank of the configured evaluations and the checkpoint TEST.WEIGHT."""
    weight = Path(cfg.TEST.WEIGHT)
    if not cfg.TEST.WEIGHT:
        raise ValueError("TEST.WEIGHT is empty: name the checkpoint to test, e.g. TEST.WEIGHT output/NAME_60.pth")
    model = load_trained(cfg, weight, device)
    loaders = make_dataloader(cfg, train=False, rank=workers.rank, world_size=workers.size)
    if not loaders.test:
        raise ValueError(f"{loaders.measured_on} has no query and gallery images: nothing to rank")
    logger.info("testing on %s", loaders.measured_on)
    warn_of_obstacles(truths_of(loaders.test))
    for domain, test in loaders.test.items():
        warn_of_ranking(domain, ranking_of(cfg), len(test.samples) - test.num_query)
    about = {"evaluation": {"top_k": cfg.TEST.TOP_K}, "weight": weight.name,
             "weight_sha256": sha256_of(weight_file(weight)),
             "model": cfg.MODEL.NAME, "size": list(cfg.INPUT.SIZE_TEST), "measured_on": loaders.measured_on,
             "model_id": describe_model(cfg, model, {}).model_id}
    write_bank(cfg, model, loaders.test, folder, about, workers)


def write_bank(cfg, model: ReIDModel, tests: dict[str, TestLoader], folder: Path, about: dict,
               workers: Workers = ALONE) -> None:
    """Extract features into a feature bank, in shared work.

    Args:
        model: on its device.
        tests: {domain: its images}.
        about: what the bank's index has beside.
    Raises:
        BadImage, OSError: an image cannot be read, or there is no room for the features.
    """
    precision = make_precision(next(model.parameters()).device, cfg.SOLVER.FP16, dtype=cfg.SOLVER.AMP_DTYPE)
    normalize = Normalize(list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD))
    writer = BankWriter(folder, workers)
    for domain, test in tests.items():
        logger.info("%s: %d queries, %d gallery images", domain, test.num_query, len(test.samples) - test.num_query)
    for domain, bank in extract_banks(model, tests, normalize, cfg.TEST.FLIP_FEATS, precision, writer.array, workers):
        writer.add(domain, bank)
    writer.finish(ranking_of(cfg), dump_cfg(cfg), **about)
