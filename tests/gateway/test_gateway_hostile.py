"""What one hostile agent, with valid credentials, tries at a gateway: others are not harmed, and it is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bus_agents import BusAgents
from gateways import CLUSTER, ZEEK
from nats_accounts import Accounts
from waiting import until
from zeek_server import ZeekServer

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import Received
from zeek_agent.bus.messages import Claim, Hello, Refusal, Welcome
from zeek_agent.bus.subjects import ROAMING, Address, Peer, Up
from zeek_agent.config.server_sections import GatewaySettings
from zeek_agent.errors import UsageError
from zeek_agent.gateway.admission import HELLOS, PENDING_PER_AGENT, unusable
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.frames import HELLO_BYTES_MAX
from zeek_agent.gateway.gateway import Gateway
from zeek_agent.gateway.sent_queries import QueryTexts
from zeek_agent.gateway.uplink import UNKNOWN_PER_AGENT, UNKNOWN_PER_SECOND
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import AgentHello

MINE, OTHERS = "Hmine", "Hother"
HELLO = messages.encode(Hello("I1", "3.0.0"))


FOREIGN = (
    subjects.down(Address(ROAMING, OTHERS), "0123456789abcdef", subjects.Down.AGAIN),
    f"{subjects.inbox(Address(ROAMING, OTHERS))}.x",
    f"{subjects.inbox(Address(ROAMING, MINE))}",
    f"{subjects.inbox(Address(ROAMING, MINE))}x.y",
    subjects.all_agents(CLUSTER),
    subjects.peers(CLUSTER, Peer.BEAT),
    subjects.peer(CLUSTER, Peer.REPLY, "gw1") + ".x",
    subjects.operator_inbox("root") + ".x",
    subjects.bootstrap_inbox(ROAMING, "UKEY") + ".x",
)


@pytest.mark.parametrize("asked", ["hello", "who", "beat", "claim", "ping"])
async def test_a_reply_goes_to_nobody_but_who_asks(gw: Gateway, bus: BusAgents, asked: str) -> None:
    agent = await bus.agent(MINE)
    heard: list[str] = []

    async def hear(received: Received) -> None:
        heard.append(received.subject)

    foreign = [one for one in FOREIGN if asked != "ping" or ".reply." not in one]
    for subject in foreign:
        await bus.link.subscribe(subject, hear)
    subject, payload = {
        "hello": (subjects.hello(CLUSTER, Address(ROAMING, MINE)), HELLO),
        "who": (subjects.who(Address(ROAMING, MINE)), b""),
        "beat": (agent.up(Up.BEAT), b""),
        "claim": (subjects.peers(CLUSTER, Peer.CLAIM, MINE), messages.encode(Claim("gw2", "I2"))),
        "ping": (subjects.peer(CLUSTER, Peer.PING, "gw1"), b""),
    }[asked]
    await bus.link.flush()
    await until(lambda: gw.core.sessions.get(MINE))
    heard.clear()
    for reply in foreign:
        await bus.link.publish(subject, payload, reply)
    await until(lambda: gw.core.counters.refused[Cause.REPLY] == len(foreign))
    await agent.beat()  # is answered after them
    assert [one for one in heard if one != subjects.peers(CLUSTER, Peer.BEAT)] == []


async def test_a_message_that_is_nested_deeply_is_malformed(gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent(MINE)
    bomb = b'{"bytes":1,"x":' + b"[" * 7000 + b"]" * 7000 + b"}"
    with pytest.raises(messages.BadMessageError):
        messages.read(bomb, messages.Want)
    await bus.link.publish(agent.up(Up.WANT), bomb)
    await until(lambda: gw.core.counters.refused[Cause.MALFORMED] == 1)
    await agent.beat()


async def test_hellos_of_one_agent_are_limited_and_others_are_welcomed(gw: Gateway, bus: BusAgents) -> None:
    answers = [await bus.new(MINE, "I1").hello() for _ in range(HELLOS + 1)]
    assert [type(one) for one in answers] == [Welcome] * HELLOS + [Refusal]
    assert gw.core.counters.refused[Cause.FLOOD] == 1
    await bus.agent(OTHERS)


async def test_one_agent_does_not_use_up_the_answers_to_sessions_that_have_ended(gw: Gateway, bus: BusAgents) -> None:
    hostile, honest = await bus.agent(MINE), await bus.agent(OTHERS)
    session = gw.core.sessions.get(OTHERS)
    assert session is not None
    gw.core.end(session, "test", report=False)
    for number in range(2 * UNKNOWN_PER_SECOND):
        await bus.link.publish(subjects.up("gw1", Address(ROAMING, MINE), f"ended{number}", Up.BEAT))
    await bus.link.publish(honest.up(Up.BEAT))
    await until(lambda: honest.again)
    assert hostile.again is None
    assert gw.core.counters.refused[Cause.SESSION] == 2 * UNKNOWN_PER_SECOND + 1
    assert gw.core.counters.refused[Cause.FLOOD] >= 2 * UNKNOWN_PER_SECOND - 2 * UNKNOWN_PER_AGENT


async def test_invented_agents_of_one_site_do_not_use_up_the_answers_to_those_of_others(
    gw: Gateway, bus: BusAgents
) -> None:
    """As the server of a site can, if it was taken."""
    honest = await bus.agent(OTHERS)
    session = gw.core.sessions.get(OTHERS)
    assert session is not None
    gw.core.end(session, "test", report=False)
    invented = 3 * UNKNOWN_PER_SECOND
    for number in range(invented):
        await bus.link.publish(subjects.up("gw1", Address("taken", f"H{number}"), "ended", Up.BEAT))
    await bus.link.publish(honest.up(Up.BEAT))
    await until(lambda: gw.core.counters.refused[Cause.SESSION] == invented + 1)
    await until(lambda: honest.again)


async def test_hellos_of_one_agent_that_are_being_decided_leave_room_for_others(gw: Gateway, bus: BusAgents) -> None:
    holder = await bus.agent(MINE)
    holder.answers_pings = False
    waiting = [asyncio.create_task(bus.new(MINE, f"other{number}").hello()) for number in range(PENDING_PER_AGENT + 2)]
    done, waiting_still = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [one.result() for one in done] == [Refusal("the gateway is busy", 5.0)] * len(done)
    await bus.agent(OTHERS)
    for one in waiting_still:
        one.cancel()
    await asyncio.gather(*waiting_still, return_exceptions=True)


@pytest.mark.parametrize(
    ("agent_id", "groups"),
    [("H/linux", ()), ("linux", ()), ("ALL", ()), (MINE, ("ok", f"{OTHERS}/linux")), (MINE, ("/",))],
)
async def test_no_agent_may_be_addressed_as_another_one(
    gw: Gateway, bus: BusAgents, agent_id: str, groups: tuple[str, ...]
) -> None:
    agent = bus.new(agent_id)
    agent.groups = groups
    assert isinstance(await agent.hello(), Refusal)
    assert gw.core.counters.refused[Cause.AGENT] == 1
    assert unusable("Hgood", ("linux", "Größe")) is None


async def test_an_agents_own_gateways_do_not_reach_zeek(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    instance = protocol.ZeekHello("zeek_1", "8.2", 80200, "", frozenset({protocol.VIA}))
    await client.send(protocol.zeek_hello("/zeek-agent/query/group/all", instance))
    agent = await bus.agent(MINE)
    frame = agent.hello_frame().decode()
    forged = broker_json.string("batches") + "," + broker_json.string("via/gw9") + "," + broker_json.string("via/gw1/x")
    assert broker_json.string("batches") in frame
    await agent.send(frame.replace(broker_json.string("batches"), forged).encode())
    hello = await client.expect(AgentHello)
    assert hello.features == {"batches", "via/gw1"}


async def test_zeek_is_given_the_agents_time(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent(MINE)
    context = protocol.Context(MINE, 1_000_000.0, f"agent_hello_{MINE}")
    written = protocol.context_record(agent.context(f"agent_hello_{MINE}"))
    frame = agent.hello_frame().decode()
    at = frame.index('{"@data-type":"timestamp"')
    stamp = frame[at : frame.index("}", at) + 1]
    assert written.startswith('{"@data-type":"vector"')
    await agent.send(frame.replace(stamp, broker_json.timestamp(context.host_time)).encode())
    hello = await client.expect(AgentHello)
    assert 1_000_000.0 <= hello.context.host_time < 1_000_060.0
    await until(lambda: gw.core.monotonic() > gw.core.sessions.get(MINE).hello_at + 1.1)  # type: ignore[union-attr]
    await client.send(
        protocol.zeek_hello("/zeek-agent/query/group/all", protocol.ZeekHello("z2", "8.2", 80200, "", frozenset()))
    )
    await until(lambda: len(client.of(AgentHello)) == 2)
    replayed = client.of(AgentHello)[-1]
    assert 1_000_001.0 <= replayed.context.host_time < 1_000_060.0


async def test_a_long_hello_is_refused_and_texts_are_kept_up_to_a_size(gw: Gateway, bus: BusAgents) -> None:
    agent = await bus.agent(MINE)
    await agent.credit(HELLO_BYTES_MAX + 5_000)
    await agent.publish_batch([agent.hello_frame("x" * HELLO_BYTES_MAX)])
    await until(lambda: gw.core.counters.refused[Cause.MALFORMED] == 1)
    texts = QueryTexts()
    for number in range(400):
        texts.text(f"{number}{'x' * 60_000}")
    assert sum(map(len, texts._texts)) <= QueryTexts.CHARACTERS_KEPT


async def test_changes_of_a_hello_reach_zeek_at_a_bounded_rate(zeek: ZeekServer, gw: Gateway, bus: BusAgents) -> None:
    client = await zeek.client()
    agent = await bus.agent(MINE)
    await agent.say_hello()
    await client.expect(AgentHello)
    await agent.send(*(agent.hello_frame(f"name{number}") for number in range(3)))
    await agent.send(agent.hello_frame("last"))

    def last() -> bool:
        return any(one.named()["hostname"] == "last" for one in client.of(AgentHello))

    await until(last)
    assert len(client.of(AgentHello)) == 2


def test_a_gateway_has_the_name_of_its_credentials(tmp_path: Path) -> None:
    file = tmp_path / "gateway.creds"
    file.write_text(Accounts().anybody("gw1"))
    settings = GatewaySettings(servers=("nats://127.0.0.1:1",), cluster=CLUSTER, credentials=str(file))
    assert Gateway(settings, ZEEK, hostname="other").core.name == "gw1"
    wrong = GatewaySettings(servers=settings.servers, cluster=CLUSTER, credentials=str(file), name="gw2")
    with pytest.raises(UsageError, match="is for the gateway 'gw1', not 'gw2'"):
        Gateway(wrong, ZEEK, hostname="other")
    file.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        Gateway(settings, ZEEK, hostname="other")
