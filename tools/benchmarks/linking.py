"""The benchmark of following people: streams drawn from a test's features, the Linker beside what people do today."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from processor.evaluation.feature_bank import FeatureBank, read_bank
from processor.gallery.linking.linker import Decision, Linker, Tracklet
from processor.retrieval.calibration import Pairs, count_pairs, split_identities
from processor.retrieval.ensemble import concat_features
from tools.benchmarks.harness import new_report

PICTURES = 3  # of a tracklet at most; 1 .. PICTURES are drawn
PICTURE_SECONDS = 4.0
HOUR = 3600.0  # in which people come
GAP = 60.0  # seconds between two tracklets of a person, on average
FIXED = 0.5  # the cosine that people set for the nearest neighbour
EPS, MIN_SAMPLES = np.arange(0.02, 0.81, 0.01), (1, 2, 3, 4)  # of which DBSCAN gets the best in hindsight
CUTS = np.arange(0.2, 0.9, 0.01)


@dataclass(frozen=True)
class LinkingOptions:
    """What to measure; the fields are the command line's options."""

    run: str
    rates: Sequence[float] = (0.03, 0.01, 0.005, 0.003)  # false positive rates that give the Linker's thresholds
    seeds: Sequence[int] = (0, 1, 2)
    device: str = "cpu"


def make_options(run: Path, rates: Sequence[float] | None, seeds: Sequence[int] | None) -> LinkingOptions:
    """The options of a command line; None means the default."""
    return LinkingOptions(str(run), tuple(rates or LinkingOptions.rates), tuple(seeds or LinkingOptions.seeds))


class Stream(NamedTuple):
    """Tracklets [n] in the order of their ends, whose they are [n], and how many pictures each has [n]."""

    tracklets: list[Tracklet]
    people: np.ndarray
    pictures: np.ndarray


def run_benchmark(options: LinkingOptions) -> dict[str, Any]:
    """Draw a stream for each seed and let each row link it.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "streams" and "rows", each with a run a seed.
    Raises:
        ValueError: the run has no features, or the truth is not known, or there are too few pairs for a rate.
    """
    banks = {domain: bank for domain, bank in read_bank(Path(options.run) / "features")[0].items() if bank.has_truth}
    if not banks:
        raise ValueError(f"{options.run}: who is on the pictures is not known; test on a set with identities")
    report = {**new_report(options), "streams": []}
    rows: dict[str, list[dict]] = {}
    for seed in options.seeds:
        stream, pairs = draw_stream(banks, seed)
        report["streams"].append({"tracklets": len(stream.tracklets), "people": len(np.unique(stream.people)),
                                  "pictures": int(stream.pictures.sum()),
                                  "apart": sum(len(tracklet.apart) for tracklet in stream.tracklets) // 2})
        for title, figures in _measure(stream, pairs, options.rates):
            rows.setdefault(title, []).append(figures)
    report["rows"] = [{"title": title, "note": "", "runs": runs} for title, runs in rows.items()]
    return report


# -------------------------------------------------------------------------------------------------------- the streams
def draw_stream(banks: dict[str, FeatureBank], seed: int) -> tuple[Stream, Pairs]:
    """Of each domain half of the identities is the stream, the other half's pairs give the thresholds.

    A person's pictures by one camera, in random order, are cut into tracklets of 1 .. PICTURES pictures, as many as
    are drawn, each for PICTURE_SECONDS. The vector is the mean of the pictures' vectors, scaled. The person comes at a
    moment of the HOUR and has these tracklets in random order, with gaps that are exponential with mean GAP. Two
    tracklets by one camera at the same time are people in one frame. Tracklets come when they end.
    """
    rng, drawn, pairs = np.random.default_rng(seed), [], Pairs()
    for domain, bank in sorted(banks.items()):
        rows = concat_features(list(bank.feats.values())) / np.float32(np.sqrt(len(bank.feats)))
        sides = [(rows[part], bank.pids[part], bank.camids[part])
                 for part in (slice(None, bank.num_query), slice(bank.num_query, None))]
        calibrating, streaming = split_identities(bank.pids, seed)
        count_pairs(pairs, *sides, calibrating, bank.drop_same_camera, bank.same_file)
        for pid in streaming:
            drawn += [((domain, int(pid)), *way) for way in _draw_way(rows, bank, pid, rng)]
    drawn.sort(key=lambda way: (way[2], way[0], way[1]))
    people, begins, ends, cameras, vectors, pictures = zip(*drawn, strict=True)
    begins, ends, cameras = map(np.array, (begins, ends, cameras))
    apart = (cameras[:, None] == cameras) & (begins[:, None] < ends) & (begins < ends[:, None])
    whose = {person: number for number, person in enumerate(sorted(set(people)))}
    np.fill_diagonal(apart, False)
    tracklets = [Tracklet(i, vectors[i], int(cameras[i]), int(1000 * ends[i]), np.flatnonzero(apart[i]).tolist())
                 for i in range(len(drawn))]
    return Stream(tracklets, np.array([whose[person] for person in people]), np.array(pictures)), pairs


def _draw_way(rows: np.ndarray, bank: FeatureBank, pid: int, rng: np.random.Generator) -> Iterator[tuple]:
    """(begin, end, camera, vector, pictures) of each tracklet of a person."""
    parts = []
    for camera in np.unique(bank.camids[bank.pids == pid]):
        left = rng.permutation(np.flatnonzero((bank.pids == pid) & (bank.camids == camera)))
        while len(left):
            count = int(rng.integers(1, PICTURES + 1))
            parts.append((int(camera), left[:count]))
            left = left[count:]
    now = rng.uniform(0, HOUR)
    for part in rng.permutation(len(parts)):
        camera, pictures = parts[part]
        mean, end = rows[pictures].mean(0, dtype=np.float64), now + PICTURE_SECONDS * len(pictures)
        yield now, end, camera, (mean / np.linalg.norm(mean)).astype(np.float32), len(pictures)
        now = end + rng.exponential(GAP)


# ----------------------------------------------------------------------------------------------------------- the rows
def _measure(stream: Stream, pairs: Pairs, rates: Sequence[float]) -> Iterator[tuple[str, dict[str, float]]]:
    """(title, figures) of each row."""
    vectors = np.array([tracklet.vector for tracklet in stream.tracklets])
    yield f"nearest neighbour, cosine {FIXED:g}", _figures(stream, [nearest_neighbour(vectors, FIXED)])
    yield "DBSCAN of all, best in hindsight", _figures(stream, dbscans(vectors))
    yield "average linkage of all, best in hindsight", _figures(stream, average_linkages(vectors))
    for rate in rates:
        threshold = pairs.threshold(rate)
        start = time.perf_counter()
        first, last = follow(stream.tracklets, threshold)
        seconds = time.perf_counter() - start
        yield f"Linker, threshold at fpr {rate:g}", {
            **_figures(stream, [last]), "first_idf1": _figures(stream, [first])["idf1"], "threshold": threshold,
            "ms": 1000 * seconds / len(vectors)}


def follow(tracklets: Sequence[Tracklet], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Whose each tracklet is for the Linker, [n] when it came (alone if it waits) and [n] at the end."""
    linker = Linker(len(tracklets[0].vector), threshold)
    last: dict[int, int] = {}

    def take(decisions: list[Decision]) -> None:
        last.update({decision.tracklet: decision.identity for decision in decisions if decision.tracklet >= 0})

    first = []
    for number, tracklet in enumerate(tracklets):
        take(linker.add(tracklet))
        identity = last[tracklet.id]
        first.append(identity if identity >= 0 else -1 - number)
    take(linker.finish())
    return np.array(first), np.array([linker.current(last[tracklet.id]) for tracklet in tracklets])


def nearest_neighbour(vectors: np.ndarray, cosine: float) -> np.ndarray:
    """Each is of its nearest predecessor's identity if that is near enough, else of a new one."""
    labels = np.zeros(len(vectors), np.int64)
    for row in range(1, len(vectors)):
        similarities = vectors[:row] @ vectors[row]
        nearest = int(similarities.argmax())
        labels[row] = labels[nearest] if similarities[nearest] >= cosine else labels[:row].max() + 1
    return labels


def dbscans(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The labels of all rows for each eps and min_samples; noise is alone."""
    from sklearn.cluster import DBSCAN

    distances = np.clip(1 - vectors @ vectors.T, 0, 2)
    for samples in MIN_SAMPLES:
        for eps in EPS:
            labels = DBSCAN(eps=eps, min_samples=samples, metric="precomputed").fit_predict(distances)
            yield np.where(labels < 0, -1 - np.arange(len(labels)), labels)


def average_linkages(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The labels of all rows for each cut of the tree of average linkage."""
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(vectors, "average", "cosine")
    yield from (fcluster(tree, 1 - cut, "distance") for cut in CUTS)


# -------------------------------------------------------------------------------------------------------- the figures
def _figures(stream: Stream, labellings: Iterable[np.ndarray]) -> dict[str, float]:
    """Each figure of the labelling that is the best by it."""
    measured = [(idf1(labels, stream.people, stream.pictures), pairwise_f1(labels, stream.people),
                 len(np.unique(labels))) for labels in labellings]
    best = max(measured)
    return {"idf1": best[0], "pairwise_f1": max(figures[1] for figures in measured), "identities": best[2]}


def _table(labels: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[identities, people] the weights that they share."""
    (_, rows), (_, columns) = (np.unique(values, return_inverse=True) for values in (labels, people))
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), weights)
    return table


def idf1(labels: np.ndarray, people: np.ndarray, pictures: np.ndarray) -> float:
    """The share of the pictures that are right when identities and people are paired one to one as well as can be.

    Every picture has a label, so that IDP, IDR and IDF1 are the same. Source: Ristani et al., Performance Measures and
    a Data Set for Multi-Target, Multi-Camera Tracking, 2016.

    >>> idf1(np.array([7, 7, 8, 9]), np.array([0, 0, 0, 1]), np.array([1, 1, 1, 3]))  # 2 of 3, and 3 of 3
    0.8333333333333334
    """
    from scipy.optimize import linear_sum_assignment

    table = _table(labels, people, pictures)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / pictures.sum())


def pairwise_f1(labels: np.ndarray, people: np.ndarray) -> float:
    """The F1 of the pairs of tracklets that are said to be one person.

    >>> pairwise_f1(np.array([7, 7, 8, 9]), np.array([0, 0, 0, 1]))  # precision 1 / 1, recall 1 / 3
    0.5
    """
    table = _table(labels, people, np.ones(len(labels), np.int64))
    right, said, true = (_pairs(counts) for counts in (table, table.sum(1), table.sum(0)))
    return 2 * right / (said + true) if said + true else 1.0


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())
