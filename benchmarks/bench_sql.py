"""What a row costs on its way through SQL: virtual tables and the event store, to the typed result.

Run as `python benchmarks/bench_sql.py [ROWS]`.
The rows are made beforehand, so the cost of the table itself is not in it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from zeek_agent.config.sections import EventSettings
from zeek_agent.database.database import Database, Lane, Profile
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table, TableContext

ROUNDS = 5
COLUMNS = [
    *((name, "count") for name in ("pid", "ppid", "uid", "gid", "vsize", "rsize")),
    *((name, "text") for name in ("name", "exe", "state")),
    ("startup", "time"),
]
STATEMENTS = [
    ("virtual table", "SELECT * FROM t", Profile.FULL),
    ("virtual table", "SELECT pid, name, exe FROM t", Profile.FULL),
    ("virtual table", "SELECT count(*) FROM t", Profile.FULL),
    ("virtual table", "SELECT pid FROM t WHERE name = 'bash'", Profile.FULL),
    ("virtual table", "SELECT uid, count(*) FROM t GROUP BY uid", Profile.FULL),
    ("virtual table", "SELECT count(*) FROM t JOIN u USING (pid)", Profile.FULL),
    ("view of the store", "SELECT * FROM e", Profile.FULL),
    ("view of the store", "SELECT count(*) FROM e", Profile.FULL),
    ("store, stock profile", "SELECT * FROM e", Profile.STOCK),
]


def declared(name: str, rows: list[Row] | None = None) -> Table:
    table = Table(
        name,
        "rows",
        description="Rows.",
        columns=[Column(column, kind, "a column") for column, kind in COLUMNS],
        kind="events" if rows is None else "snapshot",
    )

    def scan(wanted: Constraints) -> list[Row]:
        return rows or []

    table.snapshot(scan)
    return table


def made(number: int) -> list[Row]:
    return [
        (n, n // 2, n % 7, 100, 50_000_000, 4_000_000, "python3", "/usr/bin/python3.11", "S", 1_795_489_155.5 + n)
        for n in range(number)
    ]


async def cost(db: Database, sql: str, profile: Profile) -> float:
    """Median seconds of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = await db.query(sql, profile=profile, lane=Lane.LOCAL)
        taken.append(time.perf_counter() - started)
        assert not result.errors
    return statistics.median(taken)


async def main(number: int) -> None:
    rows, events = made(number), declared("e")
    with tempfile.TemporaryDirectory() as directory:
        store = EventStore(Path(directory, "events.sqlite"), [events], EventSettings(queue_rows=number))
        store.append("e", rows)
        store.flush()
        tables = [declared("t", rows), declared("u", rows), events]
        db = Database(tables, TableContext(agent=None), store=store)  # type: ignore[arg-type]
        printed = Printed("from", "statement", "ns/row", title=f"{number} rows of {len(COLUMNS)} columns")
        for source, sql, profile in STATEMENTS:
            printed.add_row(source, sql, f"{await cost(db, sql, profile) / number * 1e9:.0f}")
        await db.aclose()
        store.close()
    Console().print(printed)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40_000))
