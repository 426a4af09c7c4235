"""Process events without eBPF, from processes that really ran: each backend at the rate that it has to bear."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from children import child
from recording import Event, Recording, argv_of, generate
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.recording.audit.audit import AuditProcesses
from zeek_agent.recording.audit.audit_rules import AuditControl
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes import proc_connector
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.snapshots import ProcessSnapshots
from zeek_agent.recording.source import Source

TABLE = "processes_events"
PYTHON = str(Path(sys.executable).resolve())
FACTS = ("name", "ppid", "uid", "gid", "ruid", "rgid", "exe", "cwd", "loginuid", "cgroup", "netns", "entity_id")

CLOCKS = 0.05
"""Seconds by which the kernel's ticks and the clocks of this test may differ."""

root = pytest.mark.root


def source(backend: str, **settings: object) -> Source:
    wanted = SourceSettings(**{"audit_rules": True, "snapshot_interval": 0.1, **settings})  # type: ignore[arg-type]
    if backend == "ebpf":
        return EbpfProcesses(BpfMonitor(ProcessCache(), 0), wanted)
    makers: dict[str, type[ProcConnector | AuditProcesses | ProcessSnapshots]] = {
        "proc_connector": ProcConnector,
        "audit": AuditProcesses,
        "snapshots": ProcessSnapshots,
    }
    return makers[backend](ProcessCache(), wanted)


@pytest.fixture(scope="module", params=["proc_connector", "audit", "snapshots"])
def recording(request: pytest.FixtureRequest) -> Iterator[Recording]:
    if request.param != "snapshots" and os.geteuid() != 0:
        pytest.skip("needs root")
    with Recording([source(request.param)]) as recording:
        yield recording


def backend(recording: Recording) -> str:
    return recording.sources[0].backend


def ends(recording: Recording) -> tuple[dict[int, Event], dict[int, Event]]:
    """The starts and the stops that have been recorded, by pid."""
    events = recording.events(TABLE)
    started = {event["pid"]: event for event in events if event["state"] == "started"}
    return started, {event["pid"]: event for event in events if event["state"] == "stopped"}


def waiting(*command: str, **options: object) -> subprocess.Popen[bytes]:
    """A program that reads its standard input, whose end comes with that of the block: it lives until it was seen."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, **options)  # type: ignore[call-overload]


def go_on(process: subprocess.Popen[bytes]) -> None:
    """A line for a shell that reads one."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_a_program_starts_and_stops_with_all_its_attributes(recording: Recording) -> None:
    begun = time.time()
    with waiting("/bin/cat", "-", cwd="/usr") as program:
        (started,) = recording.expect(TABLE, pid=program.pid, state="started", exe="/usr/bin/cat")
        with ProcfsProcess(Procfs(), program.pid) as shown:
            facts = {name: getattr(shown, name) for name in FACTS}
            parent = shown.parent_entity_id
        seen = time.time()
    (stopped,) = recording.expect(TABLE, pid=program.pid, state="stopped")
    ended = time.time()
    for event in (started, stopped):
        assert {name: event[name] for name in facts} == facts
        assert event["cmdline"] == "/bin/cat -"
        assert event["parent_entity_id"] == parent
        assert event["parent_exe"] == PYTHON
    assert begun - CLOCKS <= started["time"] <= seen + CLOCKS
    assert seen - started["time"] - CLOCKS <= stopped["duration"] <= ended - begun + CLOCKS
    assert stopped["exit_code"] == (None if backend(recording) == "snapshots" else 0)


def test_empty_arguments_are_kept(recording: Recording) -> None:
    for arguments in (["-", "", ""], ["-", "a b", ""]):
        with waiting("/bin/sh", "-c", "read line", *arguments) as program:
            (started,) = recording.expect(TABLE, pid=program.pid, state="started", name="sh")
        assert argv_of(started) == ["/bin/sh", "-c", "read line", *arguments]
        assert started["cmdline"] == " ".join(["/bin/sh", "-c", "read line", *arguments])


def test_a_program_without_a_name_has_an_empty_command_line(recording: Recording) -> None:
    with waiting("", executable="/bin/cat") as program:
        (started,) = recording.expect(TABLE, pid=program.pid, state="started", exe="/usr/bin/cat")
    assert (argv_of(started), started["cmdline"]) == ([""], "")


def test_a_process_that_executes_something_else_stays_the_same_process(recording: Recording) -> None:
    with waiting("/bin/sh", "-c", "read line; exec cat") as shell:
        (first,) = recording.expect(TABLE, pid=shell.pid, state="started", name="sh")
        begun = time.monotonic()
        go_on(shell)
        (second,) = recording.expect(TABLE, pid=shell.pid, state="started", name="cat")
        lived = time.monotonic() - begun
    (stopped,) = recording.expect(TABLE, pid=shell.pid, state="stopped")
    assert first["entity_id"] == second["entity_id"] == stopped["entity_id"]
    assert (first["exe"], second["exe"], stopped["exe"]) == (
        os.path.realpath("/bin/sh"),
        "/usr/bin/cat",
        second["exe"],
    )
    assert stopped["duration"] > lived - CLOCKS


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", -signal.SIGKILL)])
def test_the_exit_code_is_recorded_if_known(recording: Recording, command: str, code: int) -> None:
    with waiting("/bin/sh", "-c", f"read line; {command}") as shell:
        recording.expect(TABLE, pid=shell.pid, state="started")
    (stopped,) = recording.expect(TABLE, pid=shell.pid, state="stopped")
    known = {"proc_connector": True, "audit": code > 0, "snapshots": False}
    assert stopped["exit_code"] == (code if known[backend(recording)] else None)


def test_a_process_that_only_forks_is_started_too(recording: Recording) -> None:
    with child() as pid:
        (started,) = recording.expect(TABLE, pid=pid, state="started")
    (stopped,) = recording.expect(TABLE, pid=pid, state="stopped")
    assert started["exe"] == stopped["exe"] == PYTHON
    assert started["entity_id"] == stopped["entity_id"] != started["parent_entity_id"]
    assert started["ppid"] == os.getpid()


def test_a_failed_exec_is_not_a_start(recording: Recording) -> None:
    with waiting("/bin/sh", "-c", "/nonexistent; read line", stderr=subprocess.DEVNULL) as shell:
        recording.expect(TABLE, pid=shell.pid, state="started")
    recording.expect(TABLE, pid=shell.pid, state="stopped")
    assert not recording.events(TABLE, exe="/nonexistent")


@pytest.mark.long
@root
@pytest.mark.parametrize(
    ("name", "count", "rate", "least_known"),
    [
        ("proc_connector", 300, 500, 0),
        ("audit", 150, 200, 150),
        pytest.param("proc_connector", 5_000, 500, 2_500, marks=pytest.mark.soak),
        pytest.param("audit", 2_000, 200, 2_000, marks=pytest.mark.soak),
    ],
)
def test_every_start_and_stop_is_there_at_the_rate_that_the_backend_has_to_bear(
    name: str, count: int, rate: int, least_known: int
) -> None:
    """The executable of a process that is gone at once is in its audit record, or was looked up in time."""
    with Recording([source(name)]) as recording:
        pids = {pid for (pid,) in generate("exec", count, rate, "/bin/true", "argument")}
        until_sync(lambda: all(pids <= found.keys() for found in ends(recording)))
        _, stopped = ends(recording)
    assert all(stopped[pid]["exit_code"] == 0 for pid in pids)
    known = [stopped[pid] for pid in pids if stopped[pid]["exe"] is not None]
    assert {event["exe"] for event in known} <= {"/usr/bin/true"}
    assert len(known) >= least_known


@root
def test_every_backend_gives_a_process_the_same_entity_id() -> None:
    names = ["ebpf", "proc_connector", "audit", "snapshots"]
    with ExitStack() as stack:
        recordings = [stack.enter_context(Recording([source(name)])) for name in names]
        shown = {}
        with ExitStack() as living:
            for program in [living.enter_context(waiting("/bin/cat")) for _ in range(20)]:
                with ProcfsProcess(Procfs(), program.pid) as process:
                    shown[program.pid] = process.entity_id
            check_ids(recordings, shown, "started")
        check_ids(recordings, shown, "stopped")


def check_ids(recordings: list[Recording], shown: dict[int, str], state: str) -> None:
    for recording in recordings:
        for pid, entity_id in shown.items():
            events = recording.expect(TABLE, pid=pid, state=state)
            assert {event["entity_id"] for event in events} == {entity_id}, backend(recording)


@root
def test_the_last_thread_ends_the_process_also_when_the_first_went_before() -> None:
    code = (
        "import ctypes, threading, time, os\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), os._exit(9))).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
    )
    with Recording([source("proc_connector")]) as recording:
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            pass
        (stopped,) = recording.expect(TABLE, pid=process.pid, state="stopped")
    assert stopped["exit_code"] == 9
    assert stopped["duration"] > 0.2


@root
def test_messages_that_the_process_connector_had_to_drop_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc_connector, "_BUFFER_BYTES", 4_096)
    with Recording([source("proc_connector")]) as recording:
        counters = recording.sources[0].counters
        with recording.sources[0]._listener._lock:  # type: ignore[attr-defined]
            pids = [pid for (pid,) in generate("exec", 300, 0, "/bin/true")]
        for cpu in os.sched_getaffinity(0):  # each numbers its messages: the next one tells of those dropped before
            with subprocess.Popen(["taskset", "--cpu-list", str(cpu), "sleep", "0.3"]) as after:
                pass
            recording.expect(TABLE, pid=after.pid, state="stopped")
        seen = [event for event in recording.events(TABLE) if event["pid"] in pids]
    assert len(seen) < 600
    assert counters.lost["overrun"] >= 600 - len(seen)


@root
def test_excluded_processes_and_connections_are_not_recorded() -> None:
    with Recording([source("proc_connector", ignore_uids=(65534,))]) as recording:
        with (
            waiting("/bin/sh", "-c", "read line; true", user=65534, group=65534, cwd="/") as by_user,
            waiting("/bin/sh", "-c", "read line; true") as shell,
        ):
            recording.expect(TABLE, pid=shell.pid, state="started")
        recording.expect(TABLE, pid=shell.pid, state="stopped")
        assert not recording.events(TABLE, pid=by_user.pid)


def rules() -> list[str]:
    with AuditControl() as control:
        return [raw[1040:].rstrip(b"\0").decode() for raw in control._rules()]


CRASHING = """
import os
from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.audit.audit import AuditProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
source = AuditProcesses(ProcessCache(), SourceSettings(audit_rules=True))
source.start(lambda table, rows: None)
os.kill(os.getpid(), 9)
"""


@pytest.mark.long
@root
def test_own_audit_rules_are_removed_with_the_agent_even_after_a_crash() -> None:
    with AuditControl() as control:
        before = control.status()
    others = rules()
    with Recording([source("audit")]):
        assert any(key.startswith(f"zeek-agent:{os.getpid()}:") for key in rules())
    assert rules() == others
    with subprocess.Popen([sys.executable, "-c", CRASHING]) as crashing:
        pass
    assert any(key.startswith(f"zeek-agent:{crashing.pid}:") for key in rules())
    source("audit").clean_up()
    assert rules() == others
    with AuditControl() as control:
        after = control.status()
    assert (after.enabled, after.backlog_limit) == (before.enabled, before.backlog_limit)


AUDITD_CONFIGURATION = """
local_events = yes
write_logs = yes
log_file = {directory}/audit.log
log_group = root
log_format = RAW
flush = NONE
space_left = 1
space_left_action = IGNORE
admin_space_left = 0
admin_space_left_action = IGNORE
disk_full_action = IGNORE
disk_error_action = IGNORE
plugin_dir = {directory}
"""


@pytest.fixture
def auditd(tmp_path: Path) -> Iterator[Path]:
    """A running audit daemon: the file that it writes."""
    program = shutil.which("auditd", path="/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        pytest.skip("needs auditd, and root")
    with AuditControl() as control:
        before = control.status()
        if before.daemon:
            pytest.skip("an audit daemon runs here")
        tmp_path.chmod(0o700)
        (tmp_path / "auditd.conf").write_text(AUDITD_CONFIGURATION.format(directory=tmp_path))
        process = subprocess.Popen(
            [program, "-n", "-c", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until_sync(lambda: control.status().daemon == process.pid, complaint="auditd does not start")
            yield tmp_path / "audit.log"
        finally:
            process.terminate()
            process.wait()
            control._set(before.enabled, before.backlog_limit)


def test_a_running_audit_daemon_is_left_alone(auditd: Path) -> None:
    with AuditControl() as control:
        daemon = control.status().daemon
        with Recording([source("audit")]) as recording:
            with subprocess.Popen(["/bin/sleep", "0.2"]) as process:
                pass
            (started,) = recording.expect(TABLE, pid=process.pid, state="started")
            recording.expect(TABLE, pid=process.pid, state="stopped", exit_code=0)
            assert control.status().daemon == daemon
        assert started["exe"] == "/usr/bin/sleep"
        assert control.status().daemon == daemon
    until_sync(lambda: f" pid={process.pid} " in auditd.read_text(errors="replace"))


@root
def test_without_rules_the_audit_backend_gives_advice() -> None:
    if rules():
        pytest.skip("the system has audit rules")
    reason = source("audit", audit_rules=False).probe()
    assert reason is not None
    assert "sources.audit_rules" in reason
