"""Every model on every test set: how well each carries over to pictures that it was not trained for."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import change_cfg, load_cfg
from datasets.make_dataloader import DataLoaders, make_dataloader
from model.make_model import ReIDModel
from processor.evaluation.adaptation import adapt_batch_norms, split_by_camera
from processor.evaluation.feature_bank import FeatureBank
from processor.evaluation.ranking import rank_domains
from processor.evaluation.sources import bank_source
from processor.inference import compute_of, device_of, extract_features, load_trained, make_bank, ranking_of
from processor.trained_model import cfg_of_weights
from utils.precision import Precision, make_precision

logger = logging.getLogger(__name__)
ADAPTATIONS = ("none", "set", "camera")


class CrossResult(NamedTuple):
    """figures: of `Ranked.metrics`, {} if no query has a match."""

    model: str
    data: str
    figures: Mapping


def measure(models: Sequence[Path], sets: Sequence[str], opts: Sequence[str], adapt: str = "none") -> list[CrossResult]:
    """Test each model on each set, without re-ranking.

    Args:
        models: model folders or checkpoints.
        sets: values of DATASETS.TEST_NAMES.
        opts: KEY VALUE pairs over the config of each, such as DATASETS.ROOT_DIR.
        adapt: see ADAPTATIONS: batch-norm statistics of the weights, of the set's pictures, or of each camera's.
    Raises:
        ValueError, OSError: a model or a set cannot be used; before anything is computed where that is known then.
    """
    base = load_cfg(None, opts)
    changes = dict(zip(opts[::2], opts[1::2], strict=True))
    plans = [(model, name, change_cfg(cfg_of_weights(model, base), {
        "DATASETS.NAMES": name, "DATASETS.TEST_NAMES": name, "DATASETS.VALIDATION": "", "DATASETS.PACKED": "",
        "TEST.WEIGHT": str(model), **changes})) for model in models for name in sets]
    return [CrossResult(str(model), name, _measure(cfg, model, adapt)) for model, name, cfg in plans]


def _measure(cfg, model_path: Path, adapt: str) -> Mapping:
    device = device_of(cfg)
    model = load_trained(cfg, model_path, device)
    precision = make_precision(device, cfg.SOLVER.FP16, dtype=cfg.SOLVER.AMP_DTYPE)
    loaders = make_dataloader(cfg, train=False)
    ranking = replace(ranking_of(cfg), re_ranking=None, query_expansion=0, database_augmentation=0)
    domains = {}
    for domain, test in loaders.test.items():
        if test.has_truth:
            bank = _bank(cfg, model, loaders, domain, precision, adapt)
            domains[domain] = [bank_source("model", bank, ranking, compute_of(cfg, str(device)))]
    if not domains:
        raise ValueError(f"{loaders.measured_on}: no query has a known identity, so that there is nothing to measure")
    return rank_domains(domains, [1.0], cfg.TEST.TOP_K).metrics().get("all", {}).get("plain", {})


def _bank(cfg, model: ReIDModel, loaders: DataLoaders, domain: str, precision: Precision, adapt: str) -> FeatureBank:
    """The features of an evaluation, by batch norms as `adapt` says."""
    test, normalize, flip = loaders.test[domain], loaders.normalize, cfg.TEST.FLIP_FEATS
    if adapt == "none":
        return extract_features(model, test, normalize, flip, precision, title=domain)
    parts = [(np.arange(len(test.samples)), test)] if adapt == "set" else split_by_camera(test, cfg.TEST.IMS_PER_BATCH)
    feats = {branch: np.empty((len(test.samples), dim), np.float32) for branch, dim in model.embedding_dims.items()}
    for rows, part in parts:
        if not adapt_batch_norms(model, part, normalize, precision):
            logger.warning("%s has no batch norm: there is nothing to adapt", cfg.MODEL.NAME)
        for branch, feat in extract_features(model, part, normalize, flip, precision, title=domain).feats.items():
            feats[branch][rows] = feat
    return make_bank(test, feats)


def format_cross(results: Sequence[CrossResult]) -> str:
    """A line for each model and set: mAP and Rank-1 in percent with their 95 % intervals."""
    width = max(len(result.model) for result in results) + 2
    lines = [f"{'model':<{width}}{'set':<20}{'mAP':>7}  {'95 %':<16}{'Rank-1':>7}  {'95 %':<16}"]
    for model, data, figures in results:
        cells = "".join(f"{100 * figures[name]:>7.2f}  {_interval(figures['ci95'][name]):<16}"
                        for name in ("mAP", "rank1")) if figures else "no query has a match"
        lines.append(f"{model:<{width}}{data:<20}{cells}".rstrip())
    return "\n".join(lines)


def _interval(bounds: Sequence[float]) -> str:
    return f"[{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]"
