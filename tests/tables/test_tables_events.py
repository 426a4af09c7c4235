"""The documented join of connections with the processes behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from workers import contained

from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.database.database import Profile
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Row
from zeek_agent.table import Table
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.events import processes_events, sockets_events

JOIN = next(example for example in sockets_events.examples if "processes_events_history" in example)


def row(table: Table, **cells: Any) -> Row:
    return tuple(cells.get(column.name) for column in table.recorded)


def started(time: float, entity: str, cmdline: str, **more: Any) -> Row:
    return row(processes_events, time=time, entity_id=entity, cmdline=cmdline, state="started", **more)


def connection(time: float, entity: str | None, remote: str, state: str = "established") -> Row:
    return row(sockets_events, time=time, entity_id=entity, remote_addr=remote, state=state)


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[ContainedDatabase]:
    """A process that forks, executes two programs and connects; another one executes a third program afterwards."""
    store = EventStore(tmp_path / "events.db", builtin_tables())
    store.append(
        "processes_events",
        [
            started(1.0, "H-1-1", "bash", cwd="/"),
            started(1.1, "H-1-1", "sh -c curl", cwd="/tmp"),
            started(1.2, "H-1-1", "curl http://x/", cwd="/tmp", parent_exe="/bin/bash"),
            started(2.0, "H-2-1", "bash"),
            started(2.1, "H-2-1", "nc"),
            row(processes_events, time=3.0, entity_id="H-1-1", state="stopped", cmdline="curl http://x/"),
            started(4.0, "H-2-1", "sleep 9"),
        ],
    )
    store.append(
        "sockets_events",
        [
            connection(1.5, "H-1-1", "10.0.0.1"),
            connection(1.6, "H-1-1", "10.0.0.2"),
            connection(1.7, "H-1-1", "10.0.0.1", "closed"),
            connection(3.5, "H-2-1", "10.0.0.3"),
            connection(3.6, "H-9-1", "10.0.0.4"),
            connection(3.7, None, "10.0.0.5"),
        ],
    )
    assert store.flush(10)
    async with contained(tmp_path, store) as database:
        yield database
    store.close()


@pytest.mark.parametrize("profile", list(Profile))
async def test_the_documented_join_has_one_row_per_connection(recorded: ContainedDatabase, profile: Profile) -> None:
    expected = [
        (1.5, "10.0.0.1", "curl http://x/", "/tmp", "/bin/bash", 3),
        (1.6, "10.0.0.2", "curl http://x/", "/tmp", "/bin/bash", 3),
        (3.5, "10.0.0.3", "nc", None, None, 5),
        (3.6, "10.0.0.4", None, None, None, None),
        (3.7, "10.0.0.5", None, None, None, None),
    ]
    result = await recorded.query(JOIN, profile=profile)
    assert result.rows == expected
    assert [str(column.type) for column in result.columns] == ["time", "address", "text", "text", "text", "count"]
    window: Mapping[str, tuple[int, int]] = {"sockets_events": (3, 5), "processes_events": (6, 7)}
    assert (await recorded.query(JOIN, profile=profile, window=window)).rows == expected[2:4]
    mixed = f"SELECT * FROM ({JOIN}) WHERE EXISTS (SELECT 1 FROM processes WHERE pid = 1)"
    assert [found[:6] for found in (await recorded.query(mixed, profile=profile)).rows] == expected
