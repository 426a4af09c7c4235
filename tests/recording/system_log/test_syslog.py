"""The files of a syslog daemon as a source of the system's log: what lines mean, and none missed or repeated."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import Recording

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.reading import read_rows
from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.events.store import EventStore
from zeek_agent.recording.system_log.file_tail import FilePosition, FileTail
from zeek_agent.recording.system_log.log_entry import MESSAGE_BYTES, SystemLogEntry
from zeek_agent.recording.system_log.syslog import FILES, Syslog, log_entry
from zeek_agent.tables.system_logs import TABLES
from zeek_agent.text import to_bytes

TABLE = "system_logs_events"
NOW = time.mktime((2026, 11, 24, 4, 50, 0, 0, 0, -1))
"""When lines are read, local time."""


@pytest.mark.parametrize(
    ("line", "process", "pid", "message"),
    [
        ("Nov 24 04:48:05 host CRON[123]: (root) CMD (true)", "CRON", 123, "(root) CMD (true)"),
        ("Nov 24 04:48:05 host kernel: [   12.3] eth0: up", "kernel", None, "[   12.3] eth0: up"),
        ("Nov 24 04:48:05 host postfix/smtpd[9]: connect", "postfix/smtpd", 9, "connect"),
        ("Nov 24 04:48:05 host sshd[77]:", "sshd", 77, ""),
        ("Nov 24 04:48:05 host no tag at all", None, None, "no tag at all"),
        ("Nov 24 04:48:05 host last message repeated 3 times", None, None, "last message repeated 3 times"),
        ("Nov 24 04:48:05 ::1 a[b]: c", None, None, "a[b]: c"),
    ],
)
def test_lines_of_rfc_3164(line: str, process: str | None, pid: int | None, message: str) -> None:
    entry = log_entry(line.encode(), NOW)
    assert (entry.process, entry.identifier, entry.pid, entry.message) == (process, process, pid, message)
    assert time.localtime(entry.time)[:6] == (2026, 11, 24, 4, 48, 5)
    assert (entry.level, entry.facility, entry.eventid) == (None, None, None)


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.123456+00:00", 1767323045.123456),
        ("2026-01-02T05:04:05.5+02:00", 1767323045.5),
        ("0001-01-01T00:00:00Z", 0.0),
        ("2026-01-02T03:04:05", time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))),
    ],
)
def test_time_stamps_of_rfc_3339(stamp: str, seconds: float) -> None:
    entry = log_entry(f"{stamp} host sudo: done".encode(), NOW)
    assert entry.time == pytest.approx(seconds, abs=1e-6)
    assert (entry.process, entry.message) == ("sudo", "done")


@pytest.mark.parametrize(
    ("stamp", "year"), [("Nov 24 04:49:59", 2026), ("Dec 31 23:59:59", 2025), ("Jan  1 00:00:00", 2026)]
)
def test_a_time_without_a_year_is_the_last_one_that_is_past(stamp: str, year: int) -> None:
    assert time.localtime(log_entry(f"{stamp} host a: b".encode(), NOW).time).tm_year == year


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(("minutes_later", "is_second"), [(10, False), (70, True)])
def test_an_hour_that_clocks_repeat_is_the_second_one_once_that_has_begun(minutes_later: int, is_second: bool) -> None:
    begun = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()  # this is 02:00 there, for the second time
    now = begun - 3600 + minutes_later * 60
    for stamp in ("Oct 25 02:05:00", "2026-10-25T02:05:00"):
        assert log_entry(f"{stamp} host a: b".encode(), now).time == begun + 300 - (not is_second) * 3600


def test_a_leap_day_is_in_the_last_leap_year() -> None:
    assert time.localtime(log_entry(b"Feb 29 12:00:00 host a: b", NOW).time)[:3] == (2024, 2, 29)


@pytest.mark.parametrize(
    "line", ["Nov 24 23:00:00 host a: b", "2099-01-01T00:00:00Z host a: b", "Feb 30 00:00:00 host a: b", "Nov 99", ""]
)
def test_no_time_is_later_than_now(line: str) -> None:
    assert log_entry(line.encode(), NOW).time == NOW


def test_a_priority_that_was_written_gives_level_and_facility() -> None:
    entry = log_entry(b"<86>Nov 24 04:48:05 host su: to root", NOW)
    assert (entry.level, entry.facility, entry.message) == ("6", 10, "to root")


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: b"Nov 24 04:48:05 host " + tail))
def test_any_line_is_a_row(line: bytes) -> None:
    entry = log_entry(line, NOW)
    assert 0 <= entry.time <= NOW
    assert line.endswith(to_bytes(entry.message or ""))


# Lines of files that grow and are rotated.


def new(tail: FileTail) -> list[str]:
    return [line.decode() for line in tail.lines()]


def append(path: Path, *lines: str) -> None:
    with path.open("a") as stream:
        stream.writelines(f"{line}\n" for line in lines)


Follow = Callable[..., FileTail]


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Makes tails that are closed at the end."""
    with ExitStack() as opened:
        yield lambda *arguments: opened.enter_context(closing(FileTail(*arguments)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "syslog"
    append(path, "old")
    return path


def test_only_lines_after_the_end_are_new(log: Path, follow: Follow) -> None:
    tail = follow(log)
    assert new(tail) == []
    append(log, "one", "two")
    assert new(tail) == ["one", "two"]
    assert new(tail) == []


def test_a_line_is_given_once_its_end_is_there(log: Path, follow: Follow) -> None:
    tail = follow(log)
    with log.open("a") as stream:
        for piece in ("be", "gun"):
            stream.write(piece)
            stream.flush()
            assert new(tail) == []
        stream.write("\n")
    assert new(tail) == ["begun"]


def test_of_a_long_line_the_beginning_is_given(log: Path, follow: Follow) -> None:
    tail = follow(log)
    append(log, "x" * 1_000_000, "next")
    long, following = new(tail)
    assert long == "x" * MESSAGE_BYTES
    assert following == "next"


def rename(log: Path) -> None:
    for number in (2, 1):
        old = log.with_name(f"syslog.{number}")
        if old.exists():
            old.rename(log.with_name(f"syslog.{number + 1}"))
    log.rename(log.with_name("syslog.1"))
    log.touch()


def rename_by_date(log: Path) -> None:
    log.rename(log.with_name(f"syslog-20260101-{time.monotonic_ns()}"))
    log.touch()


@pytest.mark.parametrize("rotate", [rename, rename_by_date])
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_rotation_neither_loses_nor_repeats_a_line(
    log: Path, follow: Follow, rotate: Callable[[Path], None], restarted: bool, times: int
) -> None:
    tail = follow(log)
    append(log, "one")
    assert new(tail) == ["one"]
    append(log, "unread")
    for number in range(times):
        rotate(log)
        append(log, f"after {number}")
    shutil.copy(log.with_name("syslog"), log.with_name("syslog.bak"))
    if restarted:
        tail.close()
        tail = follow(log, tail.position)
    assert new(tail) == ["unread", *(f"after {number}" for number in range(times))]
    append(log, "two")
    assert new(tail) == ["two"]


def test_lines_still_written_to_the_renamed_file_are_read(log: Path, follow: Follow) -> None:
    tail = follow(log)
    with log.open("a") as stream:
        rename(log)
        assert new(tail) == []
        stream.write("the daemon had not noticed\n")
    assert new(tail) == ["the daemon had not noticed"]
    append(log, "now it has")
    assert new(tail) == ["now it has"]


def test_a_file_that_is_cut_is_read_from_its_beginning(log: Path, follow: Follow) -> None:
    tail = follow(log)
    append(log, "one")
    assert new(tail) == ["one"]
    shutil.copy(log, log.with_name("syslog.1"))
    os.truncate(log, 0)
    append(log, "two")
    assert new(tail) == ["two"]


@pytest.mark.parametrize("restarted", [False, True])
def test_of_a_file_that_was_copied_and_truncated_nothing_is_lost_though_it_has_grown_longer(
    log: Path, follow: Follow, restarted: bool
) -> None:
    tail = follow(log)
    append(log, "one")
    assert new(tail) == ["one"]
    append(log, "unread")
    shutil.copy(log, log.with_name("syslog.1"))
    os.truncate(log, 0)
    append(log, "x" * 1_000, "two")
    if restarted:
        tail.close()
        tail = follow(log, tail.position)
    assert new(tail) == ["unread", "x" * 1_000, "two"]
    append(log, "three")
    assert new(tail) == ["three"]


def test_a_line_that_is_being_written_at_the_start_is_read_from_its_beginning(log: Path, follow: Follow) -> None:
    with log.open("a") as stream:
        stream.write("be")
    tail = follow(log)
    append(log, "gun")
    assert new(tail) == ["begun"]


def test_a_file_whose_predecessor_was_deleted_is_read_from_its_beginning(log: Path, follow: Follow) -> None:
    tail = follow(log)
    append(log, "one")
    assert new(tail) == ["one"]
    tail.close()
    rename(log)
    append(log, "two")
    compressed = log.with_name("syslog.1")
    compressed.rename(log.with_name("syslog.2.gz"))
    assert new(follow(log, tail.position)) == ["two"]


def test_a_file_that_is_created_later_is_read_from_its_beginning(tmp_path: Path, follow: Follow) -> None:
    tail = follow(tmp_path / "later")
    assert new(tail) == []
    append(tmp_path / "later", "first")
    assert new(tail) == ["first"]


def test_neither_links_nor_pipes_are_followed(tmp_path: Path, follow: Follow) -> None:
    secret = tmp_path / "secret"
    append(secret, "secret")
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        assert new(follow(tmp_path / name, FilePosition(0, 0))) == []
        assert Syslog(SourceSettings(syslog_files=(str(tmp_path / name),))).probe() is not None


# The source.


def line(message: str, seconds: float | None = None) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if seconds is None else seconds))
    return f"{stamp} host prog[1]: {message}"


def source(*files: Path) -> Syslog:
    return Syslog(SourceSettings(syslog_files=tuple(map(str, files))))


def test_secrets_in_command_lines_that_a_message_quotes_are_masked(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.touch()
    run = Run(tmp_path / "events.db", source(log))
    append(log, line("alice : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/mysql -phunter2 shop"))
    append(log, line("   alice : (command continued) --password=hunter2 x"))
    append(log, line("a password: as it was written"))
    assert run.messages() == [
        "alice : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/mysql -p*** shop",
        "   alice : (command continued) --password=*** x",
        "a password: as it was written",
    ]
    run.end()


class Run:
    """One run of the agent on a store: this source only, drained when asked."""

    def __init__(self, path: Path, syslog: Syslog) -> None:
        self.store = EventStore(path, TABLES, EventSettings())
        self.source = syslog
        assert syslog.probe() is None
        syslog.resume(self.store.recording_position)
        syslog.start(self.store.append)

    def messages(self) -> list[str]:
        self.source.drain()
        self.store.flush()
        return [message for (message,) in read_rows(self.store.uri, f"SELECT message FROM {TABLE} ORDER BY seq")]

    def end(self) -> None:
        self.source.stop()
        self.store.close()


def test_lines_of_several_files_are_rows(log: Path) -> None:
    auth = log.with_name("auth.log")
    with Recording([source(log, auth)]) as recording:
        append(log, line("from syslog"))
        append(auth, line("from auth.log"))
        (event,) = recording.expect(TABLE, message="from auth.log")
        recording.expect(TABLE, message="from syslog")
    assert not recording.events(TABLE, message="old")
    assert (event["process"], event["pid"], event["level"]) == ("prog", 1, None)
    assert f"{auth.stat().st_ino}:{auth.stat().st_size}" in event["cursor"]


def test_a_restart_continues_after_the_last_line_of_each_file(log: Path, tmp_path: Path) -> None:
    auth, store = log.with_name("auth.log"), tmp_path / "events.db"
    append(auth, "old")
    first = Run(store, source(log, auth))
    append(log, line("one"))
    assert first.messages() == ["one"]
    append(auth, line("two"))
    assert first.messages() == ["one", "two"]
    first.end()
    append(log, line("three"))
    rename(log)
    append(log, line("four"))
    append(auth, line("five"))
    second = Run(store, source(log, auth))
    assert second.messages() == ["one", "two", "three", "four", "five"]
    second.end()


def test_a_file_unknown_to_the_earlier_run_is_read_from_the_end_of_that_run(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "messages"
    append(other, line("long ago", time.time() - 3_600), line("just now", time.time() + 1))
    syslog = source(log, other)
    syslog.resume(lambda _: RecordingPosition(f"{log.stat().st_ino}:{log.stat().st_size}", time.time() - 60))
    with Recording([syslog]) as recording:
        recording.expect(TABLE, message="just now")
        append(other, line("an hour back by its own clock", time.time() - 3_600))
        recording.expect(TABLE, message="an hour back by its own clock")
    assert not recording.events(TABLE, message="long ago")


def test_the_first_file_of_each_pair_that_is_there_is_taken(tmp_path: Path) -> None:
    pairs = [[str(tmp_path / Path(name).name) for name in pair] for pair in FILES]
    syslog = Syslog(SourceSettings(), pairs)
    reason = syslog.probe()
    assert reason is not None
    assert reason.startswith(f"neither {tmp_path}/syslog nor {tmp_path}/messages nor ")
    for name in ("messages", "secure"):
        (tmp_path / name).touch()
    assert syslog.probe() is None
    with Recording([syslog]) as recording:
        append(tmp_path / "secure", line("a login"))
        recording.expect(TABLE, message="a login")


def test_a_hundred_thousand_lines_are_read_at_once(log: Path) -> None:
    rows: list[SystemLogEntry] = []
    syslog = source(log)
    syslog.start(lambda _, more: rows.extend(more))
    append(log, *(line(f"number {number}") for number in range(100_000)))
    syslog.drain()
    syslog.stop()
    assert [row.message for row in rows] == [f"number {number}" for number in range(100_000)]
