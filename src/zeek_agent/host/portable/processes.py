"""Processes by psutil.

`PortableProcesses` is one scan of all processes, `PortableProcess` one of them, with the attributes of
`host.linux.procfs.ProcfsProcess`. What the system does not show this user, or has nothing like it, is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, TypeVar

import psutil

from zeek_agent.host.entity_id import entity_id
from zeek_agent.text import from_os

T = TypeVar("T")

STATES: Final = {
    psutil.STATUS_RUNNING: "running",
    psutil.STATUS_SLEEPING: "sleeping",
    psutil.STATUS_DISK_SLEEP: "uninterruptible",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "traced",
    psutil.STATUS_ZOMBIE: "zombie",
    psutil.STATUS_DEAD: "dead",
    psutil.STATUS_IDLE: "idle",
    psutil.STATUS_PARKED: "parked",
}
_DEVICES: Final = "/dev/"


def no_start(_: int) -> int | None:
    """The start of a process where psutil's is used."""
    return None


class PortableProcesses:
    """One scan of the processes of a POSIX system; what they share is read once.

    `boot_id` is None where the system has none, and then there are no entity ids. `start_of` returns the start of a
    process in microseconds since the epoch as the kernel noted it. psutil moves its own when the clock is set.
    """

    start_unit_ns = 1_000
    can_exec = True
    """Whether a process can execute another program."""

    def __init__(self, boot_id: str | None, start_of: Callable[[int], int | None] = no_start) -> None:
        self.boot_id = boot_id
        self.start_of = start_of
        self._started: dict[int, int] = {}

    def pids(self) -> list[int]:
        """The ids of all processes that this agent may see, in ascending order."""
        return sorted(psutil.pids())

    def process(self, pid: int) -> PortableProcess:
        """One process, to be used as a context manager. Raises ProcessLookupError."""
        return PortableProcess(self, pid)

    def processes(self, pids: Iterable[int] | None = None) -> Iterator[PortableProcess]:
        """All processes, or the existing ones of `pids`, each open until the next one is requested."""
        for pid in self.pids() if pids is None else pids:
            with suppress(ProcessLookupError), self.process(pid) as process:
                yield process

    def started(self, pid: int) -> int | None:
        """The start of that process, in the unit of `PortableProcess.start`; None if it does not exist."""
        if pid not in self._started:
            with suppress(ProcessLookupError), self.process(pid) as process:
                self.note_start(pid, process.start)
        return self._started.get(pid)

    def note_start(self, pid: int, start: int) -> None:
        self._started[pid] = start


class PortableProcess:
    """One process. Missing or unreadable values are None; ProcessLookupError means that the process is gone."""

    startup: None = None
    loginuid: None = None
    session: None = None
    cgroup: None = None
    container_id: None = None
    netns: None = None
    exe_device: None = None
    exe_inode: None = None
    exe_mntns: None = None

    def __init__(self, scan: PortableProcesses, pid: int) -> None:
        self.pid = pid
        self._scan = scan
        try:
            self._process = psutil.Process(pid)
        except (psutil.NoSuchProcess, ValueError, OverflowError) as error:  # no pid of this system
            raise ProcessLookupError(pid) from error
        self._oneshot = self._process.oneshot()

    def __enter__(self) -> PortableProcess:
        self._oneshot.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._oneshot.__exit__(None, None, None)

    @property
    def user(self) -> str | None:
        """Name of the user, where users have no numbers."""
        return None

    @property
    def sid(self) -> str | None:
        """Security identifier of the user, on Windows."""
        return None

    def _read(self, function: Callable[[], T]) -> T | None:
        """What a function of psutil returns; None if the system does not permit or know it."""
        try:
            return function()
        except (psutil.ZombieProcess, psutil.AccessDenied):
            return None
        except (psutil.NoSuchProcess, ProcessLookupError) as error:
            raise ProcessLookupError(self.pid) from error
        except OSError:  # psutil passes on what it has no class for
            return None

    def _read_by_name(self, function: str) -> Any:
        """The same for a function that psutil does not have on every system."""
        return self._read(getattr(self._process, function, lambda: None))

    @cached_property
    def name(self) -> str | None:
        name = self._read(self._process.name)
        return from_os(name) if name else None

    @property
    def ppid(self) -> int | None:
        return self._read(self._process.ppid)

    @cached_property
    def _uids(self) -> tuple[int | None, int | None]:
        """Real and effective user."""
        ids = self._read_by_name("uids")
        return (None, None) if ids is None else (ids.real, ids.effective)

    @cached_property
    def _gids(self) -> tuple[int | None, int | None]:
        ids = self._read_by_name("gids")
        return (None, None) if ids is None else (ids.real, ids.effective)

    @property
    def uid(self) -> int | None:
        """Effective user."""
        return self._uids[1]

    @property
    def gid(self) -> int | None:
        """Effective group."""
        return self._gids[1]

    @property
    def ruid(self) -> int | None:
        return self._uids[0]

    @property
    def rgid(self) -> int | None:
        return self._gids[0]

    @property
    def priority(self) -> str | None:
        """The negated nice value, as version 2 reports it."""
        nice = self._read(self._process.nice)
        return None if nice is None else str(-nice)

    @cached_property
    def _memory(self) -> Any:
        return self._read(self._process.memory_info)

    @property
    def vsize(self) -> int | None:
        """Bytes of address space."""
        return self._memory.vms if self._memory else None

    @property
    def rsize(self) -> int | None:
        """Bytes in memory."""
        return self._memory.rss if self._memory else None

    @cached_property
    def _times(self) -> Any:
        return self._read(self._process.cpu_times)

    @property
    def utime(self) -> float | None:
        """Seconds of processor time in user mode."""
        return float(self._times.user) if self._times else None

    @property
    def stime(self) -> float | None:
        """Seconds of processor time in the kernel."""
        return float(self._times.system) if self._times else None

    @cached_property
    def exe(self) -> str | None:
        path = self._read(self._process.exe)
        return from_os(path) if path else None

    @cached_property
    def arguments(self) -> bytes | None:
        """The arguments, each with its NUL, unmasked; None if there are none or they are not readable."""
        arguments = self._read(self._process.cmdline)
        return b"".join(encoded(argument) + b"\0" for argument in arguments) if arguments else None

    @cached_property
    def cwd(self) -> str | None:
        path = self._read(self._process.cwd)
        return from_os(path) if path else None

    @property
    def state(self) -> str | None:
        status = self._read(self._process.status)
        return None if status is None else STATES.get(status)

    @property
    def threads(self) -> int | None:
        return self._read(self._process.num_threads)

    @cached_property
    def start(self) -> int:
        """Start in microseconds since the epoch."""
        exact = self._scan.start_of(self.pid)
        if exact is not None:
            return exact
        seconds = self._read(self._process.create_time)
        if seconds is None:
            raise ProcessLookupError(self.pid)
        return round(float(seconds) * 1e6)

    @property
    def started_ns(self) -> int:
        """Start in nanoseconds since the epoch."""
        return self.start * 1_000

    @property
    def start_time(self) -> float | None:
        """Start in seconds since the epoch."""
        return self.started_ns / 1e9

    @property
    def tty(self) -> str | None:
        path = self._read_by_name("terminal")
        return path.removeprefix(_DEVICES) if path else None

    @property
    def entity_id(self) -> str | None:
        self._scan.note_start(self.pid, self.start)
        return None if self._scan.boot_id is None else entity_id(self._scan.boot_id, self.pid, self.start)

    @property
    def parent_entity_id(self) -> str | None:
        """The parent's entity id; None without a parent, or if it ended and a younger process has its pid."""
        ppid = self.ppid
        started = self._scan.started(ppid) if ppid else None
        if self._scan.boot_id is None or ppid is None or started is None or started > self.start:
            return None
        return entity_id(self._scan.boot_id, ppid, started)


def encoded(argument: str) -> bytes:
    """An argument as bytes, as the process has it; on Windows, where it is UTF-16, in UTF-8."""
    try:
        return os.fsencode(argument)
    except UnicodeEncodeError:  # a lone surrogate of UTF-16
        return argument.encode("utf-8", "replace")
