"""SQL statements for osquery, and decoding of its cells.

osquery returns every value as text, and NULL as the text of its flag `nullvalue`, empty by default. Statements
therefore prefix text with a sign, which NULL does not get, and read blobs as hexadecimal digits, because osquery
truncates them at a zero byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from zeek_agent import text
from zeek_agent.database.cells import UINT64_MAX
from zeek_agent.osquery.wire import OsqueryRow
from zeek_agent.schema import Column
from zeek_agent.table import Bound, Constraints

SIGN: Final = "="
SIGN_BYTES: Final = b"="
TYPES: Final = {
    "INTEGER": "int",
    "BIGINT": "int",
    "UNSIGNED BIGINT": "count",
    "DOUBLE": "real",
    "BLOB": "blob",
}
"""osquery's column types as Zeek's; anything else is text."""

_INT64: Final = range(-(2**63), 2**63)


def select_statement(table: str, columns: Sequence[Column], wanted: Constraints, rows_max: int) -> str:
    """The statement that reads `columns`, in order, of the wanted rows of a table.

    Its LIMIT is one more than `rows_max`, so that the caller can tell if there are more.
    """
    limit = rows_max + 1 if wanted.limit is None else min(wanted.limit, rows_max + 1)
    exact = " COLLATE BINARY" if wanted.limit is not None else ""
    conditions = [
        *(_among(column, values, exact) for column, values in sorted(wanted.equalities.items())),
        *map(_bounded, wanted.bounds),
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    shown = ", ".join(map(column_expression, columns)) or "1 AS one"
    return f"SELECT {shown} FROM {identifier(table)}{where} LIMIT {limit}"


def statement_kind(table: str, columns: Iterable[Column], wanted: Constraints) -> str:
    """A key shared by all statements that differ only in values."""
    shown = ",".join(column.name for column in columns)
    conditions = [*sorted(wanted.equalities), *(f"{bound.column} {bound.operator}" for bound in wanted.bounds)]
    return f"{table}({shown}) {' '.join(conditions)}"


def identifier(name: str) -> str:
    """The name as an SQL identifier, not in double quotes, because SQLite reads an unknown one of these as text."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: object) -> str:
    """A value as an SQL literal. Text must not contain NUL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"cannot be passed to osquery: {type(value).__name__}")


def column_expression(column: Column) -> str:
    """The expression that reads a column without loss."""
    quoted = identifier(column.name)
    match column.type:
        case "text":
            return f"'{SIGN}' || {quoted} AS {quoted}"
        case "blob":
            return f"CASE WHEN {quoted} IS NOT NULL THEN '{SIGN}' || hex({quoted}) END AS {quoted}"
    return quoted


def _among(column: str, values: frozenset[Any], exact: str) -> str:
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    collated = f"{identifier(column)}{exact if any(isinstance(value, str) for value in ordered) else ''}"
    if len(ordered) == 1:
        return f"{collated} = {literal(ordered[0])}"
    return f"{collated} IN ({', '.join(map(literal, ordered))})"


def _bounded(bound: Bound) -> str:
    """A comparison by bytes, as in this agent; osquery has other collations for columns such as version numbers."""
    collate = " COLLATE BINARY" if isinstance(bound.value, str) and bound.operator not in ("LIKE", "GLOB") else ""
    return f"{identifier(bound.column)}{collate} {bound.operator} {literal(bound.value)}"


class OsqueryDecoder:
    """Decodes one column's cells of osquery's rows. `null` is osquery's text for NULL; `failed` is called with cells
    that are not of the column's type, which become NULL.
    """

    def __init__(self, column: Column, null: str, failed: Callable[[str, str | bytes], None]) -> None:
        self._name = column.name
        self._null = null
        self._failed = failed
        self._one: Callable[[str | bytes], Any] = _DECODERS.get(column.type, _text)
        self._is_text = column.type == "text"
        self._signed = column.type in ("text", "blob")
        self._plain: type | None = {"int": int, "real": float, "time": float}.get(column.type)

    def column(self, rows: Sequence[OsqueryRow]) -> list[Any]:
        """The column's cells, one per row; a missing cell is NULL."""
        try:
            cells = list(map(itemgetter(self._name), rows))
        except KeyError:
            cells = [row.get(self._name, "") for row in rows]
        try:
            return self._fast(cells)
        except (ValueError, TypeError):
            return [self._cell(cell) for cell in cells]

    def _fast(self, cells: list[Any]) -> list[Any]:
        """All cells at once, if none needs special treatment: plain text, or numbers without NULL. Otherwise raises
        ValueError or TypeError.
        """
        if self._plain is not None:
            return self._checked(list(map(self._plain, cells)))
        if not self._is_text or self._null or not "".join(cells).isascii():
            raise ValueError("one by one")
        return [cell[1:] if cell else None for cell in cells]

    def _checked(self, cells: list[Any]) -> list[Any]:
        if self._plain is int and cells and not (min(cells) in _INT64 and max(cells) in _INT64):
            raise ValueError("beyond 64 bits")
        return cells

    def _cell(self, cell: str | bytes) -> Any:
        if self._signed:
            if cell[:1] not in (SIGN, SIGN_BYTES):
                return None
            cell = cell[1:]
        elif cell in ("", self._null):
            return None
        try:
            return self._one(cell)
        except ValueError:
            self._failed(self._name, cell)
            return None


def _text(cell: str | bytes) -> str:
    if isinstance(cell, bytes):
        return text.from_bytes(cell)
    return cell if cell.isascii() else text.from_bytes(cell.encode())


def _integer(cell: str | bytes) -> int:
    number = int(cell)
    if number not in _INT64:
        raise ValueError("beyond 64 bits")
    return number


def _unsigned(cell: str | bytes) -> int:
    """osquery converts to a signed number: values from 2⁶³ on are negative."""
    number = int(cell)
    if number in _INT64 and number < 0:
        number += 2**64
    if not 0 <= number <= UINT64_MAX:
        raise ValueError("beyond 64 bits")
    return number


def _real(cell: str | bytes) -> float | None:
    """osquery appends `.0` to anything without a decimal point, even an exponent."""
    number = float(cell[:-2] if cell[-2:] in (".0", b".0") else cell)
    return number if number == number else None  # noqa: PLR0124 - not a number


def _blob(cell: str | bytes) -> bytes:
    return bytes.fromhex(cell if isinstance(cell, str) else cell.decode())


_DECODERS: Final[dict[str, Callable[[str | bytes], Any]]] = {
    "int": _integer,
    "count": _unsigned,
    "real": _real,
    "time": _real,
    "blob": _blob,
    "text": _text,
}
