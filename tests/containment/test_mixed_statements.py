"""Statements that read recorded events and the host: while they read the host, they hold nothing of the event store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import msgspec
import pytest
from workers import contained

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.messages import Need
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import WorkerState
from zeek_agent.database.database import Profile
from zeek_agent.database.encodings import RowsEncoding
from zeek_agent.errors import LimitError
from zeek_agent.events.store import EventStore
from zeek_agent.results.comparison import Comparison, Reporting
from zeek_agent.results.store import ResultStore
from zeek_agent.schema import Row
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.events import processes_events, sockets_events

SETTINGS = EventSettings(retention_bytes=24_000_000)
"""The write-ahead log may then have 12 MB."""
AFTER_EVENTS = "FROM processes_events AS e CROSS JOIN zeek_agent_log"
"""Recorded events are read first, then a table whose rows another process has."""


def process(pid: int, **cells: object) -> Row:
    known = {"time": time.time(), "pid": pid, "state": "started", **cells}
    return tuple(known.get(column.name) for column in processes_events.recorded)  # type: ignore[misc]


class SlowHost:
    """Answers a worker's question for rows of `zeek_agent_log`, one row, when it is released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.released = asyncio.Event()

    async def answer(self, need: Need) -> tuple[bytes, Sequence[int]]:
        if need.what == "agent":
            self.asked.set()
            await self.released.wait()
            return msgspec.msgpack.encode([[1.5, "info", "here", "a text"]]), []
        return msgspec.msgpack.encode([]), []


@asynccontextmanager
async def recorded(
    path: Path, number: int, host: SlowHost | None = None, limits: LimitSettings | None = None
) -> AsyncIterator[tuple[ContainedDatabase, EventStore]]:
    """A database in workers, and an event store with that many processes."""
    store = EventStore(path / "events.db", builtin_tables(), SETTINGS, blocked_seconds=0.2)
    try:
        append(store, 0, number)
        async with contained(path, store, limits or LimitSettings(time=120.0), need=(host or SlowHost()).answer) as db:
            yield db, store
    finally:
        store.close()


def append(store: EventStore, first: int, number: int) -> None:
    store.append("processes_events", [process(pid, cmdline="x" * 500) for pid in range(first, first + number)])
    assert store.flush(60)


def locks(pid: int, path: Path) -> list[str]:
    """A process's lines of /proc/locks for a file."""
    inode = path.stat().st_ino
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return [" ".join(fields) for fields in lines if fields[-4] == str(pid) and fields[-3].endswith(f":{inode}")]


def busy_worker(database: ContainedDatabase) -> int:
    (worker,) = [one for one in database.pool.processes if one.state is WorkerState.BUSY]
    assert worker.kind is WorkerClass.SNAPSHOTS
    return worker.pid


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (f"SELECT count(*) {AFTER_EVENTS}", (5_000,)),
        (f"SELECT count(*) {AFTER_EVENTS} WHERE e.pid IN (SELECT pid FROM processes_events_history LIMIT 7)", (7,)),
        ("SELECT (SELECT count(*) FROM processes_events), (SELECT count(*) FROM zeek_agent_log)", (5_000, 1)),
        ("SELECT count(*) FROM process_tree(1) AS t CROSS JOIN zeek_agent_log WHERE t.relation = 'self'", (1,)),
        (
            "SELECT count(*) FROM (SELECT pid FROM processes_events UNION ALL SELECT 1 FROM zeek_agent_log)",
            (5_001,),
        ),
    ],
)
@pytest.mark.parametrize("profile", Profile)
async def test_a_statement_that_waits_for_the_host_keeps_no_lock(
    tmp_path: Path, sql: str, expected: tuple[int, ...], profile: Profile
) -> None:
    host, path = SlowHost(), tmp_path / "events.db"
    async with recorded(tmp_path, 5_000, host) as (database, store):
        waiting = asyncio.create_task(database.query(sql, profile=profile))
        await host.asked.wait()
        pid = busy_worker(database)
        assert (locks(pid, path), locks(pid, Path(f"{path}-shm"))) == ([], [])
        for first in range(5_000, 30_000, 5_000):
            append(store, first, 5_000)
        checkpointing = apsw.Connection(str(path))
        checkpointing.execute("SELECT * FROM sqlite_schema").fetchall()
        assert checkpointing.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE) == (0, 0)
        checkpointing.close()
        counters = store.counters["processes_events"]
        assert (store.files_left, counters.lost, counters.evicted, counters.stored) == (0, {}, 0, 30_000)
        assert not waiting.done()
        assert busy_worker(database) == pid
        host.released.set()
        assert (await waiting).rows == [expected]


async def test_all_event_tables_of_a_statement_are_read_as_of_the_same_moment(tmp_path: Path) -> None:
    host = SlowHost()
    sql = (
        "SELECT (SELECT count(*) FROM processes_events), (SELECT count(*) FROM zeek_agent_log), "
        "(SELECT count(*) FROM sockets_events), (SELECT count(cmdline) FROM processes_events)"
    )
    sockets: list[Row] = [(1.0, *[None] * (len(sockets_events.recorded) - 1))]
    async with recorded(tmp_path, 20, host) as (database, store):
        store.append("sockets_events", sockets * 3)
        assert store.flush(10)
        waiting = asyncio.create_task(database.query(sql))
        await host.asked.wait()
        store.append("sockets_events", sockets * 5)
        append(store, 20, 10)
        host.released.set()
        assert (await waiting).rows == [(20, 1, 3, 20)]
        host.asked.clear()
        assert (await database.query(sql)).rows == [(30, 1, 8, 30)]


async def test_a_window_bounds_what_is_read(tmp_path: Path) -> None:
    sql = "SELECT e.pid, (SELECT count(*) FROM processes_events_history) FROM processes_events AS e, processes AS p "
    async with recorded(tmp_path, 50) as (database, _):
        for low in (10, 20):
            result = await database.query(f"{sql} WHERE p.pid = 1", window={"processes_events": (low, low + 2)})
            assert result.rows == [(low, 50), (low + 1, 50)]


@pytest.mark.long
async def test_more_events_than_fit_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    limits = LimitSettings(memory_bytes=16_000_000)
    sql = "SELECT count(e.cmdline) FROM processes_events AS e, processes AS p WHERE p.pid = 1"
    async with recorded(tmp_path, 20_000, limits=limits) as (database, _):
        with pytest.raises(LimitError) as refused:
            await database.query(sql)
        assert str(refused.value) == (
            "table processes_events: the events that the statement joins with other tables take more than "
            "8000000 bytes (1/2 of limits.memory_bytes): restrict them by time or other columns, read fewer columns, "
            "or raise the limit"
        )
        assert (await database.query(f"{sql} AND e.pid >= 19000")).rows == [(1_000,)]
        assert (await database.query(f"{sql} AND e.time > unixepoch() - 3600 AND e.pid < 100 + 7")).rows == [(107,)]
        assert (await database.query(sql.replace("e.cmdline", "*"))).rows == [(20_000,)]
        assert (await database.query("SELECT count(cmdline) FROM processes_events")).rows == [(20_000,)]
        (worker,) = [one for one in database.pool.processes if one.kind is WorkerClass.SNAPSHOTS]
        assert worker.statements >= 5, "the worker did not survive"


async def test_differences_of_event_tables_only_are_read_from_the_store_itself(tmp_path: Path) -> None:
    events = "SELECT count(DISTINCT processes_events.cmdline || processes_events.pid) FROM processes_events"
    results = ResultStore(None, 1_000_000)
    async with recorded(tmp_path, 20_000, limits=LimitSettings(memory_bytes=16_000_000)) as (database, _):
        for sql, fits in ((f"{events}, processes WHERE processes.pid = 1", False), (events, True)):
            comparison = Comparison(results.basis("query"), Reporting.ALL, reported=False)
            ran = database.encoded(sql, RowsEncoding(), comparison=comparison)
            if fits:
                encoded = await ran
                assert [batch.rows async for batch in encoded.batches()] == [1]
                encoded.close()
            else:
                with pytest.raises(LimitError, match="joins with other tables"):
                    await ran
        assert {worker.kind for worker in database.pool.processes} == {WorkerClass.SNAPSHOTS}
    results.close()
