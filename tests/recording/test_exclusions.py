"""Programs that the configuration excludes, and others that pretend to be them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from recording import Recording, load_generator

from zeek_agent.bpf.records import EXEC, PROCESS, RecordKind
from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.host.linux.executables import file_object, mount_namespace
from zeek_agent.recording.audit.audit import AuditProcesses
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import process_event
from zeek_agent.recording.processes.process_tracker import ProcessTracker
from zeek_agent.recording.snapshots import ProcessSnapshots
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets
from zeek_agent.recording.source import Source
from zeek_agent.tables.events import TABLES

pytestmark = pytest.mark.root
PROCESSES, SOCKETS = "processes_events", "sockets_events"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
IDENTITY = ("exe_device", "exe_inode", "exe_mntns")

FROM_ANOTHER_NAMESPACE = r"""
import os, socket, subprocess, sys
false, ignored, *arguments = sys.argv[1:]
ours, theirs = socket.socketpair()
alive, held = os.pipe()
if os.fork() == 0:
    os.close(held)
    opener = (
        "import array, os, socket, sys\n"
        "channel, alive = socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])\n"
        "file = array.array('i', [os.open(sys.argv[1], os.O_RDONLY)])\n"
        "channel.sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, file)])\n"
        "os.read(alive, 1)\n"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    command += ["sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"']
    command += ["sh", false, ignored, sys.executable, "-c", opener, ignored, str(theirs.fileno()), str(alive)]
    os._exit(subprocess.run(command, pass_fds=[theirs.fileno(), alive]).returncode)
_, ((_, _, data),), _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
os.set_inheritable(held, True)
os.execve(int.from_bytes(data[:4], sys.byteorder), [ignored, *arguments], {})
"""
"""Executes a file that was opened in another mount namespace, where it has the path of the ignored program.

The namespace lives until the program ends.
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    directory = Path("/var/tmp") / f"zeek-agent-exclusions-{os.getpid()}"
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def ignored(place: Path) -> str:
    return copied(place / "ignored")


@pytest.fixture
def false(place: Path) -> str:
    return copied(place / "false")


def copied(path: Path) -> str:
    shutil.copy(load_generator(), path)
    path.chmod(0o755)
    return str(path)


def sources(**settings: object) -> list[Source]:
    wanted = SourceSettings(ignore_self=False, **settings)  # type: ignore[arg-type]
    monitor = BpfMonitor(ProcessCache())
    return [EbpfProcesses(monitor, wanted), EbpfSockets(monitor, wanted)]


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(*command: str) -> int:
    """Run a command to its end; its pid, which is that of the program that it finally executes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        pass
    assert process.returncode == 0
    return process.pid


def under_its_path(false: str, ignored: str, *arguments: str) -> tuple[str, ...]:
    """The command with which an ordinary user executes a file under the path of the ignored program."""
    script = 'mount --bind "$1" "$2" && shift && exec "$@"'
    return (*AS_NOBODY, *OWN_MOUNTS, "sh", "-c", script, "sh", false, ignored, *arguments)


def test_a_program_is_excluded_in_both_tables(ignored: str) -> None:
    with Recording(sources(ignore_executables=(ignored,))) as recording, listening() as port:
        pid = run(ignored, "tcp", "127.0.0.1", str(port))
        other = run(load_generator(), "tcp", "127.0.0.1", str(port))
        recording.expect(PROCESSES, pid=other, state="stopped")
        recording.expect(SOCKETS, pid=other, state="closed")
        assert not recording.events(PROCESSES, pid=pid, exe=ignored)
        assert not recording.events(SOCKETS, pid=pid)


def test_another_file_under_its_path_is_recorded(ignored: str, false: str) -> None:
    """A user in a mount namespace of his own binds it there."""
    with Recording(sources(ignore_executables=(ignored,))) as recording, listening() as port:
        pid = run(*under_its_path(false, ignored, "tcp", "127.0.0.1", str(port)))
        (stopped,) = recording.expect(PROCESSES, pid=pid, state="stopped")
        (opened,) = recording.expect(SOCKETS, pid=pid, state="established")
        (started,) = recording.events(PROCESSES, pid=pid, state="started", exe=ignored)
    for event in (started, stopped, opened):
        assert event["exe"] == ignored
        assert (event["exe_device"], event["exe_inode"]) == file_object(false)
        assert event["exe_mntns"] not in {None, mount_namespace("self"), mount_namespace(1)}


def test_a_file_opened_in_another_namespace_is_recorded(ignored: str, false: str) -> None:
    """The process is in the agent's namespace, and its executable has the path of the ignored one in another."""
    command = [sys.executable, "-c", FROM_ANOTHER_NAMESPACE, false, ignored]
    with Recording(sources(ignore_executables=(ignored,))) as recording, listening() as port:
        pid = run(*command, "tcp", "127.0.0.1", str(port))
        (started,) = recording.expect(PROCESSES, pid=pid, state="started", exe=ignored)
        recording.expect(SOCKETS, pid=pid, state="established", exe=ignored)
    assert (started["exe_device"], started["exe_inode"]) == file_object(false)
    assert started["exe_mntns"] not in {None, mount_namespace("self")}


def test_the_file_itself_in_another_namespace_is_recorded(ignored: str) -> None:
    """What it loads there need not be what it loads here."""
    with Recording(sources(ignore_executables=(ignored,))) as recording:
        pid = run(*AS_NOBODY, *OWN_MOUNTS, ignored, "nothing")
        (started,) = recording.expect(PROCESSES, pid=pid, state="started", exe=ignored)
    assert (started["exe_device"], started["exe_inode"]) == file_object(ignored)


def test_after_an_upgrade_the_new_file_is_excluded_and_the_old_one_is_not(place: Path, ignored: str) -> None:
    with Recording(sources(ignore_executables=(ignored,))) as recording:
        kept = place / "kept"
        kept.hardlink_to(ignored)
        Path(copied(place / "new")).rename(ignored)
        new, old = run(ignored, "nothing"), run(str(kept), "nothing")
        recording.expect(PROCESSES, pid=old, state="stopped")
        assert not recording.events(PROCESSES, pid=new, exe=ignored)


def test_the_path_may_be_a_link(place: Path, ignored: str) -> None:
    link = place / "link"
    link.symlink_to(ignored)
    with Recording(sources(ignore_executables=(str(link),))) as recording:
        pid, other = run(str(link), "nothing"), run(load_generator(), "nothing")
        recording.expect(PROCESSES, pid=other, state="stopped")
        assert not recording.events(PROCESSES, pid=pid, exe=ignored)


def test_a_process_from_before_the_recording_is_recorded(ignored: str) -> None:
    """What it executed is not known for sure."""
    with listening() as port:
        command = [ignored, "connections", "127.0.0.1", str(port), "3", "2"]
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL) as running,
            Recording(sources(ignore_executables=(ignored,))) as recording,
        ):
            (stopped,) = recording.expect(PROCESSES, pid=running.pid, state="stopped")
            recording.expect(SOCKETS, pid=running.pid, state="established", exe=ignored)
    assert stopped["exe"] == ignored
    assert [stopped[name] for name in IDENTITY] == [None, None, None]


def test_a_child_executes_the_file_of_its_parent(place: Path) -> None:
    python = Path(sys.executable).resolve()
    with Recording(sources()) as recording:
        script = "import os; pid = os.fork(); pid and os.waitpid(pid, 0); os._exit(0)"
        pid = run(str(python), "-c", script)
        (forked,) = recording.expect(PROCESSES, ppid=pid, state="stopped")
        (parent,) = recording.expect(PROCESSES, pid=pid, state="started")
    assert [forked[name] for name in IDENTITY] == [*(file_object(str(python)) or ()), mount_namespace("self")]
    assert [parent[name] for name in IDENTITY] == [forked[name] for name in IDENTITY]


def test_an_executable_in_memory_is_in_no_mount_namespace() -> None:
    script = (
        "import os, sys; f = os.memfd_create('perl'); os.write(f, open(sys.argv[1], 'rb').read()); "
        "print(os.fstat(f).st_ino, flush=True); os.execve(f, ['perl', 'nothing'], {})"
    )
    with Recording(sources()) as recording:
        command = [sys.executable, "-c", script, load_generator()]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            inode = int(process.stdout.readline())
        (event,) = recording.expect(PROCESSES, pid=process.pid, state="stopped")
    assert event["exe"] == "/memfd:perl (deleted)"
    assert (event["exe_inode"], event["exe_mntns"]) == (inode, None)


def test_a_file_whose_inode_number_the_event_store_cannot_hold_is_recorded(tmp_path: Path) -> None:
    """A user's FUSE file system chooses its inode numbers."""
    process = PROCESS.pack(RecordKind.EXEC, 0, 4_194_300, *3 * [1], *9 * [0], b"true")
    files = EXEC.pack(4096, 2**64 - 1, 0xFE00001, 0, 0, 5, 5, 5, 5, 4026531832)
    record = process + files + b"true\0".ljust(1024 + 256, b"\0")
    (change,) = ProcessTracker(ProcessCache()).apply([record])
    with closing(EventStore(tmp_path / "events.db", TABLES, EventSettings())) as store:
        store.append(PROCESSES, [process_event(change.process, change.at, 1.8e9, None)])
        store.flush()
        assert (store.counters[PROCESSES].stored, store.counters[PROCESSES].lost.total()) == (1, 0)
    assert (change.process.exe, change.process.exe_inode) == ("/true", None)
    assert (change.process.exe_device, change.process.exe_mntns) == (os.makedev(0xFE, 1), 4026531832)


@pytest.mark.parametrize("backend", [ProcConnector, AuditProcesses, ProcessSnapshots])
def test_backends_that_come_too_late_exclude_no_executable(
    backend: type[ProcConnector | AuditProcesses | ProcessSnapshots],
) -> None:
    """What /proc shows may be what the process executed next."""
    sleep = os.path.realpath(shutil.which("sleep") or "")
    settings = SourceSettings(ignore_executables=(sleep,), audit_rules=True, snapshot_interval=0.1)
    with Recording([backend(ProcessCache(), settings)]) as recording, subprocess.Popen([sleep, "60"]) as process:
        (event,) = recording.expect(PROCESSES, pid=process.pid, state="started", exe=sleep)
        process.kill()
    assert [event[name] for name in IDENTITY] == [None, None, None]


def test_lost_execs_leave_the_executables_of_living_processes_unknown(ignored: str) -> None:
    with Recording(recorded := sources(ignore_executables=(ignored,))) as recording, listening() as port:
        command = [ignored, "connections", "127.0.0.1", str(port), "3", "2"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
            assert isinstance(recorded[0], EbpfProcesses)
            cache = recorded[0]._monitor.cache
            while (found := cache.lookup(running.pid)) is None or found.exe != ignored:
                recorded[0].drain()
            assert found.exe_inode == Path(ignored).stat().st_ino
            cache.miss_execs(found.since)
        recording.expect(PROCESSES, pid=running.pid, state="stopped", exe=ignored)
        recording.expect(SOCKETS, pid=running.pid, state="established", exe=ignored)


def test_executables_of_processes_that_are_not_followed_any_more_are_unknown(ignored: str) -> None:
    recorded = sources()
    assert isinstance(recorded[0], EbpfProcesses)
    cache = recorded[0]._monitor.cache
    with Recording(recorded[:1]) as recording:
        running = subprocess.Popen(["sleep", "60"])
        recording.expect(PROCESSES, pid=running.pid, exe_inode=Path(shutil.which("sleep") or "").stat().st_ino)
    found = cache.lookup(running.pid)
    running.kill()
    running.wait()
    assert found is not None
    assert found.exe_inode is None
