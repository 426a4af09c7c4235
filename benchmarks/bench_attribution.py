"""What attribution costs a sensor: a plain Zeek and one with the package, side by side on the same connections.

Short TCP connections over loopback, between processes of one host whose agent is connected to the Zeek with the
package. Processor time is utime + stime of each Zeek, so that other load on the machine matters little. At the end,
the processes in conn.log are compared with those that really had the connections.

    bench_attribution.py                       # a minute at 200 connections/s
    bench_attribution.py --seconds 600         # the numbers of docs/benchmarks.md
    bench_attribution.py --package OLD=DIR     # a third Zeek with another version of the scripts
    bench_attribution.py --logs                # with the package's event logs, too

Needs `zeek` on PATH, and root for the agent's event sources. Fails if a connection has a wrong process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rig import agent

ROOT: Final = Path(__file__).absolute().parent.parent
SERVERS: Final = 8
CLIENTS: Final = 8
CONNECTIONS_PER_CLIENT: Final = 50
"""After so many, a client is replaced by a new process."""
SETTLING_SECONDS: Final = 15
"""Zeek removes, and logs, a TCP connection five seconds after its end."""
QUIET_MODULES: Final = (
    *("Files", "ListeningPorts", "ProcessEvents", "Processes", "SocketEvents", "Sockets", "SSH", "SystemLogs"),
    "Users",
)
SITE: Final = """
@ifdef ( Cluster::Backend::ZeroMQ::listen_xpub_endpoint )
redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = "tcp://127.0.0.1:{xsub}";
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = "tcp://127.0.0.1:{xsub}";
@endif
redef Log::default_rotation_interval = 0secs;
redef ZeekAgent::listen_port = {port}/tcp;
redef ZeekAgent::local_agents = {{ "*" }};
event zeek_done() {{ print fmt("claims %d", ZeekAgent::claim_counts["taken"]); }}
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Sample:
    """One Zeek at one time."""

    seconds: float
    connections: int
    cpu_seconds: float
    megabytes: float


@dataclass
class Zeek:
    """A Zeek that monitors the load's ports."""

    name: str
    directory: Path
    package: Path | None
    port: int = 0
    samples: list[Sample] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def start(self, capture: str, *, with_logs: bool, script: str) -> None:
        self.directory.mkdir()
        command = ["zeek", "-C", "-i", "lo", "-f", capture]
        if self.package is not None:
            self.port = free_port()
            site = SITE.format(port=self.port, xpub=free_port(), xsub=free_port())
            if not with_logs:
                site += "".join(f"redef ZeekAgent_{module}::enabled = F;\n" for module in QUIET_MODULES)
            (self.directory / "site.zeek").write_text(f"@load {self.package}\n{site}{script}\n")
            command.append("site.zeek")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_WEBSOCKET")}
        with (self.directory / "output").open("wb") as output:
            self._process = subprocess.Popen(command, cwd=self.directory, env=kept, stdout=output, stderr=output)

    def ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name}: zeek ended: {(self.directory / 'output').read_text()}")
        listening = "listening on lo" in (self.directory / "output").read_text()
        with closing(socket.socket()) as probe:
            return listening and (self.port == 0 or probe.connect_ex(("127.0.0.1", self.port)) == 0)

    def sample(self, seconds: float, connections: int) -> None:
        assert self._process is not None
        cpu_seconds = time.clock_gettime(~self._process.pid << 3 | 2)
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.samples.append(Sample(seconds, connections, cpu_seconds, megabytes))

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    def connections(self) -> Iterator[dict[str, str]]:
        """The lines of conn.log."""
        names: list[str] = []
        with (self.directory / "conn.log").open() as log:
            for line in log:
                if line.startswith("#fields"):
                    names = line.rstrip("\n").split("\t")[1:]
                elif not line.startswith("#"):
                    yield dict(zip(names, line.rstrip("\n").split("\t"), strict=True))

    def claims(self) -> int:
        """How many claims it took."""
        lines = (self.directory / "output").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("claims ")), 0)

    def milliseconds_each(self, first: int, last: int) -> float:
        """Processor time per connection between two samples."""
        begun, ended = self.samples[first], self.samples[last]
        return 1000 * (ended.cpu_seconds - begun.cpu_seconds) / max(ended.connections - begun.connections, 1)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a new process, which ends there whatever happens; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def serve(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(64))
            connection.recv(64)


@contextmanager
def servers(number: int) -> Iterator[dict[int, int]]:
    """Server processes: pid by port."""
    found = {}
    for _ in range(number):
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
            port = server.getsockname()[1]
            found[port] = fork(partial(serve, server))
    try:
        yield found
    finally:
        for pid in found.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run_client(ports: list[int], rate: float, seconds: float, truth: int) -> None:
    """Connect to random servers at a rate; append source port, server port, pid and start to a file for each."""
    started = time.monotonic()
    number = 0
    while (due := started + number / rate) < started + seconds and number < CONNECTIONS_PER_CLIENT:
        time.sleep(max(0.0, due - time.monotonic()))
        port = random.choice(ports)
        with socket.create_connection(("127.0.0.1", port)) as client:
            os.write(truth, b"%d %d %d %.6f\n" % (client.getsockname()[1], port, os.getpid(), time.time()))
            client.sendall(b"ping")
            client.recv(64)
        number += 1


def run_clients(ports: list[int], rate: float, seconds: float, truth: int) -> None:
    """Client processes, one after the other."""
    os.setsid()
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        os.waitpid(fork(partial(run_client, ports, rate, left, truth)), 0)


@contextmanager
def load(ports: list[int], rate: float, seconds: float, truth: Path) -> Iterator[None]:
    """Clients that connect `rate` times per second together."""
    file = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pids = [fork(partial(run_clients, ports, rate / CLIENTS, seconds, file)) for _ in range(CLIENTS)]
    os.close(file)
    try:
        yield
        for pid in list(pids):
            os.waitpid(pid, 0)
            pids.remove(pid)
    finally:
        for pid in pids:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@dataclass
class Score:
    """The load's connections in a conn.log. Claims are about these, two each, and about all other flows of the host."""

    total: int = 0
    claims: int = 0
    logged: int = 0
    both_ends: int = 0
    wrong: list[str] = field(default_factory=list)


def compare(zeek: Zeek, truth: Path, server_pids: dict[int, int]) -> Score:
    """Connections whose ports come several times are told apart by their order."""
    score = Score(claims=zeek.claims())
    true_clients: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for line in truth.read_text().splitlines():
        own, port, pid, at = line.split()
        true_clients.setdefault((own, port), []).append((float(at), int(pid)))
        score.total += 1
    logged: dict[tuple[str, str], list[dict[str, str]]] = {}
    for entry in zeek.connections():
        logged.setdefault((entry["id.orig_p"], entry["id.resp_p"]), []).append(entry)
    for ports, clients in true_clients.items():
        entries = sorted(logged.get(ports, ()), key=lambda entry: float(entry["ts"]))
        score.logged += len(entries)
        if len(entries) != len(clients):
            continue
        for entry, (_, pid) in zip(entries, sorted(clients), strict=True):
            expected = (str(pid), str(server_pids[int(ports[1])]))
            tagged = (entry["orig_pid"], entry["resp_pid"])
            score.both_ends += tagged == expected
            if any(one not in ("-", true) for one, true in zip(tagged, expected, strict=True)):
                ends = (entry["ts"], entry["conn_state"], *ports)
                score.wrong.append(f"{' '.join(ends)}: logged {' '.join(tagged)}, true {' '.join(expected)}")
    return score


def counted(truth: Path) -> int:
    return truth.read_bytes().count(b"\n") if truth.exists() else 0


async def until_ready(zeeks: list[Zeek]) -> None:
    async with asyncio.timeout(120):
        while not all(zeek.ready() for zeek in zeeks):
            await asyncio.sleep(0.2)


async def measure(options: argparse.Namespace, directory: Path, zeeks: list[Zeek]) -> dict[str, Score]:
    truth = directory / "truth"
    async with AsyncExitStack() as stack:
        server_pids = stack.enter_context(servers(SERVERS))
        capture = " or ".join(f"tcp port {port}" for port in server_pids)
        for zeek in zeeks:
            zeek.start(capture, with_logs=options.logs, script=options.script)
            stack.callback(zeek.stop)
        await until_ready(zeeks)
        urls = [f"--zeek=ws://127.0.0.1:{zeek.port}" for zeek in zeeks if zeek.port]
        await stack.enter_async_context(agent(directory, *urls))
        await asyncio.sleep(options.warm_up)
        started = time.monotonic()
        with load(list(server_pids), options.rate, options.seconds, truth):
            while True:
                elapsed = time.monotonic() - started
                for zeek in zeeks:
                    zeek.sample(elapsed, counted(truth))
                if elapsed >= options.seconds:
                    break
                await asyncio.sleep(min(options.every, max(options.seconds - elapsed, 0.01)))
        await asyncio.sleep(SETTLING_SECONDS)
        for zeek in zeeks:
            zeek.stop()
        return {zeek.name: compare(zeek, truth, server_pids) for zeek in zeeks if zeek.package}


def show(options: argparse.Namespace, zeeks: list[Zeek], scores: dict[str, Score]) -> None:
    title = f"{options.rate:g} connections per second for {options.seconds:g} s, one agent at both ends"
    table = Table(title=title)
    table.add_column("seconds", justify="right")
    for zeek in zeeks:
        table.add_column(f"{zeek.name}, ms CPU per connection", justify="right")
        table.add_column(f"{zeek.name}, MB", justify="right")
    for number, sample in enumerate(zeeks[0].samples):
        cells = []
        for zeek in zeeks:
            each = f"{zeek.milliseconds_each(number - 1, number):.3f}" if number else ""
            cells += [each, f"{zeek.samples[number].megabytes:.1f}"]
        table.add_row(f"{sample.seconds:.0f}", *cells)
    averages = []
    for zeek in zeeks:
        averages += [f"{zeek.milliseconds_each(0, -1):.3f}", f"{max(s.megabytes for s in zeek.samples):.1f} max"]
    table.add_row("all", *averages)
    console = Console(width=40 + 45 * len(zeeks))
    console.print(table)
    plain = zeeks[0]
    for zeek in zeeks[1:]:
        score = scores[zeek.name]
        more = zeek.milliseconds_each(0, -1) - plain.milliseconds_each(0, -1)
        megabytes = zeek.samples[-1].megabytes - plain.samples[-1].megabytes
        console.print(
            f"{zeek.name}: {more:.3f} ms of CPU per connection and {megabytes:.1f} MB more than plain Zeek; "
            f"{score.total} connections, {score.logged} logged, {score.both_ends} with both processes, "
            f"{len(score.wrong)} with a wrong one; {score.claims} claims"
        )


def measure_claims(scripts: Path, flows: int, processes: int) -> tuple[str, str]:
    """Bytes and microseconds for each claim that has no connection."""
    environment = {**os.environ, "FLOWS": str(flows), "PROCESSES": str(processes)}
    command = ["zeek", str(scripts), str(Path(__file__).parent.absolute() / "claims.zeek"), "ZeekAgent::listen=F"]
    with tempfile.TemporaryDirectory() as logs:
        done = subprocess.run(
            command, cwd=logs, env=environment, check=True, capture_output=True, text=True, timeout=300
        )
    kept, size, duration = done.stdout.split()
    assert int(kept) == flows
    return size, duration


def show_claims() -> None:
    table = Table(title="100,000 open flows without a connection")
    for heading in ("processes", "bytes per claim", "µs per row"):
        table.add_column(heading, justify="right")
    for processes in (100, 10_000, 100_000):
        table.add_row(f"{processes:,}", *measure_claims(ROOT / "zeek" / "scripts", 100_000, processes))
    Console(width=60).print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="connections per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between samples")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds between the agent's start and the load")
    parser.add_argument("--logs", action="store_true", help="with the package's event logs")
    parser.add_argument("--package", action="append", default=[], metavar="NAME=DIR", help="another Zeek's scripts")
    parser.add_argument("--script", default="", help="text to add to the scripts of Zeeks with a package")
    parser.add_argument("--keep", type=Path, help="an empty directory to keep logs in")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if shutil.which("zeek") is None or os.geteuid() != 0:
        print("bench_attribution: needs zeek on PATH, and root")
        return
    show_claims()  # while this process is small: its peak would count as that of its children
    with tempfile.TemporaryDirectory() as name:
        directory = options.keep or Path(name)
        zeeks = [Zeek("plain", directory / "plain", None)]
        zeeks.append(Zeek("package", directory / "package", ROOT / "zeek" / "scripts"))
        for other in options.package:
            label, _, scripts = other.partition("=")
            zeeks.append(Zeek(label, directory / label, Path(scripts).absolute()))
        scores = asyncio.run(measure(options, directory, zeeks))
        show(options, zeeks, scores)
        if wrong := [f"{name}: {line}" for name, score in scores.items() for line in score.wrong[:10]]:
            sys.exit("wrong processes:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
