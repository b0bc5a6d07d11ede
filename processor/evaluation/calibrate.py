"""A model's thresholds, from the features of a test."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from processor.evaluation.feature_bank import FeatureBank, read_bank
from processor.export.card import write_card
from processor.export.model_folder import INFO, ModelInfo, read_info
from processor.retrieval.calibration import Pairs, count_pairs, fit_probability, needed_pairs, split_identities
from processor.retrieval.ensemble import concat_features
from utils.files import write_json

logger = logging.getLogger(__name__)
RATES = (1e-2, 1e-3, 1e-4)


def calibrate(run: Path, model: Path, rates: Sequence[float] = ()) -> dict[str, Any]:
    """Write thresholds and a probability of "same person" into model.json, and the card anew.

    The pairs are those that the metrics count, a query and a gallery picture. They are made of half of the identities;
    the other half's tell how well the thresholds hold.

    Args:
        run: OUTPUT_DIR of tools/test.py.
        model: folder of tools/export.py with the model that was tested.
        rates: false positive rates; () = those of RATES that there are enough pairs for.
    Returns:
        What stands in model.json under `thresholds`: cosine {rate: threshold}, probability, pairs, check {rate: the
        rates of the other half}, measured_on.
    Raises:
        FileNotFoundError, ValueError: a folder is not what it should be, the run is of another model, the truth is not
            known, or there are too few pairs for a rate.
    """
    info, (banks, index) = read_info(model), read_bank(run / "features")
    if index.get("model_id") != info.model_id:
        raise ValueError(f"{run} has the features of another model than {model} (or with another mirror image, size, "
                         "neck or branch weight, or made by an older version): test the checkpoint that was exported")
    known = {domain: bank for domain, bank in banks.items() if bank.has_truth}
    if not known:
        raise ValueError(f"{run}: who is on the pictures is not known, so no pair can be counted; test on a set with "
                         "query and gallery identities, or on a split of tools/split_validation.py")
    chosen, other = Pairs(), Pairs()
    for bank in known.values():
        _count(bank, info, chosen, other)
    if not (chosen.num_positives and other.num_positives):
        raise ValueError(f"{run}: half of the identities have {chosen.num_positives} pairs of the same person, the "
                         f"other half {other.num_positives}; it takes some in both")
    rates = rates or [rate for rate in RATES if chosen.num_negatives >= needed_pairs(rate)] or RATES[:1]
    cosines = {f"{rate:g}": chosen.threshold(rate) for rate in rates}
    thresholds = {
        "cosine": cosines, "probability": fit_probability(chosen),
        "pairs": {"same": chosen.num_positives, "different": chosen.num_negatives},
        "check": {rate: other.rates(cosine) for rate, cosine in cosines.items()},
        "measured_on": index.get("measured_on", "a test set"),
    }
    write_json(model / INFO, replace(info, thresholds=thresholds).to_json())
    write_card(model)
    return thresholds


def _count(bank: FeatureBank, info: ModelInfo, chosen: Pairs, other: Pairs) -> None:
    """Add a domain's pairs."""
    rows = concat_features([bank.feats[branch] for branch in info.branches], list(info.weights.values()))
    rows /= np.float32(np.sqrt(sum(info.weights.values())))
    sides = [(rows[part], bank.pids[part], bank.camids[part])
             for part in (slice(None, bank.num_query), slice(bank.num_query, None))]
    for pairs, half in zip((chosen, other), split_identities(bank.pids), strict=True):
        count_pairs(pairs, *sides, half, bank.drop_same_camera, bank.same_file)


def format_thresholds(thresholds: dict[str, Any]) -> str:
    """The thresholds as a markdown table, with what they were measured on."""
    pairs = thresholds["pairs"]
    lines = ["| false positive rate | cosine from | other half: false positives | true positives |",
             "|---|---|---|---|"]
    for rate, cosine in thresholds["cosine"].items():
        check = thresholds["check"][rate]
        lines.append(f"| {rate} | {cosine:.4f} | {check['fpr']:.2e} | {100 * check['tpr']:.2f} % |")
    return "\n".join([*lines, "", f"Measured on {thresholds['measured_on']}: {pairs['same']} pairs of the same person "
                      f"and {pairs['different']} of different persons of half of its identities, checked on the other "
                      "half. Thresholds do not carry over between sites: measure them on pictures of your own."])
