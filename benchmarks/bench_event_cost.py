"""Processor time of the program per event, with delivery: percent of a core at several rates, by backend.

Two event queries of a Zeek run every 250 ms. An exec is a process that starts a program and stops (two rows delivered);
a connection is one over loopback, of which both ends open and close (four rows), by one process. "(µs)" is what the
program used more than at rest for each. "missing" is how many of the rows were not delivered at the highest rate. What
BPF programs take in the processes that cause the events is measured by bench_bpf_events.

    python benchmarks/bench_event_cost.py [--seconds 5] [--rates 10,100,1000] [--backends ebpf,proc_connector,audit]

Needs root and a C compiler. Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rig import Agent, Zeek, accepting, agent, load_generator

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol

BACKENDS: Final = {
    "ebpf": ("sources.processes=ebpf", "sources.sockets=ebpf"),
    "proc_connector": ("sources.processes=proc_connector", "sources.sockets=inet_diag"),
    "audit": ("sources.processes=audit", "sources.sockets=audit", "sources.audit_rules=true"),
    "snapshots": ("sources.processes=snapshots", "sources.sockets=snapshots"),
}
ROWS_EACH: Final = {"exec": 2, "connection": 4}
QUERIES: Final = {
    "exec": "SELECT * FROM processes_events WHERE exe = '{load}'",
    "connection": "SELECT * FROM sockets_events WHERE {port} IN (local_port, remote_port)",
}
SCHEDULE: Final = 0.25
SETTLING: Final = 2.0


def delivered(zeek: Zeek, query_id: str) -> int:
    """Rows that have come for a query."""
    number = 0
    for _, frame in zeek.frames_of(query_id):
        message = protocol.read_message(frame)
        assert isinstance(message, protocol.Message)
        event = protocol.agent_event(message)
        if isinstance(event, protocol.ResultBatch):
            number += len(msgspec.json.decode(event.rows))
    return number


async def load(command: Sequence[str]) -> int:
    """Run the generator; how many events it made."""
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


async def measure(
    running: Agent, zeek: Zeek, kind: str, rates: Sequence[float], seconds: float, generator: str, port: int
) -> list[str]:
    """Cells of a row of the table."""
    before = running.cpu_seconds
    await asyncio.sleep(seconds)
    idle = (running.cpu_seconds - before) / seconds
    cells = [f"{idle * 100:.2f}"]
    missing = 0
    for rate in rates:
        count = int(rate * seconds)
        zeek.frames.clear()
        before = running.cpu_seconds
        if kind == "exec":
            made = await load([generator, "exec", str(count), str(rate), generator, "nothing"])
        else:
            made = await load([generator, "connections", "127.0.0.1", str(port), str(count), str(rate)])
        await asyncio.sleep(SETTLING)
        used = running.cpu_seconds - before - idle * SETTLING
        each = (used - idle * seconds) / made
        cells.append(f"{used / seconds * 100:.2f} ({each * 1e6:.0f})")
        surplus = 2 if kind == "exec" else 0  # the generator's own start and stop
        missing = made * ROWS_EACH[kind] + surplus - delivered(zeek, kind)
    return [*cells, str(missing)]


async def backend(name: str, table: Table, rates: Sequence[float], seconds: float) -> None:
    with tempfile.TemporaryDirectory() as place, accepting() as port:
        directory = Path(place)
        generator = load_generator(directory)
        zeek = Zeek(frozenset({protocol.BATCHES}))
        await zeek.start()
        settings = [part for setting in BACKENDS[name] for part in ("--set", setting)]
        async with agent(directory, f"--zeek=ws://127.0.0.1:{zeek.port}", *settings) as running:
            await zeek.joined()
            for kind, sql in QUERIES.items():
                statement = sql.format(load=generator, port=port)
                await zeek.install(kind, Query(statement, protocol.ROWS, SCHEDULE, Subscription.EVENTS))
            await asyncio.sleep(SETTLING)
            for kind in QUERIES:
                cells = await measure(running, zeek, kind, rates, seconds, generator, port)
                table.add_row(f"{kind}, {name}", *cells)
        await zeek.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rates", default="10,100,1000")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench_event_cost: needs root")
        return
    rates = [float(rate) for rate in options.rates.split(",")]
    table = Table(title=f"% of a core (µs each) at a rate per second, {options.seconds:g} s each")
    table.add_column("event, backend")
    for heading in ("at rest", *(f"{rate:g}" for rate in rates), "missing"):
        table.add_column(heading, justify="right")
    for name in options.backends.split(","):
        await backend(name, table, rates, options.seconds)
    Console(width=120).print(table)


if __name__ == "__main__":
    asyncio.run(main())
