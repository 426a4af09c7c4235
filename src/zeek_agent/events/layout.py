"""Adapts the event store's tables to their declarations without losing a row.

A new column is NULL in existing rows. A column that is no longer declared stays in the file with its values, hidden
from every reader, until retention has removed the rows. When a column's type changes, its values are converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import apsw

from zeek_agent.events.conversions import convert, keeps_values
from zeek_agent.events.references import MARK, shared_columns, value_of
from zeek_agent.schema import SqliteValue, ZeekType
from zeek_agent.table import Table

_REBUILT: Final = "_rebuilt"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A column whose stored values were converted because its type changed."""

    table: str
    column: str
    old: str
    new: str
    nulled: int
    """Values without a counterpart in the new type."""


def columns(connection: apsw.Connection, table: str) -> dict[str, str]:
    """The present columns of a table in the file, with SQLite's types; empty when there is no such table."""
    return {name: kind for _, name, kind, *_ in connection.execute(f"PRAGMA main.table_info({quoted(table)})")}


def declare(connection: apsw.Connection, table: Table) -> list[Conversion]:
    """Create the table, or adapt it to the declaration, within a transaction; `seq` continues where it was."""
    wanted = {column.name: column.zeek_type for column in table.recorded}
    present = {name.lower(): kind for name, kind in columns(connection, table.name).items()}
    recorded = _recorded_types(connection, table.name)
    conversions: list[Conversion] = []
    if not present:
        connection.execute(_create(table.name, {name: kind.sqlite for name, kind in wanted.items()}))
    else:
        changed = {
            name: kind
            for name, kind in wanted.items()
            if name.lower() in present and _changes(present[name.lower()], recorded.get(name), kind)
        }
        if changed or "seq" not in present:
            conversions = _rebuild(connection, table.name, changed, recorded)
        for name, kind in wanted.items():
            if name.lower() not in present:
                connection.execute(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(name)} {kind.sqlite}")
    for name, kind in wanted.items():
        if recorded.get(name) != kind:
            connection.execute("INSERT OR REPLACE INTO _columns VALUES (?, ?, ?)", (table.name, name, str(kind)))
    return conversions


def last_sequence(connection: apsw.Connection, table: str) -> int:
    """The highest `seq` ever assigned; 0 when none was."""
    return int(connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).get or 0)


def set_sequence(connection: apsw.Connection, table: str, seq: int) -> None:
    """Number the next row after `seq`."""
    connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
    connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, seq))


def store_marked_texts(connection: apsw.Connection, table: str, names: Iterable[str]) -> None:
    """Store the texts in these columns that look like references once, as `references` requires."""
    for column in map(quoted, names):
        offset = last_sequence(connection, "_texts")
        marked = f"{column} >= '{MARK}' AND typeof({column}) = 'text'"
        rows = f"FROM {quoted(table)} WHERE {marked}"
        connection.execute(f"INSERT INTO _texts (id, text) SELECT rowid + ?, {column} {rows}", (offset,))
        connection.execute(f"INSERT INTO _text_uses (id, refs) SELECT rowid + ?, 1 {rows}", (offset,))
        reference = f"'{MARK}' || (rowid + ?) || ':' || octet_length({column})"
        connection.execute(f"UPDATE {quoted(table)} SET {column} = {reference} WHERE {marked}", (offset,))


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _recorded_types(connection: apsw.Connection, table: str) -> dict[str, ZeekType]:
    """Zeek's types of the stored values, except for types that this version does not know."""
    known = {}
    for name, kind in connection.execute('SELECT name, type FROM _columns WHERE "table" = ?', (table,)):
        with suppress(ValueError):  # a type of a later version
            known[name] = ZeekType.parse(kind)
    return known


def _changes(held: str, old: ZeekType | None, new: ZeekType) -> bool:
    """Whether values may have to change. If the old type is not recorded, only SQLite's type can be compared."""
    return held != new.sqlite or (old is not None and not keeps_values(old, new))


def _create(name: str, kinds: Mapping[str, str]) -> str:
    declared = "".join(f", {quoted(column)} {kind}" for column, kind in kinds.items())
    return f"CREATE TABLE {quoted(name)} (seq INTEGER PRIMARY KEY AUTOINCREMENT{declared}) STRICT"


def _rebuild(
    connection: apsw.Connection, table: str, changed: Mapping[str, ZeekType], recorded: Mapping[str, ZeekType]
) -> list[Conversion]:
    """Copy all rows, converting the values of changed columns. Needs disk space for a second copy of the table."""
    held = columns(connection, table)
    new = {name.lower(): kind for name, kind in changed.items()}
    kept = [name for name in held if name.lower() != "seq"]
    targets = [new.get(name.lower()) for name in kept]
    nulled = [0] * len(kept)

    def converted(*arguments: Any) -> SqliteValue:
        index, value = arguments
        target = targets[index]
        assert target is not None
        result = convert(value, target)
        nulled[index] += result is None and value is not None
        return result

    kinds = {name: held[name] if kind is None else kind.sqlite for name, kind in zip(kept, targets, strict=True)}
    connection.execute(_create(_REBUILT, kinds))
    values = [
        quoted(name) if kind is None else f"_converted({index}, {value_of(name, held)})"
        for index, (name, kind) in enumerate(zip(kept, targets, strict=True))
    ]
    connection.create_scalar_function("_converted", converted, 2)
    try:
        connection.execute(
            f"INSERT INTO {_REBUILT} ({', '.join(['seq', *map(quoted, kept)])}) "
            f"SELECT {', '.join(['seq' if 'seq' in held else 'rowid', *values])} FROM {quoted(table)} ORDER BY 1"
        )
    finally:
        connection.create_scalar_function("_converted", None, 2)
    last = max(last_sequence(connection, table), last_sequence(connection, _REBUILT))
    connection.execute(f"DROP TABLE {quoted(table)}")
    connection.execute(f"ALTER TABLE {_REBUILT} RENAME TO {quoted(table)}")
    set_sequence(connection, table, last)
    store_marked_texts(connection, table, (name for name in shared_columns(kinds) if name.lower() in new))
    return [
        Conversion(table, name, str(recorded.get(name, held[name])), str(kind), number)
        for name, kind, number in zip(kept, targets, nulled, strict=True)
        if kind is not None
    ]
