"""SQL over all tables of the host: statements in, typed rows out, off the event loop.

Statements run in the threads of a lane, each of which has its own connections. Results are complete when they are
returned, so no transaction on the event store outlives its statement.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import apsw

from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.cells import decode, encode
from zeek_agent.database.results import Result, ResultColumn, Statement
from zeek_agent.database.sandbox import TABLE_FUNCTIONS, Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import ALIASES, AttachedStore, Catalog, Profile, SqlConnection
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.table import Constraints, Table, TableContext
from zeek_agent.text import STATEMENT_SHOWN, byte_length, clipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zeek_agent.database.encodings import Encoding
    from zeek_agent.database.results import EncodedRows
    from zeek_agent.results.comparison import Comparison

__all__ = ["ALIASES", "Database", "Lane", "Profile", "Result", "ResultColumn", "Statement", "reserved_names"]

AUDITED_STATEMENTS_KEPT: Final = 1_000
"""Statements that the audit log remembers, so that a repeated one is not logged each time."""

AUDITED_STATEMENT_BYTES: Final = 3_000
"""Longer statements are logged by their beginning and hash: a line of the log has room for 4 KB."""

_audit_log = logging.getLogger("zeek_agent.audit")
_T = TypeVar("_T")


class Lane(StrEnum):
    """The group of threads that runs a statement, so that a slow one does not delay those of other lanes."""

    EVENTS = "events"
    SNAPSHOTS = "snapshots"
    LOCAL = "local"


def reserved_names(tables: Iterable[Table]) -> frozenset[str]:
    """Every name that a statement can read in a database with these tables, and the functions of SQLite's that are."""
    return frozenset(Catalog.of(0, tables).readable()) | ALIASES.keys() | TABLE_FUNCTIONS


class SqlDatabase(ABC):
    """The tables of this host, for SQL, and the audit log of its statements.

    A statement's `window` limits event tables, by name, to rows with low < seq <= high; by default they show all
    retained rows. `<event table>_history` always shows all retained rows.
    """

    compares_results = False
    """Whether `encoded` can compare a result with the stored one."""

    def __init__(
        self,
        tables: Iterable[Table],
        context: TableContext,
        limits: LimitSettings | None,
        store: AttachedStore | None,
    ) -> None:
        self.context = context
        self.limits = limits or LimitSettings()
        self._store = store
        self._catalog = Catalog.of(1, tables)
        self._listeners: list[Callable[[], None]] = []
        self._audited: dict[tuple[str, bytes], None] = {}
        self._lock = threading.Lock()

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables available now, by name."""
        return self._catalog.tables

    @property
    def readable_names(self) -> frozenset[str]:
        """Every name that a statement can read: tables, and the additional names of event tables."""
        return frozenset(self._catalog.readable())

    @property
    def readable_tables(self) -> Mapping[str, Table]:
        """The tables by all names under which statements can read them."""
        catalog = self._catalog
        return {name: catalog.tables[table] for name, table in catalog.readable().items()}

    def add(self, table: Table) -> None:
        """Add a table, or replace the one with the same name."""
        self._change({**self._catalog.tables, table.name: table})

    def remove(self, name: str) -> None:
        """Remove a table. Raises KeyError if there is none of that name."""
        tables = dict(self._catalog.tables)
        del tables[name]
        self._change(tables)

    def replace_tables(self, gone: Iterable[str], new: Iterable[Table], why: str | None = None) -> None:
        """Remove and add tables as one change. Unknown names are ignored.

        `why` is the reason in the error for a statement that uses a removed table.
        """
        gone = frozenset(gone)
        tables = {name: table for name, table in self._catalog.tables.items() if name not in gone}
        tables |= {table.name: table for table in new}
        reasons = {**self._catalog.gone, **dict.fromkeys(gone, why or "")}
        self._change(tables, {name: reason for name, reason in reasons.items() if reason and name not in tables})

    def reconfigure(self, context: TableContext, limits: LimitSettings) -> None:
        """Use other access rules and limits for the statements that follow."""
        self.context, self.limits = context, limits
        self._change(self._catalog.tables)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of the tables, in the thread that made it."""
        self._listeners.append(listener)

    @abstractmethod
    async def query(
        self,
        sql: str,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
    ) -> Result:
        """Run one statement. Raises SqlError, AccessDeniedError or LimitError.

        `origin` names the requester in the audit log. Cancelling the task ends the statement.
        """

    @abstractmethod
    async def prepare(
        self, sql: str, *, profile: Profile = Profile.FULL, lane: Lane = Lane.SNAPSHOTS, origin: str = "local"
    ) -> Statement:
        """Compile one statement without running it: its columns and the tables that it reads. Raises like `query`."""

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
    ) -> Result | EncodedRows:
        """The same with the result in that encoding where a worker process encodes it; else as rows.

        With a `comparison`, which only a database takes that `compares_results`, the rows are those that differ.
        """
        return await self.query(sql, profile=profile, lane=lane, window=window, origin=origin)

    async def own_rows(self, name: str) -> Result:
        """The rows of one of the agent's own tables as a stock package sees it, without SQL. Raises SqlError."""
        return await asyncio.to_thread(self._own_rows, self._catalog.tables[name])

    def _own_rows(self, table: Table) -> Result:
        shown = [index for index, column in enumerate(table.columns) if not column.added and not column.hidden]
        types = [table.columns[index].zeek_type for index in shown]
        wanted = Constraints(self.context, columns=frozenset(table.columns[index].name for index in shown))
        try:
            rows = [
                tuple(decode(kind, encode(kind, row[index])) for index, kind in zip(shown, types, strict=True))
                for row in table.rows(wanted)
            ]
        except (ValueError, OSError) as error:
            raise SqlError(f"table {table.name}: {error}") from error
        columns = tuple(ResultColumn(table.columns[index].name, kind) for index, kind in zip(shown, types, strict=True))
        return Result(columns, rows)

    @abstractmethod
    async def aclose(self) -> None:
        """End what runs."""

    def check_length(self, sql: str, origin: str) -> None:
        """Raises LimitError for a statement that is too long, which is then on record; nothing else is done with it."""
        most = self.limits.statement_bytes
        if byte_length(sql) > most:
            error = LimitError(f"the statement is longer than {most} bytes (limits.statement_bytes)")
            audit_refusal(sql, origin, error)
            raise error

    def _change(self, tables: Mapping[str, Table], gone: Mapping[str, str] | None = None) -> None:
        with self._lock:
            before = self._catalog
            self._catalog = Catalog.of(before.generation + 1, tables.values(), before.gone if gone is None else gone)
        for listener in self._listeners:
            listener()

    def _log_statement(self, sql: str, origin: str) -> None:
        """Write the statement to the audit log: at level info when it is new, else debug."""
        key = (origin, _digest(sql))
        known = key in self._audited
        self._audited[key] = None
        if len(self._audited) > AUDITED_STATEMENTS_KEPT:
            del self._audited[next(iter(self._audited))]
        _audit_log.log(logging.DEBUG if known else logging.INFO, "%s: %s", origin, _on_record(sql))


class Database(SqlDatabase):
    """SQL in this process: within a worker, for commands without an agent that an ordinary user runs, and in tests."""

    def __init__(
        self,
        tables: Iterable[Table],
        context: TableContext,
        limits: LimitSettings | None = None,
        store: AttachedStore | None = None,
    ) -> None:
        super().__init__(tables, context, limits, store)
        self.scans = SharedScans()
        self._lanes: dict[Lane, ThreadPoolExecutor] = {}
        self._local = threading.local()
        self._connections: set[SqlConnection] = set()
        self._runs: set[Run] = set()
        self._memory_idle = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    async def query(
        self,
        sql: str,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
    ) -> Result:
        """Run one statement. Raises SqlError, AccessDeniedError or LimitError.

        `origin` names the requester in the audit log. Cancelling the task ends the statement.
        """
        bounds = dict(window) if window else None
        return await self._submit(
            sql, profile, lane, origin, lambda connection, run: connection.query(sql, run, bounds)
        )

    async def prepare(
        self, sql: str, *, profile: Profile = Profile.FULL, lane: Lane = Lane.SNAPSHOTS, origin: str = "local"
    ) -> Statement:
        """Compile one statement without running it. Raises the same exceptions as `query`."""
        return await self._submit(sql, profile, lane, origin, lambda connection, run: connection.compile(sql, run))

    def close(self) -> None:
        """Cancel running statements, then end threads and connections. Blocks until they have ended."""
        with self._lock:
            self._closed = True
            lanes = list(self._lanes.values())
            for run in self._runs:
                run.cancel("the database is closed")
        for lane in lanes:
            lane.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self.scans.clear()

    async def aclose(self) -> None:
        """The same without blocking the event loop."""
        if self._expiry is not None:
            self._expiry.cancel()
        await asyncio.to_thread(self.close)

    async def _submit(
        self, sql: str, profile: Profile, lane: Lane, origin: str, work: Callable[[SqlConnection, Run], _T]
    ) -> _T:
        self.check_length(sql, origin)
        self._log_statement(sql, origin)
        run = Run(self.limits, shared_seconds=0.0 if lane is Lane.LOCAL else self.scans.max_age_seconds)
        future = self._executor(lane).submit(partial(self._work, profile, lane, run, work))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            run.cancel()
            raise
        except AccessDeniedError as error:
            audit_refusal(sql, origin, error)
            raise
        finally:
            self._expire_scans()

    def _executor(self, lane: Lane) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise SqlError("the database is closed")
            executor = self._lanes.get(lane)
            if executor is None:
                workers = self.limits.workers if lane is Lane.SNAPSHOTS else 1
                executor = self._lanes[lane] = ThreadPoolExecutor(workers, thread_name_prefix=f"sql-{lane}")
            return executor

    def _work(self, profile: Profile, lane: Lane, run: Run, work: Callable[[SqlConnection, Run], _T]) -> _T:
        connection = self._connection(profile)
        with self._registered(run, lane):
            run.check()
            return work(connection, run)

    @contextmanager
    def _registered(self, run: Run, lane: Lane) -> Iterator[None]:
        """Register the statement as running. Event statements may take twice the memory, so that others end first."""
        with self._lock:
            if not self._runs:
                self._memory_idle = apsw.memory_used()
            self._runs.add(run)
            share = 2 if lane is Lane.EVENTS else 1
            run.start(memory_ceiling=self._memory_idle + share * self.limits.memory_bytes)
            if self._closed:
                run.cancel("the database is closed")
        try:
            yield
        finally:
            with self._lock:
                self._runs.discard(run)

    def _connection(self, profile: Profile) -> SqlConnection:
        """This thread's connection for the profile, reopened if the tables or the store have changed."""
        connections: dict[Profile, SqlConnection] = self._local.__dict__.setdefault("connections", {})
        connection = connections.get(profile)
        catalog, store = self._catalog, self._store
        if connection is not None and connection.is_current(catalog, store):
            return connection
        if connection is not None:
            connection.close()
            self._connections.discard(connection)
        try:
            connections[profile] = SqlConnection(
                catalog, profile, context=self.context, limits=self.limits, scans=self.scans, store=store
            )
        except apsw.Error as error:
            raise SqlError(f"cannot open the database: {error}") from error
        self._connections.add(connections[profile])
        return connections[profile]

    def _expire_scans(self) -> None:
        """Discard shared scans shortly after the last statement that could use them."""
        if self._expiry is None and self.scans.expire():
            self._expiry = asyncio.get_running_loop().call_later(self.scans.max_age_seconds * 1.5, self._on_expiry_due)

    def _on_expiry_due(self) -> None:
        self._expiry = None
        self._expire_scans()


def audit_refusal(sql: str, origin: str, error: SqlError) -> None:
    _audit_log.warning("refused, %s: %s: %s", origin, error, _on_record(sql))


def _on_record(sql: str) -> str:
    """A statement in the audit log: in full, or its beginning and its hash."""
    if byte_length(sql) <= AUDITED_STATEMENT_BYTES:
        return sql
    return f"{clipped(sql, STATEMENT_SHOWN)}, SHA-256 {_digest(sql).hex()}"


def _digest(sql: str) -> bytes:
    return hashlib.sha256(sql.encode(errors="surrogatepass")).digest()
