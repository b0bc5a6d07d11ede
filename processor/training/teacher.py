"""The teacher of a distillation: a trained model that looks at the same pictures, and never changes."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from loss.distillation import Targets
from model.make_model import GLOBAL, ReIDModel
from processor.embedder import Embedder
from processor.export.model_folder import ModelInfo
from processor.export.runtimes import Runtime
from processor.trained_model import open_trained
from utils.files import sha256_of
from utils.logger import user_message

logger = logging.getLogger(__name__)
KEY = "SOLVER.DISTILL_FROM"


@dataclass
class Teacher:
    """A trained model in eval mode, or an exported one.

    Attributes:
        path: of its file or folder.
        digest: of what is in there: a training goes on with the same teacher only.
        info: what it is, and what its pictures are.
        model: its network; None of an exported file, which `runtime` computes.
        pid_names: the classes of its classifier; () if the file has none.
        gives_logits: whether its classes are those of the training (see `compare_classes`).
    """

    path: Path
    digest: str
    info: ModelInfo
    model: ReIDModel | None = None
    runtime: Runtime | None = None
    pid_names: tuple[str, ...] = ()
    gives_logits: bool = field(default=False, init=False)
    _scale: Tensor | None = field(default=None, init=False)  # [3, 1, 1] each, None where pixels are the training's
    _shift: Tensor | None = field(default=None, init=False)

    def compare_classes(self, pid_names: Sequence[str], sets: str, with_logits: bool) -> None:
        """Find out, and say in the log, what can be learned from it here.

        Args:
            pid_names: of the training, in class order.
            sets: DATASETS.NAMES; a teacher of other sets takes cameras as unknown.
            with_logits: whether the training has an ID loss.
        """
        self.gives_logits = with_logits and self.pid_names == tuple(pid_names)
        if self.model is not None:
            self.model.on_other_set = self.info.trained_on.get("sets") != sets
        logger.info("teacher: %s", self.describe(pid_names, with_logits))

    def describe(self, pid_names: Sequence[str], with_logits: bool) -> str:
        """Who it is, and what is learned from it."""
        if self.gives_logits:
            what = "relations and logits"
        elif not with_logits:
            what = "relations alone, because there is no ID loss (DATALOADER.SAMPLER)"
        elif not self.pid_names:
            what = "relations alone, because the file has no classifier"
        else:
            known = len(set(self.pid_names) & set(pid_names))
            what = (f"relations alone, because its classes are others ({len(self.pid_names)} identities, "
                    f"{known} of the {len(pid_names)} here)")
        height, width = self.info.size
        name = self.info.architecture.get("MODEL.NAME", "a network")
        return f"{name} of {self.path} at {height} x {width} pixels, {self.info.dim} numbers a picture; {what}"

    def place(self, device: torch.device, channels_last: bool, mean: Sequence[float], std: Sequence[float]) -> None:
        """Move its network to the device of the training, whose pixels are normalised by `mean` and `std`."""
        own = self.info.preprocessing
        own_mean, own_std = (own["mean"], own["std"]) if self.model is not None else ([0.0] * 3, [1.0] * 3)
        if (list(mean), list(std)) != (list(own_mean), list(own_std)):
            table = torch.tensor([mean, std, own_mean, own_std], dtype=torch.float64).view(4, 3, 1, 1)
            self._scale = (table[1] / table[3]).float().to(device)
            self._shift = ((table[0] - table[2]) / table[3]).float().to(device)
        if self.model is not None:
            self.model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def sides(self, camids: Tensor, viewids: Tensor) -> dict[str, Tensor]:
        """`targets`' arguments of a batch's cameras and views; {} if it looks at none, or knows other ones."""
        return {} if self.model is None else self.model.sides(camids, viewids)

    @torch.no_grad()
    def targets(self, images: Tensor, sides: Mapping[str, Tensor]) -> Targets:
        """What it says of a batch: the features its metric loss acted on (of an exported file: its rows), and logits.

        Args:
            images: [B, 3, H, W] as the training augments and normalises them; they stay as they are.
            sides: as the method of that name gives them.
        """
        images = self._preprocess(images)
        if self.model is None:
            pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            rows = self.runtime.rows(pixels.contiguous().cpu().numpy())
            return Targets(torch.from_numpy(rows).to(images.device))
        # Any class: the plain logits do not depend on it.
        output = self.model(images, torch.zeros(len(images), dtype=torch.long, device=images.device), **sides)[GLOBAL]
        return Targets(output.metric_feat.float(), output.plain_logits if self.gives_logits else None)

    def _preprocess(self, images: Tensor) -> Tensor:
        """Pictures of its size, normalised as it was trained; of an exported file, which does so itself, in 0..1."""
        if tuple(images.shape[2:]) != self.info.size:
            images = F.interpolate(images, self.info.size, mode="bilinear", antialias=True)
        return images if self._scale is None else images * self._scale + self._shift


def open_teacher(file: str, device: str) -> Teacher:
    """The teacher of SOLVER.DISTILL_FROM: a checkpoint, a model folder, an .onnx or an .xml.

    Args:
        device: cuda | cpu, of an exported file.
    Raises:
        ValueError: there is no such file, it is damaged, or does not say what model it is of.
    """
    path = Path(file)
    try:
        if path.suffix in (".onnx", ".xml"):
            embedder = Embedder.load(path, device)
            files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
            return Teacher(path, "".join(map(sha256_of, files)), embedder.info, runtime=embedder.runtime)
        trained = open_trained(path, heads=True)
        digest = sha256_of(path) if path.is_file() else trained.info.model_id
    except (ValueError, OSError) as error:
        raise ValueError(f"{KEY}: {user_message(error)}") from error
    return Teacher(path, digest, trained.info, trained.model.requires_grad_(False), pid_names=trained.pid_names)
