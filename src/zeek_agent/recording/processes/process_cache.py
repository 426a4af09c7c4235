"""Process cache: attributes of live processes, and of exited ones for a grace period.

Event sources update the cache with forks, execs and exits; a list of the living processes seeds it. A connection
reported after its process has exited can then still be attributed. Times are nanoseconds of the clock of
`LivingProcesses`: on Linux CLOCK_BOOTTIME, as in the kernel.

A process is identified by its pid and start (in ticks, as in /proc), so that a reused pid does not mix two processes.
An exec begins a new version of the attributes: a lookup for an earlier time returns the earlier version.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zeek_agent.masking.masker import Masker

if TYPE_CHECKING:
    from zeek_agent.masking.command_line import CommandLine
    from zeek_agent.recording.processes.process import LivingProcesses, Process


class ProcessCache:
    """Attributes by pid and time. One thread writes; any thread may read."""

    def __init__(
        self,
        exited_limit: int = 20_000,
        grace_seconds: float = 60.0,
        proc: str = "/proc",
        masker: Masker | None = None,
        living: LivingProcesses | None = None,
    ) -> None:
        """`masker` masks secrets in command lines before they are cached; by default, those that the agent knows.

        `living` reads processes from the system; by default from `proc`.
        """
        self._limit = exited_limit
        self._grace_seconds = int(grace_seconds * 1e9)
        self._masker = masker or Masker()
        self._living_processes = living or _from_proc(proc)
        self._versions: dict[int, list[Process]] = {}
        self._ended: deque[Process] = deque()
        self.has_all_starts = False
        """Whether a source adds each process and its programs, however short it lives, except up to the time below."""
        self.execs_lost_until = 0
        """Boot time until which execs may be missing."""

    def __len__(self) -> int:
        """Number of cached versions, of live and exited processes."""
        return sum(map(len, list(self._versions.values())))

    def __iter__(self) -> Iterator[Process]:
        """All cached versions, oldest first for each process."""
        return (process for versions in list(self._versions.values()) for process in list(versions))

    def seed(self) -> None:
        """Add the living processes; existing entries are kept."""
        strangers = [pid for pid in self._living_processes.pids() if self._living(pid) is None]
        shown = [process for pid in strangers if (process := self.read(pid)) is not None]
        for process in shown:
            self._add(process)
        for process in shown:  # a parent's pid may be the higher one
            self._note_parent(process)

    def started_between(self, begin: int, end: int) -> list[Process]:
        """Living processes that started in this period (boot time in ns), in the order of their starts.

        On Linux the start is known to a tick of /proc, so the first and last ones may have started shortly outside.
        """
        tick = self._living_processes.start_unit_ns
        living = [process for process in self if process.until is None and begin - tick <= process.started <= end]
        return sorted(living, key=lambda process: process.started)

    def begin(self, process: Process) -> None:
        """Record the fork of `process`, unless the cache has it already (from /proc)."""
        living = self._living(process.pid)
        if living is None or living.start_ticks != process.start_ticks:
            self._add(process)

    def exec(self, process: Process) -> None:
        """Record an exec: `process` has the attributes from `process.since` on."""
        self._add(process)

    def exit(self, pid: int, at: int, ticks: int | None = None) -> Process | None:
        """Record the end of a process; returns its last version, or None if it is unknown or has already ended."""
        process = self._living(pid)
        if process is None or (ticks is not None and process.start_ticks != ticks):
            return None
        process.exited = True
        self._end(process, at)
        return process

    def lookup(self, pid: int, at: int | None = None, ticks: int | None = None) -> Process | None:
        """The version of `pid` at time `at` (default: the latest), of the process that started at `ticks` if given."""
        earliest = None
        for process in reversed(self._versions.get(pid, ())):
            if ticks is not None and process.start_ticks != ticks:
                continue
            if at is None or process.since <= at:
                return process
            earliest = process
        return earliest if ticks is not None else None

    def find(self, pid: int, at: int | None = None, ticks: int | None = None) -> Process | None:
        """Like `lookup`, but reads the process from the system if it is not in the cache."""
        process = self.lookup(pid, at, ticks)
        if process is not None:
            return process
        process = self.read(pid)
        if process is None or (ticks is not None and process.start_ticks != ticks):
            return None
        self._add(process)
        return process

    def read(self, pid: int) -> Process | None:
        """The living process, not added to the cache. None if the process does not exist."""
        process = self._living_processes.read(pid, self._masker)
        if process is not None:
            self._note_parent(process)
        return process

    def command_line(self, arguments: bytes | None, cut: bool = False) -> CommandLine | None:
        """Arguments, each with its NUL, masked; None if there are none or they could not be read."""
        return self._masker.command_line(arguments, cut=cut) if arguments else None

    def miss_execs(self, until: int) -> None:
        """Note that execs may be missing until this boot time, and with them the executables of living processes."""
        self.execs_lost_until = until
        self.forget_executables()

    def forget_executables(self) -> None:
        """Note that execs are not followed, so that living processes may execute something else than was recorded."""
        for process in self:
            if process.until is None:
                process.forget_executable()

    def doubts(self, process: Process, name: str) -> bool:
        """Whether an exec of a process whose name is `name` now may have been lost."""
        return process.since <= self.execs_lost_until and process.name != name

    def reconcile(self, now: int | None = None) -> None:
        """End processes that are no longer alive, after exits may have been missed."""
        now = self._living_processes.now() if now is None else now
        known = list(self._versions)
        alive = set(self._living_processes.pids())
        for pid in known:
            if pid not in alive:
                self.exit(pid, now)

    def expire(self, now: int) -> None:
        """Remove processes that ended before the grace period, and the oldest beyond the limit."""
        ended = self._ended
        oldest = now - self._grace_seconds
        while ended and (len(ended) > self._limit or (ended[0].until or 0) < oldest):
            self._forget(ended.popleft())

    def _note_parent(self, process: Process) -> None:
        if (parent := self.lookup(process.ppid)) is not None:
            process.parent_entity_id = parent.entity_id
            process.parent_name = parent.name
            process.parent_exe = parent.exe

    def _living(self, pid: int) -> Process | None:
        versions = self._versions.get(pid)
        if versions and versions[-1].until is None:
            return versions[-1]
        return None

    def _add(self, process: Process) -> None:
        previous = self._living(process.pid)
        if previous is not None:
            previous.exited = previous.start_ticks != process.start_ticks
            self._end(previous, process.since)
        self._versions.setdefault(process.pid, []).append(process)

    def _end(self, process: Process, at: int) -> None:
        process.until = at
        self._ended.append(process)
        if len(self._ended) > self._limit:
            self._forget(self._ended.popleft())

    def _forget(self, process: Process) -> None:
        versions = self._versions[process.pid]
        versions.remove(process)
        if not versions:
            del self._versions[process.pid]


def _from_proc(root: str) -> LivingProcesses:
    from zeek_agent.recording.processes.proc_reader import ProcReader

    return ProcReader(root)
