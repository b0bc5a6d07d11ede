"""Equal and nearly equal digests, beside slow oracles."""
import tracemalloc

import numpy as np
import pytest

from processor.doctor import duplicates
from processor.doctor.duplicates import Uncompared, equal_groups, near_pairs


@pytest.mark.parametrize("kinds", [1, 3, 20, 10_000])
def test_equal_groups_are_those_of_a_dictionary(kinds):
    rng = np.random.default_rng(kinds)
    digests = rng.integers(0, 2**63, (kinds, 2), dtype=np.uint64)[rng.integers(0, kinds, 200)]
    which = rng.random(200) < 0.8
    groups: dict[bytes, list[int]] = {}
    for index in np.flatnonzero(which):
        groups.setdefault(digests[index].tobytes(), []).append(int(index))
    expected = [group for group in groups.values() if len(group) > 1]
    assert [group.tolist() for group in equal_groups(digests, which)] == expected


def test_digests_that_agree_in_one_half_are_not_equal():
    digests = np.array([[1, 2], [1, 3], [2, 2]], np.uint64)
    assert list(equal_groups(digests, np.ones(3, bool))) == []
    assert list(equal_groups(digests[:0], np.ones(0, bool))) == []


def hashes(rng: np.random.Generator) -> np.ndarray:
    """[260, 4] random hashes, each second one up to 20 bits from another; some equal, one 0."""
    values = list(rng.integers(1, 2**63, (130, 4), dtype=np.uint64))
    for _ in range(130):
        bits = np.unpackbits(values[rng.integers(len(values))].view(np.uint8))
        bits[rng.choice(256, rng.integers(0, 21), replace=False)] ^= 1
        values.append(np.packbits(bits).view(np.uint64))
    values[7] = np.zeros(4, np.uint64)
    values[9] = values[200] = values[50]
    return np.array(values)


@pytest.mark.parametrize("most", [0, 4, 10, 15])
@pytest.mark.parametrize(("chunk", "split"), [(1, 4096), (1 << 20, 4096), (64, 4)])
def test_near_pairs_are_those_of_all_comparisons(most, chunk, split, monkeypatch):
    monkeypatch.setattr(duplicates, "_CHUNK", chunk)
    monkeypatch.setattr(duplicates, "_SPLIT", split)
    values = hashes(np.random.default_rng(most))
    values[100:230] |= alike(0, range(0, 256, most + 1))  # a large group in one band
    uncompared = Uncompared()
    listed = pairs_of(values, most, uncompared)
    assert uncompared.pictures == 0
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), 32), axis=1)
    expected, first = {}, {}
    for b in range(len(values)):
        if not values[b].any():
            continue
        key = values[b].tobytes()
        if key in first:  # a chain through equal ones, and only their first is compared with others
            expected[max(a for a in range(b) if values[a].tobytes() == key), b] = 0
            continue
        for a in first.values():
            if (number := int((bits[a] != bits[b]).sum())) <= most:
                expected[a, b] = number
        first[key] = b
    assert listed == expected
    assert len(expected) > most


def pairs_of(values: np.ndarray, most: int, uncompared: Uncompared) -> dict[tuple[int, int], int]:
    """{pair: bits}; none comes twice."""
    listed = {}
    for pairs, bits in near_pairs(values, most, progress=False, uncompared=uncompared):
        for (a, b), number in zip(pairs.tolist(), bits.tolist(), strict=True):
            assert (a, b) not in listed
            listed[a, b] = number
    return listed


def alike(value: int, ones) -> np.ndarray:
    """[4] a hash with these bits set."""
    bits = np.full(256, value, np.uint8)
    bits[list(ones)] = 1
    return np.packbits(bits, bitorder="little").view("<u8")


def test_many_that_agree_in_one_band_are_told_apart_by_the_others(monkeypatch):
    """20,000 hashes that agree in one of 11 bands and are random in the others: 200 million pairs, if all are taken."""
    compared, agreeing = [0], duplicates._agreeing_pairs

    def count(keys):
        for a, b in agreeing(keys):
            compared[0] += len(a)
            yield a, b

    monkeypatch.setattr(duplicates, "_agreeing_pairs", count)
    values = np.random.default_rng(0).integers(0, 2**63, (20_000, 4), dtype=np.uint64) | alike(0, range(0, 256, 11))
    values[17] = values[4711] ^ np.array([0, 6, 0, 0], np.uint64)
    uncompared = Uncompared()
    assert pairs_of(values, 10, uncompared) == {(17, 4711): 2}
    assert compared[0] < 100_000
    assert uncompared.pictures == 0


def test_of_too_many_that_are_nearly_one_it_is_told_that_they_were_not_compared(monkeypatch):
    """300 within four bits of one hash, and a pair that is not: the pair is found, the 300 are counted."""
    monkeypatch.setattr(duplicates, "_MOST", 11 * 4000)
    monkeypatch.setattr(duplicates, "_MOST_EACH", 0)
    rng = np.random.default_rng(1)
    values = np.stack([alike(0, rng.choice(256, 100, replace=False))] * 300 + [alike(0, range(0, 256, 2))] * 2)
    for row in values[:300]:
        row ^= alike(0, rng.choice(256, 4, replace=False))
    values[300] ^= np.array([1, 0, 0, 0], np.uint64)
    uncompared = Uncompared()
    listed = pairs_of(values, 10, uncompared)
    assert listed[300, 301] == 1
    assert len(listed) < 300 * 299 // 2
    assert uncompared.pictures == 300
    assert uncompared.pairs == 300 * 299 // 2
    complete = Uncompared()
    monkeypatch.setattr(duplicates, "_MOST", 1 << 29)
    assert listed.items() < pairs_of(values, 10, complete).items()
    assert complete.pictures == 0


def test_more_bits_than_the_bands_can_promise_are_refused():
    with pytest.raises(ValueError, match=r"choose from 0 … 15"):
        list(near_pairs(np.zeros((2, 4), np.uint64), 16, progress=False))


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_has_no_pair(count):
    assert sum(len(pairs) for pairs, _ in near_pairs(np.ones((count, 4), np.uint64), 10, progress=False)) == 0


def test_many_pairs_that_agree_in_a_band_are_compared_piece_by_piece(monkeypatch):
    """3,000 hashes alike in one of 11 bands: 4.5 million pairs, whose indices alone would be 72 MB."""
    monkeypatch.setattr(duplicates, "_CHUNK", 1 << 18)
    values = np.unpackbits(np.random.default_rng(0).integers(0, 256, (3000, 32), dtype=np.uint8), axis=1)
    values[:, ::11] = 1
    values = np.packbits(values, axis=1, bitorder="little").view("<u8")
    tracemalloc.start()
    try:
        count = sum(len(pairs) for pairs, _ in near_pairs(values, 10, progress=False))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 0
    assert peak < 36e6
