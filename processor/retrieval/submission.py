"""The competition's answer file: {query name: [gallery names, nearest first]} as JSON."""
from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from utils.files import read_file, write_text


def write_submission(
    path: str | os.PathLike, query_names: Sequence[str], gallery_names: Sequence[str], indices: Sequence[np.ndarray],
) -> None:
    """Write the ranking of every query; the file appears whole or not at all.

    Args:
        path: the JSON file; its folder is made.
        query_names: [Q] as the competition spells them, no two alike.
        gallery_names: [G] likewise.
        indices: Q rows of positions in gallery_names, nearest first, as `top_k` gives them. Rows may differ in
            length: a small domain has fewer images than a list may hold.
    Raises:
        ValueError: there is not a row for each query, an index is no index or out of range, a name comes twice, or
            a row repeats an image.

    >>> write_submission(path, ["q.png"], ["a.png", "b.png"], [np.array([1, 0])])
    >>> print(path.read_text())
    {
    "q.png": ["b.png", "a.png"]
    }
    <BLANKLINE>
    """
    if len(indices) != len(query_names):
        raise ValueError(f"expected a row of indices for each of {len(query_names)} queries, got {len(indices)}")
    check_unique("query", query_names)
    check_unique("gallery image", gallery_names)
    lines = []
    for name, row in zip(query_names, indices, strict=True):
        row = np.asarray(row)
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"query {name!r}: expected a row of integer indices, got {row.dtype} {row.shape}")
        outside = np.flatnonzero((row < 0) | (row >= len(gallery_names)))
        if len(outside):
            raise ValueError(f"query {name!r}, rank {outside[0] + 1}: gallery index {row[outside[0]]} is out of "
                             f"range: there are {len(gallery_names)} images")
        names = [str(gallery_names[index]) for index in row]
        check_unique(f"query {name!r}: gallery image", names)
        lines.append(f"{json.dumps(str(name), ensure_ascii=False)}: {json.dumps(names, ensure_ascii=False)}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")  # a query a line: for eyes and for diff


class Problem(NamedTuple):
    """What is wrong in an answer file.

    Attributes:
        kind: the same few words for all faults of a kind, to count them by.
        text: a line that names the query, without the file.
    """

    kind: str
    text: str


def submission_problems(
    path: str | os.PathLike, query_names: Sequence[str], gallery_names: Sequence[str], top_k: int,
    fewest: Mapping[str, int] | None = None,
) -> Iterator[Problem]:
    """All that is wrong with an answer file, in the order of the file, and then the queries that it lacks.

    Whatever the file holds, nothing raises but OSError. Several faults of a kind in a list are a single problem.

    Args:
        query_names, gallery_names: as the competition spells them.
        top_k: names expected for each query, cut to the size of the gallery.
        fewest: {query: the least length that its list may have}; queries that are not in it, and None: top_k, cut.

    >>> write_text(path, '{"q.png": ["a.png", "a.png"]}')
    >>> [problem.text for problem in submission_problems(path, ["q.png"], ["a.png", "b.png"], top_k=2)]
    ["query 'q.png', rank 2: 'a.png' comes twice, first at rank 1"]
    """
    most, largest = min(top_k, len(gallery_names)), _largest_size(query_names, gallery_names, top_k)
    size = os.path.getsize(path)
    if size > largest:
        yield Problem("unreadable file", f"{size:,} bytes, where {len(query_names):,} queries × {most:,} names take "
                                         f"{largest:,} at most; it was not read")
        return
    try:
        pairs = _read_pairs(path)
    except ValueError as error:
        yield Problem("unreadable file", str(error))
        return
    with open(path, "rb") as source:
        if source.read(3) == codecs.BOM_UTF8:
            yield Problem("byte-order mark", "the file begins with a byte-order mark, which JSON readers refuse; save "
                                             "it as UTF-8 without")
    queries, gallery, seen = set(query_names), set(gallery_names), set()
    for query, names in pairs:
        label = f"query {_format_value(query)}"
        if query in seen:
            yield Problem("repeated query", f"{label}: comes more than once")
        elif query not in queries:
            yield Problem("unknown query", f"{label}: is not among the queries{_hint(query, queries)}")
        seen.add(query)
        if query in queries:
            least = most if fewest is None else fewest.get(query, most)
            yield from _list_problems(label, names, gallery, least, most)
    missing = [query for query in query_names if query not in seen]
    for query in missing:
        yield Problem("missing query", f"query {_format_value(query)}: is missing ({len(missing)} of "
                                       f"{len(query_names)} are)")


def _list_problems(query: str, names: Any, gallery: set[str], least: int, most: int) -> Iterator[Problem]:
    """What is wrong with the list of a query."""
    if not isinstance(names, list):
        yield Problem("no list", f"{query}: expected a list of gallery names, got {_format_value(names)}")
        return
    if not least <= len(names) <= most:
        expected = f"{most}" if least == most else f"{least} to {most}"
        yield Problem("wrong length", f"{query}: {len(names)} gallery names, expected {expected}")
    first_rank: dict[str, int] = {}
    faults: dict[str, list[str]] = {}
    for rank, name in enumerate(names, start=1):
        if not isinstance(name, str):
            faults.setdefault("no name", []).append(f"rank {rank}: expected a gallery name, got {_format_value(name)}")
        elif name not in gallery:
            faults.setdefault("unknown gallery name", []).append(
                f"rank {rank}: {_format_value(name)} is not in the gallery{_hint(name, gallery)}")
        elif first_rank.setdefault(name, rank) != rank:
            faults.setdefault("repeated gallery name", []).append(
                f"rank {rank}: {_format_value(name)} comes twice, first at rank {first_rank[name]}")
    for kind, texts in faults.items():
        more = f" (and {len(texts) - 1} more of its names)" if len(texts) > 1 else ""
        yield Problem(kind, f"{query}, {texts[0]}{more}")


class LeftOut(NamedTuple):
    """Of a query.

    Attributes:
        names: sets of gallery images that count neither as a match nor as a mistake; queries may share them.
        matches: images of its identity that are in none of these.
    """

    names: tuple[Set[str], ...]
    matches: int


def score_submission(
    answer: Mapping[str, Sequence[str]], query_pids: Mapping[str, Hashable], gallery_pids: Mapping[str, Hashable],
    k: int, left_out: Mapping[str, LeftOut] | None = None,
) -> dict[str, float | int]:
    """Rank-1, mAP@k and the NAIC score of an answer, from its lists alone.

    AP@k adds the precisions at the ranks of the matches among the first k names and divides by min(matches, k); the
    matches are those of the whole gallery, as `RankAccumulator` has it. A query without any is in no average.

    Args:
        answer: {query: gallery names, nearest first}, none of them twice.
        query_pids, gallery_pids: {image name: identity} of all images.
        k: ranks looked at.
        left_out: {query: what counts neither as a match nor as a mistake}; None: nothing.
    Returns:
        rank1, mAP@k and naic_score, their mean, in 0..1; num_valid and num_queries.
    Raises:
        ValueError: a query has no list, or none has a match in the gallery.

    >>> score_submission({"q.png": ["a.png", "b.png"]}, {"q.png": "ann"}, {"a.png": "bob", "b.png": "ann"}, k=2)
    {'rank1': 0.0, 'mAP@2': 0.5, 'naic_score': 0.25, 'num_valid': 1, 'num_queries': 1}
    """
    missing = query_pids.keys() - answer.keys()
    if missing:
        raise ValueError(f"{len(missing)} of {len(query_pids)} queries have no list, among them {min(missing)!r}")
    of_identity = Counter(gallery_pids.values())
    firsts, precisions = [], []
    for query, pid in query_pids.items():
        ignored, number = (left_out or {}).get(query, ((), of_identity[pid]))
        if number:
            names = answer[query]
            for others in ignored:
                names = [name for name in names if name not in others]
            names = names[:k]
            hits = [rank for rank, name in enumerate(names, start=1) if gallery_pids.get(name) == pid]
            firsts.append(hits[:1] == [1])
            precisions.append(sum(n / rank for n, rank in enumerate(hits, start=1)) / min(number, k))
    if not firsts:
        counted = " that counts by the set's protocol" if any(of_identity[pid] for pid in query_pids.values()) else ""
        raise ValueError(f"none of the {len(query_pids)} queries has an image of its identity in the gallery{counted}")
    rank1, mean_ap = float(np.mean(firsts)), float(np.mean(precisions))
    return {"rank1": rank1, f"mAP@{k}": mean_ap, "naic_score": (rank1 + mean_ap) / 2, "num_valid": len(firsts),
            "num_queries": len(query_pids)}


def _read_pairs(path: str | os.PathLike) -> tuple[tuple[str, Any], ...]:
    """The (query, value) pairs of a file, repeated queries too; a byte-order mark is passed over.

    JSON objects are tuples of pairs here, also within: dicts would keep the last of two equal keys.

    Raises:
        ValueError: it is not JSON or not an object; the message does not name the file.
    """
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")  # json itself would take NaN and Infinity

    try:
        answer = json.loads(read_file(path).decode("utf-8-sig"), object_pairs_hook=tuple, parse_constant=refuse)
    except RecursionError:
        raise ValueError("not a JSON file that can be read: it is nested too deeply") from None
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise ValueError(f"not a JSON file: {error}") from error
    if not isinstance(answer, tuple):
        raise ValueError(f"expected an object {{query name: [gallery names]}}, got {_format_value(answer)}")
    return answer


def _largest_size(query_names: Sequence[str], gallery_names: Sequence[str], top_k: int) -> int:
    """Bytes that no correct answer exceeds: every name escaped, each on an indented line; 1 MiB for the rest."""
    query, gallery = (max((len(json.dumps(name)) for name in names), default=0) + 16
                      for names in (query_names, gallery_names))
    return 2**20 + len(query_names) * (query + 16 + min(top_k, len(gallery_names)) * gallery)


def _hint(name: str, known: set[str]) -> str:
    """What may have been meant: the bare file name, or that with a suffix."""
    bare = name.strip().replace("\\", "/").rsplit("/", 1)[-1]
    near = next((guess for guess in (bare, f"{bare}.png", f"{bare}.jpg") if guess in known), None)
    return f"; did you mean {_format_value(near)}?" if near else ""


def _format_value(value: Any) -> str:
    """A value of an answer file in a message: a line, cut if it is long."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:80] + "…")
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return {list: "a list", tuple: "an object"}.get(type(value), "a number")


def check_unique(what: str, names: Iterable[str]) -> None:
    """Raise ValueError if a name comes twice.

    >>> check_unique("query", ["a.png", "b.png", "a.png"])
    Traceback (most recent call last):
    ValueError: query 'a.png' comes twice
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} comes twice")
        seen.add(name)
