"""Weight files where their settings name them: also those that installed packages carry, found without running them."""
from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from utils.checkpoint import FOLDER_WEIGHTS

PREFIX = "package:"
_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")


def find_package_weights(name: str) -> Path:
    """The weight file of an installed package.

    Args:
        name: the package's, as pip knows it, after `package:` or without; NAME/FILE takes the file of that name.
    Raises:
        FileNotFoundError: the package is not installed here (the message has the command), or has no such file.
        ValueError: it has several weight files (they are named).
    """
    name, _, wanted = name.removeprefix(PREFIX).partition("/")
    try:
        listed = importlib.metadata.distribution(name).files or ()
    except (importlib.metadata.PackageNotFoundError, ValueError):  # the second: an empty name
        raise FileNotFoundError(f"{PREFIX}{name}: this Python has no package {name!r}; "
                                f"run {sys.executable} -m pip install {name}") from None
    files = [path for path in (Path(file.locate()) for file in listed)
             if path.suffix in _SUFFIXES and path.is_file() and wanted in ("", path.name)]
    if not files:
        raise FileNotFoundError(f"{PREFIX}{name}: the package has no {wanted or 'weight'} file "
                                f"({', '.join(_SUFFIXES)})")
    if len(files) > 1:
        raise ValueError(f"{PREFIX}{name}: the package has {len(files)} weight files; name one: "
                         + ", ".join(f"{PREFIX}{name}/{path.name}" for path in files))
    return files[0]


def weight_file(path: str | Path) -> str:
    """The file that a value of MODEL.PRETRAIN_PATH or TEST.WEIGHT names; it need not be there.

    That is itself, the one of `package:NAME` (raises as above), or the weights of a model folder.
    """
    if str(path).startswith(PREFIX):
        return str(find_package_weights(str(path)))
    return str(Path(path) / FOLDER_WEIGHTS) if Path(path).is_dir() else str(path)
