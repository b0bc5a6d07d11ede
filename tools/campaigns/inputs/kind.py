"""A kind of input, and how its readers try several steps."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tools.campaigns.inputs.trial import begin_step

OUT = "out"  # a folder for what a reader writes, below the copy


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        what: in the words of the table.
        folder: below the specimens; each case gets a copy.
        files: patterns of what is damaged in it, one file a case.
        read: called with the copy and the damaged file, below the folder of specimens: what commands make of it.
        checked: patterns of files with a check: what is read of a damaged one must be refused, or be the same.
        quick: it is among what takes no model.
        turns: how often it comes in a round; what takes little time comes more often.
    """

    what: str
    folder: str
    files: tuple[str, ...]
    read: Callable[[Path, Path, Path], Any]
    checked: tuple[str, ...] = ()
    quick: bool = True
    turns: int = 1


def together(*steps: Callable[[], Any]) -> list[Any]:
    """What each step gives, a command's work; what one refuses does not keep the others from being tried."""
    results, refused = [], None
    for step in steps:
        begin_step()
        try:
            results.append(step())
        except (ValueError, OSError) as error:
            refused = refused or error
        except KeyError as error:
            if " " not in str(error.args[0]):  # a gallery says in a sentence what is not there, and its tool says it
                raise
            refused = refused or ValueError(error.args[0])
    if refused:
        raise refused
    return results
