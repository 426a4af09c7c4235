"""A gateway under the settings of its systemd unit, as near as possible without systemd as process 1."""

from __future__ import annotations

import ctypes.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bus_agents import bus_agents
from gateway_program import gateway_program
from nats_server import nats_server
from places import ROOT
from waiting import until
from zeek_server import zeek_server

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, ResultBatch

SANDBOX = (sys.executable, str(ROOT / "tests" / "support" / "unit_sandbox.py"))
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None or ctypes.util.find_library("seccomp") is None,
        reason="needs systemd-analyze and libseccomp2",
    ),
]


def test_the_gateways_unit_refuses_what_a_gateway_does_not_need() -> None:
    priority = "import ctypes; ctypes.CDLL(None).setpriority(0, 0, 5)"
    command = [*SANDBOX, "--gateway-unit", sys.executable, "-c", priority]
    assert subprocess.run(command, check=False).returncode == -signal.SIGSYS


@pytest.mark.long
async def test_a_gateway_serves_agents_and_drains_in_its_units_sandbox(tmp_path: Path) -> None:
    prefix = (*SANDBOX, "--writable", str(tmp_path), "--gateway-unit")
    with nats_server(tmp_path / "nats") as nats:
        async with zeek_server() as zeek, bus_agents(nats.url, "zeeks") as bus:
            with gateway_program(nats.url, zeek.url(), "gw1", tmp_path, prefix=prefix) as running:
                client = await zeek.client()
                agent = await bus.agent("HAbc")
                await agent.say_hello()
                await client.expect(AgentHello)
                query = Query("SELECT 1", event=protocol.ROWS)
                await client.send(protocol.install_query(protocol.host_topic("HAbc"), "zeek_1", "q1", query))
                query_id = await agent.installed()
                await agent.send(agent.rows(query_id, text="x" * 50_000))
                await client.expect(ResultBatch)
                running.send_signal(signal.SIGHUP)
                await until(lambda: "configuration reloaded" in (tmp_path / "gw1.log").read_text())
                running.send_signal(signal.SIGTERM)
                await until(lambda: running.poll() is not None)
                assert running.returncode == 0
