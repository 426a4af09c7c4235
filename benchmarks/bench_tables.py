"""`processes` and `sockets`: how long a scan takes, alone and through the database, beside psutil, ps and ss.

Starts processes that hold sockets (by default 400 with 25 each, half of them TCP listeners and half UDP), and asks for
all columns that version 2 had, and for all columns; by /proc and, as root, by BPF iterators as the agent does while it
runs. Prints one table: best and median of some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import Callable

import psutil
from rig import crowd

from zeek_agent.bpf import iterators
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.schema import Row, Value
from zeek_agent.table import Constraints, Table, TableContext
from zeek_agent.tables.processes import processes
from zeek_agent.tables.sockets import listening_ports, sockets

PS_COLUMNS = "comm,pid,ppid,euid,egid,ruid,rgid,vsz,rss,times,args"
PAUSE = 0.2
"""Seconds between rounds: more than the moment in which statements share a scan."""


class NoAgent:
    """These tables ask nothing of the agent."""

    id = instance = hostname = ""
    pid = os.getpid()

    def uptime(self) -> float:
        return 0.0

    def tables(self) -> tuple[Table, ...]:
        return (processes, sockets, listening_ports)

    def nothing(self) -> tuple[Row, ...]:
        return ()

    connections = queries = sources = gaps = log = config = nothing

    def recorded(self, *_: object) -> tuple[tuple[Value, ...], ...]:
        return ()


def timed(work: Callable[[], int], rounds: int) -> tuple[float, float, int]:
    """Best and median milliseconds, and the number of rows."""
    took = []
    rows = 0
    for _ in range(rounds):
        time.sleep(PAUSE)
        begun = time.perf_counter()
        rows = work()
        took.append((time.perf_counter() - begun) * 1000)
    return min(took), statistics.median(took), rows


def scan(table: Table, columns: frozenset[str]) -> int:
    return sum(1 for _ in table.rows(Constraints(TableContext(NoAgent()), columns=columns)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=400)
    parser.add_argument("--sockets", type=int, default=25, help="sockets of each process")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    loop = asyncio.new_event_loop()
    print(f"{'what':<54} {'rows':>7} {'best ms':>8} {'median ms':>10}")

    def report(what: str, work: Callable[[], int]) -> None:
        best, median, rows = timed(work, arguments.rounds)
        print(f"{what:<54} {rows:>7} {best:>8.1f} {median:>10.1f}")

    with crowd(arguments.processes, arguments.sockets):
        database = Database(NoAgent().tables(), TableContext(NoAgent()), LimitSettings())

        def query(sql: str, profile: Profile) -> int:
            return len(loop.run_until_complete(database.query(sql, profile=profile)).rows)

        for way in ("/proc", "iterators"):
            if way == "iterators":
                iterators.load_iterators()
                if iterators.loaded_iterators() is None:
                    print(f"no iterators: {iterators.why_no_iterators()}")
                    break
            for table in (processes, sockets):
                v2 = frozenset(column.name for column in table.columns if not column.added)
                every = frozenset(column.name for column in table.columns)
                report(f"{table.name}, {way}, columns of v2", lambda table=table, v2=v2: scan(table, v2))
                report(f"{table.name}, {way}, all columns", lambda table=table, every=every: scan(table, every))
                statement = f"SELECT * FROM {table.name}"
                report(f"{statement}, {way}, columns of v2", lambda sql=statement: query(sql, Profile.STOCK))
                report(f"{statement}, {way}, all columns", lambda sql=statement: query(sql, Profile.FULL))
            ports = frozenset({"pid", "port", "process"})
            report(f"listening_ports, {way}", lambda ports=ports: scan(listening_ports, ports))
        report("psutil, processes, 7 attributes", psutil_processes)
        report("ps -e, 11 columns", lambda: lines("ps", "-eo", PS_COLUMNS))
        report("psutil, net_connections", lambda: len(psutil.net_connections("inet")))
        report("ss -tuanp", lambda: lines("ss", "-tuanpH"))
        loop.run_until_complete(database.aclose())
    loop.close()


def lines(*command: str) -> int:
    """Lines that a program prints."""
    return subprocess.run(command, capture_output=True, check=True).stdout.count(b"\n")


def psutil_processes() -> int:
    attributes = ["pid", "ppid", "name", "uids", "gids", "memory_info", "cpu_times"]
    return len([process.info for process in psutil.process_iter(attributes)])


if __name__ == "__main__":
    main()
