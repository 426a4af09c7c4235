"""Bound on the results that wait for a slow recipient."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

BYTES: Final = 4 * 1024 * 1024
"""Bytes of results that may wait, counted as `Result.size`; in memory they take ten times as much."""
AT_ONCE: Final = 2


class Backlog:
    """Results that wait for one recipient. No query runs while they take `limit` bytes; at most `AT_ONCE` run."""

    def __init__(self, limit: int = BYTES) -> None:
        self.size = 0
        self._limit = limit
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a turn to run a query; the size passed to `Slot.fill` counts until the context ends."""
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
        """Add a result that waits, and let another query run."""
        self.size += size
        self._turns.release()

    def shrink(self, size: int) -> None:
        """Remove a result that was delivered or discarded."""
        self.size -= size
        self._freed.set()


class Slot:
    """One query's turn, and then its result's share of the backlog."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._size: int | None = None

    def fill(self, size: int) -> None:
        """Record that the query has run and its result of `size` bytes waits."""
        self._size = size
        self._backlog.grow(size)

    def leave(self) -> None:
        """Release the slot: the result no longer waits, or there is none."""
        if self._size is None:
            self.fill(0)
        self._backlog.shrink(self._size or 0)
