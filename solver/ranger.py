"""Ranger: RAdam under Lookahead."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from utils.foreach import copy_all


class Ranger(torch.optim.RAdam):
    """RAdam whose weights are pulled back to slow ones every k steps; decay is decoupled from the gradient.

    The slow weights start at the parameters' initial values. They and the step counters are in the state_dict, so
    that a resumed run takes the very same steps.

    Args:
        params: parameters or groups.
        lr, betas, eps, weight_decay: as in torch.optim.RAdam; each step first multiplies weights by 1 - lr * decay.
        k: steps between two updates of the slow weights.
        alpha: how far the slow weights go towards the fast ones then, 0..1.
        centralize: True subtracts from the gradient of each weight of two or more dimensions its mean over all
            dimensions but the first (gradient centralisation); `.grad` is changed in place.
    Raises:
        ValueError: k < 1, or alpha is outside 0..1.
    Source: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020, alg. 2; Zhang et al.,
    Lookahead Optimizer, NeurIPS 2019, alg. 1; Yong et al., Gradient Centralization, ECCV 2020, eq. 1.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
        centralize: bool = False,
    ):
        if k < 1:
            raise ValueError(f"Ranger: k={k}, expected at least 1")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Ranger: alpha={alpha}, expected 0..1")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        own = {"k": k, "alpha": alpha, "centralize": centralize}
        self.defaults.update(own)
        for group in self.param_groups:
            group.update({**own, **group})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. With a closure, it is called once for the gradients, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        initial = {}  # slow weights of parameters that move for the first time
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for p in moving:
                if "slow" not in self.state[p]:
                    initial[p] = p.clone()
                if group["centralize"] and p.dim() > 1:
                    p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.dim())), keepdim=True))
            if moving and group["weight_decay"]:
                torch._foreach_mul_(moving, 1.0 - group["lr"] * group["weight_decay"])
        self._step_without_decay()
        for p, slow in initial.items():
            self.state[p]["slow"] = slow
        self._look_ahead()
        return loss

    def _step_without_decay(self) -> None:
        """RAdam's step; its own decoupled decay came with torch 2.1 only, so that we do it ourselves."""
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _look_ahead(self) -> None:
        """After each k-th step of a parameter: slow += alpha * (fast - slow), fast = slow."""
        for group in self.param_groups:
            due = [p for p in group["params"]
                   if p.grad is not None and int(self.state[p]["step"]) % group["k"] == 0]  # a counter on the CPU
            if due:
                slow: list[Tensor] = [self.state[p]["slow"] for p in due]
                torch._foreach_add_(slow, torch._foreach_sub(due, slow), alpha=group["alpha"])
                copy_all(due, slow)
