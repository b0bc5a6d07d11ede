"""Tiled, sparse re-ranking against a dense one written from the paper, and against the golden files."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval import distance as tiles
from processor.retrieval import reranking
from processor.retrieval.reranking import re_ranked_blocks, re_ranking

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-6


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(reranking, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", 5)


def squared_distances(query, gallery):
    """[N, N], the same float32 numbers that the tiles hold: where two nearly tie, these decide."""
    table = tiles.FeatureRows(query, gallery)
    out = np.zeros((len(table), len(table)), np.float32)
    for i in range(table.num_tiles):
        a, rows = table.tile(i), table.tile_slice(i)
        for j in range(i, table.num_tiles):
            b, columns = a if i == j else table.tile(j), table.tile_slice(j)
            tile = tiles.squared_euclidean(a, table.norms_of_tile(i), b, table.norms_of_tile(j)).numpy()
            out[rows, columns] = tile[: rows.stop - rows.start, : columns.stop - columns.start]
    return np.triu(out, 1) + np.triu(out, 1).T


def slow_re_ranking(squared, num_query, k1, k2, lambda_value):
    """The paper's formulas on a dense matrix, one image after the other."""
    size = len(squared)
    order = [sorted(range(size), key=lambda j, i=i: (j != i, squared[i, j], j)) for i in range(size)]
    farthest = np.where(squared.max(1) > 0, squared.max(1), 1)
    original = squared / farthest[:, None]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    codes = np.zeros((size, size))
    for i in range(size):
        base = reciprocal(i, k1)
        expanded = set(base)
        for candidate in base:
            other = reciprocal(candidate, int(np.around(k1 / 2)))
            if 3 * len(other & base) > 2 * len(other):
                expanded |= other
        members = sorted(expanded)
        codes[i, members] = np.exp(-original[i, members])
        codes[i] /= codes[i].sum()
    codes = np.stack([codes[order[i][:k2]].mean(0) for i in range(size)])
    shared = np.minimum(codes[:num_query, None], codes[None, num_query:]).sum(2)
    return lambda_value * original[:num_query, num_query:] + (1 - lambda_value) * (1 - shared / (2 - shared))


def people(num_query, num_gallery, dim=12, identities=6, noise=0.5, norms=1.0, seed=0):
    """Clustered features, unit length where norms is 1."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities, dim))
    feat = centres[rng.integers(identities, size=num_query + num_gallery)]
    feat = feat + noise * rng.standard_normal(feat.shape)
    feat /= np.linalg.norm(feat, axis=1, keepdims=True)
    feat *= rng.uniform(1, norms, (len(feat), 1))
    return feat[:num_query].astype(np.float32), feat[num_query:].astype(np.float32)


def assert_as_the_oracle(query, gallery, k1, k2, lambda_value):
    found = re_ranking(query, gallery, k1, k2, lambda_value)
    expected = slow_re_ranking(squared_distances(query, gallery), len(query), k1, k2, lambda_value)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tile", [64, 1024])
@pytest.mark.parametrize(("name", "prefix"), [("dmt", "dist_f32"), ("fastreid", "dist_trueeuclid")])
@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(30, 2, 0.8), (20, 6, 0.3)])
def test_re_ranking_gives_the_published_numbers(monkeypatch, name, prefix, k1, k2, lambda_value, tile):
    monkeypatch.setattr(tiles, "TILE", tile)
    golden = np.load(GOLDEN / f"rerank_{name}.npz")
    found = re_ranking(golden["q_feat"], golden["g_feat"], k1, k2, lambda_value)
    np.testing.assert_allclose(
        found, golden[f"{prefix}_k1_{k1}_k2_{k2}_lam_{lambda_value}"], rtol=0, atol=TOLERANCE)


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


def test_an_image_is_its_own_first_neighbour(small_tiles):
    feat = np.ones((30, 4), np.float32)
    found = reranking.nearest_neighbours(tiles.FeatureRows(feat[:5], feat[5:]), 4)
    assert found.indices[:, 0].tolist() == list(range(30))
    assert found.indices[29].tolist() == [29, 0, 1, 2]
    assert found.indices[1].tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
def test_equal_images_give_no_nan(small_tiles, value):
    feat = np.full((30, 5), value, np.float32)
    found = re_ranking(feat[:6], feat[6:], 4, 2, 0.3)
    assert np.isfinite(found).all()
    assert_as_the_oracle(feat[:6], feat[6:], 4, 2, 0.3)


def test_lambda_one_is_the_original_distance():
    query, gallery = people(10, 30)
    squared = squared_distances(query, gallery)
    expected = squared[:10, 10:] / squared[:10].max(1, keepdims=True)
    assert np.array_equal(re_ranking(query, gallery, 5, 3, 1), expected)


def test_an_image_without_common_neighbours_keeps_the_full_jaccard_distance(small_tiles):
    query, gallery = people(4, 40, identities=8, noise=0.05)
    found, jaccard = re_ranking(query, gallery, 3, 1, 0.25), re_ranking(query, gallery, 3, 1, 0)
    original = re_ranking(query, gallery, 3, 1, 1)
    untouched = jaccard == 1
    assert untouched.any()
    np.testing.assert_allclose(found[untouched], 0.75 + 0.25 * original[untouched], rtol=1e-6)


@pytest.mark.parametrize("tile", [8, 1024])
def test_block_rows_changes_no_bit(monkeypatch, tile):
    monkeypatch.setattr(tiles, "TILE", tile)
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
        patch.setattr(tiles, "TILE", 8)
        assert_as_the_oracle(feat[:num_query], feat[num_query:], k1, k2, lambda_value)


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


@pytest.mark.slow
def test_many_images_agree_with_the_oracle(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 128)
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
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 250


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_re_ranking_on_cuda_gives_the_published_numbers():
    golden = np.load(GOLDEN / "rerank_dmt.npz")
    found = re_ranking(torch.from_numpy(golden["q_feat"]).cuda(), torch.from_numpy(golden["g_feat"]).cuda(), 30, 2, 0.8)
    np.testing.assert_allclose(found, golden["dist_f32_k1_30_k2_2_lam_0.8"], rtol=0, atol=TOLERANCE)
