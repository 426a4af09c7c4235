"""A gateway between a real NATS server and a Zeek for tests, and scripted agents on the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bus_agents import BusAgents, bus_agents
from gateways import CLUSTER, gateway
from nats_server import NatsServer, nats_server
from zeek_server import ZeekServer, zeek_server

from zeek_agent.gateway.gateway import Gateway


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def zeek() -> AsyncIterator[ZeekServer]:
    async with zeek_server() as server:
        yield server


@pytest.fixture
async def gw(nats: NatsServer, zeek: ZeekServer) -> AsyncIterator[Gateway]:
    async with gateway(nats.url, zeek.url()) as one:
        yield one


@pytest.fixture
async def bus(nats: NatsServer, gw: Gateway) -> AsyncIterator[BusAgents]:
    async with bus_agents(nats.url, CLUSTER) as agents:
        yield agents
