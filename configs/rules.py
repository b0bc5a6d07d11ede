"""The kinds of rule that a key's value has to pass.

Values reach the rules as they are written in the file or on the command line: a rule, not YAML 1.1, decides what a
text means. (YAML 1.1 reads `no` as False, `3e-4` as a string and `010` as eight.) Values given from Python in their
key's type pass through the same rules.

A rule has parse(raw) -> value, which raises ValueError (its text is a hint, or "") for what it does not take, and
str(rule), which completes "expected ...". parse(parse(raw)) == parse(raw), so that a written config reads back.
"""
from __future__ import annotations

import difflib
import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """Mistakes in a config file or in the options of a command line: a line each."""


_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BRACKETED_STRING = re.compile(r"\(\s*(['\"])(.*)\1\s*\)", re.DOTALL)
_NULLS = ("null", "Null", "NULL", "None", "~")


def is_null(raw: Any) -> bool:
    """Is it no value, or a spelling of that?"""
    return raw is None or (isinstance(raw, str) and raw in _NULLS)


def format_raw(raw: Any, depth: int = 2) -> str:
    """A value as the user wrote it, for a message; long and deep values are cut."""
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, (list, tuple)):
        if depth == 0:
            return "[...]"
        return "[" + ", ".join([format_raw(item, depth - 1) for item in raw[:8]] + ["..."] * (len(raw) > 8)) + "]"
    if isinstance(raw, int) and raw.bit_length() > 200:  # Python refuses to print integers of many digits.
        return f"an integer of {raw.bit_length()} bits"
    is_plain = isinstance(raw, str) and raw and raw == raw.strip() and raw.isprintable()
    text = raw if is_plain else repr(raw)
    return text if len(text) <= 80 else text[:77] + "..."


def _unbracketed(raw: Any) -> Any:
    """('naic') -> naic: the lineage writes texts as Python expressions in brackets. What is no text stays."""
    while isinstance(raw, str) and (match := _BRACKETED_STRING.fullmatch(raw.strip())):
        raw = match[2]
    return raw


def _range_text(low: float | None, high: float | None, above: float | None = None) -> str:
    """The end of a sentence about a range: '', ' >= 1', ' > 0', ' in 0..1'."""
    if above is not None:
        return f" > {above}" + (f" and <= {high}" if high is not None else "")
    if low is not None and high is not None:
        return f" in {low}..{high}"
    return f" >= {low}" if low is not None else ""


@dataclass(frozen=True)
class Bool:
    """True or False; the texts true/false, on/off and yes/no in any case. 1 and 0 are not booleans."""

    def parse(self, raw: Any) -> bool:
        if isinstance(raw, bool):
            return raw
        raw = _unbracketed(raw)
        if isinstance(raw, str) and raw.lower() in _BOOLEANS:
            return _BOOLEANS[raw.lower()]
        raise ValueError

    def __str__(self) -> str:
        return "true or false (or on/off, yes/no)"


@dataclass(frozen=True)
class Int:
    """An integer in low..high, either end open when None. A bool is not an integer, 10.0 is not either."""

    low: int | None = None
    high: int | None = None

    def parse(self, raw: Any) -> int:
        if isinstance(raw, str) and _INTEGER.fullmatch(raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError
        if (self.low is not None and raw < self.low) or (self.high is not None and raw > self.high):
            raise ValueError
        return raw

    def __str__(self) -> str:
        return "an integer" + _range_text(self.low, self.high)


@dataclass(frozen=True)
class Float:
    """A finite number, >= low or > above, and <= high; each is optional. Integers become floats."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def parse(self, raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise ValueError
        if isinstance(raw, str) and not _NUMBER.fullmatch(raw):
            raise ValueError
        try:
            value = float(raw)
        except OverflowError:
            raise ValueError from None
        if not math.isfinite(value) or (self.low is not None and value < self.low):
            raise ValueError
        if (self.high is not None and value > self.high) or (self.above is not None and value <= self.above):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "a finite number" + _range_text(self.low, self.high, self.above)


@dataclass(frozen=True)
class Str:
    """A text, or a path object; the lineage's brackets are taken off. "" passes if empty is True."""

    empty: bool = False

    def parse(self, raw: Any) -> str:
        if isinstance(raw, int) and not isinstance(raw, bool):
            raw = str(raw)
        if isinstance(raw, os.PathLike):
            raw = os.fspath(raw)
        if not isinstance(raw, str):
            raise ValueError
        raw = _unbracketed(raw)
        if is_null(raw) or not (self.empty or raw.strip()):
            raise ValueError
        return raw

    def __str__(self) -> str:
        return 'a string ("" for none)' if self.empty else "a string that is not empty"


class Choice:
    """A text of a few, spelled exactly."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def parse(self, raw: Any) -> str:
        if isinstance(raw, bool):  # `NECK: no`, as a reader of YAML 1.1 gives it
            spellings = [text for text, value in _BOOLEANS.items() if value is raw and text in self.choices]
            raw = spellings[0] if len(spellings) == 1 else raw
        if not isinstance(raw, str):
            raise ValueError
        value = Str().parse(raw)
        if value not in self.choices:
            folded = {choice.lower(): choice for choice in self.choices}
            near = difflib.get_close_matches(value.lower(), folded, n=1)
            raise ValueError(f"did you mean {folded[near[0]]}?" if near else "")
        return value

    def __str__(self) -> str:
        return " | ".join(self.choices)


@dataclass(frozen=True)
class OrAuto:
    """What a rule takes, or the text auto."""

    rule: Any

    def parse(self, raw: Any) -> Any:
        text = _unbracketed(raw)
        return text if isinstance(text, str) and text == "auto" else self.rule.parse(raw)

    def __str__(self) -> str:
        return f"auto, or {self.rule}"


@dataclass(frozen=True)
class DeviceIds:
    """CUDA device numbers as one text: '0', '0,1'."""

    def parse(self, raw: Any) -> str:
        value = re.sub(r"\s", "", Str().parse(raw))
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", value):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "device numbers such as 0 or 0,1"


@dataclass(frozen=True)
class NamedShare:
    """A name and a number > 0 as one text, 'name:2.5'."""

    def parse(self, raw: Any) -> str:
        name, colon, share = Str().parse(raw).rpartition(":")
        if not colon or not name.strip():
            raise ValueError
        Float(above=0).parse(share.strip())
        return f"{name.strip()}:{share.strip()}"

    def __str__(self) -> str:
        return "a name and a number > 0, such as train_2019_cs:2.5"


@dataclass(frozen=True)
class NamedFolders:
    """A list of texts NAME=FOLDER, each name once; a single one may stand without brackets."""

    def parse(self, raw: Any) -> list[str]:
        alone = isinstance(raw, str) and raw.strip()[:1] not in ("(", "[")
        pairs = [Str().parse(item).partition("=") for item in ([raw] if alone else _items(raw))]
        value = {name.strip(): folder.strip() for name, _, folder in pairs}
        if not all(name and folder for name, folder in value.items()):
            raise ValueError
        if len(value) < len(pairs):
            raise ValueError("a name is there twice")
        return [f"{name}={folder}" for name, folder in value.items()]

    def __str__(self) -> str:
        return "a list of NAME=FOLDER, such as ['market1501=/data/market', 'naic=/data/naic']"


def _items(raw: Any) -> list:
    """The items of a list, a tuple, or of a text in () or [] such as "(256, 128)"; quotes of items are taken off."""
    if isinstance(raw, (list, tuple)):
        return list(raw)
    if not isinstance(raw, str) or raw.strip()[:1] + raw.strip()[-1:] not in ("()", "[]"):
        raise ValueError
    inner = raw.strip()[1:-1].strip().removesuffix(",")
    return [re.sub(r"^(['\"])(.*)\1$", r"\2", item.strip()) for item in inner.split(",")] if inner else []


@dataclass(frozen=True)
class ListOf:
    """A list of any length (0, too) whose items keep one rule."""

    item: Any
    increasing: bool = False
    unique: bool = False

    def parse(self, raw: Any) -> list:
        value = [self.item.parse(item) for item in _items(raw)]
        # Strictly: the same step twice would be one step too few or one too many.
        if self.increasing and any(left >= right for left, right in itertools.pairwise(value)):
            raise ValueError("they must increase")
        if self.unique and len(set(value)) < len(value):
            raise ValueError("an item is there twice")
        return value

    def __str__(self) -> str:
        return f"a list, each item {self.item}"


@dataclass(frozen=True)
class Row:
    """A list of fixed length whose items have a name and a rule each."""

    items: Mapping[str, Any]

    def parse(self, raw: Any) -> list:
        values = _items(raw)
        if len(values) != len(self.items):
            raise ValueError(f"{len(values)} items")
        return [rule.parse(value) for rule, value in zip(self.items.values(), values, strict=True)]

    def __str__(self) -> str:
        names, rules = ", ".join(self.items), {str(rule) for rule in self.items.values()}
        if len(rules) == 1:
            return f"[{names}], each {rules.pop()}"
        return f"[{names}]: " + ", ".join(f"{name} {rule}" for name, rule in self.items.items())


@dataclass(frozen=True)
class Obsolete:
    """A key of the lineage that is still understood and does nothing: its rule, and why."""

    rule: Any
    reason: str

    def parse(self, raw: Any) -> Any:
        return self.rule.parse(raw)

    def __str__(self) -> str:
        return str(self.rule)
