"""A measurement in a process of its own."""
from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from utils.files import read_json
from utils.process import run_logged

ROOT = Path(__file__).resolve().parent.parent.parent


def run_child(module: str, job: str, result: Path, tuned_malloc: bool = False) -> dict[str, Any]:
    """Run `python -m module job` in a fresh process, which ends with this one.

    Args:
        job: one argument, from which the child knows what to do and to write its figures to `result`.
        tuned_malloc: give it the allocator's settings of run.sh's stages.
    Returns:
        What it wrote there.
    Raises:
        RuntimeError: it failed (its own words are on the terminal).
    """
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, job]
    code = run_logged(command, result.with_suffix(".log"), ROOT, tuned_malloc)
    if code or not result.is_file():
        raise RuntimeError(f"failed with code {code}")
    return read_json(result)


def end_with_parent() -> None:
    """Called by the child: only its parent ends it, by SIGTERM.

    A terminal's Ctrl-C reaches the parent, too, which ends its child. A loader's workers look every five seconds
    whether their parent is still there, and clear away their files; killed, they would not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not by an exception: one that is raised in a signal's handler may be swallowed by a callback.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
