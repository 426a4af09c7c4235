"""A whole fleet as its operator sets it up: every part is a program, with TLS and the credentials that it was given."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import collector_program
import fleet
import pytest
from collector_program import Program
from fleet import HOST, Servers
from running_agent import RunningAgent, running
from waiting import until, until_sync

from zeek_agent.fleet.configurations import CLIENT_PORT, GATEWAY_HOME
from zeek_agent.fleet.directory import Place

PROGRAM = (sys.executable, "-m", "zeek_agent")
AGENTS = {"Hleaf": "fra", "Hhub": ""}
"""Ids, and the site where the agent connects; the other one connects to the hub."""


@contextmanager
def program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        environment = {**os.environ, "ZEEK_AGENT_CONFIG": os.devnull}
        process = subprocess.Popen([*PROGRAM, *arguments], stdout=out, stderr=out, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def command(*arguments: str, stdin: str = "") -> str:
    """The output of a command that succeeds."""
    done = subprocess.run([*PROGRAM, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Chain:
    """A running fleet. `agents` are by id."""

    servers: Servers
    directory: Path
    agents: dict[str, RunningAgent]
    collector: Program
    gateway: subprocess.Popen[bytes]
    urls: dict[str, str] = field(default_factory=dict)
    """Destinations of the agents."""

    @property
    def gateway_log(self) -> str:
        return (self.directory / "gateway.log").read_text()


@contextmanager
def gateway(servers: Servers, collector_port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`zeek-agent gateway` with the files of its host, at a collector that knows it by its certificate."""
    own = servers.place.directory / "gateways" / "gw1"
    configuration = log.with_suffix(".toml")
    written = (own / "zeek-agent.toml").read_text()
    assert f'"tls://{HOST}:{CLIENT_PORT}"' in written
    configuration.write_text(written.replace(GATEWAY_HOME, str(own)))
    url = f"wss://{HOST}:{collector_port}"
    with program(log, "gateway", "--config", str(configuration), "--nats", servers.hub_url, "--zeek", url) as process:
        until_sync(
            lambda: process.poll() is not None or ("to the bus" in log.read_text() and url in log.read_text()),
            30,
            log.read_text,
        )
        assert process.poll() is None, log.read_text()
        yield process


def enrolled(servers: Servers, directory: Path, agent_id: str, site: str) -> str:
    """Enrol an agent with a new token, at its own server. Returns the URL of its destination."""
    server = servers.leaf_url(site) if site else servers.hub_url
    url = server.replace("tls:", "tls+nats:")
    token = command("fleet", "token", str(servers.place.directory), "--group", "linux", "--site", site or "hub")
    state = ("--state-dir", str(directory / agent_id / "state"), "--set", f"agent.id={agent_id}")
    assert "enrolled" in command("enroll", url, "-", *state, stdin=token)
    return url


@asynccontextmanager
async def chain(directory: Path) -> AsyncIterator[Chain]:
    """Everything from `fleet init` to the agents, which are connected."""
    made = directory / "fleet"
    command(
        "fleet", "init", str(made), "--name", "example", "--hub", HOST, "--site", f"fra={HOST}", "--gateway", "gw1=zeek"
    )
    async with AsyncExitStack() as parts:
        servers = parts.enter_context(fleet.servers(Place(made), directory / "run"))
        enrolment = directory / "enrolment.log"
        parts.enter_context(program(enrolment, "fleet", "enrolment", str(made), "--server", servers.hub_url))
        own = made / "collector"
        tls = {"certificate": "server.pem", "key": "server.key", "client_ca": "agents-ca.pem"}
        given = [part for name, file in tls.items() for part in ("--set", f"collector.tls.{name}={own / file}")]
        certified = ("--set", "collector.tls.ids=certificate", "--set", "collector.rotate_interval=0")
        collector = parts.enter_context(collector_program.collector(directory, *given, *certified))
        served = parts.enter_context(gateway(servers, collector.port, directory / "gateway.log"))
        await until(lambda: "enrolment over the bus" in enrolment.read_text(), 30, enrolment.read_text)
        found = Chain(servers, directory, {}, collector, served)
        for agent_id, site in AGENTS.items():
            (directory / agent_id).mkdir()
            url = await asyncio.to_thread(enrolled, servers, directory, agent_id, site)
            found.urls[agent_id] = url
            settings = {"agent.id": agent_id, "zeek.destinations": f'["{url}"]'}
            found.agents[agent_id] = await parts.enter_async_context(running(directory / agent_id, settings=settings))
        yield found


@pytest.mark.long
async def test_a_fleet_made_by_its_commands_delivers_and_a_revoked_agent_is_cut_off(tmp_path: Path) -> None:
    async with chain(tmp_path) as one:
        for agent_id, agent in one.agents.items():
            await until(partial(connected, agent), 30, f"{agent_id} is not connected")
        hosts = await until(lambda: delivered(one), 40, lambda: f"{one.collector.text}\n{one.gateway_log}")
        assert hosts >= set(AGENTS)
        assert await asyncio.to_thread(secrets_in_doctor, one, "Hleaf") == []
        place = str(one.servers.place.directory)
        await asyncio.to_thread(command, "fleet", "revoke", place, "Hleaf", "--server", one.servers.hub_url)
        revoked = one.agents["Hleaf"]
        await until(lambda: rejected(revoked), 30, revoked.output.read_text)
        await until(lambda: "Authorization" in revoked.output.read_text(), 30, revoked.output.read_text)
        assert await connected(one.agents["Hhub"])
        assert "eof_received" not in revoked.output.read_text(), "a line for each attempt"


def secrets_in_doctor(one: Chain, agent_id: str) -> list[str]:
    """Lines of the agent's secret files in the output of `zeek-agent doctor`, which passes for the bus."""
    state = one.directory / agent_id / "state"
    settings = (f"agent.id={agent_id}", f'zeek.destinations=["{one.urls[agent_id]}"]')
    given = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [*PROGRAM, "doctor", "--state-dir", str(state), *given], capture_output=True, text=True, timeout=60, check=False
    )
    output = done.stdout + done.stderr
    assert "this agent may speak and listen for itself only" in output, output
    assert "zeek by gw1" in output, output
    secrets = [line for file in ("agent.creds", "client.key") for line in (state / "fleet" / file).read_text().split()]
    return [line for line in secrets if len(line) > 30 and line in output]


async def connected(agent: RunningAgent) -> bool:
    rows = await agent.ask("SELECT destination, state FROM zeek_agent_connections")
    return any((row["destination"], row["state"]) == ("nats:zeek", "connected") for row in rows)


async def rejected(agent: RunningAgent) -> bool:
    rows = await agent.ask("SELECT state FROM zeek_agent_connections")
    return bool(rows) and all(row["state"] != "connected" for row in rows)


def delivered(one: Chain) -> set[str]:
    """The agents in the collector's logs, once rows of all are there."""
    found: set[str] = set()
    for file in (one.directory / "logs").glob("*.log"):
        text = file.read_text()
        found |= {agent_id for agent_id in AGENTS if agent_id in text}
    return found if found >= set(AGENTS) else set()
