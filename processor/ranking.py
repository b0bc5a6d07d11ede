"""From one or several models' distances to lists, metrics and the submission. A single model is an ensemble of one."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from processor.feature_bank import FeatureBank, Ranking, read_bank, read_ranking
from processor.retrieval.distance import TILE, distance_blocks, l2_normalize, top_k
from processor.retrieval.ensemble import check_same_order, concat_features, sum_blocks
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import re_ranked_blocks
from processor.retrieval.submission import write_submission
from utils.files import write_json

logger = logging.getLogger(__name__)

Blocks = Iterator[tuple[slice, np.ndarray]]
DOMAIN_NUMBER = {"green": 1, "normal": 2}  # in the names of the original's distmat files


@dataclass
class Truth:
    """pids and camids [Q] or [G] of one domain."""

    q_pids: np.ndarray
    g_pids: np.ndarray
    q_camids: np.ndarray
    g_camids: np.ndarray


@dataclass
class DomainSource:
    """One model's distances in one domain; streams: {'plain' | 're_ranked' | 'saved': () -> blocks of rows}."""

    name: str
    query_names: np.ndarray
    gallery_names: np.ndarray
    streams: dict[str, Callable[[], Blocks]]
    truth: Truth | None = None


@dataclass(frozen=True)
class Evaluation:
    """top_k: length of a list, and the k of mAP@k; drop_same_camera: see TEST.DROP_SAME_CAMERA."""

    top_k: int
    drop_same_camera: bool


@dataclass
class Ranked:
    """What ranking every domain gives; results[domain][kind] where the truth is known."""

    query_names: list[str] = field(default_factory=list)
    gallery_names: list[str] = field(default_factory=list)
    indices: list[np.ndarray] = field(default_factory=list)
    results: dict[str, dict[str, RankResult]] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, dict]]:
        """{domain or 'all': {'plain' | 're_ranked': figures}}; 'all' weighs the domains by their valid queries."""
        if not self.results:
            return {}
        kinds = list(next(iter(self.results.values())))
        merged = {kind: merge_results([by_kind[kind] for by_kind in self.results.values()]) for kind in kinds}
        return {domain: {kind: result.to_dict() for kind, result in by_kind.items()}
                for domain, by_kind in {"all": merged, **self.results}.items()}


# ------------------------------------------------------------------ sources
def bank_source(name: str, bank: FeatureBank, ranking: Ranking) -> DomainSource:
    """The streams of a feature bank: distances as they are and, where the ranking says so, re-ranked ones."""
    weights = ranking.branch_weights(bank.feats)

    def stream(re_rank: bool) -> Blocks:
        branches = []
        if re_rank and len(weights) > 1:
            logger.info("%s: re-ranking %d branches (%s) takes %d times the work of one", name, len(weights),
                        ", ".join(weights), len(weights))
        for branch in weights:
            query, gallery = bank.branch(branch)
            if ranking.feat_norm:
                query, gallery = l2_normalize(query), l2_normalize(gallery)
            branches.append(re_ranked_blocks(query, gallery, *ranking.re_ranking) if re_rank
                            else distance_blocks(query, gallery, ranking.distance))
        return branches[0] if len(branches) == 1 else sum_blocks(branches, list(weights.values()))

    streams = {"plain": lambda: stream(False)}
    if ranking.re_ranking:
        streams["re_ranked"] = lambda: stream(True)
    q = bank.num_query
    truth = Truth(bank.pids[:q], bank.pids[q:], bank.camids[:q], bank.camids[q:]) if bank.has_truth else None
    return DomainSource(name, bank.query_names, bank.gallery_names, streams, truth)


def distmat_source(folder: Path, number: int, block_rows: int = TILE) -> DomainSource:
    """The stream of a saved distmat_{number}.npy with its query_path_ and gallery_path_ lists.

    Its blocks are as long as those of a feature bank, so that the two can be summed.

    Raises:
        ValueError: the lists do not fit the matrix, or a file is a pickle.
    """
    arrays = {}
    for leaf in ("distmat", "query_path", "gallery_path"):
        path = folder / f"{leaf}_{number}.npy"
        try:
            arrays[leaf] = np.load(path, mmap_mode="r" if leaf == "distmat" else None, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    distmat = arrays["distmat"]
    names = [np.array([Path(str(name)).name for name in arrays[leaf]]) for leaf in ("query_path", "gallery_path")]
    if distmat.shape != (len(names[0]), len(names[1])):
        raise ValueError(f"{folder / f'distmat_{number}.npy'}: {distmat.shape}, but its lists name {len(names[0])} "
                         f"queries and {len(names[1])} gallery images")

    def blocks() -> Blocks:
        for start in range(0, len(distmat), block_rows):
            rows = slice(start, min(start + block_rows, len(distmat)))
            yield rows, np.asarray(distmat[rows], dtype=np.float32)

    return DomainSource(str(folder), *names, {"saved": blocks})


# ------------------------------------------------------------------ ranking
def rank_domains(domains: dict[str, list[DomainSource]], weights: list[float], evaluation: Evaluation,
                 save_distmat: Path | None = None) -> Ranked:
    """Sum the sources' distances of each domain by query blocks, take the exact top-k and, with truth, the metrics.

    Args:
        domains: {domain: one source a model}, the queries and galleries of a domain in the same order.
        weights: one a model.
        save_distmat: folder for the original's distmat_{1,2}.npy and its lists, written block by block.
    Raises:
        ValueError: names or their order differ between the sources; the message names the first difference.
    """
    ranked = Ranked()
    for domain, sources in domains.items():
        check_same_order({source.name: source.query_names for source in sources})
        check_same_order({source.name: source.gallery_names for source in sources})
        first = sources[0]
        truth = next((source.truth for source in sources if source.truth), None)
        ranked.results.update({domain: {}} if truth else {})
        # A source's last stream is what it was tested with, be it re-ranked or not; that is what the answer sums.
        final = [next(reversed(source.streams)) for source in sources]
        kinds = {final[0]: final}
        if truth and set(final) != {"plain"} and all("plain" in source.streams for source in sources):
            name = "re_ranked" if "re_ranked" in final else final[0]
            kinds = {"plain": ["plain"] * len(sources), name: final}
        for kind, chosen in kinds.items():
            is_final = chosen is final
            blocks = sum_blocks([source.streams[one]() for source, one in zip(sources, chosen, strict=True)], weights)
            accumulator = None
            if truth:
                accumulator = RankAccumulator(**vars(truth), k=evaluation.top_k,
                                              drop_same_camera=evaluation.drop_same_camera)
                blocks = _watched(blocks, accumulator)
            if is_final and save_distmat:
                blocks = _saved(blocks, save_distmat, DOMAIN_NUMBER[domain], first)
            if is_final:
                indices, _ = top_k(blocks, evaluation.top_k, len(first.query_names))
                ranked.indices += list(indices + len(ranked.gallery_names))
                ranked.query_names += list(map(str, first.query_names))
                ranked.gallery_names += list(map(str, first.gallery_names))
            else:
                for _ in blocks:
                    pass
            if accumulator:
                ranked.results[domain][kind] = accumulator.result()
    return ranked


def _watched(blocks: Blocks, accumulator: RankAccumulator) -> Blocks:
    for rows, distances in blocks:
        accumulator.update(rows, distances)
        yield rows, distances


def _saved(blocks: Blocks, folder: Path, number: int, source: DomainSource) -> Blocks:
    """Pass the blocks on and keep them as the original's files; the lists are written last."""
    shape = (len(source.query_names), len(source.gallery_names))
    path = folder / f"distmat_{number}.npy"
    partial = path.with_suffix(".partial")
    distmat = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
    for rows, distances in blocks:
        distmat[rows] = distances
        yield rows, distances
    distmat.flush()
    partial.replace(path)
    np.save(folder / f"query_path_{number}.npy", source.query_names, allow_pickle=False)
    np.save(folder / f"gallery_path_{number}.npy", source.gallery_names, allow_pickle=False)


def write_results(submission: Path, ranked: Ranked, **about: object) -> dict:
    """Write the submission and, beside it, metrics.json where the truth is known; return the metrics."""
    write_submission(submission, ranked.query_names, ranked.gallery_names, ranked.indices)
    metrics = ranked.metrics()
    path = submission.with_name("metrics.json")
    if metrics:
        write_json(path, {**about, **metrics})
        for domain, by_kind in metrics.items():
            for kind, figures in by_kind.items():
                logger.info("%s, %s: %s", domain, kind.replace("_", "-"), describe(figures))
    else:
        path.unlink(missing_ok=True)  # an earlier run's figures are not this submission's
        logger.info("no ground truth: no metrics")
    return metrics


def describe(figures: dict) -> str:
    """One line of metrics."""
    shown = [f"{name} {100 * value:.2f}%" for name, value in figures.items() if isinstance(value, float)]
    return ", ".join(shown) + f" ({figures['num_valid']} queries)"


# ------------------------------------------------------------------ the ensemble
def ensemble(inputs: list[Path], weights: list[float] | None, output: Path, mode: str = "sum",
             top: int | None = None, saved_distmats: bool = False) -> dict:
    """Combine tested models into one submission; returns the metrics ({} where the truth is unknown).

    Args:
        inputs: OUTPUT_DIRs of tools/test.py. A folder without a feature bank gives its saved distmats.
        weights: one a folder; None = equal.
        mode: sum = add the (re-ranked) distances; concat = concatenate the normalised features, then rank once.
        top: length of a query's list; None = as the models were tested.
        saved_distmats: read distmat_{1,2}.npy even where there is a feature bank.
    Raises:
        ValueError: folders disagree in queries, gallery or settings, or hold nothing to combine.
    """
    weights = weights or [1.0] * len(inputs)
    if len(weights) != len(inputs):
        raise ValueError(f"{len(weights)} weights for {len(inputs)} inputs")
    from_distmats = [saved_distmats or not (folder / "features").is_dir() for folder in inputs]
    if mode == "concat" and any(from_distmats):
        raise ValueError("--mode concat needs feature banks, not saved distmats")
    opened = [(_distmat_domains(folder), None) if saved else _bank_domains(folder)
              for folder, saved in zip(inputs, from_distmats, strict=True)]
    evaluation = _common_evaluation(inputs, [index for _, index in opened if index], top)
    names = [set(domains) for domains, _ in opened]
    if any(name != names[0] for name in names):
        raise ValueError(f"the inputs have different domains: {[sorted(name) for name in names]}")
    if mode == "concat":
        domains = {domain: [_concatenated(inputs, domain, weights)] for domain in opened[0][0]}
        weights = [1.0]
    else:
        domains = {domain: [by_domain[domain] for by_domain, _ in opened] for domain in opened[0][0]}
    ranked = rank_domains(domains, weights, evaluation)
    return write_results(output, ranked, mode=mode, weights=weights, models=[folder.name for folder in inputs])


def _bank_domains(folder: Path) -> tuple[dict[str, DomainSource], dict]:
    banks, index = read_bank(folder / "features")
    return {domain: bank_source(str(folder), bank, read_ranking(index)) for domain, bank in banks.items()}, index


def _distmat_domains(folder: Path) -> dict[str, DomainSource]:
    found = {domain: distmat_source(folder, number) for domain, number in DOMAIN_NUMBER.items()
             if (folder / f"distmat_{number}.npy").is_file()}
    if not found:
        raise ValueError(f"{folder} holds neither a feature bank nor distmat_1.npy or distmat_2.npy; run tools/test.py")
    return found


def _common_evaluation(inputs: list[Path], indices: list[dict], top: int | None) -> Evaluation:
    settings = [index["evaluation"] for index in indices]
    if any(setting != settings[0] for setting in settings):
        raise ValueError(f"the inputs were tested with different settings: {dict(zip(inputs, settings, strict=False))}")
    known = settings[0] if settings else {"top_k": 200, "drop_same_camera": False}
    return Evaluation(top or known["top_k"], known["drop_same_camera"])


def _concatenated(inputs: list[Path], domain: str, weights: list[float]) -> DomainSource:
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
    joined = FeatureBank({"concat": feats}, first.pids, first.camids, first.names, first.num_query, first.has_truth)
    return bank_source("concat", joined, ranking)
