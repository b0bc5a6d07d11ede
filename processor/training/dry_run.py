"""What a training would do and take, from a few of its steps; nothing is written."""
from __future__ import annotations

import resource
import time
from itertools import count, islice

import torch

from processor.training.build import Training, build, describe_run
from processor.training.step import train_step
from utils.dist import ALONE, Workers
from utils.meter import Laps
from utils.precision import Precision

_STEPS = 3  # measured after one that warms up


def dry_run(cfg, workers: Workers = ALONE) -> str:
    """Build everything, run one step to warm up and up to three to measure, and one evaluation batch.

    Args:
        workers: the processes that would train together; each calls it.
    Returns:
        The plan, for a terminal ("" in all processes but the first): images, identities, steps, parameters, memory,
        expected hours.
    Raises:
        ValueError, FileNotFoundError: what a training of this config would raise before its first step.
    """
    run = build(cfg, workers=workers)
    laps = _measure_steps(run)
    if not workers.is_main:
        return ""
    lines = [describe_run(run), "", *_about_steps(run, laps), *_about_evaluation(run), *_about_memory(run)]
    return "\n".join(lines)


def _measure_steps(run: Training) -> tuple[Laps, int]:
    """The laps of the measured steps, and how many they are."""
    wait = torch.cuda.synchronize if run.precision.device.type == "cuda" else None
    run.hold_backbone(1)
    run.model.train()
    run.loaders.sampler.set_epoch(1)
    laps, steps = Laps(wait), 0
    for iteration, batch in zip(count(1), islice(run.loaders.train, 1 + _STEPS)):
        laps("data")
        train_step(run, batch, 1, iteration, laps)
        if iteration == 1 and run.batches > 1:
            laps = Laps(wait)
        else:
            steps += 1
    return laps, steps


def _about_steps(run: Training, measured: tuple[Laps, int]) -> list[str]:
    cfg, data, (laps, steps) = run.cfg, run.loaders.data, measured
    total = cfg.SOLVER.MAX_EPOCHS * run.batches
    seconds = laps.total / steps
    phases = ", ".join(f"{phase} {100 * laps.share(phase):.0f}%" for phase in laps.seconds)
    learning = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    kind = "P x K" if "triplet" in cfg.DATALOADER.SAMPLER else "shuffled"
    return [
        f"training    {len(data.train):,} images of {data.num_classes:,} identities, "
        f"{cfg.INPUT.SIZE_TRAIN[0]} x {cfg.INPUT.SIZE_TRAIN[1]} pixels",
        f"steps       {cfg.SOLVER.MAX_EPOCHS} epochs x {run.batches:,} {kind} batches of {cfg.SOLVER.IMS_PER_BATCH} = "
        f"{total:,}",
        f"parameters  {learning:,} learn in the first epoch, by {cfg.SOLVER.OPTIMIZER_NAME}",
        f"a step      {seconds:.3f} s, {cfg.SOLVER.IMS_PER_BATCH / seconds:.1f} images/s ({phases}; mean of {steps}, "
        f"{cfg.DATALOADER.NUM_WORKERS} loader processes)",
        f"expected    {total * seconds / 3600:.2f} hours for the steps",
    ]


@torch.inference_mode()
def _about_evaluation(run: Training) -> list[str]:
    if not run.loaders.test:
        reason = run.loaders.no_test_reason if run.cfg.SOLVER.EVAL_PERIOD else "SOLVER.EVAL_PERIOD is 0"
        return [f"evaluation  none: {reason}"]
    tests, views = run.loaders.test.values(), 2 if run.cfg.TEST.FLIP_FEATS else 1
    test = next(iter(tests))
    batch = next(iter(test.loader))
    run.model.eval()
    precision: Precision = run.precision
    begun = time.perf_counter()
    with precision.autocast():
        outputs = run.model(run.loaders.normalize(batch.images.to(precision.device)))
    shapes = ", ".join(f"{branch} {feat.shape[1]}" for branch, feat in outputs.items())
    seconds = float(outputs["global"].sum() * 0) + time.perf_counter() - begun  # the sum waits for the device
    images = sum(len(one.samples) for one in tests)
    expected = images * views * seconds / len(batch.pids)
    return [f"evaluation  {images:,} images in {len(tests)} domains after every {_epochs(run)}, "
            f"features ({shapes}) in about {expected:.0f} s"]


def _epochs(run: Training) -> str:
    period = run.cfg.SOLVER.EVAL_PERIOD
    return "epoch" if period == 1 else f"{period} epochs"


def _about_memory(run: Training) -> list[str]:
    lines = []
    if run.precision.device.type == "cuda":
        peaks = {device: torch.cuda.max_memory_allocated(device) / 2**30 for device in run.devices}
        lines.append("memory      " + ", ".join(f"{device} at most {peak:.1f} GiB" for device, peak in peaks.items()))
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    beside = f"; a loader process {workers:.1f} GiB" if run.cfg.DATALOADER.NUM_WORKERS and workers else ""
    return [*lines, f"RAM         {process:.1f} GiB at most{beside}"]
