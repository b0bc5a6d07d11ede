"""Device choice and mixed precision behind one small interface."""
from __future__ import annotations

import contextlib
import logging

import torch

logger = logging.getLogger(__name__)


def select_device(device: str, device_id: str) -> torch.device:
    """The device that MODEL.DEVICE and MODEL.DEVICE_ID name.

    Raises:
        ValueError: CUDA was asked for and is not there, or has no such device number.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE=cuda, but torch sees no CUDA device; use MODEL.DEVICE auto or cpu")
    number = int(device_id.split(",")[0])
    if number >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE_ID={device_id}, but there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", number)


class Precision:
    """One training step's backward and optimiser calls, with torch.amp's float16 and loss scaling or without.

    On the CPU float16 is slower than float32 and has no loss scaling worth its name, so `fp16` is ignored there.
    """

    def __init__(self, device: torch.device, fp16: bool):
        self.device = device
        self.enabled = fp16 and device.type == "cuda"
        if fp16 and not self.enabled:
            logger.info("SOLVER.FP16 is on, but the device is %s: computing in float32", device.type)
        # torch < 2.3 has the scaler under torch.cuda.amp only.
        make_scaler = getattr(torch.amp, "GradScaler", None)
        self._scaler = make_scaler(device.type, enabled=self.enabled) if make_scaler else (
            torch.cuda.amp.GradScaler(enabled=self.enabled)
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        """Where the forward pass runs."""
        if not self.enabled:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.float16)

    def backward(self, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
        """Backpropagate and leave true, un-scaled gradients in the parameters of all `optimizers`."""
        self._scaler.scale(loss).backward()
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)

    def step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Step each optimiser unless its gradients overflowed."""
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self.enabled and state:
            self._scaler.load_state_dict(state)
