"""Event store: rows per second from `append` to committed, and what a commit costs.

Rows look like process events (27 columns, half of them text). Prints one table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column, Row
from zeek_agent.table import Table

KINDS = ("time", *["text"] * 13, *["count"] * 11, "interval", "bool")
TABLE = Table(
    "processes_events",
    "rows as wide as process events",
    description="For measuring.",
    columns=[Column(f"column_{number}", kind, "a value") for number, kind in enumerate(KINDS)],
    kind="events",
)


def process_row(number: int, now: float) -> Row:
    texts = [f"/usr/libexec/something/with-a-path-{number % 997}-{column}" for column in range(13)]
    return (now, *texts, *range(number, number + 11), 0.25, True)


def measure(path: Path | None, rows: int, batch: int) -> tuple[float, float, float]:
    """Rows per second, CPU microseconds a row, megabytes on disk."""
    now = time.time()
    batches = [[process_row(first + n, now) for n in range(batch)] for first in range(0, rows, batch)]
    store = EventStore(path, [TABLE], EventSettings(queue_rows=rows, retention_bytes=1 << 30))
    cpu, begun = time.process_time(), time.perf_counter()
    for rows_of_batch in batches:
        store.append(TABLE.name, rows_of_batch)
    if not store.flush(120):
        raise TimeoutError("the store did not keep up")
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    stored = store.last_seq(TABLE.name)
    store.close()
    if stored != rows:
        raise ValueError(f"{rows - stored} of {rows} rows were lost: {store.counters}")
    return rows / took, cpu / rows * 1e6, 0.0 if path is None else path.stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, default=None, help="where the store is made (default: $TMPDIR)")
    arguments = parser.parse_args()
    print(f"{'store':<8} {'rows a batch':>12} {'rows/s':>10} {'CPU µs/row':>11} {'MB':>7}")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for where in ("disk", "memory"):
            for batch in (1, 100, 1_000):
                path = Path(directory) / f"events-{batch}.db" if where == "disk" else None
                rate, cpu, size = measure(path, arguments.rows, batch)
                print(f"{where:<8} {batch:>12} {rate:>10,.0f} {cpu:>11.1f} {size:>7.1f}")


if __name__ == "__main__":
    main()
