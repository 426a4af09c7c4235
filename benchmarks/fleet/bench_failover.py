"""How late claims come while a gateway is killed: the time from the end of a connection until Zeek has its claim.

Real agents on this host, two gateways, and a scripted Zeek that installs the package's query for attribution and
acknowledges its rows. Short TCP connections over loopback; a gateway is killed in the midst of them. Zeek writes the
line of a TCP connection five seconds after its end.

    bench_failover.py [--rounds 5] [--agents 4] [--rate 50] [--schedule 1.0]

Needs root for the agents' event sources.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from gateway_program import gateway_program
from nats_server import nats_server
from running_agent import running
from waiting import until
from zeek_server import Client, ZeekServer, zeek_server

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, ResultBatch, ZeekHello

CLUSTER = "zeeks"
BEFORE_SECONDS, AFTER_SECONDS = 4.0, 10.0
LINE_SECONDS = 5.0
CLAIMS = """
SELECT max(CASE WHEN state IN ('closed', 'failed', 'expired') THEN time END) AS "ended:time",
local_port, remote_port, pid
FROM sockets_events
WHERE remote_addr = '127.0.0.1' AND pid IS NOT NULL AND state <> 'active' AND direction = 'outbound'
GROUP BY local_port, remote_port, pid ORDER BY min(seq)
"""


@dataclass
class Claims:
    """What the scripted Zeek has received: by agent, when the end of which flow came."""

    schedule: float
    arrived: dict[str, dict[tuple[int, int], float]] = field(default_factory=lambda: defaultdict(dict))
    via: dict[str, Client] = field(default_factory=dict)

    async def serve(self, client: Client) -> None:
        """Answer what comes over one gateway's connection, in order."""
        done = 0
        hello = ZeekHello("zeek_1", "8.2.2", 80202, "3.0.0", frozenset({protocol.BATCHES, protocol.VIA, protocol.LEFT}))
        await client.send(protocol.zeek_hello(protocol.group_topic("all"), hello))
        query = Query(CLAIMS, protocol.ROWS, self.schedule, Subscription.EVENTS)
        while not client.closed.is_set():
            if done == len(client.events):
                await asyncio.sleep(0.005)
                continue
            event = client.events[done]
            done += 1
            agent_id = event.context.agent_id
            if isinstance(event, AgentHello):
                self.via[agent_id] = client
                topic = protocol.host_topic(agent_id)
                await client.send(protocol.zeek_hello(topic, hello))
                await client.send(protocol.install_query(topic, "zeek_1", f"claims_{agent_id}", query))
            elif isinstance(event, ResultBatch):
                now = time.time()
                for row in json.loads(event.rows):
                    if row.get("ended") is not None:
                        self.arrived[agent_id].setdefault((row["local_port"], row["remote_port"]), now)
                batch = event.batch
                ack = protocol.RowsAck("zeek_1", event.context.query_id or "", batch.stream, batch.high, batch.index)
                await client.send(protocol.rows_ack(protocol.host_topic(agent_id), ack))


async def accept_clients(zeek: ZeekServer, claims: Claims) -> None:
    tasks = []
    while True:
        tasks.append(asyncio.create_task(claims.serve(await zeek.client(3600.0))))


async def connect(port: int, rate: float, seconds: float) -> dict[tuple[int, int], float]:
    """Short connections; when each of them had ended."""
    ended: dict[tuple[int, int], float] = {}
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds:
        with socket.create_connection(("127.0.0.1", port)) as client:
            own = client.getsockname()[1]
            client.sendall(b"ping")
            await asyncio.get_running_loop().run_in_executor(None, client.recv, 64)
        ended[own, port] = time.time()
        number += 1
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    return ended


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(64))
    await writer.drain()
    await reader.read(64)
    writer.close()


async def measure(directory: Path, arguments: argparse.Namespace) -> tuple[list[float], int]:
    """Seconds from the end of each connection until its claim came, for the agents that moved; how many these are."""
    claims = Claims(arguments.schedule)
    async with AsyncExitStack() as stack, zeek_server() as zeek:
        nats = stack.enter_context(nats_server(directory / "nats"))
        acceptor = asyncio.create_task(accept_clients(zeek, claims))
        stack.callback(acceptor.cancel)
        programs = stack.enter_context(ExitStack())
        started = {
            name: programs.enter_context(gateway_program(nats.url, zeek.url(), name, directory, cluster=CLUSTER))
            for name in ("gw1", "gw2")
        }
        await until(lambda: zeek.connections == 2, 60)
        server = await stack.enter_async_context(await asyncio.start_server(echo, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        for number in range(arguments.agents):
            place = directory / f"agent{number}"
            place.mkdir()
            settings = {"agent.id": f"H{number}", "sources.system_logs": "off", "sources.dns": "off"}
            await stack.enter_async_context(running(place, f"--zeek={nats.url}", settings=settings))
        await until(lambda: len(claims.via) == arguments.agents, 60)
        await asyncio.sleep(3.0)
        before = dict(claims.via)
        load = asyncio.create_task(connect(port, arguments.rate, BEFORE_SECONDS + AFTER_SECONDS))
        await asyncio.sleep(BEFORE_SECONDS)
        gateways = {agent_id: gateway_of(client) for agent_id, client in before.items()}
        ((busiest, _),) = Counter(gateways.values()).most_common(1)
        moved = [agent_id for agent_id, name in gateways.items() if name == busiest]
        started[busiest].kill()
        ended = await load

        def all_came() -> bool:
            return all(ends in claims.arrived[agent_id] for agent_id in moved for ends in ended)

        await until(all_came, 60, "claims are missing")
        return [claims.arrived[agent_id][ends] - at for agent_id in moved for ends, at in ended.items()], len(moved)


def gateway_of(client: Client) -> str:
    """The name of a gateway, from the topics that it subscribes to."""
    prefix = protocol.via_topic("").rstrip("/") + "/"
    return next(topic for topic in client.topics if topic.startswith(prefix)).removeprefix(prefix).strip("/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--rate", type=float, default=50.0, help="connections per second")
    parser.add_argument("--schedule", type=float, default=1.0, help="seconds between claims")
    arguments = parser.parse_args()
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="failover-") as directory:
            delays, moved = asyncio.run(measure(Path(directory), arguments))
        ordered = sorted(delays)
        late = sum(1 for delay in delays if delay > LINE_SECONDS)
        print(
            f"run {number + 1}: {moved} agents moved, {len(ordered)} claims, p50 {ordered[len(ordered) // 2]:.2f} s, "
            f"p99 {ordered[int(len(ordered) * 0.99)]:.2f} s, last {ordered[-1]:.2f} s, later than "
            f"{LINE_SECONDS:g} s: {late}",
            flush=True,
        )


if __name__ == "__main__":
    main()
