"""The running agent: builds its parts from the configuration, runs them, and shuts them down in order on a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import apsw

from zeek_agent import __version__, heap, identity, logbook, paths, platforms, service_manager
from zeek_agent.access import AccessPolicy
from zeek_agent.bpf import iterators, probe
from zeek_agent.config import declarations
from zeek_agent.containment import agent_capabilities, needs
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.uncontained_database import UncontainedDatabase
from zeek_agent.containment.usage import memory, recipient_of
from zeek_agent.containment.worker_process import KillCause
from zeek_agent.control.answers import answering
from zeek_agent.control.server import ControlServer
from zeek_agent.control_transport import NotListeningError
from zeek_agent.destination import EMBEDDED, formerly_embedded, parse_all
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.events import reading
from zeek_agent.events.store import EventStore
from zeek_agent.host.hostname import hostname
from zeek_agent.host_tables import HostTables, host_tables
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.reload import Changes, Loaded, compare
from zeek_agent.results.snapshots import take_snapshots
from zeek_agent.results.state import ResultStateError
from zeek_agent.results.store import ResultStore
from zeek_agent.signals import HangupSignal, on_hangup, stop_signals
from zeek_agent.table import TableContext
from zeek_agent.text import escaped
from zeek_agent.zeek.connection import ZeekConnection
from zeek_agent.zeek.connection_errors import UnusableError

if TYPE_CHECKING:
    from zeek_agent.bus.connection import BusConnection
    from zeek_agent.collector.embedded import EmbeddedCollector
    from zeek_agent.collector.in_process import CollectorInProcess
    from zeek_agent.config.declarations import Config
    from zeek_agent.config.sections import MetricsSettings, SourceSettings
    from zeek_agent.containment.agent_capabilities import Dropped
    from zeek_agent.containment.messages import Need, Setup
    from zeek_agent.containment.pool import WorkerStatus
    from zeek_agent.destination import Destination
    from zeek_agent.identity import Identity
    from zeek_agent.logbook import RecentLines
    from zeek_agent.masking.masker import Masker
    from zeek_agent.metrics.server import MetricsServer
    from zeek_agent.osquery.bridge import Bridge
    from zeek_agent.own_tables.declarations import OwnTable
    from zeek_agent.paths import Paths
    from zeek_agent.queries.installed import QueryStatus
    from zeek_agent.recording.bpf_objects import EarlyObjects
    from zeek_agent.recording.files.file_watcher_link import FileWatchers
    from zeek_agent.recording.source import Source
    from zeek_agent.recording.status import SourceStatus
    from zeek_agent.schema import Row
    from zeek_agent.table import Table
    from zeek_agent.zeek.lasting_connection import ConnectionStatus

AgentsCollector: TypeAlias = "EmbeddedCollector | CollectorInProcess"

log = logging.getLogger(__name__)


async def run_agent(
    load: Callable[[], Loaded],
    early: EarlyObjects | None = None,
    dropped: Dropped | None = None,
    hangup: HangupSignal | None = None,
    watchers: FileWatchers | None = None,
) -> int:
    """Run until SIGTERM or SIGINT. Raises ZeekAgentError if the agent cannot start.

    `load` reads and checks the configuration, and does so again for SIGHUP and `zeek-agent reload`. `early` has BPF
    objects that are being attached. `dropped` are the capabilities that were dropped before. `hangup` handles SIGHUP
    already, so that none before this call ends the program. `watchers` starts processes that watch files, which need
    one of these.
    """
    loaded = load()
    config, origins = loaded.config, loaded.origins
    shows_summary = not config.zeek.destinations and sys.stdout.isatty()
    heap.share()
    manager = service_manager.ServiceManager()
    quiet = shows_summary and origins.get("log.level", "default") == "default"
    ring = logbook.set_up(config.log, quiet=quiet, warnings=loaded.warnings)
    places = paths.locate(config)
    with identity.only_one(places.lock):
        who = identity.establish(places.identity, config.agent.id)
        if dropped is not None and dropped.directory is not None:
            kept = " and ".join(agent_capabilities.FOR_OTHERS_DIRECTORIES)
            log.info("kept %s, because %s belongs to another user", kept, dropped.directory)
        agent = Agent(config, origins, places, who, ring, quiet=quiet, load=load, early=early, watchers=watchers)
        with stop_signals() as stopped:
            async with agent:
                with on_hangup(agent.reload_or_log, hangup):
                    async with service_manager.informed(manager, agent.summary, agent.problem):
                        heap.trim()
                        log.info("%s: stopping", await stopped)
    return 0


class Agent:
    """The agent's parts, as a context manager that starts and stops them; also the data of the agent's own tables."""

    def __init__(
        self,
        config: Config,
        origins: Mapping[str, str],
        places: Paths,
        who: Identity,
        ring: RecentLines,
        *,
        quiet: bool = False,
        load: Callable[[], Loaded] | None = None,
        early: EarlyObjects | None = None,
        watchers: FileWatchers | None = None,
    ) -> None:
        """`quiet` keeps messages about normal operation off standard error. `load` reads the configuration again.

        `early` and `watchers` are as for `run_agent`.
        """
        self.id = who.agent
        self.instance = who.instance
        self.pid = os.getpid()
        self._config = config
        self._origins = origins
        self._places = places
        self._identity = who
        self._ring = ring
        self._quiet = quiet
        self._load = load
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[str]] = set()
        self._stopping = False
        self._started = time.monotonic()
        self._started_at = time.time()
        self._connections: list[ZeekConnection | BusConnection] = []
        self._running: dict[ZeekConnection | BusConnection, asyncio.Task[None]] = {}
        self._metrics: MetricsServer | None = None
        self._collector: AgentsCollector | None = None
        self._collector_instances: tuple[str, ...] = ()
        self._early = early
        self._records: Supervisor | None = None
        self._summary: asyncio.Task[None] | None = None
        self._bridge: Bridge | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        access = AccessPolicy(config.access, paths.protected(config, places))
        self._access = access
        self._masker = access.masker
        """The sources hold it, so it is changed and never replaced."""
        tables, self._own_tables = host_tables(config)
        self.store = EventStore(
            places.store,
            tables,
            config.events,
            state_bytes=config.limits.state_bytes,
            on_blocked_reader=self._end_readers,
            recorded_until=self._recorded_until,
        )
        self.database = self._open_database(tables, access)
        choose = partial(candidates, early=early, watchers=watchers, may_read=self._may_read, state=places.state)

        def sources(settings: SourceSettings, masker: Masker | None) -> Mapping[str, Sequence[Source]]:
            return {**choose(settings, masker), **self._followed(self._own_tables)}

        self.supervisor = Supervisor(config.sources, self.store, choose=sources, masker=access.masker)
        self._records = self.supervisor
        self.results = ResultStore(places.results, config.limits.state_bytes, clock=self.store.age_clock)
        self.runner = QueryRunner(
            self.database,
            self.store,
            results=self.results,
            drain=Coalesced(self._drain),
            formerly={str(EMBEDDED): formerly_embedded(config.collector.listen)},
        )
        self._parts = AsyncExitStack()

    def _open_database(self, tables: Iterable[Table], access: AccessPolicy) -> ContainedDatabase | UncontainedDatabase:
        context, limits = TableContext(self, access), self._config.limits
        if not platforms.HERE.confines_workers:
            return UncontainedDatabase(tables, context, limits, self.store, drain=self._drain)
        return ContainedDatabase(
            tables,
            context,
            limits,
            self.store,
            setup=self._worker_setup(self._config, self._own_tables),
            need=self._answer_need,
            directory=self._places.state,
            osquery=self._describe_osquery,
            iterators=lambda: iterators.loaded_iterators() is not None,
        )

    def _worker_setup(self, config: Config, own: Sequence[OwnTable], former: Setup | None = None) -> Setup:
        return needs.worker_setup(config, self._places, self, self._started, former, own=own)

    def _may_read(self, path: str) -> bool:
        """Whether the access rules, as they are now, permit a file's hash."""
        return self._access.may_read(path)

    def _denies(self, path: str) -> bool:
        """Whether the access rules, as they are now, deny a file's contents."""
        return self._access.denies(path)

    def _followed(self, own: Sequence[OwnTable]) -> Mapping[str, Sequence[Source]]:
        """The sources of those tables that follow files."""
        if not own:
            return {}
        from zeek_agent.recording.followed.followed_table import followed_sources

        return followed_sources(own, self.store, self._denies)

    async def __aenter__(self) -> Agent:
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        async with self._reloading:  # a reload that has begun is completed: it changes the parts that end now
            await self._parts.aclose()
        log.info("stopped")

    async def _start(self) -> None:
        """Start the parts, each after those that it needs; they end in the reverse order."""
        self._loop = asyncio.get_running_loop()
        log.info("zeek-agent %s, agent %s, state in %s", __version__, self.id, self._places.state)
        if platforms.HERE.key == "linux" and not probe.is_built():
            log.warning(
                "this installation has no eBPF programs: short-lived processes and connections are missed. Install a "
                "package or wheel that has them, or build with clang and libbpf-dev"
            )
        parts = self._parts
        parts.push_async_callback(asyncio.to_thread, self.store.close)
        parts.push_async_callback(asyncio.to_thread, self.results.close)
        await asyncio.to_thread(self._take_snapshots)
        parts.push_async_callback(self.database.aclose)
        parts.push_async_callback(asyncio.to_thread, self.supervisor.stop)
        await asyncio.to_thread(self.supervisor.start)
        if self._early is not None:
            await asyncio.to_thread(self._early.close)
        parts.push_async_callback(self.runner.close)
        self._bridge = self._start_bridge()
        parts.push_async_callback(self._stop_collector)
        if not self._config.zeek.destinations:
            self._prepare_collector()
        elif self._config.log.file is not None and sys.stdout.isatty():
            self._announce(f"connecting to {', '.join(self._config.zeek.destinations)}")
        await self._start_control()
        await self._start_metrics()
        parts.push_async_callback(self._stop_metrics)
        parts.push_async_callback(self._disconnect)
        self._start_renewal()
        self._connect_all()

    def _take_snapshots(self) -> None:
        """Take over what an earlier release kept in the event store; without it, queries start over."""
        try:
            take_snapshots(self.results, self.store, self._places.state)
        except (ResultStateError, apsw.Error, OSError) as error:
            log.warning("last results of queries cannot be taken over from the event store: %s", error)

    def _start_bridge(self) -> Bridge | None:
        """Start the osquery bridge, unless it is disabled."""
        if self._config.osquery.socket == "off":
            return None
        from zeek_agent.osquery.bridge import Bridge

        bridge = Bridge(self._config.osquery, self.database, self.store, self.recorded)
        self._background(bridge.run(), "osquery")
        return bridge

    def _start_renewal(self) -> None:
        """Renew the credentials of an enrolled agent in time."""
        from zeek_agent.fleet import renewal
        from zeek_agent.fleet.enrolled import EnrolledFiles

        command = renewal.command(str(self._places.state), self.id)
        self._background(renewal.Renewal(EnrolledFiles(self._places.fleet), command).run(), "renewal")

    def _prepare_collector(self) -> None:
        """Make the embedded collector; its process starts when it is dialled. Raises UsageError for a bad pack."""
        _warn_about_listening(self._origins)
        collector = self._new_collector(self._config)
        self._announce(f"logs in {collector.logs}")
        self._start_collector(collector)

    def _new_collector(self, config: Config) -> AgentsCollector:
        """An embedded collector that is not started. Raises UsageError for a bad pack."""
        from zeek_agent.collector import pack

        settings = config.collector
        queries = pack.load_all(settings.pack_names, schedule=settings.schedule)
        if isinstance(self.database, UncontainedDatabase):
            from zeek_agent.collector.in_process import CollectorInProcess

            return CollectorInProcess(settings, queries)
        from zeek_agent.collector.embedded import EmbeddedCollector

        return EmbeddedCollector(settings, queries, self.database.pool.start_collector)

    def _start_collector(self, collector: AgentsCollector) -> None:
        """Show its summary; its process starts when it is dialled."""
        from zeek_agent.collector.summary import show

        self._collector = collector
        self._summary = asyncio.create_task(show(collector), name="summary")
        self._summary.add_done_callback(_report_failure)

    async def _stop_collector(self) -> None:
        """Stop it after its connection was shut down, and note that it has lost nothing if it ended in order."""
        collector, self._collector = self._collector, None
        summary, self._summary = self._summary, None
        if summary is not None:
            await _cancelled(summary)
        instances, self._collector_instances = self._collector_instances, ()
        if collector is not None and await collector.stop():
            for instance in instances:
                self.runner.ended_in_order(str(EMBEDDED), instance)

    def _announce(self, what: str) -> None:
        """Write to standard output what this agent does, if the log does not say so there."""
        lines = [f"zeek-agent {__version__}: {what}; Ctrl-C ends"]
        if self._quiet or self._config.log.file is not None:
            lines.append(f"recording {_recorded(self.supervisor.status())}")
        sys.stdout.write("".join(f"{escaped(line)}\n" for line in lines))
        sys.stdout.flush()

    async def _dial_collector(self) -> socket.socket:
        """A socket that is connected to the embedded collector. Raises UnusableError when that cannot start now."""
        assert self._collector is not None
        try:
            return await self._collector.dial()
        except ZeekAgentError as error:
            raise UnusableError(f"cannot start: {error}; events are still recorded") from None

    async def _start_control(self) -> None:
        """Listen for commands. Continue without if the socket cannot be created, as in a read-only state directory."""
        answer = answering(self.database, lambda: self.runner, self.status, self)
        control = ControlServer(self._places.socket, self._config.control.group, answer)
        try:
            await control.start()
        except NotListeningError as error:
            log.warning("%s; commands cannot connect to this agent", error)
        else:
            self._parts.push_async_callback(control.stop)

    async def _start_metrics(self) -> None:
        """Serve metrics, if the configuration says where. Continue without if that is not possible."""
        try:
            self._metrics = await self._serve_metrics(self._config.metrics)
        except ZeekAgentError as error:
            log.error("%s; metrics are not served", error)

    async def _serve_metrics(self, settings: MetricsSettings) -> MetricsServer | None:
        """A server of metrics, if the settings say where. Raises ZeekAgentError."""
        if settings.listen is None:
            return None
        from zeek_agent.metrics.server import MetricsServer

        server = MetricsServer(settings, self.metrics)
        await server.start()
        return server

    async def _change_metrics(self, settings: MetricsSettings) -> None:
        """Serve metrics elsewhere, or for others. Raises ZeekAgentError, with the metrics served as before."""
        if settings.listen != self._config.metrics.listen:
            server = await self._serve_metrics(settings)
            await self._stop_metrics()
            self._metrics = server
            return
        await self._stop_metrics()
        try:
            self._metrics = await self._serve_metrics(settings)
        except ZeekAgentError:
            await self._start_metrics()
            raise

    async def _stop_metrics(self) -> None:
        server, self._metrics = self._metrics, None
        if server is not None:
            await server.stop()

    def _connect_all(self) -> None:
        for one in parse_all(self._config.zeek.destinations) or (EMBEDDED,):
            self._connect(one)

    def _connect(self, destination: Destination) -> None:
        connection = self._bus_connection(destination) if destination.is_bus else self._zeek_connection(destination)
        self._connections.append(connection)
        task = self._running[connection] = asyncio.create_task(connection.run(), name=f"zeek {destination}")
        task.add_done_callback(_report_failure)

    def _zeek_connection(self, destination: Destination) -> ZeekConnection:
        return ZeekConnection(
            destination,
            self._config.zeek,
            self._identity,
            self.database,
            self.runner,
            dial=self._dial_collector if destination is EMBEDDED else None,
        )

    def _bus_connection(self, destination: Destination) -> BusConnection:
        from zeek_agent.bus import credentials
        from zeek_agent.bus.connection import BusConnection

        config = self._config
        files = credentials.locate(config.bus, self._places.state)
        return BusConnection(destination, config.bus, files, config.zeek, self._identity, self.database, self.runner)

    async def _disconnect(self) -> None:
        """Say goodbye to all destinations and end the connections to them."""
        running, self._running = self._running, {}
        self._connections.clear()
        ended = await asyncio.gather(*(connection.shutdown() for connection in running), return_exceptions=True)
        for connection, instances in zip(running, ended, strict=True):
            if connection.destination is EMBEDDED and not isinstance(instances, BaseException):
                self._collector_instances = instances
        await asyncio.gather(*map(_cancelled, running.values()))

    def _background(self, work: Any, name: str) -> None:
        """Run a part's coroutine until the end of the agent; should it fail before, that is logged."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report_failure)
        self._parts.push_async_callback(_cancelled, task)

    def _recorded_until(self) -> float | None:
        """Until when all events were appended to the store; called in its writer thread."""
        return None if self._records is None else self._records.recorded_until()

    def _end_readers(self, blocked_seconds: float) -> None:
        """Called in the store's writer thread while a reader keeps its write-ahead log from being reused."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.database.pool.end_readers)

    def _describe_osquery(self) -> bytes:
        return b"" if self._bridge is None else self._bridge.imported()

    async def _answer_need(self, need: Need) -> tuple[bytes, Sequence[int]]:
        """What a worker process cannot get on its own. Raises SqlError."""
        osquery = None if self._bridge is None else self._bridge.connect
        return await needs.answer(need, self, self._drain, osquery)

    async def _drain(self) -> None:
        """Bring the event store up to date with what the kernel has."""
        await asyncio.to_thread(self._drain_blocking)

    def _drain_blocking(self) -> None:
        self.supervisor.drain()
        self.store.flush()

    # For the service manager

    def summary(self) -> str:
        """What the agent does now, in one line."""
        states = self.connections()
        connected = sum(state.state == "connected" for state in states)
        return f"recording {_recorded(self.supervisor.status())}; connected to {connected} of {len(states)}"

    def problem(self) -> str | None:
        """Why the agent is not healthy, so that a restart may help; None if it is."""
        return self.store.problem() or self.supervisor.problem()

    # Data of the agent's own tables

    @property
    def hostname(self) -> str:
        return hostname(self._config.agent.hostname)

    def uptime(self) -> float:
        return time.monotonic() - self._started

    def tables(self) -> Iterable[Table]:
        return [table for table in self.database.tables.values() if not table.alias]

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        self._drain_blocking()
        return reading.iterate_events(self.store.uri, sql, bindings, check, functions)

    def connections(self) -> Sequence[ConnectionStatus]:
        return [status for connection in self._connections for status in connection.statuses()]

    def queries(self) -> Sequence[QueryStatus]:
        pool, rows = self.database.pool, []
        for installed in self.runner.installed:
            statement = recipient_of(installed.recipient.identity), installed.query.sql
            rows.append(installed.status(pool.usage(*statement), pool.resting_until(*statement)))
        return rows

    def workers(self) -> Sequence[WorkerStatus]:
        return [*self.database.pool.status(), *(self._collector.status() if self._collector else ())]

    def sources(self) -> Sequence[SourceStatus]:
        return [*self.supervisor.status(), *(self._bridge.status() if self._bridge else ())]

    def gaps(self) -> Iterable[Row]:
        return self.store.gaps()

    def log(self) -> Iterable[Row]:
        return self._ring.rows()

    def config(self) -> Iterable[Row]:
        return declarations.rows(self._config, self._origins)

    def status(self) -> Mapping[str, Any]:
        """Facts for `zeek-agent status`."""
        times = os.times()
        return {
            "running": True,
            "version": __version__,
            "id": self.id,
            "instance": self.instance,
            "pid": os.getpid(),
            "hostname": self.hostname,
            "uptime": self.uptime(),
            "cpu_seconds": times.user + times.system,
            "state_dir": str(self._places.state),
            "store": {name: counters.stored for name, counters in self.store.counters.items()},
            "store_evicted": {name: counters.evicted for name, counters in self.store.counters.items()},
            "delivery_states": self.store.delivery_states(),
            "store_files_left": self.store.files_left,
            "store_notice": self.store.notice,
            "workers": self.database.pool.totals(),
            "workers_killed": dict(self.database.pool.killed),
            "results_notice": self.results.notice,
            "results_bytes": self.results.usage().bytes,
            "collector": None if self._collector is None else str(self._collector.logs),
            "collector_error": None if self._collector is None else self._collector.stats.disk_error,
            "collector_pid": None if self._collector is None else self._collector.pid,
            "collector_lost": None if self._collector is None else self._collector.lost,
        }

    async def reload_or_log(self) -> None:
        """Apply the configuration as it is now; an invalid one is logged and changes nothing."""
        try:
            await self.reload()
        except ZeekAgentError as error:
            log.error("the configuration is not reloaded: %s", error)

    async def reload(self) -> str:
        """Read the configuration again and apply the changed settings that need no restart; says which they are.

        Once begun, it is completed, also if the caller is cancelled. Raises ZeekAgentError for an invalid
        configuration, of which nothing is applied.
        """
        task = asyncio.create_task(self._reload(), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return await asyncio.shield(task)

    async def _reload(self) -> str:
        if self._load is None:
            raise ZeekAgentError("this agent was not started with a configuration that can be read again")
        async with self._reloading:
            if self._stopping:
                raise ZeekAgentError("the agent is stopping")
            loaded = await asyncio.to_thread(self._load)
            changes = compare(self._config, self._origins, loaded)
            changed_tables = await asyncio.to_thread(self._changed_tables, changes)
            if changed_tables is not None:
                changes = changes.with_applied("tables.files")
            collector = await asyncio.to_thread(self._changed_collector, changes)
            if collector is not None:
                changes = changes.with_applied(*self._changed_files(collector))
            own = self._own_tables if changed_tables is None else changed_tables.own
            apply = await asyncio.to_thread(self._prepare, changes, collector, own)
            if changes.concern("metrics."):
                await self._change_metrics(changes.config.metrics)
            for warning in loaded.warnings:
                log.warning("%s", warning)
            self._config, self._origins = changes.config, changes.origins
            await apply()
            if changed_tables is not None:
                await self._use_own_tables(changed_tables)
            log.info("%s", changes.summary())
            return changes.summary()

    def _changed_tables(self, changes: Changes) -> HostTables | None:
        """The tables if what the operator declares has changed, else None. Raises UsageError for an invalid file."""
        found = host_tables(changes.config)
        if found.own == self._own_tables:
            return None
        known = {one.name for one in self._own_tables}
        for one in found.own:
            if one.name not in known and one.name in self.database.readable_names:
                raise UsageError(f"table {one.name}: osquery has a table of that name; restart the agent to replace it")
        return found

    async def _use_own_tables(self, changed: HostTables) -> None:
        """Replace those of the operator's tables that have changed; workers with the new ones are started by now."""
        before = {one.name: one for one in self._own_tables}
        after = {one.name: one for one in changed.own}
        gone = [one for name, one in before.items() if after.get(name) != one]
        new = [one for name, one in after.items() if before.get(name) != one]
        names = {one.name for one in new}
        tables = [table for table in changed.tables if table.name in names]
        self._own_tables = changed.own

        def record() -> None:
            self.supervisor.change(self._followed(gone), {})
            for table in tables:
                if table.kind == "events" and not self.store.declare(table):
                    log.error("the event store does not answer; events of %s may be lost", table.name)
            self.supervisor.change((), self._followed(new))

        await asyncio.to_thread(record)
        if self._bridge is not None:
            self._bridge.reserve(names)
        self.database.replace_own_tables([one.name for one in gone], tables, "it is not declared any more")

    def _changed_collector(self, changes: Changes) -> AgentsCollector | None:
        """The embedded collector for a changed configuration or pack; None if the present one, if any, stays.

        Raises UsageError for a bad pack.
        """
        if changes.config.zeek.destinations:
            return None
        collector = self._new_collector(changes.config)
        is_changed = changes.concern("collector.", "zeek.destinations")
        if is_changed or self._collector is None or collector.pack != self._collector.pack:
            return collector
        return None

    def _changed_files(self, collector: AgentsCollector) -> Sequence[str]:
        """What has changed although the settings have not: the file of the query pack."""
        now = self._collector
        return () if now is None or now.pack == collector.pack else ("collector.pack",)

    def _prepare(
        self, changes: Changes, collector: AgentsCollector | None, own: Sequence[OwnTable]
    ) -> Callable[[], Awaitable[None]]:
        """Make what can fail before anything is changed. Raises ZeekAgentError. Returns what applies the changes."""
        config = changes.config
        access = AccessPolicy(config.access, paths.protected(config, self._places))
        former = self.database.pool.setup
        setup = None if former is None else self._worker_setup(config, own, former)
        protects_others = access.protected != self.database.context.access.protected
        concerns_rows = protects_others or changes.concern_others("access.", "access.tables_")

        async def apply() -> None:
            if changes.concern("log."):
                logbook.set_level(config.log.level)
                if self._collector is not None:
                    self._collector.set_log_level()
            if protects_others or changes.concern("access.", "limits.", "tables."):
                self._masker.adopt(access.masker)
                access.masker = self._masker
                self._access = access
                self.database.reconfigure(TableContext(self, access), config.limits, setup, concerns_rows=concerns_rows)
                self.results.set_limit(config.limits.state_bytes)
            if changes.concern("events.", "limits."):
                self.store.reconfigure(config.events, config.limits.state_bytes)
            if changes.concern("zeek.", "bus.") or collector is not None:
                await self._reconnect(collector, goes=bool(config.zeek.destinations))

        return apply

    async def _reconnect(self, collector: AgentsCollector | None, *, goes: bool) -> None:
        """Connect with the settings as they are now, to another embedded collector if one is given; `goes` if the
        present one is not needed any more."""
        await self._disconnect()
        if collector is not None or goes:
            await self._stop_collector()
        if collector is not None:
            _warn_about_listening(self._origins)
            self._start_collector(collector)
        self._connect_all()

    def metrics(self) -> str:
        """The agent's metrics, in Prometheus' exposition format."""
        from zeek_agent.metrics import agent_metrics

        pool, times, connections = self.database.pool, os.times(), self.connections()
        destinations = {one.destination for one in connections}
        return agent_metrics.agent_text(
            agent_metrics.AgentFigures(
                version=__version__,
                id=self.id,
                hostname=self.hostname,
                uptime=self.uptime(),
                started=self._started_at,
                cpu_seconds=times.user + times.system,
                resident_bytes=memory(os.getpid()).resident,
                sources=self.sources(),
                gaps=self.store.gaps(),
                connections=connections,
                lost=self.runner.lost,
                queries=[one for one in self.queries() if one.recipient in destinations],
                workers=self.workers(),
                workers_killed={cause.value: pool.killed[cause.value] for cause in KillCause},
                workers_abandoned=pool.abandoned,
                zygote_starts=pool.zygote_starts,
                tables=self.store.counters,
                store_bytes=self.store.disk_bytes(),
                store_limit_bytes=self._config.events.retention_bytes,
                store_degraded=self.store.notice is not None,
                store_files_left=self.store.files_left,
                delivery_states=self.store.delivery_states(),
                results_bytes=self.results.usage().bytes,
                collector=None if self._collector is None else self._collector.stats,
                collector_restarts=0 if self._collector is None else self._collector.lost,
                now=time.time(),
            )
        )


def _warn_about_listening(origins: Mapping[str, str]) -> None:
    """Say that the embedded collector does not listen, if the configuration says where it should."""
    if origins.get("collector.listen", "default") != "default":
        log.warning(
            "collector.listen (%s) has no effect on the embedded collector, which only this agent can reach; "
            "to collect from other agents run `zeek-agent collector`",
            origins["collector.listen"],
        )


def _recorded(sources: Iterable[SourceStatus]) -> str:
    """Which kinds of events are recorded, and how."""
    kinds = dict.fromkeys(source.source for source in sources)
    active = {source.source: source.backend for source in sources if source.active}
    missing = [kind for kind in kinds if kind not in active]
    recorded = ", ".join(f"{kind} by {backend}" for kind, backend in active.items()) or "no events"
    return recorded + (f"; not {', '.join(missing)}: `zeek-agent doctor` says why" if missing else "")


class Coalesced:
    """Runs a function once for simultaneous callers. A call during a run waits for one more run."""

    def __init__(self, function: Callable[[], Awaitable[None]]) -> None:
        self._function = function
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        if self._next is None:
            self._next = asyncio.create_task(self._run_after(self._running))
        await asyncio.shield(self._next)

    async def _run_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        await self._function()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s of the agent has failed: %s", task.get_name(), error, exc_info=error)
