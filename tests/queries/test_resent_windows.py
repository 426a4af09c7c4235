"""Event reports that are sent again to the same Zeek: no row is skipped because an earlier one was handled."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest
from recipients import NobodysAgent, Recorder
from waiting import until

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database
from zeek_agent.database.encodings import BatchesEncoding
from zeek_agent.events.store import EventStore
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Query, Report, Subscription
from zeek_agent.schema import Column
from zeek_agent.table import Table, TableContext


def events(name: str) -> Table:
    columns = [Column("time", "time", "when"), Column("what", "text", "what")]
    return Table(name, name, description="Events of a test.", columns=columns, kind="events")


TABLES = [events("arrivals"), events("departures")]
ARRIVALS = Query("SELECT what FROM arrivals", "Test::row", SCHEDULE_MIN_SECONDS, Subscription.EVENTS)
BOTH = Query(
    "SELECT what FROM arrivals UNION ALL SELECT what FROM departures",
    "Test::row",
    SCHEDULE_MIN_SECONDS,
    Subscription.EVENTS,
)


@dataclass
class Package(Recorder):
    """Handles batches as our package does, including the ones that it has had: see framework/batches.zeek."""

    batch_rows: int = 10
    handles: int | None = None
    """How many batches it handles before its connection breaks."""
    rows: list[str] = field(default_factory=list)
    stream: tuple[object, ...] = ()
    index: int = 0
    done: int = 0

    def encoding(self, report: Report) -> BatchesEncoding:  # type: ignore[override]
        low, high = report.window
        return BatchesEncoding(
            "", "H", 0.0, "q", None, self.batch_rows, 1 << 20, report.store, report.stream, low, high
        )

    async def deliver(self, report: Report) -> None:
        values = [str(row[0]) for _, row in report.rows]
        for index, start in enumerate(range(0, len(values), self.batch_rows)):
            if self.handles == 0:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            self._judge(report, index, values[start : start + self.batch_rows], start + self.batch_rows >= len(values))

    def _judge(self, report: Report, index: int, rows: Sequence[str], last: bool) -> None:
        series, (low, high) = (report.store, report.stream), report.window
        if self.stream[:2] != series:
            self.stream, self.index, self.done = (*series, low, high), 0, 0
        elif self.stream[2:] != (low, high):
            self.stream, self.index = (*series, low, high), 0
        if high <= self.done or index < self.index:
            return
        assert index == self.index
        self.index += 1
        self.done = high if last else self.done
        self.rows += rows
        if self.handles is not None:
            self.handles -= 1


class Life:
    """One run of the agent on a store."""

    def __init__(self, path: Path) -> None:
        self.path = path / "events.db"
        self.store = EventStore(self.path, TABLES, EventSettings())
        self.database = Database(TABLES, TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), self.store)
        self.runner = QueryRunner(self.database, self.store)

    def happen(self, table: str, *what: str) -> None:
        self.store.append(table, [(time.time(), one) for one in what])
        assert self.store.flush()

    async def install(self, zeek: Package, query: Query) -> None:
        await self.runner.install(zeek, "q", query)
        await until(lambda: bool(self.runner.installed) and self.runner.installed[0].runs > 0)

    async def runs(self, number: int = 2) -> None:
        (installed,) = self.runner.installed
        goal = installed.runs + number
        await until(lambda: installed.runs >= goal)


@asynccontextmanager
async def life(path: Path) -> AsyncIterator[Life]:
    one = Life(path)
    try:
        yield one
    finally:
        await one.runner.close()
        one.database.close()
        one.store.close()


def remove(path: Path, where: str) -> None:
    """Remove rows as retention does, between two runs of the agent."""
    file = apsw.Connection(str(path / "events.db"))
    file.execute(f"DELETE FROM arrivals WHERE {where}")
    file.execute("INSERT OR REPLACE INTO _accounts VALUES ('arrivals', '', 1000000, 0)")
    file.close()


def names(first: int, last: int) -> list[str]:
    return [f"a{number}" for number in range(first, last + 1)]


async def interrupted(path: Path, zeek: Package, handles: int = 3) -> None:
    """The agent ends after Zeek has handled some of ten batches."""
    async with life(path) as one:
        await one.install(zeek, ARRIVALS)
        zeek.handles = handles
        one.happen("arrivals", *names(1, 100))
        await until(lambda: zeek.handles == 0)
    zeek.handles = None


async def test_a_report_that_is_unchanged_continues_after_the_last_batch(tmp_path: Path) -> None:
    zeek = Package()
    await interrupted(tmp_path, zeek)
    async with life(tmp_path) as one:
        one.happen("arrivals", *names(101, 150))
        await one.install(zeek, ARRIVALS)
        await one.runs()
    assert zeek.rows == names(1, 150)


@pytest.mark.parametrize("batch_rows", [7, 25, 200])
async def test_no_row_is_skipped_when_the_size_of_batches_was_changed(tmp_path: Path, batch_rows: int) -> None:
    zeek = Package()
    await interrupted(tmp_path, zeek)
    zeek.batch_rows = batch_rows
    async with life(tmp_path) as one:
        await one.install(zeek, ARRIVALS)
        one.happen("arrivals", *names(101, 120))
        await one.runs()
    assert not Counter(names(1, 120)) - Counter(zeek.rows)


async def test_no_row_is_skipped_when_others_of_its_report_were_removed(tmp_path: Path) -> None:
    zeek = Package()
    await interrupted(tmp_path, zeek)
    remove(tmp_path, "seq BETWEEN 2 AND 20")
    async with life(tmp_path) as one:
        await one.install(zeek, ARRIVALS)
        await one.runs()
    assert not Counter(names(1, 100)) - Counter(zeek.rows)


async def test_a_query_goes_on_when_all_of_its_unacknowledged_report_was_removed(tmp_path: Path) -> None:
    zeek = Package()
    await interrupted(tmp_path, zeek)
    async with life(tmp_path) as one:
        one.happen("arrivals", *names(101, 110))
    remove(tmp_path, "seq <= 100")
    async with life(tmp_path) as one:
        await one.install(zeek, ARRIVALS)
        one.happen("arrivals", *names(111, 120))
        await one.runs()
        assert one.runner.installed[0].lost == 100
    assert zeek.rows == [*names(1, 30), *names(101, 120)]


@pytest.mark.parametrize("busy", ["arrivals", "departures"])
async def test_rows_of_one_table_are_handled_while_the_other_has_none(tmp_path: Path, busy: str) -> None:
    zeek = Package()
    async with life(tmp_path) as one:
        await one.install(zeek, BOTH)
        one.happen("arrivals", "a")
        one.happen("departures", "d")
        await one.runs()
        one.happen(busy, "x")
        await one.runs()
        one.happen(busy, "y", "z")
        await one.runs()
    assert sorted(zeek.rows) == ["a", "d", "x", "y", "z"]
