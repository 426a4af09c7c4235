"""Agents in this process whose host is given by the test: rows of the tables, and events in a real store.

All else is the agent's own: SQL, query runner, cursors, and connections to as many destinations as a test names. What
two destinations log of one agent can so be compared row by row.

    agent = ReplayedAgent("H1", directory, [zeek.url, "nats://127.0.0.1:4222"])
    await agent.start()
    agent.record("processes_events", 10)
    agent.change("users")
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zeek_agent import destination
from zeek_agent.access import AccessPolicy
from zeek_agent.bus.connection import BusConnection
from zeek_agent.bus.credentials import BusFiles
from zeek_agent.config.sections import BusSettings, BusTlsSettings, EventSettings, LimitSettings, ZeekSettings
from zeek_agent.database.database import Database
from zeek_agent.events.store import EventStore
from zeek_agent.identity import Identity
from zeek_agent.platforms.linux import PLATFORM as LINUX
from zeek_agent.queries.installed import Installed, QueryState
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.schema import Column, Row, Value, ZeekType
from zeek_agent.table import Constraints, Table, TableContext
from zeek_agent.tables import builtin_tables
from zeek_agent.zeek.connection import ZeekConnection

SETTINGS: Final = ZeekSettings(reconnect_min=0.2, reconnect_max=1.0)
LIMITS: Final = LimitSettings(time=300.0)
"""Statements of many agents in one process wait for each other."""
SNAPSHOT_ROWS: Final = 3
"""Rows of a snapshot table, for each pattern of paths, before and after it changes."""
EPOCH: Final = 1_700_000_000.0
TEXTS: Final = (
    "plain",
    "two words",
    "tab\tand\nline",
    "back\\slash",
    "Straße 東京",
    "\x1b[31m",
    "not UTF-8: \udcff",
    "",
)
AGENTS_OWN: Final = frozenset({"zeek_agent"})
"""Tables with rows of the agent itself, which its hello needs."""


CELLS: Final[Mapping[str, Callable[[int], Value]]] = {
    "count": lambda number: number,
    "int": lambda number: -number,
    "bool": lambda number: bool(number % 2),
    "real": lambda number: number / 8,
    "interval": lambda number: number / 8,
    "time": lambda number: EPOCH + number / 8,
    "address": lambda number: (
        f"10.1.{number >> 8 & 255}.{number & 255}" if number % 2 else f"fd00::{number & 0xFFFF:x}"
    ),
    "port": lambda number: (number % 65536, "tcp"),
    "blob": lambda number: b"\0\xff%d" % number,
    "record": lambda number: {"number": number},
}
"""Values of Zeek's types by number; all others are texts."""


def cell(kind: ZeekType, number: int) -> Value:
    """A value of a type, the same for the same number."""
    if kind.element is not None:
        return tuple(cell(kind.element, number + each) for each in range(number % 3))
    known = CELLS.get(kind.name)
    return f"{TEXTS[number % len(TEXTS)]} {number}" if known is None else known(number)


def host_row(columns: Iterable[Column], number: int) -> Row:
    """A row of any table; small numbers where a type of Zeek is narrower than the column's."""
    return [_known(column, number) or cell(column.zeek_type, number) for column in columns]


def _known(column: Column, number: int) -> Value:
    match column.name:
        case "protocol":
            return 6
        case "port" | "local_port" | "remote_port" | "server_port":
            return 1 + number % 65535
        case "type" | "kind":
            return "file"
        case "mode" | "permissions":
            return "4755"
        case _:
            return None


class _View:
    """The agent as its tables see it."""

    pid = 1

    def __init__(self, identity: Identity, database: list[Database]) -> None:
        self.id = identity.agent
        self.instance = identity.instance
        self.hostname = f"host-{identity.agent}"
        self._database = database
        self._began = time.monotonic()

    def uptime(self) -> float:
        return time.monotonic() - self._began

    def tables(self) -> Iterable[Table]:
        return self._database[0].tables.values()

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the agent's {name} is asked for")


class ReplayedAgent:
    """`start` connects it to its destinations; `stop` ends it in order."""

    def __init__(self, agent_id: str, directory: Path, destinations: Sequence[str]) -> None:
        self.id = agent_id
        self._generations: Counter[str] = Counter()
        self._recorded: Counter[str] = Counter()
        self._destinations = destinations
        directory.mkdir()
        tables = [self._given(table) for table in builtin_tables("linux") if table.osquery_name is None]
        self._events = {table.name: table for table in tables if table.kind == "events"}
        self._identity = Identity(agent_id, f"I-{agent_id}")
        databases: list[Database] = []
        self.store = EventStore(directory / "events.db", tables, EventSettings())
        context = TableContext(_View(self._identity, databases), AccessPolicy())  # type: ignore[arg-type]
        self.database = Database(tables, context, LIMITS, self.store)
        self.database.scans.max_age_seconds = 0.0
        databases.append(self.database)
        self.runner = QueryRunner(self.database, self.store)
        self._connections: list[ZeekConnection | BusConnection] = []
        self._tasks: list[asyncio.Task[None]] = []

    def _given(self, table: Table) -> Table:
        """The table with rows of the test in place of the host's."""
        if table.kind != "snapshot" or table.name in AGENTS_OWN:
            return table
        given = Table(
            table.name,
            table.summary,
            description=table.description,
            columns=table.columns,
            parameters=table.parameters,
            alias=table.alias,
        )

        @given.snapshot
        def rows(wanted: Constraints) -> Iterator[Row]:
            first = self._generations[table.name]
            for number in range(first, first + SNAPSHOT_ROWS):
                row = host_row(table.columns, number)
                pattern = wanted.parameters.get("pattern")
                if pattern is not None and "path" in (names := [column.name for column in table.columns]):
                    row = list(row)
                    row[names.index("path")] = f"{str(pattern).replace('*', 'x')} {number}"
                yield row

        return given

    async def start(self) -> None:
        for url in self._destinations:
            (target,) = destination.parse_all([url])
            common: tuple[Any, ...] = (SETTINGS, self._identity, self.database, self.runner)
            connection: ZeekConnection | BusConnection
            if target.is_bus:
                files = BusFiles(None, BusTlsSettings())
                connection = BusConnection(target, BusSettings(), files, *common, platform=LINUX)
            else:
                connection = ZeekConnection(target, *common, platform=LINUX)
            self._connections.append(connection)
            self._tasks.append(asyncio.create_task(connection.run(), name=f"{self.id} to {url}"))

    async def stop(self) -> None:
        await asyncio.gather(*(connection.shutdown() for connection in self._connections))
        await asyncio.gather(*self._tasks)
        await self.runner.close()
        await self.database.aclose()
        await asyncio.to_thread(self.store.close)

    def record(self, table: str, rows: int) -> None:
        """Add so many events to the store, each different from all others of this agent."""
        first = self._recorded[table]
        self._recorded[table] += rows
        columns = self._events[table].recorded
        names = [column.name for column in columns]
        now, added = time.time(), []
        for number in range(first, first + rows):
            row = list(host_row(columns, number))
            row[names.index("time")] = now + (number - first) / 1e6
            added.append(row)
        self.store.append(table, added)

    def change(self, table: str) -> None:
        """Replace the first row of a snapshot table by a new one at the end."""
        self._generations[table] += 1

    @property
    def event_tables(self) -> Sequence[str]:
        return tuple(self._events)

    def recorded(self, table: str) -> int:
        """How many events it has recorded."""
        return self._recorded[table]

    def has_run(self) -> bool:
        """Whether there are queries of all destinations, and all that can run have done so."""
        identities = {one.recipient.identity for one in self.runner.installed}
        return len(identities) == len(self._destinations) and all(
            one.runs or _waits(one) for one in self.runner.installed
        )

    def has_delivered(self) -> bool:
        """Whether all events have been acknowledged by the recipients of all queries on them."""
        installed = self.runner.installed
        return self.has_run() and all(
            one.seen.get(table) == self.store.last_seq(table) for one in installed for table in one.event_tables
        )

    def runs(self) -> dict[str, int]:
        """How often each query has run."""
        return {one.query_id: one.runs for one in self.runner.installed}

    def has_run_again(self, before: Mapping[str, int], times: int, seconds: float) -> bool:
        """Whether all queries that run at least every so many seconds have done so again."""
        return self.has_run() and all(
            one.runs >= before.get(one.query_id, 0) + times
            for one in self.runner.installed
            if not _waits(one) and one.query.schedule is not None and one.query.schedule <= seconds
        )

    def waiting(self) -> str:
        """What is still to come."""
        return "; ".join(
            f"{one.recipient.identity}, {one.runs} runs, {one.seen}, {one.last_error}: {one.query.sql[:60]}"
            for one in self.runner.installed
            if one.event_tables or not one.runs
        )


def _waits(one: Installed) -> bool:
    """For a table, or to be cancelled because it ran once."""
    return one.state is QueryState.WAITING
