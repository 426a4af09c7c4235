"""Agents that have a session with the gateway, and which of them a topic of Zeek addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from zeek_agent.bus.subjects import Address
from zeek_agent.gateway.agent_tokens import Proof
from zeek_agent.gateway.allowance import Allowance
from zeek_agent.gateway.frames import CheckedHello
from zeek_agent.gateway.sent_queries import SentQueries
from zeek_agent.zeek import protocol

_HOSTS: Final = protocol.host_topic("")
_GROUPS: Final = protocol.group_topic("")


@dataclass(eq=False, slots=True)
class AgentSession:
    """One agent's session. Times are on the monotonic clock."""

    address: Address
    proof: Proof
    name: str
    instance: str
    version: str
    groups: frozenset[str]
    """All its groups, with those in lower case."""
    queries: SentQueries
    allowance: Allowance
    began: float
    heard: float
    """When the agent sent something last."""
    next_number: int = 1
    """Of the next batch."""
    first_number: int = 1
    """Of the first batch since Zeek has been back: earlier ones are of a session with Zeek that has ended."""
    small: int = 0
    """Number of the unacknowledged batch without credit; 0: none."""
    want: int = 0
    """Number of the last `Want`, which a grant names."""
    held_until: float = 0.0
    """Until when the agent gets no acknowledgement and no credit, because of its limits."""
    hello: CheckedHello | None = None
    hello_received: float = 0.0
    """When the agent said it."""
    hello_id: str = ""
    """Empty until the first hello on this connection to Zeek."""
    hello_at: float = float("-inf")
    hello_waits: bool = False
    """Whether a changed hello is sent in a moment."""
    hello_via: bool = False
    """Whether the last hello had the feature `via/GATEWAY`."""
    is_told_back: bool = True
    """False while the agent takes Zeek for gone."""
    is_shut_down: bool = False
    refused: int = 0
    """Frames of this session."""
    ended: bool = False
    signs: list[asyncio.Future[None]] = field(default_factory=list)
    """Waiting for the agent to show itself."""

    @property
    def agent_id(self) -> str:
        return self.address.agent_id

    def note_heard(self, now: float) -> None:
        self.heard = now
        for sign in self.signs:
            if not sign.done():
                sign.set_result(None)
        self.signs.clear()


class Sessions:
    """All sessions by agent id; at most one per agent."""

    def __init__(self) -> None:
        self._by_id: dict[str, AgentSession] = {}
        self._by_group: dict[str, dict[AgentSession, None]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[AgentSession]:
        return iter(list(self._by_id.values()))

    def get(self, agent_id: str) -> AgentSession | None:
        return self._by_id.get(agent_id)

    def add(self, session: AgentSession) -> None:
        """Add a session of an agent that has none."""
        assert session.agent_id not in self._by_id
        self._by_id[session.agent_id] = session
        for group in session.groups:
            self._by_group.setdefault(group, {})[session] = None

    def remove(self, session: AgentSession) -> None:
        if self._by_id.get(session.agent_id) is session:
            del self._by_id[session.agent_id]
        for group in session.groups:
            members = self._by_group.get(group)
            if members is not None:
                members.pop(session, None)
                if not members:
                    del self._by_group[group]

    def addressed(self, topic: str) -> Iterable[AgentSession]:
        """The sessions of the agents that would subscribe to a topic: one agent, a group's, or all."""
        if topic.startswith(_HOSTS):
            session = self._by_id.get(topic[len(_HOSTS) :])
            return () if session is None else (session,)
        if not topic.startswith(_GROUPS):
            return ()
        name = topic[len(_GROUPS) :]
        if name == "all":
            return tuple(self._by_id.values())
        return (*self._by_group.get(name, ()), *self._members(name))

    def _members(self, name: str) -> Iterator[AgentSession]:
        """Agents addressed as members of a group, `ID/GROUP`; both may contain slashes."""
        at = name.find("/")
        while at >= 0:
            session, group = self._by_id.get(name[:at]), name[at + 1 :]
            if session is not None and (group == "all" or group in session.groups):
                yield session
            at = name.find("/", at + 1)


def all_groups(names: Iterable[str]) -> frozenset[str]:
    """The groups of an agent; Zeek lower-cases their names."""
    return frozenset(form for name in names if name for form in (name, name.lower()) if form != "all")
