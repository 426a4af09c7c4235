"""The rig: simulators, NATS servers, gateways and the recipient of rows, on loopback, in one directory.

Agents are connected to the recipient directly (`ws`), or over two leaf nodes, a hub and gateways (`nats`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests" / "support"))
from nats_server import program
from own_table_files import roots_directory
from zeek_program import PACKAGE, ZEROMQ_PORTS

from simulated_fleet import oracle, stand_in
from simulated_fleet.canaries import Canary
from simulated_fleet.fake_host import SQL
from simulated_fleet.oracle import Findings
from simulated_fleet.processes import (
    FleetError,
    Process,
    Sampler,
    SimulatorProcess,
    Simulators,
    accepts,
    free_port,
    python,
    start,
    wait_for,
)

CLUSTER: Final = "zeek"
START_SECONDS: Final = 30.0

PACK: Final = f"""
[logs.fleet]
fields = [
  {{ name = "store", type = "string" }},
  {{ name = "number", type = "count" }},
  {{ name = "check_sum", type = "count" }},
  {{ name = "detail", type = "string" }},
]

[[queries]]
log = "fleet"
sql = "{SQL}"
subscription = "Events"
schedule = %s
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a fleet consists of."""

    agents: int = 200
    simulators: int = 2
    transport: Literal["ws", "nats"] = "nats"
    recipient: Literal["stand-in", "collector", "zeek"] = "stand-in"
    """A Zeek has our package."""
    gateways: int = 2
    schedule: float = 1.0
    """Seconds between runs of the query."""
    detail_bytes: int = 40
    """Size of a row's last column."""
    script_timeout: float = 10.0
    quick: bool = False
    """Whether agents notice a dead gateway within a second or two."""
    starts_per_second: float = 500.0
    canaries: int = 0
    """Real agents."""


@dataclass(eq=False)
class Server:
    """A process that can be started again with the same name and ports."""

    name: str
    command: list[str | Path]
    directory: Path
    sampler: Sampler
    lives: list[Process] = field(default_factory=list)

    @property
    def process(self) -> Process:
        return self.lives[-1]

    def start(self) -> Process:
        one = start(self.name, self.command, self.directory)
        self.lives.append(one)
        self.sampler.add(one)
        return one

    def kill(self) -> None:
        self.process.kill()


class Fleet:
    """A fleet that runs."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.sampler = Sampler()
        self.servers: dict[str, Server] = {}
        """Hub, leaves, gateways and recipient, by name."""
        self.monitors: dict[str, int] = {}
        """Ports at which NATS servers report figures over HTTP."""
        self.logs: list[Path] = []
        self.port = free_port()
        self.gone = 0
        """How many agents of a simulator were away for a day before."""
        self._stack = ExitStack()
        self.simulators = Simulators(())
        self.canaries: list[Canary] = []

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _start(self) -> None:
        self._stack.callback(self.sampler.close)
        self.start_recipient()
        leaves = self._start_bus() if self.plan.transport == "nats" else [(f"ws://127.0.0.1:{self.port}",)]
        self.leaf_urls = leaves
        self.simulators = Simulators([self._simulator(number, leaves) for number in range(self.plan.simulators)])
        if self.plan.canaries:
            place = self._stack.enter_context(roots_directory())
            for number in range(self.plan.canaries):
                self.canaries.append(Canary(number, place, self.directory, leaves[number % len(leaves)]))
                self.sampler.add(self.canaries[-1].process)

    def _close(self) -> None:
        for one in self.simulators.processes:
            one.process.kill()
        for canary in self.canaries:
            canary.process.stop()
        for server in self.servers.values():
            for life in server.lives:
                life.kill()
        self._stack.close()

    def _start_bus(self) -> list[tuple[str, ...]]:
        hub_port, link_port = free_port(), free_port()
        self._nats("hub", f'port: {hub_port}\nleafnodes {{ host: "127.0.0.1", port: {link_port} }}\n', hub_port)
        urls = []
        for name in ("leaf-a", "leaf-b"):
            port = free_port()
            remotes = f'leafnodes {{ remotes: [ {{ url: "nats-leaf://127.0.0.1:{link_port}" }} ], reconnect: "1s" }}'
            self._nats(name, f"port: {port}\n{remotes}\n", port)
            urls.append((f"nats://127.0.0.1:{port}",))
        for number in range(self.plan.gateways):
            self._start_gateway(number, f"nats://127.0.0.1:{hub_port}")
        return urls

    def _nats(self, name: str, configuration: str, port: int) -> None:
        file = self.directory / f"{name}.conf"
        self.monitors[name] = free_port()
        monitor = f'http: "127.0.0.1:{self.monitors[name]}"'
        file.write_text(f'host: "127.0.0.1"\nserver_name: "{name}"\nmax_connections: 12000\n{monitor}\n{configuration}')
        self.start_server(name, [program(), "--config", file])
        self._wait_for_output(name, "Server is ready")

    def _start_gateway(self, number: int, hub: str) -> None:
        name = f"gateway-{number}"
        command = python("zeek_agent", "gateway", "--nats", hub, "--cluster", CLUSTER, "--name", name)
        command += ["--zeek", f"ws://127.0.0.1:{self.port}", "--set", "zeek.reconnect_max=2", "--set", "log.level=info"]
        command += ["--set", "gateway.agents_max=12000"]  # of all, while the other one is away
        command += ["--state-dir", self.directory / name]
        self.start_server(name, command)
        self._wait_for_output(name, "connected to the bus")

    def start_server(self, name: str, command: list[str | Path]) -> Process:
        server = self.servers[name] = Server(name, command, self.directory, self.sampler)
        return server.start()

    def restart(self, name: str) -> None:
        """Start a server again that was killed."""
        if name == "recipient":
            self.start_recipient()
            return
        server = self.servers[name]
        assert not server.process.is_running
        before = server.process.text.count("Server is ready")
        server.start()
        if "nats-server" in str(server.command[0]):
            wait_for(
                lambda: server.process.text.count("Server is ready") > before, START_SECONDS, f"{name} is not ready"
            )

    def _wait_for_output(self, name: str, text: str) -> None:
        process = self.servers[name].process

        def is_there() -> bool:
            if not process.is_running:
                raise FleetError(f"{name} has ended: {process.text[-2000:]}")
            return text in process.text

        wait_for(is_there, START_SECONDS, f"{name} does not write {text!r}")

    def start_recipient(self) -> None:
        """Start the recipient, for the first time or again, with a log of its own for each life."""
        life = len(self.logs)
        if self.plan.recipient == "stand-in":
            log = self.directory / f"fleet-{life}.log"
            command = python(
                "simulated_fleet.stand_in",
                "--port",
                str(self.port),
                "--log",
                log,
                "--schedule",
                str(self.plan.schedule),
            )
            ready = "listening"
        elif self.plan.recipient == "collector":
            pack, logs = self.directory / "pack.toml", self.directory / f"logs-{life}"
            pack.write_text(PACK % self.plan.schedule)
            log = logs / stand_in.LOG
            command = python("zeek_agent", "collector", "--listen", f"127.0.0.1:{self.port}", "--logs", logs)
            command += ["--set", f"collector.pack={pack}", "--set", "collector.rotate_interval=0"]
            command += ["--set", "collector.rotate_bytes=0"]
            ready = "listening on"
        elif self.plan.recipient == "zeek":
            place = self.directory / f"zeek-{life}"
            place.mkdir()
            log = place / stand_in.LOG
            (place / "site.zeek").write_text(self._zeek_site())
            command, ready = ["sh", "-c", f"cd {place} && exec zeek -C site.zeek"], ""
        self.logs.append(log)
        lives = self.servers["recipient"].lives if "recipient" in self.servers else []
        server = self.servers["recipient"] = Server("recipient", command, self.directory, self.sampler, lives)
        before = lives[-1].text.count(ready) if lives else 0
        process = server.start()

        def is_ready() -> bool:
            return process.text.count(ready) > before if ready else accepts(self.port)

        wait_for(lambda: is_ready() or not process.is_running, START_SECONDS, "no recipient")
        if not process.is_running:
            raise FleetError(f"the recipient has ended: {process.text[-2000:]}")

    def _zeek_site(self) -> str:
        ports = ZEROMQ_PORTS.format(xpub=free_port(), xsub=free_port())
        return f"""
        @load {PACKAGE}/framework
        {ports}
        @load {Path(__file__).parent / "recipient.zeek"}
        redef ZeekAgent::listen_port = {self.port}/tcp;
        redef Log::default_rotation_interval = 0secs;
        redef Fleet::sql = "{SQL}";
        redef Fleet::pause = {self.plan.schedule}sec;
        """

    def _simulator(self, number: int, leaves: Sequence[tuple[str, ...]]) -> SimulatorProcess:
        plan = self.plan
        each = -(-plan.agents // plan.simulators)
        first = number * each
        count = min(each, plan.agents - first)
        command = python(
            "simulated_fleet.simulator", "--first", str(first), "--agents", str(count), "--cluster", CLUSTER
        )
        command += ["--detail-bytes", str(plan.detail_bytes), "--script-timeout", str(plan.script_timeout)]
        command += ["--quick"] * plan.quick
        for url in leaves[number % len(leaves)]:
            command += ["--server", url]
        process = start(f"simulator-{number}", command, self.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.sampler.add(process)
        return SimulatorProcess(process, range(first, first + count))

    def start_agents(self, seconds: float = 120.0) -> float:
        """Start all agents, and wait until all have their query; returns how long that took."""
        begun = time.monotonic()
        self.simulators.start(self.plan.starts_per_second)
        self.simulators.wait_ready(seconds)
        for canary in self.canaries:
            canary.wait_ready()
        return time.monotonic() - begun

    def findings(self, seconds: float = 120.0) -> Findings:
        """Wait until every row was acknowledged and is in the logs, and compare these with all that was recorded."""
        deadline = time.monotonic() + seconds
        self.simulators.wait_delivered(seconds)
        canaries = [one.recorded for one in self.canaries]
        simulated = list(self.simulators.recorded())
        time.sleep(2 * stand_in.FLUSH_SECONDS)
        while canaries and oracle.compare(canaries, self.logs, (one.agent_id for one in simulated)).missing:
            if time.monotonic() > deadline:
                break  # the findings say so
            time.sleep(1.0)
        return oracle.compare([*simulated, *canaries], self.logs)

    def reported(self, name: str) -> dict[str, Any]:
        """The figures of a NATS server (`/varz`)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitors[name]}/varz", timeout=20) as answer:
            figures: dict[str, Any] = json.load(answer)
            return figures

    def resident(self) -> str:
        """Peaks of resident memory, for people."""
        return ", ".join(f"{name} {kib / 1024:.0f} MB" for name, kib in sorted(self.sampler.peaks().items()))


@contextmanager
def fleet(directory: Path, plan: Plan) -> Iterator[Fleet]:
    """A fleet, from when its servers are ready to when all its processes have ended."""
    directory.mkdir(parents=True, exist_ok=True)
    with Fleet(directory, plan) as one:
        yield one
