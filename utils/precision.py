"""Device choice and mixed precision: one interface over torch.amp, NVIDIA Apex and plain float32.

A training step calls the same methods whatever is behind them:

    with precision.autocast(): ...               the forward pass
    precision.backward(loss, optimizers, last)   gradients, un-scaled after the last of several
    precision.step(optimizers, skip)             one step, or none where `skip` says that it went wrong
"""
from __future__ import annotations

import contextlib
import functools
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

logger = logging.getLogger(__name__)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_apex_amp: Any = None  # Apex's amp module from the moment that it patches torch's functions


def select_devices(device: str, device_id: str) -> list[torch.device]:
    """All devices that MODEL.DEVICE and MODEL.DEVICE_ID name; on the CPU there is one.

    Raises:
        ValueError: CUDA was asked for and is not there, has no such device number, or one is named twice.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return [torch.device("cpu")]
    if not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE=cuda, but torch sees no CUDA device; use MODEL.DEVICE auto or cpu")
    numbers = [int(number) for number in device_id.split(",")]
    if max(numbers) >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE_ID={device_id}, but there are {torch.cuda.device_count()} CUDA devices")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"MODEL.DEVICE_ID={device_id} names a device twice")
    return [torch.device("cuda", number) for number in numbers]


def select_device(device: str, device_id: str) -> torch.device:
    """The first of `select_devices`."""
    return select_devices(device, device_id)[0]


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 itself (AMX, AVX-512 BF16, Arm BF16); False if that is not known.

    Read from the flags that the kernel lists, not measured: a run that goes on elsewhere or later must not change its
    arithmetic with the load of the machine.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^(flags|Features)\b.*\b(amx_bf16|avx512_bf16|bf16)\b", text, re.MULTILINE) is not None


def in_float32(device: torch.device) -> contextlib.AbstractContextManager:
    """The context of losses, margins, distances and statistics: autocast of either backend is off."""
    # None where there is nothing to switch off: an exported program would have it in it.
    plain = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else (
        contextlib.nullcontext())
    if _apex_amp is None:
        return plain
    both = contextlib.ExitStack()
    both.enter_context(plain)
    both.enter_context(_apex_amp.disable_casts())
    return both


def _amp_dtype(device: torch.device, fp16: bool, dtype: str, training: bool) -> torch.dtype | None:
    """The type that the forward pass computes in, None for float32; logs a type that is not what was asked for."""
    if not fp16:
        return None
    if device.type == "cuda":
        chosen = _DTYPES.get(dtype, torch.float16)
        if chosen is torch.bfloat16 and not torch.cuda.is_bf16_supported():
            raise ValueError("SOLVER.AMP_DTYPE=bfloat16, but this CUDA device has none; use float16")
        return chosen
    if dtype == "bfloat16" or (dtype == "auto" and training and cpu_has_bfloat16()):
        return torch.bfloat16
    # float16 is slower than float32 here; an embedding is worth more digits than bfloat16's unless that was asked for.
    logger.info("SOLVER.FP16 is on, but the device is %s: computing in float32", device.type)
    return None


def make_precision(device: torch.device, fp16: bool, backend: str = "auto", dtype: str = "auto",
                   training: bool = False) -> Precision:
    """The backend of SOLVER.AMP_BACKEND: auto and torch are torch.amp.

    Raises:
        ValueError: apex was asked for and is not installed, or cannot be used here.
    """
    if backend != "apex" or not fp16 or not training:
        return Precision(device, fp16, dtype, training)
    if device.type != "cuda":
        raise ValueError("SOLVER.AMP_BACKEND=apex needs a CUDA device; use torch")
    return ApexPrecision(device, _import_apex())


class Precision:
    """torch.amp with float16 and loss scaling, torch.amp with bfloat16, or float32.

    Args:
        fp16: mixed precision or not (SOLVER.FP16).
        dtype: "auto", "float16" or "bfloat16" (SOLVER.AMP_DTYPE). auto is float16 on CUDA; on a CPU that has bfloat16
            it is that in training, and float32 otherwise.
        training: whether a model is trained, not tested.
    Raises:
        ValueError: the device cannot compute in the type.
    """

    def __init__(self, device: torch.device, fp16: bool, dtype: str = "auto", training: bool = False):
        self.device = device
        self.dtype = _amp_dtype(device, fp16, dtype, training)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    @property
    def enabled(self) -> bool:
        """Whether it is anything but float32."""
        return self.dtype is not None

    def __str__(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def prepare(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        """Called once, with the model on its device and before it is wrapped for several."""

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of the forward pass."""
        if not self.enabled:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor, optimizers: list[Optimizer], last: bool = True) -> None:
        """Backpropagate; after the `last` of a step's losses the gradients of all `optimizers` are un-scaled."""
        self._scaler.scale(loss).backward()
        if last:
            for optimizer in optimizers:
                self._scaler.unscale_(optimizer)

    def step(self, optimizers: list[Optimizer], skip: Tensor | None = None) -> None:
        """Step all optimisers, or none.

        Args:
            skip: 0-d bool tensor; True leaves every weight and every state as it is. It stays on the device if the
                optimisers can read it there (the fused ones), and is waited for otherwise.
        """
        skip_here = None  # skip, once the host has waited for it
        for optimizer in optimizers:
            if skip is None:
                optimizer.step()
            elif _reads_found_inf(optimizer):
                optimizer.grad_scale, optimizer.found_inf = None, skip.float()
                optimizer.step()
                del optimizer.grad_scale, optimizer.found_inf
            else:
                skip_here = bool(skip) if skip_here is None else skip_here
                if not skip_here:
                    optimizer.step()
        if self._scaler.is_enabled():
            self._scaler.update()

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)


def _reads_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimiser reads `found_inf` on the device, as torch's fused ones do.

    Not SGD's very first step: skipping that, torch's fused one leaves its momentum uninitialised.
    """
    first_of_sgd = not optimizer.state and any(group.get("momentum") for group in optimizer.param_groups)
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not first_of_sgd


# ------------------------------------------------------------------ Apex
def _import_apex() -> Any:
    """Apex's amp module.

    Raises:
        ValueError: it is not there; the message names the other program of that name.
    """
    advice = "use SOLVER.AMP_BACKEND torch, which computes the same"
    try:
        from apex import amp
    except ImportError as error:
        raise ValueError(
            "SOLVER.AMP_BACKEND=apex, but NVIDIA Apex with apex.amp is not installed (the package `apex` of the Python "
            "package index is another program, and Apex itself dropped apex.amp in 2025); " + advice) from error
    if not hasattr(amp, "initialize"):
        raise ValueError("SOLVER.AMP_BACKEND=apex, but the installed `apex.amp` has no `initialize`: it is not NVIDIA "
                         "Apex, or one without apex.amp; " + advice)
    return amp


class ApexPrecision(Precision):
    """NVIDIA Apex's amp at its level O1, as the original used it.

    Apex patches torch's functions when the model is prepared; its loss scaler un-scales when `scale_loss` ends and
    makes the next step of each optimiser a no-op if a gradient overflowed.
    """

    def __init__(self, device: torch.device, amp: Any):
        super().__init__(device, fp16=False)
        self._amp = amp
        self.dtype = torch.float16

    def prepare(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        global _apex_amp
        self._amp.initialize(model, optimizers, opt_level="O1", verbosity=0)
        _apex_amp = self._amp

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, optimizers: list[Optimizer], last: bool = True) -> None:
        with self._amp.scale_loss(loss, optimizers, delay_unscale=not last) as scaled:
            scaled.backward()

    def step(self, optimizers: list[Optimizer], skip: Tensor | None = None) -> None:
        skipped = skip is not None and bool(skip)
        for optimizer in optimizers:
            # An optimiser that Apex made skip must be called, or it would skip its next step instead.
            if not skipped or getattr(getattr(optimizer, "_amp_stash", None), "already_patched", False):
                optimizer.step()

    def state_dict(self) -> dict:
        return self._amp.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if state:
            self._amp.load_state_dict(state)
