"""Real agents behind gateways, one of which is killed, and whose Zeek restarts."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import pytest
from gateway_program import gateway_program
from gateways import gateway
from nats_server import nats_server
from running_agent import running
from scripted_agent import SETTINGS, collecting, read
from waiting import until
from zeek_server import zeek_server

from zeek_agent.collector import pack
from zeek_agent.gateway.causes import Cause
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, ResultBatch

PACK = pack.parse(
    """
    [logs.starts]
    change = false
    fields = [{ name = "cmdline", type = "string" }]

    [[queries]]
    log = "starts"
    sql = "SELECT cmdline FROM processes_events WHERE state = 'started' AND cmdline LIKE '%gateway-mark%'"
    subscription = "Events"
    schedule = 0.5
    """,
    "test",
)

HAS_RUN = "SELECT id FROM zeek_agent_queries WHERE sql LIKE '%gateway-mark%' AND runs > 0"
"""Events are those after the query's first run, which is later than its line in the agent's log."""


@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(240)
async def test_events_of_a_real_agent_survive_the_death_of_its_gateway(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as nats, ExitStack() as stack:
        async with collecting(tmp_path / "collected", settings=SETTINGS, given=PACK) as collector:
            host, port = collector.address
            programs = {
                name: stack.enter_context(gateway_program(nats.url, f"ws://{host}:{port}", name, tmp_path))
                for name in ("gw1", "gw2")
            }
            (tmp_path / "agent").mkdir()
            async with running(tmp_path / "agent", "--zeek", nats.url) as agent:
                await until(lambda: agent.ask(HAS_RUN), 60, "the query has not run")
                await mark("first")
                await until(lambda: rows(tmp_path, "first"), 60)
                first = agent.output.read_text().partition("through gateway ")[2][:3]
                programs[first].kill()
                await mark("second")
                await until(lambda: rows(tmp_path, "second"), 60)
                other = {"gw1": "gw2", "gw2": "gw1"}[first]
                assert f"through gateway {other}" in agent.output.read_text()
                assert rows(tmp_path, "first") == 1


@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(240)
async def test_real_agents_keep_their_session_while_zeek_restarts_again_and_again(tmp_path: Path) -> None:
    query = Query("SELECT * FROM processes", protocol.ROWS, schedule=0.1, subscription=Subscription.SNAPSHOTS)
    with nats_server(tmp_path / "nats") as nats:
        async with zeek_server() as zeek, gateway(nats.url, zeek.url()) as gw, AsyncExitStack() as agents:
            client = await zeek.client()
            for name in ("HOne", "HTwo"):
                (tmp_path / name).mkdir()
                await agents.enter_async_context(
                    running(tmp_path / name, "--zeek", nats.url, settings={"agent.id": name})
                )
            for life in range(8):
                await client.expect(AgentHello, number=2)
                await client.send(protocol.install_query(protocol.group_topic("all"), "zeek_1", f"q{life}", query))
                await client.expect(ResultBatch, number=2 + life)
                client.abort()
                client = await zeek.client()
            await client.expect(AgentHello, number=2)
            assert gw.core.counters.hellos == 2
            assert not gw.core.counters.ended
            assert set(gw.core.counters.refused) <= {Cause.ZEEK_AWAY}


async def mark(name: str) -> bool:
    """Start a process that the query reports."""
    process = await asyncio.create_subprocess_exec("sh", "-c", f": gateway-mark-{name}")
    return await process.wait() == 0


def rows(directory: Path, name: str) -> int:
    """How often the collector has logged it."""
    with suppress(FileNotFoundError):
        counts = Counter(row["cmdline"] for row in read(directory / "collected", "starts"))
        return sum(number for cmdline, number in counts.items() if f"gateway-mark-{name}" in cmdline)
    return 0
