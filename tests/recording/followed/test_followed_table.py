"""Own tables of followed files: rows and positions in a real event store, with counts of what is not recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from waiting import until_sync

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.own_tables.declarations import FollowedTable, OwnColumn
from zeek_agent.own_tables.snapshots import table
from zeek_agent.recording.followed.followed_file import FollowedFile
from zeek_agent.recording.followed.followed_table import FollowedTableSource
from zeek_agent.recording.status import SourceStatus
from zeek_agent.recording.supervisor import Supervisor

COLUMNS = (
    OwnColumn("job", "text", "name of the job"),
    OwnColumn("took", "interval", "how long it took", source=("stats", "ms"), unit="ms"),
)


def jobs(path: Path, columns: Sequence[OwnColumn] = COLUMNS, **options: Any) -> FollowedTable:
    return FollowedTable(name="jobs_events", summary="jobs", columns=tuple(columns), follow=str(path), **options)


class Following:
    """An agent's part that follows a file."""

    def __init__(self, declared: FollowedTable, store: EventStore, supervisor: Supervisor) -> None:
        self.name = declared.name
        self.store = store
        self.supervisor = supervisor

    def rows(self, columns: str = "job, took") -> list[tuple[Any, ...]]:
        self.supervisor.drain()
        self.store.flush()
        return read_rows(self.store.uri, f"SELECT {columns} FROM {self.name} ORDER BY seq")

    @property
    def status(self) -> SourceStatus:
        (status,) = self.supervisor.status()
        return status


@contextmanager
def following(
    state: Path,
    declared: FollowedTable,
    events: EventSettings | None = None,
    denies: Callable[[str], bool] = lambda _: False,
    **options: Any,
) -> Iterator[Following]:
    store = EventStore(state / "events.db", [table(declared)], events)
    source = FollowedTableSource(declared, store, denies, settle_seconds=0.0, **options)
    supervisor = Supervisor(SourceSettings(), store, choose=lambda *_: {declared.kind: [source]}, interval_seconds=0.1)
    try:
        supervisor.start()
        yield Following(declared, store, supervisor)
    finally:
        supervisor.stop()
        store.close()


def append(path: Path, *objects: object) -> None:
    with path.open("a") as file:
        file.writelines(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in objects)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def test_each_object_is_a_row_with_the_declared_columns(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "before"})
    with following(tmp_path, jobs(path)) as agent:
        until_sync(lambda: agent.store.position("jobs_events"))
        append(path, {"job": "a", "stats": {"ms": 1500}, "other": 1}, {"job": None}, {})
        assert agent.rows() == [("a", 1.5), (None, None), (None, None)]
        assert agent.status.received == 3
        assert agent.status.last_error is None
        ((first, last),) = read_rows(agent.store.uri, "SELECT min(time), max(time) FROM jobs_events")
        assert 0 < first <= last


def test_what_is_in_the_file_at_first_is_recorded_if_that_is_declared(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "before"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows() == [("before", None)]


def test_a_declared_time_is_that_of_the_row_if_there_is_one(path: Path, tmp_path: Path) -> None:
    columns = (OwnColumn("time", "time", "when", source="@timestamp"), *COLUMNS)
    append(path, {"@timestamp": "2026-09-21T13:33:20Z", "job": "a"}, {"job": "b"}, {"@timestamp": "soon"})
    with following(tmp_path, jobs(path, columns, from_beginning=True), clock=lambda: 7.0) as agent:
        assert agent.rows("time") == [(1_789_997_600.0,), (7.0,), (7.0,)]


def test_what_is_not_recorded_is_counted_by_cause(path: Path, tmp_path: Path) -> None:
    append(path, "not JSON", "[1]", "3", "[" * 60_000, {"job": "x" * 70_000}, "", {"job": "a", "stats": {"ms": "soon"}})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows() == [("a", None)]
        assert agent.status.lost_decode == 5
        assert agent.status.last_error == (
            "lines that are not JSON objects: 4; lines of more than 65536 bytes: 1; "
            "values of column took that are not an interval and are unset: 1"
        )


def test_a_line_that_nothing_could_pass_on_does_not_keep_the_next_ones_from_being_recorded(
    path: Path, tmp_path: Path
) -> None:
    columns = (OwnColumn("found", "set[record]", "what was found"),)
    append(path, '{"found": [{"a": 1%s}]}' % ("0" * 100), {"found": [{"a": 1}]})
    with following(tmp_path, jobs(path, columns, from_beginning=True)) as agent:
        assert agent.rows("found") == [(None,), ('[{"a":1}]',)]
        assert agent.status.last_error == "values of column found that are not set[record] and are unset: 1"


def test_a_byte_order_mark_is_not_part_of_a_line(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"job": "a"}\r\n{"job": "b"}\r\n')
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",), ("b",)]
        assert agent.status.lost_decode == 0


def test_nothing_is_lost_or_repeated_by_restarts(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "0"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("0",)]
    for number in range(1, 6):
        append(path, {"job": f"{number}"})
        if number % 2:
            path.rename(path.with_name(f"jobs.jsonl.{6 - number}"))
        with following(tmp_path, jobs(path, from_beginning=True)) as agent:
            assert agent.rows("job, seq") == [(f"{one}", one + 1) for one in range(number + 1)]
            gaps = [gap for gap in agent.store.gaps() if gap.source != "agent"]
            assert gaps == []


def test_expired_rows_are_not_recorded_again(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "a"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",)]
    connection = apsw.Connection(str(tmp_path / "events.db"))
    connection.execute("DELETE FROM jobs_events")
    connection.close()
    append(path, {"job": "b"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job, seq") == [("b", 2)]


def test_a_backlog_larger_than_the_stores_queue_is_recorded_whole(path: Path, tmp_path: Path) -> None:
    append(path, *({"job": f"{number}"} for number in range(30_000)))
    with following(tmp_path, jobs(path, from_beginning=True), EventSettings(queue_rows=4_000)) as agent:
        for _ in range(100):
            if len(agent.rows("seq")) == 30_000:
                break
        assert agent.rows("count(*), count(DISTINCT job)") == [(30_000, 30_000)]
        assert agent.store.counters["jobs_events"].lost.total() == 0


def test_another_declared_file_is_followed_without_a_gap(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "a"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",)]
    other = tmp_path / "other.jsonl"
    append(other, {"job": "b"})
    with following(tmp_path, jobs(other, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",), ("b",)]
        assert [gap for gap in agent.store.gaps() if gap.source == "jobs"] == []


def test_a_file_that_was_emptied_without_a_copy_is_a_gap(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "a"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",)]
    path.write_text("")
    append(path, {"job": "b"})
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        assert agent.rows("job") == [("a",), ("b",)]
        (gap,) = [gap for gap in agent.store.gaps() if gap.source == "jobs"]
        assert gap.cause.startswith("jobs.jsonl has been rotated")
        assert gap.begin <= gap.end


def test_a_denied_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    append(path, {"job": "a"})
    with following(tmp_path, jobs(path, from_beginning=True), denies=lambda name: name == str(path)) as agent:
        assert agent.rows() == []
        assert not agent.status.active
        assert agent.status.reason == f"the access rules deny {path}"


def test_a_link_in_place_of_the_file_is_an_error_until_it_is_gone(path: Path, tmp_path: Path) -> None:
    path.symlink_to("/etc/passwd")
    with following(tmp_path, jobs(path)) as agent:
        assert agent.rows() == []
        assert "is a symbolic link" in (agent.status.last_error or "")
        path.unlink()
        agent.rows()
        append(path, {"job": "a"})
        assert agent.rows("job") == [("a",)]
        assert agent.status.last_error is None


def test_a_directory_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later" / "jobs.jsonl"
    with following(tmp_path, jobs(path)) as agent:
        assert agent.rows() == []
        assert agent.status.active
        path.parent.mkdir()
        append(path, {"job": "a"})
        assert agent.rows("job") == [("a",)]


def test_a_file_system_that_hangs_keeps_queries_waiting_once(path: Path, tmp_path: Path) -> None:
    with following(tmp_path, jobs(path)) as agent:
        agent.rows()
        (source,) = agent.supervisor._recorders[0].sources
        assert isinstance(source, FollowedTableSource)
        waits: list[float] = []
        with pytest.MonkeyPatch.context() as patched, source._changed:  # whose lock the reading thread needs
            patched.setattr(source._changed, "wait_for", lambda condition, seconds: waits.append(seconds))
            source.drain()
            source.drain()
        assert waits == [1.0]


def test_rows_before_an_error_are_kept_with_their_position(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path, *({"job": f"{number}"} for number in range(10)))
    failures = 0
    appended = FollowedFile._appended

    def failing(self: FollowedFile) -> Iterator[bytes]:
        nonlocal failures
        for number, line in enumerate(appended(self)):
            yield line
            if number == 4 and not failures:
                failures += 1
                raise OSError(5, "the disk failed")

    monkeypatch.setattr(FollowedFile, "_appended", failing)
    with following(tmp_path, jobs(path, from_beginning=True)) as agent:
        until_sync(lambda: len(agent.rows("job")) == 10)
        assert agent.rows("job") == [(f"{number}",) for number in range(10)]
        assert failures == 1


def test_a_file_that_is_denied_under_another_name_is_not_followed(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    append(secret / "jobs.jsonl", {"job": "a"})
    link = tmp_path / "link"
    link.symlink_to(secret)
    declared = jobs(link / "jobs.jsonl", from_beginning=True)
    with following(tmp_path, declared, denies=lambda name: name.startswith(str(secret))) as agent:
        assert agent.rows() == []
        assert f"the access rules deny {link}" in (agent.status.last_error or "")
