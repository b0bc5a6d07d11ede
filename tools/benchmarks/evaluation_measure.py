"""A measurement of evaluating, in a process of its own: python -m tools.benchmarks.evaluation_measure JOB (JSON)."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from processor.evaluation import ranking
from processor.evaluation.feature_bank import FeatureBank, Ranking
from processor.evaluation.sources import DomainSource, bank_source
from processor.retrieval.distance import Block
from processor.retrieval.metrics import RankAccumulator
from tools.benchmarks.evaluation_baseline import dense_bytes, dense_evaluation
from tools.benchmarks.harness import Job, serve
from tools.benchmarks.machine import Meter
from tools.benchmarks.retrieval_measure import make_features

TOP_K = 200
_WARM_UP = 32, 1024  # queries, gallery images


@dataclass(frozen=True)
class Setting:
    """A test set, of which the first `ranked` queries are ranked."""

    queries: int
    gallery: int
    identities: int
    cameras: int
    dim: int
    ranked: int


class Stopwatch:
    """Seconds spent in what it is wrapped around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, function: Callable) -> Callable:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started
        return timed

    def over_blocks(self, blocks: Iterator[Block]) -> Iterator[Block]:
        return iter(self.over(lambda: next(blocks, None)), None)


def make_bank(setting: Setting) -> FeatureBank:
    """Features and labels; every query has a match, and some of its images are by its own camera."""
    rng = np.random.default_rng(0)
    people = np.arange(setting.identities)
    more = rng.integers(setting.identities, size=setting.gallery - setting.identities)
    pids = np.concatenate([rng.integers(setting.identities, size=setting.queries), rng.permutation([*people, *more])])
    camids = rng.integers(setting.cameras, size=len(pids))
    feats = make_features(pids, setting.dim).numpy()
    names = np.array([f"{number:06d}.jpg" for number in range(len(pids))])
    return FeatureBank({"global": feats}, pids, camids, names, setting.queries, True, drop_same_camera=True)


def _part(bank: FeatureBank, queries: int, gallery: int | None = None) -> FeatureBank:
    """So many queries and gallery images; features are views as long as all are contiguous, else copies."""
    first = bank.num_query
    kept = np.r_[:queries, first:len(bank.pids) if gallery is None else first + gallery]
    return replace(bank, feats={"global": bank.feats["global"][kept]}, pids=bank.pids[kept],
                   camids=bank.camids[kept], names=bank.names[kept], num_query=queries)


def ours(bank: FeatureBank) -> dict[str, float]:
    """What tools/test.py does with a feature bank, without writing the answer."""
    product, figures = Stopwatch(), Stopwatch()
    source = bank_source("model", bank, Ranking(feat_norm=True, distance="euclidean", re_ranking=None))
    plain = source.streams["plain"]
    timed = DomainSource(source.name, source.query_names, source.gallery_names,
                         {"plain": lambda: product.over_blocks(plain())}, source.truth)
    original = RankAccumulator.update, RankAccumulator.result
    RankAccumulator.update, RankAccumulator.result = map(figures.over, original)
    try:
        ranked = ranking.rank_domains({"msmt17": [timed]}, [1.0], TOP_K)
    finally:
        RankAccumulator.update, RankAccumulator.result = original
    result = ranked.results["msmt17"]["plain"]
    return {"product": product.seconds, "figures": figures.seconds, "rank1": float(result.cmc[0]), "mAP": result.mAP,
            "mINP": result.mINP}


def baseline(bank: FeatureBank) -> dict[str, float]:
    """One distance matrix, sorted, and a loop over the queries."""
    watches = {"product": Stopwatch(), "figures": Stopwatch()}
    cmc, mean_ap, mean_inp = dense_evaluation(
        *bank.branch("global"), bank.pids[:bank.num_query], bank.pids[bank.num_query:], bank.camids[:bank.num_query],
        bank.camids[bank.num_query:], *(watch.over for watch in watches.values()))
    return {**{name: watch.seconds for name, watch in watches.items()}, "rank1": float(cmc[0]), "mAP": mean_ap,
            "mINP": mean_inp}


class Row(NamedTuple):
    """One line of the table; all_queries: it ranks them all."""

    title: str
    run: Callable[[FeatureBank], dict[str, float]]
    all_queries: bool
    bytes_needed: Callable[[Setting], int]


ROWS = {
    "ours": Row("as tools/test.py evaluates", ours, True, lambda setting: 2**30),
    "ours_part": Row("as tools/test.py evaluates", ours, False, lambda setting: 2**30),
    "baseline": Row("dense matrix, argsort, loop", baseline, False,
                    lambda setting: dense_bytes(setting.ranked, setting.gallery, setting.dim)),
}


def measure(job: Job) -> dict[str, float]:
    """Seconds of the distances' product and of the figures, of the lists that an answer holds (ours) and of all but the
    product; the most memory above the features; the figures."""
    setting: Setting = job.setting
    bank, row = make_bank(setting), ROWS[job.what]
    row.run(_part(bank, min(_WARM_UP[0], setting.queries), min(_WARM_UP[1], setting.gallery)))
    if setting.ranked < setting.queries:
        bank = _part(bank, setting.ranked)
    meter = Meter("cpu")
    with meter:
        run = row.run(bank)
    rest = meter.seconds - run["product"]
    return {**run, "lists": rest - run["figures"], "rest": rest, "peak_bytes": meter.peak_bytes}


if __name__ == "__main__":
    serve(measure, Setting)
