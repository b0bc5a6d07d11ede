"""What a pseudo-labelled set looks like: counts, sizes, distances, how right it is, and a sheet of its pictures."""
from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np

from datasets.bases import UNKNOWN_PID, Sample
from datasets.files.images import ImageSource, decode, resize
from processor.pseudo.clusters import NOBODY, Labels, Rules
from utils.files import atomic_path

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
THRESHOLDS = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the threshold: what another one would have taken
ROWS, COLUMNS, HEIGHT, WIDTH, FRAME, TITLE = 16, 12, 96, 48, 3, 14  # of the sheet; pixels
QUERY_COLOUR, ODD_COLOUR, PLAIN_COLOUR = (220, 120, 0), (0, 0, 230), (255, 255, 255)  # B, G, R


def measure_labels(labels: Labels, num_query: int, rules: Rules, truth: np.ndarray) -> dict:
    """The report's figures.

    Args:
        truth: [N] number of each image's true identity, UNKNOWN_PID if it is unknown.
    """
    identities, distances = labels.identities, labels.distances
    labelled = identities != NOBODY
    sizes = np.bincount(identities[labelled])
    asked = np.arange(len(identities)) >= (num_query if rules.method == "nearest_query" else 0)
    figures = {
        "images": len(identities), "queries": num_query, "labelled": int(labelled.sum()), "identities": len(sizes),
        "sizes": {str(size): int(count) for size, count in zip(*np.unique(sizes, return_counts=True), strict=True)},
        "distance": rules.describe_distance(), "threshold": rules.threshold,
        "distances_of_labelled": _quantiles(distances[labelled & asked]),
        "distances_of_others": _quantiles(distances[~labelled & asked]),
    }
    if rules.method == "nearest_query":
        others = distances[num_query:]
        figures["gallery_images_nearer_than"] = {
            f"{factor * rules.threshold:.4g}": int((others < factor * rules.threshold).sum()) for factor in THRESHOLDS}
    if (truth != UNKNOWN_PID).any():
        figures["quality"] = label_quality(identities, truth)
    return figures


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """{"5%": value}; {} of nothing."""
    if not len(values):
        return {}
    return {f"{percent}%": round(float(value), 4)
            for percent, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}


def label_quality(identities: np.ndarray, truth: np.ndarray) -> dict[str, float | int]:
    """How right labels are, over the images whose truth is known.

    Args:
        identities: [N] a labelling.
        truth: [N] number of each image's true identity, UNKNOWN_PID if it is unknown.
    Returns:
        pair_precision: share of the pairs of one label that are of one person; pair_recall: share of the pairs of one
        person that have one label (an image without a label is paired with none); pair_f1; nmi: normalised mutual
        information of labels and persons, over the labelled images; images: labelled ones of known truth; persons:
        among all images.
    """
    from sklearn.metrics import normalized_mutual_info_score, pair_confusion_matrix  # slow to import

    known = truth != UNKNOWN_PID
    identities, truth = identities[known], truth[known]
    labelled = identities != NOBODY
    alone = np.where(labelled, identities, len(identities) + np.arange(len(identities)))
    (_, wrong), (missed, right) = pair_confusion_matrix(truth, alone).tolist()
    nmi = normalized_mutual_info_score(truth[labelled], identities[labelled]) if labelled.any() else 0.0
    return {
        "pair_precision": round(right / max(right + wrong, 1), 4),
        "pair_recall": round(right / max(right + missed, 1), 4),
        "pair_f1": round(2 * right / max(2 * right + wrong + missed, 1), 4), "nmi": round(float(nmi), 4),
        "images": int(labelled.sum()), "persons": len(np.unique(truth)),
    }


def describe(figures: dict) -> str:
    """The figures in a line."""
    line = f"{figures['labelled']:,} of {figures['images']:,} images in {figures['identities']:,} identities"
    if quality := figures.get("quality"):
        line += (f"; pairs: precision {100 * quality['pair_precision']:.1f}%, recall "
                 f"{100 * quality['pair_recall']:.1f}%, F1 {100 * quality['pair_f1']:.1f}%; NMI {quality['nmi']:.3f}")
    return line


# ------------------------------------------------------------------ pictures
def write_sheet(path: str | os.PathLike, samples: Sequence[Sample], source: ImageSource, labels: Labels,
                numbers: np.ndarray, num_query: int) -> None:
    """Write a PNG of some identities, a row each: from those that are surest of their images to the most doubtful.

    Queries are framed blue and, if the truth is known, images of another person than most of the row red. A row begins
    with its queries and goes on by distance.

    Args:
        numbers: [N] what the list calls each image's identity.
    """
    rows = []
    for identity in _choose_identities(labels):
        members = np.flatnonzero(labels.identities == identity)
        is_query = members < num_query
        members = members[np.lexsort((labels.distances[members], ~is_query))]
        title = f"{numbers[members[0]]}: {len(members)} images, to {labels.distances[members].max():.3f}"
        rows.append(_draw_row(title, members, samples, source, num_query))
    ok, data = cv2.imencode(".png", np.vstack(rows))
    assert ok
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _choose_identities(labels: Labels) -> np.ndarray:
    """Identities evenly over those sorted by their farthest image."""
    labelled = labels.identities != NOBODY
    farthest = np.zeros(labels.identities.max(initial=NOBODY) + 1)
    np.maximum.at(farthest, labels.identities[labelled], labels.distances[labelled])
    order = np.argsort(farthest, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, ROWS).round().astype(int))]


def _draw_row(title: str, members: np.ndarray, samples: Sequence[Sample], source: ImageSource,
              num_query: int) -> np.ndarray:
    pids = [samples[member].pid for member in members]
    most = max(set(pids) - {UNKNOWN_PID}, key=pids.count, default=UNKNOWN_PID)
    cells = []
    for member, pid in zip(members[:COLUMNS], pids, strict=False):
        key = samples[member].key
        image = resize(decode(source.read(key), name=key), (HEIGHT, WIDTH))[..., ::-1]
        colour = ODD_COLOUR if pid not in (most, UNKNOWN_PID) else QUERY_COLOUR if member < num_query else PLAIN_COLOUR
        cells.append(cv2.copyMakeBorder(image, *[FRAME] * 4, cv2.BORDER_CONSTANT, value=colour))
    row = np.hstack(cells)
    row = np.pad(row, ((TITLE, 0), (0, COLUMNS * (WIDTH + 2 * FRAME) - row.shape[1]), (0, 0)), constant_values=255)
    return cv2.putText(np.ascontiguousarray(row), title, (FRAME, TITLE - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0))
