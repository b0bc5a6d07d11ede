"""Sums of distances and joined features."""
import numpy as np
import pytest
import torch

from processor.retrieval.distance import distance, distance_blocks, l2_normalize
from processor.retrieval.ensemble import check_same_order, concat_features, sum_blocks


def features(count, dim, seed):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_the_sum_is_the_weighted_sum_of_whole_matrices():
    pairs = [(features(10, dim, dim), features(14, dim, dim + 1)) for dim in (3, 5, 8)]
    blocks = list(sum_blocks([distance_blocks(*pair, "cosine", 4) for pair in pairs], [1, 0.5, 2]))
    expected = sum(weight * distance(*pair, "cosine").numpy() for pair, weight in zip(pairs, [1, 0.5, 2], strict=True))
    assert [rows for rows, _ in blocks] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), expected, rtol=1e-6)


def test_the_sources_are_not_modified():
    block = np.ones((2, 3), np.float32)
    for weights in ([2, 3], [1, 1]):
        (_, total), = sum_blocks([[(slice(0, 2), block)], [(slice(0, 2), block)]], weights)
        assert (block == 1).all()
        assert (total == sum(weights)).all()
    assert next(sum_blocks([[(slice(0, 2), block)]]))[1] is block  # of one source, nothing is copied


@pytest.mark.parametrize(("second", "message"), [
    ([(slice(0, 3), np.ones((3, 3), np.float32))], "source 1 gives rows 0 to 2 where source 0 gives rows 0 to 1"),
    ([], "source 1 gives no more rows where source 0 gives rows 0 to 1"),
    ([(slice(0, 2), np.ones((2, 4), np.float32))], r"rows 0 to 1: source 1 has distances \(2, 4\), source 0 \(2, 3\)"),
    ([(slice(0, 2), np.ones((2, 3), np.float32)), (slice(2, 3), np.ones((1, 3), np.float32))],
     "source 1 gives rows 2 to 2 where source 0 gives no more rows"),
])
def test_sources_that_do_not_agree_are_refused(second, message):
    with pytest.raises(ValueError, match=message):
        list(sum_blocks([[(slice(0, 2), np.ones((2, 3), np.float32))], second]))


@pytest.mark.parametrize(("count", "weights", "message"), [
    (0, None, "no source"), (2, [1], "1 weights for 2 inputs"), (2, [1, float("nan")], "must be finite"),
])
def test_unfit_weights_are_refused_at_the_call(count, weights, message):
    with pytest.raises(ValueError, match=message):
        sum_blocks([[]] * count, weights)
    with pytest.raises(ValueError, match=message):
        concat_features([features(2, 3, 0)] * count, weights)


def test_joined_features_have_the_weighted_sum_of_squared_distances():
    feats, weights = [features(12, dim, dim) * dim for dim in (4, 6)], [1, 0.3]
    joined = concat_features([feats[0], torch.from_numpy(feats[1])], weights)
    expected = sum(weight * distance(l2_normalize(feat), l2_normalize(feat), "euclidean").numpy() ** 2
                   for feat, weight in zip(feats, weights, strict=True))
    assert joined.dtype == np.float32
    np.testing.assert_allclose(distance(joined, joined, "euclidean").numpy() ** 2, expected, atol=1e-5)


def test_branches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"different numbers of images: \[2, 3\]"):
        concat_features([features(2, 3, 0), features(3, 3, 0)])
    with pytest.raises(ValueError, match="negative weight"):
        concat_features([features(2, 3, 0)], [-1])


def test_the_first_different_name_is_in_the_message():
    check_same_order({"a": ["x", "y"], "b": ["x", "y"]})
    with pytest.raises(ValueError, match="position 1: 'y' in a, 'z' in c"):
        check_same_order({"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "z"]})
    with pytest.raises(ValueError, match="a holds 2 images, b 1"):
        check_same_order({"a": ["x", "y"], "b": ["x"]})
