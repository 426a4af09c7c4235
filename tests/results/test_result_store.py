"""The file of stored results: budget, crashes, hostile workers, damage, full disks, and readers that do not let go."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from children import exit_code, fork
from private_files import assert_private
from stored_results import BUDGET, COLUMNS, Delta, run, stored_bytes

from zeek_agent import platforms
from zeek_agent.config.sections import EventSettings
from zeek_agent.events.store import EventStore
from zeek_agent.results import result_file
from zeek_agent.results.comparison import RowChange
from zeek_agent.results.delta import ADDITION, REMOVAL, finish
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.state import (
    OverBudgetError,
    ResultStateError,
    StaleDeltaError,
    UnavailableError,
    pack,
    row_hasher,
)
from zeek_agent.results.store import NewerResultsError, ResultStore
from zeek_agent.tables import builtin_tables

needs_root = pytest.mark.skipif(platforms.HERE.user_id() != 0, reason="needs root")
EVENT_TABLES = [table for table in builtin_tables("linux") if table.kind == "events"]


def rows(number: int, text: str = "row") -> list[tuple[str, int]]:
    return [(f"{text} {index}", index) for index in range(number)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "results.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., ResultStore]]:
    stores: list[ResultStore] = []

    def open_(**options: Any) -> ResultStore:
        stores.append(ResultStore(path, options.pop("bytes_max", BUDGET), **options))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def test_a_result_is_there_after_a_restart(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened()
    run(store, rows(10))
    digest = store.digest("query")
    store.close()
    again = opened()
    assert again.digest("query") == digest
    assert run(again, rows(9), reported=False) == [(RowChange.GONE, ("row 9", 9))]
    assert_private(path)


def test_a_result_that_is_not_durable_ends_with_the_run(opened: Callable[..., ResultStore]) -> None:
    store = opened()
    with Delta(store) as delta:
        delta.compare(rows(10))
        store.apply("query", delta.descriptor, delta.length, None, durable=False)
    assert store.digest("query") is not None
    store.close()
    assert opened().digest("query") is None


def test_a_result_continues_under_another_key(opened: Callable[..., ResultStore]) -> None:
    store = opened()
    run(store, rows(3), key="before")
    run(store, rows(3), key="other")
    assert store.rename("before", "after")
    assert not store.rename("other", "after")
    assert not store.rename("nothing", "new")
    assert store.digest("before") is None
    assert run(store, rows(2), key="after") == [(RowChange.GONE, ("row 2", 2))]
    store.close()
    assert set(opened().usage().queries) == {"after", "other"}


def test_results_of_queries_that_are_not_installed_expire(opened: Callable[..., ResultStore]) -> None:
    now = [1_000_000.0]
    store = opened(clock=lambda: now[0])
    for key in ("installed", "removed", "young"):
        run(store, rows(3), key=key)
    for _ in range(31):
        now[0] += 86_401.0
        if _ == 5:
            run(store, rows(4), key="young")
        store.expire({"installed"})
    assert set(store.usage().queries) == {"installed", "young"}
    now[0] += 29 * 86_400.0
    store.expire(())
    assert set(store.usage().queries) == {"installed"}  # a month counts from the last day on which it was installed


def test_usage_counts_what_is_in_the_file(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened()
    run(store, rows(100), key="a")
    run(store, rows(50) * 2, key="b")
    run(store, rows(60), key="b")
    usage = store.usage()
    assert {key: state.rows for key, state in usage.queries.items()} == {"a": 100, "b": 60}
    assert sum(state.row_bytes for state in usage.queries.values()) == stored_bytes(path)
    assert usage.bytes >= stored_bytes(path)
    assert usage.disk_bytes >= usage.bytes


# Budget


def test_a_result_over_the_budget_is_refused_before_it_is_delivered(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=20_000)
    run(store, rows(100))
    before = store.digest("query")
    with Delta(store) as delta, pytest.raises(OverBudgetError, match=r"limits\.state_bytes"):
        delta.compare(rows(1_000))
    assert store.digest("query") == before
    assert run(store, rows(101)) == [(RowChange.NEW, ("row 100", 100))]


def test_results_share_the_budget_and_none_is_evicted(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=20_000)
    run(store, rows(200), key="first")
    with Delta(store, "second") as delta, pytest.raises(OverBudgetError):
        delta.compare(rows(300))
    assert store.digest("first") is not None
    store.forget("first")
    run(store, rows(300), key="second")
    assert store.digest("second") is not None


def test_one_query_has_a_budget_of_its_own(opened: Callable[..., ResultStore]) -> None:
    store = opened(query_bytes_max=10_000)
    with Delta(store) as delta, pytest.raises(OverBudgetError):
        delta.compare(rows(1_000))


def test_room_is_reserved_while_rows_are_delivered(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=20_000)
    with Delta(store, "first") as first, Delta(store, "second") as second:
        first.compare(rows(200))
        second.compare(rows(300))
        store.admit("first", first.descriptor, first.length, None)
        with pytest.raises(OverBudgetError):
            store.admit("second", second.descriptor, second.length, None)
        assert store.basis("second").bytes_max < 20_000
        store.release("first")
        store.admit("second", second.descriptor, second.length, None)


def test_a_result_that_no_longer_fits_after_delivery_starts_over(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=20_000)
    run(store, rows(10), key="first")
    with Delta(store, "first") as delta:
        delta.compare(rows(250))
        run(store, rows(250), key="second")
        with pytest.raises(OverBudgetError):
            store.apply("first", delta.descriptor, delta.length, delta.expected)
    assert store.digest("first") is None
    assert run(store, rows(20), key="first") == []


def test_a_recipient_within_its_share_gets_the_room_of_one_with_more(
    opened: Callable[..., ResultStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(bytes_max=60_000)
    for query in range(9):
        store.claim(f"greedy {query}", "greedy")
        run(store, rows(150), key=f"greedy {query}")
    used = store.usage().bytes
    assert used > 50_000
    each = store.state("greedy 0").stored_bytes  # type: ignore[union-attr]

    for query in range(4):
        store.claim(f"modest {query}", "modest")
        run(store, rows(150), key=f"modest {query}")
        assert store.digest(f"modest {query}") is not None
    greedy = [query for query in range(9) if store.digest(f"greedy {query}") is not None]
    assert 30_000 - each <= len(greedy) * each <= 60_000 - 4 * each
    assert store.usage().bytes <= 60_000
    assert "a query of greedy starts over" in caplog.text

    store.claim("greedy 9", "greedy")
    with Delta(store, "greedy 9") as delta, pytest.raises(OverBudgetError):
        delta.compare(rows(400))
    assert all(store.digest(f"modest {query}") for query in range(4))


def test_a_result_that_was_dropped_for_another_recipient_starts_over(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=30_000)
    store.claim("greedy", "greedy")
    store.claim("modest", "modest")
    run(store, rows(500), key="greedy")
    with Delta(store, "greedy") as delta:
        delta.compare(rows(501))
        run(store, rows(300), key="modest")
        with pytest.raises(StaleDeltaError):
            store.apply("greedy", delta.descriptor, delta.length, delta.expected)
    assert store.digest("greedy") is None
    assert store.basis("greedy").bytes_max < 30_000


def test_shares_outlive_a_restart(opened: Callable[..., ResultStore]) -> None:
    store = opened(bytes_max=30_000)
    store.claim("greedy", "greedy")
    run(store, rows(500), key="greedy")
    store.close()
    store = opened(bytes_max=30_000)
    store.claim("greedy 2", "greedy")
    assert store.basis("greedy 2").bytes_max < 12_000
    store.claim("modest", "modest")
    assert store.basis("modest").bytes_max == 15_000


def test_a_file_without_recipients_is_opened_and_shared(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened(bytes_max=30_000)
    run(store, rows(500), key="earlier")
    store.close()
    connection = apsw.Connection(str(path))
    connection.execute("ALTER TABLE queries DROP COLUMN owner; PRAGMA user_version = 1")
    connection.close()
    store = opened(bytes_max=30_000)
    assert run(store, rows(501), key="earlier") == [(RowChange.NEW, ("row 500", 500))]
    store.claim("modest", "modest")
    run(store, rows(300), key="modest")
    assert store.digest("modest") is not None
    assert store.digest("earlier") is None


# Crashes


def test_killed_between_delivery_and_apply_the_old_result_is_there(
    opened: Callable[..., ResultStore], path: Path
) -> None:
    def deliver_only() -> None:
        store = ResultStore(path, BUDGET)
        run(store, rows(10))
        with Delta(store) as delta:
            assert len(delta.compare(rows(12))) == 2
            store.admit("query", delta.descriptor, delta.length, delta.expected)
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(fork(deliver_only)) == -signal.SIGKILL
    assert len(run(opened(), rows(12), reported=False)) == 2


@pytest.mark.parametrize("moment", [0, 10, 100, 1_000, 3_000, "commit", "committed", "never"])
def test_killed_while_a_delta_is_applied_the_result_is_the_old_or_the_new_one(
    moment: int | str, opened: Callable[..., ResultStore], path: Path
) -> None:
    """The process ends after so many steps of SQLite, right before or right after the commit."""

    def apply() -> None:
        store = ResultStore(path, BUDGET)
        run(store, rows(2_000, "old"))
        with Delta(store) as delta:
            delta.compare(rows(2_000, "new"))
            connection = store._file._connection
            steps = iter(range(moment if isinstance(moment, int) else 10**9))

            def die(*_: object) -> Any:
                os.kill(os.getpid(), signal.SIGKILL)

            connection.set_progress_handler(lambda: next(steps, None) is None and die(), 20)
            connection.set_commit_hook(die if moment == "commit" else None)
            if moment == "committed":
                connection.set_wal_hook(die)
            delta.apply()

    assert exit_code(fork(apply)) == (0 if moment == "never" else -signal.SIGKILL)
    store = opened()
    assert store.check("query")
    now = "new" if moment in ("committed", "never") else "old"
    assert run(store, rows(2_000, now), reported=False) == []
    assert len(run(store, rows(2_000, "other"), reported=False)) == 4_000


# Hostile workers


def hostile(random_: random.Random, delta: bytes, hash_key: bytes) -> bytes:
    """A delta with some bytes changed, cut, repeated, or with parts that are well-formed and wrong."""
    changed = bytearray(delta)
    match random_.randrange(6):
        case 0:
            for _ in range(random_.randint(1, 4)):
                changed[random_.randrange(len(changed))] = random_.randrange(256)
        case 1:
            at = random_.randrange(len(changed))
            changed[at : at + 8] = random_.choice((b"\xff" * 8, bytes(8), b"\xdd" + b"\xff" * 7, b"\x91" * 8))
        case 2:
            del changed[random_.randrange(len(changed)) :]
        case 3:
            at = random_.randrange(len(changed))
            changed[at:at] = random_.randbytes(random_.randint(1, 40))
        case 4:  # near the end, where the trailer is
            changed[len(changed) - 1 - random_.randrange(min(100, len(changed)))] = random_.randrange(256)
        case 5:
            return forged(random_, hash_key)
    return bytes(changed)


def forged(random_: random.Random, hash_key: bytes) -> bytes:
    """A delta that claims what is not so."""
    hasher = row_hasher(hash_key)
    additions, content, total, number = bytearray(), bytearray(), 0, random_.randint(0, 30)
    records = []
    for index in range(number):
        row = random_.choice((pack((f"row {index}", index)), pack((1,)), b"\x91" * 5_000, b"\xdd\xff\xff\xff\xff", b""))
        of_row = hasher.copy()
        of_row.update(row)
        times = random_.choice((0, 1, 1, 2**31, 2**32 - 1))
        records.append((of_row.digest(), len(content), random_.choice((len(row), len(row), 2**32 - 1)), times))
        content += row
        total += int.from_bytes(of_row.digest()) * times
    for record in sorted(records) if random_.random() < 0.8 else records:
        additions += ADDITION.pack(*record)
    removals = b"".join(
        REMOVAL.pack(random_.randbytes(16), random_.choice((0, 1, 2**32 - 1))) for _ in range(random_.randint(0, 2))
    )
    descriptor = os.memfd_create("forged")
    try:
        os.pwrite(descriptor, content, 0)
        length = finish(
            descriptor,
            replaces=random_.random() < 0.5,
            columns=random_.choice((COLUMNS, (), (("name", "text"),))),
            total=(total % 2**128).to_bytes(16),
            rows=random_.choice((number, 0, 2**31 - 1, 2**52)),
            row_bytes=random_.choice((0, len(content) + 32 * number, 50_000, 2**52)),
            sequence=random_.choice((b"", bytes(16), bytes(99))),
            rows_end=len(content),
            additions=additions,
            removals=removals,
            unread=random_.choice((b"\x90", b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 9_000)),
        )
        return os.pread(descriptor, length, 0)
    finally:
        os.close(descriptor)


def test_hostile_deltas_change_nothing_or_a_result_that_is_whole_and_within_the_budget(
    opened: Callable[..., ResultStore], path: Path
) -> None:
    budget = 60_000
    store = opened(bytes_max=budget)
    run(store, rows(200), key="other")
    run(store, rows(50))
    other = store.digest("other")
    random_ = random.Random(11)
    with Delta(store) as delta:
        delta.compare([*rows(60)[5:], *rows(3) * 3])
        honest = os.pread(delta.descriptor, delta.length, 0)
        refused = 0
        for _ in range(2_000):
            before = store.digest("query")
            descriptor = os.memfd_create("hostile")
            try:
                content = hostile(random_, honest, delta.basis.hash_key)
                os.pwrite(descriptor, content, 0)
                length = max(0, len(content) + random_.choice((0, 0, 0, 1, -1, 2**40)))
                store.apply("query", descriptor, length, before)
            except OverBudgetError:
                assert store.digest("query") is None
                refused += 1
                run(store, rows(50))
            except ResultStateError:
                assert store.digest("query") == before
                refused += 1
            else:
                if store.digest("query") != delta.expected:
                    store.forget("query")
                    run(store, rows(50))
            finally:
                os.close(descriptor)
            assert stored_bytes(path) <= budget
        assert refused > 1_000
    assert store.digest("other") == other
    assert store.check("query")
    assert store.check("other")


def test_a_delta_is_applied_to_the_result_that_it_was_compared_with_only(opened: Callable[..., ResultStore]) -> None:
    store = opened()
    run(store, rows(10))
    with Delta(store) as delta:
        delta.compare(rows(12))
        run(store, rows(11))
        with pytest.raises(StaleDeltaError):
            store.apply("query", delta.descriptor, delta.length, delta.expected)
    assert run(store, rows(11)) == []


# The file


@pytest.mark.parametrize("content", [b"no database" * 1_000, b"SQLite format 3\0" + b"\xff" * 8_000])
def test_a_damaged_file_is_moved_aside(
    content: bytes, opened: Callable[..., ResultStore], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    store = opened()
    assert store.notice is not None
    assert "is damaged" in store.notice
    assert "is damaged" in caplog.text
    assert path.with_name("results.db.damaged").read_bytes() == content
    assert run(store, rows(3)) == []
    assert not store.in_memory


def test_damage_during_a_run_starts_queries_over(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened()
    run(store, rows(5_000))
    store._file._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    with path.open("r+b") as file:
        for page in range(3, path.stat().st_size // 4_096):
            file.seek(page * 4_096)
            file.write(b"\xa5" * 4_096)
    with pytest.raises(StaleDeltaError, match="is damaged"):
        store.check("query")
    assert store.digest("query") is None
    assert run(store, rows(3)) == []
    assert run(store, rows(2)) == [(RowChange.GONE, ("row 2", 2))]


def test_a_result_that_does_not_match_its_digest_starts_over(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened()
    run(store, rows(20))
    other = apsw.Connection(str(path))
    other.execute("DELETE FROM rows WHERE h = (SELECT min(h) FROM rows)")
    other.close()
    with Delta(store) as delta, pytest.raises(ResultStateError, match="digest"):
        delta.compare(rows(21))
    assert not store.check("query")
    assert run(store, rows(21)) == []


def test_a_file_of_a_later_version_is_left_as_it_is(opened: Callable[..., ResultStore], path: Path) -> None:
    store = opened()
    run(store, rows(3))
    store.close()
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerResultsError, match="later version"):
        opened()
    assert path.read_bytes() == before


def test_without_a_usable_directory_results_are_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ResultStore(tmp_path / "file" / "results.db", BUDGET)
    assert store.in_memory
    assert store.notice is not None
    assert "in memory only" in store.notice
    run(store, rows(3))
    assert run(store, rows(2)) == [(RowChange.GONE, ("row 2", 2))]
    scratch = Path(store._file.path).parent
    store.close()
    assert not scratch.exists()


@needs_root
def test_a_full_disk_is_an_error_and_the_delta_is_applied_later(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    try:
        events = EventStore(mounted / "events.db", EVENT_TABLES)
        store = ResultStore(mounted / "results.db", BUDGET)
        run(store, rows(10))
        with Delta(store) as delta:
            changes = delta.compare(rows(3_000))
            filler = mounted / "filler"
            filler.touch()
            while (free := os.statvfs(mounted).f_bavail) > 0:
                with filler.open("ab") as file:
                    file.write(bytes(4_096 * free))
            with pytest.raises(UnavailableError, match=r"results\.db.*full"):
                delta.apply()
            assert store.digest("query") == delta.expected
            filler.unlink()
            delta.apply()
            assert len(changes) == 2_990
        assert run(store, rows(3_000)) == []
        assert store.check("query")
        assert record(events) == 1
        store.close()
        events.close()
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


# Readers


def record(events: EventStore) -> int:
    """Store one event; the number of those that were stored."""
    table = next(table for table in EVENT_TABLES if table.name == "processes_events")
    events.append(table.name, [(None,) * len(table.recorded)])
    assert events.flush()
    return events.counters[table.name].stored


def test_a_reader_cannot_write(opened: Callable[..., ResultStore]) -> None:
    store = opened()
    run(store, rows(3))
    with ResultReader(store.basis("query").uri) as reader, pytest.raises(apsw.ReadOnlyError):
        reader._connection.execute("DELETE FROM rows")


@pytest.mark.skipif(platforms.HERE.key != "linux", reason="reads /proc/self/maps")
def test_a_reader_maps_the_shared_memory_of_the_file_read_only(opened: Callable[..., ResultStore]) -> None:
    """A compromised one could damage the file otherwise."""
    store = opened()
    run(store, rows(3))
    script = f"""
from pathlib import Path
from zeek_agent.results.reader import ResultReader
with ResultReader({store.basis("query").uri!r}):
    lines = Path("/proc/self/maps").read_text().splitlines()
modes = [line.split()[1] for line in lines if line.endswith("results.db-shm")]
assert modes and all("w" not in mode for mode in modes), modes
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_stopped_reader_stops_neither_the_event_store_nor_results(
    opened: Callable[..., ResultStore], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction keeps the write-ahead log from being reused: once it is too large, a copy replaces the file."""
    limit = 2_000_000
    monkeypatch.setattr(result_file, "WAL_BYTES_MAX", limit)
    monkeypatch.setattr(result_file, "_BUSY_MILLISECONDS", 100)
    store = opened()
    events = EventStore(path.with_name("events.db"), EVENT_TABLES, EventSettings())
    run(store, rows(2_000))
    script = f"""
import os, signal, apsw
connection = apsw.Connection({store.basis("query").uri!r}, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM rows").fetchall()
print("reading", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        os.waitid(os.P_PID, reader.pid, os.WSTOPPED | os.WNOWAIT)
        uris, largest, one_delta = set(), 0, 0
        for turn in range(40):
            before = store._file.disk_bytes()
            assert len(run(store, rows(2_000, f"turn {turn}"))) == 4_000
            uris.add(store.basis("query").uri)
            one_delta = max(one_delta, store._file.disk_bytes() - before)
            largest = max(largest, path.with_name("results.db-wal").stat().st_size)
        assert len(uris) > 1, "the file was never replaced"
        assert largest <= limit + one_delta + 4_096 * 50
        assert store.check("query")
        assert record(events) == 1
    finally:
        reader.kill()
        reader.wait()
        assert reader.stdout is not None
        reader.stdout.close()
        events.close()
    store.close()
    assert run(opened(), rows(2_000, "turn 39"), reported=False) == []


def test_a_hostile_reader_cannot_keep_results_from_being_saved(
    opened: Callable[..., ResultStore], monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """A shared lock on the byte that writers lock needs no more than a descriptor that was opened for reading."""
    monkeypatch.setattr(result_file, "_BUSY_MILLISECONDS", 100)
    store = opened()
    run(store, rows(10))
    script = f"""
import fcntl, os, struct
descriptor = os.open({str(path.with_name("results.db-shm"))!r}, os.O_RDONLY)
fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 120)
print("locked", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"locked\n"
        before = store.basis("query").uri
        assert len(run(store, rows(12))) == 2
        assert store.basis("query").uri != before
        reader.kill()
    store.close()
    assert run(opened(), rows(12), reported=False) == []


@pytest.mark.parametrize("step", ["copy complete", "log removed"])
def test_a_crash_while_the_file_is_replaced_loses_nothing(
    step: str, opened: Callable[..., ResultStore], path: Path
) -> None:
    def crash() -> None:
        store = ResultStore(path, BUDGET)
        run(store, rows(500))
        if step == "copy complete":
            store._file.close = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        else:
            store._file.close = lambda: None  # type: ignore[method-assign]
            synced = iter((None,))  # that of the copy
            sync = platforms.HERE.sync_directory

            def sync_or_crash(directory: Path) -> None:
                if next(synced, ...) is not None:
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(directory)

            platforms.HERE.sync_directory = sync_or_crash  # type: ignore[method-assign]
        store._file.renewed()

    assert exit_code(fork(crash)) == -signal.SIGKILL
    assert path.with_name("results.db.new").exists()
    store = opened()
    assert store.check("query")
    assert run(store, rows(500), reported=False) == []
    assert not path.with_name("results.db.new").exists()
