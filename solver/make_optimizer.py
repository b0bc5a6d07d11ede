"""Optimisers and schedules from the config: which parameter learns how fast."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from solver.lr_scheduler import TransformerCosineLR, WarmupCosineLR, WarmupLR, WarmupMultiStepLR
from solver.ranger import Ranger


def _sgd(groups: list[dict], solver) -> Optimizer:
    """SGD whose momentum begins at zero instead of at the first gradient: the same steps.

    torch's fused SGD cannot step parameters with and without a momentum together, as when a backbone that was held
    begins to learn.
    """
    optimizer = torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True)
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if solver.MOMENTUM:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


# OPTIMIZER_NAME -> builder(groups, cfg.SOLVER). The fused ones step all parameters of a group at once, and read on the
# device whether a step is to be skipped (utils.precision).
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": _sgd,
    "Adam": lambda groups, solver: torch.optim.Adam(groups, fused=True),
    "AdamW": lambda groups, solver: torch.optim.AdamW(groups, fused=True),
    "Ranger": lambda groups, solver: Ranger(groups, centralize=solver.GRADIENT_CENTRALIZATION),
}
# A learned GeM exponent is one number among millions: it gets a larger lr, and no decay towards 0.
GEM_LR_FACTOR = 10.0


def make_optimizer(cfg, model: nn.Module, criterion: nn.Module) -> tuple[Optimizer, Optimizer | None]:
    """The model's optimiser and, if the criterion has class centres, theirs (SGD without momentum or decay).

    Frozen parameters are left out. Those with the same lr and decay share a group:
    weights            BASE_LR                         WEIGHT_DECAY
    biases             times BIAS_LR_FACTOR            WEIGHT_DECAY_BIAS
    backbone (base.*)  times BACKBONE_LR_FACTOR        as above
                       and LAYER_DECAY for each block behind it
    classifier         times 2 with LARGE_FC_LR        as above
    gap.p              times 10                        0

    Args:
        model: a ReIDModel on its device, also inside DataParallel or DistributedDataParallel.
        criterion: what make_loss returned.
    Raises:
        ValueError: the optimiser's name is unknown, or nothing is left to train.
    """
    name = cfg.SOLVER.OPTIMIZER_NAME
    if name not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER_NAME={name!r} is unknown; choices: {', '.join(OPTIMIZERS)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    stages = getattr(getattr(model, "module", model), "base", None)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = key.removeprefix("module.")
            lr, decay = _rates(cfg.SOLVER, key)
            if cfg.SOLVER.LAYER_DECAY != 1 and key.startswith("base."):
                lr *= cfg.SOLVER.LAYER_DECAY ** stages.stages_behind(key.removeprefix("base."))
            groups.setdefault((lr, decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter is left to train: everything is frozen (MODEL.FROZEN)")
    optimizer = OPTIMIZERS[name](
        [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()], cfg.SOLVER
    )
    centers = list(criterion.parameters())
    return optimizer, torch.optim.SGD(centers, lr=cfg.SOLVER.CENTER_LR, fused=True) if centers else None


def _rates(solver, key: str) -> tuple[float, float]:
    """Base lr and weight decay of the parameter named `key`."""
    lr, decay = solver.BASE_LR, solver.WEIGHT_DECAY
    if key.rsplit(".", 1)[-1] == "bias":
        lr, decay = lr * solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS
    if key.startswith("base."):
        lr *= solver.BACKBONE_LR_FACTOR
    if key.startswith("classifier.") and solver.LARGE_FC_LR:
        lr *= 2
    if key == "gap.p":
        lr, decay = lr * GEM_LR_FACTOR, 0.0
    return lr, decay


# LR_SCHEDULER -> builder(optimizer, cfg.SOLVER, the warm-up's arguments).
SCHEDULERS: dict[str, Callable[..., WarmupLR]] = {
    "multistep": lambda optimizer, solver, warmup: WarmupMultiStepLR(
        optimizer, solver.STEPS, solver.GAMMA, **warmup
    ),
    "cosine": lambda optimizer, solver, warmup: WarmupCosineLR(
        optimizer, solver.MAX_EPOCHS, solver.MIN_LR / solver.BASE_LR, **warmup
    ),
}


def make_scheduler(cfg, optimizer: Optimizer) -> WarmupLR:
    """The schedule of SOLVER.LR_SCHEDULER, or TransReID's (SOLVER.WARMUP_METHOD); to be stepped after each epoch."""
    if cfg.SOLVER.WARMUP_METHOD == "cosine" or cfg.MODEL.NAME == "transformer":
        return TransformerCosineLR(optimizer, cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.BASE_LR)
    warmup = {
        "warmup_factor": cfg.SOLVER.WARMUP_FACTOR,
        "warmup_epochs": cfg.SOLVER.WARMUP_EPOCHS,
        "warmup_method": cfg.SOLVER.WARMUP_METHOD,
    }
    return SCHEDULERS[cfg.SOLVER.LR_SCHEDULER](optimizer, cfg.SOLVER, warmup)
