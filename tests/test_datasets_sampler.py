"""Samplers: what every epoch shows, exact lengths, ranks and restarts."""
import numpy as np
import pytest
from conftest import tiny_options
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import load_cfg
from datasets.make_dataloader import make_dataloader
from datasets.sampler import IdentityBatchSampler, ShuffledBatchSampler

identity_sizes = st.lists(st.integers(1, 23), min_size=4, max_size=40)


def make(sizes, batch=8, k=2, seed=1, **kwargs):
    pids = np.repeat(np.arange(len(sizes)), sizes)
    return pids, IdentityBatchSampler(np.random.default_rng(0).permutation(pids), batch, k, seed, **kwargs)


def epoch(sampler, number=1):
    sampler.set_epoch(number)
    return [[index for _, index in batch] for batch in sampler]


@settings(max_examples=150, deadline=None)
@given(sizes=identity_sizes, k=st.sampled_from([2, 3, 4]), seed=st.integers(0, 1000))
def test_identity_batches(sizes, k, seed):
    """P identities with K images each, none twice; every identity appears; the length is exact."""
    pids = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sampler = IdentityBatchSampler(pids, 4 * k, k, seed)
    batches = epoch(sampler)
    assert len(batches) == len(sampler)
    for batch in batches:
        groups = pids[batch].reshape(4, k)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 4
        for group in np.array(batch).reshape(4, k):
            assert len(set(group)) == min(k, sizes[pids[group[0]]])
    assert set(pids[np.concatenate(batches)]) == set(range(len(sizes)))


def test_all_images_appear_where_identities_are_of_equal_size():
    _, sampler = make([8] * 12, batch=8, k=4)
    indices = np.concatenate(epoch(sampler))
    assert len(indices) == 96
    assert sorted(indices) == list(range(96))


def test_an_image_comes_again_only_after_its_identity_is_through():
    pids, sampler = make([6] * 8, batch=8, k=4)  # ceil(6 / 4) = 2 groups: 8 places for 6 images
    indices, counts = np.unique(np.concatenate(epoch(sampler)), return_counts=True)
    assert len(indices) == len(pids)
    assert set(counts) == {1, 2}


def test_epochs_and_seeds_differ_and_repeat():
    _, sampler = make([5] * 20)
    assert epoch(sampler, 1) == epoch(sampler, 1)
    assert epoch(sampler, 1) != epoch(sampler, 2)
    assert epoch(sampler, 1) != epoch(make([5] * 20, seed=2)[1], 1)


def of_kind(kind, rank=0, world_size=1):
    """A sampler of 100 images in batches of 8."""
    if kind == "shuffled":
        return ShuffledBatchSampler(100, 8, 1, rank, world_size)
    sets = np.repeat(["big", "small"], [75, 25]) if kind == "balanced" else None
    return IdentityBatchSampler(np.repeat(np.arange(20), 5), 8, 2, 1, rank, world_size, sets)


KINDS = ["identity", "shuffled", "balanced"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_in_the_middle_goes_on_with_the_same_items(kind):
    sampler = of_kind(kind)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=4)
    assert list(sampler) == whole[4:]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_the_global_batches(kind):
    alone, first, second = of_kind(kind), of_kind(kind, 0, 2), of_kind(kind, 1, 2)
    for sampler in (alone, first, second):
        sampler.set_epoch(2)
    assert [a + b for a, b in zip(first, second, strict=True)] == list(alone)


def test_positions_count_through_the_epoch():
    _, sampler = make([5] * 20)
    sampler.set_epoch(1)
    positions = [position for batch in sampler for position, _ in batch]
    assert positions == list(range(len(sampler) * 8))


def test_shuffled_batches_show_no_image_twice():
    indices = np.concatenate(epoch(ShuffledBatchSampler(101, 8, seed=1)))
    assert len(indices) == 96
    assert len(set(indices)) == 96


@pytest.mark.parametrize(("build", "message"), [
    (lambda: make([5] * 3), "needs 4 identities a batch, but there are only 3"),
    (lambda: ShuffledBatchSampler(5, 8, 1), "only 5 training images"),
])
def test_impossible_batches_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.lists(st.integers(1, 23), min_size=4, max_size=25), min_size=2, max_size=4),
       parts=st.lists(st.sampled_from([1, 2, 0.5]), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_balanced_batches(sizes, parts, seed):
    """All of the above, and each batch takes from each set its share, rounded up or down."""
    k, per_batch = 2, 4
    counts = np.concatenate(sizes)
    order = np.random.default_rng(seed).permutation(counts.sum())
    pids = np.repeat(np.arange(len(counts)), counts)[order]
    set_of_pid = np.repeat(np.arange(len(sizes)), [len(of_set) for of_set in sizes])
    shares = {f"set{n}": part for n, part in enumerate(parts[:len(sizes)])}
    sampler = IdentityBatchSampler(pids, per_batch * k, k, seed, sets=[f"set{n}" for n in set_of_pid[pids]],
                                   shares=shares)
    table = np.array(epoch(sampler))
    assert len(table) == len(sampler)
    groups = pids[table].reshape(len(table), per_batch, k)
    assert (groups == groups[:, :, :1]).all()
    indices = groups[:, :, 0]
    assert all(len(set(batch)) == per_batch for batch in indices)
    assert set(indices.flat) == set(range(len(counts)))
    for group in table.reshape(-1, k):
        assert len(set(group)) == min(k, counts[pids[group[0]]])
    for n in range(len(sizes)):
        wanted = per_batch * parts[n] / sum(shares.values())
        taken = (set_of_pid[indices] == n).sum(1)
        assert (abs(taken - wanted) < 1).all()
        assert abs(taken.sum() - wanted * len(table)) < 1


def test_balancing_makes_an_epoch_longer_only_where_an_identity_would_be_left_out():
    alike, few = ["a"] * 150 + ["b"] * 50, ["a"] * 175 + ["b"] * 25
    def length(sets):
        return len(IdentityBatchSampler(np.repeat(np.arange(40), 5), 16, 4, 1, sets=sets))
    assert length(None) == length(alike) == 20  # 2 groups of 4 an identity
    assert length(few) == 20
    pids = np.arange(100).repeat(2)
    assert len(IdentityBatchSampler(pids, 8, 2, 1)) == 25
    assert len(IdentityBatchSampler(pids, 8, 2, 1, sets=["a"] * 180 + ["b"] * 20)) == 45  # 90 identities, 2 a batch


def test_a_small_set_shows_all_its_groups_before_one_comes_again():
    pids = np.repeat(np.arange(30), 8)
    sampler = IdentityBatchSampler(pids, 16, 4, 1, sets=["big"] * 24 * 8 + ["small"] * 6 * 8)
    images, counts = np.unique(np.concatenate(epoch(sampler)), return_counts=True)
    assert set(pids[images]) == set(range(30))
    assert set(counts[images >= 24 * 8]) == {2, 3}  # 30 places for its 12 groups
    assert set(counts[images < 24 * 8]) == {1}  # 30 places for 48


def test_ranks_see_all_sets():
    first = IdentityBatchSampler(np.repeat(np.arange(40), 4), 16, 4, 1, 0, 2, sets=["a"] * 80 + ["b"] * 80)
    sides = np.array(epoch(first)) >= 80
    assert 0.3 < sides.mean() < 0.7


@pytest.mark.parametrize(("shares", "message"), [
    ({"a": 1}, "SET_SHARES names a; the training data has the sets a, b"),
    ({"a": 1, "c": 1}, "SET_SHARES names a, c; .* a, b"),
    ({"a": 1, "b": 9}, "share of b is 3.6 of 4 identities a batch, but it has only 3"),
])
def test_impossible_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        IdentityBatchSampler(np.repeat(np.arange(20), 5), 8, 2, 1, sets=["a"] * 85 + ["b"] * 15, shares=shares)


def test_the_loader_balances_the_sets_by_their_shares(tiny_data, tmp_path):
    def loaders(*keys):
        return make_dataloader(load_cfg(None, [*tiny_options(tiny_data, tmp_path), *keys]), test=False)

    names = sorted({sample.set_name for sample in loaders().data.train})
    assert len(names) > 1
    first, *others = names
    shares = f"['{first}:{len(others)}', " + ", ".join(f"'{name}:1'" for name in others) + "]"  # one half, and the rest
    made = loaders("DATALOADER.BALANCE_SETS", "True", "DATALOADER.SET_SHARES", shares)
    for batch in made.train:
        assert sum(key.startswith(f"{first}/") for key in batch.keys) == len(batch.keys) / 2
    with pytest.raises(ValueError, match="SET_SHARES names market1501; the training data has the sets"):
        loaders("DATALOADER.BALANCE_SETS", "True", "DATALOADER.SET_SHARES", "['market1501:1']")


@pytest.mark.parametrize("balanced", [False, True])
def test_a_hundred_thousand_identities_take_seconds(balanced):
    """Exactness at size; the time itself is benchmarked elsewhere."""
    sizes = np.random.default_rng(0).integers(1, 20, 100_000)
    pids = np.repeat(np.arange(len(sizes)), sizes)
    sets = np.where(pids < 5000, "small", "large").tolist() if balanced else None
    sampler = IdentityBatchSampler(pids, 256, 2, seed=1, sets=sets)
    table = sampler.epoch_table()
    assert len(table) == len(sampler)
    assert len(np.unique(pids[table])) == len(sizes)
