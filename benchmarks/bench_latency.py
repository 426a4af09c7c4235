"""From an event in the kernel to its WebSocket frame: milliseconds, by schedule.

The kernel's stamp is in the row's `time`; the frame's arrival is noted by the Zeek at the other end, on the same clock.
Programs are executed 50 times a second, out of step with the schedule.

    python benchmarks/bench_latency.py [--seconds 20] [--schedules 0.25,0.05]

Needs root and a C compiler. Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rig import Zeek, agent, load_generator

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import broker_json, protocol

RATE: Final = 47.0
PACKAGES: Final = {"stock": frozenset[str](), "ours": frozenset({protocol.BATCHES})}
SQL: Final = "SELECT time, pid, state FROM processes_events WHERE cmdline = '{load} nothing'"


def stamps(frame: bytes) -> list[float]:
    """When the events in a frame happened, in seconds since the epoch."""
    message = protocol.read_message(frame)
    assert isinstance(message, protocol.Message)
    event = protocol.agent_event(message)
    if isinstance(event, protocol.ResultBatch):
        return [row["time"] for row in msgspec.json.decode(event.rows)]
    assert isinstance(event, protocol.ResultRow)
    when = broker_json.cells(event.columns)[0]
    assert isinstance(when, float)
    return [when]


async def measure(package: str, schedule: float, seconds: float) -> tuple[int, int, list[float]]:
    """Events made, events that arrived, and how long each took in milliseconds, in ascending order."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        generator = load_generator(directory)
        zeek = Zeek(PACKAGES[package])
        await zeek.start()
        async with agent(directory, f"--zeek=ws://127.0.0.1:{zeek.port}"):
            await zeek.joined()
            event = protocol.ROWS if zeek.features else "Benchmark::row"
            query = Query(SQL.format(load=generator), event, schedule, Subscription.EVENTS)
            await zeek.install("latency", query)
            await asyncio.sleep(2)
            command = [generator, "exec", str(int(RATE * seconds)), str(RATE), generator, "nothing"]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
            await zeek.quiet()
        await zeek.stop()
    epoch = time.time() - time.perf_counter()
    taken = [
        (arrived + epoch - stamp) * 1000 for arrived, frame in zeek.frames_of("latency") for stamp in stamps(frame)
    ]
    return 2 * len(done.stdout.splitlines()), len(taken), sorted(taken)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--schedules", default="0.25,0.05")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench_latency: needs root")
        return
    table = Table(title="event in the kernel → WebSocket frame, ms")
    for heading in ("schedule, ms", "package", "events", "arrived", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="right")
    for schedule in map(float, options.schedules.split(",")):
        for package in PACKAGES:
            made, arrived, taken = await measure(package, schedule, options.seconds)
            cuts = statistics.quantiles(taken, n=100)
            figures = (cuts[49], cuts[89], cuts[98], taken[-1])
            table.add_row(f"{schedule * 1000:g}", package, str(made), str(arrived), *(f"{one:.0f}" for one in figures))
    Console(width=100).print(table)


if __name__ == "__main__":
    asyncio.run(main())
