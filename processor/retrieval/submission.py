"""The competition's answer file: {query name: [gallery names, nearest first]} as JSON."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from utils.files import write_text


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
    """
    if len(indices) != len(query_names):
        raise ValueError(f"expected a row of indices for each of {len(query_names)} queries, got {len(indices)}")
    _check_unique("query names", query_names)
    _check_unique("gallery names", gallery_names)
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
        _check_unique(f"query {name!r}: gallery names", names)
        lines.append(f"{json.dumps(str(name), ensure_ascii=False)}: {json.dumps(names, ensure_ascii=False)}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")  # a query a line: for eyes and for diff


def read_submission(path: str | os.PathLike) -> dict[str, list[str]]:
    """Read an answer file.

    Raises:
        ValueError: it is not JSON, not an object of lists of names, or holds a query twice; the message names the
            file and the query.
    """
    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_unique(f"{path}: query names", [name for name, _ in pairs])  # json itself would keep the last
        return dict(pairs)

    with open(path, encoding="utf-8") as source:
        try:
            answer = json.load(source, object_pairs_hook=each_once)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(answer, dict):
        raise ValueError(f"{path}: expected an object {{query name: [gallery names]}}, got {type(answer).__name__}")
    for query, names in answer.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: query {query!r}: expected a list of gallery names")
    return answer


def check_submission(
    path: str | os.PathLike, query_names: Sequence[str], gallery_names: Sequence[str], top_k: int,
) -> None:
    """Make sure that an answer file is complete: every query once, with top_k different gallery images.

    Args:
        top_k: names expected for each query, cut to the size of the gallery.
    Raises:
        ValueError: the first thing that is wrong, with the file and the query.
    """
    answer = read_submission(path)
    missing = [name for name in query_names if name not in answer]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(query_names)} queries are missing, the first is "
                         f"{missing[0]!r}")
    unknown = answer.keys() - set(query_names)
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} unknown queries, among them {min(unknown)!r}")
    known, expected = set(gallery_names), min(top_k, len(gallery_names))
    for query, names in answer.items():
        where = f"{path}: query {query!r}"
        if len(names) != expected:
            raise ValueError(f"{where}: {len(names)} gallery names, expected {expected}")
        _check_unique(f"{where}: gallery names", names)
        for rank, name in enumerate(names, start=1):
            if name not in known:
                raise ValueError(f"{where}, rank {rank}: {name!r} is not in the gallery")


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: {name!r} comes twice")
        seen.add(name)
