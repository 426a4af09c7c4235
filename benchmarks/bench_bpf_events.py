"""What the eBPF sources cost: in the kernel, in the agent, and what is lost, at several rates.

    python benchmarks/bench_bpf_events.py [--seconds 5] [--rates 10,100,1000,0] [--kinds exec,tcp,udp,connections,flows]

Needs root and a C compiler. Rate 0 is as fast as the generator goes. The agent runs in a process of its own, with the
event store, so that its processor time is what is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets
from zeek_agent.recording.sockets.socket_event import SocketEvent
from zeek_agent.recording.source import Source
from zeek_agent.schema import EventRow
from zeek_agent.tables.events import TABLES

ROOT = Path(__file__).parent.parent
COUNTED = {"exec": "exec", "tcp": "tcp", "udp": "udp", "connections": "tcp", "flows": "udp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rates", default="10,100,1000,0")
    parser.add_argument("--kinds", default="exec,tcp,udp,connections,flows")
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        serve(options.agent)
        return
    if os.geteuid() != 0:
        print("bench_bpf_events: needs root")
        return
    with tempfile.TemporaryDirectory() as directory:
        load = f"{directory}/load"
        subprocess.run(["cc", "-O2", "-o", load, ROOT / "benchmarks" / "load.c"], check=True)
        titles = ("event", "rate/s", "made", "stored", "lost", "agent %", "µs each", "BPF µs each")
        print("{:11} {:>7} {:>7} {:>7} {:>5} {:>8} {:>8} {:>11}  µs in BPF, a call".format(*titles))
        with agent(load) as ask, accepting() as port:
            idle = ask_for(ask, options.seconds)
            print(f"{'idle':11} {'':36} {idle['cpu'] / idle['seconds'] * 100:6.2f}")
            for kind in options.kinds.split(","):
                for rate in map(float, options.rates.split(",")):
                    measure(ask, load, kind, rate, options.seconds, port)


def measure(ask: subprocess.Popen[str], load: str, kind: str, rate: float, seconds: float, port: int) -> None:
    """One line of the table.

    An `exec` is a process that starts and stops, `tcp` and `udp` such a one that connects. For `connections` and
    `flows`, one process makes them all.
    """
    count = int((rate or 1500) * seconds)
    command = [load, "nothing"] if kind == "exec" else [load, kind, "127.0.0.1", str(port)]
    command = [load, "exec", str(count), str(rate), *command]
    if kind in {"connections", "flows"}:
        command = [load, kind, "127.0.0.1", str(port), str(count), str(rate)]
    before = ask_for(ask, 0)
    started = time.monotonic()
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.monotonic() - started
    after = ask_for(ask, 0.5)
    lines = len(made.stdout.splitlines())
    cpu = after["cpu"] - before["cpu"]
    busy, total = [], 0
    for name, (nanoseconds, runs) in after["bpf"].items():
        nanoseconds, runs = nanoseconds - before["bpf"][name][0], runs - before["bpf"][name][1]
        total += nanoseconds
        if runs:
            busy.append(f"{name[3:]} {nanoseconds / runs / 1000:.2f}")
    print(
        f"{kind:11} {lines / elapsed:7.0f} {2 * lines if kind == 'exec' else lines:7} "
        f"{after['counts'][COUNTED[kind]] - before['counts'][COUNTED[kind]]:7} {after['lost'] - before['lost']:5} "
        f"{cpu / elapsed * 100:8.2f} {cpu / lines * 1e6:8.1f} {total / lines / 1000:11.2f}  {', '.join(busy)}",
        flush=True,
    )


@contextmanager
def agent(load: str) -> Iterator[subprocess.Popen[str]]:
    """The sources and the store in a process of their own, which answers questions on its standard output."""
    command = [sys.executable, __file__, "--agent", load]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask_for(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """The agent's figures after `seconds`."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(load: str) -> None:
    """Record until standard input ends; a line there is a number of seconds after which to tell the figures.

    Counted are the events of the program `load`.
    """
    descriptor = enable_statistics()
    settings = SourceSettings()
    monitor = BpfMonitor(ProcessCache(), settings.ring_bytes)
    sources = [EbpfProcesses(monitor, settings), EbpfSockets(monitor, settings)]
    counts = {"exec": 0, "tcp": 0, "udp": 0}

    def sink(table: str, rows: Sequence[EventRow]) -> None:
        for row in rows:
            if isinstance(row, ProcessEvent):
                counts["exec"] += row.cmdline == f"{load} nothing"
            elif isinstance(row, SocketEvent) and row.state == "established" and row.exe == load:
                counts["tcp" if row.protocol == 6 else "udp"] += 1
        store.append(table, rows)

    with tempfile.TemporaryDirectory() as directory:
        store = EventStore(Path(directory) / "events.db", TABLES, EventSettings())
        for source in sources:
            reason = source.probe()
            if reason:
                sys.exit(f"bench_bpf_events: {reason}")
            source.start(sink)
        for line in sys.stdin:
            tell(float(line), monitor, sources, store, counts)
        for source in reversed(sources):
            source.stop()
        store.close()
    os.close(descriptor)


def tell(
    seconds: float, monitor: BpfMonitor, sources: Sequence[Source], store: EventStore, counts: dict[str, int]
) -> None:
    """Print the figures: processor time of those seconds, or of the whole run when they are fewer than one."""
    started, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    if seconds < 1:
        for source in sources:
            source.drain()
        store.flush()
        cpu = 0.0
    objects = [monitor._processes.object, *(stream.object for stream in monitor._others)]  # noqa: SLF001
    figures = {
        "cpu": time.process_time() - cpu,
        "seconds": time.monotonic() - started,
        "counts": counts,
        "lost": sum(source.counters.lost["overrun"] for source in sources),
        "bpf": {name: program(item.program_fd(name)) for item in objects for name in item.programs},
    }
    print(json.dumps(figures), flush=True)


BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
BPF_OBJ_GET_INFO_BY_FD, BPF_ENABLE_STATS = 15, 32


def enable_statistics() -> int:
    """The kernel measures BPF programs for as long as this descriptor is open."""
    attributes = ctypes.create_string_buffer(128)
    return int(ctypes.CDLL(None).syscall(BPF, BPF_ENABLE_STATS, attributes, 128))


def program(descriptor: int) -> tuple[int, int]:
    """Nanoseconds that a program ran, and how often (`struct bpf_prog_info`)."""
    information = ctypes.create_string_buffer(232)
    attributes = ctypes.create_string_buffer(128)
    ctypes.memmove(
        attributes,
        descriptor.to_bytes(4, "little")
        + len(information).to_bytes(4, "little")
        + ctypes.addressof(information).to_bytes(8, "little"),
        16,
    )
    ctypes.CDLL(None).syscall(BPF, BPF_OBJ_GET_INFO_BY_FD, attributes, 128)
    return (
        int.from_bytes(information.raw[192:200], "little"),
        int.from_bytes(information.raw[200:208], "little"),
    )


@contextmanager
def accepting() -> Iterator[int]:
    """A port of loopback at which connections are accepted, and datagrams."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server, socket.socket(type=socket.SOCK_DGRAM) as other:
        port = server.getsockname()[1]
        other.bind(("127.0.0.1", port))

        def accept() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        def read() -> None:
            while other.recvfrom(9)[0] != b"end":
                pass

        threads = [threading.Thread(target=work, daemon=True) for work in (accept, read)]
        for thread in threads:
            thread.start()
        yield port
        server.shutdown(socket.SHUT_RDWR)
        other.sendto(b"end", ("127.0.0.1", port))
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
