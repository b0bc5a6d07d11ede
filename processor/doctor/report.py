"""The visit's result, and how it reads as text and as JSON."""
from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from datasets.naic import shown_list
from processor.doctor.clean_lists import CleanList
from processor.doctor.findings import KINDS, NOTE, SEVERITIES, SPOILS, STOPS, Findings
from processor.doctor.image_header import FORMATS, MODES
from processor.doctor.inspection import Inspected
from processor.doctor.inventory import NO_IDENTITY, ImageSet, Inventory

_TOLD = 20     # findings of a kind in the text
_WIDTH = 116   # characters


@dataclass
class Report:
    """All that a visit found.

    Attributes:
        data: the data set's folder.
        figures: of each set.
        findings: by kind.
        looked: False: only the lists were read, no image was opened.
        shared: [S, S] images of one set whose picture is in another, too (processor.doctor.checks.check_equal).
        near: pairs of nearly equal pictures of one identity, which are no fault; None: not looked for.
        clean_lists: those that were written.
    """

    data: str
    figures: list[SetFigures]
    findings: Findings
    looked: bool
    shared: np.ndarray
    near: int | None = None
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
        unseen = "" if self.looked else " in the lists (no image was opened)"
        return f"Nothing{unseen} stops a training" + (f", {spoils:,} finding{'s' * (spoils > 1)} may spoil its result"
                                                      if spoils else "")

    def totals(self) -> str:
        """How much there is, in one line."""
        train = [one for one in self.figures if not one.is_test]
        test = [one for one in self.figures if one.is_test]
        return (f"{sum(one.images for one in train):,} training images of {sum(one.identities for one in train):,} "
                f"identities in {len(train)} sets, {sum(one.images for one in test):,} test images")

    def clean_list_lines(self) -> list[str]:
        """A line for each cleaned list."""
        return [f"{one.path.name}: {one.kept:,} images kept, {one.equal:,} left out because they stand in another set"
                + f", {one.faulty:,} other lines left out" * (one.faulty > 0)
                + "; NOT USED while the set's own folder has such a list" * one.overruled for one in self.clean_lists]


# ------------------------------------------------------------------------------------------------------------ text
def as_text(report: Report, told: int = _TOLD) -> str:
    """The whole report; of each kind the first `told` findings."""
    lines = [f"{report.data}: {report.totals()}", f"{report.verdict()}.", ""]
    lines += [*set_table(report), *_shared_table(report)]
    if report.near is not None:
        lines += ["", f"near-duplicates of one identity, no fault: {report.near:,} pairs"]
    for severity in SEVERITIES:
        kinds = list(report.findings.kinds(severity))
        if kinds:
            lines += ["", severity.upper()]
        for kind in kinds:
            lines += _kind_lines(report.findings, kind, told)
    if report.clean_lists:
        lines += ["", "CLEANED LISTS", *(f"  {line}" for line in report.clean_list_lines())]
    return "\n".join(lines) + "\n"


def _kind_lines(findings: Findings, kind: str, told: int) -> list[str]:
    count, items = findings.counts[kind], findings.items(kind)[:told]
    lines = [f"  {KINDS[kind].title}: {count:,}"]
    lines += textwrap.wrap(KINDS[kind].advice, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    lines += [f"      {line}" for item in items for line in item.text.split("\n")]
    return [*lines, f"      … and {count - len(items):,} more"] if count > len(items) else lines


def summary_lines(report: Report) -> list[str]:
    """The report without its single findings, for the terminal."""
    lines = [report.totals(), *set_table(report), ""]
    for severity in (STOPS, SPOILS, NOTE):
        lines += [f"{severity}: {KINDS[kind].title}: {report.findings.counts[kind]:,}"
                  for kind in report.findings.kinds(severity)]
    return [*lines, *report.clean_list_lines(), f"{report.verdict()}."]


def set_table(report: Report) -> list[str]:
    """A line for each set."""
    rows = [("set", "images", "identities", "of one image", "images each", "green", "normal", "unreadable", "size")]
    for one in report.figures:
        known = f"{one.identities:,}", f"{one.singles:,}", f"{one.median:,} (up to {one.most:,})"
        looked = f"{one.green:,}", f"{one.normal:,}", f"{one.unreadable:,}"
        rows.append((one.name, f"{one.images:,}", *(known if one.identities else "---"),
                     *(looked if report.looked else "---"), next(iter(one.sizes), "-")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _shared_table(report: Report) -> list[str]:
    """How many pictures the sets share, where they do."""
    if not report.shared.any():
        return []
    names = [one.name for one in report.figures]
    width = max(len(f"{number:,}") for number in [*report.shared.ravel().tolist(), 0])
    width = max(width, *map(len, names))
    lines = ["", "images of a set (row) whose picture is in another set (column); in the set itself: further copies",
             " " * width + "".join(f"  {name:>{width}}" for name in names)]
    return lines + [f"{name:{width}}" + "".join(f"  {number or '-':>{width}}" for number in row)
                    for name, row in zip(names, report.shared.tolist(), strict=True)]


# ------------------------------------------------------------------------------------------------------------ JSON
def as_json(report: Report) -> dict:
    """The report as data. `count` is exact; `items` may be the first of them."""
    return {
        "data": report.data,
        "stops_a_training": report.stops,
        "verdict": report.verdict(),
        "images_were_opened": report.looked,
        "sets": [{**asdict(one), "per_identity": {str(images): n for images, n in one.per_identity.items()}}
                 for one in report.figures],
        "shared_images": {"sets": [one.name for one in report.figures], "rows": report.shared.tolist()},
        "near_duplicates_of_one_identity": report.near,
        "findings": [{
            "kind": kind, **KINDS[kind]._asdict(), "count": report.findings.counts[kind],
            "items": [{"text": item.text, "pictures": [picture._asdict() for picture in item.pictures]}
                      for item in report.findings.items(kind)],
        } for kind in report.findings.kinds()],
        "clean_lists": [{**one._asdict(), "path": one.path.name} for one in report.clean_lists],
    }


@dataclass(frozen=True)
class SetFigures:
    """One set.

    Attributes:
        name: as ImageSet's.
        source: its list, or its folder where it has none.
        images: those named and there.
        identities: 0 where they are not known.
        singles: identities with one image.
        per_identity: images of an identity -> number of such identities, ascending.
        unreadable, green, normal: images; 0 where they were not looked at.
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
    return [_figures(inventory, one, inventory.span(position), inspected)
            for position, one in enumerate(inventory.sets)]


def _figures(inventory: Inventory, one: ImageSet, span: slice, inspected: Inspected | None) -> SetFigures:
    known = one.identities[one.identities != NO_IDENTITY]
    counts = np.unique(known, return_counts=True)[1]
    per_identity = {int(images): int(number) for images, number in zip(*np.unique(counts, return_counts=True),
                                                                       strict=True)}
    records = inspected.records[span] if inspected else None
    good = records[records["good"]] if inspected else None
    return SetFigures(
        name=one.name, source=shown_list(inventory.data, one.list) if one.list else one.folder + "/",
        is_test=one.is_test, images=len(one.files), identities=len(counts), singles=per_identity.get(1, 0),
        per_identity=per_identity,
        unreadable=0 if good is None else len(one.files) - len(good),
        green=0 if good is None else int(good["green"].sum()),
        normal=0 if good is None else int((~good["green"]).sum()),
        sizes={} if good is None else _most_frequent([f"{width}x{height}" for width, height in
                                                      zip(good["width"], good["height"], strict=True)]),
        formats={} if good is None else _most_frequent([FORMATS[one] for one in good["format"]]),
        modes={} if good is None else _most_frequent([MODES[one] for one in good["mode"]]),
    )


def _most_frequent(names: list[str], most: int = 10) -> dict[str, int]:
    ordered = sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(ordered[:most])
