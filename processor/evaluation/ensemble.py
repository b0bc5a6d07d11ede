"""Several tested models, ranked as one."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from processor.evaluation.agreement import common_domains, common_top_k
from processor.evaluation.feature_bank import FeatureBank, read_bank, read_ranking
from processor.evaluation.ranking import rank_domains, truth_of, write_results
from processor.evaluation.sources import (
    DOMAIN_LABELS,
    HERE,
    Compute,
    DomainSource,
    bank_source,
    distmat_source,
    warn_of_ranking,
)
from processor.evaluation.truth import warn_of_obstacles
from processor.retrieval.ensemble import check_same_order, check_weights, concat_features
from utils.dist import Workers
from utils.files import write_json

ENSEMBLE = "ensemble.json"  # beside the submission: which folders (relative to it) were combined, and how

Opened = tuple[dict[str, FeatureBank], dict]  # what `read_bank` gives


def ensemble(inputs: list[Path], weights: list[float] | None, output: Path, mode: str = "sum",
             top: int | None = None, saved_distmats: bool = False, compute: Compute = HERE) -> dict:
    """Combine tested models into one submission; returns the metrics ({} if the truth is unknown).

    Args:
        inputs: OUTPUT_DIRs of tools/test.py. A folder without a feature bank gives its saved distmats.
        weights: of the folders, in their order; None = equal.
        mode: sum = add the (re-ranked) distances; concat = concatenate the normalised features, then rank once.
        top: length of a query's list; None = as the models were tested.
        saved_distmats: read distmat_{1,2}.npy even beside a feature bank.
        compute: how; its workers share the work.
    Raises:
        ValueError: folders disagree in queries, gallery or settings, or hold nothing to combine.
    """
    asked = weights
    domains, weights, tested_top = open_models(inputs, weights, mode, saved_distmats, compute)
    truths = {domain: truth_of(domain, sources) for domain, sources in domains.items()}
    warn_of_obstacles({domain: truth for domain, truth in truths.items() if truth})
    ranked = rank_domains(domains, weights, top or tested_top, workers=compute.workers)
    metrics = write_results(output, ranked, compute.workers, mode=mode, weights=weights,
                            models=[folder.name for folder in inputs])
    if compute.workers.is_main:
        write_json(output.with_name(ENSEMBLE), {"mode": mode, "weights": check_weights(len(inputs), asked),
                                                "models": [os.path.relpath(folder, output.parent)
                                                           for folder in inputs]})
    return metrics


def open_models(inputs: list[Path], weights: list[float] | None, mode: str = "sum", saved_distmats: bool = False,
                compute: Compute = HERE) -> tuple[dict[str, list[DomainSource]], list[float], int]:
    """The sources of each domain, their weights, and the TEST.TOP_K of the models; arguments and errors as `ensemble`.
    """
    weights = check_weights(len(inputs), weights)
    opened = [None if saved_distmats or not (folder / "features").is_dir() else read_bank(folder / "features")
              for folder in inputs]
    if mode == "concat" and None in opened:
        raise ValueError("--mode concat needs feature banks, not saved distmats")
    sources = [_bank_domains(folder, bank, compute) if bank else _distmat_domains(folder, compute.workers)
               for folder, bank in zip(inputs, opened, strict=True)]
    indices = {str(folder): bank[1] for folder, bank in zip(inputs, opened, strict=True) if bank}
    tested_top = common_top_k(indices) if indices else 200
    names = common_domains({str(folder): list(by_domain) for folder, by_domain in zip(inputs, sources, strict=True)})
    if mode == "concat":
        domains = {domain: [_concatenated(inputs, opened, domain, weights, compute)] for domain in names}
        weights = [1.0]
    else:
        domains = {domain: [by_domain[domain] for by_domain in sources] for domain in names}
    return domains, weights, tested_top


def _bank_domains(folder: Path, opened: Opened, compute: Compute) -> dict[str, DomainSource]:
    banks, ranking = opened[0], read_ranking(opened[1])
    for domain, bank in banks.items():
        warn_of_ranking(f"{folder}, {domain}", ranking, len(bank.gallery_names))
    return {domain: bank_source(str(folder), bank, ranking, compute, domain) for domain, bank in banks.items()}


def _distmat_domains(folder: Path, workers: Workers) -> dict[str, DomainSource]:
    domain_of = {label: domain for domain, label in DOMAIN_LABELS.items()}
    labels = sorted(path.stem.removeprefix("distmat_") for path in folder.glob("distmat_*.npy"))
    if not labels:
        raise ValueError(f"{folder} holds neither a feature bank nor distmat_1.npy or distmat_2.npy; run tools/test.py")
    return {domain_of.get(label, label): distmat_source(folder, label, workers) for label in labels}


def _concatenated(inputs: list[Path], opened: list[Opened], domain: str, weights: list[float],
                  compute: Compute) -> DomainSource:
    """A source whose features are the weighted, normalised features of all models side by side."""
    rankings = {read_ranking(index) for _, index in opened}
    if len(rankings) > 1:
        raise ValueError(f"--mode concat needs models tested with the same ranking, these differ: {rankings}")
    banks = [banks[domain] for banks, _ in opened]
    check_same_order({str(folder): bank.names for folder, bank in zip(inputs, banks, strict=True)})
    ranking = rankings.pop()
    parts = [(bank.feats[branch], weight * share) for bank, weight in zip(banks, weights, strict=True)
             for branch, share in ranking.branch_weights(bank.feats).items()]
    feats = concat_features(*zip(*parts, strict=True))
    pairs = np.unique(np.concatenate([bank.same_file for bank in banks]), axis=0)
    bank = replace(banks[0], feats={"concat": feats}, same_file=pairs)
    return bank_source("concat", bank, ranking, compute, domain)
