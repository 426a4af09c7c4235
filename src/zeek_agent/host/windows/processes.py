"""Processes of Windows: what every user sees, from the kernel's list; the rest from Win32 and psutil.

The start is a FILETIME, in which the entity id counts. The id of the boot is the time of the boot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cache, cached_property
from typing import Final, NamedTuple, TypeVar

from zeek_agent.host.portable.processes import PortableProcess, PortableProcesses
from zeek_agent.platforms.winapi import process_details, process_list
from zeek_agent.platforms.winapi.process_list import ListedProcess
from zeek_agent.text import from_os

T = TypeVar("T")

_PER_SECOND: Final = 10_000_000
_IDLE: Final = 0
_IDLE_NAME: Final = "System Idle Process"
_SAME_START_SECONDS: Final = 0.001
"""psutil rounds."""


class _Details(NamedTuple):
    """What is not in the list of processes."""

    executable: str | None
    user: process_details.User | None


@cache
def boot_id() -> str:
    """The time of the boot, as `entity_id` takes it: 48 bits of FILETIME, to 7 ms. Raises OSError."""
    return f"{process_list.booted():016x}"


class WindowsProcesses(PortableProcesses):
    """One scan of all processes."""

    start_unit_ns = 100
    can_exec = False

    def __init__(self) -> None:
        super().__init__(boot_id())
        self._listed = _listed()

    def pids(self) -> list[int]:
        return sorted(self._listed)

    def process(self, pid: int) -> WindowsProcess:
        """One process; also one that began after the scan, or has the pid of one that ended since."""
        for attempt in range(2):
            if attempt:
                self._listed = _listed()
            listed = self._listed.get(pid)
            if listed is not None and (process := WindowsProcess(self, listed)).is_current:
                return process
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class WindowsProcess(PortableProcess):
    """One process of the list. Users have no numbers, and processes no states."""

    def __init__(self, scan: WindowsProcesses, listed: ListedProcess) -> None:
        super().__init__(scan, listed.pid)
        self._listed = listed

    @property
    def is_current(self) -> bool:
        """Whether the process with the pid is still the listed one."""
        created = self._read(self._process.create_time)
        if not created or not self._listed.started:
            return True
        return abs(float(created) - self.started_ns / 1e9) < _SAME_START_SECONDS

    @cached_property
    def _details(self) -> _Details:
        """What needs a handle, of the same process as in the list."""
        try:
            with process_details.opened(self.pid) as handle:
                if process_details.started(handle) != self._listed.started:
                    raise ProcessLookupError(self.pid)
                return _Details(_known(process_details.executable, handle), _known(process_details.user, handle))
        except ProcessLookupError:
            raise
        except OSError:  # not permitted, or it has ended
            return _Details(None, None)

    @cached_property
    def name(self) -> str | None:
        """The file name of the executable."""
        return from_os(self._listed.name) or (_IDLE_NAME if self.pid == _IDLE else None)

    @property
    def ppid(self) -> int | None:
        """The process that created it, which may have ended, and its pid may be another one's now."""
        return self._listed.ppid

    @property
    def priority(self) -> str | None:
        """The base priority: 8 is normal, higher is more urgent."""
        return str(self._listed.base_priority)

    @property
    def vsize(self) -> int | None:
        """Bytes of its own memory, in memory or not, as version 2 reports it."""
        return self._listed.private_bytes or None

    @property
    def rsize(self) -> int | None:
        return self._listed.resident_bytes or None

    @property
    def utime(self) -> float | None:
        return self._listed.user_time / _PER_SECOND

    @property
    def stime(self) -> float | None:
        return self._listed.kernel_time / _PER_SECOND

    @cached_property
    def exe(self) -> str | None:
        path = self._details.executable
        return from_os(path) if path else None

    @property
    def state(self) -> str | None:
        return None

    @property
    def threads(self) -> int | None:
        return self._listed.threads

    @cached_property
    def start(self) -> int:
        """Start as FILETIME; 0 for the idle process."""
        return self._listed.started

    @property
    def started_ns(self) -> int:
        return max(0, (self.start - process_list.EPOCH) * 100)

    @property
    def start_time(self) -> float | None:
        return self.started_ns / 1e9 if self.start else None

    @property
    def user(self) -> str | None:
        """`DOMAIN\\name` of the user."""
        found = self._details.user
        return from_os(found.name) if found is not None and found.name else None

    @property
    def sid(self) -> str | None:
        found = self._details.user
        return None if found is None else found.sid


def _known(question: Callable[[int], T], handle: int) -> T | None:
    """The answer to a question about an open process; None if it is not permitted."""
    try:
        return question(handle)
    except OSError:
        return None


def _listed() -> dict[int, ListedProcess]:
    return {process.pid: process for process in process_list.list_processes()}
