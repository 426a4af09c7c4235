"""Zeek's side of a WebSocket for tests: a real server on loopback, which a test scripts.

    async with zeek_server() as zeek:
        client = await zeek.client()             # an agent that connected, subscribed and was acknowledged
        await client.hello()
        await client.install("q1", query)
        row = await client.expect(ResultRow, lambda row: row.context.query_id == "q1")

It can also be slow (`client.pause`), never acknowledge (`ack=None`), or break connections (`client.abort`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentEvent, ResultBatch, RowsAck, ZeekHello

E = TypeVar("E")

CLUSTER_ACK = protocol.Ack("zeromq__host_1234_x-websocket-0", "9.1.0-dev")
BROKER_ACK = protocol.Ack("d8a7d6a2-0f0e-4a2e-9a4e-0f6f5ad1c001", "2.8.0")
WAIT = 60.0


@dataclass(eq=False)
class Client:
    """One agent's connection, seen from Zeek."""

    websocket: ServerConnection
    topics: list[str]
    instance: str = "zeek_1"
    events: list[AgentEvent] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._reading.set()

    @property
    def state(self) -> str:
        """Whether the agent is still connected."""
        return "disconnected" if self.closed.is_set() else "connected"

    @property
    def agent_id(self) -> str:
        return self.topics[0].rpartition("/")[2]

    @property
    def topic(self) -> str:
        return protocol.host_topic(self.agent_id)

    async def send(self, frame: str | bytes) -> None:
        """Any frame; bytes go as a text frame, valid or not."""
        await self.websocket.send(frame, text=True)

    async def hello(
        self, package_version: str = "", instance: str | None = None, features: frozenset[str] = frozenset()
    ) -> None:
        hello = ZeekHello(instance or self.instance, "9.1.0-dev", 90100, package_version, features)
        await self.send(protocol.zeek_hello(self.topic, hello))

    async def install(self, query_id: str, query: Query, instance: str | None = None) -> None:
        await self.send(protocol.install_query(self.topic, instance or self.instance, query_id, query))

    async def acknowledge(self, event: ResultBatch, index: int | None = None) -> None:
        """Say that handlers have seen this batch and those before it."""
        batch = event.batch
        ack = RowsAck(
            self.instance,
            event.context.query_id or "",
            batch.stream,
            batch.high,
            batch.index if index is None else index,
        )
        await self.send(protocol.rows_ack(self.topic, ack))

    async def cancel(self, query_id: str, instance: str | None = None) -> None:
        await self.send(protocol.cancel_query(self.topic, instance or self.instance, query_id))

    async def shut_down(self, instance: str | None = None) -> None:
        await self.send(protocol.zeek_shutdown(protocol.group_topic("all"), instance or self.instance))

    def pause(self) -> None:
        """Stop reading: data stays in the kernel's buffers and then with the agent."""
        self._reading.clear()
        self.websocket.transport.pause_reading()

    def resume(self) -> None:
        self._reading.set()
        self.websocket.transport.resume_reading()

    def abort(self) -> None:
        """Break the connection without a word."""
        self.websocket.transport.abort()
        self._reading.set()

    def of(self, kind: type[E], where: Callable[[E], bool] = lambda _: True) -> list[E]:
        """The events of a kind that came so far."""
        return [event for event in self.events if isinstance(event, kind) and where(event)]

    async def expect(
        self, kind: type[E], where: Callable[[E], bool] = lambda _: True, *, number: int = 1, seconds: float = WAIT
    ) -> E:
        """Wait until so many matching events came, in any order among others; the last of them."""
        deadline = time.monotonic() + seconds
        while len(found := self.of(kind, where)) < number:
            if time.monotonic() > deadline:
                came = Counter(type(event).__name__ for event in self.events)
                raise AssertionError(f"{len(found)} of {number} {kind.__name__}, {self.state}, got {came}")
            await asyncio.sleep(0.01)
        return found[number - 1]

    async def serve(self) -> None:
        ended = asyncio.ensure_future(self.websocket.wait_closed())
        ended.add_done_callback(lambda _: self._reading.set())
        with suppress(ConnectionClosed):
            while await self._reading.wait():
                message = protocol.read_message(await self.websocket.recv(decode=False))
                if not self._reading.is_set():  # the library resumes when its own queue has become short
                    self.websocket.transport.pause_reading()
                assert isinstance(message, protocol.Message)
                self.events.append(protocol.agent_event(message))
        self.closed.set()


class ZeekServer:
    """Accepts agents; each, once acknowledged, is handed out by `client`."""

    def __init__(self, ack: protocol.Ack | None) -> None:
        self.ack = ack
        self.port = 0
        self.connections = 0
        self.requests: list[str] = []
        self.applications: list[str | None] = []
        self._server: Server | None = None
        self._clients: asyncio.Queue[Client] = asyncio.Queue()

    def url(self, scheme: str = "ws", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}"

    async def client(self, seconds: float = WAIT) -> Client:
        """The next agent that connected."""
        async with asyncio.timeout(seconds):
            return await self._clients.get()

    async def start(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._server = await serve(
            self.handle,
            "127.0.0.1",
            port,
            ssl=tls,
            compression=None,
            max_size=None,
            ping_interval=None,
            max_queue=16,
            close_timeout=1,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """As when Zeek ends: all connections are closed with code 1001."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def handle(self, websocket: ServerConnection) -> None:
        self.connections += 1
        assert websocket.request is not None
        self.requests.append(websocket.request.path)
        self.applications.append(websocket.request.headers.get("X-Application-Name"))
        with suppress(ConnectionClosed):
            topics = protocol.read_subscription(await websocket.recv(decode=False))
            if self.ack is None:
                await websocket.wait_closed()
                return
            await websocket.send(protocol.ack(self.ack.endpoint, self.ack.version))
            client = Client(websocket, topics)
            self._clients.put_nowait(client)
            await client.serve()


@asynccontextmanager
async def zeek_server(
    ack: protocol.Ack | None = CLUSTER_ACK, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ZeekServer]:
    """A server on a port of loopback, any free one by default."""
    zeek = ZeekServer(ack)
    await zeek.start(port, tls)
    try:
        yield zeek
    finally:
        await zeek.stop()
