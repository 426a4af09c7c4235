"""An agent that says what a test wants, on a real WebSocket to a collector that the test starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from websockets.asyncio.client import ClientConnection, connect
from zeek_log import parse_header, parse_log

from zeek_agent.collector import pack
from zeek_agent.collector.pack import Pack
from zeek_agent.collector.server import Collector
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.destination import PATH
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context, Message

SETTINGS = CollectorSettings(listen="127.0.0.1:0", rotate_interval=0.0)

PACK = pack.parse(
    """
    [logs.things]
    fields = [
      { name = "name", type = "string", optional = false },
      { name = "size", type = "count" },
      { name = "at", type = "time" },
      { name = "tags", type = "set[string]" },
      { name = "part.key", type = "string" },
      { name = "part.value", type = "double" },
    ]

    [logs.things-events]
    change = false
    fields = [{ name = "name", type = "string" }]

    [[queries]]
    log = "things"
    sql = "SELECT * FROM things"

    [[queries]]
    log = "things-events"
    sql = "SELECT name FROM things_events"
    subscription = "Events"
    schedule = 0.5
    requires_tables = ["things_events"]
    groups = ["Linux"]
    """,
    "test",
)


class Agent:
    """The agent's side, message by message."""

    def __init__(self, connection: ClientConnection, collector: Collector, agent_id: str) -> None:
        self.connection = connection
        self.collector = collector
        self.id = agent_id
        self.hello_id = f"agent_hello_{agent_id}"

    async def subscribe(self) -> protocol.Ack:
        await self.send(protocol.subscription_message(protocol.subscriptions(self.id, (), "linux")))
        acknowledgement = protocol.read_message(await self.receive())
        assert isinstance(acknowledgement, protocol.Ack)
        return acknowledgement

    async def send(self, frame: str | bytes) -> None:
        await self.connection.send(frame)

    async def receive(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.connection.recv(decode=False)

    async def event(self) -> protocol.ZeekEvent | None:
        message = protocol.read_message(await self.receive())
        assert isinstance(message, Message), message
        return protocol.zeek_event(message)

    async def error(self) -> protocol.Error:
        answer = protocol.read_message(await self.receive())
        assert isinstance(answer, protocol.Error)
        return answer

    async def hello(self, **fields: Any) -> None:
        await self.send(protocol.agent_hello(Context(self.id, time.time(), self.hello_id), hello_record(**fields)))

    async def join(self) -> list[protocol.ZeekEvent | None]:
        """Say hello and take what an agent that joins is sent."""
        await self.subscribe()
        await self.hello()
        return [await self.event() for _ in range(1 + len(PACK.queries))]

    async def result(self, *columns: str, event: str = "Collector::things", change: Change | None = Change.ADD) -> None:
        context = Context(self.id, time.time(), "za_x", change)
        topic = protocol.response_topic(self.id, self.collector.instance)
        await self.send(
            protocol.event_message(topic, event, protocol.context_record(context), broker_json.vector(columns))
        )


def hello_record(hostname: str = "vm", broker: bool = False, **changed: str) -> str:
    """The encoded columns of a hello."""
    fields = {
        "agent_id": broker_json.string("ignored"),
        "instance_id": broker_json.string("I1"),
        "hostname": broker_json.string(hostname),
        "addresses": broker_json.set_of([broker_json.address("192.0.2.2"), broker_json.address("fd00::2")]),
        "platform": broker_json.string("Linux"),
        "os_name": broker_json.string("Debian GNU/Linux 12 (bookworm)"),
        "kernel_name": broker_json.string("Linux"),
        "kernel_version": broker_json.string("6.1"),
        "kernel_arch": broker_json.string("x86_64"),
        "agent_version": broker_json.count(300_000_000),
        "broker": broker_json.string("n/a"),
        "uptime": broker_json.timespan(1.5),
        "tables": broker_json.set_of([broker_json.string("things")]),
    }
    if not broker:
        del fields["broker"]
    return broker_json.vector((fields | changed).values())


THING = (
    broker_json.string("a thing"),
    broker_json.count(7),
    broker_json.timestamp(1_795_489_125.25),
    broker_json.set_of([broker_json.string("x,y"), broker_json.string("")]),
    broker_json.vector([broker_json.string("key"), broker_json.real(0.5)]),
)


@asynccontextmanager
async def collecting(
    logs: Path, *, settings: CollectorSettings = SETTINGS, given: Pack = PACK, **options: Any
) -> AsyncIterator[Collector]:
    """A running collector. A `clock` also serves as the one that nobody sets, unless `monotonic` is given."""
    if "clock" in options:
        options.setdefault("monotonic", options["clock"])
    collector = Collector(replace(settings, logs=str(logs)), given, **options)
    await collector.start()
    try:
        yield collector
    finally:
        await collector.stop()


@asynccontextmanager
async def agent_of(collector: Collector, agent_id: str = "HAbc", path: str = PATH, **headers: str) -> Any:
    host, port = collector.address
    url = f"ws://{host}:{port}{path}"
    # Without a limit of messages that wait to be received, which would keep the close frame out.
    async with connect(url, additional_headers=headers, compression=None, max_queue=None) as connection:
        yield Agent(connection, collector, agent_id)


def read(logs: Path, name: str) -> list[dict[str, Any]]:
    content = (logs / f"{name}.log").read_bytes()
    return [dict(zip(parse_header(content)["#fields"], record, strict=True)) for record in parse_log(content)]
