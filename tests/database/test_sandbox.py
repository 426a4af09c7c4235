"""What statements cannot do: write, reach outside, read what is denied, hold the agent for long or take its memory."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import apsw
import apsw.ext as apsw_ext
import communityid
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql import Recorder, database, events

from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.database.database import Database, Lane, Profile, Result
from zeek_agent.database.functions import BUILT_IN, FUNCTIONS
from zeek_agent.database.sandbox import TABLE_FUNCTIONS, Run
from zeek_agent.database.sql_connection import SqlConnection
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Parameter, Row
from zeek_agent.table import Constraints

ROWS = [(number, f"name {number}") for number in range(1000)]
EVENTS = events("processes_events", [("time", "time"), ("pid", "count")])


def table(name: str = "t") -> Recorder:
    return Recorder(name, [("pid", "count"), ("name", "text")], ROWS)


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = database(table())
    yield opened
    await opened.aclose()


async def value(db: Database, expression: str) -> object:
    [(found,)] = (await db.query(f"SELECT {expression}")).rows
    return found


# Reading only


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1, 'x')",
        "UPDATE t SET name = 'x'",
        "DELETE FROM t",
        "REPLACE INTO t VALUES (1, 'x')",
        "CREATE TABLE x(a)",
        "CREATE TEMP TABLE x(a)",
        "CREATE VIEW x AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE INDEX x ON t(pid)",
        "CREATE VIRTUAL TABLE x USING t",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO u",
        "ANALYZE",
        "REINDEX",
        "VACUUM",
        "VACUUM INTO '{path}'",
        "ATTACH '{path}' AS x",
        "ATTACH 'file:{path}?mode=rwc' AS x",
        "DETACH main",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT x",
        "PRAGMA journal_mode",
        "PRAGMA temp_store_directory = '/'",
        "PRAGMA writable_schema = 1",
        "PRAGMA database_list",
        "PRAGMA integrity_check",
        "PRAGMA table_list",
        "PRAGMA table_info(sqlite_schema)",
        "PRAGMA table_info(dbstat)",
        "SELECT name FROM pragma_table_info('sqlite_temp_schema')",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('{path}')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('{path}', 'x')",
        "SELECT edit('x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT zeroblob(1000)",
        "SELECT sqlite_compileoption_get(1)",
        "SELECT json_patch('{{}}', '{{}}')",
        "SELECT * FROM dbstat",
        "SELECT * FROM carray(1, 2)",
        "SELECT * FROM sqlite_stmt",
        "SELECT * FROM bytecode('SELECT 1')",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "EXPLAIN DELETE FROM t",
    ],
)
async def test_statements_may_only_read(db: Database, tmp_path: Path, sql: str) -> None:
    path = tmp_path / "made"
    for profile in Profile:
        with pytest.raises(SqlError):
            await db.query(sql.format(path=path), profile=profile)
    assert not path.exists()
    assert (await db.query("SELECT count(*) FROM t")).rows == [(1000,)]


@pytest.mark.parametrize(
    "sql",
    [
        "VALUES (1)",
        "EXPLAIN SELECT 1",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
        "PRAGMA table_info(t)",
        "PRAGMA table_xinfo('T')",
        "SELECT name FROM pragma_table_info('t')",
        "SELECT name FROM sqlite_schema",
        "SELECT value FROM json_each('[1]')",
        "SELECT key FROM json_tree('{\"a\": 1}')",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5) SELECT count(*) FROM c",
        "SELECT pid, row_number() OVER (ORDER BY name), sum(pid) OVER (ROWS 1 PRECEDING) FROM t",
        "SELECT name FROM t WHERE name LIKE 'name 1%' AND name GLOB '*1' AND name REGEXP '1$'",
        "SELECT datetime(1, 'unixepoch'), strftime('%Y', 'now'), current_timestamp, unixepoch()",
        "SELECT printf('%05d', 1), format('%s', 'x'), hex('a'), quote('b'), iif(1, 2, 3), coalesce(NULL, 1), sqrt(4)",
        "SELECT group_concat(name), json_group_array(pid), median(pid), total(pid), string_agg(name, ',') FROM t",
        "SELECT '{\"a\": 1}' ->> 'a', json_extract('[1]', '$[0]'), json_object('a', 1)",
        "SELECT CASE WHEN pid IS NULL THEN 1 ELSE 2 END, pid BETWEEN 1 AND 2, name IS NOT DISTINCT FROM 'x' FROM t",
    ],
)
async def test_reading_works(db: Database, sql: str) -> None:
    assert (await db.query(sql)).rows


async def test_denied_tables_are_not_read_in_any_way() -> None:
    db = database(table(), table("secret"), access=AccessSettings(tables_deny=("secret*",)))
    for sql in (
        "SELECT * FROM secret",
        "SELECT count(*) FROM secret",
        "SELECT 1 FROM secret",
        "SELECT count(*) FROM SECRET",
        'SELECT count(*) FROM main."Secret" AS x',
        "SELECT count(*) FROM sEcret AS t",
        "SELECT (SELECT max(name) FROM secret)",
        "SELECT * FROM t WHERE pid IN (SELECT pid FROM secret)",
        "SELECT * FROM t JOIN main.secret AS x USING (pid)",
        "WITH t AS (SELECT * FROM secret) SELECT * FROM t",
        "SELECT * FROM t WHERE EXISTS (SELECT 1 FROM SECRET)",
    ):
        with pytest.raises(AccessDeniedError, match="table secret may not be queried"):
            await db.query(sql)
        with pytest.raises(AccessDeniedError):
            await db.prepare(sql)
    assert (await db.query("SELECT count(*) FROM t")).rows == [(1000,)]
    await db.aclose()


# Names that SQLite has by itself, and those that statements give


def built_in_names() -> list[str]:
    """All of SQLite's modules that make virtual tables, its pragmas as tables, and its own tables."""
    connection = apsw.Connection(":memory:")
    modules = [name for (name,) in connection.execute("SELECT name FROM pragma_module_list")]
    pragmas = [f"pragma_{name}" for (name,) in connection.execute("SELECT name FROM pragma_pragma_list")]
    schema = ["sqlite_temp_schema", "sqlite_temp_master", "sqlite_sequence", "sqlite_stat1", "sqlite_dbpage"]
    return sorted({*modules, *pragmas, *schema} - TABLE_FUNCTIONS)


READINGS = (
    "SELECT * FROM {name}",
    "SELECT count(*) FROM {name}",
    'SELECT count(*) FROM "{name}" AS t',
    "SELECT 1 FROM [{name}]",
    "SELECT EXISTS (SELECT 1 FROM {name})",
    "SELECT * FROM main.{name}",
    "SELECT count(*) FROM main.{name}",
    "SELECT count(*) FROM temp.{name}",
    "SELECT * FROM {name}('t')",
    "SELECT count(*) FROM t, {name}",
    "SELECT 1 WHERE 1 IN {name}",
    "WITH t AS (SELECT * FROM {name}) SELECT * FROM t",
    "WITH t AS (SELECT count(*) FROM {name}) SELECT count(*) FROM t",
    "SELECT (WITH {name} AS (SELECT 1) SELECT count(*) FROM {name}), (SELECT count(*) FROM main.{name})",
)


@pytest.mark.long(kept=10)
@pytest.mark.parametrize("name", built_in_names())
async def test_sqlites_own_tables_are_not_readable_in_any_way(store: EventStore, name: str) -> None:
    db = database(table(), EVENTS, store=store)
    for profile in Profile:
        for reading in READINGS:
            for shown in (name, name.upper()):
                sql = reading.format(name=shown)
                for _ in range(3):  # a statement that is remembered is compiled no more
                    with pytest.raises(SqlError):
                        await db.query(sql, profile=profile)
    await db.aclose()


async def test_a_module_that_sqlite_may_get_is_refused_as_long_as_nobody_has_allowed_it(
    monkeypatch: pytest.MonkeyPatch, store: EventStore
) -> None:
    def hook(connection: apsw.Connection) -> None:
        def rows() -> Iterator[tuple[int]]:
            yield (1,)

        rows.columns, rows.column_access = ("value",), apsw_ext.VTColumnAccess.By_Index  # type: ignore[attr-defined]
        apsw_ext.make_virtual_module(connection, "brand_new", rows)

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, hook])
    plain = apsw.Connection(":memory:")
    assert plain.execute("SELECT count(*) FROM brand_new").get == 1
    db = database(table(), EVENTS, store=store)
    for profile in Profile:
        for reading in READINGS:
            with pytest.raises(SqlError):
                await db.query(reading.format(name="brand_new"), profile=profile)
    await db.aclose()


HIDDEN_NAMES = [
    "t",
    "secret",
    "dbstat",
    "pragma_database_list",
    "json_each",
    "sqlite_schema",
    "event_window",
    "_delivered",
    "_store",
    "processes_events",
    "processes_events_history",
    "process_events",
]
HIDING = (
    'WITH "{name}" AS (SELECT 42 AS x) SELECT x FROM "{name}"',
    'WITH "{name}"(x) AS (VALUES (1), (2)) SELECT sum(x) FROM "{name}"',
    'WITH "{name}" AS (SELECT 42) SELECT count(*) FROM "{name}"',
    'WITH "{name}" AS (VALUES (1), (2), (3)) SELECT count(*) FROM "{name}"',
    'WITH "{name}" AS MATERIALIZED (SELECT 42 AS x) SELECT count(*) FROM "{name}" AS a, "{name}" AS b',
    'WITH "{name}" AS NOT MATERIALIZED (SELECT 42 AS x) SELECT count(*) FROM "{name}" AS a LEFT JOIN "{name}" AS b',
    'WITH RECURSIVE "{name}"(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM "{name}" WHERE x < 5) SELECT count(*) FROM '
    '"{name}"',
    'WITH "{name}" AS (SELECT 1 UNION SELECT 2 ORDER BY 1 LIMIT 1) SELECT 1 FROM "{name}"',
    'WITH a AS (SELECT 7 AS x), "{name}" AS (SELECT x FROM a) SELECT (SELECT count(*) FROM "{name}"), count(*) FROM a',
    'SELECT (WITH "{name}" AS (SELECT 42 AS x) SELECT x FROM "{name}"), EXISTS (WITH "{name}" AS (SELECT 1) SELECT 1 '
    'FROM "{name}")',
    'WITH "{name}" AS (SELECT 1 AS x GROUP BY 1) SELECT count(*) FROM (SELECT 1 FROM "{name}" LIMIT 5)',
    'WITH "{name}" AS (SELECT 1 AS x) SELECT 3 IN "{name}", 1 IN "{name}"',
)


@pytest.mark.parametrize("name", HIDDEN_NAMES)
async def test_a_with_may_hide_any_name_and_means_what_it_means_in_sqlite(store: EventStore, name: str) -> None:
    plain = apsw.Connection(":memory:")
    access = AccessSettings(tables_deny=("secret",))
    db = database(table(), table("secret"), EVENTS, store=store, access=access)
    for profile in Profile:
        for hiding in HIDING:
            sql = hiding.format(name=name)
            for _ in range(2):
                assert (await db.query(sql, profile=profile)).rows == plain.execute(sql).fetchall(), sql
            assert (await db.prepare(sql, profile=profile)).tables == frozenset()
    await db.aclose()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH processes_events AS (SELECT * FROM event_window) SELECT * FROM processes_events",
        "WITH processes_events AS (SELECT * FROM temp.event_window) SELECT * FROM processes_events",
        "WITH processes_events AS (SELECT seq FROM store.processes_events) SELECT * FROM processes_events",
        "WITH processes_events AS (SELECT count(*) FROM _delivered) SELECT * FROM processes_events",
        "WITH processes_events AS (SELECT * FROM _delivered) SELECT * FROM processes_events",
        "WITH processes_events AS (SELECT * FROM secret) SELECT * FROM processes_events",
        "WITH t AS (SELECT count(*) FROM secret) SELECT * FROM t",
        "SELECT (WITH _delivered AS (SELECT 1) SELECT count(*) FROM _delivered), (SELECT count(*) FROM _delivered)",
        "SELECT (WITH secret AS (SELECT 1) SELECT count(*) FROM secret), (SELECT count(*) FROM secret)",
        "WITH _delivered AS (SELECT 1) SELECT count(*) FROM temp._delivered",
        "SELECT count(*) FROM processes_events, _delivered",
        "SELECT name FROM temp.sqlite_schema",
        "SELECT count(*) FROM temp.sqlite_schema",
        "SELECT sql FROM sqlite_temp_master",
        "PRAGMA temp.table_list",
        "PRAGMA table_info(_delivered)",
        "SELECT sqlite_source_id()",
    ],
)
async def test_a_name_that_a_with_hides_gives_access_to_nothing(store: EventStore, sql: str) -> None:
    db = database(table(), table("secret"), EVENTS, store=store, access=AccessSettings(tables_deny=("secret",)))
    for profile in Profile:
        for _ in range(3):
            with pytest.raises(SqlError):
                await db.query(sql, profile=profile)
            with pytest.raises(SqlError):
                await db.prepare(sql, profile=profile)
    await db.aclose()


def test_the_statements_that_stay_compiled_are_few_and_short(sessions: list[SqlConnection]) -> None:
    for session in sessions:
        for number in range(300):
            run = Run(LimitSettings())
            run.start(memory_ceiling=1 << 40)
            session.query(f"SELECT {number}{' ' * 5_000 * (number % 2)}", run)
        assert 50 < len(session._cacheable) <= 100
        assert sum(map(len, session._cacheable)) < 100 * 4_096


async def test_pragmas_as_tables_describe_only_what_may_be_read(store: EventStore) -> None:
    db = database(table(), EVENTS, store=store)
    for profile in Profile:
        for name in ("_delivered", "event_window", "sqlite_temp_schema"):
            with pytest.raises(AccessDeniedError, match=f"table {name} may not be read"):
                await db.query(f"SELECT * FROM pragma_table_info('{name}')", profile=profile)
            with pytest.raises(AccessDeniedError, match=f"table {name} may not be read"):
                await db.query(f"SELECT count(*) FROM t, pragma_table_xinfo('{name}', 'temp')", profile=profile)
        found = await db.query("SELECT name FROM pragma_table_info('processes_events')", profile=profile)
        assert ("pid",) in found.rows
    await db.aclose()


SECRET_ROWS, DELIVERED_ROWS = 401, 613
"""Primes that no count of what may be read gives."""
OBJECTS = st.sampled_from(
    ["t", "secret", "_delivered", "sqlite_sequence", "processes_events", "processes_events_history", "dbstat", "c"]
)
PLACES = st.one_of(OBJECTS, OBJECTS.map('"{}"'.format), OBJECTS.map("main.{}".format), OBJECTS.map("temp.{}".format))
COLUMNS = st.sampled_from(["*", "count(*)", "1", "count(*) AS pid", "max(name)", "pid", "a.*"])


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("SELECT {} FROM ({}) AS a".format, COLUMNS, inner),
        st.builds("SELECT ({}), {} FROM {} AS a".format, inner, COLUMNS, PLACES),
        st.builds("SELECT {} FROM {} AS a LEFT JOIN ({}) AS b".format, COLUMNS, PLACES, inner),
        st.builds("SELECT {} FROM {} AS a WHERE EXISTS ({})".format, COLUMNS, PLACES, inner),
        st.builds("{} UNION ALL {}".format, inner, inner),
        st.builds("WITH {} AS ({}) {}".format, OBJECTS, inner, inner),
        st.builds("WITH {} AS MATERIALIZED ({}), {} AS ({}) {}".format, OBJECTS, inner, OBJECTS, inner, inner),
        st.builds("SELECT ({}), (WITH {} AS ({}) {})".format, inner, OBJECTS, inner, inner),
    )


NESTED = st.recursive(st.builds("SELECT {} FROM {} AS a".format, COLUMNS, PLACES), _compound, max_leaves=6)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SqlConnection]]:
    """Sessions of both profiles, whose forbidden tables can be told by what is in them, and by how many rows are."""
    kept = EventStore(tmp_path_factory.mktemp("nested") / "events.sqlite", [EVENTS])
    kept.append("processes_events", [(time.time(), number) for number in range(3)])
    for number in range(DELIVERED_ROWS):
        kept.acknowledge(f"key {number}", {}, None)
    kept.flush()
    rows = [(10_000 + number, "SECRET") for number in range(SECRET_ROWS)]
    few = Recorder("t", [("pid", "count"), ("name", "text")], ROWS[:3])
    db = database(
        few,
        Recorder("secret", [("pid", "count"), ("name", "text")], rows),
        EVENTS,
        store=kept,
        access=AccessSettings(tables_deny=("secret",)),
    )
    made = [
        SqlConnection(db._catalog, profile, context=db.context, limits=db.limits, scans=db.scans, store=kept)
        for profile in Profile
    ]
    yield made
    for one in made:
        one.close()
    db.close()
    kept.close()


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sql=NESTED)
def test_nothing_unreadable_is_returned_however_it_is_nested(sessions: list[SqlConnection], sql: str) -> None:
    for session in sessions:
        run = Run(LimitSettings(time=5.0))
        run.start(memory_ceiling=1 << 40)
        try:
            rows = session.query(sql, run).rows
        except SqlError:
            continue
        for cell in (cell for row in rows for cell in row):
            assert cell not in ("SECRET", SECRET_ROWS, DELIVERED_ROWS)
            assert not (isinstance(cell, int) and 10_000 <= cell < 20_000)
            assert not (isinstance(cell, str) and cell.startswith("key "))


async def test_plans_and_errors_of_sqlite_contain_no_hidden_names(store: EventStore) -> None:
    db = database(table(), EVENTS, store=store)
    told = []
    for sql in (
        "EXPLAIN QUERY PLAN SELECT * FROM processes_events AS a LEFT JOIN processes_events_history AS b USING (pid)",
        "EXPLAIN SELECT max(pid) FROM processes_events",
        "SELECT sql FROM sqlite_schema",
    ):
        told += (await db.query(sql)).rows
    for sql in ("SELECT nope FROM processes_events", "SELECT * FROM processes_events JOIN processes_events USING (a)"):
        with pytest.raises(SqlError) as caught:
            await db.query(sql)
        told.append((str(caught.value),))
    shown = " ".join(str(cell) for row in told for cell in row)
    assert re.search(r"SEARCH store\.processes_events USING INTEGER PRIMARY KEY|SEARCH processes_events", shown)
    assert not re.search(r"[0-9a-f]{32}", shown)
    await db.aclose()


async def test_only_allowed_tables_are_read() -> None:
    db = database(table(), table("other"), access=AccessSettings(tables_allow=("t",)))
    assert (await db.query("SELECT max(pid) FROM t")).rows == [(999,)]
    with pytest.raises(AccessDeniedError):
        await db.query("SELECT max(pid) FROM other")
    assert (await db.query("SELECT value FROM json_each('[1]')")).rows == [(1,)]
    await db.aclose()


# Limits

BIG = "printf('%.*c', 4000000, 'a')"
COUNT = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
HOGS = {
    "endless recursion": COUNT + "SELECT count(*) FROM c",
    "endless rows": COUNT + "SELECT x FROM c",
    "endless rows of blobs": COUNT + "SELECT randomblob(1000000) FROM c",
    "endless sort": COUNT + "SELECT x FROM c ORDER BY random()",
    "endless sort of long texts": COUNT + "SELECT hex(randomblob(1000000)) FROM c ORDER BY 1",
    "endless distinct": COUNT + "SELECT DISTINCT hex(randomblob(100)) FROM c",
    "endless groups": COUNT + "SELECT x, group_concat(x) FROM c GROUP BY x % 1000000",
    "endless window": COUNT + "SELECT x, lag(x) OVER (ORDER BY x) FROM c",
    "endless median": COUNT + "SELECT median(x) FROM c",
    "huge group_concat": COUNT + "SELECT group_concat(hex(randomblob(1000))) FROM c",
    "huge json": COUNT + "SELECT json_group_array(hex(randomblob(1000))) FROM c",
    "cross join of virtual tables": "SELECT count(*) FROM t a, t b, t c, t d",
    "cross join with rows": "SELECT * FROM t a, t b, t c",
    "wide rows of long texts": f"WITH a AS MATERIALIZED (SELECT {BIG} s) SELECT {', '.join(['s'] * 15)} FROM a, t",
    "very wide row of long texts": f"SELECT {', '.join([BIG] * 900)}",
    "zeroblob": "SELECT replace(hex(zeroblob(1000000000)), '0', 'aaaaaaaa')",
    "replace that grows": f"SELECT replace({BIG}, 'a', {BIG})",
    "replace that grows twice": f"SELECT replace(replace({BIG}, 'a', 'bbbbbbbbbb'), 'b', 'cccccccccc')",
    "long format": "SELECT printf('%.*f', 100000000, 1.0), printf('%*d', 1000000000, 1)",
    "catastrophic regular expression": f"SELECT {BIG} REGEXP '(a?){{500}}(a?){{500}}b$'",
    "long LIKE pattern": f"SELECT {BIG} LIKE '%' || printf('%.*c', 25000, 'a') || 'b'",
    "row by row": COUNT + f"SELECT count(*) FROM c WHERE instr({BIG} || x, 'b')",
}


class Watched:
    """Peak of resident memory over the start, in MB."""

    def __init__(self) -> None:
        self.start = self.peak = _resident()

    @property
    def grown(self) -> float:
        return (self.peak - self.start) / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def watched_memory(watched: Watched) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            watched.peak = max(watched.peak, _resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def ask_others(db: Database) -> None:
    while True:
        assert (await db.query("SELECT name FROM t WHERE pid = 5", lane=Lane.EVENTS)).rows == [("name 5",)]
        await asyncio.sleep(0.01)


@pytest.mark.long(kept=6)
@pytest.mark.parametrize("hog", HOGS)
async def test_statements_that_would_block_the_agent_end_at_a_limit(hog: str) -> None:
    limits = LimitSettings(time=0.5, memory_bytes=32 << 20, result_bytes=64 << 20, rows=200_000)
    db = database(table(), limits=limits)
    await db.query("SELECT 1")
    watched = Watched()
    with watched_memory(watched):
        others = asyncio.create_task(ask_others(db))
        with pytest.raises((LimitError, AccessDeniedError, SqlError)) as caught:
            await db.query(HOGS[hog])
        others.cancel()
        with pytest.raises(asyncio.CancelledError):
            await others
    assert isinstance(caught.value, LimitError | AccessDeniedError) or "pattern too complex" in str(caught.value)
    assert watched.grown < 200
    await db.aclose()


@pytest.mark.parametrize("hog", ["endless recursion", "cross join of virtual tables", "row by row"])
async def test_other_lanes_answer_while_a_statement_keeps_its_lane_busy(hog: str) -> None:
    db = database(table(), limits=LimitSettings(time=60))
    busy = asyncio.create_task(db.query(HOGS[hog]))
    for _ in range(5):
        assert (await db.query("SELECT name FROM t WHERE pid = 5", lane=Lane.EVENTS)).rows == [("name 5",)]
    assert not busy.done()
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
    await db.aclose()


@pytest.mark.long(kept=3)
@pytest.mark.parametrize(
    "expression",
    [
        f"instr({BIG}, substr({BIG}, 1, 2000000) || 'b')",
        f"length(trim({BIG}, {BIG} || 'b'))",
        f"{BIG} LIKE '%' || printf('%.*c', 250, 'a') || 'b'",
        f"{BIG} GLOB '*' || printf('%.*c', 250, 'a') || 'b'",
        f"{BIG} REGEXP '(a|aa)+$'",
        f"{BIG} REGEXP '(a*)*b'",
        f"length(split({BIG}, 'b', 0))",
        f"json_valid(replace({BIG}, 'a', '['))",
        f"{BIG} < 5",
        f"{BIG} + 1",
    ],
)
async def test_one_call_of_a_function_takes_no_quadratic_time(expression: str) -> None:
    """Nothing can interrupt it: in quadratic time, it would take longer than a test may."""
    db = database(table(), limits=LimitSettings(time=60))
    assert len((await db.query(f"SELECT {expression}")).rows) == 1
    await db.aclose()


async def test_time_holds_inside_a_table() -> None:
    def rows(wanted: Constraints) -> Iterator[Row]:
        while True:
            wanted.check()

    db = database(Recorder("t", [("n", "count")], rows), limits=LimitSettings(time=0.1))
    with pytest.raises(LimitError, match=r"took longer than 0\.1 s \(limits\.time\)"):
        await db.query("SELECT * FROM t")
    await db.aclose()


async def test_rows_bytes_and_text_are_limited() -> None:
    db = database(table(), limits=LimitSettings(rows=999, result_bytes=100_000, statement_bytes=1000))
    assert len((await db.query("SELECT pid FROM t LIMIT 999")).rows) == 999
    with pytest.raises(LimitError, match=r"more than 999 rows \(limits\.rows\)"):
        await db.query("SELECT pid FROM t")
    with pytest.raises(LimitError, match=r"larger than 100000 bytes \(limits\.result_bytes\)"):
        await db.query("SELECT name, hex(randomblob(500)) FROM t LIMIT 200")
    with pytest.raises(LimitError, match=r"longer than 1000 bytes \(limits\.statement_bytes\)"):
        await db.query("SELECT 1" + " " * 1000)
    with pytest.raises(LimitError, match=r"longer than 1000 bytes \(limits\.statement_bytes\)"):
        await db.query(f"SELECT '{'é' * 500}'")
    await db.aclose()


async def test_values_are_limited_by_how_many_a_row_has() -> None:
    db = database(table(), limits=LimitSettings(result_bytes=4_000_000, value_bytes=400_000))
    assert await value(db, "length(hex(randomblob(150000)))") == 300_000
    with pytest.raises(LimitError, match=r"longer than 400000 bytes \(limits\.value_bytes\)"):
        await value(db, "length(hex(randomblob(250000)))")
    with pytest.raises(LimitError, match=r"longer than 100000 bytes \(limits\.result_bytes\)"):
        await db.query(f"SELECT hex(randomblob(100000)), {', '.join(map(str, range(9)))}")
    assert await value(db, "length(hex(randomblob(150000)))") == 300_000, "another statement has its own limit"
    await db.aclose()


async def test_deep_and_large_statements_are_refused(db: Database) -> None:
    for sql in (
        "SELECT " + "+".join(["1"] * 2000),
        "SELECT " + "(" * 3000 + "1" + ")" * 3000,
        " UNION ALL ".join(["SELECT 1"] * 500),
        "SELECT " + ",".join(["1"] * 5000),
        "SELECT max(" + ",".join(["1"] * 500) + ")",
    ):
        with pytest.raises(SqlError):
            await db.query(sql)


# Functions


def test_a_function_is_described_where_it_is_declared() -> None:
    for function in FUNCTIONS:
        assert function.summary
        assert function.name in function.signature.lower()
        assert function.replaces == (function.name in BUILT_IN)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'foobar' REGEXP 'o+b'", 1),
        ("'foobar' REGEXP '^o'", 0),
        ("'FOO' REGEXP '(?i)foo'", 1),
        ("NULL REGEXP 'x'", None),
        ("'x' REGEXP NULL", None),
        ("'größe' REGEXP '^gr.ße$'", 1),
        ("12 REGEXP '^1.$'", 1),
        ("regex_match('key=value', '(\\w+)=(\\w+)', 2)", "value"),
        ("regex_match('key=value', '=', 0)", "="),
        ("regex_match('key', '=', 0)", None),
        ("regex_match('ab', 'a(x)?b', 1)", None),
        ("split('a,b;c', ',;', 2)", "c"),
        ("split(',a,,b', ',', 1)", "b"),
        ("split('a', ',', 1)", None),
        ("split('a', ',', -1)", None),
        ("split('', ',', 0)", None),
        ("in_cidr_block('10.0.0.0/8', '10.1.2.3')", 1),
        ("in_cidr_block('10.0.0.0/8', '11.1.2.3')", 0),
        ("in_cidr_block('fe80::/10', 'fe80::1')", 1),
        ("in_cidr_block('fe80::/10', '10.1.2.3')", 0),
        ("in_cidr_block('10.0.0.0/8', 'name')", None),
        ("in_cidr_block(NULL, '10.0.0.1')", None),
        ("instr('abc', 'c')", 3),
        ("instr('abc', 'x')", 0),
        ("instr('größe', 'ß')", 4),
        ("instr(x'010203', x'03')", 3),
        ("instr(1234, 3)", 3),
        ("instr(NULL, 'a')", None),
        ("replace('aXbX', 'X', '--')", "a--b--"),
        ("replace('a', '', 'b')", "a"),
        ("replace(101, 0, 'x')", "1x1"),
        ("replace(1.0, '.', ',')", "1,0"),
        ("replace('a', NULL, 'b')", None),
        ("trim('  a ')", "a"),
        ("ltrim('xxaxx', 'x')", "axx"),
        ("rtrim('xyayx', 'xy')", "xya"),
        ("trim('xxx', 'x')", ""),
        ("trim(NULL)", None),
        ("trim(5.0)", "5.0"),
    ],
)
async def test_functions_give_what_their_names_say(db: Database, expression: str, expected: object) -> None:
    assert await value(db, expression) == expected


@pytest.mark.parametrize(
    ("protocol", "source", "destination", "source_port", "destination_port"),
    [(6, "10.0.0.1", "10.0.0.2", 40000, 443), (17, "fe80::1", "fe80::2", 53, 1053), (6, "10.0.0.9", "10.0.0.2", 1, 2)],
)
async def test_community_ids_are_those_of_the_reference(
    db: Database, protocol: int, source: str, destination: str, source_port: int, destination_port: int
) -> None:
    flow = communityid.FlowTuple(protocol, source, destination, source_port, destination_port)
    call = f"community_id_v1('{source}', '{destination}', {source_port}, {destination_port}, {protocol}"
    assert await value(db, f"{call})") == communityid.CommunityID().calc(flow)
    assert await value(db, f"{call}, 7)") == communityid.CommunityID(seed=7).calc(flow)
    for wrong in ("'x', '::1', 1, 2, 6", "'::1', '10.0.0.1', 1, 2, 6", "'::1', '::2', 1, 70000, 6", "1,2,3,4,NULL"):
        assert await value(db, f"community_id_v1({wrong})") is None


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("'a' REGEXP '('", r"not a regular expression \(RE2\): missing \)"),
        ("'a' REGEXP '(?=a)'", "not a regular expression"),
        ("'a' REGEXP printf('%.*c', 3000, 'a')", "longer than 2000 characters"),
        ("regex_match('a', 'a', 1)", "no group 1"),
        ("regex_match('a', 'a', 'x')", "'x' is not a number"),
        ("in_cidr_block('x', '10.0.0.1')", "in_cidr_block: 'x'"),
    ],
)
async def test_wrong_arguments_are_reported(db: Database, expression: str, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        await value(db, expression)


# Anything

VOCABULARY = """
    SELECT FROM WHERE t listing processes_events process_events_history pid name _pattern ( ) , . * = < IN OR AND NOT
    NULL 1 -1 1e999 'x' "x" x'00' LIKE GLOB REGEXP MATCH JOIN LEFT RIGHT FULL NATURAL USING ON GROUP BY ORDER HAVING
    LIMIT OFFSET UNION ALL EXCEPT INTERSECT WITH RECURSIVE AS VALUES DISTINCT CASE WHEN THEN ELSE END CAST INTEGER
    count max group_concat json_each hex randomblob zeroblob printf replace rowid OVER PARTITION COLLATE NOCASE IS
    BETWEEN EXISTS INSERT INTO DELETE UPDATE SET DROP TABLE CREATE VIEW TEMP TRIGGER ATTACH DETACH PRAGMA VACUUM ANALYZE
    REINDEX BEGIN COMMIT EXPLAIN ; -- /* */ ? :a || + / % -> sqlite_schema store main temp event_window _delivered
"""
WORDS = st.sampled_from(VOCABULARY.split())
SOUND = st.builds(
    "SELECT {} FROM {} WHERE {} {}".format,
    st.lists(st.sampled_from(["*", "pid", "name", "count(*)", "rowid", "max(pid)", "pid AS 'p:port'"]), min_size=1).map(
        ",".join
    ),
    st.lists(
        st.sampled_from(["t", "t AS a", "listing('ab')", "listing(name)", "processes_events", "json_each('[1,null]')"]),
        min_size=1,
        max_size=2,
    ).map(" LEFT JOIN ".join),
    st.lists(
        st.sampled_from(["pid = 1", "pid IN (1, '2', NULL)", "name = 'x'", "_pattern = 'ab'", "rowid > 0", "NOT NULL"]),
        min_size=1,
    ).map(" OR ".join),
    st.sampled_from(["", "GROUP BY 1", "ORDER BY 1 LIMIT 3", "UNION SELECT 'a'", "LIMIT -1"]),
)


def pattern_rows(wanted: Constraints) -> Iterator[Row]:
    return ((character,) for character in str(wanted.parameter("pattern")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    opened = EventStore(tmp_path_factory.mktemp("store") / "events.sqlite", [EVENTS])
    opened.append("processes_events", [(time.time(), number) for number in range(10)])
    opened.flush()
    yield opened
    opened.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sql=st.one_of(st.text(), st.lists(WORDS).map(" ".join), SOUND), profile=st.sampled_from(list(Profile)))
def test_any_text_gives_a_result_or_an_error_and_never_writes(store: EventStore, sql: str, profile: Profile) -> None:
    file = Path(unquote(store.uri.removeprefix("file:").partition("?")[0]))
    before = file.read_bytes()

    async def run() -> None:
        listing = Recorder("listing", [("name", "text")], pattern_rows, [Parameter("pattern", "text", "what")])
        db = database(
            Recorder("t", [("pid", "count"), ("name", "text")], ROWS[:20]),
            listing,
            EVENTS,
            store=store,
            limits=LimitSettings(time=1.0),
        )
        outcome = (await asyncio.gather(db.query(sql, profile=profile), return_exceptions=True))[0]
        if isinstance(outcome, Result):
            assert all(len(row) == len(outcome.columns) for row in outcome.rows)
        else:
            assert isinstance(outcome, SqlError)
            assert str(outcome)
        total = "SELECT (SELECT count(*) FROM processes_events), (SELECT count(*) FROM t), count(*) FROM sqlite_schema"
        counts = (await db.query(total, profile=profile)).rows
        assert counts[0][:2] == (10, 20)
        await db.aclose()

    asyncio.run(run())
    assert file.read_bytes() == before
