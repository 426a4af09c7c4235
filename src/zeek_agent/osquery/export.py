"""The agent's tables in osquery: an extension that osquery calls for rows.

osquery assigns a number to the extension when it registers, and then calls it at `<osquery's socket>.<number>`. A call
never queries osquery, because both would wait for each other: only the agent's own tables are exported.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from zeek_agent import __version__, platforms, text
from zeek_agent.database.cells import encode
from zeek_agent.database.results import Result
from zeek_agent.errors import SqlError, ZeekAgentError
from zeek_agent.osquery import osquery_sql
from zeek_agent.osquery.client import OsqueryClient
from zeek_agent.osquery.wire import RECEIVE_BYTES, interface
from zeek_agent.schema import SqliteValue, ZeekType
from zeek_agent.table import Table

log = logging.getLogger(__name__)

NAME: Final = "zeek_agent"
PREFIX: Final = "zeek_"
SDK_VERSION: Final = "4.0.0"
"""Oldest osquery with this interface."""
IDLE_TIMEOUT_SECONDS: Final = 300.0
"""How long an idle connection of osquery keeps its thread."""
SHARED_SECONDS: Final = 1.0
"""How long identical calls share rows, because a join in osquery makes one call per row."""
SHARED_ANSWERS_MAX: Final = 64
"""Bounds the memory of shared rows."""

INDEX, REQUIRED, HIDDEN = 1, 2, 16
_TYPES: Final = {"INTEGER": "BIGINT", "REAL": "DOUBLE", "BLOB": "BLOB"}
_EQUALS: Final = 2
_RANGES: Final = {4: ">", 8: "<=", 16: "<", 32: ">="}

QueryFunction: TypeAlias = "Callable[[str], Result]"
"""Runs a statement on the agent's tables; callable in any thread. Raises SqlError."""
OsqueryRows: TypeAlias = "list[dict[str, str | bytes]]"


def chosen(tables: Iterable[Table], patterns: Sequence[str]) -> dict[str, Table]:
    """The exported tables, by their names in osquery."""
    return {
        table.name if table.name.startswith(PREFIX) else f"{PREFIX}{table.name}": table
        for table in tables
        if any(fnmatchcase(table.name, pattern) for pattern in patterns)
    }


def routes(table: Table) -> list[dict[str, str]]:
    """A table's declaration for osquery."""
    columns = [(column.name, column.zeek_type, INDEX) for column in table.columns]
    columns += [
        (parameter.column, parameter.zeek_type, HIDDEN | (REQUIRED if parameter.default is None else INDEX))
        for parameter in table.parameters
    ]
    return [
        {"id": "column", "name": name, "type": _type(zeek_type), "op": str(options)}
        for name, zeek_type, options in columns
    ]


def _type(zeek_type: ZeekType) -> str:
    return "UNSIGNED BIGINT" if zeek_type.name == "count" else _TYPES.get(zeek_type.sqlite, "TEXT")


class OsqueryConstraint(msgspec.Struct):
    """Operator (a number) and value, as received from osquery."""

    op: int
    expr: str


class ColumnConstraints(msgspec.Struct):
    """Constraints of a statement in osquery on one column; an empty string means an empty list."""

    name: str
    given: list[OsqueryConstraint] | str = msgspec.field(default="", name="list")


class QueryContext(msgspec.Struct):
    """The part of a statement in osquery that concerns a table."""

    constraints: list[ColumnConstraints] = []
    colsUsed: list[str] | None = None  # noqa: N815 - osquery's name


def statement(table: Table, context: QueryContext, rows_max: int) -> str:
    """A statement for at least the rows that osquery wants; it checks each row again."""
    types = {column.name: column.zeek_type for column in table.columns}
    types |= {parameter.column: parameter.zeek_type for parameter in table.parameters}
    used = [name for name in types if context.colsUsed is None or name in context.colsUsed]
    conditions = []
    for column in context.constraints:
        if column.name in types and not isinstance(column.given, str):
            conditions += _conditions(column.name, types[column.name], column.given)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    shown = ", ".join(map(osquery_sql.identifier, used)) or "1"
    return f"SELECT {shown} FROM {osquery_sql.identifier(table.name)}{where} LIMIT {rows_max + 1}"


def _conditions(name: str, zeek_type: ZeekType, constraints: Sequence[OsqueryConstraint]) -> list[str]:
    """Conditions for the constraints. Equalities are alternatives; any other constraint is only used on its own."""
    quoted = osquery_sql.identifier(name)
    values = [_literal(zeek_type, one.expr) for one in constraints]
    if not constraints or None in values:
        return []
    if all(one.op == _EQUALS for one in constraints):
        return [f"{quoted} IN ({', '.join(value for value in values if value)})"]
    if len(constraints) == 1 and zeek_type.sqlite != "TEXT" and (operator := _RANGES.get(constraints[0].op)):
        return [f"{quoted} {operator} {values[0]}"]
    return []


def _literal(zeek_type: ZeekType, expression: str) -> str | None:
    """The value as an SQL literal; None if it cannot be compared with a column of that type here."""
    if "\0" in expression or zeek_type.sqlite == "BLOB":
        return None
    if zeek_type.sqlite == "TEXT":
        return osquery_sql.literal(expression)
    for read in (int, float):
        with suppress(ValueError):
            return osquery_sql.literal(read(expression))
    return None


def cells(result: Result) -> OsqueryRows:
    """Rows in osquery's form: text by column, without nulls."""
    names = [(column.name, column.type) for column in result.columns]
    return [
        {
            name: _cell(encode(zeek_type, value))
            for (name, zeek_type), value in zip(names, row, strict=True)
            if value is not None
        }
        for row in result.rows
    ]


def _cell(stored: SqliteValue) -> str | bytes:
    match stored:
        case str():
            return stored if stored.isascii() else text.to_bytes(stored)
        case bytes():
            return stored
    return repr(stored)


class Extension:
    """The service that osquery calls. `uuid` is the number that it assigned to the extension."""

    def __init__(self, tables: Mapping[str, Table], query: QueryFunction, rows_max: int) -> None:
        self.uuid = 0
        self.calls = 0
        self.rows = 0
        self.last_error: str | None = None
        self._tables = tables
        self._query = query
        self._rows_max = rows_max
        self._lock = threading.Lock()
        self._shared: dict[str, tuple[float, OsqueryRows]] = {}

    def ping(self) -> Any:
        return self._status(0, "OK")

    def shutdown(self) -> None:
        """osquery is shutting down; the extension registers again when it is back."""
        log.info("osquery announced its shutdown")

    def call(self, registry: str, item: str, request: Mapping[str, str | bytes]) -> Any:
        """Rows or columns of a table. Errors are returned in the status."""
        self.calls += 1
        try:
            if registry != "table" or item not in self._tables:
                raise ZeekAgentError(f"there is no {registry} {item} here")
            rows = self._act(self._tables[item], request)
        except (ZeekAgentError, msgspec.MsgspecError) as error:
            self.last_error = f"{text.clipped(item)}: {error}"
            return interface().Response(status=self._status(1, str(error)), response=[])
        self.rows += len(rows)
        return interface().Response(status=self._status(0, "OK"), response=rows)

    def _act(self, table: Table, request: Mapping[str, str | bytes]) -> Sequence[Mapping[str, str | bytes]]:
        match request.get("action"):
            case "columns":
                return routes(table)
            case "generate":
                given = request.get("context") or "{}"
                plain = given if isinstance(given, str) else text.from_bytes(given)
                context = msgspec.json.decode(plain, type=QueryContext, strict=False)
                return self._generate(table, statement(table, context, self._rows_max))
        raise ZeekAgentError(f"table {table.name} is read-only")

    def _generate(self, table: Table, sql: str) -> OsqueryRows:
        now = time.monotonic()
        with self._lock:
            self._shared = {key: one for key, one in self._shared.items() if now - one[0] < SHARED_SECONDS}
            if sql in self._shared:
                return self._shared[sql][1]
        rows = cells(self._query(sql))
        if len(rows) > self._rows_max:
            raise SqlError(
                f"table {table.name}: more than {self._rows_max} rows (osquery.rows); restrict the query by time"
            )
        with self._lock:
            if len(self._shared) < SHARED_ANSWERS_MAX:
                self._shared[sql] = (time.monotonic(), rows)
        return rows

    def _status(self, code: int, message: str) -> Any:
        return interface().Status(code=code, message=message, uuid=self.uuid)


class Export:
    """Keeps the extension registered and serves it."""

    def __init__(self, extension: Extension, tables: Mapping[str, Table]) -> None:
        self.extension = extension
        self.registered = False
        self._registry = {"table": {name: routes(table) for name, table in tables.items()}}
        self._server: ExtensionServer | None = None

    @property
    def uuids(self) -> frozenset[int]:
        return frozenset({self.extension.uuid} if self.registered else ())

    def keep_registered(self, client: OsqueryClient) -> None:
        """Register unless osquery still knows the extension. Raises the exceptions of a call on the connection."""
        with client.connected() as connection:
            if self.registered and connection.extensions().get(self.extension.uuid) == NAME:
                return
            self._stop()
            info = interface().ExtensionInfo(
                name=NAME, version=__version__, sdk_version=SDK_VERSION, min_sdk_version=SDK_VERSION
            )
            self.extension.uuid = uuid = connection.register(info, self._registry)
            try:
                self._server = ExtensionServer(Path(client.path), self.extension)
            except OSError:
                connection.deregister(uuid)
                raise
        self.registered = True
        log.info("exported %d tables to osquery, extension %d", len(self._registry["table"]), uuid)

    def close(self, client: OsqueryClient) -> None:
        """Unregister the tables."""
        if self.registered:
            with suppress(ZeekAgentError), client.connected() as connection:
                connection.deregister(self.extension.uuid)
        self._stop()

    def _stop(self) -> None:
        self.registered = False
        if self._server is not None:
            self._server.close()
            self._server = None


class ExtensionServer:
    """Serves an extension at a socket next to osquery's, with one thread per connection.

    osquery's user may connect. Raises OSError if the socket cannot be created.
    """

    def __init__(self, manager: Path, extension: Extension) -> None:
        self._path = manager.with_name(f"{manager.name}.{extension.uuid}")
        self._extension = extension
        self._connections: set[socket.socket] = set()
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            if platforms.HERE.is_privileged():
                os.chown(self._path, manager.stat().st_uid, -1)
            self._socket.listen()
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="osquery-extension", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="osquery-call", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        from thriftpy2.protocol import TCyBinaryProtocol
        from thriftpy2.protocol.cybin import ProtocolError  # type: ignore[attr-defined]
        from thriftpy2.thrift import TException, TProcessor
        from thriftpy2.transport import TCyBufferedTransport, TSocket

        connection.settimeout(IDLE_TIMEOUT_SECONDS)
        transport = TCyBufferedTransport(TSocket(sock=connection), RECEIVE_BYTES)  # type: ignore[no-untyped-call]
        protocol = TCyBinaryProtocol(transport)  # type: ignore[no-untyped-call]
        processor = TProcessor(interface().Extension, self._extension)
        try:
            while True:
                processor.process(protocol, protocol)
        except (OSError, EOFError, TException):
            pass  # the caller closed the connection
        except (ProtocolError, AttributeError, LookupError, MemoryError, SystemError, TypeError, ValueError) as error:
            log.warning("invalid call from osquery: %s: %s", type(error).__name__, error)
        finally:
            self._connections.discard(connection)
            connection.close()
