"""Stage records of earlier versions, {"fingerprint": SHA256, "outputs": {PATH: SIZE}}.

The digest is that of the command with its paths, and of the bytes of the config's files and of the data's lists.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from utils.files import sha256_of


def is_of_earlier(record: dict, command: Sequence[str], inputs: list[str], out: Path, outputs: list[str]) -> bool:
    """Whether a record is of this command and these inputs, here or in the folder from where `out` was moved.

    Args:
        outputs: the stage's, relative to `out`.
    """
    roots = {str(out), *(_root_of(record, path) for path in outputs)}
    return any(record.get("fingerprint") == _fingerprint([word.replace(str(out), root) for word in command], inputs)
               for root in roots)


def relative_outputs(record: dict, outputs: list[str]) -> dict[str, int]:
    """The record's outputs as they are called now."""
    return {path: size for path in outputs for name, size in record.get("outputs", {}).items()
            if name == os.path.join(_root_of(record, path), path)}


def _root_of(record: dict, path: str) -> str:
    """The OUTPUT_ROOT of a record with `path` among its outputs."""
    return next((name.removesuffix(f"/{path}") for name in record.get("outputs", {}) if name.endswith(f"/{path}")), "")


def _fingerprint(command: list[str], inputs: list[str]) -> str:
    return hashlib.sha256(json.dumps([command, inputs]).encode()).hexdigest()


# ------------------------------------------------------------------ inputs
def digests(*paths: Path) -> list[str]:
    """`NAME DIGEST` of each file, `NAME -` of one that is not there."""
    return [f"{path.name} {sha256_of(path) if path.is_file() else '-'}" for path in paths]


def folder_listing(*folders: Path) -> list[str]:
    """`NAME SIZE` of every file of the folders."""
    return [
        f"{folder.name}/{entry.name} {entry.stat().st_size}"
        for folder in folders
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
    ]


def training_lists(my_data_set: Path, derived: Path) -> list[Path]:
    """Every list that decides what is trained on."""
    return [*sorted(my_data_set.glob("*/*train_list.txt")), *sorted(my_data_set.glob("unlabel/label.txt")),
            *sorted(derived.glob("*train_list.txt")), *sorted(derived.glob("unlabel/label.txt"))]
