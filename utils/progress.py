"""Progress of a long loop: a bar on a terminal, now and then a line elsewhere."""
from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[T], title: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and log how far it is.

    Args:
        total: how many there are, if `items` has no length.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes the first speaks
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=title, unit=unit, total=total, leave=False)
        return
    total = len(items) if total is None else total
    started = spoken = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - spoken > _SECONDS_BETWEEN_LINES and done < total:
            spoken = now
            speed = done / (now - started)
            logger.info("%s: %d of %d, %.1f %s/s, %.0f s left", title, done, total, speed, unit, (total - done) / speed)
