"""Event queries: each run delivers the rows recorded since the last delivery, slice by slice."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from zeek_agent.queries.subscriptions import Change

if TYPE_CHECKING:
    from zeek_agent.events.delivery_states import Delivered
    from zeek_agent.events.store import EventStore
    from zeek_agent.queries.delivery import Delivery
    from zeek_agent.queries.installed import Installed

log = logging.getLogger(__name__)

EVENT_SLICE_ROWS = 10_000
"""Maximum events per run of a query, to bound the memory of its result; a backlog is delivered slice by slice."""
REMEMBERED_QUERIES_MAX = 2_000
"""Event queries, installed or not, whose progress in the last seconds is remembered; bounds the memory of old ones."""
PROGRESS_STEP_SECONDS: Final = 1.0
"""Interval of the remembered steps, and so how much more than necessary is replayed."""
REPLAY_SECONDS: Final = 10.0
"""Rows that a Zeek acknowledged this shortly before it was killed are sent again to its successor, because Zeek buffers
its logs and may not have written them."""


@dataclass(slots=True)
class Progress:
    """Progress of an event query in the last seconds of one incarnation of its recipient."""

    incarnation: str
    steps: deque[tuple[float, dict[str, int]]] = field(default_factory=deque)

    def add_step(self, now: float, seen: Mapping[str, int]) -> None:
        """Remember a step; of those older than `REPLAY_SECONDS` only the last is kept."""
        if self.steps and now - self.steps[-1][0] < PROGRESS_STEP_SECONDS:
            return
        self.steps.append((now, dict(seen)))
        while len(self.steps) > 1 and self.steps[1][0] <= now - REPLAY_SECONDS:
            self.steps.popleft()


class EventStrategy:
    """Runs event queries. `drain` brings the store up to date with the kernel; `keys_in_use` are installed queries'."""

    def __init__(
        self,
        delivery: Delivery,
        store: EventStore,
        drain: Callable[[], Awaitable[None]] | None,
        keys_in_use: Callable[[], Set[str]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._delivery = delivery
        self._store = store
        self._drain = drain
        self._keys_in_use = keys_in_use
        self._monotonic = monotonic
        self._progress: dict[str, Progress] = {}

    def restore(self, installed: Installed, delivered: Delivered | None) -> None:
        """Continue after the last row delivered to an earlier incarnation; a new query starts with the next event."""
        store = self._store
        for table in installed.event_tables:
            installed.seen[table] = (
                delivered.seqs.get(table, store.last_seq(table)) if delivered else store.last_seq(table)
            )
        if delivered is None:
            self._delivery.save_state(installed)
        progress = self._progress.get(installed.key)
        if progress and progress.incarnation != installed.recipient.incarnation and installed.durable:
            installed.seen.update(progress.steps[0][1])
        elif delivered and delivered.under_way.keys() == installed.event_tables:
            installed.under_way = dict(delivered.under_way)
        self.note_progress(installed)

    def discard_progress(self, key: str) -> None:
        """Replay nothing for the query with this key: its recipient ended in order."""
        self._progress.pop(key, None)

    async def run(self, installed: Installed) -> None:
        """Deliver the events recorded since the last delivery, slice by slice."""
        if self._drain is not None:
            await self._drain()
        while window := self.window(installed):
            installed.under_way = {table: high for table, (_, high) in window.items()}
            async with installed.backlog.slot() as slot:
                report = await self._delivery.report(installed, Change.ADD, window)
                missing = await self._missing_rows(window)
                slot.hold_result(report.size_bytes)
                if report.row_count and installed.recipient.recognizes_replays:
                    self._delivery.save_state(installed)
                    await asyncio.to_thread(self._store.flush)
                await self._delivery.deliver(installed, report)
            installed.lost += missing
            installed.seen.update(installed.under_way)
            installed.under_way = {}
            self._delivery.save_state(installed)
            self.note_progress(installed)

    async def _missing_rows(self, window: Mapping[str, tuple[int, int]]) -> int:
        """How many rows of the window retention had removed when the statement ran, or while it did."""
        holes = [(table, low, high) for table, (low, high) in window.items() if self._store.has_holes(table, low)]
        return sum([await asyncio.to_thread(self._store.missing, *hole) for hole in holes])

    def note_progress(self, installed: Installed) -> None:
        if not installed.durable:
            return
        progress = self._progress.get(installed.key)
        if progress is None or progress.incarnation != installed.recipient.incarnation:
            self._progress.pop(installed.key, None)
            progress = self._progress[installed.key] = Progress(installed.recipient.incarnation)
            self._discard_oldest_progress()
        progress.add_step(self._monotonic(), installed.seen)

    def _discard_oldest_progress(self) -> None:
        """Bound the memory, even if new queries are installed again and again."""
        if len(self._progress) <= REMEMBERED_QUERIES_MAX:
            return
        in_use = self._keys_in_use()
        for key in list(self._progress):
            if key not in in_use:
                del self._progress[key]
                log.info(
                    "more than %d event queries: if Zeek is killed, the oldest ones are not replayed",
                    REMEMBERED_QUERIES_MAX,
                )
                return

    def window(self, installed: Installed) -> dict[str, tuple[int, int]] | None:
        """The sequence numbers to read, by table: `low < seq <= high`. None if there are no new rows."""
        store, window = self._store, dict[str, tuple[int, int]]()
        for table, seen in installed.seen.items():
            last = installed.under_way.get(table, store.last_seq(table))
            first = store.first_seq(table) or store.last_seq(table) + 1
            if first > seen + 1:
                installed.lost += first - seen - 1
                log.warning("query %s: %d rows of %s expired undelivered", installed.query_id, first - seen - 1, table)
                seen = installed.seen[table] = first - 1
            window[table] = (seen, max(seen, last))
        if len(window) == 1:
            window = {table: (low, min(high, low + EVENT_SLICE_ROWS)) for table, (low, high) in window.items()}
        return window if any(high > low for low, high in window.values()) else None
