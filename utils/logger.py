"""Logging of a tool: short lines on the terminal, everything in a file."""
from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from utils.process import EXIT_STOPPED, LostWorker, Stopped

_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"
_EXIT_NO_READER = 141  # what a shell makes of SIGPIPE: the command that read stdout, such as head, has had enough


class _LogFile(logging.FileHandler):
    """A log file whose disk may be full: it warns once, and what it lacks is still on the terminal."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        elif not self._warned:
            self._warned = True
            sys.stderr.write(f"{self.baseFilename} is not written any more: {sys.exc_info()[1]}\n")


class _PrintableFormatter(logging.Formatter):
    """What a name brings into a message cannot move a terminal's cursor or turn its text around."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


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
    handlers[0].setFormatter(_PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if output_dir and is_main:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(Path(output_dir) / filename, encoding="utf-8"))
        handlers[1].setFormatter(_PrintableFormatter(_FORMAT))
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


def printable_lines(text: str) -> str:
    """A message for a terminal or a log: `printable`, but for line breaks and tabs."""
    return text if text.isprintable() else re.sub(r"[^\n\t]+", lambda match: printable(match[0]), text)


def user_message(error: BaseException) -> str:
    """The message of an error, without the traceback that a data loader's worker wraps it in."""
    if isinstance(error, UnicodeEncodeError):  # a file name that was read as bytes, or came from the command line
        name = printable(error.object[max(0, error.start - 60):error.end + 60])
        return (f"{name}: not UTF-8; rename that file or folder (convmv -f gbk -t utf-8 --notest), or name a link to "
                "it that is")
    if isinstance(error, MemoryError):
        return f"out of memory ({error})" if str(error) else "out of memory"
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes):
        name = os.fsdecode(error.filename)  # TensorBoard's are bytes
        if isinstance(error, FileExistsError) and not os.path.isdir(name):
            return f"{printable(name)}: not a folder, and one is needed there"
        place = " (the system lets nobody make files there)" * name.startswith(("/proc/", "/sys/"))
        return f"{printable(name)}: {error.strerror}{place}"
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:
        text = text.rsplit("\n", 1)[-1].split(": ", 1)[-1]
    return text


def run_tool(main: Callable[[], None]) -> None:
    """Call a tool's main; a user's mistake becomes one line and exit code 2, its traceback goes to the log file.

    A run that was stopped by a signal and can go on ends with EXIT_STOPPED. One whose stdout is a pipe that nobody
    reads any more ends without a word.

    ValueError and OSError are how our rooms report mistakes in configs, lists, images and files, FloatingPointError
    is a loss that is no longer finite, LostWorker a process that died.
    """
    _complete_streams()
    try:
        _check_folder()
        for argument in sys.argv:  # better now than in hours, when it is written into a file
            argument.encode("utf-8")
            if re.search(r"[\0-\x1f\x7f]", argument):
                raise ValueError(f"{printable(argument[:200])}: a line break or another control character in an "
                                 "argument; rename that file or folder")
        main()
        sys.stdout.flush()  # here, where it can be dealt with, not at the interpreter's end
    except (ValueError, OSError, FloatingPointError, LostWorker, MemoryError) as error:
        logging.getLogger("traceback").debug("%s", traceback.format_exc())
        if isinstance(error, BrokenPipeError) and _has_no_reader(1):
            _end(_EXIT_NO_READER)
        _end(2, f"error: {printable_lines(user_message(error))}")
    except Stopped as stopped:
        _end(EXIT_STOPPED, f"stopped ({stopped}); {stopped.advice}")
    except KeyboardInterrupt:
        _end(130, "interrupted")
    except SystemExit as end:  # argparse's, or a tool's verdict
        _end(end.code)


def _complete_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, to nothing.

    Else the next files that are opened would have their numbers, and a library's messages would go into a checkpoint.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def _check_folder() -> None:
    """A library that finds no working directory ends the process by itself, with a line about something else."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the working directory has been removed; change to one that is there (cd)") from None


def _has_no_reader(number: int) -> bool:
    """Whether this end of a pipe is all that is left of it."""
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end(code: int | str | None, message: str = "") -> NoReturn:
    """Exit with a code and a last line; streams that cannot take what they still hold are led to nothing.

    Else the interpreter, at its end, would complain of them and make the code 120.
    """
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        try:
            if number == 2 and message:
                stream.write(f"{message}\n")
            stream.flush()
        except (OSError, ValueError):  # ValueError: it is closed
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, number)
            os.close(nothing)
    sys.exit(code)
