"""The tables of this host under SQL, in worker processes: no statement runs in this one."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import msgspec

from zeek_agent.containment.helper_pool import Grant
from zeek_agent.containment.messages import Imports, RunStatement
from zeek_agent.containment.pool import SpawnSettings, WorkerPool
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.usage import recipient_of
from zeek_agent.database.database import Lane, SqlDatabase, audit_refusal
from zeek_agent.database.encodings import Encoding, RowsEncoding
from zeek_agent.database.privileged_tables import granted_privileges
from zeek_agent.database.results import Result, ResultColumn, Statement
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import AccessDeniedError
from zeek_agent.privileges import NO_PRIVILEGES
from zeek_agent.results.comparison import Comparison
from zeek_agent.schema import ZeekType
from zeek_agent.table import EventView
from zeek_agent.table_declarations import declare
from zeek_agent.text import byte_length

if TYPE_CHECKING:
    from pathlib import Path

    from zeek_agent.access import AccessPolicy
    from zeek_agent.config.sections import LimitSettings
    from zeek_agent.containment.encoded_result import EncodedResult
    from zeek_agent.containment.messages import Setup
    from zeek_agent.containment.worker_process import NeedHandler
    from zeek_agent.database.sql_connection import AttachedStore
    from zeek_agent.table import Table, TableContext

SHARED_SECONDS: Final = 0.1
"""Maximum age of a scan that a scheduled statement may share."""
COMPILED_MAX: Final = 1_000
"""Statements whose tables are remembered, so that each run need not be compiled first."""
COMPILED_NAMES_BYTES_MAX: Final = 16_384
"""A statement whose columns' and tables' names are longer is compiled each time."""

_decode_rows: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class ContainedDatabase(SqlDatabase):
    """Runs statements in workers; made and used in the event loop's thread.

    `osquery` describes osquery's tables for the workers; `iterators` is whether BPF iterators can be passed.
    """

    def __init__(
        self,
        tables: Iterable[Table],
        context: TableContext,
        limits: LimitSettings,
        store: AttachedStore | None,
        *,
        setup: Setup,
        need: NeedHandler,
        directory: Path | None = None,
        osquery: Callable[[], bytes] = bytes,
        iterators: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(tables, context, limits, store)
        self._own = dict(self.tables)
        self._osquery = osquery
        self._iterators = iterators
        self._imports = (0, Imports())
        self._compiled: OrderedDict[tuple[bytes, Profile, int], Statement] = OrderedDict()
        self._running: dict[asyncio.Task[EncodedResult], Statement] = {}
        self._results: WeakKeyDictionary[EncodedResult, Statement] = WeakKeyDictionary()
        self.pool = WorkerPool(setup, self.limits, self._bound, need, directory, grant=self._grant)

    compares_results = True

    def replace_own_tables(self, gone: Iterable[str], new: Iterable[Table], why: str) -> None:
        """Replace tables that workers have from the start, by their setup."""
        names, tables = frozenset(gone), list(new)
        self._own = {name: table for name, table in self._own.items() if name not in names}
        self._own |= {table.name: table for table in tables}
        self.replace_tables(names, tables, why)

    def reconfigure(
        self,
        context: TableContext,
        limits: LimitSettings,
        setup: Setup | None = None,
        *,
        concerns_rows: bool = True,
    ) -> None:
        """Use other access rules and limits from now on; `setup` has them for new workers.

        What the new rules may forbid is not sent any more: a statement that runs now is run again, and a result is
        revoked, if a table that it reads, or a column of one, is denied now. If the change `concerns_rows`, by rules on
        files or masking, the same happens to everything that does not only read events, which are stored as they were
        masked.
        """
        if setup is not None:
            self.pool.reconfigure(setup, limits)
        self._compiled.clear()
        before = self.context.access
        super().reconfigure(context, limits)
        for run, statement in list(self._running.items()):
            if not self._is_unaffected(statement, before, concerns_rows):
                del self._running[run]
                run.cancel()
        for result, statement in list(self._results.items()):
            if not self._is_unaffected(statement, before, concerns_rows):
                result.revoke()

    def _is_unaffected(self, statement: Statement, before: AccessPolicy, concerns_rows: bool) -> bool:
        """Whether the rules in force permit what the statement's rows contain, by the rules `before`."""
        if concerns_rows and not self._reads_only_events(statement):
            return False
        access, known = self.context.access, self._catalog.tables
        names = self._catalog.names()
        views = {name for name, table in known.items() if isinstance(table, EventView) and table.of in statement.tables}
        for table in statement.tables | views:
            if not access.may_query(table, *names.get(table, ())):
                return False
            columns = [column.name for column in known[table].columns] if table in known else []
            of = (columns, table, *names.get(table, ()))
            if not access.withheld(*of) <= before.withheld(*of):
                return False
        return True

    async def prepare(
        self, sql: str, *, profile: Profile = Profile.FULL, lane: Lane = Lane.SNAPSHOTS, origin: str = "local"
    ) -> Statement:
        self.check_length(sql, origin)
        self._log_statement(sql, origin)
        return await self._compile(sql, profile, origin)

    async def query(
        self,
        sql: str,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
    ) -> Result:
        encoded = await self.encoded(sql, RowsEncoding(), profile=profile, lane=lane, window=window, origin=origin)
        try:
            rows = [row async for row in _rows(encoded)]
        finally:
            encoded.close()
        return Result(encoded.columns, rows, encoded.errors, encoded.size_bytes, encoded.files)

    async def encoded(
        self,
        sql: str,
        encoding: Encoding,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
        change: str | None = None,
        comparison: Comparison | None = None,
    ) -> EncodedResult:
        self.check_length(sql, origin)
        self._log_statement(sql, origin)
        asked_at = time.monotonic()
        since = asked_at if lane is Lane.LOCAL else asked_at - SHARED_SECONDS
        bounds = dict(window) if window else None
        run = RunStatement(0, sql, profile.value, encoding, change, bounds, since, comparison)  # type: ignore[arg-type]
        while True:
            statement = await self._compile(sql, profile, origin)
            try:
                result = await self._run(run, statement, recipient_of(origin))
            except AccessDeniedError as error:
                audit_refusal(sql, origin, error)
                raise
            if result is not None:
                return result

    async def _run(self, run: RunStatement, statement: Statement, recipient: str) -> EncodedResult | None:
        """The result, or None if the statement has to be run again, by other access rules."""
        is_contained = run.comparison is None and self._reads_only_events(statement)
        kind = WorkerClass.EVENTS if is_contained else WorkerClass.SNAPSHOTS
        opens_files = self._opens_files(statement)
        task = asyncio.ensure_future(self.pool.run(recipient, kind, run, opens_files=opens_files))
        self._running[task] = statement
        try:
            result = await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task in self._running or current is None or current.cancelling():
                raise
            return None
        finally:
            is_valid = self._running.pop(task, None) is not None
        if not is_valid:
            result.close()
            return None
        self._results[result] = statement
        return result

    async def aclose(self) -> None:
        await self.pool.close()

    async def _compile(self, sql: str, profile: Profile, origin: str) -> Statement:
        """The statement, compiled once for each set of tables."""
        key = (hashlib.sha256(sql.encode(errors="surrogatepass")).digest(), profile, self._catalog.generation)
        known = self._compiled.get(key)
        if known is not None:
            self._compiled.move_to_end(key)
            return known
        try:
            answer = await self.pool.compile(recipient_of(origin), sql, profile.value)
        except AccessDeniedError as error:
            audit_refusal(sql, origin, error)
            raise
        columns = tuple(ResultColumn(name, ZeekType.parse(kind)) for name, kind in answer.columns)
        statement = Statement(columns, frozenset(answer.tables))
        if sum(map(byte_length, (*(name for name, _ in answer.columns), *answer.tables))) <= COMPILED_NAMES_BYTES_MAX:
            self._compiled[key] = statement
        if len(self._compiled) > COMPILED_MAX:
            self._compiled.popitem(last=False)
        return statement

    def _reads_only_events(self, statement: Statement) -> bool:
        tables = self._catalog.tables
        return bool(statement.tables) and all(
            name in tables and tables[name].kind == "events" for name in statement.tables
        )

    def _opens_files(self, statement: Statement) -> bool:
        """Whether it reads a table that opens files by paths, or one that has just gone."""
        tables = self._catalog.readable()
        return any(name not in tables or self._catalog.tables[tables[name]].opens_files for name in statement.tables)

    def _grant(self, name: str) -> Grant:
        """What a helper that reads the table gets. Raises SqlError."""
        table = self._catalog.tables.get(name)
        access = self.context.access
        if (
            table is None
            or table.privileges == NO_PRIVILEGES
            or not access.may_query(name, *self._catalog.names()[name])
        ):
            raise AccessDeniedError(f"table {name} is not for helper processes")
        privileges = granted_privileges(table, access)
        sockets = privileges.unix_sockets if table.is_operators else access.group_sockets(name, privileges)
        return Grant(privileges, sockets)

    def _bound(self) -> SpawnSettings:
        uri = f"{self._store.uri}&readonly_shm=1" if self._store else None
        catalog = self._catalog
        if self._imports[0] != catalog.generation:
            added = [table for name, table in catalog.tables.items() if self._own.get(name) is not table]
            events = declare(table for table in added if table.kind == "events")
            osquery = self._osquery() if len(events) < len(added) else b""
            self._imports = catalog.generation, Imports(events, osquery, dict(catalog.gone))
        return SpawnSettings(uri, catalog.generation, self._iterators(), self._imports[1])


async def _rows(encoded: EncodedResult) -> AsyncIterator[tuple[Any, ...]]:
    async for batch in encoded.batches():
        for frame in batch.frames:
            for row in _decode_rows(frame):
                yield tuple([_frozen(cell) if type(cell) is list else cell for cell in row])


def _frozen(cell: list[Any]) -> tuple[Any, ...]:
    return tuple(_frozen(part) if isinstance(part, list) else part for part in cell)
