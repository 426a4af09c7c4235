"""Memory of comparing and applying does not grow with the number of results, and little with their size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stored_results import stored_bytes

from zeek_agent.host.files.reads import Omissions
from zeek_agent.results.comparison import Reporting, compare
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.state import Basis
from zeek_agent.results.store import ResultStore

MIB = 1_048_576
COLUMNS = tuple((f"column{number}", "count") for number in range(10))
BUDGET = 4_096 * MIB
READER_BYTES_PER_ROW = 240
"""Of a result that changes as a whole: a hash and a place (24 bytes), as a new row 40 bytes more, as a gone one 24, to
bring new rows into order 44; the rest is what the allocator does not give back between results."""
READER_BYTES = 32 * MIB
"""The rows of one range, and a result that is small enough to be held."""
WRITER_BYTES = 16 * MIB
"""A part of the delta at a time, and SQLite's page cache."""


def rows(first: int, number: int) -> Iterator[tuple[Any, ...]]:
    return ((index, *range(70_000, 70_009)) for index in range(first, first + number))


def peak() -> int:
    """The largest resident memory of this process in bytes, without that of its parent, which `ru_maxrss` includes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1_024


def serve_comparisons() -> None:
    """A worker: a line with the basis, the first row and the delta file in, one with counts and memory out."""
    warm = peak()
    for line in sys.stdin:
        packed, first, number, path = msgspec.json.decode(line)
        basis = msgspec.msgpack.decode(bytes.fromhex(packed), type=Basis)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        with ResultReader(basis.uri) as reader:
            difference = compare(
                basis,
                COLUMNS,
                rows(first, number),
                descriptor,
                reporting=Reporting.CHANGES,
                reported=True,
                omissions=Omissions,
                reader=lambda: reader,
            )
            changes = sum(1 for _ in difference.changes())
        os.close(descriptor)
        sys.stdout.write(f"{difference.delta_bytes} {changes} {peak() - warm}\n")
        sys.stdout.flush()


def main() -> None:
    """Two processes, as the agent has them, run so many queries and change them all; prints the memory of both."""
    directory, queries, number = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    worker = subprocess.Popen([sys.executable, __file__, "worker"], stdin=-1, stdout=-1, text=True, env=os.environ)
    assert worker.stdin is not None
    assert worker.stdout is not None
    store = ResultStore(directory / "results.db", BUDGET, query_bytes_max=BUDGET)
    warm = peak()
    path = directory / "delta"
    changes = reader_bytes = 0
    for first in (0, 100, number):
        for query in range(queries):
            basis = store.basis(f"query {query}")
            task = [msgspec.msgpack.encode(basis).hex(), first, number, str(path)]
            worker.stdin.write(msgspec.json.encode(task).decode() + "\n")
            worker.stdin.flush()
            length, changed, reader_bytes = map(int, worker.stdout.readline().split())
            changes += changed
            descriptor = os.open(path, os.O_RDONLY)
            store.apply(f"query {query}", descriptor, length, basis.state.digest if basis.state else None)
            os.close(descriptor)
    worker.stdin.close()
    worker.wait()
    worker.stdout.close()
    sys.stdout.write(f"{changes} {reader_bytes} {peak() - warm}\n")
    store.close()


def measured(tmp_path: Path, queries: int, number: int) -> None:
    support = str(Path(__file__).parent.parent / "support")
    environment = {**os.environ, "PYTHONPATH": support}
    command = [sys.executable, __file__, "main", str(tmp_path), str(queries), str(number)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    sys.stdout.write(done.stdout)
    changes, reader_bytes, writer_bytes = map(int, done.stdout.split())
    assert changes == queries * 2 * number
    assert stored_bytes(tmp_path / "results.db") > queries * number * 50
    assert 0 < reader_bytes < READER_BYTES + number * READER_BYTES_PER_ROW
    assert 0 < writer_bytes < WRITER_BYTES


def test_memory_is_bounded_when_all_of_a_large_result_changes(tmp_path: Path) -> None:
    measured(tmp_path, 1, 60_000)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_memory_does_not_grow_with_the_number_of_results(tmp_path: Path) -> None:
    measured(tmp_path, 18, 400_000)


if __name__ == "__main__":
    serve_comparisons() if sys.argv[1] == "worker" else main()
