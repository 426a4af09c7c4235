"""Statements that read recorded events together with the host, in a snapshot worker: CPU time and duration.

Run as `python benchmarks/bench_mixed.py [--rows 100000] [--rounds 5]`. The store has that many processes_events.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.containment.accounts import worker_account
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.messages import Need, Setup
from zeek_agent.errors import SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Row
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.events import processes_events

JOIN = "SELECT p.pid, e.exe, e.cmdline FROM processes AS p JOIN processes_events AS e ON e.pid = p.pid"
WINDOW = 20
STATEMENTS = [
    ("processes JOIN events by pid", JOIN, None),
    ("the same, last 5 s", f"{JOIN} WHERE e.time > unixepoch() - 5", None),
    ("the same, a window of 20 rows", f"{JOIN} -- planned apart", {"processes_events": (1_000, 1_000 + WINDOW)}),
    (
        "EXISTS by pid",
        "SELECT pid FROM processes AS p WHERE EXISTS (SELECT 1 FROM processes_events AS e WHERE e.pid = p.pid)",
        None,
    ),
    (
        "events whose process is gone",
        "SELECT count(*) FROM processes_events AS e WHERE NOT EXISTS (SELECT 1 FROM processes WHERE pid = e.pid)",
        None,
    ),
    ("events by pid IN (processes)", "SELECT * FROM processes_events WHERE pid IN (SELECT pid FROM processes)", None),
    ("count(*) of each", "SELECT (SELECT count(*) FROM processes), (SELECT count(*) FROM processes_events)", None),
    ("all columns of all events", "SELECT * FROM processes_events WHERE EXISTS (SELECT 1 FROM processes)", None),
]


def recorded(number: int) -> list[Row]:
    names = [column.name for column in processes_events.recorded]
    begin, rows = time.time() - number / 1_000, []
    for n in range(number):
        cells = dict.fromkeys(names) | {
            "time": begin + n / 1_000,
            "name": "python3",
            "pid": n % 3_000,
            "ppid": 1,
            "uid": 0,
            "state": "started",
            "exe": "/usr/bin/python3.11",
            "cmdline": f"python3 -m thing {n}",
            "entity_id": f"H-{n % 3_000}-{n}",
        }
        rows.append(tuple(cells[name] for name in names))
    return rows


async def refuse(need: Need) -> tuple[bytes, Sequence[int]]:
    raise SqlError(f"no {need.what} here")


def database(directory: Path, store: EventStore) -> ContainedDatabase:
    config = Config(limits=LimitSettings(time=60.0, cpu=100.0))
    account = worker_account() if os.geteuid() == 0 else None
    setup = Setup(msgspec.msgpack.encode(config), (str(directory),), "H1", "I1", "here", 0.0, account)
    context = TableContext(agent=None, access=AccessPolicy(config.access))  # type: ignore[arg-type]
    return ContainedDatabase(
        builtin_tables(), context, config.limits, store, setup=setup, need=refuse, directory=directory
    )


def cpu_seconds(db: ContainedDatabase) -> float:
    """CPU time of the workers, from /proc/PID/schedstat because clock ticks are too coarse."""
    return sum(int(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0]) for worker in db.pool.processes) / 1e9


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table("statement", title=f"{arguments.rows} recorded events, median of {arguments.rounds} rounds")
    for heading in ("rows", "CPU ms", "ms"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        store = EventStore(Path(directory, "events.db"), builtin_tables(), EventSettings(queue_rows=arguments.rows))
        store.append("processes_events", recorded(arguments.rows))
        store.flush(60)
        db = database(Path(directory), store)
        for name, sql, window in STATEMENTS:
            await db.query(sql, window=window)
            used, taken = [], []
            for _ in range(arguments.rounds):
                before, begun = cpu_seconds(db), time.perf_counter()
                result = await db.query(sql, window=window)
                taken.append(time.perf_counter() - begun)
                used.append(cpu_seconds(db) - before)
            medians = (f"{statistics.median(values) * 1_000:.1f}" for values in (used, taken))
            table.add_row(name, f"{len(result.rows):,}", *medians)
        await db.aclose()
        store.close()
    Console(width=90).print(table)


if __name__ == "__main__":
    asyncio.run(main())
