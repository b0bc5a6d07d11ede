"""Which k1, k2, lambda and weights rank a validation set best.

`TuningSet` measures many of them in a pass, from a single candidate search a model; `Results` remembers what was
measured; `best_weights` and `tune` decide what to try next.
"""
from __future__ import annotations

import csv
import io
import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from processor.evaluation.sources import HERE, Compute
from processor.evaluation.tuning_set import Setting, TuningSet, Weights, group_by
from processor.retrieval.ensemble import check_weights
from processor.retrieval.metrics import format_queries
from processor.retrieval.reranking import check_parameters
from processor.retrieval.significance import intervals
from utils.files import read_json, write_json, write_text
from utils.progress import progress

logger = logging.getLogger(__name__)

METRICS = ("naic_score", "mAP", "rank1", "mINP")  # what can be tuned for
FORMAT = 1
ROUNDS = 10  # of the search for weights, at most
TABLE_ROWS = 20
_MOST = 1e9  # of a number in tuning.json


@dataclass(frozen=True)
class Row:
    """How well a setting ranked: RankResult.to_dict() and, for its means, the 95 % bootstrap intervals."""

    setting: Setting
    figures: dict[str, float]
    ci95: dict[str, list[float]]


@dataclass(frozen=True)
class Grid:
    """What to try.

    weights: of the models, kept as they are; None: searched.
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
            logger.info("left out, because k2 may be k1 + 1 at most: (k1, k2) = %s", ", ".join(map(str, left_out)))
        if len(left_out) == len(pairs):
            raise ValueError(f"no k2 of {list(self.k2)} goes with a k1 of {list(self.k1)}: k2 may be k1 + 1 at most")
        return [pair for pair in pairs if pair not in left_out]


def below_gallery(pairs: Sequence[tuple[int, int]], num_gallery: int) -> list[tuple[int, int]]:
    """The (k1, k2) of a grid whose k1 a gallery can serve; the others are left out with a warning.

    Raises:
        ValueError: none is left.
    """
    kept = [pair for pair in pairs if pair[0] < num_gallery]
    too_large = sorted({k1 for k1, _ in pairs if k1 >= num_gallery})
    text = f"k1 must be below the number of gallery images, {num_gallery}"
    if not kept:
        raise ValueError(f"--k1 {' '.join(map(str, too_large))}: {text}")
    if too_large:
        logger.warning("left out, because %s: k1 = %s", text, ", ".join(map(str, too_large)))
    return kept


# ------------------------------------------------------------------ results
class Results:
    """What was measured on a validation set, kept in tuning.json and tuning.csv as it comes.

    Args:
        folder: of the files; what is there already of the same inputs is taken over.
        metric: the rows are written best first by it.
    Raises:
        ValueError: tuning.json is of other inputs, or damaged.
    """

    def __init__(self, folder: Path, validation: TuningSet, metric: str):
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
            for content_row in content["rows"]:
                row = _row_of(content_row)
                self.rows[row.setting] = row
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error!r}); {advice}") from error
        logger.info("%s: %d rankings measured before need not be measured again", self.path, len(self.rows))

    def measure(self, settings: Iterable[Setting]) -> list[Row]:
        """A row for each setting; what is not known yet is measured, in a pass for each encoding, and written."""
        settings = list(settings)
        self.asked.update(dict.fromkeys(settings))
        missing = [setting for setting in dict.fromkeys(settings) if setting not in self.rows]
        for group in group_by(missing, lambda setting: setting.encoding).values():
            for setting, result in self.validation.measure(group):
                self.rows[setting] = Row(setting, result.to_dict(), intervals(result))
            self._write()
        return [self.rows[setting] for setting in settings]

    def score(self, row: Row) -> tuple[float, float]:
        """What is compared: the metric, then mAP."""
        return row.figures[self.metric], row.figures["mAP"]

    def best_first(self, settings: Iterable[Setting]) -> list[Row]:
        return sorted((self.rows[setting] for setting in settings), key=self.score, reverse=True)

    def _write(self) -> None:
        if self.validation.compute.workers.is_main:
            rows = self.best_first(self.rows)
            # The table first: a run that was killed after tuning.json finds all measured and writes nothing.
            write_text(self.path.with_suffix(".csv"), self._csv(rows))
            write_json(self.path, {
                "format": FORMAT, "models": self.validation.names, "validation": self.validation.fingerprint,
                "metric": self.metric, "rows": [{**asdict(row.setting), "figures": row.figures, "ci95": row.ci95}
                                                for row in rows]})

    def _csv(self, rows: Sequence[Row]) -> str:
        columns = list(rows[0].figures)
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["k1", "k2", "lambda", *(f"weight of {name}" for name in self.validation.names), *columns,
                        *(f"{self.metric} {bound}" for bound in ("low", "high"))])
        for row in rows:
            table.writerow([*row.setting.format_parameters(), *row.setting.weights, *row.figures.values(),
                            *row.ci95[self.metric]])
        return out.getvalue()


def _row_of(content: dict) -> Row:
    """A row of tuning.json.

    Raises:
        KeyError, TypeError: something is missing, or is none of what was written.
    """
    re_ranking = tuple(_numbers(parameters, 3) if parameters else None for parameters in content["re_ranking"])
    figures, bounds = content["figures"], content["ci95"]
    if not isinstance(figures, dict) or not isinstance(bounds, dict):
        raise TypeError(f"figures and ci95 are a {type(figures).__name__} and a {type(bounds).__name__}")
    missing = {*METRICS, "num_valid", "num_queries"} - figures.keys() or set(METRICS) - bounds.keys()
    if missing:
        raise KeyError(min(missing))
    _numbers(list(figures.values()), len(figures))
    for pair in bounds.values():
        _numbers(pair, 2)
    return Row(Setting(re_ranking, _numbers(content["weights"], len(content["weights"]))), figures, bounds)


def _numbers(values: list, count: int) -> tuple:
    if not isinstance(values, list) or len(values) != count or not all(
            type(value) in (int, float) and abs(value) < _MOST for value in values):
        raise TypeError(f"{str(values)[:60]} where {count} numbers were written")
    return tuple(values)


# ------------------------------------------------------------------ the search
def moves(weights: Weights) -> list[Weights]:
    """The next weights to try: each model's times 0, 1/2 and 2, scaled to sum 1. A weight of 0 stays 0."""
    tried: dict[Weights, None] = {}
    for i, weight in enumerate(weights):
        for factor in (0, Fraction(1, 2), 2):
            changed = [*weights[:i], weight * factor, *weights[i + 1:]]
            if total := sum(changed):
                tried[tuple(weight / total for weight in changed)] = None
    tried.pop(weights, None)
    return list(tried)


def best_weights(results: Results, grid: Grid, encoding: tuple[int, int], also: Sequence[Setting] = ()) -> Row:
    """The best row of a (k1, k2): every lambda with equal weights, then a search over weights.

    Each round tries the `moves` of the best weights so far with every lambda, all in a pass over the blocks, and goes
    on from the best; it ends if a round gains nothing. The first round shares the pass of the equal weights.
    This is a hill climb: it depends on nothing but the figures, and may end in a local optimum.

    Args:
        also: settings to measure in the first pass, if they are of this encoding.
    """
    count = len(results.validation.names)
    equal: Weights = (Fraction(1, count),) * count
    candidates = [equal, *moves(equal)] if grid.weights is None else [tuple(grid.weights)]
    best = None
    for _ in range(ROUNDS):
        tried = {Setting(((*encoding, lambda_value),) * count, tuple(map(float, weights))): weights
                 for weights in candidates for lambda_value in grid.lambdas}
        rows = results.measure([*tried, *(setting for setting in also if setting.encoding == (encoding,) * count)])
        row = max(rows[: len(tried)], key=results.score)
        if best and results.score(row) <= results.score(best):
            break
        best = row
        candidates = moves(tried[best.setting]) if grid.weights is None else []
        if not candidates:
            break
    return best


@dataclass(frozen=True)
class Tuning:
    """The answer.

    rows: all that this run asked for, best first.  best: of the grid.
    plain, tested: to compare with, both with the weights as given, or equal weights: without re-ranking, and with the
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
        metric: of METRICS.
        domain: "all": the figures are those of all domains together, each weighed by its valid queries.
        compute: how; its workers share the queries.
    Raises:
        ValueError: as `Grid.pairs`, `below_gallery`, `TuningSet` and `Results`, and for weights that do not fit.
    """
    weights = _given_weights(grid, len(inputs))
    pairs = grid.pairs()
    validation = TuningSet(inputs, 1, domain, compute)
    pairs = below_gallery(pairs, validation.smallest_gallery)
    validation.k1 = max(validation.k1, *(k1 for k1, _ in pairs))
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
    """The weights that are not searched for: the user's, or equal weights."""
    if grid.weights is None:
        return (1 / count,) * count
    weights = tuple(check_weights(count, grid.weights))
    if not any(weights):
        raise ValueError(f"weights {list(grid.weights)}: one at least must not be 0")
    return weights


# ------------------------------------------------------------------ for a person
def _line(row: Row, metric: str) -> str:
    setting = row.setting
    weights = f", weights {setting.format_weights()}" if len(setting.weights) > 1 else ""
    return (f"{setting.format_encoding()}: lambda {setting.format_parameters()[2]}{weights}, {metric} "
            f"{100 * row.figures[metric]:.2f}%")


def format_tuning(tuning: Tuning) -> str:
    """The table of the best and of what they are compared with, and what to paste; figures in per cent."""
    marks: dict[Setting, str] = {}
    for row, mark in ((tuning.best, "best of the grid"), (tuning.tested, "as tested"),
                      (tuning.plain, "without re-ranking")):
        marks[row.setting] = ", ".join(filter(None, (marks.get(row.setting), mark)))
    metrics = list(tuning.best.ci95)
    table = [["k1", "k2", "lambda", "weights", *metrics, ""]]
    for row in [*tuning.rows[:TABLE_ROWS], *(row for row in tuning.rows[TABLE_ROWS:] if row.setting in marks)]:
        figures = (f"{100 * row.figures[name]:.2f}" for name in metrics)
        table.append([*row.setting.format_parameters(), row.setting.format_weights(), *figures,
                      marks.get(row.setting, "")])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([*(f"{cell:>{width}}" for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip()
             for row in table]
    hidden = len(tuning.rows) - len(table) + 1
    return "\n".join([*lines, *([f"… and {hidden} more"] if hidden else []), "", *_conclusion(tuning)])


def _conclusion(tuning: Tuning) -> list[str]:
    best, metric = tuning.best, tuning.metric
    low, high = (100 * bound for bound in best.ci95[metric])
    lines = [f"The best has {metric} {100 * best.figures[metric]:.2f}, 95 % interval [{low:.2f}, {high:.2f}]: a "
             f"bootstrap over {format_queries(best.figures)}, which does",
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
