"""Configs: the default tree, a YAML file and its bases over it, the command line over that; checked, then frozen."""
from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from configs.checks import cross_problems, remarks
from configs.defaults import OBSOLETE, RULES, SECTIONS, get_cfg_defaults, make_tree
from configs.rules import ConfigError, format_raw, is_null
from configs.yaml_files import BASE, format_yaml, parse_yaml, read_chain

__all__ = [
    "ConfigError",
    "chain_of_files",
    "change_cfg",
    "coerce",
    "dump_cfg",
    "flatten_cfg",
    "load_cfg",
    "load_cfg_text",
    "load_cfg_with_origins",
]

logger = logging.getLogger(__name__)
COMMAND_LINE = "command line"


def load_cfg(config_file: str | Path | None, opts: Sequence[Any] | None = None) -> CfgNode:
    """The config of a run. The only place where configs are merged.

    Keys that neither the file, nor the files that its `_BASE_` leads to, nor the options set keep their defaults.
    Relative paths in the result are relative to the current folder. An empty OUTPUT_DIR becomes output/<name of the
    file>, output/default without one. Obsolete keys that were set are named in a warning.

    Args:
        config_file: YAML file, or None for the defaults alone.
        opts: KEY VALUE pairs such as ["SOLVER.MAX_EPOCHS", "3"]; values are texts as on a command line, or have
            the key's type. The last of a key counts.
    Returns:
        A frozen tree that shares nothing with the results of other calls.
    Raises:
        ConfigError: all mistakes of the files and of the options, a line each.
    """
    return load_cfg_with_origins(config_file, opts)[0]


def load_cfg_with_origins(config_file: str | Path | None,
                          opts: Sequence[Any] | None = None) -> tuple[CfgNode, dict[str, str]]:
    """As `load_cfg`; and {dotted key: the file that set it last, or "command line"}, for `dump_cfg`."""
    draft, files, stem = _Draft(), [], "default"
    if config_file is not None:
        stem = Path(config_file).stem
        draft.origins["OUTPUT_DIR"] = str(config_file)  # unless it is set
        try:
            for file in read_chain(Path(config_file)):
                files.append(file)
        except ConfigError as error:
            draft.give_up(str(error))
    for file in reversed(files):  # a base is changed by what names it
        draft.problems += [f"{file.path}: {problem}" for problem in file.problems]
        draft.add(str(file.path), file.settings)
    draft.add(COMMAND_LINE, _pairs(opts or [], draft.problems))
    draft.take_defaults_of_the_network()
    sources = [str(config_file)] * (config_file is not None) + [COMMAND_LINE] * bool(opts)
    source = " + ".join(sources) or "defaults"
    cfg = draft.finish(source, stem)
    for remark in remarks(draft.values, draft.origins):
        logger.warning("%s: %s", source, remark)
    return cfg, draft.origins


def load_cfg_text(text: str, name: str = "config text") -> CfgNode:
    """The config written by `dump_cfg`, for instance the one in a checkpoint. Does not warn, follows no `_BASE_`.

    Args:
        text: YAML.
        name: what to call the text in messages, such as the checkpoint's path.
    Raises:
        ConfigError: as `load_cfg`.
    """
    draft = _Draft()
    try:
        settings, problems = parse_yaml(text)
        draft.problems += [f"{name}: {problem}" for problem in problems]
        draft.add(name, settings)
    except ConfigError as error:
        draft.give_up(f"{name}: {error}")
    return draft.finish(name, "default")


def change_cfg(cfg: CfgNode, changes: Mapping[str, Any]) -> CfgNode:
    """A config with other values of some keys, {dotted key: value}; `cfg` stays as it is. Does not warn.

    Raises:
        ConfigError: as `load_cfg`.
    """
    draft = _Draft()
    draft.add("config", {**flatten_cfg(cfg), **changes}.items())
    return draft.finish("config", "default")


def dump_cfg(cfg: CfgNode, origins: Mapping[str, str] | None = None) -> str:
    """The tree as YAML that `load_cfg` and `load_cfg_text` read back to the same tree.

    Obsolete keys at their default are left out, so that the text does not set them and loads without a warning.

    Args:
        origins: {dotted key: where its value is from}, a comment behind each value that is not the default.
    """
    defaults = flatten_cfg(get_cfg_defaults())
    values = flatten_cfg(cfg)
    comments = {key: origin if origin.isprintable() else repr(origin) for key, origin in (origins or {}).items()
                if values[key] != defaults[key]}
    return format_yaml({key: value for key, value in values.items() if key not in OBSOLETE or value != defaults[key]},
                       comments)


def flatten_cfg(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of every leaf, in the tree's order."""
    leaves = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            leaves.update(flatten_cfg(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def chain_of_files(config_file: str | Path) -> list[Path]:
    """A config file and all that its `_BASE_` leads to: the files that its values are from.

    Raises:
        ConfigError: one of them cannot be had.
    """
    return [file.path for file in read_chain(Path(config_file))]


# ---------------------------------------------------------------- merging

class _Draft:
    """A config on its way: the values so far, where they are from, and every mistake so far."""

    def __init__(self) -> None:
        self.values = flatten_cfg(get_cfg_defaults())
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []
        self.refused: set[str] = set()

    def add(self, source: str, settings: Iterable[tuple[str, Any]]) -> None:
        """Put settings (key, raw value) over what is there; `source` is named in messages."""
        for key, raw in settings:
            try:
                self.values[key] = coerce(key, raw)
                self.origins[key] = source
            except ConfigError as error:
                self.problems.append(f"{source}: {error}")
                self.refused.add(key)

    def take_defaults_of_the_network(self) -> None:
        """What is not set and has another default with this MODEL.NAME.

        NAME transformer: TransReID's warm-up. timm:NAME: mean and std that the network's weights were trained with.
        """
        name, keys = self.values["MODEL.NAME"], {"INPUT.PIXEL_MEAN": "mean", "INPUT.PIXEL_STD": "std"}
        if name == "transformer" and "SOLVER.WARMUP_EPOCHS" not in self.origins:
            self.add("TransReID's defaults", [("SOLVER.WARMUP_EPOCHS", 5)])
        if not name.startswith("timm:") or any(key in self.origins for key in keys):
            return
        try:
            from timm.models import get_pretrained_cfg
            own = get_pretrained_cfg(name.removeprefix("timm:"))
        except (ImportError, RuntimeError):  # its builder says what is wrong with the name
            return
        if own is not None:
            self.add(f"{name}'s own", [(key, list(getattr(own, field))) for key, field in keys.items()])
            logger.info("pixels by the network's own settings: mean %s, std %s", *(self.values[key] for key in keys))

    def give_up(self, problem: str) -> None:
        """A source could not be read at all: nobody knows how its values go together."""
        self.problems.append(problem)
        self.refused.update(RULES)

    def finish(self, source: str, stem: str) -> CfgNode:
        """Check the keys against each other and freeze; raises ConfigError with every mistake."""
        known = {key: value for key, value in self.values.items() if key not in self.refused}
        self.problems += [f"{source}: {problem}" for problem in cross_problems(known)]
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        self.values["OUTPUT_DIR"] = self.values["OUTPUT_DIR"] or f"output/{stem}"
        cfg = make_tree(self.values)
        cfg.freeze()
        return cfg


def coerce(key: str, raw: Any) -> Any:
    """The value of a key from what a file, a command line or a caller gave for it.

    Args:
        key: dotted name of a leaf, such as "SOLVER.BASE_LR".
        raw: its text, a list of texts, or a value of the key's type.
    Returns:
        A value of the key's type; lists are new.
    Raises:
        ConfigError: the key is unknown (the nearest is named), or its rule does not take the value.
    """
    if key in SECTIONS:
        raise ConfigError(f"{key}: expected a section, its keys indented below it, got {format_raw(raw)}")
    if key.rpartition(".")[2] == BASE:
        raise ConfigError(f"{key}: only a YAML file that a tool is given has a base, and names it at its top level")
    if key not in RULES:
        raise ConfigError(f"{format_raw(key)}: unknown key{_suggestion(key)}")
    rule = RULES[key]
    if is_null(raw):
        raise ConfigError(f"{key}: null is not a value here; expected {rule}")
    try:
        return rule.parse(raw)
    except ValueError as error:
        hint = f" ({error})" if str(error) else ""
        raise ConfigError(f"{key}: expected {rule}, got {format_raw(raw)}{hint}") from None


def _suggestion(key: str) -> str:
    """`; did you mean ...?` for an unknown key: the same name in another section, else the nearest spelling."""
    name = key.upper().rsplit(".", 1)[-1]
    same_name = [known for known in RULES if known.rsplit(".", 1)[-1] == name]
    if same_name and "." not in key:
        return f"; did you mean {' or '.join(same_name)}?"
    candidates, cutoff = (same_name, 0.0) if same_name else ((*RULES, *SECTIONS), 0.6)
    near = difflib.get_close_matches(key.upper(), candidates, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else "; configs/defaults.py has them all"


def _pairs(opts: Sequence[Any], problems: list[str]) -> Iterable[tuple[str, Any]]:
    """Settings of KEY VALUE pairs; KEY=VALUE and an odd count are added to `problems`."""
    step = 1 if len(opts) % 2 else 2  # every word, or only those in the place of a key
    joined = next((word for word in map(format_raw, opts[::step])
                   if "=" in word and (word.partition("=")[0] in RULES or re.match(r"[A-Z]+\.\w+=", word))), None)
    if step == 2 and not joined:
        return [(str(key), value) for key, value in zip(opts[::2], opts[1::2], strict=True)]
    hint = f"the last is {opts[-1]!r}"
    if joined:
        key, _, value = joined.partition("=")
        hint = f"write {f'{key} {value}'!r}" if key in RULES else f"{key}: unknown key{_suggestion(key)}"
    problems.append(f"{COMMAND_LINE}: expected KEY VALUE pairs, got {len(opts)} words; {hint}")
    return []
