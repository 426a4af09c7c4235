"""SQLite virtual tables, driven by the declarations of `schema`.

Equality on a column, and a whole IN list, are passed to the table as `Constraints.equalities`; SQLite checks each row
again, so a table may ignore them. Parameters are hidden columns `_name`, set by arguments of the table as a function or
by equalities. Each use of a table in a statement has its own cursor, and so its own parameters.

In a join that reads a table repeatedly, once per row of another, the first few lookups read the table; then it is
scanned once and indexed in memory (`scans.IndexedScan`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple, Protocol

import apsw

from zeek_agent.database.cells import INT64_MAX, INT64_MIN, CellEncoder, encode
from zeek_agent.database.privileged_tables import read_table
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import INDEXED_ROWS_MAX, IndexedScan, SharedScans
from zeek_agent.errors import LimitError, SqlError, ZeekAgentError
from zeek_agent.schema import Row, Value, ZeekType
from zeek_agent.table import Bound, Constraints, Table, TableContext

CHUNK_ROWS: Final = 64
"""Rows converted at a time, so that a LIMIT reads few rows too many."""
LOOKUPS_BEFORE_INDEXING: Final = 4
"""Lookups by value before a join reads the whole table, which costs about as much as a few of them."""
ASSUMED_SCAN_ROWS: Final = 1_000
"""Estimate for SQLite's planner of a scan's rows; it only has to be much larger than a lookup's."""

PUSHED_DOWN: Final = frozenset({"address", "blob", "bool", "count", "enum", "int", "interval", "real", "text", "time"})
"""Column types whose cells compare in a table as in SQLite."""


class NumbersNeeded(Exception):  # noqa: N818 - a request to the session, not a failure
    """SQLite needs a row's number to identify it in another scan of the table (OR over two columns, RIGHT JOIN). The
    statement has to run again with `Run.numbered`: each table is then scanned once and its rows are numbered.
    """


class RunAgain(Exception):  # noqa: N818 - likewise
    """This run of the statement need not go on: deferred reads (`StatementContext.defer`) have to come first."""


@dataclass(frozen=True, slots=True)
class VirtualColumn:
    """A column of the virtual table: a column of the table, or a parameter (`position` is then past the columns)."""

    name: str
    type: ZeekType
    position: int
    parameter: bool = False
    hidden: bool = False
    withheld: bool = False
    """Whether it is unset in all rows (`access.columns_deny`), and no value of it may affect which rows there are."""
    collation: str = ""

    @property
    def declaration(self) -> str:
        hidden = " HIDDEN" if self.hidden or self.parameter else ""
        collation = f" COLLATE {quoted(self.collation)}" if self.collation else ""
        return f"{quoted(self.name)} {'TEXT' if self.type.name == 'blob' else self.type.sqlite}{hidden}{collation}"


class Layout:
    """A table's columns in SQLite's order: visible columns, parameters (first among the hidden columns, because the
    arguments of a function set these in order), and other hidden columns.
    """

    def __init__(self, table: Table, *, hide_added: bool) -> None:
        self.table = table
        columns = [
            VirtualColumn(
                column.name,
                column.zeek_type,
                position,
                hidden=column.hidden or (hide_added and column.added),
                collation=column.collation,
            )
            for position, column in enumerate(table.columns)
        ]
        parameters = [
            VirtualColumn(parameter.column, parameter.zeek_type, len(columns) + number, parameter=True)
            for number, parameter in enumerate(table.parameters)
        ]
        self.fields = (
            *(column for column in columns if not column.hidden),
            *parameters,
            *(column for column in columns if column.hidden),
        )
        self.rearranged = [field.position for field in self.fields] != list(range(len(columns)))
        self.encoders = [CellEncoder(field.type) for field in self.fields]
        self.withheld: tuple[int, ...] = ()
        """The numbers of the fields that are withheld."""

    def withholding(self, names: frozenset[str]) -> Layout:
        """The same layout with these columns withheld."""
        if not names:
            return self
        layout = copy(self)
        layout.fields = tuple(
            replace(field, withheld=field.name in names and not field.parameter) for field in self.fields
        )
        layout.withheld = tuple(number for number, field in enumerate(layout.fields) if field.withheld)
        return layout

    @property
    def sql(self) -> str:
        return f"CREATE TABLE t({', '.join(field.declaration for field in self.fields)})"


class ScanPlan(NamedTuple):
    """The plan that BestIndex passes to Filter: columns whose values are arguments, and columns that are read."""

    arguments: tuple[int, ...]
    used: tuple[int, ...]

    def text(self) -> str:
        return f"{' '.join(map(str, self.arguments))};{' '.join(map(str, self.used))}"


@lru_cache(maxsize=1024)
def _parse_plan(plan: str) -> ScanPlan:
    arguments, used = ([int(number) for number in part.split()] for part in plan.split(";"))
    return ScanPlan(tuple(arguments), tuple(used))


class StatementContext(Protocol):
    """The part of an SQL connection that a virtual table uses."""

    context: TableContext
    scans: SharedScans
    run: Run
    held: dict[tuple[TableModule, tuple[Value, ...]], IndexedScan]
    kept: dict[Any, Any]
    """What tables with a module of their own keep for the statement."""
    missing: str | None

    def check_table(self, table: Table) -> None:
        """Check that the statement being compiled may read the table. Raises AccessDeniedError."""

    def defer(self, read: Callable[[], None]) -> bool:
        """Have `read` called when this run of the statement ends, and run the statement again afterwards.

        False if the statement has run too often for that.
        """
        ...

    def keeping(self) -> AbstractContextManager[None]:
        """For reading rows that further runs of the statement use again: the omissions are then theirs, too."""
        ...


class ListLost(Exception):  # noqa: N818 - likewise
    """A table was to receive all values of an IN at once, but apsw fails, without a message, if there are none. The
    statement has to be compiled again, with `Run.lists_at_once` unset, and run again.
    """


class TableModule:
    """Module that creates one table's virtual table in one connection. `rows` replaces the table's own function;
    `stored` if its cells are already in SQLite's form.
    """

    def __init__(
        self,
        statement: StatementContext,
        layout: Layout,
        rows: Callable[[Constraints], Iterable[Row]] | None = None,
        *,
        stored: bool = False,
    ) -> None:
        self.statement = statement
        self.layout = layout
        self.scan = rows or partial(read_table, layout.table)
        self.shared = rows is None
        self.stored = stored

    def Create(  # noqa: N802 - apsw's name
        self, connection: apsw.Connection, module: str, database: str, name: str, *arguments: Any
    ) -> tuple[str, VirtualTable]:
        return self.layout.sql, VirtualTable(self)

    Connect = Create


class VirtualTable:
    """One virtual table of a connection."""

    def __init__(self, module: TableModule) -> None:
        self.module = module
        self._parameters = {number: field for number, field in enumerate(module.layout.fields) if field.parameter}
        self._required = {
            number
            for number, field in self._parameters.items()
            for parameter in module.layout.table.parameters
            if parameter.column == field.name and parameter.required and parameter.default is None
        }

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:  # noqa: N802
        """Use all equalities that can be pushed down; refuse plans without a required parameter."""
        self.module.statement.check_table(self.module.layout.table)
        arguments: list[int] = []
        for which in range(info.nConstraint):
            number = info.get_aConstraint_iColumn(which)
            if info.get_aConstraint_op(which) != apsw.SQLITE_INDEX_CONSTRAINT_EQ or number < 0:
                continue
            parameter = number in self._parameters
            if not info.get_aConstraint_usable(which):
                if parameter:
                    return False
                continue
            if not parameter and not self._pushes_down(info, which):
                continue
            arguments.append(number)
            info.set_aConstraintUsage_argvIndex(which, len(arguments))
            if parameter:
                info.set_aConstraintUsage_omit(which, True)
            elif self.module.statement.run.lists_at_once and info.get_aConstraintUsage_in(which):
                info.set_aConstraintUsage_in(which, True)
        for number in self._required.difference(arguments):
            name, table = self.module.layout.fields[number].name, self.module.layout.table.name
            self.module.statement.missing = f"table {table}: parameter {name} is required"
            return False
        narrowed = any(number not in self._parameters for number in arguments)
        info.estimatedCost = 1 if narrowed else ASSUMED_SCAN_ROWS
        info.estimatedRows = 1 if narrowed else ASSUMED_SCAN_ROWS
        info.idxStr = ScanPlan(tuple(arguments), columns_used(info.colUsed, len(self.module.layout.fields))).text()
        return True

    def _pushes_down(self, info: apsw.IndexInfo, which: int) -> bool:
        column = self.module.layout.fields[info.get_aConstraint_iColumn(which)]
        kind = column.type
        return (
            not column.withheld
            and info.get_aConstraint_collation(which) == "BINARY"
            and kind.name in PUSHED_DOWN
            and (self.module.statement.run.lists_at_once or not is_misread_list(info, which, kind))
        )

    def Open(self) -> TableCursor:  # noqa: N802
        return TableCursor(self.module)

    def Disconnect(self) -> None:  # noqa: N802
        """Nothing to release."""

    Destroy = Disconnect


class RowCursor(ABC):
    """One use of a table in a running statement. SQLite calls Filter once, or once per row of an outer loop."""

    __slots__ = ("Column", "_row", "_rows", "_statement")

    Column: Callable[[int], Any]
    """Bound method of the current row instead of one defined here, because SQLite calls it for each cell."""

    def __init__(self, statement: StatementContext) -> None:
        self._statement = statement
        self._rows: Iterator[Sequence[Any]] = iter(())
        self._row: Sequence[Any] | None = None

    def Filter(self, number: int, plan: str, values: tuple[Any, ...] | None) -> None:  # noqa: N802
        self._rows = self._rows_for(plan, values or ())
        self.Next()

    @abstractmethod
    def _rows_for(self, plan: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The rows for BestIndex's plan, each with its number as the last cell if the run is `numbered`."""

    def Eof(self) -> bool:  # noqa: N802
        return self._row is None

    def Next(self) -> None:  # noqa: N802
        row = self._row = next(self._rows, None)
        if row is not None:
            self.Column = row.__getitem__

    def Rowid(self) -> int:  # noqa: N802
        if not self._statement.run.numbered:
            raise NumbersNeeded
        return int(self._row[-1])  # type: ignore[index]

    def Close(self) -> None:  # noqa: N802
        self._rows = iter(())


class TableCursor(RowCursor):
    """One use of a table whose rows this process reads."""

    __slots__ = ("_held", "_lookups", "_module", "_parameters", "_too_long")

    def __init__(self, module: TableModule) -> None:
        super().__init__(module.statement)
        self._module = module
        self._lookups = 0
        self._parameters: tuple[Value, ...] | None = None
        self._held: IndexedScan | None = None
        self._too_long = False

    def Close(self) -> None:  # noqa: N802
        super().Close()
        self._held = None

    def _rows_for(self, plan: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        parsed = _parse_plan(plan)
        layout = self._module.layout
        given: dict[int, Any] = {}
        equal: dict[int, frozenset[Any]] = {}
        for number, value in zip(parsed.arguments, values, strict=True):
            field = layout.fields[number]
            if field.parameter:
                given[field.position] = value
                continue
            if field.type.name == "blob" and not self._module.stored and _has_bytes(value):
                raise SqlError(
                    f"table {layout.table.name}: column {field.name} is text in SQL: compare it with a text, not a blob"
                )
            wanted = comparable(field.type, value)
            if wanted is not None:
                equal[number] = equal[number] & wanted if number in equal else wanted
        parameters = _parameters(layout.table, given)
        if parameters is None or not all(equal.values()):
            return iter(())
        return self._find(parsed, parameters, equal)

    def _find(
        self, plan: ScanPlan, parameters: tuple[Value, ...], equal: Mapping[int, frozenset[Any]]
    ) -> Iterator[Sequence[Any]]:
        if self._held is not None and parameters == self._parameters:
            return self._held.select(equal)
        reader = TableReader(self._module, parameters)
        if self._statement.run.numbered:
            return reader.numbered().select(equal)
        if parameters != self._parameters:
            self._parameters, self._lookups, self._held, self._too_long = parameters, 0, None, False
        self._lookups += 1
        if not self._too_long and self._lookups > (LOOKUPS_BEFORE_INDEXING if equal else 1):
            self._held = reader.index_all(plan.used)
            self._too_long = self._held is None
        return reader.rows(plan.used, equal) if self._held is None else self._held.select(equal)


class TableReader:
    """Reads one table with given parameters for one statement."""

    def __init__(self, module: TableModule, parameters: tuple[Value, ...]) -> None:
        self._module = module
        self._layout = module.layout
        self._parameters = parameters
        self._run = module.statement.run

    def rows(
        self,
        used: Iterable[int],
        equal: Mapping[int, frozenset[Any]],
        bounds: Sequence[Bound] = (),
        limit: int | None = None,
    ) -> Iterator[Sequence[Any]]:
        """Rows in SQLite's form, converted in chunks. Unused cells are not converted."""
        chunks = self._chunks(self._open(used, equal, bounds, limit), tuple(used))
        return chain.from_iterable(chunks)

    def index_all(self, used: Iterable[int]) -> IndexedScan | None:
        """All rows, or None if there are too many to keep in memory."""
        rows = list(islice(self.rows(used, {}), INDEXED_ROWS_MAX + 1))
        return IndexedScan(rows) if len(rows) <= INDEXED_ROWS_MAX else None

    def numbered(self) -> IndexedScan:
        """All rows, each with its number as the last cell, from one scan for the whole statement."""
        held = self._module.statement.held
        key = (self._module, self._parameters)  # not the layout: a table and its history have the same one
        if key not in held:
            with self._module.statement.keeping():
                rows = list(islice(self.rows(range(len(self._layout.fields)), {}), INDEXED_ROWS_MAX + 1))
            if len(rows) > INDEXED_ROWS_MAX:
                raise LimitError(
                    f"table {self._layout.table.name}: more than {INDEXED_ROWS_MAX} rows for this kind of join"
                )
            held[key] = IndexedScan([(*row, number) for number, row in enumerate(rows)])
        return held[key]

    def _open(
        self, used: Iterable[int], equal: Mapping[int, frozenset[Any]], bounds: Sequence[Bound], limit: int | None
    ) -> Iterator[Row]:
        table, fields, statement = self._layout.table, self._layout.fields, self._module.statement
        wanted = Constraints(
            context=statement.context,
            parameters={
                parameter.name: value for parameter, value in zip(table.parameters, self._parameters, strict=True)
            },
            equalities={fields[number].name: values for number, values in equal.items()},
            columns=frozenset(fields[number].name for number in used if not fields[number].withheld),
            check=self._run.check,
            bounds=bounds,
            limit=limit,
            report=self._run.errors.add,
        )

        def scan() -> Iterator[Row]:
            return iter(self._module.scan(wanted))

        if equal or bounds or limit is not None or table.parameters or not self._module.shared:
            return self._guarded(scan)
        share, run, reads, errors = statement.scans, self._run, statement.context.reads, self._run.errors
        before = reads.omitted, errors.count

        def is_complete() -> bool:
            return (reads.omitted, errors.count) == before

        return self._guarded(
            lambda: share.rows(table, wanted.columns, run.scans_since, scan, run.check, is_complete=is_complete)
        )

    def _guarded(self, scan: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """The scan's rows; its exceptions become errors that name the table."""
        try:
            yield from scan()
        except (ZeekAgentError, apsw.Error):
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise SqlError(f"table {self._layout.table.name}: {reason}") from error

    def _chunks(self, rows: Iterator[Row], used: tuple[int, ...]) -> Iterator[list[Sequence[Any]]]:
        convert = self._plain if self._module.stored else self._convert
        while chunk := list(islice(rows, CHUNK_ROWS)):
            self._run.check()
            try:
                yield convert(chunk, used)
            except ValueError:
                yield self._convert_each(chunk, used)

    def _plain(self, chunk: list[Row], used: tuple[int, ...]) -> list[Sequence[Any]]:
        return chunk

    def _convert(self, chunk: list[Row], used: tuple[int, ...]) -> list[Sequence[Any]]:
        layout = self._layout
        width = len(layout.table.columns)
        if set(map(len, chunk)) != {width}:
            raise ValueError(f"a row has {len(chunk[0])} cells instead of {width}")
        if not used and not layout.withheld:
            return chunk
        columns: list[Sequence[Any]] = list(zip(*chunk, strict=True))
        changed = layout.rearranged
        if changed:
            columns += [[value] * len(chunk) for value in self._parameters]
            columns = [columns[field.position] for field in layout.fields]
        for number in layout.withheld:
            columns[number] = (None,) * len(chunk)
            changed = True
        for number in used:
            if layout.fields[number].parameter or layout.fields[number].withheld:
                continue
            encoded = self._encode(number, columns[number])
            changed = changed or encoded is not columns[number]
            columns[number] = encoded
        return list(zip(*columns, strict=True)) if changed else chunk

    def _encode(self, number: int, cells: Sequence[Any]) -> Sequence[Any]:
        try:
            return self._layout.encoders[number].column(cells, self._run.value_bytes)  # type: ignore[arg-type]
        except ValueError as error:
            field = self._layout.fields[number]
            raise ValueError(f"column {field.name} ({field.type}): {error}") from error

    def _convert_each(self, chunk: list[Row], used: tuple[int, ...]) -> list[Sequence[Any]]:
        converted: list[Sequence[Any]] = []
        for row in chunk:
            try:
                converted += self._convert([row], used)
            except ValueError as error:
                self._run.errors.add(f"table {self._layout.table.name}: row omitted: {error}")
        return converted


def _parameters(table: Table, given: Mapping[int, Any]) -> tuple[Value, ...] | None:
    """The parameters' values in order, or their defaults; None when one is NULL, which equals nothing.

    Raises SqlError when a value is not of the parameter's type.
    """
    values: list[Value] = []
    for position, parameter in enumerate(table.parameters, len(table.columns)):
        value = given.get(position, parameter.default)
        if position in given and value is None:
            return None
        zeek_type = parameter.zeek_type
        if zeek_type.sqlite == "TEXT" and isinstance(value, int | float):
            value = str(value)
        elif zeek_type.sqlite != "TEXT" and isinstance(value, str):
            value = number_from(value, value)
        try:
            values.append(encode(zeek_type, value))
        except ValueError as error:
            raise SqlError(f"table {table.name}: parameter {parameter.column}: {error}") from error
    return tuple(values)


def comparable(zeek_type: ZeekType, value: Any) -> frozenset[Any] | None:
    """The cells of a column that SQLite considers equal to the value (or to one of a set of values).

    None when they cannot be enumerated: then the column is not constrained. Like SQLite, this compares numbers and text
    by the column's affinity.
    """
    cells: set[Any] = set()
    for one in value if isinstance(value, set | frozenset) else (value,):
        if one is None:
            continue
        if zeek_type.sqlite in {"TEXT", "BLOB"}:  # blobs are text in SQL
            if isinstance(one, int | float):
                return None
            cells.add(one)
        else:
            number = number_from(one, None) if isinstance(one, str) else one
            if isinstance(number, float) and zeek_type.sqlite == "INTEGER":
                number = int(number) if number.is_integer() else None
            if not isinstance(number, int | float):
                continue
            if not INT64_MIN <= number <= INT64_MAX:
                return None
            cells.add(number)
    return frozenset(cells)


def _has_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (
        isinstance(value, set | frozenset) and any(isinstance(one, bytes) for one in value)
    )


def number_from(content: str, otherwise: Any) -> Any:
    """Convert numeric text to a number. More lenient than SQLite, never stricter."""
    for read in (int, float):
        try:
            return read(content)
        except ValueError:
            continue
    return otherwise


def is_misread_list(info: apsw.IndexInfo, which: int, zeek_type: ZeekType) -> bool:
    """Whether the constraint is an IN whose values SQLite would compare wrongly if it gave them one by one.

    It then compares numbers of a subquery with a column of texts as texts, and otherwise the texts as numbers.
    """
    return zeek_type.sqlite == "TEXT" and bool(info.get_aConstraintUsage_in(which))


def columns_used(columns: set[int], number: int) -> tuple[int, ...]:
    """The columns, out of `number`, that a statement reads; SQLite's column 63 means all from 63 on."""
    past = range(63, number) if 63 in columns else ()
    return tuple(sorted(columns.union(past)))


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
