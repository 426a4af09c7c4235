"""Many agents on one WebSocket of a real Zeek, as a gateway speaks for them, for tests without a bus.

    async with gateway(url, "gw1") as gw:
        agent = gw.agent("H1", addresses=("10.0.0.1",))
        await agent.hello()
        query_id = await agent.expect_query("FROM users")
        await agent.batch(query_id, [{"name": "ann"}])

It subscribes as gateways do, passes each agent only what is addressed to it, and names itself in the agents' hellos
once Zeek's package has said that it supports this.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from waiting import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from zeek_agent.queries.subscriptions import Change, Query
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context, InstallQuery, Message, RowsAck, ZeekEvent

HOST: Final = "/zeek-agent/query/host/"
GROUP: Final = "/zeek-agent/query/group/"
VIA: Final = "/zeek-agent/query/via/"
AGENT_LEFT: Final = "ZeekAgentAPI::agent_left_v1"
TABLES: Final = ("processes", "sockets", "sockets_events", "connections", "users", "zeek_agent")
GROUPS: Final = ("all", "linux")
WAIT: Final = 60.0
CONNECT_SECONDS: Final = 30.0


@dataclass(eq=False)
class GatewayAgent:
    """An agent behind the gateway, as far as Zeek sees it."""

    gateway: Gateway
    id: str
    addresses: tuple[str, ...] = ()
    hostname: str | None = None
    tables: tuple[str, ...] = TABLES
    features: tuple[str, ...] = ("batches", "dialects")
    groups: tuple[str, ...] = GROUPS
    session: str = "1"
    """Part of the id of its hellos: another one is another session."""
    queries: dict[str, Query] = field(default_factory=dict)
    events: list[ZeekEvent] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    """The topic of each event, as Zeek sent it."""
    acks: list[RowsAck] = field(default_factory=list)
    results: int = 0

    @property
    def hello_id(self) -> str:
        return f"hello_{self.id}_{self.session}"

    def hello_frame(self, features: Iterable[str] | None = None) -> str:
        """Its hello, with the gateway's name if Zeek's package knows what that means."""
        names = [*self.features, *([f"via/{self.gateway.name}"] if self.gateway.has_via else [])]
        fields = [
            broker_json.string(self.id),
            broker_json.string("I1"),
            broker_json.NONE if self.hostname is None else broker_json.string(self.hostname),
            broker_json.set_of(map(broker_json.address, self.addresses)),
            broker_json.string("Linux"),
            *[broker_json.NONE] * 4,
            broker_json.count(300_000_000),
            broker_json.timespan(5.0),
            broker_json.set_of(map(broker_json.string, self.tables)),
            broker_json.set_of(map(broker_json.string, sorted(names if features is None else features))),
        ]
        return protocol.agent_hello(Context(self.id, time.time(), self.hello_id), broker_json.vector(fields))

    async def hello(self, features: Iterable[str] | None = None) -> None:
        await self.gateway.send(self.hello_frame(features))

    async def shutdown(self) -> None:
        await self.gateway.send(protocol.agent_shutdown(Context(self.id, time.time())))

    async def row(self, query_id: str, *cells: str, change: Change | None = None) -> None:
        """One row as version 1 of the API has it, of encoded cells."""
        context = protocol.context_record(Context(self.id, time.time(), query_id, change))
        event = self.queries[query_id].event
        await self.gateway.send(protocol.event_message(self._response_topic, event, context, broker_json.vector(cells)))

    async def batch(self, query_id: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
        await self.gateway.send(self.batch_frame(query_id, rows, **more))

    def batch_frame(
        self,
        query_id: str,
        rows: Sequence[dict[str, Any]],
        *,
        window: tuple[int, int] | None = None,
        index: int = 0,
        last: bool = True,
    ) -> str:
        """Rows in a batch; without a window it is one of another result than before."""
        if window is None:
            self.results += 1
            window = (self.results - 1, self.results)
        batch = protocol.Batch(f"store-{self.id}", "stream", *window, index, last)
        context = Context(self.id, time.time(), query_id)
        return protocol.rows(self._response_topic, context, batch, json.dumps(rows, separators=(",", ":")))

    async def expect_query(self, wanted: str, seconds: float = WAIT) -> str:
        """The id of a query whose statement contains a text; waits for it."""

        def find() -> str | None:
            return next((query_id for query_id, query in self.queries.items() if wanted in query.sql), None)

        return await until(find, seconds, f"{self.id} gets no query with {wanted}")

    def take(self, topic: str, event: ZeekEvent) -> None:
        self.topics.append(topic)
        self.events.append(event)
        if isinstance(event, InstallQuery):
            self.queries[event.query_id] = event.query
        elif isinstance(event, protocol.CancelQuery):
            self.queries.pop(event.query_id, None)
        elif isinstance(event, RowsAck):
            self.acks.append(event)

    @property
    def _response_topic(self) -> str:
        return protocol.response_topic(self.id, self.gateway.instance or "all")


@dataclass(eq=False)
class Gateway:
    """The connection, and the agents that it speaks for."""

    name: str
    websocket: ClientConnection
    agents: dict[str, GatewayAgent] = field(default_factory=dict)
    instance: str = ""
    features: frozenset[str] = frozenset()
    """What Zeek's package supports beyond version 1 of the API; known after its hello."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Topics of messages for agents that it does not have, as with several gateways and a stock package."""
    errors: list[protocol.Error] = field(default_factory=list)
    received: int = 0
    is_open: bool = True

    @property
    def has_via(self) -> bool:
        return "via" in self.features

    def agent(self, agent_id: str, **options: Any) -> GatewayAgent:
        """A new agent behind this gateway. It says nothing until it is told to."""
        added = self.agents[agent_id] = GatewayAgent(self, agent_id, **options)
        return added

    async def send(self, frame: str) -> None:
        await self.websocket.send(frame)

    async def left(self, agent_id: str) -> None:
        """An agent is gone without a shutdown message."""
        self.agents.pop(agent_id, None)
        context = protocol.context_record(Context(agent_id, time.time()))
        topic = protocol.response_topic(agent_id, self.instance or "all")
        await self.send(protocol.event_message(topic, AGENT_LEFT, context, broker_json.string(self.name)))

    async def expect_zeek(self, seconds: float = WAIT) -> None:
        """Wait until Zeek has said hello, and its package's features are known."""
        await until(lambda: self.instance, seconds, "Zeek does not say hello")

    def kill(self) -> None:
        """End the connection without a word."""
        self.websocket.transport.abort()

    async def run(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                received = protocol.read_message(await self.websocket.recv(decode=False))
                self.received += 1
                if isinstance(received, protocol.Error):
                    self.errors.append(received)
                elif isinstance(received, Message):
                    self._dispatch(received)
        self.is_open = False

    def _dispatch(self, message: Message) -> None:
        event = protocol.zeek_event(message)
        assert event is not None, message
        if isinstance(event, protocol.ZeekHello):
            self.instance, self.features = event.instance, event.features
        recipients = list(self._recipients(message.topic))
        if not recipients:
            self.unknown[message.topic] += 1
        for agent in recipients:
            agent.take(message.topic, event)

    def _recipients(self, topic: str) -> Iterable[GatewayAgent]:
        ordinary = topic
        if topic.startswith(VIA):
            name, _, rest = topic.removeprefix(VIA).partition("/")
            assert name == self.name, topic
            ordinary = f"/zeek-agent/query/{rest}"
        if ordinary.startswith(HOST):
            return filter(None, [self.agents.get(ordinary.removeprefix(HOST))])
        first, _, group = ordinary.removeprefix(GROUP).partition("/")
        if group:
            return (agent for agent in filter(None, [self.agents.get(first)]) if group in agent.groups)
        return (agent for agent in self.agents.values() if first in agent.groups)


def subscriptions(name: str) -> list[str]:
    """The topics of a gateway: prefixes of those of all agents, and of those that name it."""
    return [HOST, GROUP, f"{VIA}{name}/"]


@asynccontextmanager
async def gateway(url: str, name: str = "gw1", topics: Sequence[str] = ()) -> AsyncIterator[Gateway]:
    """A gateway that has connected to a Zeek, which may still be starting."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            websocket = await connect(
                f"{url}/v1/messages/json", ping_interval=None, max_queue=None, max_size=None, compression=None
            )
            break
        except OSError:
            assert time.monotonic() < deadline, "Zeek does not listen"
            await asyncio.sleep(0.1)
    async with websocket:
        await websocket.send(protocol.subscription_message(topics or subscriptions(name)))
        acknowledged = protocol.read_message(await websocket.recv(decode=False))
        assert isinstance(acknowledged, protocol.Ack), acknowledged
        connected = Gateway(name, websocket)
        reader = asyncio.create_task(connected.run())
        try:
            yield connected
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader


@asynccontextmanager
async def direct_agent(url: str, agent_id: str, **options: Any) -> AsyncIterator[GatewayAgent]:
    """An agent with a connection of its own, for comparison."""
    topics = protocol.subscriptions(agent_id, (), "linux")
    async with gateway(url, "none", topics=topics) as connection:
        yield connection.agent(agent_id, **options)
