"""Resident memory of the program while it records and delivers hundreds of thousands of events.

    python benchmarks/bench_memory.py [--rounds 12] [--rate 1000] [--pack]

Each round runs 5,000 processes that make a connection each, `--rate` a second (0: as fast as it goes). Two event
queries deliver all rows every 250 ms to a Zeek with our package; with `--pack` it is the default pack and the embedded
collector instead. The last column is how much more memory a thousand of the kernel's records took since the end of
warm-up. Needs root and a C compiler. Prints a line a round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rig import Agent, Zeek, accepting, agent, ask, load_generator

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol

PROCESSES: Final = 5_000
RATE: Final = 1_000
WARM_UP: Final = 5
"""Rounds: by then the cache of exited processes (20,000) and SQLite's page caches hold all that they may."""
RECEIVED: Final = "SELECT sum(received) FROM zeek_agent_sources WHERE active"
LINE: Final = "{:>10} {:>12} {:>8} {:>8} {:>12} {:>8} {:>21}"
SETTINGS: Final = ("events.retention_bytes=33554432",)


@asynccontextmanager
async def watched(directory: Path, pack: bool) -> AsyncIterator[tuple[Agent, Callable[[], None]]]:
    """The agent and what forgets the frames that were delivered."""
    arguments = [part for setting in SETTINGS for part in ("--set", setting)]
    if pack:
        async with agent(directory, *arguments) as running:
            yield running, lambda: None
        return
    zeek = Zeek(frozenset({protocol.BATCHES}))
    await zeek.start()
    async with agent(directory, f"--zeek=ws://127.0.0.1:{zeek.port}", *arguments) as running:
        await zeek.joined()
        for name in ("processes_events", "sockets_events"):
            await zeek.install(name, Query(f"SELECT * FROM {name}", protocol.ROWS, 0.25, Subscription.EVENTS))
        yield running, zeek.frames.clear
    await zeek.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench_memory: needs root")
        return
    print(
        LINE.format("records", "resident MB", "heap MB", "files MB", "descriptors", "threads", "KB per 1,000 records")
    )
    with tempfile.TemporaryDirectory() as place, accepting() as port:
        directory = Path(place)
        generator = load_generator(directory)
        command = [generator, "exec", str(PROCESSES), str(options.rate), generator, "tcp", "127.0.0.1", str(port)]
        async with watched(directory, options.pack) as (running, forget):
            await asyncio.sleep(5)
            base = (0, 0.0)
            for number in range(options.rounds + 1):
                received, resident = int(ask(directory, RECEIVED)[0][0]), running.resident
                if number == WARM_UP:
                    base = received, resident
                slope = f"{(resident - base[1]) * 1024 / (received - base[0]) * 1000:.2f}" if number > WARM_UP else ""
                heap, files = running.memory("RssAnon"), running.memory("RssFile") + running.memory("RssShmem")
                cells = (f"{received:,}", f"{resident:.2f}", f"{heap:.2f}", f"{files:.2f}")
                print(LINE.format(*cells, running.descriptors, running.threads, slope), flush=True)
                await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
                await asyncio.sleep(1)
                forget()


if __name__ == "__main__":
    asyncio.run(main())
