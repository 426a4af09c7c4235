"""Who is, or was, process N: facts of living processes, and of exited ones for a grace period.

Event sources feed the cache with forks, execs and exits; a scan of /proc seeds it. A connection that is reported after
its process has gone is then still attributed. Times are nanoseconds of CLOCK_BOOTTIME, the kernel's own stamps.

A process is one by its pid and its start (in ticks, as /proc tells it), so a pid that is used again cannot mix two. An
exec begins a new version of the facts: asking for a time before it gives what the process was then.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sys import intern
from typing import Final

from zeek_agent import text
from zeek_agent.sources.containers import container_id
from zeek_agent.sources.entity_id import entity_id

TICKS: Final = os.sysconf("SC_CLK_TCK")
"""USER_HZ: the unit of start times in /proc."""

UNSET: Final = 0xFFFF_FFFF
"""What the kernel shows for a login uid or an audit session that was never set."""


@dataclass(slots=True, eq=False)
class Process:
    """What is known of a process from `since` until it ends or executes something else (`until`).

    `exe` is as /proc/PID/exe shows it, `uid` and `gid` are the effective ids; None: not known, or not set.
    """

    pid: int
    start_ticks: int
    since: int
    started: int
    entity_id: str
    name: str
    ppid: int
    parent_entity_id: str | None
    parent_name: str | None
    parent_exe: str | None
    uid: int | None
    gid: int | None
    ruid: int | None
    rgid: int | None
    exe: str | None
    cmdline: str | None
    cwd: str | None
    loginuid: int | None
    session: int | None
    cgroup: str | None
    container_id: str | None
    netns: int | None
    priority: int | None = None
    vsize: int | None = None
    rsize: int | None = None
    until: int | None = None
    exited: bool = False


class ProcessCache:
    """Facts by pid and time. One thread feeds it; any thread may ask."""

    def __init__(self, exited_limit: int = 20_000, grace: float = 60.0, proc: str = "/proc") -> None:
        self._limit = exited_limit
        self._grace = int(grace * 1e9)
        self._proc = proc
        self._versions: dict[int, list[Process]] = {}
        self._ended: deque[Process] = deque()

    def __len__(self) -> int:
        """Versions held, of living and exited processes."""
        return sum(map(len, list(self._versions.values())))

    def __iter__(self) -> Iterator[Process]:
        """All versions held, oldest first for each process."""
        return (process for versions in list(self._versions.values()) for process in list(versions))

    def seed(self) -> None:
        """Add what /proc shows now; what the cache has already stays."""
        for pid in pids(self._proc):
            if self._living(pid) is None and (process := self.read(pid)) is not None:
                self._add(process)

    def fork(self, pid: int, started: int, parent: Process, since: int | None = None) -> Process:
        """A process began as a copy of `parent`; gives its facts: the parent's, until it executes a program."""
        ticks = start_ticks(started)
        child = Process(
            pid=pid,
            start_ticks=ticks,
            since=started if since is None else since,
            started=started,
            entity_id=entity_id(boot_id(), pid, ticks),
            name=parent.name,
            ppid=parent.pid,
            parent_entity_id=parent.entity_id,
            parent_name=parent.name,
            parent_exe=parent.exe,
            uid=parent.uid,
            gid=parent.gid,
            ruid=parent.ruid,
            rgid=parent.rgid,
            exe=parent.exe,
            cmdline=parent.cmdline,
            cwd=parent.cwd,
            loginuid=parent.loginuid,
            session=parent.session,
            cgroup=parent.cgroup,
            container_id=parent.container_id,
            netns=parent.netns,
            priority=parent.priority,
        )
        self._add(child)
        return child

    def exec(self, process: Process) -> None:
        """A program was executed: `process` holds the facts from `process.since` on."""
        self._add(process)

    def exit(self, pid: int, at: int, ticks: int | None = None) -> Process | None:
        """The process ended; gives its last facts, or None when it is not known or is known to have ended already."""
        process = self._living(pid)
        if process is None or (ticks is not None and process.start_ticks != ticks):
            return None
        process.exited = True
        self._end(process, at)
        return process

    def lookup(self, pid: int, at: int | None = None, ticks: int | None = None) -> Process | None:
        """The facts of `pid` at time `at` (default: the latest), of the process that started at `ticks` if given."""
        earliest = None
        for process in reversed(self._versions.get(pid, ())):
            if ticks is not None and process.start_ticks != ticks:
                continue
            if at is None or process.since <= at:
                return process
            earliest = process
        return earliest if ticks is not None else None

    def find(self, pid: int, at: int | None = None, ticks: int | None = None) -> Process | None:
        """Like `lookup`, and reads /proc when the cache does not know the process."""
        process = self.lookup(pid, at, ticks)
        if process is not None:
            return process
        process = self.read(pid)
        if process is None or (ticks is not None and process.start_ticks != ticks):
            return None
        self._add(process)
        return process

    def read(self, pid: int) -> Process | None:
        """The facts as /proc shows them now, not added to the cache. None when there is no such process."""
        process = read_process(pid, self._proc)
        if process is not None and (parent := self.lookup(process.ppid)) is not None:
            process.parent_entity_id = parent.entity_id
            process.parent_name = parent.name
            process.parent_exe = parent.exe
        return process

    def reconcile(self, now: int | None = None) -> None:
        """End what /proc no longer shows: for use after exits may have been missed."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if now is None else now
        known = list(self._versions)
        alive = set(pids(self._proc))
        for pid in known:
            if pid not in alive:
                self.exit(pid, now)

    def expire(self, now: int) -> None:
        """Forget what ended before the grace period, and the oldest beyond the limit."""
        ended = self._ended
        oldest = now - self._grace
        while ended and (len(ended) > self._limit or (ended[0].until or 0) < oldest):
            self._forget(ended.popleft())

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


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(nanoseconds: int) -> int:
    """A kernel start stamp (boot time) in /proc's unit, rounded down as /proc does."""
    return nanoseconds * TICKS // 1_000_000_000


def pids(proc: str = "/proc") -> list[int]:
    """The processes that /proc shows, parents mostly before their children."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208  bare names


def command_line(raw: bytes) -> str | None:
    """Arguments that end with NUL each, as one line; None when there are none."""
    return text.from_bytes(raw.rstrip(b"\0").replace(b"\0", b" ")) or None


def set_or_none(number: int) -> int | None:
    """A login uid or session, None when it was never set."""
    return None if number == UNSET else number


def read_process(pid: int, proc: str = "/proc") -> Process | None:
    """A process as /proc shows it: without its parent's facts; exe and cwd are None when we may not see them."""
    directory = f"{proc}/{pid}"
    try:
        stat = _read(f"{directory}/stat")
        status = _read(f"{directory}/status")
        arguments = _read(f"{directory}/cmdline")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat[stat.index(b"(") + 1 :].rpartition(b")")
    fields = rest.split()
    ticks = int(fields[19])
    started = ticks * 1_000_000_000 // TICKS
    ids = {line[:3]: line.split() for line in status.splitlines() if line[:4] in {b"Uid:", b"Gid:"}}
    cgroup = _cgroup(directory)
    return Process(
        pid=pid,
        start_ticks=ticks,
        since=started,
        started=started,
        entity_id=entity_id(boot_id(), pid, ticks),
        name=intern(text.from_bytes(name)),
        ppid=int(fields[1]),
        parent_entity_id=None,
        parent_name=None,
        parent_exe=None,
        uid=int(ids[b"Uid"][2]),
        gid=int(ids[b"Gid"][2]),
        ruid=int(ids[b"Uid"][1]),
        rgid=int(ids[b"Gid"][1]),
        exe=_link(f"{directory}/exe"),
        cmdline=command_line(arguments),
        cwd=_link(f"{directory}/cwd"),
        loginuid=_number(f"{directory}/loginuid"),
        session=_number(f"{directory}/sessionid"),
        cgroup=cgroup,
        container_id=container_id(cgroup) if cgroup else None,
        netns=_namespace(f"{directory}/ns/net"),
        priority=int(fields[15]),
        vsize=int(fields[20]),
        rsize=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def cgroup_path(lines: bytes) -> str | None:
    """The control group that tells most in a /proc/PID/cgroup: version 2's, or where that is the root, version 1's."""
    best = None
    for line in lines.splitlines():
        hierarchy, _, path = line.split(b":", 2)
        if best is None or (path != b"/" and (best == b"/" or hierarchy == b"0")):
            best = path
    return None if best is None else intern(text.from_bytes(best))


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a tenth of the cost of Path.read_bytes
        return file.read()


def _link(path: str) -> str | None:
    try:
        return intern(text.from_os(os.readlink(path)))  # noqa: PTH115  a third of the cost of Path.readlink
    except OSError:  # gone, a kernel thread, or not ours to see
        return None


def _namespace(path: str) -> int | None:
    link = _link(path)
    return int(link[5:-1]) if link else None


def _number(path: str) -> int | None:
    try:
        return set_or_none(int(_read(path)))
    except OSError:  # gone, or a kernel without audit
        return None


def _cgroup(directory: str) -> str | None:
    try:
        return cgroup_path(_read(f"{directory}/cgroup"))
    except OSError:  # gone, or a kernel without control groups
        return None
