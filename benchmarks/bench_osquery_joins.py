"""Statements that join osquery's tables with the agent's: questions, rows, and time, also against another tree.

    bench_osquery_joins.py [--against CHECKOUT] [--pairs 15] [--service 1.0]

The server is the tests' osquery in a process of its own, which takes `--service` milliseconds more for each question.
CPU is the agent's: SQL, protocol and decoding. With `--against`, each round runs a process of either tree, one after
the other, and ratios are taken pair by pair: their median and its 95 % interval. Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench_files import interval
from rich.console import Console
from rich.table import Table

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings, OsquerySettings
from zeek_agent.database.database import Database, Lane
from zeek_agent.osquery.bridge import Bridge
from zeek_agent.schema import Column
from zeek_agent.table import Table as AgentTable
from zeek_agent.table import TableContext

ROOT: Final = Path(__file__).parent.parent
PROCESSES: Final = 500
EXECUTABLES: Final = 150
USERS: Final = 50
SOCKETS: Final = 10_000

STATEMENTS: Final = {
    "a constant": "SELECT path FROM osquery_processes WHERE pid = 7",
    "IN a list": "SELECT path FROM osquery_processes WHERE pid IN (7, 8, 9)",
    "IN of 500": "SELECT path FROM osquery_processes WHERE pid IN (SELECT pid FROM processes)",
    "join, 1 value": "SELECT s.port FROM processes p JOIN process_open_sockets s ON s.pid = p.pid WHERE p.name = 'p7'",
    "join, 3 values": (
        "SELECT s.port FROM processes p JOIN process_open_sockets s ON s.pid = p.pid WHERE p.name IN ('p7', 'p8', 'p9')"
    ),
    "join, 15 values": (
        "SELECT s.port FROM processes p JOIN process_open_sockets s ON s.pid = p.pid WHERE p.name LIKE 'p10_' "
        "OR p.name IN ('p7', 'p8', 'p9', 'p20', 'p30')"
    ),
    "join, 50 values of 50": "SELECT u.username FROM processes p JOIN osquery_users u ON u.uid = p.uid",
    "join, 500 values of 10,000": "SELECT s.port FROM processes p JOIN process_open_sockets s ON s.pid = p.pid",
    "join of two of osquery": (
        "SELECT o.path, s.port FROM osquery_processes o JOIN process_open_sockets s ON s.pid = o.pid"
    ),
    "parents, recursive": (
        "WITH RECURSIVE up(pid) AS (SELECT 499 UNION SELECT o.parent FROM up JOIN osquery_processes o USING (pid)) "
        "SELECT count(*) FROM up"
    ),
    "required, IN a list": "SELECT size FROM file WHERE path IN ('/bin/1', '/bin/2', '/bin/3')",
    "required, 1 value": "SELECT h.sha256 FROM processes p JOIN hash h ON h.path = p.exe WHERE p.pid = 7",
    "required, 150 values": "SELECT p.pid, h.sha256 FROM processes p JOIN hash h ON h.path = p.exe",
    "required, a chain": (
        "SELECT p.pid, h.sha256 FROM processes p JOIN file f ON f.path = p.exe JOIN hash h ON h.path = f.path"
    ),
    "tables of 50 users": ("SELECT u.username, k.key FROM osquery_users u JOIN authorized_keys k ON k.uid = u.uid"),
}


def serve(path: str, service: float) -> None:
    """Be an osquery until killed."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from osqueryd import FakeTable, Osqueryd  # noqa: PLC0415 - only the server needs the tests' osquery

    def among(rows: Mapping[Any, list[tuple[Any, ...]]], column: str, *, default: Any = None) -> Any:
        """Rows by the values of a column, which the table uses as osquery's use an index."""

        def generate(given: Mapping[str, set[Any]]) -> list[tuple[Any, ...]]:
            keys = given.get(column, rows.keys() if default is None else default)
            return [row for key in keys for row in rows.get(key, ())]

        return generate

    processes = {n: [(n, f"p{n}", f"/bin/{n % EXECUTABLES}", n % USERS, n // 2)] for n in range(PROCESSES)}
    each = SOCKETS // PROCESSES
    sockets = {n: [(n, s, "10.0.0.1", "192.0.2.1", 1024 + s) for s in range(each)] for n in range(PROCESSES)}
    texts = [f"/bin/{n}" for n in range(EXECUTABLES)]
    number, text = "BIGINT", "TEXT"
    tables = {
        "processes": FakeTable(
            {"pid": number, "name": text, "path": text, "uid": number, "parent": number}, among(processes, "pid")
        ),
        "process_open_sockets": FakeTable(
            {"pid": number, "fd": number, "local_address": text, "remote_address": text, "port": number},
            among(sockets, "pid"),
        ),
        "users": FakeTable({"uid": number, "username": text}, [(n, f"user{n}") for n in range(USERS)]),
        "file": FakeTable(
            {"path": text, "directory": text, "size": number},
            among({name: [(name, "/bin", len(name))] for name in texts}, "path", default=()),
        ),
        "hash": FakeTable(
            {"path": text, "directory": text, "sha256": text},
            among({name: [(name, "/bin", name.rjust(64, "0"))] for name in texts}, "path", default=()),
        ),
        "authorized_keys": FakeTable(
            {"uid": number, "key": text}, among({n: [(n, f"key {n}")] for n in range(USERS)}, "uid", default=(0,))
        ),
    }
    osquery = Osqueryd(Path(path), tables)
    osquery.delay = service / 1000
    osquery.start()
    while True:
        time.sleep(60)


def own_table() -> AgentTable:
    columns = {"pid": "int", "name": "text", "exe": "text", "uid": "int"}
    declared = [Column(name, kind, "a column") for name, kind in columns.items()]
    table = AgentTable("processes", "processes", description="Processes.", columns=declared)
    table.snapshot(lambda wanted: [(n, f"p{n}", f"/bin/{n % EXECUTABLES}", n % USERS) for n in range(PROCESSES)])
    return table


Figures = dict[str, dict[str, float]]


async def measure(path: str) -> Figures:
    """Questions, rows from osquery, CPU and wall time in milliseconds, and rows of each statement."""
    host = TableContext(agent=None, access=AccessPolicy())  # type: ignore[arg-type]  # no table here asks for it
    database = Database([own_table()], host, LimitSettings(time=60.0))
    bridge = Bridge(OsquerySettings(socket=path, time=60.0), database)
    await bridge.refresh()
    client = bridge.client
    found = {}
    for name, sql in STATEMENTS.items():
        await database.query(sql, lane=Lane.LOCAL)
        figures = []
        for _ in range(3):
            client.forget_answers()
            await asyncio.sleep(0.11)  # so that scans of the agent's own table are not shared either
            questions, rows = client.counters.sql, client.counters.rows
            cpu, wall = time.process_time(), time.perf_counter()
            result = await database.query(sql, lane=Lane.LOCAL)
            figures.append(
                {
                    "cpu": (time.process_time() - cpu) * 1000,
                    "wall": (time.perf_counter() - wall) * 1000,
                    "questions": client.counters.sql - questions,
                    "received": client.counters.rows - rows,
                    "rows": len(result.rows),
                }
            )
        found[name] = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
    await asyncio.to_thread(bridge.close)
    database.close()
    return found


def run(src: Path, path: str) -> Figures:
    """`measure` in a process of its own with the package below `src`."""
    command = [sys.executable, __file__, "--measure", path]
    environment = {**os.environ, "PYTHONPATH": str(src)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: Figures = json.loads(done.stdout)
    return found


def rounds(pairs: int, service: float, against: Path | None) -> tuple[list[Figures], list[Figures]]:
    """The figures of both trees, in alternating order."""
    here: list[Figures] = []
    there: list[Figures] = []
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "osquery.em")
        server = subprocess.Popen([sys.executable, __file__, "--serve", path, "--service", str(service)])
        try:
            while not Path(path).exists():
                time.sleep(0.05)
            for number in range(pairs):
                trees = [(ROOT, here), *([(against, there)] if against else [])]
                for tree, figures in trees if number % 2 else reversed(trees):
                    figures.append(run(tree / "src", path))
        finally:
            server.terminate()
            server.wait()
    return here, there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="checkout of the tree to compare with")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--service", type=float, default=1.0, help="milliseconds that osquery takes for a question")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.service)
    elif arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.measure))))
    else:
        report(*rounds(arguments.pairs, arguments.service, arguments.against), arguments)


def report(here: list[Figures], there: list[Figures], arguments: argparse.Namespace) -> None:
    title = f"osquery's tables in joins, medians of {arguments.pairs} runs, {arguments.service:g} ms for each question"
    table = Table("statement", title=title)
    headings = ["rows", "questions", "received", "CPU ms", "wall ms"]
    for heading in (*headings, *(("CPU ratio", "wall ratio") if there else ())):
        table.add_column(heading, justify="right")
    for name in STATEMENTS:
        cells = [name, f"{here[0][name]['rows']:,.0f}"]
        for key in ("questions", "received", "cpu", "wall"):
            form = "{:,.0f}" if key in ("questions", "received") else "{:,.1f}"
            medians = [statistics.median(one[name][key] for one in runs) for runs in (there, here) if runs]
            shown = [form.format(median) for median in medians]
            cells.append(" → ".join(shown if key in ("cpu", "wall") or len(set(shown)) > 1 else shown[:1]))
        for key in ("cpu", "wall") if there else ():
            ratios = [new[name][key] / old[name][key] for new, old in zip(here, there, strict=True)]
            low, high = interval(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})")
        if there and here[0][name]["rows"] != there[0][name]["rows"]:
            raise SystemExit(f"{name}: the trees give different rows")
        table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
