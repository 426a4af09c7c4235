"""What every table keeps: its examples run, and every row that it yields now obeys its declaration."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import Agent, ask

from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import fits, undocumented
from zeek_agent.database.database import Database, Lane, Profile
from zeek_agent.schema import Column
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables

TABLES = [table for table in builtin_tables() if table.osquery_name is None]
SNAPSHOTS = [table for table in TABLES if table.kind == "snapshot"]
ARGUMENTS: dict[str, Sequence[str]] = {
    "files_list": ["/etc/*"],
    "files_lines": ["/etc/*"],
    "files_columns": ["/etc/*", "$1:text,$2:int,$3:blob"],
    "file_hashes": ["/etc/*"],
    "process_tree": ["1"],
}
NEVER_NULL = {
    "processes": {"name", "pid", "ppid", "uid", "gid", "ruid", "rgid", "priority", "vsize", "rsize", "utime", "stime"}
    | {"state", "threads", "start_time", "cgroup", "entity_id"},
    "sockets": {"family", "protocol", "local_addr", "local_port", "remote_addr", "remote_port"},
    "users": {"name", "full_name", "is_admin", "is_system", "uid", "gid", "home", "shell", "groups"},
    "files_list": {"path", "type", "mode", "mtime", "size"},
    "files_lines": {"path", "number", "content"},
    "files_columns": {"path", "number", "columns"},
    "file_hashes": {"path", "size", "mtime", "md5", "sha1", "sha256"},
}
V2_COLUMNS = {
    "processes": "name pid ppid uid gid ruid rgid priority startup vsize rsize utime stime",
    "processes_events": "time name pid ppid uid gid ruid rgid priority duration vsize rsize utime stime state",
    "sockets": "pid process family protocol local_addr local_port remote_addr remote_port state",
    "sockets_events": "time pid process uid gid family protocol local_addr local_port remote_addr remote_port state",
    "users": "name full_name is_admin is_system uid gid home shell email",
    "zeek_agent": "id instance hostname addresses platform os_name kernel_name kernel_version kernel_arch "
    "agent_version uptime tables",
    "files_list": "path type uid gid mode mtime size",
    "files_lines": "path number content",
    "files_columns": "path number columns",
    "system_logs_events": "time process level message eventid",
}


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    opened = Database(builtin_tables(), TableContext(Agent()), LimitSettings())
    yield opened
    await opened.aclose()


def is_plausible(column: Column, cell: Any) -> bool:
    """Whether a time or a duration of this host can be meant."""
    if column.type == "time":
        return bool(cell < time.time() + 400 * 86_400)
    return column.type != "interval" or cell >= 0


@pytest.mark.parametrize("table", SNAPSHOTS, ids=lambda table: table.name)
def test_every_row_obeys_its_columns(table: Table) -> None:
    rows = ask(table, *ARGUMENTS.get(table.name, ()))
    for row in rows:
        for column in table.columns:
            cell = row[column.name]
            if cell is None:
                assert column.name not in NEVER_NULL.get(table.name, ()) or _has_ended(row), row
            else:
                assert fits(column.zeek_type, cell), (column, cell)
                assert is_plausible(column, cell), (column, cell)


def _has_ended(row: dict[str, Any]) -> bool:
    """Whether a process of another program ended while its row was made, so that /proc had no more of it."""
    try:
        status = Path(f"/proc/{row['pid']}/status").read_text()
    except (KeyError, OSError):
        return "pid" in row
    return "State:\tZ" in status or "State:\tX" in status


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
async def test_every_example_runs(table: Table, database: Database) -> None:
    assert table.examples
    for example in table.examples:
        result = await database.query(example, lane=Lane.LOCAL)
        assert result.errors == ()
        assert re.search(rf"\b{table.name}\b", example)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
async def test_sql_shows_what_the_table_declares(table: Table, database: Database) -> None:
    arguments = ", ".join(f"'{argument}'" for argument in ARGUMENTS.get(table.name, ()))
    for profile in (Profile.FULL, Profile.STOCK):
        result = await database.query(f"SELECT * FROM {table.name}{arguments and f'({arguments})'}", profile=profile)
        shown = [
            column for column in table.columns if not column.hidden and (profile is Profile.FULL or not column.added)
        ]
        assert [(column.name, column.type) for column in result.columns] == [
            (column.name, column.zeek_type) for column in shown
        ]
        assert result.errors == ()
        every = ", ".join(f'"{column.name}"' for column in table.columns)
        result = await database.query(
            f"SELECT {every} FROM {table.name}{arguments and f'({arguments})'}", profile=profile
        )
        assert [column.type for column in result.columns] == [column.zeek_type for column in table.columns]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_is_documented(table: Table) -> None:
    assert list(undocumented(table)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="not all tables are elsewhere")
@pytest.mark.parametrize("name", V2_COLUMNS)
def test_columns_of_version_2_come_first_and_in_order(name: str) -> None:
    table = next(table for table in TABLES if table.name == name)
    known = V2_COLUMNS[name].split()
    assert [column.name for column in table.columns][: len(known)] == known
    assert [column.added for column in table.columns] == [False] * len(known) + [True] * (
        len(table.columns) - len(known)
    )


@pytest.mark.parametrize("table", SNAPSHOTS, ids=lambda table: table.name)
async def test_each_column_can_be_compared_with_an_empty_list(database: Database, table: Table) -> None:
    arguments = ", ".join(f"'{argument}'" for argument in ARGUMENTS.get(table.name, ()))
    for column in table.columns:
        sql = f'SELECT count(*) FROM {table.name}({arguments}) WHERE "{column.name}" IN (SELECT 1 WHERE 0)'
        assert (await database.query(sql)).rows == [(0,)], column.name
