"""What a training leaves to be looked at: metrics.jsonl, TensorBoard and a picture of its curves."""
from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_path, write_text

logger = logging.getLogger(__name__)
CURVES = "training_curve.png"
_SHOWN_IMAGES = 16


class MetricsRecord:
    """metrics.jsonl and TensorBoard: the same figures for programs and for eyes."""

    def __init__(self, folder: Path, epochs: int, steps: int):
        """Keep what is of the first `epochs` epochs and `steps` steps; a resumed run writes the later lines again.

        Args:
            epochs: whole epochs done, with their evaluation.
            steps: steps done, those of the epoch at work among them.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and of no use to those who only test

        self.path = folder / "metrics.jsonl"
        kept = [line for line in _lines(self.path)
                if line["epoch"] <= epochs or ("loss" in line and line["step"] <= steps)]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        # A board forgets whole steps: what is kept of the last one is written again.
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=steps)
        for line in kept:
            if line["step"] == steps:
                self._to_board(line)

    def write(self, step: int, epoch: int, **figures: float) -> None:
        """One line; a figure that is not finite is null, for JSON has no such number."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps({"epoch": epoch, "step": step, **finite}, allow_nan=False) + "\n")
        self._to_board({"epoch": epoch, "step": step, **figures})

    def _to_board(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("epoch", "step") and value is not None:
                self.board.add_scalar(name, value, line["step"])
        self.board.flush()

    def show_batch(self, images: torch.Tensor, mean: list[float], std: list[float]) -> None:
        """The first images of the first batch as the model sees them. images: [B, 3, H, W], normalised."""
        shown = images[:_SHOWN_IMAGES].detach().float().cpu()
        shown = shown * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        self.board.add_images("batch", shown.clamp(0, 1), 0)  # before step 1, so that no resumed run forgets it
        self.board.flush()

    def close(self) -> None:
        self.board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; one that a kill cut off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"]), "epoch": int(line["epoch"])})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def draw_curves(folder: Path) -> Path | None:
    """Draw metrics.jsonl as training_curve.png: loss and its terms, accuracy and metrics, learning rate, over epochs.

    Returns the picture's path, None where there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError:
        logger.warning("matplotlib is not installed: no %s", CURVES)
        return None
    lines = _lines(folder / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    tests = [line for line in lines if any(name.endswith("/mAP") for name in line)]
    if not steps:
        return None
    per_epoch = max(line["step"] / line["epoch"] for line in steps)
    terms = [name for name in steps[-1] if name not in ("epoch", "step", "acc", "lr", "images_per_second", "data_wait",
                                                        "grad_norm", "skipped", "gpu_gib")]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    for name in terms:
        _curve(loss, steps, name, per_epoch, linewidth=2 if name == "loss" else 1)
    loss.set(title="loss", xlabel="epoch", ylim=(0, None))
    _curve(accuracy, steps, "acc", per_epoch, label="accuracy in training")
    for name in sorted({name for line in tests for name in line if name.endswith(("/mAP", "/rank1"))}):
        _curve(accuracy, tests, name, per_epoch, marker="o", markersize=3)
    accuracy.set(title="accuracy", xlabel="epoch", ylim=(0, 1))
    _curve(rate, steps, "lr", per_epoch)
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (loss, accuracy):
        axes.legend(fontsize=8, frameon=False)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(folder / CURVES) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return folder / CURVES


def _curve(axes: Any, lines: list[dict], name: str, per_epoch: float, label: str | None = None, **style: Any) -> None:
    points = [(line["step"] / per_epoch, line[name]) for line in lines
              if line.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label or name, **style)
