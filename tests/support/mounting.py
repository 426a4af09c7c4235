"""Mount namespaces, hostile processes and a silent FUSE daemon, for tests of the path gate.

A scene is a function that runs as root in a forked process with a mount namespace of its own, so that what it mounts
is never seen on the host. What attacks it are further processes, which die with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import pickle
import platform
import re
import selectors
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import pytest
from children import fork

from zeek_agent.host.files import mount_rules

T = TypeVar("T")

NOBODY: Final = 65534
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000
MS_RDONLY: Final = 0x1
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 2
RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_FUSE_LOOKUP: Final = 1
_FUSE_GETATTR: Final = 3
_FUSE_OPEN: Final = 14
_FUSE_READ: Final = 15
_FUSE_STATFS: Final = 17
_FUSE_INIT: Final = 26
_FUSE_UNANSWERED: Final = frozenset({2, 18, 29, 36, 38, 42})
"""Requests that nobody waits for: FORGET, RELEASE, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET."""
_PAUSE: Final = {
    "x86_64": (62, bytes.fromhex("b8220000000f05ebf7")),
    "aarch64": (183, bytes.fromhex("000080d2010080d2020080d2030080d2040080d2280980d2010000d4f9ffff17")),
}
"""By machine: its number in ELF, and code that waits for ever."""
_FUSE_IN: Final = struct.Struct("<IIQQIIII")
_FUSE_BUFFER: Final = 1 << 17
_MESSAGE: Final = 1 << 10

_libc = ctypes.CDLL(None, use_errno=True)

needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    encoded = (os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags))
    _call("mount", *encoded, os.fsencode(data) or None)


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Show a file or directory at another place, too."""
    mount(source, target, flags=MS_BIND | (MS_REC if recursive else 0))


def unmount(target: str | Path) -> None:
    """Detach a mount, whoever still uses it."""
    _call("umount2", os.fsencode(target), MNT_DETACH)


def mount_line(target: Path) -> str | None:
    """The line in mountinfo of what is mounted there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next((line for line in reversed(lines) if line.split()[4] == str(target)), None)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _call("unshare", flags)


def exchange(one: bytes, other: bytes) -> None:
    """Exchange two directory entries in one step."""
    _call("renameat2", _AT_FDCWD, one, _AT_FDCWD, other, RENAME_EXCHANGE)


def overlay(target: Path, *lower: Path) -> None:
    """A read-only overlay of directories; the first is uppermost."""
    if len(lower) == 1:
        empty = target.with_name(f"{target.name}.empty")
        empty.mkdir(exist_ok=True)
        lower = (*lower, empty)
    layers = ":".join(re.sub(r"([\\:,])", r"\\\1", str(layer)) for layer in lower)
    mount("overlay", target, "overlay", data=f"lowerdir={layers}")


class SilentFuse:
    """A FUSE daemon that takes each request and answers none but the first, with which the kernel starts it.

    Made before the scene, which mounts; the requests are taken by the process that runs the scene, so that whoever
    waits for an answer is released when that one closes the descriptor, which it always does. With a `program` the
    file system holds that one file, which can be run until the scene calls `fall_silent`.
    """

    def __init__(self, program: bytes | None = None) -> None:
        self.requests: list[int] = []
        """Operation codes of requests that somebody had to wait for, see <linux/fuse.h>."""
        self._program = program
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._descriptors: set[int] = set()

    def mount(
        self, place: str | Path, *, mode: int = 0o40755, uid: int = 0, subtype: str = "", private: bool = False
    ) -> None:
        """Called in the scene: mount such a file system, for all users or for one alone."""
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            socket.send_fds(self._theirs, [b"serve"], [descriptor])
            self._theirs.recv(_MESSAGE)
            options = f"fd={descriptor},rootmode={mode:o},user_id={uid},group_id={uid}"
            options += "" if private else ",allow_other"
            mount("silent", place, f"fuse.{subtype}" if subtype else "fuse", data=options)
        finally:
            os.close(descriptor)

    def fall_silent(self) -> None:
        """Called in the scene: answer nothing any more."""
        self._theirs.send(b"silence")
        self._theirs.recv(_MESSAGE)

    def serve(self, finished: int, seconds: float) -> bool:
        """Take requests until a descriptor can be read; False when that takes too long."""
        deadline = time.monotonic() + seconds
        with selectors.PollSelector() as waiting:  # epoll does not wake up for what it has got before the mount
            waiting.register(finished, selectors.EVENT_READ)
            waiting.register(self._ours, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    if key.fd == finished:
                        return True
                    if key.fd == self._ours.fileno():
                        self._obey(waiting)
                    elif not self._take(key.fd):
                        waiting.unregister(key.fd)
                        self._descriptors.discard(key.fd)
                        os.close(key.fd)
        return False

    def close(self) -> None:
        """End the daemon, which releases everybody who waits for it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._ours.close()
        self._theirs.close()

    def _obey(self, waiting: selectors.BaseSelector) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._ours, _MESSAGE, 1)
        if message == b"silence":
            self._program = None
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
            self._descriptors.add(descriptor)
            waiting.register(descriptor, selectors.EVENT_READ)
        self._ours.send(b"done")

    def _take(self, descriptor: int) -> bool:
        """Take one request; False when the file system has been unmounted."""
        try:
            request = os.read(descriptor, _FUSE_BUFFER)
        except OSError as error:
            if error.errno == errno.EPERM:  # it is not mounted yet
                time.sleep(0.0005)
            return error.errno in (errno.EPERM, errno.EAGAIN, errno.ENOENT, errno.EINTR)
        _, operation, unique, node, *_ = _FUSE_IN.unpack_from(request)
        body = request[_FUSE_IN.size :]
        if operation == _FUSE_INIT:
            major, minor, readahead = struct.unpack_from("<III", body)
            known = (major, min(minor, 31), readahead, 0, 12, 9, 4096, 1, 0, 0, 0)
            self._answer(descriptor, unique, struct.pack("<IIIIHHIIHHI28x", *known))
        elif self._program is not None:
            self._serve_program(descriptor, operation, unique, node, body)
        elif operation not in _FUSE_UNANSWERED:
            self.requests.append(operation)
        return True

    def _serve_program(self, descriptor: int, operation: int, unique: int, node: int, body: bytes) -> None:
        program = self._program or b""
        if operation == _FUSE_LOOKUP:
            self._answer(descriptor, unique, struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self._attributes(2))
        elif operation == _FUSE_GETATTR:
            self._answer(descriptor, unique, struct.pack("<QII", 3600, 0, 0) + self._attributes(node))
        elif operation == _FUSE_OPEN:
            self._answer(descriptor, unique, struct.pack("<QII", 0, 0, 0))
        elif operation == _FUSE_READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._answer(descriptor, unique, program[offset : offset + size])
        elif operation == _FUSE_STATFS:
            self._answer(descriptor, unique, struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0))
        elif operation not in _FUSE_UNANSWERED:
            os.write(descriptor, struct.pack("<IiQ", 16, -errno.ENOSYS, unique))

    def _attributes(self, node: int) -> bytes:
        size = len(self._program or b"") if node == 2 else 0
        mode = 0o100755 if node == 2 else 0o40755
        return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _answer(self, descriptor: int, unique: int, body: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has been unmounted meanwhile
            os.write(descriptor, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def in_mount_namespace(scene: Callable[[], T], *, fuse: SilentFuse | None = None, seconds: float = 60) -> T:
    """What a function returns that runs in a child with a mount namespace of its own.

    A child that hangs is ended after `seconds`, and the test fails; so it does when the scene raises.
    """
    daemon = fuse or SilentFuse()
    results, reply = os.pipe()

    def run() -> None:
        os.close(results)
        _run_scene(scene, reply)

    child = fork(run)
    os.close(reply)
    try:
        in_time = daemon.serve(results, seconds)
        if not in_time:
            pytest.fail(f"the scene hangs after {seconds} s; requests that it waits for: {daemon.requests}")
        with os.fdopen(os.dup(results), "rb") as answers:
            answer = answers.read()
    finally:
        os.close(results)
        os.kill(child, signal.SIGKILL)
        daemon.close()
        os.waitpid(child, 0)
    if not answer:
        pytest.fail("the scene's process ended without an answer")
    outcome: T
    failure, outcome = pickle.loads(answer)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return outcome


def in_empty_root(scene: Callable[[], T], place: Path, *, fuse: SilentFuse | None = None) -> T:
    """The same for a scene in a root directory that is empty but for /proc, on one file system."""

    def rooted() -> T:
        mount("root", place, "tmpfs", data="mode=755")
        (place / "proc").mkdir()
        mount("proc", place / "proc", "proc")
        change_root(place)
        return scene()

    return in_mount_namespace(rooted, fuse=fuse)


def change_root(place: Path) -> None:
    """chroot(2), for the path gate as well."""
    os.chroot(place)
    os.chdir("/")
    mount_rules.own_mounts.cache_clear()


def pivot_root(place: Path) -> None:
    """Make a mount the root directory, as pivot_root(2), and let go of the old one."""
    number = {"x86_64": 155, "aarch64": 41}.get(platform.machine())
    if number is None:
        pytest.skip(f"pivot_root(2) has no number here for {platform.machine()}")
    old = place / "old"
    old.mkdir(exist_ok=True)
    _call("syscall", number, os.fsencode(place), os.fsencode(old))
    os.chdir("/")
    unmount("/old")
    Path("/old").rmdir()
    mount_rules.own_mounts.cache_clear()


def _run_scene(scene: Callable[[], object], reply: int) -> None:
    answer = b""
    try:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount_rules.own_mounts.cache_clear()  # the parent's mount namespace is another one
        answer = pickle.dumps((None, scene()))
    except BaseException:  # noqa: BLE001 - an assertion that failed, or a skip
        answer = pickle.dumps((traceback.format_exc(), None))
    finally:
        with os.fdopen(reply, "wb") as replies:
            replies.write(answer)


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def become(user: int, namespaces: int = 0) -> None:
    """Turn this process into a user's, in namespaces of its own; in a user namespace it is root."""
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # A change of user, even one taken back before the fork, makes /proc/PID unreadable without CAP_SYS_PTRACE.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    if namespaces:
        unshare(namespaces)
    if namespaces & CLONE_NEWUSER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {user} 1")


@contextlib.contextmanager
def process(
    prepare: Callable[[], object], *, user: int = 0, namespaces: int = 0, again: Callable[[], object] | None = None
) -> Iterator[int]:
    """A process of a user that has run `prepare` and waits, or runs `again` without end: its id.

    Used in a scene. What `prepare` raises fails the scene.
    """
    ready, said = os.pipe()
    parent = os.getpid()

    def run() -> None:
        os.close(ready)
        _run_process(prepare, user, namespaces, again, said, parent)

    child = fork(run)
    os.close(said)
    try:
        with os.fdopen(ready, "rb") as answers:
            answer = answers.read()
        if answer != b"ready":
            raise RuntimeError(f"the hostile process failed:\n{answer.decode()}")
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def demand_running(pid: int) -> None:
    """Raises RuntimeError if a child has ended."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        raise RuntimeError("the hostile process has ended, see its traceback on standard error")


def _run_process(
    prepare: Callable[[], object],
    user: int,
    namespaces: int,
    again: Callable[[], object] | None,
    said: int,
    parent: int,
) -> None:
    try:
        become(user, namespaces)
        _die_with_parent(parent)
        prepare()
        os.write(said, b"ready")
        os.close(said)
        said = 2
        while True:
            (again or signal.pause)()
    except BaseException:  # noqa: BLE001 - the scene is told
        os.write(said, traceback.format_exc().encode())


def static_program() -> bytes:
    """An executable that needs no libraries and waits for ever; a test is skipped on other machines."""
    machine = platform.machine()
    if machine not in _PAUSE:
        pytest.skip(f"no static program for {machine}")
    number, code = _PAUSE[machine]
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, number, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 0x1000)
    return header + segment + code


def start(program: str | Path, *, chroot: Path | None = None) -> int:
    """Run a static program in a child that ends with this process: its id."""

    def run() -> NoReturn:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if chroot is not None:
            os.chroot(chroot)
        os.execv(program, [str(program)])

    child = fork(run)
    before = Path("/proc/self/exe").readlink()
    while Path(f"/proc/{child}/exe").readlink() == before:
        time.sleep(0.002)
    return child


class Counter:
    """A number that processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def add(self) -> None:
        self._memory[:] = (self.value + 1).to_bytes(8, "little")

    @property
    def value(self) -> int:
        return int.from_bytes(self._memory[:], "little")
