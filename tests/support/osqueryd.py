"""An osqueryd for tests: osquery's own generated server classes over a real socket, and a real SQLite behind them.

Any SQL is answered. Tables are virtual tables that, as in osquery, may have hidden columns, columns that must be given
a value, and a count of how often rows were generated. What arrived is kept in `statements`.
"""

# ruff: noqa: N802 - names of apsw, Thrift and osquery

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import apsw.ext
import msgspec
from osquery.extensions import ExtensionManager
from osquery.extensions.ttypes import ExtensionResponse, ExtensionStatus, InternalExtensionInfo, InternalOptionInfo
from sql import Recorder, database
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TTransportException

from zeek_agent import text
from zeek_agent.config.sections import OsquerySettings
from zeek_agent.osquery.bridge import Bridge
from zeek_agent.table import Table

OK = ExtensionStatus(0, "OK", 0)
Generator = Callable[[Mapping[str, set[Any]]], Iterable[Sequence[Any]]]


@dataclass
class FakeTable:
    """Columns by name and osquery type; those in `hidden` are not shown by `*`, one of `required` must be given."""

    columns: Mapping[str, str]
    rows: Iterable[Sequence[Any]] | Generator = ()
    hidden: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    owner: int = 0
    generated: list[Mapping[str, set[Any]]] = field(default_factory=list)
    """What each scan was given: values by column."""


class _Module:
    """SQLite's view of one table: equalities are taken, as for osquery's indexed columns."""

    def __init__(self, table: FakeTable) -> None:
        self.table = table

    def Create(self, connection: Any, module: str, database: str, name: str, *_: Any) -> tuple[str, _Module]:
        columns = (
            f'"{column}" {kind}{" HIDDEN" if column in self.table.hidden else ""}'
            for column, kind in self.table.columns.items()
        )
        return f"CREATE TABLE t({', '.join(columns)})", self

    Connect = Create

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        names = list(self.table.columns)
        taken = []
        for which in range(info.nConstraint):
            if info.get_aConstraint_op(which) in (2, 65) and info.get_aConstraint_usable(which):
                taken.append(names[info.get_aConstraint_iColumn(which)])
                info.set_aConstraintUsage_argvIndex(which, len(taken))
                if info.get_aConstraintUsage_in(which):
                    info.set_aConstraintUsage_in(which, True)
        info.idxStr = " ".join(taken)
        info.estimatedCost = 1 if taken else 1_000_000
        return True

    def Open(self) -> _Cursor:
        return _Cursor(self.table)

    def Disconnect(self) -> None:
        pass

    Destroy = Disconnect


class _Cursor:
    def __init__(self, table: FakeTable) -> None:
        self.table = table

    def Filter(self, number: int, names: str, values: Sequence[Any] | None) -> None:
        given: dict[str, set[Any]] = {}
        for name, value in zip(names.split(), values or (), strict=True):
            given.setdefault(name, set()).update(value if isinstance(value, set) else {value})
        self.table.generated.append(given)
        rows = self.table.rows(given) if callable(self.table.rows) else self.table.rows
        if self.table.required and not self.table.required & given.keys():
            rows = ()  # osquery warns in its log and gives nothing
        self.rows = list(rows)
        self.position = 0

    def Eof(self) -> bool:
        return self.position >= len(self.rows)

    def Next(self) -> None:
        self.position += 1

    def Column(self, number: int) -> Any:
        return self.position if number < 0 else self.rows[self.position][number]

    def Rowid(self) -> int:
        return self.position

    def Close(self) -> None:
        self.rows = []


class WireProtocol(TBinaryProtocol):
    """Texts hold any bytes, as in C++; here in the form of `zeek_agent.text`."""

    def writeString(self, value: str) -> None:
        self.writeBinary(text.to_bytes(value))

    def readString(self) -> str:
        return text.from_bytes(self.readBinary())


class Osqueryd(ExtensionManager.Iface):
    """osquery at a socket. `delay` is slept before each answer; `before_answer` may raise, or close the connection."""

    def __init__(self, path: Path, tables: Mapping[str, FakeTable], null: str = "") -> None:
        self.path = path
        self.tables = dict(tables)
        self.null = null
        self.delay = 0.0
        self.statements: list[str] = []
        self.registered: dict[int, tuple[Any, Mapping[str, Any]]] = {}
        self.hang_up_on: str | None = None
        self.connections: set[socket.socket] = set()
        self._uuid = 100
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()

    # Life

    def start(self) -> Osqueryd:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """As when the process is killed: connections break, the socket's file stays."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.hang_up()
        self.registered.clear()

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Osqueryd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def asked(self, table: str) -> list[str]:
        """The statements about a table that came, without those that look for tables and columns."""
        return [sql for sql in self.statements if f"FROM `{table}`" in sql]

    # The service

    def ping(self) -> Any:
        return OK

    def extensions(self) -> Any:
        return {uuid: info for uuid, (info, _) in self.registered.items()}

    def options(self) -> Any:
        return {"nullvalue": InternalOptionInfo(self.null, "", "string")}

    def registerExtension(self, info: InternalExtensionInfo, registry: Mapping[str, Any]) -> Any:
        if any(known.name == info.name for known, _ in self.registered.values()):
            return ExtensionStatus(1, "Duplicate extension registered", 0)
        self._uuid += 1
        self.registered[self._uuid] = (info, registry)
        return ExtensionStatus(0, "OK", self._uuid)

    def deregisterExtension(self, uuid: int) -> Any:
        known = self.registered.pop(uuid, None)
        return OK if known else ExtensionStatus(1, "No extension UUID found", 0)

    def query(self, sql: str) -> Any:
        self.statements.append(sql)
        time.sleep(self.delay)
        if self.hang_up_on is not None and self.hang_up_on in sql:
            self.hang_up()
        try:
            with self._lock, contextlib.closing(self._database()) as database:
                cursor = database.execute(sql)
                return ExtensionResponse(OK, [self._row(names, row) for names, row in _named(cursor)])
        except apsw.Error as error:
            return ExtensionResponse(ExtensionStatus(1, str(error), 0), [])

    def getQueryColumns(self, sql: str) -> Any:
        try:
            with contextlib.closing(self._database()) as database:
                columns = apsw.ext.query_info(database, sql).description_full or ()
                return ExtensionResponse(OK, [{name: kind or "UNKNOWN"} for name, kind, *_ in columns])
        except apsw.Error as error:
            return ExtensionResponse(ExtensionStatus(1, str(error), 0), [])

    def _row(self, names: Sequence[str], row: Sequence[Any]) -> dict[str, str]:
        return {name: self._cell(cell) for name, cell in zip(names, row, strict=True)}

    def _cell(self, cell: Any) -> str:
        """As osquery turns what SQLite gives into text; a blob is cut off at a zero byte."""
        match cell:
            case None:
                return self.null
            case bytes():
                return text.from_bytes(cell.partition(b"\0")[0])
            case float():
                return f"{cell:.15g}" if "." in f"{cell:.15g}" else f"{cell:.15g}.0"
        return str(cell)

    def _database(self) -> apsw.Connection:
        """All tables, those of extensions too, and osquery's table of tables."""
        database = apsw.Connection(":memory:")
        registry = [("table", name, table.owner, 0, 1) for name, table in self.tables.items()]
        for uuid, (_, plugins) in self.registered.items():
            registry += [("table", name, uuid, 0, 1) for name in plugins.get("table", {})]
        registry.append(("config", "filesystem", 0, 0, 1))
        columns = dict.fromkeys(("registry", "name"), "TEXT") | dict.fromkeys(
            ("owner_uuid", "internal", "active"), "INTEGER"
        )
        tables = {**self.tables, "osquery_registry": FakeTable(columns, registry)}
        for name, table in tables.items():
            database.create_module(name, _Module(table), use_bestindex_object=True)
            database.execute(f'CREATE VIRTUAL TABLE "{name}" USING "{name}"')
        return database

    # The wire

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        transport = TSocket()
        transport.setHandle(connection)
        protocol = WireProtocol(TBufferedTransport(transport))
        processor = ExtensionManager.Processor(self)
        with contextlib.suppress(TTransportException, OSError):
            while True:
                processor.process(protocol, protocol)
        self.connections.discard(connection)
        connection.close()


def _named(cursor: apsw.Cursor) -> Iterator[tuple[list[str], Sequence[Any]]]:
    for row in cursor:
        yield [name for name, *_ in cursor.description_full], row


def usual_tables() -> dict[str, FakeTable]:
    """A few of osquery's tables, with what is odd about them."""
    users = [(0, 0, "root", "", "/root", "/bin/bash"), (1000, 1000, "ann", None, "/home/ann", "/bin/zsh")]
    return {
        "users": FakeTable(
            {
                "uid": "BIGINT",
                "gid": "BIGINT",
                **dict.fromkeys(("username", "description", "directory", "shell"), "TEXT"),
                "include_remote": "INTEGER",
            },
            [(*user, None) for user in users],
            hidden=frozenset({"include_remote"}),
        ),
        "deb_packages": FakeTable(
            {"name": "TEXT", "version": "TEXT", "size": "BIGINT", "weight": "DOUBLE"},
            [(f"package{n}", f"1.{n}", n * 1000, n / 2) for n in range(100)],
        ),
        "file": FakeTable(
            {"path": "TEXT", "directory": "TEXT", "size": "BIGINT"},
            lambda given: [(path, "/", len(path)) for path in sorted(given.get("path", ()))],
            required=frozenset({"path", "directory"}),
        ),
        "odd": FakeTable(
            {"n": "INTEGER", "u": "UNSIGNED BIGINT", "d": "DOUBLE", "t": "TEXT", "b": "BLOB"},
            [
                (1, 2, 0.5, "", b"\0\xff"),
                (None, None, None, None, None),
                (-(2**63), -1, 1e300, "it's\uef80 ü", b""),
            ],
        ),
        "file_events": FakeTable(
            {"time": "BIGINT", "target_path": "TEXT", "action": "TEXT", "eid": "TEXT"}, hidden=frozenset({"eid"})
        ),
        "osquery_events": FakeTable({"name": "TEXT", "type": "TEXT"}, [("file_events", "subscriber")]),
        "osquery_info": FakeTable({"version": "TEXT", "pid": "INTEGER"}, [("5.99.0", 1)]),
    }


SETTINGS = OsquerySettings(refresh=0.05, time=5.0)


class Bridged:
    """A database with osquery's tables beside a few of its own, and the osquery behind it."""

    def __init__(self, osquery: Osqueryd, tables: Iterable[Recorder | Table], **settings: Any) -> None:
        store, recorded = settings.pop("store", None), settings.pop("recorded", lambda sql: ())
        limits, access = settings.pop("limits", None), settings.pop("access", None)
        self.osquery = osquery
        self.db = database(*tables, store=store, limits=limits, access=access)
        chosen = msgspec.structs.replace(SETTINGS, **{"socket": str(osquery.path), **settings})
        self.bridge = Bridge(chosen, self.db, store, recorded)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        result = await self.db.query(sql)
        assert result.errors == ()
        return result.rows

    async def asks(self, sql: str) -> list[str]:
        """The statements that reach osquery for one here."""
        await asyncio.sleep(0)
        self.osquery.statements.clear()
        self.bridge.client.forget_answers()
        await self.db.query(sql)
        return list(self.osquery.statements)

    def source(self, backend: str = "import") -> dict[str, Any]:
        """The row of zeek_agent_sources."""
        return next(row for row in (one._asdict() for one in self.bridge.status()) if row["backend"] == backend)

    async def __aenter__(self) -> Bridged:
        await self.bridge.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.bridge.close)
        await self.db.aclose()
