"""Searches that arrive together become one product."""
from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

AT_ONCE = 256  # vectors of one product
WORKERS = 2  # products at a time: one with a slow filter does not hold up all others


class _Waiting(NamedTuple):
    key: Hashable
    k: int
    queries: np.ndarray
    answer: asyncio.Future


class Batcher:
    """Collects for a few ms, and while a search is under way.

    Args:
        search: (queries [Q, D], k, key) -> Q answers, each a list of k, best first; called in `pool`.
        wait: seconds.
    """

    def __init__(self, search: Callable[[np.ndarray, int, Any], list[list]], pool: Executor, wait: float = 0.005):
        self.search, self.pool, self.wait = search, pool, wait
        self.waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self.tasks: list[asyncio.Task] = []

    def start(self) -> None:
        """Within the event loop that asks."""
        self.tasks = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    async def stop(self) -> None:
        """After the last answer."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def ask(self, queries: np.ndarray, k: int, key: Hashable) -> list[list]:
        """As `search`; equal keys share a search, whose k is the largest that was asked for.

        A prefix of the best K is the best k, because the order is total.
        """
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait(_Waiting(key, k, queries, answer))
        return await answer

    async def _work(self) -> None:
        while True:
            taken = [await self.waiting.get()]
            await asyncio.sleep(self.wait)
            while not self.waiting.empty() and sum(len(item.queries) for item in taken) < AT_ONCE:
                taken.append(self.waiting.get_nowait())
            groups = defaultdict(list)
            for item in taken:
                groups[item.key].append(item)
            for key, items in groups.items():
                await self._answer(key, items)

    async def _answer(self, key: Hashable, items: list[_Waiting]) -> None:
        queries, k = np.concatenate([item.queries for item in items]), max(item.k for item in items)
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self.pool, self.search, queries, k, key)
        except Exception as error:  # each who waits is told
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        for item in items:
            if not item.answer.done():
                item.answer.set_result([answer[: item.k] for answer in answers[: len(item.queries)]])
            answers = answers[len(item.queries) :]
