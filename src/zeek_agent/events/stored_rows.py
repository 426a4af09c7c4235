"""Rows of events as the event store holds them: their values in SQLite's types, and the statements that insert them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, cast

import apsw
from msgspec import Struct
from msgspec.structs import astuple

from zeek_agent import text
from zeek_agent.events.layout import quoted
from zeek_agent.schema import EventRow, Row, Value
from zeek_agent.table import Table

_INSERTED_TOGETHER: Final = 10


@dataclass(frozen=True, slots=True)
class RowInsert:
    """The statements that insert one row, and several at once, which costs an eighth less for each."""

    one: str
    several: str
    columns: int

    @classmethod
    def into(cls, table: Table) -> RowInsert:
        names = [quoted(column.name) for column in table.recorded]
        row = f"({', '.join('?' * len(names))})"
        insert = f"INSERT INTO {quoted(table.name)} ({', '.join(names)}) VALUES"
        return cls(f"{insert} {row}", f"{insert} {', '.join([row] * _INSERTED_TOGETHER)}", len(names))

    def execute(self, connection: apsw.Connection, rows: Sequence[Row]) -> None:
        """Insert the rows. Raises apsw.BindingsError when one has too many or too few values."""
        if set(map(len, rows)) - {self.columns}:  # otherwise the next row's values would be taken for the missing ones
            raise apsw.BindingsError(f"a row does not have {self.columns} values")
        together = len(rows) // _INSERTED_TOGETHER * _INSERTED_TOGETHER
        if together:
            groups = zip(*[iter(rows[:together])] * _INSERTED_TOGETHER, strict=True)
            connection.executemany(self.several, map(tuple, map(itertools.chain.from_iterable, groups)))
        if together < len(rows):
            connection.executemany(self.one, rows[together:])


def values_of(rows: Sequence[EventRow]) -> Iterable[Row]:
    """The values of rows of the first one's type. Binding a row of the other type raises TypeError, like any misfit."""
    if isinstance(rows[0], Struct):
        return map(astuple, cast("Sequence[Struct]", rows))
    return cast("Sequence[Row]", rows)


def converter(table: Table) -> Callable[[Row], Row] | None:
    """A function that turns a row into SQLite's values; None when no column needs conversion."""
    steps: list[tuple[int, Callable[[Value], Value]]] = []
    for index, column in enumerate(table.recorded):
        if column.zeek_type.name in {"set", "vector", "record", "port"}:
            steps.append((index, _json))
        elif column.zeek_type.name == "blob":
            steps.append((index, _bytes))
    if not steps:
        return None

    def convert(row: Row) -> Row:
        values: list[Value] | None = None
        for index, step in steps:
            value = row[index]
            if (stored := step(value)) is not value:
                values = list(row) if values is None else values
                values[index] = stored
        return row if values is None else values

    return convert


def _json(value: Value) -> Value:
    """Compact JSON; a `str` is assumed to be JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    """JSON form of a type that JSON lacks."""
    if isinstance(value, bytes):
        return text.from_bytes(value)
    if isinstance(value, Set):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a valid value for a row")


def _bytes(value: Value) -> Value:
    return text.to_bytes(value) if isinstance(value, str) else value


def without_surrogates(row: Row) -> Row:
    """The row with texts that SQLite can store."""
    return [_storable(value) if isinstance(value, str) and not value.isascii() else value for value in row]


def _storable(value: str) -> str:
    """The text with lone surrogates, which SQLite cannot store, replaced by raw bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return text.from_bytes(value.encode(errors="surrogatepass"))
    return value
