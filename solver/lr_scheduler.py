"""Learning-rate schedules in epochs: a warm-up, then steps or a cosine.

The scheduler is stepped once after each epoch; before the first step the lr is that of epoch 1. Every lr is a closed
formula of the epochs done, so that resuming cannot drift.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupLR(LRScheduler):
    """A warm-up times a decay that a subclass defines; each group keeps its own base lr.

    Args:
        optimizer: its groups' lr at this moment are the base lrs (`initial_lr` is set in each group).
        warmup_factor: factor of the first epoch.
        warmup_epochs: epochs until the factor is 1; 0 = no warm-up.
        warmup_method: "linear", or "constant" (warmup_factor until the warm-up ends).
    Raises:
        ValueError: warmup_method is unknown.
    """

    METHODS = ("linear", "constant")

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_factor: float = 0.01,
        warmup_epochs: int = 10,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if warmup_method not in self.METHODS:
            raise ValueError(
                f"SOLVER.WARMUP_METHOD={warmup_method!r} is unknown; choices: {', '.join(self.METHODS)}"
            )
        self.warmup_factor = warmup_factor
        self.warmup_epochs = warmup_epochs
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def decay(self, epochs_done: int) -> float:
        """Factor on the base lr after `epochs_done` epochs, the warm-up left out."""
        raise NotImplementedError

    def warmup(self, epochs_done: int) -> float:
        if epochs_done >= self.warmup_epochs:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = epochs_done / self.warmup_epochs
        return self.warmup_factor * (1 - progress) + progress

    def get_lr(self) -> list[float]:
        factor = self.warmup(self.last_epoch) * self.decay(self.last_epoch)
        return [base * factor for base in self.base_lrs]


class WarmupMultiStepLR(WarmupLR):
    """The lr is multiplied by gamma after each of the epochs `milestones`.

    Args:
        milestones: increasing epochs, counted from 1; with 25 in it, epoch 26 is the first with a lower lr.
        gamma: the factor.
        The others are WarmupLR's.
    Raises:
        ValueError: milestones do not increase.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.01,
        warmup_epochs: int = 10,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.milestones = [int(epoch) for epoch in milestones]
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"SOLVER.STEPS={self.milestones}: expected increasing epochs")
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_epochs, warmup_method, last_epoch)

    def decay(self, epochs_done: int) -> float:
        return self.gamma ** bisect_right(self.milestones, epochs_done)


class WarmupCosineLR(WarmupLR):
    """Half a cosine from the base lr, in the first epoch after the warm-up, to `min_factor` of it in the last.

    Args:
        max_epochs: epochs of the whole training, the warm-up included.
        min_factor: the last epoch's lr as a share of the base lr, of every group alike.
        The others are WarmupLR's.
    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, eq. 5.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_epochs: int,
        min_factor: float = 0.0,
        warmup_factor: float = 0.01,
        warmup_epochs: int = 10,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_epochs = max_epochs
        self.min_factor = min_factor
        super().__init__(optimizer, warmup_factor, warmup_epochs, warmup_method, last_epoch)

    def decay(self, epochs_done: int) -> float:
        length = max(1, self.max_epochs - 1 - self.warmup_epochs)
        progress = min(1.0, max(0.0, (epochs_done - self.warmup_epochs) / length))
        return self.min_factor + (1.0 - self.min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))
