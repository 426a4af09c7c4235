"""Connections of agents, and which connection speaks for an agent's id.

One connection holds an id at a time. A second one with the same agent instance and certificate is that agent, which has
reconnected before the end of its old connection was noticed: it takes over. With another instance it can be a cloned
host, an agent that was restarted, or somebody who uses its id. Then the first connection decides, by answering a ping.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from websockets.frames import CloseCode
from websockets.protocol import State

from zeek_agent.collector.agents import KnownAgent
from zeek_agent.collector.hosts import Peer
from zeek_agent.collector.receive_memory import BoundedConnection
from zeek_agent.collector.tls import may_speak_for, serial, subject

ANSWER_SECONDS: Final = 5.0
"""How long the connection that holds an id may take to answer when another one claims it."""


@dataclass(slots=True, eq=False)
class CollectorClient:
    """A connection, its subscriptions, and the agents that have sent a hello on it."""

    connection: BoundedConnection
    topics: tuple[str, ...] = ()
    agent_ids: set[str] = field(default_factory=set)
    waits_for_disk: bool = False
    """Whether it is not read, because too much waits for the disk; its pongs are not seen then."""
    gateway: str | None = None
    """The name of the gateway as which it has announced itself."""

    @property
    def peer(self) -> str:
        """Address and port, for messages."""
        address = self.connection.remote_address
        if not address or isinstance(address, str):
            return address or "unknown"
        return f"{address[0]}:{address[1]}"

    @property
    def origin(self) -> Peer:
        """Its address, and the subject of its certificate."""
        address = self.connection.remote_address
        named = subject(self.connection.transport.get_extra_info("peercert"))
        return Peer(None if not address or isinstance(address, str) else str(address[0]), named, self.gateway)

    def may_speak_for(self, agent_id: str) -> bool:
        """Whether its certificate names that agent, or is a gateway's."""
        return may_speak_for(self.connection.transport.get_extra_info("peercert"), agent_id)

    @property
    def certificate_serial(self) -> int | None:
        """The serial number of its certificate, if it has one."""
        return serial(self.connection.transport.get_extra_info("peercert"))

    @property
    def certificate_digest(self) -> bytes | None:
        """The digest of its certificate, if it has one. A gateway's does not count: its agents change gateways."""
        if self.gateway is not None:
            return None
        encrypted = self.connection.transport.get_extra_info("ssl_object")
        certificate = None if encrypted is None else encrypted.getpeercert(binary_form=True)
        return None if certificate is None else hashlib.sha256(certificate).digest()

    def claim(self, agent: KnownAgent) -> Claim:
        """Its claim of the agent's id."""
        return Claim(self, agent.instance, self.origin.certificate, self.certificate_digest)

    def subscribes_to(self, topic: str) -> bool:
        """Whether one of its subscriptions is a prefix of the topic."""
        return topic.startswith(self.topics)

    async def answers(self, seconds: float) -> bool:
        """Whether the peer answers a ping within that time, or cannot because it is not read."""
        pong: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def ping() -> None:
            nonlocal pong
            pong = asyncio.ensure_future(await self.connection.ping())
            await asyncio.wait([pong])

        pinging = asyncio.create_task(ping())
        try:
            await asyncio.wait([pinging], timeout=seconds)
            # A busy loop may see the pong and the end of the time together: the pong counts.
            answered = pong.done() and not pong.cancelled() and pong.exception() is None
            return answered or (not pinging.done() and self.waits_for_disk)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)


class Claim(NamedTuple):
    """A connection that claims an agent's id."""

    client: CollectorClient
    instance: str | None
    certificate: str | None
    """Its subject, for messages."""
    certificate_digest: bytes | None = None
    """Two certificates can have the same subject, as where all hosts have one name in it."""

    def is_same_agent(self, other: Claim) -> bool:
        """Whether both are connections of one running agent. One that does not name its instance is never the same."""
        mine, theirs = (self.instance, self.certificate_digest), (other.instance, other.certificate_digest)
        return self.instance is not None and mine == theirs

    def __str__(self) -> str:
        named = f" with the certificate {self.certificate}" if self.certificate else ""
        return f"instance {self.instance or '<unnamed>'} at {self.client.peer}{named}"


class IdInUseError(Exception):
    """Another connection holds the id, and answers."""

    def __init__(self, holder: Claim) -> None:
        super().__init__(str(holder))
        self.holder = holder


class IdHolders:
    """The connection that holds each agent's id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Claim] = {}

    def holder(self, agent_id: str) -> CollectorClient | None:
        """The connection that holds the id."""
        claim = self._by_id.get(agent_id)
        return None if claim is None else claim.client

    async def claim(self, agent: KnownAgent, client: CollectorClient) -> Claim | None:
        """Give the id to the connection. Returns the claim of the connection that has lost it, if one has.

        Raises IdInUseError if another agent's connection holds the id and answers, and ConnectionClosed if the claiming
        connection has ended meanwhile.
        """
        claim = client.claim(agent)
        while (held := self._by_id.get(agent.id)) is not None and held.client is not client:
            if claim.is_same_agent(held):
                break
            # A gateway has decided about its own agents, and its other agents do not wait for an answer here.
            if client.gateway is not None or await held.client.answers(ANSWER_SECONDS):
                raise IdInUseError(held)
            if client.connection.state is not State.OPEN:
                await client.connection.ping()  # raises
            if self._by_id.get(agent.id) is held:
                break
        self._by_id[agent.id] = claim
        client.agent_ids.add(agent.id)
        if held is None or held.client is client:
            return None
        held.client.agent_ids.discard(agent.id)
        return held

    def release(self, client: CollectorClient) -> list[str]:
        """Forget a connection. Returns the ids that it held."""
        ids = sorted(client.agent_ids)
        client.agent_ids.clear()
        for agent_id in ids:
            self.drop(agent_id)
        return ids

    def drop(self, agent_id: str) -> None:
        """Take an id from the connection that holds it."""
        claim = self._by_id.pop(agent_id, None)
        if claim is not None:
            claim.client.agent_ids.discard(agent_id)


def disconnect(client: CollectorClient, reason: str, code: CloseCode = CloseCode.GOING_AWAY) -> None:
    """End a connection, by default one whose agent has another one."""
    client.connection.disconnect(code, reason)
