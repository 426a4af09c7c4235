"""Declarations: Zeek's types, columns and parameters, as data.

A table is declared once. The SQL declaration, the documentation, Zeek's record types, the shell's help and the
contract tests are derived from the declaration. This module is independent of SQLite, Zeek's protocol and the host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from msgspec import Struct

Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"
"""A cell as a table yields it: time and interval as float seconds, address as text, port as `(number, protocol)`,
set and vector as sequences, record as a mapping."""

SqliteValue: TypeAlias = "int | float | str | bytes | None"
"""A value in one of SQLite's storage classes."""

Row: TypeAlias = Sequence[Value]
EventRow: TypeAlias = "Row | Struct"
"""A row to be recorded: its values, or a record with a field for each recorded column, in order."""
TableKind = Literal["snapshot", "events", "view"]

SCALAR_TYPES: Final = frozenset(
    {"address", "blob", "bool", "count", "enum", "int", "interval", "port", "real", "record", "text", "time"}
)
CONTAINER_TYPES: Final = frozenset({"set", "vector"})

_SQLITE_TYPES: Final = {
    **dict.fromkeys(("count", "int", "bool"), "INTEGER"),
    **dict.fromkeys(("real", "time", "interval"), "REAL"),
    "blob": "BLOB",
}
_ZEEK_SCRIPT_TYPES: Final = {
    "address": "addr",
    "blob": "string",
    "enum": "string",
    "real": "double",
    "record": "any",
    "text": "string",
}


ZEEK_KEYWORDS: Final = frozenset(
    """F T add addr any as assert bool break case const copy count default delete do double else enum event export
    fallthrough file for function global hook if in int interval is local module next of opaque option pattern port
    print record redef return schedule set string subnet switch table time timeout type vector when while""".split()  # noqa: SIM905
)
"""Words that cannot be a record's field."""


@dataclass(frozen=True, slots=True)
class ZeekType:
    """One of Zeek's types; `element` is the type of a set's or vector's members."""

    name: str
    element: ZeekType | None = None

    @classmethod
    def parse(cls, text: str) -> ZeekType:
        """Read `count` or `set[address]`. Raises ValueError for anything else."""
        return _parse_type(text)

    @property
    def sqlite(self) -> str:
        """How SQLite holds it: INTEGER, REAL, TEXT or BLOB; containers, records and ports are JSON in TEXT."""
        return _SQLITE_TYPES.get(self.name, "TEXT")

    @property
    def script(self) -> str:
        """The type's name in Zeek's script language."""
        if self.element is None:
            return _ZEEK_SCRIPT_TYPES.get(self.name, self.name)
        element = self.element.script
        return f"vector of {element}" if self.name == "vector" else f"set[{element}]"

    def __str__(self) -> str:
        return self.name if self.element is None else f"{self.name}[{self.element}]"


@lru_cache(maxsize=256)
def _parse_type(text: str) -> ZeekType:
    if text in SCALAR_TYPES:
        return ZeekType(text)
    match = re.fullmatch(r"(set|vector)\[(\w+)\]", text)
    if match and match[2] in SCALAR_TYPES:
        return ZeekType(match[1], ZeekType(match[2]))
    raise ValueError(f"not a Zeek type: {text!r}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `added` if version 2 of the agent did not have it (it is then hidden from a stock package's `*`),
    `hidden` if it is in no `*`; an event table, which can be an SQL view, cannot have such columns.

    `collation` is the name of the collation by which SQL compares the column where a statement names none. Only
    snapshot tables have such columns.
    """

    name: str
    type: str
    summary: str
    added: bool = False
    hidden: bool = False
    collation: str = ""

    def __post_init__(self) -> None:
        if ZeekType.parse(self.type).sqlite != "TEXT" and self.collation:
            raise ValueError(f"column {self.name}: only text has a collation")

    @property
    def zeek_type(self) -> ZeekType:
        return ZeekType.parse(self.type)


SEQUENCE: Final = Column("seq", "count", "number of the row in the event store, never reused", added=True)
"""The last column of every event table, assigned by the event store."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a table: the hidden column `_name`, also usable as `table(value)`.

    Without a `default` it must be given.
    """

    name: str
    type: str
    summary: str
    default: str | int | float | None = None
    required: bool = True

    @property
    def column(self) -> str:
        return f"_{self.name}"

    @property
    def zeek_type(self) -> ZeekType:
        return ZeekType.parse(self.type)


def zeek_field(column: str) -> str:
    """A column's name as a record field: Zeek's keywords get a trailing `_`."""
    return f"{column}_" if column in ZEEK_KEYWORDS else column
