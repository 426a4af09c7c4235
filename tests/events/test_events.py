"""The event store, on real files: what is committed stays, what is given up is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import apsw
import pytest
from msgspec import Struct
from places import SUPPORT
from private_files import assert_private
from waiting import until_sync

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.event_file import EventFile, SeqBounds, WriteBatch
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column, EventRow, Row
from zeek_agent.table import Table


def declared(*columns: tuple[str, str], name: str = "things_events") -> Table:
    return Table(
        name,
        "things that happen",
        description="For tests.",
        columns=[Column(column, kind, "a value") for column, kind in columns],
        kind="events",
    )


THINGS = declared(("time", "time"), ("number", "count"), ("text", "text"))


def thing(number: int, text: str = "", time_: float | None = None) -> Row:
    return (time.time() if time_ is None else time_, number, text)


class Thing(Struct, frozen=True, gc=False):
    time: float
    number: int
    text: str | None


class Reader:
    """Another connection, as the database has it."""

    def __init__(self, uri: str) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        self.connection = apsw.Connection(":memory:", flags=flags)
        self.connection.set_busy_timeout(2_000)
        self.connection.execute("ATTACH ? AS store", (uri,))

    def __call__(self, sql: str) -> list[tuple[object, ...]]:
        return self.connection.execute(sql).fetchall()


@pytest.fixture
def read() -> Iterator[Callable[[EventStore, str], list[tuple[object, ...]]]]:
    readers: dict[str, Reader] = {}

    def run(store: EventStore, sql: str) -> list[tuple[object, ...]]:
        if store.uri not in readers:
            readers[store.uri] = Reader(store.uri)
        return readers[store.uri](sql)

    yield run
    for reader in readers.values():
        reader.connection.close()


Read = Callable[[EventStore, str], list[tuple[object, ...]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


def test_rows_are_numbered_and_can_be_read_by_another_connection(path: Path, read: Read) -> None:
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(7, "seven"), thing(8, "eight")])
    assert store.flush()
    assert read(store, "SELECT seq, number, text FROM store.things_events") == [(1, 7, "seven"), (2, 8, "eight")]
    assert (store.first_seq("things_events"), store.last_seq("things_events")) == (1, 2)
    store.close()


def test_readers_in_other_threads_see_both_bounds_of_the_numbers_change_at_once(path: Path) -> None:
    """They look while the writer runs any of its statements. With one bound only, new rows would look expired."""
    file, seen = EventFile(path, [THINGS], 2**24, NOW), list[SeqBounds]()

    def look(*_: object) -> bool:
        seen.append(file.seq_bounds["things_events"])
        return True

    file._connection.set_exec_trace(look)
    batch = WriteBatch()
    batch.add_rows("things_events", [thing(1, time_=NOW), thing(2, time_=NOW)], None)
    file.write(batch, NOW)
    file.expire(NOW + 20.0, age_seconds=10.0)
    file.close(NOW + 20.0, clean=True)
    assert list(dict.fromkeys(seen)) == [(0, 0), (1, 2), (0, 2)]


def test_rows_are_committed_without_a_flush(path: Path) -> None:
    store = EventStore(path, [THINGS], EventSettings(commit_interval=0.05))
    store.append("things_events", [thing(1)])
    until_sync(lambda: store.last_seq("things_events") == 1)
    store.close()


def test_a_reader_cannot_write(path: Path, read: Read) -> None:
    store = EventStore(path, [THINGS])
    with pytest.raises(apsw.ReadOnlyError):
        read(store, "DELETE FROM store.things_events")
    store.close()


def test_only_the_owner_can_read_the_file(path: Path) -> None:
    store = EventStore(path, [THINGS])
    assert_private(path)
    assert_private(Path(f"{path}-wal"))
    store.close()


def test_the_store_can_be_read_while_no_agent_runs(path: Path, read: Read) -> None:
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(1)])
    store.close()
    assert not Path(f"{path}-wal").exists()
    assert read(store, "SELECT number FROM store.things_events") == [(1,)]


def test_the_id_and_the_numbers_outlive_a_restart(path: Path) -> None:
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(1)])
    store.close()
    again = EventStore(path, [THINGS])
    assert (again.id, again.last_seq("things_events")) == (store.id, 1)
    again.append("things_events", [thing(2)])
    again.flush()
    assert again.last_seq("things_events") == 2
    again.close()


def test_a_number_is_never_reused(path: Path) -> None:
    settings = EventSettings(retention_age=3600)
    store = EventStore(path, [THINGS], settings)
    store.append("things_events", [thing(n, time_=1.0) for n in range(10)])
    store.close()
    again = EventStore(path, [THINGS], settings)
    until_sync(lambda: again.counters["things_events"].expired == 10)
    assert again.first_seq("things_events") == 0
    again.close()
    third = EventStore(path, [THINGS], settings)
    assert (third.first_seq("things_events"), third.last_seq("things_events")) == (0, 10)
    third.append("things_events", [thing(11)])
    third.flush()
    assert (third.first_seq("things_events"), third.last_seq("things_events")) == (11, 11)
    third.close()


def test_every_type_is_stored_as_sql_expects_it(path: Path, read: Read) -> None:
    table = declared(
        ("time", "time"),
        ("yes", "bool"),
        ("port", "port"),
        ("set", "set[text]"),
        ("vector", "vector[count]"),
        ("record", "record"),
        ("blob", "blob"),
        ("nothing", "count"),
    )
    store = EventStore(path, [table])
    store.append("things_events", [(1, True, (80, "tcp"), ["a", "b"], (1, 2), {"k": (1, None)}, b"\x00\xff", None)])
    store.flush()
    (row,) = read(store, "SELECT * FROM store.things_events")
    assert row == (1, 1.0, 1, '[80,"tcp"]', '["a","b"]', "[1,2]", '{"k":[1,null]}', b"\x00\xff", None)
    assert read(store, "SELECT value FROM store.things_events, json_each(vector)") == [(1,), (2,)]
    store.close()


def test_a_lone_surrogate_does_not_cost_the_row(path: Path, read: Read) -> None:
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(1, "a\udcffb"), thing(2, "\ud800"), thing(3, "c")])
    store.flush()
    rows = read(store, "SELECT number, text FROM store.things_events")
    assert rows == [(1, "a\uefed\uefb3\uefbfb"), (2, "\uefed\uefa0\uef80"), (3, "c")]
    store.close()


@pytest.mark.parametrize(
    "misfit",
    [(1.0, 2), (1.0, "text", ""), (1.0, 2**64, ""), (1.0, 2, object()), None, (1.0, 2, "", "too many")],
    ids=["short", "text for a number", "too large", "an object", "none", "long"],
)
def test_a_row_that_does_not_fit_is_counted_and_the_others_are_stored(path: Path, read: Read, misfit: object) -> None:
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(1), misfit, thing(3)])  # type: ignore[list-item]
    store.flush()
    assert read(store, "SELECT number FROM store.things_events") == [(1,), (3,)]
    assert store.counters["things_events"].lost == {"decode": 1}
    assert store.counters["things_events"].stored == 2
    store.close()


def test_records_are_stored_by_the_order_of_their_fields(path: Path, read: Read) -> None:
    table = declared(("time", "time"), ("number", "count"), ("text", "vector[text]"), name="vectors_events")
    store = EventStore(path, [THINGS, table])
    store.append("things_events", [Thing(1.0, 7, "seven"), Thing(2.0, 8, None), Thing(3.0, 9, "a\udcffb")])
    store.append("vectors_events", [Thing(1.0, 7, ["a", "b"])])  # type: ignore[arg-type]
    store.flush()
    assert read(store, "SELECT * FROM store.things_events") == [
        (1, 1.0, 7, "seven"),
        (2, 2.0, 8, None),
        (3, 3.0, 9, "a\uefed\uefb3\uefbfb"),
    ]
    assert read(store, "SELECT * FROM store.vectors_events") == [(1, 1.0, 7, '["a","b"]')]
    store.close()


@pytest.mark.parametrize("kind", ["text", "vector[text]"])
def test_records_and_tuples_can_be_in_one_batch(path: Path, read: Read, kind: str) -> None:
    table = declared(("time", "time"), ("number", "count"), ("text", kind))
    for first, second in (thing(1), Thing(1.0, 2, "")), (Thing(1.0, 3, ""), thing(4)):
        store = EventStore(path, [table], EventSettings(commit_interval=3600.0))
        store.append("things_events", [first])
        store.append("things_events", [second, Thing(1.0, 2**64, "")])
        store.flush()
        counters = store.counters["things_events"]
        assert (counters.stored, counters.lost) == (2, {"decode": 1})
        store.close()
    assert read(store, "SELECT number FROM store.things_events") == [(1,), (2,), (3,), (4,)]


def test_rows_beyond_the_queue_are_counted_and_append_does_not_block(path: Path) -> None:
    store = EventStore(path, [THINGS], EventSettings(queue_rows=100, commit_interval=3600.0))
    for number in range(25):
        store.append("things_events", [thing(number)] * 10)
    store.flush()
    counters = store.counters["things_events"]
    assert counters.received == 250
    assert counters.lost["store"] > 0
    assert counters.stored + counters.lost["store"] == 250
    store.close()


@pytest.mark.parametrize("kind", ["tuples", "records"])
def test_rows_that_the_queue_has_no_room_for_are_within_a_gap(path: Path, kind: str) -> None:
    store = EventStore(path, [THINGS], EventSettings(queue_rows=10, commit_interval=3600.0))
    now = time.time()

    def at(seconds: float) -> EventRow:
        return thing(1, time_=now + seconds) if kind == "tuples" else Thing(now + seconds, 1, "")

    store.append("things_events", [at(0.1 * number) for number in range(15)])
    store.append("things_events", [at(2.0), at(1.2)])
    assert store.flush()
    assert store.gaps() == [("things", now + 1.0, now + 2.0, "the event store could not accept all rows")]
    store.append("things_events", [at(3.0)] * 11)
    assert store.flush()
    store.append("things_events", [at(60.0)] * 11)
    assert store.flush()
    assert [gap[1:3] for gap in store.gaps()] == [(now + 1.0, now + 3.0), (now + 60.0, now + 60.0)]
    store.close()
    assert store.counters["things_events"].lost == {"store": 9}


def test_rows_without_a_time_that_are_lost_leave_a_gap_at_that_moment(path: Path) -> None:
    table = declared(("number", "count"))
    store = EventStore(path, [table], EventSettings(queue_rows=1, commit_interval=3600.0))
    before = time.time()
    store.append("things_events", [(1,), (2,)])
    assert store.flush()
    ((source, begin, end, _),) = store.gaps()
    assert source == "things"
    assert before <= begin == end <= time.time()
    store.close()


def test_rows_after_the_end_are_counted_as_lost(path: Path) -> None:
    store = EventStore(path, [THINGS])
    store.close()
    store.append("things_events", [thing(1)])
    assert store.counters["things_events"].lost == {"store": 1}


def test_many_threads_lose_nothing(path: Path, read: Read) -> None:
    store = EventStore(path, [THINGS])
    threads = [
        threading.Thread(target=lambda: [store.append("things_events", [thing(n)]) for n in range(1000)])  # type: ignore[func-returns-value]
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    assert read(store, "SELECT count(*), max(seq) FROM store.things_events") == [(4000, 4000)]
    store.close()


def test_an_unknown_table_is_an_error_of_the_caller() -> None:
    store = EventStore(None, [THINGS])
    with pytest.raises(KeyError):
        store.append("nothing_events", [thing(1)])
    store.close()


def test_old_rows_expire(path: Path) -> None:
    store = EventStore(path, [THINGS], EventSettings(retention_age=60))
    now = time.time()
    store.append("things_events", [thing(1, time_=now - 100), thing(2, time_=now - 61), thing(3, time_=now)])
    store.close()
    store = EventStore(path, [THINGS], EventSettings(retention_age=60))
    until_sync(lambda: store.counters["things_events"].expired == 2)
    assert store.first_seq("things_events") == 3
    store.close()


def test_the_files_stay_within_their_bytes_and_the_oldest_rows_go_first(path: Path, read: Read) -> None:
    limit = 4_000_000
    store = EventStore(path, [THINGS], EventSettings(retention_bytes=limit))
    for batch in range(60):
        store.append("things_events", [thing(batch * 1000 + n, "x" * 200) for n in range(1000)])
        store.flush()
        assert sum(Path(f"{path}{suffix}").stat().st_size for suffix in ("", "-wal")) <= limit
    store.close()
    counters = store.counters["things_events"]
    (row,) = read(store, "SELECT count(*), min(seq), max(seq), max(number) FROM store.things_events")
    count, low, high, newest = row
    assert (high, newest) == (60_000, 59_999)
    assert low == store.first_seq("things_events")
    assert counters.evicted == 60_000 - count  # type: ignore[operator]
    assert count > 5_000  # type: ignore[operator]


def test_a_long_reader_does_not_make_the_log_grow_without_bound(path: Path) -> None:
    limit = 1_000_000
    store = EventStore(path, [THINGS], EventSettings(retention_bytes=limit, queue_rows=3_000))
    store.append("things_events", [thing(0)])
    store.flush()
    reader = Reader(store.uri)
    cursor = reader.connection.execute("BEGIN; SELECT * FROM store.things_events")
    next(cursor)
    for _ in range(20):
        store.append("things_events", [thing(n, "x" * 200) for n in range(1_000)])
        time.sleep(0.01)
    assert Path(f"{path}-wal").stat().st_size < 4 * limit
    assert store.counters["things_events"].lost["store"] > 0
    cursor.close()
    reader.connection.close()
    assert store.flush()
    counters = store.counters["things_events"]
    assert counters.received == counters.stored + counters.lost["store"]
    store.close()


def test_delivery_state_is_available_immediately_and_after_a_restart(path: Path) -> None:
    store = EventStore(path, [THINGS])
    assert store.delivered("query") is None
    store.acknowledge("query", {"things_events": 3}, None)
    store.acknowledge("query", {"things_events": 5}, b"snapshot")
    known = store.delivered("query")
    assert known is not None
    assert (known.seqs, known.snapshot) == ({"things_events": 5}, b"snapshot")
    store.close()
    again = EventStore(path, [THINGS])
    assert again.delivered("query") == known
    again.close()


def test_the_time_between_two_runs_is_a_gap(path: Path) -> None:
    now = 1_000.0
    EventStore(path, [THINGS], clock=lambda: now).close()
    again = EventStore(path, [THINGS], clock=lambda: now + 500.0)
    assert again.gaps() == [("agent", 1_000.0, 1_500.0, "stopped")]
    again.record_gap("processes", 1_490.0, 1_491.0, "overrun")
    again.close()
    third = EventStore(path, [THINGS], clock=lambda: now + 700.0)
    assert [gap[3] for gap in third.gaps()] == ["stopped", "overrun", "stopped"]
    third.close()


def test_a_column_that_was_added_or_taken_away_keeps_the_rows(path: Path, read: Read) -> None:
    store = EventStore(path, [declared(("time", "time"), ("number", "count"), ("gone", "text"))])
    store.append("things_events", [(time.time(), 1, "old")])
    store.close()
    store = EventStore(path, [THINGS])
    store.append("things_events", [thing(2, "new")])
    store.flush()
    assert read(store, "SELECT seq, number, text FROM store.things_events") == [(1, 1, None), (2, 2, "new")]
    store.close()


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\x00" + b"\xff" * 8176])
def test_a_damaged_file_is_moved_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    store = EventStore(path, [THINGS])
    assert store.notice is not None
    assert "is damaged" in store.notice
    assert store.notice in caplog.text
    assert path.with_name("events.db.damaged").read_bytes() == content
    store.append("things_events", [thing(1)])
    assert store.flush()
    assert store.last_seq("things_events") == 1
    store.close()


def test_damage_in_the_middle_of_a_run_loses_no_row_that_is_still_queued(path: Path) -> None:
    store = EventStore(path, [THINGS], EventSettings(retention_bytes=10_000_000))
    for _ in range(15):
        store.append("things_events", [thing(n, "x" * 500) for n in range(1_000)])
        store.flush()
    first_id, last = store.id, store.last_seq("things_events")
    with path.open("r+b") as file:
        file.seek(16_384)
        file.write(os.urandom(path.stat().st_size - 16_384))
    for number in range(10):
        store.append("things_events", [thing(number, "x" * 500)] * 1_000)
        store.flush()
    assert store.id != first_id
    assert store.notice is not None
    assert "is damaged" in store.notice
    assert store.counters["things_events"].lost == {}
    assert store.last_seq("things_events") == last + 10_000
    store.close()


def directory_of(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("file:").partition("?")[0])).parent


def test_a_store_in_memory_leaves_nothing_behind_also_after_a_crash() -> None:
    crashing = (
        "import os; from zeek_agent.events.store import EventStore\n"
        "store = EventStore(None, []); print(store.uri, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", crashing]
    left = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    left_directory = directory_of(left)
    assert left_directory.exists()
    other = EventStore(None, [THINGS])
    store = EventStore(None, [THINGS])
    assert not left_directory.exists()
    other.append("things_events", [thing(1)])
    assert other.flush()
    directories = [directory_of(each.uri) for each in (store, other)]
    for directory in directories:
        assert_private(directory)
    store.close()
    other.close()
    assert not any(directory.exists() for directory in directories)


def test_without_a_usable_directory_events_are_kept_in_memory(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    store = EventStore(Path("/proc/nowhere/events.db"), [THINGS])
    assert store.notice is not None
    assert "in memory only" in store.notice
    assert store.notice in caplog.text
    store.append("things_events", [thing(1)])
    assert store.flush()
    assert read(store, "SELECT number FROM store.things_events") == [(1,)]
    store.close()


def test_readers_of_a_store_in_memory_and_its_writer_wait_for_each_other() -> None:
    store = EventStore(None, [THINGS], EventSettings(commit_interval=0.001))
    ended = threading.Event()

    def keep_reading() -> None:
        reader = Reader(store.uri)
        while not ended.is_set():
            reader("SELECT count(*), sum(number) FROM store.things_events")
        reader.connection.close()

    readers = [threading.Thread(target=keep_reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    for batch in range(200):
        store.append("things_events", [thing(batch * 10 + n) for n in range(10)])
        time.sleep(0.002)
    assert store.flush()
    ended.set()
    for reader in readers:
        reader.join()
    assert store.last_seq("things_events") == 2_000
    assert store.counters["things_events"].lost == {}
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


@pytest.mark.root
def test_a_full_disk_is_left_for_memory_and_returned_to(
    small_disk: Path, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    store = EventStore(small_disk / "events.db", [THINGS], retry_seconds=0.2)
    store.append("things_events", [thing(n) for n in range(100)])
    store.acknowledge("query", {"things_events": 40}, None)
    store.flush()
    ballast = small_disk / "ballast"
    ballast.touch()
    while (free := os.statvfs(small_disk).f_bavail) > 0:
        with ballast.open("ab") as file:
            file.write(b"\0" * 4096 * free)
    for number in range(10):
        store.append("things_events", [thing(100 + number, "x" * 1_000)] * 100)
        store.flush()
    assert store.notice is not None
    assert "in memory only" in store.notice
    assert str(small_disk) not in store.uri
    assert read(store, "SELECT count(*), min(seq), max(seq) FROM store.things_events") == [(1_100, 1, 1_100)]
    assert store.delivered("query") is not None

    ballast.unlink()
    until_sync(lambda: store.notice is None)
    store.append("things_events", [thing(9_999)])
    store.flush()
    assert read(store, "SELECT count(*), max(seq) FROM store.things_events") == [(1_101, 1_101)]
    assert str(small_disk) in store.uri
    assert store.counters["things_events"].lost == {}
    store.close()
    again = EventStore(small_disk / "events.db", [THINGS])
    assert again.last_seq("things_events") == 1_101
    assert [gap[3] for gap in again.gaps()] == ["stopped"]
    again.close()


def fill_up(disk: Path, leave_bytes: int = 0) -> Path:
    """A file that takes all room of a disk but this."""
    ballast = disk / "ballast"
    ballast.touch()
    while (free := os.statvfs(disk).f_bavail - leave_bytes // 4096) > 0:
        with ballast.open("ab") as file:
            file.write(b"\0" * 4096 * free)
    return ballast


def with_rows_in_memory(disk: Path, rows: int) -> tuple[EventStore, Path]:
    """A store whose disk became full, with some rows there and then `rows` in memory; and what fills the disk."""
    store = EventStore(disk / "events.db", [THINGS], retry_seconds=3_600)
    store.append("things_events", [thing(n) for n in range(100)])
    store.acknowledge("query", {"things_events": 40}, None)
    store.flush()
    ballast = fill_up(disk)
    for first in range(0, rows, 100):
        store.append(
            "things_events", [thing(1_000 + first + n, "x" * 1_000, time_=NOW + first + n) for n in range(100)]
        )
        store.flush()
    assert store.notice is not None
    assert "in memory only" in store.notice
    return store, ballast


NOW = 2_000_000_000.0


@pytest.mark.root
def test_rows_in_memory_reach_a_disk_that_has_room_again_at_the_end(small_disk: Path, read: Read) -> None:
    store, ballast = with_rows_in_memory(small_disk, 500)
    ballast.unlink()
    store.close()
    again = EventStore(small_disk / "events.db", [THINGS])
    assert read(again, "SELECT count(*), min(seq), max(seq) FROM store.things_events") == [(600, 1, 600)]
    assert again.delivered("query") is not None
    assert [gap.cause for gap in again.gaps()] == ["stopped"]
    assert again.counters["things_events"].lost == {}
    again.close()


@pytest.mark.root
@pytest.mark.parametrize("at_the_end", [True, False], ids=["at the end", "in the middle"])
def test_rows_that_do_not_fit_on_the_disk_when_it_is_used_again_are_a_gap(
    small_disk: Path, read: Read, at_the_end: bool
) -> None:
    store, ballast = with_rows_in_memory(small_disk, 1_500)
    os.truncate(ballast, ballast.stat().st_size - 800_000)
    if not at_the_end:
        store._retry_due = 0.0
        store.append("things_events", [])
        store.record_gap("nothing", NOW, NOW, "to wake the writer")
        until_sync(lambda: store.notice is None)
    store.close()
    again = EventStore(small_disk / "events.db", [THINGS])
    ((count, first, last),) = read(
        again, "SELECT count(*), min(seq), max(seq) FROM store.things_events WHERE seq > 100"
    )
    assert last == 1_600
    assert count == last - first + 1 < 1_500
    (gap,) = [gap for gap in again.gaps() if gap.source == "things"]
    assert gap.begin == NOW
    assert gap.end == NOW + first - 102
    assert "only the newest rows" in gap.cause
    (agent,) = [gap for gap in again.gaps() if gap.source == "agent"]
    assert agent.cause == "stopped"
    assert again.has_holes("things_events", 100)
    assert again.missing("things_events", 0, 1_600) == 1_500 - count
    again.close()


@pytest.mark.root
def test_a_return_to_the_disk_that_fails_halfway_leaves_no_gap(
    small_disk: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room may be just enough for the gap, and not for the numbers of the next rows."""
    store, ballast = with_rows_in_memory(small_disk, 500)
    ballast.unlink()
    attempts = []
    adopt = EventFile.adopt

    def without_rows(new: EventFile, uri: str, last: Mapping[str, int], rows_max: int) -> None:
        if rows_max:
            raise apsw.FullError
        adopt(new, uri, last, rows_max)

    def no_room(*_: object) -> None:
        attempts.append(store)
        raise apsw.FullError

    with monkeypatch.context() as patched:
        patched.setattr(EventFile, "adopt", without_rows)
        patched.setattr("zeek_agent.events.event_file.set_sequence", no_room)
        store._retry_due = 0.0
        for _ in range(2):  # the second one is written after the attempt
            store.record_gap("nothing", NOW, NOW, "to wake the writer")
            store.flush()
    assert attempts
    store.close()
    again = EventStore(small_disk / "events.db", [THINGS])
    assert read(again, "SELECT count(*), min(seq), max(seq) FROM store.things_events") == [(600, 1, 600)]
    assert {gap.source for gap in again.gaps()} == {"agent", "nothing"}
    again.close()


@pytest.mark.root
def test_an_orderly_end_while_the_disk_is_full_is_no_crash(
    small_disk: Path, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    store, ballast = with_rows_in_memory(small_disk, 500)
    store.close()
    assert "still cannot be written: the last 500 events are lost" in caplog.text
    ballast.unlink()
    again = EventStore(small_disk / "events.db", [THINGS])
    assert read(again, "SELECT count(*) FROM store.things_events") == [(100,)]
    assert [gap.cause for gap in again.gaps()] == ["stopped; the disk was full or failed"]
    again.close()
    last = EventStore(small_disk / "events.db", [THINGS])
    assert [gap.cause for gap in last.gaps()][1:] == ["stopped"]
    last.close()


@pytest.mark.root
def test_a_read_only_file_system_is_noticed(small_disk: Path) -> None:
    EventStore(small_disk / "events.db", [THINGS]).close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = EventStore(small_disk / "events.db", [THINGS])
    assert store.notice is not None
    store.append("things_events", [thing(1)])
    assert store.flush()
    store.close()


LOAD = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2].split(os.pathsep)
from test_events import THINGS, thing
from zeek_agent.events.event_file import EventFile
from zeek_agent.events.store import EventStore
store = EventStore(Path(sys.argv[1]), [THINGS])
number = 0
while True:
    store.append("things_events", [thing(number + n, "x" * 100) for n in range(100)])
    number += 100
    store.flush()
    print(store.last_seq("things_events"), flush=True)
"""


def test_kill_9_under_load_leaves_all_that_was_committed(path: Path, read: Read) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, path, f"{Path(__file__).parent}{os.pathsep}{SUPPORT}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    committed = 0
    while committed < 5_000:
        committed = int(process.stdout.readline())
    process.kill()
    committed = int((process.stdout.read().rstrip().splitlines() or [str(committed)])[-1])
    process.wait()
    process.stdout.close()

    killed = time.time()
    store = EventStore(path, [THINGS])
    assert store.notice is None
    assert read(store, "PRAGMA store.integrity_check") == [("ok",)]
    assert store.last_seq("things_events") >= committed
    assert read(store, f"SELECT count(*) FROM store.things_events WHERE seq = number + 1 AND seq <= {committed}") == [
        (committed,)
    ]
    ((source, begin, end, cause),) = store.gaps()
    assert (source, cause) == ("agent", "crashed")
    assert isinstance(begin, float)
    assert isinstance(end, float)
    assert killed - 2.0 < begin < end
    store.close()
