"""From a stream of tracklets to identities, one decision at a time: join, new, wait, and later merge or move.

A tracklet is as similar to an identity as the mean cosine to all of the identity's tracklets, and two identities as the
mean over all their pairs: average linkage, which a single chance likeness does not mislead as the nearest neighbour
does. It is kept up as tracklets arrive. What they show later corrects what was decided early: identities merge, and a
tracklet of the last `window` moves if another identity has become nearer.
"""
from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from processor.gallery.contract import UNKNOWN, check_vectors
from processor.gallery.linking.profiles import Profiles


@dataclass(frozen=True)
class Tracklet:
    """One person's way through one camera.

    Attributes:
        id: its row's.
        vector: [D] of length 1: the mean of its pictures' features, scaled.
        camera, time: facts that are kept with it.
        apart: ids of tracklets, earlier or later ones, of other people: those seen in a frame with it.
    """

    id: int
    vector: np.ndarray
    camera: int = UNKNOWN
    time: int = UNKNOWN
    apart: Collection[int] = ()


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        kind: join | new | wait | move (of a tracklet), merge (of an identity).
        identity: whose it is now; UNKNOWN: wait.
        tracklet: its id; -1: merge.
        other: merge: the identity that is no more; move: the one that it was of; else UNKNOWN.
        similarity: to the identity, before it joined; -inf if there was none.
    """

    kind: str
    identity: int
    tracklet: int = -1
    other: int = UNKNOWN
    similarity: float = float("-inf")


@dataclass
class _Group:
    """identity: UNKNOWN: a single tracklet that waits. fixed: a person's word; apart: slots that it never joins."""

    identity: int = UNKNOWN
    fixed: bool = False
    apart: set[int] = field(default_factory=set)


@dataclass
class _Recent:
    """A tracklet that may still be moved.

    links: ids of other people's; apart: slots of those of them that have left the window. fixed: a person's word.
    """

    vector: np.ndarray
    slot: int
    links: set[int]
    fixed: bool
    number: int
    apart: set[int] = field(default_factory=set)


@dataclass
class _Merge:
    """What `undo` needs: the identities, the other's profile, its tracklets that may still move."""

    into: int
    other: int
    vector: np.ndarray
    count: int
    members: set[int]


class Linker:
    """Identities for tracklets, in memory: one vector for each identity, and the last `window` tracklets.

    The same stream gives the same decisions.
    Args:
        dim: D.
        threshold: the least mean cosine of a person; a model's calibration gives it (its fpr 0.01 is a good start).
        doubt: a tracklet this much below the threshold waits instead of becoming a new identity.
        margin: one that is nearer to one identity than to a second by less waits, too; moves gain as much.
        patience: so many further tracklets; then it is decided as things stand.
        window: tracklets that are kept for moves and for `apart`; more than patience.
        memory: merges that can be undone.
        new_identity: gives numbers; 0, 1, 2, ... if there is none.
    Raises:
        ValueError: window <= patience.
    """

    def __init__(self, dim: int, threshold: float, *, doubt: float = 0.05, margin: float = 0.02, patience: int = 32,
                 window: int = 256, memory: int = 1000, new_identity: Callable[[], int] | None = None):
        if not 0 <= patience < window:
            raise ValueError(f"Linker: patience {patience}, window {window}: the window must be longer")
        self.dim, self.threshold, self.doubt, self.margin = dim, threshold, doubt, margin
        self.patience, self.window = patience, window
        self.new_identity = new_identity or itertools.count().__next__
        self._profiles = Profiles(dim)
        self._groups: dict[int, _Group] = {}
        self._slots: dict[int, int] = {}  # identity: slot
        self._recent: dict[int, _Recent] = {}  # id: tracklet, oldest first
        self._waiting: dict[int, int] = {}  # slot: id, oldest first
        self._merged: dict[int, int] = {}  # identity that is no more: the one that it was merged into
        self._merges: deque[_Merge] = deque(maxlen=memory)
        self._changed: set[int] = set()  # slots, since the moves were last considered
        self._number = 0

    # -------------------------------------------------------------- what is known before
    def add_rows(self, identity: int, vectors: np.ndarray, fixed: bool = False) -> None:
        """Rows [n, D] that have this identity; fixed: a person says so, and no two such identities are merged."""
        total = np.asarray(vectors, np.float64).sum(0)
        if identity in self._slots:
            self._profiles.add(self._slots[identity], total, len(vectors))
        else:
            self._slots[identity] = self._profiles.new(total, len(vectors))
            self._groups[self._slots[identity]] = _Group(identity)
        self._groups[self._slots[identity]].fixed |= fixed

    def remember(self, tracklet: Tracklet, identity: int, fixed: bool = False) -> None:
        """A tracklet among the rows of an identity may move; one of UNKNOWN, which is not among them, waits."""
        if identity == UNKNOWN:
            self._wait(tracklet)
        else:
            self._keep(tracklet, np.asarray(tracklet.vector, np.float64), self._slots[identity], fixed)

    def keep_apart(self, first: int, second: int) -> None:
        """Two identities are never merged."""
        self._part(self._slots[first], self._slots[second])

    def identities(self) -> list[int]:
        """All, ascending."""
        return sorted(self._slots)

    def holds(self, number: int) -> bool:
        """Whether a tracklet is in the window."""
        return number in self._recent

    def recent(self) -> Iterator[Tracklet]:
        """The tracklets of the window, oldest first."""
        for number, recent in self._recent.items():
            yield Tracklet(number, recent.vector.astype(np.float32), apart=frozenset(recent.links))

    def current(self, identity: int) -> int:
        """The identity that this one is part of since merges."""
        while identity in self._merged:
            identity = self._merged[identity]
        return identity

    # -------------------------------------------------------------- the stream
    def add(self, tracklet: Tracklet) -> list[Decision]:
        """Take the next tracklet.

        Returns:
            What is decided now, in this order: of it (join, new, wait), of others, of identities.
        Raises:
            ValueError: its vector is not such a row, or its id is in the window.
        """
        check_vectors(np.asarray(tracklet.vector)[None], self.dim)
        if tracklet.id in self._recent:
            raise ValueError(f"tracklet {tracklet.id} comes twice")
        self._wait(tracklet)
        decisions = [*self._decide(), *self._move()]
        if tracklet.id in self._waiting.values():
            decisions.insert(0, Decision("wait", UNKNOWN, tracklet.id))
        if len(self._recent) > self.window:
            self._forget(next(iter(self._recent)))
        return decisions

    def finish(self) -> list[Decision]:
        """The stream has ended: decide all that wait."""
        return [*self._decide(force=True), *self._move()]

    def _wait(self, tracklet: Tracklet) -> None:
        vector = np.asarray(tracklet.vector, np.float64)
        slot = self._profiles.new(vector)
        self._groups[slot] = _Group()
        self._waiting[slot] = tracklet.id
        self._keep(tracklet, vector, slot)

    def _keep(self, tracklet: Tracklet, vector: np.ndarray, slot: int, fixed: bool = False) -> None:
        links = set(tracklet.apart) - {tracklet.id}
        for number, recent in self._recent.items():
            if number in links or tracklet.id in recent.links:
                links.add(number)
                recent.links.add(tracklet.id)
        self._recent[tracklet.id] = _Recent(vector, slot, links, fixed, self._number)
        self._number += 1

    def _forget(self, number: int) -> None:
        """A tracklet leaves the window: it stays where it is, and other people's stay away from there."""
        gone = self._recent.pop(number)
        for other in gone.links & self._recent.keys():
            self._recent[other].apart.add(gone.slot)
        for slot in gone.apart:
            self._part(gone.slot, slot)

    # -------------------------------------------------------------- join, new, wait
    def _decide(self, force: bool = False) -> Iterator[Decision]:
        """Decide what can be decided, the last tracklet first, until nothing changes."""
        changes = True
        while changes:
            changes = False
            for slot in sorted(self._waiting, key=lambda slot: -self._recent[self._waiting[slot]].number):
                if slot in self._waiting:
                    decisions = list(self._decide_waiting(slot, force))
                    changes |= bool(decisions)
                    yield from decisions

    def _decide_waiting(self, slot: int, force: bool) -> Iterator[Decision]:
        number = self._waiting[slot]
        force |= self._number - self._recent[number].number > self.patience
        similarities = self._similarities(slot)
        best = int(similarities.argmax())
        value = float(similarities[best])
        similarities[best] = -np.inf
        second = similarities.max()
        if value >= self.threshold and (force or second < self.threshold or value - second >= self.margin):
            if best in self._waiting:
                yield self._found(best)
            del self._waiting[slot]
            self._unite(best, slot)
            yield Decision("join", self._groups[best].identity, number, similarity=value)
            yield from self._merge(best)
        elif force or value < self.threshold - self.doubt:
            yield self._found(slot, value)

    def _found(self, slot: int, similarity: float = float("-inf")) -> Decision:
        identity = self.new_identity()
        self._groups[slot].identity = identity
        self._slots[identity] = slot
        self._changed.add(slot)
        return Decision("new", identity, self._waiting.pop(slot), similarity=similarity)

    def _similarities(self, slot: int, settled: bool = False) -> np.ndarray:
        """[slots] to all groups that it may join; settled: only to identities."""
        similarities = self._profiles.similarities(self._profiles.sums[slot], self._profiles.counts[slot])
        barred = {slot, *self._groups[slot].apart}
        for recent in self._recent.values():
            if recent.slot == slot:
                barred |= self._barred(recent)
            elif slot in recent.apart:
                barred.add(recent.slot)
        similarities[list(barred)] = -np.inf
        if settled:
            similarities[list(self._waiting)] = -np.inf
        return similarities

    def _barred(self, recent: _Recent) -> set[int]:
        return recent.apart | {self._recent[number].slot for number in recent.links & self._recent.keys()}

    # -------------------------------------------------------------- merge
    def _merge(self, slot: int) -> Iterator[Decision]:
        """Merge an identity that has changed with those that have become near."""
        while True:
            similarities = self._similarities(slot, settled=True)
            if self._groups[slot].fixed:
                similarities[[other for other, group in self._groups.items() if group.fixed]] = -np.inf
            best = int(similarities.argmax())
            if similarities[best] < self.threshold:
                return
            # A person's identity stays, else the older one.
            slot, gone = sorted((slot, best), key=lambda each: (not self._groups[each].fixed,
                                                                self._groups[each].identity))
            into, other = self._groups[slot].identity, self._groups[gone].identity
            self._merges.append(_Merge(into, other, self._profiles.sums[gone].copy(), int(self._profiles.counts[gone]),
                                       {number for number, recent in self._recent.items() if recent.slot == gone}))
            self._merged[other] = into
            del self._slots[other]
            self._unite(slot, gone)
            yield Decision("merge", into, other=other, similarity=float(similarities[best]))

    def _unite(self, slot: int, gone: int) -> None:
        self._profiles.add(slot, self._profiles.sums[gone], self._profiles.counts[gone])
        self._profiles.remove(gone)
        for recent in self._recent.values():
            if recent.slot == gone:
                recent.slot = slot
            if gone in recent.apart:
                recent.apart = recent.apart - {gone} | {slot}
        for other in self._groups.pop(gone).apart:
            self._groups[other].apart.discard(gone)
            self._part(slot, other)
        self._changed.discard(gone)
        self._changed.add(slot)

    def _part(self, slot: int, other: int) -> None:
        if slot != other:
            self._groups[slot].apart.add(other)
            self._groups[other].apart.add(slot)

    def undo(self, identity: int) -> None:
        """An identity that was merged is one of its own again, and never merged with that one any more.

        What joined since stays.
        Raises:
            KeyError: it was not merged among the last `memory` merges, or nothing else is left to part it from.
        """
        merge = next((merge for merge in self._merges if merge.other == identity), None)
        if merge is None or merge.count in (0, self._profiles.counts[self._slots[self.current(identity)]]):
            raise KeyError(f"identity {identity} is not among the last merges")
        for outer in self._outer(merge.into):
            outer.vector, outer.count = outer.vector - merge.vector, outer.count - merge.count
            outer.members -= merge.members
        into = self._slots[self.current(identity)]
        self._profiles.take(into, merge.vector, merge.count)
        slot = self._slots[identity] = self._profiles.new(merge.vector, merge.count)
        self._groups[slot] = _Group(identity)
        for number, recent in self._recent.items():
            if number in merge.members:
                recent.slot = slot
            if into in recent.apart:  # of which of the two, nobody knows any more
                recent.apart.add(slot)
        for other in {into, *self._groups[into].apart}:
            self._part(slot, other)
        self._merges.remove(merge)
        del self._merged[identity]

    def _outer(self, identity: int) -> Iterator[_Merge]:
        """The merges by which an identity, and what it was merged into, went."""
        for merge in self._merges:
            if merge.other == identity:
                yield merge
                identity = merge.into

    # -------------------------------------------------------------- move
    def _move(self) -> Iterator[Decision]:
        """Move tracklets of the window to which a group that has changed is nearer, or their own has become less so."""
        changed, self._changed = self._changed, set()
        for number, recent in self._recent.items():
            slot = recent.slot
            if recent.fixed or slot in self._waiting or self._profiles.counts[slot] < 2:
                continue
            vector = recent.vector
            rest = (self._profiles.sums[slot] - vector) @ vector / (self._profiles.counts[slot] - 1)
            barred = {slot, *self._barred(recent), *self._waiting}
            if slot in changed:
                similarities = self._profiles.similarities(vector)
                similarities[list(barred)] = -np.inf
            else:
                similarities = np.full(len(self._profiles.counts), -np.inf)
                for other in changed - barred:
                    similarities[other] = self._profiles.sums[other] @ vector / self._profiles.counts[other]
            best = int(similarities.argmax())
            if similarities[best] >= max(self.threshold, rest + self.margin):
                yield self._move_tracklet(number, recent, best, float(similarities[best]))

    def _move_tracklet(self, number: int, recent: _Recent, slot: int, similarity: float) -> Decision:
        for merge in self._merges:
            if number in merge.members:
                merge.members.discard(number)
                merge.vector, merge.count = merge.vector - recent.vector, merge.count - 1
        old, recent.slot = recent.slot, slot
        self._profiles.take(old, recent.vector)
        self._profiles.add(slot, recent.vector)
        self._changed |= {old, slot}
        return Decision("move", self._groups[slot].identity, number, self._groups[old].identity, similarity)
