"""From one or several models' distances to lists, metrics and the submission. A single model is an ensemble of one."""
from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.bases import set_of_trial
from processor.evaluation.comparison import PER_QUERY, per_query_table
from processor.evaluation.sources import DOMAIN_LABELS, DomainSource
from processor.evaluation.truth import Truth, common_truth
from processor.retrieval.distance import Block, top_k
from processor.retrieval.ensemble import check_same_order, sum_blocks
from processor.retrieval.metrics import RankAccumulator, RankResult, format_figures, format_queries, merge_results
from processor.retrieval.significance import intervals
from processor.retrieval.submission import write_submission
from utils.dist import ALONE, Workers
from utils.files import make_mapped_array, write_array, write_json

logger = logging.getLogger(__name__)


@dataclass
class Ranked:
    """What ranking every domain gives; results[domain][kind] where the truth is known and a query has a match.

    protocol: how each of these domains was measured. not_measured: why the others whose truth is known were not.
    """

    query_names: list[str] = field(default_factory=list)
    gallery_names: list[str] = field(default_factory=list)
    indices: list[np.ndarray] = field(default_factory=list)
    results: dict[str, dict[str, RankResult]] = field(default_factory=dict)
    per_query: dict[str, dict[str, dict]] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, dict]]:
        """{domain, set with trials or 'all': {'plain' | 're_ranked': figures}}; of several domains together, each
        weighs as many as it has valid queries."""
        if not self.results:
            return {}
        members = {"all": list(self.results)}
        for domain in self.results:
            if name := set_of_trial(domain):
                members.setdefault(name, []).append(domain)
        members |= {domain: [domain] for domain in self.results}
        kinds = list(next(iter(self.results.values())))
        merged = {name: {kind: merge_results([self.results[domain][kind] for domain in domains]) for kind in kinds}
                  for name, domains in members.items()}
        return {name: {kind: {**result.to_dict(), "ci95": {**intervals(result), **result.pair_intervals}}
                       for kind, result in by_kind.items()} for name, by_kind in merged.items()}


# ------------------------------------------------------------------ ranking
def rank_domains(domains: dict[str, list[DomainSource]], weights: list[float], top: int,
                 save_distmat: Path | None = None, workers: Workers = ALONE) -> Ranked:
    """Sum the sources' distances of each domain by query blocks, take the exact top-k and, with truth, the metrics.

    Args:
        domains: {domain: a source for each model}, the queries and galleries of a domain in the same order.
        weights: of the models.
        top: length of a list, and the k of mAP@k.
        save_distmat: folder for the original's distmat_{1,2}.npy and its lists, written block by block.
        workers: processes that share the queries; each gets the whole result.
    Raises:
        ValueError: names or their order differ between the sources; the message names the first difference.
    """
    ranked = Ranked()
    for domain, sources in domains.items():
        first, truth = sources[0], truth_of(domain, sources)
        if truth and (obstacle := truth.find_obstacle()):
            ranked.not_measured[domain], truth = obstacle, None
        if truth is None and save_distmat is None and len(sources) == 1 and first.nearest:
            indices = first.nearest(top)
        else:
            saving = (save_distmat, DOMAIN_LABELS.get(domain, domain)) if save_distmat else None
            indices, results = _rank_full_rows(sources, weights, top, truth, saving, workers)
            if truth:
                ranked.results[domain], ranked.protocol[domain] = results, truth.protocol()
                ranked.per_query[domain] = {kind: per_query_table(result, first.query_names)
                                            for kind, result in results.items()}
        ranked.indices += list(indices + len(ranked.gallery_names))
        ranked.query_names += list(map(str, first.query_names))
        ranked.gallery_names += list(map(str, first.gallery_names))
    return ranked


def truth_of(domain: str, sources: list[DomainSource]) -> Truth | None:
    """What the sources of a domain know of its images; None if no one knows.

    Raises:
        ValueError: names or their order differ, or the sources were tested by different protocols.
    """
    check_same_order({source.name: source.query_names for source in sources})
    check_same_order({source.name: source.gallery_names for source in sources})
    return common_truth(domain, {source.name: source.truth for source in sources if source.truth})


def _rank_full_rows(
    sources: list[DomainSource], weights: list[float], top: int, truth: Truth | None,
    saving: tuple[Path, str] | None, workers: Workers,
) -> tuple[np.ndarray, dict[str, RankResult]]:
    """The top-k of a domain's summed distances, and the metrics of each kind of distance."""
    indices, results = np.empty(0), {}
    final = final_streams(sources)
    for kind, chosen in _kinds(sources, final, with_plain=truth is not None).items():
        blocks = sum_blocks([source.streams[name]() for source, name in zip(sources, chosen, strict=True)], weights)
        accumulator = None
        if truth:
            accumulator = RankAccumulator(**vars(truth), k=top)
            blocks = accumulate(blocks, accumulator)
        if chosen is final:
            if saving:
                blocks = _write_distmat(blocks, *saving, sources[0], workers)
            indices, _ = top_k(blocks, top, len(sources[0].query_names), workers)
        else:
            for _ in blocks:
                pass
        if accumulator:
            results[kind] = accumulator.gather(workers).result()
    return indices, results


def final_streams(sources: list[DomainSource]) -> list[str]:
    """A source's last stream is what it was tested with, be it re-ranked or not; that is what the answer sums."""
    return [next(reversed(source.streams)) for source in sources]


def _kinds(sources: list[DomainSource], final: list[str], with_plain: bool) -> dict[str, list[str]]:
    """{kind of distance: the stream of each source}, last what the answer sums."""
    if with_plain and set(final) != {"plain"} and all("plain" in source.streams for source in sources):
        return {"plain": ["plain"] * len(sources), "re_ranked" if "re_ranked" in final else final[0]: final}
    return {final[0]: final}


def accumulate(blocks: Iterator[Block], accumulator: RankAccumulator) -> Iterator[Block]:
    """Pass the blocks on and count their ranks."""
    for rows, distances in blocks:
        accumulator.update(rows, distances)
        yield rows, distances


def _write_distmat(blocks: Iterator[Block], folder: Path, label: str, source: DomainSource,
                   workers: Workers) -> Iterator[Block]:
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
        write_array(folder / f"query_path_{label}.npy", source.query_names)
        write_array(folder / f"gallery_path_{label}.npy", source.gallery_names)


def write_results(submission: Path, ranked: Ranked, workers: Workers = ALONE, **about: object) -> dict:
    """Write the submission and, beside it if anything was measured, metrics.json and per_query.json.

    Returns the metrics. Only the first of the workers writes.
    """
    metrics = ranked.metrics()
    if not workers.is_main:
        return metrics
    write_submission(submission, ranked.query_names, ranked.gallery_names, ranked.indices)
    figures, per_query = submission.with_name("metrics.json"), submission.with_name(PER_QUERY)
    if metrics:
        left_out = {"not_measured": ranked.not_measured} if ranked.not_measured else {}
        write_json(figures, {**about, "protocol": ranked.protocol, **left_out, **metrics})
        write_json(per_query, ranked.per_query)
        for protocol in dict.fromkeys(ranked.protocol.values()):
            logger.info("measured so: %s", protocol)
        for domain, by_kind in metrics.items():
            for kind, values in by_kind.items() if not set_of_trial(domain) else ():
                logger.info("%s, %s: %s", domain, kind.replace("_", "-"), describe(values))
    else:
        for path in (figures, per_query):
            path.unlink(missing_ok=True)  # an earlier run's figures are not this submission's
        logger.info("%s: no metrics", "no query has a match" if ranked.not_measured else "no ground truth")
    return metrics


def describe(figures: dict) -> str:
    """The log line of a ranking's metrics."""
    queries = format_queries(figures)
    return f"{format_figures(figures)}, {queries}" if "(" in queries else f"{format_figures(figures)} ({queries})"
