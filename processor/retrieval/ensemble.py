"""Joining branches and models, by their distances or by their features."""
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
        weights: one for each source; None: 1 for each.
    Returns:
        An iterator of (rows, sum [len(rows), G] float32). Sources are added in their order.
    Raises:
        ValueError: at the call, for no source or unfit weights; at a block, for sources that do not agree.
    """
    return _sum_blocks([iter(source) for source in sources], _check_weights(len(sources), weights))


def _sum_blocks(sources: list[Iterator[Block]], weights: list[float]) -> Iterator[Block]:
    others = list(enumerate(zip(sources, weights, strict=True)))[1:]
    for rows, block in sources[0]:
        total = block * np.float32(weights[0])
        for index, (source, weight) in others:
            other_rows, block = next(source, (None, None))
            if other_rows != rows:
                raise ValueError(f"source {index} gives {_name(other_rows)} where source 0 gives {_name(rows)}")
            if block.shape != total.shape:
                raise ValueError(f"{_name(rows)}: source {index} has distances {block.shape}, source 0 {total.shape}")
            total += block * np.float32(weight)
        yield rows, total
    for index, (source, _) in others:
        rows, _ = next(source, (None, None))
        if rows is not None:
            raise ValueError(f"source {index} gives {_name(rows)} where source 0 gives no more rows")


def _name(rows: slice | None) -> str:
    return "no more rows" if rows is None else f"rows {rows.start} to {rows.stop - 1}"


def concat_features(feats: Sequence[Features], weights: Sequence[float] | None = None) -> np.ndarray:
    """One feature that stands for several branches: each is normalised, scaled by sqrt(weight) and joined.

    The squared Euclidean distance of the joined features is the weighted sum of the branches' squared distances.

    Args:
        feats: [N, D_b] each, numpy (also memory-mapped) or CPU tensors.
        weights: one for each branch, not negative; None: 1 for each.
    Returns:
        [N, sum of D_b] float32 in memory.
    Raises:
        ValueError: no branch, unfit weights, or branches of different N.
    """
    weights = _check_weights(len(feats), weights)
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


def _check_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    if not count:
        raise ValueError("nothing to join: no source was given")
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} sources")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights {weights}: every one must be finite")
    return weights


def check_same_order(names_by_source: Mapping[str, Sequence[str]]) -> None:
    """Make sure that row i is the same image in every source, before their distances are added.

    Args:
        names_by_source: source (a file or a model) -> its image names in order.
    Raises:
        ValueError: the first place where a source differs from the first one: position, both names, both sources.
    """
    sources = iter(names_by_source.items())
    first, expected = next(sources, ("", ()))
    for source, names in sources:
        for position, (ours, theirs) in enumerate(zip(expected, names, strict=False)):
            if ours != theirs:
                raise ValueError(f"the images differ at position {position}: {ours!r} in {first}, "
                                 f"{theirs!r} in {source}")
        if len(names) != len(expected):
            raise ValueError(f"{first} holds {len(expected)} images, {source} {len(names)}; "
                             f"they agree up to position {min(len(names), len(expected)) - 1}")
