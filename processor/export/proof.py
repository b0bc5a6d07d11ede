"""The proof of an exported file: the same pictures through torch and through the file."""
from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from processor.export.runtimes import Runtime
from processor.retrieval.metrics import RankResult
from processor.retrieval.significance import compare

LARGEST_DIFFERENCE = 1e-4  # of float32
SMALLEST_COSINE = 0.99  # of the others where no mAP is known
MAX_DROP = {"float16": 0.1, "int8": 1.0}  # points of mAP
BATCHES = (1, 64)  # that are timed
_SECONDS = 0.5  # that a timing takes, at least


@dataclass(frozen=True)
class Proof:
    """What is known of a file.

    Attributes:
        model_id, precision: as in its metadata.
        pictures: how many were compared; source: what they are.
        largest_difference, smallest_cosine: of a picture's two rows.
        images_per_second: {batch: how many, with torch's number of threads}.
        mean_ap, rank1: (torch's, the file's) in 0..1, without re-ranking; None: not asked for.
        verdict: of the paired test of the two mAP, as tools/compare.py makes it.
    """

    model_id: str
    precision: str
    pictures: int
    source: str
    largest_difference: float
    smallest_cosine: float
    images_per_second: dict[str, float]
    mean_ap: tuple[float, float] | None = None
    rank1: tuple[float, float] | None = None
    verdict: str = ""

    @property
    def drop(self) -> float | None:
        """Points of mAP that the file loses."""
        return None if self.mean_ap is None else 100 * (self.mean_ap[0] - self.mean_ap[1])


def compare_rows(reference: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """The largest difference and the smallest cosine of two arrays [N, D], row by row; NaN if there is one in them."""
    difference, cosine = 0.0, 1.0
    for begin in range(0, len(rows), 1024):
        a, b = (np.asarray(part[begin : begin + 1024], np.float64) for part in (reference, rows))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        difference = np.maximum(difference, np.abs(a - b).max())  # NaN wins, unlike with max
        cosine = np.minimum(cosine, ((a * b).sum(1) / np.maximum(norms, 1e-12)).min())
    return float(difference), float(cosine)


def compare_rankings(reference: RankResult, result: RankResult) -> dict:
    """The fields of a Proof that torch's ranking and the file's give."""
    changes = {change.metric: change for change in compare(reference, result)}
    change = changes["mAP"]
    interval = f"{100 * (change.b - change.a):+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
    better = {"A is better": "torch is better", "B is better": "the file is better"}
    verdict = better.get(change.verdict(), change.verdict())
    return {"mean_ap": (change.a, change.b), "rank1": (changes["rank1"].a, changes["rank1"].b),
            "verdict": f"{interval}, p (Holm) {change.p_holm:.3f}: {verdict}"}


def find_fault(proof: Proof, max_drop: float | None = None) -> str:
    """Why a file is not as it must be, "" if it is.

    Args:
        max_drop: points of mAP that a file of less than float32 may lose; None: MAX_DROP.
    """
    difference, cosine = proof.largest_difference, proof.smallest_cosine
    if proof.precision == "float32":
        fits = difference <= LARGEST_DIFFERENCE
        return "" if fits else f"rows differ from torch's by {difference:.2g}, more than {LARGEST_DIFFERENCE}"
    if proof.drop is None:
        fits = cosine >= SMALLEST_COSINE
        return "" if fits else (f"the smallest cosine with torch's row is {cosine:.4f}, less than {SMALLEST_COSINE}; "
                                "--verify lets the mAP decide instead")
    limit = MAX_DROP[proof.precision] if max_drop is None else max_drop
    return "" if proof.drop <= limit else f"loses {proof.drop:.2f} points of mAP, more than --max-drop {limit}"


def time_batches(runtime: Runtime, size: tuple[int, int]) -> dict[str, float]:
    """{batch: images per second} of decoded pictures."""
    speeds = {}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
        runtime.rows(images)
        rounds, start = 0, time.perf_counter()
        while not rounds or time.perf_counter() - start < _SECONDS:
            runtime.rows(images)
            rounds += 1
        speeds[str(batch)] = rounds * batch / (time.perf_counter() - start)
    return speeds
