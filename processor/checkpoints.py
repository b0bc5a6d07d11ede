"""The checkpoints of a training run: what they hold, when they are written, and which one a run goes on from.

NAME_EPOCH.pth    after an epoch (SOLVER.CHECKPOINT_PERIOD), the newest SOLVER.CHECKPOINT_KEEP of them
latest.pth        the newest state of all, also from the middle of an epoch
best.pth          the epoch whose evaluation was best (SOLVER.BEST_METRIC)
"""
from __future__ import annotations

import logging
from pathlib import Path

from configs import dump_cfg, flatten_cfg, load_cfg_text
from processor.training_run import Training
from utils.checkpoint import link_checkpoint, read_checkpoint, save_checkpoint
from utils.files import epoch_checkpoints
from utils.versions import commit, versions

logger = logging.getLogger(__name__)

# Keys that may differ between a checkpoint and the run that goes on from it: they do not change the weights.
_FREE_KEYS = ("TEST.", "OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR", "DATASETS.TEST_",
              "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_", "SOLVER.LOG_PERIOD", "SOLVER.EVAL_PERIOD",
              "SOLVER.BEST_METRIC", "SOLVER.MAX_SKIPPED_STEPS", "SOLVER.DETERMINISTIC", "MODEL.PRETRAIN_",
              "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "INPUT.SIZE_TEST")
_BOUND_KEYS = ("TEST.PCB_GLOBAL_FEAT_ENSEMBLE",)  # begins like a free one, but decides what the model has


def checkpoint_path(cfg, epoch: int) -> Path:
    return Path(cfg.OUTPUT_DIR) / f"{cfg.MODEL.NAME}_{epoch}.pth"


def latest_path(cfg) -> Path:
    return Path(cfg.OUTPUT_DIR) / "latest.pth"


def best_path(cfg) -> Path:
    return Path(cfg.OUTPUT_DIR) / "best.pth"


# ------------------------------------------------------------------ writing
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
    if run.average is not None:
        state |= {"ema": run.average.state_dict(), "ema_steps": run.average.steps}
    return state


def save_position(run: Training, epochs: int, batches: int) -> None:
    """latest.pth alone, in the middle of an epoch."""
    if run.workers.is_main:
        save_checkpoint(latest_path(run.cfg), state_of(run, epochs, batches))
        logger.info("saved %s after epoch %d and %d batches", latest_path(run.cfg), epochs, batches)


def save_epoch(run: Training, epoch: int, is_best: bool) -> None:
    """After an epoch: NAME_EPOCH.pth where one is due, best.pth where it is, and latest.pth."""
    if not run.workers.is_main:
        return
    cfg = run.cfg
    due = epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or epoch == cfg.SOLVER.MAX_EPOCHS
    paths = [checkpoint_path(cfg, epoch)] * due + [best_path(cfg)] * is_best
    if not paths:
        return
    save_checkpoint(paths[0], state_of(run, epoch, 0))
    for other in [*paths[1:], latest_path(cfg)]:
        link_checkpoint(paths[0], other)
    logger.info("saved %s%s", paths[0], ", the best so far" if is_best else "")
    if due and cfg.SOLVER.CHECKPOINT_KEEP:
        for old in list(epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).items())[:-cfg.SOLVER.CHECKPOINT_KEEP]:
            old[1].unlink()


# ------------------------------------------------------------------ going on
def find_checkpoint(cfg, resume: str) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, or None to begin anew.

    Args:
        resume: none | auto, the newest whole one of OUTPUT_DIR; what is damaged is passed over with a warning | a path.
    Raises:
        ValueError: the named one is damaged, or what was found belongs to another configuration.
    """
    if resume == "none":
        return None
    if resume != "auto":
        path = Path(resume)
        checkpoint = read_checkpoint(path)
        _check_same_run(path, checkpoint, cfg)
        return path, checkpoint
    newest_first = [path for epoch, path in reversed(epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).items())
                    if epoch <= cfg.SOLVER.MAX_EPOCHS]
    for path in [latest_path(cfg), *newest_first]:
        if not path.is_file():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            logger.warning("passed over: %s", error)
            continue
        _check_same_run(path, checkpoint, cfg)
        return path, checkpoint
    logger.info("no checkpoint in %s: training from epoch 1", cfg.OUTPUT_DIR)
    return None


def last_checkpoint(cfg, good: Path) -> Path:
    """NAME_EPOCH.pth of the last epoch, whose whole state is in `good`; made anew where it is gone or damaged."""
    path = checkpoint_path(cfg, cfg.SOLVER.MAX_EPOCHS)
    try:
        read_checkpoint(path)
    except (ValueError, FileNotFoundError) as error:
        logger.warning("%s; taken from %s", error, good)
        link_checkpoint(good, path)
    return path


def newest_good(cfg) -> Path | None:
    """The checkpoint that --resume would go on from; None where there is none."""
    paths = [latest_path(cfg), *reversed(epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).values())]
    return next((path for path in paths if path.is_file()), None)


def _check_same_run(path: Path, checkpoint: dict, cfg) -> None:
    if "config" not in checkpoint or "optimizers" not in checkpoint:
        raise ValueError(f"{path} holds weights only: start from it with MODEL.PRETRAIN_CHOICE self instead")
    then, now = flatten_cfg(load_cfg_text(checkpoint["config"], str(path))), flatten_cfg(cfg)
    changed = [f"{key} was {then.get(key)!r} and is {value!r}" for key, value in now.items()
               if (key in _BOUND_KEYS or not key.startswith(_FREE_KEYS)) and then.get(key) != value]
    if changed:
        raise ValueError(f"{path} belongs to another configuration ({'; '.join(changed)}); use another OUTPUT_DIR, or "
                         "train from epoch 1 without --resume")


def restore(run: Training, path: Path, checkpoint: dict) -> tuple[int, int]:
    """Put a checkpoint's state into a freshly built run; returns the whole epochs and the batches of the next."""
    if checkpoint["data_digest"] != run.data_digest:
        raise ValueError(f"{path} was trained on other training lists than those found now; train from epoch 1")
    run.model.load_state_dict(checkpoint["model"])
    run.criterion.load_state_dict(checkpoint["criterion"])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    run.scheduler.load_state_dict(checkpoint["scheduler"])
    run.precision.load_state_dict(checkpoint["scaler"])
    if run.average is not None:
        run.average.load_state_dict(checkpoint["ema"], checkpoint["ema_steps"])
    if "meter" in checkpoint:  # checkpoints of epochs' ends used to have none of these
        run.meter.load_state_dict(checkpoint["meter"], run.precision.device)
        run.skipped.copy_(checkpoint["skipped"])
        run.best = dict(checkpoint["best"])
    epochs, batches = checkpoint["epoch"], checkpoint.get("batches", 0)
    logger.info("going on from %s after epoch %d%s", path, epochs, f" and {batches} batches" if batches else "")
    return epochs, batches
