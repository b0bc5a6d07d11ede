"""Samplers: what every epoch shows, exact lengths, ranks and restarts."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    shown = np.concatenate(epoch(sampler))
    assert len(shown) == 96
    assert sorted(shown) == list(range(96))


def test_an_image_comes_again_only_after_its_identity_is_through():
    pids, sampler = make([6] * 8, batch=8, k=4)  # ceil(6 / 4) = 2 groups: 8 places for 6 images
    shown, counts = np.unique(np.concatenate(epoch(sampler)), return_counts=True)
    assert len(shown) == len(pids)
    assert set(counts) == {1, 2}


def test_epochs_and_seeds_differ_and_repeat():
    _, sampler = make([5] * 20)
    assert epoch(sampler, 1) == epoch(sampler, 1)
    assert epoch(sampler, 1) != epoch(sampler, 2)
    assert epoch(sampler, 1) != epoch(make([5] * 20, seed=2)[1], 1)


@pytest.mark.parametrize("kind", ["identity", "shuffled"])
def test_a_restart_in_the_middle_goes_on_with_the_same_items(kind):
    sampler = make([5] * 20)[1] if kind == "identity" else ShuffledBatchSampler(100, 8, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=4)
    assert list(sampler) == whole[4:]


@pytest.mark.parametrize("kind", ["identity", "shuffled"])
def test_ranks_share_the_global_batches(kind):
    def build(rank, world):
        return (make([5] * 20, rank=rank, world_size=world)[1] if kind == "identity"
                else ShuffledBatchSampler(100, 8, 1, rank, world))
    alone, first, second = build(0, 1), build(0, 2), build(1, 2)
    for sampler in (alone, first, second):
        sampler.set_epoch(2)
    assert [a + b for a, b in zip(first, second, strict=True)] == list(alone)


def test_positions_count_through_the_epoch():
    _, sampler = make([5] * 20)
    sampler.set_epoch(1)
    positions = [position for batch in sampler for position, _ in batch]
    assert positions == list(range(len(sampler) * 8))


def test_shuffled_batches_show_no_image_twice():
    shown = np.concatenate(epoch(ShuffledBatchSampler(101, 8, seed=1)))
    assert len(shown) == 96
    assert len(set(shown)) == 96


@pytest.mark.parametrize(("build", "message"), [
    (lambda: make([5] * 3), "needs 4 identities a batch, but there are only 3"),
    (lambda: make([5] * 20, batch=9), "whole groups"),
    (lambda: make([5] * 20, batch=8, world_size=3), "cannot be shared by 3 processes"),
    (lambda: ShuffledBatchSampler(5, 8, 1), "only 5 training images"),
])
def test_impossible_batches_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_hundred_thousand_identities_take_seconds():
    """Exactness at size; the time itself is benchmarked elsewhere."""
    sizes = np.random.default_rng(0).integers(1, 20, 100_000)
    pids = np.repeat(np.arange(len(sizes)), sizes)
    sampler = IdentityBatchSampler(pids, 256, 2, seed=1)
    table = sampler.epoch_table()
    assert len(table) == len(sampler)
    assert len(np.unique(pids[table])) == len(sizes)
