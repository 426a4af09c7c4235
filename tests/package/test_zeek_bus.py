"""A real Zeek, real gateways as programs, a real bus: the logs are those of direct connections."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attributed_hosts import Hosts, compare, hosts
from nats_server import nats_server
from running_agent import running
from stand_in_gateway import GatewayAgent, direct_agent
from stock_zeek import stock_zeek
from test_zeek_gateways import PROBE, drops, states
from waiting import until
from zeek_program import PACKAGE, needs_zeek, records, zeek

from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Batch, RowsAck

if TYPE_CHECKING:
    from bus_agents import BusAgent

pytest.importorskip("zeek_agent.gateway", reason="needs gateways")
pytestmark = [needs_zeek, pytest.mark.timeout(240)]

RESULTS = 8
"""Results that each agent delivers, of two batches each."""


@contextmanager
def gateways(
    directory: Path, nats_url: str, zeek_url: str, number: int = 2, prefix: Sequence[str] = ()
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Gateways as programs, named gw1, gw2, …"""
    running = []
    try:
        for name in (f"gw{n + 1}" for n in range(number)):
            command = [*prefix, sys.executable, "-m", "zeek_agent", "gateway", "--zeek", zeek_url, "--cluster", "zeeks"]
            with (directory / f"{name}.log").open("wb") as log:
                running.append(subprocess.Popen([*command, "--name", name, "--nats", nats_url], stdout=log, stderr=log))
        yield running
    finally:
        for one in running:
            one.kill()
            one.wait()


def batches(agent_id: str, instance: str, query_id: str, result: int) -> list[str]:
    """The batches of a result, as an agent's delivery writes them: the same each time."""
    frames = []
    for index in range(2):
        batch = Batch(f"store-{agent_id}", "stream", result, result + 1, index, last=index == 1)
        rows = json.dumps([{"name": f"{result}.{index}.{n}"} for n in range(5)], separators=(",", ":"))
        context = protocol.Context(agent_id, time.time(), query_id)
        frames.append(protocol.rows(protocol.response_topic(agent_id, instance), context, batch, rows))
    return frames


ROWS = Counter(f"{result}.{index}.{n}" for result in range(RESULTS) for index in range(2) for n in range(5))


def has_ack(events: list[Any], result: int) -> bool:
    return any(isinstance(event, RowsAck) and (event.high, event.index) == (result + 1, 1) for event in events)


async def deliver_direct(agent: GatewayAgent) -> None:
    await agent.hello(features=("batches",))
    query_id = await agent.expect_query("FROM probes")
    for result in range(RESULTS):
        for frame in batches(agent.id, agent.gateway.instance, query_id, result):
            await agent.gateway.send(frame)
        await until(lambda result=result: has_ack(agent.events, result), 60, "no acknowledgement")


async def deliver(agent: BusAgent, pause: float = 0.0) -> None:
    """Send results one after another, each again in a new session until the script has acknowledged it."""
    from bus_agents import NotAcknowledgedError

    result = 0
    while result < RESULTS:
        try:
            await agent.open()
            await agent.say_hello()
            query_id = await agent.installed(lambda query: "FROM probes" in query.query.sql)
            while result < RESULTS:
                instance = agent.queries[query_id].instance
                frames = [frame.encode() for frame in batches(agent.agent_id, instance, query_id, result)]
                await agent.send(*frames, seconds=5.0)
                await agent.wait(lambda result=result: has_ack(agent.events, result), 5.0)
                result += 1
                await asyncio.sleep(pause)
        except NotAcknowledgedError:
            agent.events.clear()


MARKED = "SELECT cmdline AS name FROM processes_events WHERE cmdline LIKE '%/bin/true mark-%' AND state = 'started'"


def marked(rows: dict[str, Counter[str]], marks: Sequence[str]) -> dict[str, set[str]]:
    """Which of the marks each agent has reported."""
    return {
        agent_id: {mark for mark in marks if any(mark in name for name in names)} for agent_id, names in rows.items()
    }


def features(directory: Path) -> set[str]:
    """The features of all agents."""
    return {str(feature) for line in records(directory / "zeek-agent.log") for feature in line["features"] or ()}


def gateways_of(directory: Path, ids: Sequence[str]) -> dict[str, str] | None:
    """The gateway of each agent, once all are known."""
    found = {
        str(line["hid"]): str(feature)
        for line in records(directory / "zeek-agent.log")
        for feature in line["features"] or ()
        if str(feature).startswith("via/")
    }
    return found if set(found) >= set(ids) else None


def probe_rows(directory: Path) -> dict[str, Counter[str]]:
    """The rows in probe.log, by agent."""
    rows: dict[str, Counter[str]] = {}
    for line in records(directory / "probe.log"):
        rows.setdefault(str(line["hid"]), Counter())[str(line["name"])] += 1
    return rows


@pytest.mark.long
@pytest.mark.parametrize("is_killed", [False, True], ids=["whole", "killed"])
async def test_rows_of_fifty_agents_through_two_gateways_are_logged_once(tmp_path: Path, is_killed: bool) -> None:
    from bus_agents import bus_agents

    logs = tmp_path / "zeek"
    ids = [f"B{n:03}" for n in range(50)]
    with (
        nats_server(tmp_path / "nats") as nats,
        zeek(logs, site=PROBE) as url,
        gateways(tmp_path, nats.url, url) as programs,
    ):
        async with bus_agents(nats.url, "zeeks") as bus, AsyncExitStack() as direct:
            await until(lambda: {beacon.gateway for beacon in bus.beacons} == {"gw1", "gw2"}, 90, "not both are ready")
            agents = [bus.new(agent_id) for agent_id in ids]
            work = [asyncio.create_task(deliver(agent, 0.2 if is_killed else 0.0)) for agent in agents]
            for n in range(10):
                agent = await direct.enter_async_context(direct_agent(url, f"D{n:03}"))
                work.append(asyncio.create_task(deliver_direct(agent)))
            if is_killed:
                await until(lambda: sum(has_ack(agent.events, 1) for agent in agents) >= 10, 60, "nothing comes")
                programs[0].kill()
            async with asyncio.timeout(180):
                await asyncio.gather(*work)
            await until(lambda: {"via/gw1", "via/gw2"} <= features(logs), 60, "not both gateways are named")
    rows = probe_rows(logs)
    assert set(rows) == {*ids, *(f"D{n:03}" for n in range(10))}
    assert {agent_id: counted for agent_id, counted in rows.items() if counted != ROWS} == {}
    assert not drops(logs)


@pytest.mark.long
async def test_rows_through_two_gateways_reach_a_stock_package(tmp_path: Path) -> None:
    from bus_agents import bus_agents

    logs = tmp_path / "zeek"
    with nats_server(tmp_path / "nats") as nats, stock_zeek(logs) as url, gateways(tmp_path, nats.url, url):
        async with bus_agents(nats.url, "zeeks") as bus:

            async def one(agent: BusAgent) -> None:
                await agent.open()
                await agent.say_hello()
                query_id = await agent.installed(lambda query: "FROM users" in query.query.sql)
                for n in range(RESULTS):
                    await agent.send(agent.row(query_id, broker_json.string(f"u{n}"), *[broker_json.NONE] * 9))
                await agent.send(protocol.agent_shutdown(agent.context()).encode())

            async with asyncio.timeout(120):
                await asyncio.gather(*(one(bus.new(f"B{n:03}")) for n in range(50)))
            await until(lambda: Counter(states(logs))["shutdown"] == 50)
            await until(lambda: len(records(logs / "zeek-agent-users.log")) >= 50 * RESULTS)
    lines = Counter((line["hid"], line["name"]) for line in records(logs / "zeek-agent-users.log"))
    assert lines == Counter((f"B{n:03}", f"u{m}") for n in range(50) for m in range(RESULTS))
    assert Counter(states(logs)) == {"join": 50, "shutdown": 50}
    assert not drops(logs)


EVENTS = PROBE.replace("SELECT name FROM probes", MARKED).replace(
    "$schedule_=interval_", "$schedule_=interval_, $subscription=ZeekAgent::Events"
)
"""What processes with a mark do, of all agents."""


@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(300)
async def test_events_of_real_agents_are_logged_once_when_a_gateway_is_killed(tmp_path: Path) -> None:
    logs, ids = tmp_path / "zeek", [f"R{n}" for n in range(4)]
    marks = [f"mark-{n:03}-{os.getpid()}" for n in range(60)]
    site = EVENTS.replace("1hr", "0.3sec")
    with (
        nats_server(tmp_path / "nats") as nats,
        zeek(logs, site=site) as url,
        gateways(tmp_path, nats.url, url) as programs,
    ):
        async with AsyncExitStack() as stack:
            for agent_id in ids:
                directory = tmp_path / agent_id
                directory.mkdir()
                await stack.enter_async_context(
                    running(directory, f"--zeek=nats://127.0.0.1:{nats.port}", settings={"agent.id": agent_id})
                )
            await until(lambda: set(ids) <= joined_agents(logs), 90, "not all join")
            await asyncio.sleep(3.0)  # their queries are under way
            vias = await until(lambda: gateways_of(logs, ids), 60, "no gateway is named")
            for n, mark in enumerate(marks):
                subprocess.run(["/bin/true", mark], check=True)
                if n == 20:
                    programs[int(vias[ids[0]].removeprefix("via/gw")) - 1].kill()
                await asyncio.sleep(0.1)
            wanted = {agent_id: set(marks) for agent_id in ids}
            await until(lambda: marked(probe_rows(logs), marks) == wanted, 90, "events are missing")
            await asyncio.sleep(3.0)  # what was sent twice would have come
    doubled = {
        agent_id: [name for name, times in rows.items() if times > 1 and any(mark in name for mark in marks)]
        for agent_id, rows in probe_rows(logs).items()
    }
    assert doubled == {agent_id: [] for agent_id in ids}


@pytest.fixture
def network() -> Iterator[Hosts]:
    with hosts() as one:
        yield one


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.soak)])
async def test_connections_of_hosts_behind_gateways_are_attributed_at_both_ends(
    tmp_path: Path, network: Hosts, number: int
) -> None:
    logs, hub = tmp_path / "zeek", network.at("hub")
    others = "".join(f"redef {module}::enabled = F;\n" for module in sorted(modules_with_queries()))
    # As with many agents.
    site = f"""
    redef ZeekAgent::many_agents = 2;
    redef Site::local_nets = {{ 10.93.0.0/24 }};
    {others}
    """
    capture = ("-i", "wire", "-f", "net 10.93.0.0/24 and not host 10.93.0.1")
    with (
        nats_server(tmp_path / "nats", 'host: "0.0.0.0"', prefix=hub) as nats,
        zeek(logs, *capture, site=site, prefix=hub) as url,
        gateways(tmp_path, nats.url, url, prefix=hub),
    ):
        async with AsyncExitStack() as stack:
            for n in range(1, 5):
                directory = tmp_path / f"host{n}"
                directory.mkdir()
                await stack.enter_async_context(
                    running(
                        directory,
                        f"--zeek=nats://10.93.0.1:{nats.port}",
                        settings={"agent.id": f"Host{n}"},
                        prefix=network.at(n),
                    )
                )
            await until(lambda: {f"Host{n}" for n in range(1, 5)} <= joined_agents(logs), 60, "not all join")
            await asyncio.sleep(3.0)  # their queries are under way
            truth = await network.connections(number)
            await asyncio.sleep(8.0)  # TCP connections are logged after five seconds
    score = compare(truth, records(logs / "conn.log"))
    assert score.seen >= 0.99 * 2 * number
    assert not score.wrong
    assert score.tagged >= 0.999 * score.seen
    assert any(feature.startswith("via/") for feature in features(logs))


def modules_with_queries() -> set[str]:
    """The modules of the package whose queries are for logs."""
    scripts = (path.read_text() for path in (PACKAGE / "table").glob("*.zeek"))
    found = (re.search(r"^module (\w+);", script, re.MULTILINE) for script in scripts if "const enabled" in script)
    return {match[1] for match in found if match is not None}


def joined_agents(directory: Path) -> set[str]:
    return {str(line["hid"]) for line in records(directory / "zeek-agent.log")}
