"""How many of the kernel's records the agent decodes, and decodes and stores, in a second of one core.

    python benchmarks/bench_bpf_decode.py

Needs root and a C compiler: real records are taken from the rings once, then decoded again and again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording.bpf_monitor import BpfMonitor, RecordStream
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import process_event
from zeek_agent.recording.processes.process_tracker import ProcessTracker
from zeek_agent.recording.sockets.bpf_connections import ConnectionTracker
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets
from zeek_agent.schema import EventRow
from zeek_agent.tables.events import TABLES

ROOT = Path(__file__).parent.parent
PROCESSES, ROUNDS = 2000, 10


def main() -> None:
    if os.geteuid() != 0:
        print("bench_bpf_decode: needs root")
        return
    processes, connections, cache = record()
    print(f"{'records':28} {'count':>7} {'µs each':>8} {'per s':>9}")

    def decode_processes() -> Sequence[EventRow]:
        return [process_event(process, at, 0.0, ended) for process, at, ended in ProcessTracker(cache).apply(processes)]

    def decode_connections() -> Sequence[EventRow]:
        return ConnectionTracker(cache).rows(connections, 0.0)

    for name, records, decode, table in (
        ("fork, exec, exit", processes, decode_processes, "processes_events"),
        ("connection, both ends", connections, decode_connections, "sockets_events"),
    ):
        report(name, len(records), decode)
        with tempfile.TemporaryDirectory() as directory:
            settings = EventSettings(queue_rows=10_000_000)
            store = EventStore(Path(directory) / "events.db", TABLES, settings)

            def decode_and_store(decode: Callable[[], Sequence[EventRow]] = decode, table: str = table) -> None:
                store.append(table, decode())  # noqa: B023

            report(f"{name}, stored", len(records), decode_and_store, store.flush)
            store.close()


def record() -> tuple[list[bytes], list[bytes], ProcessCache]:
    """Records of processes that each make one connection over loopback, and the cache that knows them."""
    monitor = BpfMonitor(cache := ProcessCache())
    sockets = EbpfSockets(monitor, SourceSettings())
    kept: tuple[list[bytes], list[bytes]] = ([], [])
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        load = f"{directory}/load"
        subprocess.run(["cc", "-O2", "-o", load, ROOT / "benchmarks" / "load.c"], check=True)
        sockets.start(lambda *_: None)
        assert monitor._processes is not None  # noqa: SLF001
        keep(monitor._processes, kept[0])  # noqa: SLF001
        keep(monitor._others[0], kept[1])  # noqa: SLF001
        port = str(server.getsockname()[1])
        subprocess.run([load, "exec", str(PROCESSES), "0", load, "tcp", "127.0.0.1", port], check=True, stdout=-3)
        sockets.stop()
    return *kept, cache


def keep(stream: RecordStream, records: list[bytes]) -> None:
    """Also put a stream's records into a list."""
    handle = stream.handle

    def both(batch: list[bytes]) -> None:
        records.extend(batch)
        handle(batch)

    stream.handle = both


def report(name: str, count: int, run: Callable[[], object], finish: Callable[[], object] = lambda: None) -> None:
    run()
    started = time.process_time()
    for _ in range(ROUNDS):
        run()
    finish()
    each = (time.process_time() - started) / ROUNDS / count
    print(f"{name:28} {count:7} {each * 1e6:8.2f} {1 / each:9.0f}")


if __name__ == "__main__":
    main()
