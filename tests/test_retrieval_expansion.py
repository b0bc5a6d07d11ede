"""Query expansion and database augmentation against a slow loop, and what they promise about ties and memory."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval import expansion
from processor.retrieval.distance import distance, distance_blocks, l2_normalize
from processor.retrieval.expansion import expand
from processor.retrieval.metrics import evaluate_rank


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(expansion, "ROWS", 8)


def features(count, dim=16, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal((count, dim)) * scale).astype(np.float32)


def slow_mean(feat, others, alpha):
    total = feat.astype(np.float64)
    for other in others.astype(np.float64):
        total = total + (max(0.0, feat @ other) ** alpha if alpha else 1.0) * other
    return total / np.linalg.norm(total)


def slow_expand(feats, gallery, neighbours, alpha):
    """One image after the other, in the order of the float32 distances; feats None: the gallery's images."""
    gallery = l2_normalize(gallery)
    feats, is_gallery = (gallery, True) if feats is None else (l2_normalize(feats), False)
    means = []
    for i, order in enumerate(np.argsort(distance(feats, gallery, "euclidean").numpy(), axis=1, kind="stable")):
        others = [j for j in order if not is_gallery or j != i][:neighbours]
        means.append(slow_mean(feats[i], gallery[others], alpha))
    return np.array(means)


@settings(max_examples=40, deadline=None)
@given(num_query=st.integers(1, 20), num_gallery=st.integers(1, 30), qe=st.integers(1, 40), dba=st.integers(1, 40),
       alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]), seed=st.integers(0, 999), duplicates=st.booleans())
def test_expansion_is_the_slow_loop(num_query, num_gallery, qe, dba, alpha, seed, duplicates):
    query, gallery = features(num_query, seed=seed), features(num_gallery, seed=seed + 1000)
    if duplicates:
        gallery[num_gallery // 2:] = gallery[: num_gallery - num_gallery // 2]
    expanded, augmented = expand(query, gallery, qe, dba, alpha)
    assert expanded.dtype == augmented.dtype == np.float32
    np.testing.assert_allclose(augmented, slow_expand(None, gallery, dba, alpha), atol=2e-6)
    np.testing.assert_allclose(expanded, slow_expand(query, augmented, qe, alpha), atol=2e-6)
    np.testing.assert_allclose(expand(query, gallery, qe, 0, alpha)[0], slow_expand(query, gallery, qe, alpha),
                               atol=2e-6)


def test_zero_neighbours_give_the_inputs_themselves():
    query, gallery = features(3), features(20, seed=1)
    assert [a is b for a, b in zip(expand(query, gallery, 0, 0, 3.0), (query, gallery), strict=True)] == [True, True]
    assert expand(query, gallery, 2, 0, 0.0)[1] is gallery
    assert expand(query, gallery, 0, 2, 0.0)[0] is query


def test_equal_distances_go_by_index():
    """Orthogonal images are all at the same distance; the neighbours come from two blocks of the gallery."""
    gallery = np.eye(20, dtype=np.float32)
    query = np.eye(1, 20, k=19, dtype=np.float32)
    _, augmented = expand(query, gallery, 0, 3, 0.0)
    for image, row in enumerate(augmented):
        others = [other for other in range(20) if other != image][:3]
        assert np.flatnonzero(row).tolist() == sorted([image, *others])
    expanded, _ = expand(query, gallery, 3, 0, 0.0)
    assert np.flatnonzero(expanded[0]).tolist() == [0, 1, 19]  # its nearest is its equal, which counts twice
    np.testing.assert_allclose(expanded[0, [0, 1, 19]], np.array([1, 1, 2]) / np.sqrt(6), atol=1e-6)


def test_an_image_is_counted_once_if_its_duplicates_crowd_it_out():
    """Of ten equal images the last is not among its first three by index; it counts all the same, and once."""
    gallery = np.zeros((11, 4), np.float32)
    gallery[:10, 0], gallery[10, 1] = 1, 1
    _, augmented = expand(gallery[:1], gallery, 0, 2, 0.0)
    np.testing.assert_allclose(augmented[:10], gallery[:10], atol=1e-7)
    np.testing.assert_allclose(augmented[10], np.array([2, 1, 0, 0]) / np.sqrt(5), atol=1e-6)


def test_the_queries_are_expanded_over_the_augmented_gallery():
    gallery = np.array([[1, 0, 0], [0.8, 0.6, 0]], np.float32)
    query = np.array([[1, 0, 0.1]], np.float32)
    expanded, augmented = expand(query, gallery, 1, 1, 0.0)
    mean = np.array([1.8, 0.6, 0]) / np.linalg.norm([1.8, 0.6])
    np.testing.assert_allclose(augmented, [mean, mean], atol=1e-6)
    total = query[0] / np.linalg.norm(query[0]) + mean
    np.testing.assert_allclose(expanded[0], total / np.linalg.norm(total), atol=1e-6)


def test_opposite_neighbours_weigh_nothing_with_alpha_and_cancel_without():
    query, gallery = np.array([[1, 0]], np.float32), np.array([[-1, 0]], np.float32)
    assert expand(query, gallery, 1, 0, 0.5)[0].tolist() == [[1, 0]]
    assert expand(query, gallery, 1, 0, 0.0)[0].tolist() == [[0, 0]]


def test_alpha_raises_cosines_to_its_power():
    query, gallery = np.array([[2, 0]], np.float32), np.array([[3, 4]], np.float32)  # cos = 0.6
    total = np.array([1, 0]) + 0.6**2 * np.array([0.6, 0.8])
    np.testing.assert_allclose(expand(query, gallery, 1, 0, 2.0)[0][0], total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_every_kind_of_array_gives_the_same_bits(tmp_path, alpha):
    query, gallery = features(9), features(30, seed=4)
    expected = expand(query, gallery, 4, 3, alpha)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    for other in (mapped, torch.from_numpy(gallery).requires_grad_()):
        result = expand(torch.from_numpy(query), other, 4, 3, alpha)
        assert [type(part) for part in result] == [torch.Tensor, np.ndarray if other is mapped else torch.Tensor]
        assert not any(part.requires_grad for part in result if isinstance(part, torch.Tensor))
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
    assert np.array_equal(mapped, gallery)


def test_no_block_of_distances_is_longer_than_promised(monkeypatch):
    seen = []

    def watched(query, gallery, metric):
        for rows, block in distance_blocks(query, gallery, metric):
            seen.append(block.shape)
            yield rows, block

    monkeypatch.setattr(expansion, "distance_blocks", watched)
    expand(features(20), features(50, seed=1), 5, 5, 0.0)
    assert max(height for height, _ in seen) == max(width for _, width in seen) == 8
    assert sum(height * width for height, width in seen) == 50 * 50 + 20 * 50


def test_both_help_if_images_of_a_person_lie_together(monkeypatch):
    monkeypatch.setattr(expansion, "ROWS", 8192)
    rng = np.random.default_rng(0)
    people = rng.standard_normal((30, 16))
    g_pids, q_pids = np.repeat(np.arange(30), 6), np.arange(30)
    gallery = (people[g_pids] + rng.standard_normal((180, 16))).astype(np.float32)
    query = (people + rng.standard_normal((30, 16))).astype(np.float32)

    def mean_ap(qe, dba, alpha):
        expanded, augmented = expand(query, gallery, qe, dba, alpha)
        distmat = distance(l2_normalize(expanded), l2_normalize(augmented), "euclidean").numpy()
        return evaluate_rank(distmat, q_pids, g_pids, np.zeros(30), np.ones(180)).mAP

    assert mean_ap(0, 0, 0.0) < mean_ap(3, 0, 0.0) < mean_ap(3, 3, 0.0)
    assert mean_ap(0, 0, 0.0) < mean_ap(3, 3, 3.0)


@pytest.mark.parametrize(("query", "gallery", "qe", "dba", "alpha", "message"), [
    (features(2)[0], features(3), 1, 0, 0.0, r"query: expected features \[N, D\]"),
    (features(2), features(3)[:0], 1, 0, 0.0, r"gallery: expected features \[N, D\]"),
    (features(2), features(3, dim=8), 1, 0, 0.0, "query 16, gallery 8"),
    (features(2), features(3), -1, 0, 0.0, "query_expansion=-1"),
    (features(2), features(3), 0, -1, 0.0, "database_augmentation=-1"),
    (features(2), features(3), 1, 0, -1.0, "alpha=-1.0"),
    (features(2), features(3), 1, 0, float("nan"), "alpha=nan"),
    (features(2), np.where(np.arange(20)[:, None] == 13, np.nan, features(20)), 1, 0, 0.0, "gallery row 13 holds NaN"),
    (np.where(np.arange(20)[:, None] == 13, np.inf, features(20)), features(3), 1, 0, 0.0, "query row 13 holds NaN"),
])
def test_wrong_arguments_are_refused(query, gallery, qe, dba, alpha, message):
    with pytest.raises(ValueError, match=message):
        expand(query, gallery, qe, dba, alpha)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_expansion_on_cuda_is_that_of_the_cpu():
    query, gallery = features(9), features(30, seed=4)
    result = expand(torch.from_numpy(query).cuda(), torch.from_numpy(gallery).cuda(), 4, 3, 2.0)
    for ours, theirs in zip(result, expand(query, gallery, 4, 3, 2.0), strict=True):
        assert ours.is_cuda
        np.testing.assert_allclose(ours.cpu(), theirs, atol=2e-6)
