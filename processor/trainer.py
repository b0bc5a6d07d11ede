"""The training loop."""
from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs import dump_cfg, flatten_cfg, load_cfg_text
from datasets.bases import statistics
from datasets.make_dataloader import Batch, DataLoaders, make_dataloader
from loss.make_loss import make_loss
from model.identities import transfer_identities
from model.make_model import check_model, make_model, place_model
from processor.inference import evaluate
from processor.ranking import describe
from solver.make_optimizer import make_optimizer, make_scheduler
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.files import epoch_checkpoints, write_text
from utils.logger import user_message
from utils.meter import MeanMeter
from utils.precision import Precision, select_device
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

# Keys that may differ between a checkpoint and the run that goes on from it: they do not change the weights.
_FREE_KEYS = ("TEST.", "OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR", "DATASETS.TEST_DIR",
              "DATASETS.PACKED", "DATALOADER.NUM_WORKERS", "DATALOADER.ON_BAD_IMAGE",
              "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "SOLVER.EVAL_PERIOD",
              "MODEL.PRETRAIN_", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "INPUT.SIZE_TEST")
_BOUND_KEYS = ("TEST.PCB_GLOBAL_FEAT_ENSEMBLE",)  # begins like a free one, but decides what the model has

_EVALUATED = ("rank1", "mAP", "mINP", "naic_score")  # what the record keeps of an evaluation


@dataclass
class Training:
    """Everything that one training run holds."""

    cfg: Any
    loaders: DataLoaders
    model: nn.Module
    criterion: nn.Module
    optimizers: list[torch.optim.Optimizer]  # the model's, and the class centres' where there are any
    scheduler: Any
    precision: Precision
    data_digest: str
    record: MetricsRecord


class MetricsRecord:
    """metrics.jsonl and TensorBoard: the same figures for programs and for eyes."""

    def __init__(self, folder: Path, first_epoch: int):
        """Keep the lines of the epochs before `first_epoch`: a resumed run writes the later ones again."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and of no use to those who only test

        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _epoch_of(line) < first_epoch]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, epoch: int, **figures: float) -> None:
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps({"epoch": epoch, "step": step, **figures}) + "\n")
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()


def _epoch_of(line: str) -> float:
    """The epoch of a metrics line; a line cut off by a kill belongs to none and is dropped."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf


# ------------------------------------------------------------------ the loop
def do_train(cfg, resume: str = "none") -> Path:
    """Train as configured; return the last checkpoint.

    Args:
        cfg: the config tree.
        resume: none = from epoch 1 | auto = from OUTPUT_DIR's newest whole checkpoint, if any | a checkpoint's path.
    Raises:
        ValueError: the config, data or checkpoint cannot be used; said before the first step.
        FloatingPointError: the loss is no longer finite.
    """
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir(parents=True, exist_ok=True)
    run, done = build(cfg, resume)
    epochs = range(done + 1, cfg.SOLVER.MAX_EPOCHS + 1)
    for epoch in epochs:
        train_epoch(run, epoch)
        run.scheduler.step()
        if epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or epoch == cfg.SOLVER.MAX_EPOCHS:
            save(run, epoch)
        if cfg.SOLVER.EVAL_PERIOD and epoch % cfg.SOLVER.EVAL_PERIOD == 0:
            evaluate_epoch(run, epoch)
    if not epochs:
        logger.info("all %d epochs were trained before: nothing to do", cfg.SOLVER.MAX_EPOCHS)
    return checkpoint_path(cfg, cfg.SOLVER.MAX_EPOCHS)


def train_epoch(run: Training, epoch: int) -> None:
    """One pass over the sampler's batches, with a log line every LOG_PERIOD of them."""
    cfg, meter, num_batches = run.cfg, MeanMeter(), len(run.loaders.train)
    run.model.train()
    run.loaders.sampler.set_epoch(epoch)
    started = time.monotonic()
    bar = tqdm(run.loaders.train, desc=f"epoch {epoch}/{cfg.SOLVER.MAX_EPOCHS}", unit="batch", leave=False,
               disable=not sys.stderr.isatty())
    with logging_redirect_tqdm():
        for iteration, batch in enumerate(bar, 1):
            meter.update(train_step(run, batch, epoch))
            if iteration % cfg.SOLVER.LOG_PERIOD == 0 or iteration == num_batches:
                speed = iteration * cfg.SOLVER.IMS_PER_BATCH / (time.monotonic() - started)
                report(run, meter.means(), epoch, iteration, num_batches, speed, bar)
    seconds = (time.monotonic() - started) / num_batches
    logger.info("Epoch %d done. Time per batch: %.3f[s] Speed: %.1f[samples/s]", epoch, seconds,
                cfg.SOLVER.IMS_PER_BATCH / seconds)


def train_step(run: Training, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
    """One optimiser step; returns the detached loss, its terms and the accuracy as 0-d tensors on the device."""
    device = run.precision.device
    images = run.loaders.augment(batch.images.to(device, non_blocking=True), epoch, batch.positions)
    pids = batch.pids.to(device, non_blocking=True)
    with run.precision.autocast():
        outputs = run.model(images, pids)
        total, terms = run.criterion(outputs, pids)
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    run.precision.backward(total, run.optimizers)
    run.criterion.unweight_center_gradient()
    run.precision.step(run.optimizers)
    # Plain logits: a margin would understate what the classifier knows.
    correct = outputs["global"].plain_logits.argmax(1) == pids
    return {"loss": total.detach(), **terms, "acc": correct.float().mean()}


def report(run: Training, means: dict[str, float], epoch: int, iteration: int, num_batches: int, speed: float,
           bar: tqdm) -> None:
    """The lineage's log line, the progress bar and the record, from the epoch's means so far."""
    lr = run.scheduler.get_last_lr()[0]
    terms = ", ".join(f"{name}: {value:.3f}" for name, value in _in_short(means).items())
    logger.info("Epoch[%d] Iteration[%d/%d] Loss: %.3f, Acc: %.3f, Base Lr: %.2e (%s)",
                epoch, iteration, num_batches, means["loss"], means["acc"], lr, terms)
    bar.set_postfix_str(f"loss {means['loss']:.3f}, {terms}, acc {means['acc']:.3f}, lr {lr:.1e}, {speed:.0f} images/s")
    run.record.write((epoch - 1) * num_batches + iteration, epoch, **means, lr=lr, images_per_second=round(speed, 1))
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss is {means['loss']} in epoch {epoch} ({terms}); lower SOLVER.BASE_LR, or lengthen the warm-up"
        )


def _in_short(means: dict[str, float]) -> dict[str, float]:
    """The loss terms without loss and acc, those of the parts (id_part0 ...) as their mean."""
    terms: dict[str, list[float]] = {}
    for name, value in means.items():
        if name not in ("loss", "acc"):
            terms.setdefault(name.rstrip("0123456789"), []).append(value)
    return {name: sum(values) / len(values) for name, values in terms.items()}


def evaluate_epoch(run: Training, epoch: int) -> None:
    """Metrics on the test folder, without re-ranking, where it can be read and has ground truth.

    A bad test image ends a training only where DATALOADER.ON_BAD_IMAGE is error; there are no metrics either way.
    """
    try:
        metrics = evaluate(run.cfg, run.model, run.loaders, run.precision)
    except (ValueError, OSError) as error:
        if run.cfg.DATALOADER.ON_BAD_IMAGE == "error":
            raise
        logger.warning("Epoch[%d] no evaluation: %s", epoch, user_message(error))
        return
    figures = {}
    for domain, by_kind in metrics.items():
        logger.info("Epoch[%d] %s: %s", epoch, domain, describe(by_kind["plain"]))
        figures.update({f"{domain}/{name}": value for name, value in by_kind["plain"].items() if name in _EVALUATED})
    if figures:
        run.record.write(epoch * len(run.loaders.train), epoch, **figures)


# ------------------------------------------------------------------ before the loop
def build(cfg, resume: str) -> tuple[Training, int]:
    """Everything a run needs, and the epochs that are done already."""
    precision = Precision(select_device(cfg.MODEL.DEVICE, cfg.MODEL.DEVICE_ID), cfg.SOLVER.FP16)
    found = find_checkpoint(cfg, resume)
    check_model(cfg, pretrained=found is None)
    loaders = make_dataloader(cfg, test=cfg.SOLVER.EVAL_PERIOD > 0)
    logger.info("training data:\n%s", statistics(loaders.data))
    if cfg.SOLVER.EVAL_PERIOD and not any(test.has_truth for test in loaders.test.values()):
        reason = loaders.no_test_reason or "the test folder has no ground truth"
        logger.info("no evaluation during training: %s", reason)
    seed_everything(cfg.SOLVER.SEED)
    model = make_model(cfg, loaders.data.num_classes, pretrained=found is None)
    criterion = make_loss(cfg, loaders.data.num_classes, model.feat_dims)
    if cfg.MODEL.PRETRAIN_CHOICE == "finetune" and found is None:
        transfer_identities({"model": model, "criterion": criterion}, read_checkpoint(cfg.MODEL.PRETRAIN_PATH),
                            loaders.data.pid_names, cfg.MODEL.PRETRAIN_PATH)
    place_model(cfg, model, precision.device)
    criterion.to(precision.device)
    optimizers = [optimizer for optimizer in make_optimizer(cfg, model, criterion) if optimizer is not None]
    scheduler = make_scheduler(cfg, optimizers[0])
    digest = hashlib.sha256(repr(loaders.data.train).encode()).hexdigest()
    done = 0 if found is None else found[1]["epoch"]
    run = Training(cfg, loaders, model, criterion, optimizers, scheduler, precision, digest,
                   MetricsRecord(Path(cfg.OUTPUT_DIR), done + 1))
    if found is not None:
        restore(run, *found)
    write_text(Path(cfg.OUTPUT_DIR) / "config.yml", dump_cfg(cfg))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s on %s: %.1f M parameters, %d identities, %d batches an epoch, seed %d", cfg.MODEL.NAME,
                precision.device, parameters / 1e6, loaders.data.num_classes, len(loaders.train), cfg.SOLVER.SEED)
    return run, done


# ------------------------------------------------------------------ checkpoints
def checkpoint_path(cfg, epoch: int) -> Path:
    return Path(cfg.OUTPUT_DIR) / f"{cfg.MODEL.NAME}_{epoch}.pth"


def save(run: Training, epoch: int) -> None:
    """Write NAME_EPOCH.pth: all that is needed to test it, or to go on after this epoch."""
    path = checkpoint_path(run.cfg, epoch)
    save_checkpoint(path, {
        "epoch": epoch, "model": run.model.state_dict(), "criterion": run.criterion.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "scheduler": run.scheduler.state_dict(), "scaler": run.precision.state_dict(),
        "config": dump_cfg(run.cfg), "pid_names": run.loaders.data.pid_names, "data_digest": run.data_digest,
    })
    logger.info("saved %s", path)


def find_checkpoint(cfg, resume: str) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, or None to begin anew.

    Raises:
        ValueError: the named one, or the newest whole one of OUTPUT_DIR, belongs to another configuration.
    """
    if resume == "none":
        return None
    candidates = [Path(resume)] if resume != "auto" else [
        path for epoch, path in reversed(epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).items())
        if epoch <= cfg.SOLVER.MAX_EPOCHS
    ]
    for path in candidates:
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            if resume != "auto":
                raise
            logger.warning("passed over: %s", error)
            continue
        _check_same_run(path, checkpoint, cfg)
        return path, checkpoint
    logger.info("no checkpoint in %s: training from epoch 1", cfg.OUTPUT_DIR)
    return None


def _check_same_run(path: Path, checkpoint: dict, cfg) -> None:
    if "config" not in checkpoint:
        raise ValueError(f"{path} holds weights only: start from it with MODEL.PRETRAIN_CHOICE self instead")
    then, now = flatten_cfg(load_cfg_text(checkpoint["config"], str(path))), flatten_cfg(cfg)
    changed = [f"{key} was {then.get(key)!r} and is {value!r}" for key, value in now.items()
               if (key in _BOUND_KEYS or not key.startswith(_FREE_KEYS)) and then.get(key) != value]
    if changed:
        raise ValueError(f"{path} belongs to another configuration ({'; '.join(changed)}); use another OUTPUT_DIR, or "
                         "train from epoch 1 without --resume")


def restore(run: Training, path: Path, checkpoint: dict) -> None:
    """Put a checkpoint's state into a freshly built run."""
    if checkpoint["data_digest"] != run.data_digest:
        raise ValueError(f"{path} was trained on other training lists than those found now; train from epoch 1")
    run.model.load_state_dict(checkpoint["model"])
    run.criterion.load_state_dict(checkpoint["criterion"])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    run.scheduler.load_state_dict(checkpoint["scheduler"])
    run.precision.load_state_dict(checkpoint["scaler"])
    logger.info("going on from %s after epoch %d", path, checkpoint["epoch"])
