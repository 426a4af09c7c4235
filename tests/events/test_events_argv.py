"""Arguments of processes are stored in few bytes, and all readers see them one by one."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import pytest
from recipients import NobodysAgent

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, SqlConnection
from zeek_agent.events.reading import read_events
from zeek_agent.events.references import MARK
from zeek_agent.events.store import EventStore
from zeek_agent.masking.command_line import CommandLine
from zeek_agent.schema import Row
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

TABLES = {table.name: table for table in builtin_tables("linux") if table.kind == "events"}
ARGUMENTS = [
    ["true"],
    ["ls", "-l"],
    [""],
    ["", "", ""],
    ["a", ""],
    ["sh", "-c", "echo a b"],
    ['quote"back\\slash', "new\nline", "\x01", "ünï", "\uefff", "'"],
    ["java", *["-Dproperty=value"] * 300],
    ["sh", "-c", "echo long " * 300],
    [MARK + "1:5", "x"],
    [" "],
    ["[]", '","'],
]
QUERY = "SELECT pid, cmdline, argv FROM {} ORDER BY seq"


def rows(table: str) -> list[Row]:
    """A row for each of `ARGUMENTS`, and one each whose arguments are truncated and unknown."""
    lines = [CommandLine("\0".join(arguments)) for arguments in ARGUMENTS]
    known = [(line.cmdline, line.stored_argv) for line in [*lines, CommandLine("a\0b", cut=True)]]
    made = []
    for number, (cmdline, argv) in enumerate([*known, (None, None)]):
        values = {"time": time.time(), "pid": number, "cmdline": cmdline, "argv": argv}
        made.append(tuple(values.get(column.name) for column in TABLES[table].recorded))
    return made


WANTED: list[tuple[int, str | None, tuple[str, ...] | None]] = [
    *((number, " ".join(arguments), tuple(arguments)) for number, arguments in enumerate(ARGUMENTS)),
    (len(ARGUMENTS), "a b …", None),
    (len(ARGUMENTS) + 1, None, None),
]


@pytest.fixture(params=["processes_events", "sockets_events"])
def table(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, table: str) -> Iterator[EventStore]:
    store = EventStore(tmp_path / "events.db", list(TABLES.values()), EventSettings(retention_age=1e9))
    store.append(table, rows(table))
    assert store.flush()
    yield store
    store.close()


@pytest.fixture
async def database(store: EventStore) -> AsyncIterator[Database]:
    database = Database(list(TABLES.values()), TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), store)
    yield database
    database.close()


def seen(found: Row) -> tuple[object, ...]:
    pid, cmdline, argv = found
    return pid, cmdline, tuple(argv) if isinstance(argv, list | tuple) else argv


@pytest.mark.parametrize("profile", Profile)
async def test_statements_see_the_arguments_one_by_one(database: Database, table: str, profile: Profile) -> None:
    for name in (table, f"{table}_history"):
        result = await database.query(QUERY.format(name), profile=profile)
        assert str(result.columns[2].type) == "vector[text]"
        assert list(map(seen, result.rows)) == WANTED
    sql = f"SELECT pid FROM {table} WHERE json_array_length(argv) = 2 AND argv ->> 1 = '-l'"
    assert list((await database.query(sql, profile=profile)).rows) == [(1,)]
    sql = f"SELECT pid, argument.value FROM {table}, json_each(argv) AS argument WHERE pid = 5"
    assert [value for _, value in (await database.query(sql, profile=profile)).rows] == ARGUMENTS[5]
    sql = f"""SELECT pid FROM {table} WHERE argv = '["ls","-l"]'"""
    assert list((await database.query(sql, profile=profile)).rows) == [(1,)]


def test_recorded_rows_have_the_arguments(store: EventStore, table: str) -> None:
    found = read_events(store.uri, QUERY.format(table))
    assert [(*row[:2], json.loads(str(row[2])) if row[2] is not None else None) for row in found] == [
        (pid, cmdline, None if argv is None else list(argv)) for pid, cmdline, argv in WANTED
    ]


@pytest.mark.parametrize("profile", Profile)
def test_copies_of_events_have_the_arguments(store: EventStore, table: str, profile: Profile) -> None:
    limits, context = LimitSettings(), TableContext(NobodysAgent(), AccessPolicy())
    connection = SqlConnection(
        *(Catalog.of(1, list(TABLES.values())), profile),
        context=context,
        limits=limits,
        scans=SharedScans(),
        store=store,
        copies=True,
    )
    run = Run(limits)
    run.start(apsw.memory_used() + limits.memory_bytes)
    assert list(map(seen, connection.query(QUERY.format(table), run, None).rows)) == WANTED
    connection.close()


def test_few_arguments_are_stored_twice(store: EventStore, table: str) -> None:
    for _ in range(3):
        store.append(table, rows(table))
    assert store.flush()
    connection = apsw.Connection(store.uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    kept = [argv for (argv,) in connection.execute(f"SELECT argv FROM {table} ORDER BY seq")]
    connection.close()
    blank = [any(" " in argument for argument in arguments) for arguments in ARGUMENTS]
    assert [argv != "" for argv in kept] == [*blank, True, True] * 4
    assert kept[8 - len(blank) - 2].startswith(MARK)


async def test_a_stock_package_does_not_get_the_arguments_without_asking_for_them(
    database: Database, table: str
) -> None:
    result = await database.query(f"SELECT * FROM {table}", profile=Profile.STOCK)
    assert "argv" not in [column.name for column in result.columns]
