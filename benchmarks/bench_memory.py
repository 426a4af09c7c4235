"""Resident memory of the program while it records and delivers hundreds of thousands of events.

    python benchmarks/bench_memory.py [--rounds 12]

Each round runs 5,000 processes that make a connection each, 1,000 a second; two event queries deliver all rows every
250 ms to a Zeek with our package. The last column is how much more memory a thousand of the kernel's records took
since the end of warm-up. Needs root and a C compiler. Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rig import Zeek, accepting, agent, ask, load_generator

from zeek_agent.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol

PROCESSES: Final = 5_000
RATE: Final = 1_000
WARM_UP: Final = 5
"""Rounds: by then the cache of exited processes (20,000) and SQLite's page caches hold all that they may."""
RECEIVED: Final = "SELECT sum(received) FROM zeek_agent_sources WHERE active"
SETTINGS: Final = ("events.retention_bytes=33554432",)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds: int = parser.parse_args().rounds
    if os.geteuid() != 0:
        print("bench_memory: needs root")
        return
    table = Table(title="records of the kernel, and what the program holds")
    for heading in ("events", "resident MB", "descriptors", "threads", "KB per 1,000 events"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as place, accepting() as port:
        directory = Path(place)
        generator = load_generator(directory)
        arguments = [part for setting in SETTINGS for part in ("--set", setting)]
        zeek = Zeek(frozenset({protocol.BATCHES}))
        await zeek.start()
        async with agent(directory, f"--zeek=ws://127.0.0.1:{zeek.port}", *arguments) as running:
            await zeek.joined()
            for name in ("processes_events", "sockets_events"):
                query = Query(f"SELECT * FROM {name}", protocol.ROWS, 0.25, Subscription.EVENTS)
                await zeek.install(name, query)
            await asyncio.sleep(5)
            base = (0, 0.0)
            for number in range(rounds + 1):
                received, resident = int(ask(directory, RECEIVED)[0][0]), running.resident
                if number == WARM_UP:
                    base = received, resident
                slope = f"{(resident - base[1]) * 1024 / (received - base[0]) * 1000:.2f}" if number > WARM_UP else ""
                table.add_row(f"{received:,}", f"{resident:.2f}", str(running.descriptors), str(running.threads), slope)
                command = [generator, "exec", str(PROCESSES), str(RATE), generator, "tcp", "127.0.0.1", str(port)]
                await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
                await asyncio.sleep(1)
                zeek.frames.clear()
        await zeek.stop()
    Console(width=100).print(table)


if __name__ == "__main__":
    asyncio.run(main())
