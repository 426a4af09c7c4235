"""osquery's event tables, from events in a store, in real worker processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from workers import contained

from zeek_agent.config.sections import AccessSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.database.database import Profile
from zeek_agent.errors import AccessDeniedError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Row
from zeek_agent.tables import builtin_tables

TABLES = {table.name: table for table in builtin_tables()}
BOTH = "EXISTS (SELECT 1 FROM uptime)"
"""Makes a snapshot worker run the statement, which then reads a copy of the events."""


def row(table: str, **cells: Any) -> Row:
    return tuple(cells.get(column.name) for column in TABLES[table].recorded)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    store = EventStore(tmp_path / "events.db", TABLES.values())
    process = {"pid": 7, "ppid": 1, "exe": "/bin/a", "cmdline": "a é", "cwd": "/", "uid": 0, "gid": 3, "ruid": 1000}
    store.append(
        "processes_events",
        [
            row("processes_events", time=1.9, state="started", rgid=1001, loginuid=1000, **process),
            row("processes_events", time=2.0, state="stopped", **process),
            row("processes_events", time=3.0, state="started", pid=8),
        ],
    )
    ends = {"local_addr": "10.0.0.1", "local_port": 5, "remote_addr": "::1", "remote_port": 6, "protocol": 6, "pid": 7}
    states = (
        ("established", "outbound", "IPv4"),
        ("established", "inbound", "IPv6"),
        ("closed", "inbound", "IPv6"),
        ("failed", "outbound", "IPv6"),
        ("listen", None, "IPv4"),
        ("active", "outbound", "IPv4"),
        ("listen", None, "packet"),
    )
    store.append(
        "sockets_events",
        [
            row("sockets_events", time=4.0, state=state, direction=direction, family=family, **ends)
            for state, direction, family in states
        ],
    )
    actions = (
        ("created", "/a", None),
        ("written", "/a", None),
        ("attributes", "/a", None),
        ("renamed", "/b", "/a"),
        ("renamed", None, "/b"),
        ("deleted", "/c", None),
        ("executed", "/d", None),
    )
    store.append(
        "files_events",
        [
            row("files_events", time=5.0, action=action, path=path, old_path=old, permissions="644", inode=9, size=1)
            for action, path, old in actions
        ],
    )
    entry = {"process": "cron", "level": "6", "message": "hello", "facility": 10}
    store.append("system_logs_events", [row("system_logs_events", time=1_700_000_000.5, identifier="CRON", **entry)])
    assert store.flush(10)
    yield store
    store.close()


@pytest.fixture
async def database(tmp_path: Path, store: EventStore) -> AsyncIterator[ContainedDatabase]:
    async with contained(tmp_path, store) as database:
        yield database


@pytest.mark.parametrize("where", ["true", BOTH])
@pytest.mark.parametrize("name", ["process_events", "osquery_process_events"])
async def test_starts_are_process_events(database: ContainedDatabase, name: str, where: str) -> None:
    sql = f"SELECT pid, path, cmdline, cwd, auid, uid, euid, gid, egid, parent, time, cmdline_size, eid FROM {name}"
    result = await database.query(f"{sql} WHERE {where}", profile=Profile.OSQUERY)
    assert result.rows == [
        (7, "/bin/a", "a é", "/", 1000, 1000, 0, 1001, 3, 1, 1, 4, "1"),
        (8, *[None] * 3, 4294967295, *[None] * 5, 3, None, "3"),
    ]


async def test_the_agent_s_own_name_keeps_its_meaning_outside_the_dialect(database: ContainedDatabase) -> None:
    assert (await database.query("SELECT state FROM process_events")).row_count == 3
    assert (await database.query("SELECT count(*) FROM osquery_process_events")).rows == [(2,)]
    with pytest.raises(SqlError, match="no such column: exe"):
        await database.query("SELECT exe FROM process_events", profile=Profile.OSQUERY)
    assert (await database.query("SELECT exe FROM processes_events", profile=Profile.OSQUERY)).row_count == 3


async def test_a_query_that_gets_new_events_only_gets_these(database: ContainedDatabase) -> None:
    sql = "SELECT pid FROM process_events"
    statement = await database.prepare(sql, profile=Profile.OSQUERY)
    assert statement.tables == {"processes_events"}
    for where in ("", f" WHERE {BOTH}"):
        result = await database.query(sql + where, profile=Profile.OSQUERY, window={"processes_events": (1, 3)})
        assert result.rows == [(8,)]


async def test_connections_and_listening_ports_are_socket_events(database: ContainedDatabase) -> None:
    sql = "SELECT action, family, status, success, remote_address, remote_port, local_port FROM socket_events"
    assert (await database.query(sql, profile=Profile.OSQUERY)).rows == [
        ("connect", 2, "succeeded", 1, "::1", 6, 5),
        ("accept", 10, "succeeded", 1, "::1", 6, 5),
        ("connect", 10, "failed", 0, "::1", 6, 5),
        ("bind", 2, "succeeded", 1, "::1", 6, 5),
        ("connect", 2, "succeeded", 1, "::1", 6, 5),
    ]


async def test_modes_of_files_have_four_digits(database: ContainedDatabase, store: EventStore) -> None:
    store.append(
        "files_events",
        [
            row("files_events", time=6.0, action="attributes", path=path, permissions=permissions)
            for path, permissions in (("/setuid", "4755"), ("/none", "0"), ("/unknown", None))
        ],
    )
    assert store.flush(10)
    assert (await database.query("SELECT target_path, mode FROM file_events WHERE time = 6")).rows == [
        ("/setuid", "4755"),
        ("/none", "0000"),
        ("/unknown", None),
    ]


async def test_changes_are_file_events(database: ContainedDatabase) -> None:
    assert (await database.query("SELECT action, target_path, mode, hashed, time FROM file_events")).rows == [
        ("CREATED", "/a", "0644", 0, 5),
        ("UPDATED", "/a", "0644", 0, 5),
        ("ATTRIBUTES_MODIFIED", "/a", "0644", 0, 5),
        ("MOVED_TO", "/b", "0644", 0, 5),
        ("MOVED_FROM", "/b", "0644", 0, 5),
        ("DELETED", "/c", "0644", 0, 5),
    ]


@pytest.mark.parametrize("name", ["syslog_events", "syslog", "osquery_syslog"])
async def test_log_entries_are_syslog_events(database: ContainedDatabase, name: str) -> None:
    sql = f"SELECT time, datetime, host, severity, facility, tag, message FROM {name}"
    assert (await database.query(sql)).rows == [
        (1_700_000_000, "2023-11-14T22:13:20+00:00", "", 6, "authpriv", "CRON", "hello")
    ]


@pytest.mark.parametrize("denied", ["processes_events", "process_events", "osquery_process_events"])
async def test_a_rule_for_either_table_denies_the_view(tmp_path: Path, store: EventStore, denied: str) -> None:
    async with contained(tmp_path, store, access=AccessSettings(tables_deny=(denied,))) as database:
        for name, profile in (("osquery_process_events", Profile.FULL), ("process_events", Profile.OSQUERY)):
            with pytest.raises(AccessDeniedError):
                await database.query(f"SELECT pid FROM {name}", profile=profile)
            with pytest.raises(AccessDeniedError):
                await database.query(f"SELECT count(*) FROM {name} WHERE {BOTH}", profile=profile)


async def test_withheld_columns_stay_unset_in_the_view(tmp_path: Path, store: EventStore) -> None:
    access = AccessSettings(columns_deny=("processes_events.cmdline", "osquery_socket_events.remote_address"))
    async with contained(tmp_path, store, access=access) as database:
        for where in ("true", BOTH):
            result = await database.query(f"SELECT cmdline, cmdline_size FROM osquery_process_events WHERE {where}")
            assert result.rows == [(None, None)] * 2
            result = await database.query(f"SELECT DISTINCT remote_address FROM osquery_socket_events WHERE {where}")
            assert result.rows == [(None,)]
