"""Rows from osquery through the bridge, and through the PyPI `osquery` client, in one run.

Run as `python benchmarks/bench_osquery.py`. The server is a process of its own that answers each call with the same
prepared bytes, so that only the clients are compared. CPU is user and system time of the asking process.

- bridge, SQL: `SELECT *` in the agent's database, to typed rows
- bridge, rows: the same without SQL: question, answer, typed cells
- osquery: `ExtensionManager.query` of the PyPI package, to its dictionaries of texts
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

from osquery import ExtensionClient
from rich.console import Console
from rich.table import Table

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings, OsquerySettings
from zeek_agent.database.database import Database
from zeek_agent.osquery.bridge import Bridge
from zeek_agent.table import Constraints, TableContext

SIZES = (1_000, 100_000)
ROUNDS = {1_000: 20, 100_000: 3}
COLUMNS = {
    "pid": "BIGINT",
    "name": "TEXT",
    "path": "TEXT",
    "cmdline_": "TEXT",
    "uid": "BIGINT",
    "gid": "BIGINT",
    "resident_size": "BIGINT",
    "start_time": "BIGINT",
    "parent": "BIGINT",
    "threads": "INTEGER",
    "load": "DOUBLE",
}
"""Eleven, like the first of osquery's table `processes`."""


def row(n: int, *, signed: bool) -> dict[str, str]:
    sign = "=" if signed else ""
    texts = {"name": "python3", "path": "/usr/bin/python3.11", "cmdline_": f"python3 -m http.server {8000 + n % 1000}"}
    numbers = (n, 1000, 1000, 12_345_678 + n, 1_795_489_155, 1, 4)
    cells = dict(zip((name for name, kind in COLUMNS.items() if "INT" in kind), map(str, numbers), strict=True))
    return cells | {name: sign + text for name, text in texts.items()} | {"load": "0.25"}


def text(value: str) -> bytes:
    return struct.pack(">i", len(value)) + value.encode()


def reply(method: str, rows: list[dict[str, str]]) -> bytes:
    """A complete answer with these rows, in Thrift's binary protocol."""
    parts = [b"\x80\x01\0\x02", text(method), struct.pack(">i", 0), b"\x0c\0\0"]
    parts += [b"\x0c\0\x01\x08\0\x01", struct.pack(">i", 0), b"\x0b\0\x02", text("OK"), b"\0"]
    parts += [b"\x0f\0\x02\x0d", struct.pack(">i", len(rows))]
    for cells in rows:
        parts.append(b"\x0b\x0b" + struct.pack(">i", len(cells)))
        parts += [text(part) for pair in cells.items() for part in pair]
    return b"".join([*parts, b"\0\0"])


def serve(path: str, size: int) -> None:
    """Answer one client after the other: by what the statement is about, never looking at more of it."""
    tables = [{"name": "big", "owner_uuid": "0"}]
    columns = [{"cid": str(n), "name": name, "type": kind} for n, (name, kind) in enumerate(COLUMNS.items())]
    options = b"\x80\x01\0\x02" + text("options") + struct.pack(">i", 0) + b"\x0d\0\0\x0b\x0c" + struct.pack(">i", 0)
    answers = {
        b"osquery_registry": reply("query", tables),
        b"table_info": reply("query", columns),
        b"'='": reply("query", [row(n, signed=True) for n in range(size)]),
        b"SELECT": reply("query", [row(n, signed=False) for n in range(size)]),
        b"options": options + b"\0",
    }
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            with listener.accept()[0] as connection:
                while asked := connection.recv(65_536):
                    connection.sendall(next(answer for sign, answer in answers.items() if sign in asked))


def cpu(work: Callable[[], int], rounds: int, size: int) -> tuple[float, float]:
    """Median CPU and wall time of a round, in milliseconds. Each gives `size` rows."""
    used, took = [], []
    work()
    for _ in range(rounds):
        began, started = time.process_time(), time.perf_counter()
        assert work() == size
        used.append((time.process_time() - began) * 1000)
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(used), statistics.median(took)


def measure(path: str, size: int, report: Table) -> None:
    rounds = ROUNDS[size]
    theirs = ExtensionClient(path)
    theirs.open(timeout=5)
    manager = theirs.extension_manager_client()
    results = {"osquery (PyPI)": cpu(lambda: len(manager.query("SELECT * FROM big").response), rounds, size)}
    theirs.close()

    host = TableContext(agent=None, access=AccessPolicy())  # type: ignore[arg-type]  # no table here asks for it
    database = Database([], host, LimitSettings(time=60.0))
    bridge = Bridge(OsquerySettings(socket=path, time=60.0), database)
    bridge.refresh_blocking()
    table = database.tables["big"]
    wanted = Constraints(host, columns=frozenset(COLUMNS))

    def rows() -> int:
        bridge.client.forget_answers()
        return sum(1 for _ in table.rows(wanted))

    async def sql() -> None:
        def one() -> int:
            bridge.client.forget_answers()
            return len(asyncio.run_coroutine_threadsafe(database.query("SELECT * FROM big"), loop).result().rows)

        loop = asyncio.get_running_loop()
        results["bridge, SQL"] = await asyncio.to_thread(cpu, one, rounds, size)

    results["bridge, rows"] = cpu(rows, rounds, size)
    asyncio.run(sql())
    bridge.close()
    database.close()
    least = results["osquery (PyPI)"][0]
    for name, (used, took) in results.items():
        report.add_row(f"{size:,}", name, f"{used:,.1f}", f"{took:,.1f}", f"{size / used:,.0f}", f"{least / used:.1f}")


def main() -> None:
    report = Table("rows", "client", "CPU ms", "wall ms", "rows/ms CPU", "times less CPU")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "osquery.em")
            server = Process(target=serve, args=(path, size), daemon=True)
            server.start()
            while not Path(path).exists():
                time.sleep(0.01)
            time.sleep(0.05)
            measure(path, size, report)
            server.terminate()
            server.join()
    Console(width=100).print(report)


if __name__ == "__main__":
    sys.exit(main())
