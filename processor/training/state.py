"""The state of a training run: into a checkpoint, and back."""
from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch.optim import Optimizer

from configs import dump_cfg
from processor.training.build import Training
from processor.training.checkpoints import describe_finetuning
from utils.checkpoint import link_checkpoint, save_checkpoint
from utils.versions import commit, versions

logger = logging.getLogger(__name__)

# What torch and our own parts raise for a state that is not theirs.
_MISFITS = (KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError, ValueError)
# What torch says where not the state is at fault, but the memory or the device.
_OF_THE_MACHINE = re.compile("out of memory|allocate memory|CUDA|HIP|NCCL")


def state_of(run: Training, epochs: int, batches: int) -> dict:
    """All that is needed to test the model, or to go on after `epochs` whole epochs and `batches` of the next."""
    state = {
        "epoch": epochs, "batches": batches, "model": run.model.state_dict(), "criterion": run.criterion.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "scheduler": run.scheduler.state_dict(), "scaler": run.precision.state_dict(),
        "meter": run.meter.state_dict(), "skipped": run.skipped, "best": run.best,
        "config": dump_cfg(run.cfg), "pid_names": run.loaders.data.pid_names, "data_digest": run.data_digest,
        "versions": {**versions(), "commit": commit()},
    }
    if run.teacher is not None:  # who it is: it stays as it is in its own file
        state["teacher"] = {"file": str(run.teacher.path), "digest": run.teacher.digest}
    if run.average is not None:
        state |= {"ema": run.average.state_dict(), "ema_steps": run.average.steps}
    return state


def save_position(run: Training, epochs: int, batches: int, together: bool = True) -> None:
    """Write latest.pth alone, in the middle of an epoch.

    together: all processes call it, and their means of the epoch so far are kept.
    """
    meter = run.meter.state_dict()
    meters = run.workers.gather_objects(meter) if together else [meter]
    if run.workers.is_main:
        save_checkpoint(run.checkpoints.latest, {**state_of(run, epochs, batches), "meters": meters})
        logger.info("saved %s after epoch %d and %d batches", run.checkpoints.latest, epochs, batches)


def save_epoch(run: Training, epoch: int, is_best: bool) -> bool:
    """Write NAME_EPOCH.pth if it is due, best.pth if the epoch is the best, and with either of them latest.pth.

    Returns whether there was anything to write, the same in every process.
    """
    solver, files = run.cfg.SOLVER, run.checkpoints
    due = epoch % solver.CHECKPOINT_PERIOD == 0 or epoch == solver.MAX_EPOCHS
    paths = [files.of_epoch(epoch)] * due + [files.best] * is_best
    if not paths or not run.workers.is_main:
        return bool(paths)
    save_checkpoint(paths[0], state_of(run, epoch, 0))
    for other in [*paths[1:], files.latest]:
        link_checkpoint(paths[0], other)
    logger.info("saved %s%s", paths[0], ", the best so far" if is_best else "")
    if due and solver.CHECKPOINT_KEEP:
        files.remove_old(epoch, solver.CHECKPOINT_KEEP)
    return True


def restore(run: Training, path: Path, checkpoint: dict) -> tuple[int, int]:
    """Put a checkpoint's state into a freshly built run; return the whole epochs and the batches of the next.

    Raises:
        ValueError: it was trained on other lists, or learned from another teacher.
    """
    if checkpoint["data_digest"] != run.data_digest:
        raise ValueError(f"{path} was trained on other training lists than those there are now; train in another "
                         f"OUTPUT_DIR{describe_finetuning(path)}, or anew with --force, which moves this one aside")
    then, now = checkpoint.get("teacher"), run.teacher
    if then is not None and not (isinstance(then, dict) and isinstance(then.get("digest"), str) and "file" in then):
        raise ValueError(f"{path}: damaged, or of another program: teacher is not what a training writes")
    if (then and then["digest"]) != (now and now.digest):
        raise ValueError(f"{path} learned from {_teacher(then and then['file'], then and then['digest'])}, and "
                         f"SOLVER.DISTILL_FROM is {_teacher(now and now.path, now and now.digest)}; name that one, "
                         f"train in another OUTPUT_DIR{describe_finetuning(path)}, or anew with --force, which moves "
                         "this one aside")
    try:
        _take(run, checkpoint)
    except _MISFITS as error:
        if _OF_THE_MACHINE.search(str(error)):  # to remove a sound checkpoint would be the wrong advice
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: damaged, or of another program: its state does not fit this training "
                         f"({type(error).__name__}: {reason}); remove it, and the checkpoint before it is gone on from"
                         ) from error
    epochs, batches = checkpoint["epoch"], checkpoint.get("batches", 0)
    if epochs or batches:  # these steps came before any of the schedule, though in another process; torch would warn
        run.optimizers[0]._opt_called = True
    logger.info("going on from %s after epoch %d%s", path, epochs, f" and {batches} batches" if batches else "")
    return epochs, batches


def _take(run: Training, checkpoint: dict) -> None:
    """Put the state of all parts of a run into them."""
    run.model.load_state_dict(checkpoint["model"])
    run.criterion.load_state_dict(checkpoint["criterion"])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
        groups = _stepped_as_here(state["param_groups"], optimizer)
        _check_groups(groups, optimizer)
        optimizer.load_state_dict({**state, "param_groups": groups})
        _check_moments(optimizer)
    run.scheduler.load_state_dict(checkpoint["scheduler"])
    run.precision.load_state_dict(checkpoint["scaler"])
    if run.average is not None:
        run.average.load_state_dict(checkpoint["ema"], checkpoint["ema_steps"])
    if "meter" in checkpoint:  # checkpoints of epochs' ends used to have none of these
        run.meter.load_state_dict(_meter_of(run, checkpoint), run.precision.device)
        run.skipped.copy_(checkpoint["skipped"])
        run.best = dict(checkpoint["best"])


def _meter_of(run: Training, checkpoint: dict) -> dict:
    """This process' own means of the epoch so far; those over all processes if there were more or fewer of them."""
    meters = checkpoint.get("meters", [checkpoint["meter"]])
    if len(meters) == run.workers.size or meters[0]["sums"] is None:
        return meters[run.workers.rank % len(meters)]
    return {**meters[0], "sums": torch.stack([meter["sums"].cpu() for meter in meters]).mean(0)}


def _teacher(file: object, digest: str | None) -> str:
    return f"the teacher {file} ({digest[:12]})" if digest else "no teacher"


def _stepped_as_here(groups: list[dict], optimizer: Optimizer) -> list[dict]:
    """Saved groups with this optimiser's way of stepping (fused or not), which depends on torch and the device."""
    ways = [{key: group[key] for key in ("fused", "foreach", "capturable") if key in group}
            for group in optimizer.param_groups]
    return [{**group, **way} for group, way in zip(groups, ways, strict=True)]


def _check_groups(groups: list[dict], optimizer: Optimizer) -> None:
    """Raise ValueError if a saved group has something else where this optimiser has a number.

    Torch takes whatever stands there, and the first step fails.
    """
    for group, here in zip(groups, optimizer.param_groups, strict=True):
        for key, value in here.items():
            if isinstance(value, (int, float)) and not isinstance(group.get(key, value), (int, float)):
                raise ValueError(f"{key} of an optimiser is a {type(group[key]).__name__}")


def _check_moments(optimizer: Optimizer) -> None:
    """Raise ValueError if what an optimiser keeps of a weight has neither the weight's shape nor one number."""
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape != weight.shape and value.numel() != 1:
                raise ValueError(f"{name} of a weight {list(weight.shape)} is {list(value.shape)}")
