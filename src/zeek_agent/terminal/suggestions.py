"""The nearest names for a table, column, function or keyword that a statement names and that does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from copy import copy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.table import Table

KEYWORDS: Final = tuple(
    """SELECT FROM WHERE AND OR NOT IN LIKE GLOB REGEXP BETWEEN IS NULL AS JOIN LEFT INNER CROSS ON USING GROUP ORDER BY
    HAVING LIMIT OFFSET UNION ALL EXCEPT INTERSECT DISTINCT WITH CASE WHEN THEN ELSE END CAST EXISTS ASC DESC
    VALUES""".split()  # noqa: SIM905
)
_UNKNOWN: Final = re.compile(r"no such (?P<kind>table|column|function): (?P<name>[\w$.]+)$")
_SYNTAX: Final = re.compile(r'near "(?P<word>[^"]+)": syntax error$')
_TABLES_LISTED: Final = "`.tables` or `zeek-agent tables` lists"
_CUTOFF: Final = 0.6
"""How similar names must be, as for `difflib.get_close_matches`."""


def with_suggestion(message: str, sql: str, tables: Callable[[], Iterable[Table]]) -> str:
    """SQLite's message about a statement, with the nearest name if one is unknown. `tables` are requested if needed."""
    if (syntax := _SYNTAX.search(message)) is not None:
        return message + _syntax_hint(syntax["word"], sql)
    match = _UNKNOWN.search(message)
    if match is None:
        return message
    if match["kind"] == "function":
        near = nearest(match["name"], _functions())
        return message + (f"; did you mean {near}?" if near else "")
    declared = list(tables())
    qualifier, _, name = match["name"].rpartition(".")
    if match["kind"] == "table":
        known: Collection[str] = [table.name for table in declared]
    else:
        known = columns_of(named_in(declared, sql))
    near = nearest(name, known)
    if near is None:
        return f"{message}; {_TABLES_LISTED} all" if match["kind"] == "table" else message
    return f"{message}; did you mean {f'{qualifier}.' if qualifier else ''}{near}?"


def as_in_osquery(tables: Iterable[Table]) -> list[Table]:
    """The tables by the names that they have in osquery's dialect."""
    by_name = {table.name: table for table in tables}
    for table in list(by_name.values()):
        if table.osquery_name is not None and not table.alias:
            renamed = copy(table)
            renamed.name = table.osquery_name
            by_name[renamed.name] = renamed
    return sorted(by_name.values(), key=lambda table: table.name)


def _syntax_hint(word: str, sql: str) -> str:
    """What a word may be a misspelling of; for the first word of a statement also how to find tables."""
    near = None if word.upper() in KEYWORDS else nearest(word.upper(), KEYWORDS, cutoff=0.75, lower=False)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; {_TABLES_LISTED} the tables" if sql.lstrip().startswith(word) else ""


def _functions() -> set[str]:
    from zeek_agent.database.functions import BUILT_IN, FUNCTIONS

    return {function.name for function in FUNCTIONS} | BUILT_IN


def nearest(name: str, known: Collection[str], cutoff: float = _CUTOFF, *, lower: bool = True) -> str | None:
    """The known name that is most similar, if one is; names are in lower case, unless `lower` is unset."""
    near = get_close_matches(name.lower() if lower else name, known, n=1, cutoff=cutoff)
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
