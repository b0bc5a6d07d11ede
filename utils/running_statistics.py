"""Taking back what a step that went wrong did to the batch norms' running statistics."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.foreach import copy_all


class RunningStatistics:
    """The float buffers of a model. A batch with a NaN in it makes them NaN for good, and with them every test.

    Nothing here waits for the device: what to keep is chosen there, in a handful of operations over all buffers.
    """

    def __init__(self, model: nn.Module):
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._before: Tensor | None = None

    def remember(self) -> None:
        """Call it before the forward pass of a step."""
        self._before = self._joined()

    @torch.no_grad()
    def restore_where(self, wrong: Tensor) -> None:
        """Put back what was remembered where `wrong` (0-d bool on the device) is True."""
        if self._before is None or (wrong.device.type == "cpu" and not wrong):
            return
        chosen = torch.where(wrong, self._before, self._joined()).split(self._sizes)
        chosen = [values.view_as(buffer) for values, buffer in zip(chosen, self._buffers, strict=True)]
        copy_all(self._buffers, chosen)

    def _joined(self) -> Tensor | None:
        return torch.cat([buffer.reshape(-1) for buffer in self._buffers]) if self._buffers else None
