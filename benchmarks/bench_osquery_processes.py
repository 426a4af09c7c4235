"""osquery's tables of processes by SQL: 500 processes with 10 open files each (by default), in this process.

For comparison `processes`, the agent's own table. Prints one table: median and best CPU time and time of some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Final

from rich.console import Console
from rich.table import Table
from rig import crowd

from zeek_agent.access import AccessPolicy
from zeek_agent.bpf import iterators
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

STATEMENTS: Final = (
    "SELECT * FROM processes",
    "SELECT * FROM osquery_processes",
    "SELECT pid, name, path FROM osquery_processes WHERE on_disk = 0",
    "SELECT * FROM process_open_files",
    "SELECT p.name, f.path FROM osquery_processes AS p JOIN process_open_files AS f USING (pid) WHERE p.pid = 1",
    "SELECT * FROM process_open_pipes",
    "SELECT * FROM process_namespaces",
    "SELECT * FROM process_envs",
    "SELECT path FROM process_memory_map",
    "SELECT * FROM process_open_sockets",
    "SELECT * FROM osquery_listening_ports",
)


async def measure(database: Database, rounds: int, table: Table) -> None:
    taken: dict[str, list[tuple[float, float]]] = {}
    rows: dict[str, int] = {}
    for _ in range(rounds):  # interleaved, since the machine may be faster at times
        for sql in STATEMENTS:
            begun, cpu = time.perf_counter(), time.process_time()
            rows[sql] = len((await database.query(sql)).rows)
            taken.setdefault(sql, []).append((time.process_time() - cpu, time.perf_counter() - begun))
    for sql, times in taken.items():
        figures = (f"{statistics.median(one) * 1000:.0f} ({min(one) * 1000:.0f})" for one in zip(*times, strict=True))
        table.add_row(sql, f"{rows[sql]:,}", *figures)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=500)
    parser.add_argument("--files", type=int, default=10, help="open files of each process")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    iterators.load_iterators()
    table = Table(title=f"{arguments.processes} processes with {arguments.files} open files each")
    for heading in ("statement", "rows", "CPU time, ms", "time, ms"):
        table.add_column(heading)
    access = AccessPolicy(AccessSettings(secrets_deny=()))
    limits = LimitSettings(rows=1_000_000, memory_bytes=1 << 30, time=60.0)
    with crowd(arguments.processes, files_each=arguments.files):
        database = Database(builtin_tables(), TableContext(NoAgent(), access), limits)
        try:
            await measure(database, arguments.rounds, table)
        finally:
            await database.aclose()
    Console(width=160).print(table)


if __name__ == "__main__":
    asyncio.run(main())
