"""Event queries: each run delivers the rows recorded since the last delivery, slice by slice."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from zeek_agent.events.delivery_states import EndedIncarnation, RecentProgress, Step
from zeek_agent.queries.subscriptions import Change

if TYPE_CHECKING:
    from zeek_agent.events.delivery_states import Delivered
    from zeek_agent.events.event_file import SeqBounds
    from zeek_agent.events.store import EventStore
    from zeek_agent.queries.delivery import Delivery
    from zeek_agent.queries.installed import Installed

log = logging.getLogger(__name__)

EVENT_SLICE_ROWS = 10_000
"""Maximum events per run of a query, to bound the memory of its result; a backlog is delivered slice by slice."""
PROGRESS_STEP_SECONDS: Final = 1.0
"""Interval of the recorded steps, and so how much more than necessary is replayed."""
REPLAY_SECONDS: Final = 10.0
"""Rows that a Zeek acknowledged this shortly before it was killed are sent again to its successor, because Zeek buffers
its logs and may not have written them."""
STEPS_MAX: Final = 50
"""More than there are unless the clock jumped; bounds their size on disk."""
UNKNOWN_SHAPE: Final = "unknown"
"""Shape of a report that an agent sent that did not record it."""
INCARNATIONS_MAX: Final = 1_000
"""Incarnations of recipients whose end in order is noted; bounds the memory of recipients that restart often."""


def with_step(recent: RecentProgress, now: float, seen: Mapping[str, int]) -> RecentProgress:
    """The progress with one more step; of steps older than `REPLAY_SECONDS` only the last is kept."""
    if recent.steps[-1].at <= now < recent.steps[-1].at + PROGRESS_STEP_SECONDS:
        return recent
    steps = [*recent.steps, Step(now, dict(seen))]
    first = max((index for index, step in enumerate(steps) if step.at <= now - REPLAY_SECONDS), default=0)
    return RecentProgress(recent.incarnation, tuple(steps[first:][-STEPS_MAX:]))


class EventStrategy:
    """Runs event queries. `drain` brings the store up to date with the kernel."""

    def __init__(self, delivery: Delivery, store: EventStore, drain: Callable[[], Awaitable[None]] | None) -> None:
        self._delivery = delivery
        self._store = store
        self._drain = drain
        self._incarnations: dict[EndedIncarnation, None] = {}
        self.lost: Counter[str] = Counter()
        """Events removed before they were delivered, by destination, since the agent started."""

    def restore(self, installed: Installed, delivered: Delivered | None) -> None:
        """Continue after the last row delivered to an earlier incarnation; a new query starts with the next event."""
        store = self._store
        for table in installed.event_tables:
            installed.seen[table] = (
                delivered.seqs.get(table, store.last_seq(table)) if delivered else store.last_seq(table)
            )
        recent = delivered.recent if delivered else None
        incarnation = installed.recipient.incarnation
        if recent is not None and recent.incarnation != incarnation and installed.durable:
            earliest = recent.steps[0].seqs
            installed.seen = {table: min(seen, earliest.get(table, seen)) for table, seen in installed.seen.items()}
            recent = None
        elif delivered and delivered.under_way.keys() == installed.event_tables:
            installed.under_way = dict(delivered.under_way)
            installed.under_way_shape = delivered.shape or UNKNOWN_SHAPE
        if installed.durable:
            first = Step(store.age_clock(), dict(installed.seen))
            installed.recent = recent or RecentProgress(incarnation, (first,))
            self._note_incarnation(EndedIncarnation(installed.owner, incarnation))
        if delivered is None or delivered.owner != installed.owner:  # the next start may not know the earlier identity
            self._delivery.save_state(installed)

    def end_incarnation(self, owner: str, incarnation: str) -> None:
        """Replay nothing that this incarnation of a recipient has acknowledged: it ended in order."""
        one = EndedIncarnation(owner, incarnation)
        if one in self._incarnations:
            del self._incarnations[one]
            self._store.end_incarnation(*one)

    def _note_incarnation(self, one: EndedIncarnation) -> None:
        self._incarnations[one] = None
        if len(self._incarnations) > INCARNATIONS_MAX:
            del self._incarnations[next(iter(self._incarnations))]

    async def run(self, installed: Installed) -> None:
        """Deliver the events recorded since the last delivery, slice by slice."""
        if self._drain is not None:
            await self._drain()
        while window := self.window(installed):
            installed.under_way = {table: high for table, (_, high) in window.items()}
            async with installed.backlog.slot() as slot:
                report = await self._delivery.report(installed, Change.ADD, window)
                missing = await self._missing_rows(window)
                if installed.under_way_shape not in {"", report.shape} and (ends := other_ends(window)):
                    # the recipient may have handled batches, and would skip as many of these
                    report.close()
                    installed.under_way, installed.under_way_shape = ends, ""
                    continue
                installed.under_way_shape = report.shape
                slot.hold_result(report.size_bytes)
                if report.row_count and installed.recipient.recognizes_replays:
                    self._delivery.save_state(installed)
                    await asyncio.to_thread(self._store.flush)
                await self._delivery.deliver(installed, report)
            self._count_lost(installed, missing)
            installed.seen.update(installed.under_way)
            installed.under_way, installed.under_way_shape = {}, ""
            self._note_progress(installed)
            self._delivery.save_state(installed)

    async def _missing_rows(self, window: Mapping[str, tuple[int, int]]) -> int:
        """How many rows of the window retention had removed when the statement ran, or while it did."""
        holes = [(table, low, high) for table, (low, high) in window.items() if self._may_miss_rows(table, low)]
        return sum([await asyncio.to_thread(self._store.missing, *hole) for hole in holes])

    def _may_miss_rows(self, table: str, after: int) -> bool:
        """Whether rows after this `seq` may have expired since the window was chosen, or been removed for room."""
        return _first_or_next(self._store.seq_bounds(table)) > after + 1 or self._store.has_holes(table, after)

    def _count_lost(self, installed: Installed, number: int) -> None:
        """Count events that were removed before they were delivered."""
        installed.lost += number
        if number and installed.durable:
            self.lost[installed.owner] += number

    def _note_progress(self, installed: Installed) -> None:
        if installed.recent is not None:
            installed.recent = with_step(installed.recent, self._store.age_clock(), installed.seen)

    def window(self, installed: Installed) -> dict[str, tuple[int, int]] | None:
        """The sequence numbers to read, by table: `low < seq <= high`. None if there are no new rows."""
        window = self._next_window(installed)
        if installed.under_way and not _has_rows(window):  # retention has removed all of the report
            installed.under_way, installed.under_way_shape = {}, ""
            window = self._next_window(installed)
        return window if _has_rows(window) else None

    def _next_window(self, installed: Installed) -> dict[str, tuple[int, int]]:
        store, window = self._store, dict[str, tuple[int, int]]()
        for table, seen in installed.seen.items():
            bounds = store.seq_bounds(table)
            last = installed.under_way.get(table, bounds.last)
            first = _first_or_next(bounds)
            if first > seen + 1:
                self._count_lost(installed, first - seen - 1)
                log.warning("query %s: %d rows of %s expired undelivered", installed.query_id, first - seen - 1, table)
                seen = installed.seen[table] = first - 1
            window[table] = (seen, max(seen, last))
        if len(window) == 1:
            rows_max = min(EVENT_SLICE_ROWS, self._delivery.rows_max)
            window = {table: (low, min(high, low + rows_max)) for table, (low, high) in window.items()}
        return window


def _first_or_next(bounds: SeqBounds) -> int:
    """The lowest retained `seq` or, of an empty table, that of its next row."""
    return bounds.first or bounds.last + 1


def _has_rows(window: Mapping[str, tuple[int, int]]) -> bool:
    return any(high > low for low, high in window.values())


def other_ends(window: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The ends of a window with one `seq` less, by which a recipient tells it from this one; empty if there is none."""
    ends = {table: high for table, (_, high) in window.items()}
    widest = max(window, key=lambda table: window[table][1] - window[table][0])
    ends[widest] -= 1
    return ends if any(ends[table] > low for table, (low, _) in window.items()) else {}
