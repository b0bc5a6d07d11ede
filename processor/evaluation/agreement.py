"""What several tested models must share before they are ranked as one or tuned together."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from utils.files import as_damage

Value = TypeVar("Value")


def common_setting(key: str, values: Mapping[str, Value]) -> Value:
    """The value of a setting that all inputs were tested with.

    Args:
        key: the setting, as the message names it.
        values: {input: its value}, of at least one input.
    Raises:
        ValueError: they differ.
    """
    if len(set(values.values())) > 1:
        raise ValueError(f"the inputs were tested with different settings of {key}: {dict(values)}; run tools/test.py "
                         "again with the same ones")
    return next(iter(values.values()))


def common_top_k(indices: Mapping[str, dict]) -> int:
    """The TEST.TOP_K of feature banks.

    Args:
        indices: {input: its bank's index}.
    Raises:
        ValueError: they differ.
    """
    with as_damage("the index of a feature bank", "run tools/test.py again"):
        return common_setting("TEST.TOP_K", {name: index["evaluation"]["top_k"] for name, index in indices.items()})


def common_domains(domains: Mapping[str, Collection[str]], wanted: str = "all") -> list[str]:
    """The wanted domain, or all, if every input has them.

    Args:
        domains: {input: its domains}.
    Raises:
        ValueError: an input lacks the wanted domain, or the inputs have different ones.
    """
    if wanted != "all":
        lacking = [name for name, known in domains.items() if wanted not in known]
        if lacking:
            raise ValueError(f"{lacking[0]} has no domain {wanted}; it has {', '.join(domains[lacking[0]])}")
        return [wanted]
    domains = {name: list(known) for name, known in domains.items()}
    first = next(iter(domains.values()))
    if any(set(known) != set(first) for known in domains.values()):
        raise ValueError(f"the inputs have different domains: {domains}; test all on the same set "
                         "(tools/tune_rerank.py can also take a domain that all have: --domain)")
    return first
