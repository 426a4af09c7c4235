"""Sessions of agents with a gateway, over a real NATS server, in front of a scripted Zeek."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bus_agents import BusAgent, BusAgents, NotAcknowledgedError, bus_agents
from gateways import CLUSTER, ZEEK, gateway
from nats_server import NatsServer
from waiting import until
from zeek_server import Client, ZeekServer, zeek_server

from zeek_agent.bus import link as bus_link
from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import NoListenerError
from zeek_agent.bus.messages import Refusal, Want, Welcome
from zeek_agent.bus.subjects import Address, Down, Up
from zeek_agent.gateway.admission import SameNameError
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.gateway import Gateway
from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import (
    AgentError,
    AgentHello,
    AgentLeft,
    AgentShutdown,
    CancelQuery,
    ResultBatch,
    ResultRow,
    ZeekHello,
)

BATCHES = Query("SELECT 1", event=protocol.ROWS)
EVENTS = Query("SELECT 1", event="Things::row")


async def say_zeek(client: Client, topic: str, *features: str, instance: str = "zeek_1") -> None:
    await client.send(protocol.zeek_hello(topic, ZeekHello(instance, "8.2", 80200, "", frozenset(features))))


async def install(client: Client, agent: BusAgent, query_id: str, query: Query = BATCHES, topic: str = "") -> None:
    topic = topic or protocol.host_topic(agent.agent_id)
    await client.send(protocol.install_query(topic, "zeek_1", query_id, query))
    await until(lambda: query_id in agent.queries)


def refused(gw: Gateway, cause: Cause) -> Callable[[], int]:
    return lambda: gw.core.counters.refused[cause]


async def test_rows_of_an_agent_reach_zeek_and_are_acknowledged(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    assert client.topics == ["/zeek-agent/query/host/", "/zeek-agent/query/group/", "/zeek-agent/query/via/gw1/"]
    assert zeek.applications == ["zeek-agent-gateway/3.0.0/gw1"]
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    hello = await client.expect(AgentHello)
    assert hello.context.agent_id == "HAbc"
    await install(client, agent, "q1")
    await agent.send(agent.rows("q1", number=3))
    batch = await client.expect(ResultBatch)
    assert (batch.context.query_id, batch.rows.count('"n"')) == ("q1", 3)
    assert gw.stats().counters.rows == 3


async def test_a_large_batch_waits_for_credit(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    await agent.send(agent.rows("q1", text="x" * 50_000))
    assert gw.stats().grants == 1
    assert gw.stats().places_used == 0
    assert len((await client.expect(ResultBatch)).rows) > 50_000


@pytest.mark.parametrize("size", [10_000, 60_000])
async def test_a_large_batch_without_enough_credit_ends_the_session(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents, size: int
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    if size == 60_000:
        await agent.credit(50_000)
    await agent.publish_batch([agent.rows("q1", text="x" * size)])
    await until(lambda: agent.again)
    assert agent.again is not None
    assert "without credit" in agent.again.reason
    assert gw.core.counters.refused[Cause.CREDIT] == 1
    assert not client.of(ResultBatch)


async def test_a_batch_whose_credit_lapsed_on_the_way_is_accepted_once(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.credits.GRANT_SECONDS", -10.0)
    monkeypatch.setattr("zeek_agent.gateway.credits.UNUSED_SECONDS", (-10.0, -10.0))
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    await agent.send(agent.rows("q1", text="x" * 50_000))
    assert len((await client.expect(ResultBatch)).rows) > 50_000
    assert (gw.stats().late_batches, agent.again) == (1, None)
    await agent.publish_batch([agent.rows("q1", 1, text="x" * 50_000)])
    await until(lambda: agent.again)
    assert gw.core.counters.refused[Cause.CREDIT] == 1


async def test_agents_that_got_credit_and_vanished_do_not_stop_the_others(nats: NatsServer, zeek: ZeekServer) -> None:
    async with gateway(nats.url, zeek.url(), places=4) as gw, bus_agents(nats.url, CLUSTER) as bus:
        client = await zeek.client()
        agent = await bus.agent("HLive")
        await install(client, agent, "q1")
        for number in range(12):
            dead = await bus.agent(f"HDead{number}")
            await bus.link.publish(dead.up(Up.WANT), messages.encode(Want(50_000)))
        await agent.send(agent.rows("q1", text="x" * 50_000))
        assert (gw.stats().grants, gw.stats().grants_lapsed) == (13, 0)
        assert gw.stats().grants_overdue >= 9


async def test_batches_on_their_way_while_zeek_was_away_and_came_back_are_ignored(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    await install(client, agent, "q1")
    small, large, number = agent.rows("q1"), agent.rows("q1", 1, text="x" * 50_000), agent.number
    client.abort()
    await until(lambda: agent.downs[-1][0] is Down.BACK)
    client, again = await zeek.client(), agent.number
    await agent.publish_batch([small], number + 1)
    await agent.publish_batch([large], number + 2)
    agent.number = again
    await agent.say_hello()
    await install(client, agent, "q2")
    await agent.send(agent.rows("q2", text="x" * 50_000))
    assert (await client.expect(ResultBatch)).context.query_id == "q2"
    assert agent.again is None
    assert gw.core.counters.refused == {Cause.ZEEK_AWAY: 2}


async def test_credit_for_more_than_a_batch_can_have_ends_the_session(gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent("HAbc")
    await bus.link.publish(agent.up(Up.WANT), messages.encode(Want(10**9)))
    await until(lambda: agent.again)
    assert gw.core.counters.refused[Cause.CREDIT] == 1


async def test_a_second_small_batch_waits_for_the_acknowledgement_of_the_first(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    client.pause()
    await agent.publish_batch([agent.rows("q1")])
    await agent.publish_batch([agent.rows("q1", 1)])
    await until(lambda: agent.again)
    assert gw.core.counters.refused[Cause.CREDIT] == 1
    client.resume()


async def test_a_batch_that_is_missing_ends_the_session(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    await agent.publish_batch([agent.rows("q1")], number=2)
    await until(lambda: agent.again)
    assert gw.core.counters.refused[Cause.ORDER] == 1


async def test_forged_frames_are_dropped_counted_and_logged(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents, caplog: pytest.LogCaptureFixture
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1", EVENTS)
    good = agent.row("q1", broker_json.count(1))
    await agent.send(
        agent.row("q1", broker_json.count(2), agent_id="HOther"),
        good.replace(b"Things::row", b"Things::bad"),
        good.replace(b'"q1"', b'"q2"'),
        good.replace(b"/zeek_1/", b"/zeek_9/"),
        b"{}",
        good,
    )
    row = await client.expect(ResultRow)
    assert broker_json.cells(row.columns) == (1,)
    counts = gw.core.counters.refused
    expected = (Cause.AGENT, Cause.EVENT, Cause.QUERY, Cause.TOPIC, Cause.MALFORMED)
    assert {cause: counts[cause] for cause in expected} == dict.fromkeys(expected, 1)
    assert "refused (agent) from agent HAbc" in caplog.text
    assert len(client.of(ResultRow)) == 1


async def test_too_many_forged_frames_end_the_session(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent("HAbc")
    await agent.credit(10_000)
    await agent.publish_batch([b"{}"] * 2_000)
    await until(lambda: agent.again)
    assert gw.core.counters.ended["refused"] == 1


async def test_messages_of_an_unknown_session_are_answered_with_its_end(gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent("HAbc")
    assert agent.welcome is not None
    agent.welcome = Welcome("gw1", "0123456789abcdef", "", "")
    await bus.link.publish(agent.up(Up.BEAT))
    await until(lambda: agent.again)
    assert gw.core.counters.refused[Cause.SESSION] == 1


async def test_an_agent_without_a_gateway_gets_an_error_at_once(nats: NatsServer) -> None:
    async with (
        zeek_server(ack=None) as silent,
        gateway(nats.url, silent.url(), ready=False),
        bus_agents(nats.url, CLUSTER) as bus,
    ):
        with pytest.raises(NoListenerError):
            await bus.new("HAbc").hello()


async def test_queries_reach_the_agents_that_are_addressed(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    first, second = bus.new("HOne"), bus.new("HTwo")
    second.groups = ("Linux", "Servers")
    await first.open()
    await second.open()
    for query_id, topic in {
        "host": protocol.host_topic("HOne"),
        "all": protocol.group_topic("all"),
        "servers": protocol.group_topic("servers"),
        "linux": protocol.group_topic("linux", "HTwo"),
        "all_one": protocol.group_topic("all", "HOne"),
        "via": protocol.via_topic("gw1", protocol.host_topic("HTwo")),
        "elsewhere": protocol.via_topic("gw2", protocol.host_topic("HTwo")),
        "unknown": protocol.host_topic("HThree"),
        "end": protocol.group_topic("all"),
    }.items():
        await client.send(protocol.install_query(topic, "zeek_1", query_id, BATCHES))
    await until(lambda: "end" in first.queries and "end" in second.queries)
    assert set(first.queries) == {"host", "all", "all_one", "end"}
    assert set(second.queries) == {"all", "servers", "linux", "via", "end"}
    assert protocol.host_topic("HTwo") in second.topics, "the gateway's topic is replaced by the agent's"
    assert gw.core.counters.zeek_messages["unaddressed"] == 2


async def test_a_cancelled_query_is_passed_on(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    await client.send(protocol.cancel_query(protocol.host_topic("HAbc"), "zeek_1", "q1"))
    await until(lambda: any(isinstance(one, CancelQuery) for one in agent.events))
    session = gw.core.sessions.get("HAbc")
    assert session is not None
    assert len(session.queries) == 0


async def test_more_queries_than_an_agent_may_have_are_reported_to_zeek(nats: NatsServer, zeek: ZeekServer) -> None:
    async with gateway(nats.url, zeek.url(), queries_max=1) as gw, bus_agents(nats.url, CLUSTER) as bus:
        client = await zeek.client()
        agent = await bus.agent("HAbc")
        await install(client, agent, "q1")
        await client.send(protocol.install_query(protocol.host_topic("HAbc"), "zeek_1", "q2", BATCHES))
        error = await client.expect(AgentError)
        assert (error.context.query_id, "limit of 1 queries" in error.message) == ("q2", True)
        assert gw.core.counters.refused[Cause.QUERIES] == 1
        assert set(agent.queries) == {"q1"}


async def test_unchanged_hellos_are_absorbed_and_changed_ones_forwarded(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    first = await client.expect(AgentHello)
    await agent.say_hello()
    await agent.say_hello(uptime=broker_json.timespan(99.0))
    assert gw.core.counters.agent_hellos["absorbed"] == 2
    await agent.say_hello(hostname="renamed")
    second = await client.expect(AgentHello, number=2)
    assert second.named()["hostname"] == "renamed"
    assert first.context.query_id == second.context.query_id, "Zeek takes it for an update"


async def test_a_zeek_that_comes_back_gets_all_hellos_again(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agents = [await bus.agent(f"H{number}") for number in range(5)]
    for agent in agents:
        await agent.say_hello()
    first = await client.expect(AgentHello, number=5)
    client.abort()
    await until(lambda: all(any(kind is Down.GONE for kind, _ in agent.downs) for agent in agents))
    client = await zeek.client()
    again = await client.expect(AgentHello, number=5)
    assert first.context.query_id != again.context.query_id
    assert {one.context.agent_id for one in client.of(AgentHello)} == {agent.agent_id for agent in agents}
    await until(lambda: all(agent.downs[-1][0] is Down.BACK for agent in agents))
    await install(client, agents[0], "q1")
    await agents[0].send(agents[0].rows("q1"))
    assert agents[0].sessions == 1, "the session went on"


async def test_rows_sent_while_zeek_is_away_are_not_acknowledged(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    frame = agent.rows("q1")
    client.abort()
    await until(lambda: agent.is_gone)
    with pytest.raises(NotAcknowledgedError):
        await agent.send(frame)


async def test_another_zeek_instance_gets_the_hellos_as_well(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.downlink.HELLO_REPLY_SECONDS", 0.0)
    client = await zeek.client()
    await say_zeek(client, protocol.host_topic(""))
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    await client.expect(AgentHello)
    await say_zeek(client, protocol.group_topic("all"))
    await say_zeek(client, protocol.group_topic("all"), instance="zeek_2")
    second = await client.expect(AgentHello, number=2)
    assert second.context.query_id == client.of(AgentHello)[0].context.query_id


async def test_a_zeek_with_via_learns_the_gateway_of_each_agent(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    await say_zeek(client, protocol.host_topic(""), protocol.VIA, protocol.LEFT, protocol.BATCHES)
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    hello = await client.expect(AgentHello)
    assert hello.features == {"batches", "via/gw1"}


async def test_hellos_are_sent_again_when_zeek_turns_out_to_know_via(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await agent.say_hello()
    assert (await client.expect(AgentHello)).features == {"batches"}
    await say_zeek(client, protocol.group_topic("all"), protocol.VIA)
    assert (await client.expect(AgentHello, number=2)).features == {"batches", "via/gw1"}


async def test_zeek_is_notified_of_an_agent_that_leaves_without_a_shutdown(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    client = await zeek.client()
    await say_zeek(client, protocol.host_topic(""), protocol.LEFT)
    first, second = await bus.agent("HOne"), await bus.agent("HTwo")
    await first.say_hello()
    await second.say_hello()
    await client.expect(AgentHello, number=2)
    await first.send(protocol.agent_shutdown(first.context()).encode())
    await first.bye()
    await second.bye()
    left = await client.expect(AgentLeft)
    assert (left.context.agent_id, left.gateway) == ("HTwo", "gw1")
    assert [one.context.agent_id for one in client.of(AgentShutdown)] == ["HOne"]
    assert len(gw.core.sessions) == 0


async def test_a_silent_agent_loses_its_session(
    zeek: ZeekServer, gw: Gateway, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.gateway.SILENCE_SECONDS", 1.5)
    agent = await bus.agent("HAbc")
    await until(lambda: agent.again)
    assert gw.core.counters.ended["silent"] == 1


async def test_a_beat_is_answered_while_the_session_lasts(gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent("HAbc")
    before = gw.core.monotonic()
    await agent.beat()
    session = gw.core.sessions.get("HAbc")
    assert session is not None
    assert session.heard >= before


async def test_the_same_instance_replaces_its_session(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc", "I1")
    await agent.say_hello()
    first = await client.expect(AgentHello)
    await agent.open()
    await agent.say_hello()
    second = await client.expect(AgentHello, number=2)
    assert first.context.query_id != second.context.query_id, "Zeek takes it for an agent that reconnects"
    assert len(gw.core.sessions) == 1
    assert gw.core.counters.refused[Cause.CLONE] == 0


async def test_a_clone_is_refused_and_logged(gw: Gateway, bus: BusAgents, caplog: pytest.LogCaptureFixture) -> None:
    agent = await bus.agent("HAbc", "I1")
    answer = await bus.new("HAbc", "I2").hello()
    assert isinstance(answer, Refusal)
    assert "cloned host" in answer.reason
    assert "instance I1 at this gateway answers, so instance I2 is refused" in caplog.text
    assert agent.again is None
    assert gw.core.counters.refused[Cause.CLONE] == 1


async def test_an_instance_that_does_not_answer_is_replaced(
    gw: Gateway, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.admission.CLONE_SECONDS", 0.3)
    agent = await bus.agent("HAbc", "I1")
    agent.answers_pings = False
    assert isinstance(await bus.new("HAbc", "I2").hello(), Welcome)
    await until(lambda: agent.again)
    session = gw.core.sessions.get("HAbc")
    assert session is not None
    assert session.instance == "I2"


async def test_no_more_agents_than_permitted_are_welcomed(nats: NatsServer, zeek: ZeekServer) -> None:
    async with gateway(nats.url, zeek.url(), agents_max=1) as gw, bus_agents(nats.url, CLUSTER) as bus:
        await bus.agent("HOne")
        answer = await bus.new("HTwo").hello()
        assert isinstance(answer, Refusal)
        assert gw.core.counters.refused[Cause.FULL] == 1


async def test_an_agent_with_a_limit_waits_and_loses_nothing(nats: NatsServer, zeek: ZeekServer) -> None:
    async with gateway(nats.url, zeek.url(), rows_per_second=10.0) as gw, bus_agents(nats.url, CLUSTER) as bus:
        client = await zeek.client()
        agent = await bus.agent("HAbc")
        await install(client, agent, "q1")
        for index in range(3):
            await agent.send(agent.rows("q1", index, number=51))
        assert gw.core.counters.limited == 2
        assert [one.batch.index for one in client.of(ResultBatch)] == [0, 1, 2]


async def test_agents_learn_of_gateways_by_asking(gw: Gateway, bus: BusAgents) -> None:
    asker = Address("fra", "test")
    answer = messages.read(await bus.request(asker, subjects.who(asker), b"", 5.0), messages.Beacon)
    assert (answer.gateway, answer.cluster) == ("gw1", CLUSTER)


async def test_an_operator_learns_of_gateways_by_asking(nats: NatsServer, gw: Gateway) -> None:
    link = await bus_link.connect([nats.url], name="test", inbox=subjects.operator_inbox("test"))
    answer = messages.read(await link.request(subjects.operator_who("test"), b"", 5.0), messages.Beacon)
    assert (answer.gateway, answer.cluster) == ("gw1", CLUSTER)
    await link.close()


async def test_the_first_beacon_ends_sessions_of_an_earlier_life(nats: NatsServer, zeek: ZeekServer) -> None:
    async with bus_agents(nats.url, CLUSTER) as bus:
        async with gateway(nats.url, zeek.url()):
            agent = await bus.agent("HAbc")
            beacon = await until(lambda: bus.beacons and bus.beacons[-1])
            assert (beacon.gateway, beacon.gone) == ("gw1", "gw1")
        number = len(bus.beacons)
        async with gateway(nats.url, zeek.url()):
            await until(lambda: len(bus.beacons) > number)
            assert agent.again is not None


async def test_two_gateways_of_one_name_do_not_both_serve(nats: NatsServer, zeek: ZeekServer, gw: Gateway) -> None:
    second = Gateway(gw.core.settings, ZEEK, hostname="test")
    with pytest.raises(SameNameError, match="another gateway of cluster zeeks has the name gw1"):
        await second.run()
    assert gw.stats().bus_connected


async def test_agents_of_a_gateway_that_lost_the_bus_come_back(nats: NatsServer, zeek: ZeekServer, gw: Gateway) -> None:
    client = await zeek.client()
    async with bus_agents(nats.url, CLUSTER) as bus:
        await bus.agent("HAbc")
    nats.kill()
    await until(lambda: not gw.stats().bus_connected)
    assert gw.stats().agents == 0
    nats.start_again()
    async with bus_agents(nats.url, CLUSTER) as bus:
        agent = await bus.agent("HAbc")
        await agent.say_hello()
        await client.expect(AgentHello)


async def test_two_gateways_share_the_agents(nats: NatsServer, zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    async with gateway(nats.url, zeek.url(), "gw2") as second:
        await until(lambda: gw.core.peers.known and second.core.peers.known)
        for number in range(20):
            await bus.agent(f"H{number}")
        assert len(gw.core.sessions) + len(second.core.sessions) == 20
        assert len(gw.core.sessions) > 0
        assert len(second.core.sessions) > 0


async def test_an_agent_that_moves_to_another_gateway_leaves_the_first(
    nats: NatsServer, zeek: ZeekServer, gw: Gateway, bus: BusAgents
) -> None:
    agent = await bus.agent("HAbc", "I1")
    async with gateway(nats.url, zeek.url(), "gw2") as second:
        await until(lambda: gw.core.peers.known and second.core.peers.known)
        while agent.welcome is None or agent.welcome.gateway != "gw2":
            await agent.open()
        await until(lambda: len(gw.core.sessions) == 0)
        assert len(second.core.sessions) == 1


async def test_a_clone_is_refused_by_another_gateway(
    nats: NatsServer, zeek: ZeekServer, gw: Gateway, bus: BusAgents, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.agent("HAbc", "I1")
    async with gateway(nats.url, zeek.url(), "gw2") as second:
        await until(lambda: gw.core.peers.known and second.core.peers.known)
        clone = bus.new("HAbc", "I2")
        while not gw.core.counters.refused[Cause.CLONE] or not second.core.counters.refused[Cause.CLONE]:
            assert isinstance(await clone.hello(), Refusal)
        assert "an instance at gateway gw1 answers" in caplog.text


async def test_a_draining_gateway_sends_its_agents_away(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent("HAbc")
    await install(client, agent, "q1")
    number = await agent.publish_batch([agent.rows("q1")])
    await gw.drain()
    await until(lambda: agent.again)
    await until(lambda: agent.acknowledged == number)
    assert isinstance(await client.expect(ResultBatch), ResultBatch)
    with pytest.raises(NoListenerError):
        await bus.new("HOther").hello()


async def test_a_hello_does_not_wait_for_a_gateway_that_has_died(
    nats: NatsServer, zeek: ZeekServer, gw: Gateway, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.peers.PEER_SILENCE_SECONDS", 1_000.0)
    monkeypatch.setattr("zeek_agent.gateway.peers.ANSWER_SECONDS", 1_000.0)
    async with gateway(nats.url, zeek.url(), "gw2"):
        await until(lambda: gw.core.peers.known)
    await bus.agent("HAbc")
    assert not gw.core.peers.known
    assert any(beacon.gone == "gw2" for beacon in bus.beacons)
