"""A Zeek that is slow, silent or away: memory stays bounded, the agent is back by itself, no event is missing."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_agent import RunningAgent, running
from waiting import until
from zeek_server import CLUSTER_ACK, Client, ZeekServer, zeek_server

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.protocol import AgentHello, AgentShutdown, ResultRow

MEMORY = 48 * 1024 * 1024
"""Bytes that an agent may take more while its Zeek does not read, whatever happens on the host."""

BURST = """
import os, sys, time
mark, number, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
begun = time.monotonic()
for n in range(number):
    os.waitpid(os.posix_spawn("/bin/true", [f"{mark}-{n}"], {}), 0)
    time.sleep(max(0, begun + n / rate - time.monotonic()))
"""
EVENTS = Query(
    "SELECT cmdline, state, seq FROM processes_events WHERE cmdline LIKE 'burst%'",
    "Test::processes",
    schedule=0.25,
    subscription=Subscription.EVENTS,
)
SNAPSHOTS = Query("SELECT * FROM processes", "Test::snapshot", schedule=1, subscription=Subscription.SNAPSHOTS)


@contextmanager
def processes(mark: str, number: int, rate: float) -> Iterator[Callable[[], Counter[tuple[str, str]]]]:
    """Processes that start and end at once, so many a second; gives the events that there must be."""
    script = subprocess.Popen([sys.executable, "-c", BURST, mark, str(number), str(rate)])

    def wanted() -> Counter[tuple[str, str]]:
        assert script.wait(60) == 0
        return Counter((f"{mark}-{n}", state) for n in range(number) for state in ("started", "stopped"))

    try:
        yield wanted
    finally:
        script.kill()
        script.wait()


def seen(clients: list[Client], mark: str) -> Counter[tuple[str, str]]:
    """Command line and state of the events that arrived, over all connections."""
    found: Counter[tuple[str, str]] = Counter()
    for client in clients:
        for row in client.of(ResultRow, lambda row: row.event == EVENTS.event):
            command, state, _ = broker_json.cells(row.columns)
            if str(command).startswith(f"{mark}-"):
                found[str(command), str(state)] += 1
    return found


async def all_arrived(clients: list[Client], mark: str, wanted: Counter[tuple[str, str]]) -> None:
    def complete() -> bool:
        return seen(clients, mark).keys() >= wanted.keys()

    try:
        await until(complete, 30, "")
    except AssertionError:
        missing = wanted.keys() - seen(clients, mark).keys()
        pytest.fail(f"{len(missing)} of {len(wanted)} events did not arrive: {sorted(missing)[:5]}")


async def installed(zeek: ZeekServer) -> Client:
    client = await zeek.client()
    await client.expect(AgentHello)
    await client.hello()
    await client.install("events", EVENTS)
    return client


async def runs(agent: RunningAgent, query_id: str) -> None:
    sql = f"SELECT 1 FROM zeek_agent_queries WHERE id = '{query_id}' AND runs > 0"
    await until(lambda: agent.ask(sql), complaint=f"query {query_id} does not run")


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize(("number", "silence"), [(1_500, 3), pytest.param(7_500, 20, marks=pytest.mark.soak)])
async def test_a_zeek_that_stops_reading_and_then_ends_misses_nothing(
    tmp_path: Path, number: int, silence: int
) -> None:
    """Seconds of not reading, then of absence, under 500 events a second and a snapshot of processes each second."""
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        client = await installed(zeek)
        await client.install("snapshots", SNAPSHOTS)
        await runs(agent, "events")
        await client.expect(ResultRow)
        before = agent.resident()
        with processes("burst-a", number, 250) as wanted:
            client.pause()
            await asyncio.sleep(silence)
            status = await agent.connection()
            assert status["state"] == "connected"
            assert status["unacknowledged_bytes"] > 0
            assert status["unacknowledged_bytes"] <= status["window_bytes"] + 2 * 65_536
            assert agent.resident() - before < MEMORY
            client.resume()
            await client.expect(ResultRow, lambda row: row.event == EVENTS.event, number=1_000)
            port = zeek.port
            client.abort()
            await zeek.stop()
            await asyncio.sleep(silence / 4)
            assert (await agent.connection())["state"] in {"waiting", "connecting"}
            await zeek.start(port, None)
            back = await installed(zeek)
            await all_arrived([client, back], "burst-a", wanted())
        assert agent.resident() - before < MEMORY
        status = await agent.connection()
        assert status["reconnects"] >= 1
        assert status["state"] == "connected"
        (counters,) = await agent.ask("SELECT lost FROM zeek_agent_queries WHERE id = 'events'")
        assert counters["lost"] == 0


@pytest.mark.long
async def test_a_zeek_that_never_acknowledges_is_tried_again_until_it_does(tmp_path: Path) -> None:
    settings = {"zeek.ack_timeout": 0.3}
    async with zeek_server(ack=None) as zeek, running(tmp_path, f"--zeek={zeek.url()}", settings=settings) as agent:
        before = agent.resident()
        await until(lambda: zeek.connections >= 5, complaint="the agent does not try again")
        status = await agent.connection()
        assert status["reconnects"] >= 4
        assert "did not acknowledge the subscription within 0.3 s" in status["last_error"]
        assert agent.resident() - before < MEMORY
        zeek.ack = CLUSTER_ACK
        client = await zeek.client()
        await client.expect(AgentHello)
        said = [line for line in agent.output.read_text().splitlines() if "did not acknowledge" in line]
        assert len(said) == 1, "said once, not at each attempt"


@pytest.mark.root
@pytest.mark.soak
async def test_a_zeek_that_closes_at_random_gets_every_event(tmp_path: Path) -> None:
    chance = random.Random(7)
    clients: list[Client] = []
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        clients.append(await installed(zeek))
        await runs(agent, "events")
        with processes("burst-b", 1_200, 200) as wanted:
            for _ in range(8):
                await asyncio.sleep(chance.uniform(0.05, 0.6))
                client = clients[-1]
                match chance.randrange(3):
                    case 0:
                        client.abort()
                    case 1:
                        client.websocket.transport.close()
                    case _:
                        await client.websocket.close()
                clients.append(await installed(zeek))
            await all_arrived(clients, "burst-b", wanted())
        status = await agent.connection()
        assert status["reconnects"] >= 8


@pytest.mark.long
@pytest.mark.root
async def test_a_killed_agent_continues_where_it_was(tmp_path: Path) -> None:
    """Nothing that was recorded before or after is missing; what happens while no agent runs, nobody sees."""
    async with zeek_server() as zeek:
        async with running(tmp_path, f"--zeek={zeek.url()}") as agent:
            first = await installed(zeek)
            await runs(agent, "events")
            with processes("burst-c", 200, 200) as wanted:
                before = wanted()
                await all_arrived([first], "burst-c", before)
            first.pause()
            with processes("burst-d", 200, 200) as wanted:
                unseen = wanted()
            stored = "SELECT 1 FROM processes_events WHERE cmdline LIKE 'burst-d%' GROUP BY 1 HAVING count(*) = "
            await until(lambda: agent.ask(f"{stored}{unseen.total()}"), complaint="not recorded")
            agent.kill()
        async with running(tmp_path, f"--zeek={zeek.url()}") as agent:
            second = await installed(zeek)
            await all_arrived([second], "burst-d", unseen)
            assert not first.of(AgentShutdown)
            assert "Traceback" not in agent.output.read_text()
