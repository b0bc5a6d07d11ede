"""A gallery that outlives a run: vectors with their pictures' facts, kept safely, searched exactly, told apart."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from processor.gallery.contract import Gallery, Where

__all__ = ["Found", "Where", "open_gallery", "search"]


def __getattr__(name: str) -> Any:
    """`search`, imported when it is asked for: torch takes seconds, and to add rows needs none of it."""
    if name not in ("Found", "search"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from processor.gallery import ranking
    return getattr(ranking, name)


def open_gallery(url: str | Path, dim: int | None = None, *, model: str | None = None, vectors: str | None = None,
                 client: Any = None, shards: int | None = None, state: str | Path | None = None,
                 exact_up_to: int | None = None) -> Gallery:
    """Open a gallery, or make it.

    Args:
        url: a folder, or qdrant://HOST:PORT/COLLECTION.
        dim: D of its vectors; needed to make one, else checked.
        model: the model_id that its vectors are of; a gallery of another model is refused.
        vectors: of a new folder, "float32" (the default: read back to the bit) or "float16" (half the disk).
        client, shards, state: of Qdrant: a client instead of one for the URL, the number of shards of a new
            collection, and the folder of the ledger.
        exact_up_to: of Qdrant: rows up to which a search reads all of them; above that it is approximate, and its
            answers are not certified (default: `qdrant.EXACT_UP_TO`). A folder is always exact.
    Raises:
        ValueError: what is there does not fit, or the URL is of no engine.
        OSError: it cannot be reached or written.
    """
    scheme, separator, _ = str(url).partition("://")
    if not separator:
        from processor.gallery.folder import FolderGallery
        return FolderGallery(Path(url), dim, model=model, vectors=vectors)
    if scheme != "qdrant":
        raise ValueError(f"{url}: expected a folder, or qdrant://HOST:PORT/COLLECTION")
    if dim is None:
        raise ValueError(f"{url}: the dimension of its vectors is needed")
    from processor.gallery.qdrant import open_qdrant
    gallery = open_qdrant(str(url), dim, model or "", client, shards, exact_up_to)
    if state is not None:
        from processor.gallery.ledger import Ledger
        gallery.ledger = Ledger(Path(state), gallery, gallery.model)
    return gallery
