"""The examples in the docstrings of retrieval: they run, and every public function has one."""
import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts)
           for path in sorted((ROOT / "processor" / "retrieval").rglob("*.py")) if path.stem != "__init__"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_give_what_they_say(name, tmp_path):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np, "torch": torch, "path": tmp_path / "submission.json"})
    assert not result.failed


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == name and not key.startswith("_"):
            assert ">>> " in (value.__doc__ or ""), f"{name}.{key}"
