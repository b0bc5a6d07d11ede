"""Feature banks that a test has changed by hand."""
from pathlib import Path

from utils.files import read_json, write_json


def forget_checksums(run: Path) -> None:
    """Let a changed bank of `run` be read as one that was written so."""
    index = read_json(run / "features" / "index.json")
    for entry in index["domains"].values():
        entry.pop("sha256", None)
    write_json(run / "features" / "index.json", index)
