"""Connections that fail without an end: agents, gateway and Zeek recover, and each row is delivered once."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from gateways import gateway
from msgspec import structs
from nats_server import nats_server
from proxied_fleet import SETTINGS, proxied_fleet
from waiting import until
from zeek_server import ZeekServer

from zeek_agent.bus.connection import BusConnection
from zeek_agent.bus.session import Times
from zeek_agent.queries.runner import QueryRunner

PATIENT = structs.replace(SETTINGS, pong_timeout=120.0, script_timeout=60.0)


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeek_agent.bus.link.PING_SECONDS", 0.5)
    monkeypatch.setattr("zeek_agent.bus.link.CONNECT_SECONDS", 2)
    monkeypatch.setattr("zeek_agent.gateway.outbox.FLUSH_SECONDS", 2)
    monkeypatch.setattr("zeek_agent.gateway.gateway.SILENCE_SECONDS", 3.0)


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("how", ["to_server", "to_client", "both", "for ever"])
@pytest.mark.parametrize("where", ["agents_bus", "gateway_bus", "gateway_zeek"])
async def test_after_a_peer_vanished_each_row_is_delivered_once(tmp_path: Path, where: str, how: str) -> None:
    configuration = 'ping_interval: "1s"\nping_max: 2\n'
    async with proxied_fleet(tmp_path, configuration=configuration) as fleet:
        fleet.record(20)
        await fleet.delivered()
        proxy: FaultyProxy = getattr(fleet, where)
        connections = proxy.connections
        ways = {"to_server": proxy.to_server, "to_client": proxy.to_client}
        held = [way for name, way in ways.items() if how in {name, "both"}]
        for one in held:
            one.hold()
        if not held:
            proxy.vanish()
        fleet.record(200)
        await until(lambda: proxy.connections > connections, complaint="nobody noticed")
        for one in held:
            one.release()
        await fleet.delivered()


@pytest.mark.long
async def test_over_a_slow_server_each_row_is_delivered_once(tmp_path: Path) -> None:
    async with proxied_fleet(tmp_path, times=Times(), settings=PATIENT) as fleet:
        for proxy in (fleet.agents_bus, fleet.gateway_bus):
            for way in (proxy.to_server, proxy.to_client):
                way.delay_seconds, way.bytes_per_second = 0.3, 20_000.0
        fleet.record(100)
        await fleet.delivered()
        assert not fleet.gateway.core.counters.ended
        assert not fleet.gateway.stats().refused


async def test_over_a_server_with_the_smallest_messages_each_row_is_delivered_once(tmp_path: Path) -> None:
    async with proxied_fleet(tmp_path, configuration="max_payload: 65536", detail_bytes=400) as fleet:
        fleet.record(300)
        await fleet.delivered()
        assert not fleet.gateway.stats().refused


@pytest.mark.long
async def test_an_agent_that_is_killed_in_the_middle_of_a_batch_delivers_each_row_once(tmp_path: Path) -> None:
    async with proxied_fleet(tmp_path, detail_bytes=400) as fleet:
        agent = fleet.agents[0]

        def logged() -> int:
            return sum(store == agent.store.id for store, _ in fleet.logged())

        for _ in range(4):
            fleet.record(500)
            before = logged()
            await until(lambda before=before: logged() > before)  # type: ignore[misc]
            await agent.kill()
            agent.start()
        await fleet.delivered()


async def test_a_gateway_does_not_use_a_server_that_accepts_short_messages_only(
    tmp_path: Path, zeek: ZeekServer, caplog: pytest.LogCaptureFixture
) -> None:
    with nats_server(tmp_path / "nats", "max_payload: 32768") as nats:
        async with gateway(nats.url, zeek.url(), ready=False) as gw:
            await until(lambda: "accepts messages of 32,768 bytes only" in caplog.text)
            assert not gw.stats().bus_connected


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("hour", [3_600.0, -3_600.0])
@pytest.mark.parametrize("whose", ["agent", "gateway"])
async def test_when_a_clock_is_set_each_row_is_delivered_once(
    tmp_path: Path, whose: str, hour: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = {"agent": 0.0, "gateway": 0.0}

    def clock() -> float:
        return time.time() + ahead["agent"]

    monkeypatch.setattr("simulated_fleet.agents.BusConnection", partial(BusConnection, clock=clock))
    monkeypatch.setattr("simulated_fleet.agents.QueryRunner", partial(QueryRunner, clock=clock))
    async with proxied_fleet(tmp_path) as fleet:
        fleet.gateway.core.clock = lambda: time.time() + ahead["gateway"]
        fleet.record(200)
        ahead[whose] = hour
        fleet.record(200)
        await fleet.delivered()
        fleet.agents_bus.vanish()
        fleet.record(200)
        ahead[whose] = 0.0
        fleet.agents_bus.cut()
        fleet.agents_bus.mend()
        await fleet.delivered()
