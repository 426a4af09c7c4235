"""`process_tree` over many recorded events, as in a worker: duration and CPU time.

Run as `python benchmarks/bench_process_tree.py [--rows 250000] [--children 50000] [--rounds 10]`. With
`--other DIRECTORY`, the source tree of another version, its runs alternate with this one's, over the same store.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, RowList, SqlConnection
from zeek_agent.events.store import EventStore
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.events import processes_events
from zeek_agent.worker.agent_proxy import AgentProxy

DEPTH = 20
"""Generations of the deep tree, in each of which are a few processes."""
WIDTH = 3
PREFIX = "H6sCElvPqe0P8W73ADijZGY"
STATEMENTS = {
    f"a tree of {DEPTH} generations": f"{PREFIX}-100001-0",
    "a process with many children": f"{PREFIX}-200000-0",
    "a tree of 10,000 processes": f"{PREFIX}-300001-0",
}


def record(file: Path, number: int, children: int) -> None:
    """A store with that many rows: a start and a stop of each process."""
    names = [column.name for column in processes_events.recorded]
    edges: list[tuple[int, int]] = [(200_000 + n, 200_000) for n in range(1, children + 1)]
    for generation in range(DEPTH):
        edges += [(100_001 + generation * WIDTH + n, 100_001 + (generation - 1) * WIDTH) for n in range(WIDTH)]
    edges += [(300_000 + n, 300_000 + n // 100) for n in range(1, number // 2 - len(edges) + 1)]
    store = EventStore(file, builtin_tables(), EventSettings(queue_rows=number, retention_bytes=1 << 31))
    began = time.time() - number / 1_000
    rows = []
    for n, (pid, parent) in enumerate(sorted(edges, key=lambda edge: edge[0] % 100_000)):  # parents come first
        for state in ("started", "stopped"):
            cells = dict.fromkeys(names) | {
                "time": began + n / 500,
                "name": "python3",
                "pid": pid,
                "ppid": parent,
                "uid": 0,
                "duration": 0.5,
                "state": state,
                "exe": "/usr/bin/python3.11",
                "cmdline": f"python3 -m thing --number {n}",
                "entity_id": f"{PREFIX}-{pid}-0",
                "parent_entity_id": f"{PREFIX}-{parent}-0",
                "parent_name": "bash",
                "parent_exe": "/usr/bin/bash",
            }
            rows.append(tuple(cells[name] for name in names))
    store.append("processes_events", rows)
    assert store.flush(120)
    store.close()


def measure(file: Path) -> dict[str, Any]:
    """Rows, seconds and CPU seconds of each statement, in this process."""
    uri = f"file:{file}?mode=ro"
    agent = AgentProxy.__new__(AgentProxy)
    agent._store_uri = uri  # noqa: SLF001 - only what `recorded` uses
    agent._ask = lambda what, which: (b"", [])  # type: ignore[method-assign,assignment]  # noqa: SLF001
    limits = LimitSettings(time=600.0)
    connection = SqlConnection(
        Catalog.of(1, builtin_tables()), Profile.FULL, context=TableContext(agent), limits=limits, scans=SharedScans()
    )
    results = {}
    for name, entity in [("", f"{PREFIX}-1-0"), *STATEMENTS.items()]:  # the first one loads modules and the page cache
        run, rows = Run(limits), RowList()
        run.start(memory_ceiling=1 << 40)
        began, used = time.perf_counter(), time.process_time()
        try:
            connection.stream(f"SELECT * FROM process_tree WHERE _entity_id = '{entity}'", run, rows)
            count: int | str = len(rows.rows)
        except Exception as error:  # noqa: BLE001 - an older version refuses many children
            count = str(error)
        results[name] = count, time.perf_counter() - began, time.process_time() - used
    del results[""]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--children", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--other", type=Path, help="source tree of another version")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        json.dump(measure(arguments.measure), sys.stdout)
        return
    here = Path(__file__).resolve().parents[1]
    found: dict[tuple[str, str], list[tuple[Any, float, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "events.db")
        record(file, arguments.rows, arguments.children)
        for _ in range(arguments.rounds):
            for version in filter(None, (here, arguments.other)):
                command = [sys.executable, __file__, "--measure", str(file)]
                environment = {"PYTHONPATH": str(version / "src"), "PATH": "/usr/bin:/bin"}
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                for name, result in json.loads(done.stdout).items():
                    found.setdefault((name, version.name), []).append(tuple(result))
    for (name, version), results in found.items():
        seconds = sorted(result[1] for result in results)
        used = statistics.median(result[2] for result in results)
        median = statistics.median(seconds)
        shown = f"median {median:.3f} s, worst {seconds[-1]:.3f} s, CPU {used:.3f} s"
        print(f"{name:32} {version:12} rows {results[0][0]}: {shown}")


if __name__ == "__main__":
    main()
