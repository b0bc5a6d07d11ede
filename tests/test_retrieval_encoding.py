"""Sparse k-reciprocal codes and the Jaccard distance through their index, against the paper's on dense rows."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import people, slow_codes, slow_jaccard, slow_neighbours, slow_order, slow_set, squared_distances

from processor.retrieval.search import encoding
from processor.retrieval.search.encoding import ONE, Codes, JaccardIndex, encode, jaccard_distance
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.rows import PairDistances

CODE_TOLERANCE = 2.0**-30 * 2      # two roundings to whole numbers of 2**-30
JACCARD_TOLERANCE = 3e-7           # the same for each of a code's entries, and float32


@pytest.fixture
def small_pieces(monkeypatch):
    """Several pieces also of a few images."""
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 7)


def whole_numbers(num_query, num_gallery, levels=3, seed=0):
    """Distances are exact in float32, and most of them tie."""
    feat = np.random.default_rng(seed).integers(0, levels, (num_query + num_gallery, 3)).astype(np.float32)
    return feat[:num_query], feat[num_query:]


INPUTS = {
    "clustered": people(13, 40),
    "loose": people(13, 40, noise=10.0),
    "tight": people(13, 40, noise=0.05),
    "not unit": people(13, 40, noise=1.0, norms=9.0),
    "ties": whole_numbers(13, 40),
    "all equal": (np.ones((13, 4), np.float32), np.ones((40, 4), np.float32)),
    "few": people(1, 3),
    "two": people(1, 1),
}


def encoded(query, gallery, k1, k2):
    neighbours = slow_neighbours(squared_distances(query, gallery), k1 + 1)
    return encode(neighbours, PairDistances(FeatureRows(query, gallery), 16), k1, k2)


def dense(codes):
    """[N, N] float64."""
    out = np.zeros((len(codes), len(codes)))
    for row in range(len(codes)):
        part = slice(int(codes.starts[row]), int(codes.starts[row + 1]))
        out[row, codes.columns[part].numpy()] = codes.weights[part].numpy() / ONE
    return out


def members(codes, row):
    return codes.columns[int(codes.starts[row]) : int(codes.starts[row + 1])].tolist()


@pytest.mark.parametrize("k1", [1, 2, 3, 5, 6, 10, 13, 60])  # 1, 5 and 13: halves, which round to even
@pytest.mark.parametrize("kind", INPUTS)
def test_sets_are_those_of_the_paper(small_pieces, kind, k1):
    codes, order = encoded(*INPUTS[kind], k1, 1), slow_order(squared_distances(*INPUTS[kind]))
    assert [members(codes, row) for row in range(len(codes))] == [slow_set(order, row, k1) for row in range(len(order))]


def test_the_expansion_brings_members_that_no_list_has():
    """Else the sets above would not show it at work."""
    query, gallery = people(13, 40, noise=1.0)
    neighbours = slow_neighbours(squared_distances(query, gallery), 9)
    codes = encoded(query, gallery, 8, 1)
    assert any(set(members(codes, row)) - set(neighbours.indices[row].tolist()) for row in range(53))


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 2), (4, 1), (6, 3), (7, 8), (12, 4), (20, 21), (70, 60)])
@pytest.mark.parametrize("kind", INPUTS)
def test_codes_are_those_of_the_paper(small_pieces, kind, k1, k2):
    expected = slow_codes(squared_distances(*INPUTS[kind]), k1, k2)
    np.testing.assert_allclose(dense(encoded(*INPUTS[kind], k1, k2)), expected, rtol=0, atol=CODE_TOLERANCE)


@pytest.mark.parametrize("k2", [1, 4])
def test_the_weights_of_a_code_sum_to_one(k2):
    codes = encoded(*INPUTS["clustered"], 9, k2)
    sums = dense(codes).sum(1)
    assert np.abs(sums - 1).max() <= int(codes.starts.diff().max()) / ONE  # half a unit for each entry, twice
    assert (codes.weights > 0).all()


def test_columns_ascend_and_come_once():
    codes = encoded(*INPUTS["ties"], 9, 4)
    for row in range(len(codes)):
        assert members(codes, row) == sorted(set(members(codes, row)))


def test_the_pieces_of_rows_change_no_bit(monkeypatch):
    whole = encoded(*INPUTS["loose"], 9, 4)
    for rows in (1, 5, 52, 53):
        monkeypatch.setattr(encoding, "ROWS_AT_ONCE", rows)
        result = encoded(*INPUTS["loose"], 9, 4)
        assert torch.equal(result.starts, whole.starts)
        assert torch.equal(result.columns, whole.columns)
        assert torch.equal(result.weights, whole.weights)


def test_longer_lists_than_k1_needs_change_nothing():
    query, gallery = INPUTS["loose"]
    pairs = PairDistances(FeatureRows(query, gallery), 16)
    lists = slow_neighbours(squared_distances(query, gallery), 30)
    assert np.array_equal(dense(encode(lists, pairs, 6, 3)), dense(encoded(query, gallery, 6, 3)))


def test_entries_of_rows_come_in_the_order_asked_for():
    codes = Codes(torch.tensor([0, 2, 2, 5]), torch.tensor([4, 6, 1, 2, 3]), torch.arange(5))
    which, position = codes.entries(torch.tensor([2, 0, 1, 2]))
    assert which.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert position.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


# ------------------------------------------------------------------ Jaccard
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (6, 3), (20, 21)])
@pytest.mark.parametrize("kind", INPUTS)
def test_jaccard_through_the_index_is_that_of_dense_codes(kind, k1, k2):
    query, gallery = INPUTS[kind]
    codes, num_query = encoded(query, gallery, k1, k2), len(query)
    result = jaccard_distance(JaccardIndex(codes, num_query, 4).shared(slice(0, num_query)))
    assert result.dtype == torch.float32
    assert result.shape == (num_query, len(gallery))
    np.testing.assert_allclose(result, slow_jaccard(dense(codes), num_query), rtol=0, atol=JACCARD_TOLERANCE)


def test_queries_at_a_time_change_no_bit():
    codes = encoded(*INPUTS["loose"], 9, 4)
    whole = JaccardIndex(codes, 13, 100).shared(slice(0, 13))
    assert whole.dtype == torch.int32
    for at_once in (1, 2, 5, 13):
        index = JaccardIndex(codes, 13, at_once)
        assert torch.equal(torch.cat([index.shared(slice(0, 4)), index.shared(slice(4, 13))]), whole)


def test_codes_that_share_nothing_are_at_distance_one_and_equal_ones_at_zero():
    codes = Codes(torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1, 0, 1, 2, 3], dtype=torch.int32),
                  torch.tensor([ONE // 2] * 6, dtype=torch.int32))
    assert jaccard_distance(JaccardIndex(codes, 1, 8).shared(slice(0, 1))).tolist() == [[0, 1]]


def test_a_sum_rounded_to_above_one_is_no_negative_distance():
    assert jaccard_distance(torch.tensor([ONE + 40, ONE, 0], dtype=torch.int32)).tolist() == [0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(num_query=st.integers(1, 8), num_gallery=st.integers(1, 25), k1=st.integers(1, 30), data=st.data(),
       levels=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_any_codes_and_their_jaccard_distance_are_those_of_the_paper(num_query, num_gallery, k1, data, levels, seed):
    k2 = data.draw(st.integers(1, k1 + 1))
    query, gallery = whole_numbers(num_query, num_gallery, levels, seed)
    codes, expected = encoded(query, gallery, k1, k2), slow_codes(squared_distances(query, gallery), k1, k2)
    np.testing.assert_allclose(dense(codes), expected, rtol=0, atol=CODE_TOLERANCE)
    result = jaccard_distance(JaccardIndex(codes, num_query, 3).shared(slice(0, num_query)))
    np.testing.assert_allclose(result, slow_jaccard(expected, num_query), rtol=0, atol=JACCARD_TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_codes_and_their_jaccard_distance_on_cuda_are_those_of_the_cpu():
    query, gallery = INPUTS["ties"]
    expected = encoded(query, gallery, 9, 4)
    lists = slow_neighbours(squared_distances(query, gallery), 10)
    lists = type(lists)(lists.indices.cuda(), lists.distances.cuda(), lists.farthest.cuda())
    result = encode(lists, PairDistances(FeatureRows(query, gallery, "cuda"), 1024), 9, 4)
    assert torch.equal(result.columns.cpu(), expected.columns)
    np.testing.assert_allclose(result.weights.cpu(), expected.weights, rtol=0, atol=2)
    shared = JaccardIndex(result, 13, 64).shared(slice(0, 13)).cpu()
    np.testing.assert_allclose(shared, JaccardIndex(expected, 13, 64).shared(slice(0, 13)), rtol=0, atol=200)
