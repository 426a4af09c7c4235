"""Results that wait for a recipient who is slower than the queries: how much of that there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

BYTES: Final = 4 * 1024 * 1024
"""Bytes of results that may wait, counted as `Result.size`; in memory they take ten times as much."""
AT_ONCE: Final = 2


class Backlog:
    """What waits for one recipient. While that is `limit` bytes or more no query runs; `AT_ONCE` may run together."""

    def __init__(self, limit: int = BYTES) -> None:
        self.size = 0
        self._limit = limit
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for one's turn to run a query; what `Slot.fill` is told waits until the context ends."""
        await self._turns.acquire()
        slot = Slot(self)
        try:
            while self.size >= self._limit:
                self._freed.clear()
                await self._freed.wait()
            yield slot
        finally:
            slot.leave()

    def grow(self, size: int) -> None:
        """A query has run, and its result waits: another query may have its turn."""
        self.size += size
        self._turns.release()

    def shrink(self, size: int) -> None:
        """So much was delivered, or given up."""
        self.size -= size
        self._freed.set()


class Slot:
    """One query's turn, and then its result's share of the backlog."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._size: int | None = None

    def fill(self, size: int) -> None:
        """The query has run; its result of so many bytes waits."""
        self._size = size
        self._backlog.grow(size)

    def leave(self) -> None:
        """The result waits no more, or there is none."""
        if self._size is None:
            self.fill(0)
        self._backlog.shrink(self._size or 0)
