"""Keeps both sides' tables up to date while osquery starts, stops and changes its tables at any time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw

from zeek_agent.errors import SqlError
from zeek_agent.osquery import export, imported, imported_tables, recording
from zeek_agent.osquery.client import OsqueryClient
from zeek_agent.osquery.imported import ImportRules, OsqueryReader, OsqueryTable
from zeek_agent.osquery.wire import ConnectionLostError, ImpostorError, OsqueryRefusedError, UnreachableError, connect
from zeek_agent.recording.status import SourceStatus

if TYPE_CHECKING:
    from zeek_agent.config.sections import OsquerySettings
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.database.results import Result
    from zeek_agent.schema import Row
    from zeek_agent.table import Table

log = logging.getLogger(__name__)

OFF: Final = "off"
AUTO: Final = "auto"
DAEMON_SOCKETS: Final = ("/var/osquery/osquery.em", "/var/run/osquery.em")
SHELL_SOCKET: Final = ".osquery/shell.em"
RECHECK_DELAY_SECONDS: Final = 0.5
"""Pause after a lost connection, in which a restarting osquery creates its socket again."""

_FAILURES: Final = (UnreachableError, ConnectionLostError, OsqueryRefusedError)


def find_socket(setting: str) -> str:
    """The path of osquery's socket. Raises UnreachableError if none of the usual sockets exists."""
    if setting != AUTO:
        return setting
    for path in (*map(Path, DAEMON_SOCKETS), Path.home() / SHELL_SOCKET):
        try:
            if path.exists():
                return str(path)
        except PermissionError:
            return str(path)
    raise UnreachableError(f"osquery is not running here: there is no {DAEMON_SOCKETS[0]}")


@dataclass(slots=True)
class Discovery:
    """The tables found in osquery, or the reason why there are none."""

    reason: str | None = None
    offered: Mapping[str, OsqueryTable] = field(default_factory=dict)
    impostor: bool = False
    """Whether the process at the socket may be another user's."""


def _names_of(tables: Iterable[Table]) -> frozenset[str]:
    """Their names, and the same with the prefix."""
    return frozenset(
        name
        for table in tables
        for name in (table.name, *(f"{imported.PREFIX}{one}" for one in table.osquery_names), *table.osquery_names[1:])
    )


class Bridge:
    """Provides osquery's tables in the database as long as osquery has them, and ours in osquery if configured.

    `recorded` runs a statement on the event store, from any thread.
    """

    def __init__(
        self,
        settings: OsquerySettings,
        database: SqlDatabase,
        store: recording.RowStore | None = None,
        recorded: Callable[[str], Iterable[Row]] = lambda sql: (),
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._recorded = recorded
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost = asyncio.Event()
        self.client = OsqueryClient(lambda: find_socket(settings.socket), settings.time, on_loss=self._notice_loss)
        rules = ImportRules(
            settings.rows,
            settings.tables_exclude,
            settings.event_tables if store is not None else (),
            settings.prefer,
            imported.required(settings.required_columns),
        )
        own = [one for one in database.tables.values() if one.osquery_name and rules.replaces(one.osquery_name)]
        self._replaced = {str(one.osquery_name): one for one in own}
        """The agent's own tables of osquery that osquery's replace while it has them."""
        self._taken = frozenset(database.readable_names) - _names_of(own)
        self._reader = OsqueryReader(self.client, rules, database.context.access.masker)
        self._discovery = Discovery("not checked yet")
        self._logged_reason: str | None = ""
        self._connections = 0
        self._imports: Mapping[str, OsqueryTable] = {}
        self._names: frozenset[str] = frozenset()
        self._recorders: dict[str, recording.EventCopier] = {}
        tables = export.chosen(database.tables.values(), settings.export)
        self._ours = tables.keys()
        self._extension = export.Extension(tables, self._ask_database, settings.rows)
        self._export = export.Export(self._extension, tables) if tables else None

    def reserve(self, names: Iterable[str]) -> None:
        """Leave these names to tables that were added; osquery's tables of such names are imported under others."""
        self._taken |= frozenset(names)

    async def run(self) -> None:
        """Run until cancelled, whatever osquery does."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self.refresh()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._lost.wait(), self._settings.refresh)
                    await asyncio.sleep(RECHECK_DELAY_SECONDS)
                self._lost.clear()
        finally:
            await asyncio.shield(asyncio.to_thread(self.close))

    async def refresh(self) -> None:
        """Discover osquery's tables once, and update the database."""
        self._loop = asyncio.get_running_loop()
        self._follow(await asyncio.to_thread(self._look))

    def refresh_blocking(self) -> None:
        """The same without a running event loop."""
        self._follow(self._look())

    def close(self) -> None:
        """Remove our tables from osquery and disconnect. Blocks."""
        self.client.interrupt()
        if self._export is not None:
            self._export.close(self.client)
        self.client.close()

    def status(self) -> Iterable[SourceStatus]:
        """One status per direction, and one per recorded event table."""
        counters, reason = self.client.counters, self._discovery.reason
        here = reason is None
        yield SourceStatus(
            "osquery",
            "import",
            here,
            reason,
            received=counters.rows,
            lost_decode=counters.undecodable,
            last_error=counters.last_error,
        )
        for name, recorder in list(self._recorders.items()):
            active = here and name in self._discovery.offered
            why = None if active else reason or "osquery currently has no such table"
            yield SourceStatus(
                "osquery",
                name,
                active,
                why,
                received=recorder.received,
                lost_overrun=recorder.lost,
                last_error=recorder.last_error,
            )
        if self._export is not None:
            registered = here and self._export.registered
            why = None if registered else reason or "not registered"
            extension = self._extension
            yield SourceStatus(
                "osquery", "export", registered, why, received=extension.rows, last_error=extension.last_error
            )

    def imported(self) -> bytes:
        """osquery's tables for worker processes, which make them with `imported_tables.tables_from`."""
        return imported_tables.describe(self._imports.values(), self._taken, self._reader, self._settings.time)

    def connect(self) -> socket.socket:
        """A connection to osquery for a worker process. Blocks. Raises SqlError."""
        try:
            return connect(find_socket(self._settings.socket), self._settings.time)
        except UnreachableError as error:
            raise SqlError(f"osquery: {error}") from error

    def _notice_loss(self) -> None:
        """Called in the thread that lost the connection."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lost.set)

    def _look(self) -> Discovery:
        client = self.client
        client.forget_old()
        try:
            with client.connected() as connection:
                if client.connections != self._connections:
                    self._reader.null = connection.options().get("nullvalue", "")
                    self._connections, self._discovery = client.connections, Discovery()
            if self._export is not None:
                self._register(self._export)
            ours = self._export.uuids if self._export is not None else frozenset()
            found = imported.offered(client, self._reader.rules, self._discovery.offered, ours)
            self._record(found)
        except _FAILURES as error:
            return Discovery(str(error), impostor=isinstance(error, ImpostorError))
        except (KeyError, ValueError) as error:
            return Discovery(f"its list of tables is invalid: {error!r}")
        return Discovery(None, found)

    def _register(self, ours: export.Export) -> None:
        try:
            ours.keep_registered(self.client)
        except (OsqueryRefusedError, OSError) as error:
            self._extension.last_error = str(error)

    def _record(self, found: Mapping[str, OsqueryTable]) -> None:
        """Read the recorded event tables."""
        for name, one in found.items():
            wanted = one.events and self._reader.rules.records(name) and self._may_import(one)
            if not wanted or self._store is None:
                continue
            recorder = self._recorders.get(name)
            if recorder is None or recorder.offered.columns != one.columns:
                own = name if name not in self._taken else f"{imported.PREFIX}{name}"
                table = recording.event_table(own, one)
                if not self._store.declare(table):
                    continue
                recorder = recording.EventCopier(one, table, self._reader, self._store, self._recorded)
                self._recorders[name] = recorder
            try:
                recorder.read(self.client)
            except (OsqueryRefusedError, apsw.Error) as error:
                recorder.last_error = str(error)

    def _follow(self, seen: Discovery) -> None:
        """Update the database to osquery's current tables; called in the event loop's thread."""
        self._discovery = seen
        imports = {name: one for name, one in seen.offered.items() if not one.events and self._may_import(one)}
        known = self._database.tables
        events = [one.table for one in self._recorders.values() if known.get(one.table.name) is not one.table]
        if imports != self._imports or events:
            new = list(imported.tables(imports.values(), self._taken, self._reader))
            named = {table.osquery_name for table in (*new, *events)}
            back = [table for name, table in self._replaced.items() if name not in named | self._recorders.keys()]
            self._database.replace_tables(
                self._names, [*back, *new, *events], seen.reason or "osquery no longer has it"
            )
            self._imports, self._names = imports, frozenset(table.name for table in new)
        if seen.reason != self._logged_reason:
            self._logged_reason = seen.reason
            if seen.reason is None:
                log.info("osquery at %s: %d tables", self.client.path, len(imports))
            else:
                expected = self._settings.socket == AUTO and not seen.impostor
                level = logging.INFO if expected else logging.WARNING
                log.log(level, "osquery cannot be used: %s", seen.reason)

    def _may_import(self, one: OsqueryTable) -> bool:
        """Exclude this agent's own tables, and forbidden tables, which must not be readable under another name."""
        policy = self._database.context.access
        return one.name not in self._ours and policy.may_query(one.name, f"{imported.PREFIX}{one.name}")

    def _ask_database(self, sql: str) -> Result:
        """Run a statement for osquery in the thread of its call. Raises SqlError."""
        from zeek_agent.database.database import Lane

        if self._loop is None:
            raise SqlError("the agent is not ready")
        work: Any = self._database.query(sql, lane=Lane.LOCAL, origin="osquery")
        answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return answer.result(self._settings.time)  # type: ignore[no-any-return]
        except TimeoutError:
            answer.cancel()
            raise SqlError(f"no answer within {self._settings.time:g} s (osquery.time)") from None
