"""The benchmarks' reports as GitHub markdown. What is measured is imported late: a trainer takes seconds to load."""
from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

Report, Row = dict[str, Any], dict[str, Any]

TEXT_COLUMNS = ("implementation", "measured", "model", "request")  # aligned to the left


def format_report(report: Report, setting: Sequence[str], header: Sequence[str],
                  place: Callable[[Row], list[str]], figures: Callable[[Row], list[str]]) -> list[str]:
    """The lines of the machine, of the setting and of the table.

    Args:
        setting: lines on how it was measured.
        header: the table's columns: the place's, "runs", the figures'.
        place: a row's first cells, which say what was measured.
        figures: its last cells; if there are none, its note stands there.
    """
    def cells(row: Row) -> list[str]:
        if row["note"]:
            start = [*place(row), "0", row["note"]]
            return start + ["–"] * (len(header) - len(start))
        return [*place(row), str(len(row["runs"])), *figures(row)]

    machine = [f"{name}: {value}" for name, value in report["machine"].items()]
    alignment = ["---" if name in TEXT_COLUMNS else "---:" for name in header]
    table = (header, alignment, *map(cells, report["rows"]))
    return [*(f"- {line}" for line in [*machine, *setting]), "", *("| " + " | ".join(row) + " |" for row in table)]


def _size(row: Row) -> str:
    return f"{row['size'][0]}x{row['size'][1]}"


# ----------------------------------------------------------------------------------------------------------- retrieval
def format_retrieval(report: Report) -> str:
    """The report of tools.benchmarks.retrieval; the rates of products that are no part of the floor come last."""
    from tools.benchmarks.retrieval_measure import EVALUATED, queries_of

    plan, rates = report["plan"], {rates["size"]: rates for rates in report["rates"]}
    queries = ", ".join(f"{queries_of(size):,}" for size in plan["sizes"])
    setting = (f"setting: d = {plan['dim']}, k1 = {plan['k1']}, k2 = {plan['k2']}, λ = {plan['lambda_value']}, device "
               f"{plan['device']}; 15 % of the N images are queries ({queries}); clustered unit features, 10 to 30 "
               "images an identity; mAP@200 and top 10 (the share of queries whose ten nearest are, in order, those of "
               f"the size's first row) over at most {EVALUATED:,} queries")
    header = ("N", "implementation", "runs", "seconds", "peak MiB above the features",
              "float32 GFLOP/s, tile / square", "floor s", "time / floor", "mAP@200", "same top 10")

    def figures(row: Row) -> list[str]:
        tile, square = (_giga(rates[row["size"]][name]) for name in ("float32_tile", "float32_square"))
        return [f"{row['seconds']:.2f}", f"{row['peak_bytes'] / 2**20:,.0f}", f"{tile} / {square}",
                f"{row['floor_seconds']:.2f}", f"{row['seconds'] / row['floor_seconds']:.2f}", f"{row['mAP']:.4f}",
                # Cut, not rounded: 100 % means every one.
                f"{math.floor(1000 * row['same_top10']) / 10:.1f} %"]

    lines = format_report(report, [setting], header, lambda row: [f"{row['size']:,}", row["title"]], figures)
    return "\n".join([*lines, "", *map(_rates_line, report["rates"])])


def _rates_line(rates: dict[str, Any]) -> str:
    names = {"bf16_tile": "bf16 tile", "bf16_square": "bf16 square", "tf32_tile": "TF32 tile",
             "tf32_square": "TF32 square", "numpy": "numpy float32 square", "torch": "torch float32 square"}
    listed = ", ".join(f"{title} {_giga(rates[name])}" for name, title in names.items() if name in rates)
    return (f"- other products at N = {rates['size']:,}, GFLOP/s: {listed} (the last two multiply a matrix by its own "
            f"transpose; the dense baseline used {rates['dense_product']}'s)")


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f}"


# ----------------------------------------------------------------------------------------------------------- evaluation
def format_evaluation(report: Report) -> str:
    """The report of tools.benchmarks.evaluation."""
    plan = report["plan"]
    setting = (f"setting: {plan['queries']:,} queries x {plan['gallery']:,} gallery images, {plan['identities']:,} "
               f"identities, {plan['cameras']} cameras, features of {plan['dim']}; the query's identity from the "
               f"query's camera is left out")
    header = ("implementation", "queries", "runs", "product s", "figures s", "top 200 s", "all but the product s",
              "of it ms a query", "peak MiB above the features", "rank-1", "mAP", "mINP")

    def figures(row: Row) -> list[str]:
        return [*(f"{row[name]:.2f}" for name in ("product", "figures", "lists", "rest")),
                f"{1000 * row['rest'] / row['queries']:.2f}", f"{row['peak_bytes'] / 2**20:,.0f}",
                *(f"{row[name]:.6f}" for name in ("rank1", "mAP", "mINP"))]

    return "\n".join(format_report(report, [setting], header, lambda row: [row["title"], f"{row['queries']:,}"],
                                   figures))


# -------------------------------------------------------------------------------------------------------------- feeding
def format_data(report: Report) -> str:
    """The report of tools.benchmarks.data."""
    plan = report["plan"]
    setting = (f"setting: HARD_AUG, batches of {plan['batch']}, {plan['workers']} workers, augmentation on "
               f"{plan['device']}; {plan['seconds']:g} s a run; pictures: {report['pictures']}; theirs: PIL and "
               "torchvision, as reid-strong-baseline uses them")
    header = ("size", "measured", "runs", "images/s", "times theirs", "images/s a core", "times theirs, a core")

    def figures(row: Row) -> list[str]:
        cells = []
        for rate in ("images_per_second", "images_per_core_second"):
            times = row.get(f"{rate}_times_theirs")
            cells += [f"{row[rate]:,.0f}" if rate in row else "–", f"{times:.2f}" if times else "–"]
        return cells

    return "\n".join(format_report(report, [setting], header, lambda row: [_size(row), row["title"]], figures))


# ------------------------------------------------------------------------------------------------------------- training
def format_training(report: Report) -> str:
    """The report of tools.benchmarks.training."""
    from tools.benchmarks.training import BASELINES, HALF
    from tools.benchmarks.training_measure import ARMS, PHASES, RECIPE

    plan, measured = report["plan"], [row for row in report["rows"] if not row["note"]]
    workers = {row["workers"] for row in measured}
    loaders = f", {workers.pop()} loader processes" if workers else ""
    setting = (f"setting: {RECIPE} with batches of {plan['batch']} on {plan['device']}{loaders}; {plan['steps']} steps "
               f"a run after {1 + plan['warmup']}; SOLVER.FP16 is {HALF[plan['device']]} here")
    baselines = [name for name in BASELINES if name in plan["arms"]]
    header = ["model", "size", "identities", "implementation", "runs", "images/s",
              *(f"times {ARMS[name].title}" for name in baselines), *PHASES, "TFLOP/s", "of peak", "first step s",
              "its loss"]

    def place(row: Row) -> list[str]:
        return [row["model"], _size(row), f"{row['identities']:,}", row["title"]]

    def figures(row: Row) -> list[str]:
        return [f"{row['images_per_second']:,.1f}",
                *(f"{row['times'][name]:.2f}" if name in row["times"] else "–" for name in baselines),
                *(f"{100 * row['shares'][phase]:.1f} %" for phase in PHASES),
                f"{row['flops'] / 1e12:.3g}", f"{100 * row['flops'] / row['peak']:.1f} %",
                f"{row['first_step_seconds']:.1f}", f"{row['first_loss']:.3f}"]

    return "\n".join(format_report(report, [setting, _peaks_line(report)], header, place, figures))


def _peaks_line(report: Report) -> str:
    by_type: dict[str, list[float]] = {}
    for row in report["rows"]:
        for run in row["runs"]:
            by_type.setdefault(run["type"], []).append(run["peak"])
    rates = ", ".join(f"{name} {statistics.median(rates) / 1e12:.2f}" for name, rates in by_type.items())
    square = report["plan"]["square"]
    return f"peak, TFLOP/s of a product of two {square} x {square} matrices, after each run: {rates}"


# ----------------------------------------------------------------------------------------------------------- embedding
def format_embed(report: Report) -> str:
    """The report of tools.benchmarks.embed."""
    from tools.benchmarks.embed_measure import BOXES, FRAME

    plan = report["plan"]
    setting = (f"setting: {plan['model']} {plan['size'][0]}x{plan['size'][1]} with random weights on {plan['device']}; "
               f"pictures: {report['pictures']}, the PNG files; {plan['seconds']:g} s a figure; a frame has "
               f"{FRAME[1]}x{FRAME[0]} pixels and {BOXES} boxes; in brackets: times the textbook")
    kinds = [f"{kind}_{batch}" for batch in (plan["batch"], 1) for kind in ("files", "arrays")]
    header = ["implementation", "runs", *(kind.replace("_", ", batch ") + ", images/s" for kind in kinds),
              "frame ms, p50", "p95"]

    def figures(row: Row) -> list[str]:
        cells = []
        for kind in kinds:
            times = row["times_textbook"].get(kind)
            cells.append(f"{row['rates'][kind]:.1f}" + (f" ({times:.2f})" if times else ""))
        return [*cells, *(f"{1000 * row[key]:.0f}" for key in ("frame_p50", "frame_p95"))]

    return "\n".join(format_report(report, [setting], header, lambda row: [row["title"]], figures))


# ------------------------------------------------------------------------------------------------------------- linking
def format_linking(report: Report) -> str:
    """The report of tools.benchmarks.linking."""
    plan = report["plan"]
    streams = "; ".join(f"{stream['people']} people, {stream['tracklets']} tracklets, of which {stream['apart']} pairs "
                        "are in a frame" for stream in report["streams"])
    setting = f"setting: features of {plan['run']}; streams of seeds {', '.join(map(str, plan['seeds']))}: {streams}"
    header = ("implementation", "runs", "cosine", "identities", "IDF1, mean", "of each seed", "of first answers",
              "pairwise F1, mean", "of each seed", "ms a tracklet")

    def values(row: Row, key: str, digits: int = 3) -> list[str]:
        figures = [run[key] for run in row["runs"] if key in run]
        if not figures:
            return ["–", "–"]
        return [f"{statistics.mean(figures):.{digits}f}", " ".join(f"{figure:.{digits}f}" for figure in figures)]

    def figures(row: Row) -> list[str]:
        return [values(row, "threshold", 2)[1], values(row, "identities", 0)[1], *values(row, "idf1"),
                values(row, "first_idf1")[0], *values(row, "pairwise_f1"), values(row, "ms", 1)[0]]

    return "\n".join(format_report(report, [setting], header, lambda row: [row["title"]], figures))


# ------------------------------------------------------------------------------------------------------------- gallery
def format_gallery(report: Report) -> str:
    """The report of tools.benchmarks.gallery.search."""
    plan, built = report["plan"], report["built"]
    setting = [f"setting: {plan['rows']:,} vectors of {plan['dim']} {plan['vectors']}, identities of 10 to 30 rows, "
               f"k = {plan['k']}, {report['threads']} threads; numpy: the float32 product of the queries with all "
               "vectors in the same files, in turn with ours after a rest of 0.1 s each, all pages warm"]
    if built:
        setting.append(f"adding: {built['seconds']:.0f} s, {plan['rows'] / built['seconds']:,.0f} rows/s, "
                       f"{built['anonymous'] / 2**20:,.0f} MiB anonymous memory")
    setting.append(f"opening and reading the columns: {report['opened']:.2f} s; on the disk: vectors and facts "
                   f"{report['bytes']['rows'] / 2**20:,.0f} MiB, codes {report['bytes']['codes'] / 2**20:,.0f} MiB")
    setting.append("memory of a process that only searches, MiB anonymous / of mapped files: " + "; ".join(
        f"{title} {anonymous / 2**20:,.0f} / {mapped / 2**20:,.0f}" for title, anonymous, mapped in report["memory"]))
    header = ("measured", "runs", "ms", "numpy's ms", "times faster", "anonymous MiB", "equal to the slow search",
              "float64's set")

    def figures(row: Row) -> list[str]:
        return [f"{row['ms']:,.1f}", f"{row['numpy_ms']:,.1f}", f"{row['numpy_ms'] / row['ms']:.2f}",
                f"{row['anonymous'] / 2**20:,.0f}", row["equal"], row["float64"]]

    return "\n".join(format_report(report, setting, header, lambda row: [row["title"]], figures))


# ------------------------------------------------------------------------------------------------------------- serving
def format_serving(report: Report) -> str:
    """The report of tools.benchmarks.gallery.serving."""
    plan, memory = report["plan"], report["memory"]
    setting = [f"setting: {plan['rows']:,} rows of {plan['dim']}, {plan['clients']} clients for {plan['seconds']:g} s, "
               f"k = {plan['k']}; clients and service share the machine",
               f"memory of the service beside mapped files, MB: {memory[len(memory) // 6]:.0f} after a sixth of the "
               f"time, {memory[-1]:.0f} at the end, {max(memory):.0f} at most",
               f"told to stop amid requests: exit code {report['exit']}; {report['lost']} acknowledged rows lost, "
               f"{report['surplus']} added without an answer"]
    header = ("request", "runs", "answers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors")

    def figures(row: Row) -> list[str]:
        return [f"{row['count']:,}", f"{row['rate']:.1f}", *(f"{1000 * row[key]:.0f}" for key in ("p50", "p95", "p99")),
                str(row["wrong"])]

    return "\n".join(format_report(report, setting, header, lambda row: [row["title"]], figures))


FORMATS = {"retrieval": format_retrieval, "evaluate": format_evaluation, "data": format_data,
           "train": format_training, "embed": format_embed, "linking": format_linking, "gallery": format_gallery,
           "gallery-serve": format_serving}
