"""The report as one HTML file: no script, no other file; the pictures are small copies inside it."""
from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from datasets.files.images import BadImage, FolderSource, decode, resize
from processor.doctor.findings import KINDS, SEVERITIES, Item, Picture
from processor.doctor.report import Report
from utils.files import write_text

_SHOWN = 12          # findings of a kind with pictures
_TOLD = 200          # findings of a kind in words
_UNFOLDED = 10       # so many without pictures are not folded away
_HEIGHT, _WIDTH = 128, 192  # most pixels of a small copy
_MARKS = dict(zip(SEVERITIES, ("stops", "spoils", "note"), strict=True))


def write_page(path: Path, report: Report, data: Path) -> None:
    """Write the page.

    Args:
        data: the folder that the pictures' keys are relative to; they are read again for their small copies.
    """
    source = FolderSource(data)
    body = [_head(report), _figures(report), *(_finding(report, kind, lambda picture: _show(source, picture))
                                               for kind in report.findings.kinds())]
    if report.clean_lists:
        lines = "".join(f"<li>{escape(line)}</li>" for line in report.clean_list_lines())
        body.append(f"<section><h2>Cleaned lists</h2><ul class='plain'>{lines}</ul></section>")
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    write_text(path, _PAGE.format(title=escape(f"Doctor: {report.data}"), style=style, body="\n".join(body)))


# No script runs and nothing is fetched, whatever a file name may hold.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head><body><main>
{body}
</main></body></html>
"""


def _head(report: Report) -> str:
    """The verdict, and a link to each kind of finding."""
    state = "stops" if report.stops else "fine"
    rows = []
    for severity in SEVERITIES:
        chips = "".join(f'<a href="#{_anchor(kind)}">{escape(KINDS[kind].title)} '
                        f"<b>{report.findings.counts[kind]:,}</b></a>" for kind in report.findings.kinds(severity))
        rows += [f"<span>{escape(severity)}</span><div class='{_MARKS[severity]}'>{chips}</div>"] if chips else []
    return (f'<header class="{state}"><p class="path">{escape(report.data)}</p><h1>{escape(report.verdict())}</h1>'
            f"<p>{escape(report.totals())}</p><nav>{''.join(rows)}</nav></header>")


def _anchor(kind: str) -> str:
    return kind.replace(" ", "-")


# ---------------------------------------------------------------------------------------------------------- figures
def _figures(report: Report) -> str:
    """Tables and charts of the sets."""
    figures = report.figures
    if not figures:
        return ""
    parts = [f"<section><h2>What there is</h2>{_set_table(report)}<div class='charts'>"]
    if report.looked:
        parts.append("<div><h3>Images a set and domain</h3>" + stacked_bars(
            [(one.name, (one.green, one.normal, one.unreadable)) for one in figures],
            ("green", "normal", "bad"), ("green domain", "normal domain", "unreadable")) + "</div>")
    known = [one for one in figures if one.identities]
    if known:
        parts.append("<div><h3>Identities a set</h3>" + stacked_bars(
            [(one.name, (one.identities - one.singles, one.singles)) for one in known],
            ("many", "single"), ("of two images or more", "of one image")) + "</div>")
        parts.append("<div class='wide'><h3>Identities by the number of their images</h3><div class='histograms'>"
                     + histograms([(one.name, one.per_identity) for one in known]) + "</div></div>")
    if report.shared.any():
        parts.append("<div class='wide'><h3>Pictures that sets share</h3><p>Images of a row's set whose picture is in "
                     "a column's set, too; on the diagonal, further copies inside the set.</p>"
                     + shared_table([one.name for one in figures], report.shared, [one.images for one in figures])
                     + "</div>")
    return "".join([*parts, "</div></section>"])


def _set_table(report: Report) -> str:
    rows = []
    for one in report.figures:
        known = f"{one.identities:,}" if one.identities else "–"
        each = f"{one.median:,} <small>up to {one.most:,}</small>" if one.identities else "–"
        unreadable = f"{one.unreadable:,}" if report.looked else "–"
        rows.append(f"<tr><th>{escape(one.name)}</th><td class='left'><code>{escape(one.source)}</code></td>"
                    f"<td>{one.images:,}</td><td>{known}</td><td>{each}</td><td>{unreadable}</td>"
                    f"<td class='left'>{_shares(one.sizes)}</td><td class='left'>{_shares(one.formats)}</td>"
                    f"<td class='left'>{_shares(one.modes)}</td></tr>")
    return ("<div class='scroll'><table class='sets'><tr><th>set</th><th class='left'>read from</th><th>images</th>"
            "<th>identities</th><th>images each</th><th>unreadable</th><th class='left'>sizes</th>"
            f"<th class='left'>formats</th><th class='left'>modes</th></tr>{''.join(rows)}</table></div>")


def _shares(numbers: dict[str, int], shown: int = 2) -> str:
    """The most frequent names with their numbers, where there are several."""
    names = [escape(name.replace("x", "×", 1) if name[0].isdigit() and "bit" not in name else name) for name in numbers]
    if len(names) < 2:
        return "".join(names) or "–"
    parts = [f"<span>{name} <small>{number:,}</small></span>"
             for name, number in zip(names, numbers.values(), strict=True)]
    return ", ".join(parts[:shown]) + ", …" * (len(parts) > shown)


# --------------------------------------------------------------------------------------------------------- findings
def _finding(report: Report, kind: str, show: Callable[[Picture], str]) -> str:
    """One kind of finding: what it means, the first ones with their pictures, more in words."""
    told, count, items = KINDS[kind], report.findings.counts[kind], report.findings.items(kind)
    pictured = [item for item in items if item.pictures][:_SHOWN]
    worded = [item for item in items if item not in pictured][:_TOLD]
    parts = [f"<section id='{_anchor(kind)}' class='finding {_MARKS[told.severity]}'>"
             f"<h2>{escape(told.title[0].upper() + told.title[1:])}: <b>{count:,}</b> "
             f"<em>{escape(told.severity)}</em></h2><p>{escape(told.advice)}</p>"]
    if pictured:
        parts.append("<div class='cards'>" + "".join(_card(item, show) for item in pictured) + "</div>")
    if worded:
        words = f"<ul>{''.join(f'<li>{escape(item.text)}</li>' for item in worded)}</ul>"
        title = f"{len(worded):,} more" if pictured else f"{len(worded):,} of them"
        short = not pictured and len(worded) <= _UNFOLDED
        parts.append(words if short else f"<details><summary>{title}</summary>{words}</details>")
    unseen = count - len(pictured) - len(worded)
    if unseen:
        where = " doctor.json has the first of them." if count > _TOLD else ""
        parts.append(f"<p class='more'>… and {unseen:,} more.{where}</p>")
    return "".join([*parts, "</section>"])


def _card(item: Item, show: Callable[[Picture], str]) -> str:
    """One finding: its pictures side by side, and its text."""
    return (f"<article><div class='pictures'>{''.join(map(show, item.pictures))}</div>"
            f"<p>{escape(item.text)}</p></article>")


def _show(source: FolderSource, picture: Picture) -> str:
    """A picture with its label, or a grey field where it cannot be read."""
    caption = f"<figcaption>{escape(picture.label)}</figcaption>"
    try:
        image = decode(source.read(picture.key))
    except (OSError, BadImage):
        return f"<figure><div class='none'>cannot be read</div>{caption}</figure>"
    height, width = image.shape[:2]
    scale = min(1.0, _HEIGHT / height, _WIDTH / width)
    small = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return (f"<figure><img alt='' title='{escape(picture.key, quote=True)}' height='{small.shape[0]}' "
            f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
            f"{caption}</figure>")


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
        shared: [S, S] images, as processor.doctor.checks.check_equal returns them.
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
