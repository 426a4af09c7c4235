"""Turns messages from agents into log lines: rows of queries, state changes of agents, errors.

Independent of sockets: messages in, log lines out. Errors go to `reporter.log`, like Zeek's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from zeek_agent.collector import agents
from zeek_agent.collector.agents import Agents, KnownAgent
from zeek_agent.collector.log_files import LogDirectory, LogFile
from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack import Log, Pack
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
    recent: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=20))
    """Times and texts of the last errors."""


class Intake:
    """Handles agents' messages, one at a time."""

    def __init__(
        self,
        pack: Pack,
        directory: LogDirectory,
        known: Agents,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = IntakeCounters()
        self.agents = known
        self._clock = clock
        self._monotonic = monotonic
        self._results: dict[str, tuple[Log, RowReader, LogFile]] = {
            event: (
                zeek_log,
                row_reader(zeek_log.columns, may_end_early=zeek_log.may_end_early),
                directory.add(zeek_log.path, zeek_log.fields),
            )
            for event, zeek_log in pack.logs.items()
        }
        self._life_cycle = directory.add(agents.LOG, agents.LOG_FIELDS)
        self._reporter = directory.add(REPORTER, REPORTER_FIELDS)
        self._reports: deque[float] = deque(maxlen=REPORTS_PER_SECOND)
        self._unreported = 0

    def handle(self, event: AgentEvent) -> KnownAgent | None:
        """Log the event of an agent; returns the agent after a hello.

        Raises ProtocolError for an event that cannot be logged.
        """
        self.counters.messages += 1
        now = self._clock()
        match event:
            case ResultRow():
                self._row(event, now)
            case AgentHello():
                agent = self.agents.hello(event, self._monotonic())
                self._life_cycle_line(agent, now)
                return agent
            case AgentShutdown(context):
                if leaving := self.agents.shutdown(context.agent_id, self._monotonic()):
                    self._life_cycle_line(leaving, now)
            case AgentError(context, text):
                self.agents.mark_seen(context.agent_id, self._monotonic())
                self.counters.agent_errors += 1
                self.report(
                    "ERROR", f"error from Zeek Agent: {clipped(text, _ERROR_CHARACTERS)} [{context.agent_id}]", now
                )
            case ResultBatch():
                raise ProtocolError("rows in batches, which this collector does not support")
        return None

    def refuse(self, why: str) -> None:
        """Count and report a message that could not be used."""
        self.counters.refused += 1
        self.report("ERROR", why)

    def expire(self) -> None:
        """Log agents that have timed out."""
        for agent in self.agents.expired(self._monotonic()):
            self._life_cycle_line(agent, self._clock())

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
        result = self._results.get(event.event)
        if result is None:
            raise ProtocolError(f"this collector has no query with the event {clipped(event.event)}")
        zeek_log, read, file = result
        context = event.context
        try:
            values = read(event.columns)
            file.write((*self._leading(zeek_log, context, now), *values))
        except (ValueError, ProtocolError) as error:
            raise ProtocolError(f"row for {zeek_log.path} from {clipped(context.agent_id)}: {error}") from None
        self.counters.rows += 1

    def _leading(self, zeek_log: Log, context: Context, now: float) -> tuple[float | str | None, ...]:
        agent = self.agents.mark_seen(context.agent_id, self._monotonic())
        host = agent.name if agent else "<unknown>"
        if zeek_log.change:
            return now, context.agent_id, host, _CHANGES[context.change]
        return now, context.agent_id, host

    def _life_cycle_line(self, agent: KnownAgent, now: float) -> None:
        log.info("agent %s (%s): %s", agent.id, agent.name, agent.state)
        self._life_cycle.write(agent.log_values(now))
