"""What may be asked of the service, checked before anything is computed."""
from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from processor.gallery.contract import FACTS, UNKNOWN, Where

_MANY = 10_000  # ids of one request
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Id = Annotated[int, Field(ge=0, lt=2**63)]
Label = Annotated[str, Field(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]  # never a path, whatever it looks like
Box = Annotated[list[float], Field(min_length=4, max_length=4)]
Vectors = Annotated[list[list[float]], Field(min_length=1)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=_MANY)]


def clean_label(name: str) -> str:
    """A label of a file's name, as a browser or another program sends it."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", name)[-255:]


class Message(BaseModel):
    """A misspelt word is refused: a filter that is not known would filter nothing."""

    model_config = ConfigDict(extra="forbid")


class Filter(Message):
    """As `Where`."""

    cameras: list[Whole] | None = Field(None, max_length=_MANY)
    since: Whole | None = Field(None, description="ms since 1970")
    until: Whole | None = Field(None, description="ms since 1970, not included")
    identities: list[Whole] | None = Field(None, max_length=_MANY, description="-1 = nobody yet")
    sets: list[Label] | None = Field(None, max_length=_MANY)

    def where(self) -> Where:
        """Hashable, so that equal filters share a search."""
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in self}
        return Where(**fields)


class Asked(Message):
    """What every request has that brings pictures or vectors."""

    vectors: Vectors | None = Field(None, description="rows of length 1; instead of a picture")
    boxes: list[Box] | None = Field(None, description="x0, y0, x1, y1 in pixels: a crop of the picture each")


class Question(Asked):
    """Who is nearest."""

    k: int = Field(20, ge=1)
    where: Filter = Filter()
    re_rank: bool = False


class Identification(Asked):
    """Who it is."""

    where: Filter = Filter()
    threshold: float | None = Field(None, ge=-1, le=1, description="a similarity; default: the service's")


class Facts(Message):
    """What is known of a row."""

    camera: Whole = UNKNOWN
    time: Whole = Field(UNKNOWN, description="ms since 1970")
    identity: Annotated[int, Field(ge=UNKNOWN, lt=2**63)] = UNKNOWN
    set: Label = ""
    name: Label = Field("", description="of the picture; a label, never a path")
    data: dict[str, Any] = Field({}, description="anything, up to 4096 bytes of JSON")


class Addition(Asked):
    """Rows to add: facts for each of them, or once for all."""

    facts: Facts | list[Facts] = Facts()
    ids: Ids | None = Field(None, description="default: new ones; a known id is an error, so that a request may be "
                            "repeated")

    def columns(self, count: int) -> dict[str, list]:
        """{fact: [count]} as `Gallery.add` takes them.

        Raises:
            ValueError: not so many facts or ids, or data is too long or not finite.
        """
        facts = self.facts if isinstance(self.facts, list) else [self.facts] * count
        if len(facts) != count or (self.ids is not None and len(self.ids) != count):
            raise ValueError(f"{len(facts)} facts and {len(self.ids or [])} ids for {count} rows; give each its own, "
                             "or facts once for all")
        columns = {name: [getattr(row, name) for row in facts] for name in FACTS}
        columns["data"] = [json.dumps(data, allow_nan=False, ensure_ascii=False) for data in columns["data"]]
        if any(len(data.encode()) > 4096 for data in columns["data"]):
            raise ValueError("data: more than 4096 bytes of JSON")
        return columns


class Rows(Message):
    """Rows by id."""

    ids: Ids


class Removal(Rows):
    """Rows to remove."""

    erase: bool = Field(False, description="overwrite them on the disk at once; this cannot be undone")


class Assignment(Rows):
    """Rows of one person."""

    identity: Id | None = Field(None, description="null = nobody yet")
    person: Label = Field("", description="or a name; a new person's, if it is new")


class Naming(Message):
    """A person's name."""

    identity: Id
    name: Label


class Merging(Message):
    """Two identities that are one person; `other` is gone afterwards."""

    into: Id
    other: Id
