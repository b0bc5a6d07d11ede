"""The machine under the figures: what it is, how fast it multiplies, how much memory is taken."""
from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from processor.retrieval.search.budget import TILES
from tools.benchmarks.retrieval_baseline import PRODUCTS

LEAST_SECONDS = 1 / 3  # of calls whose median is a rate


def describe(device: str) -> dict[str, str]:
    """The machine and the libraries, by name; also the variables that steer libraries of linear algebra."""
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out = {
        "CPU": f"{cpu}; cores: {cores}, torch's threads: {torch.get_num_threads()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
                    f"{platform.system()}",
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        out["accelerator"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
    steering = [f"{name}={value}" for name, value in sorted(os.environ.items())
                if re.match("(OMP|MKL|OPENBLAS|BLIS|KMP|ONEDNN|DNNL|ATEN)_", name)]
    if steering:
        out["environment"] = ", ".join(steering)
    return out


def _field(path: str, name: str) -> str | None:
    """The first value of `name` in a /proc file of 'name : value' lines."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


class Meter:
    """Adds up the seconds spent inside `with meter:` and keeps the highest memory there, above that at construction.

    On a CPU memory is the resident set; Linux lets its peak be reset, elsewhere it is the growth of the process's
    highest. On CUDA it is what torch has allocated on the device.
    """

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.peak_bytes = device, 0.0, 0
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is no part of the start
        self._reset()
        self._base = self._highest()

    def __enter__(self) -> Meter:
        self._reset()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
        self.peak_bytes = max(self.peak_bytes, self._highest() - self._base)

    def _reset(self) -> None:
        """Let the highest so far be what is held now."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def _highest(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        if peak := _field("/proc/self/status", "VmHWM"):
            return int(peak.split()[0]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def product_rate(rows: int, inner: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of [rows, inner] · [inner, rows]."""
    a, b = (torch.randn(rows, inner, device=device).to(dtype) for _ in range(2))
    return 2 * rows**2 * inner / _median_seconds(lambda: torch.mm(a, b.T), device)


def training_peak(square: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large square product, as convolutions of `dtype` compute.

    On CUDA float32 is TF32 if torch lets convolutions be so, which is its default.
    """
    usual = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return product_rate(square, square, dtype, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = usual


def product_rates(dim: int, square: int, device: str) -> dict[str, float]:
    """FLOP/s of matrix products on `device`: of one of the search's tiles and of a large square.

    bf16's are for information; its square is left out if its tile is slower than float32's, as on processors
    without bf16 products. tf32 is CUDA's. `numpy` and `torch` multiply a square by its own transpose on the CPU, as
    the dense baseline does (numpy then computes one triangle; both are counted as if whole).
    """
    def rate(rows: int, inner: int, dtype: torch.dtype) -> float:
        return product_rate(rows, inner, dtype, device)

    tile, large = (TILES[device][0], dim), (square, square)
    rates = {"float32_tile": rate(*tile, torch.float32), "float32_square": rate(*large, torch.float32),
             "bf16_tile": rate(*tile, torch.bfloat16)}
    if rates["bf16_tile"] > rates["float32_tile"]:
        rates["bf16_square"] = rate(*large, torch.bfloat16)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        rates["tf32_tile"], rates["tf32_square"] = rate(*tile, torch.float32), rate(*large, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = False
    matrix = np.random.default_rng(0).standard_normal((square, square), np.float32)
    for name, product in PRODUCTS.items():
        rates[name] = 2 * square**3 / _median_seconds(lambda product=product: product(matrix, matrix.T), "cpu")
    return rates


def _median_seconds(call: Callable[[], object], device: str) -> float:
    """Of at least five calls and LEAST_SECONDS, after a call that does not count."""
    def seconds_of_call() -> float:
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds_of_call()
    seconds: list[float] = []
    until = time.perf_counter() + LEAST_SECONDS
    while len(seconds) < 5 or time.perf_counter() < until:
        seconds.append(seconds_of_call())
    return statistics.median(seconds)
