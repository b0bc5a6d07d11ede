"""A trained model gives identities to unlabelled pictures: a training set, read by DATASETS.USE_UNLABEL.

    PLACE/images/     the labelled pictures, linked or copied
          label.txt   NAME:PID, as the lineage writes it
          report.json how it was made, counts, sizes, distances and, if the truth is known, how right it is
          samples.png some identities, from the surest to the most doubtful
"""
from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs import flatten_cfg
from datasets.bases import Problems, Sample
from datasets.make_dataloader import make_places, make_unlabelled_loader
from datasets.naic import UNLABEL, data_root
from datasets.sets.domains import PARTS
from datasets.sets.list_files import quoted, read_lines
from datasets.sets.unlabelled import Unlabelled, find_unlabelled
from processor.evaluation.feature_bank import FeatureBank, read_bank
from processor.evaluation.sources import warn_of_neighbours
from processor.inference import compute_of, device_of, load_trained, ranking_of, write_bank
from processor.pseudo.clusters import NOBODY, Labels, Rules, keep_numbers, label
from processor.pseudo.report import describe, measure_labels, write_sheet
from processor.retrieval.ensemble import concat_features
from utils.dist import ALONE, Workers
from utils.files import new_folder, read_json, sha256_of, write_json, write_text
from utils.packages import weight_file

REPORT, LIST = "report.json", UNLABEL.list_file
WHAT = "pseudo-labelled set"
ALL = "all"  # the domain of their features

# Beginnings of the keys that features depend on beside the checkpoint, and of those that labels do beside features.
_OF_FEATURES = ("MODEL.NAME", "MODEL.LAST_STRIDE", "MODEL.NECK", "MODEL.POOLING_METHOD", "MODEL.GEM_P",
                "MODEL.IF_USE_PCB", "MODEL.MERGE_PCB_FEAT", "MODEL.PCB_GATE", "MODEL.PCB_RPP", "INPUT.SIZE_TEST",
                "INPUT.PIXEL_", "TEST.NECK_FEAT", "TEST.FLIP_FEATS", "TEST.USE_LOCAL", "TEST.PCB_", "TEST.USE_PCB_",
                "SOLVER.FP16", "SOLVER.AMP_DTYPE")
_OF_LABELS = ("MODEL.THRESH", "TEST.FEAT_NORM", "TEST.LOCAL_WEIGHT", "UDA.METHOD", "UDA.DISTANCE", "UDA.THRESHOLD",
              "UDA.RE_RANKING_PARAMETER", "UDA.MERGE_QUERIES", "UDA.MIN_SAMPLES")

logger = logging.getLogger(__name__)


def rules_of(cfg) -> Rules:
    """How to label: the UDA section.

    Raises:
        ValueError: no threshold is set.
    """
    threshold = cfg.UDA.THRESHOLD
    if not threshold and (cfg.UDA.METHOD, cfg.UDA.DISTANCE) == ("nearest_query", "angle"):
        threshold = cfg.MODEL.THRESH
    if not threshold:
        raise ValueError("UDA.THRESHOLD is 0, not set: how near must images be to be one person? For the angle of "
                         "nearest_query the lineage took 0.3 (radians), for clustering 0.5 is a beginning")
    k1, k2, lambda_value = cfg.UDA.RE_RANKING_PARAMETER
    return Rules(cfg.UDA.METHOD, cfg.UDA.DISTANCE, threshold, (int(k1), int(k2), float(lambda_value)),
                 cfg.UDA.MERGE_QUERIES, cfg.UDA.MIN_SAMPLES)


def unlabelled_images(cfg, query: Sequence[str] = (), gallery: Sequence[str] = ()) -> Unlabelled:
    """The images of the folders, or if none is named of the configured test folder.

    Raises:
        OSError, ValueError: as `find_unlabelled`.
    """
    if not query and not gallery:
        folder = data_root(make_places(cfg).root_of("naic")) / cfg.DATASETS.TEST_DIR
        query, gallery = ([folder / part] for part in PARTS)
    return find_unlabelled(query, gallery)


def default_place(cfg) -> Path:
    """Where DATASETS.USE_UNLABEL looks outside of the data's own folder."""
    return make_places(cfg).derived_dir / UNLABEL.folder


def label_settings(cfg, unlabelled: Unlabelled) -> dict:
    """Everything that labels depend on: sets made with equal settings are equal."""
    return {**_feature_settings(cfg, unlabelled), **_values(cfg, _OF_LABELS)}


def _feature_settings(cfg, unlabelled: Unlabelled) -> dict:
    return {"weight": Path(cfg.TEST.WEIGHT).name, "weight_sha256": sha256_of(weight_file(cfg.TEST.WEIGHT)),
            "images": unlabelled.digest(), **_values(cfg, _OF_FEATURES)}


def _values(cfg, begins: tuple[str, ...]) -> dict:
    return {key: value for key, value in flatten_cfg(cfg).items() if key.startswith(begins)}


# ------------------------------------------------------------------ from images to a labelled set
def pseudo_label(cfg, unlabelled: Unlabelled, place: Path, features: Path, copy: bool = False,
                 before: Path | None = None, workers: Workers = ALONE) -> dict:
    """Label images with the model TEST.WEIGHT by the UDA section, and leave a training set.

    Args:
        cfg: of the model, with the UDA section to label by.
        unlabelled: see `unlabelled_images`.
        place: the folder to make; an earlier set of this tool there is replaced.
        features: folder of the feature bank, which is used again if model and images are the same.
        copy: copy the images; else they are linked if the file system can (hard links: no room, no way out of the
            folder).
        before: an earlier labelled set of the same images; identities that stay keep their numbers.
        workers: processes that share the extraction of features; the first labels.
    Returns:
        The report.
    Raises:
        ValueError, OSError: before anything slow if it can be known: the model, the images or the place cannot be used.
    """
    rules = rules_of(cfg)
    if rules.method == "nearest_query" and not 0 < unlabelled.num_query < len(unlabelled.samples):
        raise ValueError("UDA.METHOD=nearest_query needs query and gallery images; use dbscan or agglomerative for "
                         "images without queries")
    check_place(place)
    check_weight(cfg)
    if rules.method != "nearest_query" or rules.distance == "re_ranked":
        warn_of_neighbours("unlabelled images", {"k1 of UDA.RE_RANKING_PARAMETER": rules.re_ranking[0]},
                           len(unlabelled.samples))
    bank = _extract(cfg, unlabelled, features, workers)
    report = None
    if workers.is_main:
        feats, normalize = _join_branches(cfg, bank)
        labels = label(feats, unlabelled.num_query, rules, normalize, compute_of(cfg, str(device_of(cfg, workers))))
        report = _write(cfg, unlabelled, labels, rules, place, copy, before)
    return workers.gather_objects(report)[0]


def _write(cfg, unlabelled: Unlabelled, labels: Labels, rules: Rules, place: Path, copy: bool,
           before: Path | None) -> dict:
    """Write the labelled set; return its report."""
    truth = np.array([sample.pid for sample in unlabelled.samples])
    figures = measure_labels(labels, unlabelled.num_query, rules, truth)
    logger.info("%s: %s", place, describe(figures))
    if not figures["identities"]:
        raise ValueError(f"no two images are near enough: UDA.THRESHOLD or MODEL.THRESH, {rules.threshold}, is too "
                         f"small; the distances are {figures['distances_of_others']}")
    largest = max(map(int, figures["sizes"]))
    if 2 * largest > figures["labelled"]:
        logger.warning("one identity has %d of the %d labelled images: a smaller UDA.THRESHOLD or MODEL.THRESH than %s "
                       "tells people apart", largest, figures["labelled"], rules.threshold)
    names = file_names(unlabelled.samples)
    numbers = keep_numbers(labels.identities, _read_numbers(before, names))
    with new_folder(place) as folder:
        _store_images(unlabelled, names, numbers, folder / UNLABEL.images, copy)
        listed = [f"{name}:{number}\n" for name, number in zip(names, numbers, strict=True) if number != NOBODY]
        write_text(folder / LIST, "".join(listed))
        write_sheet(folder / "samples.png", unlabelled.samples, unlabelled.source(), labels, numbers,
                    unlabelled.num_query)
        report = {"what": WHAT, **figures, "made_of": label_settings(cfg, unlabelled)}
        write_json(folder / REPORT, report)
    return report


def check_weight(cfg) -> None:
    """Raise FileNotFoundError if TEST.WEIGHT names no file."""
    if not cfg.TEST.WEIGHT or not os.path.isfile(weight_file(cfg.TEST.WEIGHT)):
        raise FileNotFoundError(f"TEST.WEIGHT={cfg.TEST.WEIGHT!r} is no file: name the checkpoint that is to label, "
                                "such as TEST.WEIGHT output/NAME_60.pth")


def check_place(place: Path) -> None:
    """Raise FileExistsError if the folder holds anything but an earlier labelled set."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())) and read_report(place) is None:
        raise FileExistsError(f"{place} is there and was not written by tools/pseudo_label.py; it stays as it is: "
                              "choose another place")


def read_report(place: Path) -> dict | None:
    """The report of a labelled set, None if there is none.

    Raises:
        ValueError: it is one, and damaged.
    """
    try:
        report = read_json(place / REPORT)
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or report.get("what") != WHAT:
        return None
    try:  # it goes into the report of all rounds
        json.dumps(report, ensure_ascii=False, allow_nan=False).encode()
        is_whole = isinstance(report.get("made_of"), dict)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{place / REPORT}: damaged; remove {place}, which is then made anew")
    return report


def _extract(cfg, unlabelled: Unlabelled, folder: Path, workers: Workers) -> FeatureBank:
    """The feature bank of all images; it is extracted unless there is one of this model and these images."""
    wanted = _feature_settings(cfg, unlabelled)
    bank = _read_bank_of(folder, wanted)
    if all(workers.gather_objects(bank is not None)):
        logger.info("%s: the features are there already", folder)
    else:
        model = load_trained(cfg, Path(cfg.TEST.WEIGHT), device_of(cfg, workers))
        loader = make_unlabelled_loader(cfg, unlabelled, workers.rank, workers.size)
        write_bank(cfg, model, {ALL: loader}, folder, {"features_of": wanted}, workers)
        bank = read_bank(folder)[0][ALL]
    return bank


def _read_bank_of(folder: Path, wanted: dict) -> FeatureBank | None:
    """The bank of all images; None: there is none, half of one, a damaged one or another's."""
    try:
        banks, index = read_bank(folder)
    except (ValueError, OSError):
        return None
    return banks.get(ALL) if index.get("features_of") == wanted else None


def _join_branches(cfg, bank: FeatureBank) -> tuple[np.ndarray, bool]:
    """Features [N, D], and whether they are to be given length 1; several branches are put side by side, weighted."""
    weights = ranking_of(cfg).branch_weights(bank.feats)
    if len(weights) == 1:
        return next(iter(bank.feats.values())), cfg.TEST.FEAT_NORM
    return concat_features([bank.feats[branch] for branch in weights], list(weights.values())), True


def file_names(samples: Sequence[Sample]) -> list[str]:
    """What each image is called in the labelled set: by its file name, as far as that is free and fits a list."""
    names: list[str] = []
    taken: set[str] = set()
    for position, sample in enumerate(samples):
        place, _, name = sample.key.partition("/")
        if name != name.strip() or not name.isprintable():
            name = f"{position:06d}{Path(name).suffix.strip().lower()}"
        if name in taken:
            name = f"{place}_{name}"
        while name in taken:
            name = f"_{name}"
        taken.add(name)
        names.append(name)
    return names


def _read_numbers(before: Path | None, names: list[str]) -> np.ndarray:
    """[N] the numbers of an earlier set."""
    number_of: dict[str, int] = {}
    if before is not None:
        problems = Problems()
        for row, line in read_lines(before / LIST, LIST, problems):
            name, _, number = line.rpartition(":")
            if not re.fullmatch(r"\d{1,9}", number, re.ASCII):
                problems.add(f"{LIST}:{row}: expected NAME:NUMBER, got {quoted(line)}")
                continue
            number_of[name] = int(number)
        problems.raise_if_any(str(before / LIST), f"Remove {before}, which is then made anew.")
    return np.array([number_of.get(name, NOBODY) for name in names])


def _store_images(unlabelled: Unlabelled, names: list[str], numbers: np.ndarray, folder: Path, copy: bool) -> None:
    """Link or copy the labelled images into a new folder."""
    folder.mkdir()
    for sample, name, number in zip(unlabelled.samples, names, numbers, strict=True):
        if number == NOBODY:
            continue
        path = os.path.realpath(unlabelled.path(sample))
        if not copy:
            try:
                os.link(path, folder / name)
                continue
            except OSError:
                copy = True  # another disk, or a file system without hard links
        shutil.copyfile(path, folder / name)
