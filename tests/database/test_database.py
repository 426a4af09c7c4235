"""The database: result types, event tables and their windows, lanes, tables that come and go."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sql import Recorder, database, events

from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.database.database import Database, Lane, Profile, Result, ResultColumn
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Row, ZeekType
from zeek_agent.table import Constraints

PROCESSES = [
    ("pid", "count"),
    ("name", "text"),
    ("startup", "time"),
    ("admin", "bool"),
    ("groups", "set[count]"),
    ("nice", "int"),
]
ROWS = [(1, "init", 0.5, True, {0}, 0), (2, "sh", 1.5, False, {5, 6}, -5)]


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = database(
        Recorder("processes", PROCESSES, ROWS),
        Recorder("sockets", [("pid", "count"), ("addr", "address")], [(2, "::1")]),
    )
    yield opened
    await opened.aclose()


def types(result: Result) -> list[str]:
    return [str(column.type) for column in result.columns]


def names(result: Result) -> list[str]:
    return [column.name for column in result.columns]


ALL_TYPES = [kind for _, kind in PROCESSES]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM processes", ALL_TYPES),
        ("SELECT p.pid, addr FROM processes AS p JOIN sockets AS s USING (pid)", ["count", "address"]),
        ("SELECT addr, startup FROM processes LEFT JOIN sockets ON sockets.pid = processes.pid", ["address", "time"]),
        ("SELECT * FROM (SELECT * FROM (SELECT * FROM processes) WHERE pid > 0)", ALL_TYPES),
        ("SELECT (SELECT admin FROM processes LIMIT 1)", ["bool"]),
        ("WITH p AS (SELECT pid AS x, name FROM processes) SELECT x, name FROM p", ["count", "text"]),
        ("WITH p AS MATERIALIZED (SELECT * FROM processes) SELECT * FROM p", ALL_TYPES),
        ("SELECT pid FROM processes UNION SELECT pid FROM sockets", ["count"]),
        ("SELECT groups, nice FROM processes GROUP BY pid ORDER BY name", ["set[count]", "int"]),
        ("SELECT DISTINCT pid FROM processes", ["count"]),
        (
            "SELECT pid + 1, name || '', startup * 2, x'00', NULL FROM processes",
            ["int", "text", "real", "blob", "text"],
        ),
        ("SELECT count(*), max(pid), avg(pid), admin = 1 FROM processes", ["int", "int", "real", "int"]),
        ("SELECT value FROM processes, json_each(groups)", ["int"]),
        ("SELECT max(startup) AS \"t:time\", max(pid) AS 'n:count' FROM processes", ["time", "count"]),
        ('SELECT pid AS "a:b", name AS "x:set" FROM processes', ["count", "text"]),
        ('SELECT json_group_array(pid) AS "pids:set[count]" FROM processes', ["set[count]"]),
        ('SELECT pid AS "pid:real" FROM processes', ["real"]),
    ],
)
async def test_columns_are_typed_by_origin_alias_or_value(db: Database, sql: str, expected: list[str]) -> None:
    result = await db.query(sql)
    assert types(result) == expected
    assert result.errors == ()
    assert result.rows


async def test_a_type_in_an_alias_is_cut_off_and_applied(db: Database) -> None:
    result = await db.query(
        """SELECT max(pid) AS "top:count", json_group_array(pid) AS "pids:set[count]", '80/tcp' AS "p:port",
           min(admin) AS "any:bool", '10.0.0.1' AS "a:address", count(*) AS "n:interval", pid AS "a:b" FROM processes"""
    )
    assert names(result) == ["top", "pids", "p", "any", "a", "n", "a:b"]
    assert result.rows[0][:6] == (2, (1, 2), (80, "tcp"), False, "10.0.0.1", 2.0)


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT pid FROM processes UNION ALL SELECT 'a'", "column pid (count): 'a' is not an integer"),
        ("SELECT pid FROM processes UNION ALL SELECT -1", "column pid (count): -1 is negative"),
        ("SELECT name FROM processes UNION ALL SELECT 5", "column name (text): 5 is not text"),
        ("SELECT admin FROM processes UNION ALL SELECT 2", "column admin (bool): 2 is not true or false"),
        ("SELECT groups FROM processes UNION ALL SELECT '[1'", "column groups (set[count]): '[1' is not JSON"),
        ('SELECT pid AS "a:address" FROM processes WHERE pid = 1', "column a (address): 1 is not an address"),
        ("SELECT value FROM json_each('[1, 2, \"x\"]')", "column value (text): 1 is not text"),
    ],
)
async def test_a_value_that_does_not_fit_its_column_is_an_error_of_the_row(db: Database, sql: str, error: str) -> None:
    result = await db.query(sql)
    assert error in result.errors[0]
    assert len(result.rows) in {0, 1, 2}
    fits = {"count": int, "text": str, "bool": bool, "set[count]": tuple}
    for row in result.rows:
        assert isinstance(row[0], fits[types(result)[0]])


async def test_integers_among_reals_are_reals(db: Database) -> None:
    result = await db.query("SELECT value FROM json_each('[1, 2.5, null]')")
    assert types(result) == ["real"]
    assert result.rows == [(1.0,), (2.5,), (None,)]


async def test_only_misfits_of_many_rows_are_left_out() -> None:
    count = 5_000
    db = database(Recorder("t", [("n", "int")], [(number if number % 1000 else -1,) for number in range(count)]))
    result = await db.query('SELECT n AS "n:count" FROM t')
    assert [row[0] for row in result.rows] == [number for number in range(count) if number % 1000]
    assert result.errors == ("row omitted: column n (count): -1 is negative", "and 4 more")
    await db.aclose()


async def test_double_quotes_make_a_text_where_no_column_is(db: Database) -> None:
    assert (await db.query('SELECT pid FROM processes WHERE name = "sh"')).rows == [(2,)]
    assert (await db.query('SELECT "name" FROM processes WHERE pid = 1')).rows == [("init",)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nope FROM processes", "no such column: nope"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELEC", 'near "SELEC": syntax error'),
        ("", "there is no statement"),
        ("-- nothing", "there is no statement"),
        ("SELECT 1; SELECT 2", "only one statement at a time"),
        ("SELECT ?", "bindings"),
        ("SELECT CAST(x'ff' AS TEXT)", "not valid UTF-8"),
        ("SELECT '\ud800'", "surrogates not allowed"),
        ("SELECT 1 \0", ""),
    ],
)
async def test_an_invalid_statement_is_reported_with_sqlites_message(db: Database, sql: str, message: str) -> None:
    with pytest.raises(SqlError) as caught:
        await db.query(sql)
    assert message in str(caught.value)


async def test_a_trailing_semicolon_or_comment_is_not_a_second_statement(db: Database) -> None:
    assert (await db.query("SELECT 1; -- one\n")).rows == [(1,)]


async def test_compiling_returns_columns_and_tables_without_a_scan() -> None:
    processes = Recorder("processes", PROCESSES, ROWS)
    db = database(processes, Recorder("sockets", [("pid", "count")], []), Recorder("users", [("uid", "count")], []))
    statement = await db.prepare(
        "WITH s AS (SELECT pid FROM sockets) "
        "SELECT p.startup, count(*) AS 'n:count', 1 FROM processes p JOIN s USING (pid)"
    )
    assert statement.columns == (
        ResultColumn("startup", ZeekType("time")),
        ResultColumn("n", ZeekType("count")),
        ResultColumn("1", ZeekType("text")),
    )
    assert statement.tables == {"processes", "sockets"}
    assert (await db.prepare("SELECT count(*) FROM users")).tables == {"users"}
    assert processes.scans == []
    with pytest.raises(SqlError, match="no such table: nope"):
        await db.prepare("SELECT * FROM nope")
    await db.aclose()


# Event tables

PROCESS_EVENTS = events("processes_events", [("time", "time"), ("pid", "count"), ("exe", "text")], added=["exe"])
SOCKET_EVENTS = events("sockets_events", [("time", "time"), ("pid", "count"), ("tags", "set[text]")])


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    path = tmp_path / "events.sqlite" if request.param == "disk" else None
    opened = EventStore(path, [PROCESS_EVENTS, SOCKET_EVENTS])
    now = time.time()
    opened.append("processes_events", [(now + number, number, f"/bin/{number}") for number in range(1, 6)])
    opened.append("sockets_events", [(now, 3, ["b", "a"])])
    opened.flush()
    yield opened
    opened.close()


@pytest.fixture
async def recorded(store: EventStore) -> AsyncIterator[Database]:
    opened = database(PROCESS_EVENTS, SOCKET_EVENTS, Recorder("processes", PROCESSES, ROWS), store=store)
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("profile", list(Profile))
async def test_a_window_bounds_event_tables_and_not_their_history(recorded: Database, profile: Profile) -> None:
    async def pids(table: str, window: dict[str, tuple[int, int]] | None = None) -> list[object]:
        sql = f"SELECT pid FROM {table}"
        result = await recorded.query(sql, profile=profile, lane=Lane.EVENTS, window=window)
        assert types(result) == ["count"]
        return [row[0] for row in result.rows]

    window = {"processes_events": (1, 3)}
    assert await pids("processes_events", window) == [2, 3]
    assert await pids("process_events", window) == [2, 3]
    assert await pids("processes_events_history", window) == [1, 2, 3, 4, 5]
    assert await pids("processes_events") == [1, 2, 3, 4, 5]
    assert await pids("sockets_events", window) == [3]
    assert await pids("processes_events WHERE pid IN (1, 3)", window) == [3]
    assert await pids("processes_events WHERE pid IN (SELECT pid FROM sockets_events WHERE pid = 7)", window) == []
    joined = "processes_events_history JOIN socket_events USING (pid)"
    assert await pids(joined, {"processes_events": (0, 0), "sockets_events": (0, 1)}) == [3]
    assert await pids(joined, {"sockets_events": (1, 1)}) == []


@pytest.mark.parametrize("profile", list(Profile))
async def test_tables_of_an_event_statement_are_reported_by_their_own_names(
    recorded: Database, profile: Profile
) -> None:
    for name in ("processes_events", "process_events", "processes_events_history"):
        assert (await recorded.prepare(f"SELECT * FROM {name}", profile=profile)).tables == {"processes_events"}


async def test_added_columns_of_events_are_hidden_from_a_stock_package(recorded: Database) -> None:
    for name in ("processes_events", "process_events", "processes_events_history"):
        stock = await recorded.query(f"SELECT * FROM {name}", profile=Profile.STOCK)
        assert names(stock) == ["time", "pid"]
        assert names(await recorded.query(f"SELECT * FROM {name}")) == ["time", "pid", "exe", "seq"]
        named = await recorded.query(f"SELECT exe, seq FROM {name} WHERE pid = 2", profile=Profile.STOCK)
        assert named.rows == [("/bin/2", 2)]


@pytest.mark.parametrize("profile", list(Profile))
async def test_events_keep_their_types(recorded: Database, profile: Profile) -> None:
    result = await recorded.query("SELECT time, pid, tags, seq FROM sockets_events", profile=profile)
    assert types(result) == ["time", "count", "set[text]", "count"]
    assert result.rows[0][2] == ("a", "b")


@pytest.mark.parametrize("profile", list(Profile))
async def test_a_statement_reads_the_id_of_the_event_store(
    recorded: Database, store: EventStore, profile: Profile
) -> None:
    sql = 'SELECT event_store() AS "store:text", seq FROM processes_events WHERE seq < 3'
    result = await recorded.query(sql, profile=profile, lane=Lane.EVENTS, window={"processes_events": (0, 9)})
    assert result.rows == [(store.id, 1), (store.id, 2)]
    joined = 'SELECT DISTINCT event_store() AS "store:text" FROM processes_events JOIN processes'
    assert (await recorded.query(joined, profile=profile)).rows == [(store.id,)]
    db = database(PROCESS_EVENTS)
    assert (await db.query('SELECT event_store() AS "store:text"', profile=profile)).rows == [(None,)]
    await db.aclose()


@pytest.mark.parametrize("profile", list(Profile))
async def test_without_a_store_event_tables_are_empty(profile: Profile) -> None:
    db = database(PROCESS_EVENTS)
    result = await db.query("SELECT * FROM processes_events, process_events", profile=profile)
    assert result.rows == []
    assert types(result)[:2] == ["time", "count"]
    await db.aclose()


@pytest.mark.long(kept=6)
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM store._delivered",
        "SELECT * FROM _delivered",
        "SELECT count(*) FROM _Delivered",
        "SELECT count(*) FROM store._delivered AS t",
        "SELECT count(*) FROM event_window",
        "SELECT count(*) FROM store.sqlite_sequence",
        "SELECT * FROM store.sqlite_schema",
        "SELECT * FROM event_window",
        "WITH processes_events AS (SELECT * FROM store._delivered) SELECT * FROM processes_events",
        "DELETE FROM store.processes_events",
        "UPDATE temp.event_window SET low = 0",
    ],
)
@pytest.mark.parametrize("profile", list(Profile))
async def test_the_stores_bookkeeping_tables_are_not_accessible(recorded: Database, profile: Profile, sql: str) -> None:
    with pytest.raises(SqlError):
        await recorded.query(sql, profile=profile)
    assert (await recorded.query("SELECT count(*) FROM processes_events", profile=profile)).rows == [(5,)]


async def test_events_appended_later_are_seen(recorded: Database, store: EventStore) -> None:
    assert (await recorded.query("SELECT count(*) FROM processes_events")).rows == [(5,)]
    store.append("processes_events", [(time.time(), 9, None)])
    store.flush()
    assert (await recorded.query("SELECT max(pid) FROM processes_events")).rows == [(9,)]


async def test_a_store_that_changes_its_file_is_followed(tmp_path: Path) -> None:
    class Moving:
        uri = ""

    first, second = (EventStore(tmp_path / name, [PROCESS_EVENTS]) for name in ("a", "b"))
    first.append("processes_events", [(time.time(), 1, None)])
    second.append("processes_events", [(time.time(), 2, None)])
    moving = Moving()
    db = database(PROCESS_EVENTS, store=moving)
    for number, store in ((1, first), (2, second)):
        store.flush()
        moving.uri = store.uri
        assert (await db.query("SELECT pid FROM processes_events")).rows == [(number,)]
        store.close()
    await db.aclose()


async def test_a_window_on_an_unknown_table_is_refused(recorded: Database) -> None:
    with pytest.raises(SqlError, match="no event table nowhere"):
        await recorded.query("SELECT 1", window={"nowhere": (0, 1)})


@pytest.mark.parametrize("denied", ["processes_events", "process_events", "processes_events_history"])
@pytest.mark.parametrize("profile", list(Profile))
async def test_a_denied_event_table_is_denied_by_all_its_names(
    store: EventStore, profile: Profile, denied: str
) -> None:
    db = database(PROCESS_EVENTS, SOCKET_EVENTS, store=store, access=AccessSettings(tables_deny=(denied,)))
    for name in ("processes_events", "process_events", "processes_events_history"):
        with pytest.raises(AccessDeniedError, match="table processes_events may not be queried"):
            await db.query(f"SELECT count(*) FROM {name}", profile=profile)
    assert (await db.query("SELECT pid FROM socket_events", profile=profile)).rows == [(3,)]
    await db.aclose()


# Lanes


def sleeper(name: str, seconds: float = 5.0) -> Recorder:
    """A table that takes a while, in short steps."""

    def rows(wanted: Constraints) -> Iterator[Row]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            wanted.check()
            time.sleep(0.005)
        yield (threading.current_thread().name,)

    return Recorder(name, [("thread", "text")], rows)


async def test_a_slow_snapshot_does_not_delay_another_lane() -> None:
    db = database(sleeper("slow"), Recorder("quick", [("n", "count")], [(1,)]))
    slow = [asyncio.create_task(db.query(f"SELECT *, {number} FROM slow")) for number in range(3)]
    await asyncio.sleep(0.05)
    for lane in (Lane.EVENTS, Lane.LOCAL):
        assert (await db.query("SELECT n FROM quick", lane=lane)).rows == [(1,)]
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await db.aclose()


async def test_snapshots_run_side_by_side_up_to_the_limit() -> None:
    together = threading.Barrier(2)

    def meets(name: str) -> Recorder:
        def rows(wanted: Constraints) -> Iterator[Row]:
            together.wait(10)
            yield (threading.current_thread().name,)

        return Recorder(name, [("thread", "text")], rows)

    db = database(meets("a"), meets("b"), limits=LimitSettings(workers=2))
    results = await asyncio.gather(*(db.query(f"SELECT * FROM {name}") for name in "ab"))
    assert len({result.rows[0] for result in results}) == 2
    await db.aclose()


async def test_events_run_one_after_the_other() -> None:
    db = database(sleeper("a", 0.02), sleeper("b", 0.02))
    results = await asyncio.gather(*(db.query(f"SELECT * FROM {name}", lane=Lane.EVENTS) for name in "abab"))
    assert len({result.rows[0] for result in results}) == 1
    await db.aclose()


async def test_cancelling_the_task_ends_the_statement() -> None:
    db = database(sleeper("slow"), limits=LimitSettings(workers=1))
    task = asyncio.create_task(db.query("SELECT * FROM slow"))
    endless = asyncio.create_task(
        db.query("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT max(x) FROM c", lane=Lane.LOCAL)
    )
    await asyncio.sleep(0.1)
    task.cancel()
    endless.cancel()
    await asyncio.gather(task, endless, return_exceptions=True)
    async with asyncio.timeout(db.limits.time / 2):
        for lane in (Lane.SNAPSHOTS, Lane.LOCAL):
            assert (await db.query("SELECT 1", lane=lane)).rows == [(1,)]
    await db.aclose()


async def test_closing_cancels_statements_and_ends_the_threads() -> None:
    db = database(sleeper("slow"))
    tasks = [asyncio.create_task(db.query("SELECT * FROM slow", lane=lane)) for lane in Lane]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(db.limits.time / 2):
        await db.aclose()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, LimitError)
        assert "closed" in str(outcome)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sql-")]
    with pytest.raises(SqlError, match="closed"):
        await db.query("SELECT 1")
    db.close()


# Tables that come and go


async def test_tables_are_added_and_removed_at_run_time(db: Database) -> None:
    calls: list[str] = []
    db.on_change(lambda: calls.append(",".join(sorted(db.tables))))
    extra = Recorder("extra", [("n", "count")], [(7,)])
    for lane in Lane:
        with pytest.raises(SqlError, match="no such table: extra"):
            await db.query("SELECT * FROM extra", lane=lane)
    db.add(extra.table)
    for lane in Lane:
        assert (await db.query("SELECT * FROM extra", lane=lane)).rows == [(7,)]
    db.remove("extra")
    for lane in Lane:
        with pytest.raises(SqlError, match="no such table: extra"):
            await db.query("SELECT * FROM extra", lane=lane)
    assert calls == ["extra,processes,sockets", "processes,sockets"]
    with pytest.raises(KeyError):
        db.remove("extra")


async def test_a_table_can_take_anothers_place(db: Database) -> None:
    await db.query("SELECT * FROM processes")
    db.add(Recorder("processes", [("other", "text")], [("x",)]).table)
    assert (await db.query("SELECT * FROM processes")).rows == [("x",)]


# Audit


async def test_each_statement_and_its_origin_are_audited(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "zeek_agent.audit")
    for _ in range(2):
        await db.query("SELECT 1", origin="ws://zeek:27759")
    with pytest.raises(AccessDeniedError):
        await db.query("DETACH main", origin="shell")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "ws://zeek:27759: SELECT 1"),
        ("DEBUG", "ws://zeek:27759: SELECT 1"),
        ("INFO", "shell: DETACH main"),
        ("WARNING", "refused, shell: statements may only read, not DETACH: DETACH main"),
    ]
