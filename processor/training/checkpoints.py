"""The checkpoint files of a training: their names, which of them are kept, and which of them a run goes on from.

NAME_EPOCH.pth    after an epoch (SOLVER.CHECKPOINT_PERIOD), the newest SOLVER.CHECKPOINT_KEEP of them
latest.pth        the newest state of all, also from the middle of an epoch
best.pth          the epoch that was best on the validation split (DATASETS.VALIDATION, SOLVER.BEST_METRIC)
"""
from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import SGD

from configs import flatten_cfg, load_cfg_text
from processor.training.used_folder import checkpoint_files
from solver.make_optimizer import make_scheduler
from utils.checkpoint import link_checkpoint, read_checkpoint
from utils.files import epoch_checkpoints

logger = logging.getLogger(__name__)

# Keys that may differ between a checkpoint and the run that goes on from it: they do not change the weights.
_FREE_KEYS = ("TEST.", "OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.DERIVED_DIR", "DATASETS.TEST_",
              "DATASETS.PACKED", "DATASETS.UNLABEL_DIR", "DATALOADER.NUM_WORKERS", "UDA.", "MODEL.THRESH",
              "DATASETS.VALIDATION", "DATALOADER.ON_BAD_IMAGE", "SOLVER.CHECKPOINT_", "SOLVER.LOG_PERIOD",
              "SOLVER.EVAL_PERIOD", "SOLVER.BEST_METRIC", "SOLVER.MAX_SKIPPED_STEPS", "SOLVER.DIST_TIMEOUT",
              "SOLVER.DETERMINISTIC",
              "SOLVER.DISTILL_FROM",  # a path: the teacher itself is compared (processor/training/state.py)
              "MODEL.PRETRAIN_", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "INPUT.SIZE_TEST")
# Keys that may differ as long as the lr of every epoch so far is the same: a training may be made longer.
_SCHEDULE_KEYS = ("SOLVER.MAX_EPOCHS", "SOLVER.LR_SCHEDULER", "SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.MIN_LR",
                  "SOLVER.WARMUP_")
# Keys of which no weight has its name or shape, so that fine-tuning can begin from a model with other values.
_TUNABLE_KEYS = ("SOLVER.", "INPUT.", "DATASETS.", "DATALOADER.NUM_INSTANCE")
_BOUND_KEYS = ("TEST.PCB_GLOBAL_FEAT_ENSEMBLE",)  # begins like a free one, but decides what the model has


# What is read of a checkpoint before its state is put into a run; the earliest ones have no batches.
_FIELDS: dict[str, type] = {"config": str, "epoch": int, "batches": int, "data_digest": str, "model": dict}
_MOST_STEPS = 10**9


def shapes_weights(key: str) -> bool:
    """Whether a key of the config must be as it was for a run to go on from a checkpoint."""
    return key in _BOUND_KEYS or not key.startswith(_FREE_KEYS)


def describe_changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`KEY was X and is Y` for each of `now`'s keys whose value was another."""
    return [f"{key} was {then.get(key)!r} and is {value!r}" for key, value in now.items() if then.get(key) != value]


class OtherConfiguration(ValueError):
    """A checkpoint whose run had other values of keys that shape the weights.

    changes: a text each. way: how to begin from its weights, "" if that cannot be.
    """

    def __init__(self, path: Path, changes: list[str]):
        self.way = describe_finetuning(path) if all(change.startswith(_TUNABLE_KEYS) for change in changes) else ""
        if any(change.startswith(_SCHEDULE_KEYS) for change in changes):
            changes = [*changes, "the epochs that are trained must keep their schedule"]
        self.changes = changes
        super().__init__(f"{path} belongs to another configuration ({'; '.join(changes)}); go on with the values that "
                         f"were, use another OUTPUT_DIR{self.way}, or train anew with --force, which moves that folder "
                         "aside")


def describe_finetuning(path: Path) -> str:
    """What to add to "another OUTPUT_DIR", so that a training begins from a checkpoint's weights."""
    return f" (with MODEL.PRETRAIN_CHOICE finetune MODEL.PRETRAIN_PATH {path} to begin from these weights)"


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder with the checkpoints of a training.

    Attributes:
        folder: OUTPUT_DIR.
        name: MODEL.NAME, with which the names of the epochs' checkpoints begin.
        max_epochs: SOLVER.MAX_EPOCHS; a checkpoint of a later epoch is of an earlier training in this folder.
        config: the run's flat config; what shapes the weights must be the same in a checkpoint to go on from.
    """

    folder: Path
    name: str
    max_epochs: int
    config: dict[str, Any]

    @property
    def latest(self) -> Path:
        return self.folder / "latest.pth"

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"

    def of_epoch(self, epoch: int) -> Path:
        return self.folder / f"{self.name}_{epoch}.pth"

    def remove_old(self, epoch: int, keep: int) -> None:
        """Keep the newest `keep` checkpoints of the epochs up to this; later ones are of an earlier training."""
        paths = [path for other, path in epoch_checkpoints(self.folder, self.name).items() if other <= epoch]
        for path in paths[:-keep]:
            path.unlink()

    # -------------------------------------------------------------- reading
    def find(self, resume: str) -> tuple[Path, dict] | None:
        """The path and the content of the checkpoint to go on from, or None to begin anew.

        Args:
            resume: none | auto, the newest whole one here; what is damaged is passed over with a warning | a path.
        Raises:
            OtherConfiguration: the checkpoint belongs to another configuration.
            ValueError: the named one is damaged, or all that are here are.
        """
        if resume == "none":
            return None
        if resume == "auto":
            path, checkpoint = next(self._read_newest_first(), (None, None))
        else:
            path, checkpoint = Path(resume), _read_state(Path(resume))
        if path is None:
            if files := checkpoint_files(self.folder):
                names = ", ".join(path.name for path in files)
                raise ValueError(f"{self.folder} has no checkpoint to go on from, but {names}, which a training from "
                                 "epoch 1 would overwrite; use another OUTPUT_DIR, or let --force move this one aside")
            logger.info("no checkpoint in %s: training from epoch 1", self.folder)
            return None
        if changes := self._changes(path, checkpoint):
            raise OtherConfiguration(path, changes)
        return path, checkpoint

    def newest_good(self) -> Path | None:
        """The newest checkpoint of this run whose last step was not skipped; None if there is none."""
        return next((path for path, checkpoint in self._read_newest_first()
                     if not (self._changes(path, checkpoint) or _is_skipped(checkpoint))), None)

    def restore_latest(self, newest: Path) -> None:
        """Make latest.pth of the newest checkpoint, if it is damaged or a run has ended between the two."""
        if newest != self.latest:
            link_checkpoint(newest, self.latest)

    def restore_last(self, good: Path) -> None:
        """Make the last epoch's checkpoint anew from `good`, which has its whole state, if it is gone or damaged."""
        path = self.of_epoch(self.max_epochs)
        if path != good and _read_whole(path) is None:
            logger.warning("%s is made anew from %s", path, good)
            link_checkpoint(good, path)

    def _read_newest_first(self) -> Iterator[tuple[Path, dict]]:
        """The checkpoints that a run can go on from, newest first, each read when it is asked for."""
        if latest := _read_whole(self.latest):
            yield latest
        best = _read_whole(self.best)
        for epoch, path in reversed(epoch_checkpoints(self.folder, self.name).items()):
            if best and best[1]["epoch"] >= epoch:
                yield best
                best = None
            if epoch <= self.max_epochs and (whole := _read_whole(path)):
                yield whole
        if best:
            yield best

    def _changes(self, path: Path, checkpoint: dict) -> list[str]:
        """The keys that shape the weights and were other than now when a checkpoint was written."""
        then = flatten_cfg(load_cfg_text(checkpoint["config"], str(path)))
        begun = checkpoint["epoch"] + bool(checkpoint.get("batches", 0))
        may_differ = begun <= self.max_epochs and _same_lr(then, self.config, begun)
        return describe_changes(then, {key: value for key, value in self.config.items() if shapes_weights(key)
                                       and not (may_differ and key.startswith(_SCHEDULE_KEYS))})


def _is_skipped(checkpoint: dict) -> bool:
    """Whether the last step before a checkpoint was skipped, or it cannot be told."""
    skipped = checkpoint.get("skipped", torch.zeros(1))
    return not isinstance(skipped, torch.Tensor) or not skipped.numel() or bool(skipped.reshape(-1)[0])


def _same_lr(then: dict[str, Any], now: dict[str, Any], epochs: int) -> bool:
    """Whether two configs have the same schedule in the first epochs."""
    if all(then.get(key) == value for key, value in now.items() if key.startswith(_SCHEDULE_KEYS)):
        return True
    factors = []
    for values in (then, now):
        solver = {key.removeprefix("SOLVER."): value for key, value in values.items() if key.startswith("SOLVER.")}
        cfg = SimpleNamespace(SOLVER=SimpleNamespace(**solver), MODEL=SimpleNamespace(NAME=values["MODEL.NAME"]))
        schedule = make_scheduler(cfg, SGD([torch.zeros(1)], lr=1.0))
        factors.append([schedule.lr_lambdas[0](epoch) for epoch in range(epochs)])
    return factors[0] == factors[1]


def _read_whole(path: Path) -> tuple[Path, dict] | None:
    """A path with the checkpoint there; None if there is none, or it cannot be gone on from."""
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
    whole = {"batches": 0, **checkpoint}
    bad = [name for name, kind in _FIELDS.items() if not isinstance(whole.get(name), kind)]
    bad += [name for name in ("epoch", "batches") if name not in bad and not 0 <= whole[name] < _MOST_STEPS]
    if bad:
        raise ValueError(f"{path}: damaged, or of another program: {bad[0]} is not what a training writes")
    return checkpoint
