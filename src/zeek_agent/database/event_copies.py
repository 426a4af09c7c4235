"""Event tables for statements that also read the host, as copies of recorded events.

A reader's transaction keeps the event store from reusing its write-ahead log, and reading the host can take any time.
Therefore the store is not attached to the statement's connection. When SQLite starts to read an event table, the rows
that the statement wants are copied into a database in memory, in transactions of a few milliseconds each.

Comparisons whose values are known by then restrict the copy. A table that is looked up by many values, as in a join, is
copied without these comparisons, and the copy is indexed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import apsw
import msgspec

from zeek_agent.database.sandbox import Run
from zeek_agent.database.virtual_tables import (
    PUSHED_DOWN,
    Layout,
    RowCursor,
    StatementContext,
    columns_used,
    is_misread_list,
    quoted,
)
from zeek_agent.errors import LimitError
from zeek_agent.events.references import ARGV, shared_columns, value_of
from zeek_agent.schema import SEQUENCE
from zeek_agent.table import Table

ALL_ROWS: Final = (0, 2**63 - 1)
"""The window of a table that shows all its rows: low < seq <= high."""
SLICE_ROWS: Final = 20_000
"""Rows read in one transaction: some tens of milliseconds at most."""
NARROW_COPIES_MAX: Final = 1
"""Copies restricted to one set of values. If others follow, as in a join, a copy for all values is made and indexed."""
MEMORY_SHARE: Final = 2
"""Copies may take this part of `limits.memory_bytes`; the rest is for sorting and grouping."""

_ASSUMED_ROWS: Final = 100_000
_ASSUMED_WINDOW_ROWS: Final = 1_000
"""Estimates for SQLite's planner: of a window, whose plan is used for later ones too, so many that it is read first."""
_BUSY_MILLISECONDS: Final = 2_000
_REPLACEMENT_SECONDS: Final = 2.0
"""While the store replaces its file, which takes milliseconds, its file does not exist."""
_PAGE_BYTES: Final = 4_096
_STEPS_BETWEEN_CHECKS: Final = 5_000
_OPERATORS: Final = {
    apsw.SQLITE_INDEX_CONSTRAINT_EQ: "=",
    apsw.SQLITE_INDEX_CONSTRAINT_GT: ">",
    apsw.SQLITE_INDEX_CONSTRAINT_GE: ">=",
    apsw.SQLITE_INDEX_CONSTRAINT_LT: "<",
    apsw.SQLITE_INDEX_CONSTRAINT_LE: "<=",
}
_CELL_TYPES: Final[Mapping[str, tuple[type, ...]]] = {"TEXT": (str,), "BLOB": (bytes,)}
_NUMBERS: Final = (int, float)


class PlannedTerm(NamedTuple):
    """A comparison of a column with a value, in BestIndex's plan. `literal` identifies the value if it is a literal."""

    number: int
    operator: str
    literal: int | None


class EventPlan(NamedTuple):
    """The plan that BestIndex passes to Filter."""

    terms: tuple[PlannedTerm, ...]
    used: tuple[int, ...]


class Term(NamedTuple):
    """A comparison and its value."""

    column: str
    operator: str
    value: Any

    @property
    def sql(self) -> str:
        return f"{quoted(self.column)} {self.operator} ?"


@lru_cache(maxsize=1024)
def _parse_plan(plan: str) -> EventPlan:
    return msgspec.json.decode(plan, type=EventPlan)


class EventStatementContext(StatementContext, Protocol):
    """The part of an SQL connection that an event table uses."""

    event_copies: EventCopies


class EventCopy:
    """Rows of one event table, in a database in memory of its own, which has no connection to the store."""

    def __init__(self, connection: apsw.Connection, columns: frozenset[str], terms: frozenset[Term]) -> None:
        self.columns = columns
        self.terms = terms
        self._connection = connection
        self._indexed: set[str] = set()

    @property
    def size(self) -> int:
        pages: Any
        ((pages,),) = self._connection.execute("PRAGMA page_count").fetchall()
        return int(pages) * _PAGE_BYTES

    def select(self, cells: str, terms: Iterable[Term]) -> Iterator[tuple[Any, ...]]:
        """The rows that satisfy all terms, in the order of `seq` if none has to be looked up."""
        left = self._unsatisfied(terms)
        where = f" WHERE {' AND '.join(term.sql for term in left)}" if left else ""
        values = [term.value for term in left]
        return self._connection.execute(f"SELECT {cells} FROM copy{where}", values)

    def close(self) -> None:
        self._connection.close(force=True)

    def column_to_index(self, terms: Iterable[Term]) -> str | None:
        """The column by which rows are looked up, one compared for equality if possible; None if it has an index."""
        left = self._unsatisfied(terms)
        if not left:
            return None
        column = next((term for term in left if term.operator == "="), left[0]).column
        return None if column == SEQUENCE.name or column in self._indexed else column

    def index(self, column: str, bytes_max: int) -> None:
        """Raises apsw.FullError if the copy becomes larger than `bytes_max`."""
        self._connection.execute(_page_limit(bytes_max))
        self._connection.execute(f"CREATE INDEX {quoted(f'by {column}')} ON copy({quoted(column)})")
        self._indexed.add(column)

    def _unsatisfied(self, terms: Iterable[Term]) -> list[Term]:
        """The terms that do not hold for all rows anyway."""
        return [term for term in terms if term not in self.terms]


@dataclass(slots=True)
class _Reader:
    """How a statement has read one table by one plan so far."""

    seen: list[frozenset[Term]] = field(default_factory=list)
    varying: set[tuple[str, str]] = field(default_factory=set)
    """Columns and operators of terms that have too many values to restrict the copy."""

    def restriction(self, terms: frozenset[Term]) -> frozenset[Term]:
        """The terms that restrict the copy from which rows for all `terms` are read."""
        if terms not in self.seen and len(self.seen) <= NARROW_COPIES_MAX:
            self.seen.append(terms)
        if len(self.seen) > NARROW_COPIES_MAX:
            common = frozenset.intersection(*self.seen, terms)
            for known in (*self.seen, terms):
                self.varying |= {(term.column, term.operator) for term in known - common}
        return frozenset(term for term in terms if (term.column, term.operator) not in self.varying)


class EventCopies:
    """The recorded events that a statement reads, and what they may take. One statement at a time.

    All tables of a statement are read as of the same moment, except for rows that retention removes meanwhile.
    `withheld` has the columns that stay unset by table.
    """

    def __init__(
        self, uri: str, tables: Iterable[Table], bytes_max: int, withheld: Mapping[str, frozenset[str]]
    ) -> None:
        self._uri = uri
        self._bytes_max = bytes_max
        self._withheld = withheld
        self._tables = list(tables)
        self._window: Mapping[str, tuple[int, int]] = {}
        self._run: Run | None = None
        self._ends: dict[str, tuple[int, int]] | None = None
        self._copies: dict[tuple[str, bool], list[EventCopy]] = {}
        self._readers: dict[tuple[str, bool, str], _Reader] = {}

    def begin(self, run: Run, window: Mapping[str, tuple[int, int]]) -> None:
        self._run = run
        self._window = window

    def clear(self) -> None:
        """Forget everything that the statement has read."""
        for copies in self._copies.values():
            for copy in copies:
                copy.close()
        self._copies.clear()
        self._readers.clear()
        self._ends = None
        self._run = None
        self._window = {}

    def stored_names(self) -> list[str]:
        """The names of all tables and views in the store. Raises apsw.Error."""
        connection = self._open()
        try:
            return stored_names(connection, "store")
        finally:
            connection.close()

    def expected_rows(self, table: Table, *, windowed: bool) -> int:
        """An estimate for SQLite's planner."""
        return _ASSUMED_WINDOW_ROWS if windowed and table.name in self._window else _ASSUMED_ROWS

    def rows(
        self, layout: Layout, plan: str, used: Sequence[int], terms: frozenset[Term], *, windowed: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Rows that satisfy all terms, with `used` cells at their places and `seq` at the end."""
        reader = self._readers.setdefault((layout.table.name, windowed, plan), _Reader())
        columns = frozenset(layout.fields[number].name for number in used) | {term.column for term in terms}
        try:
            copy = self._copy(layout.table, columns, reader.restriction(terms), windowed=windowed)
            column = copy.column_to_index(terms)
            if column is not None:
                copy.index(column, self._bytes_left + copy.size)
            return copy.select(_cells(layout, used), terms)
        except apsw.FullError as error:
            raise LimitError(
                f"table {layout.table.name}: the events that the statement joins with other tables take more than "
                f"{self._bytes_max} bytes (1/{MEMORY_SHARE} of limits.memory_bytes): restrict them by time or other "
                "columns, read fewer columns, or raise the limit"
            ) from error

    def _copy(self, table: Table, columns: frozenset[str], terms: frozenset[Term], *, windowed: bool) -> EventCopy:
        copies = self._copies.setdefault((table.name, windowed), [])
        for copy in copies:
            if copy.terms == terms and columns <= copy.columns:
                return copy
        copy = self._make(table, columns, terms, self._bounds(table, windowed=windowed))
        copies.append(copy)
        return copy

    @property
    def _bytes_left(self) -> int:
        return self._bytes_max - sum(copy.size for copies in self._copies.values() for copy in copies)

    def _make(
        self, table: Table, columns: frozenset[str], terms: frozenset[Term], bounds: tuple[int, int]
    ) -> EventCopy:
        connection = self._open()
        try:
            first, last = self._positions(connection).get(table.name, (0, 0))
            copied = [column for column in table.columns if column.name in columns and column != SEQUENCE]
            declared = (f"{quoted(column.name)} {column.zeek_type.sqlite}" for column in copied)
            connection.execute(_page_limit(self._bytes_left))
            connection.execute(f"CREATE TABLE copy({', '.join(('seq INTEGER PRIMARY KEY', *declared))})")
            names = ", ".join(("seq", *(quoted(column.name) for column in copied)))
            stored = stored_table(connection, "store", table, self._withheld[table.name])
            where = " AND ".join(("seq > ? AND seq <= ?", *(term.sql for term in terms)))
            insert = f"INSERT INTO copy({names}) SELECT {names} FROM {stored} WHERE {where}"
            values = [term.value for term in terms]
            after, end = max(bounds[0], first - 1), min(bounds[1], last)
            while after < end and (start := _next_sequence(connection, stored, after)) <= end:
                after = min(start + SLICE_ROWS - 1, end)
                connection.execute(insert, (start - 1, after, *values))
            connection.execute("DETACH store")
        except BaseException:
            connection.close(force=True)
            raise
        return EventCopy(connection, columns | {SEQUENCE.name}, terms)

    def _open(self) -> apsw.Connection:
        """An empty database in memory with the store attached. Raises apsw.Error."""
        connection = apsw.Connection(
            ":memory:", apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        )
        try:
            connection.execute("PRAGMA temp_store=MEMORY; PRAGMA journal_mode=OFF")
            connection.set_busy_timeout(_BUSY_MILLISECONDS)
            if self._run is not None:
                connection.set_progress_handler(self._run.progress, _STEPS_BETWEEN_CHECKS)
            self._attach(connection)
        except BaseException:
            connection.close(force=True)
            raise
        return connection

    def _attach(self, connection: apsw.Connection) -> None:
        give_up_at = time.monotonic() + _REPLACEMENT_SECONDS
        while True:
            try:
                connection.execute("ATTACH ? AS store", (self._uri,))
                connection.execute("SELECT 1 FROM store.sqlite_schema").fetchall()
                return
            except apsw.CantOpenError:
                if time.monotonic() > give_up_at:
                    raise
                if any(name == "store" for _, name, _ in connection.execute("PRAGMA database_list").fetchall()):
                    connection.execute("DETACH store")
                time.sleep(0.02)

    def _positions(self, connection: apsw.Connection) -> Mapping[str, tuple[int, int]]:
        """The first and last `seq` of each table, when the statement read the first of them."""
        if self._ends is None:
            known = frozenset(stored_names(connection, "store"))
            names = [table.name for table in self._tables if table.name in known]
            selects = [
                f"(SELECT seq FROM store.{quoted(name)} ORDER BY seq {order} LIMIT 1)"
                for name in names
                for order in ("ASC", "DESC")
            ]
            row: Any
            (row,) = connection.execute(f"SELECT {', '.join(selects) or 'NULL'}").fetchall()
            self._ends = {name: (row[2 * n] or 0, row[2 * n + 1] or 0) for n, name in enumerate(names)}
        return self._ends

    def _bounds(self, table: Table, *, windowed: bool) -> tuple[int, int]:
        return self._window.get(table.name, ALL_ROWS) if windowed else ALL_ROWS


class EventModule:
    """Module that creates one event table's virtual table in one connection."""

    def __init__(self, statement: EventStatementContext, layout: Layout, *, windowed: bool) -> None:
        self.statement = statement
        self.layout = layout
        self.windowed = windowed

    def Create(  # noqa: N802 - apsw's name
        self, connection: apsw.Connection, module: str, database: str, name: str, *arguments: Any
    ) -> tuple[str, EventTable]:
        return self.layout.sql, EventTable(self)

    Connect = Create


class EventTable:
    """One virtual table of a connection."""

    def __init__(self, module: EventModule) -> None:
        self.module = module

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:  # noqa: N802
        """Use every comparison with a value; SQLite checks each row again. Values of an IN come one by one."""
        statement, layout = self.module.statement, self.module.layout
        statement.check_table(layout.table)
        terms: list[PlannedTerm] = []
        for which in range(info.nConstraint):
            term = self._term(info, which)
            if term is not None:
                terms.append(term)
                info.set_aConstraintUsage_argvIndex(which, len(terms))
        rows = statement.event_copies.expected_rows(layout.table, windowed=self.module.windowed)
        if any(term.operator == "=" for term in terms):
            rows //= 1_000
        elif terms:
            rows //= 4
        info.estimatedRows = max(1, rows)
        info.estimatedCost = info.estimatedRows + 1
        plan = EventPlan(tuple(terms), columns_used(info.colUsed, len(layout.fields)))
        info.idxStr = msgspec.json.encode(plan).decode()
        return True

    def _term(self, info: apsw.IndexInfo, which: int) -> PlannedTerm | None:
        """The comparison to use, or None if only SQLite can evaluate it."""
        operator = _OPERATORS.get(info.get_aConstraint_op(which))
        number = info.get_aConstraint_iColumn(which)
        if operator is None or number < 0 or not info.get_aConstraint_usable(which):
            return None
        kind = self.module.layout.fields[number].type
        if kind.name not in PUSHED_DOWN or is_misread_list(info, which, kind):
            return None
        if info.get_aConstraint_collation(which) != "BINARY":
            return None
        literal = info.get_aConstraint_rhs(which)
        return PlannedTerm(number, operator, None if literal is None else hash(literal))

    def Open(self) -> EventCursor:  # noqa: N802
        return EventCursor(self.module)

    def Disconnect(self) -> None:  # noqa: N802
        """Nothing to release."""

    Destroy = Disconnect


class EventCursor(RowCursor):
    """One use of an event table in a running statement."""

    __slots__ = ("_module",)

    def __init__(self, module: EventModule) -> None:
        super().__init__(module.statement)
        self._module = module

    def Rowid(self) -> int:  # noqa: N802
        """`seq`, which is the same in each copy."""
        return int(self._row[-1])  # type: ignore[index]

    def _rows_for(self, plan: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        module = self._module
        parsed = _parse_plan(plan)
        terms: set[Term] = set()
        for planned, value in zip(parsed.terms, values, strict=True):
            column = module.layout.fields[planned.number]
            if value is None:
                return iter(())  # no comparison with NULL is true
            if isinstance(
                value, _CELL_TYPES.get(column.type.sqlite, _NUMBERS)
            ):  # else SQLite would convert one of them
                terms.add(Term(column.name, planned.operator, value))
        return module.statement.event_copies.rows(
            module.layout, plan, parsed.used, frozenset(terms), windowed=module.windowed
        )


def _cells(layout: Layout, used: Sequence[int]) -> str:
    """What to select so that each used cell is at its place, and `seq` at the end."""
    wanted = set(used)
    cells = [
        quoted(layout.fields[number].name) if number in wanted else "NULL"
        for number in range(max(used, default=-1) + 1)
    ]
    return ", ".join((*cells, "seq"))


def _page_limit(bytes_max: int) -> str:
    return f"PRAGMA main.max_page_count={max(1, bytes_max // _PAGE_BYTES)}"


def _next_sequence(connection: apsw.Connection, stored: str, after: int) -> int:
    """The first `seq` after this one; if there is none, the largest possible one."""
    row: Any
    for row in connection.execute(f"SELECT seq FROM {stored} WHERE seq > ? ORDER BY seq LIMIT 1", (after,)).fetchall():
        return int(row[0])
    return ALL_ROWS[1]


def stored_names(connection: apsw.Connection, schema: str) -> list[str]:
    """The names of all tables and views in an attached store."""
    stored = connection.execute(f"SELECT name FROM {schema}.sqlite_schema WHERE type IN ('table', 'view')")
    return [str(name) for (name,) in stored.fetchall()]


def stored_table(connection: apsw.Connection, schema: str, table: Table, withheld: frozenset[str]) -> str:
    """A table of an attached store with the texts that its rows refer to.

    Columns that are withheld, and those missing from a store that an earlier agent wrote last, are null.
    """
    stored = f"{schema}.{quoted(table.name)}"
    held = {
        str(name).lower(): str(kind)
        for _, name, kind, *_ in connection.execute(f"PRAGMA {schema}.table_info({quoted(table.name)})").fetchall()
    }
    has_texts = "_texts" in stored_names(connection, schema)  # earlier agents stored each text in its rows
    shared = shared_columns(held) if has_texts else []
    is_plain = not shared and not withheld and ARGV not in held
    if is_plain and all(column.name.lower() in held for column in table.columns):
        return stored
    columns = [
        f"{_value(column.name, held, schema, texts=has_texts) if column.name not in withheld else 'NULL'}"
        f" AS {quoted(column.name)}"
        for column in table.columns
    ]
    return f"(SELECT {', '.join(columns)} {f'FROM {stored}' if held else 'WHERE 0'})"


def _value(column: str, held: Mapping[str, str], schema: str, *, texts: bool) -> str:
    """SQL for the value of a column in a stored row."""
    return value_of(column, held, schema, texts=texts) if column.lower() in held else "NULL"
