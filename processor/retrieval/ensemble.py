"""Branches and models ranked as one, by the sum of their distances or by their features side by side."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from processor.retrieval.distance import Block, Features, l2_normalize


def sum_blocks(sources: Sequence[Iterable[Block]], weights: Sequence[float] | None = None) -> Iterator[Block]:
    """Weighted sum of several sources' distances, block by block.

    Args:
        sources: iterators of (rows, distances [len(rows), G]) with the same rows in the same order, as
            `distance_blocks` and `re_ranked_blocks` give them for one block_rows.
        weights: of the sources, in their order; None: 1 for each.
    Returns:
        An iterator of (rows, sum [len(rows), G] float32). Sources are added in their order.
    Raises:
        ValueError: at the call, for no source or unfit weights; at a block, for sources that do not agree.

    >>> a, b = np.array([[1, 2]], np.float32), np.array([[10, 20]], np.float32)
    >>> [(rows, block.tolist()) for rows, block in sum_blocks([[(slice(0, 1), a)], [(slice(0, 1), b)]], [1, 0.5])]
    [(slice(0, 1, None), [[6.0, 12.0]])]
    """
    return _sum_blocks([iter(source) for source in sources], check_weights(len(sources), weights))


def _sum_blocks(sources: list[Iterator[Block]], weights: list[float]) -> Iterator[Block]:
    others = list(enumerate(zip(sources, weights, strict=True)))[1:]
    for rows, block in sources[0]:
        total = block if weights == [1] else block * np.float32(weights[0])
        for index, (source, weight) in others:
            other_rows, block = next(source, (None, None))
            if other_rows != rows:
                raise ValueError(_difference(index, other_rows, rows))
            if block.shape != total.shape:
                raise ValueError(f"{_format_rows(rows)}: source {index} has distances {block.shape}, "
                                 f"source 0 {total.shape}")
            total += block * np.float32(weight)
        yield rows, total
    for index, (source, _) in others:
        rows, _ = next(source, (None, None))
        if rows is not None:
            raise ValueError(_difference(index, rows, None))


def _difference(index: int, rows: slice | None, expected: slice | None) -> str:
    return f"source {index} gives {_format_rows(rows)} where source 0 gives {_format_rows(expected)}"


def _format_rows(rows: slice | None) -> str:
    return "no more rows" if rows is None else f"rows {rows.start} to {rows.stop - 1}"


def concat_features(feats: Sequence[Features], weights: Sequence[float] | None = None) -> np.ndarray:
    """Features that stand for several branches: each is normalised and scaled by sqrt(weight), then all side by side.

    The squared Euclidean distance of these features is the weighted sum of the branches' squared distances.

    Args:
        feats: [N, D_b] each, numpy (also memory-mapped) or CPU tensors.
        weights: of the branches, not negative; None: 1 for each.
    Returns:
        [N, sum of D_b] float32 in memory.
    Raises:
        ValueError: no branch, unfit weights, or branches of different N.

    >>> concat_features([np.array([[3.0, 0.0]]), np.array([[0.0, 7.0]])], [1, 4]).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """
    weights = check_weights(len(feats), weights)
    if min(weights) < 0:
        raise ValueError(f"weights {weights}: a feature cannot be scaled by the root of a negative weight")
    counts = [len(feat) for feat in feats]
    if len(set(counts)) > 1:
        raise ValueError(f"the branches hold different numbers of images: {counts}")
    out = np.empty((counts[0], sum(feat.shape[1] for feat in feats)), np.float32)
    start = 0
    for feat, weight in zip(feats, weights, strict=True):
        out[:, start : start + feat.shape[1]] = l2_normalize(feat)
        out[:, start : start + feat.shape[1]] *= np.float32(math.sqrt(weight))
        start += feat.shape[1]
    return out


def check_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    """The weights of so many sources; None: 1 for each.

    Raises:
        ValueError: there is no source, not a weight for each, or a weight that is not finite.

    >>> check_weights(2, None)
    [1.0, 1.0]
    >>> check_weights(2, [0.5])
    Traceback (most recent call last):
    ValueError: 1 weights for 2 inputs
    """
    if not count:
        raise ValueError("nothing to combine: no source was given")
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} inputs")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights {weights}: all must be finite")
    return weights


def check_same_order(names_by_source: Mapping[str, Sequence[str]]) -> None:
    """Make sure that row i is the same image in every source, before their distances are added.

    Args:
        names_by_source: source (a file or a model) -> its image names in order.
    Raises:
        ValueError: a source differs from the first; the message has the position, both names and both sources.

    >>> check_same_order({"a": ["0.png", "1.png"], "b": ["0.png", "2.png"]})
    Traceback (most recent call last):
    ValueError: the images differ at position 1: '1.png' in a, '2.png' in b
    """
    sources = iter(names_by_source.items())
    first, expected = next(sources, ("", ()))
    for source, names in sources:
        for position, (wanted, name) in enumerate(zip(expected, names, strict=False)):
            if wanted != name:
                raise ValueError(f"the images differ at position {position}: {wanted!r} in {first}, "
                                 f"{name!r} in {source}")
        if len(names) != len(expected):
            raise ValueError(f"{first} holds {len(expected)} images, {source} {len(names)}; "
                             f"they agree up to position {min(len(names), len(expected)) - 1}")
