"""Small tables for tests of the database: made of rows at hand, remembering what they were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.database.database import Database
from zeek_agent.database.sql_connection import AttachedStore
from zeek_agent.schema import Column, Parameter, Row
from zeek_agent.table import Constraints, Table, TableContext


class Recorder:
    """A snapshot table over fixed rows that uses no constraint but records each scan's."""

    def __init__(
        self,
        name: str,
        columns: Sequence[tuple[str, str]],
        rows: Iterable[Row] | Callable[[Constraints], Iterable[Row]],
        parameters: Iterable[Parameter] = (),
        added: Iterable[str] = (),
    ) -> None:
        self.scans: list[Constraints] = []
        self.table = Table(
            name,
            "rows of a test",
            description="Rows of a test.",
            columns=[Column(column, kind, "a column", added=column in added) for column, kind in columns],
            parameters=parameters,
        )
        self._rows = rows
        self.table.snapshot(self._scan)

    def _scan(self, wanted: Constraints) -> Iterable[Row]:
        self.scans.append(wanted)
        return self._rows(wanted) if callable(self._rows) else list(self._rows)

    @property
    def equalities(self) -> list[dict[str, set[object]]]:
        return [{name: set(values) for name, values in scan.equalities.items()} for scan in self.scans]


def events(name: str, columns: Sequence[tuple[str, str]], added: Iterable[str] = ()) -> Table:
    return Table(
        name,
        "events of a test",
        description="Events of a test.",
        columns=[Column(column, kind, "a column", added=column in added) for column, kind in columns],
        kind="events",
    )


def database(
    *tables: Recorder | Table,
    limits: LimitSettings | None = None,
    access: AccessSettings | None = None,
    store: AttachedStore | None = None,
) -> Database:
    host = TableContext(agent=None, access=AccessPolicy(access))  # type: ignore[arg-type]  # no table here asks for it
    return Database([getattr(table, "table", table) for table in tables], host, limits, store)
