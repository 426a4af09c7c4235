"""Scripted agents on the bus, which say hello to a gateway, send batches with credit, or forge what they like.

async with bus_agents(nats.url, "zeeks") as bus:
    agent = await bus.agent("HAbc")          # with a session
    await agent.say_hello()                  # to Zeek
    query_id, install = await agent.installed()
    await agent.send(agent.rows(query_id, 1))
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from scripted_agent import hello_record

from zeek_agent.bus import link as bus_link
from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import Link, NoListenerError, Received
from zeek_agent.bus.messages import Ack, Again, Beacon, Grant, Hello, Refusal, Want, Welcome
from zeek_agent.bus.subjects import ROAMING, Address, Down, Up
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Batch, Context, InstallQuery, ZeekEvent

E = TypeVar("E")


class NotAcknowledgedError(Exception):
    """The session ended, or the gateway lost Zeek, before a batch was acknowledged."""


@dataclass(eq=False)
class BusAgent:
    """One agent; its session is replaced by `open`."""

    bus: BusAgents
    agent_id: str
    instance: str
    site: str = ROAMING
    groups: tuple[str, ...] = ("Linux",)
    welcome: Welcome | None = None
    events: list[ZeekEvent] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    queries: dict[str, InstallQuery] = field(default_factory=dict)
    downs: list[tuple[Down, bytes]] = field(default_factory=list)
    acknowledged: int = 0
    granted: int = 0
    number: int = 0
    again: Again | None = None
    is_gone: bool = False
    sessions: int = 0
    answers_pings: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def address(self) -> Address:
        return Address(self.site, self.agent_id)

    def up(self, kind: Up, number: int | None = None) -> str:
        assert self.welcome is not None
        return subjects.up(self.welcome.gateway, self.address, self.welcome.session, kind, number)

    async def hello(self, seconds: float = 15.0, **changed: object) -> Welcome | Refusal:
        """Ask for a session once."""
        hello = Hello(self.instance, "3.0.0", self.groups)
        payload = messages.encode(hello)
        return messages.read_welcome(
            await self.bus.request(self.address, subjects.hello(self.bus.cluster, self.address), payload, seconds)
        )

    async def open(self, seconds: float = 60.0) -> Welcome:
        """Get a session, as soon as a gateway gives one."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = await self.hello()
            except (NoListenerError, TimeoutError) as error:
                answer = Refusal(f"{type(error).__name__}", 0.2)
            if isinstance(answer, Welcome):
                self._begin(answer)
                return answer
            assert time.monotonic() < deadline, answer.reason
            await asyncio.sleep(min(answer.seconds, 0.5))

    def _begin(self, welcome: Welcome) -> None:
        self.welcome, self.again, self.is_gone = welcome, None, False
        self.acknowledged = self.granted = self.number = 0
        self.queries.clear()
        self.sessions += 1

    def receive(self, subject: subjects.DownSubject, payload: bytes) -> None:
        if self.welcome is None or subject.session != self.welcome.session:
            return
        self.downs.append((subject.kind, payload))
        match subject.kind:
            case Down.FRAME:
                self._frame(payload)
            case Down.ACK:
                ack = messages.read(payload, Ack)
                self.acknowledged = max(self.acknowledged, ack.number)
                self.granted += ack.grant is not None
            case Down.GRANT:
                messages.read(payload, Grant)
                self.granted += 1
            case Down.GONE:
                self.is_gone = True
                self.queries.clear()
            case Down.BACK:
                self.number = messages.read(payload, Welcome).first - 1
                self.is_gone, self.granted = False, 0
            case Down.AGAIN:
                self.again = messages.read(payload, Again)
        self.changed.set()

    def _frame(self, payload: bytes) -> None:
        message = protocol.read_message(payload)
        assert isinstance(message, protocol.Message)
        event = protocol.zeek_event(message)
        assert event is not None
        self.topics.append(message.topic)
        self.events.append(event)
        match event:
            case InstallQuery():
                self.queries[event.query_id] = event
            case protocol.CancelQuery():
                self.queries.pop(event.query_id, None)

    async def wait(self, find: Callable[[], E | None], seconds: float = 30.0) -> E:
        """Wait for something to arrive. Raises NotAcknowledgedError if the session ends before."""
        deadline = time.monotonic() + seconds
        while not (found := find()):
            if self.again is not None or self.is_gone:
                raise NotAcknowledgedError(self.again.reason if self.again else "Zeek is away")
            self.changed.clear()
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.001)):
                    await self.changed.wait()
            except TimeoutError:
                raise NotAcknowledgedError(f"nothing within {seconds:g} s") from None
        return found

    async def publish_batch(self, frames: Sequence[bytes], number: int | None = None) -> int:
        """A batch without a question for credit."""
        self.number = self.number + 1 if number is None else number
        await self.bus.link.publish(self.up(Up.BATCH, self.number), messages.join(frames))
        return self.number

    async def credit(self, size_bytes: int, seconds: float = 30.0) -> None:
        """Wait for credit for a batch."""
        if not self.granted:
            await self.bus.link.publish(self.up(Up.WANT), messages.encode(Want(size_bytes)))
            await self.wait(lambda: self.granted, seconds)
        self.granted -= 1

    async def send(self, *frames: bytes, seconds: float = 30.0) -> None:
        """Send a batch by the rules, and wait for its acknowledgement. Raises NotAcknowledgedError."""
        async with self.lock:
            if sum(map(len, frames)) + len(frames) > messages.SMALL_BATCH_BYTES:
                await self.credit(sum(map(len, frames)) + len(frames), seconds)
            number = await self.publish_batch(frames)
            await self.wait(lambda: self.acknowledged >= number, seconds)

    def hello_frame(self, hostname: str = "", **changed: str) -> bytes:
        changed = {
            "agent_id": broker_json.string(self.agent_id),
            "instance_id": broker_json.string(self.instance),
        } | changed
        record = hello_record(hostname or f"host-{self.agent_id}", **changed)
        features = broker_json.set_of([broker_json.string(protocol.BATCHES)])
        return protocol.agent_hello(
            self.context(f"agent_hello_{self.agent_id}"), f"{record[:-2]},{features}]}}"
        ).encode()

    async def say_hello(self, **changed: str) -> None:
        await self.send(self.hello_frame(**changed))

    def context(self, query_id: str | None = None, cookie: str | None = None) -> Context:
        return Context(self.agent_id, time.time(), query_id, cookie=cookie)

    def row(self, query_id: str, *columns: str, agent_id: str | None = None) -> bytes:
        """A row of a query, as one event."""
        query = self.queries[query_id]
        named = agent_id or self.agent_id
        context = Context(named, time.time(), query_id, cookie=query.query.cookie)
        topic = protocol.response_topic(named, query.instance)
        record = broker_json.vector(columns)
        return protocol.event_message(topic, query.query.event, protocol.context_record(context), record).encode()

    def rows(self, query_id: str, index: int = 0, number: int = 1, *, text: str = "x") -> bytes:
        """Rows of a query in a batch."""
        query = self.queries[query_id]
        context = self.context(query_id, query.query.cookie)
        batch = Batch("store", "stream", 0, 0, index, last=True)
        objects = json.dumps([{"n": each, "text": text} for each in range(number)])
        return protocol.rows(protocol.response_topic(self.agent_id, query.instance), context, batch, objects).encode()

    async def installed(self, where: Callable[[InstallQuery], bool] = lambda _: True) -> str:
        """The id of a query that Zeek has installed."""
        return await self.wait(lambda: next((one for one, event in self.queries.items() if where(event)), None), 60.0)

    async def beat(self, seconds: float = 5.0) -> None:
        """Raises NoListenerError if the gateway is gone."""
        await self.bus.request(self.address, self.up(Up.BEAT), b"", seconds)

    async def bye(self) -> None:
        await self.bus.link.publish(self.up(Up.BYE))
        self.welcome = None


class BusAgents:
    """Agents that share one connection, which only a server without permissions allows."""

    def __init__(self, link: Link, cluster: str, url: str) -> None:
        self.link = link
        self.url = url
        self.cluster = cluster
        self.agents: dict[tuple[str, str], BusAgent] = {}
        self._by_id: dict[str, list[BusAgent]] = {}
        self.beacons: list[Beacon] = []
        self._instances = itertools.count(1)

    def new(self, agent_id: str, instance: str | None = None) -> BusAgent:
        instance = instance or f"I{next(self._instances)}"
        agent = self.agents[agent_id, instance] = BusAgent(self, agent_id, instance)
        self._by_id.setdefault(agent_id, []).append(agent)
        return agent

    async def agent(self, agent_id: str, instance: str | None = None) -> BusAgent:
        """An agent with a session."""
        agent = self.new(agent_id, instance)
        await agent.open()
        return agent

    async def request(self, agent: Address, subject: str, payload: bytes, seconds: float) -> bytes:
        """A request of an agent, as one with a connection of its own makes it: with its own inbox."""
        link = await bus_link.connect([self.url], name=agent.agent_id, inbox=subjects.inbox(agent))
        try:
            return await link.request(subject, payload, seconds)
        finally:
            with suppress(ConnectionError):
                await link.close()

    async def receive(self, received: Received) -> None:
        try:
            subject = subjects.read_down(received.subject)
        except ValueError:
            return  # an answer to a request
        for agent in self._by_id.get(subject.agent.agent_id, ()):
            if agent.welcome is None or (agent.address, agent.welcome.session) != (subject.agent, subject.session):
                continue
            if subject.kind is Down.PING and agent.answers_pings:
                await self.link.publish(agent.up(Up.BEAT))
            agent.receive(subject, received.payload)

    async def receive_beacon(self, received: Received) -> None:
        beacon = messages.read(received.payload, Beacon)
        self.beacons.append(beacon)
        for agent in self.agents.values():
            if beacon.gone and agent.welcome is not None and agent.welcome.gateway == beacon.gone:
                agent.again = Again()
                agent.changed.set()


@asynccontextmanager
async def bus_agents(url: str, cluster: str) -> AsyncIterator[BusAgents]:
    link = await bus_link.connect([url], name="agents", inbox="za.v1.dn.test.r")
    agents = BusAgents(link, cluster, url)
    try:
        await link.subscribe("za.v1.dn.*.*.*.*", agents.receive)  # without answers to requests
        await link.subscribe(subjects.all_agents(cluster), agents.receive_beacon)
        await link.flush()
        yield agents
    finally:
        with suppress(ConnectionError):
            await link.close()
