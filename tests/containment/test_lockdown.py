"""What workers can and cannot do after the lockdown: each attempt is made by a real process under a real filter."""

# ruff: noqa: PLW0108, PTH115, PTH208, PTH211
# Attempts are named by the call that they make.

from __future__ import annotations

import asyncio
import ctypes
import encodings.idna  # noqa: F401 - which Python loads with the first name of a host, too late in a worker
import faulthandler
import fcntl
import json
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from children import child, exit_code, fork
from lockdown import (
    MACHINE,
    NUMBERS,
    ORDINARY_UID,
    ROOMY,
    ROOMY_BYTES,
    ROOT,
    as_ordinary_user,
    locked,
    number,
    outcome,
    outcomes,
)
from waiting import until_sync
from workers import resident

from zeek_agent.collector.log_files import LogDirectory
from zeek_agent.collector.log_formats import Field
from zeek_agent.containment import kernel, landlock, seccomp
from zeek_agent.containment.accounts import NUMBERS as ACCOUNT_NUMBERS
from zeek_agent.containment.accounts import WORKER_NAME, directory_owner, worker_account
from zeek_agent.containment.lockdown import die_with, lock_down
from zeek_agent.containment.protections import LockdownError, WorkerAccount, WorkerClass, WorkerLimits
from zeek_agent.host import program_files
from zeek_agent.privileges import Privileges

EVENTS, SNAPSHOTS, COLLECTOR, HELPER = WorkerClass
ACCOUNT = WorkerAccount(ACCOUNT_NUMBERS[0], ACCOUNT_NUMBERS[0]) if ROOT else None


def _landlock() -> int:
    try:
        return landlock.version()
    except landlock.Unavailable:
        return 0


LANDLOCK = _landlock()
LIMIT = seccomp.ARCHITECTURES[os.uname().machine].numbers["prlimit64"] if MACHINE is not None else 0
pytestmark = pytest.mark.skipif(MACHINE is None, reason="no seccomp filter for this architecture")
needs_landlock = pytest.mark.skipif(not LANDLOCK, reason="this kernel has no Landlock")


@pytest.fixture
def places() -> Iterator[Path]:
    """A directory in which every user may do everything, so that what is refused there is refused by the lockdown."""
    directory = Path(tempfile.mkdtemp(prefix="zeek-agent-lockdown-"))
    (directory / "logs").mkdir()
    for name in ("file", "other", "logs/file"):
        (directory / name).write_text("content")
        (directory / name).chmod(0o666)
    (directory / "private").write_text("secret")
    (directory / "private").chmod(0o600)
    for path in (directory, directory / "logs"):
        path.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def victim() -> Iterator[int]:
    """A process of the same user as a worker, which any of its processes could trace and end."""

    def become() -> None:
        if ACCOUNT is not None:
            os.setgroups([])
            os.setresgid(ACCOUNT.gid, ACCOUNT.gid, ACCOUNT.gid)
            os.setresuid(ACCOUNT.uid, ACCOUNT.uid, ACCOUNT.uid)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)

    with child(become) as pid:
        yield pid


@contextmanager
def listening(path: Path, mode: int = 0o666) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(mode)
        server.listen()
        yield path


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def run(path: str, *arguments: str) -> None:
    """Run a program. Raises OSError where it cannot be started, and RuntimeError if it fails."""
    code = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [path, *arguments], {}), 0)[1])
    if code != 0:
        raise RuntimeError(code)


def close(descriptor: int) -> None:
    os.close(descriptor)


def path_attempts(places: Path) -> dict[str, Callable[[], object]]:
    file = places / "file"
    return {
        "read": lambda: file.read_text(),
        "list": lambda: os.listdir(places),
        "write": lambda: close(os.open(file, os.O_WRONLY)),
        "read and write": lambda: close(os.open(file, os.O_RDWR)),
        "append": lambda: close(os.open(file, os.O_WRONLY | os.O_APPEND)),
        "truncate while opening": lambda: close(os.open(file, os.O_RDONLY | os.O_TRUNC)),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: close(os.open(places / "new", os.O_RDONLY | os.O_CREAT)),
        "create without a name": lambda: close(os.open(places, os.O_TMPFILE | os.O_RDWR)),
        "unlink": lambda: (places / "other").unlink(),
        "rename": lambda: file.rename(places / "renamed"),
        "make a directory": lambda: (places / "directory").mkdir(),
        "link": lambda: os.link(file, places / "link"),
        "symlink": lambda: os.symlink("file", places / "symlink"),
        "fifo": lambda: os.mkfifo(places / "fifo"),
        "chmod": lambda: file.chmod(0o600),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "set times": lambda: os.utime(file),
        "set an attribute": lambda: os.setxattr(file, "user.test", b""),
    }


CHANGES = set(path_attempts(Path())) - {"read", "list"}


def other_attempts(
    unix: socket.socket, places: Path, pid: int, parent: int, server: Path
) -> dict[str, Callable[[], object]]:
    """What no class may do, though other processes of its user, or of root, can. `unix` is a socket made before."""
    return {
        "socket inet": lambda: socket.socket(socket.AF_INET).close(),
        "socket inet6 udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "socket packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "socket netlink audit": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).close(),
        "socket unix": lambda: socket.socket(socket.AF_UNIX).close(),
        "socket unix datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
        "connect": lambda: unix.connect(str(server)),
        "bind": lambda: unix.bind(str(places / "bound")),
        "listen": lambda: unix.listen(),
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.waitpid(fork(lambda: 0), 0),
        "spawn": lambda: run("/bin/true"),
        "ptrace attach": lambda: kernel.syscall(number("ptrace"), 16, pid, 0, 0),
        "ptrace of itself": lambda: kernel.syscall(number("ptrace"), 0, 0, 0, 0),
        "kill": lambda: os.kill(pid, 0),
        "kill the parent": lambda: os.kill(parent, 0),
        "kill all": lambda: os.kill(-1, 0),
        "set an owner for signals": lambda: fcntl.fcntl(unix, fcntl.F_SETOWN, pid),
        "setuid": lambda: os.setuid(0),
        "setresgid": lambda: os.setresgid(0, 0, 0),
        "setgroups": lambda: os.setgroups([0]),
        "raise a limit": lambda: kernel.syscall(LIMIT, 0, resource.RLIMIT_CORE, bytes(16), 0),
        "dumpable": lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1),
        "keep capabilities": lambda: kernel.prctl(kernel.PR_SET_KEEPCAPS, 1),
        "push into the terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        "writable and executable memory": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, 7).close(),
        "shared memory": lambda: mmap.mmap(-1, 4096).close(),
        **{name: lambda name=name: kernel.syscall(number(name), 0, 0, 0, 0, 0, 0) for name in NUMBERS},  # type: ignore[misc]
    }


def refused(names: Any, error: str = "EPERM") -> dict[str, str]:
    found = dict.fromkeys(names, error)
    for name in ("openat2", "clone3"):
        if name in found:
            found[name] = "ENOSYS"
    return found


PERMITTED_ALONE = {
    EVENTS: lambda: os.fstat(0),
    SNAPSHOTS: start_thread,
    COLLECTOR: start_thread,
    HELPER: start_thread,
}


@pytest.mark.parametrize("worker_class", WorkerClass)
def test_nothing_that_leads_out_of_the_process_is_permitted(worker_class: WorkerClass, places: Path) -> None:
    logs = str(places / "logs") if worker_class is COLLECTOR else None
    with victim() as pid, listening(places / "server") as server, socket.socket(socket.AF_UNIX) as unix:
        attempts = other_attempts(unix, places, pid, os.getpid(), server)
        found = outcomes(worker_class, attempts, account=ACCOUNT, log_directory=logs)
        harmless = ("socket inet", "socket unix", "connect", "fork", "spawn", "kill", "shared memory", "memfd_create")
        assert {outcome(attempts[name]) for name in harmless} <= {"ok", "EFAULT"}  # without a lockdown
    assert found == refused(attempts)


@pytest.mark.parametrize("worker_class", WorkerClass)
def test_a_worker_has_its_own_signals_and_what_it_was_handed(worker_class: WorkerClass, places: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spool = os.memfd_create("spool")
    received = []
    signal_before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))

    def work() -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        message, descriptors, *_ = socket.recv_fds(theirs, 100, 1)
        os.pwrite(descriptors[0], b"frames", 0)
        theirs.send(b"done")
        return {
            "received": len(received),
            "message": message.decode(),
            "permitted": outcome(PERMITTED_ALONE[worker_class]),
        }

    socket.send_fds(ours, [b"run"], [spool])
    logs = str(places / "logs") if worker_class is COLLECTOR else None
    try:
        _, result = locked(worker_class, work, account=ACCOUNT, log_directory=logs)
    finally:
        signal.signal(signal.SIGUSR1, signal_before)
    assert result == {"received": 2, "message": "run", "permitted": "ok"}
    assert ours.recv(100) == b"done"
    assert os.pread(spool, 100, 0) == b"frames"
    os.close(spool)
    ours.close()
    theirs.close()


def test_an_event_worker_opens_nothing(places: Path) -> None:
    attempts = path_attempts(places) | {
        "thread": start_thread,
        "look up": lambda: os.readlink("/proc/self/exe"),
        "attributes": lambda: os.lstat(places / "private"),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    }
    found = outcomes(EVENTS, attempts, account=ACCOUNT)
    assert found.pop("thread") == "RuntimeError"
    assert found == refused(set(attempts) - {"thread"})


def test_a_snapshot_worker_reads_and_changes_nothing(places: Path) -> None:
    attempts = path_attempts(places)
    assert outcomes(SNAPSHOTS, attempts, account=ACCOUNT) == refused(CHANGES) | {"read": "ok", "list": "ok"}


@pytest.mark.root
def test_a_snapshot_worker_reads_what_belongs_to_others(places: Path) -> None:
    """Which CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are for; a helper has neither."""

    def other() -> None:
        os.setresgid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)

    with child(other) as pid:
        attempts: dict[str, Callable[[], object]] = {
            "a private file": lambda: (places / "private").read_text(),
            "shadow": lambda: Path("/etc/shadow").read_bytes(),
            "executable of process 1": lambda: os.readlink("/proc/1/exe"),
            "executable of another user's process": lambda: os.readlink(f"/proc/{pid}/exe"),
            "descriptors of another user's process": lambda: [
                os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")
            ],
            "its network namespace": lambda: close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)),
            "sockets": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4).close(),
            "interfaces": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
        }
        for_root = {name: outcome(attempt) for name, attempt in attempts.items()}
        assert set(for_root.values()) == {"ok"} or for_root.pop("executable of process 1") == "EACCES"  # a container's
        attempts = {name: attempts[name] for name in for_root}
        assert outcomes(SNAPSHOTS, attempts, account=ACCOUNT) == dict.fromkeys(attempts, "ok")
        reading = Privileges(other_users=True)
        assert outcomes(HELPER, attempts, account=ACCOUNT, privileges=reading) == dict.fromkeys(attempts, "ok")
        helped = outcomes(HELPER, attempts, account=ACCOUNT)
        assert helped == dict.fromkeys(attempts, "EACCES") | {"sockets": "ok", "interfaces": "ok"}


@needs_landlock
def test_the_collector_writes_below_its_directory_only(places: Path) -> None:
    attempts = path_attempts(places)
    found = outcomes(COLLECTOR, attempts, account=ACCOUNT, log_directory=str(places / "logs"))
    by_seccomp = {"truncate", "link", "symlink", "fifo", "chmod", "chown", "set times", "set an attribute"}
    assert found == refused(set(attempts) - by_seccomp, "EACCES") | refused(by_seccomp)


@needs_landlock
def test_the_collector_reads_what_it_was_granted(places: Path) -> None:
    logs = str(places / "logs")
    granted = outcomes(COLLECTOR, path_attempts(places), account=ACCOUNT, log_directory=logs, readable=[str(places)])
    assert {name for name in granted if granted[name] == "ok"} == {"read", "list"}


@needs_landlock
def test_the_collector_writes_and_rotates_logs_that_it_receives(places: Path) -> None:
    """The real writer of logs, in an event loop, with rows from a socket that was connected before."""
    logs = places / "logs"
    ours, theirs = socket.socketpair()

    async def collect() -> int:
        reader, _ = await asyncio.open_connection(sock=theirs)
        directory = LogDirectory(logs, rotate_bytes=1)
        file = directory.add("test", [Field("text", "string")])
        directory.start()
        while line := await reader.readline():
            file.write([line.decode().strip()])
            await asyncio.to_thread(directory.flush)
        directory.close()
        return directory.errors

    def work() -> int:
        theirs.setblocking(False)
        return asyncio.run(collect())

    ours.sendall(b"first\nsecond\n")
    ours.shutdown(socket.SHUT_WR)
    account = directory_owner(str(logs)) if ROOT else None
    readable = [path for path in sys.path if path and Path(path).exists()] + ["/proc"]
    protections, errors = locked(COLLECTOR, work, account=account, log_directory=str(logs), readable=readable)
    assert errors == 0
    assert protections["capabilities"] == []
    written = sorted(path.read_text() for path in logs.glob("test.*.log"))
    assert len(written) == 2
    assert all(line in "".join(written) for line in ("\nfirst\n", "\nsecond\n"))
    ours.close()
    theirs.close()


@pytest.mark.root
@needs_landlock
def test_a_collector_for_a_directory_of_roots_is_uid_0_without_power(places: Path) -> None:
    logs = places / "logs"
    logs.chmod(0o755)
    account = directory_owner(str(logs))
    assert (account.uid, account.gid) == (0, 0)
    attempts: dict[str, Callable[[], object]] = {
        "its logs": lambda: (logs / "new.log").write_text("line"),
        "change of mode outside": lambda: (places / "private").chmod(0o666),
        "change of owner outside": lambda: os.chown(places / "private", 1, 1),
        "reading outside": lambda: (places / "private").read_text(),
        "writing outside": lambda: (places / "private").write_text("new"),
        "move from outside": lambda: (places / "private").rename(logs / "private"),
        "killing": lambda: os.kill(1, 0),
    }
    options = {"account": account, "log_directory": str(logs)}
    assert outcomes(COLLECTOR, attempts, **options) == {
        "its logs": "ok",
        "change of mode outside": "EPERM",
        "change of owner outside": "EPERM",
        "reading outside": "EACCES",
        "writing outside": "EACCES",
        "move from outside": "EACCES",
        "killing": "EPERM",
    }
    protections, _ = locked(COLLECTOR, lambda: None, **options)
    assert protections["uid"] == 0
    assert protections["capabilities"] == protections["bounding"] == []
    assert "the log directory belongs to root" in protections["by_design"][0]


def test_a_helper_reads_public_files_and_changes_nothing(places: Path) -> None:
    attempts = path_attempts(places)
    assert outcomes(HELPER, attempts, account=ACCOUNT) == refused(CHANGES) | {"read": "ok", "list": "ok"}


def helper_attempts(server: Path, port: int) -> dict[str, Callable[[], object]]:
    def connect_unix() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server))

    def connect_udp() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", port))

    def connect_abstract() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{server}")

    return {
        "unix": connect_unix,
        "abstract unix": connect_abstract,
        "tcp": lambda: socket.create_connection(("127.0.0.1", port)).close(),
        "udp": connect_udp,
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).close(),
        "program": lambda: run("/bin/true"),
        "fork": lambda: os.waitpid(fork(lambda: 0), 0),
    }


@pytest.mark.parametrize(
    ("privileges", "permitted"),
    [
        (Privileges(), set()),
        (Privileges(user_database=True), {"unix"}),
        (Privileges(network=True), {"tcp", "udp"}),
        (Privileges(network=True, user_database=True), {"unix", "tcp", "udp"}),
        (Privileges(programs=("/bin/true",)), {"program", "fork"}),
        (Privileges(other_users=True), set()),
        (Privileges(other_users=True, user_database=True), {"unix"}),
    ],
    ids=[
        "nothing",
        "user database",
        "network",
        "network and user database",
        "program",
        "other users",
        "other users and user database",
    ],
)
def test_a_helper_has_exactly_what_its_table_declared(
    privileges: Privileges, permitted: set[str], places: Path
) -> None:
    with ExitStack() as opened:
        server = opened.enter_context(listening(places / "server"))
        abstract = opened.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{server}")
        abstract.listen()
        port = opened.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        attempts = helper_attempts(server, port)
        found = outcomes(HELPER, attempts, account=ACCOUNT, privileges=privileges)
    # Landlock scopes abstract sockets since version 6; without it they are as reachable as others.
    expected = set(permitted)
    if "unix" in permitted and (LANDLOCK < 6 or privileges.other_users):
        expected.add("abstract unix")
    assert {name for name in found if found[name] == "ok"} == expected
    assert set(found.values()) <= {"ok", "EPERM"}


@needs_landlock
def test_a_helper_runs_its_program_and_no_other(places: Path) -> None:
    written = places / "written"
    attempts: dict[str, Callable[[], object]] = {
        "the program": lambda: run("/bin/sh", "-c", "exit 0"),
        "another one": lambda: run("/bin/true"),
        "another one that it starts": lambda: run("/bin/sh", "-c", "/bin/true"),
        "a file that it makes": lambda: run("/bin/sh", "-c", f"echo > {written}"),
    }
    assert outcomes(HELPER, attempts, account=ACCOUNT, privileges=Privileges(programs=("/bin/sh",))) == {
        "the program": "ok",
        "another one": "EACCES",
        "another one that it starts": "RuntimeError",
        "a file that it makes": "RuntimeError",
    }
    assert not written.exists()


@pytest.mark.root
def test_a_program_that_others_can_replace_is_refused(places: Path) -> None:
    mine = places / "program"
    shutil.copy("/bin/true", mine)
    with pytest.raises(program_files.ProgramError, match="replace the program"), program_files.executables(str(mine)):
        pass
    with program_files.executables("/bin/sh") as files:
        paths = list(files)
    assert paths[0] == os.path.realpath("/bin/sh")
    assert "ld-" in paths[1]


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "gid", "groups", "result", "reported"),
    [
        (0o666, 0, [], "ok", False),
        (0o660, 4_711, [4_711], "ok", False),
        (0o660, 0, [], "EACCES", True),
        (0o600, 4_711, [], "EACCES", True),
    ],
)
def test_a_declared_socket_gives_its_group_but_never_roots(
    mode: int, gid: int, groups: list[int], result: str, reported: bool, places: Path
) -> None:
    with listening(places / "server", mode) as server:
        os.chown(server, 0, gid)
        protections, found = locked(
            HELPER,
            lambda: outcome(helper_attempts(server, 1)["unix"]),
            account=ACCOUNT,
            privileges=Privileges(unix_sockets=(str(server),)),
            group_sockets=(str(server),),
        )
    assert protections["groups"] == groups
    assert found == result
    assert bool(protections["missing"]) == reported


@pytest.mark.root
def test_a_declared_socket_of_another_user_is_refused(places: Path) -> None:
    with listening(places / "server", 0o660) as server:
        os.chown(server, ORDINARY_UID, ORDINARY_UID)

        def work() -> None:
            with pytest.raises(LockdownError, match="not a socket of root's"):
                lock_down(
                    HELPER,
                    parent=parent,
                    limits=ROOMY,
                    account=ACCOUNT,
                    privileges=Privileges(unix_sockets=(str(server),)),
                )

        parent = os.getpid()
        assert exit_code(fork(work)) == 0


def test_privileges_that_would_let_others_files_out_are_refused() -> None:
    for extra in ({"network": True}, {"programs": ("/bin/true",)}):
        with pytest.raises(ValueError, match="neither programs nor the network"):
            Privileges(other_users=True, **extra)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absolute"):
        Privileges(unix_sockets=("run/socket",))


STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Name")


def status_of(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines if name in STATUS}


@pytest.mark.root
@pytest.mark.parametrize(
    ("worker_class", "capabilities"), [(EVENTS, 0), (SNAPSHOTS, 1 << 2 | 1 << 19), (COLLECTOR, 0), (HELPER, 0)]
)
def test_proc_shows_what_protections_say(worker_class: WorkerClass, capabilities: int, places: Path) -> None:
    parent = os.getpid()
    logs = str(places / "logs") if worker_class is COLLECTOR else None

    def work() -> None:
        found = lock_down(worker_class, parent=parent, limits=ROOMY, account=ACCOUNT, log_directory=logs)
        assert found.missing == (() if LANDLOCK or worker_class is SNAPSHOTS else ("Landlock",))
        assert found.no_new_privileges
        assert (found.seccomp, found.oom_score_adj, found.dumpable) == (2, 700, False)
        assert found.landlock_abi == (0 if worker_class is SNAPSHOTS else LANDLOCK)
        assert found.capabilities == kernel.capability_names(capabilities) == found.bounding

    assert ACCOUNT is not None
    with child(work) as pid:
        mask, ids = f"{capabilities:016x}", "\t".join([str(ACCOUNT.uid)] * 4)
        assert status_of(pid) == {
            "Name": WORKER_NAME,
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "Groups": "",
            **dict.fromkeys(("Uid", "Gid"), ids),
            **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), mask),
            **dict.fromkeys(("CapInh", "CapAmb"), f"{0:016x}"),
        }
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "700\n"
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # not dumpable


@pytest.mark.parametrize("worker_class", WorkerClass)
def test_an_ordinary_user_has_all_but_a_user_of_its_own(worker_class: WorkerClass, places: Path) -> None:
    logs = str(places / "logs") if worker_class is COLLECTOR else None

    def work() -> dict[str, str]:
        attempts = path_attempts(places)
        attempts |= {"socket inet": lambda: socket.socket().close(), "fork": lambda: fork(lambda: 0)}
        return {name: outcome(attempt) for name, attempt in attempts.items()}

    protections, found = locked(worker_class, work, before=as_ordinary_user, log_directory=logs)
    assert protections["uid"] == (ORDINARY_UID if ROOT else os.getuid())
    assert protections["no_new_privileges"]
    assert protections["seccomp"] == 2
    assert protections["landlock_abi"] == (0 if worker_class is SNAPSHOTS else LANDLOCK)
    assert protections["capabilities"] == []
    assert protections["limits"]["core"] == 0
    assert any(reason.startswith("own user: ") for reason in protections["missing"])
    if worker_class is SNAPSHOTS:
        assert any("lacks CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE" in reason for reason in protections["missing"])
    reads = worker_class in (SNAPSHOTS, HELPER)
    assert {name for name in found if found[name] == "ok"} == ({"read", "list"} if reads else set())


def test_memory_beyond_the_limit_is_an_error_and_not_the_end() -> None:
    def work() -> list[str]:
        return [outcome(lambda: bytearray(256 << 20)), outcome(lambda: bytearray(1 << 20))]

    data_bytes = resident(os.getpid(), "VmData") + (64 << 20)
    protections, found = locked(SNAPSHOTS, work, account=ACCOUNT, limits=WorkerLimits(data_bytes=data_bytes))
    assert found == ["MemoryError", "ok"]
    assert protections["limits"]["data"] == data_bytes


def test_files_and_descriptors_are_limited() -> None:
    spool = os.memfd_create("spool")

    def work() -> list[str]:
        return [
            outcome(lambda: os.pwrite(spool, b"x", 4_095)),
            outcome(lambda: os.pwrite(spool, b"x", 4_096)),
            outcome(lambda: [os.open("/", os.O_RDONLY) for _ in range(40)]),
        ]

    limits = WorkerLimits(data_bytes=ROOMY_BYTES, file_bytes=4_096, open_files=40)
    assert locked(SNAPSHOTS, work, account=ACCOUNT, limits=limits)[1] == ["ok", "EFBIG", "EMFILE"]
    os.close(spool)


@pytest.mark.parametrize("worker_class", [EVENTS, SNAPSHOTS])
def test_a_worker_dies_with_its_parent(worker_class: WorkerClass) -> None:
    reading, writing = os.pipe()

    def zygote() -> None:
        parent = os.getpid()

        def worker() -> None:
            lock_down(worker_class, parent=parent, limits=ROOMY, account=ACCOUNT)
            os.write(writing, b"%d" % os.getpid())
            while True:
                signal.pause()

        fork(worker)
        while True:
            signal.pause()

    pid = fork(zygote)
    worker = int(os.read(reading, 20))
    descriptor = os.pidfd_open(worker)
    assert select.select([descriptor], [], [], 0)[0] == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert select.select([descriptor], [], [], 60)[0] == [descriptor]
    for each in (descriptor, reading, writing):
        os.close(each)


def test_a_worker_whose_parent_has_ended_does_not_start() -> None:
    def work() -> None:
        with pytest.raises(LockdownError, match="has ended"):
            die_with(1 << 22)

    assert exit_code(fork(work)) == 0


def test_a_process_with_threads_is_not_locked_down() -> None:
    """A change of credentials by system call holds for one thread only."""
    parent = os.getpid()

    def work() -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        with pytest.raises(LockdownError, match="single thread"):
            lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=ACCOUNT)
        stop.set()
        thread.join()

    assert exit_code(fork(work)) == 0


@pytest.mark.root
@pytest.mark.parametrize("account", [None, WorkerAccount(0, 0), WorkerAccount(0, 5), WorkerAccount(5, 0)], ids=repr)
def test_no_worker_that_runs_sql_is_root(account: WorkerAccount | None) -> None:
    parent = os.getpid()

    def work() -> None:
        with pytest.raises(LockdownError, match=r"as root|needs an account"):
            lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=account)

    assert exit_code(fork(work)) == 0


@pytest.mark.root
def test_a_failing_step_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the host supports and that fails all the same, ends the lockdown."""

    def work() -> None:
        with pytest.raises(OSError, match="Operation not permitted"):
            lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=ACCOUNT)

    parent = os.getpid()

    def fails(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(seccomp, "install", fails)
    assert exit_code(fork(work)) == 0


def test_a_kernel_without_landlock_and_seccomp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_landlock() -> int:
        raise landlock.Unavailable("the kernel is built without Landlock")

    def no_seccomp(_: object) -> None:
        raise seccomp.Unavailable("the kernel has no seccomp filters")

    monkeypatch.setattr(landlock, "version", no_landlock)
    monkeypatch.setattr(seccomp, "require", no_seccomp)
    protections, _ = locked(HELPER, lambda: None, account=ACCOUNT)
    assert protections["missing"][0] == "seccomp: the kernel has no seccomp filters"
    assert protections["missing"][-1] == "Landlock: the kernel is built without Landlock"
    assert (protections["seccomp"], protections["landlock_abi"]) == (0, 0)
    assert protections["no_new_privileges"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86-64")
def test_a_call_of_another_abi_ends_the_process() -> None:
    parent = os.getpid()

    def x32() -> None:
        lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=ACCOUNT)
        kernel.syscall(0x4000_0000 | 39)

    assert exit_code(fork(x32)) == -signal.SIGSYS


def i386_getpid() -> Callable[[], int]:
    """A function that makes a 32-bit system call: `mov eax, 20; int 0x80; ret`."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="i386 is an ABI of x86-64")
def test_a_call_of_another_architecture_ends_the_process() -> None:
    parent = os.getpid()

    def free() -> int:
        faulthandler.disable()
        return int(i386_getpid()() != os.getpid())

    if exit_code(fork(free)) != 0:
        pytest.skip("this kernel runs no 32-bit calls")

    def confined() -> None:
        call = i386_getpid()
        lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=ACCOUNT)
        call()

    assert exit_code(fork(confined)) == -signal.SIGSYS


def test_an_event_worker_follows_a_store_that_it_opened_before(places: Path) -> None:
    """Read-only with its shared memory, while the writer adds rows, runs checkpoints and lets the files grow."""
    path = places / "events.db"
    writer = apsw.Connection(str(path))
    writer.execute("PRAGMA journal_mode=WAL").fetchall()
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (randomblob(100))")
    places.chmod(0o755)
    for file in places.glob("events.db*"):
        file.chmod(0o644)
    ours, theirs = socket.socketpair()
    opened: list[apsw.Connection] = []

    def count() -> int:
        return int(opened[0].execute("SELECT count(*), max(x) FROM t ORDER BY 1").fetchall()[0][0])

    def open_store() -> None:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        opened.append(apsw.Connection(f"file:{path}?mode=ro&readonly_shm=1", flags=flags))
        opened[0].execute("PRAGMA temp_store=MEMORY")
        assert count() == 1

    def work() -> list[int | str]:
        found: list[int | str] = []
        while theirs.recv(1):
            found.append(count())
            theirs.send(b".")
        found.append(outcome(lambda: apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)))
        return found

    parent_pid = os.getpid()
    reading, writing = os.pipe()

    def worker() -> None:
        ours.close()
        theirs.recv(1)
        open_store()
        lock_down(EVENTS, parent=parent_pid, account=ACCOUNT, limits=ROOMY)
        theirs.send(b".")
        os.write(writing, json.dumps(work()).encode())

    writer.close()  # a connection to SQLite must not cross a fork
    pid = fork(worker)
    theirs.close()
    writer = apsw.Connection(str(path))
    writer.execute("SELECT * FROM t").fetchall()
    ours.send(b"?")
    assert ours.recv(1) == b"."
    for rows in (1, 5_000, 50_000):
        writer.execute(
            "INSERT INTO t WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT randomblob(500) FROM n",
            (rows,),
        )
        ours.send(b"?")
        assert ours.recv(1) == b"."
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    ours.close()
    assert exit_code(pid) == 0
    assert json.loads(os.read(reading, 1_000)) == [2, 5_002, 55_002, "CantOpenError"]
    writer.close()
    for each in (reading, writing):
        os.close(each)


def test_the_account_is_no_one_elses(places: Path) -> None:
    free = 0x7FFF_5A99
    options: dict[str, Any] = {"account": "no-such-account", "numbers": [free]}
    assert worker_account(**options) == WorkerAccount(free, free)
    subordinate = places / "subuid"
    subordinate.write_text(f"broken\nsomebody:{free - 10}:20\n")
    with pytest.raises(LockdownError, match=rf"{subordinate} assigns it to somebody"):
        worker_account(**options, subordinate=[str(subordinate)])
    with pytest.raises(LockdownError, match="it is the account root"):
        worker_account("no-such-account", [0])
    with pytest.raises(LockdownError, match="neither root's nor nobody's"):
        worker_account("root")
    with pytest.raises(LockdownError, match="maps no user"):
        worker_account("no-such-account", [])


@pytest.mark.root
def test_a_number_that_a_process_has_is_refused_unless_it_is_a_worker() -> None:
    number_taken = 0x7FFF_5A98
    account = WorkerAccount(number_taken, number_taken)
    parent = os.getpid()
    with child(lambda: lock_down(SNAPSHOTS, parent=parent, limits=ROOMY, account=account) and None):
        assert worker_account("no-such-account", [number_taken]) == account
    with (
        child(lambda: os.setresuid(number_taken, 0, 0)) as pid,
        pytest.raises(LockdownError, match=f"process {pid} .* has it"),
    ):
        worker_account("no-such-account", [number_taken])


@pytest.mark.root
def test_a_worker_that_another_agent_is_just_confining_is_waited_for() -> None:
    """It has the number a moment before it has the rest."""
    number = 0x7FFF_5A97
    with subprocess.Popen(["setpriv", f"--reuid={number}", "sleep", "0.5"]) as other:
        status = Path(f"/proc/{other.pid}/status")
        until_sync(lambda: f"Uid:\t{number}" in status.read_text(), 5, "setpriv does not set the uid")
        threading.Thread(target=other.wait).start()
        assert worker_account("no-such-account", [number]) == WorkerAccount(number, number)


@pytest.mark.root
def test_a_number_that_only_programs_of_a_worker_have_is_not_refused() -> None:
    number_taken = 0x7FFF_5A98
    account = WorkerAccount(number_taken, number_taken)
    parent = os.getpid()
    reading, writing = os.pipe()

    def helper() -> None:
        os.setpgid(0, 0)
        lock_down(HELPER, parent=parent, limits=ROOMY, account=account, privileges=Privileges(programs=("/bin/sleep",)))
        pid = os.posix_spawn("/bin/sleep", ["sleep", "3600"], {})
        os.write(writing, b"%d" % pid)

    with child(helper) as pid:
        program = int(os.read(reading, 20))
        try:
            assert os.getpgid(program) == pid
            assert worker_account("no-such-account", [number_taken]) == account
        finally:
            os.kill(program, signal.SIGKILL)
    os.close(reading)
    os.close(writing)


def test_the_numbers_avoid_ranges_that_others_use() -> None:
    used = [range(1_000, 60_514), range(61_184, 65_536), range(65_536, 0x7FFE_0000), range(0x7FFE_0000, 0x7FFF_0000)]
    used.append(range(0x8000_0000, 0x1_0000_0000))
    assert not any(number in taken for number in ACCOUNT_NUMBERS for taken in used)


def test_lockdown_modules_are_light() -> None:
    """They are loaded in a zygote, and in each worker before anything else."""
    code = "import sys, zeek_agent.containment.lockdown; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    packages = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert "zeek_agent" in packages
    assert not {"asyncio", "ssl", "apsw", "subprocess", "socket", "logging"} & packages
