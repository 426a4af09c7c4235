"""SQL towards osquery, and cells out of its answers.

Every value comes as text, and NULL as the text of osquery's flag `nullvalue`, empty by default. A text is asked for
with a sign in front, which NULL does not get; a blob as hexadecimal digits, as osquery cuts it off at a zero byte.
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


def select(table: str, columns: Sequence[Column], wanted: Constraints, rows_max: int) -> str:
    """The statement for what is wanted of a table; `columns` are those to be read, in order.

    One row more than `rows_max` is asked for, so that one sees when there are more.
    """
    limit = rows_max + 1 if wanted.limit is None else min(wanted.limit, rows_max + 1)
    exact = " COLLATE BINARY" if wanted.limit is not None else ""
    conditions = [
        *(_among(column, values, exact) for column, values in sorted(wanted.equalities.items())),
        *map(_bounded, wanted.bounds),
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    shown = ", ".join(map(expression, columns)) or "1 AS one"
    return f"SELECT {shown} FROM {name(table)}{where} LIMIT {limit}"


def kind(table: str, columns: Iterable[Column], wanted: Constraints) -> str:
    """What statements have in common that differ in values only."""
    shown = ",".join(column.name for column in columns)
    conditions = [*sorted(wanted.equalities), *(f"{bound.column} {bound.operator}" for bound in wanted.bounds)]
    return f"{table}({shown}) {' '.join(conditions)}"


def name(identifier: str) -> str:
    """The name as an SQL identifier; in double quotes, one that is not known would be a text."""
    return "`" + identifier.replace("`", "``") + "`"


def literal(value: object) -> str:
    """A value as SQL writes it. A text must hold no NUL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"cannot be passed to osquery: {type(value).__name__}")


def expression(column: Column) -> str:
    """How a column is asked for, so that its cells come whole."""
    quoted = name(column.name)
    match column.type:
        case "text":
            return f"'{SIGN}' || {quoted} AS {quoted}"
        case "blob":
            return f"CASE WHEN {quoted} IS NOT NULL THEN '{SIGN}' || hex({quoted}) END AS {quoted}"
    return quoted


def _among(column: str, values: frozenset[Any], exact: str) -> str:
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    collated = f"{name(column)}{exact if any(isinstance(value, str) for value in ordered) else ''}"
    if len(ordered) == 1:
        return f"{collated} = {literal(ordered[0])}"
    return f"{collated} IN ({', '.join(map(literal, ordered))})"


def _bounded(bound: Bound) -> str:
    """Version numbers and the like have collations of their own in osquery; here order is that of bytes."""
    collate = " COLLATE BINARY" if isinstance(bound.value, str) and bound.operator not in ("LIKE", "GLOB") else ""
    return f"{name(bound.column)}{collate} {bound.operator} {literal(bound.value)}"


class OsqueryDecoder:
    """Takes one column's cells out of osquery's rows. `null` is what stands for NULL; `failed` is told of cells that
    are not of the column's type, which become NULL.
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
        """The column's cells, a row each; a cell that is missing is NULL."""
        try:
            cells = list(map(itemgetter(self._name), rows))
        except KeyError:
            cells = [row.get(self._name, "") for row in rows]
        try:
            return self._fast(cells)
        except (ValueError, TypeError):
            return [self._cell(cell) for cell in cells]

    def _fast(self, cells: list[Any]) -> list[Any]:
        """All cells at once, where nothing is odd about any: plain text, or no NULL among numbers. Raises ValueError,
        TypeError when there is.
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
    """osquery casts to a signed number on the way: beyond 2⁶³ it comes with a minus."""
    number = int(cell)
    if number in _INT64 and number < 0:
        number += 2**64
    if not 0 <= number <= UINT64_MAX:
        raise ValueError("beyond 64 bits")
    return number


def _real(cell: str | bytes) -> float | None:
    """osquery writes `.0` behind whatever has no point, exponents too."""
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
