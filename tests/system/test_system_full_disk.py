"""The disk of the state directory is full for a while, and the agent is stopped soon afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from mounting import in_mount_namespace, mount
from running_agent import RunningAgent, started
from waiting import until

pytestmark = pytest.mark.root

NOWHERE = "--zeek=ws://127.0.0.1:9"
COUNT = "SELECT count(*) AS n FROM processes_events WHERE cmdline LIKE '{}-%' AND state = 'started'"


async def recorded(agent: RunningAgent, mark: str, number: int) -> None:
    """Start so many processes and wait until their events, and those of their ends, are stored."""
    wanted = stored(agent) + 2 * number
    for n in range(number):
        subprocess.run([f"{mark}-{n}"], executable="/bin/true", check=True)
    await until(lambda: stored(agent) >= wanted, 30, f"no {number} events of {mark}")


def stored(agent: RunningAgent) -> int:
    """Events so far; a statement would need room for its result."""
    return int(agent.status()["store"]["processes_events"])


async def counted(agent: RunningAgent, mark: str, number: int) -> bool:
    return await agent.ask(COUNT.format(mark)) == [{"n": number}]


async def uses_memory(agent: RunningAgent) -> bool:
    """Whether the store has noticed that it cannot write; something must happen for that."""
    subprocess.run(["true"], check=True)
    return "in memory only" in (agent.status()["store_notice"] or "")


def fill_up(disk: Path) -> Path:
    ballast = disk / "ballast"
    ballast.touch()
    while (free := os.statvfs(disk).f_bavail) > 0:
        with suppress(OSError), ballast.open("ab", buffering=0) as file:  # the agent writes as well
            file.write(b"\0" * 4096 * free)
    return ballast


@pytest.mark.long
def test_events_of_a_time_without_room_are_there_after_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()

    async def outage() -> None:
        with started(tmp_path, NOWHERE) as agent:
            await agent.ready()
            await recorded(agent, "before", 20)
            ballast = fill_up(state)
            await until(lambda: uses_memory(agent), 30, "the store is still on disk")
            await recorded(agent, "without-room", 30)
            ballast.unlink()
            assert agent.stop() == 0
        with started(tmp_path, NOWHERE) as agent:
            await agent.ready()
            assert await counted(agent, "before", 20)
            assert await counted(agent, "without-room", 30)
            gaps = await agent.ask("SELECT cause FROM zeek_agent_gaps WHERE source = 'agent'")
            assert gaps == [{"cause": "stopped"}]

    def scene() -> None:
        mount("state", state, "tmpfs", data="size=96m,mode=700")
        asyncio.run(outage())

    in_mount_namespace(scene, seconds=120)
