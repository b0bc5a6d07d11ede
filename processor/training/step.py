"""One training step: gradients of a batch, and a step of the optimisers if they are finite."""
from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from datasets.batches import Batch
from loss.distillation import Targets
from processor.training.build import Training
from utils.meter import PhaseTimer
from utils.seed import seed_step

logger = logging.getLogger(__name__)


class TooManySkippedSteps(FloatingPointError):
    """Step after step had no finite loss or gradient; the message says where, with which values and images."""


def train_step(run: Training, batch: Batch, epoch: int, iteration: int,
               timer: PhaseTimer) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step, or none if the loss or a gradient is not finite.

    Returns:
        0-d tensors on the device, nothing waited for: the loss, its terms, the accuracy and the gradient's norm; and
        whether the step was taken (bool).
    """
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    run.statistics.remember()
    values = forward_backward(run, batch, epoch, iteration, timer)
    run.criterion.unweight_center_gradient()
    values["grad_norm"] = clip_gradients(run)
    centers = [parameter.grad.norm() for parameter in run.criterion.parameters() if parameter.grad is not None]
    ok = torch.isfinite(torch.stack([values["loss"], values["grad_norm"], *centers])).all()
    if run.workers.size > 1:  # a loss may be infinite in one process only
        ok = run.workers.mean(ok.float()) == 1
    run.precision.step(run.optimizers, ~ok)
    run.statistics.restore_where(~ok)
    run.skipped = torch.stack([torch.where(ok, 0, run.skipped[0] + 1), run.skipped[1] + ~ok])
    if run.average is not None:
        run.average.update(ok)
    timer.end("optimizer")
    return values, ok


def forward_backward(run: Training, batch: Batch, epoch: int, iteration: int, timer: PhaseTimer) -> dict[str, Tensor]:
    """Gradients of a whole batch, micro-batch by micro-batch; returns the means of the loss, its terms and accuracy."""
    device, parts = run.precision.device, run.cfg.SOLVER.ACCUMULATION_STEPS
    images = run.images = run.loaders.augment(batch.images.to(device, non_blocking=True), epoch, batch.positions,
                                              batch.pids, run.images)
    inputs = {"pids": batch.pids.to(device, non_blocking=True), **run.model.sides(batch.camids, batch.viewids)}
    teacher_sides = {} if run.teacher is None else run.teacher.sides(batch.camids, batch.viewids)
    micro_batches = zip(images.chunk(parts), *(values.chunk(parts) for values in inputs.values()), strict=True)
    means: dict[str, Tensor] = {}
    for part, (micro_images, pids, *sides) in enumerate(micro_batches):
        targets = None
        if run.teacher is not None:
            with run.precision.autocast():
                targets = run.teacher.targets(micro_images, {name: rows.chunk(parts)[part]
                                                             for name, rows in teacher_sides.items()})
            timer.end("teacher")
        seed_step(run.cfg.SOLVER.SEED, epoch, iteration, part, run.workers.rank)
        last = part == parts - 1
        with run.no_sync(not last), run.workers.exchange():
            with run.precision.autocast():
                outputs = run.net(micro_images, pids, *sides)
            total, terms = losses(run, outputs, pids, targets)
            timer.end("forward")
            run.precision.backward(total / parts, run.optimizers, last)
            timer.end("backward")
        # Plain logits: a margin would understate what the classifier knows.
        correct = (outputs["global"].plain_logits.argmax(1) == pids).float().mean()
        for name, value in {"loss": total.detach(), **terms, "acc": correct}.items():
            means[name] = means.get(name, 0.0) + value / parts
    return means


def losses(run: Training, outputs: dict, pids: Tensor,
           targets: Targets | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The criterion over a micro-batch: metric losses and relations see it in all processes, the ID loss in this one
    alone, and so do a teacher's logits."""
    if run.workers.size == 1:
        return run.criterion(outputs, pids, targets=targets)
    gathered = {branch: out if out.metric_feat is None else
                out._replace(metric_feat=run.workers.gather_rows(out.metric_feat)) for branch, out in outputs.items()}
    if targets is not None:
        targets = targets._replace(feat=torch.cat(run.workers.all_gather(targets.feat)))
    return run.criterion(gathered, pids, run.workers.gather_rows(pids), targets)


def clip_gradients(run: Training) -> Tensor:
    """The norm of the model's gradient, before it is scaled down to CLIP_GRAD_NORM (0: it is not)."""
    learning = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    if run.cfg.SOLVER.CLIP_GRAD_NORM:
        return nn.utils.clip_grad_norm_(learning, run.cfg.SOLVER.CLIP_GRAD_NORM)
    return torch.stack(torch._foreach_norm([parameter.grad for parameter in learning])).norm()


def check_health(run: Training, batch: Batch, values: dict[str, Tensor], epoch: int, iteration: int) -> None:
    """Refuse to go on if step after step is skipped; this waits for the device.

    Args:
        batch, values: of the last step.
    Raises:
        TooManySkippedSteps: MAX_SKIPPED_STEPS in a row, or all of an epoch, had no finite loss or gradient.
    """
    limit = min(run.cfg.SOLVER.MAX_SKIPPED_STEPS, run.batches)
    if int(run.skipped[0]) < limit:
        return
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    logger.debug("the last batch: %s", ", ".join(batch.keys))
    names = ", ".join(batch.keys[:8]) + (f" and {len(batch.keys) - 8} more" if len(batch.keys) > 8 else "")
    raise TooManySkippedSteps(
        f"epoch {epoch}, iteration {iteration}: {limit} steps in a row were skipped, because the loss or its gradient "
        f"is not finite ({terms}). The last batch: {names}")
