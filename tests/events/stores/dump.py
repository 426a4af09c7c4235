"""Write an event store as the agent on the path makes it, with a few rows and delivery state, as SQL.

    PYTHONPATH=TREE/src python tests/events/stores/dump.py > tests/events/stores/NAME.sql

TREE is the tree whose store is to be kept, by default this one. Tests open every dump with the present agent, so every
store that a released agent has left on a disk is known to open. The last dump, by name, is the present schema: when
that changes, a test asks for one more.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any

import apsw

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.store import EventStore
from zeek_agent.tables import builtin_tables

NOW = 1_790_000_000.0
STORE_ID = "0123456789abcdef"
ROWS = 5
EXPIRED = 2
"""Rows of each table that are gone already, so that `seq` does not begin with 1."""
SAMPLES: dict[str, tuple[Any, ...]] = {
    "address": ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"),
    "bool": (True, False, True),
    "count": (0, 4_294_967_295, 2**63 - 1),
    "int": (-11, 0, 255),
    "interval": (0.0, 0.25, 86_400.0),
    "vector[text]": ("", '["/bin/sh","-c","a b"]', '["/usr/bin/true"]'),
    "text": ("/usr/bin/true", "Grüße, 世界", "raw \uefff\uef80, quote ', new\nline"),
}


def rows(table: Any) -> list[tuple[Any, ...]]:
    """Rows of all kinds of values; each fourth cell is null."""
    made = []
    for number in range(ROWS):
        cells = []
        for index, column in enumerate(column for column in table.columns if column.name != "seq"):
            values = SAMPLES.get(column.type, ())
            value = NOW - 100 + number if column.type == "time" else values[(number + index) % len(values)]
            cells.append(None if column.type != "time" and (number + index) % 4 == 0 else value)
        made.append(tuple(cells))
    return made


def fill(path: Path) -> None:
    """A store that was in use: rows, some of them gone, gaps, what queries have delivered; ended in order."""
    tables = [table for table in builtin_tables("linux") if table.kind == "events"]
    settings = EventSettings(retention_age=1_000.0)
    store = EventStore(path, tables, settings, clock=lambda: NOW)
    for table in tables:
        store.append(table.name, rows(table))
    if "position" in inspect.signature(store.append).parameters:
        store.append(tables[0].name, [], "a position in a followed file")
    store.record_gap("processes", NOW - 50, NOW - 40, "overrun")
    names = [table.name for table in tables]
    store.acknowledge("events of all tables", dict.fromkeys(names, 4), None)
    if "under_way" in inspect.signature(store.acknowledge).parameters:
        store.acknowledge("events with a report under way", {names[0]: 3}, None, {names[0]: 5})
    if "shape" in inspect.signature(store.acknowledge).parameters:
        store.acknowledge("events with a report of known shape", {names[0]: 3}, None, {names[0]: 5}, shape="2 300 100")
    if "recent" in inspect.signature(store.acknowledge).parameters:
        from zeek_agent.events.delivery_states import RecentProgress, Step

        recent = RecentProgress("zeek_1", (Step(NOW - 10, {names[0]: 3}), Step(NOW - 1, {names[0]: 4})))
        store.acknowledge("events with recent progress", {names[0]: 5}, None, owner="ws://zeek:1", recent=recent)
    store.acknowledge("differences", {}, b"\x00a packed snapshot\xff")
    store.close()
    connection = apsw.Connection(str(path))
    for name in names:
        connection.execute(f'DELETE FROM "{name}" WHERE seq <= {EXPIRED}')
    connection.execute("UPDATE _store SET id = ?", (STORE_ID,))
    connection.close()


def dump(path: Path) -> str:
    """The whole file as SQL that makes it again."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    lines = [f"PRAGMA user_version = {connection.pragma('user_version')};"]
    objects = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*' ORDER BY name"
    tables = list(connection.execute(objects))
    lines += [f"{sql};" for _, sql in tables]
    for name in [*(name for name, _ in tables), "sqlite_sequence"]:
        if name == "sqlite_sequence":
            lines.append("DELETE FROM sqlite_sequence;")  # inserting rows has filled it
        for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY 1'):
            values = ", ".join(map(apsw.format_sql_value, row))
            lines.append(f'INSERT INTO "{name}" VALUES ({values});')
    connection.close()
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.db"
        fill(path)
        sys.stdout.write(dump(path))


if __name__ == "__main__":
    main()
