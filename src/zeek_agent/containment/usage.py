"""What processes and statements use: processor time and memory of a process, and the account of each statement."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

from zeek_agent.host.linux.procfs import living_directory

STATEMENTS_MAX: Final = 1_000
"""Statements of a recipient whose use is remembered; the one that ran longest ago is forgotten first."""
RECIPIENTS_MAX: Final = 100
"""Recipients whose statements are remembered, with the same rule: each uid that asks is one."""
_PROCESS_CLOCK: Final = 2
"""CPUCLOCK_SCHED (include/linux/posix-timers.h): time on a processor in nanoseconds, user and system."""

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

StatementKey: TypeAlias = "tuple[str, bytes]"
"""Recipient, and digest of the statement, which may be long."""


def recipient_of(origin: str) -> str:
    """Whose workers and whose budgets a requester uses: a destination's, or a local user's, whatever the process."""
    return origin.partition(" pid=")[0]


def statement_key(recipient: str, sql: str) -> StatementKey:
    """The key of a recipient's statement."""
    return recipient, hashlib.sha256(sql.encode(errors="surrogatepass")).digest()


def cpu_seconds(pid: int) -> float | None:
    """Processor time that the process has used (clock_getcpuclockid(3)); None if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    except OSError:
        return None


def ended_children_cpu_seconds(pid: int) -> float:
    """Processor time of children that have ended and been waited for (proc_pid_stat(5)); 0 if the process is gone."""
    try:
        stat = Path(f"{living_directory('/proc', pid)}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = stat.rpartition(b")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Resident memory in bytes: now, and the most that there ever was."""

    resident: int
    peak: int


def memory(pid: int) -> Memory:
    """Memory of the process; zeros if it is gone."""
    try:
        lines = Path(f"{living_directory('/proc', pid)}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0)
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    return Memory(*(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM")))


@dataclass(slots=True)
class StatementUsage:
    """What a recipient's statement has used so far, its compilation and the start of its workers included."""

    cpu: float = 0.0
    peak: int = 0
    """The most memory of a worker process until the end of a run: an earlier statement may have needed it."""
    killed: int = 0
    """Runs that ended with the death of their worker process."""


class Accounts:
    """The accounts of statements. A worker process runs one at a time, so what it uses is that statement's.

    One recipient's statements do not displace another's.
    """

    def __init__(self) -> None:
        self._usage: OrderedDict[str, OrderedDict[bytes, StatementUsage]] = OrderedDict()

    def of(self, key: StatementKey) -> StatementUsage:
        """The account of a statement; empty if it has not run."""
        recipient, digest = key
        statements = self._usage.get(recipient)
        return (statements and statements.get(digest)) or StatementUsage()

    def charge(self, key: StatementKey, cpu: float, peak: int) -> None:
        """A statement has used processor time, in a worker with this maximum of resident memory."""
        usage = self._opened(key)
        usage.cpu += cpu
        usage.peak = max(usage.peak, peak)

    def count_kill(self, key: StatementKey) -> None:
        """The statement's worker was killed because of it."""
        self._opened(key).killed += 1

    def _opened(self, key: StatementKey) -> StatementUsage:
        recipient, digest = key
        statements = _latest(self._usage, recipient, OrderedDict, RECIPIENTS_MAX)
        return _latest(statements, digest, StatementUsage, STATEMENTS_MAX)


def _latest(remembered: OrderedDict[_K, _V], key: _K, new: Callable[[], _V], most: int) -> _V:
    """The value of a key, which is now the last to be forgotten."""
    value = remembered.get(key)
    if value is None:
        value = remembered[key] = new()
        if len(remembered) > most:
            remembered.popitem(last=False)
    remembered.move_to_end(key)
    return value
