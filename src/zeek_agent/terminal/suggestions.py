"""The nearest names for a table, column or function that a statement names and that does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.table import Table

_UNKNOWN: Final = re.compile(r"no such (?P<kind>table|column): (?P<name>[\w$.]+)$")
_CUTOFF: Final = 0.6
"""How similar names must be, as for `difflib.get_close_matches`."""


def with_suggestion(message: str, sql: str, tables: Callable[[], Iterable[Table]]) -> str:
    """SQLite's message about a statement, with the nearest name if one is unknown. `tables` are requested if needed."""
    match = _UNKNOWN.search(message)
    if match is None:
        return message
    declared = list(tables())
    qualifier, _, name = match["name"].rpartition(".")
    if match["kind"] == "table":
        known: Collection[str] = [table.name for table in declared]
    else:
        known = columns_of(named_in(declared, sql))
    near = nearest(name, known)
    if near is None:
        return f"{message}; `.tables` or `zeek-agent tables` lists all" if match["kind"] == "table" else message
    return f"{message}; did you mean {f'{qualifier}.' if qualifier else ''}{near}?"


def nearest(name: str, known: Collection[str], cutoff: float = _CUTOFF) -> str | None:
    """The known name that is most similar, if one is."""
    near = get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return near[0] if near else None


def columns_of(tables: Iterable[Table]) -> set[str]:
    """The names of the tables' columns and parameters."""
    tables = list(tables)
    return {column.name for table in tables for column in table.columns} | {
        parameter.column for table in tables for parameter in table.parameters
    }


def named_in(tables: Iterable[Table], text: str) -> list[Table]:
    """The tables whose names are words of a statement."""
    words = set(re.findall(r"[\w$]+", text))
    return [table for table in tables if table.name in words]
