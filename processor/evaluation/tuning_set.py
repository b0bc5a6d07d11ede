"""A set with ground truth, on which many settings of several models are measured in one pass over its queries.

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

from processor.evaluation.feature_bank import FeatureBank, Ranking, read_bank, read_ranking
from processor.evaluation.ranking import Evaluation
from processor.evaluation.sources import Compute, Truth
from processor.retrieval.distance import distance_blocks
from processor.retrieval.ensemble import check_same_order
from processor.retrieval.expansion import expand
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import ReRanker
from processor.retrieval.search.budget import ENTRIES, free_bytes
from processor.retrieval.search.rows import QUERY_ROWS, own_rows
from utils.progress import progress

logger = logging.getLogger(__name__)

HERE = Compute()

Parameters = tuple[int, int, float]  # k1, k2, lambda
Weights = tuple[Fraction, ...]  # exact, so that no two differ by rounding alone
Parts = list[Tensor]  # [distance], or [original distance, Jaccard distance] that lambda mixes; [R, G] each


@dataclass(frozen=True)
class Setting:
    """One way to rank: each model's re-ranking (None: distances as they are) and its weight in the sum."""

    re_ranking: tuple[Parameters | None, ...]
    weights: tuple[float, ...]

    @property
    def encoding(self) -> tuple[tuple[int, int] | None, ...]:
        """What has to be encoded for it: (k1, k2) of each model."""
        return tuple(one and one[:2] for one in self.re_ranking)


def shown(setting: Setting) -> list[str]:
    """k1, k2 and lambda as a table shows them: "-" without re-ranking, and with "/" where models differ."""
    per_model = [one or ("-", "-", "-") for one in setting.re_ranking]
    columns = [[str(value) for value in column] for column in zip(*per_model, strict=True)]
    return [column[0] if len(set(column)) == 1 else "/".join(column) for column in columns]


def said(setting: Setting) -> str:
    k1, k2, _ = shown(setting)
    return f"k1 {k1}, k2 {k2}" if any(setting.re_ranking) else "without re-ranking"


def weights_of(setting: Setting) -> str:
    return " ".join(f"{weight:.3f}" for weight in setting.weights)


class Model:
    """One tested model in one domain: its distances by query blocks, its neighbours searched once."""

    def __init__(self, name: str, bank: FeatureBank, ranking: Ranking, compute: Compute):
        self.name, self.bank, self.ranking, self.compute = name, bank, ranking, compute
        shares = ranking.branch_weights(bank.feats)
        self.shares = shares if len(shares) > 1 else dict.fromkeys(shares, 1.0)
        self.rankers: list[ReRanker] = []

    @cached_property
    def features(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """query and gallery of each branch, expanded as the model was tested."""
        ranking = self.ranking
        return [expand(*self.bank.branch(branch), ranking.query_expansion, ranking.database_augmentation,
                       ranking.expansion_alpha) for branch in self.shares]

    def search(self, k1: int, memory: int | None) -> int:
        """Find the neighbours of each branch; returns about how many bytes stay in use for them and their blocks."""
        held = 0
        for branch, (query, gallery) in zip(self.shares, self.features, strict=True):
            logger.info("%s, %s: the %d nearest of every image", self.name, branch, k1)
            left = None if memory is None else max(memory - held, 0)
            ranker = ReRanker(query, gallery, k1, precision=self.compute.precision, memory=left,
                              normalize=self.ranking.feat_norm, device=self.compute.device,
                              workers=self.compute.workers)
            size, width = ranker.neighbours.indices.shape
            # Lists of neighbours, codes and their inverted index; two parts of each block under way and of the last.
            held += size * (8 * width + 16 * ENTRIES) + (ranker.plan.threads + 1) * 8 * QUERY_ROWS * len(gallery)
            self.rankers.append(ranker)
        return held

    def parts(self, encoding: tuple[int, int] | None) -> Iterator[tuple[slice, Parts]]:
        """(rows, the sum of the branches) for each of this process' blocks of queries."""
        if encoding:
            branches = [ranker.parts(*encoding) for ranker in self.rankers]
        else:
            branches = [self._plain(query, gallery) for query, gallery in self.features]
        shares = list(self.shares.values())
        for together in zip(*branches, strict=True):
            total, *others = (parts for _, *parts in together)
            for same in zip(total, *others, strict=True):
                _sum(same, shares, out=same[0], spare=torch.empty_like(same[0]))
            yield together[0][0], total

    def _plain(self, query: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        device = self.compute.device
        for rows, block in distance_blocks(query, gallery, self.ranking.distance, normalize=self.ranking.feat_norm,
                                           device=device, workers=self.compute.workers):
            yield rows, torch.from_numpy(block).to(device or "cpu")


class TuningSet:
    """Tested models on the same queries and gallery, whose truth is known.

    Args:
        inputs: OUTPUT_DIRs of tools/test.py.
        k1: the largest that will be asked for, beside those that the models were tested with.
        domain: one of the banks' domains, or "all".
    Raises:
        ValueError: an input has no feature bank, no such domain or no ground truth, or the inputs disagree in their
            images, their truth or how they are evaluated.
    """

    def __init__(self, inputs: Sequence[Path], k1: int, domain: str = "all", compute: Compute = HERE):
        opened = {str(folder): read_bank(folder / "features") for folder in inputs}
        if len(opened) < len(inputs):
            raise ValueError(f"an input is named twice: {', '.join(map(str, inputs))}")
        self.names, self.compute = list(opened), compute
        rankings = [read_ranking(index) for _, index in opened.values()]
        self.tested = tuple(ranking.re_ranking for ranking in rankings)
        self.k1 = max([k1, *(one[0] for one in self.tested if one)])
        self.evaluation = _common_evaluation({name: index for name, (_, index) in opened.items()})
        domains = _common_domains({name: list(banks) for name, (banks, _) in opened.items()}, domain)
        self.truths: dict[str, Truth] = {}
        self.models: dict[str, list[Model]] = {}
        for one in domains:
            banks = {name: banks[one] for name, (banks, _) in opened.items()}
            self.truths[one] = _common_truth(banks, one)
            self.models[one] = [Model(f"{name}, {one}", bank, ranking, compute)
                                for (name, bank), ranking in zip(banks.items(), rankings, strict=True)]
        self.fingerprint = {
            "evaluation": next(iter(opened.values()))[1]["evaluation"],
            "inputs": [{"ranking": index["ranking"], "domains": {one: index["domains"][one] for one in domains}}
                       for _, index in opened.values()]}

    def measure(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, RankResult]]:
        """Rank with each of some settings of one encoding: all in one pass over the blocks of each domain."""
        if any(settings[0].encoding):
            self._search()
        at_once = self._at_once()
        for start in range(0, len(settings), at_once):
            some = settings[start : start + at_once]
            for setting, *by_domain in zip(some, *(self._measure(one, some) for one in self.models), strict=True):
                yield setting, merge_results(by_domain)

    def _search(self) -> None:
        """Let every model find its neighbours, once; what one keeps, the next cannot use."""
        memory = self.compute.memory and self.compute.memory * 3 // 4  # the rest: see _at_once
        missing = [model for models in self.models.values() for model in models if not model.rankers]
        for model in progress(missing, "searching neighbours", "models") if missing else ():
            held = model.search(self.k1, memory)
            memory = None if memory is None else max(memory - held, 0)

    def _measure(self, domain: str, settings: Sequence[Setting]) -> list[RankResult]:
        truth, encoding = self.truths[domain], settings[0].encoding
        counters = {setting: RankAccumulator(**vars(truth), k=self.evaluation.top_k)
                    for setting in settings}
        mixed = Mixer(settings, len(truth.g_pids), self.compute.device or "cpu")
        blocks = zip(*(model.parts(one) for model, one in zip(self.models[domain], encoding, strict=True)), strict=True)
        total = len(own_rows(len(truth.q_pids), self.compute.workers))
        for together in progress(blocks, f"{domain}, {said(settings[0])}, settings: {len(settings)}", "blocks", total):
            for setting, rows, distances in mixed(together[0][0], [parts for _, parts in together]):
                counters[setting].update(rows, distances)
        return [self._joined(counter).result() for counter in counters.values()]

    def _joined(self, counter: RankAccumulator) -> RankAccumulator:
        """What all processes have counted."""
        first, *others = self.compute.workers.gather_objects(counter)
        for other in others:
            first.absorb(other)
        return first

    def _at_once(self) -> int:
        """How many settings share a pass: their counters, which keep the nearest hundredth of all pairs, may take a
        quarter of the memory."""
        pairs = max(len(truth.q_pids) * len(truth.g_pids) for truth in self.truths.values())
        memory = self.compute.memory or free_bytes(torch.device("cpu"))
        # All processes must take the same number.
        return self.compute.workers.gather_objects(max(1, memory // 4 // (12 * pairs // 100 + 2**16)))[0]


T, K = TypeVar("T"), TypeVar("K", bound=Hashable)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


class Mixer:
    """The distances of many settings from the parts of a block, a few rows at a time, in memory that is taken once.

    Memory taken for each setting anew would pile up: what the counters keep comes to lie between the pieces.
    """

    ROWS = 32

    def __init__(self, settings: Sequence[Setting], num_gallery: int, device: torch.device | str):
        self.by_re_ranking = grouped(settings, lambda setting: setting.re_ranking)
        self.spare, self.sum, *self.mixed = (torch.empty(self.ROWS, num_gallery, device=device)
                                             for _ in range(2 + len(settings[0].weights)))

    def __call__(self, rows: slice, parts: Sequence[Parts]) -> Iterator[tuple[Setting, slice, np.ndarray]]:
        """(setting, some of the rows, their distances [n, G], good until the next are asked for)."""
        for start in range(0, rows.stop - rows.start, self.ROWS):
            some = slice(rows.start + start, min(rows.start + start + self.ROWS, rows.stop))
            own = [[part[start : start + self.ROWS] for part in one] for one in parts]
            for re_ranking, settings in self.by_re_ranking.items():
                distances = [_sum(one, (k[2], 1 - k[2]) if k else (1,), out[: some.stop - some.start], self.spare)
                             for one, k, out in zip(own, re_ranking, self.mixed, strict=True)]
                for setting in settings:
                    total = _sum(distances, setting.weights, self.sum[: some.stop - some.start], self.spare)
                    yield setting, some, total.cpu().numpy()


def _sum(distances: Sequence[Tensor], weights: Sequence[float], out: Tensor, spare: Tensor) -> Tensor:
    """The weighted sum as `sum_blocks` has it: float32, each product rounded before it is added, in order."""
    torch.mul(distances[0], weights[0], out=out)
    for one, weight in zip(distances[1:], weights[1:], strict=True):
        out.add_(torch.mul(one, weight, out=spare[: len(out)]))
    return out


def _common_evaluation(indices: dict[str, dict]) -> Evaluation:
    lengths = {name: index["evaluation"]["top_k"] for name, index in indices.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the inputs were tested with different settings of TEST.TOP_K: {lengths}")
    return Evaluation(next(iter(lengths.values())))


def _common_domains(domains: dict[str, list[str]], wanted: str) -> list[str]:
    first = next(iter(domains.values()))
    if wanted != "all":
        lacking = [name for name, known in domains.items() if wanted not in known]
        if lacking:
            raise ValueError(f"{lacking[0]} has no domain {wanted}; it has {', '.join(domains[lacking[0]])}")
        return [wanted]
    if any(set(known) != set(first) for known in domains.values()):
        raise ValueError(f"the inputs have different domains: {domains}; choose one that all have with --domain")
    return first


def _common_truth(banks: dict[str, FeatureBank], domain: str) -> Truth:
    """The truth of a domain, which all banks must agree in."""
    for name, bank in banks.items():
        if not bank.has_truth:
            raise ValueError(f"{name}: the {domain} images have no ground truth to tune on: the test folder had no "
                             f"ground_truth.json. Take a validation set that has one and run tools/test.py on it")
    check_same_order({name: bank.query_names.tolist() for name, bank in banks.items()})
    check_same_order({name: bank.gallery_names.tolist() for name, bank in banks.items()})
    (first, bank), *others = banks.items()
    for name, other in others:
        if not (np.array_equal(bank.pids, other.pids) and np.array_equal(bank.camids, other.camids)):
            raise ValueError(f"{first} and {name} know different pids or camids for the {domain} images; run "
                             f"tools/test.py again for both")
        if bank.drop_same_camera != other.drop_same_camera:
            raise ValueError(f"{first} and {name} were tested with different settings of TEST.DROP_SAME_CAMERA in "
                             f"{domain}; run tools/test.py again for both")
    return Truth.of(bank)
