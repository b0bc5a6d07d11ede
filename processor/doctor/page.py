"""The report as one HTML file: no script, no other file; the pictures are small copies inside it."""
from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path

import cv2

from datasets.findings import KINDS, SEVERITIES, Item, Picture
from datasets.images import FolderSource, decode, resize
from processor.doctor.charts import histograms, shared_table, stacked_bars
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
        image = decode(source.read(picture.key), name="")
    except (OSError, ValueError):
        return f"<figure><div class='none'>cannot be read</div>{caption}</figure>"
    height, width = image.shape[:2]
    scale = min(1.0, _HEIGHT / height, _WIDTH / width)
    small = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return (f"<figure><img alt='' title='{escape(picture.key, quote=True)}' height='{small.shape[0]}' "
            f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
            f"{caption}</figure>")
