"""The figures of each set of a data set: images, identities, sizes, domains."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from datasets.image_header import FORMATS, MODES
from datasets.inspection import Inspected
from datasets.inventory import NO_IDENTITY, ImageSet, Inventory
from datasets.naic import shown_list


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
