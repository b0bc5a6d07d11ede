"""The certified candidate search against the plainest one, its bounds, and the distance that decides."""
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from retrieval_oracle import people, slow_neighbours, squared_distances

from processor.retrieval.search.bounds import UNIT, Bounds
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.precision import PRECISIONS
from processor.retrieval.search.rows import PairDistances, local_blocks, row_block, squared_euclidean
from processor.retrieval.search.search import Neighbours, SearchPlan, search
from processor.retrieval.search.tiles import Tiles
from processor.retrieval.search.top_k import kth_smallest, rank_keys, smallest_keys, split_keys
from utils.dist import ALONE


def plain_search(feat, k):
    """The k nearest images of every image, itself first, and its farthest: what `search` must give to the bit.

    A product says which images can matter, up to its rounding error; their differences, in float32, decide.
    """
    table = FeatureRows(feat, feat)  # every image is a query, and all images are its gallery
    pairs, norms, k = PairDistances(table, at_once=256), table.squared_norms[: len(feat)], min(k, len(feat))
    indices, distances, farthest = [], [], []
    for rows in local_blocks(len(feat), ALONE):
        searched = row_block(table, rows, squared_euclidean)
        error = 4 * (table.dim + 8) * UNIT * (norms[rows] + norms.max())[:, None]  # of a sum's terms, and room
        near = searched <= kth_smallest(searched, k)[:, None] + 2 * error
        far = searched >= searched.amax(1, keepdim=True) - 2 * error
        row, image = (near | far).nonzero(as_tuple=True)
        exact = pairs(row + rows.start, image)
        itself = image == row + rows.start
        keys = smallest_keys(row, rank_keys(exact.masked_fill(itself, -1), image), len(searched), k)
        indices.append(split_keys(keys)[1].int())
        distances.append(split_keys(keys)[0].clamp(min=0))
        farthest.append(torch.zeros(len(searched)).scatter_reduce(0, row, exact, "amax"))
    farthest = torch.cat(farthest)
    return Neighbours(torch.cat(indices), torch.cat(distances), torch.where(farthest > 0, farthest, 1))


NAMES = sorted(PRECISIONS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# ------------------------------------------------------------------ inputs
def unit(feat):
    return feat / np.maximum(np.linalg.norm(feat, axis=1, keepdims=True), 1e-30)


def clustered(rng, size):
    return np.concatenate(people(1, size - 1, seed=int(rng.integers(10**6))))


def duplicated(rng, size):
    """Few different rows, each many times: more equal neighbours than a list has places."""
    return unit(rng.standard_normal((3, 9)))[rng.integers(0, 3, size)]


def nearly_equal(rng, size):
    """Apart by a few units in the last place, which no product of float32 can see."""
    return unit(rng.standard_normal((1, 16))) + rng.integers(-3, 4, (size, 16)) * 2.0**-24


KINDS = {
    "random": lambda rng, size: unit(rng.standard_normal((size, 20))),
    "clustered": clustered,
    "duplicated": duplicated,
    "all equal": lambda rng, size: np.full((size, 5), 0.3),
    "all zero": lambda rng, size: np.zeros((size, 5)),
    "whole numbers": lambda rng, size: rng.integers(-1, 3, (size, 3)),
    "norms 1 to 9": lambda rng, size: unit(rng.standard_normal((size, 12))) * rng.uniform(1, 9, (size, 1)),
    "norms 1e-3 to 1e3": lambda rng, size: rng.standard_normal((size, 12)) * 10.0 ** rng.uniform(-3, 3, (size, 1)),
    "short": lambda rng, size: rng.standard_normal((size, 12)) * 1e-3,
    "long": lambda rng, size: rng.standard_normal((size, 12)) * 1e3,
    "far from the origin": lambda rng, size: 30 + rng.standard_normal((size, 12)),
    "very far from the origin": lambda rng, size: 3000 + rng.standard_normal((size, 12)),
    "nearly equal": nearly_equal,
    "one dimension": lambda rng, size: rng.standard_normal((size, 1)),
    "many dimensions": lambda rng, size: unit(rng.standard_normal((size, 300))),
}


def make(kind, size, seed=0):
    return KINDS[kind](np.random.default_rng(seed), size).astype(np.float32)


def plan(name="float32", tile=16, strip=2, pairs=32, width=20, threads=1, keep=False):
    return SearchPlan(PRECISIONS[name], tile=tile, strip=strip, pairs=pairs, width=width, threads=threads, keep=keep)


def rows_of(feat, num_query=1, device=None):
    return FeatureRows(feat[:num_query], feat[num_query:], device)


def searched_lists(feat, k, num_query=1, **options):
    return search(rows_of(feat, num_query), k, plan(**options))


def assert_same(lists, expected):
    """To the bit."""
    assert lists.indices.dtype == expected.indices.dtype == torch.int32
    assert torch.equal(lists.indices, expected.indices)
    assert torch.equal(lists.distances, expected.distances)
    assert torch.equal(lists.farthest, expected.farthest)


def assert_as_the_oracle(feat, k, num_query=1, **options):
    assert_same(searched_lists(feat, k, num_query, **options), plain_search(feat, k))


def compared_again(caplog):
    """The rows that the candidate search could not certify, by its log."""
    return sum(int(count) for count in re.findall(r"(\d+) of \d+ rows are compared with all images again", caplog.text))


# ------------------------------------------------------------------ the neighbours
@pytest.mark.parametrize("k", [1, 7, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_gives_the_sorted_distances_of_all_pairs(kind, k):
    """The size is that of two blocks of rows."""
    feat = make(kind, 280 if k == 7 else 90)
    assert_same(plain_search(feat, k), slow_neighbours(squared_distances(feat[:1], feat[1:]), k))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_those_of_all_pairs(kind, name):
    assert_as_the_oracle(make(kind, 90), 7, name=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "k"), [(2, 1), (2, 2), (2, 9), (3, 2), (3, 3), (3, 30), (8, 8), (17, 16), (20, 99)])
def test_few_images_give_short_lists(size, k, name):
    feat = make("random", size)
    assert searched_lists(feat, k, name=name).indices.shape == (size, min(k, size))
    assert_as_the_oracle(feat, k, name=name)


def test_an_image_is_its_own_first_neighbour():
    lists = searched_lists(np.ones((30, 4), np.float32), 4)
    assert lists.indices[:, 0].tolist() == list(range(30))
    assert lists.indices[29].tolist() == [29, 0, 1, 2]
    assert lists.indices[1].tolist() == [1, 0, 2, 3]
    assert lists.farthest.tolist() == [1] * 30


@pytest.mark.parametrize("size", [15, 16, 17, 31, 33, 48])
def test_images_need_not_fill_the_last_tile(size):
    assert_as_the_oracle(make("clustered", size), 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["duplicated", "whole numbers", "nearly equal", "far from the origin"])
def test_rows_whose_shortlist_is_too_short_are_repaired(caplog, kind, name):
    caplog.set_level("INFO")
    assert_as_the_oracle(make(kind, 90), 6, name=name, width=5)
    assert compared_again(caplog) > 0


@pytest.mark.parametrize("kind", ["random", "clustered", "norms 1 to 9"])
def test_rows_with_gaps_are_certified_by_their_shortlist(caplog, kind):
    caplog.set_level("INFO")
    searched_lists(make(kind, 200), 6, width=30)
    assert compared_again(caplog) == 0


def test_low_precision_certifies_rows_by_longer_shortlists(caplog):
    caplog.set_level("INFO")
    counts = []
    for width in (5, 60):
        caplog.clear()
        assert_as_the_oracle(make("random", 150), 6, name="bf16", width=width)
        counts.append(compared_again(caplog))
    assert counts[0] > 100 > 10 > counts[1]


@pytest.mark.parametrize("kind", ["random", "duplicated", "whole numbers", "norms 1e-3 to 1e3"])
def test_how_it_is_computed_changes_no_bit(kind):
    feat = make(kind, 75)
    whole = searched_lists(feat, 8, tile=128, strip=1, pairs=10_000, width=75)
    for options in ({"tile": 8}, {"tile": 24, "strip": 3}, {"pairs": 1}, {"pairs": 7, "width": 8}, {"width": 7},
                    {"name": "tf32", "tile": 32, "width": 9}, {"name": "bf16", "tile": 16, "strip": 9, "width": 30},
                    {"num_query": 30, "threads": 3}, {"num_query": 74, "name": "bf16", "keep": True, "threads": 2}):
        assert_same(searched_lists(feat, 8, **options), whole)


def test_a_smaller_k_is_the_start_of_a_larger():
    feat = make("clustered", 60)
    assert_same(searched_lists(feat, 12).first(5), searched_lists(feat, 5))


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)), name=st.sampled_from(NAMES), size=st.integers(2, 60), k=st.integers(1, 70),
    tile=st.sampled_from([8, 16, 24, 64]), strip=st.integers(1, 4), pairs=st.integers(1, 80), extra=st.integers(0, 30),
    num_query=st.integers(1, 59), threads=st.integers(1, 3), keep=st.booleans(), seed=st.integers(0, 10**6),
)
@example(kind="duplicated", name="bf16", size=60, k=4, tile=8, strip=2, pairs=5, extra=0, num_query=20, threads=1,
         keep=False, seed=1)
def test_any_input_and_plan_give_the_neighbours_of_all_pairs(
        kind, name, size, k, tile, strip, pairs, extra, num_query, threads, keep, seed):
    assert_as_the_oracle(make(kind, size, seed), k, min(num_query, size - 1), name=name, tile=tile, strip=strip,
                         pairs=pairs, width=max(k - 1, 1) + extra, threads=threads, keep=keep)


# ------------------------------------------------------------------ the bounds
def hard_pairs(dim):
    """Opposite, orthogonal, equal and nearly equal rows of all lengths, with mantissas that round badly."""
    rng = np.random.default_rng(dim)
    base = rng.standard_normal((12, dim))
    ones = np.ones((2, dim)) * [[1 + 2.0**-9 - 2.0**-23], [1 + 2.0**-12 - 2.0**-23]]  # nearly half a bf16 or TF32 step
    step = base * (1 + 2.0**-20)
    axes = np.eye(dim)[:4] * 3
    rows = np.concatenate([base, step, base + 2.0**-12, -base, ones, -ones, axes, np.abs(base), np.zeros((1, dim))])
    return np.concatenate([rows, rows * 1e-3, rows * 1e3, 1e-6 * rows[:8], 1e6 * rows[:8]]).astype(np.float32)


def searched_and_true(feat, name, shift):
    """What a tile of the search holds of all pairs, the float64 distances, and the bounds between the two."""
    rows = rows_of(feat)
    bounds = Bounds(rows, PRECISIONS[name]).shifted(shift)
    tiles = Tiles(rows, bounds, -(-len(feat) // 8) * 8)
    left = tiles.left(slice(0, len(feat)), tiles.size, shift)
    searched = tiles.product(left, tiles.right(0), tiles.places(tiles.size))[: len(feat), : len(feat)]
    precise = torch.from_numpy(feat).double()
    return searched, torch.stack([(precise - row).square().sum(1) for row in precise]), bounds


@pytest.mark.parametrize("shift", [0.0, 1.7])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2, 5, 64, 777])
def test_the_true_distance_lies_within_the_bounds(dim, name, shift):
    for feat in (hard_pairs(dim), *(make(kind, 60, seed) for seed in range(3) for kind in KINDS)):
        searched, true, bounds = searched_and_true(feat, name, shift)
        assert (bounds.lower(searched).double() <= true).all()
        assert (true <= bounds.upper(searched).double()).all()
        assert ((searched.double() + shift - true).abs() <= bounds.error(searched).double()).all()


@pytest.mark.parametrize(("name", "shift", "most"), [
    ("float32", 0.0, 4e-4), ("tf32", 0.0, 6e-3), ("bf16", 0.0, 5e-2), ("bf16", 2.0, 4e-2),
])
def test_the_bounds_are_close_enough_to_decide(name, shift, most):
    """Of features of length 1, whose squared distances are around 2."""
    searched, true, bounds = searched_and_true(make("many dimensions", 60), name, shift)
    apart = ~torch.eye(60, dtype=torch.bool)
    assert (bounds.upper(searched) - bounds.lower(searched))[apart].max() < most
    assert (searched + shift - true)[apart].abs().max() < most / 2


@pytest.mark.parametrize("shift", [0.0, 1.7])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_limits_turn_a_true_distance_into_a_searched_one(kind, name, shift):
    """From lowest_beyond(t) on all true distances are above t; up to highest_below(t) all are below."""
    feat = make(kind, 60)
    searched, _, bounds = searched_and_true(feat, name, shift)
    true = torch.from_numpy(squared_distances(feat[:1], feat[1:]))
    for column in range(0, 60, 7):
        wanted = true[:, column : column + 1]
        beyond = searched >= bounds.lowest_beyond(wanted)
        below = searched <= bounds.highest_below(wanted)
        positive = wanted > 0  # if all features are zero, nothing is above 0 and nothing has to be
        assert not (positive & beyond & (true <= wanted)).any()
        assert not (positive & below & (true >= wanted)).any()


@pytest.mark.parametrize("shift", [0.0, 1.7])
@pytest.mark.parametrize("name", NAMES)
def test_the_limits_are_no_looser_than_the_bounds(name, shift):
    bounds = Bounds(rows_of(make("random", 60)), PRECISIONS[name]).shifted(shift)
    true = torch.rand(60, 200, generator=torch.Generator().manual_seed(0)) * 4
    near = torch.testing.assert_close
    near(bounds.lower(bounds.lowest_beyond(true)), true, rtol=2e-5, atol=1e-5)
    wide = true + 0.2  # nearer to 0 the search cannot say that anything is below
    near(bounds.upper(bounds.highest_below(wide)), wide, rtol=2e-5, atol=1e-5)


def test_infinite_values_bound_nothing():
    """Infinite values stand for images that are not there: no NaN, and no distance that is not infinite."""
    for name in NAMES:
        bounds, none = Bounds(rows_of(make("random", 9)), PRECISIONS[name]).shifted(0.5), torch.full((9, 1), torch.inf)
        assert (bounds.lower(none) == torch.inf).all()
        assert (bounds.upper(none) == torch.inf).all()
        assert (bounds.lower(-none) == 0).all()


def test_bounds_of_single_rows_are_those_rows_of_all():
    bounds, searched = Bounds(rows_of(make("norms 1 to 9", 60)), PRECISIONS["bf16"]), torch.rand(60, 5)
    rows = torch.tensor([3, 50, 7])
    assert torch.equal(bounds.of(rows).lower(searched[rows]), bounds.lower(searched)[rows])
    assert torch.equal(bounds.of(slice(2, 9)).upper(searched[2:9]), bounds.upper(searched)[2:9])


# ------------------------------------------------------------------ the distance
def all_pairs(size):
    return torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 100, 256, 300, 2048])
def test_a_pair_has_the_same_bits_from_either_side_and_in_any_company(dim):
    features = rows_of(np.random.default_rng(dim).standard_normal((12, dim)).astype(np.float32))
    left, right = all_pairs(12)
    whole = PairDistances(features, 500)(left, right)
    assert torch.equal(whole.view(12, 12), whole.view(12, 12).T)
    assert not whole.view(12, 12).diagonal().any()
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0))
    for at_once in (1, 2, 3, 8, 143):
        assert torch.equal(PairDistances(features, at_once)(left[order], right[order]), whole[order])
    single = PairDistances(features, 500)
    assert torch.equal(torch.cat([single(left[i : i + 1], right[i : i + 1]) for i in range(144)]), whole)
    torch.set_num_threads(2)
    assert torch.equal(PairDistances(features, 500)(left, right), whole)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "many dimensions"])
def test_a_pairs_distance_is_the_float64_one_rounded(kind):
    feat = make(kind, 30)
    result, true = squared_distances(feat[:1], feat[1:]), searched_and_true(feat, "float32", 0.0)[1].numpy()
    np.testing.assert_allclose(result, true, rtol=(feat.shape[1] + 2) * 2.0**-24, atol=0)


def test_equal_rows_are_at_distance_zero_wherever_they_lie():
    query, gallery = people(5, 12)
    gallery[3:8] = query
    assert not squared_distances(query, gallery)[np.arange(5), np.arange(8, 13)].any()
    assert squared_distances(query, gallery)[0, 1] > 0


def test_joined_and_separate_arrays_give_the_same_bits():
    bank = np.concatenate(people(7, 20))
    whole = squared_distances(bank[:7].copy(), bank[7:].copy())
    tensor = torch.from_numpy(bank)
    for query, gallery in [(bank[:7], bank[7:]), (tensor[:7], tensor[7:]), (tensor[:7], bank[7:]),
                           (np.asfortranarray(bank[:7]), bank[7:]), (bank[:7], bank[::-1][:20][::-1])]:
        assert np.array_equal(squared_distances(query, gallery), whole)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int32"])
def test_every_type_and_kind_of_array_gives_the_same_bits(dtype, tmp_path):
    bank = np.random.default_rng(0).integers(-5, 6, (20, 9))  # in every type without rounding
    whole = squared_distances(bank[:6].astype(np.float32), bank[6:].astype(np.float32))
    bank = bank.astype(dtype)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    assert np.array_equal(squared_distances(bank[:6], bank[6:]), whole)
    assert np.array_equal(squared_distances(mapped[:6], mapped[6:]), whole)
    if not dtype.startswith(">"):
        tensor = torch.from_numpy(bank)
        assert np.array_equal(squared_distances(tensor[:6].clone(), tensor[6:]), whole)
        assert np.array_equal(squared_distances(tensor[:6], tensor[6:]), whole)


def test_pairs_of_a_read_only_map_are_computed_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "bank.npy", np.ones((8, 4), np.float32))
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    squared_distances(mapped[:3], mapped[3:])
    assert not len(recwarn)


# ------------------------------------------------------------------ CUDA
@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated", "whole numbers", "norms 1 to 9"])
def test_cuda_finds_the_neighbours_of_the_cpu(kind, name):
    """Another order of summation: neighbours may differ if two distances differ in the last places."""
    feat = make(kind, 700)
    expected = searched_lists(feat, 21, tile=128)
    lists = search(rows_of(feat, device="cuda"), 21, plan(name, tile=128, pairs=4096, width=60))
    swapped = lists.indices.cpu() != expected.indices
    torch.testing.assert_close(lists.distances.cpu(), expected.distances, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(lists.farthest.cpu(), expected.farthest, rtol=1e-6, atol=0)
    assert swapped.float().mean() < (0 if kind in ("duplicated", "whole numbers") else 1e-3) + 1e-9


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["clustered", "duplicated", "nearly equal"])
def test_on_cuda_too_how_it_is_computed_changes_no_bit(kind, caplog):
    caplog.set_level("INFO")
    features = rows_of(make(kind, 500), device="cuda")
    whole = search(features, 9, plan(tile=512, pairs=4096, width=100))
    for options in ({"name": "tf32", "tile": 64, "width": 8}, {"name": "bf16", "tile": 128, "width": 40}, {"tile": 24}):
        assert_same(search(features, 9, plan(pairs=4096, **options)), whole)
    assert compared_again(caplog) > 0
