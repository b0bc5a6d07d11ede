"""Distances in tiles against plain formulas, and the exact nearest neighbours."""
import numpy as np
import pytest
import torch

from processor.retrieval.distance import METRICS, distance, distance_blocks, l2_normalize, top_k
from processor.retrieval.search import rows

METRICS = sorted(METRICS)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(rows, "TILE", 8)


def features(count, dim=16, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal((count, dim)) * scale).astype(np.float32)


def slow_distance(query, gallery, metric):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((query[:, None] - gallery[None]) ** 2).sum(2))
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return 1 - query @ gallery.T


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("num_query", "num_gallery"), [(1, 1), (3, 30), (8, 8), (21, 19), (30, 2)])
def test_distance_is_the_plain_formula(small_tiles, metric, num_query, num_gallery):
    query, gallery = features(num_query, seed=1, scale=3), features(num_gallery, seed=2, scale=3)
    result = distance(torch.from_numpy(query), torch.from_numpy(gallery), metric)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, slow_distance(query, gallery, metric), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_feature_of_zeros_has_a_distance(metric):
    query, gallery = features(3), features(4, seed=1)
    query[1] = gallery[2] = 0
    result = distance(query, gallery, metric).numpy()
    expected = {"euclidean": np.linalg.norm(query[:, None] - gallery[None], axis=2), "cosine": np.ones((3, 4))}[metric]
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-6)
    np.testing.assert_allclose(result[:, 2], expected[:, 2], rtol=1e-6)


def test_normalising_on_the_way_gives_the_distances_of_normalised_features(small_tiles):
    query, gallery = features(13, scale=5), features(20, seed=4, scale=0.1)
    gallery[7] = 0
    blocks = distance_blocks(query, gallery, "euclidean", normalize=True)
    assert np.array_equal(np.concatenate([block for _, block in blocks]),
                          distance(l2_normalize(query), l2_normalize(gallery), "euclidean").numpy())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_equal_vector_is_at_distance_zero(scale):
    feat = features(20, dim=300, scale=scale)
    assert not distance(feat, feat.copy(), "euclidean").diagonal().any()
    assert distance(feat, feat.copy(), "cosine").diagonal().max() < 1e-6


def test_close_vectors_keep_their_small_distance():
    """|a|² + |b|² - 2ab alone would lose these distances in rounding."""
    feat = features(10, dim=300, scale=10)
    moved = feat + np.float32(1e-4)
    expected = slow_distance(feat, moved, "euclidean")
    np.testing.assert_allclose(distance(feat, moved, "euclidean").diagonal(), expected.diagonal(), rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_block_rows_changes_no_bit(small_tiles, metric):
    query, gallery = features(21), features(34, seed=3)
    whole = distance(query, gallery, metric).numpy()
    for block_rows in (1, 5, 8, 21, 100):
        blocks = list(distance_blocks(query, gallery, metric, block_rows))
        assert [rows.start for rows, _ in blocks] == list(range(0, 21, block_rows))
        assert all(len(block) == rows.stop - rows.start for rows, block in blocks)
        assert np.array_equal(np.concatenate([block for _, block in blocks]), whole)


def test_every_kind_of_array_gives_the_same_bits(small_tiles, tmp_path):
    query, gallery = features(13), features(20, seed=4)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    whole = distance(query, gallery, "euclidean")
    for same_query, same_gallery in [(torch.from_numpy(query), torch.from_numpy(gallery)), (query, mapped),
                                     (torch.from_numpy(query).requires_grad_(), mapped)]:
        assert torch.equal(distance(same_query, same_gallery, "euclidean"), whole)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_single_row_is_read_once_whatever_its_stride(kind):
    """One row is called contiguous even if its stride leads elsewhere; here the gallery begins behind it."""
    bank = kind(features(60))
    result = distance(bank[::9][:1], bank[1:5], "euclidean")
    np.testing.assert_allclose(result, slow_distance(features(60)[:1], features(60)[1:5], "euclidean"), rtol=2e-6)


def test_inputs_are_not_modified():
    query, gallery = features(5), features(6, seed=5)
    before = query.copy(), gallery.copy()
    distance(torch.from_numpy(query), torch.from_numpy(gallery), "cosine")
    l2_normalize(query)
    assert np.array_equal(query, before[0])
    assert np.array_equal(gallery, before[1])


def test_l2_normalize_gives_length_one_and_keeps_the_kind():
    feat = np.vstack([features(40, scale=7), np.zeros((1, 16), np.float32)])
    unit = l2_normalize(feat)
    assert isinstance(unit, np.ndarray)
    np.testing.assert_allclose(np.linalg.norm(unit[:-1], axis=1), 1, atol=1e-6)
    assert not unit[-1].any()
    assert torch.equal(l2_normalize(torch.from_numpy(feat)), torch.from_numpy(unit))


@pytest.mark.parametrize(("query", "gallery", "metric", "message"), [
    (features(2), features(3), "euclid", "unknown metric 'euclid'; choose from euclidean, cosine"),
    (features(2), features(3, dim=8), "cosine", "query 16, gallery 8"),
    (features(2)[0], features(3), "cosine", r"query: expected features \[N, D\]"),
    (features(2), features(3)[:0], "cosine", r"gallery: expected features \[N, D\]"),
    (features(2), np.where(np.arange(3)[:, None] == 1, np.nan, features(3)), "cosine", "gallery row 1"),
    (features(2) * np.float32(1e30), features(3), "euclidean", "query row 0"),
])
def test_wrong_features_are_refused_at_the_call(query, gallery, metric, message):
    with pytest.raises(ValueError, match=message):
        distance_blocks(query, gallery, metric)


def test_block_rows_must_be_positive():
    with pytest.raises(ValueError, match="block_rows=0"):
        distance_blocks(features(2), features(3), "cosine", 0)


@pytest.mark.parametrize("k", [1, 3, 29, 30, 99])
def test_top_k_is_a_stable_sort_cut_off(k):
    rng = np.random.default_rng(0)
    distmat = rng.integers(-3, 4, (150, 30)).astype(np.float32)  # full of ties
    distmat[distmat == 0] *= rng.choice([-1, 1], int((distmat == 0).sum()))  # 0.0 and -0.0 are equal
    blocks = [(rows, distmat[rows]) for rows in (slice(0, 70), slice(140, 150), slice(70, 140))]
    indices, distances = top_k(blocks, k, 150)
    expected = np.argsort(distmat, axis=1, kind="stable")[:, :k]
    assert indices.dtype == np.int64
    assert distances.dtype == np.float32
    assert np.array_equal(indices, expected)
    assert np.array_equal(distances, np.take_along_axis(distmat, expected, 1))


@pytest.mark.parametrize("order", ["any", "the nearest where one looks first", "the farthest there", "equal but few"])
@pytest.mark.parametrize("k", [1, 40, 300])
def test_the_nearest_of_long_rows_are_a_stable_sort_cut_off(order, k):
    distances = np.random.default_rng(0).random((20, 16 * 500), np.float32).round(3)
    if order == "equal but few":
        distances[:, 100:] = 2
    elif order != "any":
        places = np.arange(distances.shape[1]).reshape(-1, 16).T.ravel()  # every sixteenth, then the others
        distances[:, places] = np.sort(distances)[:, :: 1 if order.startswith("the nearest") else -1]
    indices, nearest = top_k([(slice(0, 20), distances)], k, 20)
    assert (indices == np.argsort(distances, axis=1, kind="stable")[:, :k]).all()
    assert (nearest == np.take_along_axis(distances, indices, 1)).all()


@pytest.mark.parametrize(("blocks", "k", "message"), [
    ([(slice(0, 2), np.zeros((2, 4)))], 1, "1 of 3 queries have no distances, the first is 2"),
    ([(slice(0, 3), np.zeros((3, 4))), (slice(1, 2), np.zeros((1, 4)))], 1, "query 1 came twice"),
    ([(slice(0, 4), np.zeros((4, 4)))], 1, "query 3 is out of range: there are 3"),
    ([(slice(0, 3), np.full((3, 4), np.nan))], 1, "query 0 hold NaN"),
    ([(slice(0, 3), np.zeros((3, 4)))], 0, "k=0"),
])
def test_top_k_refuses_incomplete_distances(blocks, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(blocks, k, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_distance_on_cuda_is_that_of_the_cpu():
    query, gallery = features(30), features(50, seed=6)
    result = distance(torch.from_numpy(query).cuda(), torch.from_numpy(gallery).cuda(), "euclidean")
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), distance(query, gallery, "euclidean"))
