"""Wants that agents withdraw, as real agents do under load, with a gateway that has few places."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bus_agents import BusAgent, BusAgents, bus_agents
from gateways import CLUSTER, gateway
from nats_server import NatsServer, nats_server
from waiting import until
from zeek_server import zeek_server

from zeek_agent.bus import messages
from zeek_agent.bus.messages import Want
from zeek_agent.bus.subjects import Up
from zeek_agent.gateway.gateway import Gateway


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def gw(nats: NatsServer) -> AsyncIterator[Gateway]:
    async with zeek_server() as zeek, gateway(nats.url, zeek.url(), places=1) as one:
        yield one


async def want(bus: BusAgents, agent: BusAgent, size_bytes: int) -> None:
    await bus.link.publish(agent.up(Up.WANT), messages.encode(Want(size_bytes)))


async def test_a_place_is_free_for_the_next_agent_once_its_grant_is_withdrawn(nats: NatsServer, gw: Gateway) -> None:
    async with bus_agents(nats.url, CLUSTER) as bus:
        first, second = await bus.agent("HFirst"), await bus.agent("HSecond")
        await want(bus, first, 50_000)
        await until(lambda: first.granted)
        await want(bus, second, 50_000)
        await until(lambda: gw.stats().grants_waiting == 1)
        assert not second.granted
        await want(bus, first, 0)
        await until(lambda: second.granted)
        await want(bus, second, 0)
        await until(lambda: gw.stats().places_used == 0)
        assert gw.stats().grants_waiting == gw.stats().grants_lapsed == 0
