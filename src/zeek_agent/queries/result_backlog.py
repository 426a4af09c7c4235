"""Bound on the results that wait for a slow recipient."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

BACKLOG_BYTES: Final = 4 * 1024 * 1024
"""Results that may wait, counted as `Result.size_bytes`; in memory they take ten times as much."""
CONCURRENT_QUERIES: Final = 2
"""One runs while another one's result is being sent; more would only exceed `BACKLOG_BYTES` by more."""


class Backlog:
    """Results that wait for one recipient.

    No query starts while they take `limit_bytes`; at most `CONCURRENT_QUERIES` run at a time.
    """

    def __init__(self, limit_bytes: int = BACKLOG_BYTES) -> None:
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._turns = asyncio.Semaphore(CONCURRENT_QUERIES)
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a turn to run a query; the size passed to `Slot.hold_result` counts until the context ends."""
        await self._turns.acquire()
        slot = Slot(self)
        try:
            while self.size_bytes >= self._limit_bytes:
                self._freed.clear()
                await self._freed.wait()
            yield slot
        finally:
            slot.release()

    def add_result(self, size_bytes: int) -> None:
        """Count a waiting result, and let another query run."""
        self.size_bytes += size_bytes
        self._turns.release()

    def remove_result(self, size_bytes: int) -> None:
        """Stop counting a result that was delivered or discarded."""
        self.size_bytes -= size_bytes
        self._freed.set()


class Slot:
    """A query's permission to run, and then its result's share of the backlog."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._result_bytes: int | None = None

    def hold_result(self, size_bytes: int) -> None:
        """Record that the query has run and its result is waiting."""
        self._result_bytes = size_bytes
        self._backlog.add_result(size_bytes)

    def release(self) -> None:
        """Release the slot: the result no longer waits, or there was none."""
        if self._result_bytes is None:
            self.hold_result(0)
        self._backlog.remove_result(self._result_bytes or 0)
