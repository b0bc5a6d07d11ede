"""What every engine of a gallery keeps: the same tests over all."""
import time

import numpy as np
import pytest
from galleries import DIM, draw_rows, open_engine

from processor.gallery.contract import FACTS, Where

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def fill(gallery, count: int = 12, **facts) -> np.ndarray:
    """Rows 3, 10, 17, ... with camera 0 1 2 0 ..., time 100 * row, set a b a ..., name p<row>.png, identity -1."""
    vectors = draw_rows(count)
    gallery.add(ids_of(count), vectors, {
        "camera": np.arange(count) % 3, "time": np.arange(count) * 100, "set": (["a", "b"] * count)[:count],
        "name": [f"p{i}.png" for i in range(count)], **facts})
    return vectors


def ids_of(count: int) -> np.ndarray:
    return np.arange(count) * 7 + 3


def content(gallery) -> dict:
    """{id: (vector's bytes, facts)} of all rows."""
    return {number: (batch.vectors[row].tobytes(), *(batch.facts[name][row] for name in FACTS))
            for batch in gallery.scan() for row, number in enumerate(batch.ids.tolist())}


# ---------------------------------------------------------------------------------------------------------------- add
def test_rows_come_back_with_the_bits_that_were_added_in_the_order_asked_for(gallery):
    vectors = fill(gallery)
    batch = gallery.fetch([24, 3, 10, 24])
    np.testing.assert_array_equal(batch.vectors.view(np.int32), vectors[[3, 0, 1, 3]].view(np.int32))
    assert batch.vectors.dtype == np.float32
    assert batch.ids.tolist() == [24, 3, 10, 24]
    assert set(batch.facts) == set(FACTS)
    assert batch.facts["camera"].tolist() == [0, 0, 1, 0]
    assert batch.facts["time"].dtype == np.int64
    assert batch.facts["name"].tolist() == ["p3.png", "p0.png", "p1.png", "p3.png"]


def test_facts_that_are_not_given_are_not_known(gallery):
    gallery.add([5], draw_rows(1), {})
    assert {name: values[0] for name, values in gallery.fetch([5]).facts.items()} == FACTS


def test_the_largest_ids_and_any_text_come_back(gallery):
    texts = ['{"a": 1}', "李", "", "a'b\"c\\ \t"]
    ids = [0, 2**53 + 1, 2**63 - 2, 2**63 - 1]
    gallery.add(ids, draw_rows(4), {"data": texts, "name": texts, "set": texts, "time": [-1, 0, 2**40, 2**40 + 1],
                                    "identity": [2**62, 2**53 + 1, -1, 0]})
    batch = gallery.fetch(ids)
    assert batch.facts["data"].tolist() == batch.facts["name"].tolist() == batch.facts["set"].tolist() == texts
    assert batch.facts["identity"].tolist() == [2**62, 2**53 + 1, -1, 0]
    assert [number for part in gallery.scan() for number in part.ids.tolist()] == ids
    assert gallery.count(Where(sets=["李"], since=0)) == 1
    assert gallery.count(Where(identities=[2**53 + 1])) == 1


WRONG = {
    "an id twice": ([1, 2, 1], None, {}, "1 comes twice"),
    "an id below 0": ([1, -2, 3], None, {}, "-2 is not in"),
    "an id that is too large": (np.array([1, 2**63, 3], np.uint64), None, {}, "is not in"),
    "ids that are no numbers": (["a", "b", "c"], None, {}, "whole numbers"),
    "ids with fractions": ([1.0, 2.0, 3.0], None, {}, "whole numbers"),
    "a known id": ([1, 10, 2], None, {}, "10"),
    "another dimension": ([1, 2, 4], np.eye(3, DIM + 1), {}, r"expected \[3, 16\]"),
    "too few vectors": ([1, 2, 4], np.eye(2, DIM), {}, r"expected \[3, 16\]"),
    "one vector": ([1, 2, 4], np.eye(1, DIM)[0], {}, r"expected \[3, 16\]"),
    "NaN": ([1, 2, 4], np.eye(3, DIM) * [[1], [np.nan], [1]], {}, "row 1"),
    "infinity": ([1, 2, 4], np.eye(3, DIM) + np.c_[[0, 0, np.inf]], {}, "row 2"),
    "zero": ([1, 2, 4], np.zeros((3, DIM)), {}, "row 0 has length 0"),
    "length 1.1": ([1, 2, 4], np.eye(3, DIM) * 1.1, {}, "length 1.1"),
    "an unknown fact": ([1, 2, 4], None, {"colour": [1, 2, 3]}, "colour"),
    "too few cameras": ([1, 2, 4], None, {"camera": [1, 2]}, "camera"),
    "cameras as text": ([1, 2, 4], None, {"camera": ["1", "2", "3"]}, "camera"),
    "a time with a fraction": ([1, 2, 4], None, {"time": [0.5, 1, 2]}, "time"),
    "a time that is too large": ([1, 2, 4], None, {"time": np.array([0, 1, 2**63], np.uint64)}, "time"),
    "a set that is a number": ([1, 2, 4], None, {"set": [1, 2, 3]}, "set"),
    "no set": ([1, 2, 4], None, {"set": ["a", None, "b"]}, "set of row 1"),
    "a name that is not UTF-8": ([1, 2, 4], None, {"name": ["a", "b", "c\udcff"]}, "name of row 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_refused_and_leave_what_was(gallery, case):
    fill(gallery, 3)
    before = content(gallery)
    ids, vectors, facts, reason = WRONG[case]
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=reason) as error:
        gallery.add(ids, draw_rows(3) if vectors is None else vectors, facts)
    assert "\n" not in str(error.value)
    assert content(gallery) == before


def test_replace_puts_new_rows_in_the_place_of_known_ones(gallery):
    fill(gallery, 3)
    gallery.add([10, 4], draw_rows(2, seed=1), {"camera": [9, 8]}, replace=True)
    assert gallery.count() == 4
    batch = gallery.fetch([10, 4])
    np.testing.assert_array_equal(batch.vectors, draw_rows(2, seed=1))
    assert batch.facts["camera"].tolist() == [9, 8]
    assert batch.facts["name"].tolist() == ["", ""]  # nothing of the old row is left


def test_no_rows_are_no_fault(gallery):
    gallery.add([], np.zeros((0, DIM)), {})
    assert gallery.count() == gallery.remove([]) == gallery.assign([], identity=1) == 0
    assert gallery.fetch([]).vectors.shape == (0, DIM)
    assert list(gallery.scan()) == []
    found = gallery.candidates(draw_rows(2), 3)
    assert found.ids.tolist() == [[-1] * 3] * 2
    assert np.isneginf(found.scores).all()


# ----------------------------------------------------------------------------------------------------- remove, assign
def test_removed_rows_are_gone_and_their_ids_are_free(gallery):
    fill(gallery)
    assert gallery.remove([3, 10, 10, 999]) == 2
    assert gallery.count() == 10
    with pytest.raises(KeyError, match="10"):
        gallery.fetch([17, 10])
    assert 3 not in gallery.candidates(draw_rows(12), 12).ids
    gallery.add([10], draw_rows(1, seed=2), {})
    np.testing.assert_array_equal(gallery.fetch([10]).vectors, draw_rows(1, seed=2))


def test_rows_are_removed_by_their_facts(gallery):
    fill(gallery)
    assert gallery.remove(where=Where(cameras=[1], since=200)) == 3
    assert sorted(content(gallery)) == [3, 10, 17, 24, 38, 45, 59, 66, 80]
    assert gallery.remove(where=Where(sets=[])) == 0
    assert gallery.remove(where=Where()) == 9
    assert gallery.count() == 0


def test_old_rows_are_purged_and_those_without_a_time_stay(gallery):
    now = time.time_ns() // 10**6
    gallery.add(range(4), draw_rows(4), {"time": [now - 40 * 86_400_000, now - 20 * 86_400_000, -1, 0]})
    assert gallery.purge(30) == 2
    assert [row for batch in gallery.scan() for row in batch.ids] == [1, 2]
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="days; expected 0 or more"):
            gallery.purge(wrong)


@pytest.mark.parametrize("both", [{}, {"ids": [3], "where": Where()}])
def test_what_to_remove_is_said_in_one_way(gallery, both):
    fill(gallery, 3)
    with pytest.raises(ValueError, match="ids or where"):
        gallery.remove(**both)
    assert gallery.count() == 3


def test_rows_are_given_another_identity_and_keep_the_rest(gallery):
    vectors = fill(gallery)
    assert gallery.assign([3, 10, 999], identity=7, set="c") == 2
    batch = gallery.fetch([3, 10, 17])
    np.testing.assert_array_equal(batch.vectors, vectors[:3])
    assert batch.facts["identity"].tolist() == [7, 7, -1]
    assert batch.facts["set"].tolist() == ["c", "c", "a"]
    assert batch.facts["name"].tolist() == ["p0.png", "p1.png", "p2.png"]
    assert gallery.count(Where(identities=[7])) == 2


@pytest.mark.parametrize("facts", [{"colour": 1}, {"identity": "Ann"}, {"set": 3}, {"identity": 1.5}])
def test_a_wrong_fact_is_not_assigned(gallery, facts):
    fill(gallery, 3)
    before = content(gallery)
    with pytest.raises(ValueError, match=next(iter(facts))):
        gallery.assign([3], **facts)
    assert content(gallery) == before


# -------------------------------------------------------------------------------------------------- search, scan, count
CONDITIONS = [Where(), Where(cameras=[1]), Where(cameras=[0, 2]), Where(since=300), Where(until=300),
              Where(since=200, until=900), Where(sets=["b"]), Where(cameras=np.array([1, 2]), sets={"a"}),
              Where(identities=[4]), Where(identities=range(3, 6), until=700), Where(identities=[-1]),
              Where(cameras=[]), Where(sets=[], since=0), Where(cameras=[77]), Where(since=900, until=200)]


@pytest.mark.parametrize("where", CONDITIONS, ids=str)
def test_a_condition_means_the_same_everywhere(gallery, where):
    vectors = fill(gallery, identity=[-1, 4, 5, 4, -1, 2, 3, 4, 5, 9, 4, -1])
    whole = next(gallery.scan())
    kept = np.flatnonzero(where.mask(whole.facts))
    assert gallery.count(where) == len(kept)
    assert [number for part in gallery.scan(where) for number in part.ids.tolist()] == ids_of(12)[kept].tolist()
    queries = draw_rows(2, seed=5)
    found = gallery.candidates(queries, 12, where)
    for row, scores in enumerate(queries @ vectors[kept].T):
        assert found.ids[row, : len(kept)].tolist() == ids_of(12)[kept][np.argsort(-scores)].tolist()
        assert (found.ids[row, len(kept):] == -1).all()
        assert np.isneginf(found.scores[row, len(kept):]).all()


def test_candidates_are_the_best_within_the_error_and_ties_come_by_id(gallery):
    rows = np.repeat(draw_rows(8), 2, axis=0)
    gallery.add(np.arange(16)[::-1], rows, {})
    queries = draw_rows(3, seed=1)
    found = gallery.candidates(queries, 5)
    true = queries.astype(np.float64) @ rows[::-1].astype(np.float64).T
    assert found.complete
    assert found.ids.shape == found.scores.shape == (3, 5)
    assert found.ids.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert np.abs(found.scores - np.take_along_axis(true, found.ids, 1)).max() <= found.error <= 1e-4
    for row in range(3):
        assert found.ids[row, :4].tolist() == np.lexsort((np.arange(16), -true[row].round(9)))[:4].tolist()


@pytest.mark.parametrize("query", [np.full((1, DIM), np.nan), np.zeros((1, DIM)), np.eye(1, DIM + 1), np.eye(DIM)[0]])
def test_a_wrong_query_is_refused(gallery, query):
    fill(gallery, 3)
    with pytest.raises(ValueError, match="vectors"):
        gallery.candidates(query, 2)


def test_a_scan_gives_every_row_once_by_id_in_batches(gallery):
    vectors = fill(gallery)
    batches = list(gallery.scan(batch=5))
    assert [len(batch.ids) for batch in batches] == [5, 5, 2]
    assert np.concatenate([batch.ids for batch in batches]).tolist() == ids_of(12).tolist()
    np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in batches]), vectors)


# -------------------------------------------------------------------------------------------------------- open, close
def test_what_was_added_is_there_when_it_is_opened_again(gallery_engine, gallery_place):
    with open_engine(gallery_engine, gallery_place, model="abc") as gallery:
        vectors = fill(gallery)
        before = content(gallery)
    gallery.close()  # again
    with open_engine(gallery_engine, gallery_place) as gallery:
        assert content(gallery) == before
        assert (gallery.dim, gallery.model) == (DIM, "abc")
        np.testing.assert_array_equal(gallery.fetch(ids_of(12)).vectors, vectors)


def test_vectors_of_another_model_are_refused(gallery_engine, gallery_place):
    open_engine(gallery_engine, gallery_place, model="abc").close()
    with pytest.raises(ValueError, match=r"abc.*def"):
        open_engine(gallery_engine, gallery_place, model="def")
