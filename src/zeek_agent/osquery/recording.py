"""osquery's event tables, copied into the event store.

An external query always gets all events that osquery has buffered, so only events about as new as the newest known row
are queried, and each is recorded once. The overlap is needed because times are whole seconds and events may be late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from zeek_agent.osquery import osquery_sql
from zeek_agent.osquery.client import OsqueryClient
from zeek_agent.osquery.imported import OsqueryReader, OsqueryTable
from zeek_agent.osquery.wire import OsqueryRefusedError, OsqueryRow
from zeek_agent.schema import SEQUENCE, Column
from zeek_agent.table import Table

log = logging.getLogger(__name__)

OVERLAP_SECONDS: Final = 60
"""How long before the newest known event events are read again, because they may be late."""
REMEMBERED_EVENTS: Final = 50_000
"""Events of the overlap that are recognized, which bounds their memory."""
EID: Final = Column("eid", "text", "osquery's event id")


class RowStore(Protocol):
    """The part of the event store used here."""

    def declare(self, table: Table) -> bool: ...

    def append(self, table: str, rows: Sequence[Sequence[Any]]) -> None: ...


def event_table(name: str, one: OsqueryTable) -> Table:
    """The declaration of the table in the event store."""
    columns = [
        Column("time", "time", "when it happened, in whole seconds") if column.name == "time" else column
        for column in one.columns
        if column.name not in {EID.name, SEQUENCE.name}
    ]
    return Table(
        name,
        f"osquery's events {one.name}",
        description=f"Events from the table {one.name} of the osquery running on the host.",
        columns=[*columns, EID],
        kind="events",
        osquery_name=one.name,
    )


class EventCopier:
    """Copies one event table. `recorded` runs a statement on the event store."""

    def __init__(
        self,
        one: OsqueryTable,
        table: Table,
        reader: OsqueryReader,
        store: RowStore,
        recorded: Callable[[str], Iterable[Sequence[Any]]],
    ) -> None:
        self.offered = one
        self.table = table
        self.received = 0
        self.lost = 0
        self.last_error: str | None = None
        self._reader = reader
        self._store = store
        self._recorded = recorded
        self._timed = "time" in {column.name for column in one.columns}
        self._numbered = True
        self._known: dict[Any, float] | None = None

    def read(self, client: OsqueryClient) -> None:
        """Record new events. Raises the exceptions of a query to osquery."""
        known = self._known if self._known is not None else self._remembered()
        since = int(max(known.values(), default=0.0)) - OVERLAP_SECONDS
        rows = self._rows(client, since)
        fresh = [row for row in rows if self._key(row) not in known]
        self._store.append(self.table.name, fresh)
        self.received += len(fresh)
        times = {self._key(row): float(self._time(row)) for row in rows}
        if len(rows) >= self._reader.rules.rows_max and not fresh:
            self._skip(times)
        known |= times
        newest = max(known.values(), default=0.0)
        self._known = {key: time for key, time in known.items() if time >= newest - OVERLAP_SECONDS}

    def _remembered(self) -> dict[Any, float]:
        """The latest events in the store, recorded before this start."""
        columns = ", ".join(osquery_sql.identifier(column.name) for column in self.table.recorded)
        table = osquery_sql.identifier(self.table.name)
        rows = self._recorded(f"SELECT {columns} FROM {table} ORDER BY seq DESC LIMIT {REMEMBERED_EVENTS}")
        return {self._key(row): float(self._time(row)) for row in rows}

    def _rows(self, client: OsqueryClient, since: int) -> list[tuple[Any, ...]]:
        """osquery's rows from a time on, oldest first, with `eid` as the last cell (None if the table has none)."""
        if self._numbered:
            try:
                return self._asked(client, since, self.table.recorded)
            except OsqueryRefusedError as error:
                if EID.name not in str(error):
                    raise
                self._numbered = False
        return [(*row, None) for row in self._asked(client, since, self.table.recorded[:-1])]

    def _asked(self, client: OsqueryClient, since: int, columns: Sequence[Column]) -> list[tuple[Any, ...]]:
        shown = ", ".join(map(osquery_sql.column_expression, columns))
        newer = f" WHERE time >= {since} ORDER BY time" if self._timed else ""
        table = osquery_sql.identifier(self.offered.name)
        sql = f"SELECT {shown} FROM {table}{newer} LIMIT {self._reader.rules.rows_max}"

        def decode(rows: Sequence[OsqueryRow]) -> list[tuple[Any, ...]]:
            return self._reader.decoded(self.table.name, rows, columns, columns)

        return list(client.shared_query(sql, f"events of {self.offered.name}", decode, lambda: None))

    def _skip(self, times: dict[Any, float]) -> None:
        """Skip ahead: there are more events in a few seconds than one result may have."""
        self.lost += 1
        self.last_error = f"{self.offered.name}: more events at once than osquery.rows; some are not recorded"
        log.warning("osquery: %s", self.last_error)
        times[None] = max(times.values(), default=0.0) + OVERLAP_SECONDS + 1

    def _key(self, row: Sequence[Any]) -> Any:
        """The identity of an event; its number alone may be reused by an osquery that was restarted."""
        return (row[-1], self._time(row)) if row[-1] is not None else tuple(row)

    def _time(self, row: Sequence[Any]) -> Any:
        if not self._timed:
            return 0.0
        return (
            next((cell for column, cell in zip(self.table.recorded, row, strict=True) if column.name == "time"), None)
            or 0.0
        )
