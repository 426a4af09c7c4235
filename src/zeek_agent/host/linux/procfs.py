"""Processes from proc(5).

`Procfs` is one scan of all processes, `ProcfsProcess` one of them. A process is accessed through a descriptor of its
directory, so that everything read belongs to the same process, even if its pid is reused meanwhile.

The main thread of a process may end before the others. It then has no memory, files and namespaces any more, and
/proc/PID lacks all that depends on them, or shows a zombie. Such values are read from the oldest living thread.
"""

# ruff: noqa: PTH115, PTH208
# A query makes thousands of short reads, for which pathlib costs more than the kernel.

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.files.statx import FOLLOW_WITHOUT_SYNC, FileStatus, status_at
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.host.linux.containers import container_id
from zeek_agent.host.linux.executables import device_of_mount, is_in_memory, mount_namespace, stated_device
from zeek_agent.host.linux.mounts import OWN_MOUNTINFO
from zeek_agent.text import from_bytes, from_os

UNSET_ID: Final = 0xFFFF_FFFF
"""The kernel's value of a user or session id that was never set."""

STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "uninterruptible",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
    "P": "parked",
}

# Positions of fields in /proc/PID/stat after the name, as in `_stat_fields`.
_STATE, _PPID, _PGID, _TTY, _FLAGS, _UTIME, _STIME, _PRIORITY, _NICE, _THREADS = 0, 1, 2, 4, 6, 11, 12, 15, 16, 17
_START, _VSIZE, _RSS, _STACK = 19, 20, 21, 25
_PF_KTHREAD: Final = 0x0020_0000

_LINKS_OF_TWO_THREADS: Final = 4
"""Links of the task directory of a process with two threads."""
_READ_BYTES: Final = 65_536
"""More than nearly all files of a process, so that one read suffices."""


class Procfs:
    """One scan of the processes below `root`; shared values are read once."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self.boot_id = _boot_id(root)
        self.boot_time = round(boot_time(), 2)
        self.ticks = os.sysconf("SC_CLK_TCK")
        self.page = os.sysconf("SC_PAGE_SIZE")
        self._started: dict[int, int] = {}

    @cached_property
    def own_mountinfo(self) -> bytes:
        """The agent's mounts; empty if unknown."""
        try:
            return Path(OWN_MOUNTINFO).read_bytes()
        except OSError:
            return b""

    @cached_property
    def own_mntns(self) -> int | None:
        """The agent's mount namespace."""
        return mount_namespace("self")

    def pids(self) -> list[int]:
        """The ids of all processes that this agent may see, in ascending order."""
        return sorted(int(name) for name in os.listdir(self.root) if name.isdecimal())

    def processes(self, pids: Iterable[int] | None = None) -> Iterator[ProcfsProcess]:
        """All processes, or the existing ones of `pids`, each open until the next one is requested."""
        for pid in self.pids() if pids is None else pids:
            with suppress(ProcessLookupError), ProcfsProcess(self, pid) as process:
                if pids is None or process.is_leader:
                    yield process

    def started(self, pid: int) -> int | None:
        """The start of that process, in ticks since boot; None if it does not exist."""
        if pid not in self._started:
            with suppress(ProcessLookupError), ProcfsProcess(self, pid) as process:
                self.note_start(pid, process.start_ticks)
        return self._started.get(pid)

    def note_start(self, pid: int, start_ticks: int) -> None:
        self._started[pid] = start_ticks


class ProcfsProcess:
    """One process. Missing or unreadable values are None; ProcessLookupError means that the process is gone."""

    def __init__(self, procfs: Procfs, pid: int) -> None:
        self.pid = pid
        self._procfs = procfs
        try:
            self._directory = os.open(f"{procfs.root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(pid) from error

    def __enter__(self) -> ProcfsProcess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    @cached_property
    def _stat(self) -> tuple[bytes, list[bytes]]:
        """The name, and the fields of /proc/PID/stat after it."""
        return self._current_stat()

    def _current_stat(self) -> tuple[bytes, list[bytes]]:
        raw = self._read("stat")
        if not raw:
            raise ProcessLookupError(self.pid)
        return raw.rpartition(b")")[0].partition(b"(")[2], _stat_fields(raw)

    @cached_property
    def _status(self) -> bytes:
        raw = self._read("status")
        if not raw:
            raise ProcessLookupError(self.pid)
        return raw

    @cached_property
    def _thread(self) -> str:
        """The directory of the oldest living thread, `task/TID/`, if the main thread has ended; otherwise empty."""
        _, fields = self._stat
        if fields[_VSIZE] != b"0" or int(fields[_THREADS]) < 2:
            return ""
        return living_thread(self._directory) or ""

    @cached_property
    def _acting(self) -> list[bytes]:
        """The fields of the stat file of that thread, or else of the main thread."""
        raw = self._read(f"{self._thread}stat") if self._thread else None
        return _stat_fields(raw) if raw else self._stat[1]

    @cached_property
    def _ids(self) -> tuple[list[bytes], list[bytes]]:
        """Real, effective, saved and file system ids: of the user, of the group."""
        raw = self._status
        if b"\nVmSize:" not in raw and b"\nThreads:\t1\n" not in raw and self._thread:
            raw = self._read(f"{self._thread}status") or raw
        users = raw.index(b"\nUid:") + 5
        groups = raw.index(b"\nGid:", users) + 5
        return raw[users : groups - 5].split(), raw[groups : raw.index(b"\n", groups)].split()

    @property
    def is_leader(self) -> bool:
        """Whether this is a process; /proc also has unlisted directories of its other threads."""
        return b"\nTgid:\t%d\n" % self.pid in self._status

    @property
    def name(self) -> str:
        return from_bytes(self._stat[0])

    @property
    def ppid(self) -> int:
        return int(self._stat[1][_PPID])

    @property
    def pgid(self) -> int:
        """Process group."""
        return int(self._stat[1][_PGID])

    @property
    def uid(self) -> int:
        """Effective user."""
        return int(self._ids[0][1])

    @property
    def gid(self) -> int:
        """Effective group."""
        return int(self._ids[1][1])

    @property
    def ruid(self) -> int:
        return int(self._ids[0][0])

    @property
    def rgid(self) -> int:
        return int(self._ids[1][0])

    @property
    def suid(self) -> int:
        return int(self._ids[0][2])

    @property
    def sgid(self) -> int:
        return int(self._ids[1][2])

    @property
    def priority(self) -> str:
        return self._acting[_PRIORITY].decode()

    @property
    def nice(self) -> int:
        return int(self._acting[_NICE])

    @property
    def vsize(self) -> int:
        """Bytes of address space."""
        return int(self._acting[_VSIZE])

    @property
    def rsize(self) -> int:
        """Bytes in memory."""
        return int(self._acting[_RSS]) * self._procfs.page

    @property
    def utime(self) -> float:
        """Seconds of processor time in user mode."""
        return int(self._stat[1][_UTIME]) / self._procfs.ticks

    @property
    def stime(self) -> float:
        """Seconds of processor time in the kernel."""
        return int(self._stat[1][_STIME]) / self._procfs.ticks

    @property
    def disk_read(self) -> int | None:
        """Bytes that it had the disk read."""
        return self._disk_bytes[0]

    @property
    def disk_written(self) -> int | None:
        """Bytes that it had the disk write, without those that were thrown away before."""
        return self._disk_bytes[1]

    @cached_property
    def _disk_bytes(self) -> tuple[int | None, int | None]:
        raw = self._read("io")
        if not raw:
            return None, None
        counted = {name: int(count) for name, _, count in (line.partition(b": ") for line in raw.splitlines())}
        return counted[b"read_bytes"], counted[b"write_bytes"] - counted[b"cancelled_write_bytes"]

    @property
    def state(self) -> str:
        letter = self._acting[_STATE].decode()
        return STATES.get(letter, letter)

    @property
    def is_ending(self) -> bool:
        """Whether all its threads have released their memory, and with it their files, control group and namespaces."""
        _, fields = self._current_stat()
        if fields[_VSIZE] != b"0" or int(fields[_FLAGS]) & _PF_KTHREAD:
            return False
        return int(fields[_THREADS]) < 2 or living_thread(self._directory) is None

    @property
    def threads(self) -> int:
        return int(self._stat[1][_THREADS])

    @property
    def start_ticks(self) -> int:
        """Start in ticks (USER_HZ) since boot."""
        return int(self._stat[1][_START])

    @property
    def start_time(self) -> float:
        """Start in seconds since the epoch."""
        return round(self._procfs.boot_time + self.start_ticks / self._procfs.ticks, 2)

    @property
    def tty(self) -> str | None:
        device = int(self._stat[1][_TTY])
        return tty_name(device) if device else None

    @cached_property
    def exe(self) -> str | None:
        return self._living_link("exe")

    @property
    def exe_device(self) -> int | None:
        """The device of the executable's file system, encoded as by makedev(3)."""
        return self._exe_mount[0]

    @property
    def exe_inode(self) -> int | None:
        return None if self._executable is None else self._executable.inode

    @property
    def exe_mntns(self) -> int | None:
        """The mount namespace in which the executable was opened."""
        return self._exe_mount[1]

    @cached_property
    def _exe_mount(self) -> tuple[int | None, int | None]:
        """Device and namespace of the mount with the executable, looked up in the agent's and the process's namespace.

        The process may have left the namespace in which it was executed.
        """
        found = self._executable
        if found is None:
            return None, None
        if is_in_memory(found):
            return found.device, None
        device = device_of_mount(found.mount, self._procfs.own_mountinfo)
        if device is not None:
            return device, self._procfs.own_mntns
        device = device_of_mount(found.mount, self._living_file("mountinfo") or b"")
        link = None if device is None else self._living_link("ns/mnt")
        return stated_device(found) if device is None else device, int(link[5:-1]) if link else None

    @cached_property
    def _executable(self) -> FileStatus | None:
        """Attributes of the executable, from the kernel's cache: its file system may not answer."""
        if self.exe is None:
            return None
        try:
            return status_at(self._directory, f"{self._thread}exe", FOLLOW_WITHOUT_SYNC)
        except OSError:  # gone, not permitted, or before Linux 5.8
            return None

    @cached_property
    def cwd(self) -> str | None:
        return self._living_link("cwd")

    @cached_property
    def root(self) -> str | None:
        """Root directory: of chroot(2); `/` in a container."""
        return self._living_link("root")

    @cached_property
    def arguments(self) -> bytes | None:
        """The arguments, each with its NUL, unmasked; None for kernel threads and zombies, which have none."""
        raw = self._read("cmdline") or self._living_file("cmdline")
        if not raw:
            return None
        if raw.endswith(b"\0\0") and raw.count(b"\0") > (self._argument_count() or len(raw)):
            return raw.rstrip(b"\0") + b"\0"  # a title that the process wrote over its arguments, and padding
        return raw

    @cached_property
    def loginuid(self) -> int | None:
        return self._audit_id("loginuid")

    @cached_property
    def session(self) -> int | None:
        return self._audit_id("sessionid")

    @cached_property
    def cgroup(self) -> str | None:
        """The control group; None for a process that is ending, which the kernel shows in the root group."""
        raw = self._living_file("cgroup")
        path = cgroup_path(raw) if raw else None
        return None if path == "/" and self.is_ending else path

    @property
    def container_id(self) -> str | None:
        return container_id(self.cgroup) if self.cgroup else None

    @cached_property
    def netns(self) -> int | None:
        link = self._living_link("ns/net")
        return int(link[5:-1]) if link else None

    @property
    def entity_id(self) -> str:
        self._procfs.note_start(self.pid, self.start_ticks)
        return entity_id(self._procfs.boot_id, self.pid, self.start_ticks)

    @property
    def parent_entity_id(self) -> str | None:
        """The parent's entity id; None without a parent, or if it ended and a younger process has its pid."""
        started = self._procfs.started(self.ppid) if self.ppid else None
        if started is None or started > self.start_ticks:
            return None
        return entity_id(self._procfs.boot_id, self.ppid, started)

    def _argument_count(self) -> int | None:
        """The number of arguments that the kernel passed (argc, at the start of the stack); None if inaccessible."""
        start = int(self._acting[_STACK])
        try:
            memory = os.open(f"{self._thread}mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError:
            return None
        try:
            return int.from_bytes(os.pread(memory, 4, start), "little") if start else None
        except OSError:
            return None
        finally:
            os.close(memory)

    def _audit_id(self, name: str) -> int | None:
        raw = self._living_file(name)
        return int(raw) if raw and int(raw) != UNSET_ID else None

    def _living_file(self, name: str) -> bytes | None:
        return self._read(self._thread + name)

    def _living_link(self, name: str) -> str | None:
        """A link that an ended thread does not have."""
        link = self._link(name)
        return self._link(self._thread + name) if link is None and self._thread else link

    def _read(self, name: str) -> bytes | None:
        try:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            self._check_alive()
            return None
        except PermissionError:
            return None
        try:
            content = part = os.read(file, _READ_BYTES)
            while len(part) > 0 and len(content) >= _READ_BYTES:
                part = os.read(file, _READ_BYTES)
                content += part
        except PermissionError:
            return None
        finally:
            os.close(file)
        return content

    def _link(self, name: str) -> str | None:
        try:
            return from_os(os.readlink(name, dir_fd=self._directory))
        except FileNotFoundError:
            self._check_alive()
            return None
        except OSError:  # not permitted, or a path longer than a page
            return None

    def _check_alive(self) -> None:
        """Tell a process without that file from one that is gone: raises ProcessLookupError for the latter."""
        try:
            os.stat("stat", dir_fd=self._directory)
        except FileNotFoundError as error:
            raise ProcessLookupError(self.pid) from error


def living_thread(directory: int) -> str | None:
    """The oldest living thread of the process whose directory in /proc this is, as `task/TID/`; None without one."""
    try:
        tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:  # gone, or not permitted
        return None
    try:
        for thread in os.listdir(tasks):
            with suppress(OSError):  # gone meanwhile
                stat = os.open(f"{thread}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tasks)
                try:
                    raw = os.read(stat, _READ_BYTES)
                finally:
                    os.close(stat)
                if raw and _stat_fields(raw)[_VSIZE] != b"0":
                    return f"task/{thread}/"
    except OSError:
        return None
    finally:
        os.close(tasks)
    return None


def living_directory(root: str, pid: int | str) -> str:
    """The directory of a process, or if its main thread has ended while others run, that of the oldest of these."""
    directory = f"{root}/{pid}"
    try:
        if os.stat(f"{directory}/task").st_nlink < _LINKS_OF_TWO_THREADS:  # noqa: PTH116
            return directory
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return directory
    try:
        return f"{directory}/{living_thread(descriptor) or ''}".rstrip("/")
    finally:
        os.close(descriptor)


def socket_holders(
    root: str, pids: Iterable[int], check: Callable[[], None] = lambda: None
) -> dict[int, list[tuple[int, int]]]:
    """Holders of sockets, by inode: the processes that have the socket open, and their lowest descriptor.

    Processes whose descriptors are not readable are omitted.
    """
    holders: dict[int, list[tuple[int, int]]] = {}
    readlink = os.readlink
    for pid in pids:
        check()
        directory = f"{root}/{pid}/fd/"
        try:
            descriptors = os.listdir(directory)
            if not descriptors:  # few processes but kernel threads
                directory = f"{living_directory(root, pid)}/fd/"
                descriptors = os.listdir(directory)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                target = readlink(directory + descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                holding = holders.setdefault(int(target[8:-1]), [])
                if not holding or holding[-1][0] != pid:
                    holding.append((pid, int(descriptor)))
    return holders


def network_namespace(root: str, pid: int | str) -> int | None:
    """The inode number of a process's network namespace; None if the process is gone or not accessible."""
    try:
        try:
            link = os.readlink(f"{root}/{pid}/ns/net")
        except FileNotFoundError:
            link = os.readlink(f"{living_directory(root, pid)}/ns/net")
    except OSError:
        return None
    return int(link[5:-1])


def _stat_fields(raw: bytes) -> list[bytes]:
    """The fields of a stat file after the name, which may contain any character."""
    return raw.rpartition(b")")[2].split()


def cgroup_path(raw: bytes) -> str:
    """One path from /proc/PID/cgroup: of the unified hierarchy or, if that is the root, the longest of version 1.

    Where both are in use, version 1's memory or pids controller decides if its path tells more: with runtimes that
    know version 1 only, a container's process is in the unified group of the runtime.
    """
    lines = [line.split(b":", 2) for line in raw.splitlines() if line.count(b":") >= 2]
    unified = next((path for number, controllers, path in lines if (number, controllers) == (b"0", b"")), b"/")
    if unified == b"/":
        return from_bytes(max((path for _, _, path in lines), key=len, default=b"/"))
    by_controller = {name: path for _, names, path in lines for name in names.split(b",")}
    v1 = next((by_controller[name] for name in (b"memory", b"pids") if by_controller.get(name, b"/") != b"/"), b"/")
    return from_bytes(v1 if _tells_more(v1, unified) else unified)


def _tells_more(v1: bytes, unified: bytes) -> bool:
    """The same as in bpf/task.h: in another top-level group, or deeper. systemd's groups are the same in both."""
    if v1 == b"/":
        return False
    return v1.count(b"/") > unified.count(b"/") or v1.split(b"/")[1] != unified.split(b"/")[1]


@lru_cache(maxsize=256)
def tty_name(device: int) -> str | None:
    """The terminal's name in /dev, by its device number: `pts/3`, `tty1`, `ttyS0`."""
    major, minor = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    try:
        return Path(f"/sys/dev/char/{major}:{minor}").readlink().name
    except OSError:
        return None


@lru_cache(maxsize=4)
def _boot_id(root: str) -> str:
    return Path(root, "sys/kernel/random/boot_id").read_text().strip()
