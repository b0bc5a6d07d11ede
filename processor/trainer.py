"""The training loop."""
from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs import dump_cfg
from datasets.batches import Batch, naming_lost_workers
from datasets.files.images import is_inside
from processor.evaluation.ranking import describe
from processor.inference import evaluate
from processor.training.build import Training, build, describe_run
from processor.training.checkpoints import (
    OtherConfiguration,
    checkpoint_path,
    find_checkpoint,
    restore,
    restore_last,
    save_epoch,
    save_position,
)
from processor.training.curves import draw_curves
from processor.training.metrics_log import MetricsRecord, in_short
from processor.training.step import check_health, train_step
from processor.training.used_folder import LOCK, checkpoint_files, move_aside, used
from utils.dist import ALONE, Workers
from utils.files import remove_leftovers, write_text
from utils.logger import user_message
from utils.meter import Laps
from utils.process import RunLock, Stopped, StopRequest
from utils.versions import commit

logger = logging.getLogger(__name__)

_EVALUATED = ("rank1", "mAP", "mINP", "naic_score")  # what the record keeps of an evaluation


@dataclass
class Watch:
    """Who looks on while a run trains: the record (of the first process alone), the request to stop, the clock."""

    record: MetricsRecord | None
    stop: StopRequest
    saved_at: float  # time.monotonic() of the last checkpoint


def prepare_folder(cfg, resume: str = "none", force: bool = False) -> None:
    """See to it that a training overwrites no other in OUTPUT_DIR; to be called before a log is opened there.

    Args:
        resume: as for `do_train`, which itself trains from epoch 1 over whatever is there.
        force: move a folder with checkpoints aside, see `move_aside`.
    Raises:
        FileExistsError: there are checkpoints that it would not go on from; the message names the ways out.
    """
    out = Path(cfg.OUTPUT_DIR)
    if force:
        if aside := move_aside(out):
            logger.warning("%s is now %s", out, aside)
    elif resume != "auto" and checkpoint_files(out) and (resume == "none" or not is_inside(resume, out)):
        try:
            why = f"--resume would go on from {find_checkpoint(cfg, 'auto')[0].name}"
        except OtherConfiguration as error:
            why = f"they belong to another configuration ({'; '.join(error.changes)})"
        except ValueError:
            why = "none of them can be gone on from"
        raise used(out, why)


def do_train(cfg, resume: str = "none", workers: Workers = ALONE) -> Path:
    """Train as configured; return the last checkpoint.

    Args:
        cfg: the config tree.
        resume: none = from epoch 1 | auto = from OUTPUT_DIR's newest whole checkpoint, if any | a checkpoint's path.
        workers: the processes that train together.
    Raises:
        ValueError: the config, data or checkpoint cannot be used, or another training writes to OUTPUT_DIR; said before
            the first step.
        FloatingPointError: too many steps in a row had no finite loss or gradient.
        Stopped: SIGTERM or SIGINT came; a checkpoint is written.
    """
    out = Path(cfg.OUTPUT_DIR)
    if not workers.is_main:
        return _train(cfg, resume, workers)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / LOCK):
        remove_leftovers(out)  # a checkpoint's half is as large as the model
        return _train(cfg, resume, workers)


def _train(cfg, resume: str, workers: Workers) -> Path:
    """`do_train`, in a folder that is this run's alone."""
    out = Path(cfg.OUTPUT_DIR)
    found = find_checkpoint(cfg, resume)
    run = build(cfg, pretrained=found is None, workers=workers)
    epochs, batches = (0, 0) if found is None else restore(run, *found)
    logger.info("%s; commit %s", describe_run(run), commit())
    if epochs == cfg.SOLVER.MAX_EPOCHS:
        logger.info("all %d epochs were trained before: nothing to do", epochs)
        if workers.is_main:
            restore_last(cfg, found[0])
            draw_curves(out)
        return checkpoint_path(cfg, epochs)
    del found  # as large as the model and its optimisers
    record = None
    if workers.is_main:
        write_text(out / "config.yml", dump_cfg(cfg))
        record = MetricsRecord(out, epochs, epochs * run.batches + batches)
    with StopRequest() as stop:
        watch = Watch(record, stop, time.monotonic())
        for epoch in range(epochs + 1, cfg.SOLVER.MAX_EPOCHS + 1):
            train_epoch(run, watch, epoch, batches if epoch == epochs + 1 else 0)
            finish_epoch(run, watch, epoch)
    if record is not None:
        record.close()
        draw_curves(out)
    return checkpoint_path(cfg, cfg.SOLVER.MAX_EPOCHS)


def train_epoch(run: Training, watch: Watch, epoch: int, start: int = 0) -> None:
    """One pass over the sampler's batches, or what is left of it after `start` of them."""
    cfg, laps = run.cfg, Laps()
    run.hold_backbone(epoch)
    run.model.train()
    run.loaders.sampler.set_epoch(epoch, start)
    if start == 0:
        run.meter.reset()
    with _bar(run, epoch, start) as bar, logging_redirect_tqdm(), naming_lost_workers():
        for iteration, batch in zip(count(start + 1), _waited_for(run, laps)):
            values, ok = train_step(run, batch, epoch, iteration, laps)
            run.meter.update(values, ok)
            if watch.record is not None and (epoch, iteration) == (1, 1):
                _show_batch(run, watch.record, batch)
            logged = iteration % cfg.SOLVER.LOG_PERIOD == 0 or iteration == run.batches
            if logged or run.precision.device.type == "cpu":  # there, asking costs nothing
                check_health(run, batch, values, epoch, iteration)
            if logged:
                report(run, watch, epoch, iteration, iteration - start, laps, bar)
            bar.update()
            save_if_asked(run, watch, epoch, iteration)
    if start < run.batches:  # or all that was left of it is its evaluation
        seconds = laps.total / (run.batches - start)
        logger.info("Epoch %d done. Time per batch: %.3f[s] Speed: %.1f[samples/s]", epoch, seconds,
                    cfg.SOLVER.IMS_PER_BATCH / seconds)


def _waited_for(run: Training, laps: Laps) -> Iterator[Batch]:
    """The loader's batches; the time until one is there is the lap `data`, that after its step `between`.

    Raises:
        ValueError, OSError: an image cannot be read; the message names it.
    """
    laps("start")
    batches = iter(run.loaders.train)
    while True:
        try:
            batch = next(batches, None)
        except (ValueError, OSError) as error:
            if run.cfg.DATALOADER.ON_BAD_IMAGE == "skip":
                raise
            raise ValueError(f"{user_message(error)}; mend it, or train on without it: DATALOADER.ON_BAD_IMAGE skip"
                             ) from error
        if batch is None:
            return
        laps("data")
        yield batch
        laps("between")


def _bar(run: Training, epoch: int, start: int) -> tqdm:
    return tqdm(desc=f"epoch {epoch}/{run.cfg.SOLVER.MAX_EPOCHS}", unit="batch", total=run.batches, initial=start,
                leave=False, disable=not (sys.stderr.isatty() and run.workers.is_main))


# ------------------------------------------------------------------ between steps
def report(run: Training, watch: Watch, epoch: int, iteration: int, done: int, laps: Laps, bar: tqdm) -> None:
    """The lineage's log line, the progress bar and the record, from the epoch's means so far."""
    means = _means_of_all(run)
    if watch.record is None:
        return
    cfg, lr, skipped = run.cfg, run.scheduler.get_last_lr()[0], int(run.skipped[1])
    speed = done * cfg.SOLVER.IMS_PER_BATCH / laps.total
    left = (cfg.SOLVER.MAX_EPOCHS - epoch + 1) * run.batches - iteration
    about = {"images_per_second": round(speed, 1), "data_wait": round(laps.share("data"), 4)}
    if run.precision.device.type == "cuda":
        about["gpu_gib"] = round(max(map(torch.cuda.max_memory_allocated, run.devices)) / 2**30, 2)
    terms = ", ".join(f"{name}: {value:.3f}" for name, value in in_short(means).items())
    state = f"{speed:.0f} images/s, {100 * about['data_wait']:.0f}% waiting for data"
    state += f", {about['gpu_gib']:.1f} GiB" if "gpu_gib" in about else ""
    state += f", {skipped} skipped" if skipped else ""
    remaining = _clock(left * laps.total / done)
    logger.info("Epoch[%d] Iteration[%d/%d] Loss: %.3f, Acc: %.3f, Base Lr: %.2e (%s; %s, %s left)", epoch, iteration,
                run.batches, means["loss"], means["acc"], lr, terms, state, remaining)
    bar.set_postfix_str(f"loss {means['loss']:.3f}, {terms}, acc {means['acc']:.3f}, lr {lr:.1e}, {state}, "
                        f"{remaining} left in all")
    watch.record.write((epoch - 1) * run.batches + iteration, epoch, **means, lr=lr, skipped=skipped, **about)


def _means_of_all(run: Training) -> dict[str, float]:
    """The epoch's means so far, over all processes."""
    means = run.meter.means()
    if run.workers.size > 1:
        row = run.workers.mean(torch.tensor(list(means.values()), dtype=torch.float64))
        means = dict(zip(means, row.tolist(), strict=True))
    return means


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def save_if_asked(run: Training, watch: Watch, epoch: int, iteration: int) -> None:
    """A checkpoint where CHECKPOINT_SECONDS are over, and the end where a signal asks for it: in all processes alike.

    Raises:
        Stopped: a signal came.
    """
    period = run.cfg.SOLVER.CHECKPOINT_SECONDS
    due = bool(period) and time.monotonic() - watch.saved_at >= period
    due, stopping = run.workers.any(due, bool(watch.stop.requested))
    if not (due or stopping):
        return
    save_position(run, epoch - 1, iteration)
    watch.saved_at = time.monotonic()
    run.workers.wait()
    if stopping:
        raise Stopped(watch.stop.requested or "another process was told to stop")


def finish_epoch(run: Training, watch: Watch, epoch: int) -> None:
    """Evaluate where it is due, move the schedule, write the checkpoints of an epoch's end."""
    is_best = False
    if run.cfg.SOLVER.EVAL_PERIOD and epoch % run.cfg.SOLVER.EVAL_PERIOD == 0 and run.loaders.test:
        save_position(run, epoch - 1, run.batches)  # it may take long, and what ends it must not cost the epoch
        watch.saved_at = time.monotonic()
        with watch.stop.at_once():
            is_best = evaluate_epoch(run, watch, epoch)
    run.scheduler.step()
    run.meter.reset()
    if save_epoch(run, epoch, is_best):
        watch.saved_at = time.monotonic()


def evaluate_epoch(run: Training, watch: Watch, epoch: int) -> bool:
    """Metrics on the validation split or the test set, without re-ranking, where it has ground truth; whether they are
    the best so far on the validation split. On a test set none is the best: whoever chooses an epoch by it has no test
    any more.

    A bad test image leaves it out, instead of ending the training, where DATALOADER.ON_BAD_IMAGE is skip (and one
    process trains: several could not go on without it).
    """
    try:
        with run.tested_weights():
            run.same_everywhere()
            metrics = evaluate(run.cfg, run.model, run.loaders, run.precision, run.workers)
    except (ValueError, OSError) as error:
        if run.cfg.DATALOADER.ON_BAD_IMAGE == "error" or run.workers.size > 1:
            raise
        logger.warning("Epoch[%d] no evaluation: %s", epoch, user_message(error))
        return False
    figures = {}
    for domain, by_kind in metrics.items():
        logger.info("Epoch[%d] %s: %s on %s", epoch, domain, describe(by_kind["plain"]), run.loaders.measured_on)
        figures.update({f"{domain}/{name}": value for name, value in by_kind["plain"].items() if name in _EVALUATED})
    if not figures:
        return False
    if watch.record is not None:
        watch.record.write(epoch * run.batches, epoch, **figures)
    if not run.loaders.on_validation:
        return False
    metric, on = run.cfg.SOLVER.BEST_METRIC, run.loaders.measured_on
    value = figures[f"all/{metric}"]
    if run.best and (run.best["metric"], run.best.get("on", on)) == (metric, on) and value <= run.best["value"]:
        return False
    run.best = {"epoch": epoch, "metric": metric, "on": on, "value": value}
    return True


def _show_batch(run: Training, record: MetricsRecord, batch: Batch) -> None:
    images = run.loaders.augment(batch.images.to(run.precision.device), 1, batch.positions, batch.pids)
    record.show_batch(images, list(run.cfg.INPUT.PIXEL_MEAN), list(run.cfg.INPUT.PIXEL_STD))
