"""Decides whether the sender of a log message is the program that it claims to be.

Any user can write any message to the system log. The journal takes user and executable of the sender from the kernel.
The files of a syslog daemon have only what the sender wrote: there, the process with that pid must not be another
program, and other sources have to confirm what the message says.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from zeek_agent.host.accounts.local_accounts import LocalAccounts
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.logins.auth_messages import SSH_PROGRAMS, AuthMessage
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.system_log.log_entry import SystemLogEntry

_SETUID_PROGRAMS: Final = frozenset({"su", "sudo"})
"""Programs that log on behalf of the user who runs them."""
_SETUID_ACTIONS: Final = frozenset({"su", "sudo", "session_closed"})
_SYSTEM_DIRECTORIES: Final = frozenset(
    {
        "/bin",
        "/usr/bin",
        "/sbin",
        "/usr/sbin",
        "/usr/local/bin",
        "/usr/local/sbin",
        "/run/wrappers/bin",
        "/usr/lib/cargo/bin",
    }
)
_WITHOUT_PID: Final = frozenset({"su", "sudo", "runuser"})
"""Programs that do not write their pid, or not always."""
_NAMED_PROGRAMS: Final = frozenset({*SSH_PROGRAMS, "su", "sudo", "login"})
"""Programs whose tag is the name of their executable."""
_CLOCK_SECONDS: Final = 1.0
"""Times in files are whole seconds."""
_READ_AGE_SECONDS: Final = 10.0
"""Age of an entry whose process is looked up in /proc; the pid of an older one may belong to another process."""


class Sender(NamedTuple):
    """The sender of an accepted message: whether the kernel vouches for it, and its process if that is known."""

    verified: bool
    process: Process | None


class Senders:
    """Looks senders up in the process cache and in /proc."""

    def __init__(self, cache: ProcessCache, accounts: LocalAccounts) -> None:
        self.since = math.inf
        """Since when (seconds since the epoch) all processes are in the cache."""
        self._cache = cache
        self._accounts = accounts

    def of_journal(self, entry: SystemLogEntry, message: AuthMessage, process: Process | None) -> Sender | None:
        """The sender of a journal entry, with its process; None if it is not permitted to say that."""
        if entry.uid == 0:
            return Sender(True, process)
        exe = entry.exe or (process.exe if process is not None else None)
        name = program_of(exe) if exe is not None else entry.process
        if entry.uid is None or (name not in _SETUID_PROGRAMS and (exe is not None or name is not None)):
            return None
        if entry.identifier not in _SETUID_PROGRAMS or message.action not in _SETUID_ACTIONS:
            return None
        if message.user_uid is not None and message.user_uid != entry.uid:
            return None
        by_name = None if message.user is None else self._accounts.uid(message.user)
        if message.user is not None and by_name is not None and by_name != entry.uid:
            return None
        claims_nobody = message.user is None and message.user_uid is None
        is_own = claims_nobody or by_name is not None or message.user_uid is not None
        return Sender(is_own and exe is not None, process)

    def of_file(self, entry: SystemLogEntry, message: AuthMessage, process: Process | None) -> Sender | None:
        """The sender of a line of a log file; None if its process is another program, or never existed."""
        tag = (entry.identifier or "").lower()
        if entry.pid is None:
            return Sender(False, None) if tag in _WITHOUT_PID else None
        if process is None:
            return None if self.is_recorded(entry.time) else Sender(False, None)
        if not _is_other(process, tag):
            return Sender(False, process)
        if not self._cache.has_all_starts and self._cache.read(process.pid) is None:
            return Sender(False, None)  # it may have executed another program before it ended
        return None

    def is_recorded(self, at: float) -> bool:
        """Whether all processes that ran then are in the cache, or in /proc, once their events have been read."""
        if not (self._cache.has_all_starts and at > self.since and 0 <= time.time() - at < _READ_AGE_SECONDS):
            return False
        return (at - boot_time()) * 1e9 > self._cache.execs_lost_until

    def connection(self, process: Process) -> Process | None:
        """The process of sshd that handles the connection, if `process` is its child that runs PAM."""
        parent = self._cache.find(process.ppid) if process.name.startswith("sshd") else None
        above = self._cache.find(parent.ppid) if parent is not None and parent.name.startswith("sshd") else None
        return parent if above is not None and above.name.startswith("sshd") else None

    def process(self, pid: int | None, at: float) -> Process | None:
        """The process that had this pid then."""
        if pid is None:
            return None
        boot_ns = round((at + _CLOCK_SECONDS - boot_time()) * 1e9)
        process = self._cache.lookup(pid, boot_ns)
        if process is not None and process.until is not None and process.until < boot_ns - 10_000_000_000:
            return None
        if process is None and time.time() - at < _READ_AGE_SECONDS:
            process = self._cache.read(pid)
        if process is None or process.started > boot_ns:
            return None
        return process


def _is_other(process: Process, tag: str) -> bool:
    """Whether the process is not the program that a message names, or may not write it."""
    name = program_of(process.exe) if process.exe is not None else process.name
    if tag in _NAMED_PROGRAMS and name is not None and name.partition("-")[0] != tag.partition("-")[0]:
        return True
    return process.name == "logger" or (process.uid not in (0, None) and name not in _SETUID_PROGRAMS)


@lru_cache(maxsize=256)
def program_of(exe: str | None) -> str | None:
    """The name of a program of the system; None for one elsewhere."""
    path = PurePosixPath(exe or "")
    return path.name if str(path.parent) in _SYSTEM_DIRECTORIES else None
