"""The host's name changes while the agent runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running_agent import RunningAgent, running

pytestmark = pytest.mark.root

OWN_NAME = ("unshare", "--uts", "sh", "-c", 'hostname before.example; exec "$@"', "sh")
"""Runs the agent where its host has a name of its own."""


def rename(agent: RunningAgent, name: bytes) -> None:
    command = ["nsenter", f"--target={agent.pid}", "--uts", "tee", "/proc/sys/kernel/hostname"]
    subprocess.run(command, input=name, stdout=subprocess.DEVNULL, check=True)


@pytest.mark.long
async def test_tables_status_hello_and_logs_follow_a_new_host_name(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"collector.schedule": 1}, prefix=OWN_NAME) as agent:
        assert await agent.ask("SELECT hostname FROM zeek_agent") == [{"hostname": "before.example"}]
        await agent.logged("zeek-agent", {"type_": "join", "hostname": "before.example"})
        rename(agent, b"after.example")
        assert await agent.ask("SELECT hostname FROM zeek_agent") == [{"hostname": "after.example"}]
        assert agent.status()["hostname"] == "after.example"
        await agent.logged("zeek-agent", {"type_": "update", "hostname": "after.example"})
        subprocess.run(["true"], check=True)
        await agent.logged("zeek-agent-process-events", {"host": "after.example"})


@pytest.mark.long
async def test_a_host_name_of_any_bytes_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path, prefix=OWN_NAME) as agent:
        rename(agent, b"caf\xe9")
        assert await agent.ask("SELECT hex(hostname) AS name FROM zeek_agent") == [{"name": "636166EEBFA9"}]
        await agent.logged("zeek-agent", {"hostname": r"caf\xe9"})


@pytest.mark.long
async def test_a_configured_host_name_stays(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"agent.hostname": "chosen.example"}, prefix=OWN_NAME) as agent:
        rename(agent, b"after.example")
        assert await agent.ask("SELECT hostname FROM zeek_agent") == [{"hostname": "chosen.example"}]
        assert agent.status()["hostname"] == "chosen.example"
