"""Updates the process cache from forks, execs and exits without details, which are read from /proc immediately.

Details that are gone from /proc stay unknown, but every start and end of a process is recorded. As with eBPF, a process
that is forked and executes a program within a second starts once, with that program.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux import boot_clock, procfs
from zeek_agent.host.linux.stamps import TICKS, boot_id, start_ticks
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_changes import FORK_TIMEOUT_NS, PendingForks, ProcessChange
from zeek_agent.recording.processes.process_event import (
    PROCESSES_EVENTS,
    Exit,
    ProcessEvent,
    found_process_event,
    process_event,
)

if TYPE_CHECKING:
    from zeek_agent.recording.exclusions import Exclusions
    from zeek_agent.recording.source import MissedTime


class ProcessLifecycle:
    """Receives events in order, with their boot time in ns; `collect` returns the rows."""

    def __init__(self, cache: ProcessCache, exclusions: Exclusions, proc: str = "/proc") -> None:
        self.cache = cache
        self._exclusions = exclusions
        self._procfs = procfs.Procfs(proc)
        self._forks = PendingForks()
        self._gone: set[int] = set()
        self._changes: list[ProcessChange] = []
        self._found: list[Process] = []

    def find_missed(self, missed: MissedTime | None, end: float) -> None:
        """Report running processes that began while nobody recorded, which ended at `end` (seconds since the epoch).

        Those of the last tick of /proc's clock are left out: they may have been recorded.
        """
        if missed is None:
            return
        first, last = (round((at - boot_clock.boot_time()) * 1e9) for at in (missed.since, end))
        started = self.cache.started_between(first, last - 1_000_000_000 // TICKS)
        recorded = missed.entities_since(PROCESSES_EVENTS, missed.since) if started else frozenset()
        self._found = [process for process in started if process.entity_id not in recorded]

    def oldest_fork(self) -> int | None:
        """The boot time (ns) of the oldest fork that is not reported yet."""
        return self._forks.oldest()

    def fork(self, pid: int, parent_pid: int, at: int) -> None:
        """`pid` began as a copy of its parent. Its start is read from /proc, or `at` if it has already ended.

        The latter is a few microseconds late: about one in two thousand such entity ids is off by a tick.
        """
        ticks = self._ticks(pid)
        if ticks is None or abs(ticks - start_ticks(at)) > TICKS:
            ticks = start_ticks(at)
        parent = self.cache.find(parent_pid, at)
        if parent is None:
            child = unknown_process(pid, at, ticks)
            child.ppid = parent_pid
        else:
            child = replace(
                parent,
                pid=pid,
                start_ticks=ticks,
                since=at,
                started=ticks * 1_000_000_000 // TICKS,
                entity_id=entity_id(boot_id(), pid, ticks),
                ppid=parent_pid,
                parent_entity_id=parent.entity_id,
                parent_name=parent.name,
                parent_exe=parent.exe,
                vsize=None,
                rsize=None,
                until=None,
                exited=False,
            )
        self.cache.begin(child)
        self._forks.add(child)

    def read(self, pid: int) -> Process | None:
        """The process from /proc, for `exec`; call it as soon as possible. What disappears first is read first."""
        try:
            with procfs.ProcfsProcess(self._procfs, pid) as shown:
                exe, command_line = shown.exe, self.cache.command_line(shown.arguments)
        except ProcessLookupError:
            return None
        process = self.cache.read(pid)
        return None if process is None else replace(process, exe=exe, command_line=command_line)

    def exec(self, pid: int, at: int, shown: Process | None) -> Process:
        """`pid` executed a program; `shown` is the result of `read`. Details can be filled in until `collect`."""
        self._forks.remove(pid)
        known = self.cache.lookup(pid)
        if known is not None and known.exited:
            known = None
        if shown is not None and known is not None and not _same(shown, known):
            shown = None
        process = _after_exec(known, shown) or unknown_process(pid, at, None)
        if known is not None:
            process.keep_parent(known)
        process.since = at
        self.cache.exec(process)
        self._changes.append(ProcessChange(process, at, None))
        return process

    def exit(self, pid: int, at: int, status: int | None) -> None:
        """`pid` ended with that wait status (None: unknown)."""
        forked = self._forks.remove(pid)
        process = self.cache.exit(pid, at) or self.cache.lookup(pid)
        if process is None or process.until is None or process.until < at - FORK_TIMEOUT_NS:
            process = unknown_process(pid, at, None)
        if forked is not None:
            self._changes.append(ProcessChange(process, process.since, None))
        self._changes.append(ProcessChange(process, max(at, process.since), self._end(process, status)))

    def appear(self, pid: int) -> None:
        """Record a process whose start was not observed."""
        process = self.cache.read(pid)
        if process is not None:
            self.cache.begin(process)
            self._changes.append(ProcessChange(process, process.started, None))

    def set_user(self, pid: int, real: int, effective: int) -> None:
        process = self.cache.lookup(pid)
        if process is not None:
            process.ruid, process.uid = real, effective

    def set_group(self, pid: int, real: int, effective: int) -> None:
        process = self.cache.lookup(pid)
        if process is not None:
            process.rgid, process.gid = real, effective

    def reconcile(self, now: int) -> bool:
        """After missed events, compare with /proc: record the ends of missing processes and the starts of unknown ones.

        A process's exit event may still be pending, with details, so an end takes two scans: False requests another.
        """
        known = {process.pid: process for process in self.cache if process.until is None}
        alive = set(self._procfs.pids())
        gone = known.keys() - alive
        for pid in gone & self._gone:
            self.exit(pid, now, None)
        self._gone = gone - self._gone
        for pid in alive - known.keys():
            self._discover(pid)
        return not self._gone

    def collect(self, now: int, boot_time: float, *, at_end: bool = False) -> list[ProcessEvent]:
        """The rows since the last call; expires old entries. `at_end` includes all forks."""
        for process in self._forks.overdue(None if at_end else now):
            self._changes.append(ProcessChange(process, process.since, None))
        changes, self._changes = self._changes, []
        found, self._found = self._found, []
        self.cache.expire(now)
        events = [found_process_event(process, boot_time) for process in found]
        events += [process_event(process, at, boot_time, ended) for process, at, ended in changes]
        return self._exclusions.without(events)

    def _discover(self, pid: int) -> None:
        """Add a process without a fork event; it may still execute a program. Ignores one that is ending."""
        process = self.cache.read(pid)
        if process is not None and not self._is_ending(pid):
            self.cache.begin(process)
            self._forks.add(process)

    def _is_ending(self, pid: int) -> bool:
        try:
            with procfs.ProcfsProcess(self._procfs, pid) as process:
                return process.is_ending
        except ProcessLookupError:
            return True

    def _ticks(self, pid: int) -> int | None:
        try:
            with procfs.ProcfsProcess(self._procfs, pid) as process:
                return process.start_ticks
        except ProcessLookupError:
            return None

    def _end(self, process: Process, status: int | None) -> Exit:
        """The exit, with the processor times that /proc shows until the parent has waited for it."""
        try:
            with procfs.ProcfsProcess(self._procfs, process.pid) as shown:
                if shown.start_ticks == process.start_ticks:
                    return Exit(status, shown.utime, shown.stime)
        except ProcessLookupError:
            pass
        return Exit(status)


def _after_exec(known: Process | None, shown: Process | None) -> Process | None:
    """The version after an exec of the process `known`: complete if /proc still had it (`shown`)."""
    if known is None:
        return shown
    if shown is not None and shown.exe is not None:
        return shown
    name = shown.name if shown is not None else ""
    process = replace(known, name=name, exe=None, command_line=None, vsize=None, rsize=None, until=None)
    process.forget_executable()
    return process


def _same(shown: Process, known: Process) -> bool:
    """Whether /proc still shows the known process: an estimated start may be a tick late."""
    return abs(shown.start_ticks - known.start_ticks) <= 1


def unknown_process(pid: int, at: int, ticks: int | None) -> Process:
    """A process of which only the pid is known, and maybe the start in ticks."""
    return Process(
        pid=pid,
        start_ticks=ticks or 0,
        since=at,
        started=at if ticks is None else ticks * 1_000_000_000 // TICKS,
        entity_id="" if ticks is None else entity_id(boot_id(), pid, ticks),
        name="",
    )
