"""An agent that says what a test has it say, for tests of the Zeek package without a real agent.

Values are Broker's JSON; events and queries that Zeek sends come back as `(name, arguments)` with plain Python values.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

Value = dict[str, Any]
NONE: Value = {"@data-type": "none", "data": {}}
SOCKET_TABLES = ("processes", "sockets", "sockets_events", "users", "zeek_agent")


def string(text: str) -> Value:
    return {"@data-type": "string", "data": text}


def count(number: int) -> Value:
    return {"@data-type": "count", "data": number}


def enum(name: str) -> Value:
    return {"@data-type": "enum-value", "data": name}


def address(text: str) -> Value:
    return {"@data-type": "address", "data": text}


def timespan(text: str) -> Value:
    return {"@data-type": "timespan", "data": text}


def timestamp(seconds: float) -> Value:
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return {"@data-type": "timestamp", "data": text}


def vector(*members: Value) -> Value:
    return {"@data-type": "vector", "data": list(members)}


def set_of(*members: Value) -> Value:
    return {"@data-type": "set", "data": list(members)}


def event(topic: str, name: str, *arguments: Value) -> str:
    """A frame that publishes an event."""
    payload = [count(1), count(1), vector(string(name), vector(*arguments))]
    return json.dumps({"type": "data-message", "topic": topic, "@data-type": "vector", "data": payload})


def plain(value: Value) -> Any:
    """A value without its types."""
    data = value["data"]
    if value["@data-type"] == "none":
        return None
    return [plain(member) for member in data] if isinstance(data, list) else data


def url(scheme: str = "ws") -> str:
    """Where the test's Zeek listens."""
    return f"{scheme}://127.0.0.1:{os.environ['ZEEK_WEBSOCKET_LISTEN_PORT'].partition('/')[0]}/v1/messages/json"


class Agent:
    """A connected agent."""

    def __init__(self, websocket: ClientConnection, agent_id: str, groups: tuple[str, ...], clock_error: float) -> None:
        self.id = agent_id
        self.instance = ""
        self.queries: dict[str, list[Any]] = {}
        """By id: statement, schedule, subscription, event, cookie, required tables, tables that must be missing."""
        self._websocket = websocket
        self._groups = groups
        self._clock_error = clock_error
        self._results = 0

    async def subscribe(self) -> None:
        topics = [f"/zeek-agent/query/host/{self.id}"]
        for group in self._groups:
            topics += [f"/zeek-agent/query/group/{group}", f"/zeek-agent/query/group/{self.id}/{group}"]
        await self._websocket.send(json.dumps(topics))
        assert json.loads(await self._websocket.recv())["type"] == "ack"

    def context(self, query_id: str | None, change: str | None = None, cookie: str | None = None) -> Value:
        return vector(
            string(self.id),
            timestamp(time.time() + self._clock_error),
            NONE if query_id is None else string(query_id),
            NONE if change is None else enum(f"ZeekAgent::{change}"),
            NONE if cookie is None else string(cookie),
        )

    async def hello(
        self,
        connection: str = "hello_1",
        hostname: str | None = None,
        addresses: tuple[str, ...] = (),
        tables: tuple[str, ...] | None = SOCKET_TABLES,
        features: tuple[str, ...] | None = ("batches",),
        *,
        has_broker: bool = False,
    ) -> None:
        """`features` None is a hello of version 1 alone, `has_broker` one of agents before 2.4."""
        fields = [string(self.id), string("I1"), NONE if hostname is None else string(hostname)]
        fields += [set_of(*map(address, addresses)), string("Linux"), NONE, NONE, NONE, NONE, count(300000000)]
        fields += [string("n/a")] if has_broker else []
        fields += [timespan("5s"), NONE if tables is None else set_of(*map(string, tables))]
        if features is not None:
            fields.append(set_of(*map(string, features)))
        await self.publish("ZeekAgentAPI::agent_hello_v1", self.context(connection), vector(*fields), to="all")

    async def shutdown(self) -> None:
        await self.publish("ZeekAgentAPI::agent_shutdown_v1", self.context(None), to="all")

    async def publish(self, name: str, *arguments: Value, to: str | None = None) -> None:
        await self.send(self.frame(name, *arguments, to=to))

    def frame(self, name: str, *arguments: Value, to: str | None = None) -> str:
        """An event to the Zeek that the agent heard of, or to all."""
        return event(f"/zeek-agent/response/{to or self.instance}/{self.id}", name, *arguments)

    async def send(self, frame: str) -> None:
        """A frame as it is."""
        await self._websocket.send(frame)

    async def row(self, query_id: str, name: str, *cells: Value, change: str | None = None) -> None:
        """A row as version 1 has it."""
        await self.publish(name, self.context(query_id, change), vector(*cells))

    async def batch(self, query_id: str, rows: list[dict[str, Any]], **more: Any) -> None:
        """Rows as our agents send them; see `batch_frame`."""
        await self.send(self.batch_frame(query_id, rows, **more))

    def batch_frame(
        self,
        query_id: str,
        rows: list[dict[str, Any]],
        *,
        window: tuple[int, int] | None = None,
        index: int = 0,
        last: bool = True,
        change: str | None = None,
        store: str = "S1",
        stream: str = "Q1",
    ) -> str:
        """Without a window the result is another one than before, or the one before when `index` goes on."""
        if window is None:
            self._results += index == 0
            window = (self._results - 1, self._results)
        ends = {"@data-type": "boolean", "data": last}
        head = vector(string(store), string(stream), count(window[0]), count(window[1]), count(index), ends)
        text = json.dumps(rows, separators=(",", ":"))
        return self.frame("ZeekAgentAPI::rows_v1", self.context(query_id, change), head, string(text))

    async def receive(self, seconds: float = 10.0) -> tuple[str, list[Any]]:
        """The next event from Zeek."""
        async with asyncio.timeout(seconds):
            while True:
                message = json.loads(await self._websocket.recv())
                if message["type"] == "data-message":
                    name, arguments = (member for member in message["data"][2]["data"][:2])
                    values = [plain(argument) for argument in arguments["data"]]
                    self.instance = values[0]
                    self._note(name["data"], values)
                    return name["data"], values
                raise AssertionError(message)

    async def expect(self, name: str, seconds: float = 10.0) -> list[Any]:
        """The arguments of the next event of that name, which others may precede."""
        async with asyncio.timeout(seconds):
            while True:
                got, arguments = await self.receive(seconds)
                if got.removeprefix("ZeekAgentAPI::") == name:
                    return arguments

    async def query(self, wanted: Callable[[str], bool] | str, seconds: float = 10.0) -> str:
        """The id of a query whose statement contains a text, or for which `wanted` holds; waits for it."""
        matches = wanted if callable(wanted) else lambda sql: wanted in sql
        async with asyncio.timeout(seconds):
            while True:
                for query_id, query in self.queries.items():
                    if matches(query[0]):
                        return query_id
                await self.receive(seconds)

    async def settled(self, seconds: float = 0.5) -> None:
        """Take what Zeek sends until it falls silent."""
        try:
            while True:
                await self.receive(seconds)
        except TimeoutError:
            pass

    def _note(self, name: str, values: list[Any]) -> None:
        if name == "ZeekAgentAPI::install_query_v1":
            self.queries[values[1]] = values[2]
        elif name == "ZeekAgentAPI::cancel_query_v1":
            self.queries.pop(values[1], None)


@asynccontextmanager
async def agent(
    agent_id: str = "H1",
    groups: tuple[str, ...] = ("all", "linux"),
    clock_error: float = 0.0,
    patience: float = 120.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Agent]:
    """An agent that has connected to the test's Zeek, which may still be starting."""
    deadline = time.monotonic() + patience
    while True:
        try:
            options = {"ssl": tls, "server_hostname": "localhost"} if tls else {}
            # What an agent has not read must not keep it from closing its connection.
            websocket = await connect(url("wss" if tls else "ws"), ping_interval=None, max_queue=None, **options)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    async with websocket:
        connected = Agent(websocket, agent_id, groups, clock_error)
        await connected.subscribe()
        yield connected
