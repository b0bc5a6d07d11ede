"""The answers of a search held to float64: the same set wherever float32 can tell, and never a row that is farther."""
import numpy as np
import pytest
from galleries import open_engine, search_in_small_pieces, unit

from processor.gallery import open_gallery, search

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Codes and chunks of few rows, so that small galleries are searched as large ones are."""
    search_in_small_pieces(monkeypatch)


def random(rng, count, dim) -> np.ndarray:
    return unit(rng.standard_normal((count, dim)))


def near_ties(rng, count, dim) -> np.ndarray:
    """Rows that differ in their last bits alone, around a few centres."""
    return unit(random(rng, 5, dim)[rng.integers(5, size=count)] + 10.0 ** rng.integers(-9, -5) * rng.standard_normal(
        (count, dim)))


def rings(rng, count, dim) -> np.ndarray:
    """Rows at one distance from the first, but for the rounding of their numbers."""
    around = rng.standard_normal((count, dim))
    around[:, 0] = 0
    rows = 0.6 * unit(around).astype(np.float64)
    rows[:, 0] = 0.8
    return unit(np.concatenate([np.eye(1, dim), rows])[:count])


def lengths(rng, count, dim) -> np.ndarray:
    """Rows whose lengths differ from 1 by nearly as much as they may."""
    return (random(rng, count, dim) * (1 + 0.9e-5 * rng.uniform(-1, 1, (count, 1)))).astype(np.float32)


def check_against_float64(rows, queries, found) -> int:
    """Of how many queries float64 decides the set; each answer is no farther than what was left out."""
    decided, error = 0, (rows.shape[1] + 9) * 2.0**-24  # of a float32 sum of squares, as a share of it
    for query, ids in zip(queries.astype(np.float64), found.ids, strict=True):
        true, inside = np.square(rows - query).sum(1), np.zeros(len(rows), bool)
        inside[ids] = True
        assert true[inside].max() * (1 - error) <= true[~inside].min() * (1 + error)
        best = np.sort(true)[len(ids) - 1 : len(ids) + 1]
        if best[0] * (1 + error) < best[1] * (1 - error):
            assert set(ids.tolist()) == set(np.argsort(true)[: len(ids)].tolist())
            decided += 1
    assert found.certified.all()
    return decided


@pytest.mark.parametrize("kind", [random, near_ties, rings, lengths])
def test_the_set_is_float64s_wherever_float32_can_tell(tmp_path, kind):
    decided = 0
    for dim in (8, 64, 200):
        rng = np.random.default_rng(dim)
        rows = kind(rng, 700, dim)
        queries = np.concatenate([rows[:3], unit(rows[3:6] + 0.1 * random(rng, 3, dim)), random(rng, 3, dim)])
        with open_gallery(tmp_path / f"{dim}", dim) as gallery:
            gallery.add(np.arange(700), rows, {})
            for k in (1, 20, 699):
                decided += check_against_float64(rows, queries, search(gallery, queries, k))
    assert decided >= {"random": 75, "near_ties": 10, "rings": 10, "lengths": 75}[kind.__name__]


def test_the_set_is_float64s_from_any_engine(gallery_engine, gallery_place):
    rng = np.random.default_rng(1)
    rows = np.concatenate([kind(rng, 100, 16) for kind in (random, near_ties, rings, lengths)])
    queries = np.concatenate([rows[::50], random(rng, 4, 16)])
    with open_engine(gallery_engine, gallery_place) as gallery:
        gallery.add(np.arange(400), rows, {})
        assert check_against_float64(rows, queries, search(gallery, queries, 15)) >= 6
