"""Is run B better than run A? The per-query figures that a test leaves, and the table that compares two of them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processor.retrieval.metrics import QUERY_FIGURES, RankResult, merge_results
from processor.retrieval.significance import Difference, compare
from processor.retrieval.submission import check_unique
from utils.files import as_damage, read_json, read_object

PER_QUERY = "per_query.json"  # {domain: {kind: per_query_table(...)}}, beside metrics.json
ALPHA = 0.05


# ------------------------------------------------------------------ per_query.json
def per_query_table(result: RankResult, query_names: Sequence[str]) -> dict:
    """A domain's figures by query, ready for JSON; a query without a match has null.

    Raises:
        ValueError: not one name a query, or a name comes twice.
    """
    names = [str(name) for name in query_names]
    if len(names) != result.num_queries:
        raise ValueError(f"{len(names)} names for {result.num_queries} queries")
    check_unique("query", names)
    columns = {name: [value if valid else None for value, valid in zip(getattr(result, name).tolist(),
                                                                       result.valid.tolist(), strict=True)]
               for name in QUERY_FIGURES}
    return {"k": result.k, "queries": names, **columns}


def per_query_result(table: dict) -> tuple[list[str], RankResult]:
    """What `per_query_table` was made from: the names, and the figures without TPR@FPR.

    Raises:
        ValueError: it is not such a table.
    """
    if not isinstance(table, dict) or set(table) != {"k", "queries", *QUERY_FIGURES}:
        raise ValueError(f"expected the fields k, queries, {', '.join(QUERY_FIGURES)}")
    names, k = table["queries"], table["k"]
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number from 1, got {k!r}")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("queries must be a list of names")
    check_unique("query", names)
    for column in QUERY_FIGURES:
        if not isinstance(table[column], list) or len(table[column]) != len(names):
            raise ValueError(f"{column}: expected {len(names)} numbers, one a query")
    try:
        ap, ap_at_k, inp = (np.array(table[column], np.float64) for column in QUERY_FIGURES[:3])
        first_hit = np.array([0 if rank is None else rank for rank in table["first_hit"]], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a figure is not a number: {error}") from error
    if any(column.shape != (len(names),) for column in (ap, ap_at_k, inp, first_hit)):
        raise ValueError("a figure is not a number, but a list of them")
    result = RankResult(ap, ap_at_k, inp, first_hit, (len(names),), max_rank=50, k=k)
    if not result.valid.any() or (np.isnan([ap, ap_at_k, inp]) == result.valid).any():
        raise ValueError("null must stand in all columns of a query without a match, and not in all queries")
    return names, result


# ------------------------------------------------------------------ two runs
@dataclass
class Run:
    """The per-query figures of a tested model or an ensemble: domains[domain][kind] = (query names, figures)."""

    folder: Path
    domains: dict[str, dict[str, tuple[list[str], RankResult]]]

    def kinds(self) -> list[str]:
        """The rankings that every domain has, in the order in which they were made."""
        first, *others = self.domains.values()
        return [kind for kind in first if all(kind in other for other in others)]


def read_run(folder: Path) -> Run:
    """Read a run's per_query.json.

    Raises:
        ValueError: it is missing or damaged, or metrics.json beside it is of another run.
    """
    path = folder / PER_QUERY
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run tools/test.py (or tools/ensemble.py) again to write it, on a "
                         f"test folder whose truth is known")
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(kinds, dict) for kinds in content.values()):
        raise ValueError(f"{path}: expected {{domain: {{kind: figures by query}}}}")
    run = Run(folder, {domain: {} for domain in content})
    for domain, kinds in content.items():
        for kind, table in kinds.items():
            try:
                run.domains[domain][kind] = per_query_result(table)
            except ValueError as error:
                raise ValueError(f"{path}: {domain}, {kind}: {error}") from error
    _check_metrics(run)
    return run


def _check_metrics(run: Run) -> None:
    """Refuse a per_query.json that is older or newer than the metrics.json beside it."""
    path = run.folder / "metrics.json"
    metrics = read_object(path) if path.is_file() else {}
    for domain, kinds in run.domains.items():
        for kind, (_, result) in kinds.items():
            with as_damage(path, "run tools/test.py again"):
                mean_ap = metrics.get(domain, {}).get(kind, {}).get("mAP", result.mAP)
                agrees = abs(mean_ap - result.mAP) <= 1e-9
            if not agrees:
                raise ValueError(f"{path} has mAP {mean_ap:.6f} for {domain}, {kind}, but {PER_QUERY} beside it has "
                                 f"{result.mAP:.6f}: they are of different runs; run tools/test.py again")


@dataclass(frozen=True)
class Comparison:
    a: Path
    b: Path
    kind: str
    num_queries: dict[str, int]  # those with a match, by domain
    differences: list[Difference]


def compare_runs(a: Path, b: Path, kind: str | None = None, seed: int = 0) -> Comparison:
    """Compare two tested models on the queries that both ranked.

    Args:
        a, b: folders with per_query.json: OUTPUT_DIR of tools/test.py, or of an answer of tools/ensemble.py.
        kind: which ranking, "plain" or "re_ranked"; None = the last that both have.
        seed: of the bootstrap and of the test.
    Raises:
        ValueError: a file is missing or damaged, a run lacks the kind, or the queries differ; the first difference
            is named.
    """
    runs = read_run(a), read_run(b)
    if runs[0].domains.keys() != runs[1].domains.keys():
        raise ValueError(f"{a} has the domains {sorted(runs[0].domains)} and {b} has {sorted(runs[1].domains)}")
    kind = _common_kind(runs, kind)
    results: tuple[list, list] = [], []
    for domain in runs[0].domains:
        tables = [run.domains[domain][kind] for run in runs]
        _check_same_queries(runs, domain, tables)
        names = tables[0][0]
        results[0].append(tables[0][1])
        results[1].append(_in_order(*tables[1], names))
    merged = [merge_results(parts) for parts in results]
    valid = {domain: part.num_valid for domain, part in zip(runs[0].domains, results[0], strict=True)}
    return Comparison(a, b, kind, valid, compare(*merged, seed=seed))


def _common_kind(runs: Sequence[Run], kind: str | None) -> str:
    common = [name for name in runs[0].kinds() if name in runs[1].kinds()]
    if not common or kind not in (None, *common):
        kinds = " and ".join(f"{run.folder} has {', '.join(run.kinds()) or 'none'}" for run in runs)
        raise ValueError(f"the runs have no ranking {kind or 'of any kind'} in common: {kinds}")
    return kind or common[-1]


def _check_same_queries(runs: Sequence[Run], domain: str, tables: Sequence[tuple[list[str], RankResult]]) -> None:
    valid = [dict(zip(names, result.valid.tolist(), strict=True)) for names, result in tables]
    for i, j in ((0, 1), (1, 0)):
        for name in valid[i]:
            if name not in valid[j]:
                raise ValueError(f"{domain}: query {name!r} is in {runs[i].folder} and not in {runs[j].folder}: the "
                                 f"runs ranked different queries")
    for name, has_match in valid[0].items():
        if has_match != valid[1][name]:
            with_match, without = runs if has_match else runs[::-1]
            raise ValueError(f"{domain}: query {name!r} has a match to find in {with_match.folder} and none in "
                             f"{without.folder}: the runs have different galleries or TEST.DROP_SAME_CAMERA")
    if tables[0][1].k != tables[1][1].k:
        raise ValueError(f"{runs[0].folder} was tested with TEST.TOP_K={tables[0][1].k} and {runs[1].folder} with "
                         f"{tables[1][1].k}: their mAP@k cannot be compared; test either of them again")


def _in_order(names: list[str], result: RankResult, wanted: list[str]) -> RankResult:
    """The same figures with the queries in another order."""
    position = {name: index for index, name in enumerate(names)}
    rows = np.array([position[name] for name in wanted])
    columns = (getattr(result, column)[rows] for column in QUERY_FIGURES)
    return RankResult(*columns, result.domain_sizes, result.max_rank, result.k)


def format_comparison(comparison: Comparison) -> str:
    """The table as a person reads it; figures in per cent, differences in percentage points."""
    queries = ", ".join(f"{domain} {count}" for domain, count in comparison.num_queries.items())
    lines = [f"A = {comparison.a}", f"B = {comparison.b}",
             f"ranking: {comparison.kind.replace('_', '-')}; queries with a match: {queries}", "",
             f"{'metric':<12}{'A':>8}{'B':>8}{'B-A':>8}   {'95 % interval':<18}{'p':>8}{'p (Holm)':>10}   verdict"]
    for change in comparison.differences:
        a, b, low, high = (100 * value for value in (change.a, change.b, change.low, change.high))
        lines.append(f"{change.metric:<12}{a:>8.2f}{b:>8.2f}{b - a:>+8.2f}   {f'[{low:+.2f}, {high:+.2f}]':<18}"
                     f"{change.p:>8.4f}{change.p_holm:>10.4f}   {change.verdict(ALPHA)}")
    lines += ["", "Interval: paired bootstrap over queries. p: paired sign-flip permutation test, two-sided.",
              f"{len(comparison.differences)} metrics are tested at once, so the verdict asks for p (Holm) < {ALPHA}: "
              f"p adjusted by Holm's procedure.",
              "The test knows these queries only: another seed of the training may differ by more."]
    return "\n".join(lines)
