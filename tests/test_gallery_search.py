"""A gallery's search: the same exact answer from any engine, with codes and without, and a proof that it is exact."""
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from galleries import open_engine, search_in_small_pieces, unit

from processor.gallery import codes, nearest, open_gallery, search, segments
from processor.gallery.codes import Basis, CodedRows, QueryCodes, product
from processor.gallery.contract import Batch, Candidates, Where
from processor.retrieval.reranking import re_ranking
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.rows import PairDistances

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Codes, chunks and files of few rows."""
    search_in_small_pieces(monkeypatch)


def people(count: int, dim: int = 16, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    """Rows around centres in at most 40 directions, with a little noise in all."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((20, min(dim, 40))) @ np.random.default_rng(8).standard_normal(
        (min(dim, 40), dim))
    rows = centres[rng.integers(20, size=count)]
    return unit(rows + noise * dim**0.5 * rng.standard_normal((count, 1)) * rows[::-1] / dim**0.5
                + 0.05 * rng.standard_normal((count, dim)))


def slow_search(rows, ids, queries, k):
    """All rows, pair after pair, sorted by distance and then by id."""
    pairs = PairDistances(FeatureRows(queries, rows), 7)
    left, right = np.divmod(np.arange(len(queries) * len(rows)), len(rows))
    squared = pairs(torch.from_numpy(left), torch.from_numpy(right) + len(queries)).numpy().reshape(len(queries), -1)
    order = np.stack([np.lexsort((ids, row)) for row in squared])[:, :k]
    return ids[order], 1 - np.take_along_axis(squared, order, 1) / 2


def check(found, expected) -> None:
    np.testing.assert_array_equal(found.ids, expected[0])
    np.testing.assert_array_equal(found.similarities.view(np.int32), expected[1].view(np.int32))
    assert found.certified.all()


# -------------------------------------------------------------------------------------------------------------- search
def test_the_answer_is_the_slow_one_to_the_bit_from_any_engine(gallery_engine, gallery_place):
    rows, queries, ids = people(300), people(5, seed=1), np.random.default_rng(2).permutation(300) * 5
    rows[40:90] = rows[40]  # more equal rows than are fetched at first: they come by id
    with open_engine(gallery_engine, gallery_place) as gallery:
        gallery.add(ids, rows, {"camera": np.arange(300) % 4})
        for k in (1, 9, 300):
            check(search(gallery, np.concatenate([queries, rows[40:41]]), k),
                  slow_search(rows, ids, np.concatenate([queries, rows[40:41]]), k))
        kept = np.arange(300) % 4 == 2
        check(search(gallery, queries, 9, Where(cameras=[2])), slow_search(rows[kept], ids[kept], queries, 9))


@pytest.mark.parametrize("vectors", ["float32", "float16"])
@pytest.mark.parametrize("dim", [8, 96, 130])
def test_codes_change_no_bit_of_an_answer(tmp_path, dim, vectors, monkeypatch):
    rows, queries = people(920, dim), people(20, dim, seed=1)
    with open_gallery(tmp_path / "g", dim, vectors=vectors) as gallery:
        gallery.segment_rows = 400
        for ids in np.split(np.arange(920), range(90, 910, 90)):  # the last 20 wait for their code
            gallery.add(ids, rows[ids], {"camera": ids % 10})
        assert [len(live.segment.coded) for live in gallery.live()] == [400, 400, 100]
        gallery.remove(np.arange(0, 920, 7))
        ids = np.setdiff1d(np.arange(920), np.arange(0, 920, 7))
        stored = np.concatenate([part.vectors for part in gallery.scan()])
        by_code, chunks = nearest._Search._by_code, []
        monkeypatch.setattr(nearest._Search, "_by_code", lambda *chunk: chunks.append(by_code(*chunk)) or chunks[-1])
        for where, kept in ((None, ids >= 0), (Where(cameras=[3]), ids % 10 == 3),
                            (Where(cameras=range(1, 10)), ids % 10 > 0)):
            for block in (queries, queries[:1]):
                check(search(gallery, block, 12, where), slow_search(stored[kept], ids[kept], block, 12))
        assert sum(hits is not None for hits in chunks) >= 12  # codes were of use


@pytest.mark.parametrize("coded", [True, False], ids=["codes", "vectors"])
def test_a_guess_from_a_sample_changes_no_answer_even_if_it_is_wrong(tmp_path, monkeypatch, coded):
    monkeypatch.setattr(nearest, "SAMPLE", 4)
    if not coded:
        monkeypatch.setattr(segments, "CODE_ROWS", 10**6)
    rows, queries = people(900, 32), people(3, 32, seed=1)
    # All that is near the first query is in the sample: the guess is too high for it, and it is searched once more.
    order = np.argsort(-(rows @ queries[0]))
    rows[np.concatenate([np.arange(0, 900, 4), np.setdiff1d(np.arange(900), np.arange(0, 900, 4))])] = rows[order]
    guess, guesses = nearest._Search.guess, []
    monkeypatch.setattr(nearest._Search, "guess", lambda search: guesses.append(guess(search)) or guesses[-1])
    with open_gallery(tmp_path / "g", 32) as gallery:
        gallery.segment_rows = 400
        gallery.add(np.arange(900), rows, {"camera": np.arange(900) % 10})
        for where, kept in ((None, np.arange(900)), (Where(cameras=range(8)), np.flatnonzero(np.arange(900) % 10 < 8))):
            expected = slow_search(rows[kept], kept, queries, 60)
            ids, squared = nearest.best_rows(gallery.live(where), queries, 60)
            np.testing.assert_array_equal(ids, expected[0])
            np.testing.assert_array_equal(1 - squared / 2, expected[1])
            assert (guesses[-1] > expected[1][:, -1]).tolist() == [True, False, False]
        check(search(gallery, queries, 9, Where(cameras=[3])),
              slow_search(rows[3::10], np.arange(3, 900, 10), queries, 9))
        assert np.isneginf(guesses[-1]).all()  # few rows cost little


def test_an_answer_has_the_same_bits_on_any_threads_with_any_product(tmp_path, monkeypatch):
    rows, queries = people(600, 64), people(3, 64, seed=1)
    with open_gallery(tmp_path / "g", 64) as gallery:
        gallery.add(np.arange(600), rows, {})
        expected = slow_search(rows, np.arange(600), queries, 20)
        for kernel in (codes._int8, codes._float32):
            monkeypatch.setattr(codes, "_kernel", lambda *_, kernel=kernel: kernel)
            for threads in (1, 2, 5):
                monkeypatch.setattr(nearest, "thread_count", lambda device, threads=threads: threads)
                check(search(gallery, queries, 20), expected)


class Blurred:
    """An engine with scores that are wrong by as much as it admits."""

    def __init__(self, rows: np.ndarray, error: float, complete: bool = True):
        self.dim, self.rows, self.error, self.complete, self.calls = rows.shape[1], rows, error, complete, 0

    def candidates(self, queries, n, where=None, exact=True):
        self.calls += 1
        true = queries.astype(np.float64) @ self.rows.T
        scores = true + self.error * np.random.default_rng(self.calls).uniform(-1, 1, true.shape)
        order = np.argsort(-scores, 1)[:, :n]
        filled = np.pad(order, ((0, 0), (0, n - order.shape[1])), constant_values=-1)
        return Candidates(filled, np.take_along_axis(scores, order, 1), self.error, self.complete)

    def fetch(self, ids, with_facts=True):
        return Batch(ids, self.rows[ids], {})


@pytest.mark.parametrize("error", [1e-5, 0.1, 0.7])
def test_an_engine_that_errs_is_asked_until_the_answer_is_proven(error):
    rows, queries = people(500), people(4, seed=1)
    gallery = Blurred(rows, error)
    check(search(gallery, queries, 6), slow_search(rows, np.arange(500), queries, 6))
    assert (gallery.calls > 1) == (error > 0.5)


def test_rows_are_added_without_torch(tmp_path):
    """Importing it takes seconds; small galleries have no codes."""
    script = ("import sys, numpy; from processor.gallery import open_gallery; g = open_gallery(sys.argv[1], 4); "
              "g.add([1], numpy.eye(1, 4), {}); g.remove([1], erase=True); assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", script, tmp_path / "g"], check=True, cwd=ROOT)


def test_an_approximate_answer_is_not_certified():
    found = search(Blurred(people(100), 1e-6, complete=False), people(2, seed=1), 3, exact=False)
    assert not found.certified.any()
    assert (found.ids >= 0).all()


def test_a_row_that_is_removed_before_it_is_fetched_is_no_error(monkeypatch):
    rows, doomed = people(100), [64]
    gallery, fetch = Blurred(rows, 1e-6), Blurred.fetch

    def fetch_or_miss(self, ids, with_facts=True):
        if doomed:
            self.rows[doomed.pop()] *= -1  # far away: for this engine as good as removed
            raise KeyError("id 64 is not in the gallery")
        return fetch(self, ids)

    monkeypatch.setattr(Blurred, "fetch", fetch_or_miss)
    check(search(gallery, rows[:1], 5), slow_search(gallery.rows, np.arange(100), rows[:1], 5))
    assert gallery.calls == 2
    monkeypatch.setattr(Blurred, "fetch", lambda *_, **__: {}["9"])
    with pytest.raises(KeyError):
        search(gallery, rows[:1], 5)


def test_a_row_that_is_erased_while_it_is_searched_is_not_found(tmp_path, monkeypatch):
    rows, best = people(100), nearest._Search._best
    with open_gallery(tmp_path / "g", 16) as gallery:
        gallery.add(np.arange(100), rows, {})
        doomed = search(gallery, rows[:1], 5).ids[0, 1:2].tolist()
        left = np.setdiff1d(np.arange(100), doomed)

        def erase_and_go_on(self, query, hits):
            if doomed:
                gallery.remove([doomed.pop()], erase=True)
            return best(self, query, hits)

        monkeypatch.setattr(nearest._Search, "_best", erase_and_go_on)
        check(search(gallery, rows[:1], 5), slow_search(rows[left], left, rows[:1], 5))


def test_a_gallery_with_few_rows_or_none_is_searched(tmp_path):
    with open_gallery(tmp_path / "g", 16) as gallery:
        for re_rank in (False, True):
            found = search(gallery, people(2), 3, re_rank=re_rank)
            assert found.ids.tolist() == [[-1] * 3] * 2
            assert np.isneginf(found.similarities).all()
            assert found.certified.all()
        gallery.add([7], people(1), {})
        for re_rank in (False, True):
            assert search(gallery, people(2), 3, re_rank=re_rank).ids.tolist() == [[7, -1, -1]] * 2
        assert search(gallery, people(0), 3).ids.shape == (0, 3)


@pytest.mark.parametrize(("options", "reason"), [({"k": 0}, "k=0"), ({"k": 1, "k1": 0}, "k1=0"),
                                                 ({"k": 1, "re_rank": True, "k2": 99}, "k2=99")])
def test_a_search_without_meaning_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        search(Blurred(people(9), 0), people(1), **options)


# ---------------------------------------------------------------------------------------------------------- re-ranking
@pytest.mark.parametrize("where", [None, Where(cameras=[0])], ids=["all", "a camera"])
def test_re_ranking_the_whole_gallery_is_dense_re_ranking(tmp_path, where):
    rows, queries = people(240, noise=0.9), people(4, noise=0.9, seed=1)
    rows[5] = rows[6]
    kept = np.arange(240) if where is None else np.arange(0, 240, 2)
    with open_gallery(tmp_path / "g", 16) as gallery:
        gallery.add(np.arange(240) * 3, rows, {"camera": np.arange(240) % 2})
        found = search(gallery, queries, len(kept), where, re_rank=True, k1=8, k2=4)
        for row, query in enumerate(queries):
            dense = re_ranking(query[None], rows[kept], k1=8, k2=4, lambda_value=0.3)[0]
            places = np.searchsorted(kept, found.ids[row] // 3)
            assert sorted(places) == list(range(len(kept)))
            assert np.abs(np.sort(dense) - dense[places]).max() < 2e-6  # in the same order, up to float32's rounding
        assert found.certified.all()
        assert not np.array_equal(found.ids, search(gallery, queries, len(kept), where).ids)


def test_a_re_ranked_shortlist_puts_the_reciprocal_neighbours_first(tmp_path):
    """The example of `re_ranking`: the second row is as near, but the query is not among its nearest."""
    angles = np.array([1.0, -1.0, -1.5, -1.2, 90, 100, 110, 120]) / 50
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    with open_gallery(tmp_path / "g", 2) as gallery:
        gallery.add(np.arange(8), rows, {})
        query = np.array([[1, 0]], np.float32)
        assert search(gallery, query, 2).ids.tolist() == [[0, 1]]
        found = search(gallery, query, 3, re_rank=True, k1=1, k2=1)
        assert found.ids.tolist() == [[0, 1, 3]]
        assert found.similarities[0, 0] == pytest.approx(np.cos(0.02), abs=1e-6)


# --------------------------------------------------------------------------------------------------------------- codes
NASTY = {
    "like the sample": lambda rng, dim: people(200, dim, seed=5),
    "from everywhere": lambda rng, dim: unit(rng.standard_normal((200, dim))),
    "along the axes": lambda rng, dim: np.eye(200, dim, dtype=np.float32)[: dim],
    "with an outlier": lambda rng, dim: unit(rng.standard_normal((200, dim)) + 50 * np.eye(200, dim)),
    "of half the length": lambda rng, dim: people(200, dim, seed=6) / 2,
    "erased": lambda rng, dim: np.zeros((3, dim), np.float32),
}


@pytest.mark.parametrize("dim", [8, 96, 300])
@pytest.mark.parametrize("kind", NASTY)
def test_no_dot_product_is_farther_from_its_code_than_the_bound(kind, dim):
    rng = np.random.default_rng(0)
    basis = Basis.of(people(300, dim))
    rows = NASTY[kind](rng, dim)
    ints, errors = basis.encode(rows)
    for queries in (people(20, dim, seed=7), unit(rng.standard_normal((20, dim))), rows[:20] if rows.any() else
                    people(1, dim)):
        coded = QueryCodes(basis, unit(queries))
        values = product(coded.ints, ints) * coded.unit[:, None]
        away = np.abs(values - unit(queries).astype(np.float64) @ rows.astype(np.float64).T)
        for row in range(len(away)):
            assert (away[row] <= coded.errors(errors, row)).all()


def test_few_directions_are_coded_where_few_matter():
    assert Basis.of(people(300, 300)).matrix.shape == (300, 64)
    assert Basis.of(unit(np.random.default_rng(0).standard_normal((900, 96)))).matrix.shape == (96, 96)


def test_a_product_that_overflows_is_not_taken(monkeypatch):
    def saturating(left, right):
        return (left.int() @ right.int().T).clamp(-2**15, 2**15 - 1)

    monkeypatch.setattr(codes, "_int8", saturating)
    assert codes._kernel.__wrapped__(True, 64) is codes._float32
    def missing(left, right):
        raise NotImplementedError("not made for this processor")

    monkeypatch.setattr(codes, "_int8", missing)
    assert codes._kernel.__wrapped__(False, 64) is codes._float32


def coded_gallery(folder, count: int = 200):
    gallery = open_gallery(folder, 16)
    gallery.add(np.arange(count), people(count), {})
    return gallery


def test_codes_that_a_killed_writer_has_left_uncounted_are_made_again(tmp_path):
    with coded_gallery(tmp_path / "g") as gallery:
        path = gallery.live()[0].segment.codes_path
        data = bytearray(path.read_bytes())
        start = CodedRows(path, 16).starts[2]
        with open(path, "r+b") as file:  # the count is written last
            file.seek(codes.HEADER.fields["count"][1])
            file.write(np.int64(100).tobytes())
            file.seek(start + 100 * 16)
            file.write(bytes(100 * 16))
        assert len(CodedRows(path, 16)) == 100
        check(search(gallery, people(3, seed=1), 9), slow_search(people(200), np.arange(200), people(3, seed=1), 9))
        gallery.live()[0].segment.code(200)
        assert path.read_bytes() == data


def test_damaged_codes_are_left_aside_and_made_again(tmp_path, caplog):
    with coded_gallery(tmp_path / "g") as gallery:
        path = gallery.live()[0].segment.codes_path
    for damage in (b"", b"rubbish" * 100, path.read_bytes()[:-5]):
        path.unlink()
        path.write_bytes(damage)
        with open_gallery(tmp_path / "g", 16) as gallery, caplog.at_level(logging.WARNING):
            queries = people(3, seed=1)
            check(search(gallery, queries, 9), slow_search(people(200), np.arange(200), queries, 9))
            assert path.name in caplog.text
            gallery.add([5], people(1, seed=3), {}, replace=True)
            gallery.remove([5])
            gallery.add([5], people(200)[5:6], {})
            assert len(gallery.live()[0].segment.coded) >= 200


def test_verify_finds_codes_that_do_not_fit_their_vectors(tmp_path):
    with coded_gallery(tmp_path / "g") as gallery:
        gallery.remove([77], erase=True)
        assert gallery.verify() == []
        path, start = gallery.live()[0].segment.codes_path, gallery.live()[0].segment.coded.starts[2]
        with open(path, "r+b") as file:
            file.seek(start + 150 * 16)
            file.write(bytes(16))
        assert len(faults := gallery.verify()) == 1
        assert "codes-000001.int8: damaged: the code of row 150" in faults[0]


def test_an_erased_row_leaves_no_code(tmp_path):
    with coded_gallery(tmp_path / "g") as gallery:
        coded = gallery.live()[0].segment.coded
        assert coded.codes.any(1)[:200].all()
        assert coded.errors[:, :200].all()
        gallery.remove([30], erase=True)
        assert np.flatnonzero(~coded.codes.any(1)[:200]).tolist() == [30]
        assert np.flatnonzero(~coded.errors[:, :200].any(0)).tolist() == [30]
        kept = np.delete(np.arange(200), 30)
        check(search(gallery, people(3, seed=1), 9), slow_search(people(200)[kept], kept, people(3, seed=1), 9))


def test_a_reader_of_an_earlier_commit_does_not_mind_codes_of_later_rows(tmp_path):
    queries = people(3, seed=1)
    with coded_gallery(tmp_path / "g", 100) as gallery, open_gallery(tmp_path / "g") as reader:
        lives = reader.live()
        gallery.add(np.arange(100, 200), people(200)[100:], {})
        assert len(lives[0].segment.coded) == 200
        np.testing.assert_array_equal(nearest.best_rows(lives, queries, 9)[0],
                                      slow_search(people(100), np.arange(100), queries, 9)[0])


def test_compacting_makes_new_codes_and_leaves_no_old_ones(tmp_path):
    with coded_gallery(tmp_path / "g") as gallery:
        gallery.remove(np.arange(50))
        gallery.compact()
        assert [len(live.segment.coded) for live in gallery.live()] == [150]
        assert len(list((tmp_path / "g").glob("codes-*"))) == 1


def test_a_disk_that_holds_no_codes_still_takes_the_rows(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(codes, "make_codes", full)
    with coded_gallery(tmp_path / "g") as gallery:
        assert gallery.count() == 200
        assert "No space left" in caplog.text
        assert search(gallery, people(1), 3).certified.all()


def test_the_number_of_searched_queries_changes_no_bit(tmp_path):
    queries = people(70, seed=1)
    with coded_gallery(tmp_path / "g") as gallery:
        whole = search(gallery, queries, 9)
        single = [search(gallery, queries[row : row + 1], 9) for row in range(0, 70, 23)]
        np.testing.assert_array_equal(whole.ids[::23], np.concatenate([found.ids for found in single]))
        np.testing.assert_array_equal(whole.similarities[::23],
                                      np.concatenate([found.similarities for found in single]))
