"""YAML to settings and back: config files, with the chain of their bases, and the text of a whole config."""
from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.defaults import RULES, SECTIONS
from configs.rules import ConfigError, Str, format_raw

BASE = "_BASE_"
Settings = list[tuple[str, Any]]  # (dotted key, raw value), in the order of the text
_MOST = 1 << 18  # bytes of a config


class ConfigFile(NamedTuple):
    """A file of a chain of bases: what it sets (BASE apart), and a message for every key that it gives twice."""

    path: Path
    settings: Settings
    problems: list[str]


def read_chain(path: Path) -> Iterator[ConfigFile]:
    """A config file, then its base, then the base of that, up to a file without.

    `_BASE_: other.yml` names a file relative to the folder of the file that it stands in.

    Raises:
        ConfigError: at the first file that cannot be had, is no YAML or stands in the chain already; the message has
            the chain up to it, `a.yml -> b.yml: no such file`.
    """
    chain: list[Path] = []
    place: Path | None = path
    while place is not None:
        chain.append(place)
        try:
            text = _read_text(place)
            if any(place.samefile(earlier) for earlier in chain[:-1]):
                raise ConfigError(f"{BASE} goes in a circle; take it out of {chain[-2]}")
            settings, problems = parse_yaml(text)
            yield ConfigFile(place, [(key, raw) for key, raw in settings if key != BASE], problems)
            place = _base_of(place, settings)
        except ConfigError as error:
            raise ConfigError(f"{' -> '.join(map(str, chain))}: {error}") from None


def _base_of(path: Path, settings: Settings) -> Path | None:
    """The file that BASE names, None without it."""
    raws = [raw for key, raw in settings if key == BASE]
    try:
        return Path(os.path.normpath(path.parent / Str().parse(raws[-1]))) if raws else None
    except ValueError:
        raise ConfigError(f"{BASE}: expected the path of a YAML file, relative to the folder of this file, "
                          f"got {format_raw(raws[-1])}") from None


def _read_text(path: Path) -> str:
    """The file's text without a byte-order mark; ConfigError says why it cannot be had."""
    if path.exists() and not (path.is_file() or path.is_dir() or str(path).startswith("/dev/fd/")):
        raise ConfigError("a pipe, a device or a socket, not a file")  # whose reading may never end
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:  # it would be parsed for minutes
            raise ConfigError(f"more than {_MOST >> 10} KiB, which no config is")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such file (looked for from {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no system can have
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


# ---------------------------------------------------------------- text -> settings

class _TextLoader(yaml.SafeLoader):
    """SafeLoader that leaves scalars as they are written (null is None): the rules decide what they mean."""


for _tag in ("bool", "int", "float", "timestamp"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: loader.construct_scalar(node))


def parse_yaml(text: str) -> tuple[Settings, list[str]]:
    """The settings of a YAML text, and a message for every section or key that it gives twice.

    Raises:
        ConfigError: the text is not a YAML document, or not a mapping.
    """
    problems: list[str] = []
    try:
        loader = _TextLoader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):  # before construction, which unfolds `<<` in place
            problems += _repeated_keys(node, {})
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{line}not YAML that a config can hold: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigError(f"not YAML that a config can hold: {reason}") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"expected a mapping of sections at the top, got a {node.id}")
    return list(_settings(data or {})), problems


def _repeated_keys(node: yaml.MappingNode, lines: dict[str, int], prefix: str = "") -> Iterator[str]:
    """A message for every section or key that the text holds twice; `lines` collects the line of the first."""
    for key_node, value_node in node.value:
        name, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if name in lines:
            yield f"{name}: given twice, on line {lines[name]} and on line {line}"
        lines.setdefault(name, line)
        if isinstance(value_node, yaml.MappingNode) and not prefix:
            yield from _repeated_keys(value_node, lines, f"{name}.")


def _settings(data: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping. A mapping below a section's key stays one, and no rule takes it."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not prefix and key not in (BASE, *RULES):
            yield from _settings(value, f"{key}.")
        elif isinstance(value, Mapping) and key == "SOLVER.STAGE2":  # CLIP-ReID's: what is a training here
            yield from _settings(value, prefix)
        elif isinstance(value, Mapping) and key == "SOLVER.STAGE1":
            yield key, str(value)
        elif value is None and key in SECTIONS:
            continue  # all of its keys are comments
        else:
            yield key, value


# ---------------------------------------------------------------- values -> text

class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists on one line, and escapes texts with unusual line ends."""


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
# Unquoted, U+0085 and its like would be read back as a line end.
_Dumper.add_representer(str, lambda dumper, data: dumper.represent_scalar(
    "tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"'))


def format_yaml(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """{dotted key: value} as YAML, a line each, with its comment behind it."""
    lines, current = [], ""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section != current:
            lines.append(f"{section}:\n" if section else "")
            current = section
        line = yaml.dump({name: value}, Dumper=_Dumper, allow_unicode=True, width=math.inf).rstrip("\n")
        comment = f"  # {comments[key]}" if key in comments else ""
        lines.append(f"{'  ' if section else ''}{line}{comment}\n")
    return "".join(lines)
