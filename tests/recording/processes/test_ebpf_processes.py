"""Process events by eBPF, from processes that really ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from asking import ask
from children import exit_code, fork
from recording import Recording, argv_of, generate, load_generator
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.tables.processes import processes

pytestmark = pytest.mark.root
TABLE = "processes_events"
SHOWN = (
    "pid",
    "ppid",
    "uid",
    "gid",
    "ruid",
    "rgid",
    "exe",
    "cwd",
    "loginuid",
    "session",
    "cgroup",
    "netns",
    "entity_id",
)


def source(**settings: object) -> EbpfProcesses:
    wanted = SourceSettings(**settings)  # type: ignore[arg-type]
    return EbpfProcesses(BpfMonitor(ProcessCache(), wanted.ring_bytes), wanted)


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with Recording([source()]) as recording:
        yield recording


def run(*command: str, **options: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    process.wait()
    return process


def test_a_program_starts_and_stops_with_all_its_attributes(recording: Recording) -> None:
    begun = time.monotonic()
    with (
        subprocess.Popen(["/bin/sleep", "0.05"], cwd="/usr") as sleeping,
        ProcfsProcess(Procfs(), sleeping.pid) as shown,
    ):
        facts = {name: getattr(shown, name) for name in SHOWN}
        parent = shown.parent_entity_id
    lived = time.monotonic() - begun
    (started,) = recording.expect(TABLE, pid=sleeping.pid, state="started")
    (stopped,) = recording.expect(TABLE, pid=sleeping.pid, state="stopped")
    for event in (started, stopped):
        assert {name: event[name] for name in facts} == facts
        assert event["cmdline"] == "/bin/sleep 0.05"
        assert event["name"] == "sleep"
        assert event["parent_entity_id"] == parent
        assert event["parent_exe"] == str(Path(sys.executable).resolve())
    assert started["duration"] is None
    assert started["exit_code"] is None
    assert stopped["exit_code"] == 0
    assert 0.05 <= stopped["duration"] < lived
    assert stopped["time"] - started["time"] == pytest.approx(stopped["duration"], abs=0.05)
    assert stopped["vsize"] > 1_000_000
    assert 0 <= stopped["utime"] + stopped["stime"] < 0.05


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", -signal.SIGKILL)])
def test_the_exit_code_or_signal_is_recorded(recording: Recording, command: str, code: int) -> None:
    shell = run("/bin/sh", "-c", command)
    (stopped,) = recording.expect(TABLE, pid=shell.pid, state="stopped")
    assert stopped["exit_code"] == code == shell.returncode


ID = "3f2a" * 16
UNIFIED, MEMORY, PIDS = (Path("/sys/fs/cgroup") / name for name in ("unified", "memory", "pids"))


MOVED = 'for group; do echo $$ > "$group/cgroup.procs"; done; exec sleep 30'


@contextmanager
def sleeping_in(*groups: Path) -> Iterator[int]:
    """The pid of sleep(1) in these control groups; a test of it needs both versions of them."""
    missing = [root for root in (UNIFIED, MEMORY, PIDS) if not (root / "cgroup.procs").exists()]
    if missing:
        pytest.skip(f"needs control groups of both versions: there is no {missing[0]}")
    made: list[Path] = []
    try:
        for part in [part for group in groups for part in (*reversed(group.parents), group)]:
            if not part.exists():
                part.mkdir()
                made.append(part)
        with subprocess.Popen(["/bin/sh", "-c", MOVED, "sh", *groups]) as process:
            yield process.pid
            process.kill()
    finally:
        for group in reversed(made):
            until_sync(lambda group=group: _removed(group), complaint=f"{group} is in use")  # type: ignore[misc]


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.parametrize(
    ("unified", "v1", "expected", "container"),
    [
        ("zt.slice/runtime.service", f"zt-docker/{ID}", f"/zt-docker/{ID}", ID),
        ("zt.slice/runtime.service", f"zt.slice/runtime.service/{ID}", f"/zt.slice/runtime.service/{ID}", ID),
        ("zt.slice/shell.service", "zt.slice", "/zt.slice/shell.service", None),
        ("zt.slice/shell.service", "zt.slice/shell.service", "/zt.slice/shell.service", None),
        ("zt.slice/shell.service", ".", "/zt.slice/shell.service", None),
        (".", f"zt-docker/{ID}", f"/zt-docker/{ID}", ID),
    ],
)
@pytest.mark.parametrize("controllers", [(MEMORY, PIDS), (PIDS,)], ids=["memory and pids", "pids"])
def test_a_container_of_version_1_is_found_where_both_versions_are_in_use(
    recording: Recording, unified: str, v1: str, expected: str, container: str | None, controllers: tuple[Path, ...]
) -> None:
    others = [] if MEMORY in controllers else [MEMORY]
    groups = [UNIFIED / unified, *(controller / v1 for controller in controllers), *others]
    with sleeping_in(*groups) as pid:
        (event,) = recording.expect(TABLE, pid=pid, name="sleep", state="started")
        assert (event["cgroup"], event["container_id"]) == (expected, container)
        with ProcfsProcess(Procfs(), pid) as shown:
            assert (shown.cgroup, shown.container_id) == (expected, container)
        for rows in (ask(processes, pid=pid), ask(processes)):
            (row,) = [row for row in rows if row["pid"] == pid]
            assert (row["cgroup"], row["container_id"]) == (expected, container)


def test_a_script_shows_its_interpreter_and_its_own_path(recording: Recording, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ntrue\n")
    script.chmod(0o755)
    process = run(str(script), "argument")
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["exe"] == str(Path("/bin/sh").resolve())
    assert started["cmdline"] == f"/bin/sh {script} argument"
    assert started["name"] == "script"


def test_a_failed_exec_is_not_a_start(recording: Recording, tmp_path: Path) -> None:
    code = f"import os\ntry: os.execv({str(tmp_path / 'missing')!r}, ['missing'])\nexcept OSError: os._exit(3)"
    process = run(sys.executable, "-c", code)
    recording.expect(TABLE, pid=process.pid, state="stopped", exit_code=3)
    assert len(recording.events(TABLE, pid=process.pid, state="started")) == 1


def test_a_process_executes_twice_and_stays_the_same_process(recording: Recording) -> None:
    process = run("/bin/sh", "-c", "exec /bin/true again")
    shell, true = recording.expect(TABLE, count=2, pid=process.pid, state="started")
    assert shell["entity_id"] == true["entity_id"]
    assert (shell["name"], true["cmdline"]) == ("sh", "/bin/true again")


def test_a_deleted_executable_and_one_in_memory_are_named_as_proc_names_them(
    recording: Recording, tmp_path: Path
) -> None:
    program = Path("/bin/true").read_bytes()
    in_memory = os.memfd_create("payload")
    os.write(in_memory, program)
    process = run(f"/proc/self/fd/{in_memory}", pass_fds=[in_memory])
    os.close(in_memory)
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["exe"] == "/memfd:payload (deleted)"

    gone = tmp_path / "gone"
    gone.write_bytes(program)
    gone.chmod(0o755)
    descriptor = os.open(gone, os.O_RDONLY)
    gone.unlink()
    process = run(f"/proc/self/fd/{descriptor}", pass_fds=[descriptor])
    os.close(descriptor)
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["exe"] == f"{gone} (deleted)"


@pytest.mark.parametrize("arguments", [[""], ["", ""], ["a", ""], ["a", "", ""], ["", "a b", '"', "ü"]])
def test_empty_arguments_are_kept(recording: Recording, arguments: list[str]) -> None:
    process = run("/bin/true", *arguments)
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert argv_of(started) == ["/bin/true", *arguments]
    assert started["cmdline"] == " ".join(["/bin/true", *arguments])


def test_a_program_without_a_name_has_an_empty_command_line(recording: Recording) -> None:
    process = run("", executable="/bin/true")
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert (argv_of(started), started["cmdline"]) == ([""], "")


def test_arguments_that_are_cut_are_masked_and_have_no_vector(recording: Recording) -> None:
    process = run("/bin/true", "y" * 4_000, "--password", "hunter2" * 100)
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["argv"] is None
    assert started["cmdline"] == f"/bin/true {'y' * 4_000} --password *** …"


def test_long_arguments_are_cut_with_a_mark(recording: Recording) -> None:
    exact = run("/bin/true", "x" * 3000)
    cut = run("/bin/true", "y" * 10_000)
    (started,) = recording.expect(TABLE, pid=exact.pid, state="started")
    assert started["cmdline"] == "/bin/true " + "x" * 3000
    (started,) = recording.expect(TABLE, pid=cut.pid, state="started")
    assert started["cmdline"] == "/bin/true " + "y" * (4096 - 10) + " …"


def test_deep_directories_and_foreign_bytes_are_kept(recording: Recording, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*[f"d{number}" for number in range(20)], "ünïcode")
    deep.mkdir(parents=True)
    process = run("/bin/true", b"\xff\xfe", cwd=deep)  # type: ignore[arg-type]
    (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["cwd"] == str(deep)
    assert started["cmdline"] == "/bin/true \uefff\ueffe"


def test_a_path_that_does_not_fit_is_left_open_or_found_elsewhere(recording: Recording, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 100] * 15)
    deep.mkdir(parents=True)
    with subprocess.Popen(["/bin/cat"], cwd=deep, stdin=subprocess.PIPE) as process:
        (started,) = recording.expect(TABLE, pid=process.pid, state="started")
    assert started["cwd"] == str(deep)
    assert started["exe"] == str(Path("/bin/cat").resolve())


def test_a_process_that_only_forks_is_started_too(recording: Recording) -> None:
    child = fork(lambda: 5)
    assert exit_code(child) == 5
    (started,) = recording.expect(TABLE, pid=child, state="started")
    (stopped,) = recording.expect(TABLE, pid=child, state="stopped")
    assert started["exe"] == str(Path(sys.executable).resolve())
    assert started["parent_entity_id"] != started["entity_id"]
    assert stopped["exit_code"] == 5
    assert started["time"] < stopped["time"]


def test_threads_are_not_processes(recording: Recording) -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    number = thread.native_id
    thread.join()
    process = run("/bin/true")
    recording.expect(TABLE, pid=process.pid, state="stopped")
    assert not recording.events(TABLE, pid=number)


def test_the_last_thread_ends_the_process_also_when_the_first_went_before(recording: Recording) -> None:
    code = (
        "import ctypes, threading, time, os\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), os._exit(9))).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
    )
    process = run(sys.executable, "-c", code)
    (stopped,) = recording.expect(TABLE, pid=process.pid, state="stopped")
    assert stopped["exit_code"] == 9
    assert stopped["duration"] > 0.1


def test_excluded_processes_and_connections_are_not_recorded() -> None:
    true = str(Path("/bin/true").resolve())
    with Recording([source(ignore_executables=(true,), ignore_uids=(65534,))]) as recording:
        left_out = run("/bin/true")
        nobody = run("/bin/sleep", "0", user=65534)
        wanted = run("/bin/sleep", "0")
        recording.expect(TABLE, pid=wanted.pid, state="stopped")
        assert not recording.events(TABLE, pid=left_out.pid, exe=true)
        assert not recording.events(TABLE, pid=nobody.pid, name="sleep")


@pytest.mark.long
@pytest.mark.parametrize("executions", [400, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_exec_at_full_speed_is_there(executions: int) -> None:
    with Recording([processes := source()]) as recording:
        pids = [pid for (pid,) in generate("exec", executions, 0, load_generator(), "nothing")]
        exe = load_generator()
        started = recording.expect(TABLE, count=len(pids), exe=exe, state="started", cmdline=f"{exe} nothing")
        stopped = recording.expect(TABLE, count=len(pids), exe=exe, state="stopped", cmdline=f"{exe} nothing")
        assert sorted(event["pid"] for event in started) == sorted(pids)
        assert sorted(event["pid"] for event in stopped) == sorted(pids)
        assert processes.counters.lost["overrun"] == 0


@pytest.mark.parametrize("ring_bytes", [128 * 1024, 512 * 1024], ids=["less than a window", "two windows"])
def test_long_records_are_complete_when_the_ring_wraps(ring_bytes: int) -> None:
    with Recording([processes := source(ring_bytes=ring_bytes)]) as recording:
        made = {}
        for number in range(200):
            letters = chr(ord("a") + number % 26) * (2000 + number * 10)
            made[run("/bin/true", letters).pid] = f"/bin/true {letters}"
            processes.drain()
        recording.expect(TABLE, pid=list(made)[-1], state="stopped")
        started = {event["pid"]: event["cmdline"] for event in recording.events(TABLE, state="started", name="true")}
        assert {pid: started.get(pid) for pid in made} == made, processes.counters
        assert processes.counters.lost["decode"] == 0


def test_records_that_the_ring_has_no_room_for_are_counted_exactly() -> None:
    tiny, ample = source(ring_bytes=4096), source()
    with Recording([tiny, ample]):

        def generated(processes: EbpfProcesses) -> int:
            processes.drain()
            return processes.counters.received + processes.counters.lost["overrun"]

        def both() -> tuple[int, int]:
            """Seen by each at the same moment: at one when the other's did not change around it."""
            while True:
                first, other, second = generated(tiny), generated(ample), generated(tiny)
                if first == second:
                    return first, other

        tiny_before, ample_before = both()
        with tiny._monitor.lock:
            assert len(generate("exec", 200, 0, load_generator(), "nothing")) == 200
        tiny_after, ample_after = both()
        assert tiny.counters.lost["overrun"] > 500
        assert ample.counters.lost["overrun"] == 0
        assert tiny_after - tiny_before == ample_after - ample_before >= 3 * 201


def test_a_failed_reader_is_reported_and_can_be_stopped() -> None:
    def full(*_: object) -> None:
        raise RuntimeError("nowhere to put it")

    processes = source()
    if (reason := processes.probe()) is not None:
        pytest.skip(reason)
    processes.start(full)
    run("/bin/true")
    until_sync(lambda: processes.failure)
    processes.stop()
    assert processes.failure == "the reader ended: nowhere to put it"
