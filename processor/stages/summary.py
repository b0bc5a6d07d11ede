"""What a run of the pipeline gave: the metrics of each model and of the ensemble, and what it took."""
from __future__ import annotations

from pathlib import Path

from processor.retrieval.metrics import format_queries
from processor.stages.stage import Stage
from utils.files import as_damage, read_object


def summarise(out: Path, recipe: str, data: str, stages: list[Stage], seconds: dict[str, float]) -> dict:
    """Metrics of each model and of the ensemble (null without ground truth) and the seconds of each stage.

    Args:
        out: OUTPUT_ROOT.
        recipe, data: what was asked for, for the reader.
    """
    models = {}
    for stage in stages:
        if stage.name.startswith("test_"):
            folder = stage.outputs[0].parent
            models[folder.name] = _metrics(folder / "metrics.json")
    return {
        "recipe": recipe,
        "data": data,
        "models": models,
        "ensemble": _metrics(out / "metrics.json"),
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()), 1),
    }


def _metrics(path: Path) -> dict | None:
    """{kind: figures} of a run; None if nothing was measured.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    metrics = read_object(path, all=dict)["all"]
    for figures in metrics.values():
        with as_damage(path, "run the stage that writes it again"):
            counts = [figures.get(name, 0) for name in ("num_valid", "num_queries")]
            if not all(type(figure) in (int, float) for figure in (
                    *counts, *(figures[name] for name in ("mAP", "rank1", "naic_score")))):
                raise TypeError("a figure is no number")
    return metrics


def table(summary: dict) -> str:
    """The summary for a person: a line a model, without and with re-ranking."""
    rows = [*summary["models"].items(), ("ensemble", summary["ensemble"])]
    if all(metrics is None for _, metrics in rows):
        return "no ground truth, or no query with a match: a submission, but no metrics"
    kinds = [kind for kind in ("plain", "re_ranked") if any(metrics and kind in metrics for _, metrics in rows)]
    titles = {"plain": "without re-ranking", "re_ranked": "with re-ranking"}
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"  {titles[kind]:^26}" for kind in kinds),
             f"{'model':{width}}" + f"  {'mAP':>7} {'Rank-1':>7} {'NAIC':>7}   " * len(kinds)]
    for name, metrics in rows:
        cells = ""
        for kind in kinds:
            result = (metrics or {}).get(kind)
            figures = [result["mAP"], result["rank1"], result["naic_score"]] if result else []
            cells += "  " + (" ".join(f"{100 * figure:6.2f}%" for figure in figures) + "   " if figures else " " * 26)
        lines.append(f"{name:{width}}{cells}".rstrip())
    fewer = {format_queries(result) for _, metrics in rows for result in (metrics or {}).values()
             if result.get("num_valid") != result.get("num_queries")}
    return "\n".join([*lines, *sorted(fewer)])
