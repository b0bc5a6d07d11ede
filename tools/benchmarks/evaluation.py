"""The benchmark of evaluating: a test set's ranking and its figures, beside what re-ID code commonly does."""
from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from processor.retrieval.search.budget import free_bytes
from tools.benchmarks.evaluation_measure import ROWS, Setting
from tools.benchmarks.harness import Entry, check_names, measure_in_turns, new_report

logger = logging.getLogger(__name__)

COLUMNS = ("product", "figures", "lists", "rest", "peak_bytes", "rank1", "mAP", "mINP")


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure; the fields are the command line's options. The sizes are those of MSMT17's test."""

    queries: int = 11_659
    gallery: int = 82_161
    identities: int = 3060
    cameras: int = 15
    dim: int = 2048
    baseline_queries: int = 1457  # of them; an eighth
    rows: Sequence[str] = tuple(ROWS)
    repeats: int = 3
    device: str = "cpu"


def make_options(rows: Sequence[str] | None, **others: Any) -> EvaluationOptions:
    """The options of a command line; None means all.

    Raises:
        ValueError: a row is unknown.
    """
    check_names("row", rows or (), ROWS)
    return EvaluationOptions(rows=tuple(rows or ROWS), **others)


def run_benchmark(options: EvaluationOptions) -> dict[str, Any]:
    """Measure the rows in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options) and "rows" (one dict a row; its "note" says why if
        there are no figures).
    Raises:
        ValueError: a number is out of range.
    """
    if min(options.identities, options.cameras, options.dim, options.repeats, options.baseline_queries) < 1:
        raise ValueError("at least one identity, camera, dimension, query of the baseline and repeat is needed")
    if options.identities > options.gallery or options.baseline_queries > options.queries:
        raise ValueError(f"{options.identities:,} identities need as many gallery images, not {options.gallery:,}, and "
                         f"the baseline's {options.baseline_queries:,} queries are among {options.queries:,}")
    setting = Setting(options.queries, options.gallery, options.identities, options.cameras, options.dim,
                      options.queries)
    entries = []
    for name in options.rows:
        row = ROWS[name]
        own = setting if row.all_queries else replace(setting, ranked=options.baseline_queries)
        needed = 4 * (own.queries + own.gallery) * own.dim + row.bytes_needed(own)
        free = free_bytes(torch.device("cpu"))
        note = "" if needed <= free else f"does not fit: {needed / 2**30:.1f} of {free / 2**30:.1f} GiB free"
        entries.append(Entry(name, row.title, own, note))
    report = new_report(options)
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        measure_in_turns("tools.benchmarks.evaluation_measure", entries, options.repeats, Path(folder),
                         f"{options.queries:,} x {options.gallery:,}",
                         lambda run: f"product {run['product']:.1f} s, all else {run['rest']:.1f} s")
    report["rows"] = [_row(entry) for entry in entries]
    return report


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the table; medians if there are figures."""
    row = entry.row(row=entry.name, queries=entry.setting.ranked)
    return row if entry.note else row | {name: entry.median(name) for name in COLUMNS}
