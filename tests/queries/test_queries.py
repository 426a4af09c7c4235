"""Installed queries: what is sent when, by subscription, and what is remembered for the next life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recipients import NobodysAgent, Recorder
from waiting import until

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.database.results import Statement
from zeek_agent.errors import WorkerUnavailableError
from zeek_agent.events.event_file import SeqBounds
from zeek_agent.events.store import EventStore
from zeek_agent.queries.delivery import Delivery
from zeek_agent.queries.event_strategy import EventStrategy
from zeek_agent.queries.installed import QueryState, query_key
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Change, Query, Subscription
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, LookupTable, Table, TableContext

ADD, DELETE = Change.ADD, Change.DELETE
SCHEDULE = SCHEDULE_MIN_SECONDS
NOW = time.time()


@dataclass
class World:
    """A database with one snapshot table and one event table, and a runner on it."""

    database: Database
    store: EventStore
    runner: QueryRunner
    things: list[tuple[str, int]]

    def happen(self, *rows: tuple[float, str]) -> None:
        self.store.append("happenings", [(NOW + seconds, what) for seconds, what in rows])
        assert self.store.flush()


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    rows: list[tuple[str, int]] = [("a", 1), ("b", 2)]
    things = Table(
        "things",
        "things",
        description="Things of a test.",
        columns=[Column("name", "text", "name"), Column("size", "count", "size")],
    )

    @things.snapshot
    def current(wanted: Constraints) -> Iterator[Row]:
        yield from rows

    happenings = Table(
        "happenings",
        "happenings",
        description="Happenings of a test.",
        columns=[Column("time", "time", "when"), Column("what", "text", "what")],
        kind="events",
    )
    tables = [things, happenings]
    store = EventStore(path / "events.db", tables, EventSettings())
    database = Database(tables, TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    database.scans.max_age_seconds = 0.0
    runner = QueryRunner(database, store)
    try:
        yield World(database, store, runner, rows)
    finally:
        await runner.close()
        database.close()
        store.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


def query(sql: str = "SELECT * FROM things", subscription: Subscription | None = None, **more: object) -> Query:
    return Query(sql, "Test::row", None if subscription is None else SCHEDULE, subscription, **more)  # type: ignore[arg-type]


async def settle(world: World, runs: int = 2) -> None:
    """Wait until each query ran that many times more."""
    goals = {one.query_id: one.runs + runs for one in world.runner.installed}
    async with asyncio.timeout(5):
        while any(one.runs < goals.get(one.query_id, 0) for one in world.runner.installed):
            await asyncio.sleep(0.005)


OSQUERY_THINGS = LookupTable(
    "osquery_things",
    "things",
    description="Things of osquery.",
    columns=[Column("name", "text", "name")],
    osquery_name="things",
)


@OSQUERY_THINGS.snapshot
def osquery_things(wanted: Constraints) -> Iterator[Row]:
    yield ("of osquery",)


async def test_a_query_names_the_dialect_of_its_statement(here: World) -> None:
    here.database.add(OSQUERY_THINGS)
    zeek = Recorder(profile=Profile.STOCK)
    repeated = query("SELECT name FROM things", Subscription.SNAPSHOTS, dialect="osquery")
    await here.runner.install(zeek, "q1", repeated)
    assert await zeek.next() == [(None, ("of osquery",))]
    assert [one.status().dialect for one in here.runner.installed] == ["osquery"]
    here.runner.cancel("q1")
    while not zeek.reports.empty():
        zeek.reports.get_nowait()
    await here.runner.install(zeek, "q2", query("SELECT name FROM things"))
    assert [row for _, row in await zeek.next()] == [("a",), ("b",)]


async def test_an_unknown_dialect_is_an_error_and_never_run_as_another(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q1", query(subscription=Subscription.SNAPSHOTS, dialect="full"))
    async with asyncio.timeout(5):
        message = await zeek.failures.get()
    reason = "unknown dialect 'full'; this agent has osquery"
    assert message == f"could not compile query (failed to compile SQL statement: SELECT * FROM things ({reason}))"
    async with asyncio.timeout(5):
        while here.runner.installed:
            await asyncio.sleep(0.005)
    assert zeek.reports.empty()


def test_queries_that_differ_in_their_dialect_have_different_keys() -> None:
    plain, osquery = query(), query(dialect="osquery")
    assert query_key("ws://zeek:1", plain) != query_key("ws://zeek:1", osquery)


@pytest.mark.parametrize("schedule", [1e-9, 0.001, 0.049])
async def test_a_schedule_that_is_too_short_is_raised_with_one_report(
    here: World, caplog: pytest.LogCaptureFixture, schedule: float
) -> None:
    zeek = Recorder()
    wanted = Query("SELECT * FROM things", "Test::row", schedule, Subscription.SNAPSHOTS)
    await here.runner.install(zeek, "q1", wanted)
    for _ in range(5):
        await zeek.next()
    (installed,) = here.runner.installed
    assert installed.query.schedule == SCHEDULE_MIN_SECONDS
    notice = f"runs every 0.05 s, the shortest possible schedule, instead of every {schedule:g} s"
    assert zeek.failures.get_nowait() == f"query {notice} (statement: SELECT * FROM things)"
    assert zeek.failures.empty()
    assert [record.message for record in caplog.records if "shortest" in record.message] == [
        f"query q1 of ws://zeek:1 {notice}: SELECT * FROM things"
    ]


async def test_a_stock_package_gets_no_report_of_a_raised_schedule(here: World) -> None:
    zeek = Recorder(profile=Profile.STOCK)
    await here.runner.install(zeek, "q1", Query("SELECT * FROM things", "e", 0.01, Subscription.SNAPSHOTS))
    await zeek.next()
    assert here.runner.installed[0].query.schedule == SCHEDULE_MIN_SECONDS
    assert zeek.failures.empty()


@pytest.mark.parametrize("schedule", [0.05, 0.25, 60.0])
async def test_any_other_schedule_is_unchanged(here: World, schedule: float) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q1", Query("SELECT * FROM things", "e", schedule, Subscription.SNAPSHOTS))
    await zeek.next()
    assert here.runner.installed[0].query.schedule == schedule
    assert zeek.failures.empty()


@pytest.mark.parametrize("schedule", [0.0, -1.0, -1e-9])
async def test_a_schedule_of_no_time_is_none(here: World, schedule: float) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q1", Query("SELECT * FROM things", "e", schedule, Subscription.SNAPSHOTS))
    await zeek.next()
    async with asyncio.timeout(5):
        while here.runner.installed:
            await asyncio.sleep(0)
    assert zeek.reports.empty()
    assert zeek.failures.empty()


async def test_a_query_without_schedule_runs_once(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query())
    assert await zeek.next() == [(None, ("a", 1)), (None, ("b", 2))]
    async with asyncio.timeout(5):
        while here.runner.installed:
            await asyncio.sleep(0.01)
    assert zeek.reports.empty()


async def test_snapshots_send_all_rows_each_time(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.SNAPSHOTS))
    for _ in range(3):
        assert await zeek.next() == [(None, ("a", 1)), (None, ("b", 2))]


async def test_differences_send_nothing_first_and_then_removed_and_added_rows(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.DIFFERENCES))
    await settle(here)
    assert zeek.reports.empty()
    here.things[0] = ("c", 3)
    assert await zeek.next() == [(DELETE, ("a", 1)), (ADD, ("c", 3))]
    await settle(here)
    assert zeek.reports.empty()


async def test_snapshot_plus_differences_send_all_rows_first(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.SNAPSHOT_PLUS_DIFFERENCES))
    assert await zeek.next() == [(None, ("a", 1)), (None, ("b", 2))]
    here.things.append(("b", 2))
    assert await zeek.next() == [(ADD, ("b", 2))]


async def test_events_on_a_snapshot_table_send_added_rows(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.EVENTS))
    await settle(here)
    here.things[0] = ("c", 3)
    assert await zeek.next() == [(ADD, ("c", 3))]


async def test_events_that_happen_between_install_and_first_run_are_sent_and_earlier_ones_are_not(here: World) -> None:
    here.happen((1.0, "before"))
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT what FROM happenings", Subscription.EVENTS))
    await settle(here, 1)
    here.happen((2.0, "same"), (2.0, "same"))
    assert await zeek.next() == [(ADD, ("same",)), (ADD, ("same",))]
    here.happen((2.0, "same"))
    assert await zeek.next() == [(ADD, ("same",))]


async def test_a_query_once_on_an_event_table_sees_all_that_is_retained(here: World) -> None:
    here.happen((1.0, "first"), (2.0, "second"))
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT what FROM happenings ORDER BY time"))
    assert await zeek.next() == [(None, ("first",)), (None, ("second",))]


async def test_new_events_are_joined_with_the_history(here: World) -> None:
    here.happen((1.0, "start"))
    zeek = Recorder()
    sql = "SELECT new.what, old.what FROM happenings AS new JOIN happenings_history AS old ON old.time < new.time"
    await here.runner.install(zeek, "q", query(sql, Subscription.EVENTS))
    await settle(here, 1)
    here.happen((2.0, "stop"))
    assert await zeek.next() == [(ADD, ("stop", "start"))]


async def test_events_during_an_outage_are_delivered_under_a_new_query_id(tmp_path: Path) -> None:
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    differences = query(subscription=Subscription.DIFFERENCES)
    async with world(tmp_path) as before:
        zeek = Recorder()
        await before.runner.install(zeek, "q1", events)
        await before.runner.install(zeek, "q2", differences)
        await settle(before)
        before.happen((1.0, "seen"))
        assert await zeek.next() == [(ADD, ("seen",))]
        before.runner.drop(zeek)
        before.happen((2.0, "missed"))
        assert before.store.flush()
    async with world(tmp_path) as after:
        after.things.append(("new", 9))
        zeek = Recorder()
        await after.runner.install(zeek, "q3", events)
        assert await zeek.next() == [(ADD, ("missed",))]
        await after.runner.install(zeek, "q4", differences)
        assert await zeek.next() == [(ADD, ("new", 9))]


async def test_rows_that_were_not_taken_are_sent_again_to_the_next(here: World) -> None:
    zeek = Recorder()
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    await here.runner.install(zeek, "q", events)
    await settle(here, 1)
    zeek.gate.clear()
    here.happen((1.0, "under way"))
    await asyncio.sleep(0.1)
    here.runner.drop(zeek)
    again = Recorder()
    await here.runner.install(again, "q", events)
    assert await again.next() == [(ADD, ("under way",))]


async def test_the_last_acknowledged_events_are_replayed_to_the_successor_of_a_killed_zeek(
    here: World,
) -> None:
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    killed = Recorder(incarnation="zeek_1")
    await here.runner.install(killed, "q1", events)
    await settle(here, 1)
    here.happen((1.0, "a"))
    assert await killed.next() == [(ADD, ("a",))]
    here.happen((2.0, "b"))
    assert await killed.next() == [(ADD, ("b",))]
    await settle(here, 1)
    here.runner.drop(killed)
    successor = Recorder(incarnation="zeek_2")
    await here.runner.install(successor, "q2", events)
    assert [row for _, row in await successor.next()] == [("a",), ("b",)]


async def test_nothing_is_replayed_after_a_clean_shutdown_of_zeek(here: World) -> None:
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    ended = Recorder(incarnation="zeek_1")
    await here.runner.install(ended, "q1", events)
    await settle(here, 1)
    here.happen((1.0, "a"))
    assert await ended.next() == [(ADD, ("a",))]
    await settle(here, 1)
    here.runner.drop(ended, in_order=True)
    successor = Recorder(incarnation="zeek_2")
    await here.runner.install(successor, "q2", events)
    await settle(here)
    assert successor.reports.empty()


async def test_a_slow_recipient_gets_differences_from_its_last_result(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.DIFFERENCES))
    await settle(here)
    zeek.gate.clear()
    here.things.append(("c", 3))
    await asyncio.sleep(0.1)
    here.things.append(("d", 4))
    zeek.gate.set()
    assert await zeek.next() == [(ADD, ("c", 3))]
    assert await zeek.next() == [(ADD, ("d", 4))]


async def test_a_large_backlog_is_delivered_slice_by_slice_in_order(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.queries.event_strategy.EVENT_SLICE_ROWS", 10)
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT what FROM happenings", Subscription.EVENTS))
    await settle(here, 1)
    here.happen(*((float(n), str(n)) for n in range(35)))
    got: list[str] = []
    sizes: list[int] = []
    while len(got) < 35:
        rows = await zeek.next()
        sizes.append(len(rows))
        got += [row[0] for _, row in rows]  # type: ignore[misc]
    assert got == [str(n) for n in range(35)]
    assert max(sizes) <= 10


async def test_a_backlog_of_more_events_than_a_result_may_have_is_delivered(here: World) -> None:
    here.database.limits = LimitSettings(rows=10)
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT what FROM happenings", Subscription.EVENTS))
    await settle(here, 1)
    here.happen(*((float(n), str(n)) for n in range(35)))
    got: list[object] = []
    while len(got) < 35:
        got += [row[0] for _, row in await zeek.next()]
    assert got == [str(n) for n in range(35)]


class Retained:
    """A store of which retention has left these sequence numbers."""

    def __init__(self, first: int, last: int) -> None:
        self.bounds = SeqBounds(first, last)

    def seq_bounds(self, table: str) -> SeqBounds:
        return self.bounds


@pytest.mark.parametrize(
    ("retained", "window", "lost"),
    [
        (Retained(1, 7), {"happenings": (2, 7)}, 0),
        (Retained(5, 7), {"happenings": (4, 7)}, 2),
        (Retained(0, 7), None, 5),
        (Retained(0, 2), None, 0),
    ],
)
async def test_events_that_retention_removed_before_they_were_delivered_are_counted(
    here: World, retained: Retained, window: dict[str, tuple[int, int]] | None, lost: int
) -> None:
    await here.runner.install(Recorder(), "q", query("SELECT what FROM happenings", Subscription.EVENTS))
    await settle(here, 1)
    (installed,) = here.runner.installed
    installed.seen["happenings"] = 2
    strategy = EventStrategy(Delivery(here.database, None), retained, None)  # type: ignore[arg-type]
    assert strategy.window(installed) == window
    assert installed.lost == strategy.lost[installed.owner] == lost


async def test_events_that_expire_while_their_query_waits_for_its_turn_are_counted(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT what FROM happenings", Subscription.EVENTS))
    await settle(here, 1)
    (installed,) = here.runner.installed
    async with installed.backlog.slot(), installed.backlog.slot():
        here.happen((-10_000.0, "old"), (-10_000.0, "as old"), (0.0, "new"))
        await until(lambda: installed.under_way)
        here.store.reconfigure(EventSettings(retention_age=5_000.0), LimitSettings().state_bytes)
        here.store._housekeeping_due = 0.0
        here.happen((0.0, "newer"))
        await until(lambda: here.store.first_seq("happenings") == 3)
        assert installed.lost == 0
    assert [row[0] for _, row in await zeek.next()] == ["new"]
    assert [row[0] for _, row in await zeek.next()] == ["newer"]
    assert installed.lost == here.runner.lost[installed.owner] == 2


async def test_a_run_time_error_is_reported_once_and_the_query_continues(here: World) -> None:
    zeek = Recorder()
    sql = "SELECT name FROM things WHERE json_extract(name, '$') IS NULL"
    here.things[:] = [("not json", 1)]
    await here.runner.install(zeek, "q", query(sql, Subscription.SNAPSHOTS))
    message = await asyncio.wait_for(zeek.failures.get(), 5)
    assert sql in message
    await settle(here, 3)
    assert zeek.failures.empty()
    assert here.runner.installed[0].state is QueryState.FAILING
    here.things[:] = [("null", 1)]
    assert await zeek.next() == [(None, ("null",))]


async def test_a_statement_that_does_not_compile_is_reported_as_version_2_does(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT x FROM nowhere", Subscription.DIFFERENCES))
    message = await asyncio.wait_for(zeek.failures.get(), 5)
    assert message.startswith(
        "could not compile query (failed to compile SQL statement: SELECT x FROM nowhere (no such table"
    )


async def test_a_scheduled_query_waits_for_a_worker_process_that_cannot_be_started(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, attempts = here.database.prepare, 0

    async def prepare_late(*arguments: Any, **more: Any) -> Statement:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise WorkerUnavailableError("cannot start a worker process: not ready after 20 s")
        return await prepare(*arguments, **more)

    monkeypatch.setattr(here.database, "prepare", prepare_late)
    recipient = Recorder()
    await here.runner.install(recipient, "q", query(subscription=Subscription.SNAPSHOTS))
    assert await recipient.next() == [(None, ("a", 1)), (None, ("b", 2))]
    assert attempts == 4
    assert "cannot start a worker process" in recipient.failures.get_nowait()
    assert recipient.failures.empty()
    await settle(here)
    assert [one.state for one in here.runner.installed] == [QueryState.RUNNING]


async def test_a_query_waits_for_the_tables_it_requires(here: World) -> None:
    zeek = Recorder()
    late = Table("late", "late", description="Comes late.", columns=[Column("n", "count", "number")])
    late.snapshot(lambda wanted: [(1,)])
    wants = query("SELECT n FROM late", Subscription.SNAPSHOTS, requires_tables=frozenset({"late"}))
    await here.runner.install(zeek, "q", wants)
    await asyncio.sleep(0.1)
    assert here.runner.installed[0].state is QueryState.WAITING
    here.database.add(late)
    assert await zeek.next() == [(None, (1,))]
    here.database.remove("late")
    async with asyncio.timeout(5):
        while here.runner.installed[0].state is not QueryState.WAITING:
            await asyncio.sleep(0.01)
    assert zeek.failures.empty()


async def test_a_query_for_those_that_lack_a_table_does_not_run_where_it_is(here: World) -> None:
    zeek = Recorder()
    wants = query(subscription=Subscription.SNAPSHOTS, if_missing_tables=frozenset({"happenings"}))
    await here.runner.install(zeek, "q", wants)
    await asyncio.sleep(0.1)
    assert here.runner.installed[0].state is QueryState.WAITING
    assert zeek.reports.empty()


async def test_an_id_that_is_already_installed_is_ignored(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.SNAPSHOTS))
    await here.runner.install(zeek, "q", query("SELECT 1", Subscription.SNAPSHOTS))
    assert await zeek.next() == [(None, ("a", 1)), (None, ("b", 2))]
    assert len(here.runner.installed) == 1


async def test_a_cancelled_query_sends_no_more_and_its_id_can_be_used_again(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query(subscription=Subscription.SNAPSHOTS))
    await zeek.next()
    here.runner.cancel("q")
    here.runner.cancel("unknown")
    await asyncio.sleep(0.05)
    while not zeek.reports.empty():
        zeek.reports.get_nowait()
    await asyncio.sleep(0.1)
    assert zeek.reports.empty()
    await here.runner.install(zeek, "q", query("SELECT 7"))
    assert await zeek.next() == [(None, (7,))]


async def test_two_recipients_with_the_same_query_each_get_every_event(here: World) -> None:
    first, second = Recorder(), Recorder()
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    await here.runner.install(first, "q1", events)
    await here.runner.install(second, "q2", events)
    await settle(here, 1)
    here.happen((1.0, "once"))
    assert await first.next() == [(ADD, ("once",))]
    assert await second.next() == [(ADD, ("once",))]


async def test_a_row_that_does_not_fit_its_type_is_reported_and_the_others_are_sent(here: World) -> None:
    zeek = Recorder()
    await here.runner.install(zeek, "q", query("SELECT size FROM things UNION ALL SELECT 'x'"))
    assert await zeek.next() == [(None, (1,)), (None, (2,))]
    assert "size" in await asyncio.wait_for(zeek.failures.get(), 5)


async def test_a_recipient_that_leaves_before_its_first_rows_keeps_the_position_of_its_earlier_identity(
    tmp_path: Path,
) -> None:
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    async with world(tmp_path) as before:
        zeek = Recorder(identity="ws://127.0.0.1:1")
        await before.runner.install(zeek, "events", events)
        await settle(before)
        before.runner.drop(zeek)
    async with world(tmp_path) as after:
        runner = QueryRunner(after.database, after.store, formerly={"embedded": ("ws://127.0.0.1:1",)})
        await runner.install(Recorder(identity="embedded"), "events", events)
        await until(lambda: all(one.runs for one in runner.installed))
        await runner.close()
        after.happen((0, "between"))
    async with world(tmp_path) as later:
        embedded = Recorder(identity="embedded")
        await later.runner.install(embedded, "events", events)
        assert await embedded.next() == [(ADD, ("between",))]


async def test_deliveries_under_an_earlier_identity_count(tmp_path: Path) -> None:
    events = query("SELECT what FROM happenings", Subscription.EVENTS)
    differences = query(subscription=Subscription.DIFFERENCES)
    async with world(tmp_path) as before:
        zeek = Recorder(identity="ws://127.0.0.1:1")
        await before.runner.install(zeek, "events", events)
        await before.runner.install(zeek, "differences", differences)
        await settle(before)
        before.happen((0, "delivered"))
        assert await zeek.next() == [(ADD, ("delivered",))]
        await settle(before)
        before.runner.drop(zeek)
        before.happen((1, "waiting"))
    for formerly in ({"embedded": ("ws://[::1]:1", "ws://127.0.0.1:1")}, None):
        async with world(tmp_path) as after:
            runner = QueryRunner(after.database, after.store, formerly=formerly)
            embedded = Recorder(identity="embedded")
            if formerly:
                after.things.append(("c", 3))
            await runner.install(embedded, "events", events)
            if formerly:
                assert await embedded.next() == [(ADD, ("waiting",))]
                await runner.install(embedded, "differences", differences)
                assert await embedded.next() == [(ADD, ("c", 3))]
            else:
                after.happen((2, "later"))
                assert await embedded.next() == [(ADD, ("later",))], "kept under the new identity by now"
            await runner.close()
