"""Ending a long run on request: SIGTERM and SIGINT become a question that the loop asks between two steps."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_STOPPED = 75  # "try again later" of sysexits.h: what was done is kept, and the same command with --resume goes on


class Stopped(Exception):
    """A run that was asked to end has written its checkpoint; the message says how to go on."""


class StopRequest:
    """Within `with`: `requested` is the name of the signal that came, "" before.

    A second SIGINT (Ctrl-C twice) interrupts at once, as if there were no such object. Outside of the main thread no
    signal is caught.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = ""
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        again = bool(self.requested)
        self.requested = signal.Signals(number).name
        if self._at_once:
            raise Stopped(self.requested)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing can be lost: a signal raises Stopped here, without waiting for the end of a step."""
        self._at_once = True
        try:
            if self.requested:
                raise Stopped(self.requested)
            yield
        finally:
            self._at_once = False
