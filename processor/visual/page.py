"""The page of ranked lists: index.html, its script and style, and the data in scripts that are loaded when asked for.

A page that is opened from the disk may not fetch files, but it may load scripts: data/index.js has a few figures of
every query, data/N.js the lists of CHUNK queries.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from processor.retrieval.metrics import RankResult
from processor.visual.lists import RIGHT, UNCOUNTED, DistanceCounts, RankedLists
from processor.visual.pictures import Place, SmallCopies
from processor.visual.templates import HERE, environment
from utils.files import write_text

CHUNK = 50
_BARS = 80                # steps of a drawn distribution
_CHART = 520, 180         # pixels of it


@dataclass(frozen=True, eq=False)
class Shown:
    """A listed query; lists: its domain's in each run."""

    domain: str
    name: str
    lists: list[RankedLists]

    @property
    def rows(self) -> list[int]:
        return [lists.row_of[self.name] for lists in self.lists]

    def ap(self) -> float | None:
        return self.lists[0].ap(self.rows[0])

    def change(self) -> float | None:
        """AP in the first run minus that in the second."""
        both = [lists.ap(row) for lists, row in zip(self.lists, self.rows, strict=True)]
        return both[0] - both[1] if len(both) == 2 and None not in both else None


@dataclass
class PageData:
    """What a page shows.

    titles, lists: of each run; lists: {domain: its lists}.
    counts: queries that the runs have in common, that the first has alone, that the second has alone.
    thresholds: of the first run's model, in words; "" = it is not calibrated.
    points: (position, picture, group) of the scatter plot.
    maps: of a query: (title, cosine, the two drawn pictures); about_maps: which checkpoint made them.
    """

    titles: list[str]
    lists: list[dict[str, RankedLists]]
    shown: list[Shown]
    thresholds: str
    counts: list[int]
    top: int
    copies: SmallCopies
    points: list[tuple[np.ndarray, Place, int]]
    maps: Mapping[Shown, list[tuple[str, float, str, str]]]
    about_maps: str


def write_page(folder: Path, data: PageData) -> None:
    """Write the page beside its pictures."""
    domains = list(data.lists[0])
    has_truth = any(lists.result for lists in data.lists[0].values())
    write_text(folder / "index.html", environment().get_template("page.html").render(
        data=data, has_truth=has_truth, figures=_all_figures(data),
        charts=[_chart(lists) for lists in data.lists[0].values() if lists.counts],
        matrices=[lists for lists in data.lists[0].values() if lists.cameras],
        cameras=sorted({int(camera) for lists in data.lists[0].values() for camera in lists.query_camids}),
        domains=domains, chunk=CHUNK, groups=sorted({group for *_, group in data.points} - {-1})))
    for name in ("page.css", "page.js", "common.css"):
        shutil.copyfile(HERE / name, folder / name)
    for start in range(0, len(data.shown), CHUNK):
        number = start // CHUNK
        _write_script(folder / "data" / f"{number}.js", f"chunk({number}, %s)",
                      [_record(entry, data) for entry in data.shown[start : start + CHUNK]])
    points = [[round(float(x), 4), round(float(y), 4), data.copies.names[place], place.name, group]
              for (x, y), place, group in data.points]
    _write_script(folder / "data" / "index.js", "const INDEX = %s", {  # last: with it the folder is a page
        "titles": data.titles, "chunk": CHUNK, "domains": domains, "points": points,
        "queries": [_columns(entry, domains, entry in data.maps) for entry in data.shown]})


def _write_script(path: Path, call: str, value: Any) -> None:
    write_text(path, call % json.dumps(value, separators=(",", ":"), allow_nan=False) + ";\n")


# ------------------------------------------------------------------ queries
class Entry(NamedTuple):
    """Of a ranked list; image: in the gallery; rank: among the counted."""

    image: int
    distance: float
    kind: int
    rank: int


def list_entries(lists: RankedLists, row: int, top: int) -> Iterator[Entry]:
    """A query's list up to its `top`-th counted entry, and its first match if that comes later."""
    rank = 0
    for image, distance, kind in zip(*(array[row].tolist() for array in (lists.indices, lists.distances, lists.kinds)),
                                     strict=True):
        if rank == top:
            break
        rank += kind != UNCOUNTED
        yield Entry(image, distance, kind, rank)
    if lists.ap(row) is not None and lists.result.first_hit[row] > rank:
        yield Entry(int(lists.ends[row, RIGHT]), float(lists.end_distances[row, RIGHT]), RIGHT,
                    int(lists.result.first_hit[row]))


def list_places(entry: Shown, top: int) -> Iterator[Place]:
    """The pictures of a query's card."""
    yield Place(0, entry.domain, "query", entry.name)
    for run, (lists, row) in enumerate(zip(entry.lists, entry.rows, strict=True)):
        for item in list_entries(lists, row, top):
            yield Place(run, entry.domain, "gallery", lists.gallery_names[item.image])


def _columns(entry: Shown, domains: list[str], has_maps: bool) -> list:
    """What queries are sorted and filtered by."""
    lists, row = entry.lists[0], entry.rows[0]
    ap, mistake, change = entry.ap(), lists.mistake(row), entry.change()
    return [entry.name, domains.index(entry.domain), int(lists.query_camids[row]),
            *(None if value is None else round(value, 5) for value in (ap, mistake, change)), int(has_maps)]


def _record(entry: Shown, data: PageData) -> dict:
    """A query's card."""
    copies, ranked = data.copies.names, []
    for run, (lists, row) in enumerate(zip(entry.lists, entry.rows, strict=True)):
        items = [[copies[Place(run, entry.domain, "gallery", lists.gallery_names[item.image])],
                  lists.gallery_names[item.image], int(lists.gallery_camids[item.image]),
                  round(item.distance, 4), item.kind, item.rank] for item in list_entries(lists, row, data.top)]
        ranked.append({"ap": lists.ap(row), "items": items})
    return {"picture": copies[Place(0, entry.domain, "query", entry.name)], "lists": ranked,
            "maps": data.maps.get(entry, [])}


# ------------------------------------------------------------------ figures and charts
def _all_figures(data: PageData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each domain's of each run; two runs are called A and B."""
    marks = ("",) if len(data.lists) == 1 else (" A", " B")
    return [(domain + mark, _figures(lists[domain].result)) for domain in data.lists[0]
            for mark, lists in zip(marks, data.lists, strict=True) if domain in lists and lists[domain].result]


def _figures(result: RankResult) -> list[tuple[str, str]]:
    """What a ranking is worth."""
    mistakes = int((result.first_hit > 1).sum())
    return [("mAP", f"{100 * result.mAP:.1f} %"), ("Rank-1", f"{100 * result.cmc[0]:.1f} %"),
            ("mINP", f"{100 * result.mINP:.1f} %"), ("queries", f"{result.num_queries:,}"),
            ("wrong at rank 1", f"{mistakes:,}")]


class Chart(NamedTuple):
    """Two distributions as SVG paths; ticks, thresholds: (x, label)."""

    domain: str
    width: int
    height: int
    paths: list[str]
    numbers: list[int]
    ticks: list[tuple[float, str]]
    thresholds: list[tuple[float, str]]


def _chart(lists: RankedLists) -> Chart:
    counts = lists.counts
    edges, shares = distributions(counts)
    width, height = _CHART
    low, high = edges[0], edges[-1]

    def place(distance: float) -> float:
        return width * (distance - low) / (high - low)

    paths = []
    for row in height * (1 - shares / max(shares.max(), 1e-12)):
        corners = [f"{place(edge):.1f},{y:.1f}" for y, left, right in zip(row, edges[:-1], edges[1:], strict=True)
                   for edge in (left, right)]
        paths.append(f"M0,{height} L{' L'.join(corners)} L{width},{height} Z")
    step = next(step for step in (10.0**power * factor for power in range(-9, 39) for factor in (1, 2, 5))
                if (high - low) / step <= 7)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return Chart(lists.domain, width, height, paths, counts.counts.sum(1).tolist(),
                 [(place(value), f"{value:g}") for value in ticks.round(9).tolist()],
                 [(place(value), name.removeprefix("distance@")) for name, value in lists.result.pair_figures.items()
                  if name.startswith("distance@") and low <= value <= high])


def distributions(counts: DistanceCounts) -> tuple[np.ndarray, np.ndarray]:
    """The edges of _BARS steps, or a few less, over the distances that there are, and each kind's share in them."""
    used = np.flatnonzero(counts.counts.any(0))
    first, last = (used[0], used[-1] + 1) if len(used) else (0, 1)
    step = -(-(last - first) // _BARS)
    starts = np.arange(first, last, step)
    sums = np.add.reduceat(counts.counts[:, :last], starts, axis=1)
    edges = np.append(starts, starts[-1] + step) * (counts.high / counts.STEPS)
    return edges, sums / np.maximum(sums.sum(1, keepdims=True), 1)
