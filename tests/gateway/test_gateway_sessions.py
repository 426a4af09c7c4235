"""Sessions of agents with a gateway, over a real NATS server, in front of a scripted Zeek."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_agents import bus_agents
from gateways import CLUSTER, gateway
from nats_server import NatsServer, nats_server
from zeek_server import zeek_server

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, ResultBatch


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


async def test_rows_of_an_agent_reach_zeek_and_are_acknowledged(nats: NatsServer) -> None:
    async with zeek_server() as zeek, gateway(nats.url, zeek.url()), bus_agents(nats.url, CLUSTER) as bus:
        client = await zeek.client()
        agent = await bus.agent("HAbc")
        await agent.say_hello()
        hello = await client.expect(AgentHello)
        assert hello.context.agent_id == "HAbc"
        query = Query("SELECT 1", event=protocol.ROWS)
        await client.send(protocol.install_query(protocol.host_topic("HAbc"), "zeek_1", "q1", query))
        await agent.installed()
        await agent.send(agent.rows("q1", number=3))
        batch = await client.expect(ResultBatch)
        assert batch.context.query_id == "q1"
        assert batch.rows.count('"n"') == 3
