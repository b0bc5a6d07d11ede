"""The report of a training benchmark as GitHub markdown."""
from __future__ import annotations

import statistics
from typing import Any

from tools.benchmarks.reports import table
from tools.benchmarks.training import BASELINES, HALF
from tools.benchmarks.training_measure import ARMS, PHASES, RECIPE

_TEXTS = ("model", "implementation")
_PERCENT = "{:.1f} %"


def to_markdown(report: dict[str, Any]) -> str:
    """What `benchmark_training` returned: the machine, the setting, the products' rates and one table."""
    plan = report["plan"]
    baselines = [name for name in BASELINES if name in plan["arms"]]
    times = [f"times {ARMS[name].title}" for name in baselines]
    header = ["model", "size", "identities", "implementation", "runs", "images/s", *times, *PHASES, "TFLOP/s",
              "of peak", "first step s", "its loss"]
    rows = [_cells(row, baselines, len(header)) for row in report["rows"]]
    lines = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [_setting_line(report), _peaks_line(report), "", *table(header, rows, _TEXTS)]
    return "\n".join(lines)


def _setting_line(report: dict[str, Any]) -> str:
    plan = report["plan"]
    workers = {row["workers"] for row in report["rows"] if not row["note"]}
    loaders = f", {workers.pop()} loader processes" if workers else ""
    return (f"- setting: {RECIPE} with batches of {plan['batch']} on {plan['device']}{loaders}; {plan['steps']} steps "
            f"a run after {1 + plan['warmup']}; SOLVER.FP16 is {HALF[plan['device']]} here")


def _peaks_line(report: dict[str, Any]) -> str:
    by_type: dict[str, list[float]] = {}
    for row in report["rows"]:
        for run in row["runs"]:
            by_type.setdefault(run["type"], []).append(run["peak"])
    rates = ", ".join(f"{name} {statistics.median(rates) / 1e12:.2f}" for name, rates in by_type.items())
    square = report["plan"]["square"]
    return f"- peak, TFLOP/s of a product of two {square} x {square} matrices, after each run: {rates}"


def _cells(row: dict[str, Any], baselines: list[str], columns: int) -> list[str]:
    """A row's cells; the note stands where the figures would be."""
    start = [row["model"], f"{row['size'][0]}x{row['size'][1]}", f"{row['identities']:,}", row["title"]]
    if row["note"]:
        return [*start, "0", row["note"], *["–"] * (columns - len(start) - 2)]
    return [
        *start, str(len(row["runs"])), f"{row['images_per_second']:,.1f}",
        *(f"{row['times'][name]:.2f}" if name in row["times"] else "–" for name in baselines),
        *(_PERCENT.format(100 * row["shares"][phase]) for phase in PHASES),
        f"{row['flops'] / 1e12:.3g}", _PERCENT.format(100 * row["flops"] / row["peak"]),
        f"{row['first_step_seconds']:.1f}", f"{row['first_loss']:.3f}",
    ]
