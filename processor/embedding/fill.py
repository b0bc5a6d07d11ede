"""An embedder's rows of a long list of pictures, into a file that is gone on with after a kill."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from processor.embedding.rows_file import Before, Problems, RowsFile
from utils.dist import ALONE, Workers
from utils.process import Stopped, StopRequest
from utils.progress import progress

if TYPE_CHECKING:
    from processor.embedder import Embedder

class Pictures(Protocol):
    """Pictures by their rows.

    Attributes:
        order: [N] the rows, as they are best walked.
        digest: of what they are.
    """

    order: Sequence[int]
    digest: str

    def walk(self, rows: Iterable[int]) -> Iterator[Any]:
        """The item of each of these rows, which come as in `order`, or an exception that says why there is none."""
        ...


class ItemList:
    """The items of a sequence, see `Embedder.embed`."""

    def __init__(self, items: Sequence[Any]):
        self.items, self.order = items, range(len(items))
        hasher = hashlib.sha256()
        for item in items:
            if isinstance(item, (str, os.PathLike)):
                item = os.fsencode(os.path.abspath(item))
            elif isinstance(item, np.ndarray):
                hasher.update(f"{item.dtype}{item.shape}".encode())
                item = np.ascontiguousarray(item)
            elif not isinstance(item, bytes):
                item = repr(item).encode()
            hasher.update(hashlib.sha256(item).digest())
        self.digest = hasher.hexdigest()

    def walk(self, rows: Iterable[int]) -> Iterator[Any]:
        return map(self.items.__getitem__, rows)


def record_of(embedder: Embedder, pictures: Pictures, raw: bool) -> dict[str, Any]:
    """What the rows depend on."""
    precision = getattr(embedder.runtime, "precision", embedder.info.precision)
    return {"model_id": embedder.info.model_id, "rows": len(pictures.order), "pictures": pictures.digest, "raw": raw,
            "precision": str(precision), "batch_size": embedder.batch_size}


def fill_rows(embedder: Embedder, path: Path, pictures: Pictures, *, raw: bool = False, bgr: bool = False,
              on_error: str = "raise", restart: bool = False, workers: Workers = ALONE,
              stop: StopRequest | None = None, before: Before = lambda *_: None) -> Problems:
    """See `Embedder.embed_into`.

    Args:
        stop: is looked at after each batch.
        before: see `RowsFile.finish`.
    Raises:
        Stopped: because of `stop`; what is done is kept.
    """
    order, size = pictures.order, embedder.batch_size
    if not len(order):
        raise ValueError("there is no picture to embed")
    count = -(-len(order) // size)
    with RowsFile(path, embedder.dims(raw), len(order), count, record_of(embedder, pictures, raw), restart,
                  workers) as file:
        rows = [order[batch * size : (batch + 1) * size] for batch in file.undone]
        items = pictures.walk(row for batch in rows for row in batch)
        groups = (list(zip(batch, islice(items, len(batch)), strict=True)) for batch in rows)
        made = embedder.embed_groups(groups, raw=raw, bgr=bgr, on_error=on_error)
        title = f"embed ({file.finished} of {count} batches were done)" if file.finished else "embed"
        for batch, result in zip(file.undone, progress(made, title, "batch", len(file.undone)), strict=True):
            file.write(batch, result.indices, result.feats, result.problems)
            if stop is not None and stop.requested:
                raise Stopped(stop.requested, "the rows that are done are kept; the same command goes on from them")
        return file.finish(before)
