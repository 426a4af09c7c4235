"""What a hostile or broken Zeek and hostile agents can make a gateway keep."""

from __future__ import annotations

import pytest
from bus_agents import bus_agents
from gateways import CLUSTER, gateway
from nats_server import NatsServer
from test_gateway_sessions import BATCHES, install
from waiting import until
from zeek_server import ZeekServer

from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.sent_queries import ENDED_MAX, QueryMemory, QueryTexts, SentQueries, SentQuery
from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentError, InstallQuery

QUERY = SentQuery("zeek_1", "Things::row", None)


def test_queries_that_are_installed_and_cancelled_without_end_take_bounded_memory() -> None:
    memory = QueryMemory(limit_bytes=1_000_000)
    agents = [SentQueries(2_000, memory) for _ in range(20)]
    refused = 0
    for number in range(2_000):
        for agent in agents:
            agent.heard(f"zeek_{number}")
            refused += not agent.add(f"q{number}", QUERY._replace(cookie="c" * 100))
            if number % 3 == 0:
                agent.cancel(f"q{number}", "zeek_1", 0.0)
        assert memory.used_bytes <= memory.limit_bytes
    assert refused > 0
    for agent in agents:
        agent.close()
    assert memory.used_bytes == 0


def test_memory_of_a_query_is_given_back_whatever_ends_it() -> None:
    memory = QueryMemory()
    agent = SentQueries(10, memory)
    assert agent.add("q1", QUERY)
    once = memory.used_bytes
    assert agent.add("q1", QUERY._replace(cookie="c" * 50))
    assert memory.used_bytes == once + 50
    agent.cancel("q1", "zeek_1", 0.0)
    assert memory.used_bytes == once + 50, "it may still be answered"
    assert agent.add("q1", QUERY)
    assert memory.used_bytes == once
    for number in range(2 * ENDED_MAX):
        assert agent.add(f"x{number}", QUERY)
        agent.cancel(f"x{number}", "zeek_1", 1.0)
    agent.add("last", QUERY)
    agent.cancel("last", "zeek_1", 1_000.0)
    agent.cancel("q1", "zeek_1", 2_000.0)
    assert memory.used_bytes == once, "what ended long ago is forgotten"


def test_cookies_that_are_shared_among_agents_take_bounded_memory() -> None:
    texts = QueryTexts()
    for number in range(1_000):
        cookie = f"{number}{'c' * 60_000}"
        texts.query(InstallQuery("zeek_1", f"q{number}", Query("SELECT 1", "Things::row", cookie=cookie)))
    assert sum(len(one.cookie or "") for one in texts._queries) <= QueryTexts.CHARACTERS_KEPT


@pytest.mark.long
async def test_a_zeek_that_installs_more_than_fits_gets_errors_and_the_gateway_goes_on(
    nats: NatsServer, zeek: ZeekServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(nats.url, zeek.url()) as gw, bus_agents(nats.url, CLUSTER) as bus:
        gw.core.query_memory.limit_bytes = 100_000
        client = await zeek.client()
        agent, other = await bus.agent("HAbc"), await bus.agent("HOther")
        for number in range(1_000):
            topic = protocol.host_topic("HAbc")
            await client.send(protocol.install_query(topic, "zeek_1", f"q{number}", BATCHES))
        error = await client.expect(AgentError)
        assert "the gateway has no memory for more queries" in error.message
        await until(lambda: gw.core.counters.refused[Cause.QUERIES] + len(agent.queries) == 1_000)
        assert gw.core.query_memory.used_bytes <= 100_000
        await agent.bye()
        await until(lambda: len(gw.core.sessions) == 1)
        await install(client, other, "q1")
        await other.send(other.rows("q1"))


async def test_a_thousand_queries_reach_an_agent(nats: NatsServer, zeek: ZeekServer) -> None:
    async with gateway(nats.url, zeek.url()) as gw, bus_agents(nats.url, CLUSTER) as bus:
        client = await zeek.client()
        agent = await bus.agent("HAbc")
        for number in range(1_000):
            await client.send(protocol.install_query(protocol.group_topic("all"), "zeek_1", f"q{number}", BATCHES))
        await until(lambda: len(agent.queries) == 1_000)
        await agent.send(agent.rows("q0"), agent.rows("q999"))
        assert not gw.stats().refused
