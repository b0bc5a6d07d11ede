"""Galleries for tests: every engine, empty, with rows of DIM numbers."""
import numpy as np
import pytest

from processor.gallery import nearest, open_gallery, segments

DIM = 16  # of the vectors


def open_engine(engine: str, place, **options):
    """A gallery of DIM; the same place gives the same gallery."""
    if engine == "folder":
        return open_gallery(place, DIM, **options)
    return open_gallery("qdrant://localhost:6333/people", DIM, client=place, **options)


def unit(rows) -> np.ndarray:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def search_in_small_pieces(monkeypatch) -> None:
    """Codes and chunks of few rows, so that small galleries are searched as large ones are."""
    for module, name, value in ((segments, "CODE_ROWS", 64), (nearest, "FIRST", 32), (nearest, "MOST_ROWS", 128)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(params=["folder", "qdrant"])
def gallery_engine(request):
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
    return request.param


@pytest.fixture
def gallery_place(gallery_engine, tmp_path):
    if gallery_engine == "folder":
        return tmp_path / "gallery"
    from qdrant_client import QdrantClient

    return QdrantClient(":memory:")


@pytest.fixture
def gallery(gallery_engine, gallery_place):
    with open_engine(gallery_engine, gallery_place) as gallery:
        yield gallery


def draw_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
