"""The checkpoints of a training run: what they hold, when they are written, and which one a run goes on from.

NAME_EPOCH.pth    after an epoch (SOLVER.CHECKPOINT_PERIOD), the newest SOLVER.CHECKPOINT_KEEP of them
latest.pth        the newest state of all, also from the middle of an epoch
best.pth          the epoch that was best on the validation split (DATASETS.VALIDATION, SOLVER.BEST_METRIC)
"""
from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from torch.optim import Optimizer

from configs import dump_cfg, flatten_cfg, load_cfg_text
from processor.training.build import Training
from processor.training.used_folder import checkpoint_files
from utils.checkpoint import link_checkpoint, read_checkpoint, save_checkpoint
from utils.files import epoch_checkpoints
from utils.versions import commit, versions

logger = logging.getLogger(__name__)

# Keys that may differ between a checkpoint and the run that goes on from it: they do not change the weights.
_FREE_KEYS = ("TEST.", "OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR", "DATASETS.TEST_",
              "DATASETS.PACKED", "DATASETS.UNLABEL_DIR", "DATALOADER.NUM_WORKERS", "UDA.", "MODEL.THRESH",
              "DATASETS.VALIDATION", "DATALOADER.ON_BAD_IMAGE", "SOLVER.CHECKPOINT_", "SOLVER.LOG_PERIOD",
              "SOLVER.EVAL_PERIOD", "SOLVER.BEST_METRIC", "SOLVER.MAX_SKIPPED_STEPS", "SOLVER.DETERMINISTIC",
              "MODEL.PRETRAIN_", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "INPUT.SIZE_TEST")
_BOUND_KEYS = ("TEST.PCB_GLOBAL_FEAT_ENSEMBLE",)  # begins like a free one, but decides what the model has


def shapes_weights(key: str) -> bool:
    """Whether a key of the config must be as it was for a run to go on from a checkpoint."""
    return key in _BOUND_KEYS or not key.startswith(_FREE_KEYS)


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


def save_epoch(run: Training, epoch: int, is_best: bool) -> bool:
    """After an epoch: NAME_EPOCH.pth where due, best.pth where it is the best, and latest.pth; whether one was due."""
    cfg = run.cfg
    due = epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or epoch == cfg.SOLVER.MAX_EPOCHS
    paths = [checkpoint_path(cfg, epoch)] * due + [best_path(cfg)] * is_best
    if not paths or not run.workers.is_main:
        return bool(paths)
    save_checkpoint(paths[0], state_of(run, epoch, 0))
    for other in [*paths[1:], latest_path(cfg)]:
        link_checkpoint(paths[0], other)
    logger.info("saved %s%s", paths[0], ", the best so far" if is_best else "")
    if due and cfg.SOLVER.CHECKPOINT_KEEP:
        # Those of later epochs are of an earlier training in this folder.
        own = [path for other, path in epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).items() if other <= epoch]
        for old in own[:-cfg.SOLVER.CHECKPOINT_KEEP]:
            old.unlink()
    return True


# ------------------------------------------------------------------ going on
class OtherConfiguration(ValueError):
    """A checkpoint whose run had other values of keys that shape the weights: `changes`, a text each."""

    def __init__(self, path: Path, changes: list[str]):
        super().__init__(f"{path} belongs to another configuration ({'; '.join(changes)}); use another OUTPUT_DIR, or "
                         "train anew with --force, which moves that folder aside")
        self.changes = changes


def find_checkpoint(cfg, resume: str) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, or None to begin anew.

    Args:
        resume: none | auto, the newest whole one of OUTPUT_DIR; what is damaged is passed over with a warning | a path.
    Raises:
        ValueError: the named one is damaged, or what was found belongs to another configuration.
    """
    if resume == "none":
        return None
    found = next(_whole_ones(cfg), None) if resume == "auto" else (Path(resume), _read_state(Path(resume)))
    if found is None:
        if files := checkpoint_files(cfg.OUTPUT_DIR):
            names = ", ".join(path.name for path in files)
            raise ValueError(f"{cfg.OUTPUT_DIR} has no checkpoint to go on from, but {names}, which a training from "
                             "epoch 1 would overwrite; use another OUTPUT_DIR, or let --force move this one aside")
        logger.info("no checkpoint in %s: training from epoch 1", cfg.OUTPUT_DIR)
        return None
    path, checkpoint = found
    if changed := _changes(path, checkpoint, cfg):
        raise OtherConfiguration(path, changed)
    return found


def _whole_ones(cfg) -> Iterator[tuple[Path, dict]]:
    """OUTPUT_DIR's checkpoints that a run can go on from, newest first, each read when it is asked for."""
    if latest := _read_whole(latest_path(cfg)):
        yield latest
    best = _read_whole(best_path(cfg))
    for epoch, path in reversed(epoch_checkpoints(cfg.OUTPUT_DIR, cfg.MODEL.NAME).items()):
        if best and best[1]["epoch"] >= epoch:
            yield best
            best = None
        if epoch <= cfg.SOLVER.MAX_EPOCHS and (found := _read_whole(path)):
            yield found
    if best:
        yield best


def _read_whole(path: Path) -> tuple[Path, dict] | None:
    """A path with the checkpoint there; None where there is none, or one that cannot be gone on from."""
    if not path.exists():
        return None
    try:
        return path, _read_state(path)
    except ValueError as error:
        logger.warning("passed over: %s", error)
        return None


def _read_state(path: Path) -> dict:
    checkpoint = read_checkpoint(path)
    if "config" not in checkpoint or "optimizers" not in checkpoint:
        raise ValueError(f"{path}: holds weights only; start from it with MODEL.PRETRAIN_CHOICE self instead")
    return checkpoint


def _changes(path: Path, checkpoint: dict, cfg) -> list[str]:
    """The keys that shape the weights and were other than now when a checkpoint was written."""
    then, now = flatten_cfg(load_cfg_text(checkpoint["config"], str(path))), flatten_cfg(cfg)
    return [f"{key} was {then.get(key)!r} and is {value!r}" for key, value in now.items()
            if shapes_weights(key) and then.get(key) != value]


def restore_last(cfg, good: Path) -> None:
    """Make NAME_EPOCH.pth of the last epoch, whose whole state is in `good`, anew where it is gone or damaged."""
    path = checkpoint_path(cfg, cfg.SOLVER.MAX_EPOCHS)
    if path != good and _read_whole(path) is None:
        logger.warning("%s is made anew from %s", path, good)
        link_checkpoint(good, path)


def newest_good(cfg) -> Path | None:
    """The newest checkpoint of this run whose last step was not skipped; None where there is none."""
    return next((path for path, checkpoint in _whole_ones(cfg)
                 if not (_changes(path, checkpoint, cfg) or int(checkpoint.get("skipped", [0])[0]))), None)


def restore(run: Training, path: Path, checkpoint: dict) -> tuple[int, int]:
    """Put a checkpoint's state into a freshly built run; returns the whole epochs and the batches of the next."""
    if checkpoint["data_digest"] != run.data_digest:
        raise ValueError(f"{path} was trained on other training lists than those found now; train from epoch 1")
    run.model.load_state_dict(checkpoint["model"])
    run.criterion.load_state_dict(checkpoint["criterion"])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict({**state, "param_groups": _stepped_as_here(state["param_groups"], optimizer)})
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


def _stepped_as_here(groups: list[dict], optimizer: Optimizer) -> list[dict]:
    """Saved groups with this optimiser's way of stepping (fused or not), which depends on torch and the device."""
    ways = [{key: group[key] for key in ("fused", "foreach", "capturable") if key in group}
            for group in optimizer.param_groups]
    return [{**group, **way} for group, way in zip(groups, ways, strict=True)]
