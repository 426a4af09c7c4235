"""Retention by size: no table, user or minute displaces the others, and whatever is removed is visible."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from recipients import NobodysAgent, Recorder
from waiting import until

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database
from zeek_agent.events.event_file import EventFile, Gap, WriteBatch
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.queries.installed import query_key
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.schema import Column, Row
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables

TABLES = {table.name: table for table in builtin_tables("linux") if table.kind == "events"}
PROCESSES, SOCKETS, LOGS = (TABLES[f"{kind}_events"] for kind in ("processes", "sockets", "system_logs"))
START = 1_790_000_040.0
"""A full minute."""
ATTACKER, OTHERS = 1_001, (0, 33, 1_002)
BYTES = 2_000_000


def row(table: Table, time_: float, **values: object) -> Row:
    """A row with the values of some columns."""
    unknown = values.keys() - {column.name for column in table.recorded}
    assert not unknown
    return tuple(time_ if column.name == "time" else values.get(column.name) for column in table.recorded)


def process(time_: float, uid: int, exe: str, cmdline: str = "", **more: object) -> Row:
    return row(PROCESSES, time_, uid=uid, exe=exe, cmdline=cmdline or exe, state="started", **more)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[EventStore]:
    settings = EventSettings(retention_bytes=BYTES)
    store = EventStore(tmp_path / "events.db", list(TABLES.values()), settings, clock)
    yield store
    store.close()


def read(store: EventStore, sql: str) -> list[tuple[Any, ...]]:
    return read_rows(store.uri, sql)


def settle(store: EventStore) -> None:
    """Wait until the writer has evicted what the last rows were too many; it does so before its next transaction."""
    store.acknowledge("settle", {}, None)
    assert store.flush(60)


def flood(store: EventStore, clock: Clock, minutes: int = 10, rows_per_second: int = 40, **values: object) -> None:
    """A user that starts one program again and again, and other users that start another one each minute."""
    for minute in range(minutes):
        clock.now = START + 60 * minute
        others = [process(clock.now + uid % 60, uid, f"/usr/bin/other-{minute}") for uid in OTHERS]
        store.append("processes_events", others)
        for second in range(60):
            clock.now = START + 60 * minute + second
            burst = [
                process(clock.now + n / rows_per_second, ATTACKER, "/usr/bin/flood", f"flood {second} {n} {'x' * 300}")
                for n in range(rows_per_second)
            ]
            store.append("processes_events", burst)
        assert store.flush(60)
    settle(store)


def test_a_flood_displaces_neither_its_makers_first_steps_nor_other_users(store: EventStore, clock: Clock) -> None:
    store.append("processes_events", [process(START, ATTACKER, "/usr/bin/first-step")])
    flood(store, clock)
    counters = store.counters["processes_events"]
    assert counters.lost == {}
    assert counters.evicted > 10_000
    assert read(store, "SELECT seq, exe FROM processes_events ORDER BY seq LIMIT 1") == [(1, "/usr/bin/first-step")]
    assert read(store, "SELECT count(*) FROM processes_events WHERE uid <> 1001") == [(10 * len(OTHERS),)]
    (minutes,) = read(store, f"SELECT count(DISTINCT CAST((time - {START}) / 60 AS INTEGER)) FROM processes_events")
    assert minutes == (10,), "a minute of the flood has left no row"


def test_steps_between_the_rows_of_a_flood_are_kept_whatever_their_minute(store: EventStore, clock: Clock) -> None:
    steps = [process(START + 60 * minute + 30, ATTACKER, f"/usr/bin/step-{minute}") for minute in range(10)]
    for minute, step in enumerate(steps):
        clock.now = START + 60 * minute
        rows = [process(clock.now + n / 50, ATTACKER, "/usr/bin/flood", "x" * 300) for n in range(3_000)]
        store.append("processes_events", [*rows[:1_500], step, *rows[1_500:]])
        assert store.flush(60)
    assert store.counters["processes_events"].evicted > 10_000
    kept = read(store, "SELECT exe FROM processes_events WHERE exe LIKE '%/step-%' ORDER BY seq")
    assert kept == [(f"/usr/bin/step-{minute}",) for minute in range(10)]


@pytest.mark.parametrize("uids", [(ATTACKER,), range(100_000, 165_536)], ids=["one user", "subordinate uids"])
def test_a_flood_of_one_table_leaves_the_others_their_share(
    store: EventStore, clock: Clock, uids: Sequence[int]
) -> None:
    store.append("processes_events", [process(START + n, 0, f"/usr/bin/{n % 50}") for n in range(700)])
    store.append("system_logs_events", [row(LOGS, START + n, message=f"message {n}", uid=0) for n in range(700)])
    honest = [row(SOCKETS, START + n, uid=33, exe="/usr/sbin/nginx", state="established") for n in range(200)]
    store.append("sockets_events", honest)
    chosen = random.Random(1)
    for second in range(120):
        clock.now = START + second
        rows = [
            row(SOCKETS, clock.now, uid=chosen.choice(uids), exe="/bin/nc", cmdline=f"{second} {n} {'x' * 4_000}")
            for n in range(50)
        ]
        store.append("sockets_events", rows)
        assert store.flush(60)
    assert store.counters["sockets_events"].evicted > 5_000
    assert read(store, "SELECT count(*) FROM processes_events") == [(700,)]
    assert read(store, "SELECT count(*) FROM system_logs_events") == [(700,)]
    assert read(store, "SELECT count(*) FROM sockets_events WHERE uid = 33") == [(200,)]


@pytest.mark.parametrize(
    ("values", "producer"),
    [
        ({"uid": 0, "loginuid": 1_000}, "loginuid 1000"),
        ({"uid": 33, "loginuid": 2**32 - 1}, "uid 33"),
        ({"uid": 0, "container_id": "c1"}, "container c1"),
        ({"uid": 0, "cgroup": "/system.slice/ssh.service"}, "cgroup /system.slice/ssh.service"),
        ({"uid": 33, "cgroup": "/anything/a/user/made"}, "uid 33"),
        ({"uid": 165_535}, "uids from 131072"),
        ({}, "unknown"),
    ],
)
def test_the_producer_of_a_row(tmp_path: Path, values: dict[str, object], producer: str) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], BYTES, START)
    file.write(WriteBatch(rows={"processes_events": [row(PROCESSES, START, **values)]}), START)
    file.update_usage()
    assert read_rows(file.uri, "SELECT producer FROM _usage") == [(producer,)]
    file.close(START, clean=True)


def test_a_long_command_line_that_is_stored_once_costs_its_user_no_history(tmp_path: Path) -> None:
    """A service whose rows count as if each had a copy would lose them to a flood with short ones."""
    file = EventFile(tmp_path / "events.db", [SOCKETS], BYTES, START)
    command_line, kept = "/usr/bin/java " + "-Dproperty=value " * 240, 0
    for minute in range(20):
        now = START + 60 * minute
        service = [row(SOCKETS, now + n, uid=33, exe="/usr/bin/java", cmdline=command_line, pid=n) for n in range(40)]
        file.write(WriteBatch(rows={"sockets_events": service}), now)
        kept += len(service)
        for second in range(10):
            flood = [row(SOCKETS, now + second, uid=ATTACKER, exe="/tmp/flood", pid=n) for n in range(200)]
            file.write(WriteBatch(rows={"sockets_events": flood}), now + second)
            file.evict(now + second, 1e9)
    assert file._scalar("SELECT count(*) FROM sockets_events WHERE uid = 33") == kept
    assert file._scalar(f"SELECT count(*) FROM sockets_events WHERE uid = {ATTACKER}") < 40_000
    file.close(START, clean=True)


def test_a_control_group_with_a_long_name_is_one_producer_with_this_name(tmp_path: Path) -> None:
    """Its name is stored once (`Texts`), and the reference to it is not its name."""
    group = f"/kubepods.slice/{'x' * 150}.scope"
    file = EventFile(tmp_path / "events.db", [PROCESSES], BYTES, START)
    for n in range(5):
        file.write(WriteBatch(rows={"processes_events": [row(PROCESSES, START, uid=0, cgroup=group)]}), START + n)
        file._texts.forget()
    file.update_usage()
    assert file._select("SELECT producer, rows FROM _usage") == [(f"cgroup {group}", 5)]
    file.expire(START + 100, 10.0)
    assert file._select("SELECT producer, rows FROM _usage") == []
    file.close(START, clean=True)


def test_a_normal_load_loses_its_oldest_minutes_first(store: EventStore, clock: Clock) -> None:
    for minute in range(100):
        clock.now = START + 60 * minute
        store.append(
            "processes_events",
            [process(clock.now + n / 5, n % 4, f"/usr/bin/{n % 20}", "x" * 100) for n in range(250)],
        )
        assert store.flush(60)
    by_age = [
        read(store, f"SELECT count(*) FROM processes_events WHERE time BETWEEN {since} AND {since + 1_199}")[0][0]
        for since in range(int(START), int(START) + 6_000, 1_200)
    ]
    assert by_age == sorted(by_age)
    assert by_age[0] < by_age[-1] // 2
    assert by_age[-1] > 2_500


def recounted(connection: apsw.Connection, file: EventFile) -> list[tuple[Any, ...]]:
    """The figures of all rows, as a store without figures would count them."""
    connection.execute("SAVEPOINT here; DELETE FROM _usage; UPDATE _accounts SET definition = ''")
    for table in file.last_seq:
        file._usage.declare(table)
    file.update_usage()
    counted = connection.execute(
        'SELECT "table", producer, minute, rows, bytes FROM _usage ORDER BY 1, 2, 3'
    ).fetchall()
    connection.execute("ROLLBACK TO here; RELEASE here")
    return counted


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("seed", range(5))
def test_the_figures_stay_those_of_the_rows(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    now, things = START, Table(
        "things_events",
        "things",
        description="For tests.",
        columns=[Column("time", "time", "a value"), Column("text", "text", "a value")],
        kind="events",
    )  # fmt: skip
    file = EventFile(tmp_path / "events.db", [PROCESSES, SOCKETS, things], 1_500_000, now)
    connection = file._connection
    for step in range(60):
        now += chosen.choice((0.1, 20, 70))
        rows: dict[str, list[Row]] = {}
        for table in (PROCESSES, SOCKETS):
            rows[table.name] = [
                row(table, now - chosen.random() * 90, uid=chosen.randrange(4), exe=chosen.choice(("a", "b", None)),
                    cmdline="ü" * chosen.randrange(900))
                for _ in range(1 + chosen.randrange(200))
            ]  # fmt: skip
        rows["things_events"] = [(None if chosen.random() < 0.5 else now, "x" * chosen.randrange(50))]
        file.write(WriteBatch(rows=rows), now)
        file.evict(now, 3_600.0)
        if step % 7 == 0:
            file.expire(now, 600.0)
        if chosen.random() < 0.5:
            continue
        file.update_usage()
        figures = connection.execute('SELECT "table", producer, minute, rows, bytes FROM _usage ORDER BY 1, 2, 3')
        assert figures.fetchall() == recounted(connection, file)
    file.close(now, clean=True)


async def test_rows_that_eviction_removed_undelivered_are_counted(store: EventStore, clock: Clock) -> None:
    database = Database(list(TABLES.values()), TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    runner = QueryRunner(database, store)
    zeek = Recorder()
    query = Query("SELECT seq, exe FROM processes_events", "Test::row", 0.05, Subscription.EVENTS)
    try:
        store.acknowledge(query_key(zeek.identity, query), {"processes_events": 1}, None)
        store.append("processes_events", [process(START, ATTACKER, "/usr/bin/first-step")])
        flood(store, clock)
        recorded, kept = store.last_seq("processes_events"), read(store, "SELECT count(*) FROM processes_events")[0][0]
        assert kept < recorded
        await runner.install(zeek, "query", query)
        delivered: list[Row] = []
        while len(delivered) < kept - 1:
            delivered += [one for _, one in await zeek.next()]
        assert [one[0] for one in delivered] == [
            seq for (seq,) in read(store, "SELECT seq FROM processes_events WHERE seq > 1 ORDER BY seq")
        ]
        (installed,) = runner.installed
        await until(lambda: installed.seen["processes_events"] == recorded)
        assert installed.status().lost == recorded - kept
    finally:
        await runner.close()
        database.close()


def test_a_flood_leaves_few_gaps_that_name_its_maker(store: EventStore, clock: Clock) -> None:
    store.record_gap("agent", START - 10, START, "crashed")
    flood(store, clock)
    crashed, *evicted = store.gaps()
    assert crashed == Gap("agent", START - 10, START, "crashed")
    assert len(evicted) == 1
    assert (evicted[0].source, evicted[0].cause) == ("processes", "retention: the store is full (uid 1001)")
    assert START <= evicted[0].begin < evicted[0].end < START + 600


def test_removed_rows_that_had_expired_are_no_gap(tmp_path: Path, clock: Clock) -> None:
    settings = EventSettings(retention_bytes=BYTES, retention_age=3_600.0)
    store = EventStore(tmp_path / "old.db", list(TABLES.values()), settings, clock)
    clock.now += 7_200
    for _ in range(20):
        store.append("processes_events", [process(START, ATTACKER, "/bin/true", f"{n:0100}") for n in range(1_000)])
        store.flush()
    counters = store.counters["processes_events"]
    assert counters.evicted + counters.expired > 0
    assert store.gaps() == []
    store.close()


@pytest.mark.long
def test_gaps_of_many_producers_are_bounded_and_leave_other_gaps(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 1_000_000, START)
    file.write(WriteBatch(gaps=[Gap("agent", START - 10, START, "crashed")]), START)
    number = 0
    for batch in range(25):
        now = START + 3_600 * batch
        rows = []
        for _ in range(500):
            number += 1
            rows.append(process(now, 1, "/bin/true", "x" * 300, container_id=f"c{number}"))
        file.write(WriteBatch(rows={"processes_events": rows}), now)
        file.evict(now, 1e9)
        file.expire(now, 1e9)
    assert len(file.gaps) < 220
    assert file.gaps[0] == Gap("agent", START - 10, START, "crashed")
    assert any(gap.cause == "retention: the store is full (several producers)" for gap in file.gaps)
    file.close(START, clean=True)


def test_a_flood_of_log_entries_keeps_the_position_to_continue_from(store: EventStore, clock: Clock) -> None:
    for batch in range(20):
        clock.now = START + batch
        rows = [
            row(LOGS, clock.now, uid=ATTACKER, process="logger", message="x" * 500, cursor=f"{batch}-{n}")
            for n in range(1_000)
        ]
        store.append("system_logs_events", rows)
        store.flush()
        assert store.recording_position("system_logs_events").cursor == f"{batch}-999"
    assert store.counters["system_logs_events"].evicted > 10_000


def test_rows_are_counted_only_when_the_store_fills_up(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 4 * BYTES, START)
    statements: list[str] = []
    file._connection.exec_trace = lambda cursor, sql, bindings: statements.append(sql) or True

    def counted(seconds: range) -> int:
        statements.clear()
        for second in seconds:
            now = START + second
            rows = [process(now, ATTACKER, "/usr/bin/flood", "x" * 100) for _ in range(500)]
            file.write(WriteBatch(rows={"processes_events": rows}), now)
            file.evict(now, 86_400.0)
        return sum("GROUP BY" in sql for sql in statements)

    assert counted(range(10)) == 0
    assert read_rows(file.uri, "SELECT count(*) FROM _usage") == [(0,)]
    assert 0 < counted(range(10, 60)) < 50
    file.expire(START + 110, 60.0)
    file.update_usage()
    ((rows,),) = read_rows(file.uri, "SELECT count(*) FROM processes_events")
    assert read_rows(file.uri, "SELECT sum(rows) FROM _usage") == [(rows,)]
    assert rows > 0
    file.close(START, clean=True)


@pytest.mark.long
def test_retention_costs_little_next_to_storing(tmp_path: Path) -> None:
    """Eviction removes rows in large steps: it examines at most a few rows for each that it removes."""
    file = EventFile(tmp_path / "events.db", [PROCESSES], BYTES, START)
    statements: list[str] = []
    connection = file._connection
    connection.exec_trace = lambda cursor, sql, bindings: statements.append(sql) or True
    removed = 0
    for second in range(600):
        now = START + second
        rows = [process(now, ATTACKER, "/usr/bin/flood", "x" * 300) for _ in range(100)]
        file.write(WriteBatch(rows={"processes_events": rows}), now)
        removed += sum(file.evict(now, 86_400.0).values())
    looked = sum("row_number()" in sql for sql in statements)
    assert removed > 20_000
    assert looked < removed / 50
    file.close(time.time(), clean=True)
