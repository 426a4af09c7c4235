"""Agents known to a collector: identity, time of the last message, and state.

As in the Zeek Agent package, an agent joins with its first hello, reconnects when its hello query has a new id, and is
offline after a period of silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from zeek_agent.collector.log_formats import Field, TsvFormat
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import message_limits
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import AgentHello

T = TypeVar("T")

AgentState = Literal["join", "update", "reconnect", "shutdown", "offline"]

LOG: Final = "zeek-agent"
LOG_FIELDS: Final = (
    Field("ts", "time"),
    Field("type_", "string"),
    Field("hid", "string"),
    Field("hostname", "string"),
    Field("addresses", "set[addr]"),
    Field("version", "int"),
    Field("uptime", "interval"),
    Field("platform", "string"),
    Field("os_name", "string"),
    Field("instance", "string"),
    Field("features", "set[string]"),
)
REMOVED_SHARE: Final = 100
"""The part of all agents that is removed at once when there are too many."""
HELLO_BYTES: Final = 16_384
"""Maximum of a hello; with interfaces in the hundreds it has a few KB."""

_LINE: Final = TsvFormat(LOG, LOG_FIELDS)
_AGENT_ID = re.compile(r"[\w.:@+-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An agent's last hello. `state` is the last state logged, `last_seen` a time on the monotonic clock."""

    id: str
    hello_id: str
    hostname: str | None = None
    addresses: tuple[str, ...] | None = None
    version: int | None = None
    uptime: float | None = None
    platform: str | None = None
    os_name: str | None = None
    instance: str | None = None
    features: tuple[str, ...] | None = None
    state: AgentState = "join"
    first_seen: float = 0.0
    """On the monotonic clock."""
    last_seen: float = 0.0
    is_away: bool = False
    """Whether its connection has ended."""

    @property
    def name(self) -> str:
        """The host's name, or an address if it has none."""
        return self.hostname or next(iter(self.addresses or ()), "<unknown>")

    def log_values(self, now: float) -> tuple[Any, ...]:
        """The line for `zeek-agent.log`, in the order of `LOG_FIELDS`."""
        return (
            now,
            self.state,
            self.id,
            self.hostname,
            self.addresses,
            self.version,
            self.uptime,
            self.platform,
            self.os_name,
            self.instance,
            self.features,
        )


class Agents:
    """Agents by id; at most `limit` of them. Times are on the monotonic clock, which nobody sets."""

    def __init__(self, *, timeout_seconds: float, limit: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._limit = limit
        self._agents: dict[str, KnownAgent] = {}
        self._expected: dict[str, KnownAgent] = {}

    def __iter__(self) -> Iterator[KnownAgent]:
        return iter(self._agents.values())

    def __len__(self) -> int:
        return len(self._agents)

    def get(self, agent_id: str) -> KnownAgent | None:
        return self._agents.get(agent_id)

    def set_timeout(self, seconds: float) -> None:
        self._timeout_seconds = seconds

    def expect(self, agents: Iterable[KnownAgent]) -> None:
        """Agents of an earlier run, which are offline if they do not send a hello until their timeout."""
        self._expected.update((agent.id, agent) for agent in agents if agent.id not in self._agents)

    def hello(self, agent: KnownAgent, now: float) -> KnownAgent:
        """Record a hello as `read_hello` returns it; the agent's state tells its meaning.

        Raises ProtocolError if there are too many agents; `make_room` may help.
        """
        agent = replace(agent, first_seen=now, last_seen=now)
        known = self._agents.get(agent.id)
        if known is None and self.is_full:
            raise ProtocolError(f"the limit of {self._limit} agents is reached")
        if known is not None:
            state: AgentState = "update" if known.hello_id == agent.hello_id else "reconnect"
            agent = replace(agent, state=state, first_seen=known.first_seen)
        self._agents[agent.id] = agent
        self._expected.pop(agent.id, None)
        return agent

    @property
    def is_full(self) -> bool:
        return len(self._agents) >= self._limit

    def lacks_room(self, agent_id: str) -> bool:
        """Whether there is no room for the hello of an agent."""
        return self.is_full and agent_id not in self._agents

    def left(self, agent_id: str) -> None:
        """Record the end of an agent's connection. It stays known until its timeout, if there is room."""
        if (agent := self._agents.get(agent_id)) is not None:
            self._agents[agent_id] = replace(agent, is_away=True)

    def make_room(self) -> list[KnownAgent]:
        """Remove and return agents without a connection, as `offline`: first those known for the shortest time.

        A client that makes up ids thereby pushes out its own. It is a share of them, so that the search is rare.
        """
        away = [agent for agent in self._agents.values() if agent.is_away]
        away.sort(key=lambda agent: (agent.last_seen - agent.first_seen, agent.last_seen))
        removed = away[: max(1, self._limit // REMOVED_SHARE)]
        for agent in removed:
            del self._agents[agent.id]
        return [replace(agent, state="offline") for agent in removed]

    def has_feature(self, agent_id: str, feature: str) -> bool:
        """Whether the agent has announced a feature."""
        agent = self._agents.get(agent_id)
        return agent is not None and feature in (agent.features or ())

    def mark_seen(self, agent_id: str, now: float) -> KnownAgent | None:
        """Update the time of an agent's last message. Returns the agent, if known. Raises ProtocolError if invalid."""
        agent = self._agents.get(_checked_id(agent_id))
        if agent is not None:
            agent = self._agents[agent_id] = replace(agent, last_seen=now)
        return agent

    def shutdown(self, agent_id: str, now: float) -> KnownAgent | None:
        """Record a shutdown message. Returns the agent, if known. It stays known until its timeout."""
        agent = self._agents.get(agent_id)
        if agent is not None:
            agent = self._agents[agent_id] = replace(agent, state="shutdown", last_seen=now)
        return agent

    def expired(self, now: float) -> list[KnownAgent]:
        """Remove and return the agents that have timed out."""
        silent = []
        for agents in (self._agents, self._expected):
            late = [agent for agent in agents.values() if now - agent.last_seen >= self._timeout_seconds]
            for agent in late:
                del agents[agent.id]
            silent += late
        return [replace(agent, state="offline") for agent in silent]


def read_hello(event: AgentHello) -> KnownAgent:
    """The agent that a hello describes. Raises ProtocolError for one that cannot be used, or logged."""
    agent = _agent(event)
    try:
        line = _LINE.line(agent.log_values(0.0))
    except ValueError as error:
        raise ProtocolError(f"hello from {agent.id}: {error}") from None
    if len(line) + len(agent.hello_id) > HELLO_BYTES:
        raise ProtocolError(f"hello from {agent.id}: more than {HELLO_BYTES} bytes")
    return agent


def _agent(event: AgentHello) -> KnownAgent:
    hello = event.named()
    if event.context.query_id is None:
        raise ProtocolError("hello has no query id")
    return KnownAgent(
        id=_checked_id(event.context.agent_id),
        hello_id=_bounded(event.context.query_id, "the hello's query id"),
        hostname=_checked(hello, "hostname", str),
        addresses=_checked(hello, "addresses", tuple),
        version=_checked(hello, "agent_version", int),
        uptime=_checked(hello, "uptime", float),
        platform=_checked(hello, "platform", str),
        os_name=_checked(hello, "os_name", str),
        instance=_checked(hello, "instance_id", str),
        features=tuple(sorted(event.features)) or None,
    )


def _checked_id(agent_id: str) -> str:
    if not _AGENT_ID.fullmatch(agent_id):
        raise ProtocolError(f"not an agent id: {clipped(agent_id, 80)!r}")
    return agent_id


def _bounded(text: str, name: str) -> str:
    if byte_length(text) > message_limits.NAME_BYTES_MAX:
        raise ProtocolError(f"{name} is longer than {message_limits.NAME_BYTES_MAX:,} bytes: {clipped(text)}")
    return text


def _checked(hello: dict[str, Any], name: str, kind: type[T]) -> T | None:
    value = hello.get(name)
    if isinstance(value, str):
        _bounded(value, f"{name} of hello")
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise ProtocolError(f"{name} of hello is not a {kind.__name__}")
