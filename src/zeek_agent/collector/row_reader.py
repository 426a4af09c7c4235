"""Converts received rows to the values of a log's fields.

As strict as Zeek's conversion of a received vector to a record: each value must have the field's type (a count is not
an integer), too few values are an error, surplus ones are ignored. Agents that lack the columns of a query's
`batch_sql` omit them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, TypeAlias

from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack_file import FieldEntry, columns_of
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.broker_json import Data, ProtocolError

RowReader: TypeAlias = Callable[[broker_json.Vector], list[Any]]
_Column: TypeAlias = Callable[[Data], Sequence[Any]]

_KINDS: Final[dict[str, type[Any]]] = {
    "time": broker_json.Timestamp,
    "string": broker_json.String,
    "count": broker_json.Count,
    "int": broker_json.Integer,
    "interval": broker_json.Timespan,
    "double": broker_json.Real,
    "bool": broker_json.Boolean,
    "addr": broker_json.Address,
    "port": broker_json.Port,
    "subnet": broker_json.Subnet,
    "enum": broker_json.EnumValue,
}


def row_reader(columns: Sequence[FieldEntry], *, may_end_early: bool = False) -> RowReader:
    """A function that reads rows of these columns. It raises ProtocolError that names the column.

    If a row `may_end_early`, optional columns at the end can be missing from it, and are unset.
    """
    readers = tuple(_columns(columns))
    omissible = _optional_at_the_end(columns) if may_end_early else 0

    def read_row(row: broker_json.Vector) -> list[Any]:
        missing = len(readers) - len(row.data)
        if 0 < missing <= omissible:
            values = _read(readers[:-missing], row, "row")
            return values + [None] * (len(columns) - len(values))
        return _read(readers, row, "row")

    return read_row


def _optional_at_the_end(columns: Sequence[FieldEntry]) -> int:
    """The number of columns after the last one that must have a value, or after the first if none must."""
    optional = [all(field.optional for field in members) for _, members in columns_of(tuple(columns))]
    return len(list(takewhile(bool, reversed(optional[1:]))))


def _columns(columns: Sequence[FieldEntry]) -> Iterator[_Column]:
    for record, members in columns_of(tuple(columns)):
        yield _record(record, members) if record else _single(members[0])


def _read(readers: Sequence[_Column], row: broker_json.Vector, name: str) -> list[Any]:
    if len(row.data) < len(readers):
        raise ProtocolError(f"{name} has {len(row.data)} values instead of {len(readers)}")
    values: list[Any] = []
    for reader, value in zip(readers, row.data, strict=False):
        values += reader(value)
    return values


def _single(column: FieldEntry) -> _Column:
    field = Field(column.name, column.type)
    container = broker_json.Set if field.type.startswith("set") else broker_json.Vector
    kind = container if field.container else _KINDS[field.scalar]
    element = _KINDS[field.scalar] if field.container else None
    unset = (None,)

    def read(value: Data) -> Sequence[Any]:
        if type(value) is kind and (element is None or all(type(member) is element for member in value.data)):
            return (broker_json.to_cell(value),)
        if type(value) is broker_json.Nothing and column.optional:
            return unset
        raise ProtocolError(f"{column.name} is a {type(value).__name__.lower()}, not a {column.type}")

    return read


def _record(name: str, columns: Sequence[FieldEntry]) -> _Column:
    readers = tuple(map(_single, columns))
    optional = all(column.optional for column in columns)
    unset = (None,) * len(columns)

    def read(value: Data) -> Sequence[Any]:
        if type(value) is broker_json.Vector:
            return _read(readers, value, name)
        if type(value) is broker_json.Nothing and optional:
            return unset
        raise ProtocolError(f"{name} is a {type(value).__name__.lower()}, not a record")

    return read
