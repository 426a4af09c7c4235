"""The result of a statement: typed columns, rows whose cells fit them, and counts of omissions.

A result column that comes from a table's column has that column's type. An expression is typed by its alias
(`max(pid) AS "pid:count"`, the suffix is removed), else by SQLite's storage class: `int`, `real`, `text`, `blob`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from zeek_agent.database.cells import CellDecoder
from zeek_agent.host.files.reads import Omissions
from zeek_agent.schema import Column, Parameter, Value, ZeekType
from zeek_agent.table import Table
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.database.encodings import FrameBatch

BATCH_ROWS: Final = 1000
"""Rows converted at a time; only a batch with a misfit is converted again row by row."""
ERRORS_SHOWN: Final = 10
"""Errors of rows that a result describes; the others are only counted."""

Origin: TypeAlias = "tuple[str, str | None, str | None, str | None, str | None]"
"""apsw's `description_full` of a column: name, declared type, database, table, column."""


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A column of a result."""

    name: str
    type: ZeekType


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of a statement.

    Cells by their column's type: bool `True`/`False`; count and int `int`; real, time and interval `float`; text, enum
    and address `str`; blob `bytes` (or `str`); port `(number, protocol)`; set and vector a tuple of cells; record a
    tuple of `(name, value)` pairs; None for NULL. All cells are hashable.

    `errors` describes rows that were omitted because a value does not fit its column: the first ten, then the number
    of the others. `size_bytes` is the size of the packed rows. `files` counts the omitted files.
    """

    columns: tuple[ResultColumn, ...]
    rows: list[tuple[Value, ...]] = field(repr=False)
    errors: tuple[str, ...] = ()
    size_bytes: int = 0
    files: Omissions = field(default_factory=Omissions)

    @property
    def row_count(self) -> int:
        return len(self.rows)


class DeltaFileHandle(Protocol):
    """An open delta file; `length` is 0 if nothing has changed."""

    file: int
    length: int

    def close(self) -> None: ...


class EncodedRows(Protocol):
    """A result whose rows are frames in another process's file. `size_bytes` is that of the packed rows."""

    columns: tuple[ResultColumn, ...]
    row_count: int
    size_bytes: int
    errors: tuple[str, ...]
    files: Omissions

    @property
    def delta(self) -> DeltaFileHandle | None:
        """With a comparison: the difference from the stored result, to be applied once the rows are delivered."""
        ...

    def batches(self) -> AsyncIterator[FrameBatch]:
        """All frames in order, from the first on, each time. Raises SqlError if they end early."""
        ...

    def check(self) -> None:
        """Raises RevokedError if the rows may not be sent any more."""

    def close(self) -> None:
        """The result is not read any more."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A result column before its values are known: `type` is None for an expression without a type.

    `declared` is the column or parameter of a table that it comes from; None for an expression.
    """

    name: str
    type: ZeekType | None
    declared: Column | Parameter | None = None

    @property
    def is_blob(self) -> bool:
        """Whether it is a table's column of type blob, which is text within SQL."""
        return self.type is not None and self.type.name == "blob" and self.declared is not None

    def column(self) -> ResultColumn:
        """The column; `text` when its type depends on its values."""
        return ResultColumn(self.name, self.type or _storage_type(()))


@dataclass(frozen=True, slots=True)
class Statement:
    """A compiled statement: its columns and the names of the tables that it reads, directly or through views.

    An expression without a type in its alias is `text` here; its type is only known once there are values.
    """

    columns: tuple[ResultColumn, ...]
    tables: frozenset[str]
    headings: tuple[Heading, ...] = ()
    """The columns with their origin and, unless it is an untyped expression, their type."""
    text: str = ""
    """The statement as SQLite read it, up to its semicolon: what follows in the text was not compiled."""


class RowErrors:
    """Errors of the rows omitted from one result: the first few texts, and a count."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._count = 0

    def add(self, message: str) -> None:
        self._count += 1
        if len(self._texts) < ERRORS_SHOWN:
            self._texts[clipped(message)] = None

    @property
    def count(self) -> int:
        """The number of errors until now."""
        return self._count

    def include(self, other: RowErrors) -> None:
        """Add the errors of another part of the same result."""
        self._count += other._count
        for text in other._texts:
            if len(self._texts) < ERRORS_SHOWN:
                self._texts[text] = None

    def texts(self) -> tuple[str, ...]:
        more = self._count - len(self._texts)
        return (*self._texts, f"and {more} more") if more > 0 else tuple(self._texts)


def headings(description: Sequence[Origin], tables: Mapping[str, Table]) -> tuple[Heading, ...]:
    """The columns of a compiled statement. `tables` has every name under which a table can be read."""
    return tuple(_heading(origin, tables) for origin in description)


def _heading(origin: Origin, tables: Mapping[str, Table]) -> Heading:
    name, _, _, table_name, column_name = origin
    table = tables.get(table_name or "")
    declared = _declared(table, column_name) if table and column_name else None
    plain, colon, suffix = name.rpartition(":")
    if colon:
        try:
            return Heading(plain, ZeekType.parse(suffix), declared)
        except ValueError:
            pass  # a colon that is part of the name
    return Heading(name, declared.zeek_type if declared else None, declared)


def _declared(table: Table, name: str) -> Column | Parameter | None:
    for parameter in table.parameters:
        if parameter.column == name:
            return parameter
    for column in table.columns:
        if column.name == name:
            return column
    return None


class ResultTyping:
    """Converts SQLite's rows to result form, a batch at a time.

    The type of an expression without a type in its alias depends on all its values: `kinds` has the Python types of
    each column's cells.
    """

    def __init__(self, heads: Sequence[Heading], errors: RowErrors, kinds: Sequence[Collection[type]]) -> None:
        self._errors = errors
        self.columns = tuple(
            ResultColumn(head.name, head.type or _storage_type(kinds[index] if kinds else ()))
            for index, head in enumerate(heads)
        )
        self._decoders = [CellDecoder(column.type) for column in self.columns]

    def fit(self, batch: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows in result form, the same list if they already are; those that do not fit are omitted and counted."""
        try:
            return _decode_batch(batch, self._decoders)
        except ValueError:
            return _decode_each(batch, self.columns, self._decoders, self._errors)


def convert_rows(heads: Sequence[Heading], rows: list[tuple[Any, ...]], errors: RowErrors) -> tuple[ResultColumn, ...]:
    """Convert SQLite's rows to result form, in place; rows that do not fit are omitted and counted."""
    untyped = any(head.type is None for head in heads)
    kinds = [set(map(type, cells)) for cells in zip(*rows, strict=True)] if untyped else ()
    typing = ResultTyping(heads, errors, kinds)
    kept: list[tuple[Any, ...]] | None = None
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        fitting = typing.fit(batch)
        if len(fitting) < len(batch) and kept is None:
            kept = rows[:start]
        if kept is not None:
            kept += fitting
        elif fitting is not batch:
            rows[start : start + BATCH_ROWS] = fitting
    if kept is not None:
        rows[:] = kept
    return typing.columns


def _storage_type(kinds: Collection[type]) -> ZeekType:
    """The type that version 2 sends for an expression: of several types among the cells, the first one listed here."""
    for kind, name in ((str, "text"), (bytes, "blob"), (float, "real"), (int, "int")):
        if kind in kinds:
            return ZeekType(name)
    return ZeekType("text")


def _decode_batch(batch: list[tuple[Any, ...]], decoders: list[CellDecoder]) -> list[tuple[Any, ...]]:
    columns = list(zip(*batch, strict=True))
    changed = False
    for index, decoder in enumerate(decoders):
        decoded = decoder.column(columns[index])
        changed = changed or decoded is not columns[index]
        columns[index] = decoded
    return list(zip(*columns, strict=True)) if changed else batch


def _decode_each(
    batch: list[tuple[Any, ...]], columns: Sequence[ResultColumn], decoders: list[CellDecoder], errors: RowErrors
) -> list[tuple[Any, ...]]:
    fitting = []
    for row in batch:
        try:
            fitting.append(_decode_row(row, columns, decoders))
        except ValueError as error:
            errors.add(f"row omitted: {error}")
    return fitting


def _decode_row(row: tuple[Any, ...], columns: Sequence[ResultColumn], decoders: list[CellDecoder]) -> tuple[Any, ...]:
    cells = []
    for cell, column, decoder in zip(row, columns, decoders, strict=True):
        try:
            cells.append(decoder.column((cell,))[0])
        except ValueError as error:
            raise ValueError(f"column {column.name} ({column.type}): {error}") from error
    return tuple(cells)
