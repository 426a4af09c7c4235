"""Times in SQL: functions that make them of text, comparisons that are errors, and how commands print aggregates."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from osqueryd import Bridged, Osqueryd, usual_tables
from sql import Recorder, database, events
from workers import contained

from zeek_agent.config.sections import LimitSettings
from zeek_agent.control.answers import answering
from zeek_agent.control.messages import Columns, QueryRequest, Request
from zeek_agent.database.database import Database, Profile, SqlDatabase
from zeek_agent.errors import SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Parameter
from zeek_agent.tables import builtin_tables

COLUMNS = [("pid", "count"), ("name", "text"), ("since", "time"), ("busy", "interval"), ("uid", "count")]
ROWS = [(1, "init", 86_400.0, 600.0, 0), (2, "sh", 172_800.5, 1.5, 7), (3, "2026", None, None, 7)]
STARTS = events("starts_events", [("time", "time"), ("pid", "count"), ("took", "interval")])


@pytest.fixture
def processes() -> Recorder:
    return Recorder("processes", COLUMNS, ROWS)


@pytest.fixture
async def db(processes: Recorder) -> AsyncIterator[Database]:
    opened = database(processes, Recorder("notes", [("since", "text"), ("at", "time")], [("2026-11-28", 5.0)]), STARTS)
    yield opened
    await opened.aclose()


@pytest.fixture
async def recorded(tmp_path: Path, processes: Recorder) -> AsyncIterator[Database]:
    """With a store, so that event tables are views."""
    store = EventStore(tmp_path / "events.db", [STARTS])
    store.append("starts_events", [(time.time() - age, age, 1.0) for age in (5, 500, 50_000)])
    assert store.flush(10)
    opened = database(processes, STARTS, store=store)
    yield opened
    await opened.aclose()
    store.close()


# Functions


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1970-01-02T00:00:00Z", 86_400.0),
        ("1970-01-02", 86_400.0),
        ("1970-01-02 00:00", 86_400.0),
        ("1970-01-02T01:00:00.250000+01:00", 86_400.25),
        ("1970-01-01 18:30:00-0530", 86_400.0),
        (" 1970-01-02t00:00:00z ", 86_400.0),
        ("1969-12-31T23:59:59.5Z", -0.5),
        ("2026-11-28T03:20:00.123456Z", 1_795_836_000.123456),
        ("1795836000.25", 1_795_836_000.25),
    ],
)
async def test_timestamp_reads_what_commands_and_logs_print(db: Database, content: str, expected: float) -> None:
    result = await db.query(f"SELECT timestamp('{content}')")
    assert result.rows == [(expected,)]
    assert str(result.columns[0].type) == "real"


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("ago('10 minutes')", 600),
        ("ago('1h 30m')", 5_400),
        ("ago('1 day, 2 hrs')", 93_600),
        ("ago('1.5 sec')", 1.5),
        ("ago('250ms')", 0.25),
        ("ago('2 Weeks')", 1_209_600),
        ("ago(90)", 90),
        ("timestamp(ago('1 min'))", 60),
    ],
)
async def test_ago_is_a_time_before_the_statement(db: Database, expression: str, seconds: float) -> None:
    before = time.time()
    [(found,)] = (await db.query(f"SELECT {expression}")).rows
    assert before - seconds <= found <= time.time() - seconds  # type: ignore[operator]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("timestamp('yesterday')", "timestamp: 'yesterday' is not a time; write it like '2026-11-28T03:20:00Z'"),
        ("timestamp('2026-02-30')", "'2026-02-30' is not a time"),
        ("timestamp('2026-11-28T25:00:00Z')", "is not a time"),
        ("timestamp('2026')", "'2026' is not a time"),
        ("timestamp('20261128')", "'20261128' is not a time"),
        ("timestamp(x'41')", "is not a time"),
        ("timestamp('')", "is not a time"),
        ("ago('soon')", "ago: 'soon' is not a duration; write it like '10 minutes'"),
        ("ago('10')", "'10' is not a duration"),
        ("ago('10 fortnights')", "is not a duration"),
        ("ago('-5 min')", "is not a duration"),
        (f"ago('{'1s ' * 500}')", r"\(1,500 bytes\)' is not a duration"),
    ],
)
async def test_an_invalid_time_is_an_error_with_an_example(db: Database, expression: str, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        await db.query(f"SELECT {expression}")


async def test_null_has_no_time(db: Database) -> None:
    assert (await db.query("SELECT timestamp(NULL), ago(NULL)")).rows == [(None, None)]


async def test_all_uses_in_a_statement_are_the_same_time(db: Database) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000)"
    assert len((await db.query(f"{numbers} SELECT DISTINCT ago(60 + i * 0) FROM n")).rows) == 1


# Pushed down


async def test_a_time_reaches_a_table_as_its_number(db: Database, processes: Recorder) -> None:
    assert (await db.query("SELECT pid FROM processes WHERE since = timestamp('1970-01-02')")).rows == [(1,)]
    assert (await db.query("SELECT pid FROM processes WHERE since IN (timestamp('1970-01-02'), 5)")).rows == [(1,)]
    assert processes.equalities == [{"since": {86_400.0}}, {"since": {86_400.0, 5.0}}]


async def test_a_time_reaches_osquery_as_its_number(tmp_path: Path) -> None:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            sql = "SELECT size FROM deb_packages WHERE size > timestamp('1970-01-02')"
            assert len(await bridged.rows(sql)) == 13
            assert await bridged.asks(sql) == ["SELECT `size` FROM `deb_packages` WHERE `size` > 86400.0 LIMIT 200001"]


async def test_a_statement_that_runs_again_keeps_its_time(tmp_path: Path) -> None:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as osquery:
        runs = Recorder("runs", [("name", "text")], [("package1",), ("package2",)])
        async with Bridged(osquery, [runs]) as bridged:
            sql = "SELECT d.name FROM runs CROSS JOIN deb_packages d WHERE runs.name IN ('package1', 'package2') "
            sql += "AND d.name = runs.name AND d.size < ago('1 s')"
            assert sorted(await bridged.rows(sql)) == [("package1",), ("package2",)]
            assert len(runs.scans) == 2


async def test_recorded_events_are_found_by_their_age(recorded: Database) -> None:
    for sql in (
        "SELECT pid FROM starts_events WHERE time > ago('1 minute')",
        "SELECT s.pid FROM starts_events_history s JOIN processes p ON p.pid = 1 WHERE s.time > ago('1 minute')",
    ):
        for profile in Profile:
            assert (await recorded.query(sql, profile=profile)).rows == [(5,)]


# Comparisons that are never true


TIME = (
    "column since is a time, which a text such as '2026-11-28.*' does not compare with: write timestamp\\('2026-11-28"
)
INTERVAL = "column busy is an interval, .* write a number of seconds, .*timestamp.*ago"


@pytest.mark.long(kept=20)
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT pid FROM processes WHERE since > '2026-11-28T03:00:00'", TIME),
        ("SELECT pid FROM processes WHERE since>'2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE since = '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE since <> '2026-11-28' AND pid = 1", TIME),
        ("SELECT pid FROM processes WHERE since IS NOT '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE '2026-11-28' <= since", TIME),
        ("SELECT pid FROM processes WHERE pid = 1 AND ('2026-11-28' <= since OR uid = 1)", TIME),
        ("SELECT pid FROM processes AS p WHERE p.since > '2026-11-28'", TIME),
        ('SELECT pid FROM processes p WHERE "p"."since" > "2026-11-28"', TIME),
        ("SELECT pid FROM processes WHERE since BETWEEN '2026-11-28' AND 5", TIME),
        ("SELECT pid FROM processes WHERE since NOT BETWEEN 5 AND '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE since IN (5, '2026-11-28')", TIME),
        ("SELECT pid FROM processes WHERE since NOT IN ('2026-11-28')", TIME),
        ("SELECT pid FROM processes WHERE since LIKE '2026-11-28%'", TIME),
        ("SELECT uid FROM processes GROUP BY uid HAVING max(since) > '2026-11-28'", TIME),
        ("SELECT uid FROM processes GROUP BY uid HAVING max(processes.since) > '2026-11-28'", TIME),
        ("SELECT since > '2026-11-28' FROM processes", TIME),
        ("SELECT CASE WHEN since < '2026-11-28' THEN 1 END FROM processes", TIME),
        ("SELECT 1 FROM processes a JOIN processes b ON a.pid = b.pid AND b.since > '2026-11-28'", TIME),
        ("SELECT p.pid FROM processes p JOIN notes n WHERE p.since > '2026-11-28'", TIME),
        ("SELECT pid FROM (SELECT * FROM processes) WHERE since > '2026-11-28'", TIME),
        ("WITH x AS (SELECT pid, since FROM processes) SELECT pid FROM x WHERE since > '2026-11-28'", TIME),
        ("SELECT pid FROM processes /* since */ WHERE -- since\n since > '2026-11-28'", TIME),
        ("SELECT pid FROM processes UNION SELECT pid FROM processes WHERE since > '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE busy > '10 minutes'", INTERVAL),
        (
            "SELECT pid FROM processes WHERE busy > datetime('now')",
            "column busy is an interval in seconds, but datetime",
        ),
        (
            "SELECT pid FROM processes WHERE since > datetime('now', '-1 hour')",
            r"column since is a time in seconds, but datetime\(…\) is text: write timestamp\(datetime\(…\)\) or ago",
        ),
        ("SELECT pid FROM processes WHERE since > CURRENT_TIMESTAMP", r"write timestamp\(current_timestamp\)"),
        ("SELECT uid FROM processes GROUP BY uid HAVING max(since) > '1795836000'", "column since is a time"),
        ("SELECT pid FROM starts_events WHERE time > '2026-11-28'", "column time is a time"),
        ("SELECT pid FROM processes WHERE (since) > '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE NOT ((since)) > '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE +since > '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE since > ('2026-11-28')", TIME),
        ("SELECT pid FROM processes WHERE since IN (('2026-11-28'))", TIME),
        ("SELECT pid FROM processes WHERE since IN (VALUES (5), ('2026-11-28'))", TIME),
        ("SELECT pid FROM processes WHERE since IN (SELECT '2026-11-28')", TIME),
        ("SELECT pid FROM processes WHERE since IN (5, datetime('now'))", "but datetime.* is text"),
        ("SELECT pid FROM processes WHERE (since, pid) > ('2026-11-28', 1)", TIME),
        ("SELECT pid FROM processes WHERE (pid, since) = (1, '2026-11-28')", TIME),
        ("SELECT pid FROM processes WHERE since IS NOT DISTINCT FROM '2026-11-28'", TIME),
        ("SELECT pid FROM processes WHERE since > '2026-11-28' COLLATE NOCASE", TIME),
        ("SELECT pid FROM processes WHERE since > '2026-11-28' IS TRUE", TIME),
        ("SELECT since > '2026-11-28' later FROM processes", TIME),
        ("SELECT pid FROM processes WHERE datetime('now', '-1 hour') < since", "but datetime.* is text"),
        ("SELECT pid FROM processes WHERE current_timestamp < since", "but current_timestamp is text"),
        ("SELECT CASE since WHEN 5 THEN 1 WHEN '2026-11-28' THEN 2 END FROM processes", TIME),
        (
            "SELECT uid, max(since) AS newest FROM processes GROUP BY uid HAVING newest > '2026-11-28'",
            "column newest is",
        ),
        ("SELECT * FROM (SELECT since AS at FROM processes) WHERE at > '2026-11-28'", "column at is a time"),
        ("SELECT * FROM (SELECT since at FROM processes) AS x WHERE x.at > '2026-11-28'", "column at is a time"),
        (
            "WITH x AS (SELECT busy AS b FROM processes) SELECT * FROM x WHERE b > '5 minutes'",
            "column b is an interval",
        ),
        ("SELECT pid FROM processes WHERE since > 'inf' OR since > '1_0'", "column since is a time"),
        ("SELECT pid FROM starts_events_history AS h WHERE h.time > '2026-11-28'", "column time is a time"),
    ],
)
@pytest.mark.parametrize("profile", list(Profile))
async def test_text_compared_with_a_time_is_an_error_that_says_what_to_write(
    db: Database, recorded: Database, sql: str, message: str, profile: Profile
) -> None:
    for opened in (db, recorded):
        if "notes" in sql and opened is recorded:
            continue
        for _ in range(2):
            with pytest.raises(SqlError, match=message):
                await opened.query(sql, profile=profile)
        with pytest.raises(SqlError, match=message):
            await opened.prepare(sql, profile=profile)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pid FROM processes WHERE since > '1764300000'",
        "SELECT pid FROM processes WHERE since > ' 1764300000.5e0 '",
        "SELECT pid FROM processes WHERE (since, name) > (5, '2026-11-28')",
        "SELECT pid FROM processes WHERE since > '17' || '00'",
        "SELECT pid FROM processes WHERE since > ('17' || '00')",
        "SELECT pid FROM processes WHERE max(since, name) IN (SELECT name FROM processes)",
        "SELECT CASE WHEN since = 5 THEN '2026-11-28' ELSE '2026' END FROM processes",
        "SELECT CASE since WHEN 5 THEN '2026-11-28' ELSE '2026' END FROM processes",
        "SELECT * FROM (SELECT since AS at FROM processes UNION SELECT name FROM processes) WHERE at > '2026-11-28'",
        "SELECT since AS value FROM processes, json_each('[\"a\"]') WHERE value = 'a'",
        "SELECT * FROM (SELECT since AS x FROM processes), (SELECT name AS x FROM processes) AS n WHERE n.x > '2026'",
        "SELECT pid FROM processes WHERE since > 1764300000 AND name > '2026'",
        "SELECT pid FROM processes WHERE since > timestamp('2026-11-28') OR since > ago('1 min')",
        "SELECT pid FROM processes WHERE since > strftime('%s', 'now')",
        "SELECT pid FROM processes WHERE since > unixepoch('2026-11-28')",
        "SELECT pid FROM processes WHERE datetime(since, 'unixepoch') > '2026-11-28'",
        "SELECT pid FROM processes WHERE CAST(since AS TEXT) > '2026-11-28'",
        "SELECT pid FROM processes WHERE name || since > '2026-11-28'",
        "SELECT n.since FROM notes n WHERE n.since > '2026-11-28'",
        "SELECT n.since FROM processes p JOIN notes n WHERE n.since > '2026-11-28'",
        "SELECT datetime(since, 'unixepoch') AS since FROM processes WHERE pid = 1",
        "SELECT * FROM (SELECT datetime(since, 'unixepoch') AS since FROM processes) WHERE since > '1970-01-01'",
        "SELECT * FROM (SELECT datetime(since, 'unixepoch') since FROM processes) WHERE since > '1970-01-01'",
        "SELECT * FROM (SELECT pid 'since' FROM processes) WHERE since > '1970-01-01'",
        "WITH x(since) AS (SELECT datetime(since, 'unixepoch') FROM processes) SELECT * FROM x WHERE since > '1970'",
        "WITH x(a, \"since\") AS NOT MATERIALIZED (SELECT 1, 'x' FROM processes) SELECT * FROM x WHERE since > '1970'",
        "SELECT 'since > ''2026-11-28''' FROM processes",
        "SELECT pid FROM processes WHERE name = 'since' AND name > '2026-11-28'",
        "SELECT pid FROM processes WHERE since LIKE '17%' OR since IS NULL OR since IS NOT NULL",
        "SELECT count(*) FROM processes WHERE since = NULL ORDER BY since",
        "SELECT sum(since > 5) FROM processes WHERE (since) IN (SELECT at FROM notes)",
    ],
)
async def test_other_comparisons_are_accepted(db: Database, sql: str) -> None:
    result = await db.query(sql)
    assert result.errors == ()


# As commands print them


async def printed(database: SqlDatabase, sql: str) -> list[str]:
    """The types of the columns that the control socket sends."""

    def nothing() -> object:
        raise AssertionError("not for a query")

    request: Request = QueryRequest(sql)
    answer = answering(database, nothing, dict)  # type: ignore[arg-type]
    async for frame in answer(request, "a test"):
        if isinstance(frame, Columns):
            return [kind for _, kind in frame.columns]
    raise AssertionError("no columns")


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ("max(since), min(busy)", ["time", "interval"]),
        ("max(since) AS last, avg(p.since) middle, median(since)", ["time", "time", "time"]),
        ("count(*), max(pid), max(since)", ["int", "int", "time"]),
        ("sum(busy), total(busy), sum(since)", ["interval", "interval", "real"]),
        ("max(since) FILTER (WHERE pid < 3) AS x, lag(since, 1) OVER (ORDER BY pid)", ["time", "text"]),
        ("first_value(since) OVER (ORDER BY pid), nth_value(busy, 1) OVER (ORDER BY pid) y", ["time", "interval"]),
        ("ago('1 h'), timestamp('2026-11-28') AS x", ["time", "time"]),
        ("max(since) - 1, -max(since), max(since) + 1 AS x, abs(since)", ["real"] * 4),
        ("max(since) AS 'x:real', max(since) AS \"y:time\"", ["real", "time"]),
        ("max(since, 5.0)", ["time"]),
        ("max(5.0, since)", ["real"]),
        ("DISTINCT max(since)", ["time"]),
        ("max(DISTINCT since)", ["time"]),
        ("*, max(since)", ["count", "text", "time", "interval", "count", "real"]),
    ],
)
async def test_aggregates_of_times_are_printed_as_times(db: Database, columns: str, kinds: list[str]) -> None:
    sql = f"SELECT {columns} FROM processes AS p WHERE pid < 3 LIMIT 1"
    assert await printed(db, sql) == kinds
    assert await printed(db, f"{sql};") == kinds
    sent = await db.query(sql)
    assert "time" not in {str(column.type) for column in sent.columns if "(" in column.name}


async def test_aliases_hide_columns_of_tables(db: Database) -> None:
    assert await printed(db, "SELECT max(since) FROM (SELECT pid * 1.0 AS since FROM processes)") == ["real"]
    assert await printed(db, "SELECT max(since) FROM (SELECT since FROM processes)") == ["time"]
    assert await printed(db, "WITH x(since) AS (SELECT pid * 1.0 FROM processes) SELECT max(since) FROM x") == ["real"]
    assert await printed(db, "SELECT max(since) FROM processes UNION ALL SELECT 1.5") == ["real"]


async def test_workers_behave_like_the_process_itself(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", builtin_tables())
    try:
        async with contained(tmp_path, store, limits=LimitSettings(time=30.0)) as database:
            for table in ("processes_events", "processes_events, processes"):
                with pytest.raises(SqlError, match=r"column time is a time.*write timestamp\('2026-11-28'\)"):
                    await database.query(f"SELECT 1 FROM {table} WHERE time > '2026-11-28'")
            sql = "SELECT max(start_time), ago('1 h') FROM processes WHERE start_time < ago('0 s')"
            assert await printed(database, sql) == ["time", "time"]
            result = await database.query(sql)
            assert [str(column.type) for column in result.columns] == ["real", "real"]
            assert result.rows[0][0] < result.rows[0][1] + 3600  # type: ignore[operator]
    finally:
        store.close()


async def test_parameters_of_tables_are_compared_like_columns() -> None:
    table = Recorder("since_rows", [("n", "count")], [(1,)], [Parameter("since", "time", "from when on")])
    db = database(table)
    with pytest.raises(SqlError, match="column _since is a time"):
        await db.query("SELECT n FROM since_rows WHERE _since = '2026-11-28'")
    assert (await db.query("SELECT n FROM since_rows(timestamp('1970-01-02'))")).rows == [(1,)]
    assert [scan.parameter("since") for scan in table.scans] == [86_400.0]
    await db.aclose()
