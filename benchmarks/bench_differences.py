"""What comparing a result with the last one costs: held in memory, and stored in a file.

    python benchmarks/bench_differences.py [--rows 10000] [--columns 30] [--pairs 15]

Processor time in milliseconds, of interleaved pairs. "In memory" is what the agent did before results were stored: a
multiset of packed rows, compared and packed again for the event store when it has changed. "Stored" is both sides:
comparing, which a worker does, and applying the delta, which the main process does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zeek_agent.events.store import EventStore
from zeek_agent.host.files.reads import Omissions
from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.results.comparison import Reporting, compare
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.store import ResultStore

Rows = list[tuple[Any, ...]]


def result(rows: int, columns: int, changed: int) -> Rows:
    """Rows like those of processes; of the last ones the text differs."""
    made = []
    for number in range(rows):
        text = f"/usr/lib/program-{number % 300}" if number < rows - changed else f"/usr/lib/changed-{number}"
        cells = [number, text, 1_790_000_000.25 + number, None, number % 2 == 0, f"user{number % 20}"]
        made.append(tuple((cells * (columns // len(cells) + 1))[:columns]))
    return made


class InMemory:
    """Snapshots held by the process, as today."""

    def __init__(self, directory: Path, columns: tuple[tuple[str, str], ...], rows: Rows) -> None:
        self._columns = columns
        self._store = EventStore(directory / "events.db", ())
        self._last = ResultSnapshot(columns, rows)
        self.apply_time = 0.0

    def run(self, rows: Rows) -> int:
        """One run; the number of its changes."""
        now = ResultSnapshot(self._columns, rows)
        if self._last == now:
            return 0
        changes = [*self._last.removed_rows(now), *self._last.added_rows(now)]
        before = time.process_time()
        self._last = now
        self._store.acknowledge("query", {}, now.pack())
        self._store.flush()
        self.apply_time += time.process_time() - before
        return len(changes)

    def close(self) -> None:
        self._store.close()


class Stored:
    """Results in a file."""

    def __init__(self, directory: Path, columns: tuple[tuple[str, str], ...], rows: Rows) -> None:
        self._columns = columns
        self._store = ResultStore(directory / "results.db", 1 << 30)
        self._reader = ResultReader(self._store.basis("query").uri)
        self.apply_time = 0.0
        self.run(rows)
        self.apply_time = 0.0

    def run(self, rows: Rows) -> int:
        """One run; the number of its changes."""
        basis = self._store.basis("query")
        descriptor = os.memfd_create("delta")
        difference = compare(
            basis,
            self._columns,
            rows,
            descriptor,
            reporting=Reporting.CHANGES,
            reported=True,
            omissions=Omissions,
            reader=lambda: self._reader,
        )
        changes = sum(1 for _ in difference.changes())
        before = time.process_time()
        if difference.delta_bytes:
            digest = basis.state.digest if basis.state else None
            self._store.admit("query", descriptor, difference.delta_bytes, digest)
            self._store.apply("query", descriptor, difference.delta_bytes, digest)
        self.apply_time += time.process_time() - before
        os.close(descriptor)
        return changes

    def close(self) -> None:
        self._reader.close()
        self._store.close()


def timed(work: Callable[[], int]) -> tuple[float, int]:
    before = time.process_time()
    changes = work()
    return (time.process_time() - before) * 1_000, changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    columns = tuple((f"column{number}", "text") for number in range(options.columns))
    one, other = (result(options.rows, options.columns, changed) for changed in (0, 100))
    print(
        f"{options.rows} rows, {options.columns} columns, {options.pairs} pairs; median (minimum) in ms of CPU time\n"
    )
    print(f"{'':24} {'in memory':>16} {'of which saved':>15} {'stored':>16} {'of which saved':>15} {'ratio':>6}")
    for name, results in (
        ("unchanged", (one, one)),
        ("another order", (one, one[::-1])),
        ("100 gone, 100 new", (one, other)),
    ):
        compared(name, results, columns, options.pairs)


def compared(name: str, results: Sequence[Rows], columns: tuple[tuple[str, str], ...], pairs: int) -> None:
    times: dict[type, list[float]] = {InMemory: [], Stored: []}
    with tempfile.TemporaryDirectory() as place:
        ways = [way(Path(place), columns, results[0]) for way in (InMemory, Stored)]
        for pair in range(pairs):
            rows, found = results[(pair + 1) % 2], set()
            for way in ways if pair % 2 else reversed(ways):
                milliseconds, changes = timed(partial(way.run, rows))
                times[type(way)].append(milliseconds)
                found.add(changes)
            assert len(found) == 1
        figures = []
        for way in ways:
            figures.append(f"{statistics.median(times[type(way)]):8.1f} ({min(times[type(way)]):5.1f})")
            figures.append(f"{way.apply_time * 1_000 / pairs:15.1f}")
            way.close()
    ratio = statistics.median(stored / held for held, stored in zip(times[InMemory], times[Stored], strict=True))
    print(f"{name:24} {' '.join(figures)} {ratio:6.2f}")


if __name__ == "__main__":
    main()
