"""Turns messages from agents into log lines: rows of queries, state changes of agents, errors.

Independent of sockets: messages in, log lines out. Errors go to `reporter.log`, like Zeek's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from zeek_agent.collector import agents
from zeek_agent.collector.agents import Agents, KnownAgent
from zeek_agent.collector.decorations import Decorations, ResultCounters
from zeek_agent.collector.hosts import GAPS_LOG, SOURCES_LOG, Host, Hosts, Peer, count_gap, count_losses
from zeek_agent.collector.log_files import LogDirectory, LogFile
from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack import Decorator, Log, Pack
from zeek_agent.collector.row_reader import RowReader, row_reader
from zeek_agent.queries.subscriptions import Change
from zeek_agent.text import clipped
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import AgentError, AgentEvent, AgentHello, AgentShutdown, Context, ResultBatch, ResultRow

Level = Literal["INFO", "WARNING", "ERROR"]

REPORTER: Final = "reporter"
REPORTER_FIELDS: Final = (
    Field("ts", "time"),
    Field("level", "enum"),
    Field("message", "string"),
    Field("location", "string"),
)
REPORTS_PER_SECOND: Final = 20
"""Maximum lines per second in `reporter.log`, so that a faulty agent cannot fill the disk; a line counts the others."""

_CHANGES: Final = {Change.ADD: "new", Change.DELETE: "gone", None: None}
_MESSAGE_CHARACTERS: Final = 1000
"""Maximum length of a line in `reporter.log`, for the eye."""
_ERROR_CHARACTERS: Final = 800
"""Maximum of an agent's own text in it, which leaves room for its id."""

log = logging.getLogger("zeek_agent.collector")


@dataclass(slots=True)
class IntakeCounters:
    """Messages and rows since the start."""

    messages: int = 0
    rows: int = 0
    ignored: int = 0
    refused: int = 0
    agent_errors: int = 0
    conflicts: int = 0
    """Connections under an agent id in use, refused or not."""
    recent: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=20))
    """Times and texts of the last errors."""


_COUNTED: Final[Mapping[str, Callable[[Host, Mapping[str, Any], Change | None], None]]] = {
    GAPS_LOG: count_gap,
    SOURCES_LOG: count_losses,
}
"""Logs whose rows say what a host has lost."""


@dataclass(frozen=True, slots=True)
class _LogTarget:
    """The log of a query's rows, how they are read, and how they count for their host."""

    log: Log
    read: RowReader
    file: LogFile
    count: Callable[[Host, Mapping[str, Any], Change | None], None] | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.log.columns)


class Intake:
    """Handles agents' messages, one at a time."""

    def __init__(
        self,
        pack: Pack,
        directory: LogDirectory,
        known: Agents,
        hosts: Hosts,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = IntakeCounters()
        self.agents = known
        self.hosts = hosts
        self._directory = directory
        self._clock = clock
        self._monotonic = monotonic
        self._current: dict[str, _LogTarget] = {}
        self._results: dict[str, _LogTarget] = {}
        self._decorators: tuple[Decorator, ...] = ()
        self._decorations = Decorations()
        self._counters = ResultCounters() if directory.has_counters else None
        self.use(pack)
        self._life_cycle = directory.add(agents.LOG, agents.LOG_FIELDS)
        self._reporter = directory.add(REPORTER, REPORTER_FIELDS)
        self._reports: deque[float] = deque(maxlen=REPORTS_PER_SECOND)
        self._unreported = 0

    def use(self, pack: Pack) -> list[LogFile]:
        """Log the rows of this pack's queries, and still those of the one before, which may be on their way.

        Returns the log files that are no longer written, because their fields have changed.
        """
        files, replaced = self._directory.files, []
        before = {target.log.path: target for target in self._results.values()}  # of earlier packs and this one
        targets = {}
        for event, zeek_log in pack.logs.items():
            known = before.get(zeek_log.path)
            if known is not None and (known.log.fields, known.log.results) == (zeek_log.fields, zeek_log.results):
                file = known.file
            else:
                if known is not None:
                    replaced.append(files.pop(zeek_log.path))
                file = self._directory.add(zeek_log.path, zeek_log.fields, zeek_log.results)
            read = row_reader(zeek_log.columns, may_end_early=zeek_log.may_end_early)
            targets[event] = _LogTarget(zeek_log, read, file, _COUNTED.get(zeek_log.path))
        earlier = {event: target for event, target in self._current.items() if target.file not in replaced}
        self._current = targets
        self._results = earlier | targets
        if pack.decorators != self._decorators:
            self._decorators = pack.decorators
            self._decorations = Decorations(pack.decorators)
        return replaced

    def handle(self, event: AgentEvent) -> KnownAgent | None:
        """Log the event of an agent. A hello is only read: returns the agent, for `hello` once it is admitted.

        Raises ProtocolError for an event that cannot be logged.
        """
        self.counters.messages += 1
        now = self._clock()
        match event:
            case ResultRow():
                self._row(event, now)
            case AgentHello():
                return agents.read_hello(event)
            case AgentShutdown(context):
                if leaving := self.agents.shutdown(context.agent_id, self._monotonic()):
                    self._life_cycle_line(leaving, now)
                    self.hosts.enter(context.agent_id, "shutdown", now)
            case AgentError(context, text):
                self.agents.mark_seen(context.agent_id, self._monotonic())
                self.counters.agent_errors += 1
                self.hosts.error(context.agent_id, text, now)
                self.report(
                    "ERROR", f"error from Zeek Agent: {clipped(text, _ERROR_CHARACTERS)} [{context.agent_id}]", now
                )
            case ResultBatch():
                raise ProtocolError("rows in batches, which this collector does not support")
        return None

    def hello(self, agent: KnownAgent, peer: Peer) -> KnownAgent:
        """Record and log the hello of an agent that was admitted. Raises ProtocolError if there are too many."""
        now = self._clock()
        agent = self.agents.hello(agent, self._monotonic())
        self.hosts.hello(agent, peer, now)
        self._life_cycle_line(agent, now)
        return agent

    def left(self, agent_id: str) -> None:
        """Record the end of an agent's connection."""
        self.agents.left(agent_id)
        self.hosts.enter(agent_id, "away", self._clock())

    def conflict(self, agent_id: str, text: str, level: Level = "WARNING") -> None:
        """Count and report that two agents use one id."""
        self.counters.conflicts += 1
        self.hosts.conflict(agent_id, text)
        self.report(level, text)

    def refuse(self, why: str, agent_id: str | None = None) -> None:
        """Count and report a message that could not be used, and whose it was, if that is certain."""
        now = self._clock()
        self.counters.refused += 1
        if agent_id is not None:
            self.hosts.error(agent_id, why, now)
        self.report("ERROR", why, now)

    def restore(self, stored: Mapping[str, Host], evicted: int) -> None:
        """Add the hosts of an earlier run; those that were not offline will be if they do not come back in time."""
        now = self._monotonic()
        self.agents.expect(
            KnownAgent(
                id=host.id,
                hello_id="",
                hostname=host.hostname,
                addresses=host.addresses or None,
                version=host.version,
                platform=host.platform,
                os_name=host.os_name,
                instance=host.instance,
                last_seen=now,
            )
            for host in self.hosts.restore(stored.values(), evicted)
        )

    def make_room(self) -> None:
        """Remove agents that are away, before there are too many."""
        self._offline(self.agents.make_room())

    def expire(self) -> None:
        """Log agents that have timed out."""
        self._offline(self.agents.expired(self._monotonic()))

    def _offline(self, gone: Iterable[KnownAgent]) -> None:
        for agent in gone:
            now = self._clock()
            self.hosts.enter(agent.id, "offline", now)
            self._life_cycle_line(agent, now)

    def report(self, level: Level, text: str, now: float | None = None) -> None:
        """Write a line to `reporter.log`, unless there were too many in the last second."""
        now = self._clock() if now is None else now
        text = text[:_MESSAGE_CHARACTERS]
        self.counters.recent.append((now, text))
        moment = self._monotonic()
        if len(self._reports) == REPORTS_PER_SECOND and moment - self._reports[0] < 1:
            self._unreported += 1
            return
        self._reports.append(moment)
        if self._unreported:
            text, self._unreported = f"{text} (and {self._unreported} more messages before this one)", 0
        self._reporter.write((now, f"Reporter::{level}", text, None))
        log.warning("%s", text)

    def _row(self, event: ResultRow, now: float) -> None:
        if event.event in self._decorations:
            self.agents.mark_seen(event.context.agent_id, self._monotonic())
            self._decorations.row(event)
            return
        target = self._results.get(event.event)
        if target is None:
            raise ProtocolError(f"this collector has no query with the event {clipped(event.event)}")
        zeek_log, context = target.log, event.context
        try:
            values = target.read(event.columns)
            leading = self._leading(zeek_log, context, now)
            if context.change is not Change.DELETE or zeek_log.removed:
                target.file.write((*leading, *values, *self._end(zeek_log, event)))
        except (ValueError, ProtocolError) as error:
            raise ProtocolError(f"row for {zeek_log.path} from {clipped(context.agent_id)}: {error}") from None
        self.counters.rows += 1
        host = self.hosts.row(context.agent_id, now)
        if host is not None and target.count is not None:
            target.count(host, dict(zip(target.names, values, strict=False)), context.change)

    def _end(self, zeek_log: Log, event: ResultRow) -> tuple[Any, ...]:
        """What follows the values of a row in its line."""
        decorations = self._decorations.values(event.context.agent_id) if zeek_log.decorations else ()
        if self._counters is None:
            return decorations
        is_full = event.context.change is None and (zeek_log.change or zeek_log.is_snapshot)
        return *decorations, self._counters.of(event, zeek_log.path, full=is_full)

    def _leading(self, zeek_log: Log, context: Context, now: float) -> tuple[float | str | None, ...]:
        agent = self.agents.mark_seen(context.agent_id, self._monotonic())
        host = agent.name if agent else "<unknown>"
        if zeek_log.change:
            return now, context.agent_id, host, _CHANGES[context.change]
        return now, context.agent_id, host

    def _life_cycle_line(self, agent: KnownAgent, now: float) -> None:
        log.info("agent %s (%s): %s", agent.id, agent.name, agent.state)
        self._life_cycle.write(agent.log_values(now))
