"""Who is on the images of a domain, by which protocol they are measured, and whether there is anything to measure."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from processor.evaluation.agreement import common_setting
from processor.retrieval.metrics import count_matches

logger = logging.getLogger(__name__)


class Labelled(Protocol):
    """Images with their labels, queries first: a FeatureBank or a TestLoader."""

    pids: np.ndarray
    camids: np.ndarray
    num_query: int
    has_truth: bool
    drop_same_camera: bool
    same_file: np.ndarray


@dataclass
class Truth:
    """pids and camids [Q] or [G] of a domain, and the rest of what `RankAccumulator` is told."""

    q_pids: np.ndarray
    g_pids: np.ndarray
    q_camids: np.ndarray
    g_camids: np.ndarray
    drop_same_camera: bool
    same_file: np.ndarray

    @classmethod
    def of(cls, images: Labelled) -> Truth:
        q = images.num_query
        return cls(images.pids[:q], images.pids[q:], images.camids[:q], images.camids[q:], images.drop_same_camera,
                   images.same_file)

    def num_valid(self) -> int:
        """Queries that have a match to find."""
        return int(np.count_nonzero(count_matches(**vars(self))))

    def same_file_within(self, rows: slice, images: np.ndarray) -> np.ndarray:
        """`same_file` of the queries `rows` and the gallery images [n], ascending, counted within these."""
        queries, places = self.same_file.T
        queries, at = queries - rows.start, images.searchsorted(places)
        kept = (queries >= 0) & (queries < rows.stop - rows.start) & np.isin(places, images)
        return np.stack([queries[kept], at[kept]], axis=1)

    def find_obstacle(self) -> str:
        """Why nothing can be measured, and what cures it; "" if a query has a match."""
        if self.num_valid():
            return ""
        queries, wanted = len(self.q_pids), "another image of its identity"
        if self.drop_same_camera:
            wanted = "an image of its identity from another camera"
        cured = replace(self, drop_same_camera=False).num_valid()
        cure = f"; with TEST.DROP_SAME_CAMERA false {cured:,} of them have one" if cured else ""
        return f"none of its {queries:,} queries has {wanted} in the gallery{cure}"

    def protocol(self) -> str:
        """How a match is counted, in a few words."""
        camera = ("the query's identity from the query's camera is left out" if self.drop_same_camera else
                  "images of all cameras count")
        own = len(self.same_file)
        files = f", which leaves out {own:,} pair{'s' * (own > 1)}" if own else ""
        return (f"each query ranks the gallery of its domain; {camera} (TEST.DROP_SAME_CAMERA "
                f"{str(self.drop_same_camera).lower()}); the query's own file does not count{files}; queries without "
                "a match are in no average")


def truths_of(evaluations: Mapping[str, Labelled]) -> dict[str, Truth]:
    """The truth of each evaluation that has one."""
    return {domain: Truth.of(images) for domain, images in evaluations.items() if images.has_truth}


def common_truth(domain: str, truths: Mapping[str, Truth]) -> Truth | None:
    """The truth of a domain that several inputs know, with the equal files that any of them knows; None without any.

    Raises:
        ValueError: the inputs were tested by different protocols.
    """
    if not truths:
        return None
    common_setting(f"TEST.DROP_SAME_CAMERA in {domain}",
                   {name: truth.drop_same_camera for name, truth in truths.items()})
    pairs = np.concatenate([truth.same_file for truth in truths.values()])
    return replace(next(iter(truths.values())), same_file=np.unique(pairs, axis=0))


def warn_of_obstacles(truths: Mapping[str, Truth]) -> dict[str, str]:
    """{domain: why nothing can be measured on it}, each of them with a warning."""
    obstacles = {domain: obstacle for domain, truth in truths.items() if (obstacle := truth.find_obstacle())}
    for domain, obstacle in obstacles.items():
        logger.warning("%s is not measured on: %s", domain, obstacle)
    return obstacles
