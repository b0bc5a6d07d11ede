"""The distances of a model in a domain, from a feature bank or from saved files."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from processor.evaluation.feature_bank import FeatureBank, Ranking
from processor.evaluation.truth import Truth
from processor.retrieval.distance import Block, distance_blocks
from processor.retrieval.ensemble import sum_blocks
from processor.retrieval.expansion import expand
from processor.retrieval.reranking import re_ranked_blocks, re_ranked_top_k
from processor.retrieval.search.rows import local_blocks
from utils.dist import ALONE, Workers
from utils.files import read_array

logger = logging.getLogger(__name__)

DOMAIN_LABELS = {"green": "1", "normal": "2"}  # in the names of the original's distmat files; others have their own


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


HERE = Compute()  # this process alone, on the features' device


@dataclass
class DomainSource:
    """The distances of a model in a domain.

    streams: {'plain' | 're_ranked' | 'saved': () -> blocks of rows}, of this process' queries.
    nearest: k -> the indices [Q, k] of the last stream without computing all its distances, if there is such a way.
    """

    name: str
    query_names: np.ndarray
    gallery_names: np.ndarray
    streams: dict[str, Callable[[], Iterator[Block]]]
    truth: Truth | None = None
    nearest: Callable[[int], np.ndarray] | None = None


# ------------------------------------------------------------------ sources
def bank_source(name: str, bank: FeatureBank, ranking: Ranking, compute: Compute = HERE,
                domain: str = "") -> DomainSource:
    """The streams of a feature bank: distances as they are and, if the ranking has parameters for it, re-ranked.

    Args:
        name: the model's, or its folder.
        domain: the bank's, for the log.
    """
    title = ", ".join(filter(None, (domain, Path(name).name)))
    weights = ranking.branch_weights(bank.feats)
    features = lru_cache(maxsize=1)(partial(expanded_features, bank, ranking=ranking))  # for the last branch
    options = {"normalize": ranking.feat_norm, "device": compute.device, "workers": compute.workers}
    search = {**options, "precision": compute.precision, "memory": compute.memory, "title": title}

    def plain(branch: str) -> Iterator[Block]:
        return distance_blocks(*features(branch), ranking.distance, **options)

    def re_ranked(branch: str) -> Iterator[Block]:
        return re_ranked_blocks(*features(branch), *ranking.re_ranking, **search)

    def stream(blocks_of: Callable[[str], Iterator[Block]]) -> Iterator[Block]:
        if blocks_of is re_ranked and len(weights) > 1:
            logger.info("%s: re-ranking %d branches (%s) takes %d times the work of one", title, len(weights),
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


def warn_of_ranking(domain: str, ranking: Ranking, num_gallery: int) -> None:
    """Warn if a ranking looks at as many neighbours as a gallery has images."""
    warn_of_neighbours(domain, {
        "k1 of TEST.RE_RANKING_PARAMETER": ranking.re_ranking[0] if ranking.re_ranking else 0,
        "TEST.QUERY_EXPANSION": ranking.query_expansion, "TEST.DATABASE_AUGMENTATION": ranking.database_augmentation,
    }, num_gallery)


def warn_of_neighbours(place: str, counts: dict[str, int], num_images: int) -> None:
    """Warn if a key asks for as many neighbours as there are images; counts: {key: its value}."""
    for key, count in counts.items():
        if count >= num_images:
            logger.warning("%s: %s is %d, and there are %d images to be neighbours: with nearly all of them it tells "
                           "nothing apart; take a number well below %d", place, key, count, num_images, num_images)


def expanded_features(bank: FeatureBank, branch: str, ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """query [Q, D] and gallery [G, D] of a branch, expanded as the ranking has it."""
    return expand(*bank.branch(branch), ranking.query_expansion, ranking.database_augmentation, ranking.expansion_alpha)


def distmat_source(folder: Path, label: str, workers: Workers = ALONE) -> DomainSource:
    """The stream of a saved distmat_{label}.npy with its query_path_ and gallery_path_ lists.

    Its blocks are those of a feature bank, so that the two can be summed.

    Raises:
        ValueError: the lists do not fit the matrix, or a file is a pickle.
    """
    arrays = {}
    for leaf in ("distmat", "query_path", "gallery_path"):
        path = folder / f"{leaf}_{label}.npy"
        is_matrix = leaf == "distmat"
        arrays[leaf] = read_array(path, "f" if is_matrix else "US", 2 if is_matrix else 1, mapped=is_matrix)
    distmat = arrays["distmat"]
    names = [np.array([Path(str(name)).name for name in arrays[leaf]]) for leaf in ("query_path", "gallery_path")]
    if distmat.shape != (len(names[0]), len(names[1])):
        raise ValueError(f"{folder / f'distmat_{label}.npy'}: {distmat.shape}, but its lists name {len(names[0])} "
                         f"queries and {len(names[1])} gallery images")

    def blocks() -> Iterator[Block]:
        for rows in local_blocks(len(distmat), workers):
            yield rows, np.asarray(distmat[rows], dtype=np.float32)

    return DomainSource(str(folder), *names, {"saved": blocks})
