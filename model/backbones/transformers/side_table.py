"""What a network has learned of the camera and the view that a picture was seen by (side information embedding).

Source: He et al., TransReID: Transformer-based Object Re-Identification, ICCV 2021, sec. 3.3.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.backbones.base import Sides
from utils.precision import in_float32

logger = logging.getLogger(__name__)
_UNKNOWN = -1
# Names of published files: TransReID's [cameras * views, 1, D], CLIP-ReID's [cameras * views, D].
_PUBLISHED = ("sie_embed", "cv_embed")


class SideTable(nn.Module):
    """A row for each pair of camera and view; what is unknown gets the mean over the known, or nothing.

    Its weights are `table` [C, V, D] and the numbers that the training set gave its cameras and views, `camids` [C] and
    `viewids` [V]: a checkpoint remembers them.

    Args:
        dim: D.
        sides: of the training set; None: a file's weights will tell.
        camera, view: what is looked at; without `view` V is 1, and likewise C.
        factor: on the rows.
        other: what an unknown camera or view adds: "mean" (the mean over the known) or "none"; "new" is as "mean", and
            fine-tuning gives the cameras that the weights do not know rows that begin there.
    """

    def __init__(self, dim: int, sides: Sides | None, camera: bool, view: bool, factor: float = 3.0,
                 other: str = "mean"):
        super().__init__()
        self.looks, self.factor, self.other = (camera, view), factor, other
        self.is_open = sides is None  # the file's cameras are taken as they are
        numbers = [list(numbers) if looks else [0] for numbers, looks in zip(sides or ((1,), (0,)), self.looks,
                                                                            strict=True)]
        self.table = nn.Parameter(torch.empty(*map(len, numbers), dim))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._number(*numbers)

    def _number(self, camids: Sequence[int], viewids: Sequence[int]) -> None:
        for name, numbers in (("camids", camids), ("viewids", viewids)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64, device=self.table.device))

    def forward(self, camids: Tensor | None, viewids: Tensor | None) -> Tensor:
        """[B, D], or [1, D] if neither is given; both are rows, see `Backbone.features`."""
        with in_float32(self.table.device):
            cameras, views = (self._shares(rows, axis) for axis, rows in enumerate((camids, viewids)))
            return self.factor * torch.einsum("bc,bv,cvd->bd", cameras, views, self.table.float())

    def _shares(self, rows: Tensor | None, axis: int) -> Tensor:
        """[B, C]: 1 for the row that is meant; of an unknown one 1 / C, or 0."""
        count = self.table.shape[axis]
        default = 0.0 if self.other == "none" and self.looks[axis] else 1.0 / max(count, 1)
        if rows is None or not self.looks[axis]:
            return torch.full((1, count), default, device=self.table.device)
        meant = (rows[:, None] == torch.arange(count, device=rows.device)).float()
        return torch.where(meant.any(1, keepdim=True), meant, default)

    def rows_of(self, camids: Sequence[int] | Tensor, viewids: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a data set's numbers, -1 for those that the weights do not know."""
        pairs = ((camids, self.camids), (viewids, self.viewids))
        return tuple(_find(torch.as_tensor(numbers), known) for numbers, known in pairs)

    @torch.no_grad()
    def go_to_other_set(self) -> None:
        """The weights are of another set, whose numbers mean other cameras: all begin at the mean, or are unknown."""
        if self.other == "new":
            self.table.copy_(self.table.mean((0, 1)).expand_as(self.table))
        else:
            self.camids.fill_(_UNKNOWN)
            self.viewids.fill_(_UNKNOWN)

    def fit(self, source: dict[str, Tensor], prefix: str, parent: str) -> dict[str, Tensor]:
        """A file's weights as this table takes them, see `Backbone.fit`.

        Args:
            prefix: of this table's names.
            parent: of the published names.
        """
        published = next((parent + name for name in _PUBLISHED if parent + name in source), None)
        if published:
            source = self._from_published(source, published, prefix)
        if prefix + "table" not in source:
            return source
        table, numbers = source[prefix + "table"], [source[prefix + name] for name in ("camids", "viewids")]
        if self.is_open or self.other != "new":
            self._number(*(values.tolist() for values in numbers))
            self.table = nn.Parameter(torch.zeros_like(table, device=self.table.device))
            return source
        rows = table.mean((0, 1)).expand_as(self.table).clone()
        known = [_find(mine, theirs) for mine, theirs in zip((self.camids, self.viewids), numbers, strict=True)]
        for camera, its in enumerate(known[0]):
            for view, theirs in enumerate(known[1]):
                if its >= 0 and theirs >= 0:
                    rows[camera, view] = table[its, theirs]
        logger.info("cameras and views: rows of %d of %d are the file's, the others begin at their mean",
                    int((known[0] >= 0).sum()), len(self.camids))
        return {**source, prefix + "table": rows, prefix + "camids": self.camids.clone(),
                prefix + "viewids": self.viewids.clone()}

    def _from_published(self, source: dict[str, Tensor], name: str, prefix: str) -> dict[str, Tensor]:
        """Published rows, camera by camera; their cameras count from 1, as the public sets number them."""
        table = source[name].reshape(-1, self.table.shape[-1])
        views = 1 if not self.looks[1] else len(table) if not self.looks[0] else self.table.shape[1]
        cameras = len(table) // views
        return {**{key: value for key, value in source.items() if key != name},
                prefix + "table": table.reshape(cameras, views, -1),
                prefix + "camids": torch.arange(1, cameras + 1), prefix + "viewids": torch.arange(views)}


def _find(numbers: Tensor, known: Tensor) -> Tensor:
    """[B] where each number stands in `known`, -1 if it does not."""
    same = numbers.to(known.device)[:, None] == known
    return torch.where(same.any(1), same.int().argmax(1), -1) if len(known) else torch.full_like(numbers, -1)
