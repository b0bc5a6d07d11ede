"""Ranger: RAdam under Lookahead."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


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
        fused: False keeps to RAdam's own step throughout; the same up to rounding.
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
        fused: bool = True,
    ):
        if k < 1:
            raise ValueError(f"Ranger: k={k}, expected at least 1")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Ranger: alpha={alpha}, expected 0..1")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=True)
        self.one_pass = fused
        settings = {"k": k, "alpha": alpha, "centralize": centralize}
        self.defaults.update(settings)
        for group in self.param_groups:
            group.update({**settings, **group})

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True  # False in checkpoints from when Ranger decayed by itself

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
        stepped = self._fused_steps()
        for p, _ in stepped:
            p.grad = None  # RAdam's own step leaves them alone
        super().step()
        for p, gradient in stepped:
            p.grad = gradient
        for p, slow in initial.items():
            self.state[p]["slow"] = slow
        self._look_ahead()
        return loss

    def _fused_steps(self) -> list[tuple[Tensor, Tensor]]:
        """Step what torch's fused AdamW can, in one pass over memory instead of ten; returns (parameter, gradient).

        From its sixth step on RAdam is Adam whose lr is multiplied by the rectification, with eps in other units.
        """
        stepped = []
        for group in self.param_groups if self.one_pass else ():
            by_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                state = self.state.get(p) if p.grad is not None else None
                if state and p.stride() == p.grad.stride() == state["exp_avg"].stride():
                    by_step.setdefault(int(state["step"]) + 1, []).append(p)  # a counter on the CPU
            for step, params in by_step.items():
                if self._fused_step(group, params, step):
                    stepped += [(p, p.grad) for p in params]
        return stepped

    def _fused_step(self, group: dict, params: list[Tensor], step: int) -> bool:
        """One step of parameters that have taken equally many; False if RAdam is not rectified yet."""
        beta1, beta2 = group["betas"]
        rho_inf = 2 / (1 - beta2) - 1
        correction2 = 1 - beta2**step
        rho = rho_inf - 2 * step * beta2**step / correction2
        if rho <= 5:
            return False
        rect = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        states = [self.state[p] for p in params]
        for state in states:
            state["step"] += 1
        steps = [torch.tensor(float(step)).to(params[0].device, non_blocking=True)] * len(params)
        torch._fused_adamw_(
            params, [p.grad for p in params], [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states], [], steps, lr=group["lr"] * rect, beta1=beta1, beta2=beta2,
            weight_decay=group["weight_decay"] / rect, eps=group["eps"] / math.sqrt(correction2), amsgrad=False,
            maximize=False)
        return True

    def _look_ahead(self) -> None:
        """After each k-th step of a parameter: slow += alpha * (fast - slow), fast = slow."""
        for group in self.param_groups:
            due = [p for p in group["params"]
                   if p.grad is not None and int(self.state[p]["step"]) % group["k"] == 0]  # a counter on the CPU
            if due:
                slow: list[Tensor] = [self.state[p]["slow"] for p in due]
                torch._foreach_add_(slow, torch._foreach_sub(due, slow), alpha=group["alpha"])
                torch._foreach_copy_(due, slow)
