"""The figures of a training: metrics.jsonl for programs, TensorBoard for eyes."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from utils.files import write_text

_SHOWN_IMAGES = 16
_NO_TERMS = ("epoch", "step", "loss", "acc", "grad_norm", "lr", "skipped", "images_per_second", "data_wait", "gpu_gib")


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
        kept = [line for line in read_lines(self.path)
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; one that a kill cut off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"]), "epoch": int(line["epoch"])})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def in_short(figures: dict[str, Any]) -> dict[str, float]:
    """The loss terms among a line's figures; those of the parts (id_part0 ...) as their mean."""
    terms: dict[str, list[float]] = {}
    for name, value in figures.items():
        if name not in _NO_TERMS and value is not None:
            terms.setdefault(name.rstrip("0123456789"), []).append(value)
    return {name: sum(values) / len(values) for name, values in terms.items()}
