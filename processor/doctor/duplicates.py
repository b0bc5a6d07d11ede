"""Finding equal and nearly equal images by their digests: sorting, in memory proportional to the number of images."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.progress import progress as show_progress

MAX_BITS = 15      # more would leave bands of few bits, and so nearly all pairs to be compared
_BITS = 256        # of a hash
_CHUNK = 1 << 20   # pairs compared at a time
_SPLIT = 1 << 12   # images that agree in a band; more of them are dealt by their other bits, too
_MOST = 1 << 29    # pairs compared at the most, a minute's work or, if all are near, some; or, if that is more, …
_MOST_EACH = 1 << 10  # … so many for each image

logger = logging.getLogger(__name__)


def equal_groups(digests: np.ndarray, which: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of two or more images with one digest.

    Args:
        digests: [N, 2] uint64.
        which: [N] bool, the images to look at.
    Returns:
        [n] indices, ascending, of each group; the groups in the order of their first images.
    """
    indices = np.flatnonzero(which)
    chosen = digests[indices]
    order = np.lexsort((chosen[:, 1], chosen[:, 0]))  # stable: equal ones keep their order
    chosen = chosen[order]
    starts = np.flatnonzero(np.concatenate([[True], (chosen[1:] != chosen[:-1]).any(1)])[:len(chosen)])
    ends = np.append(starts[1:], len(chosen))
    several = ends - starts > 1
    starts, ends = starts[several], ends[several]
    indices = indices[order]
    for group in np.argsort(indices[starts]):
        yield indices[starts[group]:ends[group]]


@dataclass
class Uncompared:
    """What near_pairs left out: `pairs`, at the most, among `pictures`."""

    pairs: int = 0
    pictures: int = 0


def near_pairs(hashes: np.ndarray, most_bits: int, progress: bool = True,
               uncompared: Uncompared | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of images whose perceptual hashes differ in at most `most_bits` bits.

    Exact: the bits are dealt into one band more than there may be differences, so that one band at least has none, and
    only images that agree in a band are compared. Where many agree in one, their other bits are dealt likewise. Equal
    hashes count as pairs of neighbours in a chain (n images give n - 1 pairs, not n² / 2), and only the first of them
    is compared with others.

    Thousands of hashes that are all nearly one agree in all bands, and their pairs are n² / 2: of a band no more are
    compared than a share of _MOST or of _MOST_EACH times N, those of the largest groups are left out.

    Args:
        hashes: [N, 4] uint64; a hash of 0 stands for no picture and is passed over.
        most_bits: 0 … MAX_BITS.
        progress: True: show how far it is.
        uncompared: takes up what was left out.
    Returns:
        ([n, 2] int64, lower index first; [n] number of different bits), piece by piece; each pair once.
    """
    if not 0 <= most_bits <= MAX_BITS:
        raise ValueError(f"most_bits={most_bits}: choose from 0 … {MAX_BITS}")
    indices = np.flatnonzero(hashes.any(1))
    order = indices[np.lexsort(hashes[indices].T)]
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(1)
    yield np.stack([order[:-1][same], order[1:][same]], 1), np.zeros(same.sum(), np.int64)
    if not most_bits:
        return
    firsts = np.sort(order[np.concatenate([[True], ~same])[:len(order)]])
    chosen = np.ascontiguousarray(hashes[firsts])
    bands = _bands(chosen, most_bits + 1, range(_BITS))
    is_compared = np.ones(bands.shape, bool)
    share = max(_MOST, _MOST_EACH * len(chosen)) // len(bands)
    numbers = range(len(bands))
    for band in (show_progress(numbers, "near-duplicates", "band") if progress else numbers):
        chosen_groups, left_out = _choose(chosen, bands[band], band, most_bits, share)
        for members in left_out:
            is_compared[band, members] = False
        for a, b, bits in chosen_groups:
            for earlier in range(band):  # what agrees in one that was compared was found there
                new = (bands[earlier, a] != bands[earlier, b]) | ~is_compared[earlier, a]
                a, b, bits = a[new], b[new], bits[new]
            yield np.stack([firsts[a], firsts[b]], 1), bits
    if uncompared is not None and not is_compared.all():
        uncompared.pictures = int((~is_compared).any(0).sum())
        uncompared.pairs = uncompared.pictures * (uncompared.pictures - 1) // 2


Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions a < b, and in how many bits their hashes differ


def _choose(hashes: np.ndarray, keys: np.ndarray, band: int, most_bits: int,
            share: int) -> tuple[Iterator[Found], list[np.ndarray]]:
    """The near pairs of a band, as far as about `share` comparisons go, and the members of the groups without."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])[:len(order)])
    sizes = np.diff(np.append(starts, len(order)))
    costs = sizes * (sizes - 1) // 2
    dealt: dict[int, np.ndarray] = {}
    for group in np.flatnonzero(sizes > _SPLIT):
        members = order[starts[group]:starts[group] + sizes[group]]
        inner = _bands(hashes[members], most_bits + 1, [bit for bit in range(_BITS) if bit % (most_bits + 1) != band])
        cost = sum(map(_count_agreeing, inner))
        if cost < costs[group]:
            dealt[int(group)], costs[group] = inner, cost
    cheapest = np.argsort(costs, kind="stable")
    is_taken = np.zeros(len(sizes), bool)
    is_taken[cheapest[np.cumsum(costs[cheapest]) <= share]] = True
    left_out = [order[starts[group]:starts[group] + sizes[group]] for group in np.flatnonzero(~is_taken)]
    is_whole = is_taken.copy()
    is_whole[list(dealt)] = False

    def find() -> Iterator[Found]:
        yield from _near_of(hashes, keys, order[np.repeat(is_whole, sizes)], most_bits)
        for group, inner in dealt.items():
            members = order[starts[group]:starts[group] + sizes[group]]
            for number, inner_keys in enumerate(inner if is_taken[group] else ()):
                for a, b, bits in _near_of(hashes[members], inner_keys, np.arange(len(members)), most_bits):
                    for earlier in range(number):
                        new = inner[earlier, a] != inner[earlier, b]
                        a, b, bits = a[new], b[new], bits[new]
                    yield members[a], members[b], bits

    return find(), left_out


def _near_of(hashes: np.ndarray, keys: np.ndarray, members: np.ndarray, most_bits: int) -> Iterator[Found]:
    """The near pairs of the members with equal keys."""
    members = np.sort(members)
    for a, b in _agreeing_pairs(keys[members]):
        a, b = members[a], members[b]
        bits = _differing_bits(hashes, a, b, most_bits)
        kept = bits <= most_bits
        yield a[kept], b[kept], bits[kept]


def _bands(hashes: np.ndarray, number: int, bits: Sequence[int]) -> np.ndarray:
    """[number, N] uint32: of these bits every number-th one, from the first, the second, … on; 32 bits at most."""
    bands = np.zeros((number, len(hashes)), np.uint32)
    for band in range(number):
        for place, bit in enumerate(bits[band::number][:32]):
            ones = hashes[:, bit // 64] >> np.uint64(bit % 64) & np.uint64(1)
            bands[band] |= ones.astype(np.uint32) << np.uint32(place)
    return bands


def _count_agreeing(keys: np.ndarray) -> int:
    """How many pairs have equal keys."""
    sizes = np.unique(keys, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _agreeing_pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (a, b), a < b, of positions with equal keys, about _CHUNK at a time."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    # Of each place in the order: how many of the same key come after it.
    ends = np.searchsorted(ordered, ordered, side="right")
    after = ends - np.arange(len(ordered)) - 1
    done = np.concatenate([[0], np.cumsum(after)])
    total, start = int(done[-1]), 0
    while start < len(after) and done[start] < total:
        stop = max(start + 1, int(np.searchsorted(done, done[start] + _CHUNK, side="right")) - 1)
        counts = after[start:stop]
        first = np.repeat(np.arange(start, stop), counts)
        offset = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[first], order[first + 1 + offset]
        start = stop


def _differing_bits(hashes: np.ndarray, a: np.ndarray, b: np.ndarray, enough: int) -> np.ndarray:
    """[n] bits in which the hashes a and b differ; only those of the first words if these are more than `enough`."""
    bits = _popcount(hashes[a, 0] ^ hashes[b, 0])
    near = np.flatnonzero(bits <= enough)
    for word in range(1, hashes.shape[1]):
        bits[near] += _popcount(hashes[a[near], word] ^ hashes[b[near], word])
        near = near[bits[near] <= enough]
    return bits


def _popcount(words: np.ndarray) -> np.ndarray:
    """[n] int64, the set bits of uint64 words; numpy has it from 2.0 on. Source: Warren, Hacker's Delight, 5-1."""
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
