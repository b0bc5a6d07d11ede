"""Augmentation of a uint8 batch on the device it trains on, each image with its own draw.

The order is the lineage's: flip, pad and crop, colour jitter, scale, normalise, erase. What it did not have stands
where its authors put it: permuted channels and AutoAugment come first, patches after the crop, AugMix and grey after
the scale. Every draw is a function of (seed, epoch, position, purpose), made on the CPU as a few numbers an image. All
operations work on many images at once, and none waits for the device. On a CPU the lineage's own steps go through the
pixels of one image after the other instead (augment/cpu_steps.py), which is twice as fast.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch

from datasets.augment.auto_augment import AUGMIX_DRAWS, AUTO_AUGMENT_DRAWS, augmix_, auto_augment
from datasets.augment.channels import permute_channels
from datasets.augment.color import color_jitter_, draw_jitter
from datasets.augment.cpu_steps import PixelSteps
from datasets.augment.geometry import Crops, draw_crops, draw_scale, flip_and_crop, scale
from datasets.augment.rectangles import (
    ERASE_DRAWS,
    GRAY_DRAWS,
    PATCH_DRAWS,
    draw_erased,
    draw_grayed,
    draw_patches,
    erase_,
    grayscale_,
    paste_patches_,
)
from datasets.augment.tensors import on_device, to_planes
from utils.parallel import in_threads, thread_count
from utils.seed import uniform

Draw = Callable[[str, int], np.ndarray]  # (purpose, n) -> [B, n] numbers in [0, 1)

# Pixels of a slice on a CPU: their planes and what an operation adds to them stay in a core's cache.
_CACHED_PIXELS = 2**16


class Normalize:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], (x / 255 - mean) / std, in channels_last memory."""

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        # Whole rows at a time: an operation with an operand of three numbers would go from pixel to pixel.
        x = images.flatten(2).to(torch.float32) / 255  # [B, H, W * 3]
        mean, std = (channels.repeat(images.shape[2]) for channels in self._on(x))
        return x.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)

    def normalize_(self, x: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] in 0..1 -> normalised, in place."""
        mean, std = (channels.view(3, 1, 1) for channels in self._on(x))
        return x.sub_(mean).mul_(1 / std)

    def _on(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean.to(x.device, non_blocking=True), self.std.to(x.device, non_blocking=True)


@dataclass(frozen=True)
class Recipe:
    """What is done to a training image; probabilities are in 0..1.

    Attributes:
        flip: probability of the mirror image.
        padding: black pixels added on every side before the random crop back to the image's size.
        erase: probability of erasing one rectangle (area 2-40 %, aspect 0.3-3.3); it is filled with the mean.
        hard: colour jitter (.5, .5, .5, .2) in random order and scaling by 0.9-1.1 as well.
        patch: probability of pasting a patch of another image of the batch.
        auto_augment, augmix: probabilities of AutoAugment's policy for ImageNet and of AugMix.
        gray_patch, gray: probabilities that a rectangle, and that the whole image, turns to grey.
    Source: Luo et al., Bag of Tricks, CVPRW 2019, for the first three; the others are named where they are.
    """

    flip: float = 0.0
    padding: int = 0
    erase: float = 0.0
    hard: bool = False
    patch: float = 0.0
    auto_augment: float = 0.0
    augmix: float = 0.0
    gray_patch: float = 0.0
    gray: float = 0.0

    def is_lineage(self) -> bool:
        """True: all that follows the crop is what the lineage itself did."""
        return not (self.patch or self.augmix or self.gray_patch or self.gray)


class TrainAugment(Normalize):
    """The training transform of a whole batch.

    Args:
        mean, std: of the channels, images in 0..1.
        recipe: what is done.
        seed: of every draw.
        channels: [num_classes, 3] the order of a class's channels; None: all keep theirs.
    """

    def __init__(self, mean: list[float], std: list[float], recipe: Recipe, seed: int,
                 channels: np.ndarray | None = None):
        super().__init__(mean, std)
        self.recipe, self.seed, self.channels = recipe, seed, channels

    def __call__(self, images: torch.Tensor, epoch: int, positions: np.ndarray, pids: torch.Tensor | None = None,
                 out: torch.Tensor | None = None) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: [B, H, W, 3] uint8, on any device; left as it is.
            epoch: counted from 1.
            positions: [B] each image's place in the epoch's sequence.
            pids: [B] class indices, on the CPU; only read if `channels` are given.
            out: an earlier result that is not needed any more: if it has the size, it is overwritten and returned,
                because a CPU gets at fresh memory slowly (a seventh of all its time for a batch).
        Returns:
            [B, 3, H, W] float32, normalised. An image's result is the same in any batch, but for pasted patches.
        """
        recipe = self.recipe

        def draw(purpose: str, n: int) -> np.ndarray:
            return uniform(self.seed, epoch, positions, purpose, n)

        if self.channels is not None:
            images = permute_channels(images, self.channels[pids.numpy()])
        if recipe.auto_augment:
            images = auto_augment(images, draw("auto augment", AUTO_AUGMENT_DRAWS), recipe.auto_augment)
        crops = draw_crops(draw("flip and crop", 3), recipe.flip, recipe.padding)
        batch, height, width, _ = images.shape
        if out is None or out.shape != (batch, 3, height, width):
            out = torch.empty(batch, 3, height, width, device=images.device)
        threads = thread_count(images.device)
        if images.device.type == "cpu" and recipe.is_lineage():
            work = partial(self._pixel_steps(crops, (height, width), draw).run, images.numpy(), out.numpy())
            # A thread takes one image after the other: other processes may slow it down.
            rows = deque([*range(batch), *[None] * threads])
            slices = [iter(rows.popleft, None)] * threads
        else:
            work = self._planes_worker(flip_and_crop(images, crops, recipe.padding), out, draw)
            slices = self._slices(images, draw)
        for _ in in_threads(work, slices, threads):
            pass
        return out

    def _pixel_steps(self, crops: Crops, size: tuple[int, int], draw: Draw) -> PixelSteps:
        """What is done to each image of a batch by itself."""
        recipe = self.recipe
        cv2.setNumThreads(0)  # an image a thread: OpenCV's own threads would fight with them over the cores
        return PixelSteps(
            self.mean.numpy(), self.std.numpy(), crops, recipe.padding,
            jitter=draw_jitter(draw("color jitter", 8)) if recipe.hard else None,
            zoom=draw_scale(draw("scale", 1)[:, 0]) if recipe.hard else None,
            erased=draw_erased(draw("erase", ERASE_DRAWS), recipe.erase, *size) if recipe.erase else None)

    def _planes_worker(self, images: torch.Tensor, out: torch.Tensor, draw: Draw) -> Callable[[np.ndarray], None]:
        """What is done to given rows of the cropped batch, side by side."""
        steps = list(self._steps(images, draw))

        def work(rows: np.ndarray) -> None:
            index = on_device(rows, images.device)
            x = to_planes(images.index_select(0, index))
            for step, *numbers in steps:
                x = step(x, *(values[rows] for values in numbers))
            out.index_copy_(0, index, x)
        return work

    def _steps(self, images: torch.Tensor, draw: Draw) -> Iterator[tuple]:
        """What follows the crop: functions of planes [n, 3, H, W], each with its further arguments for the batch."""
        recipe, size = self.recipe, images.shape[1:3]
        if recipe.patch:
            yield partial(paste_patches_, images), *draw_patches(draw("random patch", PATCH_DRAWS), recipe.patch, *size)
        if recipe.hard:
            yield color_jitter_, *draw_jitter(draw("color jitter", 8))
            yield scale, draw_scale(draw("scale", 1)[:, 0])
        if recipe.augmix:
            yield partial(augmix_, recipe.augmix), draw("augmix", AUGMIX_DRAWS)
        if recipe.gray_patch or recipe.gray:
            yield grayscale_, draw_grayed(draw("grayscale", GRAY_DRAWS), recipe.gray_patch, recipe.gray, *size)
        yield (self.normalize_,)
        if recipe.erase:
            yield erase_, draw_erased(draw("erase", ERASE_DRAWS), recipe.erase, *size)

    def _slices(self, images: torch.Tensor, draw: Draw) -> Iterator[np.ndarray]:
        """The rows to work on at once: all on an accelerator, on a CPU as many as a core's cache holds."""
        batch, height, width, _ = images.shape
        rows, length = np.arange(batch), batch
        if images.device.type == "cpu":
            length = max(1, _CACHED_PIXELS // (height * width))
            if self.recipe.hard:
                rows = np.argsort(draw_jitter(draw("color jitter", 8)).turns, kind="stable")
        for start in range(0, batch, length):
            yield rows[start:start + length]
