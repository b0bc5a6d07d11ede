"""Which k1, k2, lambda and weights rank a validation set best.

`ValidationSet` measures many of them in one pass, from one candidate search a model; `Results` remembers what was
measured; `best_weights` and `tune` decide what to try next.
"""
from __future__ import annotations

import csv
import io
import logging
import math
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from processor.feature_bank import FeatureBank, Ranking, read_bank, read_ranking
from processor.ranking import Compute, Evaluation, Truth
from processor.retrieval.budget import ENTRIES, free_bytes
from processor.retrieval.distance import QUERY_ROWS, distance_blocks, own_rows
from processor.retrieval.ensemble import check_same_order
from processor.retrieval.expansion import expand
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import ReRanker, check_parameters
from processor.retrieval.significance import intervals
from utils.files import read_json, write_json, write_text
from utils.progress import progress

logger = logging.getLogger(__name__)

METRICS = ("naic_score", "mAP", "rank1", "mINP")  # what can be tuned for
FORMAT = 1
ROUNDS = 10  # of the search for weights, at most
SHOWN = 20

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


@dataclass(frozen=True)
class Row:
    """How well a setting ranked: RankResult.to_dict() and, for its means, the 95 % bootstrap intervals."""

    setting: Setting
    figures: dict[str, float]
    ci95: dict[str, list[float]]


@dataclass(frozen=True)
class Grid:
    """What to try.

    weights: one a model, kept as they are; None: searched.
    """

    k1: Sequence[int] = (10, 20, 30)
    k2: Sequence[int] = (2, 6)
    lambdas: Sequence[float] = (0.1, 0.3, 0.5)
    weights: Sequence[float] | None = None

    def pairs(self) -> list[tuple[int, int]]:
        """(k1, k2) in order, each once, without those that have no meaning.

        Raises:
            ValueError: a parameter is out of its range, or nothing is left.
        """
        for k1 in self.k1:
            for lambda_value in self.lambdas:
                check_parameters(k1, 1, lambda_value)
        if min(self.k2) < 1:
            raise ValueError(f"k2={min(self.k2)}: must be at least 1, the image itself")
        pairs = list(dict.fromkeys((k1, k2) for k1 in self.k1 for k2 in self.k2))
        left_out = [pair for pair in pairs if pair[1] > pair[0] + 1]
        if left_out:
            logger.info("left out, for k2 may be k1 + 1 at most: (k1, k2) = %s", ", ".join(map(str, left_out)))
        if len(left_out) == len(pairs):
            raise ValueError(f"no k2 of {list(self.k2)} goes with a k1 of {list(self.k1)}: k2 may be k1 + 1 at most")
        return [pair for pair in pairs if pair not in left_out]


# ------------------------------------------------------------------ the models
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


class ValidationSet:
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
            "evaluation": asdict(self.evaluation),
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
        counters = {setting: RankAccumulator(**vars(truth), k=self.evaluation.top_k,
                                             drop_same_camera=self.evaluation.drop_same_camera)
                    for setting in settings}
        mixed = Mixer(settings, len(truth.g_pids), self.compute.device or "cpu")
        blocks = zip(*(model.parts(one) for model, one in zip(self.models[domain], encoding, strict=True)), strict=True)
        total = len(own_rows(len(truth.q_pids), self.compute.workers))
        for together in progress(blocks, f"{domain}, {_say(settings[0])}, settings: {len(settings)}", "blocks", total):
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


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
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
        self.by_re_ranking = _grouped(settings, lambda setting: setting.re_ranking)
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
    settings = {name: index["evaluation"] for name, index in indices.items()}
    first = next(iter(settings.values()))
    if any(one != first for one in settings.values()):
        raise ValueError(f"the inputs were tested with different settings: {settings}")
    return Evaluation(**first)


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
    q = bank.num_query
    return Truth(bank.pids[:q], bank.pids[q:], bank.camids[:q], bank.camids[q:])


# ------------------------------------------------------------------ results
class Results:
    """What was measured on one validation set, kept in tuning.json and tuning.csv as it comes.

    Args:
        folder: where they are; what is there already of the same inputs is taken over.
        metric: the rows are written best first by it.
    Raises:
        ValueError: tuning.json is of other inputs, or damaged.
    """

    def __init__(self, folder: Path, validation: ValidationSet, metric: str):
        self.path, self.validation, self.metric = folder / "tuning.json", validation, metric
        self.asked: dict[Setting, None] = {}  # in this run
        self.rows: dict[Setting, Row] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        content, advice = read_json(self.path), "name another --output, or delete it"
        try:
            if (content["format"], content["validation"]) != (FORMAT, self.validation.fingerprint):
                raise ValueError(f"{self.path} holds the results of other inputs, of another order of them or of other "
                                 f"domains; {advice}")
            for row in content["rows"]:
                re_ranking = tuple(tuple(one) if one else None for one in row["re_ranking"])
                setting = Setting(re_ranking, tuple(row["weights"]))
                self.rows[setting] = Row(setting, row["figures"], row["ci95"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error!r}); {advice}") from error
        logger.info("%s: %d rankings measured before need not be measured again", self.path, len(self.rows))

    def measure(self, settings: Iterable[Setting]) -> list[Row]:
        """A row for each setting; what is not known yet is measured, one pass for each encoding, and written."""
        settings = list(settings)
        self.asked.update(dict.fromkeys(settings))
        missing = [one for one in dict.fromkeys(settings) if one not in self.rows]
        for some in _grouped(missing, lambda setting: setting.encoding).values():
            for setting, result in self.validation.measure(some):
                self.rows[setting] = Row(setting, result.to_dict(), intervals(result))
            self._write()
        return [self.rows[one] for one in settings]

    def score(self, row: Row) -> tuple[float, float]:
        """What is compared: the metric, then mAP."""
        return row.figures[self.metric], row.figures["mAP"]

    def best_first(self, settings: Iterable[Setting]) -> list[Row]:
        return sorted((self.rows[one] for one in settings), key=self.score, reverse=True)

    def _write(self) -> None:
        if self.validation.compute.workers.is_main:
            rows = self.best_first(self.rows)
            write_json(self.path, {
                "format": FORMAT, "models": self.validation.names, "validation": self.validation.fingerprint,
                "metric": self.metric, "rows": [{**asdict(row.setting), "figures": row.figures, "ci95": row.ci95}
                                                for row in rows]})
            write_text(self.path.with_suffix(".csv"), self._csv(rows))

    def _csv(self, rows: Sequence[Row]) -> str:
        columns = list(rows[0].figures)
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["k1", "k2", "lambda", *(f"weight of {name}" for name in self.validation.names), *columns,
                        *(f"{self.metric} {bound}" for bound in ("low", "high"))])
        for row in rows:
            table.writerow([*_shown(row.setting), *row.setting.weights, *row.figures.values(), *row.ci95[self.metric]])
        return out.getvalue()


# ------------------------------------------------------------------ the search
def moves(weights: Weights) -> list[Weights]:
    """The next weights to try: each model's times 0, 1/2 and 2, scaled to sum 1. A weight of 0 stays 0."""
    found: dict[Weights, None] = {}
    for i, weight in enumerate(weights):
        for factor in (0, Fraction(1, 2), 2):
            changed = [*weights[:i], weight * factor, *weights[i + 1:]]
            if total := sum(changed):
                found[tuple(one / total for one in changed)] = None
    found.pop(weights, None)
    return list(found)


def best_weights(results: Results, grid: Grid, encoding: tuple[int, int], also: Sequence[Setting] = ()) -> Row:
    """The best row for one (k1, k2): every lambda with equal weights, then a search over weights.

    Each round tries the `moves` of the best weights so far with every lambda, all in one pass over the blocks, and
    goes on from the best; it ends where a round gains nothing. The first round shares the pass of the equal weights.
    This is a hill climb: it depends on nothing but the figures, and may end in a local optimum.

    Args:
        also: settings to measure in the first pass, where they are of this encoding.
    """
    count = len(results.validation.names)
    equal: Weights = (Fraction(1, count),) * count
    candidates = [equal, *moves(equal)] if grid.weights is None else [tuple(grid.weights)]
    best = None
    for _ in range(ROUNDS):
        tried = {Setting(((*encoding, one),) * count, tuple(map(float, weights))): weights
                 for weights in candidates for one in grid.lambdas}
        rows = results.measure([*tried, *(one for one in also if one.encoding == (encoding,) * count)])
        found = max(rows[: len(tried)], key=results.score)
        if best and results.score(found) <= results.score(best):
            break
        best = found
        candidates = moves(tried[best.setting]) if grid.weights is None else []
        if not candidates:
            break
    return best


@dataclass(frozen=True)
class Tuning:
    """The answer.

    rows: all that this run asked for, best first.  best: of the grid.
    plain, tested: to compare with, both with the weights as given, or equal ones: without re-ranking, and with the
        re-ranking that each model was tested with.
    """

    models: list[str]
    metric: str
    rows: list[Row]
    best: Row
    plain: Row
    tested: Row
    path: Path  # of tuning.json


def tune(inputs: Sequence[Path], output: Path, grid: Grid = Grid(), metric: str = "naic_score", domain: str = "all",
         compute: Compute = HERE) -> Tuning:
    """Search k1, k2, lambda and the weights of an ensemble on tested models whose truth is known.

    Each model's neighbours are searched once, for the largest k1, and encoded once for every (k1, k2). All models are
    walked through side by side, a block of queries at a time, and all lambdas and weights are tried on the same block.
    What is done is kept in `output`: a run with the same inputs goes on from there.

    Args:
        inputs: OUTPUT_DIRs of tools/test.py, of the same images.
        output: folder for tuning.json and tuning.csv.
        grid: what to try.
        metric: one of METRICS.
        domain: "all": the figures are those of all domains together, each weighed by its valid queries.
        compute: how; its workers share the queries.
    Raises:
        ValueError: as `Grid.pairs`, `ValidationSet` and `Results`, and for weights that do not fit the inputs.
    """
    weights = _given_weights(grid, len(inputs))
    pairs = grid.pairs()
    validation = ValidationSet(inputs, max(k1 for k1, _ in pairs), domain, compute)
    results = Results(output, validation, metric)
    plain, tested = Setting((None,) * len(inputs), weights), Setting(validation.tested, weights)
    results.measure([plain])
    bests = []
    for pair in progress(pairs, "tuning", "settings of k1 and k2"):
        bests.append(best_weights(results, grid, pair, [tested]))
        logger.info("best for %s", _line(bests[-1], metric))
    results.measure([tested])
    return Tuning(validation.names, metric, results.best_first(results.asked), max(bests, key=results.score),
                  results.rows[plain], results.rows[tested], results.path)


def _given_weights(grid: Grid, count: int) -> tuple[float, ...]:
    """The weights that are not searched for: the user's, or equal ones."""
    if grid.weights is None:
        return (1 / count,) * count
    if len(grid.weights) != count:
        raise ValueError(f"{len(grid.weights)} weights for {count} inputs")
    if not all(map(math.isfinite, grid.weights)) or not any(grid.weights):
        raise ValueError(f"weights {list(grid.weights)}: all must be finite, and one at least not 0")
    return tuple(map(float, grid.weights))


# ------------------------------------------------------------------ for a person
def _shown(setting: Setting) -> list[str]:
    """k1, k2 and lambda as a table shows them: "-" without re-ranking, and with "/" where models differ."""
    per_model = [one or ("-", "-", "-") for one in setting.re_ranking]
    columns = [[str(value) for value in column] for column in zip(*per_model, strict=True)]
    return [column[0] if len(set(column)) == 1 else "/".join(column) for column in columns]


def _say(setting: Setting) -> str:
    k1, k2, _ = _shown(setting)
    return f"k1 {k1}, k2 {k2}" if any(setting.re_ranking) else "without re-ranking"


def _weights(setting: Setting) -> str:
    return " ".join(f"{weight:.3f}" for weight in setting.weights)


def _line(row: Row, metric: str) -> str:
    weights = f", weights {_weights(row.setting)}" if len(row.setting.weights) > 1 else ""
    return f"{_say(row.setting)}: lambda {_shown(row.setting)[2]}{weights}, {metric} {100 * row.figures[metric]:.2f}%"


def format_tuning(tuning: Tuning) -> str:
    """The table of the best and of what they are compared with, and what to paste; figures in per cent."""
    marks: dict[Setting, str] = {}
    for row, mark in ((tuning.best, "best of the grid"), (tuning.tested, "as tested"),
                      (tuning.plain, "without re-ranking")):
        marks[row.setting] = ", ".join(filter(None, (marks.get(row.setting), mark)))
    metrics = list(tuning.best.ci95)
    table = [["k1", "k2", "lambda", "weights", *metrics, ""]]
    for row in [*tuning.rows[:SHOWN], *(row for row in tuning.rows[SHOWN:] if row.setting in marks)]:
        figures = (f"{100 * row.figures[name]:.2f}" for name in metrics)
        table.append([*_shown(row.setting), _weights(row.setting), *figures, marks.get(row.setting, "")])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([*(f"{cell:>{width}}" for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip()
             for row in table]
    hidden = len(tuning.rows) - len(table) + 1
    return "\n".join([*lines, *([f"… and {hidden} more"] if hidden else []), "", *_conclusion(tuning)])


def _conclusion(tuning: Tuning) -> list[str]:
    best, metric = tuning.best, tuning.metric
    low, high = (100 * bound for bound in best.ci95[metric])
    lines = [f"The best has {metric} {100 * best.figures[metric]:.2f}, 95 % interval [{low:.2f}, {high:.2f}]: a "
             f"bootstrap over {best.figures['num_valid']} queries, which does",
             f"not know that this is the best of {len(tuning.rows)}. These values fit these images: take them from a "
             f"validation set, never", "from the test set you report on.", ""]
    for row, what in ((tuning.plain, "Without re-ranking"), (tuning.tested, "As tested")):
        if row.setting != best.setting and row.figures[metric] >= best.figures[metric]:
            lines += [f"{what}, {metric} is {100 * row.figures[metric]:.2f}: nothing in the grid is better.", ""]
    k1, k2, lambda_value = best.setting.re_ranking[0]
    lines += ["For tools/test.py:", f'  TEST.RE_RANKING True TEST.RE_RANKING_PARAMETER "[{k1}, {k2}, {lambda_value}]"']
    if len(tuning.models) > 1:
        used = [(name, weight) for name, weight in zip(tuning.models, best.setting.weights, strict=True) if weight]
        lines += ["For tools/ensemble.py, once these models are tested so"
                  + (" (the others have weight 0):" if len(used) < len(tuning.models) else ":"),
                  f"  --inputs {' '.join(shlex.quote(name) for name, _ in used)} "
                  f"--weights {' '.join(str(weight) for _, weight in used)}"]
    return [*lines, "", f"Everything: {tuning.path} and {tuning.path.with_suffix('.csv').name}"]
