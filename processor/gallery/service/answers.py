"""What the service answers, from a gallery and its ledger: plain values that become JSON.

Ids and identities are text there: a browser's numbers are exact up to 2**53 alone.
"""
from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from processor.gallery import search
from processor.gallery.contract import UNKNOWN, Batch, Gallery, Where, count_rows
from processor.gallery.identify import identify

_THUMBNAIL = 256  # pixels of the longer side
_RETRIES = 5
_PERSON_ROWS = 10_000  # of one person that are looked at
_LISTED = 200_000  # rows of a cluster whose facts are asked for to list people


class Vision(NamedTuple):
    """What the service knows of pictures: callables, because this room knows no model.

    Attributes:
        decode: bytes of an image file -> uint8 [H, W, 3] RGB; ValueError says why not, also of one that is too large.
        crop: (picture, boxes) -> the picture's parts.
        embed: pictures -> float32 [N, D] of length 1.
        probability: similarities -> how likely they are of one person; None = the model is not calibrated.
        threshold: the similarity from which on two rows are taken for one person; None = not known.
    """

    decode: Callable[[bytes], np.ndarray]
    crop: Callable[[np.ndarray, Sequence], list[np.ndarray]]
    embed: Callable[[list[np.ndarray]], np.ndarray]
    probability: Callable[[np.ndarray], np.ndarray] | None = None
    threshold: float | None = None


def new_ids(count: int) -> list[int]:
    """Ids that ascend with time and that no other process draws: ms since 1970, then 22 random bits."""
    first = (time.time_ns() // 1_000_000 << 22) + secrets.randbits(21)
    return list(range(first, first + count))


def make_thumbnail(picture: np.ndarray) -> bytes:
    """JPEG of uint8 [H, W, 3] RGB."""
    scale = min(1, _THUMBNAIL / max(picture.shape[:2]))
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


class Answers:
    """The questions and changes that routes, and the command line, have in common; any thread may call.

    Args:
        gallery: open; it stays the caller's to close.
        vision: for probability and threshold; None: there are none.
        who: that the undo log names.
    """

    def __init__(self, gallery: Gallery, vision: Vision | None = None, who: str = "service"):
        self.gallery, self.ledger, self.vision, self.who = gallery, gallery.ledger, vision, who

    # ------------------------------------------------------------------ questions
    def count(self) -> int:
        """All rows."""
        return self.gallery.count()

    def info(self) -> dict[str, Any]:
        """What the gallery holds, and what the service can do with pictures."""
        vision = self.vision
        return {"rows": self.gallery.count(), "dim": self.gallery.dim, "model": self.gallery.model,
                "names": len(self.ledger.names()), "pictures": vision is not None,
                "calibrated": bool(vision and vision.probability), "threshold": vision.threshold if vision else None}

    def search(self, queries: np.ndarray, k: int, where: Where, re_rank: bool = False) -> list[list[dict[str, Any]]]:
        """The k nearest rows for each query [Q, D], with their facts."""
        for attempt in range(_RETRIES):
            found = search(self.gallery, queries, k, where, re_rank=re_rank)
            ids = np.unique(found.ids[found.ids >= 0])
            try:
                rows = dict(zip(ids.tolist(), self.rows(self.gallery.fetch(ids)), strict=True))
                break
            except KeyError:  # it was removed between the two
                if attempt == _RETRIES - 1:
                    raise TimeoutError("rows are removed faster than they can be read; try again") from None
        return [[{**rows[row], **self._closeness(similarity), "certified": certified}
                 for row, similarity in zip(row_ids, similarities, strict=True) if row >= 0]
                for row_ids, similarities, certified in zip(
                    found.ids.tolist(), found.similarities.tolist(), found.certified.tolist(), strict=True)]

    def identify(self, vectors: np.ndarray, where: Where, threshold: float | None = None) -> list[dict[str, Any]]:
        """Who each vector [Q, D] is: the nearest identity, or nobody known if it is below the threshold.

        Raises:
            ValueError: no threshold is given, and the model has none.
        """
        if threshold is None and (threshold := self.vision and self.vision.threshold) is None:
            raise ValueError("give a threshold, a similarity: the model is not calibrated, or there is none")
        found, names = identify(self.gallery, vectors, where, threshold=threshold), self.ledger.names()
        return [{"identity": _text(identity), "person": names.get(identity, ""), "nearest": _text(nearest),
                 "nearest_person": names.get(nearest, ""), **self._closeness(similarity), "margin": margin,
                 "threshold": threshold, "rows": [str(row) for row in rows if row >= 0], "certified": certified}
                for identity, nearest, similarity, margin, rows, certified in zip(*(
                    values.tolist() for values in (found.identities, found.nearest, found.similarities, found.margins,
                                                   found.rows, found.certified)), strict=True)]

    def _closeness(self, similarity: float) -> dict[str, Any]:
        vision, probability, same = self.vision, None, None
        if vision and vision.probability:
            probability = float(vision.probability(np.float32([similarity]))[0])
        if vision and vision.threshold is not None:
            same = similarity >= vision.threshold
        return {"similarity": similarity, "probability": probability, "same": same}

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """The facts of each row, as JSON has them."""
        names, facts = self.ledger.names(), {name: column.tolist() for name, column in batch.facts.items()}
        return [{"id": str(row), "identity": _text(identity), "person": names.get(identity, ""),
                 "camera": _null(camera), "time": _null(moment), "set": group, "name": name, "data": _read_data(data)}
                for row, identity, camera, moment, group, name, data in zip(batch.ids.tolist(), *(
                    facts[name] for name in ("identity", "camera", "time", "set", "name", "data")), strict=True)]

    def list_people(self, limit: int, offset: int = 0) -> dict[str, Any]:
        """Identities, those seen last first: how often, where, when, and the row of their last picture.

        whole: all of them; of a cluster with more than _LISTED rows only those with a name are listed.
        """
        names = self.ledger.names()
        columns, whole = self._columns(names)
        order = np.lexsort((columns["id"], columns["time"], columns["identity"]))
        columns = {name: column[order] for name, column in columns.items()}
        identities, starts, counts = np.unique(columns["identity"], return_index=True, return_counts=True)
        ends = starts + counts
        latest = [int(i) for i in np.lexsort((identities, -columns["time"][ends - 1])) if identities[i] != UNKNOWN]
        people = []
        for i in latest[offset : offset + limit]:
            rows = slice(starts[i], ends[i])
            times = columns["time"][rows][columns["time"][rows] != UNKNOWN]
            people.append({"identity": str(identities[i]), "person": names.get(int(identities[i]), ""),
                           "rows": int(counts[i]), "cameras": np.unique(columns["camera"][rows]).tolist(),
                           "first": int(times[0]) if len(times) else None,
                           "last": int(times[-1]) if len(times) else None, "latest": str(columns["id"][ends[i] - 1])})
        return {"people": people, "total": len(latest), "whole": whole,
                "nobody": int((columns["identity"] == UNKNOWN).sum()) if whole else
                self.gallery.count(Where(identities=[UNKNOWN]))}

    def _columns(self, names: dict[int, str]) -> tuple[dict[str, np.ndarray], bool]:
        """id, camera, time and identity of the rows, and whether these are all: a folder has them in memory."""
        wanted = ("id", "camera", "time", "identity")
        if live := getattr(self.gallery, "live", None):
            parts = [[part.segment.columns[name][part.rows] for name in wanted] for part in live()]
            return {name: np.concatenate([np.empty(0, np.int64), *(part[i] for part in parts)])
                    for i, name in enumerate(wanted)}, True
        whole = self.gallery.count() <= _LISTED
        return self.gallery.columns(wanted[1:], None if whole else Where(identities=list(names))), whole

    def describe_person(self, identity: int, limit: int) -> dict[str, Any]:
        """A person's last rows, by time; of identity -1 the first rows that are of nobody yet.

        Raises:
            KeyError: there is no such person.
        """
        rows: list[dict[str, Any]] = []
        for batch in self.gallery.scan(Where(identities=[identity])):
            rows += self.rows(batch)
            if len(rows) >= _PERSON_ROWS:
                break
        name = self.ledger.names().get(identity, "")
        if not rows and not name and identity != UNKNOWN:
            raise KeyError(f"there is no person {identity}")
        rows.sort(key=lambda row: (-1 if row["time"] is None else row["time"], int(row["id"])))
        return {"identity": _text(identity), "person": name, "rows": rows[-limit:], "total": len(rows)}

    def thumbnail(self, row: int) -> bytes:
        """JPEG.

        Raises:
            KeyError: the row has none, or there is no such row.
        """
        if (jpeg := self.ledger.thumbnail(row)) is None:
            raise KeyError(f"row {row} has no thumbnail")
        return jpeg

    # ------------------------------------------------------------------ changes
    def add(self, ids: Sequence[int] | None, vectors: np.ndarray, columns: dict[str, list],
            thumbnails: Sequence[bytes] = ()) -> list[str]:
        """Add rows with their thumbnails; their ids."""
        ids = new_ids(len(vectors)) if ids is None else ids
        self.gallery.add(ids, vectors, columns)
        if thumbnails:
            self.ledger.put_thumbnails(ids, thumbnails)
        return [str(row) for row in ids]

    def assign(self, ids: Sequence[int], identity: int | None, person: str = "") -> dict[str, Any]:
        """Say whose rows these are: an identity's, or of the one with a name, which may be new."""
        if identity is not None and person.strip():
            raise ValueError("give an identity or a person's name, not both")
        if person.strip():
            self.gallery.fetch(ids)  # before somebody new is made
            identity = int(self.ledger.identities([person.strip()])[0])
        self.ledger.assign(ids, UNKNOWN if identity is None else identity, self.who)
        return {"done": f"{count_rows(len(set(ids)))} assigned"}

    def name(self, identity: int, name: str) -> dict[str, Any]:
        """Name a person."""
        self.ledger.name(identity, name, self.who)
        return {"done": f"named {name.strip()}" if name.strip() else "the name is taken away"}

    def merge(self, into: int, other: int) -> dict[str, Any]:
        """Two identities are one."""
        self.ledger.merge(into, other, self.who)
        return {"done": "merged"}

    def split(self, ids: Sequence[int]) -> dict[str, Any]:
        """Rows are of another, new person."""
        return {"identity": str(self.ledger.split(ids, self.who)), "done": f"{count_rows(len(set(ids)))} split off"}

    def remove(self, ids: Sequence[int] | None, erase: bool, where: Where | None = None) -> dict[str, Any]:
        """Remove rows; without `erase`, `undo` brings them back."""
        count = self.ledger.remove(ids, where, self.who, erase)
        return {"done": f"{count_rows(count)} {'erased' if erase else 'removed'}"}

    def undo(self) -> dict[str, Any]:
        """Take the last change back.

        Raises:
            ValueError: there is none.
        """
        return {"done": f"undone: {self.ledger.undo().what}"}


def _read_data(text: str) -> Any:
    """What a row's data is; text that is no JSON, which another program may have put there, as it is."""
    try:
        return json.loads(text, parse_constant=int)  # NaN, no number of JSON's, is an error
    except (ValueError, RecursionError):
        return text


def _null(value: int) -> int | None:
    return None if value == UNKNOWN else value


def _text(value: int) -> str | None:
    return None if value == UNKNOWN else str(value)
