"""A measurement of training, in a process of its own: python -m tools.benchmarks.training_measure JOB (JSON)."""
from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs import load_cfg
from datasets.bases import UNKNOWN_CAMID, ReIDData, Sample
from datasets.batches import Batch
from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.registry import DATASETS
from processor.training.build import Training, build
from processor.training.step import check_health, train_step
from solver.ranger import Ranger
from tools.benchmarks.harness import ROOT, Job, serve
from tools.benchmarks.machine import training_peak
from utils.logger import setup_logger
from utils.meter import PhaseTimer
from utils.progress import progress

RECIPE = "configs/naic/r101_ibn_b_128.yml"  # all that no arm and no setting changes
PHASES = ("data", "forward", "backward", "optimizer")
MIN_IMAGES = 2  # of an identity: the recipe's NUM_INSTANCE


@dataclass(frozen=True)
class Setting:
    """What is trained, on which pictures."""

    data: str              # the folder with the pictures
    model: str             # a backbone's name
    size: tuple[int, int]  # height, width
    identities: int        # of the classifier
    batch: int
    device: str            # "cpu" or "cuda"
    warmup: int            # steps that do not count, after the very first
    steps: int             # measured
    square: int            # edge of the product whose rate is the peak


# Trains on a batch: step(batch, epoch, iteration, timer) -> its loss, 0-d on the device. It ends all phases but "data".
Step = Callable[[Batch, int, int, PhaseTimer], Tensor]


def textbook(run: Training, fp16: bool) -> Step:
    """The loop of a tutorial and of the lineage, over the model, the losses and the batches of `run`.

    Float32 or float16 with a GradScaler, a parameter group for each tensor, and figures fetched at every step. That the
    model is NCHW and not compiled is the config's doing.
    """
    device, meter = run.precision.device, {"loss": 0.0, "acc": 0.0}
    optimizer = Ranger([{**group, "params": [parameter]}
                        for group in run.optimizers[0].param_groups for parameter in group["params"]], fused=False)
    amp = torch.amp if hasattr(torch.amp, "GradScaler") else torch.cuda.amp  # torch < 2.3
    scaler = amp.GradScaler(enabled=fp16)

    def step(batch: Batch, epoch: int, iteration: int, timer: PhaseTimer) -> Tensor:
        images = run.loaders.augment(batch.images.to(device), epoch, batch.positions).contiguous()
        pids = batch.pids.to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16) if fp16 else contextlib.nullcontext():
            outputs = run.model(images, pids)
            loss, _ = run.criterion(outputs, pids)
        timer.end("forward")
        scaler.scale(loss).backward()
        timer.end("backward")
        scaler.step(optimizer)
        scaler.update()
        meter["loss"] += loss.item()
        meter["acc"] += (outputs["global"].plain_logits.argmax(1) == pids).float().mean().item()
        timer.end("optimizer")
        return loss.detach()

    return step


def ours(run: Training, fp16: bool) -> Step:
    """What the trainer's loop does with a batch, but for its log line; `fp16` is in the config."""
    def step(batch: Batch, epoch: int, iteration: int, timer: PhaseTimer) -> Tensor:
        values, ok = train_step(run, batch, epoch, iteration, timer)
        run.meter.update(values, ok)
        if run.precision.device.type == "cpu":
            check_health(run, batch, values, epoch, iteration)
        timer.end("optimizer")
        return values["loss"]

    return step


class Arm(NamedTuple):
    """One way to train."""

    title: str  # "{half}": the type of SOLVER.FP16 on the device
    make: Callable[[Training, bool], Step]
    fp16: bool = False
    compiled: bool = False


ARMS = {
    "textbook_float32": Arm("textbook, float32", textbook),
    "textbook_fp16": Arm("textbook, float16", textbook, fp16=True),
    "ours_float32": Arm("ours, float32", ours),
    "ours_float32_compile": Arm("ours, float32, compiled", ours, compiled=True),
    "ours_fp16": Arm("ours, {half}", ours, fp16=True),
    "ours_fp16_compile": Arm("ours, {half}, compiled", ours, fp16=True, compiled=True),
}


def arm_cfg(arm_name: str, setting: Setting) -> Any:
    """The recipe's config as the arm and the setting have it.

    Raises:
        ConfigError: the setting contradicts itself.
    """
    arm = ARMS[arm_name]
    is_textbook = arm.make is textbook
    options = {
        "MODEL.NAME": setting.model, "MODEL.PRETRAIN_CHOICE": "none", "MODEL.DEVICE": setting.device,
        "MODEL.CHANNELS_LAST": not is_textbook, "MODEL.COMPILE": arm.compiled,
        "INPUT.SIZE_TRAIN": list(setting.size), "INPUT.SIZE_TEST": list(setting.size),
        "DATASETS.NAMES": "naic", "DATASETS.ROOT_DIR": setting.data,
        "SOLVER.IMS_PER_BATCH": setting.batch, "SOLVER.FP16": arm.fp16 and not is_textbook,
        "OUTPUT_DIR": setting.data,
    }
    return load_cfg(ROOT / RECIPE, [word for pair in options.items() for word in pair])


# ------------------------------------------------------------------------------------------------------------- the data
# 192 training pictures of the size that most of NAIC's have, PNG files of 59 kB on average.
PICTURES = Sizes(ids=12, images=4, singles=0, shared=0, query_ids=2, query_images=1, gallery_images=2, distractors=0,
                 height=256, width=128)


def draw_pictures(folder: Path) -> None:
    """Render the pictures into `folder`, in NAIC's layout."""
    make_demo_data(folder, sizes=PICTURES, workers=1, progress=False)  # seconds; starting workers takes as long


def enlarged(data: ReIDData, identities: int, images: int) -> ReIDData:
    """So many identities with so many training images each, over and over the pictures of those that there are.

    Every class of the classifier is trained and the sampler has its full table, yet the disk holds a few files, which
    the system keeps in memory.
    """
    keys: dict[int, list[str]] = defaultdict(list)
    for sample in data.train:
        keys[sample.pid].append(sample.key)
    train = []
    for pid in range(identities):
        pictures = keys[pid % len(keys)]
        train += [Sample(pictures[i % len(pictures)], pid, UNKNOWN_CAMID) for i in range(images)]
    return ReIDData(train, identities, [str(pid) for pid in range(identities)])


@contextlib.contextmanager
def enlarged_naic(identities: int, images: int) -> Iterator[None]:
    """Within: the training part of the data set naic is enlarged."""
    naic = DATASETS["naic"]
    DATASETS["naic"] = naic._replace(load=lambda *place: enlarged(naic.load(*place), identities, images))
    try:
        yield
    finally:
        DATASETS["naic"] = naic


# ------------------------------------------------------------------------------------------------------------ measuring
def batches(run: Training) -> Iterator[tuple[int, int, Batch]]:
    """Epoch, iteration and batch, epoch after epoch."""
    for epoch in count(1):
        run.loaders.sampler.set_epoch(epoch)
        for iteration, batch in enumerate(run.loaders.train, 1):
            yield epoch, iteration, batch


def drive(step: Step, stream: Iterator[tuple[int, int, Batch]], steps: int, wait: Callable[[], None],
          apart: bool = False) -> tuple[PhaseTimer, list[Tensor]]:
    """Take so many steps.

    Args:
        wait: returns when the device has done all that was queued; called after the last step.
        apart: wait after every phase, too: the phases' shares are the device's then, and the host cannot work ahead.
    Returns:
        Seconds by phase, all of PHASES and no other, and the steps' losses.
    """
    timer, losses = PhaseTimer(wait if apart else None), []
    for _ in progress(range(steps), "training", "steps"):
        epoch, iteration, batch = next(stream)
        timer.end("data")
        losses.append(step(batch, epoch, iteration, timer))
    wait()
    timer.end("optimizer")
    return timer, losses


def train(job: Job) -> dict[str, Any]:
    """Build the arm and measure it."""
    setting, arm = job.setting, ARMS[job.what]
    on_cuda = setting.device == "cuda"
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    taken = 1 + setting.warmup + setting.steps * (2 if on_cuda else 1)
    images = max(MIN_IMAGES, -(-taken * setting.batch // setting.identities))  # so that no epoch ends
    with enlarged_naic(setting.identities, images):
        run = build(arm_cfg(job.what, setting))
    run.model.train()
    step, stream = arm.make(run, arm.fp16), batches(run)
    first, losses = drive(step, stream, 1, wait)
    drive(step, stream, setting.warmup, wait)
    timer, _ = drive(step, stream, setting.steps, wait)
    apart = drive(step, stream, setting.steps, wait, apart=True)[0] if on_cuda else timer
    kind = "float16" if arm.fp16 and arm.make is textbook else str(run.precision)
    return {
        "images_per_second": setting.batch * setting.steps / timer.total,
        "shares": {phase: apart.share(phase) for phase in PHASES},
        "first_step_seconds": first.total - first.seconds["data"],  # the data's are the start of the workers
        "first_loss": float(losses[0]),
        "type": kind,
        "peak": training_peak(setting.square, getattr(torch, kind), setting.device),
        "workers": run.loaders.train.num_workers,
    }


def measure(job: Job) -> dict[str, Any]:
    """The figures of a job, or a note."""
    try:
        return train(job)
    except torch.cuda.OutOfMemoryError:
        return {"note": "out of the device's memory"}


if __name__ == "__main__":
    setup_logger()
    for room in ("configs", "datasets", "model", "processor"):
        logging.getLogger(room).setLevel(logging.WARNING)  # the same lines for every run
    serve(measure, Setting)
