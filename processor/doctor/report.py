"""The doctor's report, formatted as text and as JSON."""
from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from datasets.files.image_header import FORMATS, MODES
from datasets.naic import list_label
from processor.doctor.checks import describe_uncompared
from processor.doctor.clean_lists import CleanList
from processor.doctor.duplicates import Uncompared
from processor.doctor.findings import KINDS, SEVERITIES, SPOILS, STOPS, Findings
from processor.doctor.inspection import RECORD, Inspected
from processor.doctor.inventory import NO_IDENTITY, ImageSet, Inventory

MAX_ITEMS = 20   # findings of a kind in the text
_WIDTH = 116     # characters
# Kinds that a terminal has the texts of.
_WHOLE_SETS = ("incomplete set", "unreadable set", "nothing to train on", "too few identities")
_MOST_ITEMS = 5  # of such a kind, and lines of one


@dataclass
class Report:
    """All that the doctor has to report.

    Attributes:
        data: the data set's folder.
        figures: of each set.
        findings: by kind.
        images_opened: False: only the lists were read.
        shared: [S, S] images of one set whose picture is in another, too (processor.doctor.checks.check_equal).
        near: pairs of nearly equal pictures of one identity, which are no fault; None: not compared.
        uncompared: pictures whose pairs were not all compared.
        clean_lists: those that were written.
    """

    data: str
    figures: list[SetFigures]
    findings: Findings
    images_opened: bool
    shared: np.ndarray
    near: int | None = None
    uncompared: Uncompared | None = None
    clean_lists: list[CleanList] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        """There are faults that would stop a training."""
        return self.findings.total(STOPS) > 0

    def verdict(self) -> str:
        """The result in a few words."""
        stops, spoils = (self.findings.total(severity) for severity in (STOPS, SPOILS))
        if stops:
            return f"A training would stop: {stops:,} fault{'s' * (stops > 1)}"
        unseen = "" if self.images_opened else " in the lists (no image was opened)"
        return f"Nothing{unseen} stops a training" + (f", {spoils:,} finding{'s' * (spoils > 1)} may spoil its result"
                                                      if spoils else "")

    def totals(self) -> str:
        """How much there is, in one line."""
        train = [row for row in self.figures if not row.is_test]
        test = [row for row in self.figures if row.is_test]
        return (f"{sum(row.images for row in train):,} training images of {sum(row.identities for row in train):,} "
                f"identities in {len(train)} sets, {sum(row.images for row in test):,} test images")


# ------------------------------------------------------------------------------------------------------------ text
def format_text(report: Report, max_items: int = MAX_ITEMS) -> str:
    """The whole report; of each kind the first `max_items` findings."""
    lines = [f"{report.data}: {report.totals()}", f"{report.verdict()}.", ""]
    lines += [*set_table(report), *_shared_table(report)]
    if report.near is not None:
        lines += ["", f"near-duplicates of one identity, no fault: {report.near:,} pairs"]
        lines += [describe_uncompared(report.uncompared)] if report.uncompared.pictures else []
    for severity in SEVERITIES:
        kinds = list(report.findings.kinds(severity))
        if kinds:
            lines += ["", severity.upper()]
        for kind in kinds:
            lines += _kind_lines(report.findings, kind, max_items)
    if report.clean_lists:
        lines += ["", "CLEANED LISTS", *(f"  {clean.describe()}" for clean in report.clean_lists)]
    return "\n".join(lines) + "\n"


def _kind_lines(findings: Findings, kind: str, max_items: int) -> list[str]:
    count, items = findings.counts[kind], findings.items(kind)[:max_items]
    lines = [f"  {KINDS[kind].title}: {count:,}"]
    lines += textwrap.wrap(KINDS[kind].advice, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    lines += [f"      {line}" for item in items for line in item.text.split("\n")]
    return [*lines, f"      … and {count - len(items):,} more"] if count > len(items) else lines


def summary_lines(report: Report) -> list[str]:
    """The report without its single findings, for the terminal."""
    lines = [report.totals(), *set_table(report), ""]
    for severity in SEVERITIES:
        for kind in report.findings.kinds(severity):
            lines.append(f"{severity}: {KINDS[kind].title}: {report.findings.counts[kind]:,}")
            items = report.findings.items(kind)[:_MOST_ITEMS] if kind in _WHOLE_SETS else []
            lines += [f"    {line}" for item in items for line in item.text.split("\n")[:_MOST_ITEMS]]
    return [*lines, *map(CleanList.describe, report.clean_lists), f"{report.verdict()}."]


def set_table(report: Report) -> list[str]:
    """A line for each set."""
    with_cameras = any(row.cameras for row in report.figures)
    rows = [("set", "images", "identities", "of one image", "images each", *["cameras"] * with_cameras, "green",
             "normal", "unreadable", "size")]
    for row in report.figures:
        identities = f"{row.identities:,}", f"{row.singles:,}", f"{row.median:,} (up to {row.most:,})"
        images = f"{row.green:,}", f"{row.normal:,}", f"{row.unreadable:,}"
        rows.append((row.name, f"{row.images:,}", *(identities if row.identities else "---"),
                     *[str(row.cameras or "-")] * with_cameras, *(images if report.images_opened else "---"),
                     next(iter(row.sizes), "-")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _shared_table(report: Report) -> list[str]:
    """How many pictures the sets share; no line if they share none."""
    if not report.shared.any():
        return []
    names = [row.name for row in report.figures]
    width = max(len(f"{number:,}") for number in [*report.shared.ravel().tolist(), 0])
    width = max(width, *map(len, names))
    lines = ["", "images of a set (row) whose picture is in another set (column); in the set itself: further copies",
             " " * width + "".join(f"  {name:>{width}}" for name in names)]
    return lines + [f"{name:{width}}" + "".join(f"  {number or '-':>{width}}" for number in row)
                    for name, row in zip(names, report.shared.tolist(), strict=True)]


# ------------------------------------------------------------------------------------------------------------ JSON
def report_dict(report: Report) -> dict:
    """The report for JSON. `count` is exact (but that of near-duplicates where pictures were not all compared); `items`
    may be the first of them."""
    return {
        "data": report.data,
        "stops_a_training": report.stops,
        "verdict": report.verdict(),
        "images_were_opened": report.images_opened,
        "sets": [asdict(row) for row in report.figures],
        "shared_images": {"sets": [row.name for row in report.figures], "rows": report.shared.tolist()},
        "near_duplicates_of_one_identity": report.near,
        **({"pictures_not_all_compared": report.uncompared.pictures}
           if report.uncompared and report.uncompared.pictures else {}),
        "findings": [{
            "kind": kind, **KINDS[kind]._asdict(), "count": report.findings.counts[kind],
            "items": [{"text": item.text, "pictures": [picture._asdict() for picture in item.pictures]}
                      for item in report.findings.items(kind)],
        } for kind in report.findings.kinds()],
        "clean_lists": [{**clean._asdict(), "path": clean.path.name} for clean in report.clean_lists],
    }


@dataclass(frozen=True)
class SetFigures:
    """The numbers of a set.

    Attributes:
        name: as ImageSet's.
        source: its list, or its folder if it has none.
        images: those named and there.
        identities: 0 if they are not known.
        singles: identities with one image.
        per_identity: images of an identity -> number of such identities, ascending.
        unreadable, green, normal: images; 0 if none was opened.
        cameras: 0 if they are not known.
        sizes: "WIDTHxHEIGHT" -> images, the most frequent ones first.
        formats, modes: name -> images.
    """

    name: str
    source: str
    is_test: bool
    images: int
    identities: int
    singles: int
    per_identity: dict[int, int]
    unreadable: int
    green: int
    normal: int
    sizes: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    cameras: int = 0

    @property
    def median(self) -> int:
        """Images of the middle identity (of the lower one of two); 0 without identities."""
        below, middle = 0, (self.identities + 1) // 2
        for images, identities in self.per_identity.items():
            below += identities
            if below >= middle:
                return images
        return 0

    @property
    def most(self) -> int:
        return max(self.per_identity, default=0)


def set_figures(inventory: Inventory, inspected: Inspected | None) -> list[SetFigures]:
    """The figures of every set, in the inventory's order."""
    return [_figures(inventory, image_set, inspected.records[inventory.span(position)] if inspected else None)
            for position, image_set in enumerate(inventory.sets)]


def _figures(inventory: Inventory, image_set: ImageSet, records: np.ndarray | None) -> SetFigures:
    """The figures of a set, of its images' records ([n] of RECORD) or, without them, of its list alone."""
    known = image_set.identities[image_set.identities != NO_IDENTITY]
    counts = np.unique(known, return_counts=True)[1]
    per_identity = {int(images): int(number) for images, number in zip(*np.unique(counts, return_counts=True),
                                                                       strict=True)}
    records = np.zeros(0, RECORD) if records is None else records
    good = records[records["good"]]
    return SetFigures(
        name=image_set.name,
        source=list_label(inventory.data, image_set.list) if image_set.list else image_set.folder + "/",
        is_test=image_set.is_test, images=len(image_set.files), identities=len(counts), singles=per_identity.get(1, 0),
        per_identity=per_identity,
        unreadable=len(records) - len(good), green=int(good["green"].sum()), normal=int((~good["green"]).sum()),
        sizes=_most_frequent([f"{width}x{height}" for width, height in good[["width", "height"]].tolist()]),
        formats=_most_frequent([FORMATS[index] for index in good["format"]]),
        modes=_most_frequent([MODES[index] for index in good["mode"]]), cameras=image_set.cameras,
    )


def _most_frequent(names: list[str], most: int = 10) -> dict[str, int]:
    ordered = sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(ordered[:most])
