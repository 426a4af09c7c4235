"""A worker's life: lock down, then compile and run one statement after the other until the agent closes its socket."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import apsw
import msgspec

from zeek_agent.bpf import iterators
from zeek_agent.containment import channel, messages
from zeek_agent.containment.agent_log import AgentLog
from zeek_agent.containment.lockdown import lock_down
from zeek_agent.containment.messages import (
    Compile,
    CompiledStatement,
    Finished,
    Give,
    Head,
    Imports,
    Need,
    NotReady,
    ReadTable,
    RunStatement,
    Setup,
    Spawn,
    SpoolBatch,
    StatementFailed,
    TableRead,
)
from zeek_agent.containment.protections import LockdownError, WorkerClass, WorkerLimits
from zeek_agent.database.encodings import FRAME_BYTES_MAX, OMISSIONS_BYTES_MAX
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError, ZeekAgentError
from zeek_agent.host.linux import host_sockets
from zeek_agent.host.programs import adopt_orphans, has_orphans, limit_processes
from zeek_agent.osquery import imported_tables
from zeek_agent.queries.subscriptions import Change
from zeek_agent.recording.sockets import conntrack
from zeek_agent.results.comparison import Comparison, RowChange, compare
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.state import ColumnTypes
from zeek_agent.table import TableContext
from zeek_agent.table_declarations import declared
from zeek_agent.text import clipped
from zeek_agent.worker import table_spool
from zeek_agent.worker.agent_proxy import AgentProxy, PassedIterators, passed_sock_diag, passed_translations
from zeek_agent.worker.open_files import let_go_of_standard_streams, reopen_read_only
from zeek_agent.worker.result_writer import ResultWriter, frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zeek_agent.access import AccessPolicy
    from zeek_agent.config.declarations import Config
    from zeek_agent.database.encodings import Encoding, FrameBatch
    from zeek_agent.database.results import ResultColumn
    from zeek_agent.database.sql_connection import StreamedStatement
    from zeek_agent.host.files.reads import Omissions
    from zeek_agent.schema import Row
    from zeek_agent.table import Constraints, Table

ERROR_CHARACTERS: Final = 10_000
FRAMES_PER_MESSAGE: Final = 10_000
"""Their lengths fit into a packet."""
NICENESS: Final = 5
"""Of snapshot workers: a scan of the host can wait, events cannot."""
SPOOL_SHARE: Final = 4
"""A spool may be so many times `limits.result_bytes`: it holds packed rows and, after them, larger frames."""
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers of a zygote have in common."""

    setup: Setup
    config: Config
    access: AccessPolicy
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class FinishedStatement:
    """A statement that has ended well, and its rows."""

    columns: Sequence[ResultColumn]
    rows: ResultWriter
    streamed: StreamedStatement
    run: Run


class StoreAt:
    """The event store, as connections attach it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


class Worker:
    """One worker process. `connection` is its end of the socket to the agent."""

    def __init__(
        self,
        connection: socket.socket,
        shared: Shared,
        spawn: Spawn,
    ) -> None:
        self._connection = connection
        self._shared = shared
        self._limits = shared.config.limits
        self._spawn = spawn
        self._kind = spawn.kind
        self._statement = 0
        self._scans = SharedScans()
        self._current = Run(self._limits)
        imports = spawn.imports
        self._catalog = shared.catalog
        if imports != Imports():
            tables = [
                *shared.catalog.tables.values(),
                *declared(imports.events),
                *imported_tables.tables_from(imports.osquery, self._dial_osquery, shared.access.masker),
            ]
            self._catalog = Catalog.of(spawn.generation, tables, imports.gone)
        self._store = StoreAt(spawn.store_uri) if spawn.store_uri else None
        agent = AgentProxy(shared.setup, self.ask, self._catalog.tables.values, spawn.store_uri)
        helper = self._rows_from_helper if spawn.kind is WorkerClass.SNAPSHOTS else None
        self._context = TableContext(agent, shared.access, helper=helper)
        self._connections: dict[tuple[Profile, bool], SqlConnection] = {}
        if spawn.iterators:
            iterators.use(PassedIterators(self.ask))
        host_sockets.use(partial(passed_sock_diag, self.ask))
        conntrack.use(partial(passed_translations, self.ask))
        logging.getLogger("zeek_agent").addHandler(AgentLog(self._send))

    def start(self, parent: int) -> None:
        """Open the event store where this worker reads it, drop privileges, and report that it is ready.

        `parent` is the process that must be alive.
        """
        if self._kind is WorkerClass.EVENTS:
            for profile in Profile:
                self._sql(profile, attached=True)
            reopen_read_only()
        else:
            os.nice(NICENESS)
        if self._kind is WorkerClass.HELPER:
            os.setpgid(0, 0)  # what its programs start ends with it
            if self._spawn.privileges.programs:
                adopt_orphans()
                if self._shared.setup.account is not None:
                    limit_processes()
        let_go_of_standard_streams()
        limits = self._limits
        try:
            protections = lock_down(
                self._kind,
                parent=parent,
                account=self._shared.setup.account,
                limits=WorkerLimits(limits.worker_bytes, SPOOL_SHARE * limits.result_bytes),
                privileges=self._spawn.privileges,
                group_sockets=self._spawn.group_sockets,
            )
        except (LockdownError, OSError) as error:
            if self._kind is not WorkerClass.HELPER:
                raise
            self._send(NotReady(clipped(str(error), ERROR_CHARACTERS)))
            os._exit(0)
        self._send(messages.Ready(protections))

    def serve(self) -> None:
        """Answer until the agent closes the socket."""
        while True:
            received = self._receive()
            if received is None:
                return
            message, descriptors = received
            try:
                if not self._handle(message, descriptors):
                    return
            finally:
                channel.close_all(descriptors)

    def ask(self, what: str, name: str, arguments: bytes = b"") -> tuple[bytes, list[int]]:
        """Ask the agent for something while a statement runs. Raises SqlError."""
        self._send(Need(self._statement, what, name, arguments))  # type: ignore[arg-type]
        received = channel.receive(self._connection)
        if received is None:
            raise SystemExit(0)
        body, descriptors = received
        answer = messages.decode_to_worker(body)
        if not isinstance(answer, Give):
            raise SystemExit(1)
        if answer.error is not None:
            channel.close_all(descriptors)
            raise _ERRORS.get(answer.kind, SqlError)(answer.error)
        return answer.rows, descriptors

    def _rows_from_helper(self, table: Table, wanted: Constraints) -> Iterator[Row]:
        """The rows of a table with privileges, which a helper process has read."""
        packed, descriptors = self.ask("table", table.name, table_spool.packed_arguments(table.name, wanted))
        if len(descriptors) != 1:
            raise SqlError(f"the agent passed no rows of table {table.name}")
        where = messages.decode_table_rows(packed)
        for error in where.errors:
            self._current.errors.add(error)
        return table_spool.read_rows(descriptors[0], where.size_bytes)

    def _dial_osquery(self) -> socket.socket:
        _, descriptors = self.ask("osquery", "")
        if len(descriptors) != 1:
            raise SqlError("the agent passed no connection to osquery")
        return socket.socket(fileno=descriptors[0])

    def _receive(self) -> tuple[Any, list[int]] | None:
        """The next message; shared scans are forgotten when none comes."""
        if self._scans.expire() and not _readable(self._connection, self._scans.max_age_seconds * 1.5):
            self._scans.clear()
        received = channel.receive(self._connection)
        if received is None:
            return None
        body, descriptors = received
        return messages.decode_to_worker(body), descriptors

    def _handle(self, message: Any, descriptors: list[int]) -> bool:
        """Whether the worker can go on."""
        self._statement = message.id
        try:
            match message:
                case Compile():
                    self._compile(message)
                case RunStatement():
                    self._run(message, *descriptors)
                case ReadTable() if self._kind is WorkerClass.HELPER:
                    self._read_table(message, *descriptors)
        except ZeekAgentError as error:
            self._fail(type(error).__name__, str(error))
        except OSError as error:
            limit = "limits.result_bytes" if error.errno == errno.EFBIG else None
            text = f"the result's frames are too large ({limit})" if limit else f"cannot write the result: {error}"
            self._fail("LimitError" if limit else "SqlError", text)
        except MemoryError:
            self._fail("LimitError", "the statement needs more memory than limits.worker_bytes allows", spent=True)
            return False
        return True

    def _fail(self, kind: str, text: str, *, spent: bool = False) -> None:
        self._send(StatementFailed(self._statement, kind, clipped(text, ERROR_CHARACTERS), spent))

    def _compile(self, message: Compile) -> None:
        run = self._started(Run(self._limits))
        statement = self._sql(Profile(message.profile)).compile(message.sql, run)
        columns = [(column.name, str(column.type)) for column in statement.columns]
        self._send(CompiledStatement(message.id, columns, sorted(statement.tables)))

    def _run(self, message: RunStatement, spool: int, delta: int = -1) -> None:
        run = self._started(Run(self._limits))
        run.scans_since = message.scans_since
        rows = ResultWriter(spool)
        streamed = self._sql_for(message, run).stream(message.sql, run, rows, message.window)
        finished = FinishedStatement(rows.settle(streamed.headings, run.errors), rows, streamed, run)
        if message.comparison is not None:
            self._send_differences(finished, message.encoding, message.comparison, delta)
        else:
            self._send_rows(finished, message.encoding, None if message.change is None else Change(message.change))
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        self._send(Finished(message.id, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024))

    def _read_table(self, message: ReadTable, spool: int) -> None:
        """Write a table's rows to the spool. An error ends this helper, for the next may have what was missing."""
        table = self._catalog.tables[message.table]
        try:
            size_bytes, errors = table_spool.write_rows(
                spool,
                table,
                messages.decode_arguments(message.arguments),
                self._context,
                limits=self._limits,
                seconds=message.seconds,
            )
        except SqlError as error:
            self._fail(type(error).__name__, str(error), spent=True)
            return
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        is_spent = bool(self._spawn.privileges.programs) and has_orphans()  # nobody else could end these
        cpu = used.ru_utime + used.ru_stime
        self._send(TableRead(message.id, size_bytes, errors, cpu, used.ru_maxrss * 1024, is_spent))

    def _send_rows(self, finished: FinishedStatement, encoding: Encoding, change: Change | None) -> None:
        """Send all rows: frames of a small result as they are encoded, those of a large one at the end."""
        rows, columns = finished.rows, finished.columns
        if rows.is_complete:
            fitting = list(rows.rows(change))
            self._send(self._head(finished, len(fitting)))
            self._send_batches(_write(self._statement, rows, frames(columns, iter(fitting), encoding)))
        else:
            batches = list(_write(self._statement, rows, frames(columns, rows.rows(change), encoding)))
            self._send(self._head(finished, sum(batch.rows for batch in batches)))
            self._send_batches(batches)

    def _send_differences(
        self, finished: FinishedStatement, encoding: Encoding, comparison: Comparison, delta: int
    ) -> None:
        """Send how the result differs from the stored one, and leave the difference in the delta file."""
        rows, columns = finished.rows, finished.columns
        with ExitStack() as stack:
            difference = compare(
                comparison.basis,
                _stored_columns(columns, finished.streamed.rules),
                (row for _, row in rows.rows(None)),  # type: ignore[misc]
                delta,
                reporting=comparison.reporting,
                reported=comparison.reported,
                omissions=lambda: finished.streamed.files,
                reader=cache(lambda: stack.enter_context(ResultReader(comparison.basis.uri))),
            )
            changes = ((_CHANGES[change], cells) for change, cells in difference.changes())
            batches = list(_write(self._statement, rows, frames(columns, changes, encoding)))
        self._send(self._head(finished, sum(batch.rows for batch in batches), difference.delta_bytes))
        self._send_batches(batches)

    def _head(self, finished: FinishedStatement, count: int, delta_bytes: int = 0) -> Head:
        streamed = finished.streamed
        return Head(
            self._statement,
            [(column.name, str(column.type)) for column in finished.columns],
            count,
            streamed.size,
            list(finished.run.errors.texts()),
            _write_files(finished.rows, streamed.files) if streamed.files else None,
            delta_bytes,
        )

    def _send_batches(self, batches: Iterable[SpoolBatch]) -> None:
        for batch in batches:
            self._send(batch)

    def _started(self, run: Run) -> Run:
        """The statement's clock runs from now on, and SQLite's memory is bounded."""
        self._current = run
        run.start(memory_ceiling=apsw.memory_used() + self._limits.memory_bytes)
        return run

    def _sql_for(self, message: RunStatement, run: Run) -> SqlConnection:
        """The connection for a statement: with the store attached only if it reads nothing else."""
        profile = Profile(message.profile)
        if self._kind is WorkerClass.EVENTS:
            return self._sql(profile, attached=True)
        copying = self._sql(profile)
        if message.comparison is None:  # else statements that read only event tables run in an event worker
            return copying
        tables = copying.compile(message.sql, run).tables
        only_events = bool(tables) and all(self._catalog.tables[name].kind == "events" for name in tables)
        return self._sql(profile, attached=True) if only_events else copying

    def _sql(self, profile: Profile, *, attached: bool = False) -> SqlConnection:
        connection = self._connections.get((profile, attached))
        if connection is None:
            try:
                connection = self._connections[profile, attached] = SqlConnection(
                    self._catalog,
                    profile,
                    context=self._context,
                    limits=self._limits,
                    scans=self._scans,
                    store=self._store,
                    copies=not attached,
                )
            except apsw.Error as error:
                raise SqlError(f"cannot open the database: {error}") from error
        return connection

    def _send(self, message: messages.FromWorker) -> None:
        body = messages.encode(message)
        if len(body) > channel.INLINE_BYTES:
            raise LimitError(f"the names of the result's columns take more than {channel.INLINE_BYTES} bytes")
        channel.send(self._connection, body)


def _write(statement: int, rows: ResultWriter, batches: Iterator[FrameBatch]) -> Iterator[SpoolBatch]:
    """Write frames to the spool and describe where they are. Raises LimitError for a frame that is too long."""
    for batch in batches:
        lengths = array("I", map(len, batch.frames))
        if max(lengths) > FRAME_BYTES_MAX:
            raise LimitError(f"a row takes {max(lengths)} bytes when encoded, more than {FRAME_BYTES_MAX}")
        offset = rows.write_all(batch.frames)
        for start in range(0, len(lengths), FRAMES_PER_MESSAGE):
            part = lengths[start : start + FRAMES_PER_MESSAGE]
            count = batch.rows if len(lengths) <= FRAMES_PER_MESSAGE else len(part)
            yield SpoolBatch(statement, offset, part.tobytes(), count)
            offset += sum(part)


def _stored_columns(columns: Sequence[ResultColumn], rules: frozenset[str]) -> ColumnTypes:
    """The columns of a result that is to be stored. The type of the first one identifies the access rules that change
    values: a result under other rules starts over, because its rows would be reported as gone.
    """
    stored = [(column.name, str(column.type)) for column in columns]
    if rules:
        (name, kind), *others = stored
        under = blake2b(msgspec.json.encode(sorted(rules)), digest_size=8).hexdigest()
        stored = [(name, f"{kind} under {under}"), *others]
    return tuple(stored)


def _write_files(rows: ResultWriter, files: Omissions) -> tuple[int, int]:
    """Write the omissions of files to the spool, without the paths if there are too many: where they are."""
    packed = _encode(files)
    if len(packed) > OMISSIONS_BYTES_MAX:
        packed = _encode(replace(files, unread=frozenset(), all_paths=False))
    return rows.write(packed), len(packed)


_ERRORS: Final = {each.__name__: each for each in (AccessDeniedError, LimitError)}
_CHANGES: Final = {RowChange.GONE: Change.DELETE, RowChange.NEW: Change.ADD, None: None}


def _readable(connection: socket.socket, seconds: float) -> bool:
    return bool(select.select([connection], [], [], seconds)[0])
