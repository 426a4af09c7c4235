"""A gateway for tests: the other side of an agent's sessions on a real NATS server, which a test scripts.

    with nats_server(tmp_path) as server:
        async with scripted_gateway(server.url) as gateway:
            client = await gateway.client()          # an agent that said hello and was welcomed
            await client.expect(AgentHello)
            await client.install("q1", query)        # as Zeek does, see zeek_server.Client
            await client.gone()                      # as a gateway that loses Zeek

It keeps account of credits: `client.violations` has what a gateway would refuse.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from zeek_server import CLUSTER_ACK, Client

from zeek_agent.bus import link, messages, subjects
from zeek_agent.bus.link import Link, Received
from zeek_agent.bus.messages import Ack, Again, Beacon, Grant, Hello, Message, Refusal, Want, Welcome
from zeek_agent.bus.subjects import ROAMING, Address, Down, Up, UpSubject
from zeek_agent.zeek import protocol

WAIT = 30.0
_sessions = itertools.count(1)


@dataclass(eq=False)
class _Frames:
    """Stands for the WebSocket of `zeek_server.Client`: frames go to the agent over the bus."""

    publish: Callable[[Down, bytes], Any]

    async def send(self, frame: str | bytes, text: bool) -> None:
        assert text
        await self.publish(Down.FRAME, frame.encode() if isinstance(frame, str) else frame)


@dataclass(eq=False)
class BusClient(Client):
    """One agent's session, seen from its gateway."""

    gateway: Any = None
    address: Address = field(default_factory=lambda: Address(ROAMING, ""))
    greeting: Hello | None = None
    session: str = ""
    batches: list[tuple[int, bytes]] = field(default_factory=list)
    wants: list[Want] = field(default_factory=list)
    unacknowledged: deque[int] = field(default_factory=deque)
    unasked: int = 0
    """Number of the last small batch that needed no grant."""
    granted_until: float | None = None
    first_number: int = 1
    beats: int = 0
    byes: int = 0
    acknowledges: bool = True
    """Whether each batch is acknowledged at once."""
    grants: bool = True
    """Whether each wish is granted at once."""
    violations: list[str] = field(default_factory=list)

    async def publish(self, kind: Down, payload: bytes | Message = b"", session: str | None = None) -> None:
        """Any payload, to this session or another."""
        raw = payload if isinstance(payload, bytes) else messages.encode(payload)
        await self.gateway.link.publish(subjects.down(self.address, session or self.session, kind), raw)

    async def ack(self, number: int, *, grant: bool = False) -> None:
        while self.unacknowledged and self.unacknowledged[0] <= number:
            self.unacknowledged.popleft()
        if grant:
            self.granted_until = time.monotonic() + messages.GRANT_SECONDS
        await self.publish(Down.ACK, Ack(number, self.wants[-1].number if grant else None))

    async def grant(self, seconds: float = messages.GRANT_SECONDS) -> None:
        self.granted_until = time.monotonic() + seconds
        await self.publish(Down.GRANT, Grant(seconds, self.wants[-1].number))

    async def gone(self) -> None:
        """Zeek is away."""
        self.unacknowledged.clear()
        self.granted_until = None
        await self.publish(Down.GONE)

    async def back(self, **changes: str) -> None:
        self.first_number = (self.batches[-1][0] if self.batches else 0) + 1_000
        await self.publish(Down.BACK, self.gateway.welcome(self.session, first=self.first_number, **changes))

    async def again(self, seconds: float = 0.0, reason: str = "") -> None:
        self.closed.set()
        await self.publish(Down.AGAIN, Again(seconds, reason))

    async def ping(self) -> None:
        await self.publish(Down.PING)

    async def receive(self, subject: UpSubject, payload: bytes, reply: str) -> None:
        match subject.kind:
            case Up.BATCH:
                await self._receive_batch(subject.number, payload)
            case Up.WANT:
                self.wants.append(messages.read(payload, Want))
                if self.grants:
                    await self.grant()
            case Up.BEAT:
                self.beats += 1
                if reply:
                    await self.gateway.link.publish(reply)
            case Up.BYE:
                self.byes += 1
                self.closed.set()

    async def _receive_batch(self, number: int, payload: bytes) -> None:
        if number != max((self.batches[-1][0] if self.batches else 0) + 1, self.first_number):
            self.violations.append(f"batch {number} after {self.batches[-1][0] if self.batches else 0}")
        if len(payload) <= messages.SMALL_BATCH_BYTES and self.unasked not in self.unacknowledged:
            self.unasked = number
        else:
            if self.granted_until is None or time.monotonic() > self.granted_until:
                self.violations.append(f"batch {number} of {len(payload)} bytes without a grant")
            elif len(payload) > self.wants[-1].bytes:
                self.violations.append(f"batch {number} of {len(payload)} bytes, {self.wants[-1].bytes} were granted")
            self.granted_until = None
        self.batches.append((number, payload))
        self.unacknowledged.append(number)
        for frame in messages.split(payload):
            message = protocol.read_message(frame)
            assert isinstance(message, protocol.Message)
            self.events.append(protocol.agent_event(message))
        if self.acknowledges:
            await self.ack(number)


class ScriptedGateway:
    """Welcomes agents; each is handed out by `client`."""

    def __init__(self, connected: Link, cluster: str, name: str) -> None:
        self.link = connected
        self.cluster = cluster
        self.name = name
        self.ack = CLUSTER_ACK
        self.refusal: Refusal | None = None
        self.answers = True
        """Whether hellos are answered."""
        self.greetings: list[Hello] = []
        self.asked = 0
        """Number of `who`."""
        self.prepare: Callable[[BusClient], None] = lambda _: None
        """Called with each new client before its welcome is sent."""
        self.sessions: dict[str, BusClient] = {}
        self._clients: asyncio.Queue[BusClient] = asyncio.Queue()
        self._end_hellos: Any = None

    async def start(self, *, beacons: bool = True) -> None:
        await self.link.subscribe(subjects.all_up(self.name), self._receive)
        self._end_hellos = await self.link.subscribe(subjects.hello(self.cluster), self._hello, subjects.GATEWAYS)
        await self.link.subscribe(subjects.who(), self._who)
        await self.link.flush()
        if beacons:
            await self.beacon()

    async def beacon(self, spread: float = 0.0) -> None:
        await self.link.publish(subjects.all_agents(self.cluster), messages.encode(Beacon(self.name, spread)))

    async def leave(self) -> None:
        """Receive no more hellos."""
        await self._end_hellos()

    def welcome(self, session: str, **changes: str | int) -> Welcome:
        return Welcome(
            **{
                "gateway": self.name,
                "session": session,
                "endpoint": self.ack.endpoint,
                "version": self.ack.version,
                **changes,
            }
        )  # type: ignore[arg-type]

    async def client(self, seconds: float = WAIT) -> BusClient:
        """The next agent that was welcomed."""
        async with asyncio.timeout(seconds):
            return await self._clients.get()

    async def _who(self, message: Received) -> None:
        self.asked += 1
        await self.link.publish(message.reply, messages.encode(Beacon(self.name, cluster=self.cluster)))

    async def _hello(self, message: Received) -> None:
        cluster, address = subjects.read_hello(message.subject)
        assert cluster == self.cluster
        hello = messages.read(message.payload, Hello)
        self.greetings.append(hello)
        if not self.answers:
            return
        if self.refusal is not None:
            await self.link.publish(message.reply, messages.encode(self.refusal))
            return
        topics = [protocol.host_topic(address.agent_id)]
        client = BusClient(None, topics, gateway=self, address=address, greeting=hello, session=f"s{next(_sessions)}")  # type: ignore[arg-type]
        client.websocket = _Frames(client.publish)  # type: ignore[assignment]
        self.sessions[client.session] = client
        self.prepare(client)
        await self.link.publish(message.reply, messages.encode(self.welcome(client.session)))
        self._clients.put_nowait(client)

    async def _receive(self, message: Received) -> None:
        subject = subjects.read_up(message.subject)
        client = self.sessions.get(subject.session)
        if client is not None:
            await client.receive(subject, message.payload, message.reply)


@asynccontextmanager
async def scripted_gateway(
    url: str, cluster: str = "main", name: str = "gw1", *, beacons: bool = True, credentials: str | None = None
) -> AsyncIterator[ScriptedGateway]:
    """A gateway of a cluster, connected to a server."""
    connected = await link.connect([url], name=name, inbox=f"_INBOX.{name}", credentials=credentials)
    gateway = ScriptedGateway(connected, cluster, name)
    await gateway.start(beacons=beacons)
    try:
        yield gateway
    finally:
        await connected.close()
