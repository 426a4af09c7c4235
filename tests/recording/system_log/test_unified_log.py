"""The unified log of macOS as a source, with a program that writes what `log stream` would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fake_program import FakeProgram, fake_log, write, write_raw
from log_records import HEADER, line, loss, record
from recording import Recording
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.system_log.log_entry import MESSAGE_BYTES
from zeek_agent.recording.system_log.unified_log import UnifiedLog
from zeek_agent.text import from_bytes

pytestmark = pytest.mark.documented_shape

TABLE = "system_logs_events"


def source(program: FakeProgram, settings: SourceSettings | None = None) -> UnifiedLog:
    return UnifiedLog(settings or SourceSettings(), command=[str(program.path)], may_read=lambda: True)


def test_an_entry_is_a_row(tmp_path: Path) -> None:
    program = fake_log(tmp_path, [write(HEADER, line(record("unlocked <private>", messageType="Fault")))])
    with Recording([source(program)]) as recording:
        (event,) = recording.expect(TABLE)
    assert event == {
        "time": 1_772_366_400.25,
        "process": "vaultd",
        "level": "2",
        "message": "unlocked <private>",
        "eventid": None,
        "pid": 321,
        "uid": 501,
        "exe": "/usr/libexec/vaultd",
        "unit": None,
        "identifier": "com.example.vault:keys",
        "facility": None,
        "cursor": None,
    }
    assert recording.sources[0].counters.lost.total() == 0, "the first line is no entry"


def test_the_predicate_selects_the_entries(tmp_path: Path) -> None:
    program = fake_log(tmp_path, [write(HEADER, line(record("x")))])
    with Recording([source(program, SourceSettings(log_predicate='process == "sshd"'))]) as recording:
        recording.expect(TABLE)
    ((_, _, arguments),) = program.runs()
    assert arguments == ["stream", "--style", "ndjson", "--predicate", 'process == "sshd"']


@pytest.mark.parametrize("size", [1, 13])
def test_lines_split_anywhere_are_the_same_rows(tmp_path: Path, size: int) -> None:
    output = b"".join(one + b"\n" for one in (HEADER, line(record("a\nb \u20ac")), line(record("last"))))
    program = fake_log(tmp_path, [write_raw(output[at : at + size]) for at in range(0, len(output), size)])
    with Recording([source(program)]) as recording:
        recording.expect(TABLE, message="last")
        assert [event["message"] for event in recording.events(TABLE)] == ["a\nb \u20ac", "last"]


def test_secrets_in_command_lines_that_a_message_quotes_are_masked(tmp_path: Path) -> None:
    message = "ada : TTY=ttys000 ; USER=root ; COMMAND=/usr/bin/mysql -phunter2 shop"
    with Recording([source(fake_log(tmp_path, [write(HEADER, line(record(message)))]))]) as recording:
        (event,) = recording.expect(TABLE)
    assert event["message"] == "ada : TTY=ttys000 ; USER=root ; COMMAND=/usr/bin/mysql -p*** shop"


def test_a_long_message_is_cut_and_odd_bytes_are_kept(tmp_path: Path) -> None:
    raw = line(record("PLACE")).replace(b"PLACE", b"\xff\xfe" + b"x" * 100_000)
    with Recording([source(fake_log(tmp_path, [write(HEADER, raw)]))]) as recording:
        (event,) = recording.expect(TABLE)
    assert event["message"] == from_bytes(b"\xff\xfe" + b"x" * (MESSAGE_BYTES - 2))


def test_losses_and_unreadable_lines_are_counted(tmp_path: Path) -> None:
    lines = [HEADER, line(loss(40)), HEADER, b"{", line(record("x")), b"y" * 2_000_000, line(record("end"))]
    with Recording([source(fake_log(tmp_path, [write(*lines)]))]) as recording:
        recording.expect(TABLE, message="end")
    (made,) = recording.sources
    assert made.counters.lost == {"overrun": 40, "decode": 3}
    assert made.counters.received == 2
    assert made.counters.last_error == "unreadable line of log (Input data was truncated): {"


def test_the_agents_own_entries_are_left_out(tmp_path: Path) -> None:
    lines = (HEADER, line(record("own", processID=os.getpid())), line(record("other")))
    program = fake_log(tmp_path, [write(*lines)])
    with Recording([source(program)]) as recording:
        recording.expect(TABLE, message="other")
        assert recording.events(TABLE, message="own") == []
    with Recording([source(program, SourceSettings(ignore_self=False))]) as recording:
        recording.expect(TABLE, message="own")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"complain": "log: Must be admin to run 'stream' command\n"}, {"exit": 77}], "(log: Must be admin"),
        ([{"complain": "log: bad predicate\n"}, {"exit": 64}], "ended with status 64 (log: bad predicate)"),
        ([write(HEADER), {"kill": signal.SIGKILL}], "ended with status -9"),
    ],
)
def test_a_log_that_ends_is_a_failure(tmp_path: Path, steps: list[dict[str, object]], expected: str) -> None:
    made = source(fake_log(tmp_path, steps))
    made.start(lambda *_: None)
    until_sync(lambda: made.failure)
    made.stop()
    assert expected in (made.failure or "")


def test_a_second_run_reads_its_own_first_line_and_keeps_the_counters(tmp_path: Path) -> None:
    program = fake_log(tmp_path, [write(HEADER, b"?", line(record("one")))])
    made = source(program)
    for run in (1, 2):
        with Recording([made]) as recording:
            recording.expect(TABLE, message="one")
        assert (made.counters.received, made.counters.lost["decode"]) == (run, run)
    assert made.recorded_until() is not None


def test_without_permission_it_is_not_started(tmp_path: Path) -> None:
    program = fake_log(tmp_path, [])
    made = UnifiedLog(SourceSettings(), command=[str(program.path)], may_read=lambda: False)
    assert made.probe() == "log stream needs root, or a member of the group admin"
    assert (
        UnifiedLog(SourceSettings(), command=[str(tmp_path / "none")]).probe() == f"{tmp_path / 'none'} does not exist"
    )
    assert program.runs() == []
