"""Upgrades of the event store: whatever an earlier agent left on the disk is there afterwards, once."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from children import exit_code, fork
from hypothesis import given
from hypothesis import strategies as st
from private_files import assert_private
from recipients import NobodysAgent, Recorder
from stores import dump

from zeek_agent import __version__, platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database import cells
from zeek_agent.database.database import Database, Profile
from zeek_agent.events.conversions import convert, keeps_values
from zeek_agent.events.delivery_states import Delivered
from zeek_agent.events.event_file import EventFile, WriteBatch
from zeek_agent.events.layout import columns
from zeek_agent.events.migrations import MIGRATIONS, VERSION, Migration, migrate, renamed_column
from zeek_agent.events.reading import read_events
from zeek_agent.events.references import MARK
from zeek_agent.events.store import EventStore, NewerStoreError
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.schema import CONTAINER_TYPES, SCALAR_TYPES, Column, ZeekType
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables, plugin_tables
from zeek_agent.terminal.local_responder import StoredEvents

STORES = Path(dump.__file__).parent
DUMPS = sorted(STORES.glob("*.sql"))
UNNUMBERED = [path for path in DUMPS if "user_version = 0;" in path.read_text(encoding="utf-8")]
TABLES = [table for table in builtin_tables("linux") if table.kind == "events"]
FOREVER = EventSettings(retention_age=1e10)
BYTES = 2**28


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def restored(path: Path, sql: Path) -> apsw.Connection:
    """A store as an earlier agent left it, open for a test to add to it."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(sql.read_text(encoding="utf-8"))
    return connection


def content(connection: apsw.Connection, tables: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """All rows as mappings, so that the order of columns does not count."""
    found = {}
    for table in tables:
        names = list(columns(connection, table))
        rows = connection.execute(f'SELECT * FROM "{table}" ORDER BY seq')
        found[table] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


def event_tables(connection: apsw.Connection) -> list[str]:
    sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '_*' AND name NOT GLOB 'sqlite_*'"
    return [name for (name,) in connection.execute(sql)]


def schema(connection: apsw.Connection) -> dict[str, object]:
    """The tables by name: of event tables the columns, since their order may differ, of others the statement."""
    statements = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    events = event_tables(connection)
    return {name: columns(connection, name) if name in events else sql for name, sql in statements.items()}


def opened(path: Path, tables: Sequence[Table] = (), migrations: Sequence[Migration] = MIGRATIONS) -> EventFile:
    return EventFile(path, tables or TABLES, BYTES, dump.NOW + 10, migrations=migrations)


def reading(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)


def declared(columns: Mapping[str, str], name: str = "things_events") -> Table:
    shown = [Column(column, kind, "a value") for column, kind in columns.items()]
    return Table(name, "things that happen", description="For tests.", columns=shown, kind="events")


def kept(path: Path, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """A store in which an agent with this table recorded these rows."""
    store = EventStore(path, [table], FOREVER)
    store.append(table.name, rows)
    store.close()


# Every schema that there was


@pytest.mark.parametrize("sql", DUMPS, ids=lambda path: path.stem)
def test_a_store_of_any_earlier_agent_keeps_rows_numbers_and_delivery_state(sql: Path, path: Path) -> None:
    connection = restored(path, sql)
    before = content(connection, event_tables(connection))
    connection.close()
    assert {len(rows) for rows in before.values()} == {3}

    store = EventStore(path, TABLES, FOREVER, clock=lambda: dump.NOW + 10)
    assert store.notice is None
    assert store.id == dump.STORE_ID
    for table in TABLES:
        numbers = (3, 5) if table.name in before else (0, 0)
        assert (store.first_seq(table.name), store.last_seq(table.name)) == numbers
    seqs = dict.fromkeys(before, 4)
    assert store.delivered("events of all tables") == Delivered(seqs)
    assert store.delivered("differences") == Delivered({}, b"\x00a packed snapshot\xff")
    if (under_way := store.delivered("events with a report under way")) is not None:
        assert under_way == Delivered({"processes_events": 3}, None, {"processes_events": 5})
    assert store.gaps() == [
        ("processes", dump.NOW - 50, dump.NOW - 40, "overrun"),
        ("agent", dump.NOW, dump.NOW + 10, "stopped"),
    ]
    for table in TABLES:
        store.append(table.name, [[dump.NOW, *(None for _ in table.recorded[1:])]])
    store.close()
    assert [counters.lost for counters in store.counters.values()] == [{}] * len(TABLES)

    connection = reading(path)
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    assert connection.pragma("user_version") == VERSION
    for name, rows in content(connection, before).items():
        assert [{column: row[column] for column in before[name][0]} for row in rows[:-1]] == before[name]
        assert [row["seq"] for row in rows] == [3, 4, 5, 6]
        added = rows[0].keys() - before[name][0].keys()
        assert {row[column] for row in rows for column in added} <= {None}
    connection.close()


@pytest.mark.parametrize("sql", DUMPS, ids=lambda path: path.stem)
def test_a_migrated_store_has_the_tables_of_a_new_one(sql: Path, path: Path, tmp_path: Path) -> None:
    restored(path, sql).close()
    new = tmp_path / "new.db"
    conversions = []
    for each in (path, new):
        file = opened(each)
        conversions += file.conversions
        file.close(dump.NOW, clean=True)
    assert conversions == []
    migrated, fresh = reading(path), reading(new)
    assert schema(migrated) == schema(fresh)
    types = 'SELECT * FROM _columns ORDER BY "table", name'
    assert migrated.execute(types).fetchall() == fresh.execute(types).fetchall()
    migrated.close()
    fresh.close()


def test_the_present_schema_has_its_dump(path: Path, tmp_path: Path) -> None:
    opened(path).close(dump.NOW, clean=True)
    last = restored(tmp_path / "last.db", DUMPS[-1])
    present = reading(path)
    assert schema(present) == schema(last), (
        f"the store's tables changed: add a dump after {DUMPS[-1].name} ({dump.__file__})"
    )
    assert present.pragma("user_version") == last.pragma("user_version")
    last.close()
    present.close()


EVENTS = 100_000


def filled(path: Path, sql: Path, now: float) -> dict[str, int]:
    """The state of a tree before, with 100,000 more events of which about half have been delivered; rows by table."""
    connection = restored(path, sql)
    numbers = {"processes_events": EVENTS // 2, "sockets_events": EVENTS - EVENTS // 2}
    with connection:
        for table, number in numbers.items():
            connection.execute(f"DELETE FROM {table}")
            column = {"processes_events": "cmdline", "sockets_events": "process"}[table]
            connection.execute(
                f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
                f"INSERT INTO {table} (time, pid, {column}) SELECT ? + i / 1000.0, i, 'event ' || i FROM n",
                (now - 1_000.0,),
            )
    connection.close()
    return numbers


SQL = {
    "processes_events": "SELECT seq, pid, cmdline FROM processes_events",
    "sockets_events": "SELECT seq, pid, process FROM sockets_events",
}


def key_of(identity: str, sql: str) -> str:
    """What the delivery state of an event query has been kept under ever since."""
    return hashlib.sha256("\0".join((identity, sql, "Test::row", "", "Events")).encode()).hexdigest()


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("sql", UNNUMBERED, ids=lambda path: path.stem)
async def test_a_state_with_100_000_events_of_the_tree_before_loses_none_and_delivers_none_twice(
    sql: Path, path: Path
) -> None:
    now = time.time()
    numbers = filled(path, sql, now)
    cursors = {"processes_events": 20_005, "sockets_events": 35_005}
    connection = apsw.Connection(str(path))
    for table, seq in cursors.items():
        held = f'{{"{table}": {seq}}}'
        extra = ("under_way", "'{}'") if "under_way" in columns(connection, "_delivered") else ("snapshot", "NULL")
        connection.execute(
            f"INSERT INTO _delivered (key, seqs, {extra[0]}, time) VALUES (?, ?, {extra[1]}, ?)",
            (key_of("ws://zeek:1", SQL[table]), held, now),
        )
    connection.close()

    store = EventStore(path, TABLES, clock=lambda: now)
    database = Database(TABLES, TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    runner = QueryRunner(database, store)
    try:
        for table, number in numbers.items():
            result = await database.query(SQL[table].replace(table, f"{table}_history") + " ORDER BY seq")
            assert list(result.rows) == [(5 + i, i, f"event {i}") for i in range(1, number + 1)]
            zeek = Recorder()
            await runner.install(zeek, table, Query(SQL[table], "Test::row", 0.02, Subscription.EVENTS))
            got: list[Any] = []
            while len(got) < number + 5 - cursors[table]:
                got += [row for _, row in await zeek.next()]
            assert got == [(seq, seq - 5, f"event {seq - 5}") for seq in range(cursors[table] + 1, number + 6)]
            runner.drop(zeek, in_order=True)
            await runner.close()
            store.append(table, [[now, *(None for _ in store_table(table).recorded[1:])]])
            assert store.flush()
            again = Recorder(incarnation="zeek_2")
            await runner.install(again, table, Query(SQL[table], "Test::row", 0.02, Subscription.EVENTS))
            assert [row for _, row in await again.next()] == [(number + 6, None, None)]
    finally:
        await runner.close()
        database.close()
        store.close()
    for counters in map(store.counters.__getitem__, numbers):
        assert (counters.lost, counters.expired, counters.evicted) == ({}, 0, 0)


def store_table(name: str) -> Table:
    return next(table for table in TABLES if table.name == name)


async def test_a_command_without_an_agent_reads_a_store_that_no_agent_has_migrated_yet(path: Path) -> None:
    restored(path, DUMPS[0]).close()
    untouched = path.read_bytes()
    store = StoredEvents(path)
    database = Database(TABLES, TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    try:
        for profile in Profile:
            asked = [
                await database.query(sql, profile=profile)
                for sql in (
                    "SELECT seq, listener_stands_in FROM sockets_events_history WHERE seq > 3",
                    "SELECT message FROM system_logs_events",
                )
            ]
            assert [list(result.rows) for result in asked] == [[(4, None), (5, None)], []]
    finally:
        database.close()
        store.close()
    assert path.read_bytes() == untouched


# Numbered steps

RENAMED = renamed_column("things_events", "number", "size")


def test_migrations_run_once_each_in_order(path: Path) -> None:
    seen: list[str] = []
    more = [Migration(name, lambda _, name=name: seen.append(name)) for name in "abc"]  # type: ignore[misc]
    kept(path, declared({"time": "time"}), [])
    for number in range(len(more) + 1):
        opened(path, migrations=[*MIGRATIONS, *more[:number]]).close(dump.NOW, clean=True)
        assert seen == list("abc")[:number]
        assert reading(path).pragma("user_version") == VERSION + number


def test_a_renamed_column_keeps_its_values(path: Path) -> None:
    kept(path, declared({"time": "time", "number": "count"}), [(time.time(), 7)])
    renamed = declared({"time": "time", "size": "count"})
    opened(path, [renamed], [*MIGRATIONS, RENAMED]).close(dump.NOW, clean=True)
    connection = reading(path)
    assert columns(connection, "things_events").keys() == {"seq", "time", "size"}
    assert connection.execute("SELECT seq, size FROM things_events").fetchall() == [(1, 7)]
    assert dict(connection.execute("SELECT name, type FROM _columns")) == {"time": "time", "size": "count"}
    connection.close()


def test_a_renamed_column_of_a_missing_table_is_ignored(path: Path) -> None:
    opened(path, migrations=[*MIGRATIONS, RENAMED]).close(dump.NOW, clean=True)
    assert reading(path).pragma("user_version") == VERSION + 1


def test_a_step_that_fails_leaves_the_store_as_it_was(path: Path) -> None:
    def fail_halfway(connection: apsw.Connection) -> None:
        connection.execute("UPDATE _store SET id = 'another'")
        connection.execute("DROP TABLE _delivered")
        raise apsw.FullError("disk is full")

    restored(path, UNNUMBERED[-1]).close()
    connection = apsw.Connection(str(path))
    with pytest.raises(apsw.FullError):
        migrate(connection, path, [*MIGRATIONS, Migration("a step that fails", fail_halfway)])
    assert connection.pragma("user_version") == VERSION
    assert connection.execute("SELECT id FROM _store").get == dump.STORE_ID
    assert connection.execute("SELECT count(*) FROM _delivered").get == 3
    connection.close()


CHANGED = [
    Table(
        table.name,
        table.summary,
        description=table.description,
        kind="events",
        columns=[Column(one.name, {"pid": "text", "exe": "blob"}.get(one.name, one.type), "a value")
                 for one in table.recorded if one.name not in {"uid", "gid"}],
    )
    for table in TABLES
]  # fmt: skip
"""The built-in tables with columns that went and that changed their type."""


def open_until_killed(path: Path, steps: int) -> None:
    """Upgrade in a process that kills itself after so many steps of SQLite's."""
    left = steps

    def count() -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    apsw.connection_hooks.append(lambda connection: connection.set_progress_handler(count, 20))
    opened(path, CHANGED).close(0.0, clean=True)


def test_kill_9_at_any_moment_of_an_upgrade_leaves_every_row(path: Path) -> None:
    connection = restored(path, UNNUMBERED[0])
    for number in range(300):
        connection.execute("INSERT INTO processes_events (time, pid, exe, uid) VALUES (1, ?, 'x', 7)", (number,))
    seqs = content(connection, ["processes_events"])["processes_events"]
    connection.close()
    steps, kills = 1, 0
    while True:
        code = exit_code(fork(lambda steps=steps: open_until_killed(path, steps)))  # type: ignore[misc]
        connection = reading(path)
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        rows = content(connection, ["processes_events"])["processes_events"]
        assert [(row["seq"], str(row["pid"])) for row in rows] == [(row["seq"], str(row["pid"])) for row in seqs]
        assert connection.execute("SELECT count(*) FROM _delivered").get == 2
        assert connection.execute("SELECT id FROM _store").get == dump.STORE_ID
        connection.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        steps += max(steps // 2, 1)
    assert kills > 10
    assert {type(row["exe"]) for row in rows[-300:]} == {bytes}
    assert {row["uid"] for row in rows[-300:]} == {7}


# Columns that come, go and change


def values(path: Path, name: str = "things_events") -> list[dict[str, Any]]:
    connection = reading(path)
    try:
        return content(connection, [name])[name]
    finally:
        connection.close()


async def test_a_column_that_is_no_longer_declared_is_hidden_and_keeps_its_values(path: Path) -> None:
    both, one = declared({"time": "time", "a": "text", "b": "text"}), declared({"time": "time", "a": "text"})
    kept(path, both, [(dump.NOW, "a1", "b1")])
    kept(path, one, [(dump.NOW, "a2")])
    assert [(row["a"], row["b"]) for row in values(path)] == [("a1", "b1"), ("a2", None)]
    store = EventStore(path, [one], FOREVER)
    database = Database([one], TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    for profile in Profile:
        result = await database.query("SELECT * FROM things_events_history", profile=profile)
        assert "b" not in [column.name for column in result.columns]
    database.close()
    store.close()
    kept(path, both, [(dump.NOW, "a3", "b3")])
    assert [(row["seq"], row["b"]) for row in values(path)] == [(1, "b1"), (2, None), (3, "b3")]


def test_rows_with_a_hidden_time_do_not_count_as_old(path: Path) -> None:
    kept(path, declared({"time": "time", "a": "text"}), [(time.time(), "a1")])
    file = opened(path, [declared({"a": "text"})])
    assert file.expire(time.time() + 1_000.0, 1.0)["things_events"] == 0
    file.close(0.0, clean=True)
    assert [row["a"] for row in values(path)] == ["a1"]


def test_rows_without_a_time_go_with_the_rows_after_them_or_by_their_recording(path: Path) -> None:
    table = declared({"time": "time", "a": "text"})
    kept(path, table, [(100.0, "old"), (None, "unknown"), (200.0, "next"), (None, "last")])
    file = opened(path, [table])
    for now, left in ((140, 4), (160, 3), (180, 3), (260, 0)):
        file.expire(float(now), 50.0)
        assert len(values(path)) == left
    file.close(0.0, clean=True)


def test_a_changed_type_converts_values_and_reports_failures(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(
        path, declared({"time": "time", "a": "text", "b": "count"}), [(1.0, text, 5) for text in ("7", "-1", "x", None)]
    )
    store = EventStore(path, [declared({"time": "time", "a": "count", "b": "text"})], FOREVER)
    store.append("things_events", [(1.0, 8, "six")])
    store.close()
    expected = [(1, 7, "5"), (2, None, "5"), (3, None, "5"), (4, None, "5"), (5, 8, "six")]
    assert [(row["seq"], row["a"], row["b"]) for row in values(path)] == expected
    assert store.counters["things_events"].nulled == 2
    assert store.counters["things_events"].lost == {}
    assert "things_events.a: values were converted from text to count; 2 could not be" in caplog.text


def test_a_type_that_sqlite_does_not_distinguish_is_converted_too(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kept(path, declared({"a": "text", "b": "int"}), [("::1", 1), ("nowhere", -1)])
    after = declared({"a": "address", "b": "count"})
    kept(path, after, [])
    assert [(row["a"], row["b"]) for row in values(path)] == [("::1", 1), (None, None)]
    caplog.clear()
    kept(path, after, [])
    assert "converted" not in caplog.text


def test_the_last_number_is_kept_when_a_changed_table_has_lost_its_newest_rows(path: Path) -> None:
    kept(path, declared({"a": "text"}), [("1",), ("2",), ("3",)])
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM things_events")
    connection.close()
    kept(path, declared({"a": "count"}), [(4,)])
    assert values(path) == [{"seq": 4, "a": 4}]


def test_a_column_name_that_differs_only_in_case_is_the_same(path: Path) -> None:
    kept(path, declared({"Number": "text"}), [("1",)])
    kept(path, declared({"number": "count"}), [(2,)])
    assert [list(row.values()) for row in values(path)] == [[1, 1], [2, 2]]


def test_a_table_that_changes_while_the_agent_runs_keeps_rows_that_were_still_queued(path: Path) -> None:
    store = EventStore(path, [], EventSettings(retention_age=1e10, commit_interval=30.0))
    assert store.declare(declared({"a": "text", "gone": "text"}))
    store.append("things_events", [("1", "x")])
    assert store.declare(declared({"a": "count"}))
    store.append("things_events", [(2,)])
    store.close()
    assert [(row["a"], row["gone"]) for row in values(path)] == [(1, "x"), (2, None)]
    assert store.counters["things_events"].lost == {}


PLUGIN = """
from zeek_agent.schema import Column
from zeek_agent.table import Table
columns = [Column(name, kind, "a value") for name, kind in {columns!r}.items()]
table = Table("plugged_events", "events of a plug-in", description="For tests.", columns=columns, kind="events")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], list[Table]]]:
    """Installs a version of a package that adds a table; returns the tables that the agent finds."""
    site = tmp_path / "site"
    information = site / "plugged-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[zeek_agent.tables]\nplugged = plugged_in_tests:table\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def install(columns: dict[str, str]) -> list[Table]:
        (site / "plugged_in_tests.py").write_text(PLUGIN.format(columns=columns))
        sys.modules.pop("plugged_in_tests", None)
        importlib.invalidate_caches()
        return [table for table in plugin_tables("linux") if table.name == "plugged_events"]

    yield install
    sys.modules.pop("plugged_in_tests", None)


def test_a_plugins_table_keeps_its_rows_over_versions_of_the_plugin(
    path: Path, plugin: Callable[[dict[str, str]], list[Table]]
) -> None:
    (first,) = plugin({"time": "time", "number": "text", "gone": "text"})
    kept(path, first, [(1.0, "1", "x"), (2.0, "two", "y")])
    (second,) = plugin({"time": "time", "number": "count", "new": "set[text]"})
    kept(path, second, [(3.0, 3, ["z"])])
    rows = [(row["seq"], row["number"], row["gone"], row["new"]) for row in values(path, "plugged_events")]
    assert rows == [(1, 1, "x", None), (2, None, "y", None), (3, 3, None, '["z"]')]
    opened(path).close(dump.NOW, clean=True)
    assert len(values(path, "plugged_events")) == 3


# How values are converted


@pytest.mark.parametrize(
    ("value", "kind", "converted"),
    [
        ("42", "count", 42),
        ("+42", "int", 42),
        ("-42", "count", None),
        ("1e3", "int", None),
        ("1_000", "int", None),
        ("٣", "count", None),
        (2.0, "count", 2),
        (2.5, "count", None),
        (1e300, "int", None),
        ("9223372036854775808", "count", None),
        (1, "bool", 1),
        ("T", "bool", 1),
        ("false", "bool", 0),
        (2, "bool", None),
        ("1.5", "time", 1.5),
        ("inf", "real", None),
        ("1_0.5", "real", None),
        (3, "interval", 3.0),
        (3, "text", "3"),
        (0.1, "text", "0.1"),
        (b"\xff", "text", "\uefff"),
        ("\uefff", "blob", b"\xff"),
        (7, "blob", b"7"),
        ("2001:db8::1", "address", "2001:db8::1"),
        ("localhost", "address", None),
        ("80/tcp", "port", '[80,"tcp"]'),
        ('{"port": 80, "proto": "tcp"}', "port", '[80,"tcp"]'),
        ("65536/tcp", "port", None),
        (80, "port", None),
        ('{"a": 1}', "record", '{"a":1}'),
        ("[1]", "record", None),
        ('["1", 2]', "set[count]", "[1,2]"),
        ('["1", "x"]', "set[count]", None),
        ("1", "vector[count]", "[1]"),
        ("a", "set[text]", '["a"]'),
        ('[true, "no"]', "vector[text]", '["true","no"]'),
        ('["T"]', "vector[bool]", "[true]"),
        ('["\\ud800"]', "vector[text]", None),
        ("[" * 100_000, "vector[text]", None),
        (None, "set[text]", None),
    ],
)
def test_a_value_keeps_its_meaning_or_becomes_null(value: Any, kind: str, converted: Any) -> None:
    result = convert(value, ZeekType.parse(kind))
    assert (type(result), result) == (type(converted), converted)


MEMBERS = SCALAR_TYPES - {"record"}
KINDS = [
    *map(ZeekType.parse, sorted(SCALAR_TYPES)),
    *(ZeekType(container, ZeekType(one)) for container in sorted(CONTAINER_TYPES) for one in sorted(MEMBERS)),
]
STORED = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=40),
    st.sampled_from(
        ["80/tcp", "[80, 90]", '["a", "b"]', '[[80, "tcp"]]', '{"port": 1, "proto": "x"}', "::1", "1.5", "T"]
    ),
)


@given(STORED, st.sampled_from(KINDS))
def test_converted_values_can_be_stored_and_read_with_the_new_type(value: Any, kind: ZeekType) -> None:
    result = convert(value, kind)
    cells.decode(kind, result)
    assert convert(result, kind) == result
    connection = apsw.Connection(":memory:")
    connection.execute(f"CREATE TABLE one (value {kind.sqlite}) STRICT")
    connection.execute("INSERT INTO one VALUES (?)", (result,))


@given(STORED, st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_types_that_keep_values_need_no_conversion(value: Any, old: ZeekType, new: ZeekType) -> None:
    if keeps_values(old, new):
        stored = convert(value, old)
        cells.decode(new, stored)


# Stores of later agents

NEWER = VERSION + 2


def newer(path: Path, written_by: str = "4.5.6", *, unreadable: bool = False) -> bytes:
    """A store that a later agent wrote; `unreadable` when it uses what this SQLite does not understand."""
    restored(path, DUMPS[-1]).close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE _store SET written_by = ?", (written_by,))
    connection.pragma("user_version", NEWER)
    if unreadable:
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE FUTURE ' || sql")
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize("unreadable", [False, True], ids=["readable", "unreadable"])
def test_a_later_agents_store_is_refused_in_one_line_and_not_changed(path: Path, unreadable: bool) -> None:
    before = newer(path, unreadable=unreadable)
    with pytest.raises(NewerStoreError) as caught:
        EventStore(path, TABLES)
    message = str(caught.value)
    assert "\n" not in message
    writer = "a later version of zeek-agent" if unreadable else "zeek-agent 4.5.6"
    assert f"{path} was written by {writer} (store version {NEWER}, zeek-agent {__version__} knows up to" in message
    assert "run that version or a later one" in message
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_agent_writes_its_version_into_the_store(path: Path) -> None:
    newer(path)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", VERSION)
    connection.close()
    opened(path).close(dump.NOW, clean=True)
    assert reading(path).execute("SELECT written_by FROM _store").get == __version__


def test_a_column_of_a_later_agent_with_the_same_store_version_is_accepted(path: Path) -> None:
    kept(path, declared({"a": "text"}), [("1",)])
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE _columns SET type = 'subnet'")
    connection.close()
    kept(path, declared({"a": "text"}), [("2",)])
    assert [row["a"] for row in values(path)] == ["1", "2"]


def test_the_store_is_readable_by_its_owner_only_after_an_upgrade(path: Path) -> None:
    restored(path, DUMPS[0]).close()
    platforms.HERE.protect_file(path)
    opened(path).close(dump.NOW, clean=True)
    assert_private(path)


@pytest.mark.parametrize("sql", [path for path in DUMPS if path.name < "08"], ids=lambda path: path.stem)
def test_a_text_in_an_earlier_store_that_looks_like_a_reference_stays_what_it_is(path: Path, sql: Path) -> None:
    """Any user could leave one there, by a program's name."""
    (processes,) = [table for table in TABLES if table.name == "processes_events"]
    marked = [MARK, f"{MARK}1:5", f"{MARK}1:5", f"{MARK}x" * 50, "plain"]
    connection = restored(path, sql)
    connection.execute("DELETE FROM processes_events")
    insert = "INSERT INTO processes_events (time, exe, cmdline) VALUES (1e6, ?, ?)"
    connection.executemany(insert, ((text, f"of {text}") for text in marked))
    connection.close()
    long = "long " * 100
    file = EventFile(path, TABLES, BYTES, 1e6)
    row = tuple({"time": 1e6 + 50, "cmdline": long}.get(column.name) for column in processes.recorded)
    file.write(WriteBatch(rows={processes.name: [row] * 3}), 1e6)
    sql_ = "SELECT exe, cmdline FROM processes_events ORDER BY seq"
    assert read_events(file.uri, sql_) == [*((text, f"of {text}") for text in marked), *[(None, long)] * 3]
    file.expire(1e6 + 20, 10.0)
    assert read_events(file.uri, sql_) == [(None, long)] * 3
    texts = "SELECT text, refs FROM _texts JOIN _text_uses USING (id)"
    assert file._connection.execute(texts).fetchall() == [(long, 3)]
    file.close(1e6, clean=True)


def test_a_value_that_becomes_a_text_and_looks_like_a_reference_stays_what_it_is(path: Path) -> None:
    def things(kind: str) -> Table:
        declared = [Column("time", "time", "a value"), Column("exe", kind, "a value")]
        return Table("things_events", "things", description="For tests.", columns=declared, kind="events")

    marked = [MARK, f"{MARK}1:5", "plain"]
    file = EventFile(path, [things("blob")], BYTES, 1e6)
    file.write(WriteBatch(rows={"things_events": [(1e6, text.encode()) for text in marked]}), 1e6)
    file.close(1e6, clean=True)
    file = EventFile(path, [things("text")], BYTES, 1e6)
    assert read_events(file.uri, "SELECT exe FROM things_events ORDER BY seq") == [(text,) for text in marked]
    file.expire(1e6 + 20, 10.0)
    assert file._connection.execute("SELECT text FROM _texts").fetchall() == []
    file.close(1e6, clean=True)
