"""Queries in this process, without a running agent: the same tables, and the events stored by an agent."""

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

from zeek_agent import __version__, identity, logbook, paths
from zeek_agent import config as configuration
from zeek_agent.access import AccessPolicy
from zeek_agent.control.messages import Frame, Request
from zeek_agent.database.database import Database
from zeek_agent.events import event_file
from zeek_agent.events.migrations import refuse_newer
from zeek_agent.events.store import NewerStoreError
from zeek_agent.signals import run_until_done
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables, plugin_tables

if TYPE_CHECKING:
    from zeek_agent.config import Config
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
        self.uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        self._connection = apsw.Connection(self.uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        self._connection.set_busy_timeout(2_000)
        refuse_newer(self._connection, path)
        self.id = str(self._connection.execute("SELECT id FROM _store").get)

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

    def close(self) -> None:
        self._connection.close()


class LocalAgent:
    """Substitute for a running agent: identity and configuration without any activity."""

    def __init__(self, config: Config, origins: Mapping[str, str], places: Paths, store: StoredEvents | None) -> None:
        stored = identity.read(places.identity)
        self.id = config.agent.id or (stored.id if stored else "")
        self.instance = identity.new_id("I")
        self.hostname = config.agent.hostname or socket.gethostname()
        self.database: Database | None = None
        self._config = config
        self._origins = origins
        self._store = store
        self._started = time.monotonic()

    def uptime(self) -> float:
        return time.monotonic() - self._started

    def tables(self) -> Iterable[Table]:
        tables = self.database.tables.values() if self.database is not None else ()
        return [table for table in tables if not table.alias]

    def recorded(
        self, sql: str, bindings: Sequence[int | float | str | None] = (), check: Callable[[], None] = lambda: None
    ) -> Sequence[Row]:
        return event_file.read_events(self._store.uri, sql, bindings, check) if self._store else ()

    def connections(self) -> Iterable[Row]:
        return ()

    def queries(self) -> Iterable[Row]:
        return ()

    def sources(self) -> Iterable[Row]:
        return ()

    def gaps(self) -> Iterable[Row]:
        return self._store.gaps() if self._store else ()

    def log(self) -> Iterable[Row]:
        return ()

    def config(self) -> Iterable[Row]:
        return configuration.rows(self._config, self._origins)


def open_database(config: Config, origins: Mapping[str, str]) -> Database:
    """A database of this host's tables and, read-only, of the events in the state directory, if any."""
    places = paths.locate(config)
    store = StoredEvents.at(places.store)
    agent = LocalAgent(config, origins, places, store)
    tables = [*builtin_tables(), *plugin_tables()]
    database = Database(
        tables, TableContext(agent, AccessPolicy(config.access, paths.protected(config, places))), config.limits, store
    )
    agent.database = database
    return database


class LocalResponder:
    """Answers requests in this process, with an event loop that runs only during a request."""

    remote = False

    def __init__(self, config: Config, origins: Mapping[str, str]) -> None:
        self._config = config
        self._origins = origins
        self._loop = asyncio.Runner()
        self._database: Database | None = None
        self._runner: QueryRunner | None = None
        self._bridge: Bridge | None = None
        logbook.to_terminal()

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        from zeek_agent.control.answers import answering

        if self._database is None:
            self._database = open_database(self._config, self._origins)
            self._bridge = self._open_bridge(self._database)
        answer = answering(self._database, self._repeater, self._status)
        frames = answer(request, f"local uid={os.getuid()} pid={os.getpid()}")
        try:
            while (frame := self._wait(anext(frames, None))) is not None:
                yield frame
        finally:
            self._wait(frames.aclose())

    def close(self) -> None:
        if self._runner is not None:
            self._wait(self._runner.close())
        if self._bridge is not None:
            self._bridge.close()
        if self._database is not None:
            self._wait(self._database.aclose())
        self._loop.close()

    def _wait(self, work: Awaitable[_T]) -> _T:
        """Run the loop until the work is done. An interrupt cancels the work and is raised here."""
        return run_until_done(self._loop.get_loop(), work)

    def _open_bridge(self, database: Database) -> Bridge | None:
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

        assert self._database is not None
        self._runner = self._runner or QueryRunner(self._database)
        return self._runner

    def _status(self) -> dict[str, Any]:
        return {"running": False, "version": __version__, "state_dir": str(paths.locate(self._config).state)}
