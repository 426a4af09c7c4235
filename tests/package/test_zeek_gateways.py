"""A real Zeek and the agents behind gateways, which a stand-in speaks for on one WebSocket each."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest
from stand_in_gateway import VIA, Gateway, GatewayAgent, gateway
from stock_zeek import stock_zeek
from waiting import until
from zeek_program import needs_zeek, records, zeek

from zeek_agent.zeek import broker_json
from zeek_agent.zeek.protocol import CancelQuery, InstallQuery, ZeekHello

pytestmark = needs_zeek

PROBE = """
module Probe;
export {
    redef enum Log::ID += { LOG };
    type Row: record { name: string &log &optional; };
    type Info: record { hid: string &log; hostname: string &log; name: string &log &optional; };
    option interval_ = 1hr;
}
type Rows: vector of Row;
function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
    {
    for ( _, row in rows as Rows )
        Log::write(LOG, Info($hid=ctx$agent_id, $hostname=ZeekAgent::hostname(ctx), $name=row$name));
    }
event zeek_init()
    {
    Log::create_stream(LOG, Log::Stream($columns=Info, $path="probe"));
    ZeekAgent::follow_options(ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT name FROM probes", $row_type=Rows,
        $on_rows=take, $schedule_=interval_)), "Probe::interval_");
    }
"""
"""A query of all agents, whose rows become a log."""

CHANGE_INTERVAL = """
@load base/frameworks/config
redef Config::config_files += { "./options" };
"""


def states(directory: Path, agent_id: str | None = None) -> list[str]:
    """What zeek-agent.log has of an agent, or of all, in this order."""
    lines = records(directory / "zeek-agent.log")
    return [str(line["type_"]) for line in lines if agent_id in (None, line["hid"])]


async def join(gw: Gateway, number: int, prefix: str = "H", session: str = "1") -> list[GatewayAgent]:
    """Have agents say hello, all at once."""
    added = [
        gw.agent(
            f"{prefix}{n:04}",
            addresses=(f"10.1.{n >> 8}.{n & 255}",),
            hostname=f"{prefix}-host-{n}",
            session=session,
        )
        for n in range(number)
    ]
    for agent in added:
        await agent.hello()
    return added


def claim_schedules(agent: GatewayAgent) -> list[float | None]:
    """The schedules of an agent's queries for claims on connections."""
    columns = ("began:time", "bytes_sent:count")
    return [query.schedule for query in agent.queries.values() if all(column in query.sql for column in columns)]


async def settled(gw: Gateway) -> None:
    """Wait until Zeek has said all that it has to say."""
    before = -1
    while before != gw.received:
        before = gw.received
        await asyncio.sleep(1.0)


def drops(directory: Path) -> list[str]:
    """What Zeek's cluster backend reports as dropped."""
    return re.findall(r"dropped a message.*", (directory / "output").read_text())


async def test_agents_behind_a_gateway_get_queries_and_acknowledgements_through_it(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, site=PROBE + CHANGE_INTERVAL) as url:
        (logs / "options").write_text("")
        async with gateway(url) as gw:
            await gw.expect_zeek()
            assert {"batches", "via", "left"} <= gw.features
            agents = await join(gw, 20)
            ids = [await agent.expect_query("FROM probes") for agent in agents]
            await settled(gw)
            assert len(set(ids)) == 1
            for number, agent in enumerate(agents):
                own = [topic for topic in agent.topics if not topic.startswith("/zeek-agent/query/group/all")]
                assert own
                assert all(topic.startswith(f"{VIA}gw1/") for topic in own)
                assert any(isinstance(event, ZeekHello) for event in agent.events)
                await agent.batch(ids[0], [{"name": f"row of {number}"}, {"name": "another"}])
            await until(lambda: all(agent.acks for agent in agents), 30, "rows are not acknowledged")
            assert {(agent.acks[0].query_id, agent.acks[0].high) for agent in agents} == {(ids[0], 1)}
            await until(lambda: len(records(logs / "probe.log")) == 40, 30, "rows are not logged")
            assert not gw.errors

            (logs / "options").write_text("Probe::interval_ 600.0sec\n")
            await until(lambda: all(ids[0] not in agent.queries for agent in agents), 30, "it is not cancelled")
            again = {await agent.expect_query("FROM probes") for agent in agents}
            assert len(again) == 1
            assert all(
                topic.startswith(f"{VIA}gw1/host/")
                for agent in agents
                for topic, event in zip(agent.topics, agent.events, strict=True)
                if isinstance(event, CancelQuery)
            )
            assert {topic for topic in gw.unknown if not topic.startswith(VIA)} == set()
    rows = Counter((line["hid"], line["hostname"], line["name"]) for line in records(logs / "probe.log"))
    assert rows == Counter((f"H{n:04}", f"H-host-{n}", name) for n in range(20) for name in (f"row of {n}", "another"))
    assert Counter(states(logs)) == {"join": 20}


async def test_a_gateway_of_which_the_package_knows_nothing_is_addressed_like_agents(tmp_path: Path) -> None:
    with zeek(tmp_path / "zeek", site=PROBE) as url:
        async with gateway(url) as gw:
            await gw.expect_zeek()
            agent = gw.agent("H1", addresses=("10.0.0.1",))
            await agent.hello(features=("batches",))
            query_id = await agent.expect_query("FROM probes")
            await agent.batch(query_id, [{"name": "x"}])
            await until(lambda: agent.acks)
            topics = {topic for topic in agent.topics if topic != "/zeek-agent/query/group/all"}
            assert topics == {
                "/zeek-agent/query/host/H1", "/zeek-agent/query/group/H1/all", "/zeek-agent/query/group/H1/linux"
            }  # fmt: skip


@pytest.mark.long
async def test_hundreds_of_agents_that_say_hello_at_once_all_get_all_queries(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, site="redef ZeekAgent::many_agents = 1000;") as url:
        async with gateway(url) as gw:
            await gw.expect_zeek()
            agents = await join(gw, 400)
            await settled(gw)
            expected = len(agents[0].queries)
            assert expected > 20
            assert Counter(len(agent.queries) for agent in agents) == {expected: 400}
            installs = sum(isinstance(event, InstallQuery) for agent in agents for event in agent.events)
            topics = sum(len(set(agent.topics)) > 1 for agent in agents)
            assert topics == 400
            assert installs == 400 * expected
            assert sum(isinstance(event, CancelQuery) for agent in agents for event in agent.events) == 0
    assert Counter(states(logs)) == {"join": 400}
    assert not drops(logs)
    assert len(records(logs / "reporter.log")) < 10


async def test_an_agent_is_addressed_at_its_newest_gateway(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, site=PROBE) as url:
        async with gateway(url, "gw1") as first, gateway(url, "gw2") as second:
            await first.expect_zeek()
            await second.expect_zeek()
            before = first.agent("H1", addresses=("10.0.0.1",))
            await before.hello()
            query_id = await before.expect_query("FROM probes")
            await before.batch(query_id, [{"name": "first"}])
            await until(lambda: before.acks)
            del first.agents["H1"]
            count, unknown = len(before.events), Counter(first.unknown)

            after = second.agent("H1", addresses=("10.0.0.1",), session="2")
            await after.hello()
            assert await after.expect_query("FROM probes") == query_id
            # What was not acknowledged comes again, and what was is known.
            await after.batch(query_id, [{"name": "first"}], window=(0, 1))
            await after.batch(query_id, [{"name": "second"}], window=(1, 2))
            await until(lambda: len(after.acks) == 2)
            await first.left("H1")
            await asyncio.sleep(2.5)  # longer than an agent may take to come back
            await after.batch(query_id, [{"name": "third"}], window=(2, 3))
            await until(lambda: len(after.acks) == 3)
            assert len(before.events) == count
            assert not [topic for topic in first.unknown - unknown if "/H1" in topic]

            # Now directly, as far as a hello can tell.
            await after.hello(features=("batches",))
            await after.batch(query_id, [{"name": "fourth"}], window=(3, 4))
            await until(lambda: len(after.acks) == 4)
            assert after.topics[-1] == "/zeek-agent/query/host/H1"
    assert [line["name"] for line in records(logs / "probe.log")] == ["first", "second", "third", "fourth"]
    assert states(logs, "H1") == ["join", "reconnect", "reconnect"]


async def test_an_agent_that_a_gateway_misses_is_offline_like_one_whose_connection_ended(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs) as url:
        async with gateway(url) as gw:
            await gw.expect_zeek()
            gone, returning, stopped, staying = await join(gw, 4)
            await until(lambda: len(states(logs)) == 4)
            await gw.left(gone.id)
            await gw.left(returning.id)
            gw.agents[returning.id] = returning
            returning.session = "2"
            await returning.hello()
            await stopped.shutdown()
            await gw.left(stopped.id)
            await until(lambda: "offline" in states(logs, gone.id))
            await asyncio.sleep(1.5)
            assert states(logs, gone.id) == ["join", "offline"]
            assert states(logs, returning.id) == ["join", "reconnect"]
            assert states(logs, stopped.id) == ["join", "shutdown"]
            assert states(logs, staying.id) == ["join"]
            gw.agents[gone.id] = gone
            await gone.hello()
            await until(lambda: states(logs, gone.id) == ["join", "offline", "join"])


async def test_agents_of_a_gateway_that_is_lost_are_offline_unless_another_has_them(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, site="redef ZeekAgent::gateway_reconnect_time = 3sec;") as url:
        async with gateway(url, "gw1") as first, gateway(url, "gw2") as second:
            await first.expect_zeek()
            await second.expect_zeek()
            agents = await join(first, 20)
            others = await join(second, 5, "other")
            await until(lambda: Counter(states(logs)) == {"join": 25})
            first.kill()
            for agent in agents[:10]:
                moved = second.agent(agent.id, addresses=agent.addresses, session="2")
                await moved.hello()
            await until(lambda: Counter(states(logs))["offline"] == 10)
            await asyncio.sleep(1.0)
            assert all(states(logs, agent.id) == ["join", "reconnect"] for agent in agents[:10])
            assert all(states(logs, agent.id) == ["join", "offline"] for agent in agents[10:])
            assert all(states(logs, agent.id) == ["join"] for agent in others)


async def test_only_agents_with_a_local_address_are_asked_for_connections(tmp_path: Path) -> None:
    site = """
    redef Site::private_address_space_is_local = F;
    redef Site::local_nets = { 10.1.0.0/16 };
    """
    with zeek(tmp_path / "zeek", site=site) as url:
        async with gateway(url) as gw:
            await gw.expect_zeek()
            inside = gw.agent("H-inside", addresses=("192.168.7.7", "10.1.2.3"))
            outside = gw.agent("H-outside", addresses=("192.168.7.7",))
            await inside.hello()
            await outside.hello()
            await settled(gw)
            assert claim_schedules(inside) == [0.25]
            assert claim_schedules(outside) == []
            assert len(outside.queries) > 10

            # Addresses change within a session.
            outside.addresses = ("192.168.7.7", "10.1.9.9")
            inside.addresses = ("192.168.7.7",)
            await outside.hello()
            await inside.hello()
            await until(lambda: claim_schedules(outside) == [0.25])
            await until(lambda: claim_schedules(inside) == [])


async def test_claims_come_less_often_while_there_are_many_agents(tmp_path: Path) -> None:
    with zeek(tmp_path / "zeek", site="redef ZeekAgent::many_agents = 30;") as url:
        async with gateway(url) as gw:
            await gw.expect_zeek()
            agents = await join(gw, 29)
            await settled(gw)
            assert all(claim_schedules(agent) == [0.25] for agent in agents)
            agents += await join(gw, 1, "more")
            await until(lambda: all(claim_schedules(agent) == [1.0] for agent in agents))
            for agent in agents[:7]:
                await agent.shutdown()
                del gw.agents[agent.id]
            await until(lambda: all(claim_schedules(agent) == [0.25] for agent in agents[7:]))


async def test_a_stock_package_serves_agents_through_one_connection(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with stock_zeek(logs) as url:
        async with gateway(url, "gw1") as first, gateway(url, "gw2") as second:
            agents = await join(first, 50)
            others = await join(second, 50, "other")
            users = [await agent.expect_query("users") for agent in (*agents, *others)]
            await settled(first)
            await settled(second)
            assert not first.features
            expected = len(agents[0].queries)
            assert expected > 5
            assert {len(agent.queries) for agent in (*agents, *others)} == {expected}
            assert all(any(isinstance(event, ZeekHello) for event in agent.events) for agent in (*agents, *others))
            for number, (agent, query_id) in enumerate(zip((*agents, *others), users, strict=True)):
                cells = [broker_json.NONE] * 10
                cells[0] = broker_json.string(f"user of {number}")
                await agent.row(query_id, *cells)
            await until(lambda: len(records(logs / "zeek-agent-users.log")) == 100, 30, "rows are not logged")
            for agent in agents:
                await agent.shutdown()
            await until(lambda: Counter(states(logs))["shutdown"] == 50)
            assert not first.errors
            assert not second.errors
        async with gateway(url, "gw3") as third:
            again = await join(third, 50, session="2")  # a gateway lost, another one
            await until(lambda: all(len(agent.queries) == expected for agent in again))
    rows = Counter(line["hid"] for line in records(logs / "zeek-agent-users.log"))
    assert rows == Counter([agent.id for agent in agents] + [agent.id for agent in others])
    assert not drops(logs)
    assert not [line for line in records(logs / "reporter.log") if "ERROR" in str(line["level"])]
