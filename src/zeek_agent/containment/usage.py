"""What processes and statements use: processor time and memory of a process, and the account of each statement."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

STATEMENTS_MAX: Final = 10_000
"""Statements whose use is remembered; the one that ran longest ago is forgotten first."""
_PROCESS_CLOCK: Final = 2
"""CPUCLOCK_SCHED (include/linux/posix-timers.h): time on a processor in nanoseconds, user and system."""

StatementKey = tuple[str, bytes]


def statement_key(recipient: str, sql: str) -> StatementKey:
    """Recipient and hash of the statement: it may be long."""
    return recipient, hashlib.sha256(sql.encode(errors="surrogatepass")).digest()


def cpu_seconds(pid: int) -> float | None:
    """Processor time that the process has used (clock_getcpuclockid(3)); None if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    except OSError:
        return None


class Memory(NamedTuple):
    """Resident memory in bytes: now, and the most that there ever was."""

    resident: int
    peak: int


def memory(pid: int) -> Memory:
    """Memory of the process; zeros if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0)
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    return Memory(*(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM")))


@dataclass(slots=True)
class StatementUsage:
    """What a recipient's statement has used so far, compilation included."""

    cpu: float = 0.0
    peak: int = 0
    """The most memory of a worker process until the end of a run: an earlier statement may have needed it."""
    killed: int = 0
    """Runs that ended with the death of their worker process."""


class Charge(NamedTuple):
    """Processor time in seconds that a recipient's statement used."""

    recipient: str
    cpu: float


class Accounts:
    """Charges statements with the use of the worker processes that run them, one at a time each."""

    def __init__(self) -> None:
        self._usage: OrderedDict[StatementKey, StatementUsage] = OrderedDict()
        self._running: dict[int, tuple[StatementKey, float]] = {}

    def of(self, key: StatementKey) -> StatementUsage:
        """The account of a statement; empty if it has not run."""
        return self._usage.get(key) or StatementUsage()

    def begin(self, worker: int, key: StatementKey, cpu: float) -> None:
        """A worker that has used so much processor time begins with a statement."""
        self._running[worker] = key, cpu

    def end(self, worker: int, cpu: float, peak: int) -> Charge | None:
        """The worker's statement has ended: what it used, None if it had none. `cpu` and `peak` are the worker's."""
        begun = self._running.pop(worker, None)
        if begun is None:
            return None
        key, before = begun
        usage, used = self._opened(key), max(0.0, cpu - before)
        usage.cpu += used
        usage.peak = max(usage.peak, peak)
        return Charge(key[0], used)

    def count_kill(self, worker: int) -> None:
        """The worker was killed because of its statement. Its use is not known yet: `end` follows."""
        if (begun := self._running.get(worker)) is not None:
            self._opened(begun[0]).killed += 1

    def forget_running(self) -> None:
        """The use of workers that have ended will not be reported."""
        self._running.clear()

    def _opened(self, key: StatementKey) -> StatementUsage:
        usage = self._usage.setdefault(key, StatementUsage())
        self._usage.move_to_end(key)
        if len(self._usage) > STATEMENTS_MAX:
            self._usage.popitem(last=False)
        return usage
