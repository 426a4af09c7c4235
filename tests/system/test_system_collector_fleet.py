"""Many agents over TLS, and a collector that is killed and comes back: every event once, or again if it is recent.

The agents are light: they follow the agent's rules of delivery, but have no tables. An event counts as delivered with
the pong after it. A collector with another id gets what is not acknowledged, and again the last ten seconds of what is.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from certificates import make_certificates
from collector_program import LightAgent, collector
from running_agent import started
from waiting import until
from websockets.exceptions import WebSocketException
from zeek_log import parse_log

from zeek_agent.collector import hosts_file
from zeek_agent.config.sections import TlsSettings
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.tls import client_context

Figures = Callable[[str, object], None]
REPLAYED_SECONDS: Final = 10.0
PACK: Final = """
[logs.events]
change = false
fields = [{ name = "store", type = "string" }, { name = "seq", type = "count" }]

[[queries]]
log = "events"
sql = "SELECT store, seq FROM events"
subscription = "Events"
"""
REAL_PACK: Final = """
[logs.events]
change = false
fields = [{ name = "store", type = "string" }, { name = "seq", type = "count" }, { name = "name", type = "string" }]

[[queries]]
log = "events"
sql = 'SELECT event_store() AS "store:text", seq, name FROM processes_events'
subscription = "Events"
schedule = 0.5
"""


class FleetAgent(LightAgent):
    """Delivers numbered events to whatever collector is there."""

    def __init__(self, agent_id: str, port: int, tls: ssl.SSLContext, pause: float) -> None:
        super().__init__(agent_id, f"I-{agent_id}")
        self.produced = 0
        self.pending: deque[int] = deque()
        self.replayed: Counter[int] = Counter()
        self.connects = 0
        self._acknowledged: deque[tuple[float, int]] = deque()
        self.port = port
        self._tls = tls
        self._pause = pause
        self._life: str | None = None
        self.producing = True

    async def run(self) -> None:
        """Connect, deliver, and connect again, until cancelled."""
        producing = asyncio.create_task(self._produce())
        try:
            while True:
                with suppress(OSError, EOFError, WebSocketException):
                    await self.connect(self.port, self._tls)
                    self.connects += 1
                    await self._deliver()
                await asyncio.sleep(0.2)
        finally:
            producing.cancel()

    async def _produce(self) -> None:
        while self.producing:
            self.produced += 1
            self.pending.append(self.produced)
            await asyncio.sleep(self._pause)

    async def _deliver(self) -> None:
        while self.zeek is None or not self.queries:
            await self.read()
        if self._life not in (None, self.zeek):
            self._replay()
        self._life = self.zeek
        reading = asyncio.create_task(self._read_on())
        try:
            while not reading.done():
                batch = list(self.pending)[:50]
                for seq in batch:
                    await self.row("Collector::events", broker_json.string(self.id), broker_json.count(seq))
                await self.acknowledged()
                now = time.monotonic()
                for seq in batch:
                    self.pending.popleft()
                    self._acknowledged.append((now, seq))
                while self._acknowledged and self._acknowledged[0][0] < now - REPLAYED_SECONDS:
                    self._acknowledged.popleft()
                await asyncio.sleep(0 if self.pending else self._pause / 4)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_on(self) -> None:
        while True:
            await self.read()

    def _replay(self) -> None:
        recent = [seq for at, seq in self._acknowledged if at >= time.monotonic() - REPLAYED_SECONDS]
        # What was sent but not acknowledged may have been logged, too: at most one batch.
        self.replayed.update(recent + list(self.pending)[:50])
        self.pending.extendleft(reversed(recent))
        self._acknowledged.clear()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "kills", "per_second", "seconds"),
    [
        pytest.param(30, 1, 2.0, 1.0, id="short"),
        pytest.param(200, 3, 5.0, 25.0, id="long", marks=pytest.mark.soak),
    ],
)
async def test_a_collector_that_is_killed_loses_no_event_and_counts_no_host_twice(
    tmp_path: Path, number: int, kills: int, per_second: float, seconds: float, record_property: Figures
) -> None:
    files = make_certificates(tmp_path)
    trusting = client_context(TlsSettings(files.ca, files.path("agent.pem"), files.path("agent.key")))
    (tmp_path / "pack.toml").write_text(PACK)
    options = ["--pack", str(tmp_path / "pack.toml"), "--certificate", files.path("server.pem")]
    options += ["--key", files.path("server.key"), "--client-ca", files.ca]
    logs = tmp_path / "logs"
    fleet: list[FleetAgent] = []
    running: list[asyncio.Task[None]] = []
    took = []

    def is_connected(times: int) -> bool:
        for task in running:
            if task.done():
                task.result()  # why an agent has ended
        return all(agent.connects >= times and agent.zeek is not None for agent in fleet)

    for kill in range(kills + 1):
        with collector(tmp_path, *options, port=fleet[0].port if fleet else 0) as program:
            began = time.monotonic()
            if not fleet:
                fleet += (FleetAgent(f"H{index:03}", program.port, trusting, 1 / per_second) for index in range(number))
                running += (asyncio.create_task(agent.run()) for agent in fleet)
            await until(partial(is_connected, kill + 1), 120)
            took.append(time.monotonic() - began)
            await asyncio.sleep(seconds)
            if kill < kills:
                program.kill()
                continue
            for agent in fleet:
                agent.producing = False
            await until(partial(is_idle, fleet), 120)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.gather(*(agent.close() for agent in fleet))
            assert program.stop() == 0
    logged: Counter[tuple[str, int]] = Counter()
    for file in logs.glob("events*.log"):
        logged.update((record[3], record[4]) for record in parse_log(file.read_bytes()))
    produced = {(agent.id, seq) for agent in fleet for seq in range(1, agent.produced + 1)}
    assert set(logged) == produced, "every event is in the logs"
    allowed = Counter({(agent.id, seq): times for agent in fleet for seq, times in agent.replayed.items()})
    excess = logged - Counter(produced) - allowed
    assert not excess, "only what was acknowledged in the last ten seconds may be there again"
    hosts = hosts_file.read(logs)
    assert sorted(hosts.hosts) == [agent.id for agent in fleet]
    assert [(host.conflicts, host.instance) for host in hosts.hosts.values()] == [
        (0, f"I-{host}") for host in hosts.hosts
    ]
    assert (hosts.evicted, hosts.damaged) == (0, 0)
    joins = Counter(
        record[2]
        for file in logs.glob("zeek-agent.*log")
        for record in parse_log(file.read_bytes())
        if record[1] == "join"
    )
    assert set(joins) == set(hosts.hosts)
    record_property("agents", number)
    record_property("kills", kills)
    record_property("events", len(produced))
    record_property("events logged again", logged.total() - len(produced))
    record_property("seconds until all are connected", ", ".join(f"{one:.1f}" for one in took))


def is_idle(fleet: Sequence[FleetAgent]) -> bool:
    return not any(agent.pending for agent in fleet)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.timeout(400)
async def test_real_agents_over_tls_outlive_the_collector_and_a_clone_is_turned_away(
    tmp_path: Path, record_property: Figures
) -> None:
    files = make_certificates(tmp_path)
    (tmp_path / "pack.toml").write_text(REAL_PACK)
    options = ["--pack", str(tmp_path / "pack.toml"), "--certificate", files.path("server.pem")]
    options += ["--key", files.path("server.key"), "--client-ca", files.ca]
    tls = {"ca_file": files.ca, "certificate": files.path("agent.pem"), "key": files.path("agent.key")}
    settings = {f"zeek.tls.{name}": value for name, value in tls.items()} | {"zeek.reconnect_max": 2}
    logs, port = tmp_path / "logs", 0
    marks: list[str] = []

    def cause(number: int) -> None:
        for _ in range(number):
            marks.append(f"za-{secrets.token_hex(4)}")  # the kernel keeps 15 characters
            program = tmp_path / marks[-1]
            program.symlink_to("/bin/true")
            subprocess.run([str(program)], check=True)

    def logged() -> list[tuple[str, str, int, str]]:
        """Agent, store, number and name of the process events in all logs."""
        found = []
        for file in logs.glob("events*.log"):
            content = file.read_bytes()
            found += [(record[1], *record[3:]) for record in parse_log(content[: content.rfind(b"\n") + 1])]
        return found

    def are_logged() -> bool:
        seen = {(agent, name) for agent, _, _, name in logged()}
        return seen >= {(agent, mark) for agent in ("Hone", "Htwo") for mark in marks}

    with ExitStack() as parts:
        for restart in range(3):
            with collector(tmp_path, *options, port=port) as program:
                if not port:
                    port = program.port
                    for name in ("one", "two"):
                        (tmp_path / name).mkdir()
                        url = ("--zeek", f"wss://127.0.0.1:{port}")
                        own = {**settings, "agent.id": f"H{name}"}
                        agent = parts.enter_context(started(tmp_path / name, *url, settings=own))
                        await agent.ready()
                await until(partial(connected, logs, 2, restart + 1), 60)
                await asyncio.to_thread(cause, 20)
                if restart < 2:
                    program.kill()
                    await asyncio.to_thread(cause, 20)
                    continue
                await until(are_logged, 60)
                (tmp_path / "clone").mkdir()
                own = {**settings, "agent.id": "Hone"}
                clone = parts.enter_context(started(tmp_path / "clone", *url, settings=own))
                await clone.ready()
                await until(partial(says, clone.output, "another connection with this agent id"), 60)
                await until(partial(has_conflict, logs, "Hone"), 60)
                assert len(hosts_file.read(logs).hosts) == 2
    events = Counter((agent, store, seq) for agent, store, seq, _ in logged())
    record_property("events", len(events))
    record_property("events logged again", events.total() - len(events))
    assert hosts_file.read(logs).hosts["Hone"].errors == 0


def connected(logs: Path, number: int, connects: int) -> bool:
    hosts = hosts_file.read(logs).hosts.values()
    return sum(host.state == "connected" and host.connects >= connects for host in hosts) == number


def has_conflict(logs: Path, agent_id: str) -> bool:
    return hosts_file.read(logs).hosts[agent_id].conflicts > 0


def says(output: Path, text: str) -> bool:
    return text in output.read_text()
