"""osquery's event tables, recorded in the event store: each event once, whatever osquery shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from osqueryd import Bridged, FakeTable, Osqueryd, usual_tables
from sql import Recorder, events

from zeek_agent.events import reading
from zeek_agent.events.store import EventStore
from zeek_agent.osquery.recording import OVERLAP_SECONDS
from zeek_agent.table import Table

T0 = 1_795_489_155


@pytest.fixture
def osquery(tmp_path: Path) -> Iterator[Osqueryd]:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as running:
        yield running


@asynccontextmanager
async def recording(
    osquery: Osqueryd,
    tables: tuple[Recorder | Table, ...] = (),
    patterns: tuple[str, ...] = ("file_events",),
    **more: Any,
) -> AsyncIterator[Bridged]:
    store = EventStore(osquery.path.parent / "events.db", [table for table in tables if isinstance(table, Table)])

    def recorded(sql: str) -> list[tuple[Any, ...]]:
        return reading.read_rows(store.uri, sql)

    try:
        async with Bridged(osquery, tables, event_tables=patterns, store=store, recorded=recorded, **more) as bridged:
            bridged.store = store  # type: ignore[attr-defined]
            yield bridged
    finally:
        store.close()


def event(number: int, time: int | None = None) -> tuple[Any, ...]:
    return (T0 + number if time is None else time, f"/etc/{number}", "UPDATED", f"{number:010}")


def happen(osquery: Osqueryd, *rows: tuple[Any, ...]) -> None:
    osquery.tables["file_events"].rows = [*osquery.tables["file_events"].rows, *rows]  # type: ignore[misc]


async def look(bridged: Bridged) -> None:
    bridged.bridge.client.forget_answers()
    await bridged.bridge.refresh()
    bridged.store.flush()  # type: ignore[attr-defined]


async def paths(bridged: Bridged, table: str = "file_events") -> list[Any]:
    return [path for (path,) in await bridged.rows(f"SELECT target_path FROM {table} ORDER BY seq")]


async def test_events_are_recorded_once_though_osquery_shows_them_all(osquery: Osqueryd) -> None:
    happen(osquery, *(event(n) for n in range(3)))
    async with recording(osquery) as bridged:
        await look(bridged)
        assert await paths(bridged) == ["/etc/0", "/etc/1", "/etc/2"]
        happen(osquery, event(3), event(4))
        await look(bridged)
        await look(bridged)
        assert await paths(bridged) == [f"/etc/{n}" for n in range(5)]
        assert bridged.source("file_events")["received"] == 5
        (row,) = await bridged.rows("SELECT time, action, eid FROM file_events WHERE target_path = '/etc/4'")
        assert row == (float(T0 + 4), "UPDATED", "0000000004")
        assert bridged.db.tables["file_events"].kind == "events"


async def test_only_the_newest_are_queried(osquery: Osqueryd) -> None:
    happen(osquery, event(0), event(1000))
    async with recording(osquery) as bridged:
        osquery.statements.clear()
        await look(bridged)
        (statement,) = osquery.asked("file_events")
        assert f"WHERE time >= {T0 + 1000 - OVERLAP_SECONDS} ORDER BY time" in statement


async def test_events_of_one_second_and_late_ones_are_distinguished(osquery: Osqueryd) -> None:
    happen(osquery, event(1, T0), event(2, T0))
    async with recording(osquery) as bridged:
        happen(osquery, event(3, T0), event(4, T0 - 5))
        await look(bridged)
        assert sorted(await paths(bridged)) == ["/etc/1", "/etc/2", "/etc/3", "/etc/4"]


async def test_a_number_that_is_used_again_is_another_event(osquery: Osqueryd) -> None:
    happen(osquery, event(1))
    async with recording(osquery) as bridged:
        happen(osquery, (T0 + 7, "/etc/again", "UPDATED", "0000000001"))
        await look(bridged)
        assert await paths(bridged) == ["/etc/1", "/etc/again"]


async def test_after_a_restart_of_the_agent_recording_continues(osquery: Osqueryd) -> None:
    happen(osquery, event(1), event(2))
    async with recording(osquery) as bridged:
        await look(bridged)
    happen(osquery, event(3))
    async with recording(osquery) as bridged:
        await look(bridged)
        assert await paths(bridged) == ["/etc/1", "/etc/2", "/etc/3"]


async def test_command_lines_are_masked_before_they_are_kept(osquery: Osqueryd) -> None:
    rows = [(T0, "login --token=abc"), (T0, None)]
    osquery.tables["process_events"] = FakeTable({"time": "BIGINT", "cmdline": "TEXT"}, rows)
    async with recording(osquery, patterns=("process_events",)) as bridged:
        await look(bridged)
        assert await bridged.rows("SELECT cmdline FROM process_events_history") == [("login --token=***",), (None,)]


async def test_environments_of_processes_are_not_kept(osquery: Osqueryd) -> None:
    rows = [(T0, "PGPASSWORD=hunter2 A=b"), (T0, "")]
    osquery.tables["process_events"] = FakeTable({"time": "BIGINT", "env": "TEXT"}, rows)
    async with recording(osquery, patterns=("process_events",)) as bridged:
        await look(bridged)
        assert await bridged.rows("SELECT env FROM process_events_history") == [("***",), ("",)]


async def test_events_without_a_number_are_distinguished_by_their_cells(osquery: Osqueryd) -> None:
    rows = [(T0, "/a"), (T0, "/b")]
    osquery.tables["other_events"] = FakeTable({"time": "BIGINT", "target_path": "TEXT"}, rows)
    async with recording(osquery, patterns=("other_*",)) as bridged:
        await look(bridged)
        osquery.tables["other_events"].rows = [*rows, (T0, "/c")]
        await look(bridged)
        assert await paths(bridged, "other_events") == ["/a", "/b", "/c"]
        assert "file_events" not in bridged.db.tables


async def test_more_events_than_one_result_may_have_are_read_in_several(osquery: Osqueryd) -> None:
    happen(osquery, *(event(n, T0 + n * 100) for n in range(10)))
    async with recording(osquery, rows=4) as bridged:
        for _ in range(5):
            await look(bridged)
        assert await paths(bridged) == [f"/etc/{n}" for n in range(10)]


async def test_more_events_in_a_second_than_one_answer_holds_are_counted_as_lost(osquery: Osqueryd) -> None:
    happen(osquery, *(event(n, T0) for n in range(10)), event(99, T0 + 500))
    async with recording(osquery, rows=4) as bridged:
        for _ in range(4):
            await look(bridged)
        assert await paths(bridged) == ["/etc/0", "/etc/1", "/etc/2", "/etc/3", "/etc/99"]
        assert bridged.source("file_events")["lost_overrun"] > 0
        assert "some are not recorded" in bridged.source("file_events")["last_error"]


async def test_a_name_that_is_ours_is_prefixed(osquery: Osqueryd) -> None:
    table = events("file_events", [("time", "time"), ("target_path", "text")])
    happen(osquery, event(1))
    async with recording(osquery, (table,)) as bridged:
        await look(bridged)
        assert await paths(bridged, "osquery_file_events") == ["/etc/1"]
        assert await paths(bridged) == []


async def test_recorded_events_stay_when_osquery_is_away(osquery: Osqueryd) -> None:
    happen(osquery, event(1))
    async with recording(osquery) as bridged:
        await look(bridged)
        osquery.stop()
        await look(bridged)
        assert await paths(bridged) == ["/etc/1"]
        assert "nothing is listening" in bridged.source("file_events")["reason"]
        assert "deb_packages" not in bridged.db.tables
