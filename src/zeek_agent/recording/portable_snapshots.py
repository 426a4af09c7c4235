"""Process and socket events from differences between snapshots by psutil, on systems other than Linux."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from zeek_agent.host.portable.sockets import HeldSocket, Withheld
from zeek_agent.recording.processes.process_changes import ProcessChange
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS, Exit, found_process_event, process_event
from zeek_agent.recording.snapshot_source import SnapshotSource
from zeek_agent.recording.sockets.socket_changes import WANTED_STATES, SocketChanges
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.host.internet_sockets import InternetSocket
    from zeek_agent.host.portable.system import PortableSystem
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_cache import ProcessCache
    from zeek_agent.recording.source import MissedTime


class PortableProcessSnapshots(SnapshotSource):
    """Processes that appeared, disappeared, or changed their executable. The cache's clock counts from the epoch."""

    kind = "processes"
    shortcoming = "processes that live for less than two intervals are missed"

    def __init__(self, cache: ProcessCache, settings: SourceSettings, system: PortableSystem) -> None:
        super().__init__(cache, settings)
        self._system = system
        self._changes: list[ProcessChange] = []

    def probe(self) -> str | None:
        try:
            self._system.processes().pids()
        except (OSError, psutil.Error) as error:
            return f"cannot list processes: {error}"
        return None

    def _begin(self) -> None:
        self._cache.seed()
        self._known = self._present()
        found = self._unrecorded(self.missed, self._begun)
        if found:
            self._sink(PROCESSES_EVENTS, self._exclusions.without([found_process_event(one, 0.0) for one in found]))

    def _unrecorded(self, missed: MissedTime | None, end: float) -> list[Process]:
        """Running processes that began while nobody recorded, which ended at `end` (seconds since the epoch)."""
        if missed is None:
            return []
        started = self._cache.started_between(round(missed.since * 1e9), round(end * 1e9))
        recorded = missed.entities_since(PROCESSES_EVENTS, missed.since) if started else frozenset()
        return [process for process in started if process.entity_id not in recorded]

    def _present(self) -> dict[int, tuple[int, str | None]]:
        """Start and executable of each process; the latter only where a process can change it."""
        scan = self._system.processes()
        present: dict[int, tuple[int, str | None]] = {}
        for process in scan.processes():
            with suppress(ProcessLookupError):  # it has ended
                present[process.pid] = process.start, process.exe if scan.can_exec else None
        return present

    def _compare(self) -> None:
        now = time.time_ns()
        before, self._known = self._known, self._present()
        for pid, (started, _) in before.items():
            if pid not in self._known or self._known[pid][0] != started:
                self._exit(pid, started, now)
        for pid, present in list(self._known.items()):
            known = before.get(pid)
            if known is None or known[0] != present[0]:
                self._appear(pid)
            elif present[1] is None:  # it is about to end, or is no longer readable
                self._known[pid] = known
            elif known[1] is not None and known[1] != present[1]:
                self._exec(pid, now)
        self._cache.expire(now)
        changes, self._changes = self._changes, []
        rows = self._exclusions.without([process_event(process, at, 0.0, ended) for process, at, ended in changes])
        self.counters.received += len(rows)
        if rows:
            self._sink(PROCESSES_EVENTS, rows)

    def _exit(self, pid: int, started: int, now: int) -> None:
        process = self._cache.exit(pid, now, started)
        if process is not None:
            self._changes.append(ProcessChange(process, max(now, process.since), Exit()))

    def _appear(self, pid: int) -> None:
        process = self._cache.read(pid)
        if process is None:
            del self._known[pid]  # it has ended again
            return
        self._known[pid] = process.start_ticks, self._known[pid][1]
        self._cache.begin(process)
        self._changes.append(ProcessChange(process, process.started, None))

    def _exec(self, pid: int, now: int) -> None:
        process, known = self._cache.read(pid), self._cache.lookup(pid)
        if process is None or known is None or process.start_ticks != known.start_ticks:
            return
        process.keep_parent(known)
        process.since = now
        self._cache.exec(process)
        self._changes.append(ProcessChange(process, now, None))


class PortableSocketSnapshots(SnapshotSource):
    """TCP connections and listeners, connected and bound UDP sockets that appeared or disappeared."""

    kind = "sockets"
    shortcoming = "connections that live for less than two intervals, ICMP and packet sockets are missed"

    def __init__(self, cache: ProcessCache, settings: SourceSettings, system: PortableSystem) -> None:
        super().__init__(cache, settings)
        self._system = system

    def probe(self) -> str | None:
        try:
            next(iter(self._system.sockets(self._withheld)), None)
        except (OSError, psutil.Error) as error:
            return f"cannot list sockets: {error}"
        return None

    def _begin(self) -> None:
        self._changes = SocketChanges(
            self._owners,
            self._exclusions,
            attribution_timeout=0.0,
            key=socket_key,
            ephemeral=self._system.ephemeral_ports,
        )
        self._changes.seed(None, self._listed(), time.time())

    def _compare(self) -> None:
        self._changes.update(None, self._listed(), time.time())
        rows = self._changes.collect(time.time())
        self.counters.received += len(rows)
        if rows:
            self._sink(SOCKETS_EVENTS, rows)

    def _listed(self) -> list[InternetSocket]:
        held = (one for one in self._system.sockets(self._withheld) if WANTED_STATES >> one.socket.state & 1)
        return list(one_per_socket(held, self._owner))

    def _withheld(self, withheld: Withheld) -> None:
        self.counters.last_error = str(withheld)

    def _owner(self, pid: int) -> Process | None:
        """The process as the system shows it: other sources of processes do not keep the cache up to date."""
        return self._cache.read(pid) if pid else None

    def _owners(self, pids: set[int]) -> dict[int, Process]:
        return {pid: process for pid in pids if (process := self._owner(pid)) is not None}


def socket_key(_: int | None, socket: InternetSocket) -> object:
    """A socket in all lists: a connection by its ends, another one also by its holder, as several may share a port."""
    ends = (socket.protocol, *socket[2:6])
    return ends if socket.connected else (*ends, socket.inode)


def one_per_socket(held: Iterable[HeldSocket], owner: Callable[[int], Process | None]) -> Iterator[InternetSocket]:
    """Each socket once, with the process that opened it, and not those that inherited it.

    A connection has one owner, the process that started first. Processes that share a port may have opened a socket
    each, unless one is another's parent. `owner` returns the process with a pid.
    """
    holders: dict[object, dict[int, InternetSocket]] = {}
    for one in held:
        holders.setdefault((one.socket.protocol, *one.socket[2:6]), {})[one.socket.inode] = one.socket
    for by_pid in holders.values():
        if len(by_pid) == 1:
            yield from by_pid.values()
            continue
        processes = {pid: owner(pid) for pid in by_pid}
        if next(iter(by_pid.values())).connected:
            yield by_pid[min(by_pid, key=lambda pid: _start(processes[pid]))]
        else:
            yield from (
                socket
                for pid, socket in by_pid.items()
                if (found := processes[pid]) is None or found.ppid not in by_pid
            )


def _start(process: Process | None) -> float:
    return math.inf if process is None else process.started
