"""The result of a statement: typed columns, rows whose cells fit them, and counts of omissions.

A result column that comes from a table's column has that column's type. An expression is typed by its alias
(`max(pid) AS "pid:count"`, the suffix is removed), else by SQLite's storage class: `int`, `real`, `text`, `blob`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from zeek_agent.database.cells import CellDecoder
from zeek_agent.host.files.reads import Omissions
from zeek_agent.schema import Column, Parameter, Value, ZeekType
from zeek_agent.table import Table
from zeek_agent.text import clipped

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


@dataclass(frozen=True, slots=True)
class Heading:
    """A result column before its values are known: `type` is None for an expression without a type.

    `declared` is the column or parameter of a table that it comes from; None for an expression.
    """

    name: str
    type: ZeekType | None
    declared: Column | Parameter | None = None

    def column(self, cells: Iterable[Any] = ()) -> ResultColumn:
        """The column, typed by its cells if nothing else determines the type."""
        return ResultColumn(self.name, self.type or _storage_type(cells))


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


def convert_rows(heads: Sequence[Heading], rows: list[tuple[Any, ...]], errors: RowErrors) -> tuple[ResultColumn, ...]:
    """Convert SQLite's rows to result form, in place; rows that do not fit are omitted and counted."""
    columns = _result_columns(heads, rows)
    decoders = [CellDecoder(column.type) for column in columns]
    kept: list[tuple[Any, ...]] | None = None
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        try:
            fitting = _decode_batch(batch, decoders)
        except ValueError:
            fitting = _decode_each(batch, columns, decoders, errors)
        if len(fitting) < len(batch) and kept is None:
            kept = rows[:start]
        if kept is not None:
            kept += fitting
        elif fitting is not batch:
            rows[start : start + BATCH_ROWS] = fitting
    if kept is not None:
        rows[:] = kept
    return columns


def _result_columns(heads: Sequence[Heading], rows: list[tuple[Any, ...]]) -> tuple[ResultColumn, ...]:
    return tuple(
        head.column() if head.type else head.column(row[index] for row in rows) for index, head in enumerate(heads)
    )


def _storage_type(cells: Iterable[Any]) -> ZeekType:
    """The type that version 2 sends for an expression: of several types among the cells, the first one listed here."""
    kinds = set(map(type, cells))
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
