"""The journal as a source of the system's log: a real journald, a real journalctl, any bytes."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journald import PrivateJournal, private_journal
from recording import Event, Recording
from waiting import until_sync

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.reading import read_rows
from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.events.store import EventStore
from zeek_agent.recording.source import Sink, Source
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.recording.system_log.journal import Journal, log_entry, read_entries
from zeek_agent.recording.system_log.log_entry import MESSAGE_BYTES, SystemLogEntry
from zeek_agent.recording.system_log.syslog import Syslog
from zeek_agent.tables.system_logs import TABLES
from zeek_agent.text import from_bytes, to_bytes

TABLE = "system_logs_events"
CURSOR = "s=9d5;i=2fd;b=941;m=d0ddeb14;t=660fe7d6f42f1;x=e099d04cb92a6914"

root = pytest.mark.root


@pytest.fixture(scope="module")
def journal() -> Iterator[PrivateJournal]:
    with private_journal() as started:
        yield started


@pytest.fixture(scope="module")
def recording(journal: PrivateJournal) -> Iterator[Recording]:
    journal.write(MESSAGE="logged before the agent started")
    until_sync(lambda: "logged before" in journal.read("--output=cat"))
    with Recording([journal.source()]) as recording:
        yield recording


def logged(recording: Recording, message: str) -> Event:
    (event,) = recording.expect(TABLE, message=message)
    return event


@root
def test_an_entry_is_a_row_with_the_journals_trusted_fields(journal: PrivateJournal, recording: Recording) -> None:
    journal.write(
        MESSAGE="session opened for user root", PRIORITY=6, SYSLOG_IDENTIFIER="sshd", SYSLOG_FACILITY=10, SYSLOG_PID=1
    )
    event = logged(recording, "session opened for user root")
    shown = journal.read("--output=export", f"--cursor={event['cursor']}", "--lines=1")
    assert f"__REALTIME_TIMESTAMP={round(event.pop('time') * 1e6)}\n" in shown
    assert f"__CURSOR={event.pop('cursor')}\n" in shown
    assert event == {
        "process": Path(f"/proc/{os.getpid()}/comm").read_text().strip(),
        "level": "6",
        "message": "session opened for user root",
        "eventid": None,
        "pid": os.getpid(),
        "uid": 0,
        "exe": os.path.realpath(sys.executable),
        "unit": None,
        "identifier": "sshd",
        "facility": 10,
    }


@root
def test_secrets_in_command_lines_that_a_message_quotes_are_masked(
    journal: PrivateJournal, recording: Recording
) -> None:
    journal.write(MESSAGE="alice : USER=root ; COMMAND=/usr/bin/mysql -phunter2 shop", SYSLOG_IDENTIFIER="sudo")
    assert logged(recording, "alice : USER=root ; COMMAND=/usr/bin/mysql -p*** shop")["identifier"] == "sudo"


@root
def test_entries_from_before_the_first_start_are_not_replayed(journal: PrivateJournal, recording: Recording) -> None:
    journal.write(MESSAGE="the first one")
    logged(recording, "the first one")
    assert "logged before the agent started" not in {event["message"] for event in recording.events(TABLE)}


@root
@pytest.mark.parametrize(
    "message",
    [
        b"nul \x00 and \xff\xfe no UTF-8",
        b"two\nlines\n\n__CURSOR=forged\nMESSAGE=forged\n",
        b"\x1b[2J=\\x00",
        b"",
        b"=",
        b"\n",
    ],
)
def test_any_bytes_arrive_as_they_are(journal: PrivateJournal, recording: Recording, message: bytes) -> None:
    before = len(recording.events(TABLE, message=from_bytes(message)))
    journal.write(MESSAGE=message, PRIORITY=5)
    event = recording.expect(TABLE, count=before + 1, message=from_bytes(message))[-1]
    assert to_bytes(event["message"]) == message


@root
def test_fields_set_by_programs_are_not_trusted(journal: PrivateJournal, recording: Recording) -> None:
    journal.write(MESSAGE="odd fields", PRIORITY="7; DROP", SYSLOG_FACILITY="-1", SYSLOG_IDENTIFIER=b"\xff", _PID=1)
    event = logged(recording, "odd fields")
    assert (event["level"], event["facility"], event["pid"]) == (None, None, os.getpid())
    assert event["identifier"] == from_bytes(b"\xff")


@root
def test_the_first_value_of_a_repeated_field_counts(journal: PrivateJournal, recording: Recording) -> None:
    journal.write(("MESSAGE", "one of two"), ("MESSAGE", "two of two"), PRIORITY=1)
    recorded = recording.expect(TABLE, level="1")
    assert [event["message"] in {"one of two", "two of two"} for event in recorded] == [True]


@root
@pytest.mark.parametrize("character", ["x", "\u20ac", "\0"])
def test_a_long_message_is_cut_between_characters(
    journal: PrivateJournal, recording: Recording, character: str
) -> None:
    journal.write(MESSAGE=character * (150_000 // len(character.encode())), SYSLOG_IDENTIFIER=f"long {character!r}")
    (event,) = recording.expect(TABLE, identifier=f"long {character!r}")
    assert MESSAGE_BYTES - 2 <= len(event["message"].encode()) <= MESSAGE_BYTES
    assert set(event["message"]) == {character}


@root
def test_the_agent_s_own_entries_are_left_out(journal: PrivateJournal) -> None:
    with Recording([journal.source(ignore_self=True)]) as recording:
        journal.write(MESSAGE="from the agent itself")
        subprocess.run([*journal.prefix, "logger", "--journald"], input=b"MESSAGE=from another\n", check=True)
        logged(recording, "from another")
        assert not recording.events(TABLE, message="from the agent itself")


class Run:
    """One run of the agent on a store: a supervisor with these sources."""

    def __init__(self, path: Path, sources: Sequence[Source], **settings: float) -> None:
        self.store = EventStore(path, TABLES, EventSettings(**settings))  # type: ignore[arg-type]
        chosen = {"system_logs": list(sources)}
        self.supervisor = Supervisor(SourceSettings(), self.store, choose=lambda *_: chosen, interval_seconds=0.02)
        self.supervisor.start()

    def messages(self) -> list[str]:
        self.supervisor.drain()
        self.store.flush()
        return [message for (message,) in read_rows(self.store.uri, f"SELECT message FROM {TABLE} ORDER BY seq")]

    def expect(self, *messages: str) -> None:
        until_sync(lambda: self.messages() == list(messages), 30)

    def end(self) -> None:
        self.supervisor.stop()
        self.store.close()


@pytest.fixture
def own_journal() -> Iterator[PrivateJournal]:
    with private_journal() as started:
        yield started


@root
@pytest.mark.parametrize("meanwhile", [(), ("--rotate",), ("--flush",), ("--rotate", "--vacuum-files=1")])
def test_a_restart_continues_after_the_last_entry(
    own_journal: PrivateJournal, tmp_path: Path, meanwhile: Sequence[str]
) -> None:
    (own_journal.root / "var/log/journal").mkdir()
    first = Run(tmp_path / "events.db", [own_journal.source()])
    own_journal.write(MESSAGE="one")
    first.expect("one")
    own_journal.write(MESSAGE="two")
    first.expect("one", "two")
    first.end()
    kept = []
    for argument in meanwhile:
        own_journal.control(argument)
    for number in range(3):
        kept.append(f"while it was down: {number}")
        own_journal.write(MESSAGE=kept[-1])
    second = Run(tmp_path / "events.db", [own_journal.source()])
    own_journal.write(MESSAGE="three")

    def without_journald() -> list[str]:
        return [
            message
            for message in second.messages()
            if not message.startswith(("Runtime", "System Journal", "Time spent"))
        ]

    until_sync(lambda: without_journald() == ["one", "two", *kept, "three"])
    second.end()


@root
def test_after_a_reboot_that_deleted_the_journal_it_continues_by_time(own_journal: PrivateJournal) -> None:
    own_journal.write(MESSAGE="before the last row")
    until_sync(lambda: "before the last row" in own_journal.read("--output=cat"))
    now = time.time()
    own_journal.write(MESSAGE="after the last row")
    source = own_journal.source()
    lost = f"s={'1' * 32};i=7;b={'2' * 32};m=3;t={int(now * 1e6):x};x=4"
    source.resume(lambda _: RecordingPosition(lost, now))
    with Recording([source]) as recording:
        logged(recording, "after the last row")
    assert not recording.events(TABLE, message="before the last row")


@root
def test_entries_older_than_the_retention_are_not_recorded(own_journal: PrivateJournal, tmp_path: Path) -> None:
    first = Run(tmp_path / "events.db", [own_journal.source()], retention_age=0.5)
    own_journal.write(MESSAGE="one")
    first.expect("one")
    first.end()
    own_journal.write(MESSAGE="too old soon")
    until_sync(lambda: "too old" in own_journal.read("--output=cat"))
    until_sync(lambda: "too old" not in own_journal.read("--output=cat", "--since=-0.6s"))
    own_journal.write(MESSAGE="young")
    second = Run(tmp_path / "events.db", [own_journal.source()], retention_age=0.5)
    until_sync(lambda: bool(second.messages()))
    assert not {"too old soon"} & set(second.messages())
    second.end()


@root
def test_a_journalctl_that_is_killed_is_started_again_and_nothing_is_missing_or_twice(
    own_journal: PrivateJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = own_journal.source()
    run = Run(tmp_path / "events.db", [source])
    own_journal.write(MESSAGE="one")
    run.expect("one")
    assert source._process is not None
    os.kill(source._process.pid, signal.SIGKILL)
    own_journal.write(MESSAGE="two")
    own_journal.write(MESSAGE="three")
    run.expect("one", "two", "three")
    assert "restarting it" in caplog.text
    assert source.failure is None
    run.end()


def test_a_journalctl_that_cannot_work_gives_way_to_the_files_of_syslog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeek_agent.recording.system_log.journal._RESTART_PAUSE_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    journalctl = tmp_path / "journalctl"
    journalctl.write_text("#!/bin/sh\necho 'Failed to open the journal: no luck' >&2\nexit 3\n")
    journalctl.chmod(0o755)
    machine = tmp_path / "journal" / "0123456789abcdef"
    machine.mkdir(parents=True)
    (machine / "system.journal").touch()
    broken = Journal(SourceSettings(), [str(journalctl)], [tmp_path / "journal"], machine_id(tmp_path))
    file = tmp_path / "syslog"
    file.touch()
    run = Run(tmp_path / "events.db", [broken, Syslog(SourceSettings(syslog_files=(str(file),)))])
    until_sync(lambda: "recorded by syslog" in caplog.text)
    with file.open("a") as stream:
        stream.write("Nov 24 04:48:05 host cron[1]: from the file\n")
    run.expect("from the file")
    reasons = {row.backend: row.reason for row in run.supervisor.status()}
    assert reasons["journal"] == f"{journalctl} ended with status 3 (Failed to open the journal: no luck)"
    run.end()


class Ends(Source):
    """Has recorded an entry of the journal when it fails."""

    kind = "system_logs"
    backend = "ends"

    def probe(self) -> str | None:
        return "it has failed before" if self.counters.received else None

    def start(self, sink: Sink) -> None:
        self.counters.received += 1
        sink(TABLE, [SystemLogEntry(time.time(), None, None, "from the journal", cursor=CURSOR)])
        self.failure = "the journal is gone"

    def stop(self) -> None:
        pass


def test_syslog_continues_after_the_journals_last_entry(tmp_path: Path) -> None:
    def line(seconds: float, message: str) -> str:
        return f"{datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()} host prog: {message}\n"

    file = tmp_path / "syslog"
    file.write_text(line(-3600, "an hour ago") + line(-1, "in the journal too"))
    run = Run(tmp_path / "events.db", [Ends(), Syslog(SourceSettings(syslog_files=(str(file),)))])
    until_sync(lambda: bool(run.supervisor.status()[1].active))
    with file.open("a") as stream:
        stream.write(line(0, "from the file"))
    run.expect("from the journal", "from the file")
    run.end()


def test_the_reason_for_a_missing_journal_is_one_line(tmp_path: Path) -> None:
    settings = SourceSettings()
    assert Journal(settings, ["no-such-journalctl"]).probe() == "no-such-journalctl is not installed"
    places = [tmp_path / "run", tmp_path / "var"]
    assert Journal(settings, ["true"], places, machine_id(tmp_path)).probe() == (
        f"this machine has no journal: neither {places[0]}/0123456789abcdef nor {places[1]}/0123456789abcdef holds one"
    )
    reason = Journal(settings, ["true"], places, tmp_path / "no-machine-id").probe()
    assert reason is not None
    assert reason.startswith("cannot determine the owner of the journal: ")


def machine_id(directory: Path) -> Path:
    file = directory / "machine-id"
    file.write_text("0123456789abcdef\n")
    return file


def exported(fields: Sequence[tuple[str, bytes]], *, as_text: bool) -> bytes:
    """An entry in export format, with text fields where that is possible and wanted."""
    lines = []
    for name, value in fields:
        if as_text and b"\n" not in value:
            lines.append(name.encode() + b"=" + value + b"\n")
        else:
            lines.append(name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
    return b"".join(lines) + b"\n"


names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True)
fields = st.lists(st.tuples(names, st.binary(max_size=60)), min_size=1, max_size=6)


@given(st.lists(st.tuples(fields, st.booleans()), max_size=4), st.integers(0, 30))
def test_any_fields_are_read_from_the_export_format(
    written: list[tuple[list[tuple[str, bytes]], bool]], cut: int
) -> None:
    stream = b"".join(exported(one, as_text=as_text) for one, as_text in written)
    wanted = [dict(reversed(one)) for one, _ in written]
    assert list(read_entries(io.BytesIO(stream))) == wanted
    incomplete = list(read_entries(io.BytesIO(stream[: len(stream) - cut])))
    assert incomplete == wanted[: len(incomplete)]


@given(st.binary(max_size=200))
def test_nonsense_in_place_of_the_export_format_does_no_harm(stream: bytes) -> None:
    for one in read_entries(io.BytesIO(stream)):
        with pytest.raises((KeyError, ValueError)):
            log_entry(one)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_huge_value_is_skipped_without_being_held(as_text: bool) -> None:
    class Counting(io.BytesIO):
        largest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            self.largest = max(self.largest, len(line))
            return line

        def read(self, size: int | None = -1, /) -> bytes:
            piece = super().read(size)
            self.largest = max(self.largest, len(piece))
            return piece

    places = [("__CURSOR", CURSOR.encode()), ("__REALTIME_TIMESTAMP", b"1700000000000000")]
    huge = exported([*places, ("MESSAGE", b"m" * 20_000_000), ("PRIORITY", b"3")], as_text=as_text)
    stream = Counting(huge + exported([*places, ("MESSAGE", b"next")], as_text=True))
    first, second = map(log_entry, read_entries(stream))
    assert first.message == "m" * MESSAGE_BYTES
    assert first.level == "3"
    assert second.message == "next"
    assert stream.largest < 2 * MESSAGE_BYTES


@pytest.mark.parametrize("missing", ["__CURSOR", "__REALTIME_TIMESTAMP"])
def test_an_entry_without_place_or_time_is_counted_as_not_decoded(missing: str) -> None:
    source = Journal(SourceSettings())
    complete = {"__CURSOR": CURSOR.encode(), "__REALTIME_TIMESTAMP": b"1700000000000000"}
    source._record({name: value for name, value in complete.items() if name != missing})
    assert source.counters.lost["decode"] == 1
    assert missing in str(source.counters.last_error)
