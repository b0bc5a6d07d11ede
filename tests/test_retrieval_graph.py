"""Near pairs of one set, against the paper's formulas on dense matrices."""
import numpy as np
import pytest
from retrieval_oracle import people, slow_codes, slow_farthest, slow_jaccard, squared_distances

from processor.retrieval.jaccard_graph import jaccard_graph, re_ranked_among_queries
from processor.retrieval.reranking import ReRanker
from processor.retrieval.search import budget

TOLERANCE = 1e-6


def table(num_query=9, num_gallery=38, **options):
    query, gallery = people(num_query, num_gallery, **options)
    return np.concatenate([query, gallery])


def slow_graph(feats, k1, k2):
    """[N, N] Jaccard distances of every image to every other."""
    squared = squared_distances(feats[:1], feats[1:])
    codes = slow_codes(squared, k1, k2)
    return slow_jaccard(np.concatenate([codes, codes]), len(codes))


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (4, 2), (10, 3), (60, 6)])
@pytest.mark.parametrize("noise", [0.3, 1.0, 10.0])
def test_the_graph_has_all_pairs_below_one_and_no_other(k1, k2, noise):
    feats = table(noise=noise)
    expected = slow_graph(feats, k1, k2)
    graph = jaccard_graph(feats, k1, k2)
    assert graph.shape == (47, 47)
    there = np.zeros(graph.shape, bool)
    row, column = graph.tocoo().row, graph.tocoo().col
    there[row, column] = True
    far = expected > 1 - TOLERANCE
    np.fill_diagonal(far, True)
    assert np.array_equal(there, ~far)
    np.testing.assert_allclose(graph.data, expected[row, column], atol=TOLERANCE)


def test_a_radius_keeps_the_near_pairs_with_the_same_bits():
    whole = jaccard_graph(table(), 10, 3)
    assert (whole != whole.T).nnz == 0
    radius = float(np.median(whole.data))
    part = _entries(jaccard_graph(table(), 10, 3, radius))
    assert part == {pair: distance for pair, distance in _entries(whole).items() if distance <= radius}
    assert max(part.values()) == radius  # the radius itself is near
    assert 0 < len(part) < whole.nnz


def test_equal_images_are_pairs_at_distance_0():
    feats = np.repeat(table(4, 6), 2, axis=0)
    pairs = _entries(jaccard_graph(feats, 5, 1))
    assert all(pairs[i, i ^ 1] == 0 for i in range(20))
    assert all(row != column for row, column in pairs)


def _entries(graph):
    """{(row, column): distance}, explicit zeros as well."""
    entries = graph.tocoo()
    pairs = zip(entries.row.tolist(), entries.col.tolist(), strict=True)
    return dict(zip(pairs, entries.data.tolist(), strict=True))


def test_the_rows_at_a_time_change_no_bit(monkeypatch):
    whole = jaccard_graph(table(), 10, 3)
    monkeypatch.setitem(budget.QUERIES, "cpu", 7)
    pieces = jaccard_graph(table(), 10, 3)
    assert all(np.array_equal(getattr(whole, part), getattr(pieces, part)) for part in ("indptr", "indices", "data"))


def test_one_image_has_no_graph():
    with pytest.raises(ValueError, match="at least two"):
        jaccard_graph(table()[:1], 4, 2)


@pytest.mark.parametrize("lambda_value", [0.0, 0.4, 1.0])
def test_queries_among_themselves_are_ranked_by_the_neighbours_of_all(lambda_value):
    query, gallery = people(9, 38)
    squared = squared_distances(query, gallery)
    original = (squared / slow_farthest(squared)[:, None])[:9, :9]
    jaccard = slow_graph(np.concatenate([query, gallery]), 6, 3)[:9, :9]
    expected = lambda_value * original + (1 - lambda_value) * jaccard
    ranker = ReRanker(query, gallery, 6)
    (rows, result), = re_ranked_among_queries(ranker, query, 6, 3, lambda_value)
    assert rows == slice(0, 9)
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)
