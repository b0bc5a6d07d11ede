"""The ranked lists of a domain and the figures drawn beside them, in one walk over the run's distances."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from processor.evaluation.ranking import accumulate, final_streams, truth_of
from processor.evaluation.sources import DomainSource
from processor.evaluation.truth import Truth
from processor.retrieval.distance import Block, top_k
from processor.retrieval.ensemble import sum_blocks
from processor.retrieval.metrics import RankAccumulator, RankResult, own_files

WRONG, RIGHT, UNCOUNTED, UNKNOWN = range(4)  # of a list's entry
MAX_CAMERAS = 24  # the matrix has the cameras with the most gallery pictures
_ROWS = 32        # queries that are compared with the gallery at a time


class DistanceCounts:
    """How many distances of pairs of different (row 0) and of the same person (row 1) lie in each of equal steps.

    The range is doubled, and two steps become one, as soon as a distance lies beyond it. Negative ones count as 0.

    >>> counts = DistanceCounts()
    >>> for value in (0.25, 0.75):
    ...     counts.add(1, np.array([value]))
    >>> counts.high, counts.counts[1].nonzero()[0].tolist()
    (1.0, [512, 1536])
    """

    STEPS = 2048

    def __init__(self) -> None:
        self.high, self.counts = 1.0, np.zeros((2, self.STEPS), np.int64)

    def add(self, same: int, distances: np.ndarray) -> None:
        """Count distances of any shape; those that are not finite are left out."""
        distances = distances[np.isfinite(distances)]
        while len(distances) and distances.max() > self.high:
            self.high *= 2
            self.counts = np.pad(self.counts.reshape(2, -1, 2).sum(2), ((0, 0), (0, self.STEPS // 2)))
        steps = (distances * (self.STEPS / self.high)).astype(np.int64).clip(0, self.STEPS - 1)
        self.counts[same] += np.bincount(steps, minlength=self.STEPS)


@dataclass
class CameraMatrix:
    """mAP in per cent of a camera's queries (rows) over one camera's gallery pictures (columns); NaN: no match."""

    queries: list[int]
    gallery: list[int]
    cells: np.ndarray

    def depths(self) -> np.ndarray:
        """How dark each cell is drawn, 0 for the best to 1 for the worst; 10 points at least lie between these."""
        best = float(np.nanmax(self.cells, initial=0))
        return (best - self.cells) / max(10.0, best - float(np.nanmin(self.cells, initial=best)))


@dataclass
class RankedLists:
    """A domain's lists.

    indices, distances, kinds: [Q, k] positions in the gallery, nearest first; kinds are WRONG, RIGHT, UNCOUNTED (the
        protocol leaves the entry out) or UNKNOWN (no truth).
    ends: [Q, 2] the nearest counted gallery picture of another (0) and of the same person (1), -1: there is none.
    end_distances: [Q, 2] theirs.
    result: the figures, None without truth or if no query has a match.
    """

    domain: str
    query_names: list[str]
    gallery_names: list[str]
    query_camids: np.ndarray
    gallery_camids: np.ndarray
    indices: np.ndarray
    distances: np.ndarray
    kinds: np.ndarray
    ends: np.ndarray | None = None
    end_distances: np.ndarray | None = None
    result: RankResult | None = None
    counts: DistanceCounts | None = None
    cameras: CameraMatrix | None = None
    row_of: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.row_of = {name: row for row, name in enumerate(self.query_names)}

    def ap(self, row: int) -> float | None:
        """A query's AP, None without a match to find."""
        return float(self.result.ap[row]) if self.result is not None and self.result.valid[row] else None

    def mistake(self, row: int) -> float | None:
        """The distance of the first counted entry if it is wrong though there is a match to find, else None."""
        is_wrong = self.ap(row) is not None and self.result.first_hit[row] > 1
        return float(self.end_distances[row, WRONG]) if is_wrong else None


def rank_lists(domain: str, sources: Sequence[DomainSource], weights: Sequence[float], camids: np.ndarray, top: int,
               k: int) -> RankedLists:
    """Rank a domain by what its run was tested with, be it re-ranked or not.

    Args:
        sources: a model each; weights: of their distances.
        camids: [Q + G], queries first.
        top: counted entries of a list; what is left out stands between them, up to as many again.
        k: of the figures, as the run was tested.
    """
    first, truth = sources[0], truth_of(domain, sources)
    if truth and truth.find_obstacle():
        truth = None  # no figures
    num_query = len(first.query_names)
    blocks = sum_blocks([source.streams[name]() for source, name in zip(sources, final_streams(sources), strict=True)],
                        weights)
    walk = _Walk(truth, k) if truth else None
    indices, distances = top_k(walk(blocks) if walk else blocks, 2 * top, num_query)
    lists = RankedLists(domain, [str(name) for name in first.query_names], [str(name) for name in first.gallery_names],
                        camids[:num_query], camids[num_query:], indices, distances,
                        np.full(indices.shape, UNKNOWN, np.int8))
    if walk:
        same, dropped = pair_kinds(truth, np.arange(num_query), indices)
        lists.kinds = np.where(dropped, UNCOUNTED, np.where(same, RIGHT, WRONG)).astype(np.int8)
        lists.ends, lists.end_distances, lists.counts = walk.ends, walk.end_distances, walk.counts
        lists.result, lists.cameras = walk.figures.result(), walk.camera_matrix()
    return lists


def pair_kinds(truth: Truth, rows: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether gallery images [R, n] show the person of the queries `rows` [R], and whether they do not count."""
    same = truth.g_pids[images] == truth.q_pids[rows, None]
    dropped = truth.drop_same_camera & same & (truth.g_camids[images] == truth.q_camids[rows, None])
    return same, dropped | own_files(truth.same_file, rows, images)


class _Walk:
    """What is gathered while the distances pass by."""

    def __init__(self, truth: Truth, k: int):
        size = len(truth.q_pids)
        self.truth, self.counts = truth, DistanceCounts()
        self.figures = RankAccumulator(**vars(truth), k=k)
        self.ends, self.end_distances = np.full((size, 2), -1), np.full((size, 2), np.inf)
        cameras, sizes = np.unique(truth.g_camids, return_counts=True)
        self.columns = {camera: np.flatnonzero(truth.g_camids == camera)
                        for camera in sorted(cameras[np.argsort(-sizes, kind="stable")[:MAX_CAMERAS]].tolist())}
        self.ap_by_camera = np.full((size, len(self.columns)), np.nan)

    def __call__(self, blocks: Iterator[Block]) -> Iterator[Block]:
        gallery = np.arange(len(self.truth.g_pids))
        for rows, distances in accumulate(blocks, self.figures):
            if len(self.columns) > 1:
                for column, images in enumerate(self.columns.values()):
                    self.ap_by_camera[rows, column] = self._ap_within(rows, images, distances[:, images])
            for start in range(0, len(distances), _ROWS):
                some = np.arange(rows.start + start, min(rows.start + start + _ROWS, rows.stop))
                self._compare(some, distances[start : start + _ROWS], gallery[None])
            yield rows, distances

    def _compare(self, rows: np.ndarray, distances: np.ndarray, images: np.ndarray) -> None:
        same, dropped = pair_kinds(self.truth, rows, images)
        for kind, pairs in enumerate((~same & ~dropped, same & ~dropped)):
            self.counts.add(kind, distances[pairs])
            masked = np.where(pairs, distances, np.inf)
            nearest = masked.argmin(1)
            self.end_distances[rows, kind] = np.take_along_axis(masked, nearest[:, None], 1)[:, 0]
            self.ends[rows, kind] = np.where(pairs.any(1), nearest, -1)

    def _ap_within(self, rows: slice, images: np.ndarray, distances: np.ndarray) -> np.ndarray | float:
        """[R] the AP of queries in a part of the gallery; NaN without a match there."""
        truth = self.truth
        part = RankAccumulator(truth.q_pids[rows], truth.g_pids[images], truth.q_camids[rows], truth.g_camids[images],
                               drop_same_camera=truth.drop_same_camera, same_file=truth.same_file_within(rows, images))
        part.update(slice(0, len(distances)), distances)
        try:
            return part.result().ap
        except ValueError:  # none of them has a match
            return np.nan

    def camera_matrix(self) -> CameraMatrix | None:
        """None: there is one camera, or none is known."""
        if len(self.columns) < 2:
            return None
        cameras = np.unique(self.truth.q_camids)[:MAX_CAMERAS].tolist()
        cells = np.full((len(cameras), len(self.columns)), np.nan)
        for row, camera in enumerate(cameras):
            ap = self.ap_by_camera[self.truth.q_camids == camera]
            known = ~np.isnan(ap).all(0)
            cells[row, known] = 100 * np.nanmean(ap[:, known], axis=0)
        return CameraMatrix(cameras, list(self.columns), cells)
