"""Odd values, and what a change may draw from: words and numbers that programs stumble over, and hypothesis' values."""
from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

SEALED = "its checksum made anew"  # said of a change that leaves no wrong one
NUMBERS = (0, 1, -1, 127, 128, 255, 256, 65535, 2**31 - 1, -2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -2**63, 2**64)
WORDS = ("", "nan", "inf", "-1", "0", "1e999", "null", "[]", "{}", "..", "../../etc/passwd", "/etc/passwd", "C:\\x",
         "\0", "\ufeff", "\u202e", "é", "中文", "a" * 300, "0x41", "1_000", "9" * 400, "9" * 5000, "%s%n", "~", "*",
         "&a", "\n", "\t", "'", '"', ":", ",", ";", "#", "=1+1", "True")
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, 0.5, -0.0, 1e308, *WORDS, [], {}, [[]], {"": None}, [None],
                           [1, [2, [3]]], {"a": {"b": {}}}, ["../x"] * 3, [0] * 1000, "x" * 100_000)
_DRAWN = 400  # values of hypothesis that a campaign draws from


class Means(NamedTuple):
    """What a change works with.

    Attributes:
        canary: the file that code in a damaged file would make.
        others: files of other kinds, to take pieces of.
        values: plain values (of JSON) to put in.
        texts: texts of any characters that UTF-8 has.
    """

    canary: Path
    others: list[bytes]
    values: list[Any]
    texts: list[str]


Change = Callable[[bytes, Random, Means], tuple[bytes, str]]  # a damaged copy, and what was done in words


def means_of(canary: Path, others: list[bytes], seed: int = 0) -> Means:
    """With hypothesis' values of a seed, where it is installed; it tends to the ends of ranges and odd characters."""
    values, texts = _structured(seed)
    return Means(canary, others, [*VALUES, *values], [*WORDS, *texts])


@functools.cache
def _structured(seed: int) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Plain values, however nested, and texts; the same for the same seed and version of hypothesis."""
    try:
        from hypothesis import strategies as st
    except ImportError:
        return (), ()
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | text
    nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
                          max_leaves=12)
    return _examples(nested, seed), _examples(text, seed)


def _examples(strategy: Any, seed: int) -> tuple[Any, ...]:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    found = []

    @settings(max_examples=_DRAWN, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @seeded(seed)
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return tuple(found)
