"""Tables as data: what a table is called, what its columns mean, where it exists, how to ask it.

A table is declared once. The SQL declaration, the documentation, Zeek's record types, the shell's help and the
contract tests are derived from the declaration. This module knows nothing of SQLite, Zeek's wire or the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from zeek_agent.host import Host

Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"
"""A cell as a table yields it: time and interval as float seconds, address as text, port as `(number, protocol)`,
set and vector as sequences, record as a mapping."""

Row: TypeAlias = Sequence[Value]
Kind = Literal["snapshot", "events"]

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
    """A column; `added` marks those that version 2 of the agent did not have (hidden from a stock package's `*`)."""

    name: str
    type: str
    summary: str
    added: bool = False

    def __post_init__(self) -> None:
        ZeekType.parse(self.type)

    @property
    def zeek_type(self) -> ZeekType:
        return ZeekType.parse(self.type)


SEQUENCE: Final = Column("seq", "count", "number of the row in the event store, never used again", added=True)
"""The last column of every event table; the store gives it out."""


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


@dataclass(frozen=True, slots=True)
class Bound:
    """What a column must satisfy besides equality: `column operator value`."""

    column: str
    operator: Literal["<", "<=", ">", ">=", "LIKE", "GLOB"]
    value: int | float | str


@dataclass(frozen=True, slots=True)
class Remote:
    """How a table is asked that another program keeps, where each scan is a round trip.

    Only such a table is given `Constraints.bounds` and `limit`. Of the columns `required`, one must be given a value;
    on a value of the columns `decisive` it depends what the table shows at all. The columns `opaque` differ here from
    what the other program compares: constraints on them are not handed over.
    """

    required: frozenset[str] = frozenset()
    decisive: frozenset[str] = frozenset()
    opaque: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a statement wants from a table: parameters, and the values that some columns must equal.

    A table may use `equal`, `bounds` and `columns` to do less work; it need not: SQLite checks each row again.
    """

    host: Host
    parameters: Mapping[str, Value] = field(default_factory=dict)
    equalities: Mapping[str, frozenset[Value]] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    check: Callable[[], None] = lambda: None
    """Raises LimitError when the statement's time is up; long loops call it every few hundred steps."""
    bounds: Sequence[Bound] = ()
    limit: int | None = None
    """So many rows that satisfy all of this are enough."""

    def equal(self, column: str) -> frozenset[Value] | None:
        """The values that `column` may have, or None when any value will do."""
        return self.equalities.get(column)

    def integers(self, column: str) -> list[int] | None:
        """`equal` for a column of whole numbers, in ascending order; None also when one of the values is no integer."""
        values = self.equalities.get(column)
        if values is None or not all(isinstance(value, int) for value in values):
            return None
        return sorted(value for value in values if isinstance(value, int))

    def parameter(self, name: str) -> Value:
        return self.parameters[name]

    def needs(self, *columns: str) -> bool:
        """Whether the statement reads any of these columns."""
        return not self.columns.isdisjoint(columns)


Snapshot: TypeAlias = Callable[[Constraints], Iterable[Row]]


class Table:
    """A table's declaration and, for a snapshot table, the function that yields its rows.

    Rows have one value a column, in the order of `columns`. Event tables have no function: sources append their rows
    to the event store, in the order of `recorded`.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        description: str,
        columns: Iterable[Column],
        parameters: Iterable[Parameter] = (),
        examples: Iterable[str] = (),
        platforms: Iterable[str] = ("linux",),
        kind: Kind = "snapshot",
        remote: Remote | None = None,
        alias: bool = False,
    ) -> None:
        self.name = name
        self.summary = summary
        self.description = description
        recorded = tuple(column for column in columns if kind != "events" or column != SEQUENCE)
        self.columns = recorded if kind != "events" else (*recorded, SEQUENCE)
        self.recorded = recorded
        """The columns that a row has as a source appends it: all but `seq`."""
        self.parameters = tuple(parameters)
        self.examples = tuple(examples)
        self.platforms = tuple(platforms)
        self.kind: Kind = kind
        self.remote = remote
        self.alias = alias
        """Whether it is another table under a second name, which lists of tables leave out."""
        self._snapshot: Snapshot | None = None
        names = [column.name for column in self.columns] + [parameter.column for parameter in self.parameters]
        if len(set(names)) != len(names):
            raise ValueError(f"table {name}: a column is declared twice")

    def snapshot(self, function: Snapshot) -> Snapshot:
        """Decorator: `function` yields this table's rows."""
        self._snapshot = function
        return function

    def rows(self, wanted: Constraints) -> Iterator[Row]:
        """The rows now, given what is wanted. Raises LookupError for an event table."""
        if self._snapshot is None:
            raise LookupError(f"table {self.name} has no snapshot")
        return iter(self._snapshot(wanted))

    def column(self, name: str) -> Column:
        """The column of that name; KeyError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"<Table {self.name}>"
