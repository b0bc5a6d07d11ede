"""A Linker over a gallery: tracklets are its rows, identities are the rows' facts, and a person's word wins."""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from processor.gallery.contract import UNKNOWN, Gallery, Where
from processor.gallery.linking.linker import Decision, Linker, Tracklet

WHO = "linker"  # in the undo log
APART = "apart"  # in a row's data: ids of rows of people seen in a frame with it
_ROWS = 4096  # that are fetched at a time
_LOOK_BACK = 200  # changes; one that is undone later than so many others is seen by `reload` only
_MERGE = re.compile(r"merge (\d+) into (\d+)")


class _Rows:
    """Of each row, by its id: its identity, and whether a person said so; (UNKNOWN, True): there is none."""

    def __init__(self, ids: np.ndarray, identities: np.ndarray, fixed: np.ndarray):
        self.ids, self.identities, self.fixed = ids, identities, fixed  # ascending by id

    def __getitem__(self, number: int) -> tuple[int, bool]:
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number:
            return UNKNOWN, True
        return int(self.identities[place]), bool(self.fixed[place])


def _apart(data: str) -> list[int]:
    """The ids that a row's data names as other people's; what other programs keep under this name is left alone."""
    if f'"{APART}"' not in data:
        return []
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        return []
    ids = held.get(APART) if isinstance(held, dict) else None
    return [row for row in ids if type(row) is int and 0 <= row < 2**63] if isinstance(ids, list) else []


class GalleryLinker:
    """Gives the rows of a gallery identities as they come.

    Rows of which a person has said whose they are keep that identity; two identities with such rows, or with names,
    are never merged, and one with none is merged into one that has. What a person changes in between, or undoes, is
    seen before the next tracklet; what other writers add or remove only after `reload`.
    Args:
        gallery: with a ledger, in which merges are recorded and can be undone.
        threshold: see Linker, as for the options.
        where: which rows take part; all if there is none.
    Raises:
        ValueError: the gallery has no ledger.
    """

    def __init__(self, gallery: Gallery, threshold: float, where: Where | None = None, **options: Any):
        if gallery.ledger is None:
            raise ValueError("a Linker over a gallery needs its ledger; open a cluster's with state=FOLDER")
        self.gallery, self.ledger, self.where = gallery, gallery.ledger, where
        self._make = lambda: Linker(gallery.dim, threshold, new_identity=self.ledger.new_identity, **options)
        self._linker, self._seen = self._make(), {}
        self._see_changes()
        self.reload()

    def add(self, tracklet: Tracklet, facts: Mapping[str, Any] | None = None) -> list[Decision]:
        """Add a tracklet as a row and decide; see `Linker.add`.

        Args:
            facts: further ones of the row: set, name, data (a JSON object, which gets `apart`).
        Raises:
            ValueError: see `Gallery.add` and `Linker.add`; nothing was written.
        """
        if self._linker.holds(tracklet.id):
            self.reload()  # the row was removed since, or add refuses it
        values = {**(facts or {}), "camera": tracklet.camera, "time": tracklet.time, "identity": UNKNOWN}
        if tracklet.apart:
            data = {**json.loads(values.get("data", "{}")), APART: sorted(map(int, tracklet.apart))}
            values["data"] = json.dumps(data, ensure_ascii=False)
        # As a row that waits first: killed before the decision is written, it can be linked again.
        self.gallery.add([tracklet.id], np.asarray(tracklet.vector)[None], {name: [value] for name, value
                                                                            in values.items()})
        return self._decide(tracklet)

    def link(self, ids: Sequence[int]) -> list[Decision]:
        """Decide on rows that are in the gallery, in this order; those that have an identity, or a person's word, stay.

        So do those that wait: more is to be seen, or `finish`.
        Raises:
            KeyError: an id is not there.
        """
        decisions = []
        for start in range(0, len(ids), _ROWS):
            batch = self.gallery.fetch(ids[start : start + _ROWS])
            free = (batch.facts["identity"] == UNKNOWN) & ~self.ledger.by_human(batch.ids)
            for row in np.flatnonzero(free):
                number, apart = int(batch.ids[row]), _apart(batch.facts["data"][row])
                if not self._linker.holds(number):
                    decisions += self._decide(Tracklet(number, batch.vectors[row], apart=apart))
        return decisions

    def link_all(self) -> list[Decision]:
        """Decide on all rows of nobody known, by time, then by id; none waits in the end."""
        where, times, ids = replace(self.where or Where(), identities=[UNKNOWN]), [], []
        for batch in self.gallery.scan(where):
            times += batch.facts["time"].tolist()
            ids += batch.ids.tolist()
        return [*self.link([ids[row] for row in np.lexsort((ids, times))]), *self.finish()]

    def finish(self) -> list[Decision]:
        """The stream has ended: decide all rows that wait."""
        self._see_changes()
        return self._write(self._linker.finish())

    def reload(self) -> None:
        """Read all rows again: identities as they are now, whoever gave them."""
        linker, recent, names = self._make(), list(self._linker.recent()), self.ledger.names()
        ids, identities, fixed, apart = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, bool)], []
        for batch in self.gallery.scan(self.where):
            ids.append(batch.ids)
            identities.append(batch.facts["identity"])
            fixed.append(self.ledger.by_human(batch.ids))
            order = np.argsort(identities[-1], kind="stable")
            for rows in np.split(order, np.flatnonzero(np.diff(identities[-1][order])) + 1):
                identity = int(identities[-1][rows[0]])
                if identity != UNKNOWN:
                    linker.add_rows(identity, batch.vectors[rows], bool(fixed[-1][rows].any()) or identity in names)
            apart += [(int(row), other) for row, data in zip(batch.ids, batch.facts["data"], strict=True)
                      for other in _apart(data)]
        rows = _Rows(*map(np.concatenate, (ids, identities, fixed)))
        for tracklet in recent:
            identity, by_human = rows[tracklet.id]
            if identity != UNKNOWN or not by_human:  # else it is gone, or a person says that nobody knows
                linker.remember(tracklet, identity, by_human)
        known = set(linker.identities())
        for pair in [*((rows[row][0], rows[other][0]) for row, other in apart), *self._undone()]:
            if pair[0] != pair[1] and known.issuperset(pair):
                linker.keep_apart(*pair)
        self._linker = linker

    def _undone(self) -> Iterable[tuple[int, int]]:
        """Pairs of identities of our merges that were undone, as they are called now."""
        merged, apart = {}, []
        for change in self.ledger.history(None, undone=True):
            if merge := _MERGE.fullmatch(change.what):
                other, into = int(merge[1]), int(merge[2])
                if not change.undone:
                    merged.setdefault(other, into)
                elif change.who == WHO:
                    apart.append((other, into))
        for pair in apart:
            for _ in merged:
                pair = tuple(merged.get(identity, identity) for identity in pair)
            yield pair

    def _see_changes(self) -> None:
        """Reload if others than we changed something, or something was undone."""
        changes = self.ledger.history(_LOOK_BACK, undone=True)
        news = any(change.undone != self._seen.get(change.number, change.who != WHO and not change.undone)
                   for change in changes)
        self._seen = {change.number: change.undone for change in changes}
        if news:
            self.reload()

    def _decide(self, tracklet: Tracklet) -> list[Decision]:
        self._see_changes()
        return self._write(self._linker.add(tracklet))

    def _write(self, decisions: list[Decision]) -> list[Decision]:
        """Write decisions; those that a person has just forestalled are left out."""
        for place, decision in enumerate(decisions):
            if decision.kind == "merge":
                try:
                    self.ledger.merge(decision.identity, decision.other, who=WHO, human=False)
                except ValueError:
                    self.reload()
                    return decisions[:place]
            elif decision.kind != "wait" and not self.ledger.by_human([decision.tracklet])[0]:
                self.gallery.assign([decision.tracklet], identity=decision.identity)
        return decisions
