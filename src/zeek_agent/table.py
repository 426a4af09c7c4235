"""Tables: a declaration with the function that yields its rows, the constraints of a statement, and the context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.host.files.reads import FileReads
from zeek_agent.platforms import Platform
from zeek_agent.privileges import NO_PRIVILEGES, Privileges
from zeek_agent.schema import SEQUENCE, Column, Parameter, Row, TableKind, Value


class AgentView(Protocol):
    """The running agent's data for tables. The methods from `connections` on yield rows of the table of that name."""

    id: str
    instance: str
    pid: int
    """The agent's main process."""

    @property
    def hostname(self) -> str:
        """The host's name at this moment."""
        ...

    def uptime(self) -> float:
        """Seconds since the agent started."""
        ...

    def tables(self) -> Iterable[Table]:
        """The tables that can be asked now."""
        ...

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        """The rows of a statement on the event store, which holds all that has happened until now; none without one.

        `check` ends a statement that takes too long, by raising. A transaction on the store is open until the last row.
        The statement can call `functions`.
        """
        ...

    def connections(self) -> Iterable[Row]: ...

    def queries(self) -> Iterable[Row]: ...

    def workers(self) -> Iterable[Row]: ...

    def sources(self) -> Iterable[Row]: ...

    def gaps(self) -> Iterable[Row]: ...

    def log(self) -> Iterable[Row]: ...

    def config(self) -> Iterable[Row]: ...


@dataclass(frozen=True, slots=True)
class TableContext:
    """Passed to every table with the constraints of the statement."""

    agent: AgentView
    access: AccessPolicy = field(default_factory=AccessPolicy)
    reads: FileReads = field(default_factory=FileReads)
    """The statement's budget for reading files, and its omissions."""
    clock: Callable[[], float] = time.time
    helper: Callable[[Table, Constraints], Iterable[Row]] | None = None
    """Yields the rows of a table that declares privileges, from a helper process; None reads it in this process."""
    proc: str = "/proc"
    platform: Platform = platforms.HERE


@dataclass(frozen=True, slots=True)
class Bound:
    """A constraint on a column other than equality: `column operator value`."""

    column: str
    operator: Literal["<", "<=", ">", ">=", "LIKE", "GLOB"]
    value: int | float | str


@dataclass(frozen=True, slots=True)
class Constraints:
    """A statement's constraints on a table: parameters, and the values that some columns must equal.

    A table may use `equal`, `bounds` and `columns` to do less work, but need not, because SQLite checks each row again.
    """

    context: TableContext
    parameters: Mapping[str, Value] = field(default_factory=dict)
    equalities: Mapping[str, frozenset[Value]] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    check: Callable[[], None] = lambda: None
    """Raises LimitError if the statement's time is up; long loops call it every few hundred steps."""
    bounds: Sequence[Bound] = ()
    """Only for tables with a virtual-table module of their own, as is `limit`."""
    limit: int | None = None
    """This many rows that satisfy all constraints are enough."""
    report: Callable[[str], None] = lambda _: None
    """Adds an error about an omitted row or value to the statement's result, which keeps its rows."""

    def equal(self, column: str) -> frozenset[Value] | None:
        """The values that `column` may have, or None when any value will do."""
        return self.equalities.get(column)

    def integers(self, column: str) -> list[int] | None:
        """`equal` for a column of whole numbers, in ascending order; None if one of the values is not an integer."""
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
Completion: TypeAlias = Callable[[Iterable[Row], Constraints], Iterable[Row]]


class Table:
    """A table's declaration and, for a snapshot table, the function that yields its rows.

    Rows have one value per column, in the order of `columns`. Event tables have no function: sources append their rows
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
        kind: TableKind = "snapshot",
        alias: bool = False,
        privileges: Privileges = NO_PRIVILEGES,
        is_privileged: Callable[[Constraints], bool] = lambda _: True,
        is_operators: bool = False,
        opens_files: bool = False,
        osquery_name: str | None = None,
        osquery_aliases: Iterable[str] = (),
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
        self.kind: TableKind = kind
        self.alias = alias
        """Whether it is another table under a second name, which lists of tables leave out."""
        self.privileges = privileges
        """What its function may use; see "Tables with privileges" in docs/security.md."""
        self.is_privileged = is_privileged
        """Whether its function uses these privileges for a question; if not, it runs in the statement's process."""
        self.is_operators = is_operators
        """Whether the operator of this host has declared it, so that its privileges need no further permission."""
        self.osquery_name = osquery_name
        """The name in osquery, if it is a table of osquery, with osquery's columns."""
        self.osquery_names = () if osquery_name is None else (osquery_name, *osquery_aliases)
        """This name and others that osquery has for it."""
        self.opens_files = opens_files or any(parameter.name == "pattern" for parameter in self.parameters)
        """Whether its function opens files whose paths are configured or asked for, which could hang."""
        if not isinstance(privileges, Privileges):
            raise TypeError(f"table {name}: privileges must be an object of the class Privileges, not {privileges!r}")
        if privileges != NO_PRIVILEGES and kind != "snapshot":
            raise ValueError(f"table {name}: only a snapshot table may declare privileges")
        if kind == "events" and any(column.collation for column in self.columns):
            raise ValueError(f"table {name}: only a column of a snapshot table may have a collation")
        self._snapshot: Snapshot | None = None
        self._completion: Completion | None = None
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

    def completion(self, function: Completion) -> Completion:
        """Decorator: `function` fills in cells that a table with privileges cannot, because its helper may not read
        other users' processes. It runs in the process of the statement."""
        self._completion = function
        return function

    def completed(self, rows: Iterable[Row], wanted: Constraints) -> Iterable[Row]:
        """The rows of `rows`, from this process or a helper, with all cells."""
        return rows if self._completion is None else self._completion(rows, wanted)

    def column(self, name: str) -> Column:
        """The column of that name; KeyError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"<Table {self.name}>"


class LookupTable(Table):
    """A snapshot table that is asked with the statement's constraints, as osquery's tables are.

    `Constraints` then also has `bounds` and `limit`. One of the columns `required` must have a value. The values of the
    columns `decisive` determine which rows the table has at all. Constraints on the columns `opaque`, which the table
    compares otherwise than SQLite, are not passed on. `remote` if each question is a round trip to another program.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        required: Iterable[str] = (),
        decisive: Iterable[str] = (),
        opaque: Iterable[str] = (),
        remote: bool = False,
        **declaration: Any,
    ) -> None:
        super().__init__(name, summary, **declaration)
        self.required = frozenset(required)
        self.decisive = frozenset(decisive)
        self.opaque = frozenset(opaque)
        self.remote = remote
        for column in self.required | self.decisive | self.opaque:
            self.column(column)


class EventView(Table):
    """A table whose rows are made of those of the event table `of`.

    `cells` has an SQL expression for each column, and `where` chooses the rows. The view shows the events that the
    event table shows, also where a query only gets those since its last run.
    """

    def __init__(
        self, name: str, summary: str, *, of: str, cells: Sequence[str], where: str, **declaration: Any
    ) -> None:
        super().__init__(name, summary, kind="view", **declaration)
        self.of = of
        self._cells = cells
        self._where = where

    def select(self, withheld: frozenset[str]) -> str:
        """The statement of its rows, with these columns unset."""
        cells = (
            f'{"NULL" if column.name in withheld else cell} AS "{column.name}"'
            for column, cell in zip(self.columns, self._cells, strict=True)
        )
        return f"SELECT {', '.join(cells)} FROM {self.of} WHERE {self._where}"
