"""The nearest identity, against all rows looked at; over every engine of a gallery."""
import numpy as np
import pytest
from galleries import DIM, draw_rows

from processor.gallery.contract import Where
from processor.gallery.identify import RULES, identify

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def fill(gallery, seed=0, count=90):
    """Rows around 12 centres, some alone and many unknown; the identities."""
    rng = np.random.default_rng(seed)
    identities = np.where(rng.random(count) < 0.3, -1, rng.integers(0, 12, count) ** 2)
    rows = draw_rows(12, seed)[np.sqrt(np.maximum(identities, 0)).astype(int)] + 0.3 * draw_rows(count, seed + 1)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    gallery.add(np.arange(count), rows, {"identity": identities, "camera": np.arange(count) % 2})
    return rows, identities


def slow_identify(rows, identities, query, m):
    """[(similarity, identity, rows)], best first."""
    similarities = (rows.astype(np.float64) * query).sum(1).astype(np.float32).astype(np.float64)
    answers = []
    for identity in np.unique(identities[identities >= 0]):
        best = sorted(np.flatnonzero(identities == identity), key=lambda row: (-similarities[row], row))[:m]
        answers.append((similarities[best].mean(), int(identity), [int(row) for row in best]))
    return sorted(answers, key=lambda answer: (-answer[0], answer[1]))


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize(("rule", "m"), [("max", 3), ("mean", 1), ("mean", 2), ("mean", 5)])
def test_the_nearest_two_identities_are_those_of_all_rows(gallery, rule, m, k):
    rows, identities = fill(gallery)
    queries = draw_rows(12)
    found = identify(gallery, queries, threshold=0.6, rule=rule, m=m, k=k)
    for q, query in enumerate(queries):
        first, second = slow_identify(rows, identities, query, 1 if rule == "max" else m)[:2]
        assert found.nearest[q] == first[1]
        assert found.identities[q] == (first[1] if found.similarities[q] >= np.float32(0.6) else -1)
        np.testing.assert_allclose([found.similarities[q], found.margins[q]], [first[0], first[0] - second[0]],
                                   atol=1e-6)
        assert [row for row in found.rows[q] if row >= 0] == first[2]
    assert found.certified.all()
    assert (found.identities >= 0).any()


def test_only_rows_that_fulfil_the_condition_decide(gallery):
    rows, identities = fill(gallery)
    found = identify(gallery, rows[:20], Where(cameras=[1]), threshold=-1, k=3)
    for q in range(20):
        expected = slow_identify(rows[1::2], identities[1::2], rows[q], 1)[0]
        assert (found.nearest[q], found.rows[q, 0]) == (expected[1], 1 + 2 * expected[2][0])


def test_a_gallery_without_identities_knows_nobody(gallery):
    for rows in (0, 5):
        gallery.add(np.arange(rows), draw_rows(rows), {})
        found = identify(gallery, draw_rows(2, seed=1), threshold=-1, k=2)
        assert found.nearest.tolist() == [-1, -1]
        assert found.similarities.tolist() == [-1, -1]
        assert found.rows.tolist() == [[-1], [-1]]
    assert identify(gallery, draw_rows(0), threshold=0.5).identities.shape == (0,)


def test_a_single_identity_has_the_whole_margin(gallery):
    rows = draw_rows(1)
    gallery.add([4], rows, {"identity": [9]})
    found = identify(gallery, np.concatenate([rows, -rows]), threshold=0.5, rule="mean", m=2)
    assert found.identities.tolist() == [9, -1]
    np.testing.assert_allclose(found.similarities, [1, -1], atol=1e-6)
    np.testing.assert_allclose(found.margins, [2, 0], atol=1e-6)
    assert found.rows.tolist() == [[4, -1], [4, -1]]


@pytest.mark.parametrize("wrong", [{"rule": "median"}, {"m": 0}, {"k": 0}])
def test_a_wrong_rule_is_refused(gallery, wrong):
    with pytest.raises(ValueError, match=f"expected {' . '.join(RULES)}".replace(".", r"\|")):
        identify(gallery, np.eye(1, DIM), threshold=0.5, **wrong)
