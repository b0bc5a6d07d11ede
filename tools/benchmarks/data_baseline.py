"""How reid-strong-baseline and its descendants feed a model: PIL and torchvision, picture by picture, in the workers.

Written for measuring, after their transforms with HARD_AUG (arguments that torchvision has renamed since are given by
their new names).
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.bases import Sample


def read_image(path: Path) -> Image.Image:
    """A whole picture in RGB."""
    return Image.open(path).convert("RGB")


def make_transforms(size: tuple[int, int], flip_prob: float, padding: int, erase_prob: float, mean: Sequence[float],
                    std: Sequence[float]) -> T.Compose:
    """PIL picture -> float32 [3, H, W]."""
    return T.Compose([
        T.Resize(size), T.RandomHorizontalFlip(flip_prob), T.Pad(padding), T.RandomCrop(size),
        T.ColorJitter(0.5, 0.5, 0.5, 0.2), T.RandomAffine(0, scale=(0.9, 1.1), fill=128),
        T.ToTensor(), T.Normalize(mean, std), RandomErasing(erase_prob, mean),
    ])


class RandomErasing:
    """One rectangle of 2 to 40 % of the picture is filled with the mean.

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020, algorithm 1.
    """

    def __init__(self, prob: float, mean: Sequence[float]) -> None:
        self.prob, self.fill = prob, torch.tensor(mean).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        if random.random() >= self.prob:
            return image
        _, height, width = image.shape
        for _ in range(100):
            area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                y, x = random.randint(0, height - h), random.randint(0, width - w)
                image[:, y : y + h, x : x + w] = self.fill
                break
        return image


class ImageDataset(Dataset):
    """(position, index) -> (float32 [3, H, W], pid, camid, path)."""

    def __init__(self, root: Path, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> None:
        self.root, self.samples, self.transform = root, samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int, str]:
        sample = self.samples[item[1]]
        path = self.root / sample.key
        return self.transform(read_image(path)), sample.pid, sample.camid, str(path)


def collate(items: Sequence[tuple[Tensor, int, int, str]]) -> tuple[Tensor, Tensor]:
    """A training batch: [B, 3, H, W] and [B]."""
    images, pids, _, _ = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(pids)
