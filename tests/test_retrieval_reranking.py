"""Tiled, sparse re-ranking against a dense one written from the paper, and against the golden files."""
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import people, slow_farthest, slow_re_ranking, squared_distances

from processor.retrieval.distance import l2_normalize
from processor.retrieval.reranking import ReRanker, re_ranked_blocks, re_ranked_top_k, re_ranking
from processor.retrieval.search import budget, encoding, rows, search
from processor.retrieval.search import feature_rows as features
from processor.retrieval.search.certified_top_k import CertifiedNearest
from processor.retrieval.search.encoding import jaccard_distance
from processor.retrieval.search.rows import PairDistances, row_block, squared_euclidean
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import top_k

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
TOLERANCE = 2e-6
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def use_small_tiles(patch, tile=8):
    """Many tiles, strips and pieces also of a few images, and their nearest with a proof as those of many."""
    patch.setattr(rows, "TILE", tile)
    patch.setattr(budget, "TILES", {"cpu": (tile,)})
    patch.setattr(budget, "STRIPS", (2,))
    patch.setattr(budget, "GATHERED", {"cpu": 0})
    patch.setattr(budget, "FULL_ROWS_BELOW", 0)
    patch.setattr(budget, "QUERIES", {"cpu": 3})
    for module in (encoding, features, search):
        patch.setattr(module, "ROWS_AT_ONCE", 7)


@pytest.fixture
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch)


@pytest.fixture
def tiles_of_16(monkeypatch):
    """Ten to a side of INPUTS, at a third of the price of those of 8."""
    use_small_tiles(monkeypatch, 16)


@functools.cache
def whole_of(kind):
    """All re-ranked distances of one of INPUTS, which are the same for any tile."""
    return re_ranking(*INPUTS[kind], 8, 3, 0.3)


def assert_as_the_oracle(query, gallery, k1, k2, lambda_value):
    result = re_ranking(query, gallery, k1, k2, lambda_value)
    expected = slow_re_ranking(squared_distances(query, gallery), len(query), k1, k2, lambda_value)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tile", [64, 1024])
@pytest.mark.parametrize(("name", "prefix"), [("dmt", "dist_f32"), ("fastreid", "dist_trueeuclid")])
@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(30, 2, 0.8), (20, 6, 0.3)])
def test_re_ranking_gives_the_published_numbers(monkeypatch, name, prefix, k1, k2, lambda_value, tile):
    use_small_tiles(monkeypatch, tile)
    golden = np.load(GOLDEN / f"rerank_{name}.npz")
    result = re_ranking(golden["q_feat"], golden["g_feat"], k1, k2, lambda_value)
    np.testing.assert_allclose(
        result, golden[f"{prefix}_k1_{k1}_k2_{k2}_lam_{lambda_value}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("norms", [1.0, 9.0])
@pytest.mark.parametrize("noise", [0.3, 1.0, 10.0])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 2), (4, 1), (5, 3), (7, 8), (12, 4)])
def test_re_ranking_is_the_dense_definition(small_tiles, norms, noise, k1, k2):
    assert_as_the_oracle(*people(13, 40, noise=noise, norms=norms), k1, k2, 0.3)


@pytest.mark.parametrize("lambda_value", [0, 0.5, 1])
@pytest.mark.parametrize(("num_query", "num_gallery"), [(1, 1), (1, 2), (2, 1), (1, 20), (20, 1), (8, 8), (9, 15)])
def test_few_images_are_enough(small_tiles, num_query, num_gallery, lambda_value):
    assert_as_the_oracle(*people(num_query, num_gallery), 6, 3, lambda_value)


def test_duplicates_follow_the_tie_rule(small_tiles):
    query, gallery = people(10, 30, noise=1.0)
    gallery[5:15] = query           # every query is in the gallery …
    gallery[20:28] = gallery[3]     # … and one image many times
    assert_as_the_oracle(query, gallery, 5, 3, 0.3)


@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
def test_equal_images_give_no_nan(small_tiles, value):
    feat = np.full((30, 5), value, np.float32)
    result = re_ranking(feat[:6], feat[6:], 4, 2, 0.3)
    assert np.isfinite(result).all()
    assert_as_the_oracle(feat[:6], feat[6:], 4, 2, 0.3)


def test_lambda_one_is_the_original_distance():
    query, gallery = people(10, 30)
    table = features.FeatureRows(query, gallery)
    squared = row_block(table, slice(0, 10), squared_euclidean).numpy()
    expected = squared / squared_distances(query, gallery)[:10].max(1, keepdims=True)
    assert np.array_equal(re_ranking(query, gallery, 5, 3, 1), expected)


def test_an_image_without_common_neighbours_keeps_the_full_jaccard_distance(small_tiles):
    query, gallery = people(4, 40, identities=8, noise=0.05)
    result, jaccard = re_ranking(query, gallery, 3, 1, 0.25), re_ranking(query, gallery, 3, 1, 0)
    original = re_ranking(query, gallery, 3, 1, 1)
    untouched = jaccard == 1
    assert untouched.any()
    np.testing.assert_allclose(result[untouched], 0.75 + 0.25 * original[untouched], rtol=1e-6)


@pytest.mark.parametrize("tile", [8, 1024])
def test_block_rows_changes_no_bit(monkeypatch, tile):
    use_small_tiles(monkeypatch, tile)
    query, gallery = people(21, 60, noise=1.0, norms=3.0)
    whole = re_ranking(query, gallery, 8, 3, 0.3)
    for block_rows in (1, 5, 8, 20, 21, 500):
        blocks = list(re_ranked_blocks(query, gallery, 8, 3, 0.3, block_rows))
        assert [(rows.start, rows.stop) for rows, _ in blocks] == [
            (start, min(start + block_rows, 21)) for start in range(0, 21, block_rows)]
        assert np.array_equal(np.concatenate([block for _, block in blocks]), whole)


def test_tensors_and_mapped_files_give_the_same_bits(small_tiles, tmp_path):
    query, gallery = people(9, 30)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    whole = re_ranking(query, gallery, 5, 2, 0.3)
    assert np.array_equal(re_ranking(query, mapped, 5, 2, 0.3), whole)
    assert np.array_equal(re_ranking(torch.from_numpy(query), torch.from_numpy(gallery), 5, 2, 0.3), whole)


@settings(max_examples=60, deadline=None)
@given(
    num_query=st.integers(1, 8), num_gallery=st.integers(1, 25), k1=st.integers(1, 12), data=st.data(),
    lambda_value=st.floats(0, 1), levels=st.integers(1, 4), seed=st.integers(0, 10**6),
)
def test_inputs_full_of_ties_agree_with_the_oracle(num_query, num_gallery, k1, data, lambda_value, levels, seed):
    """Small whole numbers: distances are exact in float32, so ties are ties and the rule must settle them."""
    k2 = data.draw(st.integers(1, k1 + 1))
    feat = np.random.default_rng(seed).integers(0, levels, (num_query + num_gallery, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        use_small_tiles(patch)
        assert_as_the_oracle(feat[:num_query], feat[num_query:], k1, k2, lambda_value)


@pytest.mark.parametrize("mean", [3, 30])
def test_features_far_from_the_origin_agree_with_the_oracle(small_tiles, mean):
    """As before a batch normalisation: all cosines are near 1, and |a|² + |b|² - 2ab alone would lose the rest."""
    feat = mean + np.random.default_rng(0).standard_normal((60, 256))
    feat = (feat / np.linalg.norm(feat, axis=1, keepdims=True)).astype(np.float32)
    assert_as_the_oracle(feat[:20], feat[20:], 6, 3, 0.8)


def test_one_search_serves_any_smaller_k1(small_tiles):
    query, gallery = people(13, 40, noise=1.0)
    ranker = ReRanker(query, gallery, 12)
    for k1, k2, lambda_value in ((12, 4, 0.3), (5, 3, 0.3), (5, 3, 0.9), (1, 1, 0.5), (12, 4, 0.3)):
        result = np.concatenate([block for _, block in ranker.blocks(k1, k2, lambda_value)])
        assert np.array_equal(result, re_ranking(query, gallery, k1, k2, lambda_value))
    with pytest.raises(ValueError, match="k1=13: the neighbours were searched for k1=12"):
        ranker.index(13, 4)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "auto"])
def test_the_precision_of_the_search_changes_no_bit(small_tiles, precision):
    query, gallery = people(21, 60, noise=1.0, norms=3.0)
    blocks = re_ranked_blocks(query, gallery, 8, 3, 0.3, precision=precision)
    assert np.array_equal(np.concatenate([block for _, block in blocks]), re_ranking(query, gallery, 8, 3, 0.3))


def test_an_unknown_precision_is_refused_at_the_call():
    with pytest.raises(ValueError, match="unknown precision 'half'; choose from auto, float32, tf32, bf16"):
        re_ranked_blocks(*people(3, 5), 3, 2, 0.3, precision="half")


def test_normalising_on_the_way_gives_the_bits_of_normalised_features(small_tiles):
    query, gallery = people(13, 40, norms=9.0)
    gallery[7] = 0
    unit = l2_normalize(query), l2_normalize(gallery)
    blocks = re_ranked_blocks(query, gallery, 8, 3, 0.3, normalize=True)
    assert np.array_equal(np.concatenate([block for _, block in blocks]), re_ranking(*unit, 8, 3, 0.3))
    for result, expected in zip(re_ranked_top_k(query, gallery, 8, 3, 0.3, 9, normalize=True),
                               re_ranked_top_k(*unit, 8, 3, 0.3, 9), strict=True):
        assert np.array_equal(result, expected)


@pytest.mark.parametrize(("parameters", "message"), [
    ((0, 1, 0.3), "k1=0"), ((5, 0, 0.3), "k2=0"), ((5, 7, 0.3), r"k2=7: must be from 1 to k1 \+ 1 = 6"),
    ((5, 2, -0.1), "lambda_value=-0.1"), ((5, 2, 1.1), "lambda_value=1.1"), ((5, 2, float("nan")), "lambda_value=nan"),
    ((5, 2, 0.3, 0), "block_rows=0"),
])
def test_parameters_out_of_range_are_refused_at_the_call(parameters, message):
    with pytest.raises(ValueError, match=message):
        re_ranked_blocks(*people(3, 5), *parameters)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_at_the_call(value):
    query, gallery = people(3, 5)
    gallery[4, 2] = value
    with pytest.raises(ValueError, match="gallery row 4"):
        re_ranked_blocks(query, gallery, 5, 2, 0.3)
    with pytest.raises(ValueError, match="dimensions differ: query 12, gallery 11"):
        re_ranked_blocks(query, gallery[:, :11], 5, 2, 0.3)


# ------------------------------------------------------------------ the nearest only
def whole_numbers(num_query, num_gallery, levels=3, seed=0):
    feat = np.random.default_rng(seed).integers(0, levels, (num_query + num_gallery, 3)).astype(np.float32)
    return feat[:num_query], feat[num_query:]


def far_apart_lengths(num_query, num_gallery):
    query, gallery = people(num_query, num_gallery, noise=1.0)
    scale = 10.0 ** np.random.default_rng(1).uniform(-3, 3, (num_query + num_gallery, 1)).astype(np.float32)
    return query * scale[:num_query], gallery * scale[num_query:]


INPUTS = {
    "clustered": people(40, 110, identities=9),
    "loose": people(40, 110, noise=10.0),
    "tight": people(40, 110, noise=0.02),
    "not unit": people(40, 110, noise=1.0, norms=9.0),
    "lengths 1e-3 to 1e3": far_apart_lengths(30, 70),
    "whole numbers": whole_numbers(40, 110),
    "all equal": (np.ones((20, 4), np.float32), np.ones((50, 4), np.float32)),
    "far more queries": people(120, 7),
    "one query": people(1, 60),
    "two images": people(1, 1),
}


def every_value(ranker, k1, k2, lambda_value):
    """[Q, G] float32: all distances as the top-k mixes them, from the pairs' differences and the index' Jaccard."""
    num_query = ranker.features.num_query
    squared = squared_distances(ranker.features.rows(0, num_query), ranker.features.rows(num_query, 10**9))
    share = lambda_value / torch.from_numpy(slow_farthest(squared))[:num_query, None]
    jaccard = jaccard_distance(ranker.index(k1, k2).shared(slice(0, num_query)))
    return (torch.from_numpy(squared)[:num_query, num_query:] * share).add_(jaccard, alpha=1 - lambda_value).numpy()


def assert_top_k_as_the_oracle(query, gallery, k1, k2, lambda_values, k, **options):
    ranker = ReRanker(query, gallery, k1, top_k=k, **options)
    for lambda_value in lambda_values:
        indices, distances = ranker.top_k(k1, k2, lambda_value)
        expected = top_k([(slice(0, len(query)), every_value(ranker, k1, k2, lambda_value))], k, len(query))
        assert indices.dtype == np.int64
        assert distances.dtype == np.float32
        assert indices.shape == (len(query), min(k, len(gallery)))
        assert np.array_equal(distances, expected[1])
        assert np.array_equal(indices, expected[0])


@pytest.mark.parametrize("k", [1, 2, 5, 20, 60, 110, 500])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_top_k_is_that_of_all_distances(tiles_of_16, kind, k):
    assert_top_k_as_the_oracle(*INPUTS[kind], 8, 3, [0.3], k)


@pytest.mark.parametrize("k", [3, 25])
@pytest.mark.parametrize("kind", ["clustered", "loose", "whole numbers", "not unit"])
def test_the_top_k_of_any_lambda_is_that_of_all_distances(tiles_of_16, kind, k):
    assert_top_k_as_the_oracle(*INPUTS[kind], 8, 3, [0, 0.01, 0.5, 0.9, 1], k)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 2), (20, 6), (60, 1), (200, 30)])
def test_the_top_k_of_any_k1_and_k2_is_that_of_all_distances(tiles_of_16, k1, k2):
    for k in (1, 15):
        assert_top_k_as_the_oracle(*INPUTS["clustered"], k1, k2, [0.3], k)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("kind", ["clustered", "loose", "whole numbers", "not unit", "far more queries"])
def test_the_top_k_of_any_precision_is_that_of_all_distances(tiles_of_16, kind, precision):
    for k, lambda_values in ((1, [0.3]), (10, [0.05, 0.9]), (40, [0.3])):
        assert_top_k_as_the_oracle(*INPUTS[kind], 8, 3, lambda_values, k, precision=precision)


@pytest.mark.parametrize(("name", "prefix"), [("dmt", "dist_f32"), ("fastreid", "dist_trueeuclid")])
@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(30, 2, 0.8), (20, 6, 0.3)])
@pytest.mark.parametrize("k", [1, 10, 50, 10**6])
@pytest.mark.parametrize("full_rows_below", [0, 10**9])
def test_the_top_k_has_the_published_numbers(monkeypatch, name, prefix, k1, k2, lambda_value, k, full_rows_below):
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", full_rows_below)
    golden = np.load(GOLDEN / f"rerank_{name}.npz")
    expected = golden[f"{prefix}_k1_{k1}_k2_{k2}_lam_{lambda_value}"]
    indices, distances = re_ranked_top_k(golden["q_feat"], golden["g_feat"], k1, k2, lambda_value, k)
    np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :k], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.take_along_axis(expected, indices, 1), distances, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("full_rows_below", [0, 10**9])
@pytest.mark.parametrize("k", [1, 20, 110])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_top_k_is_that_of_the_blocks_but_for_swaps_of_nearly_equal_ones(
        tiles_of_16, monkeypatch, kind, k, full_rows_below):
    whole = whole_of(kind)
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", full_rows_below)
    indices, distances = re_ranked_top_k(*INPUTS[kind], 8, 3, 0.3, k)
    np.testing.assert_allclose(distances, np.sort(whole, 1)[:, :k], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.take_along_axis(whole, indices, 1), distances, rtol=0, atol=TOLERANCE)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


@pytest.mark.parametrize("full_rows_below", [0, 10**9])
@pytest.mark.parametrize("kind", ["clustered", "loose", "whole numbers", "not unit", "lengths 1e-3 to 1e3"])
def test_how_the_top_k_is_computed_changes_no_bit(monkeypatch, kind, full_rows_below):
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", full_rows_below)
    whole = re_ranked_top_k(*INPUTS[kind], 8, 3, 0.3, 12, precision="float32")
    for tile in (8, 48):
        monkeypatch.setattr(budget, "TILES", {"cpu": (tile,)})
        for precision in ("float32", "tf32", "bf16", "auto"):
            result = re_ranked_top_k(*INPUTS[kind], 8, 3, 0.3, 12, precision=precision)
            assert np.array_equal(result[0], whole[0])
            assert np.array_equal(result[1], whole[1])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_few_distances_are_computed_beyond_the_nearest(monkeypatch, precision):
    """Of 900 images 10 are wanted: the proof leaves out nearly all others, and no row is compared with all again."""
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", 0)
    query, gallery = people(60, 900, dim=64, identities=60)
    ranker = ReRanker(query, gallery, 10, top_k=10, precision=precision)
    ranker.index(10, 3)
    counted, compute = [], PairDistances.__call__
    monkeypatch.setattr(PairDistances, "__call__", lambda self, left, right: (
        counted.append(len(left)), compute(self, left, right))[1])
    ranker.top_k(10, 3, 0.3)
    assert 10 * 60 <= sum(counted) < 20 * 60


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("lambda_value", [0.05, 0.3, 0.9])
def test_queries_are_multiplied_with_the_gallery_once(monkeypatch, lambda_value, precision):
    """The search's lists prove the nearest; without them the products give the same bits."""
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", 0)
    inputs = people(60, 900, dim=64, identities=60)
    again, compute = [], CertifiedNearest._searched
    monkeypatch.setattr(CertifiedNearest, "_searched", lambda self, rows: (again.append(rows), compute(self, rows))[1])
    once = re_ranked_top_k(*inputs, 10, 3, lambda_value, 20, precision=precision)
    assert not again
    monkeypatch.setattr(budget.Work, "longer", 0)
    twice = re_ranked_top_k(*inputs, 10, 3, lambda_value, 20, precision=precision)
    assert again
    for left, right in zip(once, twice, strict=True):
        assert np.array_equal(left, right)


def test_what_no_list_proves_is_taken_from_products(monkeypatch):
    """With lambda 0 all images that share no neighbour are equally far: the first of the gallery come, not the near."""
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", 0)
    query, gallery = people(60, 900, dim=64, identities=60)
    again, compute = [], CertifiedNearest._searched
    monkeypatch.setattr(CertifiedNearest, "_searched", lambda self, rows: (again.append(rows), compute(self, rows))[1])
    assert_top_k_as_the_oracle(query, gallery, 10, 3, [0], 200)
    assert again


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_that_are_wrong_by_more_than_proven_are_noticed(small_tiles, monkeypatch, caplog, precision):
    """As on hardware that adds in fewer bits than it should."""
    exact = Tiles.product

    def inexact(tiles, left, right, out):
        result = exact(tiles, left, right, out)
        return result if tiles.precision.name == "float32" else result.add_(0.3 * torch.sin(result * 1e4))

    whole = re_ranked_top_k(*INPUTS["loose"], 8, 3, 0.3, 12, precision="float32")
    monkeypatch.setattr(Tiles, "product", inexact)
    result = re_ranked_top_k(*INPUTS["loose"], 8, 3, 0.3, 12, precision=precision)
    assert np.array_equal(result[0], whole[0])
    assert np.array_equal(result[1], whole[1])
    assert f"{precision} products of this device are less exact" in caplog.text


def test_clustered_images_are_certified_without_a_second_comparison(caplog):
    caplog.set_level("INFO")
    re_ranking(*people(60, 900, dim=32, identities=60), 10, 3, 0.3)
    assert "compared with all images again" not in caplog.text


@pytest.mark.parametrize("dim", [16, 2048])
def test_threads_change_no_bit(monkeypatch, dim):
    monkeypatch.setattr(budget, "TILES", {"cpu": (64,)})
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", 0)
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 100)
    query, gallery = people(520, 120, dim=dim, identities=60, noise=1.0)  # 3 blocks of queries

    def answers(threads):
        torch.set_num_threads(threads)
        return *re_ranked_top_k(query, gallery, 12, 4, 0.3, 20), re_ranking(query, gallery, 12, 4, 0.3)

    alone = answers(1)
    for threads in (2, 4):
        for result, expected in zip(answers(threads), alone, strict=True):
            assert np.array_equal(result, expected)
        assert torch.get_num_threads() == threads


@settings(max_examples=150, deadline=None)
@given(
    num_query=st.integers(1, 25), num_gallery=st.integers(1, 40), k1=st.integers(1, 12), k=st.integers(1, 45),
    lambda_value=st.one_of(st.sampled_from([0, 0.001, 1]), st.floats(0, 1)),
    levels=st.integers(0, 4), noise=st.sampled_from([0.05, 0.5, 10.0]), data=st.data(), seed=st.integers(0, 10**6),
    precision=st.sampled_from(["float32", "tf32", "bf16"]),
)
def test_any_top_k_is_that_of_all_distances(
        num_query, num_gallery, k1, k, lambda_value, levels, noise, data, seed, precision):
    """levels 0: clustered; else whole numbers, full of ties."""
    k2 = data.draw(st.integers(1, k1 + 1))
    inputs = (whole_numbers(num_query, num_gallery, levels, seed) if levels
              else people(num_query, num_gallery, noise=noise, seed=seed))
    with pytest.MonkeyPatch.context() as patch:
        use_small_tiles(patch)
        assert_top_k_as_the_oracle(*inputs, k1, k2, [lambda_value], k, precision=precision)


@pytest.mark.parametrize("k", [0, -1])
def test_a_top_k_below_one_is_refused_at_the_call(k):
    with pytest.raises(ValueError, match=f"k={k}: at least one"):
        re_ranked_top_k(*people(3, 5), 3, 2, 0.3, k)


def test_top_k_refuses_what_the_blocks_refuse():
    with pytest.raises(ValueError, match="k1=0"):
        re_ranked_top_k(*people(3, 5), 0, 1, 0.3)
    with pytest.raises(ValueError, match="lambda_value=2"):
        re_ranked_top_k(*people(3, 5), 3, 1, 2)


# ------------------------------------------------------------------ many images, and CUDA
@pytest.mark.slow
def test_many_images_agree_with_the_oracle(monkeypatch):
    use_small_tiles(monkeypatch, 128)
    assert_as_the_oracle(*people(60, 540, dim=32, identities=50, noise=0.8), 20, 6, 0.3)


@pytest.mark.slow
def test_memory_stays_far_below_a_matrix_over_all_pairs():
    """12 000 images: one [N, N] float32 matrix alone would take 549 MiB."""
    script = """if True:
        import resource
        import numpy as np
        from processor.retrieval.reranking import re_ranked_blocks
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        people = np.random.default_rng(0).standard_normal((12_000, 32)).astype(np.float32)
        for _ in re_ranked_blocks(people[:40], people[40:80], 20, 6, 0.3):
            pass  # whatever the first call alone loads is not counted
        before = peak()
        for _ in re_ranked_blocks(people[:1000], people[1000:], 20, 6, 0.3):
            pass
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 250


@pytest.mark.gpu
@needs_cuda
def test_re_ranking_on_cuda_gives_the_published_numbers():
    golden = np.load(GOLDEN / "rerank_dmt.npz")
    query, gallery = (torch.from_numpy(golden[name]).cuda() for name in ("q_feat", "g_feat"))
    result = re_ranking(query, gallery, 30, 2, 0.8)
    np.testing.assert_allclose(result, golden["dist_f32_k1_30_k2_2_lam_0.8"], rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("kind", ["clustered", "not unit", "whole numbers"])
def test_blocks_and_top_k_on_cuda_are_those_of_the_cpu(kind, precision):
    query, gallery = INPUTS[kind]
    whole = re_ranking(query, gallery, 8, 3, 0.3)
    blocks = re_ranked_blocks(query, gallery, 8, 3, 0.3, device="cuda", precision=precision)
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), whole, rtol=0, atol=TOLERANCE)
    indices, distances = re_ranked_top_k(query, gallery, 8, 3, 0.3, 20, device="cuda", precision=precision)
    np.testing.assert_allclose(distances, np.sort(whole, 1)[:, :20], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.take_along_axis(whole, indices, 1), distances, rtol=0, atol=TOLERANCE)
