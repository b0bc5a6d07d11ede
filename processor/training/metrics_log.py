"""The figures of a training over its steps: metrics.jsonl for programs, TensorBoard for eyes."""
from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils.files import naming, read_file, write_text

logger = logging.getLogger(__name__)
_BOARD_IMAGES = 16
_MOST_FIGURES, _LONGEST_NAME = 1000, 100  # of a line
_MOST, _MOST_STEPS = 1e100, 1 << 53  # an absolute value, a step
_NO_TERMS = ("epoch", "step", "loss", "acc", "grad_norm", "lr", "skipped", "images_per_second", "data_wait", "gpu_gib")


class MetricsLog:
    """metrics.jsonl and TensorBoard's files of a run, with the same figures.

    Args:
        folder: OUTPUT_DIR.
        epochs: whole epochs done, with their evaluation.
        steps: steps done, those of the epoch at work among them; the lines of later steps are dropped, because the run
            that goes on writes them again.
    """

    def __init__(self, folder: Path, epochs: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and of no use to those who only test

        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self.path)
                if line["epoch"] <= epochs or ("loss" in line and line["step"] <= steps)]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        if not isinstance(threading.excepthook, _ThreadHook):
            threading.excepthook = _ThreadHook(threading.excepthook)
        # A board forgets whole steps: what is kept of the last one is written again.
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=steps)
        for line in kept:
            if line["step"] == steps:
                self._add_to_board(line)

    def write(self, step: int, epoch: int, **figures: float) -> None:
        """Add a line; a figure that is not finite is null, because JSON has no such number."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with naming(self.path), open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps({"epoch": epoch, "step": step, **finite}, allow_nan=False) + "\n")
        self._add_to_board({"epoch": epoch, "step": step, **figures})

    def _add_to_board(self, line: dict[str, Any]) -> None:
        with naming(self.board.log_dir):
            for name, value in line.items():
                if name not in ("epoch", "step") and value is not None:
                    self.board.add_scalar(name, value, line["step"])
            self.board.flush()

    def add_images(self, images: torch.Tensor, mean: list[float], std: list[float]) -> None:
        """Put the first images of a batch on the board, as the model gets them. images: [B, 3, H, W], normalised."""
        images = images[:_BOARD_IMAGES].detach().float().cpu()
        images = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        with naming(self.board.log_dir):
            self.board.add_images("batch", images.clamp(0, 1), 0)  # before step 1, so that no resumed run forgets it
            self.board.flush()

    def close(self) -> None:
        self.board.close()


class _ThreadHook:
    """threading.excepthook without what the board's thread cannot write: our next flush raises that, too."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, failure: Any) -> None:
        is_of_board = type(failure.thread).__module__.startswith("tensorboard.")
        if not (is_of_board and isinstance(failure.exc_value, OSError)):
            self._before(failure)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a line that a kill cut off, or that is no line of figures, is left out."""
    lines, left_out = [], 0
    for text in read_file(path).decode("utf-8", "replace").split("\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if _has_figures(line):
            lines.append({**line, "step": int(line["step"]), "epoch": int(line["epoch"])})
        else:
            left_out += bool(text.strip())
    if left_out:
        logger.warning("%s: %d lines are left out, because they are cut off or damaged", path, left_out)
    return lines


def _has_figures(line: Any) -> bool:
    """Whether a value of JSON may be a line: an epoch, a step, and some figures with short names."""
    if not isinstance(line, dict) or not {"epoch", "step"} <= line.keys() or len(line) > _MOST_FIGURES:
        return False
    return all(len(name) <= _LONGEST_NAME and (value is None or (type(value) in (int, float) and abs(value) < _MOST))
               for name, value in line.items()) and all(
                   line[name] is not None and 0 < line[name] < _MOST_STEPS for name in ("epoch", "step"))


def loss_terms(figures: dict[str, Any]) -> dict[str, float]:
    """The loss terms among a line's figures; those of the parts (id_part0 ...) as their mean."""
    terms: dict[str, list[float]] = {}
    for name, value in figures.items():
        if name not in _NO_TERMS and value is not None:
            terms.setdefault(name.rstrip("0123456789"), []).append(value)
    return {name: sum(values) / len(values) for name, values in terms.items()}
