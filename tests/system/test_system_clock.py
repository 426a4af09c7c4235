"""The time of day is set, by days and years, while the agent runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from running_agent import RunningAgent, started
from stepped_clock import SteppedClock
from test_system_outage import all_arrived, installed, processes
from waiting import until
from zeek_server import zeek_server

pytestmark = pytest.mark.root

DAY = 86_400.0
TWO_HEARTBEATS = 11.0
"""Seconds in which the store looks for expired events twice."""
STEPS = pytest.mark.parametrize(
    "step",
    [
        pytest.param(3 * DAY, id="3d", marks=pytest.mark.soak),
        pytest.param(3_650 * DAY, id="10y", marks=pytest.mark.soak),
        pytest.param(-3_650 * DAY, id="-10y", marks=pytest.mark.soak),
    ],
)


async def all_stored(agent: RunningAgent) -> bool:
    """Whether all events of the second burst are in the store."""
    sql = "SELECT count(*) AS n FROM processes_events WHERE cmdline LIKE 'burst-b-%'"
    return await agent.ask(sql) == [{"n": 100}]


@pytest.mark.long
@STEPS
async def test_undelivered_events_outlast_a_step_of_the_clock(tmp_path: Path, step: float) -> None:
    clock = SteppedClock(tmp_path)
    async with zeek_server() as zeek:
        url = zeek.url()
        with started(tmp_path, f"--zeek={url}", environment=clock.environment) as agent:
            await agent.ready()
            client = await installed(zeek)
            with processes("burst-a", 5, 50) as wanted:
                await all_arrived([client], "burst-a", wanted())
            port = zeek.port
            client.abort()
            await zeek.stop()
            with processes("burst-b", 50, 250) as wanted:
                undelivered = wanted()
            await until(lambda: all_stored(agent), 30, "the events are not stored")
            clock.set_ahead(step)
            await asyncio.sleep(TWO_HEARTBEATS)
            with processes("burst-c", 50, 250) as wanted:
                after = wanted()
            assert await all_stored(agent)
            agent.stop()
        with started(tmp_path, f"--zeek={url}", environment=clock.environment) as agent:
            await agent.ready()
            await zeek.start(port, None)
            back = await installed(zeek)
            await all_arrived([back], "burst-b", undelivered)
            await all_arrived([back], "burst-c", after)
            await asyncio.sleep(TWO_HEARTBEATS)
            assert await all_stored(agent)
            (counters,) = await agent.ask("SELECT lost FROM zeek_agent_queries WHERE id = 'events'")
            assert counters["lost"] == 0
