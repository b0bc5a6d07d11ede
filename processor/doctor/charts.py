"""Charts as HTML and SVG text: bars, histograms, a table of shared pictures. Colours come from the page's style."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

# Images of an identity: 1, 2, 3-4, 5-8, …
_BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, None))


def stacked_bars(rows: Sequence[tuple[str, Sequence[int]]], colours: Sequence[str], legend: Sequence[str]) -> str:
    """A horizontal bar a row, its parts side by side.

    Args:
        rows: (name, one number a part).
        colours: CSS class of each part.
        legend: name of each part.
    """
    most = max((sum(parts) for _, parts in rows), default=0) or 1
    lines = ['<div class="bars">']
    for name, parts in rows:
        pieces = "".join(
            f'<i class="{colour}" style="width:{100 * part / most:.3f}%" title="{escape(title)}: {part:,}"></i>'
            for part, colour, title in zip(parts, colours, legend, strict=True) if part)
        lines.append(f'<span>{escape(name)}</span><div class="bar">{pieces}</div><b>{sum(parts):,}</b>')
    keys = "".join(f'<span><i class="{colour}"></i>{escape(title)}</span>'
                   for colour, title in zip(colours, legend, strict=True))
    return "".join([*lines, "</div>", f'<p class="legend">{keys}</p>'])


def histograms(charts: Sequence[tuple[str, dict[int, int]]]) -> str:
    """How many identities have how many images, in bins that double, the same ones in every chart.

    Args:
        charts: a title each, and images of an identity -> number of such identities.
    """
    most = max((images for _, per_identity in charts for images in per_identity), default=1)
    bins = [(low, high) for low, high in _BINS if low <= max(most, 5)]
    return "".join(_histogram(name, per_identity, bins) for name, per_identity in charts)


def _histogram(name: str, per_identity: dict[int, int], bins: Sequence[tuple[int, int | None]]) -> str:
    heights = [sum(number for images, number in per_identity.items() if low <= images <= (high or images))
               for low, high in bins]
    most, width, base = max(heights) or 1, 34, 84
    size = f"0 0 {len(bins) * width} 104"
    parts = [f'<svg viewBox="{size}" style="width:{len(bins) * width}px" role="img" aria-label="{escape(name)}">']
    for position, (low, high) in enumerate(bins):
        height, left = heights[position], position * width
        tall = max(base - 18, 1) * height / most
        label = f"{low}" if low == high else f"{low}+" if high is None else f"{low}–{high}"
        parts.append(f'<rect class="{"single" if high == 1 else "many"}" x="{left + 3}" y="{base - tall:.1f}" '
                     f'width="{width - 6}" height="{tall:.1f}" rx="2"/>')
        if height:
            parts.append(f'<text x="{left + width / 2}" y="{base - tall - 4:.1f}">{_short(height)}</text>')
        parts.append(f'<text class="axis" x="{left + width / 2}" y="{base + 13}">{label}</text>')
    return f'<figure><figcaption>{escape(name)}</figcaption>{"".join(parts)}</svg></figure>'


def shared_table(names: Sequence[str], shared: np.ndarray, sizes: Sequence[int]) -> str:
    """Which part of each set (row) stands in each other set (column); on the diagonal, further copies in the set.

    Args:
        shared: [S, S] images, as datasets.duplicate_checks.check_equal returns them.
        sizes: images of each set.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, row, size in zip(names, shared.tolist(), sizes, strict=True):
        cells = "".join(_cell(number, size) for number in row)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<table class="heat"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _cell(number: int, size: int) -> str:
    """A number, the darker the larger its part of the set; its root, so that few are seen, too."""
    if not number:
        return "<td>·</td>"
    part = number / size
    return f'<td style="--part:{min(1.0, part) ** 0.5:.3f}" title="{100 * part:.2f} % of the set">{number:,}</td>'


def _short(number: int) -> str:
    """At most four characters: 950, 1.2k, 34k, 1.1M."""
    for limit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return str(number)
