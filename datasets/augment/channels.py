"""Channel-shuffled identities: a second life for every identity, its pictures with their channels permuted.

NAIC's pictures of 2020 have encrypted colours, so a person whose red and blue have changed places is a person that the
data might well hold. All pictures of one identity are permuted alike, and never left as they are.
"""
from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from datasets.augment.tensors import on_device
from datasets.bases import ReIDData
from utils.seed import uniform

_PERMUTATIONS = np.array([(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


def channel_permutations(pid_names: Sequence[str], seed: int) -> np.ndarray:
    """[len(pid_names), 3] the order of the channels that each identity gets, a function of (seed, name)."""
    keys = np.array([zlib.crc32(name.encode()) for name in pid_names])
    return _PERMUTATIONS[np.floor(uniform(seed, 0, keys, "channels", 1)[:, 0] * len(_PERMUTATIONS)).astype(np.int64)]


def with_shuffled_channels(data: ReIDData, seed: int) -> tuple[ReIDData, np.ndarray]:
    """The training part with every identity a second time, its channels permuted.

    Args:
        data: K identities.
        seed: of the permutations.
    Returns:
        Data with 2 K: class K + k is the second life of class k. It has the same keys, and is named after its
        permutation, `NAME_brg`: a model that starts from another finds a row for it only if that had the same one.
        And [2 K, 3], each class's order of channels.
    """
    permutations = channel_permutations(data.pid_names, seed)
    names = [f"{name}_{''.join('rgb'[channel] for channel in order)}"
             for name, order in zip(data.pid_names, permutations.tolist(), strict=True)]
    train = data.train + [sample._replace(pid=sample.pid + data.num_classes) for sample in data.train]
    channels = np.concatenate([np.tile(np.arange(3), (data.num_classes, 1)), permutations])
    return replace(data, train=train, num_classes=2 * data.num_classes, pid_names=data.pid_names + names), channels


def permute_channels(images: torch.Tensor, channels: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] images, each with its channels in the order of its row of channels [B, 3]."""
    return images.gather(3, on_device(channels, images.device)[:, None, None, :].expand_as(images))
