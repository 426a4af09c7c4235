"""Output of `zeek-agent status`: the running agent's properties, and its own tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zeek_agent import platforms
from zeek_agent.terminal import responders
from zeek_agent.terminal.console import Printer, plain
from zeek_agent.text import visible

if TYPE_CHECKING:
    from zeek_agent.schema import Row, ZeekType
    from zeek_agent.terminal.responders import Responder

PARTS: Final = {
    "connections": "SELECT * FROM zeek_agent_connections",
    "sources": "SELECT * FROM zeek_agent_sources",
    "queries": "SELECT * FROM zeek_agent_queries",
}
WORKERS: Final = {"workers": "SELECT * FROM zeek_agent_workers"}
"""Where statements run in worker processes."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Properties by name, and the rows of each part."""

    facts: dict[str, Any]
    parts: Mapping[str, tuple[Sequence[tuple[str, ZeekType]], list[Row]]]


def gather_status(responder: Responder) -> StatusReport:
    """Query the agent for the contents of the report."""
    parts = {}
    for name, sql in (PARTS | WORKERS if platforms.HERE.confines_workers else PARTS).items():
        columns, rows, _ = responders.query(responder, sql)
        parts[name] = (columns, rows)
    return StatusReport(responders.status(responder), parts)


OMITTED: Final = frozenset({"id", "sql", "cookie", "endpoint", "window_bytes"})
"""Columns that the text omits; JSON includes them."""


def as_text(report: StatusReport, width: int | None = None) -> str:
    """The report as text: properties, then one table per part; `width` is the terminal's."""
    out = io.StringIO()
    out.write(facts_text(report.facts))
    printer = Printer(out, width=width)
    for name, (columns, rows) in report.parts.items():
        out.write(f"\n{name}: {len(rows) or 'none'}\n")
        if rows:
            printer.write(*_without_empty(columns, rows))
    return out.getvalue()


def facts_text(facts: Mapping[str, Any]) -> str:
    """One line per property."""
    width = max(map(len, facts), default=0)
    return "".join(f"{name:{width}}  {_fact(value)}\n" for name, value in facts.items())


def as_json(report: StatusReport) -> str:
    """The report as an object: properties, and one list per part."""
    document = dict(report.facts)
    for part, (columns, rows) in report.parts.items():
        document[part] = [
            {name: plain(kind, value) for (name, kind), value in zip(columns, row, strict=True)} for row in rows
        ]
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else visible(str(value))


def _without_empty(
    columns: Sequence[tuple[str, ZeekType]], rows: list[Row]
) -> tuple[list[tuple[str, ZeekType]], list[Row]]:
    """Omit columns that are unset in every row, and those of no interest to people."""
    kept = [
        index
        for index, (name, _) in enumerate(columns)
        if name not in OMITTED and any(row[index] is not None for row in rows)
    ]
    return [columns[index] for index in kept], [tuple(row[index] for index in kept) for row in rows]
