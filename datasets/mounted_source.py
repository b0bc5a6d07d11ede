"""Several image sources behind one: the first folder of a key says whose the image is."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets.images import ImageSource


class MountedSource:
    """Images of several sets.

    Args:
        sources: first folder of a key -> the source that reads what follows it; "" reads, with their whole keys, all
            images that belong to no other.
    """

    def __init__(self, sources: Mapping[str, ImageSource]) -> None:
        self.sources = dict(sources)

    @property
    def roots(self) -> list[Path]:
        """The folders that images are read from."""
        return [root for source in self.sources.values() for root in source.roots]

    def read(self, key: str) -> bytes:
        """The bytes of an image; see `ImageSource.read`.

        Raises:
            ValueError: besides, no source is mounted for the key.
        """
        first, _, rest = key.partition("/")
        if first in self.sources and first:
            return self.sources[first].read(rest)
        if "" in self.sources:
            return self.sources[""].read(key)
        raise ValueError(f"image key {key!r} begins with none of the sets {', '.join(self.sources)}")

    def __repr__(self) -> str:
        return f"MountedSource({self.sources!r})"
