"""nn.DataParallel that computes in the precision it is told to, on every device."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Replicas(nn.DataParallel):
    """A module copied to several devices of this process for each batch.

    torch's own passes autocast on to its threads without the type: bfloat16 would become float16 there.

    Args:
        module: on the first device.
        devices: all of them.
        autocast: makes the context of one replica's forward pass.
    """

    def __init__(self, module: nn.Module, devices: list[torch.device],
                 autocast: Callable[[], contextlib.AbstractContextManager]):
        super().__init__(module, device_ids=devices)
        self._autocast = autocast

    def parallel_apply(self, replicas: list[nn.Module], inputs: Any, kwargs: Any) -> list[Any]:
        return super().parallel_apply([self._in_autocast(replica) for replica in replicas], inputs, kwargs)

    def _in_autocast(self, replica: nn.Module) -> Callable:
        def forward(*inputs: Any, **kwargs: Any) -> Any:
            with self._autocast():
                return replica(*inputs, **kwargs)
        return forward
