"""`zeek-agent gateway` as a program, in front of a collector: its logs have each row once, whatever ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from bus_agents import BusAgent, BusAgents, NotAcknowledgedError, bus_agents
from gateway_program import gateway_program
from nats_server import NatsServer, nats_server
from scripted_agent import SETTINGS, collecting, read
from waiting import until

from zeek_agent.bus.link import NoListenerError
from zeek_agent.bus.messages import Refusal
from zeek_agent.collector import hosts_file, pack
from zeek_agent.collector.server import Collector
from zeek_agent.zeek import broker_json

CLUSTER = "zeeks"
PACK = pack.parse(
    """
    [logs.numbers]
    change = false
    fields = [{ name = "n", type = "count" }]

    [[queries]]
    log = "numbers"
    sql = "SELECT n FROM numbers_events"
    subscription = "Events"
    schedule = 0.5
    """,
    "test",
)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    async with collecting(tmp_path / "logs", settings=SETTINGS, given=PACK) as one:
        yield one


def program(
    nats: NatsServer, collector: Collector, name: str, directory: Path
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A gateway as a process of its own, in front of the collector."""
    host, port = collector.address
    return gateway_program(nats.url, f"ws://{host}:{port}", name, directory)


async def deliver(bus: BusAgents, agent: BusAgent, rows: int) -> None:
    """Send numbered rows, each until it is acknowledged, in whatever session it takes; dead gateways are noticed."""
    number, greeted = 0, 0
    while number < rows:
        try:
            if agent.welcome is None or agent.again is not None:
                await agent.open()
            if greeted != agent.sessions:
                greeted = agent.sessions
                await agent.say_hello()
            query_id = await agent.installed()
            await agent.send(agent.row(query_id, broker_json.count(number)), seconds=2.0)
            number += 1
        except NotAcknowledgedError:
            try:
                await agent.beat()
            except (NoListenerError, TimeoutError):
                agent.welcome = None
            except ConnectionError:
                await asyncio.sleep(0.1)


async def numbers(collector: Collector, logs: Path, expected: int) -> Counter[tuple[str, str]]:
    """The rows in the collector's log, by agent and number, once there are as many as expected."""

    def found() -> Counter[tuple[str, str]] | None:
        with suppress(FileNotFoundError):
            rows = Counter((row["host"], row["n"]) for row in read(logs, "numbers"))
            return rows if len(rows) >= expected else None
        return None

    return await until(found, 60.0)


async def test_agents_of_a_killed_gateway_move_to_the_other_one_and_lose_nothing(
    nats: NatsServer, collector: Collector, tmp_path: Path
) -> None:
    with program(nats, collector, "gw1", tmp_path) as first, program(nats, collector, "gw2", tmp_path):
        async with bus_agents(nats.url, CLUSTER) as bus:
            agents = [bus.new(f"H{number:02}") for number in range(12)]
            for agent in agents:
                await agent.open()
            await until(lambda: any("has" in line and "gateway gw2" in line for line in lines(tmp_path, "gw1")))
            work = asyncio.gather(*(deliver(bus, agent, 40) for agent in agents))
            await asyncio.sleep(0.3)
            first.kill()
            await asyncio.wait_for(work, 90)
            assert all(agent.welcome is not None and agent.welcome.gateway == "gw2" for agent in agents)
            await until(lambda: any(beacon.gone == "gw1" and beacon.gateway == "gw2" for beacon in bus.beacons))
            found = await numbers(collector, tmp_path / "logs", 12 * 40)
            assert set(found) == {(f"host-{agent.agent_id}", number) for agent in agents for number in range(40)}
            doubled = sum(times - 1 for times in found.values())
            assert doubled <= len(agents), "a row that was on its way may come twice, as over a killed connection"


def lines(directory: Path, name: str) -> list[str]:
    return (directory / f"{name}.log").read_text().splitlines()


@pytest.mark.long
async def test_a_stopped_gateway_hands_over_without_a_double(
    nats: NatsServer, collector: Collector, tmp_path: Path
) -> None:
    with program(nats, collector, "gw1", tmp_path) as first, program(nats, collector, "gw2", tmp_path):
        async with bus_agents(nats.url, CLUSTER) as bus:
            agents = [bus.new(f"H{number:02}") for number in range(6)]
            for agent in agents:
                await agent.open()
            work = asyncio.gather(*(deliver(bus, agent, 40) for agent in agents))
            await asyncio.sleep(0.3)
            first.send_signal(signal.SIGTERM)
            await asyncio.wait_for(work, 90)
            assert await until(lambda: None if first.poll() is None else "ended")
            assert first.returncode == 0
            found = await numbers(collector, tmp_path / "logs", 6 * 40)
            assert len(found) == 6 * 40
            assert any("stopping: " in line for line in lines(tmp_path, "gw1"))


@pytest.mark.long
async def test_sighup_reloads_limits_and_keeps_the_gateway_running(
    nats: NatsServer, collector: Collector, tmp_path: Path
) -> None:
    host, port = collector.address
    file = tmp_path / "gateway.toml"
    file.write_text("[gateway]\nagents_max = 5\n")
    url = f"ws://{host}:{port}"
    with gateway_program(nats.url, url, "gw1", tmp_path, configuration=str(file)) as running:
        async with bus_agents(nats.url, CLUSTER) as bus:
            await bus.agent("HOne")
            for text, logged in (
                (
                    "[gateway]\nagents_max = 1\nplaces = 7\n",
                    "applied: gateway.agents_max; needs a restart: gateway.places",
                ),
                ("[gateway]\nagents_max = 0\n", "the configuration is not reloaded: "),
            ):
                file.write_text(text)
                running.send_signal(signal.SIGHUP)
                await until(lambda logged=logged: any(logged in line for line in lines(tmp_path, "gw1")), 30)
            answer = await bus.new("HTwo").hello()
            assert isinstance(answer, Refusal)
            assert "as many agents as it accepts" in answer.reason


async def test_metrics_and_hosts_show_the_gateway(nats: NatsServer, collector: Collector, tmp_path: Path) -> None:
    with program(nats, collector, "gw1", tmp_path):
        async with bus_agents(nats.url, CLUSTER) as bus:
            agent = bus.new("HAbc")
            await deliver(bus, agent, 3)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "gw1.sock")
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            assert "\nzeek_agent_gateway_sessions 1\n" in text
            assert "\nzeek_agent_gateway_rows_total 3\n" in text
            assert 'gateway="gw1",cluster="zeeks"' in text
            directory = tmp_path / "logs"
            host = await until(lambda: hosts_file.read(directory).hosts.get("HAbc"))
            assert (host.gateway, host.state) == ("gw1", "connected")


@pytest.mark.long(kept=2)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "c"], "gateway.servers: no NATS server is set"),
        (["--nats", "nats://127.0.0.1:1"], "gateway.cluster: the name of the Zeek cluster is not set"),
        (["--nats", "http://x", "--cluster", "c"], "gateway.servers: not a NATS server: 'http://x'"),
        (["--nats", "nats://x", "--cluster", "a.b"], "gateway.cluster: only letters, digits, - and _"),
        (["--nats", "nats://x", "--cluster", "c", "--name", "a b"], "gateway.name: only letters, digits, - and _"),
        (["--nats", "nats://x", "--cluster", "c", "--zeek", "ftp://x"], "not a destination: 'ftp://x'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_usage_errors(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zeek_agent", "gateway", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "ZEEK_AGENT_CONFIG": os.devnull}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
