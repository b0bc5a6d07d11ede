"""What a training will do and take, from a few of its steps; nothing is written."""
from __future__ import annotations

import resource
import time
from itertools import count, islice

import torch

from processor.training.build import Training, describe_run
from processor.training.step import train_step
from utils.meter import PhaseTimer

_STEPS = 3  # measured after one that warms up


def measure(run: Training, taken: int = 0) -> str:
    """Run a step to warm up and up to three to measure, and an evaluation batch; all processes of the run call it.

    Args:
        taken: steps that need not be taken any more.
    Returns:
        A text for a terminal ("" in all processes but the first): images, identities, steps, parameters, memory,
        expected hours.
    """
    timer, steps = _measure_steps(run)
    if not run.workers.is_main:
        return ""
    lines = [describe_run(run), "", *_describe_steps(run, timer, steps, taken), *_describe_evaluation(run),
             *_describe_memory(run)]
    return "\n".join(lines)


def _measure_steps(run: Training) -> tuple[PhaseTimer, int]:
    """The times of the measured steps, and how many they are."""
    wait = torch.cuda.synchronize if run.precision.device.type == "cuda" else None
    run.hold_backbone(1)
    run.model.train()
    run.loaders.sampler.set_epoch(1)
    timer, steps = PhaseTimer(wait), 0
    for iteration, batch in zip(count(1), islice(run.loaders.train, 1 + _STEPS)):
        timer.end("data")
        train_step(run, batch, 1, iteration, timer)
        if iteration == 1 and run.batches > 1:
            timer = PhaseTimer(wait)
        else:
            steps += 1
    return timer, steps


def _describe_steps(run: Training, timer: PhaseTimer, steps: int, taken: int) -> list[str]:
    cfg, data = run.cfg, run.loaders.data
    total = cfg.SOLVER.MAX_EPOCHS * run.batches
    seconds = timer.total / steps
    phases = ", ".join(f"{phase} {100 * timer.share(phase):.0f}%" for phase in timer.seconds)
    learning = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    kind = "P x K" if "triplet" in cfg.DATALOADER.SAMPLER else "shuffled"
    return [
        f"training    {len(data.train):,} images of {data.num_classes:,} identities, "
        f"{cfg.INPUT.SIZE_TRAIN[0]} x {cfg.INPUT.SIZE_TRAIN[1]} pixels",
        f"steps       {cfg.SOLVER.MAX_EPOCHS} epochs x {run.batches:,} {kind} batches of {cfg.SOLVER.IMS_PER_BATCH} = "
        f"{total:,}{f', of which {taken:,} are taken' if taken else ''}",
        f"parameters  {learning:,} learn in the first epoch, by {cfg.SOLVER.OPTIMIZER_NAME}",
        *([f"teacher     {run.teacher.describe(data.pid_names, 'softmax' in cfg.DATALOADER.SAMPLER)}"]
          if run.teacher else []),
        f"a step      {seconds:.3f} s, {cfg.SOLVER.IMS_PER_BATCH / seconds:.1f} images/s ({phases}; mean of {steps}, "
        f"{cfg.DATALOADER.NUM_WORKERS} loader processes)",
        f"expected    {(total - taken) * seconds / 3600:.2f} hours for the steps",
    ]


@torch.inference_mode()
def _describe_evaluation(run: Training) -> list[str]:
    if not run.loaders.test:
        reason = run.loaders.no_test_reason if run.cfg.SOLVER.EVAL_PERIOD else "SOLVER.EVAL_PERIOD is 0"
        return [f"evaluation  none: {reason}"]
    tests, views = run.loaders.test.values(), 2 if run.cfg.TEST.FLIP_FEATS else 1
    test = next(iter(tests))
    batch = next(iter(test.loader))
    run.model.eval()
    begun = time.perf_counter()
    with run.precision.autocast():
        outputs = run.model(run.loaders.normalize(batch.images.to(run.precision.device)),
                            **run.model.sides(batch.camids, batch.viewids))
    shapes = ", ".join(f"{branch} {feat.shape[1]}" for branch, feat in outputs.items())
    seconds = float(outputs["global"].sum() * 0) + time.perf_counter() - begun  # the sum waits for the device
    # Evaluations of the same images share their features, see `extract_banks`.
    images = sum(map(len, {frozenset(sample.key for sample in part.samples) for part in tests}))
    expected = images * views * seconds / len(batch.pids)
    return [f"evaluation  {images:,} images in {len(tests)} domains after every {_epochs(run)}, "
            f"features ({shapes}) in about {expected:.0f} s"]


def _epochs(run: Training) -> str:
    period = run.cfg.SOLVER.EVAL_PERIOD
    return "epoch" if period == 1 else f"{period} epochs"


def _describe_memory(run: Training) -> list[str]:
    lines = []
    if run.precision.device.type == "cuda":
        peaks = {device: torch.cuda.max_memory_allocated(device) / 2**30 for device in run.devices}
        lines.append("memory      " + ", ".join(f"{device} at most {peak:.1f} GiB" for device, peak in peaks.items()))
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    beside = f"; a loader process {workers:.1f} GiB" if run.cfg.DATALOADER.NUM_WORKERS and workers else ""
    return [*lines, f"RAM         {process:.1f} GiB at most{beside}"]
