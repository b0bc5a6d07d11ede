"""Learning-rate schedules in epochs: a warm-up, then steps or a cosine.

The scheduler is stepped once after each epoch; before the first step the lr is that of epoch 1. Every lr is a closed
formula of the epochs done, so that resuming cannot drift.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupLR(LambdaLR):
    """The base lr of each group times a warm-up and a decay, both functions of the epochs done.

    Args:
        optimizer: its groups' lr at this moment are the base lrs (`initial_lr` is set in each group).
        decay: epochs done -> factor on the base lr, the warm-up left out.
        warmup_factor: factor of the first epoch.
        warmup_epochs: epochs until the factor is 1; 0 = no warm-up.
        warmup_method: "linear", or "constant" (warmup_factor until the warm-up ends).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: Callable[[int], float],
        warmup_factor: float = 0.01,
        warmup_epochs: int = 10,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.warmup_epochs = warmup_epochs

        def warmup(epochs_done: int) -> float:
            if epochs_done >= warmup_epochs:
                return 1.0
            progress = epochs_done / warmup_epochs if warmup_method == "linear" else 0.0
            return warmup_factor * (1 - progress) + progress

        super().__init__(optimizer, lambda epochs_done: warmup(epochs_done) * decay(epochs_done), last_epoch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As LambdaLR, but the groups' lr is that of this schedule, which may go on otherwise than the saved one.

        The states of checkpoints written before this class was one have no `lr_lambdas`.
        """
        super().load_state_dict({"lr_lambdas": [None] * len(self.lr_lambdas), **state_dict})
        self._last_lr = [lr * factor(self.last_epoch)
                         for lr, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class WarmupMultiStepLR(WarmupLR):
    """The lr is multiplied by gamma after each of the epochs `milestones`.

    Args:
        milestones: increasing epochs, counted from 1; with 25 in it, epoch 26 is the first with a lower lr.
        gamma: the factor.
        warmup, named_warmup: WarmupLR's arguments after `decay`, in the same order or by name.
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, *warmup, **named_warmup):
        def decay(epochs_done: int) -> float:
            return gamma ** bisect_right(milestones, epochs_done)

        super().__init__(optimizer, decay, *warmup, **named_warmup)


class WarmupCosineLR(WarmupLR):
    """Half a cosine from the base lr, in the first epoch after the warm-up, to `min_factor` of it in the last.

    Args:
        max_epochs: epochs of the whole training, the warm-up included.
        min_factor: the last epoch's lr as a share of the base lr, of every group alike.
        warmup, named_warmup: as for WarmupMultiStepLR.
    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, eq. 5.
    """

    def __init__(self, optimizer: Optimizer, max_epochs: int, min_factor: float = 0.0, *warmup, **named_warmup):
        def decay(epochs_done: int) -> float:
            length = max(1, max_epochs - 1 - self.warmup_epochs)
            progress = min(1.0, max(0.0, (epochs_done - self.warmup_epochs) / length))
            return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

        super().__init__(optimizer, decay, *warmup, **named_warmup)


class TransformerCosineLR(WarmupLR):
    """The schedule of TransReID and its descendants: up from 0.01 of the base lr, then half a cosine down to its end.

    In epoch e, counted from 1, of E, with a warm-up of W: (0.01 + 0.99 e / W) of the lr of each group while e < W, then
    the cosine of e / E from the group's lr to 0.002 of `base_lr`, for every group the same. (The cosine does not begin
    at the end of the warm-up, but has gone on beside it.)

    Args:
        max_epochs, warmup_epochs: E, W.
        base_lr: SOLVER.BASE_LR.
    """

    def __init__(self, optimizer: Optimizer, max_epochs: int, warmup_epochs: int, base_lr: float):
        def factor(lr: float, epochs_done: int) -> float:
            epoch = epochs_done + 1
            if epoch < warmup_epochs:
                start = 0.01 * base_lr / lr
                return start + (1.0 - start) * epoch / warmup_epochs
            end = 0.002 * base_lr / lr
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, epoch / max_epochs)))

        LambdaLR.__init__(self, optimizer, [partial(factor, group["lr"]) for group in optimizer.param_groups])
