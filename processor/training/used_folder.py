"""A folder that another training has used: nothing in it is overwritten unless that is asked for."""
from __future__ import annotations

import os
import re
from pathlib import Path

from utils.process import RunLock

LOCK = ".train.lock"


def checkpoint_files(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints of any training in a folder, of whatever MODEL.NAME, sorted by name."""
    return sorted(path for path in Path(folder).glob("*.pth") if re.fullmatch(r"latest|best|.+_\d+", path.stem))


def used(folder: str | os.PathLike, why: str, way: str = "") -> FileExistsError:
    """The error of a training from epoch 1 in a folder with checkpoints.

    why: whether one can go on from them. way: what to add to "another OUTPUT_DIR".
    """
    names = [path.name for path in checkpoint_files(folder)]
    names = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return FileExistsError(f"{folder} holds checkpoints ({names}) that this training would overwrite: {why}. Keep them "
                           f"with another OUTPUT_DIR{way}, or let --force move the folder aside to "
                           f"{next_sibling(folder)} and train anew")


def next_sibling(folder: str | os.PathLike) -> Path:
    """FOLDER.1, FOLDER.2, ...: the first that is not there; links of the folder are followed."""
    real, number = os.path.realpath(folder), 1
    while os.path.lexists(f"{real}.{number}"):
        number += 1
    return Path(f"{real}.{number}")


def move_aside(folder: str | os.PathLike) -> Path | None:
    """Rename a folder that holds checkpoints to its next sibling, in one step; None: it holds none and stays.

    Raises:
        ValueError: a training is at work in it.
        OSError: it cannot be renamed, for instance because it is a mount point.
    """
    if not checkpoint_files(folder):
        return None
    with RunLock(Path(folder) / LOCK):
        aside, real = next_sibling(folder), os.path.realpath(folder)
        try:
            os.rename(real, aside)
            if os.path.islink(folder):  # it is to lead to a folder still
                os.mkdir(real)
        except OSError as error:
            raise OSError(f"{folder} cannot be moved aside to {aside} ({error.strerror}); train in another OUTPUT_DIR"
                          ) from error
    return aside
