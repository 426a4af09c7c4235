"""The source of process events on macOS, with a program that writes what eslogger would."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import es_messages
import pytest
from es_messages import Messages, Object, begin, line, process
from fake_program import FakeProgram, Step, fake_eslogger, write, write_raw
from recording import Recording
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.host.macos.eslogger_errors import with_remedy
from zeek_agent.host.macos.eslogger_line import Message, read_line
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.processes.eslogger import Eslogger
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.source import MissedTime
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.schema import EventRow
from zeek_agent.tables.events import TABLES
from zeek_agent.text import from_bytes

pytestmark = pytest.mark.documented_shape

TABLE = "processes_events"
BOOT = "4f3a9c21-d07b-4000-8000-000000000000"
NOT_PERMITTED = {"complain": "Failed to create ES client: ES_NEW_CLIENT_RESULT_ERR_NOT_PERMITTED\n"}


class Living:
    """Living processes, as the system shows them."""

    start_unit_ns = 1_000

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = {process.pid: process for process in processes}

    def now(self) -> int:
        return time.time_ns()

    def pids(self) -> list[int]:
        return [*self._processes, 99_999]

    def read(self, pid: int, _: Masker) -> Process | None:
        return self._processes.get(pid)


def running(pid: int, started: int) -> Process:
    """A living process that started so many microseconds after `begin`."""
    started += begin()
    return Process(pid, started, started * 1_000, started * 1_000, f"4f3a9c21d07b-{pid}-{started}", "x", exe="/bin/x")


def source(
    program: FakeProgram,
    *,
    settings: SourceSettings | None = None,
    is_root: bool = True,
    is_alive: Callable[[int], bool] = lambda _: True,
    living: Sequence[Process] = (),
    begin_seconds: float = 30.0,
) -> Eslogger:
    return Eslogger(
        settings or SourceSettings(),
        command=[str(program.path)],
        is_root=lambda: is_root,
        boot=lambda: BOOT,
        is_alive=is_alive,
        living=Living(living),
        begin_seconds=begin_seconds,
    )


@pytest.fixture
def messages() -> Messages:
    return Messages()


@pytest.fixture
def first(messages: Messages) -> bytes:
    """A message that shows that eslogger works."""
    return line(messages.exit(process(300, "/usr/bin/true"), 0))


def run(messages: Messages, pid: int, args: Sequence[str], at: int = 1_000) -> list[Object]:
    """The messages of a program that a shell executes."""
    shell, child, program = process(400), process(pid, parent=400), process(pid, "/usr/bin/id", parent=400, inode=5)
    return [
        messages.fork(shell, child, at),
        messages.exec(child, program, list(args), at + 1),
        messages.exit(program, at + 2),
    ]


def test_programs_have_rows_from_start_to_end(tmp_path: Path, messages: Messages, first: bytes) -> None:
    program = fake_eslogger(tmp_path, [write(first, *map(line, run(messages, 401, ["id", "-u"])))])
    with Recording([source(program)]) as recording:
        (stopped,) = recording.expect(TABLE, pid=401, state="stopped")
        (started,) = recording.events(TABLE, pid=401, state="started")
    assert (started["cmdline"], started["parent_exe"], started["uid"]) == ("id -u", "/bin/zsh", 501)
    assert stopped["entity_id"] == started["entity_id"] == f"4f3a9c21d07b-401-{begin() + 401_000}"
    arguments = [run[2] for run in program.runs()]
    assert arguments == [["--list-events"], ["exec", "fork", "exit"], ["exec", "fork", "exit"]]
    assert all(pid == session for pid, session, _ in program.runs()[1:]), "its own session"


@pytest.mark.parametrize("size", [1, 7, 4_096])
def test_lines_split_anywhere_are_the_same_rows(tmp_path: Path, messages: Messages, first: bytes, size: int) -> None:
    output = b"".join(one + b"\n" for one in (first, *map(line, run(messages, 401, ["id", "a\nb", "\u20ac"]))))
    pieces = [write_raw(output[at : at + size]) for at in range(0, len(output), size)]
    with Recording([source(fake_eslogger(tmp_path, pieces))]) as recording:
        (stopped,) = recording.expect(TABLE, pid=401, state="stopped")
        assert stopped["cmdline"] == "id a\nb \u20ac"
    assert recording.sources[0].counters.lost.total() == 0


def test_a_fork_without_an_exec_appears_after_a_second_and_at_the_end(
    tmp_path: Path, messages: Messages, first: bytes
) -> None:
    shell = process(400)
    program = fake_eslogger(
        tmp_path,
        [
            write(first, line(messages.fork(shell, process(401, parent=400), 1_000))),
            {"wait_for": str(tmp_path / "go")},
            write(line(messages.fork(shell, process(402, parent=400), 3 * 10**15))),
        ],
    )
    with Recording([source(program)]) as recording:
        recording.expect(TABLE, pid=401, state="started")
        (tmp_path / "go").touch()
        until_sync(lambda: recording.sources[0].counters.received == 3)
        assert recording.events(TABLE, pid=402) == [], "its time is in the future"
    assert len(recording.events(TABLE, pid=402, state="started")) == 1


def test_losses_are_counted_by_cause(tmp_path: Path, messages: Messages, first: bytes) -> None:
    before = line(messages.exit(process(501, "/bin/a"), 1))
    messages.lose("exit", 4)
    messages.lose("fork", 3)
    damaged = messages.exit(process(502), 2)
    del damaged["process"]
    after = line(messages.exit(process(503, "/bin/b"), 3))
    program = fake_eslogger(tmp_path, [write(first, before, b'{"broken', line(damaged), b"\xff" * 10, after)])
    with Recording([source(program)]) as recording:
        recording.expect(TABLE, pid=503)
    (made,) = recording.sources
    assert made.counters.lost == {"overrun": 6, "decode": 3}, "one of the seven may be the unreadable line before it"
    assert made.counters.received == 3
    assert made.counters.last_error == "Endpoint Security dropped 6 messages for eslogger"


def test_a_line_that_never_ends_is_counted_once_and_skipped(
    tmp_path: Path, messages: Messages, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.recording.processes.eslogger.LINE_BYTES_MAX", 10_000)
    huge = write_raw(b'{"event":"' + b"x" * 500_000)
    after = line(messages.exit(process(501, "/bin/a"), 1))
    with Recording([source(fake_eslogger(tmp_path, [write(first), huge, write(b'"}', after)]))]) as recording:
        recording.expect(TABLE, pid=501)
    assert recording.sources[0].counters.lost["decode"] == 1


def test_processes_that_are_gone_after_a_loss_have_an_end(tmp_path: Path, messages: Messages, first: bytes) -> None:
    started = [line(message) for message in run(messages, 401, ["id"])[:2]]
    messages.lose("exit")
    later = line(messages.exit(process(501, "/bin/a"), 1))
    program = fake_eslogger(tmp_path, [write(first, *started, later)])
    with Recording([source(program, is_alive=lambda pid: pid != 401)]) as recording:
        (stopped,) = recording.expect(TABLE, pid=401, state="stopped")
        assert (stopped["exit_code"], stopped["cmdline"]) == (None, "id")


@pytest.fixture
def ahead_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages' own times decide, however late they are read."""
    monkeypatch.setattr(es_messages, "BEGIN", datetime.now(UTC) + timedelta(hours=1))


@pytest.mark.usefixtures("ahead_of_the_clock")
def test_a_flood_arrives_complete(tmp_path: Path, messages: Messages, first: bytes) -> None:
    pids = range(5_000_000, 5_003_000)  # none of this host, whose own process has no rows
    lines = [line(message) for pid in pids for message in run(messages, pid, ["id", str(pid)])]
    with Recording([source(fake_eslogger(tmp_path, [write(first, *lines)]))]) as recording:
        until_sync(lambda: recording.sources[0].counters.received == 9_001)
    assert len(recording.events(TABLE, state="started")) == 3_000
    assert len(recording.events(TABLE, state="stopped")) == 3_001
    assert recording.sources[0].counters.lost.total() == 0


def test_excluded_users_and_the_agent_have_no_rows(tmp_path: Path, messages: Messages, first: bytes) -> None:
    own = process(os.getpid(), "/usr/bin/python3")
    lines = [line(messages.exec(own, own, ["python3"], 1)), line(messages.exit(process(601, "/bin/x", euid=7), 2))]
    lines.append(line(messages.exit(process(602, "/bin/x"), 3)))
    program = fake_eslogger(tmp_path, [write(first, *lines)])
    with Recording([source(program, settings=SourceSettings(ignore_uids=(7,)))]) as recording:
        recording.expect(TABLE, pid=602)
        assert {event["pid"] for event in recording.events(TABLE)} == {300, 602}


def test_an_executable_is_excluded_as_the_file_that_it_is(tmp_path: Path, messages: Messages, first: bytes) -> None:
    ignored = tmp_path / "ignored"
    ignored.write_bytes(b"program")
    status = ignored.stat()
    same, other = process(601, str(ignored), inode=status.st_ino), process(602, str(ignored), inode=status.st_ino + 1)
    unknown = process(603, str(ignored))
    for one in (same, other):
        one["executable"]["stat"]["st_dev"] = status.st_dev
    del unknown["executable"]["stat"]
    lines = [line(messages.exit(one, at)) for at, one in enumerate((same, other, unknown))]
    settings = SourceSettings(ignore_executables=(str(ignored),))
    with Recording([source(fake_eslogger(tmp_path, [write(first, *lines)]), settings=settings)]) as recording:
        recording.expect(TABLE, pid=603)
        assert {event["pid"] for event in recording.events(TABLE)} == {300, 602, 603}


def test_the_programs_that_show_whether_it_works_have_no_rows(tmp_path: Path, messages: Messages) -> None:
    go, signs = tmp_path / "go", tmp_path / "signs"
    made = source(fake_eslogger(tmp_path, [{"wait_for": str(go)}, write(line(messages.exit(process(1), 0)))]))
    made._sign_of_life = ["/bin/sh", "-c", f"echo $$ >> {signs}; touch {go}"]
    rows: list[EventRow] = []
    made.start(lambda _, found: rows.extend(found))
    pid = int(signs.read_text().split()[0])
    sign, other = process(pid, parent=os.getpid()), process(pid, parent=os.getpid() + 1)
    for actor in (sign, other):  # a later process may have the same id
        message = read_line(line(messages.exit(actor, 1)))
        assert isinstance(message, Message)
        made._pass_on(made._processes.rows(message))
    made.stop()
    assert {(row.pid, row.ppid) for row in rows} == {(1, 1), (pid, os.getpid() + 1)}
    assert len(rows) == 2


def test_processes_that_began_while_nobody_recorded_are_found(tmp_path: Path) -> None:
    messages, second = Messages(), 1_000_000
    first = line(messages.exit(process(300, "/usr/bin/true"), 60 * second))
    ends = [
        line(messages.exit(process(pid, "/bin/x", started=begin() + 30 * second), 61 * second)) for pid in (802, 804)
    ]
    started = {801: 10, 802: 30, 803: 30, 804: 30, 805: 61}
    living = [running(pid, seconds * second) for pid, seconds in started.items()]
    recorded = {living[2].entity_id}
    go = tmp_path / "go"
    program = fake_eslogger(tmp_path, [write(first), {"wait_for": str(go)}, write(*ends)])
    made = source(program, living=living, is_alive=lambda pid: pid != 804)
    made.missed = MissedTime(begin() / 1e6 + 20, lambda *_: frozenset(recorded))
    with Recording([made]) as recording:
        (found,) = recording.expect(TABLE, found_running=True)
        assert (found["pid"], found["state"], found["time"]) == (802, "started", begin() / 1e6 + 30)
        go.touch()
        recording.expect(TABLE, count=2, state="stopped", exe="/bin/x")
        assert len(recording.events(TABLE, state="started")) == 1


def test_processes_whose_start_was_lost_are_found(tmp_path: Path, first: bytes) -> None:
    living = [running(801, 10), running(802, 5_000_000), running(803, 10**15)]
    made = source(fake_eslogger(tmp_path, [write(first)]), living=living)
    with Recording([made]) as recording:
        recording.expect(TABLE, pid=300)
        made.find_lost(begin() / 1e6 + 1)
        assert [event["pid"] for event in recording.events(TABLE, found_running=True)] == [802]
        made.find_lost(begin() / 1e6 + 1)
        assert len(recording.events(TABLE, found_running=True)) == 1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([NOT_PERMITTED, {"exit": 1}], "needs Full Disk Access"),
        ([{"complain": "ES_NEW_CLIENT_RESULT_ERR_NOT_PRIVILEGED"}, {"exit": 1}], "it needs root"),
        ([{"complain": "ES_NEW_CLIENT_RESULT_ERR_TOO_MANY_CLIENTS"}, {"exit": 1}], "too many programs"),
        ([{"complain": "surprise"}, {"exit": 64}], "ended with status 64 (surprise)"),
        ([{"kill": signal.SIGKILL}], "ended with status -9"),
    ],
)
def test_a_refusal_is_explained(tmp_path: Path, steps: list[Step], expected: str) -> None:
    made = source(fake_eslogger(tmp_path, steps))
    reason = made.probe()
    assert reason is not None
    assert expected in reason
    with pytest.raises(OSError, match=re.escape(expected)):
        made.start(lambda *_: None)
    assert made.failure is None
    assert made.counters.received == 0


def test_the_explanation_names_the_program_that_needs_the_permission() -> None:
    reason = with_remedy("eslogger ended with status 1 (… ES_NEW_CLIENT_RESULT_ERR_NOT_PERMITTED)", "/opt/bin/python3")
    assert "/opt/bin/python3 if launchd started the agent" in reason
    assert "System Settings > Privacy & Security > Full Disk Access" in reason
    assert reason.endswith("(eslogger ended with status 1 (… ES_NEW_CLIENT_RESULT_ERR_NOT_PERMITTED))")


def test_without_root_it_is_not_started(tmp_path: Path) -> None:
    program = fake_eslogger(tmp_path, [])
    assert source(program, is_root=False).probe() == "eslogger needs root"
    assert program.runs() == []


def test_a_system_without_eslogger(tmp_path: Path) -> None:
    made = Eslogger(SourceSettings(), command=[str(tmp_path / "eslogger")], is_root=lambda: True)
    assert made.probe() == f"{tmp_path / 'eslogger'} does not exist: it requires macOS 13 or later"


def test_an_eslogger_without_one_of_the_events_is_not_started(tmp_path: Path) -> None:
    program = fake_eslogger(tmp_path, [], events="exec signal")
    assert source(program).probe() == "this eslogger does not report exit and fork"
    assert len(program.runs()) == 1


def test_an_eslogger_that_lists_no_events_is_not_started(tmp_path: Path) -> None:
    program = fake_eslogger(tmp_path, [], list_status=3)
    assert source(program).probe() == f"{program.path} --list-events ended with status 3"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], "it wrote nothing, although programs ran"), ([write(b'{"new":"shape"}')], "unreadable line of eslogger")],
)
def test_one_that_reports_no_event_is_stopped(tmp_path: Path, steps: list[Step], expected: str) -> None:
    program = fake_eslogger(tmp_path, steps)
    reason = source(program, begin_seconds=0.3).probe()
    assert reason is not None
    assert reason.startswith("eslogger reported no event in 0.3 s: ")
    assert expected in reason
    with pytest.raises(ProcessLookupError):
        os.kill(program.runs()[-1][0], 0)


def test_stopping_ends_the_program_by_its_id(tmp_path: Path, first: bytes) -> None:
    program = fake_eslogger(tmp_path, [write(first)])
    made = source(program)
    made.start(lambda *_: None)
    pid = program.runs()[-1][0]
    os.kill(pid, 0)
    made.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    made.stop()
    assert made.failure is None


def test_a_killed_eslogger_is_a_failure(tmp_path: Path, first: bytes) -> None:
    program = fake_eslogger(tmp_path, [write(first)])
    made = source(program)
    made.start(lambda *_: None)
    os.kill(program.runs()[-1][0], signal.SIGKILL)
    until_sync(lambda: made.failure)
    assert made.failure == f"{program.path} ended with status -9"
    made.stop()


def test_messages_of_an_unknown_version_are_logged_once(
    tmp_path: Path, messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [line(messages.exit(process(700 + number, "/bin/x"), number) | {"version": 11}) for number in range(3)]
    with Recording([source(fake_eslogger(tmp_path, [write(*lines)]))]) as recording:
        recording.expect(TABLE, pid=702)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings[-1:]] == [
        "eslogger writes messages of an unknown version, 11 (schema 1): columns may be null"
    ]
    assert len(warnings) == 2, "one of the probe, one of the run"


@pytest.fixture
def store() -> Iterator[EventStore]:
    store = EventStore(None, [table for table in TABLES if table.name == TABLE])
    yield store
    store.close()


@pytest.mark.usefixtures("ahead_of_the_clock")
def test_one_that_is_killed_after_a_while_is_started_again_with_a_gap(
    tmp_path: Path, messages: Messages, first: bytes, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Eslogger, "restart_after_seconds", 0.0)
    program = fake_eslogger(tmp_path, [write(first)])
    made = source(program)
    with_it = Supervisor(SourceSettings(), store, choose=lambda *_: {"processes": [made]}, interval_seconds=0.02)
    with_it.start()
    killed = program.runs()[-1][0]
    program.plan([write(line(messages.exit(process(301, "/usr/bin/true"), 3_600_000_000)))])
    os.kill(killed, signal.SIGKILL)
    until_sync(lambda: program.runs()[-1][0] != killed and with_it.status()[0].active)
    (status,) = with_it.status()
    assert status.last_error == f"{program.path} ended with status -9"
    with_it.stop()
    assert store.flush()
    ((name, begin_of_gap, end_of_gap, cause),) = store.gaps()
    assert (name, cause) == ("processes", "no source was active")
    assert end_of_gap - begin_of_gap == pytest.approx(3_600), "from the last to the next message"


def test_one_that_is_refused_shows_why(tmp_path: Path, store: EventStore) -> None:
    made = source(fake_eslogger(tmp_path, [NOT_PERMITTED, {"exit": 1}]))
    with_it = Supervisor(SourceSettings(), store, choose=lambda *_: {"processes": [made]}, interval_seconds=0.02)
    with_it.start()
    (status,) = with_it.status()
    with_it.stop()
    assert not status.active
    assert "Full Disk Access" in (status.reason or "")


@pytest.mark.usefixtures("ahead_of_the_clock")
def test_hostile_names_are_in_the_store_as_they_are(tmp_path: Path, messages: Messages, store: EventStore) -> None:
    """Any name, also one that is not UTF-8, is one row with one start."""
    target = process(901, "PLACE", parent=400)
    raw = line(messages.exec(process(901, parent=400), target, ["PLACE", "PLACE"], 1_000))
    names = [
        b"/tmp/\xff\xfe",
        b"/tmp/\\n\\u001b[2J",
        b"/tmp/'; DROP TABLE processes_events; --",
        "/tmp/\u202egpj".encode(),
    ]
    lines = []
    for number, name in enumerate(names):
        numbered = raw.replace(b"901", b"%d" % (901 + number)).replace(b'"seq_num":0', b'"seq_num":%d' % number)
        lines.append(numbered.replace(b'"global_seq_num":0', b'"global_seq_num":%d' % number).replace(b"PLACE", name))
    made = source(fake_eslogger(tmp_path, [write(*lines)]))
    with_it = Supervisor(SourceSettings(), store, choose=lambda *_: {"processes": [made]})
    with_it.start()
    until_sync(lambda: made.counters.received == len(names))
    with_it.stop()
    assert store.flush()
    rows = read_rows(store.uri, "SELECT exe, cmdline FROM processes_events ORDER BY seq")
    paths = [from_bytes(name.replace(b"\\n", b"\n").replace(b"\\u001b", b"\x1b")) for name in names]
    assert rows == [(path, f"{path} {path}") for path in paths]
    assert made.counters.lost.total() == 0
