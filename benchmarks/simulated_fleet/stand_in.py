"""A stand-in for a Zeek with our package: installs one query, writes rows to a log, and acknowledges each batch.

It treats repeated batches as `zeek/scripts/framework/batches.zeek` does. Like Zeek, it keeps log lines in memory for
up to a second, and loses them when it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import secrets
import signal
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from simulated_fleet.fake_host import SQL
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import (
    AgentHello,
    AgentLeft,
    AgentShutdown,
    Batch,
    Message,
    ResultBatch,
    RowsAck,
    ZeekHello,
)

LOG: Final = "fleet.log"
HEAD: Final = b"#separator \\x09\n#fields\tts\thid\tstore\tnumber\tcheck_sum\thost_time\n"
FLUSH_SECONDS: Final = 1.0
HELLO_SECONDS: Final = 60.0
"""As in the package."""
FEATURES: Final = frozenset({protocol.BATCHES, protocol.VIA, protocol.LEFT})
VERSION: Final = "8.2.2"
VERSION_NUMBER: Final = 80_202
VIA_FEATURE: Final = f"{protocol.VIA}/"
VIA_TOPICS: Final = "/zeek-agent/query/via/"


class Row(msgspec.Struct):
    store: str
    number: int
    check_sum: int


class Verdict(Enum):
    HANDLE = auto()
    KNOWN = auto()
    EARLY = auto()


@dataclass(slots=True)
class Stream:
    store: str
    stream: str
    low: int
    high: int
    index: int = 0
    done: int = 0


@dataclass(slots=True)
class Streams:
    """What was handled, by agent: the rule of the package's `judge`."""

    by_agent: dict[str, Stream] = field(default_factory=dict)

    def judge(self, agent_id: str, batch: Batch) -> Verdict:
        stream = self._known(agent_id, batch)
        if batch.high <= stream.done or batch.index < stream.index:
            return Verdict.KNOWN
        if batch.index > stream.index:
            return Verdict.EARLY
        stream.index = batch.index + 1
        if batch.last:
            stream.done = batch.high
        self.by_agent[agent_id] = stream
        return Verdict.HANDLE

    def _known(self, agent_id: str, batch: Batch) -> Stream:
        stream = Stream(batch.store, batch.stream, batch.low, batch.high)
        known = self.by_agent.get(agent_id)
        if known is None or (known.store, known.stream) != (batch.store, batch.stream):
            return stream
        if (known.low, known.high) == (batch.low, batch.high):
            return known
        stream.done = known.done
        return stream


class StandIn:
    """The server and its log."""

    def __init__(self, log: BinaryIO, schedule: float) -> None:
        self.instance = f"zeek_{secrets.token_hex(8)}"
        self._query_id = f"za_{secrets.token_hex(8)}"
        self._query = Query(SQL, protocol.ROWS, schedule, Subscription.EVENTS)
        self._log = log
        self._lines: list[str] = []
        self._streams = Streams()
        self._hello_info = ZeekHello(self.instance, VERSION, VERSION_NUMBER, features=FEATURES)
        self._hello_ids: dict[str, str] = {}
        self._gateways: dict[str, str] = {}
        """Of the agents that are behind one."""
        self._rows = msgspec.json.Decoder(list[Row])
        self._by_topic: defaultdict[str, set[ServerConnection]] = defaultdict(set)
        """Connections by what they subscribe to: a topic, or the beginning of topics if it ends with a slash."""
        self.known = self.early = self.refused = 0

    async def serve(self, connection: ServerConnection) -> None:
        topics = tuple(protocol.read_subscription(await connection.recv(decode=False)))
        await connection.send(protocol.ack("stand-in-websocket", VERSION))
        for topic in topics:
            self._by_topic[topic].add(connection)
        for gateway in (topic.removeprefix(VIA_TOPICS).strip("/") for topic in topics if topic.startswith(VIA_TOPICS)):
            greeting = protocol.via_topic(gateway, protocol.group_topic("all"))
            await self.publish(greeting, protocol.zeek_hello(greeting, self._hello_info))
        try:
            while True:
                await self._handle(connection, await connection.recv(decode=False))
        except ConnectionClosed:
            pass
        finally:
            for topic in topics:
                self._by_topic[topic].discard(connection)
                if not self._by_topic[topic]:
                    del self._by_topic[topic]

    async def _handle(self, connection: ServerConnection, raw: bytes) -> None:
        try:
            message = protocol.read_message(raw)
            event = protocol.agent_event(message) if isinstance(message, Message) else None
        except ProtocolError:
            self.refused += 1
            await connection.send(protocol.error("deserialization_failed", "failed to create Zeek event"))
            return
        match event:
            case AgentHello():
                await self._hello(event)
            case ResultBatch():
                await self._batch(event)
            case AgentShutdown():
                self._hello_ids.pop(event.context.agent_id, None)
            case AgentLeft(context, gateway) if self._gateways.get(context.agent_id) == gateway:
                self._hello_ids.pop(context.agent_id, None)

    async def _hello(self, event: AgentHello) -> None:
        agent_id, hello_id = event.context.agent_id, event.context.query_id or ""
        named = (feature.removeprefix(VIA_FEATURE) for feature in event.features if feature.startswith(VIA_FEATURE))
        self._gateways[agent_id] = next(named, "")
        if self._hello_ids.get(agent_id) == hello_id:
            return
        self._hello_ids[agent_id] = hello_id
        topic = self._topic(agent_id)
        await self.publish(topic, protocol.zeek_hello(topic, self._hello_info))
        await self.publish(topic, protocol.install_query(topic, self.instance, self._query_id, self._query))

    async def _batch(self, event: ResultBatch) -> None:
        agent_id, batch, query_id = event.context.agent_id, event.batch, event.context.query_id or ""
        topic = self._topic(agent_id)
        if query_id != self._query_id:
            await self.publish(topic, protocol.cancel_query(topic, self.instance, query_id))
            return
        verdict = self._streams.judge(agent_id, batch)
        if verdict is Verdict.EARLY:
            self.early += 1
            return
        if verdict is Verdict.HANDLE:
            now, then = f"{time.time():.6f}", f"{event.context.host_time:.6f}"
            for row in self._rows.decode(event.rows):
                self._lines.append(f"{now}\t{agent_id}\t{row.store}\t{row.number}\t{row.check_sum}\t{then}\n")
        else:
            self.known += 1
        ack = RowsAck(self.instance, query_id, batch.stream, batch.high, batch.index)
        await self.publish(topic, protocol.rows_ack(topic, ack))

    def _topic(self, agent_id: str) -> str:
        topic = protocol.host_topic(agent_id)
        gateway = self._gateways.get(agent_id)
        return protocol.via_topic(gateway, topic) if gateway else topic

    async def publish(self, topic: str, frame: str) -> None:
        parts = topic.split("/")
        prefixes = ["/".join(parts[:count]) + "/" for count in range(2, len(parts))]
        subscribers = set[ServerConnection]().union(*(self._by_topic.get(one, ()) for one in (topic, *prefixes)))
        for connection in subscribers:
            with suppress(ConnectionClosed):
                await connection.send(frame)

    async def say_hello(self) -> None:
        """At intervals, to all."""
        topic = protocol.group_topic("all")
        while True:
            await asyncio.sleep(HELLO_SECONDS)
            await self.publish(topic, protocol.zeek_hello(topic, self._hello_info))

    async def write(self) -> None:
        """At intervals, to the log."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        self._log.write("".join(lines).encode())
        self._log.flush()


async def run(port: int, log: Path, schedule: float) -> None:
    """Serve on loopback until SIGTERM; print a line once it is ready."""
    with log.open("ab") as file:
        if not file.tell():
            file.write(HEAD)
        one = StandIn(file, schedule)
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with serve(
            one.serve, "127.0.0.1", port, compression=None, max_size=1 << 25, ping_interval=5, ping_timeout=60,
            close_timeout=1, max_queue=4,
        ):  # fmt: skip
            tasks = [asyncio.create_task(one.say_hello()), asyncio.create_task(one.write())]
            print("listening", flush=True)
            await stopped.wait()
            for task in tasks:
                task.cancel()
        one.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simulated_fleet.stand_in")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--schedule", type=float, default=1.0, help="seconds between runs of the query")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(run(arguments.port, arguments.log, arguments.schedule))


if __name__ == "__main__":
    main()
