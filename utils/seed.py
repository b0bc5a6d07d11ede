"""Random draws as a function of (seed, epoch, position, purpose).

Nothing here depends on how many draws came before or on which process drew, so a run that is resumed, sharded or
given another number of workers draws the same numbers.
"""
from __future__ import annotations

import os
import random
import zlib

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 whose output bits each depend on every input bit.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, epoch: int, positions: np.ndarray, purpose: str, n: int) -> np.ndarray:
    """n numbers in [0, 1) for each position.

    Args:
        seed, epoch: any integers >= 0.
        positions: [B] integers, an image's place in the epoch's sequence.
        purpose: what the numbers are for; another purpose gives independent numbers.
        n: how many a position needs.
    Returns:
        [B, n] float64.
    """
    key = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, zlib.crc32(purpose.encode())):
            key = _mix(key * _GOLDEN + np.uint64(part) + _GOLDEN)
        rows = _mix(key + (np.asarray(positions).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        bits = _mix(rows[:, None] + (np.arange(n, dtype=np.uint64)[None, :] + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """A numpy generator for an epoch's permutations, a function of its arguments alone."""
    return np.random.Generator(np.random.PCG64([seed, epoch, zlib.crc32(purpose.encode())]))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch: what is left of global draws is the weights' initialisation."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for third-party code that draws from the global state
    torch.manual_seed(seed)


def seed_step(seed: int, epoch: int, *position: int) -> None:
    """Seed torch's generators (dropout) for a piece of a step, as a function of its place in the run."""
    # 63 bits: torch on some devices takes no more.
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, *position]).generate_state(1, np.uint64)[0]) >> 1)


def choose_algorithms(deterministic: bool) -> None:
    """The same bits at every run on a CUDA device, or the fastest convolutions; the CPU's are the same anyway."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's BLAS is first used
    # An operation without a deterministic form warns instead of ending a run of days.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
