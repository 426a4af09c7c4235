"""SQL over all tables of the host: statements in, typed rows out, off the event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from zeek_agent.schema import Value, ZeekType


class Profile(StrEnum):
    """Who asks: towards a stock Zeek package the columns that version 2 did not have are hidden from `*`."""

    FULL = "full"
    STOCK = "stock"


class Lane(StrEnum):
    """Which threads run a statement, so that a slow one does not delay those of another lane."""

    EVENTS = "events"
    SNAPSHOTS = "snapshots"
    LOCAL = "local"


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

    `errors` tells of rows that were left out since a value does not fit its column: the first ten, then how many more.
    """

    columns: tuple[ResultColumn, ...]
    rows: list[tuple[Value, ...]] = field(repr=False)
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """A compiled statement: its columns, and the names of the tables that it reads, also through views.

    The type of an expression without a type in its alias is known only with its values: `text` stands in.
    """

    columns: tuple[ResultColumn, ...]
    tables: frozenset[str]
