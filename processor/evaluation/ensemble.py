"""Several tested models, ranked as one."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from processor.evaluation.feature_bank import FeatureBank, read_bank, read_ranking
from processor.evaluation.ranking import Evaluation, rank_domains, write_results
from processor.evaluation.sources import DOMAIN_LABELS, HERE, Compute, DomainSource, bank_source, distmat_source
from processor.retrieval.ensemble import check_same_order, concat_features
from utils.dist import Workers


# ------------------------------------------------------------------ the ensemble
def ensemble(inputs: list[Path], weights: list[float] | None, output: Path, mode: str = "sum",
             top: int | None = None, saved_distmats: bool = False, compute: Compute = HERE) -> dict:
    """Combine tested models into one submission; returns the metrics ({} where the truth is unknown).

    Args:
        inputs: OUTPUT_DIRs of tools/test.py. A folder without a feature bank gives its saved distmats.
        weights: one a folder; None = equal.
        mode: sum = add the (re-ranked) distances; concat = concatenate the normalised features, then rank once.
        top: length of a query's list; None = as the models were tested.
        saved_distmats: read distmat_{1,2}.npy even where there is a feature bank.
        compute: how; its workers share the work.
    Raises:
        ValueError: folders disagree in queries, gallery or settings, or hold nothing to combine.
    """
    weights = weights or [1.0] * len(inputs)
    if len(weights) != len(inputs):
        raise ValueError(f"{len(weights)} weights for {len(inputs)} inputs")
    from_distmats = [saved_distmats or not (folder / "features").is_dir() for folder in inputs]
    if mode == "concat" and any(from_distmats):
        raise ValueError("--mode concat needs feature banks, not saved distmats")
    opened = [(_distmat_domains(folder, compute.workers), None) if saved else _bank_domains(folder, compute)
              for folder, saved in zip(inputs, from_distmats, strict=True)]
    evaluation = _common_evaluation(inputs, [index for _, index in opened if index], top)
    names = [set(domains) for domains, _ in opened]
    if any(name != names[0] for name in names):
        raise ValueError(f"the inputs have different domains: {[sorted(name) for name in names]}")
    if mode == "concat":
        domains = {domain: [_concatenated(inputs, domain, weights, compute)] for domain in opened[0][0]}
        weights = [1.0]
    else:
        domains = {domain: [by_domain[domain] for by_domain, _ in opened] for domain in opened[0][0]}
    ranked = rank_domains(domains, weights, evaluation, workers=compute.workers)
    return write_results(output, ranked, compute.workers, mode=mode, weights=weights,
                         models=[folder.name for folder in inputs])


def _bank_domains(folder: Path, compute: Compute) -> tuple[dict[str, DomainSource], dict]:
    banks, index = read_bank(folder / "features")
    return {domain: bank_source(str(folder), bank, read_ranking(index), compute)
            for domain, bank in banks.items()}, index


def _distmat_domains(folder: Path, workers: Workers) -> dict[str, DomainSource]:
    domain_of = {label: domain for domain, label in DOMAIN_LABELS.items()}
    labels = sorted(path.stem.removeprefix("distmat_") for path in folder.glob("distmat_*.npy"))
    if not labels:
        raise ValueError(f"{folder} holds neither a feature bank nor distmat_1.npy or distmat_2.npy; run tools/test.py")
    return {domain_of.get(label, label): distmat_source(folder, label, workers) for label in labels}


def _common_evaluation(inputs: list[Path], indices: list[dict], top: int | None) -> Evaluation:
    lengths = [index["evaluation"]["top_k"] for index in indices]
    if len(set(lengths)) > 1:
        raise ValueError("the inputs were tested with different settings of TEST.TOP_K: "
                         f"{dict(zip(inputs, lengths, strict=False))}")
    return Evaluation(top or (lengths[0] if lengths else 200))


def _concatenated(inputs: list[Path], domain: str, weights: list[float], compute: Compute) -> DomainSource:
    """One source whose features are the weighted, normalised features of all models side by side."""
    opened = [read_bank(folder / "features") for folder in inputs]
    rankings = {read_ranking(index) for _, index in opened}
    if len(rankings) > 1:
        raise ValueError(f"--mode concat needs models tested with the same ranking, these differ: {rankings}")
    banks = [banks[domain] for banks, _ in opened]
    check_same_order({str(folder): bank.names for folder, bank in zip(inputs, banks, strict=True)})
    ranking = rankings.pop()
    parts = [(bank.feats[branch], weight * share) for bank, weight in zip(banks, weights, strict=True)
             for branch, share in ranking.branch_weights(bank.feats).items()]
    feats = np.asarray(concat_features([part for part, _ in parts], [weight for _, weight in parts]))
    first = banks[0]
    joined = FeatureBank({"concat": feats}, first.pids, first.camids, first.names, first.num_query, first.has_truth,
                         first.drop_same_camera)
    return bank_source("concat", joined, ranking, compute)
