"""Descriptions of tables as text, and as record types of Zeek's script language."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from zeek_agent.schema import zeek_field

if TYPE_CHECKING:
    from zeek_agent.schema import Parameter
    from zeek_agent.table import Table

WIDTH: Final = 100
"""Width of descriptions in characters."""


def list_tables(tables: Iterable[Table]) -> str:
    """One line per table: its name, its kind unless it is a snapshot, and its summary. Aliases are omitted."""
    listed = [table for table in tables if not table.alias]
    rows = [(table.name, table.summary, "" if table.kind == "snapshot" else "events: ") for table in listed]
    width = max((len(name) for name, _, _ in rows), default=0)
    return "".join(f"{name:{width}}  {kind}{summary}\n" for name, summary, kind in rows)


def describe_table(table: Table) -> str:
    """The complete declaration of a table."""
    parts = [f"{table.name}: {table.summary}", *textwrap.wrap(table.description, WIDTH), ""]
    rows = [(column.name, str(column.zeek_type), column.summary) for column in table.columns]
    rows += [(one.column, str(one.zeek_type), parameter_summary(one)) for one in table.parameters]
    parts += _aligned(rows)
    if table.examples:
        parts += ["", "Examples:", *(f"  {example}" for example in table.examples)]
    parts += ["", f"Platforms: {', '.join(table.platforms)}"]
    if privileges := privileges_summary(table):
        parts.append(f"Privileges: {privileges}")
    return "\n".join(parts) + "\n"


def privileges_summary(table: Table) -> str:
    """What a table may use beyond reading; empty for most."""
    return ", ".join(table.privileges.texts())


def parameter_summary(parameter: Parameter) -> str:
    """The meaning of a parameter, and its default."""
    if parameter.default is not None:
        return f"{parameter.summary} (parameter, default {parameter.default!r})"
    return f"{parameter.summary} (parameter{', required' if parameter.required else ''})"


def zeek_record(table: Table) -> str:
    """The columns of `SELECT *` as a record type of a Zeek script. Fields are optional: any cell may be unset."""
    name = "".join(part.capitalize() for part in table.name.split("_"))
    lines = [f"## {table.summary[:1].upper()}{table.summary[1:]}.", f"type {name}: record {{"]
    for column in table.columns:
        if column.hidden:
            continue
        lines += textwrap.wrap(
            column.summary, WIDTH, initial_indent="\t## ", subsequent_indent="\t## ", break_long_words=False
        )
        lines.append(f"\t{zeek_field(column.name)}: {column.zeek_type.script} &optional;")
    return "\n".join([*lines, "};"]) + "\n"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    name_width = max(len(name) for name, _, _ in rows)
    type_width = max(len(kind) for _, kind, _ in rows)
    lines = []
    for name, kind, summary in rows:
        lead = f"  {name:{name_width}}  {kind:{type_width}}  "
        wrapped = textwrap.wrap(summary, max(WIDTH - len(lead), 30)) or [""]
        lines += [lead + wrapped[0], *(" " * len(lead) + more for more in wrapped[1:])]
    return [line.rstrip() for line in lines]
