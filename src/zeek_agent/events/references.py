"""References of rows to texts that are stored once, and values that follow from other columns, in SQL.

A reference is a text that begins with `MARK`, followed by the text's id and the row's share of its bytes. A text that
begins with the mark itself is stored like a long one, so that there is no doubt.

`argv` is an empty text if it is `cmdline` split at its blanks, as nearly always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MARK: Final = "\U0010ffff"
"""The last code point, so that `>=` finds references; it is not a character, and hardly any text begins with it."""
ARGV: Final = "argv"
SHARED_COLUMNS: Final = frozenset({"exe", "cmdline", "argv", "cwd", "cgroup", "parent_exe"})
"""Columns whose long values repeat: a process has one command line and many connections."""


def shared_columns(present: Mapping[str, str]) -> list[str]:
    """Those of a table's columns, with SQLite's types, that may hold references."""
    return [name for name, kind in present.items() if name.lower() in SHARED_COLUMNS and kind == "TEXT"]


def value_of(column: str, present: Mapping[str, str], schema: str = "main", *, texts: bool = True) -> str:
    """SQL for the value of a column of a table with these columns; in a result it still counts as that column.

    `texts`: whether the store has texts that rows refer to.
    """
    name = column.lower()
    if name == ARGV and "cmdline" in present:
        line = value_of("cmdline", present, schema, texts=texts)
        split = f"""'[' || replace(json_quote({line}), ' ', '","') || ']'"""
        stored = text_of(column, schema)[1:-1] if texts else f'SELECT "{column}"'
        return f"(SELECT {split} WHERE \"{column}\" = '' UNION ALL {stored})"
    if texts and name in SHARED_COLUMNS and present.get(name) == "TEXT":
        return text_of(column, schema)
    return f'"{column}"'


def text_of(column: str, schema: str = "main") -> str:
    """SQL for the text in a column of the store in `schema`; in a result it still counts as that column."""
    # SQLite takes the origin of a subquery's column from its last part, so that the column keeps its declaration; only
    # the first row counts.
    return (
        f"(SELECT text FROM {schema}._texts WHERE \"{column}\" >= '{MARK}' AND id = {text_id(column)} "
        f'UNION ALL SELECT "{column}")'
    )


def text_id(column: str) -> str:
    """SQL for the id of the text that a reference in a column refers to."""
    return f'CAST(substr("{column}", 2) AS INTEGER)'


def length_of(column: str) -> str:
    """SQL for the bytes that a row takes for a column's text: its length, or a share of one that is stored once."""
    stored = f'CAST(substr("{column}", instr("{column}", \':\') + 1) AS INTEGER)'
    return f'CASE WHEN "{column}" >= \'{MARK}\' THEN {stored} ELSE ifnull(octet_length("{column}"), 0) END'


def references_in(present: Mapping[str, str]) -> str:
    """SQL for a JSON array with the references of a row of a table with these columns; null if it has none."""
    if not (names := [f'"{name}"' for name in shared_columns(present)]):
        return "NULL"
    condition = " OR ".join(f"{name} >= '{MARK}'" for name in names)
    return f"CASE WHEN {condition} THEN json_array({', '.join(names)}) END"
