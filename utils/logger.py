"""Logging of a tool: short lines on the terminal, everything in a file."""
from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.process import EXIT_STOPPED, LostWorker, Stopped

_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


class _LogFile(logging.FileHandler):
    """A log file whose disk may be full: it warns once, and what it lacks is still on the terminal."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        elif not self._warned:
            self._warned = True
            sys.stderr.write(f"{self.baseFilename} is not written any more: {sys.exc_info()[1]}\n")


def setup_logger(output_dir: str | Path | None = None, filename: str = "log.txt") -> logging.Logger:
    """Send the root logger's INFO lines to the terminal and, with `output_dir`, all lines to a file there too.

    The file is appended to, so that a resumed run keeps its history. Handlers of an earlier call are replaced. Of
    several processes under torchrun only the first speaks; the others warn.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for handler in list(root.handlers):
        if getattr(handler, "_of_setup_logger", False):
            root.removeHandler(handler)
            handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(logging.INFO if is_main else logging.WARNING)
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if output_dir and is_main:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(Path(output_dir) / filename, encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter(_FORMAT))
    for handler in handlers:
        handler._of_setup_logger = True
        root.addHandler(handler)
    for noisy in ("matplotlib", "PIL", "tensorboard", "h5py"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return root


@contextlib.contextmanager
def silence(name: str) -> Iterator[None]:
    """Within: the logger `name` and those below it say nothing."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def printable(text: str) -> str:
    """A file name for a message: bytes that are not UTF-8, line breaks and the like as escapes."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def user_message(error: BaseException) -> str:
    """The message of an error, without the traceback that a data loader's worker wraps it in."""
    if isinstance(error, UnicodeEncodeError):  # a file name that was read as bytes, or came from the command line
        name = printable(error.object[max(0, error.start - 60):error.end + 60])
        return (f"{name}: not UTF-8; rename that file or folder (convmv -f gbk -t utf-8 --notest), or name a link to "
                "it that is")
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:
        text = text.rsplit("\n", 1)[-1].split(": ", 1)[-1]
    return text


def run_tool(main: Callable[[], None]) -> None:
    """Call a tool's main; a user's mistake becomes one line and exit code 2, its traceback goes to the log file.

    A run that was stopped by a signal and can go on ends with EXIT_STOPPED.

    ValueError and OSError are how our rooms report mistakes in configs, lists, images and files, FloatingPointError
    is a loss that is no longer finite, LostWorker a process that died.
    """
    try:
        for argument in sys.argv:  # better now than in hours, when it is written into a file
            argument.encode("utf-8")
        main()
    except (ValueError, OSError, FloatingPointError, LostWorker) as error:
        logging.getLogger("traceback").debug("%s", traceback.format_exc())
        sys.stderr.write(f"error: {user_message(error)}\n")
        sys.exit(2)
    except Stopped as stopped:
        sys.stderr.write(f"stopped ({stopped}); {stopped.advice}\n")
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
