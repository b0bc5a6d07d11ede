"""Configs: the default tree, a YAML file over it, options of the command line over that; checked, then frozen."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.checks import cross_problems, remarks
from configs.defaults import get_cfg_defaults
from configs.rules import ConfigError
from configs.schema import OBSOLETE, RULES, coerce

__all__ = ["ConfigError", "change_cfg", "dump_cfg", "flatten_cfg", "load_cfg", "load_cfg_text"]

logger = logging.getLogger(__name__)


def load_cfg(config_file: str | Path | None, opts: Sequence[Any] | None = None) -> CfgNode:
    """The config of a run. The only place where configs are merged.

    Keys that neither the file nor the options set keep their defaults. Relative paths in the result are relative
    to the current folder. An empty OUTPUT_DIR becomes output/<name of the file>, output/default without one.
    Obsolete keys that were set are named in one warning.

    Args:
        config_file: YAML file, or None for the defaults alone.
        opts: KEY VALUE pairs such as ["SOLVER.MAX_EPOCHS", "3"]; values are texts as on a command line, or have
            the key's own type. The last of a key counts.
    Returns:
        A frozen tree that shares nothing with other calls' results.
    Raises:
        ConfigError: all mistakes of the file and of the options, a line each.
    """
    draft = _Draft()
    stem = "default"
    if config_file is not None:
        path = Path(config_file)
        stem = path.stem
        try:
            draft.add(str(path), _read_yaml(_read_file(path), str(path), draft.problems))
        except ConfigError as error:
            draft.give_up(str(error))
    draft.add("command line", _read_opts(opts or [], draft.problems))
    sources = ([str(config_file)] if config_file is not None else []) + (["command line"] if opts else [])
    return draft.finish(" + ".join(sources) or "defaults", stem, speak=True)


def load_cfg_text(text: str, name: str = "config text") -> CfgNode:
    """The config written by `dump_cfg`, for instance the one in a checkpoint. Does not warn.

    Args:
        text: YAML.
        name: what to call the text in messages, such as the checkpoint's path.
    Raises:
        ConfigError: as `load_cfg`.
    """
    draft = _Draft()
    try:
        draft.add(name, _read_yaml(text, name, draft.problems))
    except ConfigError as error:
        draft.give_up(str(error))
    return draft.finish(name, "default", speak=False)


def change_cfg(cfg: CfgNode, changes: Mapping[str, Any]) -> CfgNode:
    """Another config with other values of some keys, {dotted key: value}; `cfg` stays as it is. Does not warn.

    Raises:
        ConfigError: as `load_cfg`.
    """
    draft = _Draft()
    draft.add("config", iter({**flatten_cfg(cfg), **changes}.items()))
    return draft.finish("config", "default", speak=False)


def dump_cfg(cfg: CfgNode) -> str:
    """The tree as YAML that `load_cfg` and `load_cfg_text` read back to the same tree.

    Obsolete keys at their default are left out, so that the text does not set them and loads without a warning.
    """
    defaults = flatten_cfg(get_cfg_defaults())
    tree: dict[str, Any] = {}
    for key, value in flatten_cfg(cfg).items():
        if key in OBSOLETE and value == defaults[key]:
            continue
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def flatten_cfg(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of every leaf, in the tree's order."""
    leaves = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            leaves.update(flatten_cfg(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


class _Draft:
    """A config on its way: the values so far and every mistake so far."""

    def __init__(self) -> None:
        self.cfg = get_cfg_defaults()
        self.values = {key: coerce(key, value) for key, value in flatten_cfg(self.cfg).items()}
        self.given: list[str] = []
        self.problems: list[str] = []
        self.refused: set[str] = set()

    def add(self, source: str, settings: Iterator[tuple[str, Any]]) -> None:
        """Put settings (key, raw value) over what is there; `source` is named in messages."""
        for key, raw in settings:
            try:
                self.values[key] = coerce(key, raw)
                self.given.append(key)
            except ConfigError as error:
                self.problems.append(f"{source}: {error}")
                self.refused.add(key)

    def give_up(self, problem: str) -> None:
        """A source could not be read at all: nothing can be said about how its values go together."""
        self.problems.append(problem)
        self.refused.update(RULES)

    def finish(self, source: str, stem: str, speak: bool) -> CfgNode:
        """Check the keys against each other and freeze; raises ConfigError with every mistake."""
        known = {key: value for key, value in self.values.items() if key not in self.refused}
        self.problems += [f"{source}: {problem}" for problem in cross_problems(known)]
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        for remark in remarks(self.values, self.given) if speak else []:
            logger.warning("%s: %s", source, remark)
        self.values["OUTPUT_DIR"] = self.values["OUTPUT_DIR"] or f"output/{stem}"
        for key, value in self.values.items():
            section, _, name = key.rpartition(".")
            (self.cfg[section] if section else self.cfg)[name] = value
        self.cfg.freeze()
        return self.cfg


# ---------------------------------------------------------------- reading

class _TextLoader(yaml.SafeLoader):
    """SafeLoader that leaves scalars as they are written (null is None): configs.schema decides what they mean."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists on one line, and escapes texts with unusual line ends."""


for _tag in ("bool", "int", "float", "timestamp"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: loader.construct_scalar(node))
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
# Unquoted, U+0085 and its like would be read back as a line end.
_Dumper.add_representer(str, lambda dumper, data: dumper.represent_scalar(
    "tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"'))


def _read_file(path: Path) -> str:
    """The file's text without a byte-order mark; ConfigError says why it cannot be had."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (looked for from {Path.cwd()})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def _read_yaml(text: str, source: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Settings (dotted key, raw value) of a YAML text; keys given twice are added to `problems`.

    Raises:
        ConfigError: the text is not one YAML document, or not a mapping.
    """
    try:
        loader = _TextLoader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):  # before construction, which unfolds `<<` in place
            problems += [f"{source}: {problem}" for problem in _given_twice(node, {})]
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{source}: {line}not YAML that a config can hold: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigError(f"{source}: not YAML that a config can hold: {reason}") from None
    if data is None:
        return iter(())
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of sections at the top, got a {node.id}")
    return _settings(data)


def _given_twice(node: yaml.MappingNode, lines: dict[str, int], prefix: str = "") -> Iterator[str]:
    """A message for every section or key that the text holds twice; `lines` collects where each was first."""
    for key_node, value_node in node.value:
        name, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if name in lines:
            yield f"{name}: given twice, on line {lines[name]} and on line {line}"
        lines.setdefault(name, line)
        if isinstance(value_node, yaml.MappingNode) and not prefix:
            yield from _given_twice(value_node, lines, f"{name}.")


def _settings(data: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping. A mapping below a section's key stays one, and no rule takes it."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not prefix and key not in RULES:
            yield from _settings(value, f"{key}.")
        else:
            yield key, value


def _read_opts(opts: Sequence[Any], problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Settings of KEY VALUE pairs; an odd count is added to `problems`."""
    if len(opts) % 2:
        joined = next((str(word) for word in opts if str(word).split("=")[0] in RULES and "=" in str(word)), None)
        hint = f"write {joined.replace('=', ' ', 1)!r}" if joined else f"the last is {opts[-1]!r}"
        problems.append(f"command line: expected KEY VALUE pairs, got {len(opts)} words; {hint}")
        return iter(())
    return ((str(key), value) for key, value in zip(opts[::2], opts[1::2], strict=True))
