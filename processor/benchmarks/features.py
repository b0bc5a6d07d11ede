"""Clustered features made for measuring: the same for every implementation, in chunks, from a seed."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 8192          # rows
IMAGES = (10, 30)     # of an identity, fewest and most
# A trained network's features vary in a few dozen directions, however long they are.
DIRECTIONS = 64
NOISE = (0.375, 2.125)  # how far an image lies from its identity's centre, in standard deviations of the centres


def make_pids(size: int, seed: int = 0) -> np.ndarray:
    """[size] int64 identities in random order, each of IMAGES images (the last one of what is left)."""
    rng = np.random.default_rng((seed, 0))
    counts = rng.integers(IMAGES[0], IMAGES[1] + 1, size // IMAGES[0] + 1)
    return rng.permutation(np.repeat(np.arange(len(counts)), counts)[:size])


def make_features(pids: np.ndarray, dim: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Unit features [N, dim] float32 around their identities' centres, on `device`.

    They are drawn on the CPU, chunk by chunk, each a function of (seed, position): every device gets the same ones.
    """
    def normal(number: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))

    directions = min(DIRECTIONS, dim)
    centres = normal(0, int(pids.max()) + 1, directions)
    mixing = normal(1, directions, dim)
    out = torch.empty(len(pids), dim, device=device)
    for number, start in enumerate(range(0, len(pids), CHUNK), 2):
        who = torch.from_numpy(pids[start : start + CHUNK])
        drawn = normal(number, len(who), directions + 1)
        # The normal's distribution function makes the last column uniform: some images are harder than others.
        noise = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.special.ndtr(drawn[:, -1:])
        out[start : start + CHUNK] = F.normalize((centres[who] + noise * drawn[:, :-1]) @ mixing)
    return out
