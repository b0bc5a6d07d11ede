"""The benchmark of re-ranking: which measurements, one child process each, and the report of them."""
from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from processor.retrieval.search.budget import free_bytes
from tools.benchmarks.child import run_child
from tools.benchmarks.machine import describe
from tools.benchmarks.retrieval_baseline import PRODUCTS
from tools.benchmarks.retrieval_measure import IMPLEMENTATIONS, RATES, Job, Setting

logger = logging.getLogger(__name__)

SIZES = (5_000, 10_000, 20_000, 50_000)
LARGE = {"cpu": (100_000,), "cuda": (100_000, 1_000_000)}
SINGLE_FROM = 50_000            # this large, one run must do
QUALITY = ("none", "tiles")     # measured at the first size only, for their mAP


@dataclass(frozen=True)
class Plan:
    """What to measure."""

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


def make_plan(device: str, sizes: Sequence[int] | None, large: bool, implementations: Sequence[str] | None,
              **others: Any) -> Plan:
    """The plan for a command line; None means all.

    Raises:
        ValueError: device is "cuda" and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds none on this machine; use cpu")
    sizes = tuple(sizes or SIZES) + (LARGE[device] if large else ())
    return Plan(sizes=sizes, device=device, implementations=tuple(implementations or IMPLEMENTATIONS), **others)


def benchmark_retrieval(plan: Plan) -> dict[str, Any]:
    """Measure the plan's implementations in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan", "rates" (one dict a size) and "rows" (one dict for each size
        and implementation; its "note" says why where there are no figures).
    Raises:
        ValueError: a size, the repeats or a name of an implementation is out of range.
        RuntimeError: the rate of products could not be measured.
    """
    unknown = [name for name in plan.implementations if name not in IMPLEMENTATIONS]
    if unknown:
        raise ValueError(f"unknown implementation {unknown[0]!r}; choose from {', '.join(IMPLEMENTATIONS)}")
    if min(plan.sizes) < 20 or min(plan.repeats, plan.dim, plan.square) < 1:
        raise ValueError("at least 20 images, one repeat, one dimension and a square of one are needed")
    report: dict[str, Any] = {"machine": describe(plan.device), "plan": asdict(plan), "rates": [], "rows": []}
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        for size in plan.sizes:
            names = [name for name in plan.implementations if name not in QUALITY or size == plan.sizes[0]]
            repeats = plan.repeats if size < SINGLE_FROM else 1
            rates, rows = _measure_size(plan.setting(size), names, repeats, Path(folder))
            report["rates"].append(rates)
            report["rows"] += rows
    return report


def _measure_size(
    setting: Setting, names: Sequence[str], repeats: int, folder: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All implementations at one size, in turn: A B C, A B C, A B C."""
    notes = {name: _why_not(name, setting) for name in names}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    all_rates = []
    for turn in range(1, repeats + 1):
        all_rates.append(_child(Job(RATES, setting, "", str(folder / "rates.json"))))
        product = max(PRODUCTS, key=all_rates[0].get)
        for name in names:
            if notes[name]:
                continue
            what = f"N = {setting.size}, run {turn} of {repeats}: {IMPLEMENTATIONS[name].title}"
            logger.info("%s …", what)
            try:
                found = _child(Job(name, setting, product, str(folder / f"{name}.json")))
            except RuntimeError as error:
                notes[name] = str(error)
                logger.error("%s: %s", what, error)
                continue
            runs[name].append(found)
            logger.info("%s: %.2f s, %.0f MiB", what, found["seconds"], found["peak_bytes"] / 2**20)
    rates = {"size": setting.size, "dense_product": product} | {
        name: statistics.median(each[name] for each in all_rates if name in each) for name in all_rates[0]}
    # The symmetric product needs N² / 2 dot products of 2 d FLOP.
    floor = setting.size**2 * setting.dim / max(rates["float32_tile"], rates["float32_square"])
    rows = [_row(name, setting.size, notes[name], runs[name], floor) for name in names]
    _compare_nearest([row for row in rows if "seconds" in row], folder)
    return rates, rows


def _why_not(name: str, setting: Setting) -> str:
    """Why an implementation is not run at this size; empty where it is."""
    implementation = IMPLEMENTATIONS[name]
    needed = 4 * setting.size * setting.dim + implementation.bytes_needed(setting)
    free = free_bytes(torch.device("cpu" if implementation.cpu_only else setting.device))
    return "" if needed <= free else f"does not fit: {needed / 2**30:.1f} of {free / 2**30:.1f} GiB free"


def _child(job: Job) -> dict[str, float]:
    """One job's figures; see `run_child`."""
    return run_child("tools.benchmarks.retrieval_measure", job.to_json(), Path(job.result))


def _row(name: str, size: int, note: str, runs: list[dict[str, float]], floor: float) -> dict[str, Any]:
    """One line of the table; medians where there are figures."""
    row = {"size": size, "implementation": name, "title": IMPLEMENTATIONS[name].title, "note": note, "runs": runs,
           "floor_seconds": floor}
    if not note:
        row |= {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_bytes", "mAP")}
    return row


def _compare_nearest(rows: list[dict[str, Any]], folder: Path) -> None:
    """Enter the share of queries whose ten nearest are those of the first row, in the same order."""
    nearest = [np.load(folder / f"{row['implementation']}.npy") for row in rows]
    for row, own in zip(rows, nearest, strict=True):
        row["same_top10"] = float((own == nearest[0]).all(1).mean())
