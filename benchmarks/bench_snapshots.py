"""`processes` and `sockets` over the WebSocket: from the install of a query to the arrival of its first and last row.

The program runs as it is started, with 400 processes that hold 10,000 sockets (by default). "stock" is a Zeek with the
stock package (one event a row), "batches" one with ours. Prints one table: medians and best of some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rig import Zeek, agent, crowd

from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol

STATEMENTS: Final = {"sockets": "SELECT * FROM sockets", "processes": "SELECT * FROM processes"}
PACKAGES: Final = {"stock": frozenset[str](), "batches": frozenset({protocol.BATCHES})}


def rows_of(frames: list[bytes]) -> int:
    """Rows in the frames of an answer."""
    number = 0
    for frame in frames:
        message = protocol.read_message(frame)
        assert isinstance(message, protocol.Message)
        event = protocol.agent_event(message)
        if isinstance(event, protocol.ResultBatch):
            number += len(msgspec.json.decode(event.rows))
        elif isinstance(event, protocol.ResultRow):
            number += 1
    return number


async def answer(zeek: Zeek, query_id: str, sql: str) -> tuple[float, float, int]:
    """Milliseconds from install to the first and the last row, and how many rows."""
    zeek.frames.clear()
    begun = await zeek.install(query_id, Query(sql, protocol.ROWS if zeek.features else "Benchmark::row"))
    await zeek.answered(query_id)
    came = zeek.frames_of(query_id)
    first, last = came[0][0], came[-1][0]
    return (first - begun) * 1000, (last - begun) * 1000, rows_of([frame for _, frame in came])


async def measure(package: str, rounds: int, table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory:
        zeek = Zeek(PACKAGES[package])
        await zeek.start()
        async with agent(Path(directory), f"--zeek=ws://127.0.0.1:{zeek.port}") as running:
            await zeek.joined()
            await zeek.quiet()
            idle = running.resident
            for name, sql in STATEMENTS.items():
                taken = [await answer(zeek, f"{name}_{number}", sql) for number in range(rounds)]
                firsts, lasts, rows = zip(*taken, strict=True)
                table.add_row(
                    f"{sql}, {package}",
                    f"{statistics.median(rows):,.0f}",
                    f"{statistics.median(firsts):.0f} ({min(firsts):.0f})",
                    f"{statistics.median(lasts):.0f} ({min(lasts):.0f})",
                    f"{idle:.0f} → {running.resident:.0f}",
                )
        await zeek.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=400)
    parser.add_argument("--sockets", type=int, default=25, help="sockets of each process")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.processes} processes with {arguments.sockets} sockets each, over the WebSocket")
    table.add_column("statement, package")
    for heading in ("rows", "first row, ms (best)", "last row, ms (best)", "resident MB"):
        table.add_column(heading, justify="right")
    with crowd(arguments.processes, arguments.sockets):
        for package in PACKAGES:
            await measure(package, arguments.rounds, table)
    Console(width=110).print(table)


if __name__ == "__main__":
    asyncio.run(main())
