"""A set with ground truth, on which many settings of several models are measured in a pass over its queries.

Each model is searched for candidates once, whatever is asked of it later.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from processor.evaluation.agreement import common_domains, common_top_k
from processor.evaluation.feature_bank import FeatureBank, Ranking, read_bank, read_ranking
from processor.evaluation.sources import HERE, Compute, expanded_features
from processor.evaluation.truth import Truth, common_truth, warn_of_obstacles
from processor.retrieval.distance import distance_blocks
from processor.retrieval.ensemble import check_same_order
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import ReRanker
from processor.retrieval.search.budget import ENTRIES, free_bytes
from processor.retrieval.search.rows import QUERY_ROWS, local_blocks
from utils.progress import progress

logger = logging.getLogger(__name__)

Parameters = tuple[int, int, float]  # k1, k2, lambda
Weights = tuple[Fraction, ...]  # exact, so that no two differ by rounding alone
Parts = list[Tensor]  # [distance], or [original distance, Jaccard distance] that lambda mixes; [R, G] each


@dataclass(frozen=True)
class Setting:
    """A way to rank: each model's re-ranking (None: distances as they are) and its weight in the sum."""

    re_ranking: tuple[Parameters | None, ...]
    weights: tuple[float, ...]

    @property
    def encoding(self) -> tuple[tuple[int, int] | None, ...]:
        """What has to be encoded for it: (k1, k2) of each model."""
        return tuple(parameters and parameters[:2] for parameters in self.re_ranking)

    def format_parameters(self) -> list[str]:
        """k1, k2 and lambda in a table: "-" without re-ranking, and separated by "/" if models differ."""
        per_model = [parameters or ("-", "-", "-") for parameters in self.re_ranking]
        columns = [[str(value) for value in column] for column in zip(*per_model, strict=True)]
        return [column[0] if len(set(column)) == 1 else "/".join(column) for column in columns]

    def format_encoding(self) -> str:
        k1, k2, _ = self.format_parameters()
        return f"k1 {k1}, k2 {k2}" if any(self.re_ranking) else "without re-ranking"

    def format_weights(self) -> str:
        return " ".join(f"{weight:.3f}" for weight in self.weights)


class Model:
    """A tested model in a domain: its distances by query blocks, its neighbours searched once."""

    def __init__(self, name: str, bank: FeatureBank, ranking: Ranking, compute: Compute):
        self.name, self.bank, self.ranking, self.compute = name, bank, ranking, compute
        shares = ranking.branch_weights(bank.feats)
        self.shares = shares if len(shares) > 1 else dict.fromkeys(shares, 1.0)
        self.rankers: list[ReRanker] = []

    @cached_property
    def features(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """query and gallery of each branch, expanded as the model was tested."""
        return [expanded_features(self.bank, branch, self.ranking) for branch in self.shares]

    def search(self, k1: int, memory: int | None) -> int:
        """Find the neighbours of each branch; returns about how many bytes stay in use for them and their blocks."""
        held = 0
        for branch, (query, gallery) in zip(self.shares, self.features, strict=True):
            logger.info("%s, %s: the %d nearest of every image", self.name, branch, k1)
            free = None if memory is None else max(memory - held, 0)
            ranker = ReRanker(query, gallery, k1, precision=self.compute.precision, memory=free,
                              normalize=self.ranking.feat_norm, device=self.compute.device,
                              workers=self.compute.workers)
            size, width = ranker.neighbours.indices.shape
            # Lists of neighbours, codes and their inverted index; two parts of each block under way and of the last.
            held += size * (8 * width + 16 * ENTRIES) + (ranker.plan.threads + 1) * 8 * QUERY_ROWS * len(gallery)
            self.rankers.append(ranker)
        return held

    def parts(self, encoding: tuple[int, int] | None) -> Iterator[tuple[slice, Parts]]:
        """(rows, the sum of the branches) of each block of this process' queries."""
        if encoding:
            branches = [ranker.parts(*encoding) for ranker in self.rankers]
        else:
            branches = [self._plain(query, gallery) for query, gallery in self.features]
        shares = list(self.shares.values())
        for blocks in zip(*branches, strict=True):
            total, *others = (parts for _, *parts in blocks)
            for part in zip(total, *others, strict=True):
                _sum(part, shares, out=part[0], spare=torch.empty_like(part[0]))
            yield blocks[0][0], total

    def _plain(self, query: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        device = self.compute.device
        for rows, block in distance_blocks(query, gallery, self.ranking.distance, normalize=self.ranking.feat_norm,
                                           device=device, workers=self.compute.workers):
            yield rows, torch.from_numpy(block).to(device or "cpu")


class TuningSet:
    """Tested models on the same queries and gallery, whose truth is known.

    Args:
        inputs: OUTPUT_DIRs of tools/test.py.
        k1: the largest that will be asked for, beside those that the models were tested with; the attribute may be
            raised until the first re-ranking is measured.
        domain: of the banks' domains, or "all": of those in which a query has a match.
    Raises:
        ValueError: an input has no feature bank, no such domain or no ground truth, no query has a match, or the
            inputs disagree in their images, their truth or how they are evaluated.
    """

    def __init__(self, inputs: Sequence[Path], k1: int, domain: str = "all", compute: Compute = HERE):
        opened = {str(folder): read_bank(folder / "features") for folder in inputs}
        if len(opened) < len(inputs):
            raise ValueError(f"an input is named twice: {', '.join(map(str, inputs))}")
        self.names, self.compute = list(opened), compute
        rankings = [read_ranking(index) for _, index in opened.values()]
        self.tested = tuple(ranking.re_ranking for ranking in rankings)
        self.k1 = max([k1, *(parameters[0] for parameters in self.tested if parameters)])
        self.top_k = common_top_k({name: index for name, (_, index) in opened.items()})
        domains = common_domains({name: banks for name, (banks, _) in opened.items()}, domain)
        by_domain = {name: {folder: banks[name] for folder, (banks, _) in opened.items()} for name in domains}
        self.truths = {name: _common_truth(banks, name) for name, banks in by_domain.items()}
        for name, obstacle in warn_of_obstacles(self.truths).items():
            if len(self.truths) == 1:
                raise ValueError(f"nothing to tune on: in {name}, {obstacle}; run tools/test.py again on what can be "
                                 "measured")
            del self.truths[name]
        self.models: dict[str, list[Model]] = {}
        for name in self.truths:
            banks = by_domain[name]
            self.models[name] = [Model(f"{folder}, {name}", bank, ranking, compute)
                                 for (folder, bank), ranking in zip(banks.items(), rankings, strict=True)]
        self.fingerprint = {
            "evaluation": next(iter(opened.values()))[1]["evaluation"],
            "inputs": [{"ranking": index["ranking"], "domains": {name: index["domains"][name] for name in domains}}
                       for _, index in opened.values()]}
        if pairs := {name: len(truth.same_file) for name, truth in self.truths.items() if len(truth.same_file)}:
            self.fingerprint["same_file"] = pairs  # earlier versions counted them

    @property
    def smallest_gallery(self) -> int:
        return min(len(truth.g_pids) for truth in self.truths.values())

    def measure(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, RankResult]]:
        """Rank with each of the settings, which share an encoding: all in a pass over the blocks of each domain."""
        if any(settings[0].encoding):
            self._search()
        at_once = self._at_once()
        for start in range(0, len(settings), at_once):
            chunk = settings[start : start + at_once]
            for setting, *by_domain in zip(chunk, *(self._measure(name, chunk) for name in self.models), strict=True):
                yield setting, merge_results(by_domain)

    def _search(self) -> None:
        """Let every model find its neighbours, once; the memory that a model keeps is not there for the next."""
        memory = self.compute.memory and self.compute.memory * 3 // 4  # the rest: see _at_once
        missing = [model for models in self.models.values() for model in models if not model.rankers]
        for model in progress(missing, "searching neighbours", "models") if missing else ():
            held = model.search(self.k1, memory)
            memory = None if memory is None else max(memory - held, 0)

    def _measure(self, domain: str, settings: Sequence[Setting]) -> list[RankResult]:
        truth, encoding = self.truths[domain], settings[0].encoding
        counters = {setting: RankAccumulator(**vars(truth), k=self.top_k) for setting in settings}
        mixed = Mixer(settings, len(truth.g_pids), self.compute.device or "cpu")
        blocks = zip(*(model.parts(pair) for model, pair in zip(self.models[domain], encoding, strict=True)),
                     strict=True)
        total = len(local_blocks(len(truth.q_pids), self.compute.workers))
        title = f"{domain}, {settings[0].format_encoding()}, settings: {len(settings)}"
        for by_model in progress(blocks, title, "blocks", total):
            for setting, rows, distances in mixed(by_model[0][0], [parts for _, parts in by_model]):
                counters[setting].update(rows, distances)
        return [counter.gather(self.compute.workers).result(pair_intervals=False) for counter in counters.values()]

    def _at_once(self) -> int:
        """How many settings share a pass: their counters, which keep the nearest hundredth of all pairs, may take a
        quarter of the memory."""
        pairs = max(len(truth.q_pids) * len(truth.g_pids) for truth in self.truths.values())
        memory = self.compute.memory or free_bytes(torch.device("cpu"))
        # All processes must take the same number.
        return self.compute.workers.gather_objects(max(1, memory // 4 // (12 * pairs // 100 + 2**16)))[0]


T, K = TypeVar("T"), TypeVar("K", bound=Hashable)


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


class Mixer:
    """The distances of many settings from the parts of a block, a few rows at a time, in memory that is taken once.

    Memory taken anew for each setting would pile up: what the counters keep comes to lie between the pieces.
    """

    ROWS = 32

    def __init__(self, settings: Sequence[Setting], num_gallery: int, device: torch.device | str):
        self.by_re_ranking = group_by(settings, lambda setting: setting.re_ranking)
        self.spare, self.sum, *self.mixed = (torch.empty(self.ROWS, num_gallery, device=device)
                                             for _ in range(2 + len(settings[0].weights)))

    def __call__(self, rows: slice, parts: Sequence[Parts]) -> Iterator[tuple[Setting, slice, np.ndarray]]:
        """(setting, a few of the rows, their distances [n, G], good until the next are asked for)."""
        for start in range(0, rows.stop - rows.start, self.ROWS):
            chunk = slice(rows.start + start, min(rows.start + start + self.ROWS, rows.stop))
            count = chunk.stop - chunk.start
            by_model = [[part[start : start + count] for part in model_parts] for model_parts in parts]
            for re_ranking, settings in self.by_re_ranking.items():
                distances = [_sum(model_parts, (k[2], 1 - k[2]) if k else (1,), out[:count], self.spare)
                             for model_parts, k, out in zip(by_model, re_ranking, self.mixed, strict=True)]
                for setting in settings:
                    total = _sum(distances, setting.weights, self.sum[:count], self.spare)
                    yield setting, chunk, total.cpu().numpy()


def _sum(distances: Sequence[Tensor], weights: Sequence[float], out: Tensor, spare: Tensor) -> Tensor:
    """The weighted sum as `sum_blocks` has it: float32, each product rounded before it is added, in order."""
    torch.mul(distances[0], weights[0], out=out)
    for part, weight in zip(distances[1:], weights[1:], strict=True):
        out.add_(torch.mul(part, weight, out=spare[: len(out)]))
    return out


def _common_truth(banks: dict[str, FeatureBank], domain: str) -> Truth:
    """The truth of a domain, which all banks must agree in."""
    for name, bank in banks.items():
        if not bank.has_truth:
            raise ValueError(f"{name}: the {domain} images have no ground truth to tune on: the test folder had no "
                             f"ground_truth.json. Take a validation set that has it and run tools/test.py on it")
    check_same_order({name: bank.query_names.tolist() for name, bank in banks.items()})
    check_same_order({name: bank.gallery_names.tolist() for name, bank in banks.items()})
    (first, bank), *others = banks.items()
    for name, other in others:
        if not (np.array_equal(bank.pids, other.pids) and np.array_equal(bank.camids, other.camids)):
            raise ValueError(f"{first} and {name} know different pids or camids for the {domain} images; run "
                             f"tools/test.py again for both")
    return common_truth(domain, {name: Truth.of(bank) for name, bank in banks.items()})
