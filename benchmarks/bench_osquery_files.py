"""osquery's tables of files in a running agent, over a tree of 100,000 files that it makes: time, CPU time and memory.

Time is from the statement to its last row, as a client of the control socket receives it; CPU time and the peak of
resident memory are the snapshot worker's. Prints one table: the median and the best of some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rig import agent, ask

STATEMENTS: Final = (
    "SELECT path, size FROM file WHERE path LIKE '{tree}/%%'",
    "SELECT * FROM file WHERE path LIKE '{tree}/%%'",
    "SELECT count(*) FROM file WHERE path LIKE '{tree}/%%' AND filename = 'file7.txt'",
    "SELECT path, size FROM file WHERE path LIKE '{tree}/7/%/file7%'",
    "SELECT path, size FROM file WHERE directory = '{tree}/7/7'",
    "SELECT path, sha256 FROM hash WHERE path LIKE '{tree}/7/%%'",
    "SELECT DISTINCT h.path, h.sha256 FROM processes p JOIN hash h ON h.path = p.exe",
    "SELECT path, mime_type FROM magic WHERE path LIKE '/usr/bin/b%'",
    "SELECT * FROM extended_attributes WHERE path LIKE '/usr/bin/%'",
    "SELECT * FROM mounts",
    "SELECT * FROM suid_bin WHERE path IN ('/usr/bin/su', '/usr/sbin/x')",
    "SELECT * FROM block_devices",
    "SELECT * FROM disk_encryption",
    "SELECT * FROM system_controls",
    "SELECT * FROM shared_memory",
)
WORKER: Final = "SELECT sum(cpu), max(peak_bytes) FROM zeek_agent_workers WHERE class = 'snapshots'"


def make_tree(tree: Path, files: int) -> None:
    """Directories of directories with 100 files each."""
    for number in range(files // 100):
        directory = tree / str(number // 50) / str(number % 50)
        directory.mkdir(parents=True)
        for name in range(100):
            (directory / f"file{name}.txt").write_bytes(b"x" * name)


async def measure(directory: Path, sql: str, rounds: int) -> tuple[int, list[float], list[float], float]:
    """Rows, seconds, seconds of CPU time and megabytes of an agent of its own."""
    times, cpu, rows = [], [], 0
    settings = ("sources.processes=off", "sources.sockets=off", "limits.time=100")
    async with agent(directory, *(part for setting in settings for part in ("--set", setting))):
        await asyncio.to_thread(ask, directory, "SELECT 1 FROM processes LIMIT 1")
        before, _ = (await asyncio.to_thread(ask, directory, WORKER))[0]
        for _ in range(rounds):
            begun = time.perf_counter()
            rows = len(await asyncio.to_thread(ask, directory, sql))
            times.append(time.perf_counter() - begun)
            after, peak = (await asyncio.to_thread(ask, directory, WORKER))[0]
            cpu.append(after - before)
            before = after
    return rows, times, cpu, peak / 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to make the tree; by default the temporary directory")
    arguments = parser.parse_args()
    table = Table(title=f"osquery's tables of files, {arguments.files:,} files, {arguments.rounds} rounds")
    for heading in ("statement", "rows", "time, ms", "best", "CPU, ms", "best", "peak, MB"):
        table.add_column(heading, justify="left" if heading == "statement" else "right")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        tree = Path(scratch, "tree")
        make_tree(tree, arguments.files)
        for number, statement in enumerate(STATEMENTS):
            directory = Path(scratch, str(number))
            directory.mkdir()
            sql = statement.format(tree=tree)
            rows, times, cpu, peak = await measure(directory, sql, arguments.rounds)
            figures = [f"{1e3 * pick(of):,.0f}" for of in (times, cpu) for pick in (statistics.median, min)]
            table.add_row(statement.format(tree="…"), f"{rows:,}", *figures, f"{peak:,.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    asyncio.run(main())
