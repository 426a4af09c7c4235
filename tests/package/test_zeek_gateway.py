"""Agents behind a gateway, as a real Zeek with the package sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_agents import bus_agents
from gateways import CLUSTER, gateway
from nats_server import NatsServer, nats_server
from waiting import until
from zeek_program import needs_zeek, records, tool, zeek

from zeek_agent.zeek import protocol

pytestmark = needs_zeek
AGENTS = 20


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_real_zeek_serves_many_agents_over_one_websocket(nats: NatsServer, tmp_path: Path) -> None:
    tool("zeek")
    with zeek(tmp_path / "zeek") as url:
        async with gateway(nats.url, url, seconds=120.0) as gw, bus_agents(nats.url, CLUSTER) as bus:
            agents = [await bus.agent(f"H{number}") for number in range(AGENTS)]
            for agent in agents:
                await agent.say_hello()
            await until(lambda: all(agent.queries for agent in agents), 60)
            joined = await until(lambda: joins(tmp_path) if len(joins(tmp_path)) == AGENTS else None, 60)
            assert joined == {agent.agent_id for agent in agents}
            numbers = {len(agent.queries) for agent in agents}
            assert len(numbers) == 1, "each agent has the same queries"
            query_id = await agents[0].installed(lambda event: event.query.event == protocol.ROWS)
            await agents[0].send(agents[0].rows(query_id, number=0))
            await until(lambda: any(isinstance(event, protocol.RowsAck) for event in agents[0].events), 30)
            assert not any(isinstance(event, protocol.RowsAck) for event in agents[1].events)
            assert gw.stats().counters.refused.total() == 0
            assert gw.stats().zeek_bad_messages == 0
            await agents[0].send(protocol.agent_shutdown(agents[0].context()).encode())
            await until(
                lambda: "shutdown" in {one["type_"] for one in records(tmp_path / "zeek" / "zeek-agent.log")}, 60
            )


def joins(directory: Path) -> set[str]:
    return {one["hid"] for one in records(directory / "zeek" / "zeek-agent.log") if one["type_"] == "join"}
