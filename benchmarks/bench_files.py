"""`files_list`, `files_lines` and `file_hashes` through the database: CPU time, also against another tree.

    bench_files.py [--against CHECKOUT] [--pairs 15]

With `--against`, each round runs a process of either tree, one after the other, and the ratio is taken pair by pair:
its median and the 95 % interval of the median (by order statistics). Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.database import Database, Lane
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

STATEMENTS: Final = {
    "list /etc/*": "SELECT path, type, uid, gid, mode, mtime, size FROM files_list('/etc/*')",
    "list /etc/*/*": "SELECT path, type, uid, gid, mode, mtime, size FROM files_list('/etc/*/*')",
    "list /usr/bin/*": "SELECT path, type, uid, gid, mode, mtime, size FROM files_list('/usr/bin/*')",
    "list /usr/share/doc/*/*": "SELECT path, type, uid, gid, mode, mtime, size FROM files_list('/usr/share/doc/*/*')",
    "list dpkg's files": "SELECT path, type, uid, gid, mode, mtime, size FROM files_list('/var/lib/dpkg/info/*')",
    "lines of /etc/passwd": "SELECT path, number, content FROM files_lines('/etc/passwd')",
    "lines of /etc/*.conf": "SELECT path, number, content FROM files_lines('/etc/*.conf')",
    "lines of dpkg's lists": "SELECT path, number, content FROM files_lines('/var/lib/dpkg/info/a*.list')",
    "columns of /etc/passwd": "SELECT path, columns FROM files_columns('/etc/passwd', '$1:text,$3:count', ':')",
    "hashes of /etc/*.conf": "SELECT path, sha256 FROM file_hashes('/etc/*.conf')",
}
SECONDS: Final = 0.25
"""CPU time that one statement is repeated for in a round."""
SRC: Final = Path(__file__).parent.parent / "src"


class NoAgent:
    """These tables ask nothing of the agent."""

    id = instance = hostname = ""


async def measure() -> dict[str, tuple[float, int]]:
    """Microseconds of CPU time of each statement, and its rows."""
    snapshots = [table for table in builtin_tables() if table.kind == "snapshot"]
    database = Database(snapshots, TableContext(NoAgent(), AccessPolicy()), LimitSettings())  # type: ignore[arg-type]
    found = {}
    for name, sql in STATEMENTS.items():
        await database.query(sql, lane=Lane.LOCAL)
        times = 0
        begin = time.process_time()
        while time.process_time() - begin < SECONDS:
            result = await database.query(sql, lane=Lane.LOCAL)
            times += 1
        found[name] = ((time.process_time() - begin) / times * 1e6, len(result.rows))
    database.close()
    return found


def run(src: Path) -> dict[str, tuple[float, int]]:
    """`measure` in a process of its own with the package below `src`."""
    environment = {**os.environ, "PYTHONPATH": str(src)}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found: dict[str, tuple[float, int]] = json.loads(done.stdout)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, by order statistics."""
    ordered = sorted(values)
    number = len(ordered)
    low = 0
    tail = math.comb(number, 0) * 0.5**number
    while low + 1 < number // 2 and tail + math.comb(number, low + 1) * 0.5**number < 0.025:
        low += 1
        tail += math.comb(number, low) * 0.5**number
    return ordered[low], ordered[number - 1 - low]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="checkout of the tree to compare with")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(measure())))
        return
    here, there = [], []
    for _ in range(arguments.pairs):
        if arguments.against:
            there.append(run(arguments.against / "src"))
        here.append(run(SRC))
    table = Table(title=f"CPU time of a statement, medians of {arguments.pairs} runs")
    for heading in ("statement", "rows", "µs", *(("µs there", "ratio", "95 %") if there else ())):
        table.add_column(heading, justify="left" if heading == "statement" else "right")
    for name in STATEMENTS:
        cells = [name, f"{here[0][name][1]:,}", f"{statistics.median(one[name][0] for one in here):,.0f}"]
        if there:
            ratios = [new[name][0] / old[name][0] for new, old in zip(here, there, strict=True)]
            low, high = interval(ratios)
            cells.append(f"{statistics.median(one[name][0] for one in there):,.0f}")
            cells += [f"{statistics.median(ratios):.2f}", f"{low:.2f}-{high:.2f}"]
        table.add_row(*cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
