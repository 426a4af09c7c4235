"""Readers that do not end: the writer goes on, in another file if necessary, and no row is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from waiting import until_sync

from zeek_agent.config.sections import EventSettings
from zeek_agent.events import replacement
from zeek_agent.events.event_file import EventFile
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column, Row
from zeek_agent.table import Table

THINGS = Table(
    "things_events",
    "things that happen",
    description="For tests.",
    columns=[
        Column("time", "time", "a value"),
        Column("number", "count", "a value"),
        Column("text", "text", "a value"),
    ],
    kind="events",
)
SETTINGS = EventSettings(retention_bytes=24_000_000)
"""The write-ahead log may then have 12 MB."""
READER = """
import os, signal, sys
import apsw
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
cursor = connection.execute("BEGIN; SELECT number FROM things_events ORDER BY seq")
next(cursor)
print("reading", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print(1 + sum(1 for _ in cursor), flush=True)
connection.close()
"""


def rows(first: int, number: int) -> list[Row]:
    return [(time.time(), n, "x" * 500) for n in range(first, first + number)]


Stop = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def stopped_reader() -> Iterator[Stop]:
    """Starts a process that is sent SIGSTOP in the middle of a read transaction."""
    readers: list[subprocess.Popen[str]] = []

    def start(uri: str) -> subprocess.Popen[str]:
        reader = subprocess.Popen([sys.executable, "-c", READER, uri], stdout=subprocess.PIPE, text=True)
        readers.append(reader)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        status = Path(f"/proc/{reader.pid}/status")
        until_sync(lambda: "T (stopped)" in status.read_text())
        return reader

    yield start
    for reader in readers:
        reader.kill()
        if reader.stdout is not None and not reader.stdout.closed:
            reader.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[EventStore]:
    where = path if request.param == "disk" else None

    store = EventStore(where, [THINGS], SETTINGS, blocked_seconds=0.5)
    yield store
    store.close()


def test_a_stopped_reader_costs_no_row(
    store: EventStore, stopped_reader: Stop, caplog: pytest.LogCaptureFixture
) -> None:
    store.append("things_events", rows(0, 5_000))
    store.acknowledge("query", {"things_events": 77}, None)
    assert store.flush()
    store_id, uri = store.id, store.uri
    reader = stopped_reader(uri)
    for first in range(5_000, 30_000, 1_000):
        store.append("things_events", rows(first, 1_000))
        assert store.flush(60)
    counters = store.counters["things_events"]
    assert (counters.lost, counters.evicted, counters.stored) == ({}, 0, 30_000)
    assert (store.id, store.files_left) == (store_id, 1)
    assert store.uri != uri
    assert "a reader has blocked the write-ahead log" in caplog.text
    assert store.notice is None
    assert read_rows(store.uri, "SELECT count(*), min(seq), max(seq), sum(number = seq - 1) FROM things_events") == [
        (30_000, 1, 30_000, 30_000)
    ]
    delivered = store.delivered("query")
    assert delivered is not None
    assert delivered.seqs == {"things_events": 77}
    reader.send_signal(signal.SIGCONT)
    output, _ = reader.communicate(timeout=60)
    assert output == "5000\n", "the reader did not get its own view to the end"
    store.append("things_events", rows(30_000, 10))
    assert store.flush()
    assert read_rows(store.uri, "SELECT count(*) FROM things_events") == [(30_010,)]
    assert read_rows(store.uri, "PRAGMA integrity_check") == [("ok",)]


def test_the_copy_is_an_ordinary_store(path: Path, stopped_reader: Stop) -> None:
    store = EventStore(path, [THINGS], SETTINGS, blocked_seconds=0.1)
    store.append("things_events", rows(0, 10))
    assert store.flush()
    reader = stopped_reader(store.uri)
    for first in range(0, 25_000, 1_000):
        store.append("things_events", rows(first, 1_000))
        assert store.flush(60)
    assert store.files_left == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["events.db", "events.db-shm", "events.db-wal"]
    assert path.stat().st_mode & 0o077 == 0
    assert read_rows(store.uri, "PRAGMA auto_vacuum") == [(2,)]
    assert Path(f"{path}-wal").stat().st_size < 12_000_000
    reader.kill()
    reader.wait()
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["events.db"]
    again = EventStore(path, [THINGS], SETTINGS)
    assert (again.id, again.first_seq("things_events"), again.last_seq("things_events")) == (store.id, 1, 25_010)
    assert [gap.cause for gap in again.gaps()] == ["stopped"]
    again.close()


def test_the_owner_can_end_the_reader_before(path: Path, stopped_reader: Stop) -> None:
    told: list[float] = []
    readers: list[subprocess.Popen[str]] = []

    def end_reader(seconds: float) -> None:
        told.append(seconds)
        for reader in readers:
            reader.kill()
            reader.wait()

    store = EventStore(path, [THINGS], SETTINGS, on_blocked_reader=end_reader, blocked_seconds=60.0)
    store.append("things_events", rows(0, 10))
    assert store.flush()
    readers.append(stopped_reader(store.uri))
    for first in range(0, 30_000, 1_000):
        store.append("things_events", rows(first, 1_000))
        assert store.flush(60)
    assert told
    assert told[0] == 0.0
    assert store.files_left == 0
    assert store.counters["things_events"].lost == {}
    store.close()


def test_a_fault_of_the_owner_does_not_end_the_writer(
    path: Path, stopped_reader: Stop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(seconds: float) -> None:
        raise RuntimeError("no pool")

    store = EventStore(path, [THINGS], SETTINGS, on_blocked_reader=fail, blocked_seconds=0.1)
    store.append("things_events", rows(0, 10))
    assert store.flush()
    stopped_reader(store.uri)
    for first in range(0, 25_000, 1_000):
        store.append("things_events", rows(first, 1_000))
        assert store.flush(60)
    assert store.files_left == 1
    assert "no pool" in caplog.text
    store.close()


def test_rows_that_wait_at_the_end_are_written_although_a_reader_blocks(path: Path, stopped_reader: Stop) -> None:
    store = EventStore(path, [THINGS], SETTINGS, blocked_seconds=3_600.0)
    store.append("things_events", rows(0, 10))
    assert store.flush()
    stopped_reader(store.uri)
    for first in range(0, 40_000, 1_000):
        store.append("things_events", rows(first, 1_000))
    until_sync(lambda: Path(f"{path}-wal").stat().st_size > 12_000_000)
    store.close()
    assert store.counters["things_events"].stored == 40_010
    assert store.counters["things_events"].lost == {}


@pytest.mark.root
def test_without_room_for_a_copy_the_store_goes_on_in_memory(tmp_path: Path, stopped_reader: Stop) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    try:
        store = EventStore(disk / "events.db", [THINGS], SETTINGS, blocked_seconds=0.1)
        store.append("things_events", rows(0, 5_000))
        assert store.flush()
        stopped_reader(store.uri)
        for first in range(5_000, 32_000, 1_000):
            store.append("things_events", rows(first, 1_000))
            assert store.flush(60)
        assert store.files_left == 0
        assert store.notice is not None
        assert "in memory only" in store.notice
        assert store.counters["things_events"].lost == {}
        assert not replacement.unfinished(disk / "events.db").exists()
        store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("done", range(7))
def test_a_crash_at_any_step_of_the_replacement_leaves_every_row(
    path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """The steps are the changes of names; the process ends after `done` of them."""
    old = EventFile(path, [THINGS], 10_000_000, 1.0)
    holder = apsw.Connection(old.uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    old._connection.execute("INSERT INTO things_events (number) VALUES (1), (2)")
    cursor = holder.execute("BEGIN; SELECT number FROM things_events")
    assert next(cursor) == (1,)
    old._connection.execute("INSERT INTO things_events (number) VALUES (3)")
    old.copy_into(replacement.unfinished(path))
    old.close(1.0, clean=False)
    assert Path(f"{path}-wal").stat().st_size > 0

    class Crash(BaseException):
        pass

    left = done

    def step(change: object) -> object:
        def run(*arguments: object, **more: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return change(*arguments, **more)  # type: ignore[operator]

        return run

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", step(Path.replace))
        patched.setattr(Path, "unlink", step(Path.unlink))
        with suppress(Crash):
            replacement.replace(path)
    assert (left == 0) == (done < 7)
    new = EventFile(path, [THINGS], 10_000_000, 2.0)
    assert list(new._connection.execute("SELECT number FROM things_events")) == [(1,), (2,), (3,)]
    assert new._connection.execute("PRAGMA integrity_check").get == "ok"
    assert next(cursor) == (2,)
    holder.close(force=True)
    new.close(2.0, clean=True)
    assert os.listdir(path.parent) == ["events.db"]  # noqa: PTH208
