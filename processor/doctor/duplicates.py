"""Finding equal and nearly equal images by their digests: sorting, in memory proportional to the number of images."""
from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from utils.progress import progress as show_progress

MAX_BITS = 15      # more would leave bands of few bits, and so nearly all pairs to be compared
_BITS = 256        # of a hash
_CHUNK = 1 << 20   # pairs compared at a time

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


def near_pairs(hashes: np.ndarray, most_bits: int, progress: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of images whose perceptual hashes differ in at most `most_bits` bits.

    Exact: the bits are dealt into one band more than there may be differences, so that one band at least has none, and
    only images that agree in a band are compared. Equal hashes count as pairs of neighbours in a chain (n images give
    n - 1 pairs, not n² / 2), and only the first of them is compared with others.

    Args:
        hashes: [N, 4] uint64; a hash of 0 stands for no picture and is passed over.
        most_bits: 0 … MAX_BITS.
        progress: True: show how far it is.
    Returns:
        ([n, 2] int64, lower index first; [n] number of different bits), piece by piece; each pair once.
    """
    if not 0 <= most_bits <= MAX_BITS:
        raise ValueError(f"most_bits={most_bits}: choose from 0 … {MAX_BITS}")
    indices = np.flatnonzero(hashes.any(1))
    order = indices[np.lexsort(hashes[indices].T)]
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(1)
    yield np.stack([order[:-1][same], order[1:][same]], 1), np.zeros(same.sum(), np.int64)
    firsts = np.sort(order[np.concatenate([[True], ~same])[:len(order)]])
    chosen = np.ascontiguousarray(hashes[firsts])
    bands = _bands(chosen, most_bits + 1)
    numbers = range(len(bands))
    for band in (show_progress(numbers, "near-duplicates", "band") if progress else numbers):
        for a, b in _agreeing_pairs(bands[band]):
            bits = _differing_bits(chosen, a, b, most_bits)
            kept = bits <= most_bits
            a, b, bits = a[kept], b[kept], bits[kept]
            new = ~(bands[:band, a] == bands[:band, b]).any(0)  # the others are pairs of an earlier band
            yield np.stack([firsts[a[new]], firsts[b[new]]], 1), bits[new]


def _bands(hashes: np.ndarray, number: int) -> np.ndarray:
    """[number, N] uint32: of each hash every number-th bit, from the first, the second, … on; 32 bits at most."""
    bands = np.zeros((number, len(hashes)), np.uint32)
    for band in range(number):
        for place, bit in enumerate(range(band, _BITS, number)[:32]):
            ones = hashes[:, bit // 64] >> np.uint64(bit % 64) & np.uint64(1)
            bands[band] |= ones.astype(np.uint32) << np.uint32(place)
    return bands


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
