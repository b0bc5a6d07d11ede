"""Training from the config to the last checkpoint: epochs, what is logged and saved between steps, and evaluations."""
from __future__ import annotations

import contextlib
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
from datasets.bases import set_of_trial
from datasets.batches import Batch, naming_lost_workers
from datasets.files.images import BadImage, is_inside
from processor.evaluation.ranking import describe
from processor.inference import evaluate
from processor.training.build import Training, build, checkpoint_folder, describe_run
from processor.training.checkpoints import OtherConfiguration
from processor.training.curves import draw_curves
from processor.training.dry_run import measure
from processor.training.metrics_log import MetricsLog, loss_terms
from processor.training.state import restore, save_epoch, save_position
from processor.training.step import TooManySkippedSteps, check_health, train_step
from processor.training.used_folder import LOCK, checkpoint_files, move_aside, used
from utils.dist import ALONE, Workers
from utils.files import remove_leftovers, write_text
from utils.logger import user_message
from utils.meter import PhaseTimer
from utils.process import LostWorker, RunLock, Stopped, StopRequest
from utils.versions import commit

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that one of several processes still waits for images, so that all end after the same step
_EVALUATED = ("rank1", "mAP", "mINP", "naic_score")  # what the metrics log keeps of an evaluation


@dataclass
class Monitor:
    """What goes on beside the steps of a training.

    Attributes:
        log: the metrics of the run, in the first process alone.
        stop: whether a signal asked for the end.
        saved_at: time.monotonic() of the last checkpoint.
    """

    log: MetricsLog | None
    stop: StopRequest
    saved_at: float


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
        way = ""
        try:
            why = f"--resume would go on from {checkpoint_folder(cfg).find('auto')[0].name}"
        except OtherConfiguration as error:
            why, way = f"they belong to another configuration ({'; '.join(error.changes)})", error.way
        except ValueError:
            why = "none of them can be gone on from"
        raise used(out, why, way)


def do_train(cfg, resume: str = "none", workers: Workers = ALONE) -> Path:
    """Train as configured; return the last checkpoint.

    Args:
        cfg: the config tree.
        resume: none = from epoch 1 | auto = from OUTPUT_DIR's newest whole checkpoint, if any | a checkpoint's path.
        workers: the processes that train together.
    Raises:
        ValueError, OSError: before the first step: the config, data or checkpoint cannot be used, or another training
            writes to OUTPUT_DIR; later: an image cannot be read, or a checkpoint cannot be written.
        TooManySkippedSteps: too many steps in a row had no finite loss or gradient.
        LostWorker: another of the processes is gone.
        Stopped: SIGTERM, SIGINT or SIGHUP came; a checkpoint is written.
    """
    out = Path(cfg.OUTPUT_DIR)
    if not workers.is_main:
        return _train(cfg, resume, workers)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / LOCK):
        remove_leftovers(out)  # a checkpoint's half is as large as the model
        return _train(cfg, resume, workers)


def _train(cfg, resume: str, workers: Workers) -> Path:
    """`do_train`, in a folder that no other run writes to."""
    out, checkpoints = Path(cfg.OUTPUT_DIR), checkpoint_folder(cfg)
    begin = checkpoints.find(resume)
    with contextlib.closing(build(cfg, pretrained=begin is None, workers=workers)) as run:
        epochs, batches = (0, 0) if begin is None else restore(run, *begin)
        logger.info("%s; commit %s", describe_run(run), commit())
        if begin is not None and resume == "auto" and workers.is_main:
            checkpoints.restore_latest(begin[0])
        if epochs < cfg.SOLVER.MAX_EPOCHS:
            del begin  # as large as the model and its optimisers
            _train_epochs(run, epochs, batches)
        else:
            logger.info("all %d epochs were trained before: nothing to do", epochs)
            if workers.is_main:
                checkpoints.restore_last(begin[0])
        if workers.is_main:
            draw_curves(out)
    return checkpoints.of_epoch(cfg.SOLVER.MAX_EPOCHS)


def _train_epochs(run: Training, epochs: int, batches: int) -> None:
    """Train what is left after `epochs` whole epochs and `batches` of the next."""
    out, log = Path(run.cfg.OUTPUT_DIR), None
    if run.workers.is_main:
        write_text(out / "config.yml", dump_cfg(run.cfg))
        log = MetricsLog(out, epochs, epochs * run.batches + batches)
    with StopRequest() as stop:
        monitor = Monitor(log, stop, time.monotonic())
        try:
            for epoch in range(epochs + 1, run.cfg.SOLVER.MAX_EPOCHS + 1):
                train_epoch(run, monitor, epoch, batches if epoch == epochs + 1 else 0)
                finish_epoch(run, monitor, epoch)
        except BaseException:
            run.loaders.end()  # or a hung one would be waited for
            raise
    if log is not None:
        log.close()


def dry_run(cfg, workers: Workers = ALONE, resume: str = "none") -> str:
    """What `do_train` would do and take, from a few steps (see `measure`); nothing is written.

    Raises:
        ValueError, OSError: what `do_train` would raise before its first step.
    """
    begin = checkpoint_folder(cfg).find(resume)
    with contextlib.closing(build(cfg, pretrained=begin is None, workers=workers)) as run:
        epochs, batches = (0, 0) if begin is None else restore(run, *begin)
        return measure(run, epochs * run.batches + batches)


def train_epoch(run: Training, monitor: Monitor, epoch: int, start: int = 0) -> None:
    """One pass over the sampler's batches, or what is left of it after `start` of them."""
    cfg, timer = run.cfg, PhaseTimer()
    run.hold_backbone(epoch)
    run.model.train()
    run.loaders.sampler.set_epoch(epoch, start)
    if start == 0:
        run.meter.reset()
    with _bar(run, epoch, start) as bar, logging_redirect_tqdm(), naming_lost_workers():
        for iteration, batch in _timed_batches(run, monitor.stop, timer, epoch, start):
            values, ok = train_step(run, batch, epoch, iteration, timer)
            run.meter.update(values, ok)
            if monitor.log is not None and (epoch, iteration) == (1, 1):
                _log_batch(run, monitor.log, batch)
            due = iteration % cfg.SOLVER.LOG_PERIOD == 0 or iteration == run.batches
            if due or run.precision.device.type == "cpu":  # there, asking costs nothing
                _end_if_diverged(run, batch, values, epoch, iteration)
            if due:
                log_means(run, monitor, epoch, iteration, iteration - start, timer, bar)
            bar.update()
            save_if_asked(run, monitor, epoch, iteration)
    if start < run.batches:  # or all that was left of it is its evaluation
        seconds = timer.total / (run.batches - start)
        logger.info("Epoch %d done. Time per batch: %.3f[s] Speed: %.1f[samples/s]", epoch, seconds,
                    cfg.SOLVER.IMS_PER_BATCH / seconds)


def _timed_batches(run: Training, stop: StopRequest, timer: PhaseTimer, epoch: int,
                   start: int) -> Iterator[tuple[int, Batch]]:
    """The loader's batches after `start`, numbered from 1 in the epoch.

    The time until each is there is the phase `data`, the time after its step `between`.
    Raises:
        BadImage, OSError: an image cannot be read; the message names it.
        Stopped: a signal came and the batch does not; a checkpoint is written.
    """
    timer.end("start")
    batches = iter(run.loaders.train)
    for iteration in count(start + 1):
        try:
            with stop.at_once(_PATIENCE if run.workers.size > 1 else 0):
                batch = next(batches, None)
        except Stopped as stopped:
            if not run.workers.is_main:
                raise LostWorker(f"{stopped} came while process {run.workers.rank} waited for images; the first one "
                                 "cannot save its step, and --resume goes on from the checkpoint before") from stopped
            save_position(run, epoch - 1, iteration - 1, together=False)
            raise
        except (BadImage, OSError) as error:
            if run.cfg.DATALOADER.ON_BAD_IMAGE == "skip":
                raise
            raise BadImage(f"{user_message(error)}; mend it, or train on without it: DATALOADER.ON_BAD_IMAGE skip"
                           ) from error
        if batch is None:
            return
        timer.end("data")
        yield iteration, batch
        timer.end("between")


def _end_if_diverged(run: Training, batch: Batch, values: dict[str, torch.Tensor], epoch: int, iteration: int) -> None:
    """`check_health`, with what to do about it, and the last good checkpoint."""
    try:
        check_health(run, batch, values, epoch, iteration)
    except TooManySkippedSteps as error:
        good = run.checkpoints.newest_good()
        raise TooManySkippedSteps(
            f"{error}. Lower SOLVER.BASE_LR, lengthen the warm-up or set SOLVER.CLIP_GRAD_NORM; "
            + (f"the last good checkpoint is {good}" if good else "there is no checkpoint yet")) from error


def _bar(run: Training, epoch: int, start: int) -> tqdm:
    return tqdm(desc=f"epoch {epoch}/{run.cfg.SOLVER.MAX_EPOCHS}", unit="batch", total=run.batches, initial=start,
                leave=False, disable=not (sys.stderr.isatty() and run.workers.is_main))


# ------------------------------------------------------------------ between steps
def log_means(run: Training, monitor: Monitor, epoch: int, iteration: int, done: int, timer: PhaseTimer,
              bar: tqdm) -> None:
    """The lineage's log line, the progress bar and the metrics log, from the epoch's means so far.

    Args:
        done: steps that `timer` has measured.
    """
    means = _gather_means(run)
    if monitor.log is None:
        return
    cfg, lr, skipped = run.cfg, run.scheduler.get_last_lr()[0], int(run.skipped[1])
    speed = done * cfg.SOLVER.IMS_PER_BATCH / timer.total
    left = (cfg.SOLVER.MAX_EPOCHS - epoch + 1) * run.batches - iteration
    about = {"images_per_second": round(speed, 1), "data_wait": round(timer.share("data"), 4)}
    if run.precision.device.type == "cuda":
        about["gpu_gib"] = round(max(map(torch.cuda.max_memory_allocated, run.devices)) / 2**30, 2)
    terms = ", ".join(f"{name}: {value:.3f}" for name, value in loss_terms(means).items())
    state = f"{speed:.0f} images/s, {100 * about['data_wait']:.0f}% waiting for data"
    state += f", {about['gpu_gib']:.1f} GiB" if "gpu_gib" in about else ""
    state += f", {skipped} skipped" if skipped else ""
    remaining = _clock(left * timer.total / done)
    logger.info("Epoch[%d] Iteration[%d/%d] Loss: %.3f, Acc: %.3f, Base Lr: %.2e (%s; %s, %s left)", epoch, iteration,
                run.batches, means["loss"], means["acc"], lr, terms, state, remaining)
    bar.set_postfix_str(f"loss {means['loss']:.3f}, {terms}, acc {means['acc']:.3f}, lr {lr:.1e}, {state}, "
                        f"{remaining} left in all")
    monitor.log.write((epoch - 1) * run.batches + iteration, epoch, **means, lr=lr, skipped=skipped, **about)


def _gather_means(run: Training) -> dict[str, float]:
    """The epoch's means so far, over all processes."""
    means = run.meter.means()
    if run.workers.size > 1:
        row = run.workers.mean(torch.tensor(list(means.values()), dtype=torch.float64))
        means = dict(zip(means, row.tolist(), strict=True))
    return means


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def save_if_asked(run: Training, monitor: Monitor, epoch: int, iteration: int) -> None:
    """Write a checkpoint if CHECKPOINT_SECONDS are over; write it and end if a signal came. All processes do the same.

    Raises:
        Stopped: a signal came.
    """
    period = run.cfg.SOLVER.CHECKPOINT_SECONDS
    due = bool(period) and time.monotonic() - monitor.saved_at >= period
    due, stopping = run.workers.any(due, bool(monitor.stop.requested))
    if not (due or stopping):
        return
    save_position(run, epoch - 1, iteration)
    monitor.saved_at = time.monotonic()
    run.workers.wait()
    if stopping:
        raise Stopped(monitor.stop.requested or "another process got the signal to stop")


def finish_epoch(run: Training, monitor: Monitor, epoch: int) -> None:
    """Evaluate if it is due, move the schedule, write the checkpoints of an epoch's end."""
    is_best = False
    if run.cfg.SOLVER.EVAL_PERIOD and epoch % run.cfg.SOLVER.EVAL_PERIOD == 0 and run.loaders.test:
        save_position(run, epoch - 1, run.batches)  # it may take long, and what ends it must not cost the epoch
        monitor.saved_at = time.monotonic()
        with monitor.stop.at_once():
            is_best = evaluate_epoch(run, monitor, epoch)
    run.scheduler.step()
    run.meter.reset()
    if save_epoch(run, epoch, is_best):
        monitor.saved_at = time.monotonic()


def evaluate_epoch(run: Training, monitor: Monitor, epoch: int) -> bool:
    """Log the metrics of the domains that have ground truth, without re-ranking; True: they are the best so far.

    On a test set none is the best: whoever chooses an epoch by it has no test any more. If DATALOADER.ON_BAD_IMAGE is
    skip, a bad test image leaves the evaluation out instead of ending the training (of a single process: several could
    not go on without it).
    """
    try:
        with run.tested_weights():
            run.broadcast_buffers()
            metrics = evaluate(run.cfg, run.model, run.loaders, run.precision, run.workers)
    except (BadImage, OSError) as error:
        if run.cfg.DATALOADER.ON_BAD_IMAGE == "error" or run.workers.size > 1:
            raise
        logger.warning("Epoch[%d] no evaluation: %s", epoch, user_message(error))
        return False
    figures = {}
    for domain, by_kind in metrics.items():
        if not set_of_trial(domain):
            logger.info("Epoch[%d] %s: %s on %s", epoch, domain, describe(by_kind["plain"]), run.loaders.measured_on)
        figures.update({f"{domain}/{name}": value for name, value in by_kind["plain"].items() if name in _EVALUATED})
    if not figures:
        return False
    if monitor.log is not None:
        monitor.log.write(epoch * run.batches, epoch, **figures)
    return run.loaders.on_validation and _is_best(run, epoch, figures)


def _is_best(run: Training, epoch: int, figures: dict[str, float]) -> bool:
    """Whether an evaluation beats the best one by SOLVER.BEST_METRIC on the same split; then it is the best."""
    metric, on = run.cfg.SOLVER.BEST_METRIC, run.loaders.measured_on
    value = figures[f"all/{metric}"]
    if run.best and (run.best["metric"], run.best.get("on", on)) == (metric, on) and value <= run.best["value"]:
        return False
    run.best = {"epoch": epoch, "metric": metric, "on": on, "value": value}
    return True


def _log_batch(run: Training, log: MetricsLog, batch: Batch) -> None:
    images = run.loaders.augment(batch.images.to(run.precision.device), 1, batch.positions, batch.pids)
    log.add_images(images, list(run.cfg.INPUT.PIXEL_MEAN), list(run.cfg.INPUT.PIXEL_STD))
