"""Unsupervised domain adaptation: label what has no labels, train on the union, and again.

    OUTPUT_DIR/round_1/unlabel/    what the first model labelled; see processor.pseudo_label
               round_1/features/   of the model that labelled
               round_1/NAME_6.pth  trained on the training sets and round_1/unlabel
               round_2/unlabel/    what round_1/NAME_6.pth labelled …
               uda.json            the figures of each round

A round that is there is not made again, and a training that was killed goes on, so the command can be given again.
"""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from configs import change_cfg, flatten_cfg
from datasets.make_dataloader import make_dataloader, make_places
from datasets.naic import UNLABEL
from datasets.sets.unlabelled import Unlabelled
from model.make_model import make_model
from processor.pseudo_label import check_weight, label_settings, pseudo_label, read_report, rules_of, unlabelled_images
from processor.trainer import do_train
from processor.training.build import choose_evaluations
from processor.training.checkpoints import describe_changes
from utils.dist import ALONE, Workers
from utils.files import write_json
from utils.process import RunLock

logger = logging.getLogger(__name__)
ROUNDS = "uda.json"


def do_uda(cfg, cfg_test, query: Sequence[str] = (), gallery: Sequence[str] = (), workers: Workers = ALONE) -> Path:
    """UDA.ROUNDS rounds of labelling and training; return the last checkpoint.

    Args:
        cfg: the recipe that is trained; its UDA section counts.
        cfg_test: the model that labels in the first round (TEST.WEIGHT), which may be another than the recipe's, and
            the place of the unlabelled images, if no folder is named.
        query, gallery: folders of unlabelled images; none = the test folder of cfg_test.
        workers: processes that extract and train together; OUTPUT_DIR is a folder that all of them see.
    Raises:
        ValueError, OSError: before anything slow: the labeller, the images or the recipe cannot be used, OUTPUT_DIR
            holds rounds that were made otherwise, or another run is at work there.
    """
    rules_of(cfg)
    check_weight(cfg_test)
    unlabelled = unlabelled_images(cfg_test, query, gallery)
    out, weight = Path(cfg.OUTPUT_DIR), Path(cfg_test.TEST.WEIGHT)
    _check_start(round_cfg(cfg, out, weight))
    _check_evaluations(cfg)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out / ".lock") if workers.is_main else contextlib.nullcontext():
        return _rounds(cfg, _labelling_by(cfg, cfg_test), unlabelled, out, weight, workers)


def _rounds(cfg, labeller, unlabelled: Unlabelled, out: Path, weight: Path, workers: Workers) -> Path:
    """Label and train, in turn; return the last checkpoint."""
    rounds = []
    for number in range(1, cfg.UDA.ROUNDS + 1):
        folder = out / f"round_{number}"
        labeller = change_cfg(labeller, {"TEST.WEIGHT": str(weight)})
        logger.info("round %d of %d: %s labels", number, cfg.UDA.ROUNDS, weight)
        report = label_round(labeller, unlabelled, folder, out / f"round_{number - 1}" if number > 1 else None, workers)
        logger.info("round %d of %d: training on the union", number, cfg.UDA.ROUNDS)
        labelled_by, weight = weight, do_train(round_cfg(cfg, folder, weight), "auto", workers)
        figures = {key: value for key, value in report.items() if key not in ("what", "made_of")}
        rounds.append({"labelled_by": str(labelled_by), "trained": str(weight), **figures})
        if workers.is_main:
            write_json(out / ROUNDS, rounds)
        labeller = cfg  # from now on the recipe's model labels
    return weight


def round_cfg(cfg, folder: Path, weight: Path):
    """The recipe of a round: the union of the training sets and the labelled set, in the round's folder."""
    changes = {"OUTPUT_DIR": str(folder), "DATASETS.DERIVED_DIR": str(make_places(cfg).derived_dir),
               "DATASETS.USE_UNLABEL": True, "DATASETS.UNLABEL_DIR": str(folder / UNLABEL.folder)}
    if cfg.UDA.START == "labeller":
        changes |= {"MODEL.PRETRAIN_CHOICE": "finetune", "MODEL.PRETRAIN_PATH": str(weight)}
    return change_cfg(cfg, changes)


def _labelling_by(cfg, cfg_test):
    """The first labeller: a tested model by the recipe's rules."""
    rules = {key: value for key, value in flatten_cfg(cfg).items() if key.startswith("UDA.") or key == "MODEL.THRESH"}
    return change_cfg(cfg_test, rules)


def _check_start(recipe) -> None:
    """Build the recipe's model once, so that weights that do not fit are refused before an hour of labelling."""
    try:
        make_model(recipe, num_class=1)
    except ValueError as error:
        if recipe.MODEL.PRETRAIN_CHOICE != "finetune":
            raise
        raise ValueError(f"{error}\nTo train another model than the one that labels, set UDA.START recipe") from error


def _check_evaluations(cfg) -> None:
    """Say before an hour of labelling what the trainings will not measure on, and why."""
    if cfg.SOLVER.EVAL_PERIOD:
        with contextlib.suppress(ValueError, OSError):  # a training goes on without a test set that cannot be read
            choose_evaluations(make_dataloader(cfg, train=False))


def label_round(cfg, unlabelled: Unlabelled, folder: Path, last: Path | None,
                workers: Workers = ALONE) -> dict:
    """The report of a round's labelled set, which is made if it is not there.

    Raises:
        ValueError: it is there and was made by other rules, of other images or by another model.
    """
    place = folder / UNLABEL.folder
    report = workers.gather_objects(read_report(place))[0]
    if report is None:
        return pseudo_label(cfg, unlabelled, place, folder / "features",
                            before=last / UNLABEL.folder if last else None, workers=workers)
    if changes := describe_changes(report["made_of"], label_settings(cfg, unlabelled)):
        raise ValueError(f"{place} was made otherwise ({'; '.join(changes)}); use another OUTPUT_DIR, or remove "
                         f"{folder} and the later rounds")
    logger.info("%s is there already", place)
    return report
