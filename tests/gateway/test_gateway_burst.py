"""Many agents offer more than fits into memory at once: credit keeps the gateway small, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_agents import bus_agents
from gateway_program import gateway_program, memory_bytes
from nats_server import NatsServer, nats_server
from waiting import until
from zeek_server import zeek_server

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, ResultBatch

BATCH_BYTES = 50_000
GROWTH_BYTES_MAX = 64 * 1024 * 1024


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


async def burst(nats: NatsServer, directory: Path, number: int) -> int:
    """All agents offer a batch in the same moment. Returns the growth of the gateway's memory in bytes."""
    async with zeek_server() as zeek, bus_agents(nats.url, "zeeks") as bus:
        with gateway_program(nats.url, zeek.url(), "gw1", directory) as process:
            client = await zeek.client()
            agents = [bus.new(f"H{each}") for each in range(number)]
            for begin in range(0, number, 100):
                await asyncio.gather(*(agent.open() for agent in agents[begin : begin + 100]))
                await asyncio.gather(*(agent.say_hello() for agent in agents[begin : begin + 100]))
            await client.expect(AgentHello, number=number)
            query = Query("SELECT 1", event=protocol.ROWS)
            await client.send(protocol.install_query(protocol.group_topic("all"), "zeek_1", "q1", query))
            await until(lambda: all("q1" in agent.queries for agent in agents), 60)
            before = memory_bytes(process.pid)
            await asyncio.gather(
                *(agent.send(agent.rows("q1", text="x" * BATCH_BYTES), seconds=240.0) for agent in agents)
            )
            came = Counter(one.context.agent_id for one in client.of(ResultBatch))
            assert came == dict.fromkeys((agent.agent_id for agent in agents), 1)
            assert all(agent.again is None for agent in agents)
            return memory_bytes(process.pid, "VmHWM") - before


@pytest.mark.long
async def test_a_burst_does_not_grow_the_gateway(nats: NatsServer, tmp_path: Path) -> None:
    assert await burst(nats, tmp_path, 300) < GROWTH_BYTES_MAX


@pytest.mark.long
async def test_a_result_of_100_megabytes_and_its_cancellation_do_not_grow_the_gateway(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with zeek_server() as zeek, bus_agents(nats.url, "zeeks") as bus:
        with gateway_program(nats.url, zeek.url(), "gw1", tmp_path) as process:
            client = await zeek.client()
            agent = await bus.agent("HAbc")
            await agent.say_hello()
            query, topic = Query("SELECT 1", event=protocol.ROWS), protocol.host_topic("HAbc")
            await client.send(protocol.install_query(topic, "zeek_1", "q1", query))
            await agent.installed()
            before = memory_bytes(process.pid)
            frames = [agent.rows("q1", index, text="x" * 250_000) for index in range(10)]
            for index in range(400):
                if index == 200:
                    await client.send(protocol.cancel_query(topic, "zeek_1", "q1"))
                await agent.send(frames[index % 10])
            assert (len(client.of(ResultBatch)), agent.again) == (400, None)
            assert memory_bytes(process.pid, "VmHWM") - before < GROWTH_BYTES_MAX


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_burst_of_175_megabytes_does_not_grow_the_gateway(nats: NatsServer, tmp_path: Path) -> None:
    assert await burst(nats, tmp_path, 3_400) < GROWTH_BYTES_MAX
