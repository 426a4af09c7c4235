"""Queries without a running agent: the same tables, and the events stored by an agent.

Statements run in worker processes if this process is root's, as in a running agent; an ordinary user's run in here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import apsw
import msgspec

from zeek_agent import __version__, identity, logbook, paths, platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.config import declarations
from zeek_agent.control.messages import EncodedLines, Frame, Request, decode_frame
from zeek_agent.database.database import Database, SqlDatabase
from zeek_agent.errors import SqlError
from zeek_agent.events import reading
from zeek_agent.events.migrations import refuse_newer
from zeek_agent.events.store import NewerStoreError
from zeek_agent.host.hostname import hostname
from zeek_agent.host_tables import host_tables
from zeek_agent.signals import run_until_done
from zeek_agent.table import TableContext
from zeek_agent.terminal.console import age, iso_time

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.containment.pool import WorkerPool
    from zeek_agent.osquery.bridge import Bridge
    from zeek_agent.paths import Paths
    from zeek_agent.queries.runner import QueryRunner
    from zeek_agent.schema import Row
    from zeek_agent.table import Table

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class StoredEvents:
    """The event store of a state directory, read-only: events stored by an agent, but no new ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        self._connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        self._connection.set_busy_timeout(2_000)
        refuse_newer(self._connection, path)
        self.id = str(self._connection.execute("SELECT id FROM _store").get)
        self.uri = f"{uri}&store={self.id}"

    @classmethod
    def at(cls, path: Path) -> StoredEvents | None:
        """The store in that file; None if there is none, or, with a warning, if it cannot be read."""
        try:
            return cls(path) if path.exists() else None
        except (apsw.Error, OSError) as error:
            log.warning("cannot read the events in %s (%s): event tables are empty", path, error)
        except NewerStoreError as error:
            log.warning("%s; event tables are empty here", error)
        return None

    def first(self, table: str) -> int:
        """Lowest retained `seq`; 0 when the table is empty."""
        return int(self._connection.execute(f'SELECT min(seq) FROM "{table}"').get or 0)

    def last(self, table: str) -> int:
        """Highest `seq` ever assigned; 0 when none was."""
        return int(self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).get or 0)

    def gaps(self) -> Sequence[Row]:
        """Periods without recording: source, from, until, cause."""
        return self._connection.execute('SELECT source, "from", until, cause FROM _gaps ORDER BY "from"').fetchall()

    def newest(self) -> float | None:
        """When the newest event happened; None if there are none."""
        tables = self._connection.execute(
            "SELECT s.name FROM sqlite_sequence s JOIN pragma_table_info(s.name) c WHERE c.name = 'time'"
        ).fetchall()
        times = [self._newest_in(str(table)) for (table,) in tables]
        return max((time_ for time_ in times if time_ is not None), default=None)

    def _newest_in(self, table: str) -> float | None:
        """Rows are stored nearly, but not exactly, in the order of their times."""
        last = f'SELECT time FROM "{table}" ORDER BY seq DESC LIMIT 100'
        found = self._connection.execute(
            f"SELECT max(time) FROM ({last}) WHERE typeof(time) IN ('real', 'integer')"
        ).get
        return None if found is None else float(found)

    def close(self) -> None:
        self._connection.close()


class LocalAgent:
    """Substitute for a running agent: identity and configuration without any activity."""

    def __init__(self, config: Config, origins: Mapping[str, str], places: Paths, store: StoredEvents | None) -> None:
        stored = identity.read(places.identity)
        self.id = config.agent.id or (stored.id if stored else "")
        self.instance = identity.new_id("I")
        self.pid = os.getpid()
        self.database: SqlDatabase | None = None
        self.pool: WorkerPool | None = None
        """The worker processes of the database, if its statements run in some."""
        self._config = config
        self._origins = origins
        self._places = places
        self._store = store
        self.started = time.monotonic()

    @property
    def hostname(self) -> str:
        return hostname(self._config.agent.hostname)

    def uptime(self) -> float:
        return time.monotonic() - self.started

    def events_notice(self) -> str:
        """Which events there are, and how old the newest is."""
        if self._store is None:
            exists = os.access(self._places.store, os.F_OK)
            return f"no {'events are readable' if exists else 'recorded events'} in {self._places.state}"
        try:
            newest = self._store.newest()
        except apsw.Error as error:
            return f"the events in {self._store.path} cannot be read ({error})"
        if newest is None:
            return f"no recorded events in {self._store.path}"
        return f"the newest event in {self._store.path} is {age(time.time() - newest)} old ({iso_time(newest)})"

    def tables(self) -> Iterable[Table]:
        tables = self.database.tables.values() if self.database is not None else ()
        return [table for table in tables if not table.alias]

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        return reading.iterate_events(self._store.uri, sql, bindings, check, functions) if self._store else ()

    def connections(self) -> Iterable[Row]:
        return ()

    def queries(self) -> Iterable[Row]:
        return ()

    def workers(self) -> Iterable[Row]:
        return self.pool.status() if self.pool is not None else ()

    def sources(self) -> Iterable[Row]:
        return ()

    def gaps(self) -> Iterable[Row]:
        return self._store.gaps() if self._store else ()

    def log(self) -> Iterable[Row]:
        return ()

    def config(self) -> Iterable[Row]:
        return declarations.rows(self._config, self._origins)


class OsqueryTables:
    """osquery's tables for worker processes, once there is a bridge."""

    def __init__(self) -> None:
        self.bridge: Bridge | None = None

    def describe(self) -> bytes:
        return b"" if self.bridge is None else self.bridge.imported()

    def connect(self) -> socket.socket:
        """Blocks. Raises SqlError."""
        if self.bridge is None:
            raise SqlError("osquery is not used here")
        return self.bridge.connect()


def open_agent(config: Config, origins: Mapping[str, str], osquery: OsqueryTables, *, contained: bool) -> LocalAgent:
    """An agent whose database has this host's tables and, read-only, the events in the state directory, if any.

    `contained` runs its statements in worker processes. Raises ZeekAgentError if there is no user for them.
    """
    places = paths.locate_for_commands(config)
    store = StoredEvents.at(places.store)
    agent = LocalAgent(config, origins, places, store)
    tables, own = host_tables(config)
    protected = tuple(
        dict.fromkeys(
            (
                *paths.protected(config, places),
                *paths.protected(config, paths.locate(config)),
                *map(str, paths.states_of_clone()),
            )
        )
    )
    context = TableContext(agent, AccessPolicy(config.access, protected))
    if not contained:
        agent.database = Database(tables, context, config.limits, store)
        return agent
    from zeek_agent.containment import needs
    from zeek_agent.containment.contained_database import ContainedDatabase

    async def record_nothing() -> None:
        """The store has all events that there are."""

    setup = needs.worker_setup(config, places, agent, agent.started, own=own)
    nobody_waits = msgspec.structs.replace(config.limits, cpu=float(os.cpu_count() or 1))
    database = ContainedDatabase(
        tables,
        context,
        nobody_waits,
        store,
        setup=msgspec.structs.replace(setup, protected=protected),
        need=lambda need: needs.answer(need, agent, record_nothing, osquery.connect),
        osquery=osquery.describe,
    )
    agent.database, agent.pool = database, database.pool
    return agent


class LocalResponder:
    """Answers requests without an agent, with an event loop that runs only during a request."""

    place = "this process"

    def __init__(self, config: Config, origins: Mapping[str, str], reason: str = "no agent is running") -> None:
        """`reason` says why no agent answers."""
        self._config = config
        self._origins = origins
        self._reason = reason
        self._loop = asyncio.Runner(loop_factory=platforms.HERE.new_event_loop)
        self._agent: LocalAgent | None = None
        self._runner: QueryRunner | None = None
        self._osquery = OsqueryTables()
        logbook.to_terminal()

    @property
    def notice(self) -> str | None:
        self._opened()
        assert self._agent is not None
        return f"{self._reason}: this host is read directly; {self._agent.events_notice()}"

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        from zeek_agent.control.answers import answering

        database = self._opened()
        self._wait(asyncio.sleep(0))  # worker processes may have ended since the last request
        answer = answering(database, self._repeater, self._status)
        frames = answer(request, f"local {_requester()}")
        try:
            while (frame := self._wait(anext(frames, None))) is not None:
                if isinstance(frame, EncodedLines):
                    yield from map(decode_frame, frame.lines)
                else:
                    yield frame
        finally:
            self._wait(frames.aclose())

    def close(self) -> None:
        if self._runner is not None:
            self._wait(self._runner.close())
        if self._osquery.bridge is not None:
            self._osquery.bridge.close()
        if self._agent is not None:
            self._wait(self._opened().aclose())
        self._loop.close()

    def _opened(self) -> SqlDatabase:
        """The database, opened at the first request."""
        if self._agent is None:
            contained = platforms.HERE.confines_workers and platforms.HERE.is_privileged()
            self._agent = open_agent(self._config, self._origins, self._osquery, contained=contained)
            assert self._agent.database is not None
            self._osquery.bridge = self._open_bridge(self._agent.database)
        assert self._agent.database is not None
        return self._agent.database

    def _wait(self, work: Awaitable[_T]) -> _T:
        """Run the loop until the work is done. An interrupt cancels the work and is raised here."""
        try:
            return run_until_done(self._loop.get_loop(), work)
        except KeyboardInterrupt:
            self._kill_statement()
            raise

    def _kill_statement(self) -> None:
        """End the interrupted statement at once: nothing does so while the loop does not run."""
        if self._agent is not None and self._agent.pool is not None:
            self._agent.pool.cancel_all()

    def _open_bridge(self, database: SqlDatabase) -> Bridge | None:
        """Add osquery's tables if a socket is configured; searching for one would slow down each command."""
        from zeek_agent.osquery import bridge

        settings = self._config.osquery
        if settings.socket in (bridge.OFF, bridge.AUTO):
            return None
        opened = bridge.Bridge(msgspec.structs.replace(settings, export=()), database)
        opened.refresh_blocking()
        return opened

    def _repeater(self) -> QueryRunner:
        from zeek_agent.queries.runner import QueryRunner

        self._runner = self._runner or QueryRunner(self._opened())
        return self._runner

    def _status(self) -> dict[str, Any]:
        places = paths.locate_for_commands(self._config)
        return {"running": False, "version": __version__, "state_dir": str(places.state)}


def _requester() -> str:
    """This user and process, for the audit log: `uid=1000 pid=4711`."""
    uid = platforms.HERE.user_id()
    return f"pid={os.getpid()}" if uid is None else f"uid={uid} pid={os.getpid()}"
