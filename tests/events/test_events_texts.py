"""Long command lines and paths are stored once, and no reader sees a difference."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from recipients import NobodysAgent

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, SqlConnection
from zeek_agent.errors import SqlError
from zeek_agent.events.event_file import EventFile, WriteBatch
from zeek_agent.events.reading import read_events
from zeek_agent.events.references import MARK
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column, Row
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables

TABLES = {table.name: table for table in builtin_tables("linux") if table.kind == "events"}
PROCESSES, SOCKETS = TABLES["processes_events"], TABLES["sockets_events"]
LONG = f"/usr/bin/java {'-Dproperty=value ' * 240}"
TEXTS = [
    None,
    "",
    "short",
    "x" * 127,
    "x" * 128,
    "ü" * 200,
    LONG,
    LONG + "2",
    MARK,
    f"{MARK}1:5",
    f"{MARK}{LONG}",
    "it's: a 'quoted' text " * 10,
]
COLUMNS = ("exe", "cmdline", "cwd", "cgroup", "parent_exe")


def row(table: Table, time_: float | None = None, **values: object) -> Row:
    now = time.time() if time_ is None else time_
    return tuple(now if column.name == "time" else values.get(column.name) for column in table.recorded)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    store = EventStore(tmp_path / "events.db", list(TABLES.values()), EventSettings(retention_age=1e9))
    yield store
    store.close()


@pytest.fixture
async def database(store: EventStore) -> AsyncIterator[Database]:
    database = Database(list(TABLES.values()), TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    yield database
    database.close()


def texts(uri: str) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        return connection.execute("SELECT text, refs FROM _texts JOIN _text_uses USING (id) ORDER BY id").fetchall()
    finally:
        connection.close()


def test_a_command_line_of_many_connections_is_stored_once(store: EventStore, tmp_path: Path) -> None:
    for _ in range(10):
        store.append("sockets_events", [row(SOCKETS, uid=1_000, cmdline=LONG) for _ in range(1_000)])
    assert store.flush()
    assert texts(store.uri) == [(LONG, 10_000)]
    store.close()
    assert (tmp_path / "events.db").stat().st_size < 10_000 * 200
    assert len(LONG) > 3_000


@pytest.mark.parametrize("profile", Profile)
async def test_readers_see_the_texts(store: EventStore, database: Database, profile: Profile) -> None:
    rows = [row(PROCESSES, pid=n, **dict.fromkeys(COLUMNS, text)) for n, text in enumerate(TEXTS)]
    store.append("processes_events", rows)
    assert store.flush()
    wanted = [(n, *[text] * len(COLUMNS)) for n, text in enumerate(TEXTS)]
    for table in ("processes_events", "processes_events_history", "process_events"):
        result = await database.query(f"SELECT pid, {', '.join(COLUMNS)} FROM {table} ORDER BY seq", profile=profile)
        assert list(result.rows) == wanted
    for n, text in enumerate(TEXTS):
        if text is not None:
            quoted = text.replace("'", "''")
            result = await database.query(
                f"SELECT pid FROM processes_events WHERE cmdline = '{quoted}'", profile=profile
            )
            assert list(result.rows) == [(n,)]
    result = await database.query(
        "SELECT a.pid, length(a.cmdline) FROM processes_events a JOIN processes_events_history b ON a.cmdline = b.exe "
        "WHERE a.cmdline LIKE '%/java%' ORDER BY 1",
        profile=profile,
    )
    assert list(result.rows) == [(n, len(text)) for n, text in enumerate(TEXTS) if text and "/java" in text]
    result = await database.query("SELECT count(*) FROM processes_events WHERE exe IS NULL", profile=profile)
    assert list(result.rows) == [(1,)]
    assert read_events(store.uri, f"SELECT pid, {', '.join(COLUMNS)} FROM processes_events") == wanted


@pytest.mark.parametrize("profile", Profile)
def test_copies_of_events_have_the_texts(store: EventStore, profile: Profile) -> None:
    rows = [row(PROCESSES, pid=n, **dict.fromkeys(COLUMNS, text)) for n, text in enumerate(TEXTS)]
    store.append("processes_events", rows)
    assert store.flush()
    limits, context = LimitSettings(), TableContext(NobodysAgent(), AccessPolicy())
    connection = SqlConnection(
        *(Catalog.of(1, list(TABLES.values())), profile),
        context=context,
        limits=limits,
        scans=SharedScans(),
        store=store,
        copies=True,
    )

    def read(sql: str) -> list[Row]:
        run = Run(limits)
        run.start(apsw.memory_used() + limits.memory_bytes)
        return list(connection.query(sql, run, None).rows)

    found = read(f"SELECT pid, {', '.join(COLUMNS)} FROM processes_events ORDER BY seq")
    assert found == [(n, *[text] * len(COLUMNS)) for n, text in enumerate(TEXTS)]
    assert read(f"SELECT pid FROM processes_events WHERE cmdline = '{LONG}'") == [(TEXTS.index(LONG),)]
    connection.close()


@pytest.mark.parametrize("profile", Profile)
async def test_columns_keep_their_types_and_names_even_without_rows(database: Database, profile: Profile) -> None:
    for table in (PROCESSES, SOCKETS):
        names = [column.name for column in table.columns]
        result = await database.query(f"SELECT {', '.join(names)} FROM {table.name}", profile=profile)
        found = [(column.name, str(column.type)) for column in result.columns]
        assert found == [(column.name, column.type) for column in table.columns]
        statement = await database.prepare(f"SELECT e.cmdline, exe AS program FROM {table.name} AS e", profile=profile)
        assert [(column.name, str(column.type)) for column in statement.columns] == [
            ("cmdline", "text"),
            ("program", "text"),
        ]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT text FROM _texts",
        "SELECT count(*) FROM _texts",
        "SELECT hash FROM _text_uses",
        "SELECT text FROM store._texts",
        "SELECT text FROM main._texts",
        "WITH processes_events AS (SELECT * FROM _texts) SELECT * FROM processes_events",
        "SELECT pid FROM processes_events WHERE cmdline IN (SELECT text FROM _texts)",
    ],
)
@pytest.mark.parametrize("profile", Profile)
async def test_nobody_reads_the_texts_without_their_rows(
    store: EventStore, database: Database, sql: str, profile: Profile
) -> None:
    store.append("processes_events", [row(PROCESSES, cmdline=LONG)])
    assert store.flush()
    with pytest.raises(SqlError):
        await database.query(sql, profile=profile)


async def test_a_table_that_is_denied_is_not_readable_through_its_texts(store: EventStore) -> None:
    from zeek_agent.config.sections import AccessSettings

    access = AccessPolicy(AccessSettings(tables_deny=("processes_events",)))
    database = Database(list(TABLES.values()), TableContext(NobodysAgent(), access), LimitSettings(), store)
    with pytest.raises(SqlError):
        await database.query("SELECT cmdline FROM processes_events")
    await database.query("SELECT cmdline FROM sockets_events")
    database.close()


def counted(connection: apsw.Connection, tables: Iterable[str]) -> dict[int, int]:
    """References in the rows, by id."""
    found: dict[int, int] = {}
    for table in tables:
        for name in COLUMNS:
            if name in {column for _, column, *_ in connection.execute(f"PRAGMA table_info({table})")}:
                for (value,) in connection.execute(f"SELECT {name} FROM {table} WHERE {name} >= '{MARK}'"):
                    number = int(str(value)[1:].partition(":")[0])
                    found[number] = found.get(number, 0) + 1
    return found


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("seed", range(4))
def test_references_are_counted_whatever_happens_to_rows(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    tables = [PROCESSES, SOCKETS]
    now, file = 1e6, EventFile(tmp_path / "events.db", [PROCESSES, SOCKETS], 1_500_000, 1e6)
    for step in range(50):
        now += chosen.choice((0.1, 30, 70))
        rows: dict[str, list[Any]] = {
            table.name: [
                row(table, now, pid=chosen.choice((1, 1, 1, "misfit")) if step % 5 == 0 else 1,
                    exe=chosen.choice(TEXTS), cmdline=f"{chosen.randrange(20)}" + "y" * chosen.choice((10, 200, 3_000)))
                for _ in range(1 + chosen.randrange(100))
            ]
            for table in tables
        }  # fmt: skip
        file.write(WriteBatch(rows=rows), now)
        file.evict(now, 3_600.0)
        if step % 7 == 0:
            file.expire(now, 600.0)
        connection = file._connection
        refs = dict(connection.execute("SELECT id, refs FROM _text_uses WHERE refs > 0"))
        assert refs == counted(connection, [table.name for table in tables])
        if step % 20 == 19:
            file.close(now, clean=True)
            file = EventFile(tmp_path / "events.db", tables, 1_500_000, now)
    stray = "SELECT count(*) FROM _texts WHERE id NOT IN (SELECT id FROM _text_uses)"
    assert file._connection.execute(stray).get == 0
    assert file._connection.execute("SELECT count(*) FROM _text_uses WHERE refs <= 0").get == 0
    file.close(now, clean=True)


def test_texts_go_with_their_last_row(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 2**24, 1e6)
    file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6, cmdline=LONG, exe=LONG)] * 3}), 1e6)
    file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6 + 100, cmdline=LONG)]}), 1e6 + 100)
    assert list(file._connection.execute("SELECT refs FROM _text_uses")) == [(7,)]
    file.expire(1e6 + 150, 100.0)
    assert list(file._connection.execute("SELECT refs FROM _text_uses")) == [(1,)]
    file.expire(1e6 + 300, 100.0)
    assert list(file._connection.execute("SELECT refs FROM _text_uses")) == []
    file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6 + 300, cmdline=LONG)]}), 1e6 + 300)
    assert read_events(file.uri, "SELECT cmdline FROM processes_events") == [(LONG,)]
    file.close(1e6, clean=True)


@pytest.mark.parametrize(
    "reference", [MARK, f"{MARK}:", f"{MARK}x:1", f"{MARK}{'9' * 30}:1", f"{MARK}-1:1", f"{MARK}7:1"]
)
def test_a_damaged_reference_does_not_end_recording(tmp_path: Path, reference: str) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 2**24, 1e6)
    file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6, cmdline=LONG, exe="x")] * 3}), 1e6)
    file._connection.execute("UPDATE processes_events SET exe = ?", (reference,))
    file.expire(1e6 + 150, 100.0)
    assert read_events(file.uri, "SELECT * FROM processes_events") == []
    assert texts(file.uri) == []
    file.close(1e6, clean=True)


def test_a_store_that_replaces_another_takes_the_texts_over(tmp_path: Path) -> None:
    old = EventFile(tmp_path / "old.db", [PROCESSES, SOCKETS], 2**24, 1e6)
    new = EventFile(tmp_path / "new.db", [PROCESSES, SOCKETS], 2**24, 1e6)
    new.write(WriteBatch(rows={SOCKETS.name: [row(SOCKETS, 1e6, cmdline="z" * 500), row(SOCKETS, 1e6, exe=LONG)]}), 1e6)
    rows = [row(PROCESSES, 1e6, pid=n, **dict.fromkeys(COLUMNS, text)) for n, text in enumerate(TEXTS)]
    old.write(WriteBatch(rows={PROCESSES.name: rows}), 1e6)
    new.adopt(old.uri, old.last_seq, 1_000)
    found = read_events(new.uri, f"SELECT {', '.join(COLUMNS)} FROM processes_events ORDER BY seq")
    assert found == [(text,) * len(COLUMNS) for text in TEXTS]
    assert read_events(new.uri, "SELECT cmdline, exe FROM sockets_events") == [("z" * 500, None), (None, LONG)]
    connection = new._connection
    refs = dict(connection.execute("SELECT id, refs FROM _text_uses"))
    assert refs == counted(connection, [PROCESSES.name, SOCKETS.name])
    for file in (old, new):
        file.close(1e6, clean=True)


def test_a_column_that_changes_its_type_converts_the_texts(tmp_path: Path) -> None:
    def things(kind: str) -> Table:
        columns = [Column("time", "time", "a value"), Column("exe", kind, "a value"), Column("cwd", "text", "a value")]
        return Table("things_events", "things", description="For tests.", columns=columns, kind="events")

    file = EventFile(tmp_path / "events.db", [things("text")], 2**24, 1e6)
    file.write(WriteBatch(rows={"things_events": [(1e6, text, LONG) for text in TEXTS]}), 1e6)
    file.close(1e6, clean=True)
    file = EventFile(tmp_path / "events.db", [things("blob")], 2**24, 1e6)
    found = read_events(file.uri, "SELECT exe, cwd FROM things_events ORDER BY seq")
    assert found == [(None if text is None else text.encode(), LONG) for text in TEXTS]
    assert dict(file._connection.execute("SELECT text, refs FROM _texts JOIN _text_uses USING (id)")) == {
        LONG: len(TEXTS)
    }
    file.close(1e6, clean=True)


def test_a_long_text_with_a_lone_surrogate_does_not_cost_the_row(store: EventStore) -> None:
    store.append("processes_events", [row(PROCESSES, cmdline=LONG), row(PROCESSES, cmdline=f"\ud800{LONG}")])
    assert store.flush()
    assert store.counters["processes_events"].lost == {}
    assert read_events(store.uri, "SELECT cmdline FROM processes_events ORDER BY seq") == [
        (LONG,),
        (f"\uefed\uefa0\uef80{LONG}",),
    ]


def test_the_size_that_counts_for_eviction_is_that_of_the_text(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [SOCKETS], 2**24, 1e6)
    for text in ("x", LONG, LONG, LONG):
        file.write(WriteBatch(rows={SOCKETS.name: [row(SOCKETS, 1e6, uid=len(text) % 60_000, cmdline=text)]}), 1e6)
    assert texts(file.uri) == [(LONG, 1)]
    file.update_usage()
    sizes = read_events(file.uri, "SELECT rows, bytes FROM _usage ORDER BY bytes")
    assert [rows for rows, _ in sizes] == [1, 3]
    assert sizes[1][1] - 3 * sizes[0][1] == 3 * (len(LONG) - 1)
    file.close(1e6, clean=True)


def test_a_text_that_comes_once_or_twice_stays_in_its_rows(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 2**24, 1e6)
    for n in range(50):
        for _ in range(2):
            file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6, cmdline=f"{n} {LONG}")]}), 1e6)
    assert texts(file.uri) == []
    file.write(WriteBatch(rows={PROCESSES.name: [row(PROCESSES, 1e6, cmdline=f"{n} {LONG}") for n in range(50)]}), 1e6)
    assert sorted(texts(file.uri)) == sorted((f"{n} {LONG}", 1) for n in range(50))
    file.close(1e6, clean=True)


def test_many_texts_do_not_grow_the_cache_without_bound(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db", [PROCESSES], 2**26, 1e6)
    popular = f"popular {LONG}"
    for first in range(0, 900, 30):
        rows = [row(PROCESSES, 1e6, cmdline=f"{first + n // 3} {LONG}") for n in range(90)]
        file.write(WriteBatch(rows={PROCESSES.name: [*rows, *[row(PROCESSES, 1e6, cmdline=popular)] * 3]}), 1e6)
    known = file._texts._known
    assert sum(map(len, known.values())) < 300_000
    assert {text: reference for reference, text in known.items()} == file._texts._references
    assert dict(texts(file.uri))[popular] == 90
    assert read_events(file.uri, "SELECT count(DISTINCT cmdline) FROM processes_events") == [(901,)]
    file.close(1e6, clean=True)


def test_a_flood_with_a_long_command_line_costs_a_few_hundred_bytes_each(store: EventStore, tmp_path: Path) -> None:
    """Any local user could push out all history in eight seconds: each connection had a copy of the command line."""
    others = [row(PROCESSES, uid=33, exe=f"/usr/bin/{n}", cmdline=f"other {n}") for n in range(1_000)]
    connections = [row(SOCKETS, uid=33, remote_port=n) for n in range(1_000)]
    store.append("processes_events", others)
    store.append("sockets_events", connections)
    command_line = ("/tmp/flood " + "x" * 120_000)[:4_096]
    for first in range(0, 37_000, 1_000):
        flood = [row(SOCKETS, uid=1_001, exe="/tmp/flood", cmdline=command_line, pid=first) for n in range(1_000)]
        store.append("sockets_events", flood)
    assert store.flush(60)
    assert read_events(store.uri, "SELECT count(*) FROM processes_events WHERE uid = 33") == [(1_000,)]
    assert read_events(store.uri, "SELECT count(*) FROM sockets_events WHERE uid = 33") == [(1_000,)]
    assert read_events(store.uri, "SELECT DISTINCT cmdline FROM sockets_events WHERE uid = 1001") == [(command_line,)]
    store.close()
    assert (tmp_path / "events.db").stat().st_size < 37_000 * 200


def test_a_row_with_too_few_or_too_many_values_does_not_shift_those_of_others(store: EventStore) -> None:
    rows = [row(PROCESSES, pid=n, cmdline=str(n)) for n in range(40)]
    rows[3], rows[4] = rows[3][:-1], (*rows[4], None)
    store.append("processes_events", rows)
    assert store.flush()
    assert store.counters["processes_events"].lost == {"decode": 2}
    stored = read_events(store.uri, "SELECT pid, cmdline FROM processes_events ORDER BY seq")
    assert stored == [(n, str(n)) for n in range(40) if n not in {3, 4}]
