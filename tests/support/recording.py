"""For tests of event sources: record real events, and look for those that one expects, in any order."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import astuple
from places import ROOT
from waiting import SECONDS

from zeek_agent.recording.source import Source
from zeek_agent.schema import EventRow
from zeek_agent.tables import builtin_tables

BENCHMARKS = ROOT / "benchmarks"
TABLES = [table for table in builtin_tables("linux") if table.kind == "events"]
COLUMNS = {table.name: [column.name for column in table.recorded] for table in TABLES}

Event = dict[str, Any]


class Recording:
    """Runs sources and keeps their rows: `with Recording([source]) as recording: …`."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._rows: list[tuple[str, EventRow]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Recording:
        for source in self.sources:
            reason = source.probe()
            if reason is not None:
                pytest.skip(f"{source.backend}: {reason}")
            source.start(self._append)
        return self

    def __exit__(self, *_: object) -> None:
        for source in reversed(self.sources):
            source.stop()

    def events(self, table: str, **wanted: object) -> list[Event]:
        """What has been recorded until now with these values in these columns."""
        for source in self.sources:
            source.drain()
        with self._lock:
            rows = [row for name, row in self._rows if name == table]
        columns = COLUMNS[table]
        values = [astuple(row) if isinstance(row, Struct) else row for row in rows]
        found = [dict(zip(columns, row, strict=True)) for row in values]
        return [event for event in found if all(event[column] == value for column, value in wanted.items())]

    def expect(self, table: str, count: int = 1, seconds: float = SECONDS, **wanted: object) -> list[Event]:
        """The events that match, as soon as there are `count` of them; fails when they do not come."""
        deadline = time.monotonic() + seconds
        while len(found := self.events(table, **wanted)) < count:
            if time.monotonic() > deadline:
                near = "\n".join(map(str, self.events(table)[-20:]))
                pytest.fail(f"{len(found)} of {count} events of {table} with {wanted}; the last ones:\n{near}")
            time.sleep(0.02)
        return found

    def _append(self, table: str, rows: Iterable[EventRow]) -> None:
        with self._lock:
            self._rows.extend((table, row) for row in rows)


def argv_of(event: Event) -> list[str]:
    """The arguments of an event's process, from the stored form: empty if the command line has no other blanks."""
    argv: list[str] = json.loads(event["argv"]) if event["argv"] else event["cmdline"].split(" ")
    assert event["argv"] is not None
    return argv


@cache
def load_generator() -> str:
    """The compiled `benchmarks/load.c`; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    directory = BENCHMARKS.parent / ".build"
    directory.mkdir(exist_ok=True)
    program, source = directory / "load", BENCHMARKS / "load.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        partial = directory / "load.partial"
        subprocess.run([compiler, "-O2", "-o", str(partial), str(source)], check=True)
        partial.replace(program)
    return str(program)


def generate(*arguments: object, prefix: Sequence[str] = (), seconds: float = 60) -> list[tuple[int, ...]]:
    """Run the generator, for so long at most; gives the numbers of each line that it printed."""
    command = [*prefix, load_generator(), *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds).stdout
    return [tuple(map(int, line.split())) for line in output.splitlines()]
