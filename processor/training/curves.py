"""A picture of a training: loss and its terms, accuracy and metrics, learning rate, over epochs."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from processor.training.metrics_log import loss_terms, read_lines
from utils.files import atomic_path

logger = logging.getLogger(__name__)
CURVES = "training_curve.png"
# Okabe and Ito, Color Universal Design, 2008: everyone can tell them apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MOST = 24  # curves of one kind; with more nobody could read the legend
_INK, _PALE = "#222222", "#AAAAAA"
_FIGURES_OF_NOW = ("epoch", "step", "lr", "skipped", "images_per_second", "data_wait", "gpu_gib")


def draw_curves(folder: Path) -> Path | None:
    """Draw a folder's metrics.jsonl as training_curve.png there.

    Returns the picture's path; None if there is nothing to draw, or nothing to draw with.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError:
        logger.warning("matplotlib is not installed: no %s", CURVES)
        return None
    lines = read_lines(folder / "metrics.jsonl")
    steps, tests = ([line for line in lines if name in line] for name in ("loss", "all/mAP"))
    if not steps:
        return None
    per_epoch = max(line["step"] / line["epoch"] for line in steps)
    steps, tests = ([{**line, "epochs": line["step"] / per_epoch} for line in lines] for lines in (steps, tests))
    steps = means_between_lines(steps, per_epoch)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04)
    loss, accuracy, rate = figure.subplots(1, 3)
    _draw_loss(loss, steps)
    _draw_accuracy(accuracy, steps, tests)
    rate.set_title("learning rate")
    _curve(rate, steps, "lr", color=_INK, linewidth=1.8, drawstyle="steps-pre")
    rate.set_ylim(0, None)
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (loss, accuracy, rate):
        _dress(axes, steps[-1]["epochs"])
    with atomic_path(folder / CURVES) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return folder / CURVES


def means_between_lines(steps: list[dict], per_epoch: float) -> list[dict]:
    """The lines with means since the line before; metrics.jsonl has means since the epoch began.

    Those would jump at the beginning of each epoch. Skipped steps count in neither; a figure without a step is None.
    """
    rows, epoch, sums, counted, skipped, skipped_before = [], 0, {}, 0, 0, 0
    for line in steps:
        if line["epoch"] != epoch:
            epoch, sums, counted, skipped_before = line["epoch"], {}, 0, skipped
        skipped = line.get("skipped", 0)
        now = round(line["step"] - (epoch - 1) * per_epoch) - (skipped - skipped_before)
        row = dict(line)
        for name in line.keys() - {*_FIGURES_OF_NOW, "epochs"}:
            total = (line[name] or 0.0) * now  # None: not one step counted
            row[name] = (total - sums.get(name, 0.0)) / (now - counted) if now > counted else None
            sums[name] = total
        counted = now
        rows.append(row)
    return rows


# ------------------------------------------------------------------ the three parts
def _draw_loss(axes: Any, steps: list[dict]) -> None:
    losses = [{"epochs": line["epochs"], "loss": line["loss"], **loss_terms(line)} for line in steps]
    names = list(dict.fromkeys(name for line in losses for name in line if name not in ("epochs", "loss")))[:_MOST]
    _curve(axes, losses, "loss", color=_INK, linewidth=2.2, zorder=3)
    for name, color in zip(names, _COLORS * len(names), strict=False):
        _curve(axes, losses, name, color=color, linewidth=1.3)
    values = [line[name] for line in losses for name in ("loss", *names) if line.get(name) is not None]
    positive = [value for value in values if value > 0]
    axes.set_title("loss")
    if positive and max(positive) > 50 * min(positive):  # a center loss of hundreds beside a triplet loss of one
        axes.set_yscale("log")
        axes.set_ylim(max(min(positive) / 1.5, max(positive) / 1e5), None)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(min(0, *values), None)


def _draw_accuracy(axes: Any, steps: list[dict], tests: list[dict]) -> None:
    domains = list(dict.fromkeys(name.partition("/")[0] for line in tests for name in line
                                 if name.endswith("/mAP")))[:_MOST]
    for domain, color in zip(domains, _COLORS * len(domains), strict=False):
        for metric, style in (("mAP", "-"), ("rank1", ":")):
            _curve(axes, tests, f"{domain}/{metric}", color=color, linewidth=1.8 if domain == "all" else 1.1,
                   linestyle=style, marker="o", markersize=3, clip_on=False, zorder=3, label=f"{domain} {metric}")
    _curve(axes, steps, "acc", color=_PALE, linewidth=1.3, label="in training")
    best = max((line["all/mAP"] for line in tests if line["all/mAP"] is not None), default=None)
    axes.set_title("accuracy" if best is None else f"accuracy: mAP {100 * best:.1f} % at best")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _curve(axes: Any, lines: list[dict], name: str, **style: Any) -> None:
    points = [(line["epochs"], line[name]) for line in lines if line.get(name) is not None]
    if points:
        marker = {"marker": "o", "clip_on": False} if len(points) == 1 else {}  # a line of one point cannot be seen
        axes.plot(*zip(*points, strict=True), **{"label": name, **marker, **style})


def _dress(axes: Any, epochs: float) -> None:
    axes.set_title(axes.get_title(), loc="left", color=_INK, fontsize=12, fontweight="bold", pad=10)
    axes.set_title("")
    axes.set_xlabel("epoch", color=_INK)
    axes.set_xlim(0, epochs)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, colors="#555555")
    if len(axes.get_lines()) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=4, fontsize=8.5, frameon=False,
                    labelcolor=_INK, columnspacing=1.2, handlelength=1.8)
