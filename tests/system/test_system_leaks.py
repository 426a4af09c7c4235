"""Descriptors, threads and memory of the real program stay where they are over many queries and connections."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_agent import RunningAgent, running
from waiting import until
from zeek_server import Client, ZeekServer, zeek_server

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek.protocol import AgentHello, ResultRow

STATEMENTS = (
    "SELECT * FROM processes",
    "SELECT * FROM sockets LIMIT 200",
    "SELECT * FROM users",
    "SELECT * FROM files_list('/etc/*')",
    "SELECT * FROM files_lines('/etc/hosts')",
    "SELECT count(*) FROM processes_events",
    "SELECT p.name, s.local_port FROM processes p JOIN sockets s ON s.pid = p.pid LIMIT 200",
    "SELECT nonsense FROM nowhere",
)
MEGABYTE = 1024 * 1024


def used(agent: RunningAgent) -> tuple[int, int]:
    """Descriptors and threads."""
    return agent.descriptors(), agent.threads()


async def one_shots(client: Client, times: int, label: str) -> None:
    for turn in range(times):
        for number, sql in enumerate(STATEMENTS):
            await client.install(f"{label}_{turn}_{number}", Query(sql, "Test::row"))
        await client.install(f"{label}_{turn}_end", Query("SELECT 42", "Test::end"))
        await client.expect(
            ResultRow,
            lambda row, end=f"{label}_{turn}_end": row.context.query_id == end,  # type: ignore[misc]
            seconds=60,
        )
        client.events.clear()


async def joined(zeek: ZeekServer) -> Client:
    client = await zeek.client()
    await client.expect(AgentHello)
    return client


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("warming_up", "rounds", "repeated", "connections"),
    [
        pytest.param(5, 8, 20, 12, id="few"),
        pytest.param(15, 40, 100, 60, id="many", marks=pytest.mark.soak),
    ],
)
async def test_hundreds_of_queries_and_connections_leave_nothing_behind(
    tmp_path: Path, warming_up: int, rounds: int, repeated: int, connections: int
) -> None:
    settings = {"zeek.reconnect_min": 0.01, "zeek.reconnect_max": 0.02, "log.entries": 100}
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}", settings=settings) as agent:
        client = await joined(zeek)
        await one_shots(client, warming_up, "warm")
        before, memory = used(agent), agent.resident()
        await one_shots(client, rounds, "again")
        for number in range(repeated):
            query = Query("SELECT pid FROM processes", "Test::pids", 0.05, Subscription.DIFFERENCES)
            await client.install(f"repeated_{number}", query)
        for number in range(repeated):
            await client.cancel(f"repeated_{number}")
        for number in range(connections):
            await client.install(f"kept_{number}", Query("SELECT 1", "Test::x", 3600, Subscription.SNAPSHOTS))
            client.abort()
            client = await joined(zeek)
        none = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM zeek_agent_queries)"
        await until(lambda: agent.ask(none), complaint="queries of old connections stay")
        for _ in range(50):
            await agent.ask("SELECT count(*) FROM processes")
        await until(
            lambda: used(agent) <= before, complaint=lambda: f"{used(agent)} descriptors and threads, {before} before"
        )
        assert agent.resident() - memory < 16 * MEGABYTE
        assert (await agent.connection())["reconnects"] >= connections
