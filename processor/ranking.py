"""From one or several models' distances to lists, metrics and the submission. A single model is an ensemble of one."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from processor.comparison import PER_QUERY, per_query_table
from processor.feature_bank import FeatureBank, Ranking, read_bank, read_ranking
from processor.retrieval.distance import distance_blocks, own_rows, top_k
from processor.retrieval.ensemble import check_same_order, concat_features, sum_blocks
from processor.retrieval.expansion import expand
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import re_ranked_blocks, re_ranked_top_k
from processor.retrieval.significance import intervals
from processor.retrieval.submission import write_submission
from utils.dist import ALONE, Workers
from utils.files import make_mapped_array, write_json

logger = logging.getLogger(__name__)

Blocks = Iterator[tuple[slice, np.ndarray]]
DOMAIN_LABELS = {"green": "1", "normal": "2"}  # in the names of the original's distmat files; others have their own


@dataclass
class Truth:
    """pids and camids [Q] or [G] of one domain, and whether the query's own camera counts."""

    q_pids: np.ndarray
    g_pids: np.ndarray
    q_camids: np.ndarray
    g_camids: np.ndarray
    drop_same_camera: bool

    @classmethod
    def of(cls, bank: FeatureBank) -> Truth:
        q = bank.num_query
        return cls(bank.pids[:q], bank.pids[q:], bank.camids[:q], bank.camids[q:], bank.drop_same_camera)


@dataclass(frozen=True)
class Compute:
    """How distances are computed; no field changes a result.

    precision, memory (bytes, None = from what is free), device: of processor.retrieval.reranking.ReRanker.
    workers: processes that share the queries; the first writes the files.
    """

    precision: str = "auto"
    memory: int | None = None
    device: str | None = None
    workers: Workers = ALONE

    @classmethod
    def from_cfg(cls, cfg, device: str | None = None, workers: Workers = ALONE) -> Compute:
        return cls(cfg.TEST.SEARCH_PRECISION, cfg.TEST.MEMORY_BUDGET * 2**20 or None, device, workers)


HERE = Compute()  # this process alone, where the features are


@dataclass
class DomainSource:
    """One model's distances in one domain.

    streams: {'plain' | 're_ranked' | 'saved': () -> blocks of rows}, of this process' queries.
    nearest: k -> the indices [Q, k] of the last stream without computing all its distances, where there is such a way.
    """

    name: str
    query_names: np.ndarray
    gallery_names: np.ndarray
    streams: dict[str, Callable[[], Blocks]]
    truth: Truth | None = None
    nearest: Callable[[int], np.ndarray] | None = None


@dataclass(frozen=True)
class Evaluation:
    """top_k: length of a list, and the k of mAP@k."""

    top_k: int


@dataclass
class Ranked:
    """What ranking every domain gives; results[domain][kind] where the truth is known."""

    query_names: list[str] = field(default_factory=list)
    gallery_names: list[str] = field(default_factory=list)
    indices: list[np.ndarray] = field(default_factory=list)
    results: dict[str, dict[str, RankResult]] = field(default_factory=dict)
    per_query: dict[str, dict[str, dict]] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, dict]]:
        """{domain or 'all': {'plain' | 're_ranked': figures}}; 'all' weighs the domains by their valid queries."""
        if not self.results:
            return {}
        kinds = list(next(iter(self.results.values())))
        merged = {kind: merge_results([by_kind[kind] for by_kind in self.results.values()]) for kind in kinds}
        return {domain: {kind: {**result.to_dict(), "ci95": intervals(result)} for kind, result in by_kind.items()}
                for domain, by_kind in {"all": merged, **self.results}.items()}


# ------------------------------------------------------------------ sources
def bank_source(name: str, bank: FeatureBank, ranking: Ranking, compute: Compute = HERE) -> DomainSource:
    """The streams of a feature bank: distances as they are and, where the ranking says so, re-ranked ones."""
    weights = ranking.branch_weights(bank.feats)
    features = _expanded_once(bank, ranking)
    options = {"normalize": ranking.feat_norm, "device": compute.device, "workers": compute.workers}
    search = {**options, "precision": compute.precision, "memory": compute.memory}

    def plain(branch: str) -> Blocks:
        return distance_blocks(*features(branch), ranking.distance, **options)

    def re_ranked(branch: str) -> Blocks:
        return re_ranked_blocks(*features(branch), *ranking.re_ranking, **search)

    def stream(blocks_of: Callable[[str], Blocks]) -> Blocks:
        if blocks_of is re_ranked and len(weights) > 1:
            logger.info("%s: re-ranking %d branches (%s) takes %d times the work of one", name, len(weights),
                        ", ".join(weights), len(weights))
        branches = [blocks_of(branch) for branch in weights]
        return branches[0] if len(branches) == 1 else sum_blocks(branches, list(weights.values()))

    streams, nearest = {"plain": lambda: stream(plain)}, None
    if ranking.re_ranking:
        streams["re_ranked"] = lambda: stream(re_ranked)
        if len(weights) == 1:
            only = next(iter(weights))

            def nearest(k: int) -> np.ndarray:
                return re_ranked_top_k(*features(only), *ranking.re_ranking, k=k, **search)[0]
    truth = Truth.of(bank) if bank.has_truth else None
    return DomainSource(name, bank.query_names, bank.gallery_names, streams, truth, nearest)


def _expanded_once(bank: FeatureBank, ranking: Ranking) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """branch -> its query and gallery features, expanded where the ranking says so; the last branch is kept."""
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def features(branch: str) -> tuple[np.ndarray, np.ndarray]:
        query, gallery = bank.branch(branch)
        if not (ranking.query_expansion or ranking.database_augmentation):
            return query, gallery
        if branch not in kept:
            kept.clear()
            kept[branch] = expand(query, gallery, ranking.query_expansion, ranking.database_augmentation,
                                  ranking.expansion_alpha)
        return kept[branch]

    return features


def distmat_source(folder: Path, label: str, workers: Workers = ALONE) -> DomainSource:
    """The stream of a saved distmat_{label}.npy with its query_path_ and gallery_path_ lists.

    Its blocks are those of a feature bank, so that the two can be summed.

    Raises:
        ValueError: the lists do not fit the matrix, or a file is a pickle.
    """
    arrays = {}
    for leaf in ("distmat", "query_path", "gallery_path"):
        path = folder / f"{leaf}_{label}.npy"
        try:
            arrays[leaf] = np.load(path, mmap_mode="r" if leaf == "distmat" else None, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    distmat = arrays["distmat"]
    names = [np.array([Path(str(name)).name for name in arrays[leaf]]) for leaf in ("query_path", "gallery_path")]
    if distmat.shape != (len(names[0]), len(names[1])):
        raise ValueError(f"{folder / f'distmat_{label}.npy'}: {distmat.shape}, but its lists name {len(names[0])} "
                         f"queries and {len(names[1])} gallery images")

    def blocks() -> Blocks:
        for rows in own_rows(len(distmat), workers):
            yield rows, np.asarray(distmat[rows], dtype=np.float32)

    return DomainSource(str(folder), *names, {"saved": blocks})


# ------------------------------------------------------------------ ranking
def rank_domains(domains: dict[str, list[DomainSource]], weights: list[float], evaluation: Evaluation,
                 save_distmat: Path | None = None, workers: Workers = ALONE) -> Ranked:
    """Sum the sources' distances of each domain by query blocks, take the exact top-k and, with truth, the metrics.

    Args:
        domains: {domain: one source a model}, the queries and galleries of a domain in the same order.
        weights: one a model.
        save_distmat: folder for the original's distmat_{1,2}.npy and its lists, written block by block.
        workers: processes that share the queries; each gets the whole result.
    Raises:
        ValueError: names or their order differ between the sources; the message names the first difference.
    """
    ranked = Ranked()
    for domain, sources in domains.items():
        check_same_order({source.name: source.query_names for source in sources})
        check_same_order({source.name: source.gallery_names for source in sources})
        first = sources[0]
        truth = next((source.truth for source in sources if source.truth), None)
        _check_same_protocol(domain, sources)
        if truth is None and save_distmat is None and len(sources) == 1 and first.nearest:
            indices = first.nearest(evaluation.top_k)
        else:
            saving = (save_distmat, DOMAIN_LABELS.get(domain, domain)) if save_distmat else None
            indices, results = _rank_full_rows(sources, weights, evaluation, truth, saving, workers)
            if truth:
                ranked.results[domain] = results
                ranked.per_query[domain] = {kind: per_query_table(result, first.query_names)
                                            for kind, result in results.items()}
        ranked.indices += list(indices + len(ranked.gallery_names))
        ranked.query_names += list(map(str, first.query_names))
        ranked.gallery_names += list(map(str, first.gallery_names))
    return ranked


def _rank_full_rows(
    sources: list[DomainSource], weights: list[float], evaluation: Evaluation, truth: Truth | None,
    saving: tuple[Path, str] | None, workers: Workers,
) -> tuple[np.ndarray, dict[str, RankResult]]:
    """One domain: the top-k of the sum, and the metrics of each kind of distance."""
    indices, results = np.empty(0), {}
    final = _final_streams(sources)
    for kind, chosen in _kinds(sources, final, with_plain=truth is not None).items():
        blocks = sum_blocks([source.streams[one]() for source, one in zip(sources, chosen, strict=True)], weights)
        accumulator = None
        if truth:
            accumulator = RankAccumulator(**vars(truth), k=evaluation.top_k)
            blocks = _watched(blocks, accumulator)
        if chosen is final:
            if saving:
                blocks = _saved(blocks, *saving, sources[0], workers)
            indices, _ = top_k(blocks, evaluation.top_k, len(sources[0].query_names), workers)
        else:
            for _ in blocks:
                pass
        if accumulator:
            results[kind] = _joined(accumulator, workers).result()
    return indices, results


def _check_same_protocol(domain: str, sources: list[DomainSource]) -> None:
    drops = {source.name: source.truth.drop_same_camera for source in sources if source.truth}
    if len(set(drops.values())) > 1:
        raise ValueError("the inputs were tested with different settings of TEST.DROP_SAME_CAMERA in "
                         f"{domain}: {drops}")


def _final_streams(sources: list[DomainSource]) -> list[str]:
    """A source's last stream is what it was tested with, be it re-ranked or not; that is what the answer sums."""
    return [next(reversed(source.streams)) for source in sources]


def _kinds(sources: list[DomainSource], final: list[str], with_plain: bool) -> dict[str, list[str]]:
    """{what it is called: the stream of each source}, the one that the answer sums last."""
    if with_plain and set(final) != {"plain"} and all("plain" in source.streams for source in sources):
        return {"plain": ["plain"] * len(sources), "re_ranked" if "re_ranked" in final else final[0]: final}
    return {final[0]: final}


def _joined(accumulator: RankAccumulator, workers: Workers) -> RankAccumulator:
    """What all processes have seen."""
    first, *others = workers.gather_objects(accumulator)
    for other in others:
        first.absorb(other)
    return first


def _watched(blocks: Blocks, accumulator: RankAccumulator) -> Blocks:
    for rows, distances in blocks:
        accumulator.update(rows, distances)
        yield rows, distances


def _saved(blocks: Blocks, folder: Path, label: str, source: DomainSource, workers: Workers) -> Blocks:
    """Pass the blocks on and keep them as the original's files; the lists are written last."""
    shape = (len(source.query_names), len(source.gallery_names))
    path = folder / f"distmat_{label}.npy"
    partial = path.with_suffix(".partial")
    if workers.is_main:
        make_mapped_array(partial, shape)
    workers.wait()
    distmat = np.lib.format.open_memmap(partial, "r+")
    for rows, distances in blocks:
        distmat[rows] = distances
        yield rows, distances
    distmat.flush()
    workers.wait()
    if workers.is_main:
        partial.replace(path)
        np.save(folder / f"query_path_{label}.npy", source.query_names, allow_pickle=False)
        np.save(folder / f"gallery_path_{label}.npy", source.gallery_names, allow_pickle=False)


def write_results(submission: Path, ranked: Ranked, workers: Workers = ALONE, **about: object) -> dict:
    """Write the submission and, beside it where the truth is known, metrics.json and per_query.json.

    Returns the metrics. Only the first of the workers writes.
    """
    metrics = ranked.metrics()
    if not workers.is_main:
        return metrics
    write_submission(submission, ranked.query_names, ranked.gallery_names, ranked.indices)
    figures, per_query = submission.with_name("metrics.json"), submission.with_name(PER_QUERY)
    if metrics:
        write_json(figures, {**about, **metrics})
        write_json(per_query, ranked.per_query)
        for domain, by_kind in metrics.items():
            for kind, values in by_kind.items():
                logger.info("%s, %s: %s", domain, kind.replace("_", "-"), describe(values))
    else:
        for path in (figures, per_query):
            path.unlink(missing_ok=True)  # an earlier run's figures are not this submission's
        logger.info("no ground truth: no metrics")
    return metrics


def describe(figures: dict) -> str:
    """One line of metrics."""
    shown = [f"{name} {100 * value:.2f}%" for name, value in figures.items()
             if isinstance(value, float) and not name.startswith("TPR")]
    return ", ".join(shown) + f" ({figures['num_valid']} queries)"


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
