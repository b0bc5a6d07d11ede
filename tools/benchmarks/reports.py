"""A benchmark's report as GitHub markdown."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tools.benchmarks.retrieval_measure import EVALUATED, queries_of

COLUMNS = ("N", "implementation", "runs", "seconds", "peak MiB above the features", "float32 GFLOP/s, tile / square",
           "floor s", "time / floor", "mAP@200", "same top 10")


def to_markdown(report: dict[str, Any]) -> str:
    """What `benchmark_retrieval` returned: the machine, the setting, one table, and other products' rates."""
    rates = {each["size"]: each for each in report["rates"]}
    lines = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [_setting_line(report["plan"]), ""]
    lines += table(COLUMNS, [_cells(row, rates[row["size"]]) for row in report["rows"]])
    lines += ["", *(_rates_line(each) for each in report["rates"])]
    return "\n".join(lines)


def _setting_line(plan: dict[str, Any]) -> str:
    queries = ", ".join(f"{queries_of(size):,}" for size in plan["sizes"])
    return (f"- setting: d = {plan['dim']}, k1 = {plan['k1']}, k2 = {plan['k2']}, λ = {plan['lambda_value']}, device "
            f"{plan['device']}; 15 % of the N images are queries ({queries}); clustered unit features, 10 to 30 images "
            f"an identity; mAP@200 and top 10 (the share of queries whose ten nearest are, in order, those of the "
            f"size's first row) over at most {EVALUATED:,} queries")


def _cells(row: dict[str, Any], rates: dict[str, Any]) -> list[str]:
    """A row's cells; the note stands where the figures would be."""
    start = [f"{row['size']:,}", row["title"]]
    if row["note"]:
        return [*start, "0", row["note"], *["–"] * (len(COLUMNS) - 4)]
    return [
        *start, str(len(row["runs"])), f"{row['seconds']:.2f}", f"{row['peak_bytes'] / 2**20:,.0f}",
        f"{_giga(rates['float32_tile'])} / {_giga(rates['float32_square'])}", f"{row['floor_seconds']:.2f}",
        f"{row['seconds'] / row['floor_seconds']:.2f}", f"{row['mAP']:.4f}",
        # Cut, not rounded: 100 % means every one.
        f"{math.floor(1000 * row['same_top10']) / 10:.1f} %",
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]],
          texts: Sequence[str] = ("implementation",)) -> list[str]:
    """The lines of a table; the columns of `texts` are aligned to the left, those of figures to the right."""
    alignment = ["---" if name in texts else "---:" for name in header]
    return ["| " + " | ".join(cells) + " |" for cells in (header, alignment, *rows)]


def _rates_line(rates: dict[str, Any]) -> str:
    """The products that are no part of the floor."""
    names = {"bf16_tile": "bf16 tile", "bf16_square": "bf16 square", "tf32_tile": "TF32 tile",
             "tf32_square": "TF32 square", "numpy": "numpy float32 square", "torch": "torch float32 square"}
    found = ", ".join(f"{title} {_giga(rates[name])}" for name, title in names.items() if name in rates)
    return (f"- other products at N = {rates['size']:,}, GFLOP/s: {found} (the last two multiply a matrix by its own "
            f"transpose; the dense baseline used {rates['dense_product']}'s)")


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f}"
