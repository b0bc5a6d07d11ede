"""The report as one HTML file: no script, no other file; the pictures are small copies inside it."""
from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment

from datasets.files.images import ImageSource, decode
from processor.doctor.findings import KINDS, SEVERITIES, Findings, Item, Kind
from processor.doctor.report import Report
from processor.visual.pictures import small_jpeg
from processor.visual.templates import environment
from utils.files import write_text

MAX_CARDS = 12              # findings of a kind with pictures
MAX_LINES = 200             # findings of a kind in words
_UNFOLDED = 10              # so many without pictures are not folded away
_CSS_CLASSES = dict(zip(SEVERITIES, ("stops", "spoils", "note"), strict=True))
# Images of an identity: 1, 2, 3-4, 5-8, …
_BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, None))
_COLUMN_HEIGHT = 66         # pixels of a histogram's highest column


def write_page(path: Path, report: Report, source: ImageSource) -> None:
    """Render page.html.

    Args:
        source: where the pictures are read again for their small copies.
    """
    figures = report.figures
    known = [row for row in figures if row.identities]
    write_text(path, templates().get_template("page.html").render(
        report=report,
        severities=SEVERITIES,
        sections=[Section.of(report.findings, kind) for kind in report.findings.kinds()],
        domain_bars=stacked_bars([(row.name, (row.green, row.normal, row.unreadable)) for row in figures]),
        identity_bars=stacked_bars([(row.name, (row.identities - row.singles, row.singles)) for row in known]),
        histograms=histograms([(row.name, row.per_identity) for row in known]),
        shared=shared_cells(report.shared, [row.images for row in figures]),
        small_copy=lambda key: SmallCopy.of(source, key),
    ))


@cache
def templates() -> Environment:
    """What renders the templates of this folder."""
    made = environment(Path(__file__).parent)
    made.filters |= {"short": format_short, "size": _format_size}
    return made


def format_short(number: int) -> str:
    """At most four characters: 950, 1.2k, 34k, 1.1M."""
    for limit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return str(number)


def _format_size(name: str) -> str:
    """32x64 with the sign of a product; other names as they are, "16-bit grey" among them."""
    return name.replace("x", "×", 1) if name[0].isdigit() and "bit" not in name else name


class Section(NamedTuple):
    """The findings of a kind.

    Attributes:
        anchor: the section's id.
        css_class: its colour.
        count: all findings, however many are listed.
        cards: those with their pictures; lines: more of them, in words.
    """

    anchor: str
    css_class: str
    kind: Kind
    count: int
    cards: list[Item]
    lines: list[Item]

    @classmethod
    def of(cls, findings: Findings, kind: str) -> Section:
        items = findings.items(kind)
        cards = [item for item in items if item.pictures][:MAX_CARDS]
        lines = [item for item in items if item not in cards][:MAX_LINES]
        return cls(kind.replace(" ", "-"), _CSS_CLASSES[KINDS[kind].severity], KINDS[kind], findings.counts[kind],
                   cards, lines)

    @property
    def is_folded(self) -> bool:
        return bool(self.cards) or len(self.lines) > _UNFOLDED

    @property
    def unlisted(self) -> int:
        return self.count - len(self.cards) - len(self.lines)

    @property
    def in_json(self) -> bool:
        """doctor.json has findings that are not listed here."""
        return self.count > MAX_LINES


class SmallCopy(NamedTuple):
    """A JPEG of a picture, and its height in pixels."""

    base64: str
    height: int

    @classmethod
    def of(cls, source: ImageSource, key: str) -> SmallCopy | None:
        """None: the picture cannot be read."""
        try:
            image = decode(source.read(key))
        except (OSError, ValueError):  # BadImage among them
            return None
        data, height = small_jpeg(image)
        return cls(base64.b64encode(data).decode(), height)


# ----------------------------------------------------------------------------------------------------------- charts
class Bar(NamedTuple):
    """A horizontal bar: a number of each part, and the part's width in % of the longest bar."""

    name: str
    numbers: Sequence[int]
    percents: list[float]


def stacked_bars(rows: Sequence[tuple[str, Sequence[int]]]) -> list[Bar]:
    """The bars of a chart, from (name, one number a part)."""
    most = max((sum(numbers) for _, numbers in rows), default=0) or 1
    return [Bar(name, numbers, [100 * number / most for number in numbers]) for name, numbers in rows]


class Column(NamedTuple):
    """A histogram's column: the bin's label, how many are in it, and the height in pixels."""

    label: str
    number: int
    height: float


def histograms(charts: Sequence[tuple[str, Mapping[int, int]]]) -> list[tuple[str, list[Column]]]:
    """How many identities have how many images, in bins that double, the same ones in every chart.

    Args:
        charts: a title each, and images of an identity -> number of such identities.
    """
    most = max((images for _, per_identity in charts for images in per_identity), default=1)
    bins = [(low, high) for low, high in _BINS if low <= max(most, 5)]
    return [(name, _columns(per_identity, bins)) for name, per_identity in charts]


def _columns(per_identity: Mapping[int, int], bins: Sequence[tuple[int, int | None]]) -> list[Column]:
    labels = [f"{low}" if low == high else f"{low}+" if high is None else f"{low}–{high}" for low, high in bins]
    numbers = [sum(number for images, number in per_identity.items() if low <= images <= (high or images))
               for low, high in bins]
    most = max(numbers) or 1
    return [Column(label, number, _COLUMN_HEIGHT * number / most)
            for label, number in zip(labels, numbers, strict=True)]


class Cell(NamedTuple):
    """Images of a set that are in another, their part of the set in %, and how dark the cell is, 0 … 1."""

    number: int
    percent: float
    depth: float


def shared_cells(shared: np.ndarray, sizes: Sequence[int]) -> list[list[Cell]]:
    """Which part of each set (row) stands in each other set (column); on the diagonal, further copies in the set.

    Args:
        shared: [S, S] images, as processor.doctor.checks.check_equal returns them.
        sizes: images of each set.
    """
    # The root, because few images are to be seen as well.
    return [[Cell(number, 100 * number / size, min(1.0, number / size) ** 0.5) if number else Cell(0, 0.0, 0.0)
             for number in row] for row, size in zip(shared.tolist(), sizes, strict=True)]
