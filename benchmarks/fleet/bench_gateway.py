"""What a gateway costs: processor time per batch, memory per session, and a burst beyond its memory.

The gateway is a process of its own between a NATS server and a scripted Zeek, which reads and acknowledges.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from bus_agents import BusAgent, bus_agents
from gateway_program import cpu_seconds, gateway_program, memory_bytes
from nats_server import nats_server
from waiting import until
from zeek_server import zeek_server

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol

SIZES = {"small (2 rows)": (2, 40), "50 KB (190 rows)": (190, 240)}


async def measure(directory: Path, sessions: int, batches: int, rounds: int) -> None:
    with nats_server(directory / "nats") as nats:
        async with zeek_server() as zeek, bus_agents(nats.url, "zeeks") as bus:
            with gateway_program(nats.url, zeek.url(), "gw1", directory) as process:
                client = await zeek.client()
                first = await bus.agent("H0")
                await first.say_hello()
                base = memory_bytes(process.pid)
                agents = [first, *(bus.new(f"H{number}") for number in range(1, sessions))]
                for begin in range(1, sessions, 100):
                    await asyncio.gather(*(agent.open() for agent in agents[begin : begin + 100]))
                    await asyncio.gather(*(agent.say_hello() for agent in agents[begin : begin + 100]))
                with_sessions = memory_bytes(process.pid)
                for number in range(20):
                    query = Query(f"SELECT {number}", event=protocol.ROWS)
                    topic = protocol.group_topic("all")
                    await client.send(protocol.install_query(topic, "zeek_1", f"q{number}", query))
                await until(lambda: all(len(agent.queries) == 20 for agent in agents), 120)
                with_queries = memory_bytes(process.pid)
                print(f"memory with one agent               {base / 2**20:8.1f} MB")
                print(f"per session with its hello          {(with_sessions - base) / sessions / 1024:8.1f} KB")
                print(f"per session with 20 queries as well {(with_queries - base) / sessions / 1024:8.1f} KB")
                costs: dict[str, list[float]] = {name: [] for name in SIZES}
                for _ in range(rounds):
                    for name, (rows, width) in SIZES.items():
                        costs[name].append(await cost(process.pid, agents[:50], batches, rows, width))
                        client.events.clear()
                for name, (rows, width) in SIZES.items():
                    size = len(first.rows("q0", number=rows, text="x" * width))
                    low, middle, high = min(costs[name]), statistics.median(costs[name]), max(costs[name])
                    print(f"{name:18} {size:7,} bytes: {middle:6.0f} us CPU a batch ({low:.0f}-{high:.0f})")
                print(f"maximum memory                      {memory_bytes(process.pid, 'VmHWM') / 2**20:8.1f} MB")


async def cost(pid: int, agents: list[BusAgent], batches: int, rows: int, width: int) -> float:
    """Microseconds of the gateway's processor time per batch."""
    frames = [agent.rows("q0", number=rows, text="x" * width) for agent in agents]

    async def send(agent: BusAgent, frame: bytes) -> None:
        for _ in range(batches // len(agents)):
            await agent.send(frame, seconds=120)

    before, began = cpu_seconds(pid), time.monotonic()
    await asyncio.gather(*(send(agent, frame) for agent, frame in zip(agents, frames, strict=True)))
    used = cpu_seconds(pid) - before
    print(f"  {batches / (time.monotonic() - began):,.0f} batches/s in this round", file=sys.stderr)
    return used / batches * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=2_000)
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(Path(directory), given.sessions, given.batches, given.rounds))


if __name__ == "__main__":
    main()
