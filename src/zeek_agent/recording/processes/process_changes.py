"""Starts and ends of processes, and pending forks; shared by all backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_event import Exit

FORK_TIMEOUT_NS: Final = 1_000_000_000
"""How long a forked process may take to execute a program before it is reported as a copy of its parent.

A shell takes well under a millisecond; a second leaves room for a busy machine and still reports a worker soon.
"""


class ProcessChange(NamedTuple):
    """A process started (`exit` is None) or stopped, at boot time `at` in ns."""

    process: Process
    at: int
    exit: Exit | None


class PendingForks:
    """Forked processes that have neither executed a program nor ended, by pid, the oldest first."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}

    def add(self, process: Process) -> None:
        self._processes[process.pid] = process

    def remove(self, pid: int) -> Process | None:
        """The fork of this pid, which executed a program or ended; None if it was not pending."""
        return self._processes.pop(pid, None)

    def get(self, pid: int) -> Process | None:
        """The pending fork of this pid."""
        return self._processes.get(pid)

    def oldest(self) -> int | None:
        """The boot time (ns) of the oldest pending fork."""
        return next((process.since for process in self._processes.values()), None)

    def overdue(self, now: int | None) -> Iterator[Process]:
        """Remove those that were forked `FORK_TIMEOUT_NS` before `now` (boot time in ns); without it, all."""
        for pid, process in list(self._processes.items()):
            if now is not None and process.since > now - FORK_TIMEOUT_NS:
                return
            del self._processes[pid]
            yield process
