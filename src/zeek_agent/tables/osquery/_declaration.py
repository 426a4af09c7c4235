"""How a table of osquery is declared here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, EventView, LookupTable

OWN_NAMES: Final = frozenset({"listening_ports", "process_events", "processes", "socket_events", "users"})
"""Names that mean other tables of this agent outside osquery's dialect."""

ALWAYS_NULL: Final = "always null on Linux"
"""The summary of columns that only have values on other systems."""

WITHOUT_NAMESPACES: Final = Column(
    "pid_with_namespace", "int", "always null: the agent does not enter containers", hidden=True
)


def osquery_table(
    name: str,
    summary: str,
    *,
    columns: Iterable[Column],
    foreign: str = "",
    aliases: Iterable[str] = (),
    **declaration: Any,
) -> LookupTable:
    """The table of osquery called `name`, which the agent also has as `osquery_NAME`.

    `columns` are those that osquery has on Linux, in its order and with its types: TEXT is `text`, INTEGER and BIGINT
    are `int`, UNSIGNED BIGINT is `count`, DOUBLE is `real`. `foreign` are the names of hidden columns that only have
    values on other systems, as `name` or `name:type`, separated by spaces; rows must have no cells for them. `aliases`
    are other names that osquery has for the table. The rest is as for `LookupTable`.
    """
    always_null = [_foreign(column) for column in foreign.split()]
    return _OsqueryTable(
        f"osquery_{name}" if name in OWN_NAMES else name,
        summary,
        osquery_name=name,
        osquery_aliases=aliases,
        columns=[*columns, *always_null],
        foreign=len(always_null),
        **declaration,
    )


def osquery_events(
    name: str, summary: str, *, of: str, where: str, columns: Iterable[tuple[Column, str]], **declaration: Any
) -> EventView:
    """The event table of osquery called `name`, made of the agent's event table `of`.

    `columns` are osquery's columns with SQL expressions of the columns of `of`, or NULL. `where` chooses the rows.
    """
    declared = list(columns)
    return EventView(
        f"osquery_{name}" if name in OWN_NAMES else name,
        summary,
        osquery_name=name,
        of=of,
        cells=[expression for _, expression in declared],
        where=where,
        columns=[column for column, _ in declared],
        **declaration,
    )


class _OsqueryTable(LookupTable):
    """Fills in the foreign columns, which are the last."""

    def __init__(self, name: str, summary: str, *, foreign: int, **declaration: Any) -> None:
        super().__init__(name, summary, **declaration)
        self._nothing = (None,) * foreign

    def rows(self, wanted: Constraints) -> Iterator[Row]:
        found = super().rows(wanted)
        return ((*row, *self._nothing) for row in found) if self._nothing else found


def _foreign(column: str) -> Column:
    name, _, kind = column.partition(":")
    return Column(name, kind or "text", ALWAYS_NULL, hidden=True)
