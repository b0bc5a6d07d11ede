"""The benchmark of re-ranking: which implementations at which sizes, and the report of them."""
from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from processor.retrieval.search.budget import free_bytes
from tools.benchmarks.harness import Entry, Job, check_names, choose_device, measure_in_turns, new_report, run_child
from tools.benchmarks.retrieval_baseline import PRODUCTS
from tools.benchmarks.retrieval_measure import IMPLEMENTATIONS, RATES, Setting

MODULE = "tools.benchmarks.retrieval_measure"
SIZES = (5_000, 10_000, 20_000, 50_000)
LARGE = {"cpu": (100_000,), "cuda": (100_000, 1_000_000)}
SINGLE_FROM = 50_000            # this large, one run must do
QUALITY = ("none", "tiles")     # measured at the first size only, for their mAP


@dataclass(frozen=True)
class RetrievalOptions:
    """What to measure; the fields are the command line's options."""

    sizes: Sequence[int] = SIZES
    dim: int = 2048
    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3
    device: str = "cpu"
    repeats: int = 3
    implementations: Sequence[str] = tuple(IMPLEMENTATIONS)
    square: int = 4096

    def setting(self, size: int) -> Setting:
        return Setting(size, self.dim, self.k1, self.k2, self.lambda_value, self.device, self.square)


def make_options(device: str, sizes: Sequence[int] | None, large: bool, implementations: Sequence[str] | None,
                 **others: Any) -> RetrievalOptions:
    """The options of a command line; None means all.

    Raises:
        ValueError: device is "cuda" and there is none.
    """
    device = choose_device(device)
    sizes = tuple(sizes or SIZES) + (LARGE[device] if large else ())
    return RetrievalOptions(sizes=sizes, device=device, implementations=tuple(implementations or IMPLEMENTATIONS),
                            **others)


def run_benchmark(options: RetrievalOptions) -> dict[str, Any]:
    """Measure the implementations in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "rates" (one dict a size) and "rows" (one dict for
        each size and implementation; its "note" says why if there are no figures).
    Raises:
        ValueError: a size, the repeats or a name of an implementation is out of range.
        RuntimeError: the rate of products could not be measured.
    """
    check_names("implementation", options.implementations, IMPLEMENTATIONS)
    if min(options.sizes) < 20 or min(options.repeats, options.dim, options.square) < 1:
        raise ValueError("at least 20 images, one repeat, one dimension and a square of one are needed")
    report = {**new_report(options), "rates": []}
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        for size in options.sizes:
            names = [name for name in options.implementations if name not in QUALITY or size == options.sizes[0]]
            repeats = options.repeats if size < SINGLE_FROM else 1
            rates, rows = _measure_size(options.setting(size), names, repeats, Path(folder))
            report["rates"].append(rates)
            report["rows"] += rows
    return report


def _measure_size(
    setting: Setting, names: Sequence[str], repeats: int, folder: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The products' rates and the rows of all implementations at one size."""
    entries = [Entry(name, IMPLEMENTATIONS[name].title, setting, _why_not(name, setting)) for name in names]
    turns: list[dict[str, float]] = []  # the rates of each

    def measure_rates() -> None:
        turns.append(run_child(MODULE, Job(RATES, setting, str(folder / "rates.json"))))
        for entry in entries:
            entry.setting = replace(setting, product=max(PRODUCTS, key=turns[0].get))

    measure_in_turns(MODULE, entries, repeats, folder, f"N = {setting.size}",
                     lambda run: f"{run['seconds']:.2f} s, {run['peak_bytes'] / 2**20:.0f} MiB", measure_rates)
    rates = {"size": setting.size, "dense_product": max(PRODUCTS, key=turns[0].get)} | {
        name: statistics.median(turn[name] for turn in turns if name in turn) for name in turns[0]}
    # The symmetric product needs N² / 2 dot products of 2 d FLOP.
    floor = setting.size**2 * setting.dim / max(rates["float32_tile"], rates["float32_square"])
    rows = [_row(entry, floor) for entry in entries]
    _compare_nearest([row for row in rows if not row["note"]], folder)
    return rates, rows


def _why_not(name: str, setting: Setting) -> str:
    """Why an implementation is not run at this size; empty if it is."""
    implementation = IMPLEMENTATIONS[name]
    needed = 4 * setting.size * setting.dim + implementation.bytes_needed(setting)
    free = free_bytes(torch.device("cpu" if implementation.cpu_only else setting.device))
    return "" if needed <= free else f"does not fit: {needed / 2**30:.1f} of {free / 2**30:.1f} GiB free"


def _row(entry: Entry, floor: float) -> dict[str, Any]:
    """A line of the table; medians if there are figures."""
    row = entry.row(size=entry.setting.size, implementation=entry.name) | {"floor_seconds": floor}
    if not entry.note:
        row |= {key: entry.median(key) for key in ("seconds", "peak_bytes", "mAP")}
    return row


def _compare_nearest(rows: list[dict[str, Any]], folder: Path) -> None:
    """Enter the share of queries whose ten nearest are those of the first row, in the same order."""
    nearest = [np.load(folder / f"{row['implementation']}.npy") for row in rows]
    for row, indices in zip(rows, nearest, strict=True):
        row["same_top10"] = float((indices == nearest[0]).all(1).mean())
