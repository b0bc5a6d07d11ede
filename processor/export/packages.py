"""The packages of requirements-export.txt, which not every machine has."""
from __future__ import annotations

import importlib
from types import ModuleType

REQUIREMENTS = "requirements-export.txt"


def load_package(name: str) -> ModuleType:
    """A package, or a module of it.

    Raises:
        ValueError: it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the package {name.partition('.')[0]} is not installed: pip install -r {REQUIREMENTS}"
                         ) from error
