"""Which software made a result."""
from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python")


def versions() -> dict[str, str]:
    """{package: version} of Python and of what a training computes with."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def commit() -> str:
    """The commit of this repository, with `, changed` if files differ from it; "unknown" outside of git.

    Asked once: it is the code that was loaded that counts, not what lies there hours later.
    """
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(_REPOSITORY), *words], capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (", changed" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
